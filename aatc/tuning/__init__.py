"""Schedules that were measured on this device: `tune` finds them, a folder keeps them, `aatc.compile(tune=...)` uses
them, JSON files carry them to other machines. See docs/tuning.md."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aatc.tuning.entry import Entry
    from aatc.tuning.exchange import Schedules, load
    from aatc.tuning.model import tune
    from aatc.tuning.store import kept

__all__ = ["Entry", "Schedules", "kept", "load", "tune"]

# Loaded when asked for: `aatc.compile` needs little of this, and `tune` needs `aatc.compile`.
_FROM = {"Entry": "entry", "Schedules": "exchange", "load": "exchange", "tune": "model", "kept": "store"}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'aatc.tuning' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"aatc.tuning.{_FROM[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
