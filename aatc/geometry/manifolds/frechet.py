"""The weighted Fréchet mean, with derivatives by the implicit function theorem."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.manifold import CutLocusError, GeometryError, Manifold, scalar
from aatc.geometry.manifolds.means import counted, reachable
from aatc.geometry.manifolds.stereographic import wide


class MeanError(GeometryError):
    """A Fréchet mean that was not found, or is not unique. ``indices`` are the entries of the batch, where known."""

    def __init__(self, message: str, indices: list[tuple[int, ...]]) -> None:
        super().__init__(message)
        self.indices = indices


@dataclass(frozen=True)
class FrechetMean:
    """``point`` (..., *P), with what is known of it.

    ``converged`` (...): the gradient of ½ Σ w dist² is within the tolerance, and the dtype has coordinates for the mean
    that tell it from others a twentieth of the radius of curvature away (`Hyperboloid` far out has not). ``unique``
    (...): proved to be the only mean, all points that have a weight lying within the manifold's ``convexity_radius`` of
    it; False says that nothing is proved. ``variance`` Σ w dist² (...), differentiable as ``point`` is, ``residual``
    the norm of the gradient (...), ``iterations`` the steps taken.
    """

    point: Tensor
    converged: Tensor
    unique: Tensor
    variance: Tensor
    residual: Tensor
    iterations: int


def _indices(bad: Tensor) -> list[tuple[int, ...]]:
    return [tuple(int(i) for i in row) for row in bad.nonzero()]


def _share(manifold: Manifold, weights: Tensor) -> Tensor:
    return weights.reshape(*weights.shape, *[1] * manifold.point_ndim)


def _pull(manifold: Manifold, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Σ w log_mean(x), minus the gradient of ½ Σ w dist²."""
    axis = -1 - manifold.point_ndim
    logs = manifold.log(mean.unsqueeze(axis), points)
    return (_share(manifold, weights) * logs).sum(axis)


