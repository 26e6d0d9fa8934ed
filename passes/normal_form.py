"""The normal form of scores: a sum of contractions, per-token terms and functions of such.

`Normaliser` walks a score bottom-up and takes it apart into `Terms`; what turns into what on the way are rules of
`score_rules`, counted by name. The pass that calls it has the whole rewrite certified.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

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
    postorder,
    rebuild,
    total,
)
from aatc.ir.score.functions import FUNCTIONS
from aatc.passes.captured import is_captured
from aatc.passes.score_bounds import is_nonnegative, new_nodes
from aatc.passes.score_forms import (
    WATCHED,
    captured_factors,
    is_col,
    is_row,
    jumps,
    may_cancel,
    of_ordinary_size,
    split_product,
    vanishes,
)
from aatc.passes.score_rules import LINEAR, SCORE_RULES

#: Numbers per pair that are read, not computed.
_GIVEN = ("param", "lookup")


@dataclass
class Terms:
    """``sum(coefficient * atom)`` over pair atoms, plus numbers per query, per key, and neither.

    contractions: (query vector, key vector). separable: (query number, key number). others: (coefficient
    without pair dependence, pair expression). expanded: a contraction stems from a difference that was multiplied out,
    so that what the user wrote as a small number is now one of large ones. scaled: a vector of a contraction was
    multiplied by a factor of any size, so that it may be too large a number where what the user wrote is none.
    """

    contractions: list[tuple[Expr, Expr]] = field(default_factory=list)
    separable: list[tuple[Expr, Expr]] = field(default_factory=list)
    others: list[tuple[Expr, Expr]] = field(default_factory=list)
    row: Expr = ZERO
    col: Expr = ZERO
    flat: Expr = ZERO
    expanded: bool = False
    scaled: bool = False

    def kinds(self) -> list[str]:
        """Of which of these there are some: what a factor of the whole would be multiplied by one after the other."""
        names = ("contractions", "separable", "others", "row", "col", "flat")
        return [n for n in names if getattr(self, n) not in ([], ZERO)]

    def absorb(self, other: Terms, factor: Expr) -> int:
        """Adds ``factor * other``; factor must not be a pair expression. Returns scales absorbed."""
        absorbed = 0
        self.expanded |= other.expanded
        self.scaled |= other.scaled or (bool(other.contractions) and not of_ordinary_size(factor))
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
    _captured: dict[Expr, bool | None] = field(default_factory=dict)
    _vanishes: dict[Expr, bool] = field(default_factory=dict)  # where query and key are equal
    _cancels: dict[Expr, bool] = field(default_factory=dict)  # numbers per query and per key, as `_may_cancel` says

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

    def source(self, normal: Expr) -> Expr | None:
        """A formula that `number` brought to ``normal``, if it has one."""
        return next((e for e, found in self._done.items() if found is normal), None)

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
        if e.fn in ("add", "sub") and not self.split and may_cancel(e, self._cancels):
            # f(query) - g(key): either may be large where their difference is small, and softmax would drop one
            out.others.append((ONE, e))
        elif e.fn in ("add", "sub") and not self.split and self._of_given(e):
            # (keep - 1) * 1e9: small, or large, as a whole; its parts are large beside scores that they are added to
            out.others.append((ONE, e))
        elif e.fn in ("add", "sub"):
            self.count["split"] += may_cancel(e, self._cancels)
            out.absorb(self.terms(e.args[0]), ONE)
            out.absorb(self.terms(e.args[1]), ONE if e.fn == "add" else const(-1.0))
        elif e.fn == "neg":
            out.absorb(self.terms(e.args[0]), const(-1.0))
        elif self.whole and self._scales_contraction(e):
            self._function(out, rebuild(e, tuple(map(self.number, e.args))))
        elif e.fn == "mul":
            arc = self._rewrite(e, "arc")
            if arc is e:
                self._product(out, *e.args)
            else:
                out.absorb(self.terms(arc), ONE)
        elif e.fn == "div":
            self._quotient(out, *e.args)
        elif e.fn in ("dot", "sum"):
            self._contraction(out, e)
        elif (simpler := self._rewrite(e, "square-of-root", "causal-distance")) is not e:
            out.absorb(self.terms(simpler), ONE)
        elif jumps(e):
            out.others.append((ONE, e))
        else:
            rules = Normaliser(causal=self.causal, whole=True) if self._kinks_at_ties(e) else self
            self._function(out, rebuild(e, tuple(rules._argument(a, e.fn) if not a.rank else a for a in e.args)))
            if rules is not self:
                self.count.update(rules.count)
        return out

    def _argument(self, e: Expr, word: str) -> Expr:
        """What a function is of, in normal form. A captured number that multiplies or divides a sum of several kinds
        stays one factor of it: the number's gradient would else be a sum over each kind, and these may cancel. Words of
        infinite slope read the sum itself, whose digits are watched."""
        factors, inner = captured_factors(e)
        if word in WATCHED or not factors or len(self.terms(inner).kinds()) < 2:
            return self.number(e)
        number = self.number(inner)
        for how, factor in reversed(factors):
            number = div(number, factor) if how == "div" else mul(factor, number)
        return number

    def _of_given(self, e: Expr) -> bool:
        """Whether a sum has captured numbers per pair in it, and nothing else of the pair."""
        return is_captured(e, self._captured) and any(a.is_pair for a in e.args)

    def _kinks_at_ties(self, e: Expr) -> bool:
        """Whether a word has its kink where query and key are equal. Its slope there is that of neither side, or of a
        certain one: the rounding of a difference that was multiplied out must not choose."""
        if self.whole or e.fn not in FUNCTIONS or not FUNCTIONS[e.fn].kinked or e.rank:
            return False
        for x in new_nodes(e, self._vanishes):
            self._vanishes[x] = vanishes(x, self._vanishes)
        return all(self._vanishes[a] or (a.is_const and not a.value) for a in e.args)

    def _scales_contraction(self, e: Expr) -> bool:
        """Whether ``e`` is a contraction, or a sum with one, times or over a number that no vector may be multiplied
        by: the order of what is multiplied stays as it is written."""
        if e.fn == "div":
            pair, factor = e.args
        elif e.fn == "mul":
            pair, factor = e.args if e.args[0].is_pair else e.args[::-1]
        else:
            return False
        if not pair.is_pair or (factor.is_pair and e.fn == "mul") or of_ordinary_size(factor):
            return False
        return bool(self.terms(pair).contractions)

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
        factors = split_product(self.number(y))
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
    def _rewrite(self, e: Expr, *rules: str) -> Expr:
        """``e`` after the first of the ``rules`` that applies to it, which is counted; itself where none does."""
        found = SCORE_RULES.find(e, *rules, given=("causal",) if self.causal else ())
        if found is None:
            return e
        self.count[found.rule.name] += found.rule.counted
        return found.result()

    def _use(self, name: str, **bound: Expr) -> Expr:
        """What the rule makes of the expressions that its names stand for; counted."""
        made = SCORE_RULES.match(name, **bound)
        self.count[name] += made.rule.counted
        return made.result()

    def _contraction(self, out: Terms, e: Expr) -> None:
        contraction = self._rewrite(e, "square", "root-of-product")
        if self.whole:
            contraction = self._turned_back(contraction)
        factor, inner = _pull_scale(contraction)
        other = ONE
        if inner.fn == "dot":
            other, flipped = _pull_scale(_flipped(inner))
            inner = _flipped(flipped)
        expansions = self.count["expand"]
        if factor is not ONE or other is not ONE:
            self.count["pull-scale"] += 1
            factor = self.number(mul(factor, other))
            if factor.is_pair:
                out.others.append((ONE, mul(factor, self.number(inner))))
            else:
                out.absorb(self.terms(inner), factor)
            return
        found = self._dots(inner.args[0], as_expr(1.0) if inner.fn == "sum" else inner.args[1])
        if found is None:
            if self.whole:
                e = call(inner.fn, *map(_through, inner.args))
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

    def _turned_back(self, e: Expr) -> Expr:
        """The square of a vector's length as that of one whose parts depend on the query or the key alone."""
        turned, steps = e, 0
        while turned.args[0].fn in ("add", "sub") and (found := SCORE_RULES.find(turned, "isometry")) is not None:
            turned, steps = found.result(), steps + 1
        if any(a.is_pair for a in turned.args[0].args):
            return e
        self.count["isometry"] += steps
        return turned

    def _dots(self, x: Expr, y: Expr) -> list[tuple[int, Expr, Expr]] | None:
        """dot(x, y) as a signed sum of dots of vectors that are each no pair expression; None if it is none."""
        if x.rank != 1 or y.rank != 1:
            return None
        if x.fn in LINEAR and (same := self._rewrite(dot := call("dot", x, y), "isometry")) is not dot:
            return self._dots(*same.args)
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
            movable = a.is_pair and a.fn in LINEAR
            if movable and (moved := self._rewrite(dot := call("dot", a, b), "adjoint")) is not dot:
                return self._dots(*moved.args)
        return None if x.is_pair or y.is_pair else [(1, x, y)]

    def _pieces(self, v: Expr) -> list[tuple[int, Expr]] | None:
        """A pair vector as a signed sum of simpler vectors; None when it is no sum, or is to stay whole."""
        if v.fn in ("add", "sub"):
            if self.whole:
                return None
            self.count["expand"] += 1
            x, y = self._rewrite(v, "centre").args
            return [(1, x), (1 if v.fn == "add" else -1, y)]
        if v.fn == "neg":
            return [(-1, v.args[0])]
        if v.fn in LINEAR and v.args[LINEAR[v.fn]].is_pair:
            inner = self._pieces(v.args[LINEAR[v.fn]])
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
            if several:
                while y.fn in LINEAR and (moved := self._rewrite(dot := call("dot", y, x), "adjoint")) is not dot:
                    y, x = moved.args
                for rule, word in (("factor-to-query", "mul"), ("sign-to-query", "neg")):
                    x, y = self._rewrite(call("dot", x, y), rule).args if y.fn == word else (x, y)
            if y in groups:
                groups[y] = self._use("merge", q=groups[y], p=x, k=y).args[0]
            else:
                groups[y] = x
        return [(x, y) for y, x in groups.items()]

    def _comes_last(self, e: Expr) -> bool:
        return e.fn in _GIVEN or (e.fn in ("add", "sub") and self._of_given(e))

    def assemble(self, t: Terms) -> Expr:
        """One expression: contraction with separable terms as extra channels, then the rest."""
        dots = self.merged(t)
        separable = list(t.separable)
        if dots and separable:
            x, y = dots[0]
            for r, c in separable:
                x, y = self._use("absorb-separable", q=x, k=y, r=r, s=c).args
            dots[0] = (x, y)
            separable = []
        parts = [call("dot", x, y) for x, y in dots]
        parts += [mul(r, c) for r, c in separable]
        others: dict[Expr, Expr] = {}
        for c, e in t.others:  # what is added and taken away again must not leave its rounding
            others[e] = add(others[e], c) if e in others else c
        functions = [mul(c, e) for e, c in others.items() if not self._comes_last(e)]
        # given numbers come last: they may be large, and what is added after them is rounded as they are
        given = [mul(c, e) for e, c in others.items() if self._comes_last(e)]
        assembled = total([*parts, *functions, t.col, t.row, t.flat, *given])
        if assembled.is_pair:
            self.forms[assembled] = Terms(dots, separable, list(t.others), t.row, t.col, t.flat, t.expanded, t.scaled)
        return assembled


