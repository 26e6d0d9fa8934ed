"""Executors: what runs kernels on a device. One contract (`contract.Executor`), three of them.

How to use them, from the bottom:

    executor = open_executor("native")                 # or "wgpu", "kompute", "auto"; the same one while it is open
    handle = executor.compile(kernel)                  # a `kernels.Kernel`; typed errors name the limit or feature
    arena = executor.arena(words)                      # 32-bit words, all that kernels are bound to
    levels = [[Launch(handle, grid, pack(push))], ...] # steps of one level may run at the same time
    recording = executor.record(arena, levels, inputs=[Range(offset, words)], outputs=[Range(offset, words)])
    recording.inputs[0].view(torch.float32).copy_(x.flatten()); recording.run(); recording.outputs[0]

For a kernel by itself, in tests: ``run_kernel(executor, kernel, {"x": x, "y": y}, {"n": 64, "a": 0.5}, grid)`` gives
all buffers back; push words named like a buffer are where it begins. For a whole `kernels.Template`:
``run_template(executor, template, sizes, {name: tensor})`` gives its results (and "refused") by name.

Programs are put together by `aatc.backends.vulkan.assemble`, and called by `aatc.backends.vulkan.loaded`.
"""

from aatc.backends.vulkan.executors.contract import (
    Arena,
    Counters,
    Device,
    Executor,
    Launch,
    Limits,
    Range,
    Recording,
    Zero,
    pack,
)
from aatc.backends.vulkan.executors.found import devices, open_executor
from aatc.backends.vulkan.executors.once import run_kernel, run_template

__all__ = [
    "Arena", "Counters", "Device", "Executor", "Launch", "Limits", "Range", "Recording", "Zero", "devices",
    "open_executor", "pack", "run_kernel", "run_template",
]  # fmt: skip
