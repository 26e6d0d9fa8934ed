"""What a measurement gives, printed as a table and kept as JSON."""

import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """What several runs of one thing gave, in ``unit`` (``ms``, ``s``, ``µs``, ``MiB`` or ``×``)."""

    values: tuple[float, ...]
    unit: str

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.least:.4g} {self.unit}"
        return f"{self.least:.4g} / {self.median:.4g} {self.unit}"


@dataclass(frozen=True)
class Row:
    """One figure of aatc's, and what it must be.

    Against ``other``, the bound is on a ratio of minima: ours over the other's (``at_most``), or the other's
    over ours (``at_least``: times faster). Without ``other`` it is on the figure's median itself.
    """

    group: str
    name: str
    ours: Figure | None
    other: Figure | None = None
    against: str = ""
    at_most: float | None = None
    at_least: float | None = None
    judged: bool = True
    note: str = ""

    @property
    def value(self) -> float | None:
        """The number that the bound is on."""
        if self.ours is None:
            return None
        if self.other is None:
            return self.ours.median
        return self._ratio(self.ours.least, self.other.least)

    def _ratio(self, ours: float, other: float) -> float:
        return other / ours if self.at_least is not None else ours / other

    @property
    def bound(self) -> str:
        unit = "×" if self.other is not None else f" {self.ours.unit}" if self.ours else ""
        if self.at_most is not None:
            return f"≤ {self.at_most:g}{unit}"
        if self.at_least is not None:
            return f"≥ {self.at_least:g}× faster"
        return ""

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; None where there is none, or where the run is too small to judge it."""
        if not self.bound:
            return None
        if self.value is None:
            return False
        if not self.judged:
            return None
        return self.value <= self.at_most if self.at_most is not None else self.value >= (self.at_least or 0)

    @property
    def ratio(self) -> str:
        if self.ours is None or self.other is None:
            return ""
        medians = self._ratio(self.ours.median, self.other.median)
        return f"{self.value:.2f} ({medians:.2f})"


@dataclass
class Report:
    """Rows as they come in. ``name`` begins the name of the file they are kept in."""

    settings: dict[str, object]
    name: str = "attention"
    rows: list[Row] = field(default_factory=list)

    def table(self) -> Table:
        table = Table(title="least / median; ratio of the least (of medians)", box=SIMPLE_HEAD)
        for column in ("", self.name, "aatc", "against", "its figure", "ratio", "bound", ""):
            table.add_column(column, no_wrap=True)
        verdict = {True: "[green]met", False: "[red]not met", None: ""}
        for last, row in zip(["", *(r.group for r in self.rows)], self.rows, strict=False):
            table.add_row(
                row.group if row.group != last else "",
                row.name,
                str(row.ours) if row.ours else "[red]failed",
                row.against,
                str(row.other) if row.other else "",
                row.ratio,
                row.bound,
                verdict[row.met],
            )
        return table

    def print(self, console: Console) -> None:
        if not console.is_terminal:
            console.width = 140  # a file or a pipe has no width of its own
        console.print(self.table())
        for row in self.rows:
            if row.note:
                console.print(f"{row.group}, {row.name}: {row.note}", markup=False)
        bad = sum(row.met is False for row in self.rows)
        judged = sum(row.met is not None for row in self.rows)
        console.print(f"{judged - bad} of {judged} bounds met")

    def save(self) -> Path:
        """Write the rows with the machine and the settings they were measured under."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / time.strftime(f"{self.name}-%Y%m%d-%H%M%S.json")
        machine = {
            "processor": platform.processor() or platform.machine(),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        rows = [{**asdict(row), "value": row.value, "bound": row.bound, "met": row.met} for row in self.rows]
        path.write_text(
            json.dumps({"machine": machine, "settings": self.settings, "rows": rows}, indent=1, default=str)
        )
        return path
