"""Whether all numbers of a tensor are finite, by vector code on the calling thread.

torch's sum would call all threads for some thousand numbers, and on a busy machine wait for them longer than a small
attention takes.
"""

from __future__ import annotations

import functools
from array import array
from typing import Any

import torch

from aatc.backends.native import launch, machine
from aatc.backends.native.isa import Isa
from aatc.backends.native.llvm import Code, Module, Val, index, number, vector_of
from aatc.ir.containment import sums_up

#: Numbers that one thread looks at.
_ALONE = 1 << 20
#: Integers of a number's size, and the bits of infinity, above which NaNs are.
_BITS = {
    torch.float64: ("i64", 0x7FF0 << 48),
    torch.float32: ("i32", 0x7F80 << 16),
    torch.bfloat16: ("i16", 0x7F80),
    torch.float16: ("i16", 0x7C00),
}
#: Axes of a tensor that code walks; its last entries are neighbours. Places of the context: address, extents, strides
#: of all axes but the last, whether a number was found that is not finite.
_AXES = 4
_FOUND = 2 * _AXES
_UNROLL = 4


class Finite:
    """Called with a tensor of any type and layout; integers are finite."""

    def __init__(self, isa: Isa):
        self.isa = isa

    def __call__(self, t: torch.Tensor) -> bool:
        n = t.numel()
        if n > _ALONE or t.dtype not in _BITS or not t.is_cpu:
            return sums_up(t)
        context = array("q", bytes(8 * (_FOUND + 1)))
        context[0] = at = t.data_ptr()
        if not at:  # empty, or zeros without memory
            return True
        if t.is_contiguous():
            context[1] = context[2] = context[3] = 1
            context[4] = n
        else:
            rank, strides = t.dim(), t.stride()
            if rank > _AXES or strides[-1] != 1:
                return sums_up(t)
            for axis in range(1, _AXES + 1):
                context[axis] = t.shape[rank - 1 - _AXES + axis] if rank - 1 - _AXES + axis >= 0 else 1
            for axis in range(1, _AXES):
                context[_AXES + axis] = strides[rank - 1 - _AXES + axis] if rank - 1 - _AXES + axis >= 0 else 0
        function, _ = _code(self.isa, t.dtype)
        function(context.buffer_info()[0])
        return not context[_FOUND]


@functools.cache
def _code(isa: Isa, dtype: torch.dtype) -> tuple[Any, machine.Library]:
    """The function of a context, and what must live as long."""
    bits, infinity = _BITS[dtype]
    module = Module()
    code = Code(module, "look", [("context", "ptr")])
    lanes = max(2, isa.vector_bytes // (int(bits[1:]) // 8))
    v = vector_of(bits, lanes)
    rest = number(~(-1 << (int(bits[1:]) - 1)), v)

    def word(place: int, type_: str = "i64") -> Val:
        return code.load(type_, code.at(code.args[0], index(place), "i64"), align=8)

    base = word(0, "ptr")
    *extents, last = [word(n) for n in range(1, _AXES + 1)]
    strides = [word(n) for n in range(_AXES + 1, 2 * _AXES)]
    step = _UNROLL * lanes
    whole = code.binary("and", last, index(-step))

    def larger(a: Val, b: Val) -> Val:
        return code.call("llvm.umax", v, [a, b])

    def of(at: Val, keep: Val | None) -> Val:
        return code.binary("and", code.load(v, at, align=int(bits[1:]) // 8, keep=keep), rest)

    def row(start: Val, found: list[Val]) -> list[Val]:
        def several(j: Val, *most: Val) -> list[Val]:
            starts = [code.at(start, code.add(j, index(n * lanes)), bits) for n in range(_UNROLL)]
            return [larger(m, of(at, None)) for m, at in zip(most, starts, strict=True)]

        def one(j: Val, *most: Val) -> list[Val]:
            keep = code.below(j, last, lanes)
            return [larger(most[0], of(code.at(start, j, bits), keep)), *most[1:]]

        found = code.loop(index(0), whole, step, several, found)
        return code.loop(whole, last, lanes, one, found)

    def walk(axis: int, start: Val, found: list[Val]) -> list[Val]:
        if axis == len(extents):
            return row(start, found)
        return code.loop(
            index(0),
            extents[axis],
            1,
            lambda i, *most: walk(axis + 1, code.at(start, code.mul(i, strides[axis]), bits), list(most)),
            found,
        )

    a, b, c, d = walk(0, base, [number(0, v)] * _UNROLL)
    most = code.call("llvm.vector.reduce.umax", bits, [larger(larger(a, b), larger(c, d))], [v])
    bad = code.cast("zext", code.compare("uge", most, number(infinity, bits)), "i64")
    code.store(bad, code.at(code.args[0], index(_FOUND), "i64"), align=8)
    code.do("ret void")
    code.finish("nounwind")
    library = machine.load(module.text(), isa)
    return launch.function(library.address("look")), library
