"""Checks of Riemannian metrics: positive definite, compatible with a connection, curvature within bounds.

Sources: Rump, Verification of positive definiteness, BIT 46 (2006); Thorpe, On the curvature tensor of a positively
curved 4-manifold (1971); do Carmo, Riemannian Geometry, chapters 2 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError
from aatc.geometry.manifolds.curvature import curvature_of, jacobian
from aatc.geometry.manifolds.riemannian import RiemannianStructure
from aatc.passes.analysis.result import Undecided, Verdict, verify
from aatc.validation.judgement import ValidationError, finite, judge, square, tolerance_of, worst

Field = Callable[[Tensor], Tensor]
# Steps of the search for extreme planes, which stops earlier where it has settled.
_ALTERNATIONS = 50


@dataclass(frozen=True, eq=False)
class EigenvalueWitness:
    """The matrix at ``index`` of the batch and a unit vector whose Rayleigh quotient is about its least eigenvalue,
    which is at least ``lower_bound`` in exact arithmetic. ``scale`` is the matrix's largest entry."""

    index: tuple[int, ...]
    matrix: Tensor
    eigenvalue: float
    eigenvector: Tensor
    lower_bound: float
    scale: float
    asymmetry: float
    margin: float


@dataclass(frozen=True, eq=False)
class CompatibilityWitness:
    """g (d, d), ∂_k g_ij (d, d, d) as [k, i, j] and Γ^k_ij (d, d, d) at one point, whose index or coordinates are
    ``point``. ``torsion`` says whether the antisymmetric part of Γ counts."""

    point: tuple[float, ...]
    metric: Tensor
    derivative: Tensor
    connection: Tensor
    torsion: bool


@dataclass(frozen=True, eq=False)
class PlaneWitness:
    """A plane spanned by ``u`` and ``v`` at ``point``, g and R_ijkl there (R_ijij ≥ 0 on spheres), and its sectional
    curvature, which was compared with ``bounds``."""

    point: tuple[float, ...]
    u: Tensor
    v: Tensor
    metric: Tensor
    riemann: Tensor
    curvature: float
    bounds: tuple[float, float]


@verify.register
def _(witness: EigenvalueWitness) -> float:
    """As the check's residual, after an elimination has confirmed the lower bound, and not above the Rayleigh quotient;
    infinite where it does not."""
    rows: list[list[float]] = witness.matrix.tolist()
    v: list[float] = witness.eigenvector.tolist()
    n = len(v)
    largest = max(abs(x) for row in rows for x in row)
    skew = max(abs(rows[i][j] - rows[j][i]) for i in range(n) for j in range(n)) / (largest or 1.0)
    if largest == 0:
        return max(0.0, witness.margin + 1.0, skew - witness.margin)
    if not _exceeds(rows, witness.lower_bound - (n + 1) ** 2 * torch.finfo(torch.float64).eps * largest):
        return float("inf")
    rayleigh = math.fsum(v[i] * rows[i][j] * v[j] for i in range(n) for j in range(n)) / math.fsum(x * x for x in v)
    return max(0.0, witness.margin - min(witness.lower_bound, rayleigh) / largest, skew - witness.margin)


def _exceeds(rows: list[list[float]], bound: float) -> bool:
    """Whether elimination of the symmetric part of a matrix, less ``bound`` on its diagonal, has positive pivots."""
    n = len(rows)
    left = [[(rows[i][j] + rows[j][i]) / 2 - (bound if i == j else 0.0) for j in range(n)] for i in range(n)]
    for i, pivot in enumerate(left):
        if not pivot[i] > 0:
            return False
        for row in left[i + 1 :]:
            factor = row[i] / pivot[i]
            for j in range(i + 1, n):
                row[j] -= factor * pivot[j]
    return True


@verify.register
def _(witness: CompatibilityWitness) -> float:
    g, dg, gamma = witness.metric.tolist(), witness.derivative.tolist(), witness.connection.tolist()
    axes = range(len(g))
    found = 0.0
    for k in axes:
        for i in axes:
            for j in axes:
                rest = sum(gamma[l][k][i] * g[l][j] + gamma[l][k][j] * g[i][l] for l in axes)
                found = max(found, abs(dg[k][i][j] - rest) / max(abs(x) for row in g for x in row))
                if witness.torsion:
                    found = max(found, abs(gamma[k][i][j] - gamma[k][j][i]))
    return found


