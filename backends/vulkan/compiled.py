"""A tile function as a callable of tensors: what is uploaded, the recorded dispatches, what comes back."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from aatc.backends.vulkan.assemble import Assembly
from aatc.backends.vulkan.executors import Executor
from aatc.backends.vulkan.kernels import runs_symbol
from aatc.backends.vulkan.loaded import Loaded, too_large
from aatc.backends.vulkan.lower import Lowered
from aatc.ir.core import Op, Value
from aatc.ir.dims import Dim, factors
from aatc.ir.interpreter import bind_sizes
from aatc.ir.registry import lookup_op
from aatc.ir.tilemap import TileMap
from aatc.ir.types import TensorType, dtype_name

#: A tile function: its results of tensors, None where a condition of it fails.
Run = Callable[..., list[torch.Tensor] | None]

#: Programs that a function keeps, of the shapes it was called with last.
PLANS = 8


class Sizes:
    """The extents of a call, as reference evaluations of operations ask for them."""

    def __init__(self, sizes: Mapping[str, int]):
        self.sizes = sizes

    def dim(self, d: Dim | int) -> int:
        return Dim.of(d).evaluate(self.sizes)


class Compiled:
    """Runs one tile function on a device: a program per shapes, of one upload, the dispatches and one download. Calls
    from several threads go one after the other. What the device cannot hold, integers beyond 32 bits, goes to
    ``elsewhere``."""

    def __init__(self, lowered: Lowered, executor: Executor, elsewhere: Callable[[], Run]):
        self.lowered, self.executor, self.elsewhere = lowered, executor, elsewhere
        self.programs: OrderedDict[Any, Loaded] = OrderedDict()
        self.lock = threading.Lock()
        template = lowered.template
        self.names = dict(zip(lowered.arguments, (b.name for b in template.arguments), strict=True))
        #: Runs of a mask that reads no tensor are parameters: uploaded once.
        self.fixed: dict[Any, torch.Tensor] = {}

    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor] | None:
        """The results; None where a condition of the function fails."""
        func = self.lowered.func
        if any(map(too_large, tensors)):
            return self.elsewhere()(*tensors)
        sizes = all_sizes(self.lowered, bind_sizes(func, tensors, {}))
        values: dict[Value, torch.Tensor] = dict(zip(func.args, (t.detach() for t in tensors), strict=True))
        for op in self.lowered.before:
            values[op.result] = _on_host(op, values, sizes)
        runs = {name: self._runs(name, op, values, sizes) for name, op in self.lowered.runs.items()}
        for name, table in runs.items():
            sizes |= {runs_symbol(name, n): extent for n, extent in enumerate(table.shape)}
        with self.lock:
            program = self._program(sizes, values)
            given = [_words(values[v]) for v in self.lowered.arguments]
            found = program(*given, *runs.values())
        refused, downloads = found[-1], found[:-1]
        if int(refused[0]):
            return None
        values |= dict(zip(self.lowered.downloads, downloads, strict=True))
        for op in self.lowered.after:
            values[op.result] = _on_host(op, values, sizes)
        results: list[torch.Tensor] = []
        for n, v in enumerate(func.body.ops[-1].operands):
            taken = v in func.args or v in func.body.ops[-1].operands[:n]
            results.append(values[v].clone() if taken else values[v])
        return results

    def _runs(self, name: str, op: Op, values: Mapping[Value, torch.Tensor], sizes: Mapping[str, int]) -> torch.Tensor:
        if op.operands:
            return classified(op, values, sizes)
        key = (name, *sorted(sizes.items()))
        if key not in self.fixed:
            if len(self.fixed) > 8 * PLANS:
                self.fixed.clear()
            self.fixed[key] = classified(op, values, sizes)
        return self.fixed[key]

    def _program(self, sizes: dict[str, int], values: Mapping[Value, torch.Tensor]) -> Loaded:
        key = tuple(sorted(sizes.items()))
        found = self.programs.get(key)
        if found is None:
            found = self.programs[key] = self._load(sizes, values)
            if len(self.programs) > PLANS:
                self.programs.popitem(last=False)[1].close()
        self.programs.move_to_end(key)
        return found

    def _load(self, sizes: dict[str, int], values: Mapping[Value, torch.Tensor]) -> Loaded:
        program = Assembly(self.lowered.func.name)
        given = {}
        for v in self.lowered.arguments:
            t = _words(values[v])
            given[self.names[v]] = program.input(dtype_name(t.dtype), list(t.shape), self.names[v])
        for name, op in self.lowered.runs.items():
            shape = [sizes[runs_symbol(name, n)] for n in range(4)]
            make = program.input if op.operands else program.parameter
            given[name] = make("i32", shape, name)
        found = program.run(self.lowered.template, sizes, given)
        for v, name in self.lowered.downloads.items():
            assert isinstance(v.type, TensorType)
            program.output(found[name], v.type.dtype)
        program.output(found["refused"], "i32")
        module = program.finish()
        return Loaded(self.executor, module.funcs[self.lowered.func.name], program.kernels)

    def close(self) -> None:
        """Gives back what is held on the device."""
        for program in self.programs.values():
            program.close()
        self.programs.clear()

    def __del__(self) -> None:
        self.close()


def all_sizes(lowered: Lowered, sizes: Mapping[str, int]) -> dict[str, int]:
    """The symbols of a tile function's arguments with those of products of dimensions, and the template's own."""
    found = dict(sizes)
    for op in lowered.func.body.walk():
        dims = [Dim.of(d) for d in (*op.attrs.get("sizes", ()), op.attrs.get("upper", 0))]
        dims += [d for r in op.results if isinstance(r.type, TensorType) for d in r.type.shape]
        for name in {s for d in dims for s in d.symbols} - found.keys():
            found[name] = math.prod(found[part] for part in factors(name))
    return found | {name: rounds.evaluate(found) for name, rounds in lowered.template.derived}


def _words(t: torch.Tensor) -> torch.Tensor:
    """Integers of 64 bits as their lower halves: random words have 32 bits, others are no larger."""
    return t.to(torch.int32) if t.dtype in (torch.int64, torch.bool, torch.int16, torch.int8, torch.uint8) else t


def _on_host(op: Op, values: Mapping[Value, torch.Tensor], sizes: Mapping[str, int]) -> torch.Tensor:
    evaluate: Any = lookup_op(op.name).evaluate
    out: torch.Tensor
    (out,) = evaluate(op, [values[v] for v in op.operands], Sizes(sizes))
    return out


def classified(op: Op, values: Mapping[Value, torch.Tensor], sizes: Mapping[str, int]) -> torch.Tensor:
    a = op.attrs
    extents = tuple(Dim.of(d).evaluate(sizes) for d in a["sizes"])
    found = TileMap.of(a["mask"], [values[v] for v in op.operands], extents, a["rows"], a["cols"], a["heads"])
    runs = found.transposed() if a.get("over") == "i" else found
    return torch.from_numpy(np.ascontiguousarray(runs.runs(), dtype=np.int32))
