"""What metrics, connections, biases and masks have in common: a key of plain constants, and captured tensors.

The key alone decides which expressions a part stands for, so their text is made once per key, and
torch.compile may take it for a constant; tensors travel beside it. Nothing in an `__init__`, `key` or
`captures` builds expressions: they are traced by Dynamo when a part is made inside a model's forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch

from aatc.ir.errors import CaptureError
from aatc.ir.score.expr import Expr, const

Key = tuple[Any, ...]
_TENSOR = "tensor"


class Capture(NamedTuple):
    """A tensor handed to an attention: ``axes`` names its dimensions (b h i j, then d e or t u)."""

    name: str
    tensor: torch.Tensor
    axes: str
    dtype: str = "f"  # f number, i integer, b truth value


class Sizes(NamedTuple):
    """Sizes of one attention: (b, h, i, j) and the feature dimensions of q, k and of v."""

    b: int
    h: int
    i: int
    j: int
    d: int
    dv: int
    dtype: torch.dtype
    device: torch.device


class Part:
    """A declarative piece of an attention. Subclasses add a classmethod that builds its expressions."""

    tag: ClassVar[str] = "part"
    _classes: ClassVar[dict[str, type[Part]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.tag = f"{cls.__module__}.{cls.__qualname__}"
        cls._key = (cls.tag,)
        Part._classes[cls.tag] = cls

    _key: Key = ("part",)

    def _set_key(self, *constants: Any) -> None:
        # made once, of texts: torch.compile would take a number it finds in an object for a variable
        self._key = (self.tag, *constants)

    def key(self) -> Key:
        """Plain constants (texts, truth values, nested keys) that decide the expressions, after `tag`."""
        return self._key

    def captures(self, sizes: Sizes) -> list[Capture]:
        """The captured tensors, in the order the builder takes them."""
        return []

    @staticmethod
    def of_key(key: Key) -> type[Any]:
        return Part._classes[key[0]]

    def __repr__(self) -> str:
        fields = ", ".join(f"{n}={_shown(x)}" for n, x in vars(self).items() if not n.startswith("_"))
        return f"{type(self).__name__}({fields})"


def _shown(x: Any) -> str:
    return f"<{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}>" if isinstance(x, torch.Tensor) else repr(x)


def number_text(x: Any) -> str:
    """A number as text. While a graph is traced this fixes a symbolic number to the value at hand."""
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_scalar

        x = guard_scalar(x)
    return repr(float(x))


def integer_text(x: Any) -> str:
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_scalar

        x = guard_scalar(x)
    return repr(int(x))


def same(found: Any, wanted: Any) -> bool:
    """Whether two sizes are equal; sizes unknown until the model runs are taken to be."""
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_or_true

        return guard_or_true(found == wanted)
    return bool(found == wanted)


def scalar_key(x: Any) -> str:
    """Key of a parameter that is a number or a tensor."""
    return _TENSOR if isinstance(x, torch.Tensor) else number_text(x)


def scalar_captures(name: str, x: Any) -> list[Capture]:
    """A tensor of shape () or (H,) as a capture; a plain number needs none."""
    if not isinstance(x, torch.Tensor):
        return []
    if x.dim() == 0:
        return [Capture(name, x, "")]
    if x.dim() == 1:
        return [Capture(name, x, "h")] if x.shape[0] != 1 else [Capture(name, x.reshape(()), "")]
    raise CaptureError(f"{name} has shape {tuple(x.shape)}; it is one number, or one per head: () or (H,)")


def scalar_expr(key: str, captured: Iterator[Expr]) -> Expr:
    return next(captured) if key == _TENSOR else const(float(key))


def pair_capture(name: str, tensor: torch.Tensor, sizes: Sizes, dtype: str) -> Capture:
    """A tensor (M,), (N, M), (H, N, M) or (B, H, N, M), any of them 1 to be shared, as a capture."""
    if not 1 <= tensor.dim() <= 4:
        raise CaptureError(f"{name} has shape {tuple(tensor.shape)}; it may be (M,), (N, M), (H, N, M) or (B, H, N, M)")
    wanted = (sizes.b, sizes.h, sizes.i, sizes.j)[4 - tensor.dim() :]
    axes, dropped = "", []
    for d, axis in enumerate("bhij"[4 - tensor.dim() :]):
        if not same(tensor.shape[d], wanted[d]) and tensor.shape[d] == 1:
            dropped.append(d)
        else:
            axes += axis
    for d in reversed(dropped):
        tensor = tensor.squeeze(d)
    return Capture(name, tensor, axes, dtype)
