"""A compiled tile function as a callable of tensors: checks, buffers, one start of threads per region."""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from aatc.backends.native import bounds, launch, machine
from aatc.backends.native.arena import ALIGNMENT as ALIGN
from aatc.backends.native.arena import ARENA
from aatc.backends.native.context import (
    CHUNK,
    FAULT,
    FIRST,
    PROBLEMS,
    PROFILE,
    REFUSED,
    SCRATCH,
    SCRATCH_BYTES,
    STOP,
    THREADS,
    TOTAL,
    rank_of,
)
from aatc.backends.native.counters import WATCH
from aatc.backends.native.isa import Isa
from aatc.backends.native.regions import HostStep, Region, Text, generate
from aatc.backends.native.turns import Turns, turns_of
from aatc.backends.native.work import tasks_of
from aatc.backends.results import apart
from aatc.ir.core import Func, Op, Value
from aatc.ir.dims import Dim, factors
from aatc.ir.errors import BackendError, ShapeError
from aatc.ir.registry import lookup_op
from aatc.ir.schedule import Schedule
from aatc.ir.tilemap import PARTIAL, TileMap
from aatc.ir.types import TensorType, torch_dtype

#: Multiplications and additions below which one thread is enough: a second one takes some microseconds to come, and
#: on a busy machine a scheduler's quantum.
ALONE = 32_000_000
#: And beyond which a kernel can be stopped by a signal: some hundredths of a second.
LONG = 4_000_000_000


def compile_tile(func: Func, isa: Isa) -> tuple[Callable[..., Any], str]:
    """The callable of a tile function and its LLVM text."""
    text = generate(func, isa, blocks_of(func, isa), check=bounds.wanted())
    return Compiled(func, text, isa), text.text


def listing(func: Func, isa: Isa, form: str) -> str:
    """A tile function as LLVM IR ("llvm"), or as assembly ("asm")."""
    text = generate(func, isa, blocks_of(func, isa), check=bounds.wanted()).text
    return text if form == "llvm" else machine.assembly(text, isa)


