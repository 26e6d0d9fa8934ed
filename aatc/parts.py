"""What metrics, connections, biases and masks have in common: a key of plain constants, and captured tensors.

The key alone decides which expressions a part stands for, so their text is made once per key, and
torch.compile may take it for a constant; tensors travel beside it. Nothing in an `__init__`, `key`,
`captures` or `described` builds expressions while Dynamo traces it.

Numbers in parts (offset, width, beta, ...) are read when an attention is described, not when the part is made.
One that is known stands in the key; one that torch.compile has seen to vary is a captured tensor like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from aatc.geometry.manifold import holds
from aatc.ir.errors import CaptureError, ScoreError
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
        Part._classes[cls.tag] = cls

    def key(self) -> Key:
        """Plain constants (texts, truth values, nested keys) that decide the expressions, after `tag`. Numbers are
        texts: 1, 1.0 and True are equal as parts of a key, and not as parts of a program."""
        return (self.tag,)

    def captures(self, sizes: Sizes) -> list[Capture]:
        """The captured tensors, in the order the builder takes them."""
        return []

    def described(self, sizes: Sizes) -> tuple[Key, list[Capture]]:
        """Key and captures, read together: a part of a user's function runs it once for both."""
        return self.key(), self.captures(sizes)

    @staticmethod
    def of_key(key: Key) -> type[Any]:
        return Part._classes[key[0]]

    def __repr__(self) -> str:
        fields = ", ".join(f"{n}={_shown(x)}" for n, x in vars(self).items() if not n.startswith("_"))
        return f"{type(self).__name__}({fields})"


def _shown(x: Any) -> str:
    return f"<{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}>" if isinstance(x, torch.Tensor) else repr(x)


def plain(x: Any) -> Any:
    """``x``; a number or an array of numpy's as one of Python's or a tensor. Dynamo takes all of numpy's for arrays,
    whose values it does not know."""
    if isinstance(x, (np.ndarray, np.generic)):
        return torch.as_tensor(x) if torch.compiler.is_compiling() or x.ndim else x.item()
    return x


def varies(x: Any) -> bool:
    """Whether a number is unknown while a graph is traced: one of a size, or one that has changed between calls."""
    if not torch.compiler.is_compiling() or not isinstance(x, (int, float, torch.SymInt, torch.SymFloat)):
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(x)


def text_of(x: int | float) -> str:
    """A number that is known, as a text. Dynamo has no `repr` of one that it worked out from sizes: M - N where the two
    are the same size is 0."""
    return f"{x!r}"


def is_integer(x: Any) -> bool:
    return isinstance(x, (int, torch.SymInt)) and not isinstance(x, bool)


def captured(x: Any) -> bool:
    """Whether a parameter, a number or a tensor, is handed to the program as a tensor."""
    return isinstance(x, torch.Tensor) or varies(x)


def same(found: Any, wanted: Any) -> bool:
    """Whether two sizes are equal; sizes unknown until the model runs are taken to be."""
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_or_true

        return guard_or_true(found == wanted)
    return bool(found == wanted)


def scalar_key(x: Any, what: str = "a parameter") -> str:
    """Key of a parameter that is a number or a tensor. ScoreError for a number that is known and not finite."""
    x = number(what, x)
    if captured(x):
        return _TENSOR
    if not math.isfinite(x):
        raise ScoreError(f"{what} is {float(x)}, not a finite number")
    return text_of(float(x))


def scalar_captures(name: str, x: Any, sizes: Sizes) -> list[Capture]:
    """A tensor of shape () or (H,) as a capture, and a number that varies; one that is known needs none."""
    x = plain(x)
    if not captured(x):
        return []
    if not isinstance(x, torch.Tensor):
        return [Capture(name, as_tensor(x, number_dtype(sizes), sizes.device), "")]
    if x.dim() == 0:
        return [Capture(name, x, "")]
    if x.dim() == 1:
        return [Capture(name, x, "h")] if x.shape[0] != 1 else [Capture(name, x.reshape(()), "")]
    raise CaptureError(f"{name} has shape {tuple(x.shape)}; it is one number, or one per head: () or (H,)")


def curvature(x: Any, *, positive: bool = True) -> Any:
    """``x``, if it is a number of doubles that can be a curvature, or a tensor; ScoreError otherwise."""
    x = number("the curvature", x)
    if isinstance(x, torch.Tensor):
        return x
    # limits are written out: Dynamo would make inputs of names for them
    if not -1.7976931348623157e308 <= x <= 1.7976931348623157e308 or (positive and not x > 0):
        raise ScoreError(
            f"curvature {x} is not {'positive' if positive else 'finite'}",
            hint="it is the absolute value of the sectional curvature, more than 0" if positive else None,
        )
    return x


