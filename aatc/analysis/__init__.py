"""Analytical passes for users: `analyze` a model, or call the families' functions on arrays of your own.

`homotopy`, `cohomology`, `arithmetic`, `information` and `quantum` hold the functions and classes of one family each.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aatc.passes.analysis.base import AnalysisPass, Finding
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Result, Undecided, Verdict, verify

if TYPE_CHECKING:
    from aatc.analysis import arithmetic, cohomology, homotopy, information, quantum
    from aatc.analysis.report import value_text
    from aatc.analysis.run import Analysis, analyze

_FAMILIES = ("arithmetic", "cohomology", "homotopy", "information", "quantum")

__all__ = [
    "Analysis", "AnalysisError", "AnalysisPass", "BudgetError", "Cost", "Finding", "Result", "Undecided", "Verdict",
    "analyze", "arithmetic", "cohomology", "homotopy", "information", "quantum", "value_text",
    "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _FAMILIES:
        return importlib.import_module(f"aatc.analysis.{name}")
    if name in ("Analysis", "analyze"):
        return getattr(importlib.import_module("aatc.analysis.run"), name)
    if name == "value_text":
        return importlib.import_module("aatc.analysis.report").value_text
    raise AttributeError(f"module 'aatc.analysis' has no attribute {name!r}")