def blocks_of(func: Func, isa: Isa) -> tuple[int, int]:
    """(rows, vectors) of the products' register block: of the schedule where it says so."""
    rows, vectors = (8, 2) if isa.registers >= 32 else (4, 2)
    schedule = Schedule.parse(func.attrs["schedule"]) if func.attrs.get("schedule") else None
    for d in schedule.directives if schedule is not None else ():
        if d.word == "split" and getattr(d, "axis", "") == "ii":
            rows = d.extent  # type: ignore[attr-defined]
        if d.word == "split" and getattr(d, "axis", "") == "jj":
            vectors = max(1, d.extent * 4 // isa.vector_bytes)  # type: ignore[attr-defined]
    return rows, vectors


class Compiled:
    """Runs one tile function. ``counters``: of a build that counts, their address; ``build``: this function's."""

    counters = 0
    build: Any = None

    def __init__(self, func: Func, text: Text, isa: Isa):
        self.func, self.text, self.isa = func, text, isa
        self.library = machine.load(text.text, isa)
        self.addresses = [self.library.address(n) if n else 0 for n in text.names]
        self.results = func.body.ops[-1].operands
        self.args = [_Argument(a) for a in func.args]
        self.dtypes = [a.dtype for a in self.args]
        self.plans: dict[tuple[Any, ...], Plan] = {}  # by results that are wanted, and arguments' shapes and strides

    def __call__(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor] | None:
        watch = WATCH.get()
        return self.run(tensors) if watch is None else watch.run(self, tensors)

    def first(self, count: int, *tensors: torch.Tensor) -> Sequence[torch.Tensor] | None:
        """The first ``count`` results; the others are not handed out."""
        watch = WATCH.get()
        found = self.run(tensors, count) if watch is None else watch.run(self, tensors)
        return found if found is None else found[:count]

    def run(self, tensors: Sequence[torch.Tensor], count: int | None = None) -> Sequence[torch.Tensor] | None:
        dtypes = self.dtypes
        key: list[Any] = [count]
        addresses: list[int] = []
        known = len(tensors) == len(dtypes)
        for dtype, t in zip(dtypes, tensors, strict=False):
            known = known and t.dtype is dtype and t.is_cpu and not t.is_neg()
            addresses.append(t.data_ptr())
            key += (t.shape, t.stride())
        plan = self.plans.get(tuple(key)) if known and 0 not in addresses else None
        if plan is None:
            tensors, plan = self._planned(tensors, count)
            addresses = [t.data_ptr() for t in tensors]
        return plan.run(tensors, addresses)

    def _planned(self, tensors: Sequence[torch.Tensor], count: int | None) -> tuple[tuple[torch.Tensor, ...], Plan]:
        """Tensors as code takes them, and what calls with such ones have in common."""
        taken = tuple([t if a.fits(t) else self._rows(a, t) for a, t in zip(self.args, tensors, strict=True)])
        key = (count, *(x for t in taken for x in (t.shape, t.stride())))
        plan = self.plans.get(key)
        if plan is None:
            if len(self.plans) >= _PLANS:
                self.plans.clear()
            plan = self.plans[key] = Plan(self, self._sizes(taken), taken, count)
        return taken, plan

    def _rows(self, a: _Argument, t: torch.Tensor) -> torch.Tensor:
        """A tensor as code takes it: its features are neighbours, and memory holds its numbers. A view may only say
        that they are to be negated, and a gradient that it is zero, without any memory."""
        if t.dtype != a.dtype or t.dim() != a.rank or t.device.type != "cpu":
            of, at = f"{t.dtype} {tuple(t.shape)}", f"{t.device}"
            raise ShapeError(f"%{a.value.name} of @{self.func.name} is {a.value.type}, got {of} on {at}")
        t = t.resolve_neg().contiguous()
        return t if t.data_ptr() or not t.numel() else t.clone()

    def _sizes(self, tensors: Sequence[torch.Tensor]) -> dict[str, int]:
        """Sizes of symbolic dimensions; every shape is checked, since code trusts them."""
        sizes: dict[str, int] = _Dims()
        later = []
        for arg, t in zip(self.func.args, tensors, strict=True):
            for d, n in zip(arg.type.shape, t.shape, strict=True):  # type: ignore[attr-defined]
                if not d.terms and d.const == n:
                    continue
                if len(d.terms) == 1 and d.terms[0][0] not in sizes and len(factors(d.terms[0][0])) == 1:
                    (name, c) = d.terms[0]
                    sizes[name] = (n - d.const) // c
                later.append((d, n, arg))
        for d, n, arg in later:
            what = f"%{arg.name} of @{self.func.name} is {arg.type}"
            if missing := [p for s in d.symbols for p in factors(s) if p not in sizes]:
                raise ShapeError(f"{what}: no argument has {missing[0]} in its shape by itself")
            if d.evaluate(sizes) != n:
                raise ShapeError(f"{what}: {d} is not {n}")
        return sizes


class _Dims(dict[str, int]):
    """Sizes by name; products have those of their factors."""

    def __missing__(self, name: str) -> int:
        parts = factors(name)
        if len(parts) < 2:
            raise KeyError(name)
        return math.prod(self[part] for part in parts)


#: Operations that make a buffer which regions fill.
MADE = ("tile.alloc", "tile.pack", "tile.peak", "tile.centre")
#: About how many multiplications and additions a thread draws at once, at most: a thread that draws the last tasks lets
#: the others wait for no longer than these take, some microseconds.
_DRAWN = 1 << 20
#: Shapes and strides of arguments for which a function remembers what it has worked out.
_PLANS = 64


class _Argument:
    __slots__ = ("dtype", "rank", "value")

    def __init__(self, v: Value):
        t: TensorType = v.type  # type: ignore[assignment]
        self.value, self.dtype, self.rank = v, torch_dtype(t.dtype), len(t.shape)

    def fits(self, t: torch.Tensor) -> bool:
        return (
            t.dtype is self.dtype
            and t.dim() == self.rank
            and t.is_cpu
            and (not self.rank or t.stride(-1) == 1 or t.shape[-1] <= 1)
            and not t.is_neg()
            and (t.data_ptr() != 0 or not t.numel())
        )


class Plan:
    """All that calls with arguments of the same shapes and strides have in common: sizes of buffers, their places in
    one block of memory, tasks, threads, and the context as far as it is known. Results behind the first ``count`` are
    buffers like all others."""

    def __init__(
        self, compiled: Compiled, sizes: dict[str, int], tensors: Sequence[torch.Tensor], count: int | None = None
    ):
        self.compiled, self.sizes, self.text = compiled, sizes, compiled.text
        func, self.results = compiled.func, compiled.results[:count]
        self.known: dict[Value, np.ndarray] = {}  # runs that sizes alone decide
        for s in self.text.steps:
            runs = known_runs(s.op, sizes) if isinstance(s, HostStep) else None
            if runs is not None:
                self.known[s.op.result] = runs  # type: ignore[union-attr]
        self.hosted = [s.op for s in self.text.steps if isinstance(s, HostStep) and s.op.result not in self.known]
        seen = {v for op in self.hosted for v in [*op.operands, *op.results]}
        self.made: list[tuple[list[int], torch.dtype]] = []  # new in every call
        self.filled: list[tuple[int, float]] = []  # those of them that begin with a number
        self.places: dict[Value, int] = {a: n for n, a in enumerate(func.args)}  # arguments, then what is made
        self.buffers: dict[Value, tuple[int, int, float | None, list[int]]] = {}  # place, bytes, fill, shape
        self.laid = {v: (t.shape, t.stride(), t.itemsize) for v, t in zip(func.args, tensors, strict=True)}
        at = 0
        for op in func.body.ops:
            for v in op.results if op.name in MADE else ():
                shape, dtype, fill = _made(op, v, sizes)
                if v in self.results or v in seen or fill not in (None, 0.0):
                    if fill is not None:
                        self.filled.append((len(self.made), fill))
                    self.places[v] = len(self.places)
                    self.laid[v] = torch.Size(shape), tuple(_strides(shape)), dtype.itemsize
                    self.made.append((shape, dtype))
                    continue
                self.buffers[v] = (0, math.prod(shape) * dtype.itemsize, fill, shape)
        whole = {v: n for v, (_, n, _, _) in self.buffers.items()}
        self.turns = turns_of(func, self.text.problems, sizes, whole) if self.text.problems is not None else None
        for v, (_, n, fill, shape) in self.buffers.items():
            if self.turns is not None:
                n = self.turns.nbytes(v, n)
            self.buffers[v] = (at, n, fill, shape)
            at += -(-n // ALIGN) * ALIGN
        self.steps = [
            s.op if isinstance(s, HostStep) else _RegionPlan(self, n, s)
            for n, s in enumerate(self.text.steps)
            if not isinstance(s, HostStep) or s.op in self.hosted
        ]
        regions = [r for r in self.steps if isinstance(r, _RegionPlan)]
        self.scratch_at = at
        self.scratch_bytes = max((r.scratch for r in regions), default=0)
        self.alone = all(r.work < ALONE for r in regions)
        filled = {v: (place, n) for v, (place, n, fill, _) in self.buffers.items() if fill is not None and n}
        self.zeros = list(filled.values())
        self.again = [filled[v] for v in filled if self.turns is not None and v in self.turns.parts]
        args = len(func.args)
        order = [self.places.get(v, -1) - args for v in self.results]
        self.order = order if min(order, default=0) >= 0 else None  # of results that are made here

    def run(self, tensors: Sequence[torch.Tensor], addresses: list[int]) -> Sequence[torch.Tensor] | None:
        """``addresses``: of the tensors, which are taken over."""
        made = [torch.empty(shape, dtype=dtype) for shape, dtype in self.made]
        for t in made:
            addresses.append(t.data_ptr())
        for n, fill in self.filled:
            made[n].fill_(fill)
        held: dict[Value, Any] = {}
        if self.hosted:
            given = [*tensors, *made]
            held = {v: given[n] for v, n in self.places.items()}
        threads = 1 if self.alone else torch.get_num_threads()
        block = ARENA.take(self.scratch_at + self.scratch_bytes * threads + ALIGN)
        try:
            base = block.address
            for place, size in self.zeros:
                ctypes.memset(base + place, 0, size)
            for turn in self.turns.starts() if self.turns is not None else [None]:
                for place, size in self.again if turn is not None and turn[0] else ():
                    ctypes.memset(base + place, 0, size)
                for step in self.steps:
                    if isinstance(step, Op):
                        _host(step, held, self.sizes)
                    elif not step.run(addresses, held, base, threads, turn):
                        return None
        finally:
            ARENA.give(block)
        if self.order is not None:
            return [made[n] for n in self.order]
        given = [*tensors, *made]
        return apart([given[self.places[v]] if v in self.places else held[v] for v in self.results], tensors)


class _RegionPlan:
    """One region of a plan."""

    def __init__(self, plan: Plan, n: int, region: Region):
        text, self.plan = plan.text, plan
        self.layout, self.address = text.layouts[n], plan.compiled.addresses[n]
        self.function = launch.function(self.address)
        self.scratch = -(-text.scratch[n] // ALIGN) * ALIGN
        layout = self.layout
        context = array("q", bytes(8 * layout.size))
        self.work, self.totals, self.again, self.drawn = 0, [], [], []
        for p, phase in enumerate(region.phases):
            count, again, work = tasks_of(phase, plan.sizes)
            self.work += work
            self.totals.append(count)
            self.again.append(again)
            self.drawn.append(max(1, _DRAWN * count // max(1, work)))
            context[layout.phase(p, TOTAL)] = count
        for name, place in layout.symbols.items():
            context[place] = plan.sizes[name]
        context[SCRATCH_BYTES], context[PROFILE] = self.scratch, plan.compiled.counters
        if text.problems is not None:
            context[PROBLEMS] = text.problems.evaluate(plan.sizes)
        sized = bool(text.operations)
        self.inner: list[tuple[int, int]] = []  # of buffers in the block: place in the context, in the block
        self.shifted: list[tuple[int, int]] = []  # place in the context, bytes per problem before a turn
        self.outer: list[tuple[int, int]] = []  # of arguments and what is made: place in the context, number
        self.late: list[tuple[int, Value]] = []  # of what the caller computes between regions
        for v, place in layout.buffers.items():
            if v in plan.known:
                _describe(context, place, v, plan.known[v], sized=sized)
            elif v in plan.places:
                _lay(context, place, v, *plan.laid[v], sized=sized)
                self.outer.append((place, plan.places[v]))
            elif v in plan.buffers:
                at, _, _, shape = plan.buffers[v]
                self.inner.append((place, at))
                size = torch_dtype(v.type.dtype).itemsize  # type: ignore[attr-defined]
                if plan.turns is not None:
                    self.shifted.append((place, plan.turns.shift(v, math.prod(shape) * size)))
                _lay(context, place, v, shape, _strides(shape), size, sized=sized)
            else:
                self.late.append((place, v))
        self.alone, self.long = self.work < ALONE, self.work > LONG
        self.empty = not any(self.totals)
        self.context = context
        self.contexts: dict[int, array[int]] = {}  # by threads

    def _chunk(self, p: int, total: int, threads: int) -> int:
        """Tasks that are drawn at once. Those of a small phase are: the next one would wait for a thread that has drawn
        one of them and lost its core."""
        drawn = self.drawn[p]
        return max(1, total if drawn >= total else min(total // (threads * 16), drawn))

    def _of(self, threads: int) -> array[int]:
        context = self.contexts[threads] = self.context[:]
        for p, total in enumerate(self.totals):
            context[self.layout.phase(p, CHUNK)] = self._chunk(p, total, threads)
        context[THREADS] = threads
        return context

    def _take(self, context: array[int], turns: Turns, turn: tuple[int, int], threads: int) -> None:
        """Leaves all problems but a turn's out."""
        context[FIRST], context[PROBLEMS] = turn
        for p, (total, again) in enumerate(zip(self.totals, self.again, strict=True)):
            here = again + (total - again) // turns.total * turn[1]
            context[self.layout.phase(p, TOTAL)] = here
            context[self.layout.phase(p, CHUNK)] = self._chunk(p, here, threads)
        for place, step in self.shifted:
            context[place] -= step * turn[0]

    def run(
        self,
        addresses: list[int],
        held: dict[Value, Any],
        base: int,
        threads: int,
        turn: tuple[int, int] | None = None,
    ) -> bool:
        if self.empty:
            return True
        threads = 1 if self.alone else threads
        context = (self.contexts.get(threads) or self._of(threads))[:]
        for place, at in self.inner:
            context[place] = base + at
        for place, n in self.outer:
            context[place] = addresses[n]
        plan = self.plan
        for place, v in self.late:
            _describe(context, place, v, held[v], sized=bool(plan.text.operations))
        if turn is not None and plan.turns is not None:
            self._take(context, plan.turns, turn, threads)
        context[SCRATCH] = base + plan.scratch_at
        address = context.buffer_info()[0]
        if self.alone:
            self.function(address)
        else:
            launch.run(self.address, address, threads, stop=address + 8 * STOP, long=self.long)
        if context[FAULT]:
            raise BackendError(
                f"@{plan.compiled.func.name} leaves its memory in: {plan.text.operations[context[FAULT]]}",
                hint='this is a bug of the native backend; backend="cpu" does without it',
            )
        return not context[REFUSED]


def _made(op: Op, v: Value, sizes: dict[str, int]) -> tuple[list[int], torch.dtype, float | None]:
    """(shape, dtype, fill) of a new buffer; panels are whole."""
    t: TensorType = v.type  # type: ignore[assignment]
    shape = [d.evaluate(sizes) for d in t.shape]
    if t.panel:
        shape[1] = -(-shape[1] // t.panel) * t.panel
        shape[2] = -(-shape[2] // t.together) * t.together
    return shape, torch_dtype(t.dtype), op.attrs.get("fill", 0.0 if op.name == "tile.peak" else None)


def _strides(shape: Sequence[int]) -> list[int]:
    """Of a tensor that lies in the order of its axes."""
    steps = [1]
    for n in reversed(shape[1:]):
        steps.append(steps[-1] * n)
    return steps[::-1] if shape else []


def _lay(
    context: Any, place: int, v: Value, shape: Sequence[int], strides: Sequence[int], itemsize: int, *, sized: bool
) -> None:
    """Strides, 0 along axes of one entry, and where asked for the bytes from the first element to behind the last."""
    for axis, (n, stride) in enumerate(zip(shape, strides, strict=True)):
        context[place + 1 + axis] = 0 if n == 1 else stride
    if sized:
        context[place + 1 + rank_of(v)] = _bytes(shape, strides, itemsize)


def _bytes(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> int:
    """From the first element of a tensor to behind the last."""
    if not math.prod(shape):
        return 0
    return (sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1) * itemsize


def _describe(context: Any, place: int, v: Value, t: Any, *, sized: bool) -> None:
    """Address, and layout of a tensor or extents of runs."""
    if not isinstance(t, np.ndarray):
        context[place] = t.data_ptr()
        _lay(context, place, v, t.shape, t.stride(), t.itemsize, sized=sized)
        return
    context[place] = t.ctypes.data
    context[place + 1], context[place + 2], context[place + 3] = t.shape[:3]
    if sized:
        context[place + 1 + rank_of(v)] = t.nbytes


def _host(op: Op, held: dict[Value, Any], sizes: dict[str, int]) -> None:
    values = [held[v] for v in op.operands]
    if op.name == "tile.classify":
        held[op.result] = _classified(op, values, sizes)
        return
    found = lookup_op(op.name).evaluate(op, values, _Sizes(sizes))  # type: ignore[misc]
    for v, x in zip(op.results, found, strict=True):
        held[v] = x.contiguous()


class _Sizes:
    """What evaluation of a tile operation asks an interpreter."""

    def __init__(self, sizes: dict[str, int]):
        self.sizes = sizes

    def dim(self, d: Dim | int) -> int:
        return Dim.of(d).evaluate(self.sizes)


#: Pairs of a problem below which a mask that reads tensors is not looked at before: that takes longer than what is
#: known of its tiles saves.
_FEW_PAIRS = 128 * 128


def known_runs(op: Op, sizes: dict[str, int]) -> np.ndarray | None:
    """Runs of a mask where these are the same in every call of these sizes; None otherwise."""
    if op.name != "tile.classify":
        return None
    a = op.attrs
    extents = tuple(Dim.of(d).evaluate(sizes) for d in a["sizes"])
    over = a.get("over", "j")
    if not op.operands:
        return _plain_runs(a["mask"], extents, a["rows"], a["cols"], a["heads"], over)
    if extents[2] * extents[3] > _FEW_PAIRS:
        return None
    blocks = -(-extents[2] // a["rows"]) if over == "j" else -(-extents[3] // a["cols"])
    runs = np.zeros((1, blocks, 1, 3), dtype=np.int32)
    runs[..., 1], runs[..., 2] = extents[3 if over == "j" else 2], PARTIAL
    return runs


def _classified(op: Op, values: list[torch.Tensor], sizes: dict[str, int]) -> np.ndarray:
    a = op.attrs
    extents = tuple(Dim.of(d).evaluate(sizes) for d in a["sizes"])
    return _runs(a["mask"], values, extents, a["rows"], a["cols"], a["heads"], a.get("over", "j"))


def _runs(mask: Any, values: Any, extents: Any, rows: int, cols: int, heads: int, over: str) -> np.ndarray:
    found = TileMap.of(mask, values, extents, rows, cols, heads)
    return np.ascontiguousarray((found.transposed() if over == "i" else found).runs())


@lru_cache(maxsize=128)
def _plain_runs(mask: Any, extents: Any, rows: int, cols: int, heads: int, over: str) -> np.ndarray:
    """Runs of a mask that reads no tensor."""
    return _runs(mask, [], extents, rows, cols, heads, over)
