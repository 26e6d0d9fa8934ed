"""The algebra of scores: every score is brought to a sum of contractions, per-token terms and functions of such.

`Normaliser` rewrites bottom-up. Each rule has a name, is counted, and is listed in `RULES` with what it
turns into what; the pass that calls it has the whole rewrite certified.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aatc.ir.score.expr import (
    ONE,
    ZERO,
    Expr,
    add,
    as_expr,
    call,
    const,
    div,
    mul,
    neg,
    rebuild,
    sub,
    total,
)
from aatc.ir.score.functions import FUNCTIONS
from aatc.passes.score_bounds import is_nonnegative, new_nodes, static_bound

RULES = {
    "adjoint": "dot(x, T y) → dot(Tᵗ x, y) for a map T that depends on the query only",
    "isometry": "dot(T x, T y) → dot(x, y) for a rotation or frame T",
    "expand": "dot(x - y, z) → dot(x, z) - dot(y, z), and likewise through linear maps",
    "square": "sum(v * w) → dot(v, w); sum(square(v)) → dot(v, v)",
    "centre": "x - y → (x - m) - (y - m) with m the mean key: the same difference, without cancellation",
    "root-of-product": "sqrt(x * y) → sqrt(x) * sqrt(y) where the forms of x and y show that no entry is below 0",
    "square-of-root": "square(sqrt(x)) → x where the form of x shows that it is not below 0",
    "pull-scale": "dot(c * v, w) → c * dot(v, w) for a number c and a vector v of the pair",
    "absorb-scale": "c * dot(x, y) → dot(c * x, y)",
    "merge": "dot(x, z) + dot(y, z) → dot(x + y, z)",
    "absorb-separable": "dot(x, y) + r * s → dot([x, r], [y, s]) for a query number r and a key number s",
    "drop-row-constant": "s + f(query) → s if the normaliser does not see it, as softmax; log-sum-exp gets it back",
    "causal-distance": "abs(i - j) → i - j where the mask admits only j <= i",
    "split": "f(query) - g(key) → two terms; only where their difference is formed again with its digits",
}

_LINEAR = {"rotate": 0, "matvec": 1, "tmatvec": 1, "turn": 1, "unturn": 1, "eta": 0}  # position of the vector
_ADJOINT = {"matvec": "tmatvec", "tmatvec": "matvec", "turn": "unturn", "unturn": "turn"}
_ISOMETRIES = ("rotate", "turn", "unturn")


#: Numbers per pair that are read, not computed.
_GIVEN = ("param", "lookup")


def is_row(e: Expr) -> bool:
    """May depend on the query, not on the key."""
    return "j" not in e.axes


def is_col(e: Expr) -> bool:
    return "i" not in e.axes


def jumps(e: Expr) -> bool:
    """Whether the last digit of what ``e`` reads may decide its value: a condition, a floor, the position of a lookup.
    What it reads stays as it is written."""
    return e.dtype == "b" or (e.fn in FUNCTIONS and FUNCTIONS[e.fn].jumps)


@dataclass
class Terms:
    """``sum(coefficient * atom)`` over pair atoms, plus numbers per query, per key, and neither.

    contractions: (query vector, key vector). separable: (query number, key number). others: (coefficient
    without pair dependence, pair expression). expanded: a contraction stems from a difference that was multiplied out,
    so that what the user wrote as a small number is now one of large ones.
    """

    contractions: list[tuple[Expr, Expr]] = field(default_factory=list)
    separable: list[tuple[Expr, Expr]] = field(default_factory=list)
    others: list[tuple[Expr, Expr]] = field(default_factory=list)
    row: Expr = ZERO
    col: Expr = ZERO
    flat: Expr = ZERO
    expanded: bool = False

    def absorb(self, other: Terms, factor: Expr) -> int:
        """Adds ``factor * other``; factor must not be a pair expression. Returns scales absorbed."""
        absorbed = 0
        self.expanded |= other.expanded
        for x, y in other.contractions:
            absorbed += factor is not ONE
            self.contractions.append((mul(factor, x), y) if is_row(factor) else (x, mul(factor, y)))
        for r, c in other.separable:
            self.separable.append((mul(factor, r), c) if is_row(factor) else (r, mul(factor, c)))
        self.others += [(mul(factor, c), e) for c, e in other.others]
        for part in (other.row, other.col, other.flat):
            if part is not ZERO:
                self.add_number(factor, part)
        return absorbed

    def add_number(self, factor: Expr, e: Expr) -> None:
        """Adds factor*e of two numbers that are each no pair expression."""
        product = mul(factor, e)
        if not product.is_pair:
            if "i" in product.axes:
                self.row = add(self.row, product)
            elif "j" in product.axes:
                self.col = add(self.col, product)
            else:
                self.flat = add(self.flat, product)
        elif is_row(factor):
            self.separable.append((factor, e))
        else:
            self.separable.append((e, factor))


_STRIDE = 64  # a formula deeper than this is normalised piece by piece


@dataclass
class Normaliser:
    """Rewrites pair expressions; ``count`` tells how often each rule was used, ``forms`` what each assembled
    expression was assembled from."""

    causal: bool = False  # the mask admits only j <= i
    whole: bool = False  # contractions of differences are not multiplied out
    split: bool = False  # a number per query minus one per key becomes two terms
    count: Counter[str] = field(default_factory=Counter)
    forms: dict[Expr, Terms] = field(default_factory=dict)
    nonnegative: set[Expr] = field(default_factory=set)  # normal forms of what cannot be below 0
    _done: dict[Expr, Expr] = field(default_factory=dict)
    _bounds: dict[Expr, tuple[float, float]] = field(default_factory=dict)
    _depth: dict[Expr, int] = field(default_factory=dict)

    def number(self, e: Expr) -> Expr:
        """A pair number in normal form; others are returned as they are."""
        if not e.is_pair or e.rank:
            return e
        if e not in self._done:
            self._from_below(e)
        if e not in self._done:
            if jumps(e):
                self._done[e] = e
            else:
                self._done[e] = self.assemble(self.terms(e))
                if is_nonnegative(e, self._bounds):
                    self.nonnegative.add(self._done[e])
        return self._done[e]

    def _from_below(self, e: Expr) -> None:
        """Normalises some nodes of a formula that is deeper than Python's stack before those above them."""
        new = new_nodes(e, self._depth)
        for x in new:
            self._depth[x] = 1 + max((self._depth[a] for a in x.args), default=0)
        for x in new:
            if self._depth[x] % _STRIDE == 0 and x is not e and x.is_pair and not x.rank:
                self.number(x)

    def terms(self, e: Expr) -> Terms:
        self._from_below(e)
        out = Terms()
        if self._depth[e] % _STRIDE == 0 and self._done.get(e) in self.forms:
            out.absorb(self.forms[self._done[e]], ONE)
            return out
        if not e.is_pair:
            out.add_number(ONE, e)
            return out
        if e.fn in ("add", "sub") and not self.split and _may_cancel(e):
            # f(query) - g(key): either may be large where their difference is small, and softmax would drop one
            out.others.append((ONE, e))
        elif e.fn in ("add", "sub"):
            self.count["split"] += _may_cancel(e)
            out.absorb(self.terms(e.args[0]), ONE)
            out.absorb(self.terms(e.args[1]), ONE if e.fn == "add" else const(-1.0))
        elif e.fn == "neg":
            out.absorb(self.terms(e.args[0]), const(-1.0))
        elif e.fn == "mul":
            self._product(out, *e.args)
        elif e.fn == "div":
            self._quotient(out, *e.args)
        elif e.fn in ("dot", "sum"):
            self._contraction(out, e)
        elif e.fn == "square" and e.args[0].fn == "sqrt" and is_nonnegative(e.args[0].args[0]):
            self.count["square-of-root"] += 1
            out.absorb(self.terms(e.args[0].args[0]), ONE)
        elif e.fn == "abs" and self.causal and _is_distance(e.args[0]):
            self.count["causal-distance"] += 1
            i_minus_j = e.args[0] if e.args[0].args[0].name == "i" else neg(e.args[0])
            out.absorb(self.terms(sub(i_minus_j.args[0], i_minus_j.args[1])), ONE)
        elif jumps(e):
            out.others.append((ONE, e))
        else:
            self._function(out, rebuild(e, tuple(self.number(a) if not a.rank else a for a in e.args)))
        return out

    def _function(self, out: Terms, e: Expr) -> None:
        """A function of normal forms, which may have stopped depending on the pair."""
        if e.is_pair:
            out.others.append((ONE, e))
        else:
            out.add_number(ONE, e)

    def _product(self, out: Terms, x: Expr, y: Expr) -> None:
        if x.is_pair and y.is_pair:
            x, y = self.number(x), self.number(y)
        if x.is_pair and y.is_pair:
            out.others.append((ONE, mul(x, y)))
        elif not x.is_pair and not y.is_pair:
            out.add_number(x, y)
        else:
            factor, pair = (y, x) if x.is_pair else (x, y)
            self.count["absorb-scale"] += out.absorb(self.terms(pair), factor)

    def _quotient(self, out: Terms, x: Expr, y: Expr) -> None:
        """x/y with y a product of a query number and a key number becomes a multiplication by each reciprocal."""
        factors = _split_product(self.number(y))
        if factors is None:
            self._function(out, div(self.number(x), self.number(y)))
            return
        part = self.terms(x)
        for f in factors:
            scaled = Terms()
            self.count["absorb-scale"] += scaled.absorb(part, div(ONE, f))
            part = scaled
        out.absorb(part, ONE)

    # --- contractions --------------------------------------------------------------------------------------
    def _contraction(self, out: Terms, e: Expr) -> None:
        x, y = self._factors(e)
        if self.whole and x is y and x.is_pair:
            x = y = self._turned_back(x)
        (fx, x), (fy, y) = _scalar_factor(x), _scalar_factor(y)
        expansions = self.count["expand"]
        if fx is not ONE or fy is not ONE:
            self.count["pull-scale"] += 1
            factor, inner = self.number(mul(fx, fy)), call("dot", x, y) if y.rank else call("sum", x)
            if factor.is_pair:
                out.others.append((ONE, mul(factor, self.number(inner))))
            else:
                out.absorb(self.terms(inner), factor)
            return
        found = self._dots(x, y)
        if found is None:
            if self.whole:
                e = call("dot", _through(x), _through(y)) if y.rank else call("sum", _through(x))
            out.others.append((ONE, e))
            return
        out.expanded |= self.count["expand"] > expansions
        for sign, x, y in found:
            d = const(float(sign))
            if is_row(x) and is_col(y) and "j" in y.axes:
                out.contractions.append((mul(d, x), y))
            elif is_col(x) and is_row(y) and "j" in x.axes:
                out.contractions.append((mul(d, y), x))
            else:
                out.add_number(d, call("dot", x, y))

    def _turned_back(self, v: Expr) -> Expr:
        """A vector as long as ``v`` whose parts depend on the query or the key alone: a - T b → T⁻¹ a - b for a
        rotation or frame T of the query."""
        if v.fn not in ("add", "sub"):
            return v
        for n in (0, 1):
            x, y = v.args[n], v.args[1 - n]
            while y.is_pair and y.fn in _ISOMETRIES and _free_of_key(y) and x.rank == 1 and is_row(x):
                self.count["isometry"] += 1
                x, y = _adjoint(y, x), y.args[_LINEAR[y.fn]]
            if not y.is_pair and y not in v.args:
                return call(v.fn, *((x, y) if n == 0 else (y, x)))
        return v

    def _factors(self, e: Expr) -> tuple[Expr, Expr]:
        """The two vectors whose contraction ``e`` is; a plain sum is a contraction with ones at worst."""
        if e.fn == "dot":
            return e.args  # type: ignore[return-value]
        v = e.args[0]
        if v.fn == "square":
            self.count["square"] += 1
            return v.args[0], v.args[0]
        if v.fn == "mul" and v.args[0].rank == 1 and v.args[1].rank == 1:
            self.count["square"] += 1
            return v.args  # type: ignore[return-value]
        if v.fn == "sqrt" and v.args[0].fn == "mul" and _is_product_of_positives(v.args[0]):
            self.count["root-of-product"] += 1
            x, y = v.args[0].args
            return call("sqrt", x), call("sqrt", y)
        return v, as_expr(1.0)

    def _dots(self, x: Expr, y: Expr) -> list[tuple[int, Expr, Expr]] | None:
        """dot(x, y) as a signed sum of dots of vectors that are each no pair expression; None if it is none."""
        if x.rank != 1 or y.rank != 1:
            return None
        if x.fn in _ISOMETRIES and y.fn == x.fn and _operator(x) == _operator(y):
            self.count["isometry"] += 1
            at = _LINEAR[x.fn]
            return self._dots(x.args[at], y.args[at])
        for a, b in ((x, y), (y, x)):
            if not a.is_pair:
                continue
            pieces = self._pieces(a)
            if pieces is not None:
                out = []
                for sign, piece in pieces:
                    rest = self._dots(piece, b)
                    if rest is None:
                        return None
                    out += [(sign * s, u, v) for s, u, v in rest]
                return out
        for a, b in ((x, y), (y, x)):
            movable = a.fn in _LINEAR and a.is_pair and a.fn != "eta" and is_row(b) and _free_of_key(a)
            if movable and not a.args[_LINEAR[a.fn]].is_pair:
                self.count["adjoint"] += 1
                return self._dots(a.args[_LINEAR[a.fn]], _adjoint(a, b))
        return None if x.is_pair or y.is_pair else [(1, x, y)]

    def _pieces(self, v: Expr) -> list[tuple[int, Expr]] | None:
        """A pair vector as a signed sum of simpler vectors; None when it is no sum, or is to stay whole."""
        if v.fn in ("add", "sub"):
            if self.whole:
                return None
            self.count["expand"] += 1
            x, y = v.args
            if v.fn == "sub" and not x.is_pair and not y.is_pair and is_row(x) != is_row(y):
                self.count["centre"] += 1
                mean = call("centre", x if is_row(y) else y)
                x, y = sub(x, mean), sub(y, mean)
            return [(1, x), (1 if v.fn == "add" else -1, y)]
        if v.fn == "neg":
            return [(-1, v.args[0])]
        if v.fn in _LINEAR and v.args[_LINEAR[v.fn]].is_pair:
            inner = self._pieces(v.args[_LINEAR[v.fn]])
            return None if inner is None else [(s, _with_vector(v, p)) for s, p in inner]
        if v.fn == "mul":
            for n in (0, 1):
                if v.args[n].is_pair and v.args[n].rank == 1 and not v.args[1 - n].is_pair:
                    inner = self._pieces(v.args[n])
                    return None if inner is None else [(s, mul(v.args[1 - n], p)) for s, p in inner]
        return None

    # --- putting terms together ----------------------------------------------------------------------------
    def merged(self, t: Terms) -> list[tuple[Expr, Expr]]:
        """Contractions with equal key vectors added up; a linear map on the key moves to the query first."""
        groups: dict[Expr, Expr] = {}
        several = len(t.contractions) > 1
        for x, y in t.contractions:
            while several and y.fn in _LINEAR and _free_of_key(y):
                self.count["adjoint"] += 1
                x, y = _adjoint(y, x), y.args[_LINEAR[y.fn]]
            if several and y.fn == "mul" and y.args[0].rank == 1 and "j" not in y.args[0].axes:
                x, y = mul(y.args[0], x), y.args[1]
            if several and y.fn == "neg":
                x, y = neg(x), y.args[0]
            if y in groups:
                self.count["merge"] += 1
                groups[y] = add(groups[y], x)
            else:
                groups[y] = x
        return [(x, y) for y, x in groups.items()]

    def assemble(self, t: Terms) -> Expr:
        """One expression: contraction with separable terms as extra channels, then the rest."""
        dots = self.merged(t)
        separable = list(t.separable)
        if dots and separable:
            x, y = dots[0]
            for r, c in separable:
                self.count["absorb-separable"] += 1
                x, y = call("append", x, r), call("append", y, c)
            dots[0] = (x, y)
            separable = []
        parts = [call("dot", x, y) for x, y in dots]
        parts += [mul(r, c) for r, c in separable]
        others: dict[Expr, Expr] = {}
        for c, e in t.others:  # what is added and taken away again must not leave its rounding
            others[e] = add(others[e], c) if e in others else c
        functions = [mul(c, e) for e, c in others.items() if e.fn not in _GIVEN]
        # given numbers come last: they may be large, and what is added after them is rounded as they are
        given = [mul(c, e) for e, c in others.items() if e.fn in _GIVEN]
        assembled = total([*parts, *functions, t.col, t.row, t.flat, *given])
        if assembled.is_pair:
            self.forms[assembled] = Terms(dots, separable, list(t.others), t.row, t.col, t.flat, t.expanded)
        return assembled


