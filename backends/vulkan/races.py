"""Whether every place of shared memory that one thread writes and another touches has a barrier in between.

An index within ``own_WORD(...)`` says that a place is touched by one thread only among accesses of the same word: each
thread has places of its own then. All other accesses may be of any place by any thread. The code generator places
barriers as it writes; this looks at what it has written, and knows nothing of how.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aatc.backends.vulkan.language import Barrier, Body, For, If, Set, Statement, expressions
from aatc.ir.errors import VerifyError

#: Words of what is a thread's own: vectors that are staged, vectors of its rows, its pairs, its place among lanes.
OWN = ("stage", "rows", "pairs", "scatter", "lanes")
_OWN = re.compile(r"own_(\w+)\(")


class _Phase:
    """What was read and written since the last barrier: the words of indices, "" for any other, by array."""

    def __init__(self) -> None:
        self.read: dict[str, set[str]] = {}
        self.written: dict[str, set[str]] = {}

    def clear(self) -> None:
        self.read.clear()
        self.written.clear()


def check_races(body: Body) -> None:
    """VerifyError with the array, for places that may be read while they are written, or written twice at once."""
    shared = {s.name for s in body.shared}
    if shared:
        _walk(body, body.statements, shared, _Phase())


def _walk(body: Body, statements: tuple[Statement, ...], shared: set[str], phase: _Phase) -> None:
    for s in statements:
        if isinstance(s, Barrier):
            phase.clear()
            continue
        target = s.target if isinstance(s, Set) else ""
        for text in expressions(s):
            for array, word in _accesses(text, shared):
                if text != target:
                    _read(body, phase, array, word)
        for array, word in list(_accesses(target, shared))[:1]:
            _write(body, phase, array, word)
        if isinstance(s, For):
            for _ in range(2):  # a round after another sees what that has left
                _walk(body, s.body, shared, phase)
        elif isinstance(s, If):
            _walk(body, s.body, shared, phase)


def _accesses(text: str, shared: set[str]) -> Iterator[tuple[str, str]]:
    """(array, word of the index) of every element of shared memory in an expression."""
    for m in re.finditer(r"(\w+)\[", text):
        if m[1] in shared:
            own = _OWN.match(text, m.end())
            yield m[1], own[1] if own else ""


def _read(body: Body, phase: _Phase, array: str, word: str) -> None:
    others = {w for w in phase.written.get(array, ()) if w != word or not w}
    if others:
        _refuse(body, array, "read", "written")
    phase.read.setdefault(array, set()).add(word)


def _write(body: Body, phase: _Phase, array: str, word: str) -> None:
    for before, what in ((phase.written, "written"), (phase.read, "read")):
        if {w for w in before.get(array, ()) if w != word or not w}:
            _refuse(body, array, "written", what)
    phase.written.setdefault(array, set()).add(word)


def _refuse(body: Body, array: str, now: str, before: str) -> None:
    raise VerifyError(
        f"kernel {body.name}: shared array {array} is {now} where another thread may have {before} it since the last "
        "barrier",
        hint="put a barrier in between",
    )
