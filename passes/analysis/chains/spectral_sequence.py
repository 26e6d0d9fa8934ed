"""The spectral sequence of a filtered chain complex over a field: all pages, differentials, convergence.

A basis adapted to the filtration splits the complex into single cells and pairs (τ, σ) with ∂τ = σ. A pair whose levels
differ by r lives on the pages 0, …, r and is what d^r kills; the single cells are E^∞. The pairs are those of
persistence (Edelsbrunner, Harer, Computational Topology, chapter VII; Basu, Parida, Spectral sequences, exact couples
and persistent homology, 2017). E^r_{p,q} ⇒ H_{p+q}; the seed's E_r ⇒ π_{p+q} holds for the simplicial abelian group
Z[X], whose homotopy is the homology of X (Dold, Kan), and for X itself only rationally or in low degree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from aatc.passes.analysis.chains.complexes import ChainComplex, SimplicialComplex
from aatc.passes.analysis.chains.homology import chain_complex, coefficients
from aatc.passes.analysis.chains.verify_spectral import FiltrationWitness, Pair
from aatc.passes.analysis.deadline import proceed
from aatc.passes.analysis.result import AnalysisError, Result
from aatc.passes.analysis.stochastic import float_array

Place = tuple[int, int]


@dataclass(frozen=True)
class Page:
    """E^r: ``dims[p, q]``, and ``ranks[p, q]``, the rank of d^r: E^r_{p,q} → E^r_{p−r,q+r−1}, both where not zero."""

    r: int
    dims: dict[Place, int]
    ranks: dict[Place, int]


@dataclass(frozen=True)
class SpectralSequence:
    """``pages`` from E⁰ to the first one that is E^∞; ``coeff`` the field, ``dimension`` the top degree; ``pairs`` and
    ``single`` (degree, level, cell) the adapted basis."""

    pages: tuple[Page, ...]
    coeff: str
    dimension: int
    pairs: tuple[Pair, ...] = field(repr=False)
    single: tuple[tuple[int, int, int], ...] = field(repr=False)

    @property
    def infinity(self) -> dict[Place, int]:
        return self.pages[-1].dims

    @property
    def converges_at(self) -> int:
        """The first r with E^r = E^∞."""
        return self.pages[-1].r

    def page(self, r: int) -> Page:
        """E^r for every r ≥ 0. AnalysisError below."""
        if r < 0:
            raise AnalysisError(f"pages are counted from E⁰, and r is {r}")
        return self.pages[min(r, len(self.pages) - 1)]

    def differential(self, r: int, p: int, q: int) -> np.ndarray:
        """d^r out of E^r_{p,q} as a matrix of 0 and 1 in the adapted basis, (dim of target, dim of source). The basis
        of a place: the pairs that end there, then those that start there, then single cells, each in the order kept."""
        source, target = self._basis(r, p, q), self._basis(r, p - r, q + r - 1)
        matrix = np.zeros((len(target), len(source)), dtype=np.int64)
        for column, (role, n) in enumerate(source):
            if role == "high" and self.pairs[n].gap == r:
                matrix[target.index(("low", n)), column] = 1
        return matrix

    def _basis(self, r: int, p: int, q: int) -> list[tuple[str, int]]:
        alive = [(n, x) for n, x in enumerate(self.pairs) if x.gap >= r]
        low = [("low", n) for n, x in alive if (x.target, x.degree - 1 - x.target) == (p, q)]
        high = [("high", n) for n, x in alive if (x.source, x.degree - x.source) == (p, q)]
        return low + high + [("single", n) for n, (d, s, _) in enumerate(self.single) if (s, d - s) == (p, q)]

    def betti(self) -> tuple[int, ...]:
        """dim H_n of the whole complex: Σ dim E^∞_{p,q} over p + q = n."""
        return tuple(sum(d == n for d, _, _ in self.single) for n in range(self.dimension + 1))


def spectral_sequence(
    source: ChainComplex | SimplicialComplex, levels: Sequence[Any], coeff: str | int = "F2"
) -> Result[SpectralSequence]:
    """All pages of the filtration in which the k-cell number n has the level ``levels[k][n]``, an integer; P1.

    coeff is "Q" or a prime field. AnalysisError when a face has a higher level than its cell, for levels of the wrong
    number, and for coefficients Z, where pages are no vector spaces.
    """
    chain, ring = chain_complex(source), coefficients(coeff)
    if ring.name == "Z":
        raise AnalysisError("pages are computed over a field", hint="coeff='Q' or a prime field such as 'F2'")
    levels = [_integers(x, f"levels of degree {k}") for k, x in enumerate(levels)]
    _check(chain, levels)
    pairs: list[Pair] = []
    taken: set[tuple[int, int]] = set()
    for k in range(len(chain.counts) - 1, 0, -1):
        for pair in _reduce(chain, levels, k, ring.modulus):
            if (k, pair.high) not in taken:
                pairs.append(pair)
                taken |= {(k, pair.high), (k - 1, pair.low)}
    single = tuple(
        (k, int(levels[k][n]), n) for k in range(len(chain.counts)) for n in range(chain.count(k))
        if (k, n) not in taken
    )  # fmt: skip
    last = max((x.gap for x in pairs), default=-1) + 1
    found = SpectralSequence(
        tuple(_page(r, pairs, single) for r in range(last + 1)), ring.name, len(chain.counts) - 1, tuple(pairs), single
    )  # fmt: skip
    matrices = tuple(chain.boundary(k) for k in range(len(chain.counts)))
    witness = FiltrationWitness(matrices, tuple(tuple(x.tolist()) for x in levels), ring.modulus, tuple(pairs), single)
    return Result(found, "P1", witness=witness)


def _integers(values: Any, what: str) -> np.ndarray:
    """A vector of 64-bit integers. AnalysisError for anything else, also for fractions and NaN."""
    given = np.asarray(values)
    if given.ndim == 1 and not given.size:
        return np.zeros(0, dtype=np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iuf" or not (np.isfinite(given) & (given == np.round(given))).all():
        raise AnalysisError(f"{what} are integers in one row, not {given.dtype} {given.shape}")
    return given.astype(np.int64)


def _check(chain: ChainComplex, levels: Sequence[np.ndarray]) -> None:
    sizes = [len(x) for x in levels]
    if sizes != list(chain.counts):
        raise AnalysisError(f"levels are given for {sizes} cells by degree; the complex has {list(chain.counts)}")
    for k in range(1, len(chain.counts)):
        entries = chain.boundary(k).tocoo()
        faces, cells = entries.coords
        above = (entries.data != 0) & (levels[k - 1][faces] > levels[k][cells])
        if above.any():
            n = int(np.flatnonzero(above)[0])
            raise AnalysisError(
                f"cell {cells[n]} of degree {k} has level {levels[k][cells[n]]}, its face {faces[n]} the level "
                f"{levels[k - 1][faces[n]]}",
                hint="the boundary of a filtered complex does not raise the level",
            )


def _reduce(chain: ChainComplex, levels: Sequence[np.ndarray], k: int, modulus: int) -> list[Pair]:
    """Column reduction of ∂_k in the order of levels: one pair for every column that does not vanish."""
    matrix = chain.boundary(k).tocsc()
    order = np.argsort(levels[k], kind="stable")
    rank = np.empty(chain.count(k - 1), dtype=np.int64)
    rank[np.argsort(levels[k - 1], kind="stable")] = np.arange(chain.count(k - 1))
    owner: dict[int, tuple[dict[int, Any], dict[int, Any]]] = {}
    pairs = []
    for cell in map(int, order):
        proceed()
        column = {
            int(i): _scalar(int(v), modulus)
            for i, v in zip(matrix.indices[matrix.indptr[cell] : matrix.indptr[cell + 1]],
                            matrix.data[matrix.indptr[cell] : matrix.indptr[cell + 1]])
            if _scalar(int(v), modulus)
        }  # fmt: skip
        chain_of = {cell: _scalar(1, modulus)}
        while column:
            low = max(column, key=rank.__getitem__)
            if low not in owner:
                owner[low] = (column, chain_of)
                source, target = int(levels[k][cell]), int(levels[k - 1][low])
                pairs.append(Pair(k, source, target, cell, low, chain_of))
                break
            other, its_chain = owner[low]
            factor = _divide(column[low], other[low], modulus)
            _subtract(column, other, factor, modulus)
            _subtract(chain_of, its_chain, factor, modulus)
    return pairs


def _scalar(value: int, modulus: int) -> Any:
    return value % modulus if modulus else Fraction(value)


def _divide(a: Any, b: Any, modulus: int) -> Any:
    return a * pow(b, -1, modulus) % modulus if modulus else a / b


def _subtract(into: dict[int, Any], other: dict[int, Any], factor: Any, modulus: int) -> None:
    for i, v in other.items():
        value = into.get(i, 0) - factor * v
        value = value % modulus if modulus else value
        if value:
            into[i] = value
        else:
            into.pop(i, None)


def _page(r: int, pairs: Sequence[Pair], single: Sequence[tuple[int, int, int]]) -> Page:
    dims: dict[Place, int] = {}
    ranks: dict[Place, int] = {}

    def count(table: dict[Place, int], level: int, degree: int) -> None:
        table[level, degree - level] = table.get((level, degree - level), 0) + 1

    for x in pairs:
        if x.gap >= r:
            count(dims, x.source, x.degree)
            count(dims, x.target, x.degree - 1)
            if x.gap == r:
                count(ranks, x.source, x.degree)
    for degree, level, _ in single:
        count(dims, level, degree)
    return Page(r, dims, ranks)


# --- filtrations -------------------------------------------------------------------------------------------
def levels_by_weight(complex: SimplicialComplex, weights: Any, thresholds: Sequence[float]) -> list[np.ndarray]:
    """Levels by falling thresholds t_0 > t_1 > …: a simplex enters with the first one that all its pairs reach, the
    weight of a pair being max(A_ij, A_ji). What reaches none has the level len(thresholds), vertices have level 0.
    AnalysisError for weights that are not square, hold NaN or lack a vertex, and for thresholds that do not fall."""
    a, falling = float_array(weights), float_array(thresholds)
    vertices = complex.simplices(0)[:, 0]
    if a.ndim != 2 or a.shape[0] != a.shape[1] or np.isnan(a).any():
        raise AnalysisError(f"weights are a square matrix without NaN, not of shape {a.shape}")
    if len(vertices) and not 0 <= vertices[0] <= vertices[-1] < len(a):
        raise AnalysisError(f"the vertices {vertices[0]} to {vertices[-1]} index weights of shape {a.shape}")
    if falling.ndim != 1 or np.isnan(falling).any() or np.any(np.diff(falling) >= 0):
        raise AnalysisError(f"thresholds fall strictly, got {thresholds}")
    both = np.maximum(a, a.T)
    levels = [np.zeros(len(vertices), dtype=np.int64)]
    for k in range(1, complex.dimension + 1):
        cells = complex.simplices(k)
        least = np.full(len(cells), np.inf)
        for i in range(k + 1):
            for j in range(i):
                least = np.minimum(least, both[cells[:, j], cells[:, i]])
        levels.append((least[:, None] < falling[None]).sum(1))
    return levels


def levels_by_map(complex: SimplicialComplex, vertex_map: Any) -> list[np.ndarray]:
    """Serre's filtration for a simplicial map: the level of a simplex is the dimension of its image. ``vertex_map`` are
    the images of the vertices in the order of ``simplices(0)``."""
    image = _integers(vertex_map, "images of vertices")
    vertices = complex.simplices(0)[:, 0]
    if image.shape != vertices.shape:
        raise AnalysisError(f"{len(vertices)} vertices need as many images, got {image.shape}")
    levels = []
    for k in range(complex.dimension + 1):
        found = np.sort(image[np.searchsorted(vertices, complex.simplices(k))], axis=1)
        levels.append((np.diff(found, axis=1) != 0).sum(1))
    return levels


class SpectralAttention:
    """Spectral sequences of attention, with the seed's method names.

    `compute_spectral` takes a filtration: a pair (complex, levels), or a triple (weights, thresholds, dimension) of an
    attention matrix. The seed's limit π_{p+q} is corrected to H_{p+q}; see the module's text.
    """

    def __init__(self, coeff: str | int = "F2") -> None:
        self.coeff = coeff

    def initialize_sequence(self, filtration: Any) -> tuple[Any, Sequence[Any]]:
        """(complex, levels). AnalysisError for what is neither a pair nor a triple, and for no thresholds."""
        if len(filtration) == 2:
            return filtration[0], filtration[1]
        if len(filtration) != 3 or not len(filtration[1]):
            raise AnalysisError(
                "a filtration is (complex, levels), or (weights, thresholds, dimension) with thresholds"
            )
        from aatc.passes.analysis.chains.complexes import threshold_complex

        weights, thresholds, dimension = filtration
        complex = threshold_complex(weights, min(thresholds), dimension)
        return complex, levels_by_weight(complex, weights, thresholds)

    def compute_pages(self, sequence: tuple[Any, Sequence[Any]]) -> Result[SpectralSequence]:
        return spectral_sequence(*sequence, coeff=self.coeff)

    def compute_spectral(self, filtration: Any) -> Result[SpectralSequence]:
        return self.compute_pages(self.initialize_sequence(filtration))


__all__ = [
    "FiltrationWitness",
    "Page",
    "Pair",
    "SpectralAttention",
    "SpectralSequence",
    "levels_by_map",
    "levels_by_weight",
    "spectral_sequence",
]
