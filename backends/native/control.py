"""Loops, sweeps over the runs of a mask, branches and conditions."""

from __future__ import annotations

from collections.abc import Callable

from aatc.backends.native.context import REFUSED
from aatc.backends.native.elements import copy
from aatc.backends.native.emit import Emitter
from aatc.backends.native.llvm import Val, index, number, vector_of
from aatc.backends.native.table import lowering
from aatc.backends.native.tiles import placed
from aatc.ir.core import Op, Value
from aatc.ir.registry import lookup_op
from aatc.ir.types import RunsType, TensorType


def enter(e: Emitter, op: Op) -> None:
    """Carried tiles start as copies of the first ones, unless they lie in the same place."""
    skip, lead = lookup_op(op.name).traits.carried
    for init, r, arg in zip(op.operands[skip:], op.results, op.regions[0].args[lead:], strict=True):
        first = e.tile(init)
        to = e.make(r, first.rows, first.cols)
        copy(e, to, first)
        e.tiles[arg] = to


def minimum(e: Emitter, a: Val, b: Val) -> Val:
    if not a.text.startswith("%") and not b.text.startswith("%"):
        return index(min(int(a.text), int(b.text)))
    return e.code.call("llvm.smin", "i64", [a, b])


def body(e: Emitter, op: Op, position: Val, extent: Val) -> None:
    arg = op.regions[0].args[0]
    e.at[arg], e.extent[arg] = position, extent
    e.block(op.regions[0])


def rounds(e: Emitter, op: Op) -> tuple[int, Callable[[Val], Val]]:
    """(step, extent of the round at a position). Problems are taken one by one."""
    if op.attrs["axis"] == "g":
        return 1, lambda p: index(1)
    upper, step = e.dim(op.attrs["upper"]), op.attrs["step"]
    if not upper.text.startswith("%") and int(upper.text) % step == 0:
        return step, lambda p: index(step)
    return step, lambda p: minimum(e, index(step), e.code.sub(upper, p))


@lowering("tile.for")
def for_(e: Emitter, op: Op) -> None:
    enter(e, op)
    step, extent = rounds(e, op)
    e.code.loop(index(0), e.dim(op.attrs["upper"]), step, lambda p: body(e, op, p, extent(p)))


