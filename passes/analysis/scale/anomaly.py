"""Anomalies: sums of charges of chiral fields in exact rationals, and symmetries of a lattice that tiles break.

The finite objects are the coefficients Σχqqq and Σχq of a table of charges, and the group Λ/(Λ ∩ tZ²) of a lattice of
translations and a tile. Nothing more is claimed: no field theory is made of a model. Sources: Álvarez-Gaumé, Witten,
Nuclear Physics B 234 (1984); Bilal, Lectures on anomalies (2008), chapter 8; Cohen, A Course in Computational Algebraic
Number Theory, section 2.4, for lattices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from aatc.passes.analysis.chains.smith import smith_normal_form
from aatc.passes.analysis.result import Result
from aatc.passes.analysis.scale.coarse_graining import ScaleError, whole_number
from aatc.passes.analysis.scale.verify_scale import witnessed

#: Least common multiple of a tile's sides, up to which a group can be listed to check it.
LARGEST = 1 << 22


@dataclass(frozen=True)
class ChargeTable:
    """Chiral fields: ``charges`` (f, k) under the U(1) symmetries ``names`` (k,), ``chirality`` ±1 (f,), and
    ``multiplicity`` (f,) of fields alike;
    ``indices`` (f, g) of their representations of the groups ``groups`` (g,), ½ for a doublet of
    SU(2) or a triplet of SU(3), for one copy of the representation out of ``copies`` (f, g)."""

    charges: tuple[tuple[Fraction, ...], ...]
    chirality: tuple[int, ...]
    multiplicity: tuple[int, ...]
    names: tuple[str, ...]
    indices: tuple[tuple[Fraction, ...], ...] = ()
    copies: tuple[tuple[int, ...], ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnomalyPolynomial:
    """I₆ = Σ_f χ m [(q·F)³/6 − p₁ (q·F)/24] by its coefficients: ``cubic`` ((a, b, c), Σχm q_a q_b q_c) for a ≤ b ≤ c,
    ``linear`` Σχm q_a (k,), and ``mixed`` ((group, a), Σχ T q_a), each over (2π)³ and exact."""

    names: tuple[str, ...]
    cubic: tuple[tuple[tuple[int, int, int], Fraction], ...]
    linear: tuple[Fraction, ...]
    mixed: tuple[tuple[tuple[str, int], Fraction], ...] = ()

    @property
    def vanishes(self) -> bool:
        """Whether every coefficient is 0."""
        return not any(c for _, c in self.cubic) and not any(self.linear) and not any(c for _, c in self.mixed)

    def __call__(self, fields: Sequence[Any], p1: Any = 0) -> Any:
        """I₆ without its mixed terms at field strengths (k,) and Pontryagin class p₁: numbers, or sympy's symbols."""
        total: Any = 0
        for (a, b, c), value in self.cubic:
            orders = len(set(itertools.permutations((a, b, c))))
            total = total + value * orders * fields[a] * fields[b] * fields[c] / 6
        for f, value in zip(fields, self.linear, strict=True):
            total = total - p1 * value * f / 24
        return total

    def __str__(self) -> str:
        terms = [f"{v} {'·'.join(self.names[i] for i in abc)}" for abc, v in self.cubic if v]
        terms += [f"{v} grav²·{name}" for name, v in zip(self.names, self.linear) if v]
        terms += [f"{v} {group}²·{self.names[a]}" for (group, a), v in self.mixed if v]
        return "; ".join(terms) or "0"


