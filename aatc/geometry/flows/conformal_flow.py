"""Ricci flow of conformally flat tori: g = e^{2u}(dx² + dy²), u_t = −K, K = −e^{−2u}Δu.

In two dimensions Ric = K g, so ∂_t g = −2 Ric is 2u_t g = −2K g. Source: Chow, Knopf, The Ricci Flow: An Introduction,
chapter 5.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.flows.grid_metric import LARGEST_SECOND_DIFFERENCE, MetricGrid
from aatc.geometry.flows.ricci_flow import FIXED_STEP_METHODS, check_count, check_step
from aatc.geometry.manifold import GeometryError, PointShapeError

LAPLACIANS = ("spectral", "finite-difference")


@dataclass(frozen=True)
class ConformalTrajectory:
    """Kept states: ``times`` (S), conformal factors ``factors`` (S, ..., N1, N2), and per state (S, ...): ``areas``,
    ``total_curvature`` ∫K dA, ``min_curvature`` and ``max_curvature``."""

    times: Tensor
    factors: Tensor
    areas: Tensor
    total_curvature: Tensor
    min_curvature: Tensor
    max_curvature: Tensor

    @property
    def final(self) -> Tensor:
        """The last conformal factor u."""
        return self.factors[-1]


class ConformalFlow:
    """Ricci flow of e^{2u} times the flat metric of the torus with periods ``lengths``; u is (..., N1, N2).

    ``laplacian``: "spectral", by Fourier transform, or "finite-difference", of order four. The mean of Δu is zero with
    both, so Gauss–Bonnet, ∫K dA = 0, holds to rounding, and the flow of exact time keeps the area. ``normalized``
    shifts u after each step so that the steps keep it too.
    """

    @arguments(lengths="sequence of numbers")
    def __init__(self, lengths: tuple[float, float], *, laplacian: str = "spectral", normalized: bool = False) -> None:
        if len(lengths) != 2 or not all(0 < length < float("inf") for length in lengths):
            raise GeometryError(f"a torus has two positive periods, not {lengths}")
        if laplacian not in LAPLACIANS:
            raise GeometryError(f"laplacian {laplacian!r} is not one of {', '.join(LAPLACIANS)}")
        self.lengths, self.laplacian, self.normalized = lengths, laplacian, normalized

    def flat_laplacian(self, u: Tensor) -> Tensor:
        """Δu = u_xx + u_yy, (..., N1, N2)."""
        spacing = self._spacing(u)
        if self.laplacian == "finite-difference":
            grid = MetricGrid(spacing)
            grid.check_sizes(tuple(u.shape[-2:]))
            return grid.second(u, 0, 0) + grid.second(u, 1, 0)
        k0, k1 = (
            2 * torch.pi * torch.fft.fftfreq(size, h, dtype=u.dtype, device=u.device)
            for size, h in zip(u.shape[-2:], spacing)
        )
        laplacian: Tensor = torch.fft.ifft2(-(k0[:, None].square() + k1.square()) * torch.fft.fft2(u)).real
        return laplacian

    def curvature(self, u: Tensor) -> Tensor:
        """The Gauss curvature K = −e^{−2u}Δu, (..., N1, N2)."""
        return -(-2 * u).exp() * self.flat_laplacian(u)

    def area(self, u: Tensor) -> Tensor:
        """∫ e^{2u} dx dy, (...)."""
        h0, h1 = self._spacing(u)
        return (2 * u).exp().sum((-2, -1)) * (h0 * h1)

    def total_curvature(self, u: Tensor) -> Tensor:
        """∫ K dA, (...): 2π times the Euler characteristic, zero here."""
        h0, h1 = self._spacing(u)
        return (self.curvature(u) * (2 * u).exp()).sum((-2, -1)) * (h0 * h1)

    def step_bound(self, u: Tensor) -> float:
        """The largest stable explicit step: 2/(max e^{−2u} Σ s/h²), s = π² (spectral) or 16/3."""
        top = torch.pi**2 if self.laplacian == "spectral" else LARGEST_SECOND_DIFFERENCE
        stiffness = sum(top / h**2 for h in self._spacing(u))
        return 2 * float((2 * u.detach().amin()).exp()) / stiffness

    def evolve(
        self,
        u: Tensor,
        time: float,
        steps: int,
        *,
        method: str = "rk4",
        every: int = 1,
        progress: Callable[[int, float], None] | None = None,
    ) -> ConformalTrajectory:
        """The flow from 0 to ``time`` in ``steps`` steps of "euler", "midpoint" or "rk4", every ``every``-th one kept.

        ``progress(step, time)`` is called after each step. Raises `StepSizeError` beyond `step_bound`,
        `PointShapeError`, and `GeometryError` where u is not finite.
        """
        if method not in FIXED_STEP_METHODS:
            raise GeometryError(f"method {method!r} is not one of {', '.join(FIXED_STEP_METHODS)}")
        check_count(steps, "steps")
        check_count(every, "every")
        timestep, first_area = time / steps, self.area(u)
        if not bool(u.isfinite().all()):
            raise GeometryError("the first conformal factor is not finite")
        from torchdiffeq import odeint

        span = torch.tensor([0.0, timestep], dtype=u.dtype, device=u.device)
        kept, times = [u], [0.0]
        for step in range(1, steps + 1):
            check_step(timestep, self.step_bound(u), "conformal Ricci flow")
            u = odeint(lambda _, v: -self.curvature(v), u, span, method=method)[-1]
            if self.normalized:
                u = u - 0.5 * (self.area(u) / first_area).log()[..., None, None]
            if not bool(u.isfinite().all()):
                raise GeometryError(f"the conformal factor is not finite after step {step} of {steps}")
            if step % every == 0 or step == steps:
                kept.append(u)
                times.append(step * timestep)
            if progress is not None:
                progress(step, step * timestep)
        factors = torch.stack(kept)
        curvature = self.curvature(factors)
        return ConformalTrajectory(
            torch.tensor(times, dtype=u.dtype, device=u.device),
            factors,
            self.area(factors),
            self.total_curvature(factors),
            curvature.amin((-2, -1)),
            curvature.amax((-2, -1)),
        )

    def _spacing(self, u: Tensor) -> tuple[float, float]:
        if u.ndim < 2 or not u.is_floating_point() or u.numel() == 0:
            raise PointShapeError(
                f"a conformal factor is floating (..., N1, N2) and not empty, not {tuple(u.shape)} of {u.dtype}"
            )
        return self.lengths[0] / u.shape[-2], self.lengths[1] / u.shape[-1]
