"""Element-wise programs as straight-line code over registers: what a vector machine runs.

Words of the score language are spelled out in primitives (exp as exp2, acosh by its logarithm, clamps made
explicit), shared subexpressions are computed once, and registers are assigned so that values are overwritten
where they die. The memory planner counts the registers, the CPU backend prints the code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from aatc.ir.errors import ScoreError
from aatc.ir.score.expr import Expr, postorder
from aatc.ir.score.functions import FUNCTIONS

if TYPE_CHECKING:
    from aatc.ir.core import Op

LOG2E, LN2 = math.log2(math.e), math.log(2.0)
Shape = tuple[int, ...]

#: Primitives a backend must print; all are element-wise.
PRIMITIVES = frozenset(
    "add sub mul div neg abs sign sqrt rsqrt reciprocal exp2 log2 log log1p sin cos tanh sigmoid floor "  # noqa: SIM905
    "acos asin square maximum minimum clamp where lt le gt ge eq ne and or not pow pair_uniform copy".split()
)


@dataclass(frozen=True)
class Ref:
    """Where an argument lies: kind "in" (operand), "out" (result), "tmp" (temporary) or "const" (a number)."""

    kind: str
    value: int | float


@dataclass(frozen=True)
class Instr:
    """``dst = fn(args; attrs)``."""

    fn: str
    dst: Ref
    args: tuple[Ref, ...]
    attrs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Linear:
    """Instructions in order and the (dtype, shape) of each temporary."""

    code: tuple[Instr, ...]
    temps: tuple[tuple[str, Shape], ...]


@dataclass
class _Node:
    fn: str
    args: tuple[int, ...]
    attrs: tuple
    shape: Shape
    dtype: str


class _Graph:
    """Primitive nodes, shared by structure."""

    def __init__(self, operands: Sequence[tuple[str, Shape]], dtype: str, numeric: bool = False):
        self.nodes: list[_Node] = []
        self.index: dict[tuple, int] = {}
        self.dtype = dtype
        self.numeric = numeric  # truth values as the numbers 0 and 1: on a vector machine these are cheaper
        for n, (d, shape) in enumerate(operands):
            self._new("in", (), (n,), shape, d)

    def _new(self, fn: str, args: tuple[int, ...], attrs: tuple, shape: Shape, dtype: str) -> int:
        key = (fn, args, tuple(map(repr, attrs)))
        if key not in self.index:
            self.index[key] = len(self.nodes)
            self.nodes.append(_Node(fn, args, attrs, shape, dtype))
        return self.index[key]

    def const(self, value: float) -> int:
        return self._new("const", (), (float(value),), (1, 1, 1), self.dtype)

    def is_const(self, n: int) -> bool:
        return self.nodes[n].fn == "const"

    def value(self, n: int) -> float:
        return self.nodes[n].attrs[0]

    def __call__(self, fn: str, *args: int, attrs: tuple = ()) -> int:
        shape = tuple(max(dims) for dims in zip(*(self.nodes[a].shape for a in args), strict=True))
        logical = fn in ("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not")
        return self._new(fn, args, attrs, shape, "bool" if logical else self.dtype)

    # --- words in primitives -------------------------------------------------------------------------------
    def lower(self, e: Expr, args: list[int]) -> int:
        if self.numeric and FUNCTIONS[e.fn].result == "b":
            return self.truth(e.fn, *(self._number(a) for a in args))
        if e.fn == "where" and self.is_const(args[1]) and self.is_const(args[2]):
            return self.choose(e.args[0], *args)
        word = _WORDS.get(e.fn)
        if word is not None:
            return word(self, *args, *e.attrs)
        if e.fn not in PRIMITIVES:
            raise ScoreError(f"{e.fn} is not element-wise: it has no place in a tile")
        return self(e.fn, *args, attrs=e.attrs)

    def _number(self, x: int) -> int:
        node = self.nodes[x]
        return self._new("copy", (x,), (), node.shape, self.dtype) if node.dtype == "bool" else x

    def truth(self, fn: str, *x: int) -> int:
        """A comparison or connective as 0 or 1, by scaled differences: exact for integers and for numbers that do
        not differ by less than 1e-18."""
        if fn == "and":
            return self("mul", *x)
        if fn == "or":
            return self("maximum", *x)
        if fn == "not":
            return self("add", self("neg", *x), self.const(1.0))
        a, b = x if fn in ("gt", "ge", "eq", "ne") else x[::-1]
        difference = self.sub(a, b)
        if fn in ("eq", "ne"):
            apart = self("clamp", self.scale(self("abs", difference), 1e18), attrs=(0.0, 1.0))
            return apart if fn == "ne" else self("add", self("neg", apart), self.const(1.0))
        scaled = self.scale(difference, 1e18)
        return self("clamp", scaled if fn in ("lt", "gt") else self("add", scaled, self.const(1.0)), attrs=(0.0, 1.0))

    def choose(self, condition: Expr, c: int, x: int, y: int) -> int:
        """One of two constants, as y + c * (x - y) with c numeric when it is a plain comparison."""
        node = self.nodes[c]
        if node.fn not in ("lt", "le", "gt", "ge"):
            return self("where", c, x, y)
        chosen = self.truth(node.fn, *(self._number(a) for a in node.args))
        scaled = self.scale(chosen, self.value(x) - self.value(y))
        return scaled if self.value(y) == 0 else self("add", scaled, y)

    def scale(self, x: int, factor: float) -> int:
        if factor == 1:
            return x
        node = self.nodes[x]
        if node.fn == "mul" and self.is_const(node.args[1]):
            return self.scale(node.args[0], factor * self.value(node.args[1]))
        return self("mul", x, self.const(factor))

    def sub(self, x: int, y: int) -> int:
        if self.is_const(x):
            return self("add", self("neg", y), x)
        return self("sub", x, y)

    def commuted(self, fn: str, x: int, y: int) -> int:
        return self(fn, y, x) if self.is_const(x) else self(fn, x, y)

    def extreme(self, x: int, y: int, fn: str) -> int:
        if self.is_const(x):
            x, y = y, x
        if self.is_const(y):
            c = self.value(y)
            return self("clamp", x, attrs=(c, math.inf) if fn == "maximum" else (-math.inf, c))
        return self(fn, x, y)

    def root(self, x: int) -> int:
        """sqrt(x*x - 1), and 0 where that is negative by rounding: by the reciprocal root, which is cheaper."""
        y = self("clamp", self("add", self("mul", x, x), self.const(-1.0)), attrs=(1e-30, math.inf))
        return self("reciprocal", self("rsqrt", y))

    def expacosh(self, x: int) -> int:
        return self("clamp", self("reciprocal", self("add", x, self.root(x))), attrs=(-math.inf, 1.0))

    def acosh(self, x: int) -> int:
        return self("clamp", self("log", self("add", x, self.root(x))), attrs=(0.0, math.inf))

    def asinsqrt(self, x: int) -> int:
        # the root as the reciprocal of the reciprocal root, which is cheaper; 1e-15 stands for the root of 0
        inside = self("clamp", x, attrs=(1e-30, 1.0))
        return self("asin", self("clamp", self("reciprocal", self("rsqrt", inside)), attrs=(-1.0, 1.0)))

    def step(self, x: int) -> int:
        # no comparison: truth values are slow to make and to use. Differences of floats near 1 are never
        # between 0 and 1e-18, so this is 0 or 1 where it matters
        return self("clamp", self.scale(x, 1e18), attrs=(0.0, 1.0))

    def softplus(self, x: int) -> int:
        tail = self("log1p", self("exp2", self.scale(self("abs", x), -LOG2E)))
        return self("add", self("clamp", x, attrs=(0.0, math.inf)), tail)

    def div(self, x: int, y: int) -> int:
        if self.is_const(x):
            return self.scale(self("reciprocal", y), self.value(x))
        return self("div", x, y)


_WORDS: dict[str, Callable[..., int]] = {
    "add": lambda g, x, y: g.commuted("add", x, y),
    "mul": lambda g, x, y: g.commuted("mul", x, y),
    "sub": lambda g, x, y: g.sub(x, y),
    "div": lambda g, x, y: g.div(x, y),
    "exp": lambda g, x: g("exp2", g.scale(x, LOG2E)),
    "sqrt": lambda g, x: g("sqrt", g("clamp", x, attrs=(0.0, math.inf))),
    "square": lambda g, x: g("mul", x, x),
    "step": lambda g, x: g.step(x),
    "relu": lambda g, x: g("clamp", x, attrs=(0.0, math.inf)),
    "acosh": lambda g, x: g.acosh(x),
    "expacosh": lambda g, x: g.expacosh(x),
    "asinsqrt": lambda g, x: g.asinsqrt(x),
    "acos": lambda g, x: g("acos", g("clamp", x, attrs=(-1.0, 1.0))),
    "softplus": lambda g, x: g.softplus(x),
    "maximum": lambda g, x, y: g.extreme(x, y, "maximum"),
    "minimum": lambda g, x, y: g.extreme(x, y, "minimum"),
}


def _build(programs, operands, dtype, numeric: bool) -> tuple[_Graph, list[int]]:
    g = _Graph(operands, dtype, numeric)
    done: dict[Expr, int] = {}
    roots = []
    for program in programs:
        done.update({p: n for n, p in enumerate(program.params)})
        for e in postorder(program.body):
            if e in done:
                continue
            if e.is_const:
                done[e] = g.const(e.value)
            else:
                done[e] = g.lower(e, [done[a] for a in e.args])
        roots.append(done[program.body])
    return g, roots


class _Allocator:
    """Linear scan over the nodes in order."""

    def __init__(self, g: _Graph, roots: list[int], results: Sequence[tuple[str, Shape]]):
        self.g, self.results = g, list(results)
        self.order = [n for n in _reachable(g, roots) if g.nodes[n].fn not in ("in", "const")]
        self.defined = {n: at for at, n in enumerate(self.order)}
        self.last: dict[int, int] = {}
        for at, n in enumerate(self.order):
            for a in g.nodes[n].args:
                self.last[a] = at
        self.root_of: dict[int, int] = {}
        self.copies: list[tuple[int, int]] = []
        for k, r in enumerate(roots):
            same = (g.nodes[r].dtype, g.nodes[r].shape) == self.results[k]
            if r in self.root_of or r not in self.defined or not same:
                self.copies.append((k, r))
                self.last[r] = len(self.order)
            else:
                self.root_of[r] = k
                self.last[r] = len(self.order)
        self.temps: list[tuple[str, Shape]] = []
        self.free: list[Ref] = [Ref("out", k) for k in range(len(results))]
        self.place: dict[int, Ref] = {}

    def kind(self, r: Ref) -> tuple[str, Shape]:
        return self.results[int(r.value)] if r.kind == "out" else self.temps[int(r.value)]

    def may_hold(self, r: Ref, n: int) -> bool:
        """A result may hold another value first, if that one is dead when the result is made."""
        if self.kind(r) != (self.g.nodes[n].dtype, self.g.nodes[n].shape):
            return False
        if r.kind != "out":
            return True
        root = next((m for m, k in self.root_of.items() if k == r.value), None)
        made = len(self.order) if root is None else self.defined[root]
        return self.last.get(n, -1) <= made and n not in self.root_of

    def run(self) -> Linear:
        code = []
        for at, n in enumerate(self.order):
            node = self.g.nodes[n]
            args = tuple(self.ref(a) for a in node.args)
            dying = [self.place[a] for a in set(node.args) if a in self.place and self.last[a] == at]
            self.free += dying
            dst = self._choose(n)
            self.free = [r for r in self.free if r != dst]
            self.place[n] = dst
            code.append(Instr(node.fn, dst, args, tuple(node.attrs)))
        code += [Instr("copy", Ref("out", k), (self.ref(r),)) for k, r in self.copies]
        return Linear(tuple(code), tuple(self.temps))

    def ref(self, n: int) -> Ref:
        node = self.g.nodes[n]
        if node.fn in ("in", "const"):
            return Ref(node.fn, node.attrs[0])
        return self.place[n]

    def _choose(self, n: int) -> Ref:
        if n in self.root_of:
            return Ref("out", self.root_of[n])
        for r in reversed(self.free):
            if self.may_hold(r, n):
                return r
        self.temps.append((self.g.nodes[n].dtype, self.g.nodes[n].shape))
        return Ref("tmp", len(self.temps) - 1)


def _reachable(g: _Graph, roots: list[int]) -> list[int]:
    seen: set[int] = set()
    order: list[int] = []
    stack = [(r, False) for r in reversed(roots)]
    while stack:
        n, done = stack.pop()
        if done:
            order.append(n)
        elif n not in seen:
            seen.add(n)
            stack.append((n, True))
            stack.extend((a, False) for a in reversed(g.nodes[n].args))
    return order


@lru_cache(maxsize=4096)
def _linearize(programs, operands, results, dtype, numeric=False) -> Linear:
    g, roots = _build(programs, operands, dtype, numeric)
    return _Allocator(g, roots, results).run()


def linearize(op: Op) -> Linear:
    """The code of a `tile.map`, or of the predicate of a `tile.mask`, whose one result is a tile of 0 and 1."""

    def kind(v) -> tuple[str, Shape]:
        return v.type.dtype, tuple(int(d) for d in v.type.shape)

    if op.name == "tile.mask":
        operands = tuple(kind(v) for v in op.operands[2:])
        keep = _mask_kind(op)
        return _linearize((op.attrs["mask"],), operands, (keep,), keep[0], True)
    operands = tuple(kind(v) for v in op.operands)
    results = tuple(kind(r) for r in op.results)
    return _linearize(op.attrs["programs"], operands, results, results[0][0])


def _mask_kind(op: Op) -> tuple[str, Shape]:
    """dtype and shape of a mask's 0 and 1: those of the tile, broadcast where no operand varies."""
    shapes = [tuple(int(d) for d in v.type.shape) for v in op.operands[2:]]  # type: ignore[attr-defined]
    return op.operands[0].type.dtype, tuple(max(d) for d in zip((1, 1, 1), *shapes, strict=True))  # type: ignore[attr-defined]


def overwritable(code: Linear, k: int) -> set[int]:
    """Operands that result ``k`` may share a place with: none is read after the place is first written, other
    than by the instruction that writes it, and no other result is still being made there."""
    first = next((at for at, x in enumerate(code.code) if x.dst == Ref("out", k)), None)
    if first is None:
        return set()
    every = {int(a.value) for x in code.code for a in x.args if a.kind == "in"}
    later = {int(a.value) for x in code.code[first + 1 :] for a in x.args if a.kind == "in"}
    return every - later


def temporaries(op: Op) -> list[tuple[str, Shape]]:
    """(dtype, shape) of the scratch an element-wise operation needs; a mask needs its 0 and 1 too."""
    code = linearize(op)
    temps = list(code.temps)
    if op.name == "tile.mask":
        temps.append(_mask_kind(op))
    return temps