@verify.register
def _(witness: PlaneWitness) -> float:
    g, u, v = witness.metric, witness.u, witness.v
    area = (u @ g @ u) * (v @ g @ v) - (u @ g @ v) ** 2
    curvature = float(torch.einsum("ijkl,i,j,k,l->", witness.riemann, u, v, u, v) / area)
    return max(0.0, witness.bounds[0] - curvature, curvature - witness.bounds[1])


def _least_eigenvalue_bound(matrix: Tensor, computed: Tensor) -> Tensor:
    """A lower bound of the least eigenvalue of symmetric (..., n, n) float64, true in exact arithmetic.

    A Cholesky factorisation of A − (ℓ + c)I that runs to its end proves λ_min(A) ≥ ℓ when c covers its rounding,
    γ/(1 − γ) times the trace with γ = γ_{n+1}, and the rounding of the shift. Where none does, Gershgorin's bound.
    """
    n, unit = matrix.shape[-1], torch.finfo(torch.float64).eps / 2
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    rows = matrix.abs().sum(-1)
    bound = (diagonal - (rows - diagonal.abs())).amin(-1) - 4 * (n + 2) * unit * rows.amax(-1)
    proven = torch.zeros_like(computed, dtype=torch.bool)
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    trace = diagonal.abs().sum(-1) + n * computed.abs()
    cover = 2 * (n + 3) * unit * trace + torch.finfo(torch.float64).tiny
    for factor in (1.5, 8, 64):
        candidate = computed - factor * cover
        shift = candidate + cover
        _, info = torch.linalg.cholesky_ex(matrix - shift[..., None, None] * eye)
        better = (info == 0) & ~proven
        bound = torch.where(better, torch.maximum(candidate, bound), bound)
        proven |= better
    return bound


def _grid_derivative(metric: Tensor, spacing: Sequence[float]) -> tuple[Tensor, Tensor]:
    """∂_k g of order 4 at the points two or more from the boundary, (*inner, d, d, d), and an estimate of its error.

    The error is h⁴/30 times the fifth derivative somewhere in the stencil. That is taken to be at most twice the
    larger fifth difference of the two that cover the stencil (one at the boundary); rounding of g by 4 ε is added.
    """
    d = len(spacing)
    slopes, errors = [], []

    def shifted(axis: int, by: int) -> Tensor:
        place = [slice(2, -2)] * d
        place[axis] = slice(2 + by, metric.shape[axis] - 2 + by)
        return metric[tuple(place)]

    for axis, h in enumerate(spacing):
        fine = (shifted(axis, 1) - shifted(axis, -1)) / (2 * h)
        coarse = (shifted(axis, 2) - shifted(axis, -2)) / (4 * h)
        slopes.append((4 * fine - coarse) / 3)
        others = [slice(2, -2)] * d
        others[axis] = slice(None)
        fifth = metric[tuple(others)].diff(n=5, dim=axis).abs()
        start = torch.arange(-1, metric.shape[axis] - 5, device=metric.device)
        before, after = (fifth.index_select(axis, (start + n).clamp(0, fifth.shape[axis] - 1)) for n in (0, 1))
        rounding = 4 * torch.finfo(metric.dtype).eps * shifted(axis, 0).abs().amax((-2, -1), keepdim=True)
        errors.append((torch.maximum(before, after) / 15 + rounding) / h)
    return torch.stack(slopes, dim=d), torch.stack(errors, dim=d)


def _plane_extremes(riemann: Tensor, starts: int, sign: float) -> tuple[float, int, Tensor, Tensor]:
    """A local extreme (``sign`` 1: maximum) of the sectional curvature over points, (N, d, d, d, d) in orthonormal
    frames: its value, its point's place and its plane.

    Alternately, the best v for a fixed u is an eigenvector of the Jacobi operator R(·, u)u; the value never worsens.
    """
    d = riemann.shape[1]
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(starts, d, generator=generator, dtype=riemann.dtype).to(riemann.device)
    u = torch.cat([torch.eye(d, dtype=riemann.dtype, device=riemann.device), random])
    u = (u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)).expand(len(riemann), -1, -1)
    v, reached = u, torch.full(u.shape[:2], -torch.inf, dtype=u.dtype, device=u.device)
    # u itself is in the kernel of its Jacobi operator: it is pushed below every other eigenvalue.
    push = riemann.abs().sum() + 1
    for _ in range(_ALTERNATIONS):
        jacobi = sign * torch.einsum("nijkl,nsj,nsl->nsik", riemann, u, u)
        away = push * u[..., :, None] * u[..., None, :]
        values, vectors = torch.linalg.eigh((jacobi + jacobi.mT) / 2 - away)
        u, v = vectors[..., -1], u
        settled = bool((values[..., -1] <= reached + 1e-13 * push).all())
        reached = values[..., -1]
        if settled:
            break
    n, s = worst(reached)
    return sign * float(reached[n, s]), n, v[n, s], u[n, s]


