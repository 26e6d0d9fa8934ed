"""Analytical passes for users: `analyze` a model, or call the families' functions on arrays of your own.

`heads`, `homotopy`, `cohomology`, `arithmetic`, `information`, `quantum`, `crystal` and `scale` hold the functions and
classes of one family each.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aatc.passes.analysis.base import AnalysisPass, Finding
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Result, Undecided, Verdict, verify

if TYPE_CHECKING:
    from aatc.analysis import arithmetic, cohomology, crystal, heads, homotopy, information, quantum, scale
    from aatc.analysis.comparison import Comparison, compare, head_distances
    from aatc.analysis.records import load as load_findings
    from aatc.analysis.report import value_text
    from aatc.analysis.run import Analysis, analyze, capturing
    from aatc.analysis.weights import analyze_weights

_FAMILIES = ("arithmetic", "cohomology", "crystal", "heads", "homotopy", "information", "quantum", "scale")

__all__ = [
    "Analysis", "AnalysisError", "AnalysisPass", "BudgetError", "Comparison", "Cost", "Finding", "Result", "Undecided",
    "Verdict", "analyze", "analyze_weights", "arithmetic", "capturing", "cohomology", "compare", "crystal",
    "head_distances", "heads", "homotopy", "information", "load_findings", "quantum", "scale", "value_text",
    "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _FAMILIES:
        return importlib.import_module(f"aatc.analysis.{name}")
    if name in ("Analysis", "analyze", "capturing"):
        return getattr(importlib.import_module("aatc.analysis.run"), name)
    if name in ("Comparison", "compare", "head_distances"):
        return getattr(importlib.import_module("aatc.analysis.comparison"), name)
    if name == "load_findings":
        return importlib.import_module("aatc.analysis.records").load
    if name == "analyze_weights":
        return importlib.import_module("aatc.analysis.weights").analyze_weights
    if name == "value_text":
        return importlib.import_module("aatc.analysis.report").value_text
    raise AttributeError(f"module 'aatc.analysis' has no attribute {name!r}")
