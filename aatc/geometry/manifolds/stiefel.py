"""The Stiefel manifold of orthonormal frames, with the canonical metric."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from aatc.geometry.manifold import CutLocusError, GeometryError, PointShapeError
from aatc.geometry.manifolds.orthogonal import (
    MatrixManifold,
    cayley,
    eye_like,
    inverse,
    matrix_exponential,
    polar_factor,
)
from aatc.geometry.preconditions import require

# Geodesics shorter than this are the only shortest ones (Zimmermann, Stoye, "The injectivity radius of the compact
# Stiefel manifold under the canonical metric", 2025, whose bound of sectional curvature is 5/4).
INJECTIVITY_RADIUS = math.sqrt(4 / 5) * math.pi
_STAGES, _NEWTON_STEPS = 8, 12


def _lift(x: Tensor, v: Tensor) -> Tensor:
    """The skew matrix without a part that fixes x, whose product with x is the tangent v, (..., n, n)."""
    half = v - x @ (x.mT @ v) / 2
    return half @ x.mT - x @ half.mT


def _turned(turn: Tensor) -> Tensor:
    return matrix_exponential(turn)


def _tangent(x: Tensor, v: Tensor) -> Tensor:
    inner = x.mT @ v
    return v - x @ (inner + inner.mT) / 2


def _missing(x: Tensor, v: Tensor, y: Tensor) -> Tensor:
    """How far y is from exp(x, v), seen from the end and turned back to x: tangent at x, 0 where y is reached."""
    return _tangent(x, _turned(-_lift(x, v)) @ y - x)


def _slopes(x: Tensor, v: Tensor) -> Tensor:
    """The derivative of exp(x, ·) at v turned back to x, on the tangent space, and the identity beside it: a matrix
    (..., np, np), from blocks of the exponential of [[X, E], [0, X]] for every unit E."""
    n, p = x.shape[-2:]
    units = torch.eye(n * p, dtype=x.dtype, device=x.device).reshape(n * p, n, p)
    at = x.unsqueeze(-3)
    along = _tangent(at, units)
    turn = _lift(x, v).unsqueeze(-3)
    upper = torch.cat([turn.expand(*along.shape[:-2], n, n), _lift(at, along)], -1)
    lower = torch.cat([torch.zeros_like(upper[..., :n]), upper[..., :n]], -1)
    change = _turned(torch.cat([upper, lower], -2))[..., :n, n:]
    moved = _tangent(at, _turned(-turn) @ change @ at) + units - along
    return moved.flatten(-2).mT


def _solve(slopes: Tensor, right: Tensor) -> Tensor:
    flat = right.flatten(-2).unsqueeze(-1)
    return cast(Tensor, torch.linalg.solve_ex(slopes, flat)[0]).reshape(right.shape)


def _shoot(x: Tensor, y: Tensor) -> Tensor:
    """The velocity of a geodesic from x to y, by Newton's method towards points that go from x to y."""
    v = torch.zeros_like(x)
    for stage in range(1, _STAGES + 1):
        aim = x + (y - x) * (stage / _STAGES)
        values = torch.linalg.svdvals(aim)
        fine = (values[..., -1:] > 1e-3)[..., None]
        one = torch.eye(*x.shape[-2:], dtype=x.dtype, device=x.device)
        aim = torch.where(fine, _nearest(torch.where(fine, aim, one)), y) if stage < _STAGES else y
        last = stage == _STAGES
        for _ in range(_NEWTON_STEPS if last else 3):
            missing = _missing(x, v, aim)
            if bool((torch.linalg.matrix_norm(missing) <= (4 * torch.finfo(x.dtype).eps if last else 1e-2)).all()):
                break
            step = _tangent(x, _solve(_slopes(x, v), missing))
            size = torch.linalg.matrix_norm(step, keepdim=True)
            v = v + step * torch.where(size > 1, 1 / size, torch.ones_like(size))
    return v


def _nearest(a: Tensor) -> Tensor:
    q, r = torch.linalg.qr(a)
    return cast(Tensor, q) @ polar_factor(r)


def _nearer(a: Tensor) -> Tensor:
    """The frame nearest to one that is a frame within rounding, with the derivatives of the nearest one."""
    for _ in range(2):
        gram = a.mT @ a
        a = a @ (3 * eye_like(gram) - gram) / 2
    return a


