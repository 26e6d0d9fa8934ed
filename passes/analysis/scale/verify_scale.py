"""Witnesses of the scale family: what a value was computed from, and the value.

The checks are in `verify_chains`, `verify_maps`, `verify_exponents` and `verify_anomalies`; they compute the value
again by another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aatc.passes.analysis.claims import Checks, ClaimWitness, claimed, taking
from aatc.passes.analysis.result import Result

#: By kind of witness: the value from the data.
RECOMPUTE: Checks = {}
recomputes = taking(RECOMPUTE)


@dataclass(frozen=True, eq=False)
class ScaleWitness(ClaimWitness):
    """The claim of a result of the scale family."""

    checks: ClassVar[Checks] = RECOMPUTE


def witnessed(
    value: Any, kind: str, data: Mapping[str, Any], tolerance: float, *, level: str = "P2",
    assumptions: tuple[str, ...] = (), residual: float = 0.0,
) -> Result[Any]:  # fmt: skip
    """``value`` with the witness that ``data`` gives it."""
    return claimed(ScaleWitness, value, kind, data, tolerance, level, assumptions, residual)


def require(sound: Any, what: str) -> None:
    """Raises ValueError unless all of ``sound`` holds: the data of a witness is not what its kind needs."""
    if not bool(sound.all() if hasattr(sound, "all") else sound):
        raise ValueError(f"the data of this witness is no {what}")
