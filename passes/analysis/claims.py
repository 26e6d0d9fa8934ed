"""Witnesses that claim a value of data: a check computes the value again from the data, by other code than made it.

Each family derives a class of witness of its own, with its checks by kind.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import scipy.sparse
import torch

from aatc.passes.analysis.result import AnalysisError, Result, Undecided, mismatch, verify

Check: TypeAlias = Callable[[Mapping[str, Any]], Any]
#: By kind of witness: the value from the data. Checks raise ValueError for data that is not sound.
Checks: TypeAlias = dict[str, Check]


@dataclass(frozen=True, eq=False)
class ClaimWitness:
    """``claim``, as `plain` writes it, claims to be the value of this ``kind`` of the ``data``."""

    kind: str
    data: Mapping[str, Any]
    claim: Any
    checks: ClassVar[Checks] = {}


def taking(checks: Checks) -> Callable[[str], Callable[[Check], Check]]:
    """A decorator by kind, which puts a function among ``checks``."""

    def recomputes(kind: str) -> Callable[[Check], Check]:
        def take(function: Check) -> Check:
            checks[kind] = function
            return function

        return take

    return recomputes


def plain(value: Any) -> Any:
    """A value as arrays, numbers, texts, tuples and dicts of these; a dataclass is the dict of its fields."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().resolve_conj().resolve_neg().numpy()
    if hasattr(value, "__array__"):
        return value
    if isinstance(value, Undecided):
        return f"undecided: {value.bound}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(plain(v) for v in value)
    return value


def deviation(found: Any, claim: Any) -> float:
    """The largest difference of two plain values, numbers and arrays by their largest entry where that exceeds 1; ∞
    where they are of other kinds or shapes, where a text, a function, a whole number or a fraction differs, or where
    one alone is NaN."""
    if isinstance(claim, Mapping) or isinstance(found, Mapping):
        if not isinstance(found, Mapping) or not isinstance(claim, Mapping) or set(found) != set(claim):
            return float("inf")
        return max((deviation(found[k], claim[k]) for k in claim), default=0.0)
    if isinstance(claim, tuple) or isinstance(found, tuple):
        if not isinstance(found, tuple) or not isinstance(claim, tuple) or len(found) != len(claim):
            return float("inf")
        return max((deviation(a, b) for a, b in zip(found, claim)), default=0.0)
    if any(isinstance(x, (bool, str, type(None))) or callable(x) for x in (found, claim)):
        return 0.0 if type(found) is type(claim) and found == claim else float("inf")
    if isinstance(claim, numbers.Rational) and isinstance(found, numbers.Rational):
        return 0.0 if claim == found else float("inf")
    try:
        a, b = np.asarray(found, dtype=np.complex128), np.asarray(claim, dtype=np.complex128)
    except (TypeError, ValueError):
        return float("inf")
    if a.shape != b.shape:
        return float("inf")
    if not a.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = np.where(a == b, 0.0, np.abs(a - b))
        worst = float(gap.max()) / max(1.0, float(np.abs(a[np.isfinite(a)]).max(initial=0.0)))
    return worst if worst == worst else float("inf")


@mismatch.register
def _claimed(witness: ClaimWitness, value: Any) -> float:
    """The difference of the value from the claim."""
    return deviation(plain(value), witness.claim)


@verify.register
def _(witness: ClaimWitness) -> float:
    if witness.kind not in witness.checks:
        raise AnalysisError(
            f"there is no witness of the kind {witness.kind!r}", hint=f"there are: {', '.join(witness.checks)}"
        )
    try:
        found = witness.checks[witness.kind](witness.data)
    except (ArithmeticError, LookupError, TypeError, ValueError, np.linalg.LinAlgError):
        return float("inf")  # data that is not what the kind needs proves nothing
    return deviation(found, witness.claim)


def claimed(
    witness: type[ClaimWitness], value: Any, kind: str, data: Mapping[str, Any], tolerance: float, level: str = "P2",
    assumptions: tuple[str, ...] = (), residual: float = 0.0,
) -> Result[Any]:  # fmt: skip
    """``value`` with the witness of this class that ``data`` gives it."""
    stored = {k: v if scipy.sparse.issparse(v) else plain(v) for k, v in data.items()}
    return Result(value, level, tolerance, residual, witness(kind, stored, plain(value)), assumptions)
