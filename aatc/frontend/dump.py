"""``AATC_DUMP=dir``: every stage's IR as numbered texts, the generated code, and a script that runs alone."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_REPRO = '''"""Compiles {what} again, on its own: python repro.py

Reads {first} beside this file, makes random inputs, runs the same passes and backend, and compares the
result with the reference interpreter.
"""

import sys
from pathlib import Path

{imports}from aatc.errors import AatcError
from aatc.frontend.replay import replay

try:
    replay(
        Path(__file__).parent / {first!r},
        pipeline={pipeline!r},
        backend={backend!r},
        seed=0,
        sizes={sizes!r},
    )
except AatcError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
'''


class Dump:
    """The folder of one graph. Files appear as compiling goes on, so a failure leaves what there was."""

    def __init__(self, folder: Path, what: str):
        self.folder, self.what = folder, what

    @staticmethod
    def begin(name: str) -> Dump | None:
        """A fresh numbered folder below ``AATC_DUMP``, or None when that is not set."""
        root = os.environ.get("AATC_DUMP")
        if not root:
            return None
        plain = re.sub(r"\W+", "_", name).strip("_") or "graph"
        number = 0
        while True:
            folder = Path(root) / f"{number:03d}-{plain}"
            try:
                folder.mkdir(parents=True)
                return Dump(folder, name)
            except FileExistsError:
                number += 1

    def stage(self, index: int, name: str, text: str) -> None:
        self.write(f"{index:02d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}.aatc", text)

    def repro(self, pipeline: str, backend: str, sizes: Mapping[str, int], modules: Sequence[str]) -> None:
        """The script; ``modules`` define the user's passes and are imported first."""
        lines = "".join(f"import {m}  # defines a pass\n" for m in modules if m != "__main__")
        if "__main__" in modules:
            lines = "# A pass of this pipeline was defined in a script: define and register it here first.\n" + lines
        text = _REPRO.format(
            what=self.what, first="00-import.aatc", imports=lines + ("\n" if lines else ""),
            pipeline=pipeline, backend=backend, sizes=dict(sizes),
        )  # fmt: skip
        self.write("repro.py", text)

    def failed(self, error: BaseException, graph: Any) -> None:
        """The error with its traceback, and torch's graph for failures before there was any IR."""
        self.write("error.txt", "".join(traceback.format_exception(error)))
        if not (self.folder / "00-import.aatc").exists() and hasattr(graph, "print_readable"):
            self.write("graph.txt", graph.print_readable(print_output=False))

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text if text.endswith("\n") else text + "\n", "utf-8")
