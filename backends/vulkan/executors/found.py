"""Which executors are installed, which devices they see, and which of them a program is given to."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aatc.backends.vulkan.executors.contract import KINDS, Device, Executor
from aatc.ir.errors import BackendError, NoDeviceError

#: Executors in the order in which they are taken, and the extra that installs each. A module has ``why_not``,
#: ``devices`` and ``open_device``.
EXTRAS = {"wgpu": "gpu", "native": "vulkan", "kompute": "kompute"}
_MODULES = {
    "native": "aatc.backends.vulkan.executors.native",
    "wgpu": "aatc.backends.vulkan.executors.wgpu",
    "kompute": "aatc.backends.vulkan.executors.kompute",
}
#: What only ``native`` runs.
_NATIVE_ONLY = ("coopmat", "coopmat2")

_open: dict[tuple[str, int], Executor] = {}
_lock = threading.RLock()


@dataclass(frozen=True)
class Choice:
    """An executor and a device of its own, and why these."""

    executor: str
    device: Device
    why: str


def why_not(executor: str) -> str:
    """Why an executor cannot be used here; empty if it can. It may see no device all the same."""
    return str(_module(executor).why_not())


def devices(executor: str | None = None) -> list[Device]:
    """What an executor, or every one, sees."""
    asked = EXTRAS if executor is None else (known(executor),)
    return [d for name in asked if not why_not(name) for d in _module(name).devices()]


def choose(
    executor: str = "auto", features: Iterable[str] = (), *, software: bool = True, device: int | None = None
) -> Choice:
    """An executor and a device for a program that wants ``features`` (those it can do without included). software:
    whether a driver that computes on the processor will do. device: a position among the executor's devices.

    Raises: BackendError for an executor that there is not, NoDeviceError that says what to install.
    """
    names = [known(executor)] if executor != "auto" else _order(tuple(features))
    missing = {}
    for name in names:
        missing[name] = why_not(name)
        if missing[name]:
            continue
        seen = [d for d in _module(name).devices() if (software or not d.software) and device in (None, d.index)]
        if not seen:
            missing[name] = "it sees no device" if software else "it sees no device but software ones"
            continue
        best = max(seen, key=lambda d: (_RANK[d.kind], -d.index))
        return Choice(name, best, _why(executor, name, names, missing, best))
    said = "; ".join(f"{name}: {why}" for name, why in missing.items())
    raise NoDeviceError(f"there is nothing to run Vulkan programs on ({said})", hint=_hint(missing))


_RANK = {kind: n for n, kind in enumerate(("cpu", "other", "virtual", "integrated", "discrete"))}
assert set(_RANK) == set(KINDS)


def _order(features: tuple[str, ...]) -> list[str]:
    """wgpu runs everywhere with one package; what it cannot do is native's, if a device has it."""
    wanted = [f for f in _NATIVE_ONLY if f in features]
    if wanted and not why_not("native") and any(d.has(f) for d in _module("native").devices() for f in wanted):
        return ["native", "wgpu", "kompute"]
    return ["wgpu", "native", "kompute"]


def _why(asked: str, name: str, names: list[str], missing: dict[str, str], device: Device) -> str:
    if asked != "auto":
        return f"Executor {name} was asked for"
    passed = "; ".join(f"{n} not, as {missing[n]}" for n in names if missing.get(n))
    if name == names[0] == "native":
        return f"Executor native: the program has kernels of cooperative matrices, and {device.name} has them"
    return f"Executor {name}" + (f": {passed}" if passed else ": the first that is installed")


def _hint(missing: dict[str, str]) -> str:
    if all(why.startswith("it sees no device") for why in missing.values()):
        return "install the device's Vulkan driver (Debian: apt-get install mesa-vulkan-drivers)"
    name = next(iter(missing))
    return f"pip install aatc[{EXTRAS[name]}]"


def open_executor(executor: str = "auto", device: int | None = None, features: Iterable[str] = ()) -> Executor:
    """The executor of a device, opened if it is not open yet: there is one of each per process. Raises: as `choose`."""
    chosen = choose(executor, features, device=device)
    key = (chosen.executor, chosen.device.index)
    with _lock:
        found = _open.get(key)
        if found is None:
            found = _open[key] = _module(chosen.executor).open_device(chosen.device.index)
        return found


def forget(executor: Executor) -> None:
    """Has the next `open_executor` open the device anew: after it was lost. What is open is closed as far as it can."""
    with _lock:
        for key, found in list(_open.items()):
            if found is executor:
                del _open[key]
    with suppress(Exception):  # whatever a device that has gone answers
        executor.close()


def known(executor: str) -> str:
    """The name of an executor. Raises: BackendError if there is none of it."""
    if executor not in EXTRAS:
        raise BackendError(f"there is no executor {executor!r}", hint=f"there are: auto, {', '.join(EXTRAS)}")
    return executor


def _module(name: str) -> Any:
    return importlib.import_module(_MODULES[name])
