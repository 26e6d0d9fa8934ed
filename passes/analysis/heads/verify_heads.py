"""Checks of what is said of heads and layers, which share no code with what made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from aatc.passes.analysis.result import AnalysisError, mismatch, verify


@dataclass(frozen=True, eq=False)
class AbsorptionWitness:
    """Mean times ``times`` (n,) to absorption of the chain ``pattern`` (n, n) in the states ``recurrent`` (n,)."""

    pattern: ArrayLike
    recurrent: np.ndarray
    times: np.ndarray


@verify.register
def _(witness: AbsorptionWitness) -> float:
    """The largest |h − 1 − Qh| relative to h; the states that count as recurrent are closed, and reached by all
    others, so that the equations have this solution alone."""
    a, closed, h = np.asarray(witness.pattern), np.asarray(witness.recurrent), np.asarray(witness.times)
    n = len(h)
    if a.shape != (n, n) or closed.shape != (n,) or closed.dtype != bool or not np.isfinite(h).all():
        raise AnalysisError(f"times {h.shape} and states {closed.shape} are not those of a chain {a.shape}")
    if (a < 0).any() or np.abs(a.sum(1) - 1).max() > 1e-9:
        raise AnalysisError("the pattern of this witness is no chain")
    if a[np.ix_(closed, ~closed)].any():
        raise AnalysisError("a state that counts as recurrent leaves to one that does not")
    reach = closed.copy()
    while True:
        more = reach | (a[:, reach] > 0).any(1)
        if (more == reach).all():
            break
        reach = more
    if not reach.all():
        raise AnalysisError("a state reaches none that counts as recurrent: its time is infinite")
    if not _each_is_recurrent(a, closed):
        raise AnalysisError("a state that counts as recurrent is not: it does not return from where it goes")
    if h[closed].any():
        return float(np.abs(h[closed]).max())
    wrong = np.abs(h - 1.0 - a @ h)[~closed] / np.maximum(np.abs(h[~closed]), 1.0)
    return float(wrong.max(initial=0.0))


@mismatch.register
def _absorption_value(witness: AbsorptionWitness, value: Any) -> float:
    times, given = np.asarray(witness.times), np.asarray(value)
    if given.shape != times.shape or given.dtype.kind not in "fiu":
        return float("inf")
    return float((np.abs(given - times) / np.maximum(np.abs(times), 1.0)).max(initial=0.0))


def _each_is_recurrent(a: np.ndarray, closed: np.ndarray) -> bool:
    """Whether every closed state is reached back from all states that it reaches, by search from the closed states of
    one class after another."""
    left = closed.copy()
    step = a > 0
    while left.any():
        start = np.zeros(len(a), bool)
        start[np.flatnonzero(left)[0]] = True
        ahead, behind = _closure(start, step), _closure(start, step.T)
        if (ahead & ~behind).any():
            return False
        left &= ~ahead
    return True


def _closure(start: np.ndarray, step: np.ndarray) -> np.ndarray:
    reached, new = start.copy(), start
    while new.any():
        new = step[new].any(0) & ~reached
        reached |= new
    return reached
