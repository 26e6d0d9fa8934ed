"""Attention whose weights are Born probabilities, whose values interfere, and whose metric is a field over places."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

import aatc
from aatc.errors import ShapeError
from aatc.ir.reference import compute_dtype
from aatc.masks import Mask
from aatc.nn.fubini_study import FubiniStudy, Overlap, as_complex, normalised
from aatc.nn.pairs import admitted_pairs
from aatc.nn.quantum_metrics import (
    AttentionMetrics,
    FlowMetrics,
    PlaceMetrics,
    amplitudes,
    attention_metrics,
    place_metrics,
    spectral_entropy,
)
from aatc.nn.state_field import StateField
from aatc.nn.tokens import check_dropout, check_tokens, head_width, merge_heads, split_heads, token_mask


@dataclass(frozen=True)
class TokenMetric:
    """Where tokens lie on the manifold, and the distances between them, of which a flow over tokens is made.

    ``places``: (B, H, N, D); ``states``: unit states there, (B, H, N, 2(D + 1)), real parts first; ``tensor``: the
    quantum geometric tensor there, complex (B, H, N, D, D), its real part the Riemannian metric g(x), or None where
    nothing is measured; ``beta`` (H,); ``mask``: which pairs of tokens are neighbours; ``exists``: bool (B, N).
    """

    places: Tensor
    states: Tensor
    beta: Tensor
    tensor: Tensor | None = None
    mask: Mask | None = None
    exists: Tensor | None = None


@dataclass(frozen=True)
class AttentionState:
    """Unit states ``query`` and ``key`` (B, H, N, 2(D + 1)) and ``value`` (B, H, N, 2d), real parts first, and the
    metric."""

    query: Tensor
    key: Tensor
    value: Tensor
    metric: TokenMetric


class QuantumGeometricAttention(nn.Module):
    """Self-attention of quantum states: tokens (B, N, hidden_dim) to tokens.

    1. Every head gives a token two places on a manifold M = R^D, D = ``manifold_dim``: where it looks, x, and where it
       lies, y. Over M there is a learned field of unit states ψ of D + 1 levels (`StateField`); q_i = ψ(x_i) and
       k_j = ψ(y_j). Its quantum geometric tensor is a field, too: the metric g(x) = Re Q(x) of M changes with the
       place, along ``motive_rank`` directions, and so does the Berry curvature -2 Im Q(x).
    2. Tokens are compared by the Fubini-Study distance d(q, k) = acos|⟨q|k⟩|, which is that of g for near places.
    3. A query is the state Σ_j ψ_ij |j⟩ over keys, ψ_ij = √p_ij exp(i arg⟨k_j|q_i⟩), p_ij = softmax_j(-β d_ij²): p_ij
       is the Born probability of finding key j. ``dropout`` thins p while training.
    4. Values are unit states v_j of C^d, and are not averaged but interfere. By way of key j, q_i comes to channel c
       with amplitude p_ij ⟨k_j|q_i⟩ v_jc (a linear combination of |v_j⟩⟨k_j|: A. Childs, N. Wiebe, 2012). They are
       summed, A_i = Σ_j p_ij ⟨k_j|q_i⟩ v_j, and a head gives the Born probabilities P_ic = |A_ic|² of the sum,
       Σ_c P_ic ≤ 1; ``out`` reads d·P_ic. Keys of equal phase add up, keys of opposite phase cancel. The phase of q_i
       changes nothing, nor does one that k_j and v_j share.
    5. The probabilities flow ``num_layers`` steps of heat over the tokens, u ← u + τ(Pu - u), where P is softmax of
       -β d(k_i, k_j)² between the tokens' key states, and τ in (0, 1) is learned per head. It is the harmonic-map
       flow into a flat space on the graph of the tokens (Coifman, Lafon 2006). P is self-adjoint for the weights
       π_i ∝ Σ_j exp(-β d_ij²), its spectrum lies in [-1, 1], so no step can raise the Dirichlet energy
       ½ Σ π_i P_ij |u_i - u_j|² (with ``causal``, or another one-sided mask, P is not self-adjoint, and only the
       maximum principle is left).

    **It is no plain attention.** Let a head be plain that gives query i Σ_j e^s_ij v_j / Σ_j e^s_ij, with any real
    scores s_ij = s(t_i, t_j) and values v_j = v(t_j) of the tokens: any W_q, W_k, W_v, and any functions in their
    place. For disjoint sets of keys S and T its output f obeys f(S ∪ T) = λ f(S) + (1 - λ) f(T), λ = Z_S/(Z_S + Z_T)
    in [0, 1], Z_S = Σ_{j∈S} e^s_ij > 0. So if tokens a, b come as aa, bb and ab among others that stay as they are,
    f(ab) lies between f(aa) and f(bb), for numerator and denominator at ab are the means of those at aa and bb.
    Whatever a linear readout makes of it, "are both alike?" is answered rightly for at most 3 of the 4 pairs, and with
    a mean squared error of at least 2/3 for answers ±1. Here a and b of opposite amplitudes have P = 0, two alike have
    not: one head answers it. (This compares head with head: two plain heads can answer it, too.) Nor do W_q and W_k
    absorb the metric. They are linear, so that the log odds of two keys under a plain q·k are affine in the query's
    token, and here they are not; a linear change of places takes constant metrics to constant ones, and g(x) is not
    constant.

    Both 4 and 5 are `aatc.attend`, which `aatc.compile` turns into tiles, distance, overlap and sum in one kernel,
    without n² memory. ``tile_size`` is how many queries at a time the *metrics* are computed for; the compiler chooses
    the tiles of the forward pass itself.

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
        self.query = nn.Linear(hidden_dim, num_heads * manifold_dim)
        self.key = nn.Linear(hidden_dim, num_heads * manifold_dim)
        self.value, self.out = nn.Linear(hidden_dim, 2 * hidden_dim), nn.Linear(hidden_dim, hidden_dim)
        self.field = StateField(num_heads, manifold_dim, motive_rank)
        # Squared distances of fresh states differ by about a half: β near 1 would average all keys.
        self.log_beta = nn.Parameter(torch.full((num_heads,), math.log(8.0)))
        self.flow_logit = nn.Parameter(torch.full((num_heads,), -2.0))

    def extra_repr(self) -> str:
        return (
            f"hidden_dim={self.hidden_dim}, num_heads={self.num_heads}, dropout={self.dropout}, "
            f"motive_rank={self.motive_rank}, manifold_dim={self.manifold_dim}, num_layers={self.num_layers}, "
            f"tile_size={self.tile_size}, causal={self.causal}"
        )

    def quantum_geometric_tensor(self, places: Tensor) -> Tensor:
        """Q(x), complex (B, H, N, D, D), at places (B, H, N, D): see `StateField`."""
        self._check_places(places)
        return self.field.quantum_geometric_tensor(places)

    def riemannian_metric(self, places: Tensor) -> Tensor:
        """The Fubini-Study metric g(x) = Re Q(x), (B, H, N, D, D), at places (B, H, N, D)."""
        return self.quantum_geometric_tensor(places).real

    def berry_curvature(self, places: Tensor) -> Tensor:
        """Ω(x) = -2 Im Q(x), antisymmetric (B, H, N, D, D), at places (B, H, N, D)."""
        return -2 * self.quantum_geometric_tensor(places).imag

    # --- the attention ------------------------------------------------------------------------------------------
    def prepare_attention_state(self, x: Tensor, mask: Mask | Tensor | None = None) -> AttentionState:
        """The states of tokens (B, N, hidden_dim), with the quantum geometric tensor where they lie.

        ``mask``: bool (B, N), True for tokens that exist, or (B, N, N), (B, H, N, N), True where a query may attend,
        or an object of `aatc.masks`. Only the first leaves tokens out of what is measured. Raises ShapeError,
        CaptureError.
        """
        state = self._prepared(x, mask)
        return replace(
            state, metric=replace(state.metric, tensor=self.field.quantum_geometric_tensor(state.metric.places))
        )

    def _prepared(self, x: Tensor, mask: Mask | Tensor | None) -> AttentionState:
        check_tokens(x, self.hidden_dim, "QuantumGeometricAttention")
        looks, lies = (split_heads(project(x), self.num_heads) for project in (self.query, self.key))
        query, key = self.field(looks), self.field(lies)
        exists = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        metric = TokenMetric(lies, key, self.log_beta.exp(), None, token_mask(mask, self.causal), exists)
        return AttentionState(query, key, normalised(split_heads(self.value(x), self.num_heads)), metric)

    def _summed(self, query: Tensor, key: Tensor, value: Tensor, scale: float | Tensor, mask: Mask | None) -> Tensor:
        """A_i, (B, H, N, 2d), real parts first."""
        summed: Tensor = aatc.attend(
            query,
            key,
            value,
            metric=FubiniStudy(self.log_beta.exp()),
            connection=Overlap(),
            mask=mask,
            scale=scale,
            dropout=self.dropout if self.training else 0.0,
        )
        return summed

    def summed_amplitudes(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0, mask: Mask | Tensor | None = None
    ) -> Tensor:
        """A_i = Σ_j p_ij ⟨k_j|q_i⟩ v_j, complex (B, H, N, d), of states and values as `prepare_attention_state` makes
        them; ``scale`` multiplies β."""
        self._check_states(query, key, value)
        return as_complex(self._summed(query, key, value, scale, token_mask(mask, self.causal)))

    def compute_attention_patterns(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0, mask: Mask | Tensor | None = None
    ) -> tuple[Tensor, AttentionMetrics]:
        """Born probabilities |A_ic|², (B, H, N, d), of unit states (B, H, N, 2(D + 1)) and values (B, H, N, 2d), and
        what is measured on the way.

        ``scale`` multiplies β. ``mask`` as in `prepare_attention_state`, queries and keys being the same tokens; the
        module's ``causal`` holds besides. The metrics are those of the weights before dropout, without gradients,
        ``tile_size`` queries at a time.
        """
        self._check_states(query, key, value)
        found = token_mask(mask, self.causal)
        patterns = born(self._summed(query, key, value, scale, found))
        with torch.no_grad():
            exists = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
            beta = scale * self.log_beta.exp()
            metrics = attention_metrics(query, key, value, beta, found, self.tile_size, exists)
        return patterns, metrics

    def attention_amplitudes(
        self, query: Tensor, key: Tensor, scale: float = 1.0, mask: Mask | Tensor | None = None
    ) -> Tensor:
        """ψ_ij, complex (B, H, N, N), whose squares are the attention's weights; takes N² memory."""
        self._check_states(query, key)
        found = token_mask(mask, self.causal)
        keep = None if found is None else admitted_pairs(found, query, key)
        return amplitudes(query, key, scale * self.log_beta.exp(), keep)

    def _check_states(self, query: Tensor, key: Tensor, value: Tensor | None = None) -> None:
        of_values = [] if value is None else [("value", value, 2 * self.width)]
        levels = 2 * (self.manifold_dim + 1)
        for name, states, size in (("query", query, levels), ("key", key, levels), *of_values):
            if states.dim() != 4 or (states.shape[1], states.shape[3]) != (self.num_heads, size):
                raise ShapeError(
                    f"{name} states have shape {tuple(states.shape)}",
                    hint=f"states are (batch, {self.num_heads}, length, {size}), real parts first",
                )

    def _check_places(self, places: Tensor) -> None:
        if places.dim() != 4 or (places.shape[1], places.shape[3]) != (self.num_heads, self.manifold_dim):
            raise ShapeError(
                f"places have shape {tuple(places.shape)}",
                hint=f"places are (batch, {self.num_heads}, length, {self.manifold_dim})",
            )

    # --- the flow -----------------------------------------------------------------------------------------------
    def _neighbours(self, points: Tensor, u: Tensor, metric: TokenMetric) -> tuple[Tensor, Tensor]:
        """Pu, and log Σ_j exp(-β d_ij²), (B, H, N); a token without neighbours keeps its u."""
        mean, lse = aatc.attend(points, points, u, metric=FubiniStudy(metric.beta), mask=metric.mask, return_lse=True)
        if metric.mask is not None:
            mean = torch.where(lse.isinf()[..., None], u, mean)
        return mean, lse

    def _flowed(self, u: Tensor, metric: TokenMetric, steps: int) -> Tensor:
        points = metric.states
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
        points = metric.states
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

        ``mask`` as in `prepare_attention_state`. The numbers are those of `AttentionMetrics`, averaged over heads,
        ``flow_energy_before`` and ``_after``, ``flow_entropy_before`` and ``_after``, and those of `PlaceMetrics` where
        the tokens lie: ``geometric_tensor_trace`` and ``berry_curvature``, averaged over heads, and
        ``metric_condition``, the largest of all. Reading them back as floats breaks a compiled graph in two.
        """
        if not return_metrics:
            state = self._prepared(x, mask)
            patterns = born(self._summed(state.query, state.key, state.value, 1.0, state.metric.mask))
            return self._read(self._flowed(patterns, state.metric, self.num_layers))
        state = self.prepare_attention_state(x, mask)
        patterns, attention = self.compute_attention_patterns(state.query, state.key, state.value, 1.0, mask)
        patterns, flow = self.geometric_attention_flow(patterns, state.metric)
        assert state.metric.tensor is not None
        place = place_metrics(state.metric.tensor, state.metric.exists)
        return self._read(patterns), _floats(attention, flow, place)

    def _read(self, probabilities: Tensor) -> Tensor:
        # relative to 1/d, that of chance
        tokens: Tensor = self.out(merge_heads(self.width * probabilities))
        return tokens


def born(amplitude: Tensor) -> Tensor:
    """|A_c|², (..., d), of amplitudes (..., 2d), real parts first."""
    real, imaginary = amplitude.chunk(2, -1)
    return real.square() + imaginary.square()


@torch.no_grad()
def _floats(attention: AttentionMetrics, flow: FlowMetrics, place: PlaceMetrics) -> dict[str, float]:
    found = {
        **{field.name: getattr(attention, field.name).mean() for field in fields(attention)},
        "flow_energy_before": flow.energies[0].mean(),
        "flow_energy_after": flow.energies[-1].mean(),
        "flow_entropy_before": flow.entropies[0].mean(),
        "flow_entropy_after": flow.entropies[-1].mean(),
        "geometric_tensor_trace": place.trace.mean(),
        "berry_curvature": place.curvature.mean(),
        "metric_condition": place.condition.amax(),
    }
    numbers = torch.stack([value.double() for value in found.values()]).tolist()
    return dict(zip(found, numbers, strict=True))
