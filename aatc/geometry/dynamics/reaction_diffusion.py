"""Reaction–diffusion systems u_t = ∇·(D∇u) + f(u) on periodic boxes and on boxes without flux, by Fourier series.

Fields are tensors (..., species, *grid) with one grid axis per length of the box; axes before the species are a batch.
Periodic samples lie at iL/N, those of a box without flux at (i + ½)L/N: the even extension of the latter is periodic
of period 2L and stays even, so both are advanced by the same Fourier code. Results are differentiable in the state, the
diffusion tensor, the time step and whatever the reaction closes over.

Sources: Cox, Matthews, Exponential time differencing for stiff systems, J. Comput. Phys. 176 (2002) 430; Kassam,
Trefethen, SIAM J. Sci. Comput. 26 (2005) 1214; Ascher, Ruuth, Spiteri, Appl. Numer. Math. 25 (1997) 151.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments, is_number
from aatc.geometry.manifold import GeometryError, PointShapeError
from aatc.geometry.manifolds.orthogonal import matrix_exponential

Reaction = Callable[[Tensor], Tensor]
Progress = Callable[[int, float, Tensor], None]
Step = Callable[[Tensor, Tensor | None], Tensor]

METHODS = ("etdrk4", "imex", "explicit")
BOUNDARIES = ("periodic", "neumann")


class PatternError(GeometryError):
    """A parameter that a reaction–diffusion system cannot use."""


class BlowUpError(PatternError):
    """The fields stopped being finite; ``step`` and ``time`` say when that was seen."""

    def __init__(self, message: str, *, step: int, time: float) -> None:
        super().__init__(message)
        self.step = step
        self.time = time


@dataclass(frozen=True)
class Grid:
    """A box with sides ``lengths``, one to three of them; ``boundary``: "periodic", or "neumann" for no flux."""

    lengths: tuple[float, ...]
    boundary: str = "periodic"

    def __post_init__(self) -> None:
        if not isinstance(self.lengths, (list, tuple)) or not all(map(is_number, self.lengths)):
            raise PatternError(f"lengths are a tuple of numbers, got {self.lengths!r}")
        if not 1 <= len(self.lengths) <= 3 or not all(0 < float(x) < math.inf for x in self.lengths):
            raise PatternError(f"lengths = {self.lengths}: give one to three positive finite sides")
        if self.boundary not in BOUNDARIES:
            raise PatternError(f"boundary {self.boundary!r} is not one of {', '.join(BOUNDARIES)}")

    @property
    def ndim(self) -> int:
        return len(self.lengths)

    @property
    def axes(self) -> tuple[int, ...]:
        """The grid axes of a field, counted from its end."""
        return tuple(range(-self.ndim, 0))

    def coordinates(
        self, sizes: tuple[int, ...], dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """The coordinates of the samples, one tensor of shape ``sizes`` per axis. Raises `PointShapeError`."""
        if len(sizes) != self.ndim or min(sizes) < 1:
            raise PointShapeError(f"a box of {self.ndim} sides has {self.ndim} sizes of at least 1, not {tuple(sizes)}")
        shift = 0.5 if self.boundary == "neumann" else 0.0
        lines = [(torch.arange(n, dtype=dtype, device=device) + shift) * (x / n) for n, x in zip(sizes, self.lengths)]
        return torch.meshgrid(*lines, indexing="ij")

    def wavenumbers(
        self, sizes: tuple[int, ...], dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """k along each axis on the half spectrum of `torch.fft.rfftn` of the periodic extension, broadcasting."""
        factor = 2 if self.boundary == "neumann" else 1
        result = []
        for axis, (n, side) in enumerate(zip(sizes, self.lengths)):
            frequencies = torch.fft.rfftfreq if axis == self.ndim - 1 else torch.fft.fftfreq
            k = frequencies(factor * n, side / n, dtype=dtype, device=device) * (2 * math.pi)
            result.append(k.reshape(-1, *[1] * (self.ndim - 1 - axis)))
        return tuple(result)

    def extend(self, fields: Tensor) -> Tensor:
        """The periodic extension: even reflection on a "neumann" box, the fields themselves otherwise."""
        if self.boundary == "neumann":
            for axis in self.axes:
                fields = torch.cat((fields, fields.flip(axis)), axis)
        return fields

    def restrict(self, fields: Tensor) -> Tensor:
        """The inverse of `extend`."""
        if self.boundary == "neumann":
            for axis in self.axes:
                fields = fields.narrow(axis, 0, fields.shape[axis] // 2)
        return fields


def _expanded(forcing: Tensor, state: Tensor) -> Tensor:
    try:
        return forcing.expand(state.shape)
    except RuntimeError as error:
        raise PointShapeError(
            f"the forcing {tuple(forcing.shape)} does not broadcast to the state {tuple(state.shape)}"
        ) from error


def exponential_integrals(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ₁, φ₂, φ₃ of real z, elementwise: φ₁ = (eᶻ − 1)/z, φₖ₊₁ = (φₖ − 1/k!)/z, with their limits at 0."""
    small = z.abs() < 1
    inner = torch.where(small, z, torch.zeros_like(z))
    series = torch.zeros_like(z)
    for power in range(17, -1, -1):
        series = series * inner + 1 / math.factorial(power + 3)
    outer = torch.where(small, torch.ones_like(z), z)
    one = torch.expm1(outer) / outer
    two = (one - 1) / outer
    three = (two - 0.5) / outer
    inner_two = inner * series + 0.5
    return (
        torch.where(small, inner * inner_two + 1, one),
        torch.where(small, inner_two, two),
        torch.where(small, series, three),
    )


