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

    Parameters and the optimizer's state stay on the device: one upload of the batch and one download of the loss per
    step. `synchronize` brings them back to the host; so do the model's ``state_dict()`` and its calls, by hooks.

    model: with parameters of float32. loss: of (model, *batch), a tensor of one number. optimizer: SGD, Adam or AdamW
    of `torch.optim`, over parameters of the model; its learning rate may change from step to step. backend: "vulkan".
    Tensors of other shapes make another program. A batch that the device must not compute with runs on the host: an
    index outside a table (where torch raises its IndexError), tokens of which single precision cannot tell apart how
    far they are from each other; `on_host` counts them. Raises: UnsupportedError for an operator without a kernel or
    derivative there, with its name; DeviceError.
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
        self.rules = rules_of(optimizer)
        self._whole = _Loss(model, loss)
        self._steps: dict[Any, Any] = {}
        self._current: Any = None
        self._compiled: Any = None
        self.on_host = 0
        self._hook()

    def __call__(self, *batch: Any) -> torch.Tensor:
        step = self._step(batch)
        loss: torch.Tensor | None = step.run([*self._held(), *batch], self._count() + 1)
        self._current = step
        if loss is None:  # and nothing was updated
            self.on_host += 1
            return self._step_on_host(batch)
        self._counted(self._count() + 1)
        return loss

    def _step_on_host(self, batch: tuple[Any, ...]) -> torch.Tensor:
        self.synchronize()
        done = self._count()
        for hook in self._hooks:
            hook.remove()
        try:
            if self._compiled is None:
                self._compiled = compile(self._whole)
            self.optimizer.zero_grad()
            with torch.enable_grad():
                loss: torch.Tensor = self._compiled(*batch)
                loss.backward()
        finally:
            self._hook()
        if not done and any(group.get("dampening") for group in self.optimizer.param_groups):
            for (
                state
            ) in self.optimizer.state.values():  # torch makes one of the first gradient, which it does not dampen
                state.pop("momentum_buffer", None)
            self._forget()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._counted(done + 1)
        return loss.detach()

    def _forget(self) -> None:
        """Programs whose state is no longer the optimizer's."""
        for step in self._steps.values():
            step.close()
        self._steps.clear()

    def _hook(self) -> None:
        self._hooks = [
            self.model.register_state_dict_pre_hook(lambda *_: self.synchronize()),
            self.model.register_forward_pre_hook(lambda *_: self.synchronize()),
        ]

    def synchronize(self) -> None:
        """Brings parameters and the optimizer's state to the host, if the device has newer ones."""
        step, self._current = self._current, None
        if step is None:
            return

        def write(t: torch.Tensor, new: torch.Tensor) -> None:
            with torch.no_grad():
                t.copy_(new.reshape(t.shape))

        step.read(write)

    # --- steps ---------------------------------------------------------------------------------------------
    def _held(self) -> list[torch.Tensor]:
        """The leading arguments of the exported loss."""
        return [*self._whole.parameters(), *self._whole.buffers()]

    def _step(self, batch: tuple[Any, ...]) -> Any:
        key = tuple((x.shape, x.stride(), x.dtype) if isinstance(x, torch.Tensor) else x for x in batch)
        held = self._held()
        fixed = [n for n, t in enumerate(held) if not t.is_floating_point() and t.numel() <= 4096]
        key = (*key, self.model.training, *(held[n].numpy().tobytes() for n in fixed))
        found = self._steps.get(key)
        if found is not self._current:
            self.synchronize()
        if found is None:
            if len(self._steps) >= PROGRAMS:
                self._forget()
            found = self._steps[key] = self._made(batch, fixed)
        return found

    def _made(self, batch: tuple[Any, ...], fixed: list[int]) -> Any:
        from aatc.backends.vulkan.device import code_device
        from aatc.backends.vulkan.executors import open_executor
        from aatc.backends.vulkan.model.training import Parameter, Step
        from aatc.frontend.exporting import export

        backend = backends.get("vulkan")
        pipeline = backends.pipeline("vulkan")
        with torch.no_grad():
            module = pipeline.run(export(self._whole, batch), target=backend.target()).module
        held = self._held()
        values = dict(zip(map(id, held), module.entry.args, strict=False))
        trained = []
        for rule, group in zip(self.rules, self.optimizer.param_groups, strict=True):
            for p in group["params"]:
                if id(p) not in values:
                    raise UnsupportedError("the optimizer has a parameter that the model has not")
                if not p.requires_grad:
                    continue
                trained.append(Parameter(values[id(p)], rule, p, self._state(p, rule)))
        opened = open_executor(self.executor)
        return Step(module, [*held, *batch], trained, opened, code_device(opened.device), fixed)

    # --- the optimizer's state -----------------------------------------------------------------------------
    def _state(self, p: torch.Tensor, rule: Any) -> dict[str, torch.Tensor]:
        """Tensors of the host for the state of a parameter: the optimizer's own, new ones where it has none yet."""
        state = self.optimizer.state[p]
        state.setdefault("step", torch.tensor(0.0))
        for name in rule.state:
            if not isinstance(state.get(name), torch.Tensor):
                state[name] = torch.zeros_like(p, memory_format=torch.contiguous_format)
        return {name: state[name] for name in rule.state}

    def _count(self) -> int:
        """Steps that were done, here or by the optimizer itself."""
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                done = self.optimizer.state[p].get("step", 0)
                return int(done)
        return 0

    def _counted(self, n: int) -> None:
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                self.optimizer.state[p]["step"] = torch.tensor(float(n))


class _Loss(nn.Module):
    """The loss as a module, of which a model can be exported."""

    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor]):
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, *batch: Any) -> torch.Tensor:
        return self._loss(self.model, *batch)
