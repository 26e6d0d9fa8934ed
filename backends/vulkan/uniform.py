"""Whether all threads of a workgroup come to every barrier: control flow around one must not differ between them.

A value is uniform unless something in it varies: the thread's number, shared memory, what a kernel writes to the arena
itself, a name that was set where control flow varies. Shuffles between lanes are held to the same rule.
"""

from __future__ import annotations

import re

from aatc.backends.vulkan.language import (
    Barrier,
    Body,
    For,
    If,
    Let,
    Set,
    Statement,
    Var,
    expressions,
    names_in,
)
from aatc.ir.errors import VerifyError

#: Names that are different numbers in the threads of a workgroup.
VARYING = frozenset({"thread"})
SHUFFLES = frozenset({"shuffle_xor", "shuffle_xor4"})
#: What reads a shared word that one thread wrote for all, at a place that is the same for all.
UNIFORM_READS = "agreed"
_AGREED = re.compile(r"agreed\(\w+\[\d+\]\)")


def check_uniform(body: Body) -> None:
    """VerifyError with the statement that varies, for a barrier or shuffle that some threads may not come to, or come
    to more often than others."""
    varying = set(VARYING | {s.name for s in body.shared})
    while True:
        before = len(varying)
        _spread(body.statements, varying, False)
        if len(varying) == before:
            break
    _check(body, body.statements, varying, None)


def _varies(expression: str, varying: set[str]) -> bool:
    return bool(names_in(_AGREED.sub("0", expression)) & varying)


def _spread(statements: tuple[Statement, ...], varying: set[str], inside: bool) -> None:
    """Adds the names that vary; ``inside``: where control flow does."""
    for s in statements:
        if isinstance(s, (Let, Var)):
            if _varies(s.value, varying):
                varying.add(s.name)
        elif isinstance(s, Set):
            name = re.split(r"[.\[]", s.target, maxsplit=1)[0]
            if inside or _varies(s.value, varying) or _varies(s.target, varying):
                varying.add(name)
        elif isinstance(s, For):
            odd = _varies(s.first, varying) or _varies(s.last, varying)
            if odd:
                varying.add(s.name)
            _spread(s.body, varying, inside or odd)
        elif isinstance(s, If):
            _spread(s.body, varying, inside or _varies(s.condition, varying))


def _check(body: Body, statements: tuple[Statement, ...], varying: set[str], odd: str | None) -> None:
    for s in statements:
        if odd is not None and isinstance(s, Barrier):
            raise VerifyError(
                f"kernel {body.name}: a barrier stands where control flow varies between threads: {odd}",
                hint="put the barrier before or behind, or make the condition the same for the whole workgroup",
            )
        if odd is not None and any(names_in(e) & SHUFFLES for e in expressions(s)):
            raise VerifyError(
                f"kernel {body.name}: lanes are shuffled where control flow varies between threads: {odd}",
                hint="shuffle before or behind it",
            )
        if isinstance(s, For):
            what = f"for {s.name} from {s.first} to {s.last}"
            inner = what if _varies(s.first, varying) or _varies(s.last, varying) else odd
            _check(body, s.body, varying, inner)
        elif isinstance(s, If):
            inner = f"if {s.condition}" if _varies(s.condition, varying) else odd
            _check(body, s.body, varying, inner)
