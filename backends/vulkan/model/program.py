"""A whole model as a program: planned for each set of shapes, loaded, and called."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from aatc.backends.program import Beside, Program
from aatc.backends.vulkan.assemble import Assembly, held
from aatc.backends.vulkan.executors import Executor
from aatc.backends.vulkan.kernels import Template
from aatc.backends.vulkan.loaded import Loaded
from aatc.backends.vulkan.model.attention import Attentions
from aatc.backends.vulkan.model.builder import Builder, DeviceStep, HostStep, Plan
from aatc.backends.vulkan.model.views import View
from aatc.backends.vulkan.whole import Device
from aatc.ir.core import Module, Op, Value
from aatc.ir.effects import Memory
from aatc.ir.errors import DeviceLimitError, NoKernelError, UnsupportedError
from aatc.ir.interpreter import Interpreter, target_function
from aatc.ir.registry import OPS

#: Plans that a model keeps, of the shapes it was called with last.
PLANS = 8
#: Elements of a tensor that a program may be made for, and for how many contents of such tensors.
SMALL, CONTENTS = 4096, 4


@dataclass
class LoadedStep:
    """A stretch on the device: ``inputs`` are the host's values for its arguments, in order, or tensors it always gets;
    ``outputs`` the values that come back, with where they lie in which result."""

    loaded: Loaded
    inputs: list[Value | torch.Tensor]
    outputs: list[tuple[Value, View, int]]
    checks: list[int]  # results that are not 0 where the device must not have run
    buffers: dict[Value, Value] = field(default_factory=dict)  # of the host's values, on the device

    def read(self, v: Value) -> torch.Tensor:
        """What the device has of a tensor that it was given, and that stays there."""
        return self.loaded.read(self.buffers[v])

    def run(self, values: dict[Value, Any]) -> bool:
        """Whether what it computed is right; otherwise nothing is changed."""
        found = self.loaded(*(x if isinstance(x, torch.Tensor) else values[x] for x in self.inputs))
        if any(bool(found[n].any()) for n in self.checks):
            return False
        for v, view, n in self.outputs:
            values[v] = found[n].flatten().as_strided(view.shape, view.strides, view.offset)
        return True


def load_step(executor: Executor, step: DeviceStep, kept: Callable[[Value], bool], name: str = "model") -> LoadedStep:
    """A stretch as a program on a device; ``kept`` says which of the host's values stay on the device from one call to
    the next."""
    s, a = step.segment, Assembly(name)
    given: dict[str, Any] = {}
    inputs: list[Value | torch.Tensor] = []
    used = {n for d in s.dispatches for n in (*d.reads, *d.writes)} | {v.buffer for v in step.downloads.values()}
    for b in s.buffers:
        if b.role != "argument" or b.name not in used:
            continue
        shape = [int(d) for d in b.shape]
        if b.name in s.constants:
            inputs.append(s.constants[b.name])
            given[b.name] = a.parameter(b.dtype, shape, b.name)
        else:
            v = step.uploads[b.name]
            inputs.append(v)
            given[b.name] = (a.parameter if kept(v) else a.input)(b.dtype, shape, b.name)
    for b in s.buffers:
        if b.name in s.parted and b.name in used:
            given[b.name] = a.buffer(held(b.dtype), [int(d) for d in b.shape], b.name)
            a.zero(given[b.name])
    there = [b for b in s.buffers if b.name in given or (b.name in used and b.role != "argument")]
    found = a.run(Template(name, tuple(there), tuple(s.dispatches)), {}, given)
    places: dict[str, int] = {}
    dtypes = {b.name: b.dtype for b in s.buffers}
    for view in step.downloads.values():
        if view.buffer not in places:
            places[view.buffer] = len(places)
            a.output(found[view.buffer], dtypes[view.buffer])
    checks = []
    for c in s.checks:
        if c in found:
            checks.append(len(a.outputs))
            a.output(found[c], "i32")
    module = a.finish()
    loaded = Loaded(executor, module.funcs[name], a.kernels)
    outputs = [(v, view, places[view.buffer]) for v, view in step.downloads.items()]
    buffers = {v: given[name] for name, v in step.uploads.items() if name in given}
    return LoadedStep(loaded, inputs, outputs, checks, buffers)


@dataclass
class Ready:
    """A model for given shapes: its ``steps``, and what it returns."""

    plan: Plan
    steps: list[LoadedStep | HostStep]

    def run(self, module: Module, inputs: Sequence[Any]) -> list[Any] | None:
        """The results; None where the device must not run these numbers."""
        values: dict[Value, Any] = dict(zip(module.entry.args, inputs, strict=True)) | self.plan.known
        interpreter = Interpreter(module)
        for step in self.steps:
            if isinstance(step, HostStep):
                _on_host(interpreter, step.op, values)
            elif not step.run(values):
                return None
        return [r.clone() if isinstance(r, torch.Tensor) else values[r] for r in self.plan.returns]

    def close(self) -> None:
        for step in self.steps:
            if isinstance(step, LoadedStep):
                step.loaded.close()


def _on_host(interpreter: Interpreter, op: Op, values: dict[Value, Any]) -> None:
    evaluate: Any = OPS[op.name].evaluate
    values.update(zip(op.results, evaluate(op, [values[v] for v in op.operands], interpreter), strict=True))


class WholeModel:
    """Runs a module's entry on a device as one program per set of shapes. ``otherwise`` runs what must not: calls that
    record gradients, numbers that are not finite behind a mask, whatever is no program. `beside` tells of those calls,
    and of operators that run on the host."""

    def __init__(self, module: Module, executor: Callable[[], Executor], device: Device, otherwise: Program):
        self.module, self.executor, self.otherwise = module, executor, otherwise
        self.attentions = Attentions(module, device)
        self.ready: OrderedDict[Any, Ready | str] = OrderedDict()
        self.kernels = [a["kernel"] for a in otherwise.attentions]
        self.beside = Beside()
        #: By shapes: arguments whose contents a program is made for, and the contents there were.
        self.fixed: dict[Any, tuple[int, ...]] = {}
        self.contents: dict[Any, set[Any]] = {}
        self.lock = threading.Lock()

    def __call__(self, *inputs: Any) -> list[Any]:
        tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return self._elsewhere("gradients are recorded", inputs)
        if not all(t.is_cpu and t.layout is torch.strided and not t.is_neg() and not t.is_conj() for t in tensors):
            return self._elsewhere("tensors that do not lie plainly in the host's memory", inputs)
        if any(k.seen is not None for k in self.kernels):  # whoever tunes or profiles looks at the kernels themselves
            return self.otherwise.main(*inputs)
        with self.lock:
            found = self._ready(inputs)
            results, reason = None, "numbers that the device must not compute with"
            if isinstance(found, Ready):
                try:
                    results = found.run(self.module, inputs)
                except DeviceLimitError as error:  # integers of more than 32 bits, say
                    reason = str(error).partition("\n")[0]
        if isinstance(found, str):
            return self._elsewhere(found, inputs)
        if results is None:
            return self._elsewhere(reason, inputs)
        for step in found.plan.host:
            self.beside.count(f"{_named(step.op)} runs on the host: {step.reason}")
        return results

    def _elsewhere(self, reason: str, inputs: Sequence[Any]) -> list[Any]:
        self.beside.count(f"attention alone ran on the device: {reason}")
        return self.otherwise.main(*inputs)

    def _ready(self, inputs: Sequence[Any]) -> Ready | str:
        shapes = tuple(layout(x) for x in inputs)
        if shapes not in self.fixed:
            if len(self.fixed) > 32 * PLANS:  # lengths without end
                self.fixed.clear()
                self.contents.clear()
            self.fixed[shapes] = self._to_fix(inputs)
        key = shapes, tuple(inputs[n].numpy().tobytes() for n in self.fixed[shapes])
        seen = self.contents.setdefault(shapes, set())
        seen.add(key[1])
        if len(seen) > CONTENTS:  # they vary after all
            self.fixed[shapes], key = (), (shapes, ())
        found = self.ready.get(key)
        if found is None:
            try:
                found = self._plan(inputs, self.fixed[shapes])
            except (UnsupportedError, DeviceLimitError) as error:
                found = str(error).partition("\n")[0]
            self.ready[key] = found
            if len(self.ready) > PLANS:
                old = self.ready.popitem(last=False)[1]
                if isinstance(old, Ready):
                    old.close()
        self.ready.move_to_end(key)
        return found

    def _to_fix(self, inputs: Sequence[Any]) -> tuple[int, ...]:
        """Arguments that operators on the host would read, such as positions that angles are computed of in double
        precision: small tensors of integers, which seldom change. None of them if that leaves as much on the host."""
        small = tuple(n for n, x in enumerate(inputs) if isinstance(x, torch.Tensor) and is_small(x))
        if not small:
            return ()
        try:
            with torch.no_grad():
                plain = Builder(self.module.entry, inputs, self.attentions.forward).run()
                if not plain.host:
                    return ()
                fixed = Builder(self.module.entry, inputs, self.attentions.forward, small).run()
        except (UnsupportedError, DeviceLimitError):
            return ()
        return small if len(fixed.host) < len(plain.host) else ()

    def _plan(self, inputs: Sequence[Any], fixed: Sequence[int]) -> Ready:
        with torch.no_grad():
            plan = Builder(self.module.entry, inputs, self.attentions.forward, fixed).run()
        if plan.host and self.beside.refused:
            step = plan.host[0]
            raise NoKernelError(f"{_named(step.op)}: {step.reason}", hint="fallback=True runs it on the host")
        stays = {a for a, x in zip(self.module.entry.args, inputs, strict=True) if _stays(x)}
        executor = self.executor()
        steps = [load_step(executor, s, stays.__contains__) if isinstance(s, DeviceStep) else s for s in plan.steps]
        return Ready(plan, steps)


def layout(x: Any) -> tuple[Any, ...]:
    """What a program is made for, of an argument. Numbers by their types and texts: 1, 1.0 and True are equal, 0.0 is
    -0.0, and NaN is not NaN."""
    if isinstance(x, torch.Tensor):
        return x.shape, x.stride(), x.dtype, _stays(x)
    return type(x), repr(x)


def is_plain(module: Module) -> bool:
    """Whether an entry only computes: nothing in it writes to memory of others, draws numbers, or asks how memory
    lies."""
    memory = Memory(module.entry, module)
    return not any(e.writes for e in memory.effects.values()) and not any(map(_does_more, module.entry.body.ops))


def _does_more(op: Op) -> bool:
    if op.name != "torch.call":
        return op.name == "geo.checkpoint"  # which computes again what it may have drawn
    if op.attrs["target"].startswith("aten.as_strided"):
        return True
    function = target_function(op.attrs["target"], op)
    return isinstance(function, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in function.tags


def _named(op: Op) -> str:
    where = f"{op.loc}: " if op.loc else ""
    return f"{where}{op.attrs.get('target', op.name)}"


def is_small(t: torch.Tensor) -> bool:
    """Whether programs may be made for what a tensor holds."""
    return t.dtype in (torch.int64, torch.int32) and t.numel() <= SMALL


def _stays(x: Any) -> bool:
    return isinstance(x, nn.Parameter)
