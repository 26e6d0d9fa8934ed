"""Backends: what turns tile programs into something that runs, and the contract they fulfil."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from aatc.ir.core import Module
from aatc.ir.errors import BackendError
from aatc.ir.target import Target
from aatc.passes import Pass, Pipeline, Placed, default_pipeline


@dataclass
class Program:
    """A built module. ``main`` takes the entry's arguments and returns a list of results, differentiably;
    ``source`` makes the text of all generated code, ``code``; ``attentions`` describes each attention for `explain`."""

    main: Callable[..., list[Any]]
    source: Callable[[], str]
    attentions: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def code(self) -> str:
        return self.source()


class Backend(Protocol):
    """What a backend provides. ``suffix`` is the text of its own passes, which follow the neutral ones; ``build`` takes
    a verified module after them."""

    name: str
    suffix: str

    def target(self) -> Target: ...

    def build(self, module: Module) -> Program: ...

    def devices(self) -> Sequence[dict[str, Any]]: ...


def _cpu() -> Backend:
    from aatc.backends.cpu import CpuBackend

    return CpuBackend()


_MAKERS: dict[str, Callable[[], Backend]] = {"cpu": _cpu}


def get(name: str = "auto") -> Backend:
    """The backend called ``name``; "auto" is the best one for tensors on this machine."""
    maker = _MAKERS.get("cpu" if name == "auto" else name)
    if maker is None:
        raise BackendError(f"there is no backend {name!r}", hint=f"there are: auto, {', '.join(_MAKERS)}")
    return maker()


def pipeline(name: str = "auto", extra: Iterable[Pass | Placed] = ()) -> Pipeline:
    """The built-in passes, ``extra`` ones where they are to stand, and those of the backend."""
    return default_pipeline(extra, suffix=get(name).suffix)


def load() -> None:
    """Brings in every backend, and with it what it declares."""
    for maker in _MAKERS.values():
        maker()


def names() -> list[str]:
    return list(_MAKERS)


def devices() -> list[dict[str, Any]]:
    """What each backend sees on this machine."""
    return [d for name in _MAKERS for d in _MAKERS[name]().devices()]