def _matrix_integrals(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ₁, φ₂, φ₃ of matrices (..., s, s): blocks of the exponential of one matrix of four times the size."""
    s = z.shape[-1]
    eye = torch.eye(s, dtype=z.dtype, device=z.device).expand_as(z)
    zero = torch.zeros_like(z)
    rows = [torch.cat((z, eye, zero, zero), -1)]
    rows += [torch.cat([eye if column == row + 1 else zero for column in range(4)], -1) for row in range(1, 4)]
    first = matrix_exponential(torch.cat(rows, -2))[..., :s, :]
    return first[..., s : 2 * s], first[..., 2 * s : 3 * s], first[..., 3 * s :]


class ReactionDiffusion:
    """u_t = ∇·(D∇u) + f(u) + forcing on a `Grid`.

    ``reaction_term`` maps (species, ..., *grid) to rates of the same shape, point by point. ``diffusion_tensor``: a
    number or shape () for one coefficient, (species,) for one each, (species, species) for cross-diffusion, or
    (species, d, d) for an anisotropic tensor each, d being the number of grid axes; on a "neumann" box the latter must
    be diagonal, because reflection is no symmetry otherwise. Raises `PatternError` for a tensor whose spectrum reaches
    into the left half plane, for which the equation is ill-posed, and `PointShapeError` for other shapes.
    """

    @arguments(reaction_term="function", grid=Grid)
    def __init__(self, reaction_term: Reaction, diffusion_tensor: Tensor | float, grid: Grid) -> None:
        self.reaction_term = reaction_term
        self.diffusion = (
            diffusion_tensor
            if isinstance(diffusion_tensor, Tensor)
            else torch.tensor(diffusion_tensor, dtype=torch.float64)
        )
        self.grid = grid

    def rate(self, state: Tensor, forcing: Tensor | None = None) -> Tensor:
        """∇·(D∇u) + f(u) + forcing, of the state's shape, with spectral derivatives."""
        self._check(state)
        rate = self._extended_rate(self.grid.extend(state), None, self.symbol(state))
        rate = self.grid.restrict(rate)
        return rate if forcing is None else rate + _expanded(forcing, state)

    def react(self, state: Tensor) -> Tensor:
        """f(u) of fields (..., species, *grid)."""
        axis = -1 - self.grid.ndim
        rates = self.reaction_term(state.movedim(axis, 0))
        if not isinstance(rates, Tensor) or rates.shape != state.movedim(axis, 0).shape:
            got = tuple(rates.shape) if isinstance(rates, Tensor) else type(rates).__name__
            raise PointShapeError(
                f"the reaction term was given {tuple(state.movedim(axis, 0).shape)} (species first) and must give the "
                f"same shape, not {got}"
            )
        return rates.movedim(0, axis)

    def step(self, state: Tensor, dt: float | Tensor, method: str = "etdrk4", forcing: Tensor | None = None) -> Tensor:
        """The state after one step of length ``dt`` > 0, with ``forcing`` (broadcasting to the state) held constant.

        ``method``: "etdrk4", order 4, diffusion exact; "imex", the L-stable two-stage scheme of order 2 with implicit
        diffusion; "explicit", torchdiffeq's adaptive dopri5. Raises `PatternError` and `PointShapeError`.
        """
        advance = self.stepper(state, dt, method)
        held = None if forcing is None else self.grid.extend(_expanded(forcing, state))
        return self.grid.restrict(advance(self.grid.extend(state), held))

    def evolve(
        self,
        state: Tensor,
        time: float,
        dt: float,
        method: str = "etdrk4",
        *,
        progress: Progress | None = None,
        every: int = 1,
    ) -> Tensor:
        """The state after ``time``, in equal steps of at most ``dt``.

        ``progress(step, time, state)`` is called after every ``every``-th step and after the last one. Raises
        `BlowUpError` where the fields stop being finite, which is looked for at those same steps.
        """
        if not (0 <= time < math.inf and 0 < dt < math.inf) or every < 1:
            raise PatternError(f"time = {time}, dt = {dt}, every = {every}: need time ≥ 0, dt > 0, every ≥ 1, finite")
        self._check(state)
        steps = math.ceil(time / dt * (1 - 1e-12))
        if steps == 0:
            return state
        h = time / steps
        advance = self.stepper(state, h, method)
        extended = self.grid.extend(state)
        for done in range(1, steps + 1):
            extended = advance(extended, None)
            if done % every == 0 or done == steps:
                state = self.grid.restrict(extended)
                if not bool(state.isfinite().all()):
                    raise BlowUpError(
                        f"the fields are no longer finite after step {done} (t = {done * h:.4g}): take a smaller dt "
                        f"than {h:.3g}, or the solution itself blows up",
                        step=done,
                        time=done * h,
                    )
                if progress is not None:
                    progress(done, done * h, state)
        return state

    def stepper(self, state: Tensor, dt: float | Tensor, method: str = "etdrk4") -> Step:
        """One step on extended fields (see `Grid.extend`), ``(fields, forcing or None) ↦ fields``, set up once."""
        if method not in METHODS:
            raise PatternError(f"method {method!r} is not one of {', '.join(METHODS)}")
        length = float(dt.detach()) if isinstance(dt, Tensor) else float(dt)
        if not 0 < length < math.inf:
            raise PatternError(f"dt = {length}: must be positive and finite, as diffusion cannot run backwards")
        self._check(state)
        symbol = self.symbol(state)
        if method == "etdrk4":
            return self._etdrk4(symbol, dt, state.dtype)
        if method == "imex":
            return self._imex(symbol, dt)
        return self._explicit(symbol, dt)

    def symbol(self, state: Tensor) -> Tensor:
        """What diffusion multiplies Fourier modes by: (species, *modes), or (*modes, species, species) if it mixes."""
        sizes, s, d = tuple(state.shape[-self.grid.ndim :]), state.shape[-1 - self.grid.ndim], self.grid.ndim
        tensor = self.diffusion.to(state)
        self._check_diffusion(tensor, s)
        k = self.grid.wavenumbers(sizes, state.dtype, state.device)
        if tensor.ndim < 3:
            square = sum((x.square() for x in k), torch.zeros((), dtype=state.dtype, device=state.device))
            if tensor.ndim == 2:
                return -square[..., None, None] * tensor
            return -square * tensor.expand(s).reshape(s, *[1] * d)
        total = torch.zeros((), dtype=state.dtype, device=state.device)
        for i in range(d):
            for j in range(d):
                # The highest mode of an even grid has no sign, so a product of two first derivatives vanishes on it.
                odd = [x if i == j else torch.where(x.abs() < x.abs().max() * (1 - 1e-6), x, 0.0) for x in (k[i], k[j])]
                total = total - tensor[:, i, j].reshape(s, *[1] * d) * (odd[0] * odd[1])
        return total

    def _check_diffusion(self, tensor: Tensor, species: int) -> None:
        d = self.grid.ndim
        if tuple(tensor.shape) not in {(), (species,), (species, species), (species, d, d)}:
            raise PointShapeError(
                f"a diffusion tensor for {species} species on {d} axes has shape (), ({species},), "
                f"({species}, {species}) or ({species}, {d}, {d}), not {tuple(tensor.shape)}"
            )
        values = tensor.detach()
        if not bool(values.isfinite().all()):
            raise PatternError("the diffusion tensor must be finite")
        if tensor.ndim == 3 and self.grid.boundary == "neumann":
            if bool((values - torch.diag_embed(values.diagonal(dim1=-2, dim2=-1))).ne(0).any()):
                raise PatternError('a diffusion tensor with off-diagonal entries needs the "periodic" boundary')
        if tensor.ndim == 3:
            values = torch.linalg.eigvalsh(0.5 * (values + values.mT))
        elif tensor.ndim == 2:
            values = torch.linalg.eigvals(values).real
        least = float(values.min())
        if not least >= -1e-12:
            raise PatternError(f"the diffusion tensor has an eigenvalue with real part {least:.3g} < 0: ill-posed")

    def _check(self, state: Tensor) -> None:
        fits = state.dtype in (torch.float32, torch.float64) and state.ndim >= 1 + self.grid.ndim
        if not fits or state.numel() == 0:
            raise PointShapeError(
                f"fields are float32 or float64 tensors (..., species, *grid) with {self.grid.ndim} grid axes and not "
                f"empty, not {state.dtype} {tuple(state.shape)}"
            )

    def _forward(self, fields: Tensor) -> Tensor:
        modes: Tensor = torch.fft.rfftn(fields, dim=self.grid.axes)
        return modes

    def _backward(self, modes: Tensor, sizes: tuple[int, ...]) -> Tensor:
        fields: Tensor = torch.fft.irfftn(modes, s=sizes, dim=self.grid.axes)
        return fields

    def _act(self, operator: Tensor, modes: Tensor) -> Tensor:
        """An operator of the symbol's form on modes (..., species, *modes)."""
        if operator.ndim == 1 + self.grid.ndim:
            return operator * modes
        axis = -1 - self.grid.ndim
        columns = modes.movedim(axis, -1)[..., None]
        return (operator.to(columns.dtype) @ columns)[..., 0].movedim(-1, axis)

    def _push(self, fields: Tensor, forcing: Tensor | None) -> Tensor:
        """The modes of f(u) + forcing."""
        rate = self.react(fields)
        return self._forward(rate if forcing is None else rate + forcing)

    def _extended_rate(self, fields: Tensor, forcing: Tensor | None, symbol: Tensor) -> Tensor:
        modes = self._act(symbol, self._forward(fields)) + self._push(fields, forcing)
        return self._backward(modes, tuple(fields.shape[-self.grid.ndim :]))

    def _etdrk4(self, symbol: Tensor, dt: float | Tensor, dtype: torch.dtype) -> Step:
        z = symbol.double() * dt
        if symbol.ndim == 1 + self.grid.ndim:
            one, two, three = exponential_integrals(z)
            whole, middle, (half, _, _) = z.exp(), (0.5 * z).exp(), exponential_integrals(0.5 * z)
        else:
            one, two, three = _matrix_integrals(z)
            whole, middle = matrix_exponential(z), matrix_exponential(0.5 * z)
            half = _matrix_integrals(0.5 * z)[0]
        whole, middle, half = whole.to(dtype), middle.to(dtype), (0.5 * dt * half).to(dtype)
        weights = (dt * (one - 3 * two + 4 * three)), (dt * (2 * two - 4 * three)), (dt * (4 * three - two))
        first, inner, last = (weight.to(dtype) for weight in weights)

        def advance(fields: Tensor, forcing: Tensor | None) -> Tensor:
            sizes = tuple(fields.shape[-self.grid.ndim :])
            start = self._forward(fields)
            push = self._push(fields, forcing)
            centre = self._act(middle, start)
            a = centre + self._act(half, push)
            push_a = self._push(self._backward(a, sizes), forcing)
            b = centre + self._act(half, push_a)
            push_b = self._push(self._backward(b, sizes), forcing)
            c = self._act(middle, a) + self._act(half, 2 * push_b - push)
            push_c = self._push(self._backward(c, sizes), forcing)
            end = self._act(whole, start) + self._act(first, push)
            end = end + self._act(inner, push_a + push_b) + self._act(last, push_c)
            return self._backward(end, sizes)

        return advance

    def _imex(self, symbol: Tensor, dt: float | Tensor) -> Step:
        gamma = 1 - math.sqrt(0.5)
        delta = 1 - 1 / (2 * gamma)
        if symbol.ndim == 1 + self.grid.ndim:
            resolvent = 1 / (1 - gamma * dt * symbol)
        else:
            eye = torch.eye(symbol.shape[-1], dtype=symbol.dtype, device=symbol.device)
            resolvent = torch.linalg.inv(eye - gamma * dt * symbol)

        def advance(fields: Tensor, forcing: Tensor | None) -> Tensor:
            sizes = tuple(fields.shape[-self.grid.ndim :])
            start = self._forward(fields)
            push = self._push(fields, forcing)
            stage = self._act(resolvent, start + gamma * dt * push)
            push_stage = self._push(self._backward(stage, sizes), forcing)
            end = start + dt * (delta * push + (1 - delta) * push_stage)
            end = end + (1 - gamma) * dt * self._act(symbol, stage)
            return self._backward(self._act(resolvent, end), sizes)

        return advance

    def _explicit(self, symbol: Tensor, dt: float | Tensor) -> Step:
        # Here, because torchdiffeq loads scipy.
        from torchdiffeq import odeint

        tight = torch.finfo(symbol.dtype).eps ** 0.6

        def advance(fields: Tensor, forcing: Tensor | None) -> Tensor:
            times = torch.stack((torch.zeros_like(symbol.reshape(-1)[0]), torch.as_tensor(dt).to(symbol)))
            rate = lambda _, u: self._extended_rate(u, forcing, symbol)  # noqa: E731
            last: Tensor = odeint(rate, fields, times, rtol=tight, atol=tight, method="dopri5")[-1]
            return last

        return advance


__all__ = ["BOUNDARIES", "METHODS", "BlowUpError", "Grid", "PatternError", "ReactionDiffusion", "exponential_integrals"]
