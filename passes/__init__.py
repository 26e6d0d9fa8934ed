"""Passes over the IR, and the manager that runs them."""

from __future__ import annotations

from collections.abc import Iterable

from aatc.passes.adaptive_tile import AdaptiveTile
from aatc.passes.base import REGISTRY, Context, Pass, PassReport, Pipeline, PipelineResult, register, run_passes
from aatc.passes.capture_attention import CaptureAttention
from aatc.passes.certificate import Certificate, verify
from aatc.passes.cleanup import Canonicalize, CommonSubexpressions, DeadCode, FoldConstants
from aatc.passes.fuse_attention import FuseAttention, FuseNormalizer
from aatc.passes.plan_memory import PlanMemory
from aatc.passes.simplify_score import SimplifyScore

DEFAULT = "canonicalize,simplify-score,fuse-attention,fuse-normalizer,adaptive-tile,plan-memory"


def default_pipeline(extra: Iterable[Pass] = ()) -> Pipeline:
    """The built-in pipeline with ``extra`` passes after `fuse-attention`, where a model is shortest to read."""
    passes = list(Pipeline.parse(DEFAULT).passes)
    at = next(n for n, p in enumerate(passes) if p.name == "fuse-attention") + 1
    return Pipeline((*passes[:at], *extra, *passes[at:]))


__all__ = [
    "DEFAULT",
    "REGISTRY",
    "AdaptiveTile",
    "Canonicalize",
    "CaptureAttention",
    "Certificate",
    "CommonSubexpressions",
    "Context",
    "DeadCode",
    "FoldConstants",
    "FuseAttention",
    "FuseNormalizer",
    "Pass",
    "PassReport",
    "Pipeline",
    "PipelineResult",
    "PlanMemory",
    "SimplifyScore",
    "default_pipeline",
    "register",
    "run_passes",
    "verify",
]
