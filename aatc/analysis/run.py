"""`analyze`: run a model once, keep its attentions, and study them with analytical passes."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aatc.analysis import records
from aatc.backends import get as get_backend
from aatc.frontend.compiled import _original
from aatc.ir.core import Module
from aatc.ir.observe import observing
from aatc.passes import Pipeline, Placed
from aatc.passes.analysis.attention_rows import MEMORY, AttentionRows, checked_batch
from aatc.passes.analysis.base import AnalysisPass, Finding, Study
from aatc.passes.analysis.capture import CapturedAttention, Recorder
from aatc.passes.analysis.given_weights import check_tokens_used, token_table, with_tokens
from aatc.passes.analysis.result import AnalysisError, Cost
from aatc.passes.analysis.torch_recorder import TorchRecorder
from aatc.passes.capture_attention import CaptureAttention

#: Family to the module and class of its pass.
FAMILIES = {
    "heads": ("aatc.passes.analysis.heads.heads_pass", "AnalyzeHeads"),
    "homotopy": ("aatc.passes.analysis.homotopy.homotopy_pass", "AnalyzeHomotopy"),
    "topology": ("aatc.passes.analysis.cohomology.topology_pass", "AnalyzeTopology"),
    "cohomology": ("aatc.passes.analysis.cohomology.cohomology_pass", "AnalyzeCohomology"),
    "arithmetic": ("aatc.passes.analysis.arithmetic.arithmetic_pass", "AnalyzeArithmetic"),
    "information": ("aatc.passes.analysis.information.information_pass", "AnalyzeInformation"),
    "quantum": ("aatc.passes.analysis.quantum.quantum_pass", "AnalyzeQuantum"),
    "crystal": ("aatc.passes.analysis.crystal.crystal_pass", "AnalyzeCrystal"),
    "scale": ("aatc.passes.analysis.scale.scale_pass", "AnalyzeScale"),
}


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found. ``findings`` are in the order of passes, attentions and heads; ``captured`` holds the
    attentions they are about; ``modules`` the IR of each graph, findings attached; ``output`` what the model gave;
    ``notes`` tell of attentions that could not be followed."""

    findings: tuple[Finding, ...]
    captured: tuple[AttentionRows, ...]
    modules: tuple[Module, ...]
    output: Any = None
    notes: tuple[str, ...] = ()

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
        """Every finding as a line of JSON with its value in full, typed as `aatc.analysis.records` says."""
        return records.to_lines(self.findings)

    def to_dataframe(self) -> Any:
        """Every finding as a row of a pandas DataFrame, with its unit and sentence."""
        return records.to_dataframe(self.findings)

    def save(self, path: str | Path) -> None:
        """Writes the findings to an npz file, arrays as arrays; `load_findings` reads them again."""
        records.save(self.findings, path)

    def html(self, path: str | Path, title: str = "Attention") -> None:
        """Writes a page that shows heat maps, persistence diagrams and every value with its unit and meaning; it is one
        file that needs no other."""
        from aatc.analysis.page import page

        Path(path).write_text(page(self, title), encoding="utf-8")

    def __str__(self) -> str:
        from aatc.analysis.report import text_of

        return text_of(self)