def _variance(manifold: Manifold, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    return (weights * manifold.squared_dist(mean.unsqueeze(-1 - manifold.point_ndim), points)).sum(-1)


def _heaviest(manifold: Manifold, points: Tensor, weights: Tensor) -> Tensor:
    """The points, and in place of those of weight 0 the one of the largest weight."""
    index = _share(manifold, weights.argmax(-1, keepdim=True))
    heaviest = torch.take_along_dim(points, index, -1 - manifold.point_ndim)
    return torch.where(_share(manifold, weights == 0), heaviest, points)


def _descend(
    manifold: Manifold, points: Tensor, weights: Tensor, tolerance: float, most: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Steepest descent with a step per entry of the batch, which shrinks where the gradient grew."""
    axis, eps = -1 - manifold.point_ndim, torch.finfo(points.dtype).eps
    mean = manifold.projection((_share(manifold, weights) * points).sum(axis))
    pull = _pull(manifold, mean, points, weights)
    size, taken = manifold.norm(mean, pull), 0
    largest = mean.abs().amax(tuple(range(-manifold.point_ndim, 0)))
    bound = tolerance * _variance(manifold, mean, points, weights).sqrt() + 16 * eps * (1 + largest)
    step = torch.ones_like(size)
    for taken in range(1, most + 1):
        going = ~(size <= bound)
        if not bool(going.any()):
            taken -= 1
            break
        tried = manifold.exp(mean, _share(manifold, step) * pull)
        then = _pull(manifold, tried, points, weights)
        grown = manifold.norm(tried, then)
        better = going & (grown < size)
        chosen = _share(manifold, better)
        mean, pull = torch.where(chosen, tried, mean), torch.where(chosen, then, pull)
        size = torch.where(better, grown, size)
        step = torch.where(better, (1.25 * step).clamp_max(1.0), step / 2)
        if bool((step < 1e-6).all()):
            break
    return mean, size, bound, taken


@dataclass(frozen=True)
class _Newton:
    """Steps of Newton's method from about a mean: with the derivative of the pull by the mean, A, inverted.

    ``frame``: orthonormal tangent vectors (..., n, D) and the rows (..., n, D) that take a tangent vector to its
    components; None where A is that of ambient coordinates, (..., D, D), minus the identity beside the tangent space.
    """

    manifold: Manifold
    inverse: Tensor
    frame: tuple[Tensor, Tensor] | None

    def __call__(self, mean: Tensor, pull: Tensor) -> Tensor:
        """The mean after a step."""
        if self.frame is not None:
            vectors, rows = self.frame
            change = vectors.mT @ (self.inverse @ (rows @ pull.unsqueeze(-1)))
            return self.manifold.retraction(mean, -change.squeeze(-1))
        flat = pull.flatten(-self.manifold.point_ndim) if self.manifold.point_ndim > 1 else pull
        change = -(self.inverse @ flat.unsqueeze(-1)).reshape(pull.shape)
        return self.manifold.retraction(mean, self.manifold.tangent_projection(mean, change))


def _newton(manifold: Manifold, mean: Tensor, points: Tensor, weights: Tensor) -> tuple[_Newton, Tensor]:
    """Newton's method at ``mean``, and whether A is negative definite there, (...), as it is at a minimum that does not
    degenerate."""
    axis = -1 - manifold.point_ndim
    frame = None if manifold._frame is None else manifold._frame(mean)
    unit, at = _units(manifold, mean), mean.unsqueeze(axis)
    tangents = manifold.tangent_projection(at, unit) if frame is None else frame[0]
    columns = []
    for tangent in tangents.unbind(axis):  # one direction at a time: no more memory than the points take
        columns.append(torch.func.jvp(lambda m: _pull(manifold, m, points, weights), (mean,), (tangent,))[1])
    moved = torch.stack(columns, axis)
    if frame is None:
        beside = manifold.tangent_projection(at, moved) - (unit - tangents)
        matrix = (beside.flatten(-manifold.point_ndim) if manifold.point_ndim > 1 else beside).mT
    else:
        matrix = frame[1] @ moved.mT
    strictly = torch.linalg.eigvals(matrix).real.amax(-1) < 0
    return _Newton(manifold, torch.linalg.pinv(matrix), frame), strictly


def _units(manifold: Manifold, mean: Tensor) -> Tensor:
    """The unit vectors of the ambient coordinates (..., D, *P)."""
    shape = mean.shape[-manifold.point_ndim :]
    size = shape.numel()
    unit = torch.eye(size, dtype=mean.dtype, device=mean.device).reshape(size, *shape)
    return unit.expand(*mean.shape[: -manifold.point_ndim], size, *shape)


def frechet_mean(
    manifold: Manifold,
    points: Tensor,
    weights: Tensor | None = None,
    *,
    tolerance: float | None = None,
    max_iterations: int = 500,
    strict: bool = True,
) -> FrechetMean:
    """The point that minimises Σ w_m dist²(·, x_m), of points (..., M, *P) with weights (..., M) that broadcast.

    Weights are not negative and are divided by their sum; without them every point counts alike. ``tolerance`` bounds
    the gradient relative to √variance, by default ε^¾ of the dtype. The result is differentiable twice in points and
    weights, in every mode, by the implicit function theorem, however many steps were taken. Points have one mean
    wherever curvature is not positive (Euclidean and hyperbolic space, SPD), and on the simplex; elsewhere look at
    ``unique``. Sources: H. Karcher, "Riemannian center of mass and mollifier smoothing", 1977; B. Afsari, "Riemannian
    L^p center of mass", 2011 (the radius of uniqueness).

    Raises: MeanError where there is no point to start from (antipodes of equal weight) and, unless ``strict`` is False,
    where the gradient stays above the tolerance or what is found is no strict minimum; as `normalised_weights`.
    """
    points, weights, blank = counted(manifold, points, weights)
    axis, eps, dtype = -1 - manifold.point_ndim, torch.finfo(weights.dtype).eps, weights.dtype
    batch = torch.broadcast_shapes(points.shape[:axis], weights.shape[:-1])
    points = wide(points.to(dtype)).expand(*batch, *points.shape[axis:])
    weights, blank = (t.expand(*batch, t.shape[-1]) for t in (wide(weights), blank))
    tolerance = eps**0.75 if tolerance is None else float(scalar("tolerance", tolerance, positive=True))
    if not isinstance(max_iterations, int) or max_iterations < 1:
        raise GeometryError(f"max_iterations is a positive integer, got {max_iterations!r}")
    shares = weights.detach()
    fixed = _heaviest(manifold, points.detach(), shares)
    try:
        with torch.no_grad():
            mean, residual, bound, taken = _descend(manifold, fixed, shares, tolerance, max_iterations)
            newton, strictly = _newton(manifold, mean, fixed, shares)
            for _ in range(2):
                mean, residual = _polished(newton, mean, fixed, shares, residual)
            clear = torch.as_tensor(manifold._blur(mean, eps), device=mean.device) <= 0.05
            converged = (residual <= bound) & clear
    except CutLocusError as error:
        raise MeanError(f"the points have no mean that is unique: {error}", []) from error
    except GeometryError as error:
        raise MeanError(f"there is no mean to start from: {error}", []) from error
    radius = torch.as_tensor(manifold.convexity_radius()).detach().to(mean.device)
    # where one mean is certain, so is the minimum, and rounding of matrices far from the identity says nothing
    bad = ~(converged & (strictly | (radius == math.inf)))
    if strict and bool(bad.any()):
        which = _indices(bad)
        text = "is not a strict minimum" if bool(converged.all()) else f"was not found within {taken} steps"
        if not bool(clear.all()):
            text = f"lies where {dtype} has no coordinates for it"
        raise MeanError(
            f"the mean at batch index {which[0]} of {len(which)} {text} (gradient {float(residual.max()):.3g}); take "
            "points closer together, more max_iterations, or strict=False to see what was reached",
            which,
        )
    far = manifold.dist(mean.unsqueeze(axis), fixed).amax(-1)
    used, cut = reachable(manifold, mean, points, weights, blank)
    point = _implicit(newton, mean, used, weights)
    variance = _variance(manifold, point, used, weights)
    if bool(cut.any()):  # there is no log to these, but a distance: the slope by their weight
        where = torch.where(_share(manifold, cut), points, used).detach()
        ways = manifold.dist(mean.unsqueeze(axis), where).square()
        variance = variance + (torch.where(cut, ways, torch.zeros_like(ways)) * weights).sum(-1)
    numbers = (t.to(dtype) for t in (point, variance, residual))
    point, variance, residual = numbers
    return FrechetMean(point, converged, converged & (far < radius), variance, residual, taken)


def _polished(
    newton: _Newton, mean: Tensor, points: Tensor, weights: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean with the digits that descent left, and its gradient."""
    manifold = newton.manifold
    tried = newton(mean, _pull(manifold, mean, points, weights))
    grown = manifold.norm(tried, _pull(manifold, tried, points, weights))
    better = grown < residual
    return torch.where(_share(manifold, better), tried, mean), torch.where(better, grown, residual)


def _implicit(newton: _Newton, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """The mean as a function of points and weights: each step with the matrix at the solution makes one more of its
    derivatives exact, and leaves its value."""
    for _ in range(2):
        pull = _pull(newton.manifold, mean, points, weights)
        mean = newton(mean, pull - pull.detach())
    return mean
