"""Which backends there are: those of this package, those that installed packages declare, those registered by hand."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from aatc.backends.contract import Backend
from aatc.backends.lowerings import Lowerings
from aatc.ir.errors import AatcError, AatcWarning, BackendError
from aatc.ir.target import Target
from aatc.passes import Pass, Pipeline, Placed, default_pipeline

#: Packages declare their backends in this group of entry points: a name, and the class as ``module:attribute``.
GROUP = "aatc.backends"
#: Ours, which a checkout finds without being installed.
_OWN = {
    "cpu": "aatc.backends.cpu:CpuBackend",
    "native": "aatc.backends.native:NativeBackend",
    "vulkan": "aatc.backends.vulkan:VulkanBackend",
}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("auto", "tile", "geo", "torch")

_backends: dict[str, Backend] = {}


def register(backend: Backend, *, replace: bool = False) -> Backend:
    """Makes ``backend`` known as its ``name``, for ``aatc.compile(backend=...)`` and all else; it is returned.

    Raises: BackendError if it lowers not every tile operation that it does not refuse, if its name is no lower-case
    word, or is taken and ``replace`` is off, if its suffix is no text or its target no `Target`; PassError if its
    suffix is no pipeline.
    """
    name = _checked(backend).name
    if not replace and (name in _backends or name in _declared()):
        raise BackendError(f"there is a backend {name!r} already", hint="register(..., replace=True) replaces it")
    _backends[name] = backend
    return backend


def _checked(backend: Any) -> Backend:
    if not isinstance(backend, Backend):
        raise BackendError(f"{backend!r} is no backend", hint="hand in an instance of a class derived from Backend")
    name = getattr(backend, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        raise BackendError(
            f"a backend cannot be called {name!r}",
            hint=f"lower-case letters, digits and _, and none of {', '.join(_RESERVED)}",
        )
    table = getattr(backend, "lowerings", None)
    if not isinstance(table, Lowerings) or table.backend != name:
        raise BackendError(f"backend {name!r} has no table of lowerings", hint=f'lowerings = Lowerings("{name}")')
    table.check()
    if not isinstance(backend.suffix, str):
        raise BackendError(
            f"backend {name!r} has the suffix {backend.suffix!r}, which is no text",
            hint='suffix = "lower-tokens", passes joined by commas, or "" for none',
        )
    if backend.suffix:
        Pipeline.parse(backend.suffix)
    if not isinstance(backend.listings, (tuple, list)) or not all(isinstance(w, str) for w in backend.listings):
        raise BackendError(f"backend {name!r} has the listings {backend.listings!r}", hint='listings = ("asm",), or ()')
    _check_target(backend)
    return backend


def _check_target(backend: Backend) -> None:
    """What it raises is not told: it may know no machine here, and yet be asked for its name only."""
    try:
        target = backend.target()
    except Exception:
        return
    if not isinstance(target, Target):
        raise BackendError(
            f"backend {backend.name!r} has the target {target!r}",
            hint=f'target() has to return a Target("{backend.name}", cores=..., caches=...)',
        )


@cache
def _declared() -> dict[str, list[str]]:
    """Backends by the names of their classes, ``module:attribute``: ours, then those of installed packages."""
    found = {name: [at] for name, at in _OWN.items()}
    for point in _points():
        if point.value not in found.setdefault(point.name, []) and point.name not in _OWN:
            found[point.name].append(point.value)
    return found


def _points() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def get(name: str = "auto") -> Backend:
    """The backend called ``name``; "auto" is the one of `automatic`. Raises: BackendError if there is none, or it
    cannot be loaded."""
    name = automatic()[0] if name == "auto" else name
    found = _backends.get(name)
    if found is None:
        at = [_OWN[name]] if name in _OWN else _declared().get(name, [])
        if not at:
            raise BackendError(f"there is no backend {name!r}", hint=f"there are: auto, {', '.join(names())}")
        if len(at) > 1:
            raise BackendError(
                f"several packages declare a backend {name!r}: {', '.join(at)}", hint="uninstall all but one"
            )
        found = _backends[name] = _load(name, at[0])
    return found


def automatic() -> tuple[str, str]:
    """The backend that "auto" stands for, native kernels where they can run, else torch code; and why it is not the
    former, nothing if it is. Raises: BackendError if ``AATC_ISA`` names an instruction set that is not there."""
    try:
        usable = importlib.import_module("aatc.backends.native.usable")
    except (ImportError, AttributeError, OSError) as error:  # no llvmlite, another than we know, or one that is broken
        return "cpu", f"llvmlite cannot be loaded: {type(error).__name__}: {error}"
    reason: str = usable.why_not()
    return ("cpu", reason) if reason else ("native", "")


def _load(name: str, at: str) -> Backend:
    module, _, attribute = at.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except Exception as error:
        raise BackendError(f"backend {name!r} cannot be loaded from {at}: {type(error).__name__}: {error}") from error
    backend = _checked(made)
    if backend.name != name:
        raise BackendError(f"{at}, declared as backend {name!r}, calls itself {backend.name!r}")
    return backend


def pipeline(name: str = "auto", extra: Iterable[Pass | Placed] = ()) -> Pipeline:
    """The built-in passes, ``extra`` ones where they are to stand, and those of the backend."""
    return default_pipeline(extra, suffix=get(name).suffix)


def load() -> list[Backend]:
    """Every backend, and with it what it declares. One that cannot be loaded gives a warning; torch code always can."""
    found = []
    for name in names():
        try:
            found.append(get(name))
        except AatcError as error:
            if name == "cpu":
                raise
            warnings.warn(f"{error}", AatcWarning, stacklevel=2)
    return found


def names() -> list[str]:
    return list(dict.fromkeys([*_declared(), *_backends]))


def devices() -> list[dict[str, Any]]:
    """What each backend sees on this machine. A backend that says nonsense gives a warning; ours must not."""
    seen: list[dict[str, Any]] = []
    for backend in load():
        try:
            seen += _devices(backend)
        except Exception as error:
            if backend.name in _OWN:
                raise
            warnings.warn(f"backend {backend.name!r} cannot list its devices: {error}", AatcWarning, stacklevel=2)
    return seen


def _devices(backend: Backend) -> Iterable[dict[str, Any]]:
    listed = backend.devices()
    if not isinstance(listed, (list, tuple)) or not all(
        isinstance(d, dict) and {"backend", "name"} <= d.keys() for d in listed
    ):
        raise BackendError(
            f"devices() returned {listed!r}",
            hint='a list of dicts with at least "backend" and "name", which may be empty',
        )
    return listed
