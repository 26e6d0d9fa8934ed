"""Certificates: the facts rewrites rest on, with witnesses that a small independent check re-examines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from aatc.ir.errors import ScoreError
from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.expr import Expr, params, postorder
from aatc.ir.score.functions import FUNCTIONS

#: (parameter, extents of its feature axes), 0 for those not known.
Widths = tuple[tuple[str, tuple[int, ...]], ...]
LEVELS = ("P0", "P1", "P2", "P3")  # bit-exact; exact in real arithmetic; within epsilon; diagnostic only


@dataclass(frozen=True)
class Certificate:
    """``rule`` was applied at ``subject``. ``witness`` is (kind, ...) as `verify` takes it; ``residual`` is
    the largest deviation found when it was issued, relative, to be at most ``tolerance``."""

    rule: str
    proof_level: str
    statement: str
    assumptions: tuple[str, ...] = ()
    witness: tuple[Any, ...] = ()
    residual: float = 0.0
    tolerance: float = 1e-9
    subject: str = ""

    def __str__(self) -> str:
        given = f" given {'; '.join(self.assumptions)}" if self.assumptions else ""
        return f"{self.rule} [{self.proof_level}, residual {self.residual:.1e}]: {self.statement}{given}"


def certify(
    rule: str,
    statement: str,
    witness: tuple[Any, ...],
    *,
    assumptions: tuple[str, ...] = (),
    level: str = "P1",
    tolerance: float = 1e-9,
    subject: str = "",
    widths: Widths = (),
) -> Certificate:
    """A certificate whose witness has just been checked; ScoreError when the check fails (a compiler bug).

    ``widths``: (parameter, extents of its feature axes) of the program at hand, 0 for those not known; what holds for
    four channels need not hold for five."""
    if widths:
        witness = (*witness, widths)
    residual = verify(witness)
    if not residual <= tolerance:
        raise ScoreError(
            f"rewrite {rule} does not hold: residual {residual:.2e} above {tolerance:.0e}",
            hint="this is a bug of aatc; the module before the rewrite is still valid",
        )
    return Certificate(rule, level, statement, assumptions, witness, residual, tolerance, subject)


def verify(witness: tuple[Any, ...]) -> float:
    """Re-checks a witness numerically in float64 and returns the largest relative deviation.

    Witnesses: ("equal", before, after) for equal expressions; ("row-constant", before, after) for ones whose
    difference must not depend on the key; ("equal-where", mask, fact, before, after) for equality where ``fact``
    holds, which it must wherever ``mask`` does; ("bound", expression, low, high) for a static range; the widths of
    vectors may follow. Parameters are drawn from all of `DOMAINS`. Shares no code with the rules: it only evaluates.

    Deviations are relative to what is compared, pair by pair, or to 1. What the rounding of either side explains does
    not count: where large numbers cancel, say, or at a root of 0, where it takes half of the digits. A claim of which
    nothing could be compared is infinitely off; ScoreError for what is no witness.
    """
    _read(witness)
    try:
        return _largest_deviation(witness)
    except (RuntimeError, IndexError) as error:
        raise _no_witness(witness, f"it cannot be evaluated: {error}") from error


@lru_cache(maxsize=1024)
def _largest_deviation(witness: tuple[Any, ...]) -> float:
    kind, items, widths = _read(witness)
    roots = [e for e in items if isinstance(e, Expr)]
    draw = _Draw(roots, widths)
    worst, held = 0.0, False
    for domain in DOMAINS:
        for n, (sizes, starts) in enumerate(_SIZES):
            values: dict[Expr, torch.Tensor] = {}
            if n and domain == "huge":
                starts = _FARTHEST
            env = draw.tensors(domain, sizes, n)
            found = _found(roots, env, sizes, starts, values)
            defined = _defined(items[-2] if kind != "bound" else items[0], values, sizes)
            if domain in _SINGULAR and kind != "bound":  # rounding may put either side on a pole there
                defined = defined & _defined(items[-1], values, sizes)
            held |= bool((defined & found[1] if kind == "equal-where" else defined).any())
            singular = domain in _SINGULAR
            # half of the digits: deviations up to 1e-6 count as 1e-9 there
            part = (1e-3 if singular else 1.0) / _scale(found[-2:])
            deviation = _deviation(kind, items, found, defined, singular, part)
            if math.isfinite(deviation) and deviation > _EXACT and kind != "bound":
                noise = _noise(kind, roots, env, sizes, starts, values, singular)
                deviation = _deviation(kind, items, found, defined, singular, part, noise)
            worst = max(worst, deviation)
    return worst if held else float("inf")  # what is said of pairs where there are none says nothing


#: How many expressions a witness of a kind holds, and how many numbers behind them.
_KINDS = {"equal": (2, 0), "row-constant": (2, 0), "equal-where": (4, 0), "bound": (1, 2)}


def _read(witness: tuple[Any, ...]) -> tuple[str, list[Any], dict[str, tuple[int, ...]]]:
    """The kind of a witness, its expressions and numbers, and the widths of vectors."""
    if not isinstance(witness, tuple) or not witness or witness[0] not in _KINDS:
        raise _no_witness(witness, f"its kind is none of {', '.join(_KINDS)}")
    kind, *items = witness
    expressions, numbers = _KINDS[kind]
    widths: Any = items.pop() if len(items) == expressions + numbers + 1 else ()
    if len(items) != expressions + numbers or not all(isinstance(e, Expr) for e in items[:expressions]):
        raise _no_witness(witness, f"{kind} takes {expressions} expressions and {numbers} numbers")
    logical = [n < 2 and kind == "equal-where" for n in range(expressions)]
    if any(e.rank > 2 or (e.dtype == "b") != truth for e, truth in zip(items, logical, strict=False)):
        raise _no_witness(witness, "what it compares are numbers or vectors, and what it asks for are truth values")
    if kind == "bound":
        low, high = items[1:]
        if not all(isinstance(x, (int, float)) for x in items[1:]) or not low <= high:
            raise _no_witness(witness, f"[{low}, {high}] is no range")
    return kind, items, _read_widths(witness, widths, items[:expressions])


def _read_widths(witness: Any, widths: Any, expressions: list[Expr]) -> dict[str, tuple[int, ...]]:
    pairs = widths if isinstance(widths, tuple) else (None,)
    for x in pairs:
        if not (isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) and isinstance(x[1], tuple)):
            raise _no_witness(witness, "widths are (parameter, extents) each")
        if not all(isinstance(w, int) and w >= 0 for w in x[1]):
            raise _no_witness(witness, f"{x[0]} has extents {x[1]}")
    found = dict(pairs)
    for p in params(*expressions):
        letters = p.attrs[1][len(p.attrs[1].rstrip("detu")) :]
        if p.name in found and len(found[p.name]) != len(letters):
            raise _no_witness(witness, f"{p.name} has {len(letters)} feature axes, not {len(found[p.name])}")
    return found


def _no_witness(witness: Any, why: str) -> ScoreError:
    return ScoreError(f"no witness: {str(witness)[:200]}: {why}", hint="aatc.passes.certificate.verify lists the kinds")


Env = Mapping[str, Any]
Sizes = tuple[int, int, int, int]
Values = dict[Expr, torch.Tensor]

#: Deviations that rounding need not explain.
_EXACT = 1e-12
#: How often a formula is evaluated with other roundings, and how many times what they make of it is explained by them.
_SAMPLES, _EXPLAINED = 4, 32.0
#: By how much of itself a number moves where it has lost all but three of its digits.
_BESIDE_A_POLE = 1e-3
#: Numbers that only a division by what cancels makes, among data that are not huge.
_LARGE = 1e12


def _found(
    roots: list[Expr], env: Env, sizes: Sizes, starts: Sizes, values: Values, rounded: Any = None
) -> list[torch.Tensor]:
    """The value of every root for every pair."""
    more = {"dtype": torch.float64, "values": values, "starts": starts, "rounded": rounded}
    return [evaluate(e, env, sizes, **more).expand(*sizes, -1) for e in roots]


def _noise(
    kind: str, roots: list[Expr], env: Env, sizes: Sizes, starts: Sizes, exact: Values, singular: bool
) -> torch.Tensor:
    """How far apart the two sides may be because every number on the way is rounded, per pair."""
    generator, unit = torch.Generator().manual_seed(20241), 2.0**-52

    def rounded(e: Expr, value: torch.Tensor) -> torch.Tensor:
        if e.dtype != "f" or e.is_const:
            return value
        return value * (1 + unit * (2 * torch.rand(value.shape, generator=generator, dtype=value.dtype) - 1))

    # what words that jump read is not rounded otherwise: it would be other data
    kept = {e: v for e, v in exact.items() if e.dtype != "f" or (e.fn in FUNCTIONS and FUNCTIONS[e.fn].jumps)}
    sides = [exact[e].expand(*sizes, -1) for e in roots[-2:]]
    noise = torch.zeros(*sizes, 1, dtype=torch.float64)
    # among singular data a pair that another rounding puts on a pole says nothing
    pole = float("inf") if singular else 0.0
    beside = torch.zeros_like(noise, dtype=torch.bool)
    for _ in range(_SAMPLES):
        values = dict(kept)
        others = _found(roots[-2:], env, sizes, starts, values, rounded)
        apart = [(_compared(kind, x) - _compared(kind, y)).abs() for x, y in zip(sides, others, strict=True)]
        noise = torch.maximum(noise, (apart[0] + apart[1]).nan_to_num(pole, pole, pole))
        if singular:
            beside |= _beside_poles(exact, values, sizes)
    if singular:  # beside a pole, too: what other roundings move that far, they may move further
        beside |= noise > _BESIDE_A_POLE * _scale([_compared(kind, x) for x in sides])
        noise = noise.masked_fill(beside, pole)
    return noise * _EXPLAINED


def _compared(kind: str, side: torch.Tensor) -> torch.Tensor:
    """What is compared of a side: the number, or its difference from the first key's."""
    return side - side[:, :, :, :1] if kind == "row-constant" else side


