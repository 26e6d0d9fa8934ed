"""Operations on whole buffers: each says into how many tasks it falls, and writes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aatc.backends.native.emit import Emitter, resized
from aatc.backends.native.llvm import MEMORY, Val, index, number, size_of, vector_of
from aatc.backends.native.table import lowering
from aatc.ir.core import Op
from aatc.ir.dims import Dim
from aatc.ir.types import TensorType

Extents = list[tuple[Dim, int]]


@dataclass(frozen=True)
class Whole:
    """``extents``: of loops whose rounds are the tasks; ``write``: one task, given the positions of these loops."""

    extents: Callable[[Op], Extents]
    write: Callable[[Emitter, Op, list[Val]], None]


WHOLE: dict[str, Whole] = {}


def whole(name: str, extents: Callable[[Op], Extents]):  # type: ignore[no-untyped-def]
    def register(write: Callable[[Emitter, Op, list[Val]], None]) -> Callable[[Emitter, Op, list[Val]], None]:
        WHOLE[name] = Whole(extents, write)
        lowering(name)(write)
        return write

    return register


def _shape(op: Op) -> tuple[Dim, ...]:
    t: TensorType = op.operands[0].type  # type: ignore[assignment]
    return t.shape


#: Panels that a task fills.
_PANELS = 4


@whole("tile.pack", lambda op: [(_shape(op)[0], 1), (_shape(op)[1], op.result.type.panel * _PANELS)])  # type: ignore[attr-defined]
def pack(e: Emitter, op: Op, at: list[Val]) -> None:
    buffer, made, code = op.operands[0], op.result, e.code
    t: TensorType = made.type  # type: ignore[assignment]
    memory, panel = MEMORY[t.dtype], t.panel
    width = int(t.shape[2])
    tokens = e.dim(t.shape[1])
    source = code.at(e.buffer(buffer), code.mul(at[0], e.stride(buffer, 0)), memory)
    size = code.mul(
        code.op("i64", f"udiv i64 {code.add(tokens, index(panel - 1)).text}, {panel}"), index(panel * width)
    )
    to = code.at(e.buffer(made), code.mul(at[0], size), memory)
    end = code.call("llvm.smin", "i64", [code.add(at[1], index(panel * _PANELS)), tokens])
    row, col = e.stride(buffer, 1), e.stride(buffer, 2)

    def one_panel(j: Val) -> None:
        place = code.at(to, code.mul(j, index(width)), memory)

        def token(n: Val) -> None:
            k = code.add(j, n)
            inside = code.compare("slt", k, tokens)
            line = code.at(source, code.mul(code.select(inside, k, index(0)), row), memory)

            def feature(d: Val) -> None:
                x = code.load(memory, code.at(line, code.mul(d, col), memory))
                x = code.select(inside, x, number(0, memory))
                code.store(x, code.at(place, code.add(code.mul(d, index(panel)), n), memory))

            e.each_row(index(width), feature)

        code.loop(index(0), index(panel), 1, lambda n: token(n))

    code.loop(at[1], end, panel, lambda j: one_panel(j))


def _lines(op: Op) -> Extents:
    """A task per vector of the axes before the last two, or per entry of the first axis."""
    return [(d, 1) for d in _shape(op)[: max(0, len(_shape(op)) - 2)]]


@whole("tile.peak", _lines)
def peak(e: Emitter, op: Op, at: list[Val]) -> None:
    """Magnitudes are compared as integers, which order as they do, NaN above all: tasks may come in any order."""
    (buffer,), code = op.operands, e.code
    t: TensorType = buffer.type  # type: ignore[assignment]
    memory = MEMORY[t.dtype]
    bits = "i64" if size_of(memory) == 8 else "i32"
    base = _offset(e, op, at)
    axes = list(range(len(at), len(t.shape)))
    zero = number(0, memory)

    def length(at_row: Val, axis: int) -> Val:
        """Of the vector along ``axis``, or its largest magnitude."""
        stride = e.stride(buffer, axis)

        def step(d: Val, so_far: Val) -> list[Val]:
            x = code.load(memory, code.at(at_row, code.mul(d, stride), memory))
            if op.attrs["rows"]:
                return [code.fma(x, x, so_far)]
            return [code.call("llvm.maximum", memory, [so_far, code.call("llvm.fabs", memory, [x])])]

        (out,) = code.loop(index(0), e.dim(t.shape[axis]), 1, step, [zero])
        return code.call("llvm.sqrt", memory, [out]) if op.attrs["rows"] else out

    if len(axes) < 2:
        most = length(base, axes[0]) if axes else code.call("llvm.fabs", memory, [code.load(memory, base)])
    else:
        stride = e.stride(buffer, axes[0])
        (most,) = code.loop(
            index(0),
            e.dim(t.shape[axes[0]]),
            1,
            lambda n, m: [
                code.call("llvm.maximum", memory, [m, length(code.at(base, code.mul(n, stride), memory), axes[1])])
            ],
            [zero],
        )
    most = code.call("llvm.fabs", memory, [most])
    as_bits = code.cast("bitcast", most, bits)
    to = e.buffer(op.result)
    code.touches(bits, to)
    code.op(bits, f"atomicrmw umax ptr {to.text}, {bits} {as_bits.text} monotonic")


def _offset(e: Emitter, op: Op, at: list[Val]) -> Val:
    buffer, code = op.operands[0], e.code
    offset = index(0)
    for axis, p in enumerate(at):
        offset = code.add(offset, code.mul(p, e.stride(buffer, axis)))
    return code.at(e.buffer(buffer), offset, MEMORY[buffer.type.dtype])  # type: ignore[attr-defined]


def _around_tokens(op: Op) -> Extents:
    token = next(n for n, c in enumerate(op.attrs["axes"]) if c in "ij")
    return [(d, 1) for d in _shape(op)[:token]]


@whole("tile.centre", _around_tokens)
def centre(e: Emitter, op: Op, at: list[Val]) -> None:
    (buffer,), code = op.operands, e.code
    t: TensorType = buffer.type  # type: ignore[assignment]
    made: TensorType = op.result.type  # type: ignore[assignment]
    token = len(at)
    memory = MEMORY[t.dtype]
    base = _offset(e, op, at)
    n, stride = e.dim(t.shape[token]), e.stride(buffer, token)
    rest = list(range(token + 1, len(t.shape)))
    place = index(0)
    for axis, p in enumerate(at):
        place = code.add(place, code.mul(p, e.stride(op.result, axis)))

    def mean(offset: Val, to: Val) -> None:
        def step(k: Val, total: Val) -> list[Val]:
            x = code.load(memory, code.at(base, code.add(offset, code.mul(k, stride)), memory))
            x = resized(code, x, "double")
            size = code.call("llvm.fabs", "double", [x])
            finite = code.compare("olt", size, number(float("inf"), "double"))
            return [code.add(total, code.select(finite, x, number(0, "double")))]

        (total,) = code.loop(index(0), n, 1, step, [number(0, "double")])
        count = code.cast("sitofp", n, "double")
        some = code.compare("sgt", n, index(0))
        found = code.select(some, code.div(total, code.select(some, count, number(1, "double"))), number(0, "double"))
        at_mean = code.at(e.buffer(op.result), code.add(place, to), MEMORY[made.dtype])
        code.store(resized(code, found, MEMORY[made.dtype]), at_mean)

    def axis_loop(axes: list[int], offset: Val, to: Val) -> None:
        if not axes:
            mean(offset, to)
            return
        first, *others = axes
        step = e.stride(buffer, first)
        out = e.stride(op.result, first - 1)
        code.loop(
            index(0),
            e.dim(t.shape[first]),
            1,
            lambda x: axis_loop(others, code.add(offset, code.mul(x, step)), code.add(to, code.mul(x, out))),
        )

    axis_loop(rest, index(0), index(0))
    _ = vector_of
