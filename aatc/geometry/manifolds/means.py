"""Weighted means in closed form, which attention over manifolds aggregates by, as functions of points and weights.

Points are (..., M, n) and weights (..., M), not negative, whose batch axes broadcast; they need not sum to 1, and
without them every point counts alike. N queries that share M points give weights (..., N, M) and points (..., 1, M, n),
of which nothing of size N·M·n is made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, Manifold, PointShapeError, Scalar, dot, holds, of, root
from aatc.geometry.manifolds.compensated import less_multiple, one_minus_square
from aatc.geometry.manifolds.hyperbolic import Hyperboloid, PoincareBall, lorentz
from aatc.geometry.manifolds.stereographic import wide
from aatc.geometry.preconditions import require


def normalised_weights(manifold: Manifold, points: Tensor, weights: Tensor | None) -> Tensor:
    """Weights (..., M) that sum to 1, after a look at shapes and numbers.

    Raises: PointShapeError for points without an axis to average over and weights that do not fit; GeometryError for
    weights that are negative, not finite, or all 0.
    """
    if not isinstance(manifold, Manifold):
        raise GeometryError(f"means are of a Manifold, such as Hyperboloid(), got {manifold!r}")
    manifold._check(points)
    axis = -1 - manifold.point_ndim
    if points.ndim < -axis or points.shape[axis] == 0:
        raise PointShapeError(f"a mean needs points of shape (..., M, *P), M ≥ 1, got {tuple(points.shape)}")
    count = points.shape[axis]
    if weights is None:
        return points.new_full((count,), 1 / count)
    if not isinstance(weights, Tensor):
        raise PointShapeError(f"weights are a tensor, got {type(weights).__name__}")
    if weights.ndim < 1 or weights.shape[-1] != count or not weights.is_floating_point():
        raise PointShapeError(f"{count} points need weights (..., {count}), got {tuple(weights.shape)} {weights.dtype}")
    try:
        torch.broadcast_shapes(weights.shape[:-1], points.shape[:axis])
    except RuntimeError as error:
        raise PointShapeError(
            f"weights of shape {tuple(weights.shape)} do not broadcast with points of shape {tuple(points.shape)}"
        ) from error
    total = weights.sum(-1, keepdim=True)
    bad = ~((weights >= 0).all(-1, keepdim=True) & total.isfinite() & (total > 0))
    total = require(total, bad, GeometryError, "weights are finite, not negative and not all 0")
    return (weights / total).to(torch.promote_types(weights.dtype, points.dtype))


def counted(manifold: Manifold, points: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Points (..., M, *P), weights (..., M) that sum to 1, and which of the points are blank, bool (..., M).

    Blank is what is off the manifold and has weight 0 throughout, as padding has: it counts for nothing, neither here
    nor in derivatives, and its coordinates come back as 0. Raises: as `normalised_weights`; in eager mode
    NotOnManifoldError for points off the manifold that have a weight.
    """
    shares = normalised_weights(manifold, points, weights)
    manifold._check_values(())
    off = ~manifold._near(points.detach())
    if weights is None:
        manifold._refuse(points, off)
        return points, shares, torch.zeros_like(off)
    used = weights.detach() > 0
    while used.ndim > off.ndim:
        used = used.any(0)
    for axis in range(-off.ndim, 0):  # queries that share their points
        if -axis <= used.ndim and off.shape[axis] == 1 < used.shape[axis]:
            used = used.any(axis, keepdim=True)
    manifold._refuse(points, off & used)
    blank = off & ~used
    points = torch.where(blank.reshape(*blank.shape, *[1] * manifold.point_ndim), torch.zeros_like(points), points)
    return points, normalised_weights(manifold, points, torch.where(blank, torch.zeros_like(weights), weights)), blank


def _sum(weights: Tensor, points: Tensor) -> Tensor:
    """Σ_m w_m x_m, (..., n)."""
    return torch.einsum("...m,...mn->...n", weights, points.to(weights.dtype))


#: √c x₀ up to which −c⟨Σwx, Σwx⟩, a difference of its squares, keeps ten digits of double precision.
_FAR = 1024.0
#: Numbers of a block of pairs.
_BLOCK = 2**22


def _is_far(height: Tensor) -> bool:
    """Whether sums of points with such √c x₀ cancel. A trace, which cannot tell, takes them for near."""
    return height.dtype == torch.float64 and not torch.compiler.is_compiling() and not holds(height <= _FAR)