#: What parameters are drawn from: both signs, the positive cone, large, huge and tiny, zeros among them, all tokens
#: equal or nearly so, unit vectors, small integers.
DOMAINS = ("signed", "positive", "large", "huge", "tiny", "zeros", "equal", "near", "unit", "integers")
#: Where formulas divide by little, take roots of what cancels or sines of large angles: either side has half of its
#: digits.
_SINGULAR = ("huge", "tiny", "zeros", "equal", "near", "unit", "integers")
#: (B, H, I, J) and the positions they begin at: the first pairs of two problems, and pairs far along every axis.
_SIZES = (((2, 2, 5, 6), (0, 0, 0, 0)), ((3, 4, 5, 7), (9, 20, 70_000, 69_998)))


#: Where positions begin among huge numbers.
_FARTHEST: Sizes = (9, 20, 2**33, 2**33 - 2)


def _beside_poles(exact: Values, other: Values, sizes: Sizes) -> torch.Tensor:
    """Pairs for which some number on the way is large, and another rounding makes a different one of it: words that
    saturate, as tanh does, hide it from what is compared."""
    found = torch.zeros(*sizes, 1, dtype=torch.bool)
    for e, y in other.items():
        x = exact.get(e)
        if x is None or e.dtype != "f" or e.rank:
            continue
        same = ((x - y).abs() <= _BESIDE_A_POLE * x.abs()) | (x == y)
        far = ~same & ~((x.abs() < _LARGE) & (y.abs() < _LARGE))
        found |= far.expand(*sizes, 1)
    return found


