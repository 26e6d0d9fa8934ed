"""What a flow of metrics leaves behind: its states, their invariants, and the singularities they run into."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError

# States that an estimate of a singular time is extrapolated from.
_SUPPORT = 4


@dataclass(frozen=True)
class FlowMetrics:
    """Invariants of one metric of a flow; tensors have the batch's shape (...), or are scalars without a batch.

    ``volume`` ∫dV, ``total_scalar`` ∫R dV, ``mean_scalar`` their quotient r̄, ``min_scalar`` and ``max_scalar`` over
    the samples, ``energy`` ∫(R − r̄)² dV, which is zero exactly for constant scalar curvature.
    """

    step: int
    time: float
    volume: Tensor
    total_scalar: Tensor
    mean_scalar: Tensor
    min_scalar: Tensor
    max_scalar: Tensor
    energy: Tensor


@dataclass(frozen=True)
class FlowTrajectory:
    """The states a flow kept: ``times`` (S), ``metrics`` and ``ricci`` (S, ..., n, n), one `FlowMetrics` each.

    ``stopped`` is empty, or says why the flow ended before the time asked for.
    """

    times: Tensor
    metrics: Tensor
    ricci: Tensor
    invariants: tuple[FlowMetrics, ...]
    stopped: str = ""

    @property
    def final(self) -> Tensor:
        """The last metric."""
        return self.metrics[-1]


@dataclass(frozen=True)
class Singularity:
    """Where and when a flow of metrics ceases to exist.

    ``kind``: "extinction", every direction at every sample shrinks to a point; "collapse", some directions at every
    sample; "curvature blow-up", at this sample and not at all; "degenerate metric", the flow stopped with its
    curvature below the threshold. ``location`` indexes the batch and sample axes. ``time`` is the extrapolated
    singular time, ``curvature`` the largest |eigenvalue| of g⁻¹Ric at that sample in the last state.
    """

    kind: str
    location: tuple[int, ...]
    time: float
    curvature: float


def principal_ricci(metric: Tensor, ricci: Tensor) -> Tensor:
    """The eigenvalues of g⁻¹Ric, ascending, (..., n)."""
    factor = torch.linalg.cholesky(metric)
    half = torch.linalg.solve_triangular(factor, ricci, upper=False)
    balanced = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    return torch.linalg.eigvalsh(0.5 * (balanced + balanced.mT))


def _vanishing_time(times: Tensor, values: Tensor) -> float:
    """The time at which positive falling ``values`` reach zero, by inverse interpolation through the last few.

    Exact up to rounding where they fall linearly, as 1/|Ric| does at a round point.
    """
    t, y = times[-_SUPPORT:].tolist(), values[-_SUPPORT:].tolist()
    while len(y) > 1 and not all(a > b for a, b in pairwise(y)):
        t, y = t[1:], y[1:]
    if len(y) < 2:
        return float("inf")
    total = 0.0
    for i, own in enumerate(y):
        weight = 1.0
        for j, other in enumerate(y):
            if j != i:
                weight *= other / (other - own)
        total += t[i] * weight
    return total


def singularities(flow: FlowTrajectory, threshold: float) -> list[Singularity]:
    """The singularities of a trajectory, earliest first: see `GeometricFlow.detect_singularities`."""
    if not threshold > 0:
        raise GeometryError(f"threshold = {threshold}: curvature above which a flow counts as singular, must be > 0")
    with torch.no_grad():
        tail = slice(-_SUPPORT, None)
        eigenvalues = principal_ricci(flow.metrics[tail], flow.ricci[tail]).abs()
        curvature = eigenvalues.amax(-1)
        times, shape = flow.times[tail], curvature.shape[1:]
        flat = curvature.reshape(curvature.shape[0], -1)
        hot = (flat[-1] >= threshold).nonzero().flatten().tolist()

        def at(index: int, kind: str, time: float) -> Singularity:
            place = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), shape)) if shape else ()
            return Singularity(kind, place, time, float(flat[-1, index]))

        if not hot:
            if not flow.stopped:
                return []
            smallest = torch.linalg.eigvalsh(flow.final)[..., 0].reshape(-1)
            return [at(int(smallest.argmin()), "degenerate metric", float(flow.times[-1]))]
        if len(hot) == flat.shape[1]:
            kind = "extinction" if bool((eigenvalues[-1] >= threshold).all()) else "collapse"
            index = int(flat[-1].argmax())
            return [at(index, kind, _vanishing_time(times, 1 / flat[:, index]))]
        found = [at(i, "curvature blow-up", _vanishing_time(times, 1 / flat[:, i])) for i in hot]
    return sorted(found, key=lambda singularity: singularity.time)
