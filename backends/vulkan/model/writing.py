"""What kernels of whole models have in common: reading views, evaluating nodes, becoming a dispatch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aatc.backends.vulkan import printers
from aatc.backends.vulkan.kernels import Dispatch, Extent, Kernel, Offset, Rounds
from aatc.backends.vulkan.language import Body
from aatc.backends.vulkan.model.nodes import TYPE, Node, nodes_of
from aatc.backends.vulkan.model.pointwise import WORDS
from aatc.backends.vulkan.model.views import View
from aatc.backends.vulkan.uniform import check_uniform
from aatc.backends.vulkan.words import convert
from aatc.backends.vulkan.words import number as number_text
from aatc.ir.dims import Dim

#: Push words of a dispatch; more lie in the arena.
MOST_WORDS = 32


@dataclass
class Writer:
    """A kernel of ``threads`` per workgroup, its push words, and the buffers it touches."""

    name: str
    threads: int
    body: Body = field(init=False)
    push: dict[str, Extent | float | Offset] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    words: dict[tuple[str, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.body = Body(self.name, self.threads)

    # --- push words ----------------------------------------------------------------------------------------
    def size(self, name: str, value: int) -> str:
        """A push word that is a number of this dispatch."""
        self.push[name] = Extent((Dim.of(value),))
        return self.body.word(name)

    def base(self, view: View, *, write: bool = False) -> str:
        """Where a view begins in the arena."""
        names = self.writes if write else self.reads
        if view.buffer not in names:
            names.append(view.buffer)
        key = view.buffer, view.offset
        if key not in self.words:
            name = f"o{len(self.words)}"
            self.push[name] = Offset(view.buffer)
            text = self.body.word(name)
            if view.offset:
                text = f"({text} + {self.size(f'{name}s', view.offset)})"
            self.words[key] = text
        return self.words[key]

    # --- elements ------------------------------------------------------------------------------------------
    def at(self, view: View, strides: Sequence[str | int], coordinates: Sequence[str]) -> str:
        """The place of an element; strides of 0 need no coordinate."""
        parts = [self.base(view)]
        for s, c in zip(strides, coordinates, strict=True):
            if s != 0:
                parts.append(c if s == 1 else f"{c} * {s}")
        return " + ".join(parts)

    def loaded(self, view: View, at: str) -> str:
        """A name for the element at a place."""
        kind = view.kind
        text = f"load_f({at})" if kind == "f" else f"load_i({at})"
        return self.body.let("x", TYPE[kind], f"({text} != 0)" if kind == "b" else text)

    def evaluate(self, roots: Sequence[Node], loads: Mapping[View, str], names: Mapping[str, str] = {}) -> list[str]:
        """Texts of nodes, given those of views and of what is held."""
        done: dict[Node, str] = {}
        for n in nodes_of(*roots):
            if n.op == "load":
                done[n] = loads[n.data]
            elif n.op == "number":
                done[n] = number_text(n.data, n.kind)
            elif n.op == "held":
                done[n] = names[n.data]
            else:
                done[n] = self.body.let(n.op, TYPE[n.kind], _word(n, done))
        return [done[r] for r in roots]

    def store(self, view: View, at: str, text: str, kind: str) -> None:
        """Writes a value of ``kind`` as the view's kind."""
        value = convert(text, kind, view.kind)
        if view.kind == "b":
            value = f"select(0, 1, {value})"
        self.body.write("f32" if view.kind == "f" else "i32", at, value)

    # --- dispatches ----------------------------------------------------------------------------------------
    def dispatch(self, grid: Sequence[int], trips: Sequence[int] = ()) -> Dispatch:
        check_uniform(self.body)
        b = self.body
        kernel = Kernel(
            self.name, printers.glsl(b), printers.wgsl(b), tuple(b.push), (self.threads, 1, 1), b.shared_bytes,
            frozenset(b.features), len(b.push) > MOST_WORDS,
        )  # fmt: skip
        three = [*grid, 1, 1][:3]
        rounds = [Rounds((Dim.of(n),)) for n in three]
        return Dispatch(
            kernel, (rounds[0], rounds[1], rounds[2]), self.push, tuple(self.reads), tuple(self.writes),
            tuple(Rounds((Dim.of(n),)) for n in trips),
        )  # fmt: skip


def _word(n: Node, done: Mapping[Node, str]) -> str:
    text, wanted, _ = WORDS[n.op]
    kinds = [a.kind for a in n.args]
    if n.op == "where":
        chosen = [convert(done[a], a.kind, n.kind) for a in n.args[1:]]
        return text.format(convert(done[n.args[0]], kinds[0], "b"), *chosen)
    if wanted == "=":
        wanted = "f" if "f" in kinds else "i"
        if wanted == "f":
            x, y = (convert(done[a], a.kind, "f") for a in n.args)
            compared = text.format(x, y)
            if n.op == "ne":
                return f"({compared} || w_isnan({x}) || w_isnan({y}))"
            return f"({compared} && !w_isnan({x}) && !w_isnan({y}))"
    if n.op == "as_b" and kinds[0] == "f":
        return f"({done[n.args[0]]} != 0.0 || w_isnan({done[n.args[0]]}))"
    return text.format(*(convert(done[a], a.kind, wanted) for a in n.args))


#: Workgroups along one axis, at most: all devices take so many.
MOST_GROUPS = 65_535


def spread(count: int, each: int) -> tuple[int, int]:
    """Workgroups along x and y for ``count`` threads, ``each`` a workgroup."""
    groups = -(-count // each)
    y = -(-groups // MOST_GROUPS)
    return -(-groups // y) if y else 0, max(y, 1)


def merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """``shape`` with axes of one entry left out and neighbours joined that every operand steps through alike."""
    kept: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis, n in enumerate(shape):
        if n == 1:
            continue
        here = [s[axis] for s in strides]
        if kept and all(s[-1] == h * n for s, h in zip(steps, here, strict=True)):
            kept[-1] *= n
            for s, h in zip(steps, here, strict=True):
                s[-1] = h
        else:
            kept.append(n)
            for s, h in zip(steps, here, strict=True):
                s.append(h)
    return kept, steps


def total(shape: Sequence[int]) -> int:
    return math.prod(shape)
