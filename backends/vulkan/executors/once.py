"""Kernels and templates run once, in an arena of their own: for tests, and for looking at a kernel by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from aatc.backends.vulkan.executors.contract import Executor, Launch, Range, Step, Zero, pack
from aatc.backends.vulkan.kernels import Dispatch, Kernel, Offset, Template

_LINE = 64  # words between the beginnings of buffers


def run_kernel(
    executor: Executor,
    kernel: Kernel,
    buffers: Mapping[str, torch.Tensor],
    push: Mapping[str, int | float],
    grid: Sequence[int],
) -> dict[str, torch.Tensor]:
    """Every buffer after one dispatch. Push words that ``push`` does not give are where the buffer of that name begins.
    Buffers are of 32-bit elements. Raises: DeviceError, KeyError for a word that is neither."""
    places, total = _places({name: t.numel() for name, t in buffers.items()})
    words = [push[word] if word in push else places[word].offset for word in kernel.push]
    arena = executor.arena(total + len(words))
    try:
        if kernel.block:
            arena.write(total, torch.frombuffer(bytearray(pack(words)), dtype=torch.int32))
        launch = Launch(executor.compile(kernel), _three(grid), pack([total] if kernel.block else words))
        _fill(executor, arena, buffers, places)
        recording = executor.record(arena, [[launch]])
        recording.run()
        recording.close()
        found = {name: arena.read(places[name].offset, places[name].words) for name in buffers}
    finally:
        arena.close()
    return {name: found[name].view(t.dtype).reshape(t.shape) for name, t in buffers.items()}


def run_template(
    executor: Executor, template: Template, sizes: Mapping[str, int], given: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Results, scratch and the refused word by name, after the dispatches one by one. ``given``: arguments and runs.
    Buffers of floating point are f32, others i32."""
    places, total = _places({b.name: b.words(sizes) for b in template.buffers})
    blocks = sum(len(d.kernel.push) for d in template.dispatches if d.kernel.block)
    arena = executor.arena(total + blocks)
    try:
        levels: list[list[Step]] = [[Zero(places[b.name]) for b in template.buffers if b.role == "refused"]]
        for dispatch in template.dispatches:
            grid = _three([g.evaluate(sizes) for g in dispatch.grid])
            words = push_words(dispatch, sizes, places)
            if dispatch.kernel.block:
                arena.write(total, torch.frombuffer(bytearray(pack(words)), dtype=torch.int32))
                words, total = [total], total + len(words)
            if 0 not in grid:
                levels.append([Launch(executor.compile(dispatch.kernel), grid, pack(words))])
        floating = {b.name: b.floating for b in template.buffers}
        as_words = {n: t.detach().to(torch.float32 if floating[n] else torch.int32) for n, t in given.items()}
        _fill(executor, arena, as_words, places)
        recording = executor.record(arena, levels)
        recording.run()
        recording.close()
        found = {}
        for b in template.buffers:
            if b.role in ("result", "scratch", "refused"):
                shape = [d.evaluate(sizes) for d in b.shape]
                n = int(torch.Size(shape).numel())
                words_of = arena.read(places[b.name].offset, n)
                found[b.name] = (words_of.view(torch.float32) if b.floating else words_of).reshape(shape)
    finally:
        arena.close()
    return found


def push_words(dispatch: Dispatch, sizes: Mapping[str, int], places: Mapping[str, Range]) -> list[int | float]:
    """What a dispatch pushes, in the order of the kernel's words."""
    words: list[int | float] = []
    for name in dispatch.kernel.push:
        value = dispatch.push[name]
        if isinstance(value, float):
            words.append(value)
        else:
            words.append(places[value.buffer].offset if isinstance(value, Offset) else value.evaluate(sizes))
    return words


def _places(words: Mapping[str, int]) -> tuple[dict[str, Range], int]:
    places, total = {}, 0
    for name, n in words.items():
        places[name] = Range(total, n)
        total += -(-n // _LINE) * _LINE
    return places, total


def _fill(executor: Executor, arena: object, given: Mapping[str, torch.Tensor], places: Mapping[str, Range]) -> None:
    for name, t in given.items():
        if t.numel():
            arena.write(places[name].offset, t.detach().contiguous().flatten().view(torch.int32))  # type: ignore[attr-defined]


def _three(grid: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*grid, 1, 1)[:3]
    return x, y, z
