"""Derivatives of a metric field in one chart: the Levi-Civita connection and the curvature tensor.

A metric is a function g of points (..., n) with values (..., n, n), made of torch operations, that treats the points
of a batch apart. Its derivatives are taken by reverse mode only, with torch.func.vjp, and nest to any order: in
torch 2.13 the forward-mode derivatives of ``linalg.solve``, ``linalg.det`` and ``layer_norm`` are right at first
order, and wrong without a word once they are differentiated again.

Source: C. Misner, K. Thorne, J. Wheeler, "Gravitation", 1973, chapters 8, 13 and 14, whose signs are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, PointShapeError

Metric = Callable[[Tensor], Tensor]


class MetricError(GeometryError):
    """A metric that is not symmetric positive definite at a point; ``index`` is the point's place in the batch."""

    def __init__(self, message: str, *, index: tuple[int, ...], eigenvalue: float) -> None:
        super().__init__(message)
        self.index = index
        self.eigenvalue = eigenvalue


def pullback(f: Callable[..., Tensor], *x: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """f(*x), and the map of a cotangent of the value to those of the arguments."""
    pair = torch.func.vjp(f, *x)
    return pair[0], pair[1]


Linear = Callable[[Tensor], Tensor]


def transposes(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Linear, Linear]:
    """f(x), the transposed derivative of f at x, by vjp, and the derivative, as the transpose of that linear map."""

    def reaching(y: Tensor) -> Tensor:
        # A value that does not depend on y would leave autograd nothing to transpose.
        value = f(y)
        return value + (0 * y).sum().to(value.dtype)

    value, pull = pullback(reaching, x)
    _, push = pullback(lambda w: pull(w)[0], torch.zeros_like(value))
    return value, lambda w: pull(w)[0], lambda u: push(u)[0]


def directional_derivative(f: Callable[[Tensor], Tensor], x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and its derivative at ``x`` along ``u``, which has the shape of ``x``."""
    value, _, push = transposes(f, x)
    return value, push(u)


def jacobian(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function x ↦ ∂_k f(x), (..., *out, n) for values (..., *out), by n directional derivatives at once."""

    def derivative(x: Tensor) -> Tensor:
        n = x.shape[-1]
        basis = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, *[1] * (x.dim() - 1), n).expand(n, *x.shape)
        return torch.func.vmap(transposes(f, x)[2], out_dims=-1)(basis)

    return derivative


def _gradients_by_component(metric: Metric) -> Metric:
    """The function x ↦ ∂_k g_ij, (..., i, j, k), by one vjp for each i, j.

    Dearer than `jacobian`, but of one order of differentiation less, which every torch operation gets right.
    """

    def derivative(x: Tensor) -> Tensor:
        n = x.shape[-1]
        value, pull = pullback(metric, x)
        units = torch.eye(n * n, dtype=x.dtype, device=x.device).reshape(n * n, *[1] * (x.dim() - 1), n, n)
        rows = torch.func.vmap(lambda w: pull(w)[0])(units.expand(n * n, *value.shape))
        return rows.movedim(0, -2).reshape(*value.shape, n)

    return derivative


def require_full_precision(tensor: Tensor, what: str) -> None:
    """Refuse half precision, in which torch factors no matrices, and other dtypes that are not floating."""
    if not tensor.is_floating_point() or torch.finfo(tensor.dtype).bits < 32:
        raise PointShapeError(f"{what} need linear algebra, which {tensor.dtype} lacks: take float32 or float64")


def spd_solve(g: Tensor, right: Tensor) -> Tensor:
    """g⁻¹ applied to the columns of ``right`` (..., n, m); NaN where g is not positive definite.

    Raises: PointShapeError for half precision.
    """
    require_full_precision(g, "metrics")
    factor, info = torch.linalg.cholesky_ex(g)
    solution = torch.cholesky_solve(right, factor)
    return torch.where((info == 0)[..., None, None], solution, torch.full_like(solution, torch.nan))


def require_metric(g: Tensor) -> None:
    """Raise `MetricError` unless every g of (..., n, n) is finite, symmetric and positive definite."""
    if g.numel() == 0:
        return
    require_full_precision(g, "metrics")
    with torch.no_grad():
        size = g.abs().amax((-2, -1)).clamp_min(torch.finfo(g.dtype).tiny)
        skew = (g - g.mT).abs().amax((-2, -1)) > torch.finfo(g.dtype).eps ** 0.5 * size
        finite = g.isfinite().all(-1).all(-1)
        lowest = torch.linalg.eigvalsh(torch.where(finite[..., None, None], g, torch.zeros_like(g)))[..., 0]
        bad = skew | ~finite | ~(lowest > 0)
    if not bool(bad.any()):
        return
    index = tuple(int(i) for i in bad.nonzero()[0])
    value = float(lowest[index]) if bool(finite[index]) else float("nan")
    fault = "not finite" if value != value else "not symmetric" if bool(skew[index]) else "not positive definite"
    raise MetricError(
        f"the metric at batch index {index} is {fault} (smallest eigenvalue {value:.3g}): "
        "is the point inside the chart?",
        index=index,
        eigenvalue=value,
    )


def of_shape(field: Metric, axes: int = 1, what: str = "the metric") -> Metric:
    """``field`` with its values refused unless (..., n, and n for each of ``axes``) of the points' dtype."""

    def checked(x: Tensor) -> Tensor:
        value = field(x)
        if value.shape != (*x.shape, *[x.shape[-1]] * axes) or value.dtype != x.dtype:
            raise PointShapeError(
                f"{what} takes points {tuple(x.shape)} {x.dtype} to {tuple(value.shape)} {value.dtype}: it must keep "
                f"the dtype and add {axes} of the last axis"
            )
        return value

    return checked


def metric_derivatives(metric: Metric, x: Tensor) -> tuple[Tensor, Tensor]:
    """∂_k g_ij as (..., i, j, k) and ∂_m∂_k g_ij as (..., i, j, k, m)."""
    first = _gradients_by_component(metric)
    return first(x), jacobian(first)(x)


def lowered_symbols(first: Tensor) -> Tensor:
    """Christoffel symbols of the first kind Γ_{kij} = ½(∂_i g_kj + ∂_j g_ki − ∂_k g_ij), (..., k, i, j)."""
    return 0.5 * (
        torch.einsum("...kji->...kij", first)
        + torch.einsum("...kij->...kij", first)
        - torch.einsum("...ijk->...kij", first)
    )


def christoffel_of(metric: Metric, x: Tensor) -> Tensor:
    """Γ^k_ij = g^{kl} Γ_{lij}, (..., k, i, j), by differentiating the metric."""
    lowered = lowered_symbols(jacobian(metric)(x))
    raised: Tensor = spd_solve(metric(x), lowered.flatten(-2)).unflatten(-1, lowered.shape[-2:])
    return raised


def lowered_connection_of(metric: Metric, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Γ_{lij}u^i v^j = ½(∂_u(g v) + ∂_v(g u) − grad uᵀgv)_l, (..., n), for tensors of one shape, in O(n²) per point."""

    def lowered(w: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda y: torch.einsum("...ij,...j->...i", metric(y), w)

    _, pull, push = transposes(lowered(v), x)
    along_u = push(u)
    along_v = along_u if u is v else directional_derivative(lowered(u), x, v)[1]
    return 0.5 * (along_u + along_v - pull(u))


def connection_of(metric: Metric, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Γ^k_ij u^i v^j, (..., n), for tensors of one shape: Γ is never formed, only g."""
    return spd_solve(metric(x), lowered_connection_of(metric, x, u, v).unsqueeze(-1)).squeeze(-1)


def derivatives_by_state(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """∂f_k/∂x_m and ∂f_k/∂v_m, both (..., k, m), of a function (..., n) of points and velocities (..., n)."""
    n = x.shape[-1]
    value, pull = pullback(f, x, v)
    units = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, *[1] * (x.dim() - 1), n)
    by_x, by_v = torch.func.vmap(pull)(units.expand(n, *value.shape))
    return by_x.movedim(0, -2), by_v.movedim(0, -2)


def acceleration_derivatives_of(metric: Metric, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """∂a/∂x and ∂a/∂v, (..., n, n), of the geodesic acceleration a = −Γ(v, v).

    From the derivative of g a + Γ(v, v) = 0 in lowered form: nothing is differentiated through the solution.
    """
    a = -connection_of(metric, x, v, v)

    def balance(y: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("...ij,...j->...i", metric(y), a) + lowered_connection_of(metric, y, w, w)

    g = metric(x)
    by_x, by_v = derivatives_by_state(balance, x, v)
    return -spd_solve(g, by_x), -spd_solve(g, by_v)


@dataclass(frozen=True)
class CurvatureTensor:
    """The curvature at points (...): R(e_j, e_k) e_i = R^l_{ijk} e_l, R(u, v) = ∇_u∇_v − ∇_v∇_u − ∇_[u,v].

    ``metric`` (..., n, n); ``riemann`` R^l_{ijk} = ∂_jΓ^l_{ki} − ∂_kΓ^l_{ji} + Γ^l_{jm}Γ^m_{ki} − Γ^l_{km}Γ^m_{ji} and
    ``riemann_lowered`` R_{lijk}, both (..., l, i, j, k); ``ricci`` R_{ik} = R^j_{ijk}, (..., n, n); ``scalar``
    g^{ik}R_{ik}, (...). The round sphere has positive curvature.
    """

    metric: Tensor
    riemann: Tensor
    riemann_lowered: Tensor
    ricci: Tensor
    scalar: Tensor

    def sectional(self, u: Tensor, v: Tensor) -> Tensor:
        """⟨R(u, v)v, u⟩ / (⟨u, u⟩⟨v, v⟩ − ⟨u, v⟩²), (...), the curvature of the plane of ``u`` and ``v`` (..., n).

        Raises: GeometryError where u and v are dependent or not finite; PointShapeError.
        """
        n = self.metric.shape[-1]
        try:
            torch.broadcast_shapes(self.metric.shape[:-1], u.shape, v.shape)
        except RuntimeError as error:
            raise PointShapeError(
                f"planes are of two vectors (..., {n}), got {[tuple(w.shape) for w in (u, v)]}"
            ) from error
        if u.shape[-1:] != (n,) or v.shape[-1:] != (n,) or {u.dtype, v.dtype} != {self.metric.dtype}:
            raise PointShapeError(
                f"planes are of two vectors (..., {n}) of {self.metric.dtype}, got {tuple(u.shape)} {u.dtype} and "
                f"{tuple(v.shape)} {v.dtype}"
            )
        # The value does not depend on lengths; their squares would overflow or vanish.
        u, v = (w / w.detach().abs().amax(-1, keepdim=True) for w in (u, v))
        above = torch.einsum("...lijk,...l,...i,...j,...k->...", self.riemann_lowered, u, v, u, v)
        squares = [torch.einsum("...ij,...i,...j->...", self.metric, a, b) for a, b in ((u, u), (v, v), (u, v))]
        product = squares[0] * squares[1]
        area = product - squares[2].square()
        if not bool((area > 16 * torch.finfo(area.dtype).eps * product).all()):
            raise GeometryError("two dependent vectors span no plane: sectional curvature needs independent ones")
        return above / area


def curvature_of(metric: Metric, x: Tensor) -> CurvatureTensor:
    """The curvature from g, ∂g and ∂²g (Misner, Thorne, Wheeler, equation 14.6 and exercise 14.4).

    R_{lijk} = ½(∂_i∂_j g_lk + ∂_l∂_k g_ij − ∂_i∂_k g_lj − ∂_l∂_j g_ik) + Γ_{mij}Γ^m_{lk} − Γ_{mik}Γ^m_{lj}.
    """
    g = metric(x)
    first, second = metric_derivatives(metric, x)
    lowered = lowered_symbols(first)
    raised = spd_solve(g, lowered.flatten(-2)).unflatten(-1, lowered.shape[-2:])
    # ∂_a∂_b g_cd sits at (..., c, d, a, b): each letter of the target names the axis it comes from.
    bent = (
        torch.einsum("...lkij->...lijk", second)
        + torch.einsum("...ijlk->...lijk", second)
        - torch.einsum("...ljik->...lijk", second)
        - torch.einsum("...iklj->...lijk", second)
    )
    twisted = torch.einsum("...mij,...mlk->...lijk", lowered, raised)
    down = 0.5 * bent + twisted - torch.einsum("...likj->...lijk", twisted)
    up = spd_solve(g, down.flatten(-3)).unflatten(-1, down.shape[-3:])
    ricci = torch.einsum("...jijk->...ik", up)
    scalar = torch.diagonal(spd_solve(g, ricci), dim1=-2, dim2=-1).sum(-1)
    return CurvatureTensor(g, up, down, ricci, scalar)
