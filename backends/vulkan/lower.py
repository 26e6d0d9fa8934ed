"""A tile function as kernels and dispatches: one per loop nest, and per operation on whole buffers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from aatc.backends.vulkan import control, elements, memory, pairs, products, reductions, stores  # noqa: F401  (lowerings)
from aatc.backends.vulkan import whole as whole_buffers
from aatc.backends.vulkan.emit import Emitter, Names, NoRoom
from aatc.backends.vulkan.kernels import Buffer, Dispatch, Rounds, Template
from aatc.backends.vulkan.lanes import Lanes, chunks, pair_lanes
from aatc.backends.vulkan.language import For, If, Statement
from aatc.backends.vulkan.memory import letters_of
from aatc.backends.vulkan.whole import Device, finished, plain
from aatc.ir.access import owned_by
from aatc.ir.core import Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import UnsupportedError
from aatc.ir.types import RunsType, TensorType, TileType

_ONE = Rounds((Dim.of(1),))
_PURE = ("tile.load", "tile.map", "tile.fill", "tile.reduce", "tile.position", "tile.slice", "tile.insert")
#: Threads of a workgroup over tokens, at most.
_TOKEN_THREADS = 256


#: What the host computes, with torch: from arguments, before any dispatch; or from what the device gave, after all.
HOST = ("tile.token", "tile.gradient", "tile.table_gradient", "tile.pack")


@dataclass(frozen=True)
class Lowered:
    """A tile function for a device. ``template``; ``arguments``: values that are uploaded, those of the function, then
    results of ``before``; ``runs``: what the host classifies, by buffer; ``downloads``: values that are read back, by
    buffer; ``before`` and ``after``: operations of the host."""

    func: Func
    template: Template
    arguments: tuple[Value, ...]
    runs: Mapping[str, Op]
    downloads: Mapping[Value, str]
    before: tuple[Op, ...]
    after: tuple[Op, ...]


def lower(func: Func, device: Device = Device()) -> Lowered:  # noqa: B008  (frozen)
    """The kernels of a tile function whose token programs are loops, as far as there are tile operations for them.
    Raises: UnsupportedError for what has no kernel, VerifyError for a barrier that not all threads come to."""
    names = Names(func)
    before: list[Op] = []
    after: list[Op] = []
    arguments, on_host = list(func.args), set(func.args)
    late: set[Value] = set()
    dispatches: list[Dispatch] = []
    buffers: list[Buffer] = []
    runs: dict[str, Op] = {}
    for op in func.body.ops[:-1]:
        if op.name == "tile.classify":
            if not on_host >= set(op.operands):
                raise UnsupportedError("a mask reads what a kernel computes", hint="it runs on the CPU")
            runs[names.of(op.result)] = op
            buffers.append(_buffer(names, op.result, "runs"))
        elif op.name in HOST and on_host >= set(op.operands):
            before.append(op)
            on_host.add(op.result)
            arguments.append(op.result)
        elif op.name in HOST or late & set(op.operands):
            if op.name not in (*HOST, "tile.finish"):
                raise UnsupportedError(f"{op.name} reads what {after[-1].name} gives, which has no kernel")
            after.append(op)
            late.add(op.result)
        else:
            buffers += [_buffer(names, r, "scratch") for r in op.results if isinstance(r.type, TensorType)]
            dispatches += _dispatches(func, names, op, device, buffers)
    wanted = [v for op in (*after, func.body.ops[-1]) for v in op.operands]
    downloads = {v: names.of(v) for v in wanted if v not in on_host and v not in late}
    given = [_buffer(names, a, "argument") for a in arguments]
    back = set(downloads.values())
    buffers = [replace(b, role="result") if b.name in back else b for b in (*given, *buffers)]
    buffers.append(Buffer("refused", "refused", "i32", (Dim.of(1),)))
    symbols = sorted({s for a in func.args for d in _shape(a) for s in d.symbols})
    returns = tuple(names.of(v) for v in func.body.ops[-1].operands)
    derived = tuple((p.symbol, p.rounds) for p in names.parts)
    template = Template(func.name, tuple(buffers), tuple(dispatches), tuple(symbols), (), returns, derived)
    return Lowered(func, template, tuple(arguments), runs, downloads, tuple(before), tuple(after))


def _shape(v: Value) -> tuple[Dim, ...]:
    assert isinstance(v.type, TensorType)
    return v.type.shape


def _buffer(names: Names, v: Value, role: str) -> Buffer:
    name = names.of(v)
    if isinstance(v.type, RunsType):
        return Buffer(name, role, "i32", tuple(Dim.of(f"{name}_n{n}") for n in range(4)))
    assert isinstance(v.type, TensorType)
    if v.type.dtype in ("f64", "c64", "c128"):
        raise UnsupportedError(f"%{v.name} is of {v.type.dtype}, which no kernel computes", hint="it runs on the CPU")
    return Buffer(name, role, v.type.dtype, v.type.shape)


def _dispatches(func: Func, names: Names, op: Op, device: Device, made: list[Buffer]) -> list[Dispatch]:
    if op.name == "tile.alloc":
        return [whole_buffers.fill(func, names, op, device)] if "fill" in op.attrs else []
    if op.name in _PURE:
        return []
    if op.name == "tile.centre":
        return whole_buffers.centre(func, names, op, device)
    if op.name == "tile.peak":
        return whole_buffers.peak(func, names, op, device, made)
    if op.name == "tile.finish":
        return whole_buffers.finish(func, names, op, device)
    if op.name in ("tile.for", "tile.store", "tile.require"):
        return _nest(func, names, op, device, made)
    raise UnsupportedError(f"{op.name} has no kernel", hint="it runs on the CPU")


# --- loop nests ----------------------------------------------------------------------------------------------
def loops(op: Op) -> Iterator[Op]:
    """Loops of a nest, outer ones first."""
    if op.name in ("tile.for", "tile.sweep", "tile.for_part", "tile.sweep_part"):
        yield op
    for region in op.regions:
        for x in region.ops:
            yield from loops(x)


#: Bytes of shared memory that vectors leave free, from try to try: what else a kernel needs is known when it is made.
_SPARE = (1024, 6 << 10, 16 << 10)


def _nest(func: Func, names: Names, op: Op, device: Device, made: list[Buffer]) -> list[Dispatch]:
    for spare in (*_SPARE, device.shared_bytes):
        try:
            return _written(func, names, op, device, made, spare)
        except NoRoom:
            if spare == device.shared_bytes:
                raise
    raise AssertionError


def _written(func: Func, names: Names, op: Op, device: Device, made: list[Buffer], spare: int) -> list[Dispatch]:
    """The kernel of a nest, and those that add up its partial sums."""
    inside = [op, *(x for r in op.regions for x in r.walk())]
    found = list(loops(op))
    letters = list(dict.fromkeys(x.attrs.get("axis", "j") for x in found if x.attrs.get("axis", "j") in "ij"))
    rows, cols = (*letters, "", "")[:2]
    writes = [names.of(x.operands[1]) for x in inside if x.name in ("tile.store", "tile.scatter")]
    name = f"{func.name}_{writes[-1] if writes else 'condition'}"
    if rows:
        lanes = _lanes(func, inside, found, rows, cols, device)
        e = Emitter(func, names, name, lanes, rows, cols, device.shared_bytes)
    else:
        e = plain(func, names, name, device, 1)
    e.carriers = {x.regions[0].ops[-1]: x for x in inside if x.regions}
    prelude = needed(func, op)
    for x in (*prelude, *inside):
        for v in x.operands:
            e.uses.setdefault(v, []).append(x)
    e.several_stores = Counter(x.operands[1] for x in inside if x.name in ("tile.store", "tile.scatter"))
    _plan(e, inside, device.shared_bytes - spare)
    parted = _parted(e, op)
    grid = _grid(e, op, set(parted))
    before, after = [], []
    for buffer, loop in parted.items():
        part = whole_buffers.parts(func, names, buffer, loop, device)
        e.instead[buffer] = part.value, part.offset(e)
        before.append(part.fill)
        after.append(part.add)
        made[:] = [*(b for b in made if b.name != part.buffer.name), part.buffer]
    for x in prelude:
        e.op(x)
    e.op(op)
    return [*before, finished(e, grid, _trips(op, e)), *after]


def _parted(e: Emitter, op: Op) -> dict[Value, Op]:
    """Buffers that all blocks of rows add to: every block has a place of its own for them, and the places are added up
    in order behind the nest."""
    at: Op | None = op
    while at is not None and at.name == "tile.for" and at.attrs["kind"] == "par":
        if at.attrs["axis"] in "ij":
            return {v: at for v in dict.fromkeys(x.operands[1] for x in _adding(at))} if e.cols else {}
        inner = [x for x in at.regions[0].ops if x.regions]
        at = inner[0] if len(inner) == 1 else None
    return {}


def _trips(op: Op, e: Emitter) -> tuple[Rounds, ...]:
    """What bounds how often the loops of one thread go in all: the loops whose extents are not known, one in the other,
    times what all others come to within."""
    chain: tuple[Rounds, ...] = ()
    todo: list[tuple[Op, tuple[Rounds, ...]]] = [(op, ())]
    while todo:
        x, outer = todo.pop()
        if "upper" in x.attrs and x not in e.grid and not Dim.of(x.attrs["upper"]).is_static:
            outer = (*outer, Rounds((Dim.of(x.attrs["upper"]),), control.step_of(x)))
        chain = max(chain, outer, key=len)
        todo += [(y, outer) for r in x.regions for y in r.ops if y.regions]
    return (*chain, Rounds((Dim.of(_rounds(e.body.statements)),)))


def _rounds(statements: tuple[Statement, ...]) -> int:
    """Rounds of all loops whose ends are literals; others count as one."""
    count = 0
    for s in statements:
        if isinstance(s, For):
            literal = s.first.isdigit() and s.last.isdigit()
            times = max(0, -(-(int(s.last) - int(s.first)) // s.step)) if literal else 1
            count += times * (1 + _rounds(s.body))
        elif isinstance(s, If):
            count += _rounds(s.body)
    return count


def needed(func: Func, op: Op) -> list[Op]:
    """Operations outside of loops that make tiles for ``op``, in order."""
    wanted = {v for x in (op, *(y for r in op.regions for y in r.walk())) for v in x.operands}
    found = []
    for before in reversed(func.body.ops[: func.body.ops.index(op)]):
        if before.name in _PURE and any(r in wanted and isinstance(r.type, TileType) for r in before.results):
            found.append(before)
            wanted |= set(before.operands)
    return found[::-1]


def _lanes(func: Func, inside: list[Op], found: list[Op], rows: str, cols: str, device: Device) -> Lanes:
    def extent(letter: str) -> int:
        return max(control.step_of(x) for x in found if x.attrs.get("axis", "j") == letter)

    if cols:
        schedule = func.attrs.get("schedule", "")
        return pair_lanes(schedule, extent(rows), extent(cols), rows, device.subgroup, device.threads)
    count = extent(rows)
    most = min(_TOKEN_THREADS, device.threads)
    apart = any(x.name in ("tile.slice", "tile.insert") for x in inside)
    widths = [int(v.type.shape[2]) for x in inside for v in x.results if isinstance(v.type, TileType)]
    across = 1
    if not apart and widths:
        while across * 2 <= min(chunks(max(widths)), device.subgroup or 8):
            across *= 2
    while across > 1 and count * across > most:
        across //= 2
    return Lanes(count, 1, min(count, most // across), across, device.subgroup)


def _grid(e: Emitter, op: Op, parted: set[Value]) -> tuple[Rounds, Rounds, Rounds]:
    """Binds loops whose rounds are workgroups to the axes of the grid, the innermost to x."""
    chain: list[Op] = []
    at: Op | None = op
    while at is not None and at.name == "tile.for" and at.attrs["kind"] == "par":
        adds = {x.operands[1] for x in _adding(at)}
        if not (adds - parted if at.attrs["axis"] in "ij" else adds):
            chain.append(at)
        inner = [x for x in at.regions[0].ops if x.regions]
        at = inner[0] if len(inner) == 1 else None
        if any(x.name in ("tile.store", "tile.scatter", "tile.require") for y in chain for x in y.regions[0].ops):
            break
    grid = [_ONE, _ONE, _ONE]
    for n, x in enumerate(reversed(chain[-3:])):
        e.grid[x] = f"group.{'xyz'[n]}"
        grid[n] = Rounds((Dim.of(x.attrs["upper"]),), control.step_of(x))
    return grid[0], grid[1], grid[2]


def _adding(loop: Op) -> list[Op]:
    """Operations whose sums rounds of a loop add to one place: they go one after the other, or have places apart."""
    out = []
    for x in loop.regions[0].walk():
        if x.name == "tile.scatter" or (x.name == "tile.store" and x.attrs["add"]):
            axes, sizes = x.attrs["axes"].rstrip("tu"), x.attrs.get("sizes")
            shared = x.name == "tile.scatter" and loop.attrs["axis"] != "g"
            owned = owned_by(axes, _shape(x.operands[1]), sizes and [Dim.of(d) for d in sizes], loop.attrs["axis"])
            if shared or not owned:
                out.append(x)
    return out


def _plan(e: Emitter, inside: list[Op], room: int) -> None:
    """Chooses the vectors that are copied to shared memory where they are loaded: those that the schedule stages, then
    those of columns, then those of rows, as long as there is room."""
    if e.cols:
        room -= e.lanes.down * e.lanes.high * (e.lanes.across * e.lanes.wide + 1) * 4  # weights of pairs
    loaded = []
    for block in (r for x in inside for r in x.regions):
        seen: Counter[int] = Counter()
        for x in block.ops:
            if x.name == "tile.load" and any(u.name == "tile.dot" for u in e.uses.get(x.result, [])):
                t: TileType = x.result.type  # type: ignore[assignment]
                letters, width = letters_of(x, t), int(t.shape[2])
                if "d" in letters and t.dtype == "f32":
                    # loops over columns, one behind the other, take the same arrays in turn
                    slot = f"cols_{width}_{seen[width]}" if e.cols in letters else ""
                    seen[width] += e.cols in letters
                    loaded.append((t.space != "shared", not slot, slot, width, letters, x.result))
    for _, _, slot, width, letters, v in sorted(loaded, key=lambda x: x[:3]):
        count = e.lanes.cols if e.cols in letters else e.lanes.rows if e.rows in letters else 0
        size = 0 if slot and slot in e.planned.values() else count * (chunks(width) + 1) * 16
        if count and size <= room:
            room -= size
            e.planned[v] = slot