def _proven_range(riemann: Tensor) -> tuple[float, float]:
    """Bounds of the sectional curvature in an orthonormal frame; the exact extremes for d ≤ 4.

    The curvature operator's eigenvalues bound it, and are attained for d ≤ 3, where every bivector is simple. For
    d = 4 the operator plus t times the Hodge star has the same values on planes, and the best t gives the extremes.
    """
    from scipy.optimize import minimize_scalar

    d = riemann.shape[0]
    i, j = torch.triu_indices(d, d, 1)
    operator = riemann[i[:, None], j[:, None], i[None, :], j[None, :]]
    operator = (operator + operator.mT) / 2
    if d != 4:
        values = torch.linalg.eigvalsh(operator)
        return float(values[0]), float(values[-1])
    star = torch.zeros_like(operator)
    # The pairs in order: 01, 02, 03, 12, 13, 23.
    for one, other, sign in ((0, 5, 1.0), (1, 4, -1.0), (2, 3, 1.0)):
        star[one, other] = star[other, one] = sign
    reach = 2 * float(torch.linalg.matrix_norm(operator, 2)) + 1e-300

    def extreme(sign: float) -> float:
        """The largest lower bound of ``sign`` times the curvature; each t gives a valid one, t ↦ it is concave."""
        least = lambda t: -float(torch.linalg.eigvalsh(sign * operator + t * star)[0])  # noqa: E731
        found = minimize_scalar(least, bounds=(-reach, reach), method="bounded", options={"xatol": 1e-12 * reach})
        return -min(least(0.0), float(found.fun))

    return extreme(1.0), -extreme(-1.0)


def _at_points(name: str, value: object, shape: tuple[int, ...]) -> Tensor:
    result = finite(name, value)
    if tuple(result.shape) != shape:
        raise ValidationError(f"{name} gives the shape {tuple(result.shape)}, not {shape}, at points {shape[:2]}")
    return result


def _point_batch(points: Tensor | None) -> Tensor:
    if points is None:
        raise ValidationError("fields given as functions are checked at points", hint="give points=, of shape (N, d)")
    batch = finite("points", points)
    return batch.reshape(-1, batch.shape[-1]) if batch.ndim else batch.reshape(1, 1)