def analyze(
    model: Any,
    inputs: Any,
    passes: str | AnalysisPass | Iterable[str | AnalysisPass] = tuple(FAMILIES),
    *,
    budget: Cost | float | None = None,
    memory: int = MEMORY,
    batch: int | Sequence[int] = (0,),
    backend: str = "auto",
    capture: str = "auto",
    tokens: Any = None,
    progress: Callable[[str, int, int], None] | None = None,
    heads: int | None = None,
    heads_first: bool | None = None,
) -> Analysis:
    """Runs ``model`` once on ``inputs`` (a tuple of arguments, or one tensor), and studies its attentions.

    A module runs as `eval` has it, and its parts are in their modes again afterwards: nothing is dropped, and no
    statistics move. What a call of the model itself changes, as a cache of keys, is changed once. passes: names of
    families, or `AnalysisPass` objects for other options than the defaults; one alone may stand without a list. budget:
    the seconds that all of it may take, running the model included, or a `Cost`, whose bytes bound each piece of work;
    what does not fit in any more is refused, and the finding says so. memory: bytes one head's pattern may take; longer
    ones are studied as means over tiles. batch: the batch elements to study, or the one. capture: "compiled" sees
    attentions of `aatc.attend` in the compiled model, and studies its program too; "torch" sees these and those of
    ordinary PyTorch code in the model as it is (`capturing`); "auto" looks into the model before it runs: "compiled"
    where Dynamo meets an `aatc.attend` before anything that it cannot record, else "torch". tokens: integers or
    texts (n,) or (batch, n); by default an input of integers (batch, n). progress: called with (family, patterns done,
    patterns in all). heads, heads_first: of ordinary code, as in `capturing`.

    Raises AnalysisError when the model shows no attention, when its batch has no such element, and when a score is NaN.
    """
    chosen = chosen_passes(passes)
    if not isinstance(inputs, torch.Tensor | tuple | list):
        raise AnalysisError(f"inputs is a {type(inputs).__name__}", hint="give a tuple of arguments, or one tensor")
    if capture not in ("auto", "compiled", "torch"):
        raise AnalysisError(f"there is no capture {capture!r}", hint='"auto", "compiled" or "torch"')
    args = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    table = token_table(tokens) if tokens is not None else _tokens_among(args)
    started = time.perf_counter()
    notes: list[str] = []
    with evaluating(model):
        if capture == "compiled" or (capture == "auto" and _holds_attend(model, args)):
            seen, graphs, output = _compiled_run(model, args, batch, backend)
        else:
            known = model if isinstance(model, torch.nn.Module) else None
            recorder = TorchRecorder(batch, known, heads=heads, heads_first=heads_first)
            with torch.no_grad(), recorder:
                output = _original(model)(*args)
            seen, graphs, notes = list(recorder.captured), list[Module](), recorder.notes
            if not seen:
                hint = "seen are aatc.attend, scaled_dot_product_attention, and softmax of products times values"
                raise AnalysisError(
                    f"{_name_of(model)} showed no attention when it ran", hint="; ".join([hint, *notes])
                )
            if capture == "auto" and any(isinstance(c, CapturedAttention) for c in seen):
                why = "its graph breaks before aatc.attend"
                notes.append(f'the program was not studied: {why}; capture="compiled" takes its parts')
    seen = with_tokens(seen, table)
    if tokens is not None and table is not None:
        check_tokens_used(seen, table)
    study = study_of(seen, budget, memory, progress, chosen, started)
    if not graphs:
        return Analysis(tuple(f for p in chosen for f in p.findings(study)), tuple(seen), (), output, tuple(notes))
    modules: list[Module] = []
    for module in graphs:
        own = (
            replace(study, captured=(), passes=()) if modules else study
        )  # patterns are no single graph's: they go first
        modules.append(Pipeline(tuple(chosen)).run(module, study=own, target=get_backend(backend).target()).module)
    findings = tuple(f for m in modules for f in m.findings)
    return Analysis(findings, tuple(seen), tuple(modules), output)


def _holds_attend(model: Any, args: tuple[Any, ...]) -> bool:
    from aatc.analysis.looking import holds_attend

    with torch.no_grad():
        return bool(holds_attend(_original(model), args))


