"""Conditions for a precision in tile code: how far tokens spread, and how near they come to each other.

See `passes.rounding` for what is at stake. A contraction of vectors a_i, b_j is off by at most about
ε max|a| max|b|; the largest lengths are found once per call, the nearest pair as the tiles go by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from aatc.ir.core import Value
from aatc.ir.score.expr import ZERO, Expr, add, call, const, mul, param, params, sub, substitute, total
from aatc.ir.score.program import Program
from aatc.ir.types import TensorType
from aatc.passes.factor import Factored, Refined, Token
from aatc.passes.normal_form import Normaliser, Terms
from aatc.passes.rounding import Check, Digits, grouped
from aatc.passes.score_forms import ENDED, SINGULAR, above_zero, uncentred
from aatc.passes.tile_core import Frame, atom_env, compute_atoms, mask_tile

_INF = float("inf")
#: Of each kind of condition on distances the ends that its argument stays away from.
_ENDS = {**SINGULAR, "ended": ((-1.0, 1.0),)}
#: What sums of products may come to.
_LARGEST = {"f32": 1e37, "f64": 1e307}


def checks_of(attrs: Mapping[str, Any]) -> list[Check]:
    """The conditions an attention carries in its attributes."""
    triples = grouped(attrs.get("checks", ()), 3)
    return [Check(kind, argument.body, gain.body) for kind, argument, gain in triples]


class Peaks:
    """Scalars over buffers: largest lengths and magnitudes, and what is computed of them."""

    def __init__(self, fr: Frame):
        self.fr = fr
        self.values: dict[str, Value] = {}

    def of_buffer(self, buffer: Value, rows: bool) -> Expr:
        """The largest length of a vector, or the largest entry, as a parameter of scalar programs."""
        name = f"peak_{buffer.name}"
        if name not in self.values:
            t = TensorType.of(buffer.type.dtype, ())  # type: ignore[attr-defined]
            self.values[name] = self.fr.b.op("tile.peak", [buffer], [t], names=[name], rows=rows)[0]
        return param(name, "")

    def of_token(self, t: Token) -> Expr:
        return self.of_buffer(self.fr.buffers[t.name], t.axes.endswith("d"))

    def of_number(self, e: Expr) -> Expr:
        """The largest magnitude of a number per token, per head, or a constant."""
        if e.is_const:
            return const(abs(float(e.value)))
        return self.of_token(self.fr.f.token(e))

    def scalar(self, e: Expr, name: str) -> Value:
        """The value of an expression over peaks."""
        program = Program.of(e)
        t = TensorType.of(self.fr.a.dtype, ())
        operands = [self.values[n] for n in program.names]
        return self.fr.b.op(
            "tile.token", operands, [t], names=[name], program=program, axes="", sizes=self.fr.a.sizes, flat=False
        )[0]


def rounding_error(peaks: Peaks, t: Terms, unit: float, curved: bool = False) -> Expr:
    """A bound of a linear form's rounding error, of peaks; ``unit`` is that of one rounding. ``curved``: contractions
    part by part, as `_products` has them."""
    f = peaks.fr.f
    vectors, numbers = _products(t) if curved else (t.contractions, [])
    parts = [mul(peaks.of_token(f.token(x, "bhid")), peaks.of_token(f.token(y, "bhjd"))) for x, y in vectors]
    parts += [mul(peaks.of_number(r), peaks.of_number(c)) for r, c in (*numbers, *t.separable)]
    parts += [peaks.of_number(e) for e in (t.row, t.col, t.flat) if e is not ZERO]
    return mul(const(unit), total(parts))


def _products(t: Terms) -> tuple[list[tuple[Expr, Expr]], list[tuple[Expr, Expr]]]:
    """What is added up in contractions: products of vectors, and those of the numbers that were appended to them, which
    may be far larger. A part that was computed before its mean was subtracted has been rounded as what it was: what
    centring took away counts, too, beside the other part."""
    vectors, numbers = [], []
    for x, y in t.contractions:
        while x.fn == y.fn == "append":
            numbers += _centred(x.args[1], y.args[1])
            x, y = x.args[0], y.args[0]
        vectors += _centred(x, y)
    return vectors, numbers


def _centred(x: Expr, y: Expr) -> list[tuple[Expr, Expr]]:
    whole, other = uncentred(x), uncentred(y)
    found = [(x, y)] if whole is x else [(x, y), (sub(whole, x), y)]
    return found if other is y else [*found, (x, sub(other, y))]


def _is_curved(check: Check) -> bool:
    """Whether the rounding of a formula's own vectors counts, as it does for words of a curvature: the vectors may be
    points that it lifted, and far from 0 beside their distance."""
    return check.kind in (*ENDED, "ended")


def tokens_of(check: Check, f: Factored, unit: float, body: Expr) -> Terms:
    """The linear form of a condition, its tokens entered among those of ``f``."""
    rules = Normaliser()
    scaled = unit if check.argument is body else 1.0
    argument = check.argument
    if check.kind == "ended":
        factor, argument = argument.args
        factor = above_zero(factor)
        if not factor.is_const:
            f.token(factor)
    t = rules.forms[rules.number(mul(const(scaled), argument))]
    _enter(t, f)
    if _is_curved(check):
        vectors, numbers = _products(t)
        for x, y in vectors:
            f.token(x, "bhid"), f.token(y, "bhjd")
        for e in (e for pair in numbers for e in pair if not e.is_const):
            f.token(e)
    if not check.gain.is_const:
        f.token(check.gain)
    return t


def square_terms(plain: Expr, f: Factored) -> Terms:
    """The linear form of a square of a difference, its tokens entered among those of ``f``."""
    rules = Normaliser()
    t = rules.forms[rules.number(plain)]
    _enter(t, f)
    return t


def _enter(t: Terms, f: Factored) -> None:
    for x, y in t.contractions:
        f.token(x, "bhid"), f.token(y, "bhjd")
    for e in (t.row, t.col, *(x for pair in t.separable for x in pair)):
        if not e.is_const:
            f.token(e)


def distance_limit(gain: Expr, error: Expr, digits: Digits) -> Expr:
    """How far an argument must be from where a word is singular: a word like sqrt(x) is off by gain * error / sqrt(x),
    the gradient by error / x of itself."""
    ratio = mul(const(1 / digits.tolerance), error)
    return add(ratio, call("square", mul(gain, ratio)))


def end_limit(factor: Expr, gain: Expr, error: Expr, digits: Digits) -> Expr:
    """How far ``factor`` times an argument must be from 1, see `Check`: the gradient is off by error * factor over that
    of itself."""
    ratio = mul(const(1 / digits.tolerance), error)
    return add(mul(factor, ratio), call("square", mul(gain, ratio)))


def bound_refined(fr: Frame, found: Sequence[tuple[Refined, list[tuple[Check, Terms]]]], digits: Digits) -> None:
    """Emits between which bounds each number that can be refined need not be."""
    peaks = Peaks(fr)
    for x, checks in found:
        lows, highs = [], []
        for check, terms in checks:
            error = rounding_error(peaks, terms, digits.unit, _is_curved(check))
            limit = distance_limit(peaks.of_number(check.gain), error, digits)
            for sign, offset in SINGULAR[check.kind]:
                if sign > 0:
                    lows.append(sub(limit, const(offset)))
                else:
                    highs.append(sub(const(offset), limit))
        low = reduce(lambda a, b: call("maximum", a, b), lows) if lows else const(-_INF)
        high = reduce(lambda a, b: call("minimum", a, b), highs) if highs else const(_INF)
        name = x.atom.name
        fr.bounds[name] = (peaks.scalar(low, f"{name}_low"), peaks.scalar(high, f"{name}_high"))


def bound_squares(fr: Frame, found: Sequence[tuple[Refined, Terms]], digits: Digits) -> None:
    """Emits below which size each square of a difference is that of a near pair: where the difference itself is, of
    the vectors' lengths, no more than what rounding leaves too few digits of."""
    peaks = Peaks(fr)
    for x, terms in found:
        near = rounding_error(peaks, terms, (digits.unit / digits.tolerance) ** 2)
        name = x.atom.name
        fr.bounds[name] = (peaks.scalar(mul(const(-1.0), near), f"{name}_low"), peaks.scalar(near, f"{name}_high"))


