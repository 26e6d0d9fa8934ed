"""Expressions of the score language: typed, immutable, hash-consed.

An expression is a number (or a truth value, or a feature vector) for one batch b, head h, query i and
key j. ``axes`` says on which of b, h, i, j it depends; ``rank`` is 0 for a number, 1 for a vector over the
feature axis, 2 for a matrix. A query's expression has axes "bhi", a contraction "bhij".
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aatc.ir.dims import NAME
from aatc.ir.errors import ScoreError
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.inference import INDEX_AXES as INDEX_AXES
from aatc.ir.score.inference import infer
from aatc.ir.score.text import expr_text
from aatc.ir.score.walk import params as params
from aatc.ir.score.walk import postorder as postorder

_RESERVED = frozenset({"b", "h", "i", "j", "inf", "nan", "let", "in", "true", "false"})


def is_reserved(name: str) -> bool:
    """Whether ``name`` is a word of the language, which nothing else may be called."""
    return name in _RESERVED or name in FUNCTIONS


#: Every expression that is alive, by structure; one that nobody holds is forgotten.
_interned: weakref.WeakValueDictionary[tuple[Any, ...], Expr] = weakref.WeakValueDictionary()
_interning = threading.Lock()


class Expr:
    """One node. Build with the operators, `call`, `param`, `const`, `index`; equal nodes are identical."""

    __slots__ = ("__weakref__", "args", "attrs", "axes", "dtype", "fn", "rank")
    fn: str
    args: tuple[Expr, ...]
    attrs: tuple[Any, ...]
    axes: frozenset[str]
    rank: int
    dtype: str  # "f" number, "i" integer, "b" truth value

    def __new__(cls, fn: str, args: tuple[Expr, ...] = (), attrs: tuple[Any, ...] = ()) -> Expr:
        # repr keeps -0.0, 0.0 and 0 apart and makes nan equal to itself
        key = (fn, args, tuple(map(repr, attrs)))
        found = _interned.get(key)
        if found is not None:
            return found
        self = object.__new__(cls)
        self.fn, self.args, self.attrs = fn, args, attrs
        self.axes = frozenset().union(*(a.axes for a in args)) if args else frozenset()
        self.rank, self.dtype = infer(self)
        if fn == "param":
            self.axes = frozenset(attrs[1]) & frozenset(INDEX_AXES)
        elif fn == "index":
            self.axes = frozenset(attrs)
        elif fn == "centre":
            self.axes -= frozenset("ij")
        elif fn == "row_key":
            self.axes |= frozenset("bhi")
        elif fn == "column_key":
            self.axes = frozenset("j")
        elif fn == "width":
            self.axes = frozenset()
        with _interning:  # of two threads that make one node, the second takes that of the first
            return _interned.setdefault(key, self)

    def __reduce__(self) -> Any:
        return Expr, (self.fn, self.args, self.attrs)

    def __copy__(self) -> Expr:
        return self

    def __deepcopy__(self, memo: Any) -> Expr:
        return self

    # --- kinds -------------------------------------------------------------------------------------------
    @property
    def is_const(self) -> bool:
        return self.fn == "const"

    @property
    def value(self) -> float | int | bool:
        number: float | int | bool = self.attrs[0]
        return number

    @property
    def name(self) -> str:
        name: str = self.attrs[0]
        return name

    @property
    def is_pair(self) -> bool:
        return {"i", "j"} <= self.axes

    def __repr__(self) -> str:
        return expr_text(self)

    # --- Python operators, so that our own metrics are written as formulas; == stays identity --------------
    def __add__(self, o: Any) -> Expr:
        return add(self, as_expr(o))

    def __radd__(self, o: Any) -> Expr:
        return add(as_expr(o), self)

    def __sub__(self, o: Any) -> Expr:
        return sub(self, as_expr(o))

    def __rsub__(self, o: Any) -> Expr:
        return sub(as_expr(o), self)

    def __mul__(self, o: Any) -> Expr:
        return mul(self, as_expr(o))

    def __rmul__(self, o: Any) -> Expr:
        return mul(as_expr(o), self)

    def __truediv__(self, o: Any) -> Expr:
        return div(self, as_expr(o))

    def __rtruediv__(self, o: Any) -> Expr:
        return div(as_expr(o), self)

    def __matmul__(self, o: Any) -> Expr:
        return call("matvec" if self.rank == 2 else "dot", self, as_expr(o))

    def __neg__(self) -> Expr:
        return neg(self)

    def __abs__(self) -> Expr:
        return call("abs", self)

    def __pow__(self, p: Any) -> Expr:
        return power(self, p)

    def __lt__(self, o: Any) -> Expr:
        return call("lt", self, as_expr(o))

    def __le__(self, o: Any) -> Expr:
        return call("le", self, as_expr(o))

    def __gt__(self, o: Any) -> Expr:
        return call("gt", self, as_expr(o))

    def __ge__(self, o: Any) -> Expr:
        return call("ge", self, as_expr(o))

    def __and__(self, o: Any) -> Expr:
        return call("and", self, as_expr(o))

    def __or__(self, o: Any) -> Expr:
        return call("or", self, as_expr(o))

    def __invert__(self) -> Expr:
        return call("not", self)

    def __bool__(self) -> bool:
        raise ScoreError("a score expression has no truth value: compare with `is`, or build a comparison by call")

    def __iter__(self) -> Iterator[Expr]:
        raise ScoreError("a feature vector cannot be iterated: write the formula over whole vectors")

    def sum(self) -> Expr:
        return call("sum", self)

    def dot(self, other: Expr) -> Expr:
        return call("dot", self, as_expr(other))

    def sqrt(self) -> Expr:
        return call("sqrt", self)

    def acosh(self) -> Expr:
        return call("acosh", self)

    def acos(self) -> Expr:
        return call("acos", self)


# --- constructors ------------------------------------------------------------------------------------------
def const(value: float | int | bool) -> Expr:
    if type(value) not in (bool, int, float):  # numpy's numbers are subclasses with another repr
        value = float(value) if isinstance(value, float) else int(value)
    return Expr("const", (), (value,))


ZERO, ONE = const(0.0), const(1.0)


def index(axis: str) -> Expr:
    """The position along b, h, i or j."""
    if len(axis) != 1 or axis not in INDEX_AXES:
        raise ScoreError(f"{axis!r} is not an index; there are b, h, i and j")
    return Expr("index", (), (axis,))


def param(name: str, axes: str, dtype: str = "f") -> Expr:
    """A tensor handed in: ``axes`` names its dimensions in order, from b h i j and feature axes d, e or
    table axes t, u. ``param("q", "bhid")`` is the query vector, ``param("beta", "h")`` a number per head."""
    lead = axes.rstrip("detu")
    tail = axes[len(lead) :]
    if not NAME.match(name) or is_reserved(name):
        raise ScoreError(
            f"{name!r} cannot name a parameter", hint="use letters, digits and _, and no word of the language"
        )
    if (
        [c for c in INDEX_AXES if c in lead] != list(lead)
        or tail not in ("", "d", "de", "t", "tu")
        or dtype not in "fib"
    ):
        raise ScoreError(f"axes {axes!r} of {name}: b, h, i, j in this order, each at most once, then d, de, t or tu")
    return Expr("param", (), (name, axes, dtype))


def free_name(name: str) -> str:
    """A name for a parameter that is called ``name`` elsewhere, which may be a word of the language."""
    return f"{name}_" if is_reserved(name) else name


def call(fn: str, *args: Expr, attrs: tuple[Any, ...] = ()) -> Expr:
    """A node without any rewriting; ScoreError when the word is unknown or ill-typed."""
    f = FUNCTIONS.get(fn)
    if f is None:
        raise ScoreError(f"unknown word {fn!r}", hint=f"words: {', '.join(sorted(FUNCTIONS))}")
    if len(args) != f.arity and not (fn == "lookup" and len(args) == 3):
        raise ScoreError(f"{fn} takes {f.arity} arguments, got {len(args)}")
    if len(attrs) != len(f.attributes) or not all(isinstance(a, t) for a, t in zip(attrs, f.attributes, strict=True)):
        raise ScoreError(f"{fn} takes constants {[t.__name__ for t in f.attributes]} in brackets, got {list(attrs)}")
    if fn in ("rotate", "rotate_angle") and attrs[0] not in ("half", "pairs"):
        raise ScoreError(f"{fn} has styles half and pairs, not {attrs[0]!r}")
    if (
        any(a.dtype == "b" for a in args)
        and f.kind == "pointwise"
        and fn not in ("and", "or", "not", "where", "eq", "ne")
    ):
        raise ScoreError(f"{fn} needs numbers, not truth values", hint="torch.where(c, 1.0, 0.0) makes a number")
    return Expr(fn, args, attrs)


def as_expr(value: Any) -> Expr:
    if isinstance(value, Expr):
        return value
    if isinstance(value, (bool, int, float)):
        return const(value)
    raise ScoreError(f"a {type(value).__name__} cannot stand in a score")


def _fold(fn: str, *args: Expr) -> Expr | None:
    if not all(a.is_const for a in args):
        return None
    x = [a.value for a in args]
    if fn == "div" and x[1] == 0:
        return None
    folds: dict[str, Callable[[], float]] = {
        "add": lambda: x[0] + x[1],
        "sub": lambda: x[0] - x[1],
        "mul": lambda: x[0] * x[1],
        "div": lambda: x[0] / x[1],
        "neg": lambda: -x[0],
    }
    return const(folds[fn]())


def _folded(fn: str, *args: Expr) -> Expr:
    constant = _fold(fn, *args)
    return call(fn, *args) if constant is None else constant


def _neutral(c: Expr, x: Expr, value: int) -> bool:
    """Whether ``c`` is the constant ``value`` and leaves the type of ``x`` alone: 1.0 makes an integer a number."""
    return c.is_const and c.value == value and (c.dtype == x.dtype or (c.dtype, x.dtype) == ("i", "f"))


def add(x: Expr, y: Expr) -> Expr:
    if _neutral(x, y, 0):
        return y
    if _neutral(y, x, 0):
        return x
    if y.fn == "neg":
        return sub(x, y.args[0])
    return _folded("add", x, y)


def sub(x: Expr, y: Expr) -> Expr:
    if _neutral(y, x, 0):
        return x
    if _neutral(x, y, 0):
        return neg(y)
    if y.fn == "neg":
        return add(x, y.args[0])
    return _folded("sub", x, y)


def mul(x: Expr, y: Expr) -> Expr:
    """Product; constants are moved to the left and folded. 0*x is kept: x may be a NaN that must show."""
    if y.is_const and not x.is_const:
        x, y = y, x
    if x.is_const:
        if _neutral(x, y, 1):
            return y
        if _neutral(x, y, -1):
            return neg(y)
        if y.fn == "mul" and y.args[0].is_const:
            return mul(const(x.value * y.args[0].value), y.args[1])
        if y.fn == "neg":
            return mul(const(-x.value), y.args[0])
    if x.fn == "neg" and y.fn == "neg":
        return mul(x.args[0], y.args[0])
    if x.fn == "neg":
        return neg(mul(x.args[0], y))
    if y.fn == "neg":
        return neg(mul(x, y.args[0]))
    return _folded("mul", x, y)


def div(x: Expr, y: Expr) -> Expr:
    """Quotient. Only a power of two is divided by as a product: i / 49 is 1 at i = 49, i * (1/49) is less."""
    if y.is_const and _exact_reciprocal(y.value):
        return mul(const(1 / y.value), x)
    if x.is_const and y.is_const and y.value != 0:
        return _folded("div", x, y)
    if x.fn == "neg":
        return neg(div(x.args[0], y))
    return call("div", x, y)


def _exact_reciprocal(x: float) -> bool:
    return not isinstance(x, bool) and math.isfinite(x) and abs(math.frexp(x)[0]) == 0.5 and abs(x) < 2.0**1000


def neg(x: Expr) -> Expr:
    if x.fn == "neg":
        return x.args[0]
    if x.fn == "mul" and x.args[0].is_const:
        return mul(const(-x.args[0].value), x.args[1])
    if x.fn == "sub":
        return sub(x.args[1], x.args[0])
    return _folded("neg", x)


def power(x: Expr, p: Any) -> Expr:
    p = as_expr(p)
    if p.is_const:
        return call("square", x) if p.value == 2 else x if p.value == 1 else call("pow", x, attrs=(float(p.value),))
    return call("exp2", p) if x.is_const and x.value == 2 else call("power", x, p)


def width(x: Expr) -> Expr:
    """The number of channels of a vector, from one that it is made of: the pair itself is not needed for it."""
    return call("width", _of_one_token(x))


def _of_one_token(x: Expr) -> Expr:
    """A vector as wide as ``x`` that depends on one token, where there is one."""
    made: dict[Expr, Expr] = {}
    for e in postorder(x):
        kind = FUNCTIONS[e.fn].kind if e.args else ""
        if kind == "pointwise" and e.rank == 1:
            made[e] = next(made[a] for a in e.args if a.rank == 1)
        elif e.fn in ("matvec", "tmatvec", "turn", "unturn"):
            made[e] = call(e.fn, e.args[0], made[e.args[1]])
        elif e.fn == "append":
            made[e] = call("append", made[e.args[0]], ZERO)
        elif e.fn == "init":
            made[e] = call("init", made[e.args[0]])
        elif e.fn in ("eta", "rotate", "centre"):
            made[e] = made[e.args[0]]
        elif e.fn == "embed":
            made[e] = made[e.args[1]]
        else:
            made[e] = e
    return made[x]


def channel(x: Expr, c: int) -> Expr:
    """One entry of a vector, of its element-wise parts where it has some: (q - k)[c] is q[c] - k[c]."""
    made: dict[Expr, Expr] = {}
    for e in postorder(x):
        if e.rank != 1:
            made[e] = e
        elif e.args and FUNCTIONS[e.fn].kind == "pointwise":
            made[e] = rebuild(e, tuple(made[a] for a in e.args))
        else:
            made[e] = call("item", e, attrs=(c,))
    return made[x]


def uniform(seed: Expr) -> Expr:
    """A random number in [0, 1) for every (b, h, i, j), reproducible from the integer ``seed``."""
    return call("pair_uniform", call("row_key", seed), call("column_key"))


def total(terms: Iterable[Expr]) -> Expr:
    """Sum of terms; 0.0 when there are none."""
    result = ZERO
    for t in terms:
        result = add(result, t)
    return result


# --- walking -----------------------------------------------------------------------------------------------
def substitute(root: Expr, table: dict[Expr, Expr], *, smart: bool = True) -> Expr:
    """``root`` with nodes replaced; rebuilt through the folding constructors unless ``smart`` is off."""
    done: dict[Expr, Expr] = {}
    for e in postorder(root):
        if e in table:
            done[e] = table[e]
        elif not e.args:
            done[e] = e
        else:
            args = tuple(done[a] for a in e.args)
            done[e] = e if args == e.args else (rebuild(e, args) if smart else Expr(e.fn, args, e.attrs))
    return done[root]


_SMART: dict[str, Callable[..., Expr]] = {"add": add, "sub": sub, "mul": mul, "div": div, "neg": neg}


def rebuild(e: Expr, args: tuple[Expr, ...]) -> Expr:
    """The node ``e`` with other arguments, folded."""
    if not e.args:
        return e
    smart = _SMART.get(e.fn)
    return smart(*args) if smart else call(e.fn, *args, attrs=e.attrs)


def is_finite_number(e: Expr) -> bool:
    return e.is_const and not isinstance(e.value, bool) and math.isfinite(e.value)
