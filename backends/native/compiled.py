"""A compiled tile function as a callable of tensors: checks, buffers, one start of threads per region."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from aatc.backends.native import bounds, launch, machine
from aatc.backends.native.arena import ARENA
from aatc.backends.native.context import (
    CHUNK,
    FAULT,
    REFUSED,
    SCRATCH,
    SCRATCH_BYTES,
    STOP,
    THREADS,
    TOTAL,
    Layout,
    rank_of,
)
from aatc.backends.native.isa import Isa
from aatc.backends.native.regions import HostStep, Region, Text, generate
from aatc.ir.core import Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import BackendError, ShapeError
from aatc.ir.registry import lookup_op
from aatc.ir.schedule import Schedule
from aatc.ir.tilemap import TileMap
from aatc.ir.types import RunsType, TensorType, torch_dtype

#: Multiplications and additions below which one thread is enough: a second one takes some microseconds to come, and
#: on a busy machine a scheduler's quantum.
ALONE = 1 << 21
#: And beyond which a kernel can be stopped by a signal: some hundredths of a second.
LONG = 1 << 24
_EMPTY = np.zeros(1, dtype=np.int64)


def compile_tile(func: Func, isa: Isa) -> tuple[Callable[..., Any], str]:
    """The callable of a tile function and its LLVM text."""
    text = generate(func, isa, blocks_of(func, isa), check=bounds.wanted())
    return Compiled(func, text, isa), text.text


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
    """Runs one tile function."""

    def __init__(self, func: Func, text: Text, isa: Isa):
        self.func, self.text = func, text
        self.library = machine.load(text.text, isa)
        self.addresses = [self.library.address(n) if n else 0 for n in text.names]
        self.allocs = [op for op in func.body.ops if op.name == "tile.alloc"]
        self.results = func.body.ops[-1].operands
        self.args = [(a, torch_dtype(a.type.dtype), len(a.type.shape)) for a in func.args]  # type: ignore[attr-defined]
        self.symbols = sorted({s for a in func.args for d in a.type.shape for s in d.symbols})  # type: ignore[attr-defined]

    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor] | None:
        sizes = self._sizes(tensors)
        held: dict[Value, Any] = dict(zip(self.func.args, tensors, strict=True))
        with ARENA.session() as session:
            for op in self.func.body.ops:
                self._make(op, held, sizes, session)
            for n, step in enumerate(self.text.steps):
                if isinstance(step, HostStep):
                    _host(step.op, held, sizes)
                elif not self._region(n, step, held, sizes, session):
                    return None
            return apart([held[v] for v in self.results], tensors)

    def _sizes(self, tensors: Sequence[torch.Tensor]) -> dict[str, int]:
        """Sizes of symbolic dimensions; every shape and type is checked, since code trusts them."""
        sizes: dict[str, int] = {}
        later = []
        for (arg, dtype, rank), t in zip(self.args, tensors, strict=True):
            if t.dtype != dtype or t.dim() != rank or t.device.type != "cpu":
                raise ShapeError(
                    f"%{arg.name} of @{self.func.name} is {arg.type}, got {t.dtype} {tuple(t.shape)} on {t.device}"
                )
            for d, n in zip(arg.type.shape, t.shape, strict=True):  # type: ignore[attr-defined]
                if not d.terms and d.const == n:
                    continue
                if len(d.terms) == 1 and d.terms[0][0] not in sizes:
                    (name, c) = d.terms[0]
                    sizes[name] = (n - d.const) // c
                later.append((d, n, arg))
        for d, n, arg in later:
            if d.evaluate(sizes) != n:
                raise ShapeError(f"%{arg.name} of @{self.func.name} is {arg.type}: {d} is not {n}")
        return sizes

    def _make(self, op: Op, held: dict[Value, Any], sizes: dict[str, int], session: Any) -> None:
        """New buffers of an operation that regions write."""
        if op.name not in ("tile.alloc", "tile.pack", "tile.peak", "tile.centre"):
            return
        for v in op.results:
            t: TensorType = v.type  # type: ignore[assignment]
            shape = [d.evaluate(sizes) for d in t.shape]
            if t.panel:
                shape[1] = -(-shape[1] // t.panel) * t.panel
            fill = op.attrs.get("fill", 0.0 if op.name == "tile.peak" else None)
            dtype = torch_dtype(t.dtype)
            if v in self.results or fill is not None:
                made = torch.empty(shape, dtype=dtype)
            else:
                made = session.tensor(shape, dtype)
            held[v] = made if fill is None else made.fill_(fill)

    def _region(self, n: int, region: Region, held: dict[Value, Any], sizes: dict[str, int], session: Any) -> bool:
        layout = self.text.layouts[n]
        context = np.zeros(layout.size, dtype=np.int64)
        work = self._work(region, layout, context, sizes)
        threads = 1 if work < ALONE else torch.get_num_threads()
        for p in range(layout.phases):
            total = context[layout.phase(p, TOTAL)]
            context[layout.phase(p, CHUNK)] = max(1, total // (threads * 16))
        for v, place in layout.buffers.items():
            _describe(context, place, v, held[v])
            if self.text.operations:
                context[place + 1 + rank_of(v)] = _bytes(held[v])
        for name, place in layout.symbols.items():
            context[place] = sizes[name]
        scratch = self.text.scratch[n]
        context[THREADS], context[SCRATCH_BYTES] = threads, scratch
        context[SCRATCH] = session.bytes(scratch * threads + 64)
        at = context.ctypes.data
        launch.run(self.addresses[n], at, threads, stop=at + 8 * STOP, long=work > LONG)
        if context[FAULT]:
            raise BackendError(
                f"@{self.func.name} leaves its memory in: {self.text.operations[context[FAULT]]}",
                hint='this is a bug of the native backend; backend="cpu" does without it',
            )
        return not context[REFUSED]

    def _work(self, region: Region, layout: Layout, context: np.ndarray, sizes: dict[str, int]) -> int:
        """Fills in the number of tasks of each phase; returns about how much there is to do."""
        work = 0
        for p, phase in enumerate(region.phases):
            total = 0
            for nest in phase.nests:
                count = math.prod(-(-d.evaluate(sizes) // step) for d, step in nest.extents)
                total += count
                work += (
                    count * 50_000 if any(x.name == "tile.dot" for y in nest.ops for x in _walk(y)) else count * 4096
                )
            context[layout.phase(p, TOTAL)] = total
        return work


def _walk(op: Op) -> list[Op]:
    return [op, *(y for r in op.regions for y in r.walk())]


def _describe(context: np.ndarray, place: int, v: Value, t: Any) -> None:
    """Address, and strides of a tensor (0 along axes of one entry) or extents of runs."""
    if isinstance(v.type, RunsType):
        context[place] = t.ctypes.data
        context[place + 1 : place + 4] = t.shape[:3]
        return
    context[place] = t.data_ptr()
    for axis in range(rank_of(v)):
        context[place + 1 + axis] = 0 if t.shape[axis] == 1 else t.stride(axis)


def _bytes(t: Any) -> int:
    """From the first element of a tensor, or of runs, to behind the last."""
    if isinstance(t, np.ndarray):
        return t.nbytes
    if not t.numel():
        return 0
    return (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1) * t.itemsize


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


def _classified(op: Op, values: list[torch.Tensor], sizes: dict[str, int]) -> np.ndarray:
    a = op.attrs
    extents = tuple(Dim.of(d).evaluate(sizes) for d in a["sizes"])
    if not values:
        return _plain_runs(a["mask"], extents, a["rows"], a["cols"], a["heads"], a.get("over", "j"))
    return _runs(a["mask"], values, extents, a["rows"], a["cols"], a["heads"], a.get("over", "j"))


def _runs(mask: Any, values: Any, extents: Any, rows: int, cols: int, heads: int, over: str) -> np.ndarray:
    found = TileMap.of(mask, values, extents, rows, cols, heads)
    return np.ascontiguousarray((found.transposed() if over == "i" else found).runs())


@lru_cache(maxsize=128)
def _plain_runs(mask: Any, extents: Any, rows: int, cols: int, heads: int, over: str) -> np.ndarray:
    """Runs of a mask that reads no tensor."""
    return _runs(mask, [], extents, rows, cols, heads, over)


def apart(results: Sequence[torch.Tensor], args: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Results as tensors of their own."""
    seen: set[int] = {t.data_ptr() for t in args}
    out = []
    for t in results:
        if t.data_ptr() in seen and t.numel():
            t = t.clone()
        seen.add(t.data_ptr())
        out.append(t)
    return out


_ = ctypes
