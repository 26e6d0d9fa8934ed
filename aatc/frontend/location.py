"""Source lines of the user's model, read from the stack traces that torch keeps on graph nodes."""

from __future__ import annotations

import functools
import linecache
import os
import re
from collections.abc import Iterable

from aatc.ir.core import Loc

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n(?!\s*File ")\s*(?P<text>[^\n]*))?')


@functools.cache
def _foreign_folders() -> tuple[str, ...]:
    """Folders whose frames are never the user's: torch's, and ours (through links and where they lead)."""
    import torch

    roots = [os.path.dirname(torch.__file__)]
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    roots += [
        ours,
        *(os.path.realpath(os.path.join(ours, n)) for n in ("ir", "passes", "backends", "shaders")),
    ]
    roots.append(os.path.dirname(os.__file__))
    return tuple(dict.fromkeys(os.path.join(r, "") for r in roots))


def is_users(file: str) -> bool:
    """Whether ``file`` is neither torch's, the standard library's nor aatc's own."""
    if file.startswith("<") or "site-packages" in file.split(os.sep):
        return False
    return not file.startswith(_foreign_folders())


def innermost(frames: Iterable[tuple[str, int, str]]) -> Loc | None:
    """The user's innermost frame of a stack (outermost first); layers of `aatc.nn` count if no other does."""
    frames = list(frames)
    ours = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "nn")
    for wanted in (is_users, lambda f: f.startswith(ours)):
        for file, line, text in reversed(frames):
            if wanted(file):
                return Loc(file, line, text)
    return None


@functools.lru_cache(maxsize=4096)
def from_trace(trace: str | None) -> Loc | None:
    """The location that a formatted stack trace (``node.meta["stack_trace"]``) points at."""
    if not trace:
        return None
    return innermost((m["file"], int(m["line"]), (m["text"] or "").strip()) for m in _FRAME.finditer(trace))


def from_stack(stack: Iterable) -> Loc | None:
    """The location of a `traceback.StackSummary`."""
    return innermost((f.filename, f.lineno or 0, (f.line or "").strip()) for f in stack or ())


def of_line(file: str, line: int) -> Loc:
    """The location of a line, with its text if the file is there."""
    return Loc(file, line, linecache.getline(file, line).strip())


def source_line(loc: Loc | None) -> str | None:
    """`where` of a place whose text is still to be read from its file."""
    if loc is not None and not loc.text:
        loc = of_line(loc.file, loc.line)
    return where(loc)


def where(loc: Loc | None) -> str | None:
    """``file:line`` and the source line, for messages."""
    if loc is None:
        return None
    return f"{loc}: `{loc.text}`" if loc.text else str(loc)
