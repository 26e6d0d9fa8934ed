"""Training wholly on a device: a step of forward, backward and the optimizer's update as one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from aatc import backends
from aatc.errors import UnsupportedError
from aatc.frontend.compiled import compile

#: Programs that a step keeps, of the shapes of batches it had last.
PROGRAMS = 8


class TrainingStep:
    """``step(*batch)`` does what ``loss(model, *batch).backward(); optimizer.step()`` does, and returns the loss.

    Forward, backward and update are one program on the device. Parameters and the optimizer's state are uploaded when
    they are new or were changed by others, and what the step made of them is written back to them.

    model: with parameters of float32. loss: of (model, *batch), a tensor of one number. optimizer: SGD, Adam or AdamW
    of `torch.optim`, over parameters of the model; its numbers may change from step to step. backend: "vulkan". batch:
    tensors and numbers. Each set of shapes, modes of modules, trained parameters and numbers of the optimizer (besides
    the learning rate) has a program of its own. What else the model and the loss read, attributes and variables, is
    read when a program is made, as in `torch.export`; ``step.reset()`` after changing it.

    A batch that the device must not compute with runs on the host: an index outside a table (where torch raises its
    IndexError), tokens of which single precision cannot tell apart how far they are from each other; `on_host` counts
    them. Raises: UnsupportedError for an operator without a kernel or derivative there, with its name, for hooks on
    parameters or the optimizer, for gradients that are there already; DeviceError.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer, *,
        backend: str = "vulkan", executor: str = "auto",
    ):  # fmt: skip
        if backend != "vulkan":
            raise UnsupportedError(
                f"backend {backend!r} has no training steps", hint='"vulkan" has; others run loss.backward()'
            )
        from aatc.backends.vulkan.model.optimizers import rules_of

        self.model, self.optimizer, self.executor = model, optimizer, executor
        rules_of(optimizer)
        self._whole = _Loss(model, loss)
        self._steps: dict[Any, Any] = {}
        self._compiled: Any = None
        self.on_host = 0

    def __call__(self, *batch: Any) -> torch.Tensor:
        self._check(batch)
        step = self._step(batch)
        counts = {p.value: self._done(p) + 1 for p in step.parameters}
        for p in step.parameters:
            p.state = self._state(p.tensor, p.rule)
        given = [*self._held(), *(x for x in batch if isinstance(x, torch.Tensor))]
        loss: torch.Tensor | None = step.run(given, counts)
        if loss is None:  # and nothing was updated
            self.on_host += 1
            return self._step_on_host(batch)
        for p in step.parameters:
            if "step" in self.optimizer.state[p.tensor]:
                self.optimizer.state[p.tensor]["step"] += 1
        return loss

    def reset(self) -> None:
        """Forgets all programs: the next step reads the model and the loss anew."""
        for step in self._steps.values():
            step.close()
        self._steps.clear()
        self._compiled = None

    def _step_on_host(self, batch: tuple[Any, ...]) -> torch.Tensor:
        if self._compiled is None:
            self._compiled = compile(self._whole)
        for state in self.optimizer.state.values():
            if isinstance(self.optimizer, torch.optim.SGD) and not state.get("momentum_buffer", torch.ones(1)).any():
                state.pop("momentum_buffer")  # torch makes one of the first gradient
        with torch.enable_grad():
            loss: torch.Tensor = self._compiled(*batch)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    # --- steps ---------------------------------------------------------------------------------------------
    def _check(self, batch: tuple[Any, ...]) -> None:
        if strange := [x for x in batch if not isinstance(x, (torch.Tensor, int, float, bool))]:
            raise UnsupportedError(f"a batch holds tensors and numbers, not {type(strange[0]).__name__}")
        hooked = [n for n, p in self.model.named_parameters() if _hooks(p)]
        if hooked or self.optimizer._optimizer_step_pre_hooks or self.optimizer._optimizer_step_post_hooks:
            raise UnsupportedError("hooks on parameters or the optimizer do not run on a device", hint="remove them")
        for group in self.optimizer.param_groups:
            if any(p.grad is not None for p in group["params"]):
                raise UnsupportedError("parameters have gradients already", hint="optimizer.zero_grad()")

    def _held(self) -> list[torch.Tensor]:
        """The leading arguments of the exported loss."""
        return [*self._whole.parameters(), *self._whole.buffers()]

    def _step(self, batch: tuple[Any, ...]) -> Any:
        from aatc.backends.vulkan.model.program import is_small, layout

        held = self._held()
        fixed = [n for n, t in enumerate(held) if is_small(t)]
        groups = [(tuple(map(id, g["params"])), _numbers(g)) for g in self.optimizer.param_groups]
        key = (
            *map(layout, batch),
            tuple(m.training for m in self.model.modules()),
            tuple((id(t), t.requires_grad) for t in held),
            *(held[n].numpy().tobytes() for n in fixed),
            tuple(groups),
        )
        found = self._steps.get(key)
        if found is None:
            if len(self._steps) >= PROGRAMS:
                self.reset()
            found = self._steps[key] = self._made(batch, fixed)
        for p in found.parameters:  # a loaded state has other groups
            p.rule.group = next(g for g in self.optimizer.param_groups if any(p.tensor is x for x in g["params"]))
        return found

    def _made(self, batch: tuple[Any, ...], fixed: list[int]) -> Any:
        from aatc.backends.vulkan.device import code_device
        from aatc.backends.vulkan.executors import open_executor
        from aatc.backends.vulkan.model.optimizers import rules_of
        from aatc.backends.vulkan.model.training import Parameter, Step
        from aatc.frontend.exporting import export

        backend = backends.get("vulkan")
        pipeline = backends.pipeline("vulkan")
        with torch.enable_grad():  # else no_grad within the model would not be seen
            exported = export(self._whole, batch)
        with torch.no_grad():
            module = pipeline.run(exported, target=backend.target()).module
        held = self._held()
        if len(module.entry.args) != len(held) + sum(isinstance(x, torch.Tensor) for x in batch):
            raise UnsupportedError(
                "a training step on the device: a parameter has several names, or a number of the batch is an argument"
            )
        values = dict(zip(map(id, held), module.entry.args, strict=False))
        trained = []
        for rule, group in zip(rules_of(self.optimizer), self.optimizer.param_groups, strict=True):
            for p in group["params"]:
                if id(p) not in values:
                    raise UnsupportedError("the optimizer has a parameter that the model has not")
                if p.requires_grad:
                    trained.append(Parameter(values[id(p)], rule, p, {}))
        opened = open_executor(self.executor)
        given = [*held, *(x for x in batch if isinstance(x, torch.Tensor))]
        return Step(module, given, trained, opened, code_device(opened.device), fixed)

    # --- the optimizer's state -----------------------------------------------------------------------------
    def _done(self, p: Any) -> int:
        """How often a parameter has been updated; of SGD, whether it has."""
        state = self.optimizer.state[p.tensor]
        return int(state.get("step", 0)) if "exp_avg" in p.rule.state else int("momentum_buffer" in state)

    def _state(self, p: torch.Tensor, rule: Any) -> dict[str, torch.Tensor]:
        """Tensors of the host for the state of a parameter: the optimizer's own, new ones where it has none yet."""
        state = self.optimizer.state[p]
        if "exp_avg" in rule.state:
            state.setdefault("step", torch.tensor(0.0))
        for name in rule.state:
            if not isinstance(state.get(name), torch.Tensor):
                state[name] = torch.zeros_like(p, memory_format=torch.contiguous_format)
        return {name: state[name] for name in rule.state}


def _hooks(p: torch.Tensor) -> bool:
    return any(getattr(p, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks"))


def _numbers(group: dict[str, Any]) -> str:
    """What programs are made for, of a group: all but what may change in every step."""
    return repr(sorted((k, v) for k, v in group.items() if k not in ("params", "lr", "initial_lr", "max_lr", "min_lr")))


class _Loss(nn.Module):
    """The loss as a module, of which a model can be exported."""

    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor]):
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, *batch: Any) -> torch.Tensor:
        return self._loss(self.model, *batch)
