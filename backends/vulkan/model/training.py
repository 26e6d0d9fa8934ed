"""A training step on a device: loss, gradients and the update of parameters, in one program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from aatc.backends.vulkan.executors import Executor
from aatc.backends.vulkan.model.attention import Attentions
from aatc.backends.vulkan.model.builder import Builder, DeviceStep
from aatc.backends.vulkan.model.derivative import gradients
from aatc.backends.vulkan.model.items import Given
from aatc.backends.vulkan.model.nodes import Node, load, number
from aatc.backends.vulkan.model.operators import Unsupported
from aatc.backends.vulkan.model.optimizers import Rule, Update
from aatc.backends.vulkan.model.pointwise import word
from aatc.backends.vulkan.model.program import LoadedStep, load_step
from aatc.backends.vulkan.model.views import View
from aatc.backends.vulkan.whole import Device
from aatc.ir.core import Module, Value
from aatc.ir.errors import DeviceLimitError, UnsupportedError
from aatc.ir.types import TensorType


@dataclass
class Parameter:
    """One that is trained: its argument of the entry, its rule, and tensors of the host: itself and its state."""

    value: Value
    rule: Rule
    tensor: torch.Tensor
    state: dict[str, torch.Tensor]


class Step:
    """The program for batches of given shapes. ``inputs``: the entry's arguments, parameters among them; of those that
    are ``fixed`` the contents are part of the program."""

    def __init__(
        self,
        module: Module,
        inputs: Sequence[object],
        parameters: Sequence[Parameter],
        executor: Executor,
        device: Device,
        fixed: Sequence[int] = (),
    ):
        self.module = module
        func, attentions = module.entry, Attentions(module, device)
        b = Builder(func, inputs, attentions.forward, fixed)
        self.numbers: dict[tuple[int, str], Value] = {}
        self.states: dict[tuple[int, str], Value] = {}
        rules = list(dict.fromkeys(p.rule for p in parameters))
        for n, rule in enumerate(rules):
            for name in rule.numbers:
                self.numbers[n, name] = self._given(b, (), f"{name}_{n}")
        self.rules = rules
        try:
            b.walk()
            (loss,) = func.body.ops[-1].operands
            if b.meta(loss).numel() != 1 or b.meta(loss).dtype is not torch.float32:
                raise Unsupported("the loss is not one number of float32")
            if b.host_steps:
                step = b.host_steps[0]
                raise Unsupported(f"{step.op.attrs.get('target', step.op.name)}: {step.reason}")
            found = gradients(b, func, loss, [p.value for p in parameters], attentions.backward)
            update = Update(b.segment, _valid(b))
            self.parameters = [p for p in parameters if p.value in found]  # the others have no gradient: they stay
            for n, p in enumerate(self.parameters):
                numbers = {name: b.node(self.numbers[rules.index(p.rule), name]) for name in p.rule.numbers}
                state = {}
                for name in p.rule.state:
                    self.states[n, name] = self._given(b, tuple(p.tensor.shape), f"{name}_{n}")
                    state[name] = b.view(self.states[n, name])
                view = b.view(p.value)
                g = load(b.segment.written(b.node(found[p.value]), "f32", "gradient"))
                p.rule.update(update, view, g, state, numbers)
        except Unsupported as error:
            raise UnsupportedError(f"a training step on the device: {error}") from error
        self.loss = loss
        self.step = self._loaded(b, executor)

    def _given(self, b: Builder, shape: tuple[int, ...], name: str) -> Value:
        v = Value(TensorType.of("f32", shape), name)
        b.items[v] = Given(v, torch.empty(shape, device="meta"))
        return v

    def _loaded(self, b: Builder, executor: Executor) -> LoadedStep:
        step = b.current
        assert isinstance(step, DeviceStep)
        step.downloads[self.loss] = b.view(self.loss)
        kept = {p.value for p in self.parameters} | set(self.states.values())
        return load_step(executor, step, kept.__contains__, "training")

    def run(self, inputs: Sequence[object], counts: Mapping[Value, int]) -> torch.Tensor | None:
        """One step, the one of each parameter that ``counts`` says; the loss. Parameters and their state are written to
        the host's tensors. None, and nothing is updated, where the device must not compute."""
        values: dict[Value, object] = dict(zip(self.module.entry.args, inputs, strict=True))
        for n, rule in enumerate(self.rules):
            steps = {counts[p.value] for p in self.parameters if p.rule is rule}
            if len(steps) > 1:
                raise UnsupportedError(f"parameters of one group have been updated {sorted(steps)} times")
            for name, x in rule.values(next(iter(steps), 1)).items():
                values[self.numbers[n, name]] = torch.tensor(x, dtype=torch.float32)
        held = [(p.value, p.tensor) for p in self.parameters]
        held += [(self.states[n, name], p.state[name]) for n, p in enumerate(self.parameters) for name in p.rule.state]
        values |= held
        try:
            if not self.step.run(values):
                return None
        except DeviceLimitError:  # integers of more than 32 bits: nothing ran
            return None
        with torch.no_grad():
            for v, t in held:
                t.copy_(self.step.read(v).reshape(t.shape))
                self.step.loaded.remember(self.step.buffers[v], t)
        loss: torch.Tensor = values[self.loss]  # type: ignore[assignment]
        return loss.clone()

    def close(self) -> None:
        self.step.loaded.close()


def _valid(b: Builder) -> View | None:
    """Whether no kernel found numbers that the device must not compute with; None where none looks."""
    found: Node | None = None
    for name in b.segment.checks:
        fine = word("eq", load(View(name, "i32", (), ())), number(0, "i"))
        found = fine if found is None else word("and", found, fine)
    return None if found is None else b.segment.written(found, "bool", "valid")