def _rational(what: str, value: Any) -> Fraction:
    """Raises `ScaleError` for a float that is not whole: 1/6 in binary is another number."""
    if isinstance(value, (float, np.floating)) and not float(value).is_integer():
        raise ScaleError(f"{what} {value!r} is a float, which rounds: sums of it are not exact",
                         hint='give fractions.Fraction(1, 6) or "1/6"')  # fmt: skip
    try:
        return Fraction(int(value) if isinstance(value, (np.integer, np.floating)) else value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as cause:
        raise ScaleError(f"{what} {value!r} is no rational number") from cause


def charge_table(
    charges: Sequence[Any],
    *,
    chirality: Sequence[int] | None = None,
    multiplicity: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    indices: dict[str, Sequence[tuple[Any, int]]] | None = None,
) -> ChargeTable:
    """The fields with ``charges`` (f, k), or (f,) of one symmetry: ints, Fractions or texts as "1/6".

    ``chirality`` is +1 for left-handed, −1 for right-handed fields, by default all +1; ``multiplicity`` counts fields
    alike, colours and members of multiplets among them. ``indices`` holds for each non-abelian group, and each field,
    (index of its representation, number of copies of it): (1/2, 3) for quark doublets under SU(2). Raises `ScaleError`.
    """
    rows = [list(r) if isinstance(r, (list, tuple, np.ndarray)) else [r] for r in charges]
    if not rows or len({len(r) for r in rows}) != 1 or not rows[0]:
        raise ScaleError(f"charges are rows of one length, one for each field: {rows!r}")
    f, k = len(rows), len(rows[0])
    signs = tuple(chirality) if chirality is not None else (1,) * f
    counts = tuple(whole_number("a multiplicity", m) for m in (multiplicity if multiplicity is not None else (1,) * f))
    labels = tuple(names) if names is not None else ("q",) if k == 1 else tuple(f"q{i + 1}" for i in range(k))
    groups = indices or {}
    if len(signs) != f or any(s not in (1, -1) for s in signs) or len(counts) != f or len(labels) != k:
        raise ScaleError(f"{f} fields of {k} charges have as many chiralities ±1, multiplicities and names")
    if any(len(column) != f for column in groups.values()):
        raise ScaleError(f"each group has (index, copies) of all {f} fields", hint="(0, 1) for singlets")
    if any(not index and n != 1 for column in groups.values() for index, n in column):
        raise ScaleError("a singlet, of index 0, has one copy of its representation", hint="(0, 1)")
    return ChargeTable(
        tuple(tuple(_rational("the charge", q) for q in row) for row in rows),
        tuple(int(s) for s in signs), counts, labels,
        tuple(tuple(_rational("the index", groups[g][i][0]) for g in groups) for i in range(f)),
        tuple(tuple(whole_number("a number of copies", groups[g][i][1]) for g in groups) for i in range(f)),
        tuple(groups),
    )  # fmt: skip


@dataclass(frozen=True)
class TiledLattice:
    """Translations that leave a pattern of pairs (i, j) alone: ``basis`` (r, 2), r ≤ 2, independent; and the ``tile``
    (rows, columns) that pairs are worked through in."""

    basis: tuple[tuple[int, int], ...]
    tile: tuple[int, int]


@dataclass(frozen=True)
class TilingAnomaly:
    """The group Λ/(Λ ∩ tZ²) of translations that no ``tile`` keeps: ``factors`` d₁ | d₂ of ⊕ Z/d, those above 1; its
    ``order``; ``kept``, the basis of Λ ∩ tZ² in Hermite form; and ``tiles``, how many tiles of a pattern with these
    translations may differ: the index of Λ ∩ tZ² in tZ², infinite where there is less than two of a basis."""

    tile: tuple[int, int]
    factors: tuple[int, ...]
    order: int
    kept: tuple[tuple[int, int], ...]
    tiles: float

    @property
    def vanishes(self) -> bool:
        """Whether every translation takes tiles to tiles."""
        return self.order == 1


def tiled_lattice(basis: Sequence[Any], tile: int | Sequence[int]) -> TiledLattice:
    """The lattice with a ``basis`` of whole vectors (r, 2), 1 ≤ r ≤ 2, and tiles of side t, or of two sides. Raises
    `ScaleError` for vectors that depend on each other."""
    sides = (tile, tile) if isinstance(tile, (int, np.integer)) else tuple(tile)
    if len(sides) != 2:
        raise ScaleError(f"a tile has two sides, not {tile!r}")
    vectors = np.asarray(basis)
    if vectors.ndim != 2 or vectors.shape[1] != 2 or not 1 <= len(vectors) <= 2 or vectors.dtype.kind not in "iu":
        raise ScaleError(f"a basis has one or two rows of two whole numbers, not {vectors.dtype} {vectors.shape}")
    rows = tuple((int(x), int(y)) for x, y in vectors.tolist())
    area = rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0] if len(rows) == 2 else math.gcd(*rows[0])
    if area == 0:
        raise ScaleError(f"the vectors {rows} depend on each other", hint="leave one out")
    height, width = (whole_number("the side of a tile", t) for t in sides)
    if math.lcm(height, width) > LARGEST:
        raise ScaleError(f"tiles of {height} by {width}: the least common multiple of sides is above {LARGEST}")
    return TiledLattice(rows, (height, width))