def _may_cancel(e: Expr) -> bool:
    """Whether a sum or difference is one of a query number and a key number that are not known to have one sign."""
    x, y = e.args
    if x.is_pair or y.is_pair:
        return False
    low, high = zip(static_bound(x), static_bound(y if e.fn == "add" else neg(y)), strict=True)
    return not (min(low) >= 0 or max(high) <= 0)


def _is_product_of_positives(e: Expr) -> bool:
    return all(a.rank == 1 and not a.is_pair and is_nonnegative(a) for a in e.args)


def _scalar_factor(v: Expr) -> tuple[Expr, Expr]:
    """(c, w) with v = c * w, for numbers that multiply or divide a pair vector."""
    factor = ONE
    while v.is_pair and v.rank == 1:
        if v.fn == "neg":
            factor, v = neg(factor), v.args[0]
        elif v.fn == "mul" and v.args[0].rank != v.args[1].rank:
            scalar, v = v.args if v.args[0].rank == 0 else v.args[::-1]
            factor = mul(factor, scalar)
        elif v.fn == "div" and v.args[1].rank == 0 and v.args[0].rank == 1:
            factor, v = div(factor, v.args[1]), v.args[0]
        else:
            break
    return factor, v


def _is_distance(e: Expr) -> bool:
    return e.fn == "sub" and {a.name for a in e.args if a.fn == "index"} == {"i", "j"}


