"""The operands that the attentions of a model get while it is called: what schedules are measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aatc.backends import Backend, Program
from aatc.backends.kernel import Kernel
from aatc.ir.core import Module


@dataclass(frozen=True)
class Recorded:
    """The operands of one attention in one call, and which of them want a gradient."""

    operands: tuple[torch.Tensor, ...]
    wanted: tuple[bool, ...]


class Recording:
    """A backend that builds as ``backend`` does, programs that keep the first operands of every attention. `end` lets
    them go."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self.recorded: dict[int, dict[str, Recorded]] = {}  # by the identity of a program and the name in it
        self._hooked: list[tuple[Program, Kernel]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def build(self, module: Module) -> Program:
        program = self.backend.build(module)
        seen = self.recorded.setdefault(id(program), {})
        for a in program.attentions:
            kernel = a["kernel"]
            if isinstance(kernel, Kernel):
                kernel.seen = _recorder(seen, str(a["name"]))
                self._hooked.append((program, kernel))
        return program

    def of(self, program: Any) -> dict[str, Recorded]:
        """By the names of attentions."""
        return self.recorded.get(id(program), {})

    def end(self) -> None:
        for _, kernel in self._hooked:
            kernel.seen = None
        self._hooked.clear()
        self.recorded.clear()


def _recorder(seen: dict[str, Recorded], name: str) -> Callable[[Sequence[torch.Tensor]], None]:
    def record(operands: Sequence[torch.Tensor]) -> None:
        if name not in seen:
            wanted = tuple(t.requires_grad for t in operands)
            seen[name] = Recorded(tuple(t.detach() for t in operands), wanted)

    return record
