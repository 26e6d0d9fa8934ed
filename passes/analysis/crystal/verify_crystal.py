"""Witnesses of crystal results: what a value was computed from, and the value.

A check finds the value again from that data by another way, and shares no code with what made it. The checks are in
`verify_lattices` and `verify_bands`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.claims import deviation, plain
from aatc.passes.analysis.result import UNFIT, AnalysisError, Result, mismatch, verify

#: By kind of witness: how far a claim is from what the data gives. ValueError for data that is not sound.
CHECKS: dict[str, Callable[[Mapping[str, Any], Any], float]] = {}


@dataclass(frozen=True, eq=False)
class CrystalWitness:
    """``claim``, as `plain` writes it, claims to be the value of this ``kind`` of the ``data``."""

    kind: str
    data: Mapping[str, Any]
    claim: Any


Check = Callable[[Mapping[str, Any], Any], float]


def checks(kind: str) -> Callable[[Check], Check]:
    """Takes a function for the check of the witnesses of a kind."""

    def take(function: Check) -> Check:
        CHECKS[kind] = function
        return function

    return take


@mismatch.register
def _claimed(witness: CrystalWitness, value: Any) -> float:
    """The difference of the value from the claim."""
    return deviation(plain(value), witness.claim)


@verify.register
def _(witness: CrystalWitness) -> float:
    if witness.kind not in CHECKS:
        raise AnalysisError(f"there is no witness of the kind {witness.kind!r}", hint=f"there are: {', '.join(CHECKS)}")
    try:
        return CHECKS[witness.kind](witness.data, witness.claim)
    except (*UNFIT, np.linalg.LinAlgError, AnalysisError):
        return float("inf")  # data that is not what the kind needs proves nothing


def witnessed(
    value: Any, kind: str, data: Mapping[str, Any], tolerance: float, *, level: str = "P2",
    assumptions: tuple[str, ...] = (), residual: float = 0.0,
) -> Result[Any]:  # fmt: skip
    """``value`` with the witness that ``data``, copied, gives it; what has ``__array__`` stays as it is."""
    stored = {k: np.array(p) if isinstance(p := plain(v), np.ndarray) else p for k, v in data.items()}
    return Result(value, level, tolerance, residual, CrystalWitness(kind, stored, plain(value)), assumptions)
