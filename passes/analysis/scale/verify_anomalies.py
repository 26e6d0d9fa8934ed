"""Checks of anomalies in integers: cubic forms by their values at whole points, groups by their elements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from aatc.passes.analysis.scale.verify_scale import recomputes, require

Data = Mapping[str, Any]
#: Multiples of a vector that are listed.
ELEMENTS = 1 << 22


@recomputes("charges")
def _charges(data: Data) -> Any:
    """Coefficients of N(x) = Σ χ m (q·x)³ by polarisation: 6 A_abc = Σ_{∅≠S⊆{a,b,c}} (−1)^{3−|S|} N(Σ_S e)."""
    table = data["table"]
    signs, counts, charges = table["chirality"], table["multiplicity"], table["charges"]
    f, k = len(charges), len(table["names"])
    require(f > 0 and len(signs) == len(counts) == f and all(len(q) == k for q in charges), "table")
    require(
        all(s in (1, -1) and type(s) is int for s in signs) and all(type(m) is int and m > 0 for m in counts), "table"
    )
    require(all(type(q) is Fraction for row in charges for q in row), "table")
    scale = math.lcm(*(q.denominator for row in charges for q in row))
    whole = [[int(q * scale) for q in row] for row in charges]

    def form(x: list[int], power: int) -> int:
        return sum(s * m * sum(a * b for a, b in zip(q, x)) ** power for s, m, q in zip(signs, counts, whole))

    def unit(*which: int) -> list[int]:
        return [sum(w == a for w in which) for a in range(k)]

    cubic = []
    for abc in itertools.combinations_with_replacement(range(k), 3):
        total = sum(
            (-1) ** (3 - size) * form(unit(*(abc[i] for i in some)), 3)
            for size in (1, 2, 3)
            for some in itertools.combinations(range(3), size)
        )
        cubic.append((abc, Fraction(total, 6 * scale**3)))
    linear = tuple(Fraction(form(unit(a), 1), scale) for a in range(k))
    groups, indices, copies = table["groups"], table["indices"], table["copies"]
    require(
        len(indices) == len(copies) == f and all(len(t) == len(n) == len(groups) for t, n in zip(indices, copies)),
        "table",
    )
    mixed = []
    for g, group in enumerate(groups):
        for a in range(k):
            total_mixed = Fraction(0)
            for i in range(f):
                require(type(indices[i][g]) is Fraction and type(copies[i][g]) is int and copies[i][g] > 0, "table")
                require(bool(indices[i][g]) or copies[i][g] == 1, "table")
                for _ in range(copies[i][g]):
                    total_mixed += indices[i][g] * charges[i][a] * signs[i]
            mixed.append(((group, a), total_mixed))
    return {"names": table["names"], "cubic": tuple(cubic), "linear": linear, "mixed": tuple(mixed)}


@recomputes("tiling")
def _tiling(data: Data) -> Any:
    """The images of Λ in Z/t₁ × Z/t₂: the multiples of one vector, and the first of the other that is among them."""
    basis, tile = data["lattice"]["basis"], data["lattice"]["tile"]
    require(len(tile) == 2 and all(type(t) is int and t > 0 for t in tile) and len(basis) in (1, 2), "tiled lattice")
    require(all(len(v) == 2 and all(type(x) is int for x in v) for v in basis), "tiled lattice")
    require(math.lcm(*tile) <= ELEMENTS, "group that can be listed")

    def order_of(v: tuple[int, int]) -> int:
        return math.lcm(*(t // math.gcd(t, x) for t, x in zip(tile, v)))

    orders = [order_of(v) for v in basis]
    multiples = {tuple(n * x % t for x, t in zip(basis[0], tile)): n for n in range(orders[0])}
    relations, order = [[orders[0]]], orders[0]
    if len(basis) == 2:
        times = next(
            n for n in range(1, orders[1] + 1) if tuple(n * x % t for x, t in zip(basis[1], tile)) in multiples
        )
        same = multiples[tuple(times * x % t for x, t in zip(basis[1], tile))]
        relations, order = [[orders[0], 0], [-same, times]], orders[0] * times
    exponent = math.lcm(*orders)
    kept = _reduced([[sum(n * v[axis] for n, v in zip(row, basis)) for axis in (0, 1)] for row in relations])
    if len(basis) == 1:
        require(any(basis[0]), "tiled lattice")
        tiles: float = math.inf
    else:
        area = abs(basis[0][0] * basis[1][1] - basis[0][1] * basis[1][0])
        require(area > 0, "tiled lattice")
        tiles = area * order // math.prod(tile)
    factors = tuple(d for d in (order // exponent, exponent) if d > 1)
    return {"tile": tile, "factors": factors, "order": order, "kept": kept, "tiles": tiles}


def _reduced(vectors: list[list[int]]) -> tuple[tuple[int, int], ...]:
    """Hermite form of what vectors in Z² make: the gcd of first coordinates with one vector of it, and the gcd of what
    is left of the second."""
    top, low = (0, 0), 0
    for x, y in vectors:
        a, b = top, (x, y)
        while b[0]:
            times = a[0] // b[0]
            a, b = b, (a[0] - times * b[0], a[1] - times * b[1])
        top, low = a, math.gcd(low, b[1])
    if top[0] < 0:
        top = (-top[0], -top[1])
    rows = [(top[0], top[1] % low if low else top[1])] if top[0] else []
    return tuple([*rows, (0, low)] if low else rows)
