"""A field of pure states over the manifold where tokens have their places, and its geometry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aatc.ir.reference import compute_dtype


class StateField(nn.Module):
    """Pure states over M = R^D, D = ``manifold_dim``, of D + 1 levels, one family per head:

        ψ_a(x) = √p_a(x) exp(i ω_a·x),  p(x) = softmax_a(2(κ_a·x + b_a)),  a = 0 … D.

    ``frequency`` ω (H, D + 1, D), ``level`` b (H, D + 1), and κ = ``growth`` · ``directions``, (H, D + 1, r) and
    (H, r, D): the probabilities of the levels, and with them the geometry, change along r = ``rank`` directions of M.
    ψ(x) is a unit state whatever x; D + 1 is the least number of levels at which phases alone tell all x apart nearby.

    With λ = κ + iω the quantum geometric tensor is a covariance of the levels, Q_μν(x) = Cov_p(x)(λ_μ*, λ_ν). So the
    Fubini-Study metric of M is g(x) = Re Q = Cov(κ_μ, κ_ν) + Cov(ω_μ, ω_ν), and the Berry curvature −2 Im Q =
    2(Cov(ω_μ, κ_ν) − Cov(κ_μ, ω_ν)). Both depend on x by p(x): M is curved. Linear maps of x turn g(x) into
    Tᵀg(x)T with one T for all x, which is constant only where g is. κ = 0 would make g constant. M is an orbit of
    complex torus on CP^D: J.-P. Provost, G. Vallee, 1980; S. Amari, H. Nagaoka, 2000, section 2.2, of the real part.
    """

    def __init__(self, num_heads: int, manifold_dim: int, rank: int) -> None:
        super().__init__()
        levels = manifold_dim + 1
        self.frequency = nn.Parameter(torch.randn(num_heads, levels, manifold_dim) * (1.5 / manifold_dim**0.5))
        # A product: either factor at 0 would be a critical point of the other.
        self.growth = nn.Parameter(torch.randn(num_heads, levels, rank) / rank**0.5)
        self.directions = nn.Parameter(torch.randn(num_heads, rank, manifold_dim) / manifold_dim**0.5)
        self.level = nn.Parameter(torch.zeros(num_heads, levels))

    def _at(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Places (B, H, N, D), κ, ω and log p (B, H, N, D + 1), of single precision for half precision."""
        dtype = compute_dtype(places.dtype)
        x, frequency = places.to(dtype), self.frequency.to(dtype)
        kappa = self.growth.to(dtype) @ self.directions.to(dtype)
        logits = 2 * (x @ kappa.mT + self.level.to(dtype)[:, None])
        return x, kappa, frequency, logits.log_softmax(-1)

    def forward(self, places: Tensor) -> Tensor:
        """Unit states (B, H, N, 2(D + 1)) at ``places`` (B, H, N, D), real parts first."""
        x, _, frequency, log_p = self._at(places)
        root, phase = (0.5 * log_p).exp(), x @ frequency.mT
        return torch.cat((root * phase.cos(), root * phase.sin()), -1).to(places.dtype)

    def quantum_geometric_tensor(self, places: Tensor) -> Tensor:
        """Q(x), complex (B, H, N, D, D), positive semidefinite, at ``places`` (B, H, N, D)."""
        _, kappa, frequency, log_p = self._at(places)
        p, rates = log_p.exp()[..., None], torch.complex(kappa, frequency)[:, None]
        spread = rates - (p * rates).sum(-2, keepdim=True)
        tensor: Tensor = (p * spread).mH @ spread
        return tensor

    def fubini_study_metric(self, places: Tensor) -> Tensor:
        """g(x) = Re Q(x), (B, H, N, D, D): dist(ψ(x), ψ(x + dx))² = dx·g(x)dx to second order."""
        return self.quantum_geometric_tensor(places).real

    def berry_curvature(self, places: Tensor) -> Tensor:
        """Ω(x) = −2 Im Q(x), antisymmetric (B, H, N, D, D): the phase per area of a state carried around a loop."""
        return -2 * self.quantum_geometric_tensor(places).imag