def part_of(e: Emitter, op: Op, part: Value) -> tuple[Val, Val]:
    """Where a part of an axis begins and ends: as many whole steps as any other has, at most."""
    code, upper, step = e.code, e.dim(op.attrs["upper"]), op.attrs["step"]
    whole = step * op.attrs["parts"]
    if upper.text.startswith("%"):
        steps = code.op("i64", f"udiv i64 {code.add(upper, index(whole - 1)).text}, {whole}")
    else:
        steps = index(-(-int(upper.text) // whole))
    length = code.mul(steps, index(step))
    first = code.mul(e.at[part], length)
    return first, minimum(e, code.add(first, length), upper)


@lowering("tile.for_part")
def for_part(e: Emitter, op: Op) -> None:
    enter(e, op)
    first, last = part_of(e, op, op.operands[0])
    _, extent = rounds(e, op)
    e.code.loop(first, last, op.attrs["step"], lambda p: body(e, op, p, extent(p)))


@lowering("tile.sweep", "tile.sweep_part")
def sweep(e: Emitter, op: Op) -> None:
    runs, g, block = op.operands[:3]
    part = part_of(e, op, op.operands[3]) if op.name == "tile.sweep_part" else None
    kind: RunsType = runs.type  # type: ignore[assignment]
    enter(e, op)
    code, step = e.code, op.attrs["step"]
    groups, blocks, most = (e.runs_shape(runs, n) for n in range(3))
    group = code.op("i64", f"udiv i64 {e.at[g].text}, {kind.heads}")
    group = code.op("i64", f"urem i64 {group.text}, {groups.text}")
    row = code.op("i64", f"udiv i64 {e.at[block].text}, {kind.block}")
    line = code.mul(code.mul(code.add(code.mul(group, blocks), row), most), index(3))
    base = code.at(e.buffer(runs), line, "i32")

    def run(n: Val) -> None:
        at = code.mul(n, index(3))
        first, last, what = (
            code.cast("sext", code.load("i32", code.at(base, code.add(at, index(k)), "i32")), "i64") for k in range(3)
        )
        partial = code.compare("eq", what, index(1))
        e.at[op.regions[0].args[1]] = partial
        if part is not None:  # a run that ends before it begins has no round
            first, last = code.call("llvm.smax", "i64", [first, part[0]]), minimum(e, last, part[1])
        code.loop(first, last, step, lambda p: body(e, op, p, minimum(e, index(step), code.sub(last, p))))

    # runs behind the last are empty: their first and last are 0
    code.loop(index(0), most, 1, lambda n: run(n))


@lowering("tile.yield")
def yield_(e: Emitter, op: Op) -> None:
    """All that is yielded is read before what stood in its way is overwritten: values may trade places."""
    carrier, tiles = e.carriers[op], [e.tile(v) for v in op.operands]
    for n, at in e.live.moved.get(op, {}).items():
        t = tiles[n]
        tiles[n] = placed(e.isa, e.scratch(at), op.operands[n].type, t.rows, t.cols)  # type: ignore[arg-type]
        copy(e, tiles[n], t)
    for v, t, r in zip(op.operands, tiles, carrier.results, strict=True):
        place = e.live.interval(v)
        if place is None or place is not e.live.interval(r):
            copy(e, e.tile(r), t)


def below(e: Emitter, v: Value, least: float) -> Val:
    """Whether an entry of a tile is not at least ``least``; NaN is not."""
    code, t = e.code, e.tile(v)

    def found(x: Val, keep: Val | None, so_far: Val) -> Val:
        low = code.compare("ult", x, number(least, x.type))
        if keep is not None:
            low = code.op(low.type, f"and {low.type} {low.text}, {keep.text}")
        return code.op(low.type, f"or {low.type} {low.text}, {so_far.text}")

    lanes = e.lanes
    none = number(False, vector_of("i1", lanes))
    if t.scalar:
        return code.compare("ult", code.load(t.memory, t.base), number(least, t.memory))

    def line(n: Val, read: Callable[[Val, Val | None], Val], start: Val) -> Val:
        def vector(j: Val, so_far: Val) -> list[Val]:
            keep = code.below(j, n, lanes) if lanes > 1 else None
            return [found(read(j, keep), keep, so_far)]

        (out,) = code.loop(index(0), n, lanes, vector, [start])
        return out

    if t.line:
        any_ = line(t.rows, lambda i, keep: e.read_line(t, i, lanes, keep), none)
    else:
        (any_,) = code.loop(
            index(0),
            t.rows,
            1,
            lambda i, s: [line(t.cols, lambda j, keep: e.read(t, i, j, lanes, keep), s)],
            [none],
        )
    return code.call("llvm.vector.reduce.or", "i1", [any_], [any_.type]) if lanes > 1 else any_


@lowering("tile.guard")
def guard(e: Emitter, op: Op) -> None:
    for v, r in zip(op.operands, op.results, strict=True):
        before = e.tile(v)
        copy(e, e.make(r, before.rows, before.cols), before)
    with e.code.when(below(e, op.operands[0], op.attrs["least"])):
        e.block(op.regions[0])


@lowering("tile.require")
def require(e: Emitter, op: Op) -> None:
    v, code = op.operands[0], e.code
    if isinstance(v.type, TensorType):
        memory = "double" if v.type.dtype == "f64" else "float"
        failed = code.compare("ult", code.load(memory, e.buffer(v)), number(op.attrs["least"], memory))
    else:
        failed = below(e, v, op.attrs["least"])
    with code.when(failed):
        at = code.at(code.args[0], index(REFUSED), "i64")
        code.do(f"store atomic i64 1, ptr {at.text} monotonic, align 8")
