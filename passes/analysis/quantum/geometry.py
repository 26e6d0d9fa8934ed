"""Geometry of families of states: the quantum geometric tensor, Berry phases and curvature, Chern numbers.

What is computed from samples is gauge-free: phases of the states cancel. Sources: Provost, Vallee, Riemannian structure
on manifolds of quantum states, Commun. Math. Phys. 76 (1980); Fukui, Hatsugai, Suzuki, Chern numbers in discretized
Brillouin zone, J. Phys. Soc. Japan 74 (2005); Resta, Rev. Mod. Phys. 66 (1994).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aatc.passes.analysis.quantum.operators import hermitian
from aatc.passes.analysis.quantum.states import QuantumError
from aatc.passes.analysis.quantum.tensors import to_complex
from aatc.passes.analysis.quantum.verify_quantum import witnessed
from aatc.passes.analysis.result import Result

#: Below this modulus of a link, neighbouring states are too nearly orthogonal for a phase.
LEAST_LINK = 1e-9


def _normalised(states: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    if bool((norms.detach() == 0).any()):
        raise QuantumError("the zero vector is no state")
    result: Tensor = states / norms
    return result


def geometric_tensor(family: Callable[[Tensor], Tensor], parameters: Tensor) -> Tensor:
    """Q_ij = ⟨∂_iψ|(1 − |ψ⟩⟨ψ|)|∂_jψ⟩, complex (..., k, k), of ψ(x) at ``parameters`` (..., k), real.

    ``family`` takes (k,) to a vector (d,) of any norm and phase. Re Q is the Fubini–Study metric, ¼ diag(1, sin²θ) of
    a qubit; Berry's curvature is −2 Im Q. Differentiable. Raises `QuantumError`.
    """
    from aatc.geometry.manifold import GeometryError
    from aatc.geometry.manifolds.quantum_geometry import quantum_geometric_tensor

    points = parameters if parameters.is_floating_point() else parameters.to(torch.float64)
    if points.ndim < 1 or points.is_complex():
        raise QuantumError(f"parameters have shape (..., k) and are real, not {tuple(points.shape)}, {points.dtype}")
    try:  # one by one: a family need not be written for batches
        found = [quantum_geometric_tensor(family, x) for x in points.reshape(-1, points.shape[-1])]
    except GeometryError as cause:
        raise QuantumError(f"there is no tensor of this family: {cause}") from cause
    return torch.stack(found).reshape(*points.shape[:-1], points.shape[-1], points.shape[-1])


def fubini_study_distance(first: Any, second: Any) -> Tensor:
    """arccos |⟨φ|ψ⟩| in [0, π/2], (...), of vectors (..., d), as 2 asin of half the least chord, which keeps the
    digits of small distances. Raises `QuantumError`."""
    a, b = (_normalised(to_complex("a state", x)) for x in (first, second))
    overlap = (a.conj() * b).sum(-1, keepdim=True)
    size = overlap.abs()
    phase = torch.where(size > 0, overlap / torch.where(size > 0, size, 1.0), 1.0)
    return 2 * torch.asin((torch.linalg.vector_norm(b - phase * a, dim=-1) / 2).clamp_max(math.sqrt(0.5)))


def _links(first: Tensor, second: Tensor) -> Tensor:
    """det ⟨a|b⟩ of frames (..., d, r), divided by its modulus; `QuantumError` where that vanishes."""
    overlap = torch.linalg.det(first.mH @ second)
    size = overlap.detach().abs()
    if float(size.min()) < LEAST_LINK:
        raise QuantumError(
            f"neighbouring states overlap by {float(size.min()):.1e}: no phase joins them",
            hint="sample the family more finely, or take bands together that touch",
        )
    result: Tensor = overlap / overlap.abs()
    return result


def _frames(states: Any, ndim: int) -> Tensor:
    """States (..., d) as frames (..., d, 1); frames (..., d, r) as orthonormal ones."""
    tensor = to_complex("states", states)
    if tensor.ndim == ndim:
        return _normalised(tensor)[..., None]
    if tensor.ndim != ndim + 1 or tensor.shape[-1] > tensor.shape[-2]:
        raise QuantumError(f"states have {ndim} axes, or {ndim + 1} for frames of bands, not {tuple(tensor.shape)}")
    frames, triangle = torch.linalg.qr(tensor)
    edge = triangle.detach().diagonal(dim1=-2, dim2=-1).abs()
    if float((edge.amin(-1) / edge.amax(-1).clamp_min(torch.finfo(edge.dtype).tiny)).min()) < 1e-10:
        raise QuantumError("a frame of bands is not of full rank")
    result: Tensor = frames
    return result


def berry_phase(states: Any) -> Tensor:
    """−arg Π_k ⟨ψ_k|ψ_{k+1}⟩ in (−π, π] around a closed loop of states (n, d), or det of bands' frames (n, d, r).

    The last state is joined to the first; the states' phases cancel. For a loop on the Bloch sphere it tends to −½ the
    solid angle to the left of the loop. Differentiable. Raises `QuantumError`.
    """
    frames = _frames(states, 2)
    if len(frames) < 3:
        raise QuantumError(f"a loop has 3 or more states, not {len(frames)}")
    return -_links(frames, frames.roll(-1, 0)).prod().angle()


def wilson_loop(frames: Any) -> Tensor:
    """Π_k of the unitary parts of ⟨u_k|u_{k+1}⟩, (r, r), around a closed loop of frames (n, d, r): the phases of its
    eigenvalues are gauge-free. Raises `QuantumError`."""
    bands = _frames(frames, 2)
    overlaps = bands.mH @ bands.roll(-1, 0)
    left, singular, right = torch.linalg.svd(overlaps)
    if float(singular.detach().min()) < LEAST_LINK:
        raise QuantumError("neighbouring frames have orthogonal directions: there is no parallel transport")
    loop = torch.eye(bands.shape[-1], dtype=bands.dtype, device=bands.device)
    for link in left @ right:
        loop = loop @ link
    return loop


def berry_curvature(states: Any, *, periodic: bool = True) -> Tensor:
    """F = −arg of the four links around each plaquette, in (−π, π], of a grid of states (n, m, d) or of frames
    (n, m, d, r): (n, m) if the grid is a torus, else (n − 1, m − 1). It is flux: curvature times area.

    Differentiable. Raises `QuantumError`.
    """
    frames = _frames(states, 3)
    if min(frames.shape[:2]) < (3 if periodic else 2):
        raise QuantumError(f"a grid of {tuple(frames.shape[:2])} states has no plaquettes")
    ahead, across = _links(frames, frames.roll(-1, 0)), _links(frames, frames.roll(-1, 1))
    loops = ahead * across.roll(-1, 0) * ahead.roll(-1, 1).conj() * across.conj()
    flux = -loops.angle()
    return flux if periodic else flux[:-1, :-1]


@dataclass(frozen=True, eq=False)
class ChernNumber:
    """``value`` of a grid of states on a torus, with the ``flux`` (n, m) of its plaquettes; ``largest_flux`` well
    below π says that the grid is fine enough for the family that it samples."""

    value: int
    flux: np.ndarray
    largest_flux: float


def chern_number(states: Any) -> Result[Any]:
    """Σ F / 2π of a grid (n, m, d), or of frames (n, m, d, r), on a torus: a whole number wherever no |F| is π.

    The finite object is the line bundle of the lattice: its number is that of a continuous family where the grid is
    fine enough, which is not proved. Raises `QuantumError`.
    """
    tensor = to_complex("states", states).detach()
    flux = berry_curvature(tensor)
    total = float(flux.sum()) / (2 * math.pi)
    if float(flux.abs().max()) > math.pi - 1e-9:
        raise QuantumError(
            "a plaquette has the flux π, whose sign is rounding's: the grid has no number", hint="sample more finely"
        )
    value = ChernNumber(round(total), flux.cpu().numpy(), float(flux.abs().max()))
    off = abs(total - value.value)
    data = {"states": tensor}
    return witnessed(value, "chern_number", data, 1e-9, residual=off, assumptions=("the number is that of the grid",))


def band_states(hamiltonian: Callable[[float, float], Any], size: int, bands: int = 1) -> Tensor:
    """Frames (size, size, d, bands) of the lowest ``bands`` eigenvectors of H(k₁, k₂) on a grid of [0, 2π)².

    Raises `QuantumError` where the band above touches them.
    """
    grid = [2 * math.pi * n / size for n in range(size)]
    table = torch.stack([torch.stack([hermitian("H(k)", hamiltonian(a, b)) for b in grid]) for a in grid])
    if not 0 < bands < table.shape[-1]:
        raise QuantumError(f"{bands} bands of {table.shape[-1]} span no bundle of their own")
    energies, frames = torch.linalg.eigh(table)
    gap = float((energies[..., bands] - energies[..., bands - 1]).min())
    if gap <= 1e-9 * float(energies.abs().max()):
        raise QuantumError(f"the bands touch: the least gap is {gap:.1e}", hint="take bands together that touch")
    result: Tensor = frames[..., :bands]
    return result
