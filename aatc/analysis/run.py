"""`analyze`: run a model once, keep its attentions, and study them with analytical passes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aatc.backends import get as get_backend
from aatc.frontend.compiled import _original
from aatc.ir.core import Module
from aatc.ir.observe import observing
from aatc.passes import Pipeline, Placed
from aatc.passes.analysis.base import AnalysisPass, Finding, Study
from aatc.passes.analysis.capture import MEMORY, CapturedAttention, Recorder
from aatc.passes.analysis.result import AnalysisError, Cost, Result
from aatc.passes.capture_attention import CaptureAttention

#: Family to the module and class of its pass.
FAMILIES = {
    "homotopy": ("aatc.passes.analysis.homotopy.homotopy_pass", "AnalyzeHomotopy"),
    "cohomology": ("aatc.passes.analysis.cohomology.cohomology_pass", "AnalyzeCohomology"),
    "arithmetic": ("aatc.passes.analysis.arithmetic.arithmetic_pass", "AnalyzeArithmetic"),
    "information": ("aatc.passes.analysis.information.information_pass", "AnalyzeInformation"),
    "quantum": ("aatc.passes.analysis.quantum.quantum_pass", "AnalyzeQuantum"),
}


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found. ``findings`` are in the order of passes, attentions and heads; ``captured`` holds the
    attentions they are about; ``modules`` the IR of each graph, findings attached; ``output`` what the model gave."""

    findings: tuple[Finding, ...]
    captured: tuple[CapturedAttention, ...]
    modules: tuple[Module, ...]
    output: Any = None

    def select(
        self,
        family: str | None = None,
        item: str | None = None,
        *,
        attention: str | None = None,
        head: int | None = None,
        batch: int | None = None,
    ) -> list[Finding]:
        """The findings that fit all that is given."""
        wanted = {"family": family, "item": item, "subject": attention, "head": head, "batch": batch}
        return [f for f in self.findings if all(v is None or getattr(f, n) == v for n, v in wanted.items())]

    def __getitem__(self, key: tuple[str, str, int] | tuple[str, str]) -> Any:
        """``analysis["attend0", "betti_numbers", 2]``: the result about head 2; without a head, about the first."""
        attention, item, *rest = key
        found = self.select(item=item, attention=attention, head=rest[0] if rest else None)
        if not found:
            items = sorted({f.item for f in self.findings if f.subject == attention})
            seen = ", ".join(c.name for c in self.captured)
            raise AnalysisError(
                f"nothing called {item!r} was found about {attention!r}",
                hint=f"there is: {', '.join(items) or 'nothing'}; attentions: {seen}",
            )
        return found[0].result

    def to_json(self) -> str:
        """Every finding as a line of JSON, values as text."""
        return "\n".join(json.dumps(_row(f)) for f in self.findings)

    def __str__(self) -> str:
        from aatc.analysis.report import text_of

        return text_of(self)


def _row(f: Finding) -> dict[str, Any]:
    row = {"attention": f.subject, "batch": f.batch, "head": f.head, "family": f.family, "item": f.item}
    if isinstance(f.result, Result):
        level = {"proof_level": f.result.proof_level, "residual": f.result.residual, "tolerance": f.result.tolerance}
        return {**row, "value": str(f.result.value), **level}
    return {**row, "value": str(f.result)}


def analyze(
    model: Any,
    inputs: Any,
    passes: str | AnalysisPass | Iterable[str | AnalysisPass] = tuple(FAMILIES),
    *,
    budget: Cost | float | None = None,
    memory: int = MEMORY,
    batch: int | Sequence[int] = (0,),
    backend: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> Analysis:
    """Runs ``model`` once on ``inputs`` (a tuple of arguments, or one tensor), compiled, and studies its attentions.

    passes: names of families, or `AnalysisPass` objects for other options than the defaults; one alone may stand
    without a list. budget: what one pattern, and what the study of the program itself, may cost, a `Cost` or seconds;
    what would cost more is refused, and the finding says so. memory: bytes one head's pattern may take; longer ones
    are studied as means over tiles. batch: the batch elements to study, or the one. progress: called with (family,
    patterns done, patterns in all).

    Raises AnalysisError when the model has no attention of `aatc.attend`, or none that could be compiled, when its
    batch has no such element, and when a score is NaN.
    """
    chosen = [pass_of(p) for p in ([passes] if isinstance(passes, (str, AnalysisPass)) else passes)]
    if not isinstance(inputs, torch.Tensor | tuple | list):
        raise AnalysisError(f"inputs is a {type(inputs).__name__}", hint="give a tuple of arguments, or one tensor")
    args = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    limit = budget if isinstance(budget, Cost) else Cost() if budget is None else Cost(seconds=float(budget))
    compiled = _observed(model, backend)
    recorder = Recorder((batch,) if isinstance(batch, int) else batch)
    with torch.no_grad(), observing(recorder):
        output = compiled(*args)
    if recorder.refused is not None:
        raise recorder.refused
    if not recorder.captured:
        reasons = "; ".join(f"{f.loc} {f.reason}".strip() for f in compiled._aatc.session.fallbacks)
        raise AnalysisError(
            f"{compiled._aatc.session.name} showed no attention when it ran",
            hint=reasons or "only attentions written with aatc.attend (or aatc.nn) are seen",
        )
    study = Study(tuple(recorder.captured), limit, memory, progress)
    # a graph that could not be imported or compiled lacks the stage
    graphs = [
        g.stages[CaptureAttention.name] for g in compiled._aatc.session.graphs if CaptureAttention.name in g.stages
    ]
    modules: list[Module] = []
    for module in graphs:
        own = Study((), limit, memory) if modules else study  # the patterns are no single graph's: they go first
        modules.append(Pipeline(tuple(chosen)).run(module, study=own, target=get_backend(backend).target()).module)
    findings = tuple(f for m in modules for f in m.findings)
    return Analysis(findings, tuple(recorder.captured), tuple(modules), output)


def _observed(model: Any, backend: str) -> Any:
    """The model compiled afresh, with every attention shown to the observer as the model wrote it."""
    from aatc.frontend.compiled import compile

    return compile(_original(model), backend=backend, passes=[Placed(CaptureAttention(), after="canonicalize")])


def pass_of(p: str | AnalysisPass) -> AnalysisPass:
    """The pass of a family with its default options; a pass as it is. AnalysisError for names that are no family."""
    if isinstance(p, AnalysisPass):
        return p
    if p not in FAMILIES:
        raise AnalysisError(f"there is no family of analyses {p!r}", hint=f"there are: {', '.join(FAMILIES)}")
    module, cls = FAMILIES[p]
    made: AnalysisPass = getattr(importlib.import_module(module), cls)()
    return made
