"""How scores become weights."""

from __future__ import annotations

from dataclasses import dataclass

from aatc.ir.errors import UnsupportedError


@dataclass(frozen=True)
class Softmax:
    """weight_ij = exp(s_ij - lse_i). Rows without any admitted key weigh nothing, and have lse = -inf."""

    @property
    def kind(self) -> str:
        return "softmax"


def kind_of(normalizer: str | Softmax) -> str:
    """The name of a normaliser in the IR; UnsupportedError when there is no such one."""
    kind = normalizer if isinstance(normalizer, str) else getattr(normalizer, "kind", None)
    if kind != "softmax":
        raise UnsupportedError(f"normalizer {normalizer!r} is not known", hint='there is "softmax"')
    return kind
