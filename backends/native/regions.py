"""A tile function in steps: regions that run on all threads, and what the caller does between them.

A region is a list of phases: loops whose rounds, the tasks, are independent, and whose buffers come from phases before.
Threads draw tasks from a counter; a phase begins when the tasks of the one before are done, which does not need every
thread to have come. One region is one start of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aatc.backends.native import control, elements, joins, memory, pairs, products, whole  # noqa: F401  (lowerings)
from aatc.backends.native.context import (
    CHUNK,
    DONE,
    FIRST,
    NEXT,
    NEXT_THREAD,
    PROBLEMS,
    REFUSED,
    SCRATCH,
    SCRATCH_BYTES,
    STOP,
    THREADS,
    TOTAL,
    Layout,
)
from aatc.backends.native.counters import Counters
from aatc.backends.native.emit import Emitter
from aatc.backends.native.isa import Isa
from aatc.backends.native.llvm import Code, Module, Val, index
from aatc.backends.native.table import lowering
from aatc.ir.core import Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.registry import lookup_op
from aatc.ir.types import TensorType, TileType

#: What the caller does itself, with torch.
HOST = frozenset({"tile.classify", "tile.token", "tile.gradient", "tile.table_gradient", "tile.finish"})


@dataclass
class Nest:
    """Loops one directly in the other, whose rounds together are tasks, and the operations of a round; no loops for
    operations that stand alone."""

    loops: list[Op]
    ops: list[Op]
    prelude: list[Op] = field(default_factory=list)  # loads and maps outside of loops that it reads
    turns: bool = False  # whether a call says which rounds of the first loop, over problems, are to be done

    @property
    def extents(self) -> list[tuple[Dim, int]]:
        """Of loops whose rounds are the tasks."""
        if not self.loops and self.ops[0].name in whole.WHOLE:
            return whole.WHOLE[self.ops[0].name].extents(self.ops[0])
        return [(Dim.of(x.attrs["upper"]), x.attrs["step"]) for x in self.loops]


@dataclass
class Phase:
    nests: list[Nest]


@dataclass
class Region:
    phases: list[Phase]


@dataclass
class HostStep:
    op: Op


Step = Region | HostStep


def split(func: Func) -> list[Step]:
    """The steps of a tile function, in order."""
    steps: list[Step] = []
    tiles: dict[Value, Op] = {}  # of pure operations on tiles that stand outside of loops
    written: dict[Value, int] = {}  # buffers of the region at hand, by the phase that writes them
    current: Region | None = None
    for op in func.body.ops:
        if op.name in ("tile.alloc", "tile.return"):
            continue
        if op.name == "tile.classify" and all(v in func.args for v in op.operands):
            steps.insert(0, HostStep(op))  # needs nothing that regions make: they are not cut for it
            continue
        if op.name in HOST:
            steps.append(HostStep(op))
            current, written = None, {}
            continue
        if _pure_tile(op):
            tiles.update(dict.fromkeys(op.results, op))
            continue
        if current is None:
            current = Region([])
            steps.append(current)
        nest = nest_of(op, tiles)
        reads, writes = touched([*nest.prelude, op])
        phase = max([written[v] + 1 for v in reads | writes if v in written], default=0)
        # what an earlier phase reads may be written by a later one only
        if phase == len(current.phases):
            current.phases.append(Phase([]))
        late = max((n for n, p in enumerate(current.phases) if _reads_any(p, writes)), default=-1)
        if late >= phase:
            phase = late + 1
            if phase == len(current.phases):
                current.phases.append(Phase([]))
        current.phases[phase].nests.append(nest)
        written.update(dict.fromkeys(writes, phase))
    return steps


def _pure_tile(op: Op) -> bool:
    return bool(op.results) and all(isinstance(r.type, TileType) for r in op.results) and not op.regions


def _reads_any(p: Phase, writes: set[Value]) -> bool:
    return any(touched([*n.prelude, *(n.loops[:1] or n.ops)])[0] & writes for n in p.nests)


def touched(ops: Sequence[Op]) -> tuple[set[Value], set[Value]]:
    """Buffers that operations read, and that they write."""
    reads: set[Value] = set()
    writes: set[Value] = set()
    for op in [y for x in ops for y in _walk(x)]:
        traits = lookup_op(op.name).traits
        for n, v in enumerate(op.operands):
            if isinstance(v.type, TensorType):
                (writes if n in traits.writes else reads).add(v)
                if n in traits.writes and (op.attrs.get("add") or op.name == "tile.scatter"):
                    reads.add(v)
        writes |= {r for r in op.results if isinstance(r.type, TensorType)}
    return reads, writes


def _walk(op: Op) -> list[Op]:
    return [op, *(y for r in op.regions for y in r.walk())]


def nest_of(op: Op, tiles: dict[Value, Op]) -> Nest:
    loops: list[Op] = []
    ops = [op]
    while len(ops) == 1 and ops[0].name == "tile.for" and ops[0].attrs["kind"] == "par" and not ops[0].results:
        if _shares(ops[0]):
            break
        loops.append(ops[0])
        ops = [x for x in ops[0].regions[0].ops if x.name != "tile.yield"]
    return Nest(loops, ops, _needed([op], tiles))


def _shares(op: Op) -> bool:
    """Whether rounds of a loop add to the same place: then they go one after the other, in order."""
    return any(x.attrs.get("shared") for x in op.regions[0].walk())


def _needed(ops: Sequence[Op], tiles: dict[Value, Op]) -> list[Op]:
    found: dict[Op, None] = {}

    def add(v: Value) -> None:
        if v in tiles and tiles[v] not in found:
            for x in tiles[v].operands:
                add(x)
            found[tiles[v]] = None

    for op in [y for x in ops for y in _walk(x)]:
        for v in op.operands:
            add(v)
    return list(found)


def in_turns(steps: Sequence[Step]) -> Dim | None:
    """The number of problems where a function does nothing but loop over them, one by one, so that some can be done
    before others are begun; what it computes before, for all of them alike, is computed again in every turn. Marks its
    loops over problems."""
    nests = [n for s in steps if isinstance(s, Region) for p in s.phases for n in p.nests]
    over = [n for n in nests if _is_over_problems(n)]
    uppers = {Dim.of(n.loops[0].attrs["upper"]) for n in over}
    if len(uppers) != 1 or any(isinstance(s, HostStep) for s in steps):
        return None
    made = {v for n in over for v in touched([*n.prelude, n.loops[0]])[1]}
    if not all(n in over or _is_repeatable(n, made) for n in nests):
        return None
    for n in over:
        n.turns = True
    return uppers.pop()


def _is_over_problems(n: Nest) -> bool:
    return bool(n.loops) and n.loops[0].attrs["axis"] == "g" and n.loops[0].attrs["step"] == 1


def _is_repeatable(n: Nest, made: set[Value]) -> bool:
    """Whether to do ``n`` once more, after others have made ``made``, changes nothing: loops over tokens whose writes
    they do not read."""
    if not n.loops or n.loops[0].attrs["axis"] == "g":
        return False
    reads, writes = touched([*n.prelude, n.loops[0]])
    return not reads & (made | writes) and not writes & made


# --- code --------------------------------------------------------------------------------------------------------
@dataclass
class Text:
    """LLVM text of a tile function; ``regions`` are the names of their entry points, ``scratch`` bytes per thread."""

    text: str
    steps: list[Step]
    names: list[str]
    layouts: list[Layout]
    scratch: list[int]
    operations: list[str]  # by the numbers that checks of addresses leave; empty without
    problems: Dim | None = None  # how many there are, where they may be done in turns


def generate(
    func: Func, isa: Isa, blocks: tuple[int, int], *, check: bool = False, counters: Counters | None = None
) -> Text:
    """``check``: with checks of every address (`bounds`). ``counters``: with a clock around operations (`profile`)."""
    halves = [name for name, known in (("half", isa.half), ("bfloat", isa.bf16)) if known]
    module = Module(fma=isa.fma, avx512=isa.name == "avx512", halves=halves, check=check, counters=counters)
    steps = split(func)
    problems = None if check else in_turns(steps)
    names, layouts, scratch = [], [], []
    for n, step in enumerate(steps):
        if isinstance(step, HostStep):
            names.append("")
            layouts.append(Layout(0))
            scratch.append(0)
            continue
        layout = Layout(len(step.phases))
        names.append(f"region{n}")
        layouts.append(layout)
        scratch.append(_region(module, names[-1], step, isa, layout, blocks))
        if counters is not None:  # which thread it is, is seen by its scratch memory
            scratch[-1] = max(1, scratch[-1])
    return Text(module.text(), steps, names, layouts, scratch, module.operations if check else [], problems)


def _region(module: Module, name: str, region: Region, isa: Isa, layout: Layout, blocks: tuple[int, int]) -> int:
    scratch = 0
    tasks: list[list[tuple[str, Nest]]] = []
    for p, phase in enumerate(region.phases):
        tasks.append([])
        for k, nest in enumerate(phase.nests):
            task = f"{name}_phase{p}_task{k}"
            scratch = max(scratch, _task(module, task, nest, isa, layout, blocks))
            tasks[-1].append((task, nest))
    _driver(module, name, tasks, layout, isa, blocks)
    return scratch


def _task(module: Module, name: str, nest: Nest, isa: Isa, layout: Layout, blocks: tuple[int, int]) -> int:
    """A function of (context, scratch memory, number of the task); returns the bytes of its scratch memory."""
    code = Code(module, name, [("context", "ptr"), ("scratch", "ptr"), ("task", "i64")])
    e = Emitter(code, isa, layout, blocks)
    several = [x for x in nest.loops if x.attrs["axis"] == "g" and x.attrs["step"] > 1]
    # what stands before the loops is computed once for all problems of a task
    e.plan([*nest.prelude, *nest.ops], {r for op in nest.prelude if several for r in op.results})
    rest = code.args[2]
    positions: list[Val] = []
    for n, (upper, step) in reversed(list(enumerate(nest.extents))):
        some = nest.turns and n == 0
        count = e.word(PROBLEMS) if some else _rounds(e, upper, step)
        at = code.op("i64", f"urem i64 {rest.text}, {count.text}")
        rest = code.op("i64", f"udiv i64 {rest.text}, {count.text}")
        positions.insert(0, code.add(at, e.word(FIRST)) if some else code.mul(at, index(step)))
    extents = {}
    for loop, p in zip(nest.loops, positions, strict=False):
        arg = loop.regions[0].args[0]
        e.at[arg] = p
        left = code.sub(e.dim(loop.attrs["upper"]), p)
        extents[loop] = e.extent[arg] = control.minimum(e, index(loop.attrs["step"]), left)
    e.ops(nest.prelude)
    if several:  # problems of a task are taken one by one
        arg = several[0].regions[0].args[0]
        first = e.at[arg]

        def one(g: Val) -> None:
            e.at[arg], e.extent[arg] = g, index(1)
            e.ops(nest.ops)

        code.loop(first, code.add(first, extents[several[0]]), 1, lambda g: one(g))
    elif not nest.loops and nest.ops[0].name in whole.WHOLE:
        code.note(nest.ops[0].name)
        with e.timed(nest.ops[0]):
            whole.WHOLE[nest.ops[0].name].write(e, nest.ops[0], positions)
    else:
        e.ops(nest.ops)
    code.do("ret void")
    code.finish("nounwind", "internal")
    return e.scratch_bytes


def _rounds(e: Emitter, d: Dim, step: int) -> Val:
    upper = e.dim(d)
    if step == 1:
        return upper
    if not upper.text.startswith("%"):
        return index(-(-int(upper.text) // step))
    return e.code.op("i64", f"udiv i64 {e.code.add(upper, index(step - 1)).text}, {step}")


def _driver(
    module: Module,
    name: str,
    phases: list[list[tuple[str, Nest]]],
    layout: Layout,
    isa: Isa,
    blocks: tuple[int, int],
) -> None:
    """The function that every thread runs: tasks of a phase until none is left, then the next phase."""
    code = Code(module, name, [("context", "ptr")])
    e = Emitter(code, isa, layout, blocks)
    context = code.args[0]

    def slot(place: int) -> Val:
        return code.at(context, index(place), "i64")

    # no more threads come than there are parts of scratch memory; called again, after a signal, they count on
    begun = code.op("i64", f"atomicrmw add ptr {slot(NEXT_THREAD).text}, i64 1 monotonic")
    threads = code.load("i64", slot(THREADS), align=8)
    thread = code.op("i64", f"urem i64 {begun.text}, {threads.text}")
    size = code.load("i64", slot(SCRATCH_BYTES), align=8)
    scratch = code.at(code.load("ptr", slot(SCRATCH), align=8), code.mul(thread, size), "i8")
    for p, tasks in enumerate(phases):
        _phase(e, p, tasks, layout, scratch, last=p == len(phases) - 1)
    code.jump("end")
    code.label("end")
    code.do("ret void")
    code.finish("nounwind")


def _phase(e: Emitter, p: int, tasks: list[tuple[str, Nest]], layout: Layout, scratch: Val, *, last: bool) -> None:
    code = e.code
    context = code.args[0]

    def slot(what: int) -> Val:
        return code.at(context, index(layout.phase(p, what)), "i64")

    counts = []
    for _, nest in tasks:
        count = index(1)
        for n, (upper, step) in enumerate(nest.extents):
            count = code.mul(count, e.word(PROBLEMS) if nest.turns and n == 0 else _rounds(e, upper, step))
        counts.append(count)
    total = code.load("i64", slot(TOTAL), align=8)
    chunk = code.load("i64", slot(CHUNK), align=8)
    draw, run, done = (f"{word}{p}" for word in ("draw", "run", "drawn"))
    code.jump(draw)
    code.label(draw)
    # before a task is drawn: one that is drawn is done, or a kernel that goes on after a signal would miss it
    go = f"go{p}"
    code.do(f"br i1 {_halted(e).text}, label %{done}, label %{go}")
    code.label(go)
    first = code.op("i64", f"atomicrmw add ptr {slot(NEXT).text}, i64 {chunk.text} monotonic")
    ended = code.compare("sge", first, total)
    code.do(f"br i1 {ended.text}, label %{done}, label %{run}")
    code.label(run)
    end = code.call("llvm.smin", "i64", [code.add(first, chunk), total])

    def one(n: Val) -> None:
        # the last rounds first: under a causal mask they are the longest
        n = code.sub(code.sub(total, index(1)), n)
        start = index(0)
        for (task, _), count in zip(tasks, counts, strict=True):
            mine = code.sub(n, start)
            following = code.add(start, count)
            here = code.op(
                "i1",
                f"and i1 {code.compare('sge', n, start).text}, {code.compare('slt', n, following).text}",
            )
            with code.when(here):
                code.do(f"call void @{task}(ptr {context.text}, ptr {scratch.text}, i64 {mine.text})")
            start = following

    code.loop(first, end, 1, lambda n: one(n))
    code.op("i64", f"atomicrmw add ptr {slot(DONE).text}, i64 {code.sub(end, first).text} acq_rel")
    code.jump(draw)
    code.label(done)
    if not last:
        _wait(e, slot(DONE), total, p)


def _halted(e: Emitter) -> Val:
    code = e.code
    stop, refused = (
        code.op("i64", f"load atomic i64, ptr {code.at(code.args[0], index(n), 'i64').text} monotonic, align 8")
        for n in (STOP, REFUSED)
    )
    either = code.op("i64", f"or i64 {stop.text}, {refused.text}")
    return code.compare("ne", either, index(0))


#: Looks at a phase's counter before a thread gives its core to others.
_SPINS = 2000


def _wait(e: Emitter, done: Val, total: Val, p: int) -> None:
    """Until all tasks of a phase are done, or the threads are to end."""
    code = e.code
    look, again, give, after = (f"{word}{p}" for word in ("look", "again", "give", "ready"))
    before = code.block
    code.jump(look)
    code.label(look)
    spins = Val(f"%spins{p}", "i64")
    code.do(f"{spins.text} = phi i64 [0, %{before}], [%more{p}, %{again}], [0, %{give}]")
    finished = code.op("i64", f"load atomic i64, ptr {done.text} acquire, align 8")
    ready = code.op("i1", f"or i1 {code.compare('sge', finished, total).text}, {_halted(e).text}")
    middle = f"middle{p}"
    code.do(f"br i1 {ready.text}, label %{after}, label %{middle}")
    code.label(middle)
    code.do(f"%more{p} = add i64 {spins.text}, 1")
    tired = code.compare("sgt", spins, index(_SPINS))
    code.do(f"br i1 {tired.text}, label %{give}, label %{again}")
    code.label(give)
    code.external("sched_yield", "i32", [])
    code.jump(look)
    code.label(again)
    code.jump(look)
    code.label(after)


def _outside(e: Emitter, op: Op) -> None:
    """What the caller does, or regions do as a whole."""
    raise AssertionError(op.name)


lowering("tile.alloc", "tile.return", *HOST)(_outside)