def _pair_size(weights: Tensor, points: Tensor, half: Callable[[int, int], Tensor]) -> Tensor:
    """√(−c⟨Σwx, Σwx⟩) for weights (..., M) that sum to 1, as √(1 + 2 Σ w_i w_j sinh²(√c d_ij/2)): of terms that are not
    negative, pair by pair. ``half(i, k)``: sinh²(√c d/2) of points i to k and all, (..., k − i, M). (..., 1)."""
    count = points.shape[-2]
    step = max(1, _BLOCK // max(1, points.numel()))
    total = torch.zeros_like(weights[..., :1])
    for i in range(0, count, step):
        met = torch.einsum("...im,...m->...i", half(i, i + step), weights)
        total = total + (weights[..., i : i + step] * met).sum(-1, keepdim=True)
    bad = ~total.isfinite()
    return require(
        (1 + 2 * total).sqrt(), bad, GeometryError, "points are numbers whose distances double precision holds"
    )


def _half_sinh_square(x: Tensor, y: Tensor, c: Scalar) -> Tensor:
    """sinh(√c dist/2)² of points of the hyperboloid, (...), as `Hyperboloid` has it, with the part of x across y formed
    without rounding: that of y − x is one of |x|, and points far out may be apart by less."""
    xs, ys = x[..., 1:], y[..., 1:]
    xx, yy, xy, times = dot(xs, xs), dot(ys, ys), dot(xs, ys), x[..., :1] * y[..., :1]
    some = yy > 0
    square = torch.where(some, yy, torch.ones_like(yy))
    across = less_multiple(xs, xy / square, ys)
    across = across - dot(across, ys) / square * ys
    change, apart = ys - xs, xy < 0
    beside = (dot(change, change) + c * dot(across, across) * yy) / (1 + c * (times + xy.clamp_min(0)))
    opposite = (xx + yy + c * xx * yy) / (1 + c * times) - xy.clamp_max(0)
    return (torch.where(apart, opposite, beside) * c / 2).squeeze(-1)


def lorentz_centroid(points: Tensor, weights: Tensor | None = None, *, c: float | Tensor = 1.0) -> Tensor:
    """Σwx/(√c |Σwx|_L) on ``Hyperboloid(c)``: it minimises Σw(−2/c − 2⟨x, μ⟩_L).

    (..., M, n + 1) to (..., n + 1).

    Beyond distance 7/√c of the vertex the sum's length is added up over pairs of points, in M²n steps, where sums
    cancel; a trace does not look, and loses digits beyond 17/√c. Source: M. Law, R. Liao, J. Snell, R. Zemel,
    "Lorentzian distance learning for hyperbolic representations", 2019. Raises: as `normalised_weights`; GeometryError
    for points beyond about 170/√c, whose distances have no squares in double precision.
    """
    space = Hyperboloid(c)
    points, shares, _ = counted(space, points, weights)
    # −⟨Σwx, Σwx⟩ cancels far out, and so x₀ is computed again, as the maps do
    far, given = space.projection(wide(points)), wide(shares)
    total, scale = _sum(given, far), of(space.c, far)
    if _is_far(root(scale) * far[..., :1]):
        pairs = far[..., :, None, :], far[..., None, :, :]
        size = _pair_size(given, far, lambda i, k: _half_sinh_square(pairs[0][..., i:k, :, :], pairs[1], scale))
    else:
        size = (-lorentz(total, total) * scale).sqrt()
    return space.projection(total / size).to(shares.dtype)


def einstein_midpoint(points: Tensor, weights: Tensor | None = None, *, c: float | Tensor = 1.0) -> Tensor:
    """Σwγx/Σwγ with γ = 1/√(1 − c|x|²), of points of the Klein ball {c|x|² < 1}. (..., M, n) to (..., n).

    It is `lorentz_centroid` in Klein's coordinates x/x₀ of the hyperboloid, up to √c. Source: A. Ungar, "Analytic
    hyperbolic geometry", 2005; C. Gulcehre et al., "Hyperbolic attention networks", 2019.
    Raises: as `normalised_weights`.
    """
    ball = PoincareBall(c)
    points, shares, _ = counted(ball, points, weights)
    factor = shares / ball._gap(points).squeeze(-1).sqrt()
    return _sum(factor, points) / factor.sum(-1, keepdim=True)


def gyromidpoint(points: Tensor, weights: Tensor | None = None, *, c: float | Tensor = 1.0) -> Tensor:
    """½ ⊗ (Σwλx / Σw(λ − 1)), λ = 2/(1 − c|x|²), on ``PoincareBall(c)``: `lorentz_centroid` in its coordinates.

    (..., M, n) to (..., n), to a few roundings of its coordinates however far out: see `lorentz_centroid`. Source: A.
    Ungar, "A gyrovector space approach to hyperbolic geometry", 2009; R. Shimizu, Y. Mukuta, T. Harada, "Hyperbolic
    neural networks++", 2021. Raises: as `normalised_weights`; GeometryError for far points that are not inside.
    """
    ball = PoincareBall(c)
    points, weights, _ = counted(ball, points, weights)
    dtype, weights, points = weights.dtype, wide(weights), wide(points)  # the difference under the root cancels far out
    gap, scale = ball._gap(points), of(ball.c, points)
    far = _is_far(1 / gap)
    if far:  # the rounding of a length is not that of what it leaves of 1
        gap = one_minus_square(points, scale)
        gap = require(gap, ~(gap > 0), GeometryError, "points are inside the ball")
    factor = 2 / gap.squeeze(-1)
    top = _sum(weights * factor, points)
    bottom = (weights * (factor - 1)).sum(-1, keepdim=True)

    def half(i: int, k: int) -> Tensor:
        change = points[..., i:k, None, :] - points[..., None, :, :]
        return (scale * dot(change, change) / (gap[..., i:k, None, :] * gap[..., None, :, :])).squeeze(-1)

    # ½ ⊗ z = z/(1 + √(1 − c|z|²)), with bottom² (1 − c|z|²) as it is before it is divided
    if far:
        rest = _pair_size(weights, points, half)
    else:
        rest = (bottom.square() - scale * dot(top, top)).clamp_min(0).sqrt()
    return ball.projection((top / (bottom + rest)).to(dtype))


def reachable(
    manifold: Manifold, base: Tensor, points: Tensor, weights: Tensor, blank: Tensor
) -> tuple[Tensor, Tensor]:
    """Points (..., M, *P) with ``base`` (..., *P) in place of what is blank, and of what has weight 0 and no ``log``
    from it; and which those last ones are, bool (..., M)."""
    at = base.detach().unsqueeze(-1 - manifold.point_ndim)
    mask = lambda m: m.reshape(*m.shape, *[1] * manifold.point_ndim)  # noqa: E731
    points = torch.where(mask(blank), at.to(points.dtype), points)
    idle = weights.detach() == 0
    if holds(~idle, unseen=False):
        return points, torch.zeros_like(idle)
    cut = idle & manifold._unreachable(at, points.detach())
    return torch.where(mask(cut), at.to(points.dtype), points), cut


def tangent_mean(
    manifold: Manifold, points: Tensor, weights: Tensor | None = None, *, base: Tensor | None = None
) -> Tensor:
    """exp_b(Σ w log_b x), (..., M, *P) to (..., *P): one step of the Fréchet mean from ``base`` (..., *P).

    Without a base, that is the `projection` of the weighted mean in ambient coordinates. Raises: as
    `normalised_weights`; what ``log`` and ``projection`` of the manifold raise.
    """
    points, weights, blank = counted(manifold, points, weights)
    axis = -1 - manifold.point_ndim
    share = weights.reshape(*weights.shape, *[1] * manifold.point_ndim)
    if base is None:
        base = manifold.projection((share * points).sum(axis))
    manifold._check(base)
    manifold._check(points, base.unsqueeze(axis))
    points, _ = reachable(manifold, base, points, weights, blank)
    return manifold.exp(base, (share * manifold.log(base.unsqueeze(axis), points)).sum(axis))


def klein_from_poincare(x: Tensor, *, c: float | Tensor = 1.0) -> Tensor:
    """2x/(1 + c|x|²), the point of the Klein ball that is ``x`` of ``PoincareBall(c)``, (..., n)."""
    ball = PoincareBall(c)
    ball._check(x)
    ball._check_values((x,))
    return 2 * x / (1 + of(ball.c, x) * x.square().sum(-1, keepdim=True))


def poincare_from_klein(x: Tensor, *, c: float | Tensor = 1.0) -> Tensor:
    """x/(1 + √(1 − c|x|²)), the inverse of `klein_from_poincare`, (..., n)."""
    ball = PoincareBall(c)
    ball._check(x)
    ball._check_values((x,))
    return x / (1 + ball._gap(x).sqrt())
