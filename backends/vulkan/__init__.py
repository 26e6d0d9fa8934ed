"""Kernels for Vulkan devices: tile programs as GLSL and WGSL, dispatched in levels from one arena."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from aatc.backends.contract import Backend
from aatc.backends.program import Program
from aatc.backends.vulkan.table import lowering
from aatc.ir.core import Func, Module
from aatc.ir.errors import UnsupportedError
from aatc.ir.legal import Workload
from aatc.ir.schedule import Schedule
from aatc.ir.target import Target


class VulkanBackend(Backend):
    """Models on a graphics card, or on any driver of Vulkan; on Metal and DX12 by wgpu. What has no kernel, and tile
    functions of double precision, run on the CPU; so does the rest of a model around attention where gradients are
    recorded."""

    name = "vulkan"
    suffix = "lower-tokens{rows=32},forward-copies"
    lowerings = lowering
    listings = ("glsl", "wgsl")

    def __init__(self) -> None:
        from aatc.backends.vulkan import together  # noqa: F401  (registers lowerings, and what it adds to the IR)

        self.executor = "auto"

    def using(self, executor: str) -> Backend:
        from aatc.backends.vulkan.executors import found

        if executor != "auto":
            found.known(executor)
        if executor == self.executor:
            return self
        made = VulkanBackend()
        made.executor = executor
        return made

    def notes(self) -> Sequence[str]:
        from aatc.backends.vulkan.executors import found

        chosen = found.choose(self.executor)
        slow = ", which computes on the processor: right, and slow" if chosen.device.software else ""
        return (f"Kernels run on {chosen.device.name} ({chosen.device.driver}){slow}.", f"{chosen.why}.")

    def target(self) -> Target:
        from aatc.backends.vulkan.device import target

        return target(self._open().device)

    def compile(self, func: Func) -> tuple[Callable[..., Any], str]:
        from aatc.backends.vulkan.compiled import Compiled
        from aatc.backends.vulkan.device import code_device, on_cpu
        from aatc.backends.vulkan.lower import lower
        from aatc.backends.vulkan.together import CPU

        executor = self._open()
        try:
            if CPU in func.attrs:
                raise UnsupportedError(func.attrs[CPU])
            lowered = lower(func, code_device(executor.device))
        except UnsupportedError as error:
            return on_cpu(func, error)
        kernels = {d.kernel.name: d.kernel for d in lowered.template.dispatches}
        limit = UnsupportedError("an argument holds integers of more than 32 bits")
        run = Compiled(lowered, executor, cache(lambda: on_cpu(func, limit)[0]))
        return run, "\n".join(k.glsl for k in kernels.values())

    def build(self, module: Module) -> Program:
        """The whole model on the device, as far as there are kernels; where gradients are recorded, its attentions."""
        from aatc.backends.vulkan.device import code_device
        from aatc.backends.vulkan.model.program import WholeModel, is_plain
        from aatc.backends.vulkan.together import mark

        device = code_device(self._open().device)
        mark(module, device)
        program = super().build(module)
        if not is_plain(module):
            return program
        whole = WholeModel(module, self._open, device, program)
        return replace(program, main=whole, beside=whole.beside)

    def listing(self, func: Func, form: str) -> str:
        from aatc.backends.vulkan.device import code_device
        from aatc.backends.vulkan.lower import lower

        if form not in self.listings:
            return super().listing(func, form)
        lowered = lower(func, code_device(self._open().device))
        kernels = {d.kernel.name: d.kernel for d in lowered.template.dispatches}
        return "\n".join(str(getattr(k, form)) for k in kernels.values())

    def devices(self) -> Sequence[dict[str, Any]]:
        from aatc.backends.vulkan.device import listed

        return listed()

    def schedule_space(self, workload: Workload) -> Sequence[Schedule]:
        from aatc.backends.vulkan.device import space

        return space(workload, self.target())

    def _open(self) -> Any:
        from aatc.backends.vulkan.executors import open_executor

        return open_executor(self.executor)
