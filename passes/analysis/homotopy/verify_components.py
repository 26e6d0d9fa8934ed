"""Witnesses of components, and the small independent checks of them: edges are followed one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.result import mismatch, verify

WRONG = float("inf")


@dataclass(frozen=True, eq=False)
class ComponentsWitness:
    """The graph with ``vertices`` (n,) and ``edges`` (m, 2), whose components are counted again."""

    vertices: NDArray[np.int64]
    edges: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WeightsWitness:
    """Symmetric ``weights`` (n, n), of which components are found again for all thresholds: by joining, the heaviest
    first, what edges of at least a weight connect. ``threshold``, where given, is that of a number of components."""

    weights: NDArray[np.float64] = field(repr=False)
    threshold: float | None = None


def _labels(n: int, edges: list[list[int]]) -> list[int]:
    """The least vertex of each vertex's component."""
    label, members = list(range(n)), [[v] for v in range(n)]
    for a, b in edges:
        one, two = sorted((label[a], label[b]))
        if one != two:
            for v in members[two]:
                label[v] = one
            members[one] += members[two]
            members[two] = []
    return label


@verify.register
def _(witness: ComponentsWitness) -> float:
    """0 where edges join vertices that are there, each of which is named once."""
    known = set(witness.vertices.tolist())
    fits = len(known) == len(witness.vertices) and {v for e in witness.edges.tolist() for v in e} <= known
    return 0.0 if fits else WRONG


@mismatch.register
def _(witness: ComponentsWitness, value: Any) -> float:
    """The value numbers the components by their first vertex."""
    place = {v: i for i, v in enumerate(witness.vertices.tolist())}
    labels = _labels(len(place), [[place[a], place[b]] for a, b in witness.edges.tolist()])
    number = {first: i for i, first in enumerate(dict.fromkeys(labels))}
    return 0.0 if np.array_equal([number[x] for x in labels], value) else WRONG


def _both(witness: WeightsWitness) -> NDArray[np.float64]:
    both: NDArray[np.float64] = np.maximum(witness.weights, witness.weights.T)
    return both


def _at_least(weights: NDArray[np.float64], threshold: float) -> int:
    rows, columns = np.nonzero(np.triu(weights >= threshold, 1))
    return len(set(_labels(len(weights), np.column_stack([rows, columns]).tolist())))


@verify.register
def _(witness: WeightsWitness) -> float:
    shape = witness.weights.shape
    return 0.0 if len(shape) == 2 and shape[0] == shape[1] and np.isfinite(witness.weights).all() else WRONG


@mismatch.register
def _(witness: WeightsWitness, value: Any) -> float:
    """The value is the number of components at the threshold; the largest threshold above 0 that leaves as few as any
    does; or a maximum spanning tree."""
    both = _both(witness)
    if isinstance(value, int):
        count = None if witness.threshold is None else _at_least(both, witness.threshold)
        return 0.0 if value == count else WRONG
    if isinstance(value, float):
        fewest = _at_least(both, np.nextafter(0.0, 1.0))
        off = both[~np.eye(len(both), dtype=bool)]
        tight = value > 0 and _at_least(both, value) == fewest < _at_least(both, np.nextafter(value, np.inf))
        return 0.0 if tight and (off == value).any() else WRONG
    return _spanning_defect(both, value)


def _spanning_defect(both: NDArray[np.float64], value: Any) -> float:
    """Infinite unless each merge, thresholds falling, joins two components by the heaviest edge between them."""
    n = len(both)
    merges = np.asarray(value.merges)
    if value.count != n or merges.shape != (max(n - 1, 0), 3) or (np.diff(merges[:, 0]) > 0).any():
        return WRONG
    inside = np.eye(n, dtype=bool)  # the component of each vertex, as a row
    for weight, a, b in merges.tolist():
        if not (a.is_integer() and b.is_integer() and min(a, b) >= 0 and max(a, b) < n):
            return WRONG
        one, two = inside[int(a)].copy(), inside[int(b)].copy()
        if one[int(b)] or both[int(a), int(b)] != weight or both[np.ix_(one, two)].max() > weight:
            return WRONG
        inside[one | two] = one | two
    return 0.0


__all__ = ["ComponentsWitness", "WeightsWitness"]
