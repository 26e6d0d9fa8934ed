"""Rational homotopy groups of a simply connected complex, by the A∞-structure of its cohomology.

The cup product on cochains is transferred to H*(X; Q): F_1 = lift, Λ_n = Σ b_2(F_k ⊗ F_{n−k}), F_n = −h Λ_n and
b_n = p Λ_n, all maps in suspended form, so that only b carries signs. The bar complex of the reduced cohomology with
b = Σ b_n computes H*(ΩX; Q) (Adams). Its series is Π_odd (1 + tⁱ)^{r_i} / Π_even (1 − tⁱ)^{r_i} with
r_i = dim π_{i+1} ⊗ Q (Milnor, Moore; Poincaré, Birkhoff, Witt), which gives the ranks degree by degree. Arithmetic is
exact throughout.

Sources: Kontsevich, Soibelman, Homological mirror symmetry and torus fibrations, 2001, section 6.4; Félix, Halperin,
Thomas, Rational Homotopy Theory, chapters 19 and 33.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice, pairwise
from math import lcm
from typing import Any

import numpy as np

from aatc.passes.analysis.chains.complexes import SimplicialComplex
from aatc.passes.analysis.chains.cup import cup
from aatc.passes.analysis.chains.homology import minimal_model, unit_columns
from aatc.passes.analysis.chains.smith import rank
from aatc.passes.analysis.homotopy.fundamental_group import fundamental_group
from aatc.passes.analysis.homotopy.verify_groups import LoopWitness
from aatc.passes.analysis.result import AnalysisError, Result, Undecided

Letters = tuple[int, ...]
#: Words of the bar complex in one degree beyond which the answer is left undecided.
WORDS = 4096
#: Cells in one degree beyond which it is too: the homotopy of the model is kept as dense matrices of exact numbers.
CELLS = 4096


@dataclass(frozen=True)
class Generator:
    """A basis element of the reduced rational cohomology: its degree and a representing cochain."""

    degree: int
    cochain: Any


class RationalModel:
    """H̄*(X; Q) with its A∞-operations, X connected with H¹ = 0."""

    def __init__(self, complex: SimplicialComplex) -> None:
        self.complex = complex
        model = minimal_model(complex)
        self.generators: list[Generator] = []
        self._project: dict[int, np.ndarray] = {}
        self._homotopy: dict[int, np.ndarray] = {}
        for k in range(complex.dimension + 1):
            free = model.free[k]
            units = unit_columns(model.counts[k], free)
            if k > 0:
                lifts = model.extend(k, units)
                self.generators += [Generator(k, lifts[:, n]) for n in range(len(free))]
            self._project[k] = model.lift(k, units).T
            # h on cochains: the transposed homotopy, and the inverse of d between the torsion pairs
            cells = unit_columns(complex.count(k), range(complex.count(k)))
            self._homotopy[k + 1] = model.homotopy(k, cells).T if k < complex.dimension else np.zeros((0, 0), object)
        for k in range(complex.dimension):
            orders = model.orders_below[k]
            low = model.extend(k, unit_columns(model.counts[k], model.bounding[k]))
            high = model.lift(k + 1, unit_columns(model.counts[k + 1], model.bounded[k + 1])).T
            for n, t in enumerate(orders):
                step = np.outer(low[:, n], high[n]) * Fraction(1, t)
                self._homotopy[k + 1] = self._homotopy[k + 1] + step
        self._value = lru_cache(maxsize=None)(self._transferred)

    def operation(self, word: Letters) -> dict[int, Fraction]:
        """b_n of a word of generators, as coefficients of generators."""
        degree, cochain = self._value(word)
        if cochain is None or not 0 < degree <= self.complex.dimension:
            return {}
        values = self._project[degree] @ cochain
        places = [n for n, g in enumerate(self.generators) if g.degree == degree]
        return {n: v for n, v in zip(places, values) if v != 0}

    def _transferred(self, word: Letters) -> tuple[int, Any]:
        """Λ_n of a word: its degree and the cochain, None for zero."""
        total, degree = None, 0
        for k in range(1, len(word)):
            (p, one), (q, two) = self._lifted(word[:k]), self._lifted(word[k:])
            degree = p + q
            if one is None or two is None or degree > self.complex.dimension:
                continue
            part = (-1) ** p * cup(self.complex, one, p, two, q)
            total = part if total is None else total + part
        degree = sum(self.generators[g].degree for g in word) - len(word) + 2
        return degree, total if total is not None and np.any(total != 0) else None

    def _lifted(self, word: Letters) -> tuple[int, Any]:
        """F_n of a word."""
        if len(word) == 1:
            g = self.generators[word[0]]
            return g.degree, g.cochain
        degree, cochain = self._value(word)
        if cochain is None or not 1 < degree <= self.complex.dimension:
            return degree - 1, None
        moved = -(self._homotopy[degree] @ cochain)
        return degree - 1, moved if np.any(moved != 0) else None

    def lifts(self, top: int) -> dict[Letters, Any]:
        """F of the words of more than one letter, of degree at most ``top`` in the bar complex, where it is not zero.
        Beyond degree dim − 2 no operation depends on it."""
        words = (w for d in range(min(top, self.complex.dimension - 2) + 1) for w in self.words(d) if len(w) > 1)
        found = {w: self._lifted(w)[1] for w in words}
        return {w: cochain for w, cochain in found.items() if cochain is not None}

    def basis(self) -> tuple[tuple[int, Any, Any], ...]:
        """The generators as (degree, cocycle, cycle), the cycles dual to the cocycles."""
        found = []
        for k, cycles in self._project.items():
            own = [g for g in self.generators if g.degree == k]
            found += [(k, g.cochain, cycle) for g, cycle in zip(own, cycles)]
        return tuple(found)

    # --- the bar complex -----------------------------------------------------------------------------------
    def words(self, degree: int) -> Iterator[Letters]:
        """Words of suspended generators whose degrees add up to ``degree``; needs H¹ = 0."""
        if degree == 0:
            yield ()
        for n, g in enumerate(self.generators):
            if g.degree - 1 <= degree:
                for rest in self.words(degree - g.degree + 1):
                    yield (n, *rest)

    def differential(self, word: Letters) -> dict[Letters, Fraction]:
        """b of a word: every operation on every stretch of it, with the sign of what it passes."""
        out: dict[Letters, Fraction] = {}
        sign = 1
        for start in range(len(word)):
            for stop in range(start + 2, len(word) + 1):
                for n, value in self.operation(word[start:stop]).items():
                    key = (*word[:start], n, *word[stop:])
                    out[key] = out.get(key, Fraction(0)) + sign * value
            sign *= (-1) ** (self.generators[word[start]].degree - 1)
        return {w: v for w, v in out.items() if v != 0}

    def bar_complex(self, top: int) -> BarComplex | Undecided:
        """Words of degree 0, …, top + 1 and b on those up to ``top``. AnalysisError where H¹ is not zero: then there
        are infinitely many words of a degree."""
        if any(g.degree == 1 for g in self.generators):
            raise AnalysisError("the bar complex is finite in each degree only where H¹(X; Q) is zero")
        basis = []
        for d in range(top + 2):
            words = list(islice(self.words(d), WORDS + 1))
            if len(words) > WORDS:
                return Undecided(f"{WORDS} words of the bar complex", f"degree {d} has more")
            basis.append(words)
        maps = []
        for source, target in pairwise(basis):
            place = {w: n for n, w in enumerate(target)}
            maps.append(tuple({place[w]: v for w, v in self.differential(x).items()} for x in source))
        return BarComplex(tuple(map(len, basis)), tuple(maps))

    def loop_betti(self, top: int) -> list[int] | Undecided:
        """dim H_i(ΩX; Q) for i = 0, …, top. AnalysisError as for `bar_complex`."""
        bar = self.bar_complex(top)
        return bar if isinstance(bar, Undecided) else bar.betti()


@dataclass(frozen=True)
class BarComplex:
    """``words[d]``: how many words of degree d there are; ``differentials[d]``: the image of each, place → value."""

    words: tuple[int, ...]
    differentials: tuple[tuple[dict[int, Fraction], ...], ...]

    def betti(self) -> list[int]:
        """The dimensions of the cohomology, in all degrees but the last."""
        ranks = [0]
        for d, images in enumerate(self.differentials):
            rows = np.zeros((len(images), self.words[d + 1]), dtype=object)
            for row, image in zip(rows, images):
                scale = lcm(*(v.denominator for v in image.values()))
                for n, v in image.items():
                    row[n] = int(v * scale)
            ranks.append(rank(rows))
        return [self.words[d] - ranks[d] - ranks[d + 1] for d in range(len(self.differentials))]


def homotopy_ranks(loop_betti: list[int]) -> tuple[int, ...]:
    """dim π_{i+1} ⊗ Q for i = 1, …, from dim H_i(ΩX; Q), i = 0, …: the series divided by one factor after another.
    AnalysisError for numbers that are those of no loop space."""
    if loop_betti and loop_betti[0] != 1:
        raise AnalysisError(
            f"the loops of a simply connected space are connected: H_0 has not dimension {loop_betti[0]}"
        )
    series = [Fraction(b) for b in loop_betti]
    ranks = []
    for i in range(1, len(series)):
        r = int(series[i])
        if r < 0:
            raise AnalysisError(f"there is no loop space with Betti numbers {list(loop_betti)}: π_{i + 1} has rank {r}")
        ranks.append(r)
        for _ in range(r):
            if i % 2:  # divide by 1 + tⁱ
                for n in range(i, len(series)):
                    series[n] -= series[n - i]
            else:  # multiply by 1 − tⁱ
                for n in range(len(series) - 1, i - 1, -1):
                    series[n] -= series[n - i]
    return tuple(ranks)


def rational_homotopy(complex: SimplicialComplex, top: int = 7, *, bound: int = 1 << 12) -> Result[Any]:
    """(dim π_2 ⊗ Q, …, dim π_top ⊗ Q) of a connected, simply connected complex; P1. The witness is the bar
    complex with what ties it to the cochains.

    The value is `Undecided` where simple connectivity is not settled within ``bound`` cosets, the bar complex grows
    beyond `WORDS` words in a degree, or the complex has more than `CELLS` cells in one. AnalysisError where the
    fundamental group is not trivial or X is not connected, and for ``top`` < 1.
    """
    if top < 1:
        raise AnalysisError(f"groups are counted from π_2 to π_top, and top is {top}")
    refused = simply_connected(complex, bound)
    if refused is not None:
        return Result(refused, "P1")
    if max(complex.counts) > CELLS:
        return Result(Undecided(f"{CELLS} cells of one degree", f"there are {max(complex.counts)}"), "P1")
    model = RationalModel(complex)
    bar = model.bar_complex(top - 1)
    if isinstance(bar, Undecided):
        return Result(bar, "P1")
    ranks = homotopy_ranks(bar.betti())
    basis, lifts = model.basis(), model.lifts(top - 1)
    witness = LoopWitness(complex.cells, basis, lifts, bar.words, bar.differentials, ranks)
    return Result(ranks, "P1", witness=witness)


def simply_connected(complex: SimplicialComplex, bound: int) -> Undecided | None:
    """None for a connected complex with trivial π₁; `Undecided`, or AnalysisError for any other."""
    group = fundamental_group(complex)
    if len(complex.simplices(0)) != len(group.tree) + 1:
        raise AnalysisError("the complex is not connected", hint="take one component of it")
    order = group.order(bound)
    if isinstance(order, Undecided):
        return order
    if order != 1:
        raise AnalysisError(
            f"the fundamental group has order {order}: these groups are computed for simply connected complexes",
            hint="a finite group's universal cover has the same higher homotopy groups",
        )
    return None