def _compiled_run(
    model: Any, args: tuple[Any, ...], batch: int | Sequence[int], backend: str
) -> tuple[list[AttentionRows], list[Module], Any]:
    """(attentions, graphs, output) of the compiled model."""
    recorder = Recorder(checked_batch(batch))
    compiled = _observed(model, backend)
    with torch.no_grad(), observing(recorder):
        output = compiled(*args)
    if recorder.refused is not None:
        raise recorder.refused
    session = compiled._aatc.session
    if not recorder.captured:
        reasons = "; ".join(f"{f.loc} {f.reason}".strip() for f in session.fallbacks)
        raise AnalysisError(
            f"{session.name} showed no attention when it ran",
            hint=reasons or "only attentions written with aatc.attend (or aatc.nn) are seen by capture='compiled'",
        )
    # a graph that could not be imported or compiled lacks the stage
    graphs = [g.stages[CaptureAttention.name] for g in session.graphs if CaptureAttention.name in g.stages]
    return list(recorder.captured), graphs, output


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A module in evaluation mode, each of its parts as it was afterwards; anything else as it is."""
    training = [m for m in model.modules() if m.training] if isinstance(model, torch.nn.Module) else []
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


@contextmanager
def capturing(
    batch: int | Sequence[int] = (0,),
    model: torch.nn.Module | None = None,
    *,
    heads: int | None = None,
    heads_first: bool | None = None,
) -> Iterator[TorchRecorder]:
    """Within it, every attention of ordinary PyTorch code that runs in this thread is kept: hand the recorder to
    `analyze_weights`, or read ``.captured``.

    Seen are `scaled_dot_product_attention`, `torch.nn.MultiheadAttention`, models of transformers, and softmax(…)·V by
    hand: what values are multiplied with is the attention. The model runs as it is, without a gradient or with one.
    Kept are queries, keys and copies of what the model adds to their products, and weights are evaluated by rows when
    they are read; where that is not what the model used, as after changes of its weights, the weights themselves.
    batch: the batch elements to keep. model: names its modules in ``.where``. heads: how many heads there are, where
    one axis may hold them with the batch (1: it holds the batch alone). heads_first: whether the first of two axes are
    the heads. By default, modules and their inputs say both, and an attention that they do not decide has it in its
    ``.notes``. ``.notes`` of the recorder tell of attentions that could not be followed. Raises AnalysisError at the
    end where the batch has no such element.
    """
    recorder = TorchRecorder(batch, model, heads=heads, heads_first=heads_first)
    with recorder:
        yield recorder


def _tokens_among(args: tuple[Any, ...]) -> torch.Tensor | None:
    """The first input of integers with two axes."""
    for a in args:
        if isinstance(a, torch.Tensor) and a.ndim == 2 and a.dtype in (torch.int32, torch.int64):
            return a.detach().cpu().long()
    return None


def _name_of(model: Any) -> str:
    return getattr(model, "__name__", type(model).__name__)


def _observed(model: Any, backend: str) -> Any:
    """The model compiled afresh, with every attention shown to the observer as the model wrote it."""
    from aatc.frontend.compiled import compile

    return compile(_original(model), backend=backend, passes=[Placed(CaptureAttention(), after="canonicalize")])


def study_of(
    seen: Sequence[AttentionRows],
    budget: Cost | float | None,
    memory: int,
    progress: Callable[[str, int, int], None] | None,
    passes: Sequence[AnalysisPass],
    started: float | None = None,
) -> Study:
    """The study of attentions by these passes, within ``budget`` in all: a `Cost`, seconds, or None for no limit."""
    number = not isinstance(budget, (bool, str)) and hasattr(budget, "__float__")
    if not (budget is None or isinstance(budget, Cost) or (number and float(budget) >= 0)):
        raise AnalysisError(f"budget={budget!r} is no budget", hint="give seconds, 0 or more, or a Cost")
    if isinstance(memory, bool) or not isinstance(memory, (int, float, np.number)):
        raise AnalysisError(f"memory={memory!r} is no number of bytes", hint="give bytes")
    limit = budget if isinstance(budget, Cost) else Cost() if budget is None else Cost(seconds=float(budget))
    return Study(tuple(seen), limit, memory, progress, tuple(passes), started)


def chosen_passes(passes: str | AnalysisPass | Iterable[str | AnalysisPass]) -> list[AnalysisPass]:
    """Passes as objects, their modules imported; one alone may stand without a list."""
    if not isinstance(passes, (str, AnalysisPass, Iterable)):
        raise AnalysisError(f"passes={passes!r} are no passes", hint=f"give some of {', '.join(FAMILIES)}, or objects")
    chosen = [pass_of(p) for p in ([passes] if isinstance(passes, (str, AnalysisPass)) else passes)]
    for p in chosen:
        p.load()
    return chosen


def pass_of(p: str | AnalysisPass) -> AnalysisPass:
    """The pass of a family with its default options; a pass as it is. AnalysisError for names that are no family."""
    if isinstance(p, AnalysisPass):
        return p
    if not isinstance(p, str) or p not in FAMILIES:
        raise AnalysisError(f"there is no family of analyses {p!r}", hint=f"there are: {', '.join(FAMILIES)}")
    module, cls = FAMILIES[p]
    made: AnalysisPass = getattr(importlib.import_module(module), cls)()
    return made
