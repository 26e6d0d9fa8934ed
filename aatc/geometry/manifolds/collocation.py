"""Gauss collocation of ẍ = F(x, ẋ) with both ends given: the polynomial, its equations, their linear systems.

F takes points and velocities (..., n) and treats the points of a batch apart; a value that is not finite marks a
point outside the domain.

Sources: E. Hairer, S. Nørsett, G. Wanner, "Solving Ordinary Differential Equations I", section II.7; U. Ascher,
R. Mattheij, R. Russell, "Numerical Solution of Boundary Value Problems", chapter 5; Y. Saad, "Iterative Methods for
Sparse Linear Systems", 2003, section 6.5, for GMRES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from aatc.geometry.manifolds.curvature import transposes
from aatc.geometry.manifolds.integrate import Acceleration

Derivatives = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Up to this many coordinates the Jacobian is formed and factored; beyond, it is only applied.
DENSE_COORDINATES = 8
_KRYLOV_DEPTH = 12
_KRYLOV_CYCLES = 20


@dataclass(frozen=True)
class GaussScheme:
    """The polynomial through values at the s Gauss–Legendre nodes of [0, 1], and its integrals, as matrices.

    ``nodes`` and ``weights`` are (s,); ``once`` (s, s) and ``twice`` (s, s) integrate from 0 to each node; ``last``
    (2, s) gives the two highest coefficients in Legendre polynomials.
    """

    nodes: Tensor
    weights: Tensor
    once: Tensor
    twice: Tensor
    last: Tensor

    def at(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Matrices (T, s) that take values at the nodes to the value, the first and second integral at ``times``."""
        return _interpolation(self.nodes, self.weights, times.to(self.nodes))


def _shifted_legendre(times: Tensor, count: int) -> list[Tensor]:
    """P_k(2t − 1) for k < count, count ≥ 2."""
    z = 2 * times - 1
    values = [torch.ones_like(z), z]
    for k in range(1, count - 1):
        values.append(((2 * k + 1) * z * values[k] - k * values[k - 1]) / (k + 1))
    return values[:count]


def _integrals(values: list[Tensor], first: Tensor) -> list[Tensor]:
    """∫₀ᵗ of the functions, by ∫P_k = (P_{k+1} − P_{k−1})/(2(2k + 1)) for k ≥ 1; ``first`` is that of number 0."""
    return [first, *((values[k + 1] - values[k - 1]) / (2 * (2 * k + 1)) for k in range(1, len(values) - 1))]


def _analysis(nodes: Tensor, weights: Tensor) -> Tensor:
    """(s, s): values at the nodes to the coefficients of their polynomial; the Gauss rule is exact for them."""
    stages = nodes.numel()
    degrees = torch.arange(stages, dtype=nodes.dtype, device=nodes.device)
    return (2 * degrees + 1)[:, None] * torch.stack(_shifted_legendre(nodes, stages)) * weights


