"""Self-attention that compares tokens by a metric and carries values by a connection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import aatc
from aatc.connections import Connection, Frames, Rotary
from aatc.errors import ScoreError, ShapeError
from aatc.ir.reference import compute_dtype
from aatc.masks import Mask
from aatc.metrics import Metric
from aatc.nn.learned import METRICS, LearnedMetric, learned_metric
from aatc.nn.pair_geodesics import pair_geodesics
from aatc.nn.pairs import carried_values, pair_scores
from aatc.nn.tokens import check_dropout, check_tokens, head_width, merge_heads, split_heads, token_mask
from aatc.parts import Part, same

CONNECTIONS = ("frames", "rotary", "transport")


class GeometricAttention(nn.Module):
    """Multi-head self-attention by distance: o_i = Σ_j softmax_j(-β d(q_i, k_ij)) v_ij.

    ``metric``: a name of `METRICS`, with parameters learned per head (β, or a Mahalanobis factor) and features mapped
    to points of its space, or an object of `aatc.metrics`, applied to the features as they are, whose parameters the
    module registers as ``metric_`` and their name.

    ``curvature``: the sectional curvature that "lorentz" and "poincare" (negative, by its logarithm) and
    "stereographic" (of any sign, 0 unless given) learn from, one per head; without it the former two keep −1.

    ``connection`` says how keys and values reach the query: "rotary" turns keys by their relative position (base
    ``rotary_base``); "frames" gives every token an orthogonal frame, exp of a skew matrix linear in the token, and
    carries keys and values by F_iᵀF_j; "transport" carries values along geodesics ("sphere" and "lorentz"); an object
    of `aatc.connections` is taken as it is. Rotations must keep the metric: neither "rotary" nor "frames" goes with
    "fisher-rao" and "mahalanobis".

    The seed's ``attend`` computed a metric and geodesics and handed on only the latter, undefined. Here the metric
    makes the weights and the geodesic carries the values. Both are compiled by `aatc.compile` without n² memory;
    `attention_metric`, `compute_geodesics` and `transport_values` show them for all pairs.

    Raises ShapeError and ScoreError when made of what does not fit.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        *,
        metric: str | Metric = "euclidean",
        connection: str | Connection | None = None,
        dropout: float = 0.0,
        causal: bool = False,
        rotary_base: float = 10000,
        curvature: float | None = None,
    ) -> None:
        super().__init__()
        width = head_width(hidden_dim, num_heads)
        self.hidden_dim, self.num_heads, self.width = hidden_dim, num_heads, width
        self.dropout, self.causal, self.rotary_base = check_dropout(dropout), causal, rotary_base
        self.connection = connection
        self.metric: LearnedMetric | Metric
        if isinstance(metric, str):
            self.metric = learned_metric(metric, num_heads, width, connection == "transport", curvature)
        elif isinstance(metric, Metric):
            if curvature is not None:
                raise ScoreError("a metric's object has its curvature itself", hint="metric=Lorentz...(curvature=...)")
            self.metric = metric
            self._register("metric", metric)
        else:
            raise ScoreError(
                f"metric is {metric!r}", hint=f"give one of {', '.join(METRICS)}, or an aatc.metrics object"
            )
        self._check_connection(metric)
        self.qkv, self.out = nn.Linear(hidden_dim, 3 * hidden_dim), nn.Linear(hidden_dim, hidden_dim)
        if connection == "frames":
            self.frame = nn.Linear(hidden_dim, width * width)
        if isinstance(connection, Connection):
            self._register("connection", connection)

    def _register(self, what: str, part: Part) -> None:
        """Parameters within a part, which optimisers would not see."""
        for name, value in [*vars(part).items(), *getattr(part, "_bound", {}).items()]:
            if isinstance(value, nn.Parameter):
                self.register_parameter(f"{what}_{name}", value)

    def _check_connection(self, metric: str | Metric) -> None:
        connection = self.connection
        if connection is None or isinstance(connection, Connection):
            return
        if connection not in CONNECTIONS:
            raise ScoreError(
                f"there is no connection {connection!r}",
                hint=f"there are {', '.join(CONNECTIONS)}, and objects of aatc.connections",
            )
        if connection == "transport":
            if not isinstance(self.metric, LearnedMetric) or self.metric.transport is None:
                able = [name for name, kind in METRICS.items() if kind.transport is not None]
                raise ScoreError(f"metric {metric!r} has no transport", hint=f"transport goes with {', '.join(able)}")
        elif isinstance(self.metric, LearnedMetric) and not self.metric.turns:
            raise ScoreError(
                f"connection {connection!r} rotates features, which changes distances of {metric!r}",
                hint=f"it goes with {', '.join(name for name, kind in METRICS.items() if kind.turns)}",
            )
        if connection == "rotary" and self.width % 2:
            raise ShapeError(f"rotary turns pairs of channels; a head has {self.width}", hint="use an even head width")

    def extra_repr(self) -> str:
        return f"hidden_dim={self.hidden_dim}, num_heads={self.num_heads}, connection={self.connection!r}"

    def _connection(
        self, Q: Tensor, K: Tensor, positions: Tensor | None, tokens: Tensor | None, key_tokens: Tensor | None
    ) -> Connection | None:
        """The connection of one call."""
        if not isinstance(self.connection, str):
            return self.connection
        if self.connection == "rotary":
            return Rotary(positions, base=self.rotary_base)
        if self.connection == "transport":
            return self._learned().transport_connection()
        if tokens is None:
            raise ShapeError("frames are made from tokens", hint="call the module itself, or give tokens=")
        q_frames = self._frames("tokens", tokens, "queries", Q)
        if key_tokens is not None:
            k_frames = self._frames("key_tokens", key_tokens, "keys", K)
        elif same(K.shape[2], tokens.shape[1]):
            k_frames = q_frames
        else:
            raise ShapeError(
                f"{tokens.shape[1]} tokens give no frames to {K.shape[2]} keys", hint="give key_tokens= as well"
            )
        # Values are carried before and after the attention: with dropout the compiler cannot pull frames out of it.
        return Frames(q_frames, k_frames, values=False)

    def _frames(self, name: str, tokens: Tensor, what: str, x: Tensor) -> Tensor:
        """Frames (B, N, d, d) of the tokens of ``x`` (B, H, N, d). ShapeError unless there is one for each."""
        check_tokens(tokens, self.hidden_dim, "the frame")
        if not same(tokens.shape[0], x.shape[0]) or not same(tokens.shape[1], x.shape[2]):
            raise ShapeError(
                f"{name} of shape {tuple(tokens.shape)} for {what} of shape {tuple(x.shape)}",
                hint=f"{name} are (batch, length, {self.hidden_dim}), one token for each of the {what}",
            )
        generator = self.frame(tokens).unflatten(-1, (self.width, self.width))
        # In half precision PyTorch's exponential is not finite.
        skew = (generator - generator.mT).to(compute_dtype(generator.dtype))
        frames: Tensor = torch.linalg.matrix_exp(skew).to(generator.dtype)
        return frames

    def _learned(self) -> LearnedMetric:
        assert isinstance(self.metric, LearnedMetric)
        return self.metric

    def _points(self, x: Tensor) -> Tensor:
        return self.metric.project(x) if isinstance(self.metric, LearnedMetric) else x

    def _measure(self) -> tuple[Metric, Tensor | None]:
        """The metric and the scale of its scores, None for its default."""
        if isinstance(self.metric, LearnedMetric):
            return self.metric.metric(), self.metric.scale()
        return self.metric, None

    def _depart(self, k: Tensor, v: Tensor, connection: Connection | None) -> Tensor:
        """Values as they leave their keys."""
        if self.connection == "transport":
            return self._learned().attach(k, v)
        if self.connection == "frames" and isinstance(connection, Frames):
            return (connection.k_frames[:, None] @ v[..., None]).squeeze(-1)
        return v

    def _arrive(self, q: Tensor, o: Tensor, connection: Connection | None) -> Tensor:
        """Averages of values as features of their queries."""
        if self.connection == "transport":
            return self._learned().detach_values(q, o)
        if self.connection == "frames" and isinstance(connection, Frames):
            return (connection.q_frames[:, None].mT @ o[..., None]).squeeze(-1)
        return o

    def attend(
        self,
        Q: Tensor,
        K: Tensor,
        V: Tensor,
        *,
        mask: Mask | Tensor | None = None,
        positions: Tensor | None = None,
        tokens: Tensor | None = None,
        key_tokens: Tensor | None = None,
    ) -> Tensor:
        """Attention of heads: Q (B, H, N, d), K and V (B, H, M, d) to (B, H, N, d), before any projection.

        ``mask`` and ``positions`` as in `forward`. "frames" are made from ``tokens`` (B, N, hidden_dim), and those of
        the keys from ``key_tokens`` (B, M, hidden_dim), default ``tokens``, which then must be as many: ShapeError.
        """
        connection = self._connection(Q, K, positions, tokens, key_tokens)
        metric, scale = self._measure()
        q, k = self._points(Q), self._points(K)
        o = aatc.attend(
            q,
            k,
            self._depart(k, V, connection),
            metric=metric,
            connection=connection,
            mask=token_mask(mask, self.causal),
            scale=scale,
            dropout=self.dropout if self.training else 0.0,
        )
        return self._arrive(q, o, connection)

    def attention_metric(
        self,
        Q: Tensor,
        K: Tensor,
        *,
        positions: Tensor | None = None,
        tokens: Tensor | None = None,
        key_tokens: Tensor | None = None,
    ) -> Tensor:
        """Distances between queries and carried keys, whose scores are -β times them.

        They are squared for "euclidean" and "mahalanobis", and -q·k for "dot". Q (B, H, N, d) and K (B, H, M, d) to
        (B, H, N, M), in N·M memory. The rest as in `attend`.
        """
        metric, _ = self._measure()
        connection = self._connection(Q, K, positions, tokens, key_tokens)
        return -pair_scores(self._points(Q), self._points(K), metric, connection)

    def compute_geodesics(
        self,
        Q: Tensor,
        K: Tensor,
        steps: int = 8,
        *,
        positions: Tensor | None = None,
        tokens: Tensor | None = None,
        key_tokens: Tensor | None = None,
    ) -> Tensor:
        """The shortest path from every carried key to every query: points (steps + 1, B, H, N, M, D) at equal times.

        Q (B, H, N, d), K (B, H, M, d); the key is at time 0, the query at 1. Points are those of the metric's space:
        features for "euclidean" and "mahalanobis", the ball, the unit sphere, distributions, stereographic coordinates
        for either sign of a curvature, and on the hyperboloid D = d + 1 coordinates, time first. In N·M·D memory per
        time. "dot" has no geodesics: ScoreError; antipodes have no shortest one: CutLocusError. The seed's method took
        the metric, which has no ends. The rest as in `attend`.
        """
        metric, _ = self._measure()
        connection = self._connection(Q, K, positions, tokens, key_tokens)
        return pair_geodesics(self._points(Q), self._points(K), metric, connection, steps)

    def transport_values(
        self,
        Q: Tensor,
        K: Tensor,
        V: Tensor,
        *,
        positions: Tensor | None = None,
        tokens: Tensor | None = None,
        key_tokens: Tensor | None = None,
    ) -> Tensor:
        """Every value as the feature it arrives as at every query, (B, H, N, M, d), in N·M·d memory.

        `attend` is the mean of these by the attention's weights; it takes the same arguments, and a mask.
        """
        connection = self._connection(Q, K, positions, tokens, key_tokens)
        q, k = self._points(Q), self._points(K)
        departed = self._depart(k, V, connection)
        if connection is None:
            carried = departed[:, :, None].expand(*Q.shape[:3], *V.shape[2:])
        else:
            carried = carried_values(q, k, departed, connection)
        return torch.stack([self._arrive(q, o, connection) for o in carried.unbind(3)], 3)

    def forward(self, x: Tensor, mask: Mask | Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Tokens (B, N, hidden_dim) to tokens.

        ``mask``: bool (B, N), True for tokens that exist, or (B, N, N), (B, H, N, N), True where a query may attend,
        or an object of `aatc.masks`. ``positions`` are those of "rotary", (N,), (N, A) or (B, N, A), default 0..N-1.
        Raises ShapeError, CaptureError.
        """
        check_tokens(x, self.hidden_dim, "GeometricAttention")
        Q, K, V = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, -1))
        out: Tensor = self.out(merge_heads(self.attend(Q, K, V, mask=mask, positions=positions, tokens=x)))
        return out
