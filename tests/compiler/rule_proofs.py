"""Proofs of rewrite rules, away from any program: by algebra where sympy decides, and by sampling the whole domain.

Both sides of a rule are computed by one small evaluator of the score language, which shares no code with aatc's own;
its numbers are either sympy's or 400-digit ones of mpmath. With so many digits no cancellation hides a difference.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import mpmath
import sympy

from aatc.ir.score import Expr, postorder
from aatc.passes.rules import NAMES, Rule

DIGITS = 400
#: Relative to the value; and to the largest number on the way: those are at most 1e160, and cancel to 1e-160 at least.
BOUND, ROUNDING = mpmath.mpf(10) ** -30, mpmath.mpf(10) ** -380
#: Magnitudes around which numbers are drawn: none, tiny, ordinary, large, huge.
MAGNITUDES = (0, -40, -8, 0, 0, 1, 8, 40)
EDGES = tuple(mpmath.mpf(x) for x in ("0", "1e-40", "1e-8", "0.5", "1", "2", "3", "1e8", "1e40"))
JUST_BESIDE = mpmath.mpf(10) ** -20


class Refuted(AssertionError):
    """A rule that does not hold, with the values at which it fails."""


@dataclass(frozen=True)
class Proof:
    """algebra: the widths at which sympy shows both sides equal; none where it does not decide. samples: points of the
    domain at which the two sides agree; residual: the largest relative difference there."""

    algebra: tuple[int, ...]
    samples: int
    residual: float


def prove(rule: Rule) -> Proof:
    """Raises `Refuted` when the rule fails anywhere it is tried."""
    with mpmath.workdps(DIGITS):
        samples, residual = _sampled(rule)
    return Proof(tuple(w for w in _widths(rule) if w < 4 and _decided(rule, w)), samples, residual)


# --- the language ------------------------------------------------------------------------------------------
@dataclass
class Numbers:
    """The functions that the evaluator takes of numbers: those of real arithmetic, as docs/language.md tells them."""

    lib: Any
    largest: Any = 0  # what rounding is relative to

    def exact(self, value: float) -> Any:
        return sympy.Rational(value) if self.lib is sympy else mpmath.mpf(value)

    def clamped(self, x: Any, least: int) -> Any:
        return sympy.Max(x, least) if self.lib is sympy else max(x, mpmath.mpf(least))

    def root_of_square_less_one(self, x: Any) -> Any:
        return self.lib.sqrt((x - 1) * (x + 1))

    def seen(self, x: Any) -> Any:
        if self.lib is mpmath:
            self.largest = max(self.largest, abs(x))
        return x

    def word(self, name: str) -> Callable[..., Any]:
        lib = self.lib
        return {
            "add": lambda x, y: x + y,
            "sub": lambda x, y: x - y,
            "mul": lambda x, y: x * y,
            "div": lambda x, y: x / y,
            "neg": lambda x: -x,
            "abs": lambda x: abs(x),
            "square": lambda x: x * x,
            "sqrt": lambda x: lib.sqrt(self.clamped(x, 0)),
            "exp": lambda x: lib.exp(x),
            "log": lambda x: lib.log(x),
            "acosh": lambda x: self._acosh(self.clamped(x, 1)),
            "arcsinc": self._arcsinc,
            "arcroot": lambda x, r: lib.sqrt(self.clamped(x, 0)) * self._arcsinc(r * x),
            "arcsquare": lambda x, r: x * self._arcsinc(r * x) ** 2,
            "expacosh": lambda x: 1 / (lambda c: c + self.root_of_square_less_one(c))(self.clamped(x, 1)),
        }[name]

    def _arcsinc(self, x: Any) -> Any:
        if self.lib is sympy:  # of any function the two sides are the same
            return sympy.Function("arcsinc")(x)
        if x == 0:
            return mpmath.mpf(1)
        root = mpmath.sqrt(min(x, 1) if x > 0 else -x)
        return (mpmath.asin(root) if x > 0 else mpmath.asinh(root)) / root

    def _acosh(self, x: Any) -> Any:
        return self.lib.log(x + self.root_of_square_less_one(x))


def value(root: Expr, env: dict[Any, Any], numbers: Numbers) -> Any:
    """The value of ``root``: a number, a list for a vector, a list of rows for a matrix. ``env`` has the values of its
    names and indices; the mean of a vector over tokens may be anything, and is what ``env["centre"]`` makes of it."""
    done: dict[Expr, Any] = {}
    for e in postorder(root):
        done[e] = _value(e, [done[a] for a in e.args], env, numbers)
    return done[root]


def _value(e: Expr, args: list[Any], env: dict[Any, Any], numbers: Numbers) -> Any:
    if e.is_const:
        return numbers.exact(e.value)
    if e.fn in ("param", "index"):
        return env[e.name]
    if e.fn == "centre":
        return env["centre"](e.args[0], len(args[0]))
    if e.fn == "dot":
        return _inner(*args, numbers)
    if e.fn == "sum":
        return sum(args[0])
    if e.fn in ("matvec", "turn"):
        return [_inner(row, args[1], numbers) for row in args[0]]
    if e.fn in ("tmatvec", "unturn"):
        return [_inner(column, args[1], numbers) for column in zip(*args[0], strict=True)]
    if e.fn == "eta":
        return [-args[0][0], *args[0][1:]]
    if e.fn == "append":
        return [*args[0], args[1]]
    if e.fn == "rotate":
        return _rotated(*args, e.attrs[0], numbers)
    word = numbers.word(e.fn)
    width = next((len(a) for a in args if isinstance(a, list)), None)
    if width is None:
        return numbers.seen(word(*args))
    rows = zip(*(a if isinstance(a, list) else [a] * width for a in args), strict=True)
    return [numbers.seen(word(*row)) for row in rows]


def _inner(x: list[Any], y: list[Any], numbers: Numbers) -> Any:
    return sum(numbers.seen(a * b) for a, b in zip(x, y, strict=True))


def _rotated(x: list[Any], angles: list[Any], style: str, numbers: Numbers) -> list[Any]:
    half = len(x) // 2
    out = list(x)
    for n, t in enumerate(angles):
        a, b = (n, n + half) if style == "half" else (2 * n, 2 * n + 1)
        c, s = numbers.lib.cos(t), numbers.lib.sin(t)
        out[a], out[b] = _inner([x[a], x[b]], [c, -s], numbers), _inner([x[a], x[b]], [s, c], numbers)
    return out


# --- what the names may be ---------------------------------------------------------------------------------
def names_of(rule: Rule) -> list[str]:
    return list(dict.fromkeys(e.name for e in postorder(rule.pattern, rule.result) if e.fn == "param"))


def _words(rule: Rule) -> set[str]:
    return {e.fn for e in postorder(rule.pattern, rule.result)}


def _rank(name: str) -> int:
    return NAMES[name][0].count("d") + NAMES[name][0].count("e")


def _widths(rule: Rule) -> tuple[int, ...]:
    if not any(_rank(n) for n in names_of(rule)):
        return (1,)
    return (2, 4, 8) if "rotate" in _words(rule) else (1, 2, 3, 5)


def _entries(name: str, rule: Rule, width: int) -> int:
    """Numbers that the value of ``name`` has."""
    if name in ("t", "tq"):
        return width // 2
    return width ** _rank(name)


def _is_frame(rule: Rule) -> bool:
    return bool(_words(rule) & {"turn", "unturn"})


def _keys(rule: Rule) -> int:
    """With how many keys of one query the rule is tried: what must not depend on the key needs two."""
    return 2 if rule.relation == "row-constant" else 1


# --- sampling ----------------------------------------------------------------------------------------------
def _sampled(rule: Rule) -> tuple[int, float]:
    count, worst = 0, mpmath.mpf(0)
    for envs in _samples(rule):
        found = _difference(rule, envs)
        if found is not None:
            count, worst = count + 1, max(worst, found)
    assert count >= 100, f"{rule.name}: too few of the samples lie in the domain"
    return count, float(worst)


def _difference(rule: Rule, envs: list[dict[Any, Any]]) -> Any:
    """How far the two sides are apart; None where the side before has no value."""
    numbers = Numbers(mpmath)
    try:
        before = [_flat(value(rule.pattern, env, numbers)) for env in envs]
    except (ZeroDivisionError, ValueError):
        return None
    if any(isinstance(x, mpmath.mpc) for x in chain.from_iterable(before)):
        return None
    shown = {n: mpmath.nstr(v, 8) for n, v in envs[0].items() if n != "centre"}
    try:
        after = [_flat(value(rule.result, env, numbers)) for env in envs]
    except (ZeroDivisionError, ValueError):
        raise Refuted(f"{rule}: no value at {shown}, where there was one") from None
    if rule.relation == "row-constant":  # what softmax sees: the difference from another key
        before, after = ([[a - b for a, b in zip(*side, strict=True)]] for side in (before, after))
    worst = mpmath.mpf(0)
    for x, y in zip(chain.from_iterable(before), chain.from_iterable(after), strict=True):
        size = max(abs(x), abs(y))
        gap = max(abs(x - y) - ROUNDING * numbers.largest, 0)
        if not gap <= BOUND * size:
            raise Refuted(f"{rule}: {mpmath.nstr(x, 8)} becomes {mpmath.nstr(y, 8)} at {shown}")
        worst = max(worst, gap / size if size else gap)
    return worst


def _flat(x: Any) -> list[Any]:
    return list(x) if isinstance(x, list) else [x]


def _samples(rule: Rule) -> Iterator[list[dict[Any, Any]]]:
    """Points of the domain: every combination of the edges for up to two numbers, then drawn ones of every size."""
    pick = random.Random(rule.before)
    names = names_of(rule)
    if len(names) <= 2 and not any(_rank(n) for n in names) and names:
        grid = [s * x + b for x in EDGES for s in (1, -1) for b in (0, JUST_BESIDE, -JUST_BESIDE)]
        for point in itertools.product(grid, repeat=len(names)):
            yield _in_domain(rule, dict(zip(names, ([x] for x in point), strict=True)), 1, pick)
    widths = _widths(rule)
    for width in widths:
        for n in range(240 // len(widths)):
            size = None if n % 3 == 0 else pick.choice(MAGNITUDES)
            drawn = {name: [_number(pick, size) for _ in range(_entries(name, rule, width))] for name in names}
            if n % 5 == 0:  # equal tokens
                for name in names[1:]:
                    if len(drawn[name]) == len(drawn[names[0]]):
                        drawn[name] = drawn[names[0]]
            yield _in_domain(rule, drawn, width, pick)


def _number(pick: random.Random, magnitude: int | None) -> Any:
    if pick.random() < 0.1:
        return mpmath.mpf(0)
    power = pick.choice(MAGNITUDES) if magnitude is None else magnitude
    return mpmath.mpf(pick.gauss(0, 1)) * mpmath.mpf(10) ** power


def _in_domain(rule: Rule, drawn: dict[str, list[Any]], width: int, pick: random.Random) -> list[dict[Any, Any]]:
    """The values of names, moved into the rule's domain, once for every key."""
    env: dict[Any, Any] = {"i": mpmath.mpf(pick.randrange(-5, 10**6)), "j": mpmath.mpf(pick.randrange(-5, 10**6))}
    for fact in rule.where:
        name, sign, other = fact.split()
        if (sign, other) == (">=", "0"):
            drawn[name] = [abs(x) for x in drawn[name]]
        elif (sign, other) == ("!=", "0"):
            drawn[name] = [x or mpmath.mpf(1) for x in drawn[name]]
        elif fact == "j <= i":
            env["j"] = min(env["i"], env["j"])
        else:
            raise NotImplementedError(f"no way to draw values with {fact}")
    means: dict[tuple[Expr, int], list[Any]] = {}
    env["centre"] = lambda e, n: means.setdefault((e, n), [_number(pick, None) for _ in range(n)])
    envs = []
    for key in range(_keys(rule)):
        here = dict(env)
        for name, numbers in drawn.items():
            if key and "j" in NAMES[name][0]:
                numbers = [x + _number(pick, None) for x in numbers]
            here[name] = _shaped(name, numbers, width)
            if _rank(name) == 2 and _is_frame(rule):
                here[name] = _reflections(width, pick)
        envs.append(here)
    return envs


