"""Persistent homology over F_p: of filtered complexes, of dissimilarity matrices (Vietoris–Rips), of attention heads.

A bar [b, d) is a class that appears at value b and becomes a boundary at d; d = ∞ for one that stays. Bars of length
zero are left out. Sources: Edelsbrunner, Harer, Computational Topology, chapter VII; Chen, Kerber, Persistent homology
computation with a twist (2011); Bauer, Ripser, J. Appl. Comput. Topol. 5 (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from aatc.passes.analysis.chains.complexes import ChainComplex, ComplexError, SimplicialComplex, flag_complex
from aatc.passes.analysis.chains.homology import chain_complex
from aatc.passes.analysis.chains.smith import check_prime
from aatc.passes.analysis.chains.verify_cohomology import BarcodeWitness, FiltrationWitness
from aatc.passes.analysis.cohomology.field_annotations import LARGEST_PRIME
from aatc.passes.analysis.cohomology.flag_persistence import flag_barcodes
from aatc.passes.analysis.cohomology.rips_routes import collapsed, route_cost
from aatc.passes.analysis.result import AnalysisError, Cost, Result
from aatc.passes.analysis.stochastic import float_array

Reals = NDArray[np.float64]
BACKENDS = ("annotations", "ripser", "gudhi", "own")
#: Share of the edges that are left by collapses from which on gudhi is faster than ripser above degree 1.
_HARDLY = 0.75


class FiltrationError(AnalysisError):
    """Values that are no filtration, or a matrix that is no dissimilarity."""


class BackendError(AnalysisError):
    """A backend that does not exist, is not installed, or cannot do what was asked."""


@dataclass(frozen=True)
class Barcodes:
    """``bars[k]`` (m, 2) are the births and deaths in degree k, sorted, also when there are none; over F_``modulus``.

    Nothing was joined above ``threshold``: a bar with death ∞ is one that is alive there.
    ``cocycles``, with the ripser backend, gives for each bar of degree ≥ 1 an array (s, k+2): vertices, then value.
    """

    bars: tuple[Reals, ...]
    modulus: int
    backend: str
    threshold: float = np.inf
    cocycles: tuple[tuple[NDArray[np.int64], ...], ...] | None = None

    def betti(self, value: float) -> tuple[int, ...]:
        """The Betti numbers of the sublevel complex at ``value``: bars with b ≤ value < d."""
        return tuple(int(((b[:, 0] <= value) & (value < b[:, 1])).sum()) for b in self.bars)


def attention_dissimilarity(attention: Any, kind: str = "neglog", symmetrise: str = "max") -> Reals:
    """A symmetric dissimilarity (n, n), zero on the diagonal, of an attention matrix (n, n) with entries in [0, 1].

    Entries are made symmetric by "max", "min" or "mean" of A_ij and A_ji; ``kind`` "neglog" gives −log A (∞ at 0),
    "complement" gives 1 − A. It need not satisfy the triangle inequality, and the Rips filtration needs none. Raises
    `FiltrationError`.
    """
    a = float_array(attention)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not ((a >= 0) & (a <= 1 + 1e-6)).all():
        raise FiltrationError(f"an attention matrix is (n, n) with entries in [0, 1], got shape {a.shape}")
    rules: dict[str, Callable[..., Reals]] = {"max": np.maximum, "min": np.minimum, "mean": lambda x, y: (x + y) / 2}
    if symmetrise not in rules or kind not in ("neglog", "complement"):
        raise FiltrationError(
            f"no dissimilarity {kind!r} with {symmetrise!r}: 'neglog' or 'complement', and {', '.join(rules)}"
        )
    s = np.minimum(rules[symmetrise](a, a.T), 1.0)
    with np.errstate(divide="ignore"):
        d = -np.log(s) if kind == "neglog" else 1 - s
    d = d + 0.0  # −log 1 is −0
    np.fill_diagonal(d, 0.0)
    return d


def estimate_cost(
    n: int, max_degree: int = 1, edges: int | None = None, *, modulus: int = 2, representatives: bool = False
) -> Cost:
    """What `rips_persistence` takes for n points with this many edges (default: all), by the way it goes where all is
    installed. Above degree 1, over F_p and with representatives it is that of independent random numbers, the dearest;
    over F_2 in degree 1 these are dearer still beyond some 1,024 points: n^1.5 cycles live in them."""
    joined = n * (n - 1) // 2 if edges is None else min(edges, n * (n - 1) // 2)
    if representatives:
        return route_cost("ripser", n, max_degree, joined, modulus)
    route = "annotations" if max_degree <= 1 and modulus <= LARGEST_PRIME else "gudhi"
    return route_cost(route, n, max_degree, joined, modulus)


def edge_threshold(dissimilarity: Any, edges: int) -> float:
    """The largest dissimilarity up to which no more than ``edges`` pairs are joined; ∞ where all finite ones are."""
    d = float_array(dissimilarity)
    values = d[np.triu_indices(len(d), 1)]
    values = values[np.isfinite(values)]
    if edges >= len(values):
        return float("inf")
    below = values[values < np.partition(values, edges)[edges]]
    return float(below.max()) if len(below) else -1.0


def rips_persistence(
    dissimilarity: Any,
    max_degree: int = 1,
    *,
    modulus: int = 2,
    threshold: float = np.inf,
    backend: str = "auto",
    representatives: bool = False,
    budget: Cost | None = None,
) -> Result[Barcodes]:
    """Barcodes of the Rips filtration of a symmetric dissimilarity (n, n), degrees 0 to ``max_degree``.

    Vertices are born at the diagonal's value, 0. Pairs above ``threshold`` or at ∞ are never joined. ``backend``:
    "annotations" (`flag_persistence`: degrees 0 and 1 over F_p, p up to 2²⁰), "ripser", "gudhi" (simplex tree), "own"
    (reduction of the boundary matrix, for some ten thousand simplices), or "auto": annotations where they apply; else
    edges are collapsed by gudhi, if it is installed, and those left go to gudhi where they are less than a tenth of all
    pairs or hardly fewer than before, to ripser elsewhere, and to "own" where there is neither. ``representatives``
    asks ripser for cocycles, of the filtration as it is. ``budget`` is held against the way that is taken.

    Raises `BackendError`, `BudgetError`, `FiltrationError`.
    """
    d = float_array(dissimilarity)
    if d.ndim != 2 or d.shape[0] != d.shape[1] or np.isnan(d).any() or (d != d.T).any() or np.diagonal(d).any():
        raise FiltrationError(f"a dissimilarity is symmetric (n, n) with zero diagonal, got shape {d.shape}")
    if (d < 0).any():
        raise FiltrationError("a dissimilarity is at least 0", hint="attention_dissimilarity makes one")
    if np.isnan(threshold) or max_degree < 0:
        raise FiltrationError(f"no persistence in degrees up to {max_degree} with the threshold {threshold}")
    check_prime(modulus)
    d = np.where(d <= threshold, d, np.inf)
    np.fill_diagonal(d, 0.0)
    edges = (int(np.isfinite(d).sum()) - len(d)) // 2
    plain = max_degree <= 1 and modulus <= LARGEST_PRIME
    left, whole = edges, d
    if backend == "auto" and not plain and not representatives and (fewer := collapsed(d)) is not None:
        d, left = fewer
    sparse = 10 * left < len(d) * (len(d) - 1) // 2 or (max_degree > 1 and left > _HARDLY * edges)
    chosen = _backend(backend, representatives, sparse=sparse, plain=plain)
    if budget is not None:
        cost = route_cost(chosen, len(d), max_degree, left, modulus)
        cost.check(budget, f"persistence of {len(d)} points and {left} edges by {chosen}")
    if not len(d):
        none = tuple(np.zeros((0, 2)) for _ in range(max_degree + 1))
        return Result(Barcodes(none, modulus, chosen, float(threshold)), "P1")
    run = {"annotations": _annotated, "ripser": _ripser, "gudhi": _gudhi, "own": _own}[chosen]
    bars, cocycles = run(d, max_degree, modulus, representatives)
    value = Barcodes(tuple(_tidy(b) for b in bars), modulus, chosen, float(threshold), cocycles)
    if chosen != "ripser":
        return Result(value, "P1")
    largest = float(whole[np.isfinite(whole)].max(initial=0.0))
    return Result(value, "P2", 6e-8 * largest, assumptions=("ripser computes in single precision",))


def attention_persistence(
    attention: Any,
    max_degree: int = 1,
    *,
    kind: str = "neglog",
    symmetrise: str = "max",
    edges_per_token: float | None = None,
    **options: Any,
) -> Result[Barcodes]:
    """`rips_persistence` of `attention_dissimilarity` of one head's matrix (n, n).

    With ``edges_per_token`` only that number times n of the strongest pairs are joined, and a ``threshold`` among the
    options cuts further: the bars are those of the whole filtration up to there. Raises as they do.
    """
    d = attention_dissimilarity(attention, kind, symmetrise)
    threshold = options.pop("threshold", np.inf)
    if edges_per_token is not None:
        if not edges_per_token >= 0 or np.isinf(edges_per_token):
            raise FiltrationError(f"edges_per_token is a number, at least 0, or None, not {edges_per_token}")
        threshold = min(threshold, edge_threshold(d, int(edges_per_token * len(d))))
    return rips_persistence(d, max_degree, threshold=threshold, **options)


def _backend(backend: str, representatives: bool, sparse: bool, plain: bool) -> str:
    if backend not in ("auto", *BACKENDS):
        raise BackendError(f"backend {backend!r} is none of auto, {', '.join(BACKENDS)}")
    if representatives and backend not in ("auto", "ripser"):
        raise BackendError(f"{backend} gives no cocycles here", hint="use ripser, or filtration_persistence for cycles")
    if backend == "annotations" and not plain:
        raise BackendError(
            f"annotations are of degrees 0 and 1 over F_p, p up to {LARGEST_PRIME}", hint="backend='auto'"
        )
    if plain and not representatives and backend in ("auto", "annotations"):
        return "annotations"
    automatic = ("ripser",) if representatives else ("gudhi", "ripser") if sparse else ("ripser", "gudhi")
    for name in automatic if backend == "auto" else (backend,):
        try:
            if name != "own":
                __import__(name)
            return name
        except ImportError:
            if backend != "auto":
                raise BackendError(f"{name} is not installed", hint="pip install 'aatc[analysis]'") from None
    if representatives:
        raise BackendError("cocycles need ripser", hint="pip install 'aatc[analysis]'")
    return "own"


def _tidy(bars: Any) -> Reals:
    """(m, 2), without bars of length 0, by birth and then death."""
    array = np.asarray(bars, dtype=np.float64).reshape(-1, 2)
    array = array[array[:, 0] < array[:, 1]]
    return array[np.lexsort((array[:, 1], array[:, 0]))]


def _ripser(d: Reals, max_degree: int, modulus: int, representatives: bool) -> tuple[list[Any], Any]:
    from ripser import ripser

    finite = np.isfinite(d)
    # A power of two brings the largest number near 1: single precision has a short range.
    _, exponent = np.frexp(d[finite].max(initial=0.0))
    d = np.ldexp(d, -exponent)
    top = float(d[finite].max(initial=0.0))
    if finite.all():
        # Beyond the enclosing radius the complex is a cone, so nothing is born or dies there.
        found = ripser(d, max_degree, np.inf, modulus, True, representatives)
    else:
        rows, columns = np.nonzero(finite)
        # Explicit zeros are edges of length 0; leaving them out would cut them.
        pairs = sparse.coo_matrix((d[rows, columns], (rows, columns)), shape=d.shape)
        found = ripser(pairs, max_degree, 2 * top + 1, modulus, True, representatives)
    cocycles = None
    if representatives:
        kept = []
        for k, (bars, group) in enumerate(zip(found["dgms"], found["cocycles"])):
            order = np.lexsort((bars[:, 1], bars[:, 0]))
            kept.append(tuple(group[i].astype(np.int64) for i in order if bars[i, 0] < bars[i, 1]) if k else ())
        cocycles = tuple(kept)
    return [np.ldexp(bars.astype(np.float64), exponent) for bars in found["dgms"]], cocycles


def _gudhi(d: Reals, max_degree: int, modulus: int, representatives: bool) -> tuple[list[Any], None]:
    from gudhi import SimplexTree

    tree = SimplexTree.create_from_array(d, float(d[np.isfinite(d)].max(initial=0.0)))
    if max_degree:
        tree.collapse_edges()
    tree.expansion(max_degree + 1)
    tree.compute_persistence(homology_coeff_field=modulus, min_persistence=0, persistence_dim_max=True)
    return [tree.persistence_intervals_in_dimension(k) for k in range(max_degree + 1)], None


def _annotated(d: Reals, max_degree: int, modulus: int, representatives: bool) -> tuple[list[Any], None]:
    return list(flag_barcodes(d, modulus)[: max_degree + 1]), None


def _own(d: Reals, max_degree: int, modulus: int, representatives: bool) -> tuple[list[Any], None]:
    joined = np.isfinite(d)
    np.fill_diagonal(joined, False)
    complex = flag_complex(joined, max_degree + 1)
    found = filtration_persistence(complex, rips_values(complex, d), modulus).value.bars
    return [found[k] if k < len(found) else np.zeros((0, 2)) for k in range(max_degree + 1)], None


def rips_values(complex: SimplicialComplex, dissimilarity: Any) -> tuple[Reals, ...]:
    """The Rips filtration on the cells of a complex with vertices 0, ..., n−1: the largest dissimilarity in each."""
    d = float_array(dissimilarity)
    found = []
    for cells in complex.cells:
        values = np.zeros(len(cells))
        for i in range(cells.shape[1]):
            for j in range(i):
                values = np.maximum(values, d[cells[:, j], cells[:, i]])
        found.append(values)
    return tuple(found)


def filtration_persistence(
    source: ChainComplex | SimplicialComplex, values: Sequence[Any], modulus: int = 2, representatives: bool = False
) -> Result[Barcodes]:
    """Barcodes of a complex filtered by ``values[k]`` (count_k,), for all degrees, by reduction of boundary matrices.

    With ``representatives`` the witness has a cycle and a filling for every bar. Raises `FiltrationError` where
    a cell comes before one of its faces.
    """
    chain = chain_complex(source)
    check_prime(modulus)
    filtration = _filtration(chain, values)
    reduction = _Reduction(chain, filtration, modulus, representatives)
    bars = tuple(_tidy(reduction.bars(k)) for k in range(len(chain.counts)))
    witness = None
    if representatives:
        witness = FiltrationWitness(tuple(reduction.witness(k) for k in range(len(chain.counts))))
    return Result(Barcodes(bars, modulus, "own"), "P1", witness=witness)


def _filtration(chain: ChainComplex, values: Sequence[Any]) -> list[Reals]:
    arrays = [float_array(v) for v in values]
    if [a.shape for a in arrays] != [(c,) for c in chain.counts] or any(np.isnan(a).any() for a in arrays):
        raise FiltrationError(f"a filtration has values of shapes {[(c,) for c in chain.counts]} without NaN")
    for k in range(1, len(arrays)):
        entries = sparse.coo_array(chain.boundary(k))
        early = np.flatnonzero(arrays[k - 1][entries.coords[0]] > arrays[k][entries.coords[1]])
        if len(early):
            raise FiltrationError(f"the {k}-cell {int(entries.coords[1][early[0]])} comes before one of its faces")
    return arrays


class _Reduction:
    """Columns reduced from left to right in the order (value, index), from the top degree down, so that cells that
    bound something need no reduction of their own."""

    def __init__(self, chain: ChainComplex, values: list[Reals], modulus: int, keep: bool) -> None:
        self.chain, self.values, self.modulus, self.keep = chain, values, modulus, keep
        self.order = [np.lexsort((np.arange(len(v)), v)) for v in values]
        self.rank = [np.argsort(o) for o in self.order]
        self.paired: list[dict[int, int]] = [{} for _ in range(len(values) + 1)]
        self.columns: list[dict[int, dict[int, int]]] = [{} for _ in range(len(values) + 1)]
        self.chains: list[dict[int, dict[int, int]]] = [{} for _ in range(len(values) + 1)]
        self.essential: list[list[int]] = [[] for _ in values]
        for k in range(len(values) - 1, -1, -1):
            self._reduce(k)

    def _reduce(self, k: int) -> None:
        """Pairs (k−1)-cells with the k-cells that end them; ``paired[k]``: rank of face → rank of cell."""
        matrix, p = self.chain.boundary(k), self.modulus
        indptr, indices, data = matrix.indptr.tolist(), matrix.indices.tolist(), matrix.data.tolist()
        rank = self.rank[k - 1].tolist() if k else []
        pairs, columns, chains = self.paired[k], self.columns[k], self.chains[k]
        ends = self.paired[k + 1]
        for place, cell in enumerate(self.order[k].tolist()):
            if place in ends and not self.keep:
                continue
            low, high = indptr[cell], indptr[cell + 1]
            column = {rank[i]: v % p for i, v in zip(indices[low:high], data[low:high]) if v % p}
            chain = {place: 1}
            while column:
                last = max(column)
                if last not in pairs:
                    break
                other = pairs[last]
                factor = column[last] * pow(columns[other][last], -1, p) % p
                _subtract(column, columns[other], factor, p)
                if self.keep:
                    _subtract(chain, chains[other], factor, p)
            if column:
                pairs[max(column)], columns[place] = place, column
            elif place not in ends:
                self.essential[k].append(place)
            if self.keep:
                chains[place] = chain

    def bars(self, k: int) -> list[tuple[float, float]]:
        """All bars of degree k, those of length 0 included."""
        values, order = self.values[k], self.order[k]
        above = self.values[k + 1][self.order[k + 1]] if k + 1 < len(self.values) else np.zeros(0)
        finite = [(values[order[i]], above[j]) for i, j in self.paired[k + 1].items()]
        return [*finite, *((values[order[i]], np.inf) for i in self.essential[k])]

    def witness(self, k: int) -> BarcodeWitness:
        """Every bar of degree k, those of length 0 included, with its cycle and filling in the canonical order of
        cells."""
        pairs = list(self.paired[k + 1].items())
        bars = np.array(self.bars(k)).reshape(-1, 2)
        cycles = np.zeros((self.chain.count(k), len(bars)), np.int64)
        fillings = np.zeros((self.chain.count(k + 1), len(bars)), np.int64)
        for m, (_, end) in enumerate(pairs):
            for i, v in self.columns[k + 1][end].items():
                cycles[self.order[k][i], m] = v
            for i, v in self.chains[k + 1][end].items():
                fillings[self.order[k + 1][i], m] = v
        for m, start in enumerate(self.essential[k], len(pairs)):
            for i, v in self.chains[k][start].items():
                cycles[self.order[k][i], m] = v
        above = self.values[k + 1] if k + 1 < len(self.values) else np.zeros(0)
        boundaries = self.chain.boundary(k), self.chain.boundary(k + 1)
        return BarcodeWitness(*boundaries, self.values[k], above, bars, cycles, fillings, self.modulus)


def _subtract(column: dict[int, int], other: dict[int, int], factor: int, p: int) -> None:
    for i, v in other.items():
        new = (column.get(i, 0) - factor * v) % p
        if new:
            column[i] = new
        else:
            column.pop(i, None)


def bottleneck_distance(one: Any, two: Any) -> float:
    """The bottleneck distance of two barcodes (m, 2) of one degree: bars may be matched to the diagonal.

    Exact: a binary search over the candidate costs with bipartite matchings, O((m + n)³) at worst. Infinite where the
    numbers of bars without end differ. Raises `FiltrationError`.
    """
    a, b = (float_array(x) for x in (one, two))
    if any((x.size and (x.ndim != 2 or x.shape[1] != 2)) or np.isnan(x).any() for x in (a, b)):
        raise FiltrationError(f"barcodes have the shape (m, 2) and no NaN, not {a.shape} and {b.shape}")
    a, b = a.reshape(-1, 2), b.reshape(-1, 2)
    endless = [np.sort(x[np.isinf(x[:, 1]), 0]) for x in (a, b)]
    if len(endless[0]) != len(endless[1]):
        return float("inf")
    a, b = a[np.isfinite(a[:, 1])], b[np.isfinite(b[:, 1])]
    m, n = len(a), len(b)
    cost = np.full((m + n, m + n), np.inf)
    cost[:m, :n] = np.abs(a[:, None] - b[None]).max(-1)
    cost[np.arange(m), n + np.arange(m)] = (a[:, 1] - a[:, 0]) / 2
    cost[m + np.arange(n), np.arange(n)] = (b[:, 1] - b[:, 0]) / 2
    cost[m:, n:] = 0.0
    candidates = np.unique(cost[np.isfinite(cost)])
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        matching = maximum_bipartite_matching(sparse.csr_matrix(cost <= candidates[middle]))
        low, high = (low, middle) if (matching >= 0).all() else (middle + 1, high)
    finite = float(candidates[low]) if len(candidates) else 0.0
    return max(finite, float(np.abs(endless[0] - endless[1]).max(initial=0.0)))


__all__ = [
    "BACKENDS",
    "BackendError",
    "Barcodes",
    "ComplexError",
    "FiltrationError",
    "attention_dissimilarity",
    "attention_persistence",
    "bottleneck_distance",
    "estimate_cost",
    "filtration_persistence",
    "rips_persistence",
    "rips_values",
]