def _hermite_rows(rows: list[list[int]]) -> tuple[tuple[int, int], ...]:
    """The basis of the same lattice in Z² in Hermite form: pivots positive, what stands above one reduced by it."""
    left, found, column = [r for r in rows if any(r)], list[list[int]](), 0
    while left and column < 2:
        while sum(r[column] != 0 for r in left) > 1:
            pivot = min((r for r in left if r[column]), key=lambda r: abs(r[column]))
            for r in left:
                if r is not pivot:
                    times = r[column] // pivot[column]
                    r[:] = [x - times * y for x, y in zip(r, pivot)]
        top = next((r for r in left if r[column]), None)
        if top is not None:
            left = [r for r in left if r is not top and any(r)]
            top = [-x for x in top] if top[column] < 0 else top
            for r in found:
                times = r[column] // top[column]
                r[:] = [x - times * y for x, y in zip(r, top)]
            found.append(top)
        column += 1
    return tuple((r[0], r[1]) for r in found)


def _tiling(lattice: TiledLattice) -> TilingAnomaly:
    r, (height, width) = len(lattice.basis), lattice.tile
    stacked = [*(list(v) for v in lattice.basis), [height, 0], [0, width]]
    form = smith_normal_form(stacked)
    # combinations of basis and tile that cancel: what the basis makes there lies in both
    combinations = [[int(x) for x in row[:r]] for row in form.left[form.rank :]]
    kept = _hermite_rows([[sum(x * v[a] for x, v in zip(c, lattice.basis)) for a in (0, 1)] for c in combinations])
    factors = tuple(d for d in smith_normal_form(combinations).factors if d > 1)
    order = math.prod(factors)
    tiles = abs(kept[0][0] * kept[1][1]) // (height * width) if r == 2 else math.inf
    return TilingAnomaly(lattice.tile, factors, order, kept, tiles)


def _charges(table: ChargeTable) -> AnomalyPolynomial:
    k = len(table.names)
    fields = [(s * m, q) for s, m, q in zip(table.chirality, table.multiplicity, table.charges)]
    cubic = tuple(
        ((a, b, c), sum((w * q[a] * q[b] * q[c] for w, q in fields), Fraction(0)))
        for a, b, c in itertools.combinations_with_replacement(range(k), 3)
    )
    linear = tuple(sum((w * q[a] for w, q in fields), Fraction(0)) for a in range(k))
    rows = list(zip(table.chirality, table.indices, table.copies, table.charges))
    mixed = tuple(
        ((group, a), sum((s * n[g] * t[g] * q[a] for s, t, n, q in rows), Fraction(0)))
        for g, group in enumerate(table.groups)
        for a in range(k)
    )
    return AnomalyPolynomial(table.names, cubic, linear, mixed)


def anomaly_polynomial(symmetry: ChargeTable | TiledLattice) -> Result[Any]:
    """Of a `ChargeTable` its `AnomalyPolynomial`; of a `TiledLattice` the `TilingAnomaly`. Exact in integers, P0.
    Raises `ScaleError` for anything else."""
    if isinstance(symmetry, ChargeTable):
        return witnessed(_charges(symmetry), "charges", {"table": symmetry}, 0.0, level="P0")
    if isinstance(symmetry, TiledLattice):
        return witnessed(_tiling(symmetry), "tiling", {"lattice": symmetry}, 0.0, level="P0")
    raise ScaleError(
        f"a {type(symmetry).__name__} is no symmetry with an anomaly here", hint="charge_table(…) or tiled_lattice(…)"
    )
