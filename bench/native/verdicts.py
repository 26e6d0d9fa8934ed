"""Measured numbers beside their bounds: a table on the screen, a file of JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.native.bounds import BOUNDS
from bench.report import RESULTS, Figure


@dataclass(frozen=True)
class Measured:
    """The number of one row, what it was made from, and what else is worth knowing. None: it could not be measured."""

    name: str
    value: float | None
    figures: dict[str, Figure] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None where there is nothing to measure on this machine, as the note says."""
        if self.value is None:
            return None if self.note.startswith("not here") else False
        return BOUNDS[self.name].met(self.value)


def device() -> dict[str, object]:
    """The machine and the versions that numbers were measured with."""
    import llvmlite
    from llvmlite import binding

    import aatc
    from aatc.backends.native.isa import host

    isa = host()
    return {
        "processor": _processor(),
        "cpu": isa.cpu,
        "isa": isa.name,
        "bf16": isa.bf16,
        "torch isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "llvmlite": llvmlite.__version__,
        "llvm": ".".join(map(str, binding.llvm_version_info)),
        "aatc": aatc.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def table(rows: Sequence[Measured]) -> Table:
    shown = Table(title="least / median of the runs", box=SIMPLE_HEAD)
    for column, wraps in (
        ("", False),
        ("what", False),
        ("measured", False),
        ("bound", False),
        ("", False),
        ("from", True),
    ):
        shown.add_column(column, no_wrap=not wraps)
    last = ""
    for row in rows:
        bound = BOUNDS[row.name]
        found = "" if row.value is None else f"{row.value:.3g}"
        shown.add_row(
            bound.group if bound.group != last else "",
            bound.what,
            found,
            str(bound),
            {True: "[green]met", False: "[red]not met", None: ""}[row.met],
            "; ".join([*(f"{name} {figure}" for name, figure in row.figures.items()), *filter(None, [row.note])]),
        )
        last = bound.group
    return shown


def show(rows: Sequence[Measured], console: Console) -> None:
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width of its own
    console.print(table(rows))
    judged = [row.met for row in rows if row.met is not None]
    console.print(f"{sum(judged)} of {len(judged)} bounds met")


def new_file() -> Path:
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / time.strftime("native-%Y%m%d-%H%M%S.json")


def save(path: Path, rows: Sequence[Measured], settings: dict[str, object], machine: dict[str, object]) -> None:
    kept = [
        {**asdict(BOUNDS[row.name]), "measured": row.value, "met": row.met, "note": row.note,
         "figures": {name: asdict(figure) for name, figure in row.figures.items()}}
        for row in rows
    ]  # fmt: skip
    path.write_text(json.dumps({"device": machine, "settings": settings, "rows": kept}, indent=1) + "\n", "utf-8")