@dataclass(frozen=True)
class MetricValidation:
    """Checks of a metric. ``tolerance`` is used where a method is given none.

    The seed's methods are kept, with verdicts instead of bools. A metric's values at one point have no derivative
    and no curvature, so that `verify_compatibility` and `check_curvature_bounds` could not work as the seed had
    them: they take fields, as functions of points (N, d) that treat the points apart, or on a grid.
    """

    tolerance: float = 1e-6

    def check_positive_definite(self, metric: Tensor, tolerance: float | None = None) -> Verdict:
        """Whether matrices (..., n, n) are positive definite with a margin: least eigenvalue ≥ tolerance · scale.

        ``scale`` is the largest entry of each matrix. The asymmetry may be tolerance · scale; the eigenvalue is that
        of the symmetric part. A Cholesky factorisation with a bound of its rounding proves the margin, so that a
        verdict that holds is true of the numbers given; at a distance of some n ε from the margin the check fails.
        ``residual`` is how much of the margin, or of the room for asymmetry, is missing: 0 where the check holds.
        Witness: `EigenvalueWitness` of the worst matrix. Raises `ValidationError`.
        """
        margin = tolerance_of(tolerance, self.tolerance)
        matrices = square("metric", metric)
        symmetric = (matrices + matrices.mT) / 2
        scale = matrices.abs().amax((-2, -1))
        unit = torch.where(scale > 0, scale, torch.ones_like(scale))
        asymmetry = (matrices - matrices.mT).abs().amax((-2, -1)) / unit
        values, vectors = torch.linalg.eigh(symmetric)
        # Forming the symmetric part rounds each entry by at most ε/2 · scale.
        rounding = matrices.shape[-1] * torch.finfo(torch.float64).eps * scale
        bound = _least_eigenvalue_bound(symmetric, values[..., 0]) - rounding
        relative = torch.where(scale > 0, bound / unit, torch.full_like(scale, -1.0))
        lacking = torch.maximum(margin - relative, asymmetry - margin)
        at = worst(lacking)
        witness = EigenvalueWitness(
            at,
            matrices[at].clone(),
            float(values[at][0]),
            vectors[at][:, 0].clone(),
            float(bound[at]),
            float(scale[at]),
            float(asymmetry[at]),
            margin,
        )
        statement = f"metric positive definite, least eigenvalue ≥ {margin:.0e} of the largest entry"
        return judge(statement, max(0.0, float(lacking[at])), 0.0, witness, "P2")

    def verify_compatibility(
        self,
        metric: Field | RiemannianStructure | Tensor,
        connection: Field | Tensor,
        tolerance: float | None = None,
        *,
        points: Tensor | None = None,
        spacing: float | Sequence[float] | None = None,
        torsion_free: bool = False,
    ) -> Verdict:
        """Whether ∂_k g_ij − Γ^l_ki g_lj − Γ^l_kj g_il = 0, and, if asked, Γ^k_ij = Γ^k_ji.

        Either functions, g: (N, d) → (N, d, d), or its `RiemannianStructure`, and Γ: (N, d) → (N, d, d, d) as
        [k, i, j], checked at ``points`` (N, d) with the derivative by automatic differentiation (P2); or grids
        (*sizes, d, d) and (*sizes, d, d, d) with d sizes ≥ 6 and ``spacing``, checked away from the boundary by
        differences of order 4, whose error, estimated by differences of order 5, is added to the tolerance (P3).
        ``residual`` is the largest component of the equation over the largest entry of g, or of the torsion, per
        unit of the coordinates.
        Witness: `CompatibilityWitness`. Raises `ValidationError`.
        """
        room = tolerance_of(tolerance, self.tolerance)
        metric = metric.metric if isinstance(metric, RiemannianStructure) else metric
        if callable(metric) and callable(connection):
            where = _point_batch(points)
            size = where.shape[-1]
            g = _at_points("metric", metric(where), (len(where), size, size))
            try:
                symbols = connection(where)
            except GeometryError as error:
                raise ValidationError(f"the connection has no value at the points: {error}") from error
            gamma = _at_points("connection", symbols, (len(where), size, size, size))
            slope = finite("the metric's derivative", jacobian(metric)(where)).movedim(-1, 1)
            level, given = "P2", f"at the {len(where)} points given"
        elif isinstance(metric, Tensor) and isinstance(connection, Tensor):
            g, gamma, slope, where, discretised = self._on_grid(metric, connection, spacing)
            room += discretised
            level, given = "P3", f"the differences are off by at most {discretised:.1e}, as fifth differences estimate"
        else:
            raise ValidationError("metric and connection are both functions, or both tensors on a grid")
        turned = torch.einsum("nlki,nlj->nkij", gamma, g)
        scale = g.abs().amax((1, 2)).clamp_min(torch.finfo(g.dtype).tiny)
        defect = (slope - turned - turned.transpose(2, 3)).abs().amax((1, 2, 3)) / scale
        if torsion_free:
            defect = torch.maximum(defect, (gamma - gamma.transpose(2, 3)).abs().amax((1, 2, 3)))
        (at,) = worst(defect)
        place = tuple(where[at].tolist())
        witness = CompatibilityWitness(place, g[at].clone(), slope[at].clone(), gamma[at].clone(), torsion_free)
        statement = "connection compatible with the metric" + (" and torsion-free" if torsion_free else "")
        return judge(statement, float(defect[at]), room, witness, level, (given,))

    def _on_grid(
        self, metric: Tensor, connection: Tensor, spacing: float | Sequence[float] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        """g, Γ, ∂g and the indices of the inner points as rows, and the relative error of ∂g."""
        g, gamma = square("metric", metric), square("connection", connection)
        d = g.shape[-1]
        if g.ndim != d + 2 or gamma.shape != (*g.shape[:-2], d, d, d) or min(g.shape[:d]) < 6:
            raise ValidationError(
                f"a grid of metrics (*sizes, {d}, {d}) has {d} sizes ≥ 6 and its connection one axis more; "
                f"got {tuple(g.shape)} and {tuple(gamma.shape)}"
            )
        try:
            steps = [float(spacing)] * d if isinstance(spacing, int | float) else [float(h) for h in spacing or ()]
        except (TypeError, ValueError):
            steps = []
        if len(steps) != d or any(not 0 < h < float("inf") for h in steps):
            raise ValidationError(f"spacing is a positive number, or {d} of them, not {spacing}")
        slope, error = _grid_derivative(g, steps)
        inner = (slice(2, -2),) * d
        sizes = slope.shape[:d]
        where = torch.cartesian_prod(*[torch.arange(2, 2 + s) for s in sizes]).reshape(-1, d)
        flat_g, flat_gamma = g[inner].reshape(-1, d, d), gamma[inner].reshape(-1, d, d, d)
        scale = flat_g.abs().amax((1, 2)).clamp_min(torch.finfo(g.dtype).tiny)
        relative = float((error.reshape(-1, d, d, d).amax((1, 2, 3)) / scale).max())
        return flat_g, flat_gamma, slope.reshape(-1, d, d, d), where, relative

    def check_curvature_bounds(
        self,
        metric: Field | RiemannianStructure,
        bounds: tuple[float, float],
        points: Tensor,
        tolerance: float | None = None,
        *,
        starts: int = 16,
    ) -> Verdict | Undecided:
        """Whether every sectional curvature at ``points`` (N, d), d ≥ 2, lies in ``bounds`` within the tolerance.

        ``metric``: g: (N, d) → (N, d, d), or its `RiemannianStructure`.
        Holds only if it is proved for all planes: by the extremes of the curvature operator on planes for d ≤ 4
        (Thorpe's trick for d = 4, a 1-dimensional concave search), by its eigenvalues for d > 4, which bound the
        curvature but need not be attained. Fails only with a plane: a local extreme from ``starts`` random and d
        coordinate directions. Proved up to the rounding of the curvature, P2.

        Where neither is found, the answer is `Undecided`, which is neither true nor false: then
        ``if check_curvature_bounds(...)`` raises `AnalysisError`. Ask ``isinstance(answer, Undecided)`` first, whose
        ``reason`` says how far planes reach and what is still allowed; more ``starts`` may find a plane, and wider
        bounds may be proved.

        ``tolerance`` and ``residual`` are in the unit of the curvature, 1/length². Witness: `PlaneWitness`.
        Raises `ValidationError`, also where the metric is not positive definite.
        """
        room = tolerance_of(tolerance, self.tolerance)
        low, high = (float(b) for b in bounds)
        if not low <= high:
            raise ValidationError(f"bounds ({low}, {high}) hold no curvature")
        if starts < 0:
            raise ValidationError(f"starts is {starts}", hint="0 starts from the coordinate directions alone")
        where = _point_batch(points)
        d = where.shape[-1]
        if d < 2:
            raise ValidationError("a line has no sectional curvature: the points need 2 or more coordinates")
        metric = metric.metric if isinstance(metric, RiemannianStructure) else metric
        g = _at_points("metric", metric(where), (len(where), d, d))
        factor, info = torch.linalg.cholesky_ex(g)
        if bool(info.any()):
            raise ValidationError(f"the metric is not positive definite at point {int(info.argmax())}")
        riemann = finite("the curvature", curvature_of(metric, where).riemann_lowered)
        frame = torch.linalg.inv(factor)
        framed = torch.einsum("nai,nbj,nck,nel,nijkl->nabce", frame, frame, frame, frame, riemann)
        proven, found = 0.0, float("-inf")
        witness: PlaneWitness | None = None
        for point in framed:
            least, most = _proven_range(point)
            proven = max(proven, low - least, most - high)
        for sign, bound in ((-1.0, low), (1.0, high)):
            value, n, u, v = _plane_extremes(framed, starts, sign)
            if witness is None or sign * (value - bound) > found:
                found = sign * (value - bound)
                place = tuple(where[n].tolist())
                witness = PlaneWitness(place, u @ frame[n], v @ frame[n], g[n], riemann[n], value, (low, high))
        if proven > room >= found:
            reason = f"planes reach {max(found, 0.0):.3g} beyond, the curvature operator allows {proven:.3g}"
            return Undecided(f"{starts + d} starting directions and the curvature operator's eigenvalues", reason)
        residual = proven if proven <= room else found
        statement = f"sectional curvature in [{low:g}, {high:g}]"
        return judge(statement, residual, room, witness, "P2", (f"at the {len(where)} points given",))