def _shaped(name: str, numbers: list[Any], width: int) -> Any:
    if _rank(name) == 2:
        return [numbers[n : n + width] for n in range(0, len(numbers), width)]
    return numbers if _rank(name) else numbers[0]


def _reflections(width: int, pick: random.Random) -> list[list[Any]]:
    """A random orthogonal matrix, of either determinant: a product of reflections."""
    m = [[mpmath.mpf(r == c) for c in range(width)] for r in range(width)]
    for _ in range(pick.randrange(width + 1)):
        v = [mpmath.mpf(pick.gauss(0, 1)) for _ in range(width)]
        scale = 2 / sum(x * x for x in v)
        m = [[x - scale * sum(map(mpmath.fmul, row, v)) * y for x, y in zip(row, v, strict=True)] for row in m]
    return m


# --- algebra -----------------------------------------------------------------------------------------------
def _decided(rule: Rule, width: int) -> bool:
    """Whether sympy shows both sides to be the same expression, over all of the domain."""
    return all(_vanishes(rule, envs) for envs in _symbols(rule, width))


def _vanishes(rule: Rule, envs: list[dict[Any, Any]]) -> bool:
    numbers = Numbers(sympy)
    sides = [[_flat(value(side, env, numbers)) for env in envs] for side in (rule.pattern, rule.result)]
    gaps = [[x - y for x, y in zip(*at, strict=True)] for at in zip(*sides, strict=True)]
    if rule.relation == "row-constant":
        gaps = [[x - y for x, y in zip(*gaps, strict=True)]]
    return all(sympy.simplify(sympy.expand(g)) == 0 for g in chain.from_iterable(gaps))


