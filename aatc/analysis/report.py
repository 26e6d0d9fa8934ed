"""An analysis as text: one table per family, a row per item, a column per pattern."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aatc.analysis.items import LEGEND, item_of
from aatc.passes.analysis.arithmetic.motivic import MotivicClass
from aatc.passes.analysis.arithmetic.zeta import InverseZeta
from aatc.passes.analysis.chains.homology import AbelianGroup
from aatc.passes.analysis.cohomology.persistence import Barcodes
from aatc.passes.analysis.result import BudgetError, Result, Undecided

if TYPE_CHECKING:
    from aatc.analysis.run import Analysis
    from aatc.passes.analysis.attention_rows import AttentionRows
    from aatc.passes.analysis.base import Finding

#: Patterns side by side in one table.
COLUMNS = 8
#: Characters of one value.
WIDTH = 40


def text_of(analysis: Analysis, width: int = 120) -> str:
    """The whole report, ``width`` characters wide."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, highlight=False)
    seen = analysis.captured
    for line in summary(analysis):
        console.print(line)
    for family in dict.fromkeys(f.family for f in analysis.findings):
        console.print()
        console.rule(family, align="left")
        findings = analysis.select(family)
        for n, module in enumerate(analysis.modules):
            program = "the program" if len(analysis.modules) == 1 else f"graph {n} of the program"
            for f in module.findings:
                if f.subject == "ir" and f.family == family:
                    console.print(f"{program}: {name(f.item)}: {value_text(f.result)}")
        for f in (f for f in findings if f.subject == "layers"):
            batch = f" of batch element {f.batch}" if len({g.batch for g in findings}) > 2 else ""
            console.print(f"all layers{batch}: {name(f.item)}: {value_text(f.result)}")
        for c in seen:
            shown = [f for f in findings if f.subject == c.name and not shared_by_causal(analysis, c, f.item)]
            for table in _tables(c.name, shown):
                console.print(table)
    console.print()
    for level, text in LEGEND.items():
        console.print(f"{level}  {text}")
    return out.getvalue()


def summary(analysis: Analysis) -> list[str]:
    """How many attentions were seen, and a line on each."""
    seen = analysis.captured
    lines = [f"{len(seen)} attention{'s' if len(seen) != 1 else ''} seen"]
    for c in seen:
        _, h, n, m = c.sizes
        lines.append(f"  {c.name}  {c.where}  {h} heads, {n} queries, {m} keys, batch {', '.join(map(str, c.batch))}")
        lines += [f"    note: {note}" for note in c.notes]
    return lines + [f"note: {note}" for note in analysis.notes]


def shared_by_causal(analysis: Analysis, seen: AttentionRows, item: str) -> bool:
    """Whether an item is the same of every causal pattern, and all patterns of ``seen`` are causal: tables leave it
    out. Mean times to absorption are found of causal patterns alone."""
    b, h = seen.sizes[:2]
    found = analysis.select(item="mean_absorption_time", attention=seen.name)
    return not item_of(item).causal and len(found) == b * h


def _tables(title: str, findings: Sequence[Finding]) -> Iterable[Any]:
    from rich.table import Table

    patterns = list(dict.fromkeys((f.batch, f.head) for f in findings))
    items = list(dict.fromkeys(f.item for f in findings))
    by = {(f.item, f.batch, f.head): f.result for f in findings}
    batches = len({b for b, _ in patterns}) > 1
    for start in range(0, len(patterns), COLUMNS):
        some = patterns[start : start + COLUMNS]
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("")
        for batch, head in some:
            table.add_column(f"batch {batch} head {head}" if batches else f"head {head}")
        table.add_column("unit")
        table.add_column("proof")
        for item in items:
            cells = [by.get((item, b, h)) for b, h in some]
            levels = sorted({c.proof_level for c in cells if isinstance(c, Result)})
            table.add_row(
                name(item), *("" if c is None else value_text(c) for c in cells), item_of(item).unit, ", ".join(levels)
            )
        yield table


def name(item: str) -> str:
    return item.replace("_", " ")


def value_text(result: Any) -> str:
    """A result as a few words."""
    if isinstance(result, BudgetError):
        return "refused: above the budget"
    text = _words(result.value if isinstance(result, Result) else result)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _words(value: Any) -> str:
    if isinstance(value, Undecided):
        return f"undecided: {value.reason or value.bound}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value + 0.0:.4g}"
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim == 1 and 0 < len(value) < 5:
        return f"({', '.join(f'{x:.3g}' for x in value)})"
    if isinstance(value, np.ndarray):
        return f"numbers {value.shape}"
    if isinstance(value, Barcodes):
        return ", ".join(f"{len(b)} in H{k}" for k, b in enumerate(value.bars))
    if isinstance(value, InverseZeta):
        return f"of degree {2 * value.exponent + len(value.determinant) - 1}"
    if isinstance(value, MotivicClass):
        return f"of degree {len(value.coefficients) - 1}"
    if isinstance(value, tuple) and value and isinstance(value[0], AbelianGroup):
        return ", ".join(map(str, value))
    return str(value)
