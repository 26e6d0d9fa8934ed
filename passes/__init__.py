"""Passes over the IR, and the manager that runs them."""

from __future__ import annotations

from collections.abc import Iterable

from aatc.ir.errors import PassError
from aatc.passes.adaptive_tile import AdaptiveTile
from aatc.passes.base import (
    REGISTRY,
    Context,
    Pass,
    PassReport,
    Pipeline,
    PipelineResult,
    Placed,
    checked,
    register,
    run_passes,
)
from aatc.passes.capture_attention import CaptureAttention
from aatc.passes.certificate import Certificate, verify
from aatc.passes.cleanup import Canonicalize, CommonSubexpressions, DeadCode, FoldConstants
from aatc.passes.forward_copies import ForwardCopies
from aatc.passes.fuse_attention import FuseAttention, FuseNormalizer
from aatc.passes.lower_tokens import LowerTokens
from aatc.passes.plan_program import PlanProgram
from aatc.passes.schedule_attention import ScheduleAttention, with_schedules
from aatc.passes.simplify_score import SimplifyScore

#: The passes every backend starts from; its own suffix follows.
DEFAULT = "canonicalize,simplify-score,fuse-attention,fuse-normalizer,schedule,adaptive-tile"


def default_pipeline(extra: Iterable[Pass | Placed] = (), *, suffix: str = "") -> Pipeline:
    """The built-in pipeline and a backend's ``suffix``, with ``extra`` passes where they, or their classes, say:
    ``before`` or ``after`` a stage ("import", or a pass that is there already); by default after `fuse-attention`,
    where a model is shortest to read. Passes for one place keep their order."""
    passes = list(Pipeline.parse(f"{DEFAULT},{suffix}" if suffix else DEFAULT).passes)
    followers: dict[str, Pass] = {}  # the last pass put after a stage
    for given in extra:
        p = checked(given.item if isinstance(given, Placed) else given)
        before, after = (given.before, given.after) if isinstance(given, Placed) else (p.before, p.after)
        if before and after:
            raise PassError(f"pass {p.name} is to run both before {before} and after {after}", hint="give one of them")
        after = after or ("" if before else "fuse-attention")
        names = [q.name for q in passes]
        if before:
            at = _place(p, before, names)
        elif after == "import":
            at = passes.index(followers["import"]) + 1 if "import" in followers else 0
        else:
            at = _place(p, after, ["import", *names])
            at = passes.index(followers[after]) + 1 if after in followers else at
        passes.insert(at, p)
        followers[after] = p
    return Pipeline(tuple(passes))


def _place(p: Pass, stage: str, names: list[str]) -> int:
    if stage not in names:
        raise PassError(
            f"pass {p.name} is to run beside {stage!r}, which is no stage", hint=f"stages: {', '.join(names)}"
        )
    return names.index(stage)


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
    "ForwardCopies",
    "FuseAttention",
    "FuseNormalizer",
    "LowerTokens",
    "Pass",
    "PassReport",
    "Pipeline",
    "PipelineResult",
    "Placed",
    "PlanProgram",
    "ScheduleAttention",
    "SimplifyScore",
    "default_pipeline",
    "register",
    "run_passes",
    "verify",
    "with_schedules",
]
