"""The kernel language: what a kernel does, as statements of a few kinds; two shading languages are printed from it.

Expressions are text in what GLSL and WGSL have in common; what they spell differently has one name here, which the
printers define (`f32(x)`, `select(no, yes, condition)`, `load_f(at)`, `shuffle_xor(x, lanes)`). Names are made by the
code generator and never come from outside. Types: f32, i32, u32, bool, vec4f, vec4i.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TYPES = ("f32", "i32", "u32", "bool", "vec4f", "vec4i")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Behind a dot stands a component, and digits with a letter are a number.
_WORDS = re.compile(r"(?<![A-Za-z0-9_.])[A-Za-z_][A-Za-z0-9_]*")


def names_in(expression: str) -> frozenset[str]:
    """The names of an expression, functions among them."""
    return frozenset(_WORDS.findall(expression))


@dataclass(frozen=True)
class Let:
    """A name for a value."""

    name: str
    type: str
    value: str


@dataclass(frozen=True)
class Var:
    """A name for values that `Set` changes."""

    name: str
    type: str
    value: str


@dataclass(frozen=True)
class Array:
    """``count`` variables of a thread, not initialised, whose number may be computed."""

    name: str
    type: str
    count: int


@dataclass(frozen=True)
class Set:
    """``target``: a variable, a component of one, or an element of an array."""

    target: str
    value: str


@dataclass(frozen=True)
class For:
    """``name`` from ``first`` below ``last`` in steps; integers."""

    name: str
    first: str
    last: str
    step: int
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class If:
    condition: str
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Barrier:
    """All threads of the workgroup come here, and see what others wrote to shared memory; with ``storage``, and to the
    arena."""

    storage: bool = False


@dataclass(frozen=True)
class Write:
    """A word of the arena, or four next to each other (``vec4f``; ``at`` is a multiple of 4)."""

    type: str
    at: str
    value: str


@dataclass(frozen=True)
class Comment:
    text: str


Statement = Let | Var | Array | Set | For | If | Barrier | Write | Comment


@dataclass(frozen=True)
class Function:
    """A function of numbers; nothing in it depends on who calls it."""

    name: str
    params: tuple[tuple[str, str], ...]  # (type, name)
    type: str
    body: tuple[Statement, ...]
    result: str


@dataclass(frozen=True)
class Shared:
    """An array in memory of the workgroup."""

    name: str
    type: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * (16 if self.type.startswith("vec4") else 4)


@dataclass
class Body:
    """A kernel being written: statements go to the innermost open block."""

    name: str
    threads: int
    push: list[str] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    shared: list[Shared] = field(default_factory=list)
    features: set[str] = field(default_factory=set)
    blocks: list[list[Statement]] = field(default_factory=lambda: [[]])
    count: int = 0

    def fresh(self, hint: str) -> str:
        """A name that nothing else has."""
        self.count += 1
        clean = "".join(c if c.isascii() and c.isalnum() else "_" for c in hint).strip("_")
        while "__" in clean:  # GLSL keeps such names to itself
            clean = clean.replace("__", "_")
        if not clean or clean[0].isdigit():
            clean = f"v{clean}"
        return f"{clean}_{self.count}"

    def add(self, statement: Statement) -> None:
        self.blocks[-1].append(statement)

    def let(self, hint: str, type: str, value: str) -> str:
        """The value under a name; a name stays what it is."""
        if _NAME.fullmatch(value) or value.isdigit():
            return value
        name = self.fresh(hint)
        self.add(Let(name, type, value))
        return name

    def var(self, hint: str, type: str, value: str) -> str:
        name = self.fresh(hint)
        self.add(Var(name, type, value))
        return name

    def set(self, target: str, value: str) -> None:
        self.add(Set(target, value))

    def write(self, type: str, at: str, value: str) -> None:
        self.add(Write(type, at, value))

    def comment(self, text: str) -> None:
        self.add(Comment(text))

    def open(self) -> None:
        self.blocks.append([])

    def close_for(self, name: str, first: str, last: str, step: int) -> None:
        body = tuple(self.blocks.pop())
        self.add(For(name, first, last, step, body))

    def close_if(self, condition: str) -> None:
        body = tuple(self.blocks.pop())
        if any(not isinstance(s, Comment) for s in body):
            self.add(If(condition, body))

    def word(self, name: str) -> str:
        """A push word."""
        if name not in self.push:
            self.push.append(name)
        return f"p_{name}"

    @property
    def shared_bytes(self) -> int:
        return sum(s.nbytes for s in self.shared)

    @property
    def statements(self) -> tuple[Statement, ...]:
        return tuple(self.blocks[0])


def walk(statements: tuple[Statement, ...]) -> Iterator[Statement]:
    for s in statements:
        yield s
        if isinstance(s, (For, If)):
            yield from walk(s.body)


def expressions(s: Statement) -> tuple[str, ...]:
    """The expressions of a statement, not those of what stands in it."""
    if isinstance(s, (Let, Var)):
        return (s.value,)
    if isinstance(s, Set):
        return (s.target, s.value)
    if isinstance(s, For):
        return (s.first, s.last)
    if isinstance(s, If):
        return (s.condition,)
    if isinstance(s, Write):
        return (s.at, s.value)
    return ()
