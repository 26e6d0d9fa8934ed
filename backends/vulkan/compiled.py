"""A tile function as a callable of tensors: what is uploaded, the recorded dispatches, what comes back."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aatc.backends.vulkan.executors import Executor, Launch, Range, Zero, pack
from aatc.backends.vulkan.executors.contract import Recording, Step
from aatc.backends.vulkan.executors.once import push_words
from aatc.backends.vulkan.kernels import Buffer, Dispatch, runs_symbol
from aatc.backends.vulkan.lower import Lowered
from aatc.ir.core import Op, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import DeviceLimitError
from aatc.ir.interpreter import bind_sizes
from aatc.ir.registry import lookup_op
from aatc.ir.tilemap import TileMap
from aatc.ir.types import TensorType, torch_dtype

#: Plans that a function keeps, of the shapes it was called with last.
PLANS = 8
_LINE = 64  # words between the beginnings of buffers


@dataclass
class Plan:
    """What calls with arguments of the same shapes have in common. ``inputs``: names of buffers that every call fills,
    in the order of the recording's."""

    sizes: dict[str, int]
    recording: Recording
    inputs: list[str]
    outputs: list[str]
    close: Callable[[], None]


class Sizes:
    """The extents of a call, as reference evaluations of operations ask for them."""

    def __init__(self, sizes: Mapping[str, int]):
        self.sizes = sizes

    def dim(self, d: Dim | int) -> int:
        return Dim.of(d).evaluate(self.sizes)


