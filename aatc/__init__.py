"""The Adaptive Attention Tiling Compiler: geometric attention in PyTorch at the cost of plain attention.

`attend` states an attention by a metric, a connection, a bias and a mask; `compile` turns a model that is
written with it into kernels that need no n×n memory. See README.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Loaded here, not on demand: it registers the custom op, and its module has the same name as the function.
from aatc.attend import attend
from aatc.ir.registry import on_demand

if TYPE_CHECKING:
    from aatc import (
        analysis,
        backends,
        biases,
        connections,
        errors,
        geometry,
        ir,
        masks,
        metrics,
        nn,
        normalizers,
        passes,
        performance,
        report,
        training,
        tuning,
        validation,
    )  # fmt: skip
    from aatc.analysis.run import analyze
    from aatc.analysis.weights import analyze_weights
    from aatc.backends import devices
    from aatc.frontend import compile, export
    from aatc.ir.interpreter import run
    from aatc.ir.parser import parse
    from aatc.metrics import metric
    from aatc.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "__version__", "analysis", "analyze", "analyze_weights", "attend", "backends", "biases", "compile", "connections",
    "devices", "errors", "export", "geometry", "ir", "masks", "metric", "metrics", "nn", "normalizers", "parse",
    "passes", "performance", "report", "run", "training", "tune", "tuning", "validation",
]  # fmt: skip

# Everything else is loaded when it is first asked for, so that importing aatc costs little.
_FROM = {
    "analyze": "aatc.analysis.run",
    "analyze_weights": "aatc.analysis.weights",
    "compile": "aatc.frontend",
    "devices": "aatc.backends",
    "export": "aatc.frontend",
    "metric": "aatc.metrics",
    "parse": "aatc.ir.parser",
    "run": "aatc.ir.interpreter",
    "tune": "aatc.tuning",
}
_MODULES = (
    "analysis", "backends", "biases", "connections", "errors", "geometry", "ir", "masks", "metrics",
    "nn", "normalizers", "passes", "performance", "report", "training", "tuning", "validation",
)  # fmt: skip


# What backends add to the IR, and the pass that looks tuned schedules up, are declared when a text asks for them.
on_demand(lambda: importlib.import_module("aatc.backends").load())
on_demand(lambda: importlib.import_module("aatc.tuning.apply"))


def __getattr__(name: str) -> Any:
    if name in _FROM:
        value = getattr(importlib.import_module(_FROM[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"aatc.{name}")
    else:
        raise AttributeError(f"module 'aatc' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