@dataclass
class _End:
    """One end of a singular word's range: distance = sign * argument + offset, which must exceed ``limit``."""

    argument: Expr
    sign: float
    offset: float
    limit: Value


class Watch:
    """The conditions of one forward function: those on sizes are emitted at once, those on distances as tiles go by."""

    def __init__(self, fr: Frame, checks: Sequence[tuple[Check, Terms]], unit: float, body: Expr, digits: Digits):
        self.ends: list[_End] = []
        self.table: dict[Expr, Expr] = {}
        peaks = Peaks(fr)
        for n, (check, terms) in enumerate(checks):
            if check.kind == "range":
                room = sub(const(_LARGEST[fr.a.dtype]), rounding_error(peaks, terms, 1.0))
                fr.b.op("tile.require", [peaks.scalar(room, f"room{n}")], [], least=0.0)
                continue
            error = rounding_error(peaks, terms, digits.unit, _is_curved(check))
            gain = peaks.of_number(check.gain)
            if check.kind == "spread":
                if check.argument is body:
                    error = mul(const(1 / unit), error)
                room = sub(const(digits.spread), mul(gain, error))
                if params(room):
                    fr.b.op("tile.require", [peaks.scalar(room, f"room{n}")], [], least=0.0)
                continue
            if check.kind == "ended":
                factor = peaks.of_number(above_zero(check.argument.args[0]))
                limit = peaks.scalar(end_limit(factor, gain, error, digits), f"limit{n}")
            else:
                limit = peaks.scalar(distance_limit(gain, error, digits), f"limit{n}")
            argument = fr.f.number(check.argument)
            if argument.fn != "param":
                argument = self.table.setdefault(argument, param(f"argument{n}_", "bhij"))
            self.ends += [_End(argument, sign, offset, limit) for sign, offset in _ENDS[check.kind]]

    def names(self) -> list[str]:
        return [f"near{n}" for n in range(len(self.ends))]

    def inits(self, fr: Frame) -> list[Value]:
        s = fr.s
        return [
            fr.b.fill(e.sign * _INF, "gi", fr.at, s.heads, s.rows, 1, name=f"near{n}_0")
            for n, e in enumerate(self.ends)
        ]

    def prepare(self, fr: Frame, e: Expr) -> Expr:
        """Emits the arguments that are watched, as tiles; ``e`` in terms of them."""
        for argument, name in self.table.items():
            compute_atoms(fr, [argument])
            tile = fr.b.tile(fr.s.heads, fr.s.rows, fr.s.cols)
            fr.tiles[name.name] = fr.b.map([(name.name.rstrip("_"), argument, tile)], atom_env(fr, [argument]))[0]
        return substitute(e, self.table, smart=False) if self.table else e

    def update(self, fr: Frame, forms: Any, partial: Value | None, carried: Sequence[Value]) -> list[Value]:
        """The nearest pair of each row so far; masked pairs do not count."""
        out = []
        for n, (e, nearest) in enumerate(zip(self.ends, carried, strict=True)):
            compute_atoms(fr, [e.argument])
            tile = fr.tiles[e.argument.name]
            tile = mask_tile(fr, forms.mask, tile, partial, e.sign * _INF, f"open{n}")
            out.append(fr.b.reduce("min" if e.sign > 0 else "max", "j", tile, nearest, name=f"near{n}"))
        return out

    def require(self, fr: Frame, found: Sequence[Value]) -> None:
        """Ends the function unless all pairs of the rows are far enough from every end."""
        b, s = fr.b, fr.s
        x, limit_ = param("x_", "bhi"), param("limit_", "")
        for n, (e, nearest) in enumerate(zip(self.ends, found, strict=True)):
            limit = b.op("tile.load", [e.limit], [b.tile(1, 1, 1)], names=[f"limit{n}_t"], axes="")[0]
            distance = add(mul(const(e.sign), x), const(e.offset))
            (room,) = b.map(
                [(f"room_t{n}", sub(distance, limit_), b.tile(s.heads, s.rows, 1))], {"x_": nearest, "limit_": limit}
            )
            b.op("tile.require", [room], [], least=0.0)
