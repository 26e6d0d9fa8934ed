"""The executor ``wgpu``."""

from __future__ import annotations

from aatc.backends.vulkan.executors.contract import Device, Executor


def why_not() -> str:
    return "it is not written yet"


def devices() -> tuple[Device, ...]:
    return ()


def open_device(index: int = 0) -> Executor:
    raise NotImplementedError
