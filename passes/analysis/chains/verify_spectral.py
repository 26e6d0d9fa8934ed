"""The witness of a spectral sequence, and the small independent check that `verify` runs on it.

Nothing here uses the code that made the witness. Cells are ordered by level, then number; over Q chains are scaled to
integers. What is checked makes a basis that respects the filtration and in which ∂ is a matching, and such a basis
decides all pages: chains c_τ that lead with τ, their boundaries, which lead with σ, and for every single cell s a cycle
that leads with s, found here by elimination with the chains of earlier cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, isqrt, lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from aatc.passes.analysis.result import mismatch, verify

Column = dict[int, int]


@dataclass(frozen=True)
class Pair:
    """∂ joins the cell ``high`` of ``degree`` and level ``source`` to ``low`` of level ``target``. ``chain`` is the
    adapted basis element: its boundary lies in level ``target``, with ``low`` its leading cell."""

    degree: int
    source: int
    target: int
    high: int
    low: int
    chain: dict[int, Any] = field(repr=False)

    @property
    def gap(self) -> int:
        return self.source - self.target


@dataclass(frozen=True)
class FiltrationWitness:
    """The boundaries ∂_0, …, ∂_d, levels by degree and adapted basis of a spectral sequence over F_``modulus``, or
    over Q for 0. ``single`` are (degree, level, cell)."""

    boundaries: tuple[Any, ...]
    levels: tuple[tuple[int, ...], ...]
    modulus: int
    pairs: tuple[Pair, ...]
    single: tuple[tuple[int, int, int], ...]


@verify.register
def _(witness: FiltrationWitness) -> float:
    """The number of cells and pairs of which a statement fails; ∞ for parts that do not fit together, for cells that
    are not used once each, and for a modulus that is neither 0 nor a prime."""
    p, levels = witness.modulus, witness.levels
    if not (_fits(witness) and (p == 0 or (p > 1 and all(p % q for q in range(2, isqrt(p) + 1))))):
        return float("inf")
    failed = sum(levels[d][n] != level for d, level, n in witness.single)
    for x in witness.pairs:
        failed += levels[x.degree][x.high] != x.source or levels[x.degree - 1][x.low] != x.target
        failed += x.target > x.source
    below: list[Column] = []
    for k in range(1, len(levels)):
        columns = _columns(witness.boundaries[k])
        pairs = [x for x in witness.pairs if x.degree == k]
        single = [n for d, _, n in witness.single if d == k]
        failed += _degree_defects(columns, below, (levels[k - 1], levels[k]), pairs, single, p)
        below = columns
    return float(failed)


@mismatch.register
def _(witness: FiltrationWitness, value: Any) -> float:
    """The value is the page at which the sequence converges, or the sequence: its basis, and all pages counted anew."""
    gaps = [x.source - x.target for x in witness.pairs]
    last = max(gaps, default=-1) + 1
    if isinstance(value, int):
        return 0.0 if value == last else float("inf")
    right = value.pairs == witness.pairs and value.single == witness.single
    right = right and value.coeff == (f"F{witness.modulus}" if witness.modulus else "Q")
    right = right and value.dimension == len(witness.levels) - 1 and len(value.pages) == last + 1
    for r, page in enumerate(value.pages if right else ()):
        alive = [(x.source, x.degree) for x, gap in zip(witness.pairs, gaps) if gap >= r]
        alive += [(x.target, x.degree - 1) for x, gap in zip(witness.pairs, gaps) if gap >= r]
        alive += [(level, d) for d, level, _ in witness.single]
        killing = [(x.source, x.degree) for x, gap in zip(witness.pairs, gaps) if gap == r]
        right = right and page.r == r and page.dims == _counted(alive) and page.ranks == _counted(killing)
    return 0.0 if right else float("inf")


def _counted(places: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """How often each (level, degree) occurs, by (p, q) with p + q the degree."""
    return {(p, n - p): places.count((p, n)) for p, n in set(places)}


def _fits(witness: FiltrationWitness) -> bool:
    """Whether shapes chain, numbers of cells are in range, and each cell is used once."""
    sizes = [len(x) for x in witness.levels]
    if [b.shape for b in witness.boundaries] != list(zip([0, *sizes], sizes)):
        return False
    used = [(d, n) for d, _, n in witness.single]
    for x in witness.pairs:
        if not 1 <= x.degree < len(sizes) or any(not 0 <= n < sizes[x.degree] for n in x.chain):
            return False
        used += [(x.degree, x.high), (x.degree - 1, x.low)]
    return sorted(used) == [(d, n) for d, size in enumerate(sizes) for n in range(size)]


def _columns(matrix: Any) -> list[Column]:
    """The columns of a sparse matrix as dictionaries row → entry."""
    entries = sparse.coo_array(matrix)
    found: list[Column] = [{} for _ in range(matrix.shape[1])]
    for i, j, v in zip(*(a.tolist() for a in (*entries.coords, entries.data))):
        found[j][i] = found[j].get(i, 0) + v
    return found


def _places(levels: Sequence[int]) -> NDArray[np.int64]:
    """The place of each cell in the order by level, then number."""
    places = np.empty(len(levels), dtype=np.int64)
    places[np.lexsort((np.arange(len(levels)), np.asarray(levels)))] = np.arange(len(levels))
    return places


def _degree_defects(
    columns: list[Column],
    below: list[Column],
    levels: tuple[Sequence[int], Sequence[int]],
    pairs: list[Pair],
    single: list[int],
    p: int,
) -> int:
    """How many pairs and single cells of one degree fail. ``columns`` are ∂_k, ``below`` ∂_{k−1}, ``levels`` those of
    degree k − 1 and k."""
    low, high = (_places(x).tolist() for x in levels)
    failed, leading = 0, dict[int, tuple[int, Column]]()
    for x in pairs:
        scale = 1 if p else lcm(*(v.denominator for v in x.chain.values()))
        chain = _reduced({n: int(v * scale) for n, v in x.chain.items()}, p)
        image = _image(chain, columns, p)
        failed += not chain or max(chain, key=high.__getitem__) != x.high
        failed += bool(below and _image(image, below, p))
        placed = {low[i]: v for i, v in image.items()}
        if not placed or max(placed) != low[x.low]:
            failed += 1
        else:
            leading[low[x.low]] = high[x.high], placed
    for n in single:
        column = _reduced({low[i]: v for i, v in columns[n].items()}, p)
        while column:
            start, other = leading.get(max(column), (len(high), column))
            if start >= high[n]:
                failed += 1
                break
            column = _without_lead(column, other, p)
    return failed


def _reduced(column: Mapping[int, int], p: int) -> Column:
    """Without zeros; modulo p, where p is not 0."""
    if p:
        return {i: v % p for i, v in column.items() if v % p}
    return {i: v for i, v in column.items() if v}


def _image(chain: Column, columns: list[Column], p: int) -> Column:
    """∂ of a chain."""
    total: Column = {}
    for n, v in chain.items():
        for i, entry in columns[n].items():
            total[i] = total.get(i, 0) + v * entry
    return _reduced(total, p)


def _without_lead(column: Column, other: Column, p: int) -> Column:
    """A multiple of ``column`` (over F_p itself) less the multiple of ``other`` that takes its last entry away; both
    have the same last row."""
    last = max(column)
    a, b = column[last], other[last]
    if p:
        a, b = a * pow(b, -1, p) % p, 1
    elif b != 1:
        common = gcd(a, b)
        a, b = a // common, b // common
    out = {i: b * v for i, v in column.items()} if b != 1 else column
    for i, v in other.items():
        value = out.get(i, 0) - a * v
        value = value % p if p else value
        if value:
            out[i] = value
        else:
            out.pop(i, None)
    return out


__all__ = ["FiltrationWitness", "Pair"]
