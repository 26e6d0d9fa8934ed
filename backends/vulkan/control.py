"""Loops, sweeps over the runs of a mask, branches and conditions."""

from __future__ import annotations

from collections.abc import Callable

from aatc.backends.vulkan.emit import Emitter
from aatc.backends.vulkan.memory import items
from aatc.backends.vulkan.reductions import across as over_lanes
from aatc.backends.vulkan.reductions import down, fold
from aatc.backends.vulkan.table import lowering
from aatc.backends.vulkan.tiles import Tile
from aatc.backends.vulkan.words import number
from aatc.ir.core import Op, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import UnsupportedError
from aatc.ir.registry import lookup_op
from aatc.ir.types import RunsType, TensorType


def enter(e: Emitter, op: Op) -> None:
    """Carried tiles become variables, which start as the first ones."""
    skip, lead = lookup_op(op.name).traits.carried
    for init, r, arg in zip(op.operands[skip:], op.results, op.regions[0].args[lead:], strict=True):
        first = e.tile(init)
        made = e.made(r, first.letters)
        made.items = [e.body.var(r.name or "carried", e.type_of(made), x) for x in items(e, first)]
        e.tiles[arg] = made


def step_of(op: Op) -> int:
    """Problems are taken one by one."""
    return 1 if op.attrs.get("axis") == "g" else int(op.attrs["step"])


def body(e: Emitter, op: Op, position: str, extent: str, sure: bool) -> None:
    """A round at a position; ``sure``: every round is of a whole step."""
    arg = op.regions[0].args[0]
    e.at[arg], e.extent[arg] = position, extent
    axis = op.attrs.get("axis", "j")
    step = step_of(op)
    before = (e.row_at, e.row_in, e.col_at, e.col_in, e.row_first, e.row_extent, e.col_first, e.col_extent, e.col_sure)
    if axis == e.rows:
        e.row_first, e.row_extent = position, extent
        exact = sure and e.lanes.rows == step == e.lanes.high * e.lanes.down
        e.row_at, e.row_in = _tokens(e, "i" if axis == "i" else "j", position, extent, e.row_of, e.lanes.high, exact)
    elif axis == e.cols:
        e.col_first, e.col_extent = position, extent
        exact = sure and e.lanes.cols == step == e.lanes.wide * e.lanes.across
        e.col_at, e.col_in = _tokens(e, "i" if axis == "i" else "j", position, extent, e.col_of, e.lanes.wide, exact)
        e.col_sure = exact
    e.block(op.regions[0])
    (e.row_at, e.row_in, e.col_at, e.col_in, e.row_first, e.row_extent, e.col_first, e.col_extent, e.col_sure) = before


def _tokens(
    e: Emitter, hint: str, position: str, extent: str, place: Callable[[int], str], count: int, exact: bool
) -> tuple[list[str], list[str]]:
    """Tokens of a thread's rows or columns, and whether they are there."""
    at, inside = [], []
    for n in range(count):
        where = e.let(f"{hint}_in", "i32", place(n))
        if exact:
            at.append(e.let(hint, "i32", e.plus(position, where)))
            inside.append("true")
        else:
            at.append(e.let(hint, "i32", f"{position} + min({where}, {extent} - 1)"))
            inside.append(e.let("there", "bool", f"{where} < {extent}"))
    return at, inside


@lowering("tile.for")
def for_(e: Emitter, op: Op) -> None:
    upper, step = Dim.of(op.attrs["upper"]), step_of(op)
    sure = upper.is_static and int(upper) % step == 0
    if op in e.grid:
        position = e.let(op.regions[0].args[0].name or op.attrs["axis"], "i32", e.times(e.grid[op], str(step)))
        extent = str(step) if sure else e.let("n", "i32", f"min({step}, {e.dim(upper)} - {position})")
        body(e, op, position, extent, sure)
        return
    enter(e, op)
    _rounds(e, op, "0", e.dim(upper), sure)


def _rounds(e: Emitter, op: Op, first: str, last: str, sure: bool) -> None:
    step = step_of(op)
    e.body.open()
    e.doubt()
    position = e.body.fresh(op.regions[0].args[0].name or op.attrs.get("axis", "j"))
    extent = str(step) if sure else e.let("n", "i32", f"min({step}, {last} - {position})")
    body(e, op, position, extent, sure)
    e.body.close_for(position, first, last, step)
    e.doubt()


def part_of(e: Emitter, op: Op, part: Value) -> tuple[str, str]:
    """Where a part of an axis begins and ends."""
    upper, step, parts = e.dim(op.attrs["upper"]), int(op.attrs["step"]), int(op.attrs["parts"])
    whole = step * parts
    length = e.let("length", "i32", f"({upper} + {whole - 1}) / {whole} * {step}")
    first = e.let("first", "i32", f"{e.at[part]} * {length}")
    return first, e.let("last", "i32", f"min({first} + {length}, {upper})")