def _pull_scale(e: Expr) -> tuple[Expr, Expr]:
    """(c, f) with e = c * f, for numbers that multiply or divide the first vector of a contraction."""
    factor = ONE
    while (found := SCORE_RULES.find(e, "pull-scale")) is not None:
        (inner,) = (x for x in postorder(found.rule.result) if x.fn == e.fn)
        factor, e = found.result(known={inner: factor}), found.result(inner)
    return factor, e


def _flipped(dot: Expr) -> Expr:
    return call("dot", *dot.args[::-1])


def _with_vector(v: Expr, vector: Expr) -> Expr:
    return call(v.fn, *(vector if n == LINEAR[v.fn] else a for n, a in enumerate(v.args)), attrs=v.attrs)


def _through(v: Expr) -> Expr:
    """``v`` with linear maps of sums of a pair as sums of maps: T(x - y) → T x - T y."""
    if not v.is_pair or v.rank != 1 or jumps(v):
        return v
    v = rebuild(v, tuple(map(_through, v.args)))
    if v.fn not in LINEAR or not v.args[LINEAR[v.fn]].is_pair:
        return v
    found = SCORE_RULES.find(v, "linear")
    if found is None:
        return v
    mapped = found.result()
    return rebuild(mapped, tuple(map(_through, mapped.args)))
