"""The quantum geometric tensor of a family of pure states, its metric and its curvature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.manifold import GeometryError, PointShapeError

Family = Callable[[Tensor], Tensor]


@arguments(family="function", x=Tensor)
def quantum_geometric_tensor(family: Family, x: Tensor) -> Tensor:
    """Q_μν = ⟨∂_μψ|(1 − |ψ⟩⟨ψ|/⟨ψ|ψ⟩)|∂_νψ⟩/⟨ψ|ψ⟩ at points x (..., n), complex (..., n, n).

    ``family`` maps points (..., n), each by itself, to states (..., m), complex or real, of any norm but 0; it is
    differentiated in forward mode. Q is Hermitian, positive semidefinite, and depends on rays alone: ψ times any
    function other than 0 has the same Q. Its real part is the Fubini-Study metric pulled back to the points, whose
    distance is acos|⟨φ|ψ⟩| of unit states; its imaginary part is −½ times the Berry curvature. Source: J. Provost,
    G. Vallee, "Riemannian structure on manifolds of quantum states", 1980.

    Raises PointShapeError for points or states of another shape, GeometryError where a state is zero.
    """
    if x.ndim < 1 or not x.shape[-1] or not x.is_floating_point():
        raise PointShapeError(
            f"points of a family of states are real tensors (..., n), n > 0, got {tuple(x.shape)} of {x.dtype}"
        )
    psi = family(x)
    if psi.shape[:-1] != x.shape[:-1]:
        raise PointShapeError(f"the family takes {tuple(x.shape)} to {tuple(psi.shape)}; states are (..., m)")
    axes = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    slopes = torch.stack([torch.func.jvp(family, (x,), (axis.expand_as(x),))[1] for axis in axes], -1)
    square = psi.abs().square().sum(-1)
    if bool((square == 0).any()):
        raise GeometryError("a state is zero, which is no ray: change the family or leave out the point")
    psi, slopes = (t if t.is_complex() else torch.complex(t, torch.zeros_like(t)) for t in (psi, slopes))
    along = torch.einsum("...a,...an->...n", psi.conj(), slopes) / square[..., None]
    across = slopes - psi[..., None] * along[..., None, :]
    tensor: Tensor = across.mH @ across / square[..., None, None]
    return tensor


@arguments(family="function", x=Tensor)
def fubini_study_metric(family: Family, x: Tensor) -> Tensor:
    """Re Q, (..., n, n): the Fubini-Study metric of states, pulled back to points; see `quantum_geometric_tensor`."""
    return quantum_geometric_tensor(family, x).real


@arguments(family="function", x=Tensor)
def berry_curvature(family: Family, x: Tensor) -> Tensor:
    """Ω_μν = ∂_μA_ν − ∂_νA_μ = −2 Im Q_μν of the Berry connection A_μ = i⟨ψ|∂_μψ⟩, antisymmetric (..., n, n).

    A state carried around a small loop gains the phase ½ ∮∮ Ω_μν dx^μ∧dx^ν. See `quantum_geometric_tensor`. Source:
    M. Berry, "Quantal phase factors accompanying adiabatic changes", 1984.
    """
    return -2 * quantum_geometric_tensor(family, x).imag
