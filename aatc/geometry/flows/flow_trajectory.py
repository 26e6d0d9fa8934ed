"""What a flow of metrics leaves behind: its states, their invariants, and the singularities they run into."""

import math
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

    ``kind``: "extinction", every direction at every sample of a metric shrinks to a point; "collapse", some directions
    at every sample; "curvature blow-up", at this sample and not at all; "degenerate metric", the flow stopped with its
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
    eigenvalues: Tensor = torch.linalg.eigvalsh(0.5 * (balanced + balanced.mT))
    return eigenvalues


def _vanishing_time(times: Tensor, values: Tensor) -> float:
    """The time at which positive falling ``values`` reach zero, by inverse interpolation through the last few.

    Exact up to rounding where they fall linearly, as 1/|Ric| does at a round point. Values from before the last fall,
    and those of flat states, which are infinite, do not count.
    """
    t, y = times[-_SUPPORT:].tolist(), values[-_SUPPORT:].tolist()
    while len(y) > 1 and not all(math.inf > a > b for a, b in pairwise(y)):
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


def singularities(flow: FlowTrajectory, threshold: float, sample_axes: int) -> list[Singularity]:
    """The singularities of a trajectory of metrics with ``sample_axes`` axes of samples after those of the batch,
    earliest first: see `GeometricFlow.detect_singularities`."""
    if not threshold > 0:
        raise GeometryError(f"threshold = {threshold}: curvature above which a flow counts as singular, must be > 0")
    with torch.no_grad():
        tail = slice(-_SUPPORT, None)
        eigenvalues = principal_ricci(flow.metrics[tail], flow.ricci[tail]).abs()
        curvature = eigenvalues.amax(-1)
        times, shape = flow.times[tail], curvature.shape[1:]
        samples = math.prod(shape[len(shape) - sample_axes :])
        flat, directions = (
            curvature.reshape(len(times), -1),
            eigenvalues[-1].reshape(-1, samples, eigenvalues.shape[-1]),
        )

        def at(index: int, kind: str, time: float) -> Singularity:
            place = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), shape)) if shape else ()
            return Singularity(kind, place, time, float(flat[-1, index]))

        found: list[Singularity] = []
        for number, own in enumerate(directions):
            first = number * samples
            hot = (flat[-1, first : first + samples] >= threshold).nonzero().flatten().tolist()
            if len(hot) == samples:
                kind = "extinction" if bool((own >= threshold).all()) else "collapse"
                index = first + int(flat[-1, first : first + samples].argmax())
                found.append(at(index, kind, _vanishing_time(times, 1 / flat[:, index])))
            else:
                blown = [(first + i, _vanishing_time(times, 1 / flat[:, first + i])) for i in hot]
                found += [at(index, "curvature blow-up", time) for index, time in blown]
        if not found and flow.stopped:
            smallest = torch.linalg.eigvalsh(flow.final)[..., 0].reshape(-1)
            found.append(at(int(smallest.argmin()), "degenerate metric", float(flow.times[-1])))
    return sorted(found, key=lambda singularity: singularity.time)