class Compiled:
    """Runs one tile function on a device. Calls from several threads go one after the other."""

    def __init__(self, lowered: Lowered, executor: Executor):
        self.lowered, self.executor = lowered, executor
        self.plans: OrderedDict[Any, Plan] = OrderedDict()
        self.lock = threading.Lock()
        self.kinds = {b.name: b for b in lowered.template.buffers}
        self.names = dict(zip(lowered.arguments, (b.name for b in lowered.template.arguments), strict=True))

    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor] | None:
        """The results; None where a condition of the function fails."""
        func = self.lowered.func
        sizes = self._sizes(bind_sizes(func, tensors, {}))
        values: dict[Value, torch.Tensor] = dict(zip(func.args, (t.detach() for t in tensors), strict=True))
        for op in self.lowered.before:
            values[op.result] = _on_host(op, values, sizes)
        runs = {name: _classified(op, values, sizes) for name, op in self.lowered.runs.items()}
        for name, table in runs.items():
            sizes |= {runs_symbol(name, n): extent for n, extent in enumerate(table.shape)}
        with self.lock:
            plan = self._plan(sizes, runs)
            given = {self.names[v]: values[v] for v in self.lowered.arguments} | runs
            for name, words in zip(plan.inputs, plan.recording.inputs, strict=True):
                _fill(words, given[name], self.kinds[name])
            plan.recording.run()
            found = dict(zip(plan.outputs, plan.recording.outputs, strict=True))
            if int(found["refused"][0]):
                return None
            for v, name in self.lowered.downloads.items():
                values[v] = _read(found.get(name), v, sizes)
        for op in self.lowered.after:
            values[op.result] = _on_host(op, values, sizes)
        results, taken = [], set()
        for v in func.body.ops[-1].operands:
            results.append(values[v].clone() if v in taken or v in func.args else values[v])
            taken.add(v)
        return results

    def _sizes(self, sizes: dict[str, int]) -> dict[str, int]:
        """With those of products of dimensions."""
        for op in self.lowered.func.body.walk():
            for d in (*op.attrs.get("sizes", ()), op.attrs.get("upper", 0)):
                for name in Dim.of(d).symbols - sizes.keys():
                    sizes[name] = math.prod(sizes[part] for part in name.split("_x_"))
            for r in op.results:
                for d in r.type.shape if isinstance(r.type, TensorType) else ():
                    for name in d.symbols - sizes.keys():
                        sizes[name] = math.prod(sizes[part] for part in name.split("_x_"))
        return sizes

    def _plan(self, sizes: dict[str, int], runs: Mapping[str, torch.Tensor]) -> Plan:
        key = tuple(sorted(sizes.items()))
        found = self.plans.get(key)
        if found is None:
            found = self.plans[key] = self._make(sizes, runs)
            if len(self.plans) > PLANS:
                self.plans.popitem(last=False)[1].close()
        self.plans.move_to_end(key)
        return found

    def _make(self, sizes: dict[str, int], runs: Mapping[str, torch.Tensor]) -> Plan:
        template, executor = self.lowered.template, self.executor
        places: dict[str, Range] = {}
        total = 0
        for b in template.buffers:
            places[b.name] = Range(total, b.words(sizes))
            total += -(-places[b.name].words // _LINE) * _LINE
        blocks: list[tuple[int, list[int | float]]] = []
        levels: list[list[Step]] = [[Zero(places["refused"])]]
        levels += [[] for _ in template.dispatches]
        for dispatch, level in zip(template.dispatches, levels_of(template.dispatches), strict=True):
            grid = tuple(g.evaluate(sizes) for g in dispatch.grid)
            words = push_words(dispatch, sizes, places)
            if dispatch.kernel.block:
                blocks.append((total, words))
                words, total = [total], total + -(-len(words) // 4) * 4
            if 0 not in grid:
                self._check_trips(dispatch, sizes)
                levels[level + 1].append(Launch(executor.compile(dispatch.kernel), grid, pack(words)))  # type: ignore[arg-type]
        inputs = [b.name for b in template.arguments if places[b.name].words]
        inputs += [n for n, op in self.lowered.runs.items() if op.operands and places[n].words]
        outputs = [n for n in dict.fromkeys([*self.lowered.downloads.values(), "refused"]) if places[n].words]
        arena = executor.arena(total)
        for at, words in blocks:
            arena.write(at, torch.frombuffer(bytearray(pack(words)), dtype=torch.int32))
        for name, op in self.lowered.runs.items():
            if not op.operands and runs[name].numel():
                arena.write(places[name].offset, runs[name].flatten())
        recording = executor.record(
            arena, [level for level in levels if level], [places[n] for n in inputs], [places[n] for n in outputs]
        )

        def close() -> None:
            recording.close()
            arena.close()

        return Plan(sizes, recording, inputs, outputs, close)

    def _check_trips(self, dispatch: Dispatch, sizes: Mapping[str, int]) -> None:
        most = self.executor.device.trips
        trips = math.prod(max(1, r.evaluate(sizes)) for r in dispatch.trips)
        if most and trips > most:
            raise DeviceLimitError(
                f"kernel {dispatch.kernel.name}: the loops of a thread go {trips} times, the driver of "
                f"{self.executor.device.name} ends them after {most}",
                hint="larger tiles, shorter sequences, or a newer driver",
            )

    def close(self) -> None:
        """Frees what is held on the device."""
        for plan in self.plans.values():
            plan.close()
        self.plans.clear()

    def __del__(self) -> None:
        self.close()


def levels_of(dispatches: Sequence[Dispatch]) -> list[int]:
    """The earliest level of each: behind whatever writes what it touches, and whatever reads what it writes."""
    out: list[int] = []
    for n, d in enumerate(dispatches):
        touched, written = {*d.reads, *d.writes}, set(d.writes)
        before = [
            out[m] + 1
            for m, other in enumerate(dispatches[:n])
            if touched & set(other.writes) - {"refused"} or written & set(other.reads)
        ]
        out.append(max(before, default=0))
    return out


def _on_host(op: Op, values: Mapping[Value, torch.Tensor], sizes: Mapping[str, int]) -> torch.Tensor:
    evaluate: Any = lookup_op(op.name).evaluate
    (out,) = evaluate(op, [values[v] for v in op.operands], Sizes(sizes))
    return out


def _classified(op: Op, values: Mapping[Value, torch.Tensor], sizes: Mapping[str, int]) -> torch.Tensor:
    a = op.attrs
    extents = tuple(Dim.of(d).evaluate(sizes) for d in a["sizes"])
    found = TileMap.of(a["mask"], [values[v] for v in op.operands], extents, a["rows"], a["cols"], a["heads"])
    runs = found.transposed() if a.get("over") == "i" else found
    return torch.from_numpy(np.ascontiguousarray(runs.runs(), dtype=np.int32))


def _fill(words: torch.Tensor, value: torch.Tensor, buffer: Buffer) -> None:
    to = words.view(torch.float32) if buffer.floating else words
    to[: value.numel()].view(value.shape).copy_(value)


def _read(words: torch.Tensor | None, v: Value, sizes: Mapping[str, int]) -> torch.Tensor:
    t = v.type
    assert isinstance(t, TensorType)
    shape, dtype = [d.evaluate(sizes) for d in t.shape], torch_dtype(t.dtype)
    if words is None:
        return torch.empty(shape, dtype=dtype)
    floating = t.dtype in ("f32", "bf16", "f16")
    found = (words.view(torch.float32) if floating else words)[: math.prod(shape)].view(shape)
    return found.to(dtype, copy=True)