# Newton's method stops where it is done, which neither vmap nor a compiled graph may see.
_LIBRARY = torch.library.Library("aatc_stiefel", "DEF")
_LIBRARY.define("shoot(Tensor x, Tensor y) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _shoot_batched(info: Any, in_dims: tuple[int | None, ...], x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    moved = [t if d is None else t.movedim(d, 0) for t, d in zip((x, y), in_dims)]
    return torch.ops.aatc_stiefel.shoot(*torch.broadcast_tensors(*moved)), 0


_LIBRARY.impl("shoot", _shoot, "CompositeExplicitAutograd")
torch.library.register_fake("aatc_stiefel::shoot", lambda x, y: torch.empty_like(x), lib=_LIBRARY)
torch.library.register_vmap("aatc_stiefel::shoot", _shoot_batched, lib=_LIBRARY)


class Stiefel(MatrixManifold):
    """St(p, n), the n×p matrices with XᵀX = 1, with the canonical metric ⟨U, V⟩_X = tr(Uᵀ(1 − ½XXᵀ)V).

    Points and vectors (..., n, p), n ≥ p; vectors have a skew XᵀV. With A the skew matrix that moves X by V and no
    vector beside it more than it must, exp(X, V) = expm(A) X; transport solves Z′ = −½[A, Z] without the part that
    fixes X, the manifold being a naturally reductive quotient of O(n). ``log`` has no closed form: Newton's method
    finds it, and its derivatives, up to the second, are those of the implicit function. ``dist`` is the norm of
    ``log``. ``projection`` is the orthogonal factor, ``retraction`` Cayley's. Cost n³, of ``log`` (np)³.

    Sources: A. Edelman, T. Arias, S. Smith, "The geometry of algorithms with orthogonality constraints", 1998; R.
    Zimmermann, "A matrix-algebraic algorithm for the Riemannian logarithm on the Stiefel manifold", 2017.

    Raises: CutLocusError by ``dist``, ``log``, ``geodesic`` and ``transport`` where no geodesic shorter than √(4/5) π
    is found, below which it is unique; GeometryError by ``projection`` of dependent columns; PointShapeError as
    `SpecialOrthogonal` and for n < p.
    """

    square = False

    def __repr__(self) -> str:
        return "Stiefel()"

    def _check_trailing(self, shape: tuple[int, ...]) -> None:
        super()._check_trailing(shape)
        if shape[0] < shape[1]:
            raise PointShapeError(f"R^{shape[0]} has no {shape[1]} orthonormal vectors")

    def _dist(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x, self._log(x, y))

    def _exp(self, x: Tensor, v: Tensor) -> Tensor:
        return _turned(_lift(x, v)) @ x

    def _shot(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity from x to y, and where it is none that is known to be the shortest, (..., 1, 1)."""
        found = torch.ops.aatc_stiefel.shoot(x, y)
        missing = torch.linalg.matrix_norm(self._exp(x, found) - y, keepdim=True)
        long = self._inner(x, found, found).sqrt()[..., None, None] >= INJECTIVITY_RADIUS
        return found, long | ~(missing <= 256 * x.shape[-2] * torch.finfo(x.dtype).eps)

    def _unreachable(self, x: Tensor, y: Tensor) -> Tensor:
        return self._shot(*(_nearer(t.detach()) for t in torch.broadcast_tensors(x, y)))[1][..., 0, 0]

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = (_nearer(t) for t in torch.broadcast_tensors(x, y))
        found, bad = self._shot(x.detach(), y.detach())
        back, v = inverse(_slopes(x.detach(), found)), _tangent(x, found)
        v = require(v, bad, CutLocusError, "no geodesic between two frames was found that is shorter than √(4/5)π")
        for _ in range(2):  # each makes one more derivative exact, and leaves the value
            missing = _missing(x, v, y)
            change = (missing - missing.detach()).flatten(-2).unsqueeze(-1)
            v = v + _tangent(x, (back @ change).reshape(v.shape))
        return v

    def _inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        whole, inside = (u * v + torch.zeros_like(x)).sum((-2, -1)), ((x.mT @ u) * (x.mT @ v)).sum((-2, -1))
        return whole - inside / 2

    def _transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        x, y, v = torch.broadcast_tensors(x, y, v)
        turn, beside = _lift(x, self._log(x, y)), eye_like(x @ x.mT) - x @ x.mT
        carried, parts = _lift(x, _tangent(x, v)), 4
        for _ in range(parts):  # the spectral norm of turn/4 is below 0.71: the 17th term is below ε
            term = carried
            for k in range(1, 18):
                bracket = turn @ term - term @ turn
                term = (bracket - beside @ bracket @ beside) * (-0.5 / (parts * k))
                carried = carried + term
        return _turned(turn) @ carried @ x

    def _projection(self, x: Tensor) -> Tensor:
        values = torch.linalg.svdvals(x.detach())[..., None]
        dependent = ~(values[..., -1:, :] > 8 * x.shape[-2] * torch.finfo(x.dtype).eps * values[..., :1, :])
        return _nearest(require(x, dependent, GeometryError, "columns that depend on each other have no nearest frame"))

    def _tangent_projection(self, x: Tensor, v: Tensor) -> Tensor:
        return _tangent(x, v)

    def _egrad2rgrad(self, x: Tensor, gradient: Tensor) -> Tensor:
        return gradient - x @ gradient.mT @ x

    def _retraction(self, x: Tensor, v: Tensor) -> Tensor:
        return cayley(_lift(x, v)) @ x

    def convexity_radius(self) -> float:
        """Half the injectivity radius: sectional curvature is at most 5/4."""
        return INJECTIVITY_RADIUS / 2

    def _belongs(self, x: Tensor, atol: float) -> Tensor:
        gram = x.mT @ x
        return (gram - eye_like(gram)).abs().amax((-2, -1)) <= atol

    def _random_point(self, normal: Tensor) -> Tensor:
        """Uniformly distributed frames."""
        q, r = torch.linalg.qr(normal)
        return cast(Tensor, q * torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :])
