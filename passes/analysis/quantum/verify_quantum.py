"""Witnesses of quantum results: what a value was computed from, as plain arrays and numbers, and the value.

A check computes the value again from that data with numpy and SciPy, by another way than the torch code that made it,
and tests that the data is what it claims to be: a state, an observable, a law. The checks are in `verify_states` and
`verify_paths`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aatc.passes.analysis.claims import Checks, ClaimWitness, claimed, deviation, plain, taking
from aatc.passes.analysis.result import Result

__all__ = ["RECOMPUTE", "QuantumWitness", "deviation", "plain", "recomputes", "witnessed"]

#: By kind of witness: the value from the data.
RECOMPUTE: Checks = {}
recomputes = taking(RECOMPUTE)


@dataclass(frozen=True, eq=False)
class QuantumWitness(ClaimWitness):
    """The claim of a quantum result."""

    checks: ClassVar[Checks] = RECOMPUTE


def witnessed(
    value: Any, kind: str, data: Mapping[str, Any], tolerance: float, *, level: str = "P2",
    assumptions: tuple[str, ...] = (), residual: float = 0.0,
) -> Result[Any]:  # fmt: skip
    """``value`` with the witness that ``data`` gives it."""
    return claimed(QuantumWitness, value, kind, data, tolerance, level, assumptions, residual)
