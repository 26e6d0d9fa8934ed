"""Hodge theory of cochains with diagonal Hodge stars: codifferential, Laplacians, decomposition, harmonic forms.

The inner product of k-forms is ⟨α, β⟩ = αᵀ⋆_kβ with positive diagonal ⋆_k; δ_k = ⋆_{k−1}⁻¹ d_{k−1}ᵀ ⋆_k is the adjoint
of d_{k−1}, and Δ_k = d_{k−1}δ_k + δ_{k+1}d_k. Sources: Eckmann, Harmonische Funktionen und Randwertaufgaben in einem
Komplex, Comment. Math. Helv. 17 (1944); Desbrun, Hirani, Leok, Marsden, Discrete exterior calculus (2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import lsmr

from aatc.passes.analysis.chains.complexes import ChainComplex, ComplexError, SimplicialComplex
from aatc.passes.analysis.chains.homology import betti_numbers, chain_complex
from aatc.passes.analysis.chains.verify_hodge import HodgeWitness
from aatc.passes.analysis.result import AnalysisError, Cost, Result, verify
from aatc.passes.analysis.stochastic import float_array

Reals = NDArray[np.float64]
_DENSE = 600
# Measured on one thread: dense least squares per cubed cell; the sparse iteration, on tori, per cell^1.5.
_SECONDS_PER_CUBE = 1.5e-10
_SECONDS_SPARSE = 1.5e-7


class WeightError(AnalysisError):
    """Weights of a Hodge star that are not positive numbers, one for each cell."""


@dataclass(frozen=True)
class HodgeDecomposition:
    """ω = ``exact`` + ``coexact`` + ``harmonic``, each (count_k,), orthogonal to one another.

    ``potential`` (count_{k−1},) is an α with dα = exact, ``copotential`` (count_{k+1},) a β with δβ = coexact.
    """

    exact: Reals
    coexact: Reals
    harmonic: Reals
    potential: Reals
    copotential: Reals


def star_weights(chain: ChainComplex, degree: int, weights: Sequence[Any] | None) -> Reals:
    """The diagonal of ⋆_k, (count_k,): ones without ``weights``, a sequence of arrays for degrees 0, 1, ....

    Raises `WeightError`.
    """
    count = chain.count(degree)
    if weights is None or not 0 <= degree < len(weights):
        if weights is not None and count:
            raise WeightError(f"there are {count} cells of degree {degree}, and no weights for them")
        return np.ones(count)
    values = float_array(weights[degree])
    if values.shape != (count,) or not (np.isfinite(values) & (values > 0)).all():
        raise WeightError(
            f"⋆ in degree {degree} has {count} positive entries; got shape {values.shape}, min "
            f"{values.min(initial=np.inf):g}"
        )
    return values


def hodge_star(
    chain: ChainComplex | SimplicialComplex, degree: int, values: Any, weights: Sequence[Any] | None
) -> Reals:
    """⋆ω: the values (..., count_k) of the dual form on dual cells, weight times value. Raises `ComplexError` and
    `WeightError`."""
    star, form = star_weights(chain_complex(chain), degree, weights), np.asarray(values)
    if form.shape[-1:] != star.shape:
        raise ComplexError(f"a {degree}-form has the shape (..., {len(star)}), not {form.shape}")
    return form * star


def codifferential(
    source: ChainComplex | SimplicialComplex, degree: int, weights: Sequence[Any] | None = None
) -> sparse.csr_array:
    """δ_k from k-forms to (k−1)-forms, (count_{k−1}, count_k)."""
    chain = chain_complex(source)
    below, here = star_weights(chain, degree - 1, weights), star_weights(chain, degree, weights)
    return sparse.csr_array(
        sparse.diags_array(1 / below) @ chain.boundary(degree).astype(np.float64) @ sparse.diags_array(here)
    )


def hodge_laplacian(
    source: ChainComplex | SimplicialComplex, degree: int, weights: Sequence[Any] | None = None
) -> sparse.csr_array:
    """Δ_k, (count_k, count_k). For k = 0 and unit weights it is the graph Laplacian D − A."""
    chain = chain_complex(source)
    down = chain.coboundary(degree - 1) @ codifferential(chain, degree, weights)
    up = codifferential(chain, degree + 1, weights) @ chain.coboundary(degree)
    return sparse.csr_array(down + up)


def harmonic_forms(
    source: ChainComplex | SimplicialComplex, degree: int, weights: Sequence[Any] | None = None
) -> Reals:
    """A ⋆-orthonormal basis (β_k, count_k) of ker Δ_k: the right singular vectors of the β_k least singular values of
    (d, δ) together, dense.

    β_k is computed in integers, so that the weights cannot change the number of forms. Of these, only those of degree
    k matter, because the others scale equations dω = 0 and δω = 0. Raises `WeightError`.
    """
    chain = chain_complex(source)
    count = chain.count(degree)
    _, root, _ = (np.sqrt(star_weights(chain, k, weights)) for k in (degree - 1, degree, degree + 1))
    if not count:
        return np.zeros((0, 0))
    up, down = chain.coboundary(degree).toarray() / root, chain.boundary(degree).toarray() * root
    equations = np.vstack([up, down, np.zeros((count, count))])
    sizes = np.linalg.norm(equations, axis=1, keepdims=True)
    triangle = np.linalg.qr(equations / np.where(sizes > 0, sizes, 1), mode="r")
    betti = betti_numbers(chain)[degree]
    return np.linalg.svd(triangle)[2][count - betti :] / root


def estimate_cost(counts: Sequence[int], degree: int) -> Cost:
    """What `hodge_decomposition` takes for a complex with these counts of cells."""
    near = [counts[k] for k in (degree - 1, degree, degree + 1) if 0 <= k < len(counts)]
    size = max(near, default=0)
    seconds = _SECONDS_PER_CUBE * size**3 if size <= _DENSE else _SECONDS_SPARSE * size**1.5
    return Cost(5e-3 + seconds, 2**18 + (10 * size**2 if size <= _DENSE else 500 * size))


def hodge_decomposition(
    source: ChainComplex | SimplicialComplex,
    degree: int,
    values: Any,
    weights: Sequence[Any] | None = None,
    budget: Cost | None = None,
) -> Result[HodgeDecomposition]:
    """ω (count_k,) as dα + δβ + h by orthogonal projections in the inner product of ⋆.

    The residual is what `verify` finds: |dh| and |δh|, equations combined so that cells of small weight are not
    drowned by heavy ones, relative to the largest value of ω. P3 where it exceeds the tolerance, as it may above some
    600 cells, where the projections are iterated, with weights decades apart. Raises `BudgetError`, `ComplexError`,
    `WeightError`.
    """
    chain = chain_complex(source)
    if budget is not None:
        estimate_cost(chain.counts, degree).check(budget, f"the Hodge decomposition of a {degree}-form")
    form = float_array(values)
    if form.shape != (chain.count(degree),) or not np.isfinite(form).all():
        raise ComplexError(f"a {degree}-form has {chain.count(degree)} finite values, got shape {form.shape}")
    below, above = chain.coboundary(degree - 1).astype(np.float64), chain.coboundary(degree).astype(np.float64)
    low, here, high = (star_weights(chain, k, weights) for k in (degree - 1, degree, degree + 1))
    split = _by_bases if max(below.shape + above.shape) <= _DENSE else _by_iteration
    potential, copotential = split(below, above, here, high, form)
    exact, coexact = below @ potential, (above.T @ (high * copotential)) / here
    harmonic = form - exact - coexact
    witness = HodgeWitness(below, above, (low, here, high), form, potential, copotential, harmonic)
    # cells whose weights lie decades apart have their own equations: see `verify_hodge`
    found = HodgeDecomposition(exact, coexact, harmonic, potential, copotential)
    return Result(found, "P2", 1e-8, verify(witness), witness)


def _by_bases(below: Any, above: Any, here: Reals, high: Reals, form: Reals) -> tuple[Reals, Reals]:
    """α and β by orthogonal projection on bases that weights of any ratio leave well conditioned: columns of d are
    combined so that each has its pivot in a cell no lighter than any other that it meets, and those of δ in one no
    heavier. What is left is the projection on the harmonic forms."""
    root = np.sqrt(here)
    forms, combined = _weighted_basis(below.toarray(), here)
    coforms, cocombined = _weighted_basis(above.toarray().T, 1 / here)
    exact, coexact = _orthonormal(forms, root), _orthonormal(coforms, 1 / root)
    rest, target = root * form, np.zeros((2, len(form)))
    for _ in range(2):  # the second time takes away what rounding left
        parts = np.stack([exact @ (exact.T @ rest), coexact @ (coexact.T @ rest)])
        target, rest = target + parts, rest - parts.sum(0)
    pivots, copivots = (_pivots(x) for x in (forms, coforms))
    potential: Reals = combined @ (target[0] / root)[pivots]
    copotential: Reals = cocombined @ (target[1] * root)[copivots] / high
    return potential, copotential


def _weighted_basis(matrix: Reals, weights: Reals) -> tuple[Reals, Reals]:
    """A basis (n, r) of the columns of an integer matrix (n, m), reduced to units at r rows that are taken greedily by
    falling weight, and the combinations (m, r) that make it."""
    n, m = matrix.shape
    work = np.vstack([matrix, np.eye(m)])
    free = np.ones(m, dtype=bool)
    for row in np.argsort(-weights, kind="stable"):
        at = int(np.where(free, np.abs(work[row]), 0.0).argmax()) if m else 0
        if not m or not free[at] or abs(work[row, at]) < 1e-6:
            continue
        free[at] = False
        work[:, at] /= work[row, at]
        others = np.flatnonzero((work[row] != 0) & (np.arange(m) != at))
        work[:, others] -= np.outer(work[:, at], work[row, others])
        work[row, others] = 0.0
        work[np.abs(work) < 1e-12] = 0.0
    return work[:n, ~free], work[n:, ~free]


def _pivots(basis: Reals) -> NDArray[np.int64]:
    """For each column the row that is a unit vector there."""
    single = np.flatnonzero((basis != 0).sum(1) == 1)
    found = np.zeros(basis.shape[1], dtype=np.int64)
    for row in single[::-1]:
        column = int(np.flatnonzero(basis[row])[0])
        if basis[row, column] == 1:
            found[column] = row
    return found


def _orthonormal(basis: Reals, root: Reals) -> Reals:
    """An orthonormal basis of the columns times ``root``, each scaled to its own size first."""
    scaled = basis * root[:, None]
    return np.linalg.qr(scaled / np.linalg.norm(scaled, axis=0, keepdims=True))[0]


def _by_iteration(below: Any, above: Any, here: Reals, high: Reals, form: Reals) -> tuple[Reals, Reals]:
    """α and β by two least-squares problems in the inner product of ⋆."""
    root = np.sqrt(here)
    codifferential_above = sparse.diags_array(1 / here) @ above.T @ sparse.diags_array(high)
    return (
        _least_squares(sparse.diags_array(root) @ below, root * form),
        _least_squares(sparse.diags_array(root) @ codifferential_above, root * form),
    )


def _least_squares(matrix: Any, target: Reals) -> Reals:
    """The solution of least norm of min |Mx − b|."""
    if not min(matrix.shape):
        return np.zeros(matrix.shape[1])
    rounds = 20 * max(matrix.shape)
    found: Reals = lsmr(sparse.csr_array(matrix), target, atol=1e-14, btol=1e-14, conlim=0, maxiter=rounds)[0]
    return found


def cotangent_star(complex: SimplicialComplex, points: Any) -> tuple[Reals, Reals, Reals]:
    """The circumcentric diagonal stars ⋆_0, ⋆_1, ⋆_2 of a triangulated surface with vertex positions (n, d).

    ``points[v]`` is the position of vertex v. ⋆_0: area of the dual cell; ⋆_1: dual length over length,
    (cot α + cot β)/2; ⋆_2: 1/area. Raises `WeightError` where one is not positive, as on triangulations that are not
    Delaunay: they have no positive circumcentric star; and `ComplexError` for positions that do not fit.
    """
    if complex.dimension != 2:
        raise ComplexError(f"a surface has dimension 2, not {complex.dimension}")
    triangles, faces = complex.cells[2], complex.faces(2)
    positions = float_array(points)
    if positions.ndim != 2 or len(positions) <= triangles.max() or triangles.min() < 0:
        raise ComplexError(f"vertices up to {triangles.max()} need positions of shape (n, d), not {positions.shape}")
    corners = positions[triangles]
    sides = np.stack([corners[:, 2] - corners[:, 1], corners[:, 0] - corners[:, 2], corners[:, 1] - corners[:, 0]], 1)
    squares = (sides**2).sum(-1)
    dots = -np.stack([(sides[:, (i + 1) % 3] * sides[:, (i + 2) % 3]).sum(-1) for i in range(3)], 1)
    areas = np.sqrt(np.maximum(squares[:, 0] * squares[:, 1] - dots[:, 2] ** 2, 0)) / 2
    if not (areas > 0).all():
        raise WeightError(f"triangle {int(areas.argmin())} has no area")
    cotangents = dots / (2 * areas[:, None])
    edges, vertices = np.zeros(complex.count(1)), np.zeros(complex.count(0))
    # The face that leaves out vertex i is the side opposite to corner i.
    np.add.at(edges, faces, cotangents / 2)
    places = complex.index(triangles.reshape(-1, 1)).reshape(-1, 3)
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        np.add.at(vertices, places[:, i], (squares[:, j] * cotangents[:, j] + squares[:, k] * cotangents[:, k]) / 8)
    weights = (vertices, edges, 1 / areas)
    for degree in range(3):
        star_weights(complex.chain_complex, degree, weights)
    return weights
