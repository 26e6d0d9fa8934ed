"""Attention whose weights are Born probabilities and whose geometry is that of pure states."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import aatc
from aatc.errors import ShapeError
from aatc.ir.reference import compute_dtype
from aatc.masks import Mask
from aatc.nn.fubini_study import FubiniStudy, hermitian_form, measured, normalised
from aatc.nn.pairs import admitted_pairs
from aatc.nn.quantum_metrics import AttentionMetrics, FlowMetrics, amplitudes, attention_metrics, spectral_entropy
from aatc.nn.tokens import check_dropout, check_tokens, head_width, merge_heads, split_heads, token_mask


@dataclass(frozen=True)
class TokenMetric:
    """The Fubini-Study metric of g = 1 + LL† between tokens, of which a flow over tokens is made.

    ``states``: unit states of the tokens, (B, H, N, 2m), real parts first; ``factor``: L, (H, 2m, r), its real part
    above its imaginary one; ``beta`` (H,); ``mask``: which pairs of tokens are neighbours; ``exists``: bool (B, N).
    """

    states: Tensor
    factor: Tensor
    beta: Tensor
    mask: Mask | None = None
    exists: Tensor | None = None


@dataclass(frozen=True)
class AttentionState:
    """Unit states ``query`` and ``key`` (B, H, N, 2m), real parts first, ``value`` (B, H, N, d), and the metric."""

    query: Tensor
    key: Tensor
    value: Tensor
    metric: TokenMetric


class QuantumGeometricAttention(nn.Module):
    """Self-attention of quantum states: tokens (B, N, hidden_dim) to tokens.

    1. Every head maps a token to two unit states of C^m, m = ``manifold_dim``: q and k.
    2. States are compared by the Fubini-Study distance d(q, k) = acos(|⟨q|g|k⟩|/√(⟨q|g|q⟩⟨k|g|k⟩)) under a learned
       Hermitian metric g = 1 + LL† of C^m, L of rank r = ``motive_rank``, one per head.
    3. A query is the state Σ_j ψ_ij |j⟩ over keys, ψ_ij = √p_ij exp(i arg⟨k_j|q_i⟩), p_ij = softmax_j(-β d_ij²): the
       weights are the Born probabilities of finding key j. ``dropout`` thins them while training.
    4. The attended values flow ``num_layers`` steps of heat over the tokens, u ← u + τ(Pu - u), where P is softmax of
       -β d(k_i, k_j)² between the tokens' key states, and τ in (0, 1) is learned per head. It is the harmonic-map
       flow into a flat space on the graph of the tokens (Coifman, Lafon 2006). P is self-adjoint for the weights
       π_i ∝ Σ_j exp(-β d_ij²), its spectrum lies in [-1, 1], so no step can raise the Dirichlet energy
       ½ Σ π_i P_ij |u_i - u_j|² (with ``causal``, or another one-sided mask, P is not self-adjoint, and only the
       maximum principle is left).

    Both 3 and 4 are `aatc.attend`, which `aatc.compile` turns into tiles, without n² memory. ``tile_size`` is how many
    queries at a time the *metrics* are computed for; the compiler chooses the tiles of the forward pass itself.

    The seed's signatures are kept. Corrected: its states and patterns were unspecified tensors, its ``metric`` a bare
    one, of which no flow can be made: it is a `TokenMetric`, and drives the output; masks and metrics are real.

    Source of the geometry: Bengtsson, Życzkowski, "Geometry of Quantum States", 2017, chapter 4. Raises ShapeError.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        dropout: float = 0.1,
        motive_rank: int = 4,
        manifold_dim: int = 8,
        num_layers: int = 1,
        tile_size: int = 128,
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.width = head_width(hidden_dim, num_heads)
        for name, number, least in (
            ("motive_rank", motive_rank, 1),
            ("manifold_dim", manifold_dim, 2),
            ("num_layers", num_layers, 0),
            ("tile_size", tile_size, 1),
        ):
            if number < least:
                raise ShapeError(f"{name} is {number}", hint=f"{name} is at least {least}")
        self.hidden_dim, self.num_heads, self.dropout = hidden_dim, num_heads, check_dropout(dropout)
        self.motive_rank, self.manifold_dim, self.num_layers = motive_rank, manifold_dim, num_layers
        self.tile_size, self.causal = tile_size, causal
        self.query = nn.Linear(hidden_dim, num_heads * 2 * manifold_dim)
        self.key = nn.Linear(hidden_dim, num_heads * 2 * manifold_dim)
        self.value, self.out = nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim)
        # L = 0 would be a critical point of g = 1 + LL†.
        self.factor = nn.Parameter(torch.randn(num_heads, 2 * manifold_dim, motive_rank) / math.sqrt(4 * manifold_dim))
        # Squared distances of fresh states differ by about a half: β near 1 would average all keys.
        self.log_beta = nn.Parameter(torch.full((num_heads,), math.log(8.0)))
        self.flow_logit = nn.Parameter(torch.full((num_heads,), -2.0))

    def extra_repr(self) -> str:
        return (
            f"hidden_dim={self.hidden_dim}, num_heads={self.num_heads}, dropout={self.dropout}, "
            f"motive_rank={self.motive_rank}, manifold_dim={self.manifold_dim}, num_layers={self.num_layers}, "
            f"tile_size={self.tile_size}, causal={self.causal}"
        )

    def riemannian_metric(self) -> Tensor:
        """The Hermitian metric g = 1 + LL†, complex (H, m, m); its real part is Riemannian on R^2m."""
        return hermitian_form(self.factor)

    # --- the attention ------------------------------------------------------------------------------------------
    def prepare_attention_state(self, x: Tensor, mask: Mask | Tensor | None = None) -> AttentionState:
        """The states of tokens (B, N, hidden_dim).

        ``mask``: bool (B, N), True for tokens that exist, or (B, N, N), (B, H, N, N), True where a query may attend,
        or an object of `aatc.masks`. Only the first leaves tokens out of what is measured. Raises ShapeError,
        CaptureError.
        """
        check_tokens(x, self.hidden_dim, "QuantumGeometricAttention")
        query, key = (normalised(split_heads(project(x), self.num_heads)) for project in (self.query, self.key))
        exists = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        metric = TokenMetric(key, self.factor, self.log_beta.exp(), token_mask(mask, self.causal), exists)
        return AttentionState(query, key, split_heads(self.value(x), self.num_heads), metric)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, scale: float | Tensor, mask: Mask | None) -> Tensor:
        attended: Tensor = aatc.attend(
            measured(query, self.factor),
            measured(key, self.factor),
            value,
            metric=FubiniStudy(self.log_beta.exp()),
            mask=mask,
            scale=scale,
            dropout=self.dropout if self.training else 0.0,
        )
        return attended

    def compute_attention_patterns(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0, mask: Mask | Tensor | None = None
    ) -> tuple[Tensor, AttentionMetrics]:
        """Attended values (B, H, N, d) of unit states (B, H, N, 2m) and values, and what is measured of the weights.

        ``scale`` multiplies β. ``mask`` as in `prepare_attention_state`, queries and keys being the same tokens; the
        module's ``causal`` holds besides. The metrics are those of the weights before dropout, without gradients,
        ``tile_size`` queries at a time.
        """
        self._check_states(query, key)
        found = token_mask(mask, self.causal)
        patterns = self._attended(query, key, value, scale, found)
        with torch.no_grad():
            images = measured(query, self.factor), measured(key, self.factor)
            exists = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
            metrics = attention_metrics(*images, scale * self.log_beta.exp(), found, self.tile_size, exists)
        return patterns, metrics

    def attention_amplitudes(
        self, query: Tensor, key: Tensor, scale: float = 1.0, mask: Mask | Tensor | None = None
    ) -> Tensor:
        """ψ_ij, complex (B, H, N, N), whose squares are the attention's weights; takes N² memory."""
        self._check_states(query, key)
        found = token_mask(mask, self.causal)
        q, k = measured(query, self.factor), measured(key, self.factor)
        keep = None if found is None else admitted_pairs(found, q, k)
        return amplitudes(q, k, scale * self.log_beta.exp(), keep)

    def _check_states(self, query: Tensor, key: Tensor) -> None:
        for name, states in (("query", query), ("key", key)):
            if states.dim() != 4 or (states.shape[1], states.shape[3]) != (self.num_heads, 2 * self.manifold_dim):
                raise ShapeError(
                    f"{name} states have shape {tuple(states.shape)}",
                    hint=f"states are (batch, {self.num_heads}, length, {2 * self.manifold_dim}), real parts first",
                )

    # --- the flow -----------------------------------------------------------------------------------------------
    def _neighbours(self, points: Tensor, u: Tensor, metric: TokenMetric) -> tuple[Tensor, Tensor]:
        """Pu, and log Σ_j exp(-β d_ij²), (B, H, N); a token without neighbours keeps its u."""
        mean, lse = aatc.attend(points, points, u, metric=FubiniStudy(metric.beta), mask=metric.mask, return_lse=True)
        if metric.mask is not None:
            mean = torch.where(lse.isinf()[..., None], u, mean)
        return mean, lse

    def _flowed(self, u: Tensor, metric: TokenMetric, steps: int) -> Tensor:
        points = measured(metric.states, metric.factor)
        step = self.flow_logit.sigmoid()[:, None, None]
        for _ in range(steps):
            u = u + step * (self._neighbours(points, u, metric)[0] - u)
        return u

    def geometric_attention_flow(self, patterns: Tensor, metric: TokenMetric) -> tuple[Tensor, FlowMetrics]:
        """Patterns (B, H, N, d) after ``num_layers`` steps of heat over the tokens, and energies on the way."""
        if patterns.dim() != 4 or patterns.shape[:3] != metric.states.shape[:3]:
            raise ShapeError(
                f"patterns {tuple(patterns.shape)} do not lie over states {tuple(metric.states.shape)}",
                hint="patterns are (batch, heads, length, features) over the same tokens",
            )
        if not patterns.numel():
            raise ShapeError(f"there is nothing to measure of patterns {tuple(patterns.shape)}")
        energies, entropies = [], []
        for n in range(self.num_layers + 1):
            if n:
                patterns = self._flowed(patterns, metric, 1)
            energies.append(self.dirichlet_energy(patterns.detach(), metric))
            there = 1.0 if metric.exists is None else metric.exists[:, None, :, None]
            entropies.append(spectral_entropy(patterns.detach() * there))
        return patterns, FlowMetrics(torch.stack(energies), torch.stack(entropies), self.num_layers)

    @torch.no_grad()
    def dirichlet_energy(self, patterns: Tensor, metric: TokenMetric) -> Tensor:
        """½ Σ_ij π_i P_ij |u_i - u_j|², (H,), mean over the batch; π sums to 1 over the tokens that exist."""
        points = measured(metric.states, metric.factor)
        patterns = patterns.to(compute_dtype(patterns.dtype))
        there = torch.ones_like(patterns[..., :1])
        if metric.exists is not None:
            there = there * metric.exists[:, None, :, None]
        # A common offset changes no energy, but costs its digits where patterns are alike.
        u = patterns - (there * patterns).sum(2, keepdim=True) / there.sum(2, keepdim=True).clamp(min=1)
        squares = u.square().sum(-1, keepdim=True)
        mean, lse = self._neighbours(points, torch.cat((u, squares), -1), metric)
        local = squares - 2 * (u * mean[..., :-1]).sum(-1, keepdim=True) + mean[..., -1:]
        stationary = lse[..., None].masked_fill(there == 0, -torch.inf).softmax(2).nan_to_num()
        return 0.5 * (stationary * local).sum((2, 3)).mean(0)

    # --- the module ---------------------------------------------------------------------------------------------
    def forward(
        self, x: Tensor, return_metrics: bool = False, *, mask: Mask | Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, float]]:
        """Tokens (B, N, hidden_dim) to tokens; with ``return_metrics`` also what is measured on the way.

        ``mask`` as in `prepare_attention_state`. The numbers are those of `AttentionMetrics`, averaged over heads
        (``norm_deviation``: the largest, of amplitudes and states), ``flow_energy_before`` and ``_after``,
        ``flow_entropy_before`` and ``_after``, and ``metric_condition``, the largest condition number of a head's g.
        Reading them back as floats breaks a compiled graph in two.
        """
        state = self.prepare_attention_state(x, mask)
        metric = state.metric
        if not return_metrics:
            patterns = self._attended(state.query, state.key, state.value, 1.0, metric.mask)
            tokens: Tensor = self.out(merge_heads(self._flowed(patterns, metric, self.num_layers)))
            return tokens
        patterns, attention = self.compute_attention_patterns(state.query, state.key, state.value, 1.0, mask)
        patterns, flow = self.geometric_attention_flow(patterns, metric)
        return self.out(merge_heads(patterns)), self._floats(state, attention, flow)

    @torch.no_grad()
    def _floats(self, state: AttentionState, attention: AttentionMetrics, flow: FlowMetrics) -> dict[str, float]:
        norms = torch.stack((state.query, state.key)).norm(dim=-1)
        found = {
            "entropy": attention.entropy.mean(),
            "participation_ratio": attention.participation_ratio.mean(),
            "purity": attention.purity.mean(),
            "geometric_tensor_trace": attention.geometric_tensor_trace.mean(),
            "flow_energy_before": flow.energies[0].mean(),
            "flow_energy_after": flow.energies[-1].mean(),
            "flow_entropy_before": flow.entropies[0].mean(),
            "flow_entropy_after": flow.entropies[-1].mean(),
            "metric_condition": torch.linalg.cond(self.riemannian_metric()).amax(),
            "norm_deviation": torch.maximum((norms - 1).abs().amax(), attention.norm_deviation.amax()),
        }
        numbers = torch.stack([value.double() for value in found.values()]).tolist()
        return dict(zip(found, numbers, strict=True))
