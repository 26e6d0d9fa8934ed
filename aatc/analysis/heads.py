"""Heads and layers: where weight goes, absorption, rollout and flow."""

from aatc.passes.analysis.heads.layers import attention_flow, attention_rollout
from aatc.passes.analysis.heads.positions import (
    HeadProfile,
    TokenMass,
    absorption_times,
    head_profile,
    is_causal,
)

__all__ = [
    "HeadProfile",
    "TokenMass",
    "absorption_times",
    "attention_flow",
    "attention_rollout",
    "head_profile",
    "is_causal",
]
