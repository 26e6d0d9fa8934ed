"""A device as passes and code generation see it, and where functions run that it has no kernels for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from aatc.backends import found
from aatc.backends.processor import cores
from aatc.backends.vulkan.executors import Device as Seen
from aatc.backends.vulkan.executors import devices
from aatc.backends.vulkan.whole import Device
from aatc.ir.core import Func
from aatc.ir.errors import ScheduleError, UnsupportedError
from aatc.ir.legal import Workload, legal
from aatc.ir.schedule import Schedule, Split, SplitKeys
from aatc.ir.target import Target
from aatc.passes.cost_model import default_schedule

#: Workgroups that run at once, by the kind of device: nothing tells how many processors it has. Few queries against
#: many keys go in as many parts as keep them busy.
_CORES = {"discrete": 64, "integrated": 16, "cpu": cores()}
#: Extents of tiles, and of what one lane holds of them, that are worth trying.
_TILES = ((64, 16), (32, 16), (64, 32), (128, 16), (32, 32))
_HELD = ((8, 4), (4, 4), (8, 8), (4, 8))
_PARTS = (4, 16)


def code_device(device: Seen) -> Device:
    """What code generation asks of a device."""
    limits = device.limits
    subgroup = device.subgroup if "subgroup" in device.features else 0
    return Device(subgroup, limits.shared_bytes, min(limits.threads, limits.local[0]))


def target(device: Seen) -> Target:
    """The device as passes see it."""
    limits = device.limits
    return Target(
        "vulkan",
        cores=_CORES.get(device.kind, 16),
        shared_bytes=limits.shared_bytes,
        subgroup=device.subgroup if "subgroup" in device.features else 0,
        workgroup=min(limits.threads, limits.local[0]),
        directives=("split", "grain", "reorder", "order", "bind", "stage", "split-keys"),
        levels=("workgroups", "lanes"),
        spaces=("shared",),
        features=tuple(sorted(device.features)),
    )


def on_cpu(func: Func, why: UnsupportedError) -> tuple[Callable[..., Any], str]:
    """A function that has no kernels, on the CPU: natively if that is there, else by its reference evaluation."""
    reason = str(why).partition("\n")[0]
    name, _ = found.automatic()
    if name == "native":
        run, text = found.get("native").compile(func)
        return run, f"// @{func.name} runs on the CPU: {reason}\n{text}"
    return _by_reference(func), f"// @{func.name} runs on the CPU, operation by operation: {reason}\n"


def _by_reference(func: Func) -> Callable[..., Any]:
    from aatc.ir.core import Module
    from aatc.ir.interpreter import Interpreter
    from aatc.ir.tile_evaluate import Refused

    alone = Module()
    alone.add(func)

    def run(*tensors: Any) -> list[Any] | None:
        try:
            return [t.clone() for t in Interpreter(alone).call(func.name, tensors)]
        except Refused:
            return None

    return run


def listed() -> list[dict[str, Any]]:
    """What `aatc.devices` shows."""
    return [
        {
            "backend": "vulkan",
            "name": d.name,
            "executor": d.executor,
            "driver": d.driver,
            "kind": d.kind,
            "features": sorted(d.features),
            "subgroup": d.subgroup,
            "limits": dataclasses.asdict(d.limits),
        }
        for d in devices()
    ]


@lru_cache(maxsize=128)
def space(w: Workload, target: Target) -> tuple[Schedule, ...]:
    """The default, then others that are legal, none twice."""
    default = default_schedule(w, target)
    seen = dict.fromkeys([default, *(s for s in _grid(default, w) if _is_legal(s, w, target))])
    return tuple(seen)


def _grid(default: Schedule, w: Workload) -> Iterator[Schedule]:
    for rows, cols in _TILES:
        for high, wide in _HELD:
            kept = [d for d in default.directives if d.word not in ("split", "grain", "stage")]
            s = Schedule.of(1, rows, cols, cols)
            yield Schedule((*s.directives, Split("ii", high), Split("jj", wide), *kept))
    if w.direction == "forward":
        for parts in _PARTS:
            yield Schedule((*default.directives, SplitKeys(parts)))


def _is_legal(s: Schedule, w: Workload, target: Target) -> bool:
    try:
        legal(s, w, target)
    except ScheduleError:
        return False
    return True
