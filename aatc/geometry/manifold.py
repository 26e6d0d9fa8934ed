"""What every manifold offers, the typed errors, and the quotients that are taken with care near zero.

A point is a tensor whose last axes (one, or two for matrices) are its ambient coordinates; every axis before
them is a batch axis, and batches broadcast. Results follow the device and dtype of the input. Distances are in
the unit of the metric: a sphere of radius 2 has half circumference 2π.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from aatc.geometry.errors import CutLocusError as CutLocusError
from aatc.geometry.errors import GeometryError as GeometryError
from aatc.geometry.errors import NotOnManifoldError as NotOnManifoldError
from aatc.geometry.errors import PointShapeError as PointShapeError
from aatc.geometry.errors import RangeError as RangeError

#: A parameter of a geometry: a number, or a tensor of one entry that may learn.
Scalar = float | Tensor


def holds(condition: Tensor, *, unseen: bool = True) -> bool:
    """Whether a condition holds for all entries, in eager mode; ``unseen`` where nobody can look: while torch.compile
    or torch.func.vmap traces, for tensors without data, and while a CUDA graph is recorded."""
    if torch.compiler.is_compiling() or (condition.is_cuda and torch.cuda.is_current_stream_capturing()):
        return unseen
    try:
        return bool(condition.all())
    except RuntimeError:
        return unseen


def scalar(what: str, value: Any, *, positive: bool = False) -> Scalar:
    """A parameter as it is kept: a number as a float, a tensor of shape () or (1,) as it is, so that it learns.

    Raises: GeometryError, named by ``what``, for another type or shape, for NaN and infinity, and with ``positive`` for
    what is not; of a tensor these are looked at again when it is used (`require_scalar`).
    """
    if isinstance(value, Tensor):
        if value.ndim > 1 or value.numel() != 1:
            raise GeometryError(f"{what} is one number, got a tensor of shape {tuple(value.shape)}: make one per value")
        if not value.is_floating_point():
            raise GeometryError(f"{what} is a tensor of {value.dtype}: convert it, say with .double()")
    else:
        if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
            raise GeometryError(f"{what} is a number or a tensor of one entry, got {value!r}")
        try:
            value = float(value)
        except (OverflowError, TypeError, ValueError) as error:
            raise GeometryError(f"{what} is {value!r}, which is no number of double precision: {error}") from error
    kept: Scalar = value
    require_scalar(what, kept, positive=positive)
    return kept


def require_scalar(what: str, value: Scalar, *, positive: bool = False) -> None:
    """Refuse a parameter that is NaN, infinite, or not positive; of tensors in eager mode alone (`holds`)."""
    if isinstance(value, Tensor):
        seen = value.detach()
        good = holds((seen > 0) & seen.isfinite() if positive else seen.isfinite())
    else:
        good = math.isfinite(value) and (value > 0 or not positive)
    if not good:
        wanted = "positive and finite" if positive else "finite"
        raise GeometryError(f"{what} is {wanted}, got {shown(value)}")


def shown(value: Scalar) -> str:
    """A parameter in a message or a repr."""
    if not isinstance(value, Tensor):
        return repr(value)
    if torch.compiler.is_compiling() or value.device.type == "meta":
        return "a tensor"
    try:
        return f"tensor({value.item()!r})"
    except RuntimeError:
        return "a tensor"


def of(value: Scalar, x: Tensor) -> Scalar:
    """A parameter for formulas of ``x``: a tensor without axes, of no less digits than ``x`` has."""
    if not isinstance(value, Tensor):
        return value
    return value.reshape(()).to(torch.promote_types(value.dtype, x.dtype))


def root(value: Scalar) -> Scalar:
    """√value of a parameter."""
    return torch.sqrt(value) if isinstance(value, Tensor) else math.sqrt(value)


def quotient(x: Tensor, ratio: Callable[[Tensor], Tensor], c2: float, c4: float, c6: float) -> Tensor:
    """An even function with a removable singularity at 0: ``ratio(x)``, or 1 + c2 x² + c4 x⁴ + c6 x⁶ for |x| < 0.01.

    The series leaves less than 1e-16, and its gradient at 0 is 0 and never NaN.
    """
    small = x.abs() < 0.01
    square = torch.where(small, x, torch.zeros_like(x)).square()
    series = 1 + square * (c2 + square * (c4 + square * c6))
    return torch.where(small, series, ratio(torch.where(small, torch.full_like(x, 0.5), x)))


Even = tuple[Callable[[Tensor], Tensor], float, float, float]
#: Even functions as `quotient`, `even` and `radial` take them: the function, and its series from x² on.
COS: Even = (torch.cos, -1 / 2, 1 / 24, -1 / 720)
SINC: Even = (lambda z: z.sin() / z, -1 / 6, 1 / 120, -1 / 5040)
INVERSE_SINC: Even = (lambda z: z / z.sin(), 1 / 6, 7 / 360, 31 / 15120)
ATANC: Even = (lambda z: z.atan() / z, -1 / 3, 1 / 5, -1 / 7)
COSH: Even = (torch.cosh, 1 / 2, 1 / 24, 1 / 720)
SINHC: Even = (lambda z: z.sinh() / z, 1 / 6, 1 / 120, 1 / 5040)
ASINHC: Even = (lambda z: z.asinh() / z, -1 / 6, 3 / 40, -5 / 112)
TANHC: Even = (lambda z: z.tanh() / z, -1 / 3, 2 / 15, -17 / 315)


def even(square: Tensor, ratio: Callable[[Tensor], Tensor], c2: float, c4: float, c6: float) -> Tensor:
    """An even function with value 1 at 0, of the square of its argument: `quotient`, smooth in what the square is made
    of, where the argument itself, as a length, has no second derivative at 0."""
    small = square < 1e-4
    near = torch.where(small, square, torch.zeros_like(square))
    series = 1 + near * (c2 + near * (c4 + near * c6))
    return torch.where(small, series, ratio(torch.where(small, torch.full_like(square, 0.25), square).sqrt()))


def radial(v: Tensor, ratio: Callable[[Tensor], Tensor], c2: float, c4: float, c6: float) -> Tensor:
    """`even` of |v| over the last axis, which is kept with size 1; the square of a large |v| need not be a number."""
    small = length(v.detach()) < 0.01
    near = torch.where(small, v, torch.zeros_like(v))
    square = dot(near, near)
    series = 1 + square * (c2 + square * (c4 + square * c6))
    far = torch.where(small, torch.full_like(v, 0.5 / v.shape[-1] ** 0.5), v)
    return torch.where(small, series, ratio(length(far)))


def sinc(x: Tensor) -> Tensor:
    """sin(x)/x."""
    return quotient(x, *SINC)


def inverse_sinc(x: Tensor) -> Tensor:
    """x/sin(x), |x| < π."""
    return quotient(x, *INVERSE_SINC)


def sinhc(x: Tensor) -> Tensor:
    """sinh(x)/x."""
    return quotient(x, *SINHC)


def atanhc(x: Tensor) -> Tensor:
    """atanh(x)/x, |x| < 1."""
    return quotient(x, lambda z: z.atanh() / z, 1 / 3, 1 / 5, 1 / 7)


def safe_sqrt(x: Tensor) -> Tensor:
    """√max(x, 0), with gradient 0 where x ≤ 0; NaN of NaN."""
    zero = x <= 0
    return torch.where(zero, torch.zeros_like(x), torch.where(zero, torch.ones_like(x), x).sqrt())


def dot(u: Tensor, v: Tensor) -> Tensor:
    """Σ u v over the last axis, which is kept with size 1."""
    return (u * v).sum(-1, keepdim=True)


def length(v: Tensor) -> Tensor:
    """|v| over the last axis, which is kept with size 1; its gradient at 0 is 0."""
    norms: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return norms


class Manifold:
    """A Riemannian manifold in ambient coordinates. Subclasses give the methods whose names begin with ``_``.

    Shapes: points ``x``, ``y`` and vectors ``u``, ``v`` are (..., *P), P being the shape of one point, with batch
    axes that broadcast; ``dist``, ``inner``, ``norm``, ``belongs`` and ``is_tangent`` return (...). Every public
    function that returns numbers is differentiable in all of its tensors; away from the manifold it takes the
    values of its formula, so ambient gradients have a meaning only after projection to the tangent space.

    Raises: PointShapeError for shapes and dtypes that do not fit, by every method; CutLocusError by ``log``,
    ``geodesic`` and ``transport`` where the shortest geodesic is not unique. In eager mode also, by all but ``belongs``
    and ``is_tangent``: NotOnManifoldError for points whose constraints fail by more than rounding and steps of finite
    differences (the root of the dtype's epsilon, or 1e-4 if that is more), GeometryError for vectors that are not
    finite and for a parameter that is out of its range by now, RangeError for results that are not finite. While
    torch.compile or torch.func.vmap traces, where looking at values would break the graph, the formula is evaluated as
    it is.

    A parameter such as a curvature may be a tensor of one entry, to which gradients flow, with the coordinates held.
    """

    point_ndim = 1
    min_size = 1
    #: Of a point, an orthonormal basis and what gives components in it: where ambient coordinates do not serve.
    _frame: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The geodesic distance, (...). Its gradient at x = y is taken to be 0. It has no second one there; its
        square has, taken as inner(x, v, v) with v = log(x, y)."""
        x, y = self._promoted(x, y)
        self._check_values((x, y))
        return self._finite(self._dist(x, y))

    def squared_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """dist², (...), as the squared norm of ``log``, which has a derivative at x = y and refuses the cut locus."""
        x, y = self._promoted(x, y)
        self._check_values((x, y))
        return self._finite(self._squared_dist(x, y))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The point at time 1 of the geodesic from ``x`` with velocity ``v``."""
        x, v = self._promoted(x, v)
        self._check_values((x,), (v,))
        return self._finite(self._exp(x, v))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The velocity at ``x`` of the shortest geodesic that is at ``y`` at time 1; its norm is ``dist(x, y)``."""
        x, y = self._promoted(x, y)
        self._check_values((x, y))
        return self._finite(self._log(x, y))

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The metric at ``x`` of two tangent vectors, (...)."""
        x, u, v = self._promoted(x, u, v)
        self._check_values((x,), (u, v))
        return self._finite(self._inner(x, u, v))

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        """√inner(x, v, v), (...); its gradient at v = 0 is taken to be 0. To differentiate |v|² twice, take `inner`."""
        return safe_sqrt(self.inner(x, v, v))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport of ``v``, tangent at ``x``, to ``y`` along the shortest geodesic."""
        x, y, v = self._promoted(x, y, v)
        self._check_values((x, y), (v,))
        return self._finite(self._transport(x, y, v))

    def geodesic(self, x: Tensor, y: Tensor, t: Tensor | float) -> Tensor:
        """The point at time ``t`` of the geodesic with x at 0 and y at 1; ``t`` broadcasts with the batch axes."""
        x, y = self._promoted(x, y)
        try:
            times = torch.as_tensor(t, dtype=torch.promote_types(x.dtype, y.dtype), device=x.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise PointShapeError(f"a time is a number or a tensor of them, got {t!r}") from error
        batch = torch.broadcast_shapes(*(p.shape[: p.ndim - self.point_ndim] for p in (x, y)))
        try:
            torch.broadcast_shapes(times.shape, batch)
        except RuntimeError as error:
            raise PointShapeError(
                f"times of shape {tuple(times.shape)} do not broadcast with {tuple(batch)}"
            ) from error
        self._check_values((x, y), (times,))
        return self._finite(self._geodesic(x, y, times.reshape(*times.shape, *[1] * self.point_ndim)))

    def projection(self, x: Tensor) -> Tensor:
        """A point of the manifold for an ambient ``x``; points of the manifold stay where they are."""
        self._check(x)
        self._check_values((), (x,))
        return self._finite(self._projection(x))

    def tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        """The tangent vector at ``x`` that is nearest to the ambient ``v`` in the metric."""
        x, v = self._promoted(x, v)
        self._check_values((x,), (v,))
        return self._finite(self._tangent_projection(x, v))

    def egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The Riemannian gradient at ``x`` of a function whose ambient gradient there is ``gradient``.

        It is the tangent vector g with inner(x, g, v) = Σ gradient · v for every tangent v.
        """
        x, gradient = self._promoted(x, gradient)
        self._check_values((x,), (gradient,))
        return self._finite(self._egrad2rgrad(x, gradient))

    def retraction(self, x: Tensor, v: Tensor) -> Tensor:
        """A point of the manifold near ``exp(x, v)``, at less cost: they differ by O(|v|²)."""
        x, v = self._promoted(x, v)
        self._check_values((x,), (v,))
        return self._finite(self._retraction(x, v))

    def convexity_radius(self) -> float | Tensor:
        """Points within a ball of less than this radius have one Fréchet mean; 0 where no such radius is known."""
        return 0.0

    def belongs(self, x: Tensor, atol: float | None = None) -> Tensor:
        """Whether the constraints hold within ``atol`` (default: the root of the dtype's epsilon), bool (...)."""
        self._check(x)
        return self._belongs(x, self._atol(x, atol))

    def is_tangent(self, x: Tensor, v: Tensor, atol: float | None = None) -> Tensor:
        """Whether ``v`` is tangent at ``x`` within ``atol`` (1 + its largest entry), bool (...)."""
        self._check(x, v)
        return self._is_tangent(x, v, self._atol(v, atol))

    def random_point(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Random points; ``shape`` is that of the result, the coordinates included."""
        if device is None and generator is not None:
            device = generator.device
        try:
            normal = torch.empty(tuple(shape), dtype=dtype, device=device)
        except (TypeError, RuntimeError) as error:
            raise PointShapeError(f"a shape is integers, a dtype one of torch, got {shape!r}, {dtype!r}") from error
        self._check(normal)
        return self._random_point(normal.normal_(generator=generator))

    def _atol(self, x: Tensor, atol: float | None) -> float:
        if atol is None:
            least: float = torch.finfo(x.dtype).eps ** 0.5
            return least
        number = scalar("atol", atol)
        return float(number)

    def _check_trailing(self, shape: tuple[int, ...]) -> None:
        """Refuse the shape of one point."""
        if shape[-1] < self.min_size:
            raise PointShapeError(f"{type(self).__name__} needs at least {self.min_size} coordinates, got {shape[-1]}")

    def _check(self, *tensors: Tensor) -> None:
        name, axes = type(self).__name__, self.point_ndim
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise PointShapeError(f"points and vectors of {name} are tensors, got {type(tensor).__name__}")
            if not tensor.is_floating_point():
                raise PointShapeError(f"{name} needs floating point coordinates, got {tensor.dtype}")
            if tensor.ndim < axes:
                raise PointShapeError(f"a point of {name} has {axes} axes, got the shape {tuple(tensor.shape)}")
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if any(shape[-axes:] != shapes[0][-axes:] for shape in shapes):
            raise PointShapeError(f"points and vectors of {name} differ in their last {axes} axes: {shapes}")
        self._check_trailing(shapes[0][-axes:])
        try:
            torch.broadcast_shapes(*[shape[:-axes] for shape in shapes])
        except RuntimeError as error:
            raise PointShapeError(f"the batch axes of {shapes} do not broadcast") from error

    def _promoted(self, *tensors: Tensor) -> list[Tensor]:
        """Points and vectors in the one dtype that holds them all, once they have been checked."""
        self._check(*tensors)
        dtype = reduce(torch.promote_types, (t.dtype for t in tensors))
        return [t.to(dtype) for t in tensors]

    def _parameters(self) -> Iterable[tuple[str, Scalar, bool]]:
        """Name and value of each parameter, and whether it has to be positive."""
        return ()

    def _near(self, x: Tensor) -> Tensor:
        """Whether points are on the manifold but for rounding and steps of finite differences, bool (...)."""
        if type(self)._belongs is Manifold._belongs:  # a subclass that does not say where its points lie
            return x.isfinite().flatten(x.ndim - self.point_ndim).all(-1)
        return self._belongs(x, self._near_atol(x))

    @staticmethod
    def _near_atol(x: Tensor) -> float:
        least: float = torch.finfo(x.dtype).eps ** 0.5
        return max(least, 1e-4)

    def _check_values(self, points: Sequence[Tensor], others: Sequence[Tensor] = ()) -> None:
        """Refuse, in eager mode, points off the manifold, other numbers that are not finite, parameters out of range:
        one look for all of them, and a second one to tell which."""
        if torch.compiler.is_compiling():
            return
        for name, value, positive in self._parameters():
            if isinstance(value, Tensor):
                require_scalar(name, value, positive=positive)
        seen = [t.detach() for t in points], [t.detach() for t in others]
        good = [self._near(t).all() for t in seen[0]] + [t.isfinite().all() for t in seen[1]]
        if not good or holds(torch.stack(good)):
            return
        for t in seen[1]:
            if not holds(t.isfinite()):
                raise GeometryError(f"a vector or time given to {self!r} holds NaN or infinity")
        for t in seen[0]:
            self._refuse(t, ~self._near(t))

    def _refuse(self, points: Tensor, bad: Tensor) -> None:
        """Refuse, in eager mode, points by which of them are ``bad``, bool (...)."""
        if holds(~bad):
            return
        index = tuple(int(i) for i in bad.nonzero()[0])
        finite = holds(points.detach().expand(*bad.shape, *points.shape[bad.ndim :])[index].isfinite())
        what = "is not on" if finite else "holds NaN or infinity, and is not on"
        hint = "; projection() takes points to it" if finite else ""
        where = f" at batch index {index}" if index else ""
        raise NotOnManifoldError(f"the point{where} {what} {self!r}{hint}")

    def _finite(self, result: Tensor) -> Tensor:
        """``result``, refused in eager mode where numbers of it are beyond the dtype."""
        if torch.compiler.is_compiling() or holds(good := result.detach().isfinite()):
            return result
        index = tuple(int(i) for i in (~good).nonzero()[0])
        raise RangeError(
            f"a result of {self!r} is beyond the range of {result.dtype}, at index {index}: take points that are "
            "closer together, shorter vectors, or double precision"
        )

    def _unreachable(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether ``log`` from x to y has no value, bool (...)."""
        batch = torch.broadcast_shapes(*(p.shape[: p.ndim - self.point_ndim] for p in (x, y)))
        return torch.zeros(batch, dtype=torch.bool, device=x.device)

    def _blur(self, x: Tensor, eps: float) -> Tensor | float:
        """How far relative rounding by ``eps`` moves a point, in radii of curvature, where that can be much."""
        return 0.0

    def _squared_dist(self, x: Tensor, y: Tensor) -> Tensor:
        change = self._log(x, y)
        return self._inner(x, change, change)

    def _is_tangent(self, x: Tensor, v: Tensor, atol: float) -> Tensor:
        axes = tuple(range(-self.point_ndim, 0))
        residual = (self._tangent_projection(x, v) - v).abs().amax(axes)
        return residual <= atol * (1 + v.abs().amax(axes))

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _geodesic(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """The point at times that broadcast with points."""
        return self._exp(x, t * self._log(x, y))

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def _projection(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Of a metric that is the ambient one."""
        return self._tangent_projection(x, gradient)

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        return self._exp(x, v)

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        raise NotImplementedError

    def _random_point(self, normal: Tensor) -> Tensor:
        """A random point from standard normal numbers of its shape."""
        return self._projection(normal)


class Euclidean(Manifold):
    """Rⁿ with the standard metric: exp(x, v) = x + v, transport is the identity. Points (..., n)."""

    def __repr__(self) -> str:
        return "Euclidean()"

    def convexity_radius(self) -> float:
        return math.inf

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        distances: Tensor = torch.linalg.vector_norm(x - y, dim=-1)
        return distances

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u * v + torch.zeros_like(x)).sum(-1)

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        same: Tensor = torch.broadcast_tensors(v, x, y)[0]
        return same

    def _projection(self, x: Tensor) -> Tensor:
        return x

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        same: Tensor = torch.broadcast_tensors(v, x)[0]
        return same

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        return x.isfinite().all(-1)
