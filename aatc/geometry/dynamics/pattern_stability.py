"""Linear stability of states of a reaction–diffusion system: dispersion relation, Turing's conditions, eigenvalues.

Sources: Murray, Mathematical Biology II, sections 2.3–2.4; Cross, Greenside, Pattern Formation and Dynamics in
Nonequilibrium Systems, chapter 3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.dynamics.reaction_diffusion import Grid, PatternError, Reaction, ReactionDiffusion
from aatc.geometry.manifold import PointShapeError

_DENSE = 600


class NotSteadyError(PatternError):
    """Stability was asked of a state that does not rest; ``residual`` is its largest rate."""

    def __init__(self, message: str, *, residual: float) -> None:
        super().__init__(message)
        self.residual = residual


@dataclass(frozen=True)
class TuringConditions:
    """Turing's conditions for u' = f + D_u∇²u, v' = g + D_v∇²v at a homogeneous steady state.

    ``trace`` = f_u + g_v < 0 and ``determinant`` = det J > 0 make it ``stable_without_diffusion``; ``coupling`` =
    D_v f_u + D_u g_v beyond ``threshold`` = 2√(D_u D_v det J) makes some wavelength grow nevertheless: ``unstable``.
    ``critical_ratio``: the ratio of the inhibitor's diffusion to the activator's at which that begins, inf when no
    ratio does it. ``critical_wavenumber``: k_c with k_c² = √(det J/(D_u D_v)), NaN where det J ≤ 0. ``band``: the two
    wavenumbers between which modes grow, empty (NaN, NaN) where none do. ``growth_rate`` and ``wavenumber``: the
    largest growth over all k ≥ 0 and where it is; ``wavelength`` = 2π/``wavenumber``, inf at 0. True where unstable.
    """

    trace: float
    determinant: float
    coupling: float
    threshold: float
    stable_without_diffusion: bool
    unstable: bool
    critical_ratio: float
    critical_wavenumber: float
    band: tuple[float, float]
    growth_rate: float
    wavenumber: float
    wavelength: float

    def __bool__(self) -> bool:
        return self.unstable


@dataclass(frozen=True)
class StabilityMetrics:
    """Whether small perturbations of a steady state decay; true where they do.

    ``growth_rate``: the largest real part of ``eigenvalues``, which are complex, the leading ones first. ``residual``:
    the largest rate of the state. ``perturbation_growth``: the rate d/dt ln‖w‖ at which a given perturbation w begins
    to grow, None when none was given. Homogeneous states have also the ``wavenumber`` (|k|) and the ``wavelength``
    (2π/|k|, inf for k = 0) of the leading mode among those that fit the box, and, for two species without
    cross-diffusion or anisotropy, ``turing``.
    """

    stable: bool
    growth_rate: float
    eigenvalues: Tensor
    residual: float
    homogeneous: bool
    wavenumber: float | None = None
    wavelength: float | None = None
    turing: TuringConditions | None = None
    perturbation_growth: float | None = None

    def __bool__(self) -> bool:
        return self.stable


def reaction_jacobian(reaction_term: Reaction, state: Tensor) -> Tensor:
    """∂f/∂u, (species, species), at a homogeneous state (species,)."""
    jacobian: Tensor = torch.func.jacfwd(reaction_term)(state)
    return jacobian


@arguments(jacobian=Tensor, diffusion=Tensor, wavenumbers=Tensor)
def dispersion_relation(jacobian: Tensor, diffusion: Tensor, wavenumbers: Tensor) -> Tensor:
    """The growth rate max Re λ(J − k²D) at each k.

    ``jacobian`` (..., s, s), ``diffusion`` (s,) or (s, s), ``wavenumbers`` (m,): the result is (..., m), differentiable
    where the leading eigenvalue is simple. Raises `PointShapeError`, and `PatternError` for what is not finite.
    """
    s = jacobian.shape[-1]
    if jacobian.ndim < 2 or jacobian.shape[-2] != s or tuple(diffusion.shape) not in {(s,), (s, s)}:
        raise PointShapeError(
            f"a Jacobian (..., s, s) goes with a diffusion (s,) or (s, s), not {tuple(jacobian.shape)} with "
            f"{tuple(diffusion.shape)}"
        )
    if wavenumbers.ndim != 1:
        raise PointShapeError(f"wavenumbers are (m,), not {tuple(wavenumbers.shape)}")
    if not all(bool(x.isfinite().all()) for x in (jacobian, diffusion, wavenumbers)):
        raise PatternError("the Jacobian, the diffusion and the wavenumbers must be finite")
    matrix = torch.diag_embed(diffusion) if diffusion.ndim == 1 else diffusion
    shifted = jacobian[..., None, :, :] - wavenumbers.square()[:, None, None] * matrix
    leading: Tensor = torch.linalg.eigvals(shifted).real.amax(-1)
    return leading


@arguments(jacobian=Tensor, diffusion=Tensor)
def turing_conditions(jacobian: Tensor, diffusion: Tensor) -> TuringConditions:
    """Turing's conditions for two species: ``jacobian`` (2, 2), ``diffusion`` (2,), positive.

    Raises `PointShapeError`, and `PatternError` unless the Jacobian is finite and both diffusion coefficients positive.
    """
    if tuple(jacobian.shape) != (2, 2) or tuple(diffusion.shape) != (2,):
        raise PointShapeError(
            f"Turing's conditions are for a Jacobian (2, 2) and a diffusion (2,), not {tuple(jacobian.shape)} and "
            f"{tuple(diffusion.shape)}"
        )
    (fu, fv), (gu, gv) = jacobian.detach().double().tolist()
    du, dv = diffusion.detach().double().tolist()
    if not (0 < du < math.inf and 0 < dv < math.inf):
        raise PatternError(f"diffusion = ({du}, {dv}): both must be positive and finite")
    if not all(math.isfinite(x) for x in (fu, fv, gu, gv)):
        raise PatternError(f"the Jacobian {[[fu, fv], [gu, gv]]} must be finite")
    trace, determinant, coupling = fu + gv, fu * gv - fv * gu, dv * fu + du * gv
    threshold = 2 * math.sqrt(du * dv * determinant) if determinant > 0 else math.nan
    rest = trace < 0 and determinant > 0
    unstable = rest and coupling > threshold
    ratio, band = math.inf, (math.nan, math.nan)
    activator = max(fu, gv)
    if rest and activator > 0:
        ratio = ((math.sqrt(determinant) + math.sqrt(-fv * gu)) / activator) ** 2
    if unstable:
        root = math.sqrt(coupling**2 - threshold**2)
        outer = (coupling + root) / (2 * du * dv)
        band = (math.sqrt(determinant / (du * dv * outer)), math.sqrt(outer))
    growth, square = _fastest(fu, fv, gu, gv, du, dv)
    return TuringConditions(
        trace=trace,
        determinant=determinant,
        coupling=coupling,
        threshold=threshold,
        stable_without_diffusion=rest,
        unstable=unstable,
        critical_ratio=ratio,
        critical_wavenumber=(determinant / (du * dv)) ** 0.25 if determinant > 0 else math.nan,
        band=band,
        growth_rate=growth,
        wavenumber=math.sqrt(square),
        wavelength=2 * math.pi / math.sqrt(square) if square > 0 else math.inf,
    )


def _fastest(fu: float, fv: float, gu: float, gv: float, du: float, dv: float) -> tuple[float, float]:
    """The largest growth rate over k² ≥ 0 and the k² that has it.

    Where the eigenvalues are real, they are the mean of the diagonal of J − k²D plus half a root of
    r² = (f_u − g_v − k²(D_u − D_v))² + 4 f_v g_u, and the derivative by k² vanishes at one k² in closed form.
    """

    def growth(square: float) -> float:
        half_trace = 0.5 * (fu + gv - (du + dv) * square)
        gap = 0.25 * (fu - gv - (du - dv) * square) ** 2 + fv * gu
        return half_trace + (math.sqrt(gap) if gap > 0 else 0.0)

    candidates = [0.0]
    if fv * gu < 0 and du != dv:
        # d/dk²: |D_u − D_v| x = (D_u + D_v)√(x² + 4 f_v g_u), with x = |f_u − g_v − k²(D_u − D_v)|.
        x = (du + dv) * math.sqrt(-fv * gu / (du * dv))
        candidates += [max((fu - gv - sign * x) / (du - dv), 0.0) for sign in (-1, 1)]
    best = max(candidates, key=growth)
    return growth(best), best


def stability(
    system: ReactionDiffusion,
    pattern: Tensor,
    perturbation: Tensor | None = None,
    *,
    count: int = 6,
    tolerance: float | None = None,
) -> StabilityMetrics:
    """The linear stability of one steady ``pattern`` (species, *grid), or (species,) for a homogeneous one.

    A homogeneous state given on its grid is recognised; one given as (species,) is judged on the grid of the
    ``perturbation`` if there is one, else on 64 points per axis. Its eigenvalues are those of J + symbol(k) over the
    modes of the grid, each as often as it occurs. For other patterns, the leading ``count`` eigenvalues of the
    linearised operator: dense up to 600 unknowns, beyond that by Arnoldi iteration on Jacobian–vector products. On a
    periodic grid such a pattern can be shifted, which leaves an eigenvalue at zero up to rounding, whose sign says
    nothing: use a "neumann" grid. ``tolerance``: how large a rate may be, relative to 1 + the largest field, default
    1e-6 (1e-3 in single precision). Raises `NotSteadyError`, `PatternError` and `PointShapeError`.
    """
    grid = system.grid
    _check_count(count)
    if pattern.ndim == 1 and (perturbation is None or perturbation.ndim == 1 + grid.ndim):
        sizes = tuple(perturbation.shape[1:]) if perturbation is not None else (64,) * grid.ndim
        pattern = pattern.reshape(-1, *[1] * grid.ndim).expand(-1, *sizes)
    # A copy, because forward differentiation refuses tensors whose entries share memory.
    pattern = pattern.detach().clone()
    if pattern.ndim != 1 + grid.ndim or (perturbation is not None and perturbation.shape != pattern.shape):
        raise PointShapeError(
            f"stability is of one pattern (species, *grid) and a perturbation of its shape, not {tuple(pattern.shape)}"
            f"{'' if perturbation is None else ' and ' + str(tuple(perturbation.shape))}"
        )
    residual = float(system.rate(pattern).abs().max())
    bound = (1e-6 if pattern.dtype == torch.float64 else 1e-3) if tolerance is None else tolerance
    if not residual <= bound * (1 + float(pattern.abs().max())):
        raise NotSteadyError(
            f"the pattern has rates up to {residual:.3g}: evolve it until it rests, or raise tolerance",
            residual=residual,
        )
    growing = None if perturbation is None else _initial_growth(system, pattern, perturbation)
    flat = pattern.reshape(pattern.shape[0], -1)
    if float((flat - flat[:, :1]).abs().max()) <= 1e-12 * (1 + float(flat.abs().max())):
        return _homogeneous(system, pattern, residual, growing, count)
    eigenvalues = leading_eigenvalues(system, pattern, count)
    growth = float(eigenvalues.real.max())
    return StabilityMetrics(growth < 0, growth, eigenvalues, residual, False, perturbation_growth=growing)


def _initial_growth(system: ReactionDiffusion, pattern: Tensor, perturbation: Tensor) -> float:
    square = float(perturbation.square().sum())
    if not 0 < square < math.inf:
        raise PatternError("the perturbation must be finite and not zero: it has no rate of growth")
    rate = torch.func.jvp(system.rate, (pattern,), (perturbation.detach().to(pattern).clone(),))[1]
    return float((rate * perturbation).sum()) / square


def _check_count(count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise PatternError(f"count = {count!r}: the number of eigenvalues must be an integer ≥ 1")


def _every_mode(values: Tensor, grid: Grid, sizes: tuple[int, ...]) -> Tensor:
    """Values on the half spectrum of `Grid.wavenumbers`, (*modes, ...), on each mode of fields of these sizes once."""
    if grid.boundary == "neumann":
        # The even extension has a cosine at both k and −k, and at its highest k one that vanishes on the samples.
        return values[tuple(slice(n) for n in sizes)]
    axis = grid.ndim - 1
    return torch.cat((values, values.narrow(axis, 1, (sizes[-1] - 1) // 2)), axis)


def _homogeneous(
    system: ReactionDiffusion, pattern: Tensor, residual: float, growing: float | None, count: int
) -> StabilityMetrics:
    grid, sizes = system.grid, tuple(pattern.shape[1:])
    state = pattern.reshape(pattern.shape[0], -1)[:, 0]
    jacobian = reaction_jacobian(system.reaction_term, state)
    symbol = system.symbol(pattern)
    if symbol.ndim == 1 + grid.ndim:
        symbol = torch.diag_embed(symbol.movedim(0, -1))
    spectrum = torch.linalg.eigvals(jacobian + _every_mode(symbol, grid, sizes))
    growth = spectrum.real.amax(-1)
    squares = sum((k.square() for k in grid.wavenumbers(sizes, pattern.dtype, pattern.device)), torch.zeros(()))
    every = _every_mode(squares.expand(symbol.shape[: grid.ndim]), grid, sizes)
    wavenumber = math.sqrt(float(every.reshape(-1)[growth.argmax()]))
    values = spectrum.reshape(-1)
    leading = values[values.real.argsort(descending=True)[:count]]
    turing = None
    if state.shape[0] == 2 and system.diffusion.ndim < 2 and bool((system.diffusion > 0).all()):
        turing = turing_conditions(jacobian, system.diffusion.to(state).expand(2))
    return StabilityMetrics(
        stable=float(growth.max()) < 0,
        growth_rate=float(growth.max()),
        eigenvalues=leading,
        residual=residual,
        homogeneous=True,
        wavenumber=wavenumber,
        wavelength=2 * math.pi / wavenumber if wavenumber > 0 else math.inf,
        turing=turing,
        perturbation_growth=growing,
    )


def leading_eigenvalues(system: ReactionDiffusion, pattern: Tensor, count: int = 6) -> Tensor:
    """The ``count`` eigenvalues of largest real part of the operator linearised at ``pattern`` (species, *grid).

    Complex, leading first. Iterations grow with the ratio of the fastest diffusion rate on the grid to the gap between
    the eigenvalues wanted and the rest. Raises `PatternError` if Arnoldi iteration does not converge.
    """
    _check_count(count)
    size = pattern.numel()

    def rate(vector: Tensor) -> Tensor:
        return system.rate(vector.reshape(pattern.shape)).reshape(-1)

    if size <= _DENSE:
        values: Tensor = torch.linalg.eigvals(torch.func.jacfwd(rate)(pattern.reshape(-1)))
        return values[values.real.argsort(descending=True)[:count]]
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

    def product(vector):
        tangent = torch.from_numpy(vector.reshape(-1)).to(pattern)
        return torch.func.jvp(rate, (pattern.reshape(-1),), (tangent,))[1].double().cpu().numpy()

    operator = LinearOperator((size, size), matvec=product, dtype="float64")
    try:
        found = eigs(
            operator, k=count, which="LR", ncv=min(size, max(60, 4 * count)), maxiter=2000, return_eigenvectors=False
        )
    except ArpackNoConvergence as error:
        raise PatternError(f"Arnoldi iteration found {len(error.eigenvalues)} of {count} eigenvalues") from error
    values = torch.from_numpy(found).to(pattern.device)
    return values[values.real.argsort(descending=True)]


__all__ = [
    "NotSteadyError",
    "StabilityMetrics",
    "TuringConditions",
    "dispersion_relation",
    "leading_eigenvalues",
    "reaction_jacobian",
    "stability",
    "turing_conditions",
]