@lowering("tile.for_part")
def for_part(e: Emitter, op: Op) -> None:
    enter(e, op)
    first, last = part_of(e, op, op.operands[0])
    _rounds(e, op, first, last, False)


@lowering("tile.sweep", "tile.sweep_part")
def sweep(e: Emitter, op: Op) -> None:
    runs, g, block = op.operands[:3]
    e.reads[runs] = None
    part = part_of(e, op, op.operands[3]) if op.name == "tile.sweep_part" else None
    kind: RunsType = runs.type  # type: ignore[assignment]
    enter(e, op)
    groups, blocks, most = (e.dim(d) for d in e.shape(runs)[:3])
    line = f"(({e.at[g]} / {kind.heads} % {groups}) * {blocks} + {e.at[block]} / {kind.block}) * {most} * 3"
    base = e.let("runs", "i32", f"{e.offset(runs)} + {line}")
    e.body.open()
    e.doubt()
    n = e.body.fresh("run")
    first = e.let("first", "i32", f"load_i({base} + {n} * 3)")
    last = e.let("last", "i32", f"load_i({base} + {n} * 3 + 1)")
    what = e.let("kind", "i32", f"load_i({base} + {n} * 3 + 2)")
    e.at[op.regions[0].args[1]] = e.let("partial", "bool", f"{what} == 1")
    if part is not None:  # a run that ends before it begins has no round
        first = e.let("first", "i32", f"max({first}, {part[0]})")
        last = e.let("last", "i32", f"min({last}, {part[1]})")
    _rounds(e, op, first, last, False)
    # runs behind the last are empty: their first and last are 0
    e.body.close_for(n, "0", most, 1)
    e.doubt()


@lowering("tile.yield")
def yield_(e: Emitter, op: Op) -> None:
    carrier = e.carriers[op]
    pairs = []
    for v, r in zip(op.operands, carrier.results, strict=True):
        pairs += list(zip(items(e, e.tile(v)), e.tiles[r].items or [], strict=True))
    targets = {to for _, to in pairs}
    read = [x if x not in targets or x == to else e.let("next", _type_of(e, x), x) for x, to in pairs]
    for x, (_, to) in zip(read, pairs, strict=True):
        if x != to:
            e.body.set(to, x)


@lowering("tile.return")
def return_(e: Emitter, op: Op) -> None:
    """What is returned lies in buffers."""


def _type_of(e: Emitter, name: str) -> str:
    for tile in e.tiles.values():
        if tile.items and name in tile.items:
            return e.type_of(tile)
    return "f32"


def below(e: Emitter, tile: Tile, least: float) -> str:
    """Whether a number of the thread's is not at least ``least``; NaN is not."""
    limit = number(least, "f")
    if tile.form in ("rowvec", "vec", "colvec"):
        raise UnsupportedError("a condition on vectors has no kernel")
    there = {"row": e.row_in, "col": e.col_in}.get(tile.form, [])
    out = []
    for n, x in enumerate(items(e, tile)):
        inside = [there[n]] if there else []
        if tile.form == "pair":
            inside = [e.row_in[n // e.lanes.wide], e.col_in[n % e.lanes.wide]]
        out.append(" && ".join([*(c for c in inside if c != "true"), f"!({x} >= {limit})"]))
    return e.let("low", "bool", " || ".join(f"({x})" for x in out))


@lowering("tile.guard")
def guard(e: Emitter, op: Op) -> None:
    made = []
    for v, r in zip(op.operands, op.results, strict=True):
        before = e.tile(v)
        tile = e.made(r, before.letters)
        tile.items = [e.body.var(r.name or "kept", e.type_of(tile), x) for x in items(e, before)]
        made.append(tile)
    low = below(e, e.tile(op.operands[0]), op.attrs["least"])
    count = [e.let("low", "f32", f"select(0.0, 1.0, {low})")]
    if e.lanes.across > 1:
        count = over_lanes(e, count, "max", "f32", "low")
    count = down(e, count, "max", "f32", "low")
    agreed = e.agreement(fold(e, count, "max", "f32", "low"))
    e.body.open()
    e.doubt()
    e.block(op.regions[0])
    e.body.close_if(f"{agreed} > 0.0")
    e.doubt()


@lowering("tile.require")
def require(e: Emitter, op: Op) -> None:
    v = op.operands[0]
    e.refuses = True
    e.push_refused()
    if isinstance(v.type, TensorType):
        e.reads[v] = None
        low = f"!(load_f({e.offset(v)}) >= {number(op.attrs['least'], 'f')})"
    else:
        low = below(e, e.tile(v), op.attrs["least"])
    e.when(low)
    e.body.write("i32", e.push_refused(), "1")
    e.close()