def _symbols(rule: Rule, width: int) -> Iterator[list[dict[Any, Any]]]:
    """Symbols for the names, once for every key, for each of the cases that cover the domain together."""
    facts = set(rule.where)
    ahead = sympy.Symbol("ahead", nonnegative=True)
    i = sympy.Symbol("i", real=True)
    means: dict[tuple[Expr, int], list[Any]] = {}

    def centre(e: Expr, n: int) -> list[Any]:
        return means.setdefault((e, n), [sympy.Symbol(f"mean{len(means)}_{c}", real=True) for c in range(n)])

    index = {"i": i, "j": i - ahead if "j <= i" in facts else sympy.Symbol("j", real=True), "centre": centre}
    clamps = bool(_words(rule) & {"acosh", "expacosh"})
    determinants = (1, -1) if _is_frame(rule) else (1,)
    for sign in determinants:
        for side in (1, -1) if clamps else (0,):
            envs = []
            for key in range(_keys(rule)):
                env = dict(index)
                for name in names_of(rule):
                    at = f"{name}{key if 'j' in NAMES[name][0] else ''}"
                    assumed = {"nonnegative": True} if f"{name} >= 0" in facts else {"real": True}
                    numbers = [sympy.Symbol(f"{at}_{c}", **assumed) for c in range(_entries(name, rule, width))]
                    if side:  # either side of where acosh begins
                        numbers = [1 + side * sympy.Symbol(f"{at}_{c}", nonnegative=True) for c in range(len(numbers))]
                    env[name] = _shaped(name, numbers, width)
                    if _rank(name) == 2 and _is_frame(rule):
                        env[name] = _orthogonal(at, width, sign)
                envs.append(env)
            yield envs


def _orthogonal(name: str, width: int, sign: int) -> list[list[Any]]:
    """Orthogonal matrices of one determinant by Cayley's formula; all but those that turn by half a circle."""
    skew = sympy.zeros(width, width)
    for r in range(width):
        for c in range(r):
            skew[r, c] = sympy.Symbol(f"{name}_{r}{c}", real=True)
            skew[c, r] = -skew[r, c]
    one = sympy.eye(width)
    m = (one - skew).inv() * (one + skew) * sympy.diag(sign, *[1] * (width - 1))
    return [[sympy.cancel(m[r, c]) for c in range(width)] for r in range(width)]
