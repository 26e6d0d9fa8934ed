"""Heads and layers: where weight goes, absorption, rollout and flow."""

from aatc.passes.analysis.heads.layers import attention_flow, attention_rollout
from aatc.passes.analysis.heads.positions import (
    HeadProfile,
    ProfileSums,
    TokenMass,
    absorption_times,
    head_profile,
    is_causal,
    recurrent_states,
)

__all__ = [
    "HeadProfile",
    "ProfileSums",
    "TokenMass",
    "absorption_times",
    "attention_flow",
    "attention_rollout",
    "head_profile",
    "is_causal",
    "recurrent_states",
]