class _Draw:
    """Random data for the parameters of some expressions."""

    def __init__(self, roots: list[Expr], widths: dict[str, tuple[int, ...]]):
        self.generator = torch.Generator().manual_seed(20240 + len(roots))
        self.params = params(*roots)
        self.angles, self.frames = _read_by(roots, ("rotate",), 1), _read_by(roots, ("turn", "unturn"), 0)
        items = [e.attrs[0] for e in postorder(*roots) if e.fn in ("item", "embed")]
        least = max([4, *(c + 1 for c in items), *(-c for c in items)])
        self.widths = widths
        self.least = self.default = least + least % 2

    def tensors(self, domain: str, sizes: Sizes, n: int) -> dict[str, torch.Tensor]:
        """By name. Vectors whose width is not known are wider in the ``n``-th set of sizes than in the one before."""
        if not any(w for extents in self.widths.values() for w in extents):
            self.default = self.least + 2 * n
        extents = dict(zip("bhij", sizes, strict=True))
        common: dict[tuple[int, ...], torch.Tensor] = {}
        out = {}
        for p in self.params:
            name, axes, dtype = p.attrs
            lead = [extents[c] for c in axes if c in extents]
            out[name] = self._tensor(p, domain, lead, self._tail(p), dtype, common)
        return out

    def _tail(self, p: Expr) -> list[int]:
        letters = p.attrs[1][len(p.attrs[1].rstrip("detu")) :]
        known = self.widths.get(p.name, (0,) * len(letters))
        default = {"d": self.default // 2 if p in self.angles else self.default, "e": self.default, "t": 32, "u": 8}
        return [w or default[c] for c, w in zip(letters, known, strict=True)]

    def _tensor(self, p: Expr, domain: str, lead: list[int], tail: list[int], dtype: str, common: Any) -> torch.Tensor:
        shape = [*lead, *tail]
        if dtype == "i":
            most = {"large": 2**40, "huge": 2**60}.get(domain, 4)
            return torch.randint(-most, most, shape, generator=self.generator)
        if dtype == "b":
            return torch.rand(shape, generator=self.generator) < 0.6
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if p in self.frames:
            frame: torch.Tensor = torch.linalg.qr(x)[0]
            return frame
        if domain in ("equal", "near") and len(tail) == 1 and p not in self.angles:
            one: torch.Tensor = common.setdefault(
                tuple(tail), torch.rand(tail, generator=self.generator, dtype=torch.float64) * 0.3
            )
            return one.expand(shape) + (1e-6 * x if domain == "near" else 0.0 * x)
        if domain == "positive":
            return torch.rand(shape, generator=self.generator, dtype=torch.float64) * 0.3 + 0.05
        if domain == "unit" and tail:
            return torch.nn.functional.normalize(x, dim=-1)
        if domain == "zeros":
            whole = torch.rand([*lead, *[1] * len(tail)], generator=self.generator) < 0.3
            return x.masked_fill(whole | (torch.rand(shape, generator=self.generator) < 0.2), 0.0)
        if domain == "integers":
            return x.round()
        return x * {"large": 1e3, "huge": 1e8, "tiny": 1e-6}.get(domain, 1.0)


def _read_by(roots: list[Expr], words: tuple[str, ...], at: int) -> set[Expr]:
    """Parameters in the argument ``at`` of any of ``words``."""
    return {p for e in postorder(*roots) if e.fn in words for p in params(e.args[at])}


def _scale(sides: list[torch.Tensor]) -> torch.Tensor:
    """The largest finite number among those compared of a pair, at least 1."""
    found = torch.stack([x.abs().nan_to_num(0.0, 0.0, 0.0).amax(-1, keepdim=True) for x in sides])
    return found.amax(0).clamp(min=1.0)


def _defined(e: Expr, values: dict[Expr, torch.Tensor], sizes: Sizes) -> torch.Tensor:
    """Pairs for which no part of ``e`` is infinite or NaN: elsewhere real arithmetic gives it no value. What is
    infinite because a constant is, as where a score is closed by -inf, has one."""
    defined = torch.ones(*sizes, 1, dtype=torch.bool)
    meant: dict[Expr, torch.Tensor] = {}
    for x in postorder(e):
        if x.dtype != "f" or x.rank >= 3:
            continue
        v = values[x]
        if x.is_const:
            meant[x] = torch.isinf(v)
            continue
        for a in x.args:
            if a in meant and not x.rank:
                found = meant[a] & (torch.isinf(v) if x.fn != "where" else v == values[a])
                meant[x] = found | meant[x] if x in meant else found
        finite = torch.isfinite(v)
        if x in meant:
            finite = finite | (meant[x] & ~torch.isnan(v))
        defined = defined & finite.flatten(4).all(-1, keepdim=True)
    return defined


def _deviation(
    kind: str,
    items: Sequence[Any],
    values: Sequence[Any],
    defined: torch.Tensor,
    singular: bool,
    part: torch.Tensor,
    noise: torch.Tensor | float = 0.0,
) -> float:
    """The largest difference beyond ``noise``, times ``part``, where the side before the rewrite is defined; infinite
    where only the other one is not, unless the data are ``singular``: rounding may put either side on a pole there."""
    if kind == "bound":
        _, low, high = items
        v = torch.where(defined, values[0], max(low, min(high, 0.0)))
        beyond = torch.maximum(low - v, v - high).clamp(min=0.0) * part
        return float(beyond.max()) if not torch.isnan(beyond).any() else float("inf")
    mask, fact, before, after = values if kind == "equal-where" else (None, None, *values)
    if mask is not None and bool((mask & ~fact).any()):
        return float("inf")
    mask = fact
    counts = defined if mask is None else defined & mask
    if not singular:  # a NaN that the rewrite would hide
        hidden = torch.isnan(before) & torch.isfinite(after)
        if bool((hidden if mask is None else hidden & mask).any()):
            return float("inf")
    if kind == "row-constant":
        counts = counts & counts[:, :, :, :1]
    before, after = _compared(kind, before), _compared(kind, after)
    if kind == "row-constant":
        part = part.amin(3, keepdim=True)
    apart = (before - after).abs().masked_fill(before == after, 0.0)  # one infinity is like the other
    difference = ((apart - noise).clamp(min=0.0) * part).masked_fill(~counts, 0.0)
    return float(difference.max()) if not torch.isnan(difference).any() else float("inf")