def _split_product(e: Expr) -> list[Expr] | None:
    if not e.is_pair:
        return [e]
    if e.fn != "mul":
        return None
    parts = [_split_product(a) for a in e.args]
    return None if None in parts else [f for p in parts for f in p]  # type: ignore[union-attr]


def _operator(v: Expr) -> tuple[Any, ...]:
    return tuple(a for n, a in enumerate(v.args) if n != _LINEAR[v.fn]), v.attrs


def _free_of_key(v: Expr) -> bool:
    return all("j" not in a.axes for n, a in enumerate(v.args) if n != _LINEAR[v.fn])


def _with_vector(v: Expr, vector: Expr) -> Expr:
    return call(v.fn, *(vector if n == _LINEAR[v.fn] else a for n, a in enumerate(v.args)), attrs=v.attrs)


def _through(v: Expr) -> Expr:
    """``v`` with linear maps of sums of a pair as sums of maps: T(x - y) → T x - T y."""
    if not v.is_pair or v.rank != 1 or jumps(v):
        return v
    if v.fn not in _LINEAR or not v.args[_LINEAR[v.fn]].is_pair:
        return rebuild(v, tuple(map(_through, v.args)))
    inner = _through(v.args[_LINEAR[v.fn]])
    if inner.fn in ("add", "sub", "neg"):
        return rebuild(inner, tuple(_through(_with_vector(v, x)) for x in inner.args))
    if inner.fn in ("mul", "div") and inner.args[1].rank == 0:
        return rebuild(inner, (_through(_with_vector(v, inner.args[0])), inner.args[1]))
    if inner.fn == "mul" and inner.args[0].rank == 0:
        return rebuild(inner, (inner.args[0], _through(_with_vector(v, inner.args[1]))))
    return _with_vector(v, inner)


def _adjoint(v: Expr, x: Expr) -> Expr:
    """Tᵗ x for the linear map T of ``v = T y``."""
    if v.fn == "rotate":
        return call("rotate", x, neg(v.args[1]), attrs=v.attrs)
    if v.fn == "eta":
        return call("eta", x)
    return call(_ADJOINT[v.fn], v.args[0], x)
