"""Where the elements of buffers lie: what their types promise, who may promise it, and who may read what.

A promise in the type of an operation's result is kept by every backend; only operations whose traits name layouts make
one. Where a type says nothing, an argument of a tile function has any strides, and so has what an operation makes whose
traits say nothing else: a backend may hand out a view, or lay it out as it likes. Packed buffers stay inside: only what
views blocks of them, `tile.load`, reads them, and `tile.store` fills whole panels of one that `tile.alloc` made.
"""

from __future__ import annotations

from aatc.ir.blame import fail
from aatc.ir.core import Func, Op, Value
from aatc.ir.errors import VerifyError
from aatc.ir.registry import lookup_op
from aatc.ir.types import LAYOUTS, TensorType


def layout_of(v: Value) -> str:
    """What may be assumed of a buffer's layout; empty for nothing."""
    if not isinstance(v.type, TensorType):
        return ""
    return v.type.layout or (lookup_op(v.owner.name).traits.layouts[0] if isinstance(v.owner, Op) else "")


def check_layouts(func: Func) -> None:
    """Layouts are made by who can make them, and packed buffers read by who can read them."""
    for arg in func.args:
        if isinstance(arg.type, TensorType) and arg.type.layout not in ("", *LAYOUTS):
            raise VerifyError(f"argument %{arg.name or '?'} of @{func.name} is {arg.type}", at=func, hint=_STRIDES)
    for op in func.body.walk():
        traits = lookup_op(op.name).traits
        for v in op.results:
            layout = v.type.layout if isinstance(v.type, TensorType) else ""
            if layout and ("panels" if v.type.panel else layout) not in traits.layouts:  # type: ignore[attr-defined]
                fail(op, f"{op.name} makes no buffer of layout {layout}", _MADE.get(layout, _STRIDES))
        for v in op.operands:
            if isinstance(v.type, TensorType) and v.type.panel and not traits.view and op.name != "tile.store":
                fail(op, f"{op.name} takes a buffer with strides, %{v.name or '?'} is {v.type}", _STRIDES)


_STRIDES = "panels are made by tile.pack, or tile.alloc and tile.store, and read by tile.load, inside of one function"
_MADE = dict.fromkeys(LAYOUTS, "tile.token and tile.alloc do")


def verify_pack(op: Op) -> None:
    buffer, made = op.operands[0].type, op.results[0].type
    if not isinstance(buffer, TensorType) or buffer.rank != 3:
        raise VerifyError(f"tile.pack copies a buffer of problems, tokens and features, not {buffer}")
    if not isinstance(made, TensorType) or (made.dtype, made.shape) != (buffer.dtype, buffer.shape) or not made.panel:
        shape = ",".join(map(str, buffer.shape))
        raise VerifyError(f"tile.pack of {buffer} yields {buffer.dtype}[{shape}; panels(n)], not {made}")
