"""Plain attention of the transformer as a module."""

from __future__ import annotations

from torch import Tensor, nn

from aatc.errors import ShapeError
from aatc.masks import Mask
from aatc.nn.functional import scaled_dot_product_attention
from aatc.nn.tokens import check_dropout


class TransformerAttention(nn.Module):
    """softmax(q kᵀ/√d) v without projections, weights thinned by ``dropout`` while training.

    ``d_model`` is the width of a token: q, k and v are (..., n, d_model), or (..., heads, n, d_model/heads).

    The seed divided scores by √d_model whatever the width of its heads, so that several heads were scaled twice; here
    d is the width that is contracted. It hid pairs *where the mask is 0* by -1e9 and returned weights in every call;
    here a mask is bool, True where a query may attend, and weights are made when ``need_weights`` asks for them.
    """

    def __init__(self, d_model: int, dropout: float = 0.1) -> None:
        super().__init__()
        if d_model < 1:
            raise ShapeError(f"d_model is {d_model}", hint="a token has at least one feature")
        self.d_model, self.dropout = d_model, check_dropout(dropout)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, dropout={self.dropout}"

    def _check(self, name: str, x: Tensor) -> None:
        whole = x.dim() >= 2 and x.shape[-1] == self.d_model
        in_heads = x.dim() >= 3 and x.shape[-3] * x.shape[-1] == self.d_model
        if not whole and not in_heads:
            raise ShapeError(
                f"{name} has shape {tuple(x.shape)}, d_model is {self.d_model}",
                hint="give (..., length, d_model), or (..., heads, length, d_model / heads)",
            )

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The output (..., n, d_v), and the weights (..., n, m) after dropout if asked for, else None.

        ``mask``: see `scaled_dot_product_attention`. Raises ShapeError, CaptureError.
        """
        for name, x in (("q", q), ("k", k), ("v", v)):
            self._check(name, x)
        dropout = self.dropout if self.training else 0.0
        found = scaled_dot_product_attention(q, k, v, mask, dropout=dropout, return_weights=need_weights)
        return found if need_weights else (found, None)
