"""Operations on whole buffers: each says into how many tasks it falls, and writes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aatc.backends.native.bf16 import pack_shorts
from aatc.backends.native.elements import line_total
from aatc.backends.native.emit import Emitter, resized
from aatc.backends.native.llvm import MEMORY, Val, index, number, size_of, vector_of
from aatc.backends.native.table import lowering
from aatc.ir.core import Op
from aatc.ir.dims import Dim
from aatc.ir.errors import BackendError
from aatc.ir.types import TensorType

Extents = list[tuple[Dim, int]]


@dataclass(frozen=True)
class Whole:
    """``extents``: of loops whose rounds are the tasks; ``write``: one task, given the positions of these loops."""

    extents: Callable[[Op], Extents]
    write: Callable[[Emitter, Op, list[Val]], None]


WHOLE: dict[str, Whole] = {}


Write = Callable[[Emitter, Op, list[Val]], None]


def whole(name: str, extents: Callable[[Op], Extents]) -> Callable[[Write], Write]:
    def register(write: Write) -> Write:
        WHOLE[name] = Whole(extents, write)
        lowering(name)(write)
        return write

    return register


def _shape(op: Op) -> tuple[Dim, ...]:
    t: TensorType = op.operands[0].type  # type: ignore[assignment]
    return t.shape


#: Tokens that a task packs, or some more.
_TOKENS = 256


def _packed_at_once(op: Op) -> int:
    panel: int = op.result.type.panel  # type: ignore[attr-defined]
    return -(-_TOKENS // panel) * panel


@whole("tile.pack", lambda op: [(_shape(op)[0], 1), (_shape(op)[1], _packed_at_once(op))])
def pack(e: Emitter, op: Op, at: list[Val]) -> None:
    buffer, made, code = op.operands[0], op.result, e.code
    t: TensorType = made.type  # type: ignore[assignment]
    memory, panel = MEMORY[t.dtype], t.panel
    width = int(t.shape[2])
    held = -(-width // t.together) * t.together
    tokens = e.dim(t.shape[1])
    source = code.at(e.buffer(buffer), code.mul(at[0], e.stride(buffer, 0)), memory)
    size = code.mul(code.op("i64", f"udiv i64 {code.add(tokens, index(panel - 1)).text}, {panel}"), index(panel * held))
    to = code.at(e.buffer(made), code.mul(at[0], size), memory)
    end = code.call("llvm.smin", "i64", [code.add(at[1], index(_packed_at_once(op))), tokens])
    row, col = e.stride(buffer, 1), e.stride(buffer, 2)
    if size_of(memory) == 2:
        pack_shorts(e, source, (row, col), to, (at[1], end), tokens, width, t)
        return
    if t.together != 1:
        raise BackendError(f"there are no panels like those of {t}")
    panels(e, source, (row, col), to, (at[1], end), tokens, width, panel, memory)


def panels(
    e: Emitter,
    source: Val,
    strides: tuple[Val, Val],
    to: Val,
    tokens: tuple[Val, Val],
    last: Val,
    width: int,
    panel: int,
    memory: str,
) -> None:
    """Panels of ``tokens``, from the first to behind the last, of vectors at ``source``; behind ``last`` are zeros.
    Squares of numbers are turned in registers."""
    code, lanes = e.code, e.lanes
    row, col = strides
    squares = lanes > 1 and panel % lanes == 0 and col.text == "1"

    def one(k: Val, d: Val, place: Val) -> None:
        inside = code.compare("slt", k, last)
        at = code.add(code.mul(code.select(inside, k, index(0)), row), code.mul(d, col))
        x = code.load(memory, code.at(source, at, memory))
        code.store(code.select(inside, x, number(0, memory)), code.at(to, place, memory))

    def square(j: Val, n: Val, d: int) -> None:
        """Features d ... of the tokens n ... of the panel that begins at token j."""
        v, here = vector_of(memory, lanes), min(lanes, width - d)
        keep = None
        if here < lanes:
            flags = ", ".join(f"i1 {'true' if x < here else 'false'}" for x in range(lanes))
            keep = Val(f"<{flags}>", vector_of("i1", lanes))
        rows = []
        for m in range(lanes):
            k = code.add(code.add(j, n), index(m))
            inside = code.compare("slt", k, last)
            at = code.add(code.mul(code.select(inside, k, index(0)), row), index(d))
            x = code.load(v, code.at(source, at, memory), keep=keep)
            rows.append(code.select(inside, x, number(0, v)))
        for m, x in enumerate(code.transposed(rows)[:here]):
            place = code.add(code.add(code.mul(j, index(width)), index((d + m) * panel)), n)
            code.store(x, code.at(to, place, memory))

    def one_panel(j: Val) -> None:
        if squares:
            for d in range(0, width, lanes):
                code.loop(index(0), index(panel), lanes, lambda n, d=d: square(j, n, d))
            return
        base = code.mul(j, index(width))

        def token(n: Val) -> None:
            e.each_row(
                index(width),
                lambda d: one(code.add(j, n), d, code.add(code.add(base, code.mul(d, index(panel))), n)),
            )

        code.loop(index(0), index(panel), 1, lambda n: token(n))

    code.loop(tokens[0], tokens[1], panel, lambda j: one_panel(j))


def _lines(op: Op) -> Extents:
    """A task per vector of the axes before the last two, or per entry of the first axis."""
    return [(d, 1) for d in _shape(op)[: max(0, len(_shape(op)) - 2)]]


@whole("tile.peak", _lines)
def peak(e: Emitter, op: Op, at: list[Val]) -> None:
    """Magnitudes are compared as integers, which order as they do, NaN above all: tasks may come in any order."""
    (buffer,), code = op.operands, e.code
    t: TensorType = buffer.type  # type: ignore[assignment]
    memory, kind = MEMORY[t.dtype], MEMORY[op.result.type.dtype]  # type: ignore[attr-defined]
    bits = "i64" if size_of(kind) == 8 else "i32"
    base = _offset(e, op, at)
    axes = list(range(len(at), len(t.shape)))
    zero = number(0, kind)

    def read(type_: str, place: Val, keep: Val | None = None) -> Val:
        x = code.load(type_, place, keep=keep)
        return resized(code, x, vector_of(kind, x.lanes))

    def length(at_row: Val, axis: int) -> Val:
        """Of the vector along ``axis``, or its largest magnitude."""
        stride = e.stride(buffer, axis)
        if op.attrs["rows"] and stride.text == "1":

            def squares(j: Val, keep: Val | None) -> Val:
                x = read(vector_of(memory, e.lanes), code.at(at_row, j, memory), keep)
                return code.mul(x, x)

            total = line_total(e, "sum", e.dim(t.shape[axis]), squares, kind)
            return code.call("llvm.sqrt", kind, [total])

        def step(d: Val, so_far: Val) -> list[Val]:
            x = read(memory, code.at(at_row, code.mul(d, stride), memory))
            if op.attrs["rows"]:
                return [code.fma(x, x, so_far)]
            return [code.extreme("llvm.maximum", so_far, code.call("llvm.fabs", kind, [x]))]

        (out,) = code.loop(index(0), e.dim(t.shape[axis]), 1, step, [zero])
        return code.call("llvm.sqrt", kind, [out]) if op.attrs["rows"] else out

    last = e.stride(buffer, axes[-1]) if axes else index(0)
    if not op.attrs["rows"] and len(axes) == 2 and last.text == "1" and e.lanes > 1:
        most = _largest(e, base, [e.dim(t.shape[n]) for n in axes], e.stride(buffer, axes[0]), memory)
        most = resized(code, most, kind)
    elif len(axes) < 2:
        most = length(base, axes[0]) if axes else code.call("llvm.fabs", kind, [read(memory, base)])
    else:
        stride = e.stride(buffer, axes[0])
        (most,) = code.loop(
            index(0),
            e.dim(t.shape[axes[0]]),
            1,
            lambda n, m: [code.extreme("llvm.maximum", m, length(code.at(base, code.mul(n, stride), memory), axes[1]))],
            [zero],
        )
    most = code.call("llvm.fabs", kind, [most])
    as_bits = code.cast("bitcast", most, bits)
    to = e.buffer(op.result)
    code.touches(bits, to)
    code.op(bits, f"atomicrmw umax ptr {to.text}, {bits} {as_bits.text} monotonic")


def _largest(e: Emitter, base: Val, extents: list[Val], row: Val, memory: str) -> Val:
    """The largest magnitude of vectors ``row`` elements apart, or NaN."""
    code, bits = e.code, f"i{8 * size_of(memory)}"
    v = vector_of(bits, e.isa.vector_bytes // size_of(memory))
    magnitudes = number(2 ** (8 * size_of(memory) - 1) - 1, v)

    def larger(most: Val, at: Val, keep: Val | None) -> Val:
        x = code.binary("and", code.load(v, at, keep=keep), magnitudes)
        return code.call("llvm.umax", v, [most, x])

    def of_row(i: Val, most: Val) -> list[Val]:
        start = code.at(base, code.mul(i, row), bits)
        whole = code.op("i64", f"and i64 {extents[1].text}, {-v_lanes}")
        (most,) = code.loop(index(0), whole, v_lanes, lambda j, m: [larger(m, code.at(start, j, bits), None)], [most])
        some = code.compare("slt", whole, extents[1])
        return [
            code.choose(
                some,
                lambda: larger(most, code.at(start, whole, bits), code.below(whole, extents[1], v_lanes)),
                lambda: most,
            )
        ]

    v_lanes = Val("", v).lanes
    (most,) = code.loop(index(0), extents[0], 1, of_row, [number(0, v)])
    return code.cast("bitcast", code.call("llvm.vector.reduce.umax", bits, [most], [v]), memory)


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

    def mean(offset: Val, to: Val, lanes: int, keep: Val | None) -> None:
        wide = vector_of("double", lanes)
        zero = number(0, wide)

        def step(k: Val, total: Val) -> list[Val]:
            at_token = code.at(base, code.add(offset, code.mul(k, stride)), memory)
            x = resized(code, code.load(vector_of(memory, lanes), at_token, keep=keep), wide)
            finite = code.compare("olt", code.call("llvm.fabs", wide, [x]), number(float("inf"), wide))
            return [code.add(total, code.select(finite, x, zero))]

        (total,) = code.loop(index(0), n, 1, step, [zero])
        count = code.cast("sitofp", code.call("llvm.smax", "i64", [n, index(1)]), "double")
        found = code.div(total, code.splat(count, lanes))
        at_mean = code.at(e.buffer(op.result), code.add(place, to), MEMORY[made.dtype])
        code.store(resized(code, found, vector_of(MEMORY[made.dtype], lanes)), at_mean, keep=keep)

    def axes_loop(axes: list[int], offset: Val, to: Val) -> None:
        if not axes:
            mean(offset, to, 1, None)
            return
        first, *others = axes
        extent, step, out = e.dim(t.shape[first]), e.stride(buffer, first), e.stride(op.result, first - 1)
        if not others and step.text == "1" and out.text == "1" and e.lanes > 1:
            e.each_vector(
                extent,
                lambda x, keep: mean(code.add(offset, x), code.add(to, x), e.lanes, keep),
                masked=True,
            )
            return
        code.loop(
            index(0),
            extent,
            1,
            lambda x: axes_loop(others, code.add(offset, code.mul(x, step)), code.add(to, code.mul(x, out))),
        )

    axes_loop(rest, index(0), index(0))
