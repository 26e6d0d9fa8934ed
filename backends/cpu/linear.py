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
from typing import TYPE_CHECKING, Any

import numpy as np

from aatc.ir.errors import ScoreError
from aatc.ir.score.expr import Expr, postorder
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.types import itemsize

if TYPE_CHECKING:
    from aatc.ir.core import Op, Value
    from aatc.ir.score.program import Program

LOG2E, LN2 = math.log2(math.e), math.log(2.0)
Shape = tuple[int, ...]
Kinds = tuple[tuple[str, Shape], ...]
Programs = tuple["Program", ...]

COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}

#: Primitives a backend must print; all are element-wise.
PRIMITIVES = frozenset(
    "add sub mul div neg abs sign sqrt rsqrt reciprocal exp2 log2 log log1p sin cos tanh sigmoid floor "  # noqa: SIM905
    "acos asin square floordiv remainder power maximum minimum clamp where lt le gt ge eq ne and or not pow "
    "pair_uniform copy".split()
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
    attrs: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Linear:
    """Instructions in order and the (dtype, shape) of each temporary."""

    code: tuple[Instr, ...]
    temps: tuple[tuple[str, Shape], ...]


@dataclass
class _Node:
    fn: str
    args: tuple[int, ...]
    attrs: tuple[Any, ...]
    shape: Shape
    dtype: str


def _constant(fn: str, values: list[Any], attrs: tuple[Any, ...]) -> Any:
    """A word or primitive of constants, in float64."""
    import torch

    if fn == "copy":
        return values[0]
    if fn == "clamp":
        return min(max(values[0], attrs[0]), attrs[1])
    if fn == "asin":
        return math.asin(values[0])
    kinds = {bool: torch.bool, int: torch.int64}
    tensors = [torch.tensor(v, dtype=kinds.get(type(v), torch.float64)) for v in values]
    return FUNCTIONS[fn].evaluate(*tensors, *attrs).item()  # type: ignore[misc]


def _broadcast(*shapes: Shape) -> Shape:
    """Extents of 1 give way to others, 0 included."""
    return tuple(next((d for d in dims if d != 1), 1) for dims in zip(*shapes, strict=True))


class _Graph:
    """Primitive nodes, shared by structure. Numbers are of ``dtype``, integers i64, truth values bool."""

    def __init__(self, operands: Sequence[tuple[str, Shape]], dtype: str):
        self.nodes: list[_Node] = []
        self.index: dict[tuple[Any, ...], int] = {}
        self.dtype = dtype
        for n, (d, shape) in enumerate(operands):
            self._new("in", (), (n,), shape, d)

    def _new(self, fn: str, args: tuple[int, ...], attrs: tuple[Any, ...], shape: Shape, dtype: str) -> int:
        key = (fn, args, tuple(map(repr, attrs)), dtype)
        if key not in self.index:
            self.index[key] = len(self.nodes)
            self.nodes.append(_Node(fn, args, attrs, shape, dtype))
        return self.index[key]

    def const(self, value: float | int | bool) -> int:
        kind = {bool: "bool", int: "i64"}.get(type(value), self.dtype)
        return self._new("const", (), (value,), (1, 1, 1), kind)

    def is_const(self, n: int) -> bool:
        return self.nodes[n].fn == "const"

    def value(self, n: int) -> float:
        value: float = self.nodes[n].attrs[0]
        return value

    def __call__(self, fn: str, *args: int, attrs: tuple[Any, ...] = (), dtype: str | None = None) -> int:
        dtype = dtype or self.dtype
        if all(map(self.is_const, args)):
            value = _constant(fn, [self.value(a) for a in args], attrs)
            return self.const(value if dtype in ("bool", "i64") else float(value))
        shape = self.shape(args)
        return self._new(fn, args, attrs, shape, dtype)

    def shape(self, args: Sequence[int]) -> Shape:
        return _broadcast(*(self.nodes[a].shape for a in args))

    # --- words in primitives -------------------------------------------------------------------------------
    def lower(self, e: Expr, args: list[int]) -> int:
        if e.args and all(map(self.is_const, args)) and FUNCTIONS[e.fn].kind == "pointwise" and e.fn != "where":
            values = [self.value(a) for a in args]
            return self.const(_constant(e.fn, [float(v) for v in values] if e.dtype == "f" else values, e.attrs))
        if e.fn in COMPARISONS:
            return self.compare(e.fn, args[0], args[1])
        if e.fn in ("and", "or", "not"):
            return self.join(e.fn, *args)
        if e.fn == "where":
            return self.where(e.dtype, *args)
        if e.dtype == "i" and all(self.nodes[a].dtype == "i64" for a in args):
            return self.integer(e, args)
        if e.fn == "pair_uniform":
            return self(e.fn, *args)
        args = [self.number(a) for a in args]
        word = _WORDS.get(e.fn)
        if word is not None:
            return word(self, *args, *e.attrs)
        if e.fn not in PRIMITIVES:
            raise ScoreError(f"{e.fn} is not element-wise: it has no place in a tile")
        return self(e.fn, *args, attrs=e.attrs)

    def number(self, n: int) -> int:
        """``n`` as a number of the graph's dtype."""
        if self.is_const(n):
            return self.const(float(self.value(n)))
        node = self.nodes[n]
        return n if node.dtype == self.dtype else self._new("copy", (n,), (), node.shape, self.dtype)

    def integer(self, e: Expr, args: list[int]) -> int:
        """Integer arithmetic stays exact: i64 throughout."""
        if e.fn == "floor":
            return args[0]
        if e.fn == "square":
            return self("mul", *args, *args, dtype="i64")
        if e.fn in ("floordiv", "remainder"):
            if self.is_const(args[1]) and self.value(args[1]):
                return self(e.fn, *args, attrs=("i64",), dtype="i64")
            x, y = map(self.number, args)  # by 0 there is no integer
            return self(e.fn, x, y, attrs=(self.dtype,))
        if e.fn not in ("add", "sub", "mul", "neg", "abs", "sign", "maximum", "minimum"):
            raise ScoreError(f"{e.fn} is not element-wise: it has no place in a tile")
        if not self.is_const(args[0]) and (
            len(args) == 1 or not self.is_const(args[1]) or e.fn in ("add", "sub", "mul")
        ):
            return self(e.fn, *args, dtype="i64")
        if e.fn == "sub":
            return self("add", self("neg", args[1], dtype="i64"), args[0], dtype="i64")
        x, y = args if self.is_const(args[1]) else args[::-1]
        if e.fn in ("add", "mul"):
            return self(e.fn, x, y, dtype="i64")
        c = self.value(y)
        return self("clamp", x, attrs=(c, math.inf) if e.fn == "maximum" else (-math.inf, c), dtype="i64")

    def compare(self, fn: str, x: int, y: int, dtype: str = "bool") -> int:
        """A comparison, exact: of integers as integers. Into numbers 0 and 1 it costs no more than a difference."""
        if {self.nodes[x].dtype, self.nodes[y].dtype} - {"i64", "bool"}:
            x, y = self.number(x), self.number(y)
        if self.is_const(x):
            fn, x, y = _MIRRORED[fn], y, x
        return self(fn, x, y, dtype=dtype)

    def join(self, fn: str, *x: int) -> int:
        known = [self.value(a) for a in x if self.is_const(a)]
        if fn == "not" or not known:
            return self(fn, *x, dtype="bool")
        other = x[1] if self.is_const(x[0]) else x[0]
        return other if bool(known[0]) == (fn == "and") else self.const(fn == "or")

    def where(self, kind: str, c: int, x: int, y: int) -> int:
        if self.is_const(c):
            chosen = x if self.value(c) else y
            return self.number(chosen) if kind == "f" else chosen
        dtype = {"f": self.dtype, "i": "i64", "b": "bool"}[kind]
        if kind == "f":
            x, y = self.number(x), self.number(y)
            if self.is_const(x) and self.is_const(y) and self.nodes[c].fn in COMPARISONS:
                found = self.choose(c, self.value(x), self.value(y))
                if found is not None:
                    return found
        shape = self.shape((c, x, y))
        return self._new("where", (c, x, y), (dtype,), shape, dtype)

    def choose(self, c: int, x: float, y: float) -> int | None:
        """One of two constants by a comparison into 0 and 1, as y + c * (x - y) where that is exact: selecting costs
        ten times as much as arithmetic."""
        node = self.nodes[c]
        if {self.nodes[a].dtype for a in node.args} != {self.dtype} or not math.isfinite(x - y):
            return None
        kind = np.float32 if self.dtype == "f32" else np.float64
        difference = kind(x) - kind(y)
        if kind(y) + difference != kind(x):
            return None
        numeric = self.compare(node.fn, node.args[0], node.args[1], dtype=self.dtype)
        scaled = self.scale(numeric, float(difference))
        return scaled if y == 0 else self("add", scaled, self.const(y))

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

    def beyond_one(self, x: int) -> tuple[int, int]:
        """(x, sqrt(x*x - 1)) of x at least 1: by the reciprocal root, which is cheaper, and whose infinity at 0 goes
        back to 0. Where the square is too large a number, x itself."""
        x = self("clamp", x, attrs=(1.0, math.inf))
        if self.dtype == "f64":  # near 1 the square rounds away half of what is left: digits that doubles are taken for
            square = self("mul", self("add", x, self.const(-1.0)), self("add", x, self.const(1.0)))
        else:
            square = self("add", self("mul", x, x), self.const(-1.0))
        root = self("reciprocal", self("rsqrt", square))
        return x, self("minimum", root, x)

    def expacosh(self, x: int) -> int:
        return self("reciprocal", self("add", *self.beyond_one(x)))

    def acosh(self, x: int) -> int:
        x, root = self.beyond_one(x)
        if self.dtype == "f64":
            return self("log1p", self("add", self("add", x, self.const(-1.0)), root))
        return self("log", self("add", x, root))

    def asinsqrt(self, x: int) -> int:
        # the root as the reciprocal of the reciprocal root, which is cheaper, and whose infinity at 0 goes back to 0
        inside = self("clamp", x, attrs=(0.0, 1.0))
        return self("asin", self("clamp", self("reciprocal", self("rsqrt", inside)), attrs=(-1.0, 1.0)))

    def step(self, x: int) -> int:
        return self.compare("gt", x, self.const(0.0), dtype=self.dtype)

    def softplus(self, x: int) -> int:
        tail = self("log1p", self("exp2", self.scale(self("abs", x), -LOG2E)))
        return self("add", self("clamp", x, attrs=(0.0, math.inf)), tail)

    def div(self, x: int, y: int) -> int:
        if self.is_const(x):
            return self.scale(self("reciprocal", y), self.value(x))
        return self("div", x, y)


_WORDS: dict[str, Callable[..., int]] = {
    "floordiv": lambda g, x, y: g("floordiv", x, y, attrs=(g.dtype,)),
    "remainder": lambda g, x, y: g("remainder", x, y, attrs=(g.dtype,)),
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


def _build(programs: Programs, operands: Kinds, dtype: str) -> tuple[_Graph, list[int]]:
    g = _Graph(operands, dtype)
    done: dict[Expr, int] = {}
    roots = []
    for program in programs:
        done.update({p: n for n, p in enumerate(program.params)})
        _enter(g, program.body, done)
        roots.append(done[program.body])
    return g, roots


def _enter(g: _Graph, body: Expr, done: dict[Expr, int]) -> None:
    for e in postorder(body):
        if e in done:
            continue
        spelled = FUNCTIONS[e.fn].spelled if e.args else None
        if e.is_const:
            done[e] = g.const(e.value)
        elif spelled is not None:  # a word that torch code has no primitive for
            other = spelled(*e.args)
            _enter(g, other, done)
            done[e] = done[other]
        else:
            done[e] = g.lower(e, [done[a] for a in e.args])


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
def _linearize(programs: Programs, operands: Kinds, results: Kinds, dtype: str) -> Linear:
    g, roots = _build(programs, operands, dtype)
    return _Allocator(g, roots, results).run()


def linearize(op: Op) -> Linear:
    """The code of a `tile.map`, or of the predicate of a `tile.mask`, whose one result is a tile of truth values:
    its numbers are f64, so that positions and captured numbers are compared as they are."""

    def kind(v: Value) -> tuple[str, Shape]:
        return v.type.dtype, tuple(int(d) for d in v.type.shape)  # type: ignore[attr-defined]

    if op.name == "tile.mask":
        operands = tuple(kind(v) for v in op.operands[2:])
        return _linearize((op.attrs["mask"],), operands, (("bool", _mask_shape(op)),), "f64")
    operands = tuple(kind(v) for v in op.operands)
    results = tuple(kind(r) for r in op.results)
    return _linearize(op.attrs["programs"], operands, results, results[0][0])


def _mask_shape(op: Op) -> Shape:
    """Extents of a mask's truth values: broadcast where no operand varies."""
    shapes = [tuple(int(d) for d in v.type.shape) for v in op.operands[2:]]  # type: ignore[attr-defined]
    return _broadcast((1, 1, 1), *shapes)


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
    """(dtype, shape) of the scratch an element-wise operation needs; a mask needs its truth values, and them as
    integers of the tile's width too."""
    code = linearize(op)
    temps = list(code.temps)
    if op.name == "tile.mask":
        wide = {4: "i32", 8: "i64"}[itemsize(op.operands[0].type.dtype)]  # type: ignore[attr-defined]
        temps += [("bool", _mask_shape(op)), (wide, _mask_shape(op))]
    return temps
