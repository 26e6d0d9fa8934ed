"""A vision transformer whose patches attend by distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aatc.connections import Connection
from aatc.errors import ShapeError
from aatc.metrics import Metric
from aatc.nn.geometric import GeometricAttention
from aatc.nn.tokens import split_heads


class _Layer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, hidden_dim: int, attention: GeometricAttention, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.before, self.between = nn.LayerNorm(hidden_dim), nn.LayerNorm(hidden_dim)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_dim, 2 * hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * hidden_dim, hidden_dim)
        )

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x + self.attention(self.before(x), positions=positions)
        out: Tensor = x + self.mlp(self.between(x))
        return out


class GeodesicViT(nn.Module):
    """Images (B, channels, s, s) to logits (B, num_classes).

    The image is cut into (s/p)² patches of p × p pixels, each a token; ``depth`` layers of `GeometricAttention` move
    information between them, and the mean token is classified. ``metric``, ``connection`` and ``curvature`` are those
    of `GeometricAttention`; "rotary" turns by a patch's row and column and needs heads of a multiple of 4 features.

    The seed computed patch_metric, geodesics, and a flow along them with nothing defined. Here `flow_information` is
    the layers, whose weights are made from the metric that `patch_metric` shows, and `attention_geodesics` its paths.

    Raises ShapeError and ScoreError.
    """

    positions: Tensor

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        channels: int,
        num_classes: int,
        hidden_dim: int,
        depth: int,
        heads: int,
        metric: str | Metric = "lorentz",
        *,
        connection: str | Connection | None = "rotary",
        dropout: float = 0.0,
        curvature: float | None = None,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size < 1 or image_size % patch_size:
            raise ShapeError(
                f"images of {image_size} pixels a side cannot be cut into patches of {patch_size}",
                hint="image_size must be a multiple of patch_size",
            )
        if depth < 1:
            raise ShapeError(f"depth is {depth}", hint="there is at least one layer")
        self.image_size, self.patch_size, self.channels = image_size, patch_size, channels
        side = image_size // patch_size
        # The slowest turn of grids of a few dozen patches a side; text's 10000 would leave most pairs still.
        attentions = [
            GeometricAttention(
                hidden_dim,
                heads,
                metric=metric,
                connection=connection,
                dropout=dropout,
                rotary_base=100,
                curvature=curvature,
            )
            for _ in range(depth)
        ]
        if connection == "rotary" and attentions[0].width % 4:
            raise ShapeError(
                f"rotary turns by row and by column; a head has {attentions[0].width} features",
                hint="make hidden_dim a multiple of 4 * heads",
            )
        self.embed = nn.Linear(channels * patch_size**2, hidden_dim)
        self.place = nn.Parameter(0.02 * torch.randn(side**2, hidden_dim))
        self.layers = nn.ModuleList(_Layer(hidden_dim, attention, dropout) for attention in attentions)
        self.head = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, num_classes))
        axis = torch.arange(side)
        self.register_buffer("positions", torch.cartesian_prod(axis, axis))

    def patches(self, images: Tensor) -> Tensor:
        """Images (B, C, s, s) as patches (B, n, C·p²), rows first; patches are handed back. ShapeError."""
        n, features = self.place.shape[0], self.embed.in_features
        if images.dim() == 3 and images.shape[1:] == (n, features):
            return images
        if images.dim() != 4 or images.shape[1:] != (self.channels, self.image_size, self.image_size):
            raise ShapeError(
                f"GeodesicViT got images of shape {tuple(images.shape)}",
                hint=f"images are (batch, {self.channels}, {self.image_size}, {self.image_size}), "
                f"patches (batch, {n}, {features})",
            )
        p = self.patch_size
        cut = images.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # b, c, row, y, column, x
        patches: Tensor = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return patches

    def tokens(self, images: Tensor) -> Tensor:
        """Images or patches as tokens (B, n, hidden_dim)."""
        tokens: Tensor = self.embed(self.patches(images)) + self.place
        return tokens

    def flow_information(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, hidden_dim) through all layers."""
        for layer in self.layers:
            tokens = layer(tokens, self.positions)
        return tokens

    def process_image(self, images: Tensor) -> Tensor:
        """Images or patches to the tokens after the last layer, (B, n, hidden_dim)."""
        return self.flow_information(self.tokens(images))

    def patch_metric(self, images: Tensor, layer: int = 0) -> Tensor:
        """Distances of queries to keys in a layer, (B, heads, n, n): see `GeometricAttention.attention_metric`.

        ``layer`` counts from 0, or from the end where it is negative. Raises ShapeError.
        """
        attention, query, key, x = self._compared(images, layer)
        return attention.attention_metric(query, key, positions=self.positions, tokens=x)

    def attention_geodesics(self, images: Tensor, layer: int = 0, steps: int = 8) -> Tensor:
        """The shortest paths from keys to queries in a layer, (steps + 1, B, heads, n, n, D), whose lengths
        `patch_metric` gives: see `GeometricAttention.compute_geodesics`. Raises ShapeError, ScoreError."""
        attention, query, key, x = self._compared(images, layer)
        return attention.compute_geodesics(query, key, steps, positions=self.positions, tokens=x)

    def _compared(self, images: Tensor, layer: int) -> tuple[GeometricAttention, Tensor, Tensor, Tensor]:
        """The attention of a layer, its queries and keys (B, heads, n, d), and the tokens that it makes them from."""
        if not -len(self.layers) <= layer < len(self.layers):
            raise ShapeError(f"there is no layer {layer}", hint=f"there are {len(self.layers)}, from 0 on")
        x = self.tokens(images)
        for earlier in self.layers[:layer]:
            x = earlier(x, self.positions)
        seen = self.layers[layer]
        assert isinstance(seen, _Layer)
        x = seen.before(x)
        query, key, _ = (split_heads(t, seen.attention.num_heads) for t in seen.attention.qkv(x).chunk(3, -1))
        return seen.attention, query, key, x

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, s, s) or patches (B, n, C·p²). Raises ShapeError."""
        logits: Tensor = self.head(self.process_image(images).mean(1))
        return logits