def _interpolation(nodes: Tensor, weights: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    stages = nodes.numel()
    values = _shifted_legendre(times, stages + 2)
    once = _integrals(values, times)
    twice = _integrals(once, 0.5 * times.square())
    analysis = _analysis(nodes, weights)
    value, one, two = (torch.stack(f[:stages], -1) @ analysis for f in (values, once, twice))
    return value, one, two


@lru_cache(maxsize=32)
def _scheme(stages: int) -> GaussScheme:
    k = torch.arange(1, stages, dtype=torch.float64)
    off = k / (4 * k.square() - 1).sqrt()
    # Golub and Welsch: the nodes are the eigenvalues of the Jacobi matrix of the Legendre polynomials.
    roots, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    nodes, weights = 0.5 * (roots + 1), vectors[0].square()
    _, once, twice = _interpolation(nodes, weights, nodes)
    return GaussScheme(nodes, weights, once, twice, _analysis(nodes, weights)[-2:])


def gauss_scheme(stages: int, like: Tensor) -> GaussScheme:
    """The scheme of ``stages`` ≥ 2 nodes in the dtype and on the device of ``like``."""
    # Kept for later calls, which may want gradients.
    with torch.inference_mode(False), torch.no_grad():
        scheme = _scheme(stages)
    return GaussScheme(*(t.to(like) for t in (scheme.nodes, scheme.weights, scheme.once, scheme.twice, scheme.last)))


class LinearSystem(Protocol):
    """A linear map of (B, s, n) that can be inverted."""

    def solve(self, right: Tensor, *, transposed: bool = False, tolerance: float = 0.0) -> Tensor:
        """The inverse, or its transpose, applied to ``right``; a relative residual up to ``tolerance`` will do."""
        ...


class Collocation:
    """Unknown accelerations a (B, s, n) at the nodes, with x and ẋ their integrals that meet both ends (B, n)."""

    def __init__(self, acceleration: Acceleration, derivatives: Derivatives, x: Tensor, y: Tensor, stages: int) -> None:
        self.acceleration, self.derivatives = acceleration, derivatives
        self.x, self.y = x, y
        self.scheme = gauss_scheme(stages, x)
        self.moments = self.scheme.weights * (1 - self.scheme.nodes)

    def toward(self, x: Tensor, y: Tensor) -> Collocation:
        """The same equations between other ends."""
        return Collocation(self.acceleration, self.derivatives, x, y, self.scheme.nodes.numel())

    def initial_velocity(self, a: Tensor) -> Tensor:
        return self.y - self.x - torch.einsum("s,bsn->bn", self.moments, a)

    def path(self, a: Tensor, times: Tensor, once: Tensor, twice: Tensor) -> tuple[Tensor, Tensor]:
        """x and ẋ at ``times`` (T,), (B, T, n), with the matrices of `GaussScheme.at`."""
        start = self.initial_velocity(a)[:, None]
        return self.x[:, None] + times[:, None] * start + twice @ a, start + once @ a

    def nodes(self, a: Tensor) -> tuple[Tensor, Tensor]:
        return self.path(a, self.scheme.nodes, self.scheme.once, self.scheme.twice)

    def force(self, a: Tensor) -> Tensor:
        """F at the nodes."""
        return self.acceleration(*self.nodes(a))

    def residual(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """a − F at the nodes, and per batch its largest entry relative to |y − x| + |F|; inf outside the domain."""
        force = self.force(a)
        return a - force, self.relative(a - force, force)

    def relative(self, r: Tensor, force: Tensor) -> Tensor:
        """The size of a residual ``r`` as `residual` measures it, (B,)."""
        size = (self.y - self.x).abs().amax(-1) + force.abs().amax((-2, -1)) + torch.finfo(r.dtype).tiny
        relative = r.abs().amax((-2, -1)) / size
        return torch.where(relative.isfinite(), relative, torch.full_like(relative, torch.inf))

    def defect(self, a: Tensor) -> Tensor:
        """The relative residual at the ends and halfway between nodes, (B,): what the polynomial leaves of it there."""
        nodes = self.scheme.nodes
        ends = nodes.new_tensor([0.0, 1.0])
        times = torch.cat((ends[:1], 0.5 * (nodes[:-1] + nodes[1:]), ends[1:]))
        value, once, twice = self.scheme.at(times)
        force = self.acceleration(*self.path(a, times, once, twice))
        return self.relative(value @ a - force, force)

    def tail(self, force: Tensor) -> Tensor:
        """What about the polynomial misses of ``force``, given at the nodes, relative as `residual`, (B,)."""
        return self.relative(self.scheme.last @ force, force)

    @property
    def by_node(self) -> tuple[Tensor, Tensor]:
        """The derivatives (s, s) of x and of ẋ at the nodes by the accelerations there, the ends held."""
        return self.scheme.twice - self.scheme.nodes[:, None] * self.moments, self.scheme.once - self.moments

    def linearised(self, a: Tensor) -> LinearSystem:
        """∂(a − F)/∂a at ``a``."""
        return (_Dense if a.shape[-1] <= DENSE_COORDINATES else _Krylov)(self, a)


class _Dense:
    """The Jacobian as matrices (B, s n, s n), factored; not finite where it is singular."""

    def __init__(self, system: Collocation, a: Tensor) -> None:
        batch, stages, n = a.shape
        by_x, by_v = system.derivatives(*system.nodes(a))
        of_x, of_v = system.by_node
        coupling = torch.einsum("bskm,sj->bskjm", by_x, of_x) + torch.einsum("bskm,sj->bskjm", by_v, of_v)
        flat = coupling.reshape(batch, stages * n, stages * n)
        one = torch.eye(stages * n, dtype=a.dtype, device=a.device)
        # One at a time where they are large: on two threads, batches of more than about 144 rows come back with pivots
        # of each other (torch 2.13, CPU).
        large = stages * n > 128 and a.device.type == "cpu"
        parts = [torch.linalg.lu_factor_ex(m)[:2] for m in (one - flat).split(1 if large else max(batch, 1))]
        self.factors, self.pivots = (torch.cat(pair) for pair in zip(*parts, strict=True))
        # What is not finite, or not in between, may come with pivots that are no rows, which nothing can be solved by.
        self.finite = self.factors.isfinite().all(-1).all(-1)[:, None, None]
        rows = torch.arange(1, stages * n + 1, dtype=self.pivots.dtype, device=a.device)
        self.factors = torch.where(self.finite, self.factors, one)
        self.pivots = torch.where(self.finite[..., 0], self.pivots, rows)

    def solve(self, right: Tensor, *, transposed: bool = False, tolerance: float = 0.0) -> Tensor:
        flat = right.flatten(1).unsqueeze(-1)
        solved: Tensor = torch.linalg.lu_solve(self.factors, self.pivots, flat, adjoint=transposed).reshape(right.shape)
        return torch.where(self.finite, solved, torch.full_like(solved, torch.nan))


class _Krylov:
    """The Jacobian as a product: identity minus a compact map, for which GMRES needs few steps and no preconditioner.

    What it is linearised at is kept, its derivatives are made anew by every `solve`: they hold the memory of some
    metrics for each node.
    """

    def __init__(self, system: Collocation, a: Tensor) -> None:
        self.system, self.a = system, a

    def solve(self, right: Tensor, *, transposed: bool = False, tolerance: float = 0.0) -> Tensor:
        system = self.system
        x, v = system.nodes(self.a)
        of_x, of_v = system.by_node

        def field(state: Tensor) -> Tensor:
            return system.acceleration(*state.chunk(2, -1))

        _, pull, push = transposes(field, torch.cat((x, v), -1))

        def forward(w: Tensor) -> Tensor:
            return w - push(torch.cat((of_x @ w, of_v @ w), -1))

        def backward(w: Tensor) -> Tensor:
            on_x, on_v = pull(w).chunk(2, -1)
            return w - of_x.mT @ on_x - of_v.mT @ on_v

        sharp = max(tolerance, 16 * torch.finfo(right.dtype).eps)
        return gmres(backward if transposed else forward, right, sharp)


def gmres(apply: Callable[[Tensor], Tensor], right: Tensor, tolerance: float) -> Tensor:
    """The solutions of systems apply(w) = ``right`` (B, ...), the axes after the first being those of one system.

    Restarted GMRES until every relative residual is below ``tolerance``, or no longer halves in a cycle.
    """
    tiny = torch.finfo(right.dtype).tiny
    goal = tolerance * _norm(right)
    found, rest, last = torch.zeros_like(right), right, torch.full_like(_norm(right), torch.inf)
    for _ in range(_KRYLOV_CYCLES):
        size = _norm(rest)
        if not bool(((size > goal) & (size < 0.5 * last)).any()):
            break
        basis, columns = [rest / _wide(size.clamp_min(tiny), rest)], []
        for _ in range(min(_KRYLOV_DEPTH, right[0].numel())):
            w = apply(basis[-1])
            span = torch.stack(basis, 1).flatten(2)
            column = torch.zeros_like(span[..., 0])
            for _ in range(2):  # once more against the rounding of the first
                part = torch.einsum("bmk,bk->bm", span, w.flatten(1))
                w = w - torch.einsum("bmk,bm->bk", span, part).reshape(w.shape)
                column = column + part
            length = _norm(w)
            columns.append(torch.cat((column, length[:, None]), 1))
            # An exhausted space ends in a zero column, which the pseudo-inverse leaves alone.
            spent = length <= 1e3 * torch.finfo(w.dtype).eps * columns[-1].norm(dim=-1)
            basis.append(torch.where(_wide(spent, w), torch.zeros_like(w), w / _wide(length.clamp_min(tiny), w)))
        depth = len(columns)
        hessenberg = torch.stack([torch.nn.functional.pad(c, (0, depth + 1 - c.shape[1])) for c in columns], -1)
        weights = pseudo_inverse(hessenberg)[..., 0] * size[:, None]
        step = torch.einsum("bmk,bm->bk", torch.stack(basis[:-1], 1).flatten(2), weights).reshape(right.shape)
        better = right - apply(found + step)
        gained = _norm(better) < size
        found = torch.where(_wide(gained, found), found + step, found)
        rest, last = torch.where(_wide(gained, rest), better, rest), size
    return found


def pseudo_inverse(matrix: Tensor) -> Tensor:
    """The pseudo-inverse of (B, p, q); zero where an entry is not finite, for which there is none."""
    finite = matrix.isfinite().all(-1).all(-1)[:, None, None]
    inverse: Tensor = torch.linalg.pinv(torch.where(finite, matrix, torch.zeros_like(matrix)))
    return inverse


def _norm(w: Tensor) -> Tensor:
    norms: Tensor = w.flatten(1).norm(dim=-1)
    return norms


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """(B,) with axes after it to broadcast against ``like`` (B, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


class Inverse(torch.autograd.Function):
    """`LinearSystem.solve`, linear in its right side and differentiable in it to any order, forward and backward."""

    @staticmethod
    def forward(right: Tensor, system: LinearSystem, transposed: bool) -> Tensor:
        return system.solve(right, transposed=transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, LinearSystem, bool], output: Tensor) -> None:
        _, ctx.system, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return Inverse.apply(gradients[0], ctx.system, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return cast(Tensor, Inverse.apply(tangents[0], ctx.system, ctx.transposed))

    @staticmethod
    def vmap(info: Any, axes: tuple[int, None, None], right: Tensor, system: LinearSystem, transposed: bool) -> Any:
        return torch.stack([Inverse.apply(one, system, transposed) for one in right.unbind(axes[0])]), 0


class Correction(Inverse):
    """A residual that is zero to rounding, with the derivative of the correction that it asks for.

    Newton's correction J⁻¹r has the derivative J⁻¹dr, for J held; where r vanishes its value is nothing, so the
    value is r itself and the linear systems are solved for derivatives only.
    """

    @staticmethod
    def forward(residual: Tensor, system: LinearSystem, transposed: bool) -> Tensor:
        return residual.clone()

    @staticmethod
    def vmap(info: Any, axes: tuple[int, None, None], residual: Tensor, system: LinearSystem, transposed: bool) -> Any:
        return residual.clone(), axes[0]
