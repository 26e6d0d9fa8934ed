"""Errors that depend on numbers, raised in every way of running: eagerly, under ``torch.func`` and compiled.

``bool(bad.any())`` breaks the graph of ``torch.compile`` and is refused by ``vmap``. An operator of torch that looks at
the numbers when it runs does neither, and raises the same typed error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aatc.geometry.errors import GeometryError

_LIBRARY = torch.library.Library("aatc_geometry", "DEF")
_LIBRARY.define("require(Tensor bad, str error, str message) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _error(name: str) -> type[GeometryError]:
    """The subclass of GeometryError called ``name``."""
    waiting: list[type[GeometryError]] = [GeometryError]
    while waiting:
        one = waiting.pop()
        if one.__name__ == name:
            return one
        waiting += one.__subclasses__()
    raise LookupError(f"no error is called {name}")


def _require(bad: Tensor, error: str, message: str) -> Tensor:
    if bool(bad.any()):
        raise _error(error)(message)
    return ~bad


def _batched(info: Any, in_dims: tuple[int | None, ...], bad: Tensor, error: str, message: str) -> tuple[Tensor, Any]:
    return torch.ops.aatc_geometry.require(bad, error, message), in_dims[0]


_LIBRARY.impl("require", _require, "CompositeExplicitAutograd")
torch.library.register_fake("aatc_geometry::require", lambda bad, error, message: torch.empty_like(bad), lib=_LIBRARY)
torch.library.register_vmap("aatc_geometry::require", _batched, lib=_LIBRARY)


def require(value: Tensor, bad: Tensor, error: type[GeometryError], message: str) -> Tensor:
    """``value``, once no entry of the truth values ``bad`` is set; they broadcast with it. Else ``error(message)``."""
    fine = torch.ops.aatc_geometry.require(bad, error.__name__, message)
    # In a graph the check stays only where something reads its result.
    return torch.where(fine, value, torch.nan) if torch.compiler.is_compiling() else value