def curvature_captures(x: Any, sizes: Sizes, *, positive: bool = True, divides: bool = False) -> list[Capture]:
    """`scalar_captures` of a curvature. ScoreError for a number that the precision of scores does not hold, nor, where
    its root ``divides``, that. The value of a tensor is looked at in eager mode alone: ScoreError for NaN, infinity and
    a wrong sign."""
    found = scalar_captures("curvature", x, sizes)
    # the limits are written out, as in `curvature`
    wide = captured(x) or number_dtype(sizes) == torch.float64
    if not wide and (not -3.4028234e38 <= x <= 3.4028234e38 or (divides and x < 1.4e-76)):
        raise ScoreError(
            f"curvature {x} is beyond single precision, in which the scores of {sizes.dtype} are computed",
            hint="give q, k and v in float64, or lengths in another unit: points s times as long have curvature c/s²",
        )
    for c in found:
        seen = c.tensor.detach()
        if seen.is_floating_point() and not holds(seen.isfinite() & (seen > 0) if positive else seen.isfinite()):
            wanted = "positive and finite" if positive else "finite"
            raise ScoreError(
                f"curvature is not {wanted}: {seen.tolist()}",
                hint="learn its logarithm and hand on .exp()" if positive else None,
            )
    return found


def scalar_expr(key: str, captured: Iterator[Expr]) -> Expr:
    return next(captured) if key == _TENSOR else const(float(key))


def number_dtype(sizes: Sizes) -> torch.dtype:
    """The dtype of numbers that become tensors: that of scores."""
    return torch.float64 if sizes.dtype == torch.float64 else torch.float32


def as_tensor(x: Any, dtype: torch.dtype, device: torch.device | str | None = None) -> torch.Tensor:
    """A number, which may vary, as a tensor without dimensions."""
    if dtype.is_floating_point:  # by a product: AOTAutograd turns a number in `full` into a constant
        number: torch.Tensor = torch.ones((), dtype=dtype, device=device) * x
        return number
    return torch.full((), x, dtype=dtype, device=device)


def number(what: str, x: Any) -> Any:
    """``x``, if it is a real number that doubles hold or a tensor; ScoreError otherwise."""
    x = plain(x)
    if isinstance(x, (float, torch.Tensor, torch.SymInt, torch.SymFloat)) or varies(x):
        return x
    # the limit is written out: Dynamo would make an input of a name for it, and record again
    if isinstance(x, int) and not -1.7976931348623157e308 <= x <= 1.7976931348623157e308:
        raise ScoreError(f"{what} is larger than any number of double precision")
    if isinstance(x, int):
        return x
    if hasattr(x, "__float__"):
        try:
            return float(x)
        except (OverflowError, TypeError, ValueError) as error:
            raise ScoreError(f"{what} is {x!r}, of which there is no number of double precision: {error}") from error
    raise ScoreError(f"{what} is {x!r}; it is a number or a tensor")


def tensor(what: str, x: Any) -> torch.Tensor:
    """``x``, if it is a dense tensor; CaptureError otherwise."""
    if not isinstance(x, torch.Tensor):
        raise CaptureError(f"{what} is a {type(x).__name__}, not a tensor", hint="torch.tensor(...) makes one")
    if x.layout != torch.strided or x.is_nested:
        raise CaptureError(f"{what} is a tensor of layout {x.layout}", hint="it is a dense tensor: .to_dense()")
    return x


def integer(what: str, x: Any, bits: int = 62) -> Any:
    """``x``, if it is an integer below 2**bits in size or an integer tensor of one entry; ScoreError otherwise."""
    x = plain(x)
    if isinstance(x, torch.Tensor):
        if x.dim() or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise ScoreError(f"{what} is a tensor of {x.dtype} of shape {tuple(x.shape)}; it is one integer")
        return x
    if not is_integer(x):
        if not hasattr(x, "__index__"):
            raise ScoreError(f"{what} is {x!r}; it is an integer")
        x = int(x)
    if not varies(x) and not -(2**bits) <= x < 2**bits:
        raise ScoreError(f"{what} is {x}, which leaves {bits} bits")
    return x


def integer_key(x: Any) -> str:
    """Key of an integer, which may be a tensor."""
    return _TENSOR if captured(x) else text_of(int(x))


def integer_captures(name: str, x: Any, sizes: Sizes) -> list[Capture]:
    if not captured(x):
        return []
    if not isinstance(x, torch.Tensor):
        x = as_tensor(x, torch.int64, sizes.device)
    return [Capture(name, x, "", "i")]


def integer_expr(key: str, captured: Iterator[Expr]) -> Expr:
    return next(captured) if key == _TENSOR else const(int(key))


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
