"""What a normaliser declares, and the eager formulas that follow from it.

A normaliser turns the scores s of a query into weights. What it declares are expressions of the score language, so that
the interpreter evaluates them, tile programs are made of them, and their derivatives are symbolic:

- **init**: numbers per row that are gathered over the keys, and what they start from (`Statistic`). Some are gathered
  of scores (softmax: the largest, m), the others of weights (softmax: their sum, l).
- **step**: the weight u of a score, given the statistics of scores; and, where these change from one tile to the next,
  what sums so far have to be multiplied by.
- **merge**: how what is gathered of some keys joins what is gathered of others.
- **finish**: what the sum of u times value is multiplied by, and the row's log-sum-exp, given all statistics.
- **cotangent**: the gradient of a score from that of its weight.
- **invariant**: what may be added to all scores of a row without any weight changing.

A row whose weights sum to 0, say one without open keys, gives 0. A score of -inf weighs 0, whoever made it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from aatc.ir.dims import NAME
from aatc.ir.errors import VerifyError
from aatc.ir.score.derivative import gradients
from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.expr import ONE, ZERO, Expr, add, call, const, mul, param, params, sub, substitute

#: A score, times the unit a program keeps scores in; its weight u; and what `Normalizer.cotangent` takes.
SCORE, WEIGHT, THROUGH, ROW = (
    *(param(name, "bhij") for name in ("x_", "p_", "through_")),
    param("row_", "bhi"),
)


@dataclass(frozen=True)
class Statistic:
    """A number per row, gathered over the keys: the "max" or "min" of SCORE, or the "sum" of an expression over WEIGHT
    that is 0 where that is. A sum starts from 0, the others from the number of the scores' dtype that is farthest off.

    ``value`` is what has been gathered, ``next`` the same with the keys of the present tile. ``title`` names what the
    forward hands to the backward.
    """

    name: str
    op: str = "sum"
    of: Expr = WEIGHT
    title: str = ""
    follows: str = ""

    @property
    def value(self) -> Expr:
        return param(f"{self.name}_", "bhi")

    @property
    def next(self) -> Expr:
        return param(self.follows or f"{self.name}_next_", "bhi")

    @property
    def other(self) -> Expr:
        """What has been gathered of other keys, see `Normalizer.merge`."""
        return param(f"{self.name}_other_", "bhi")

    @property
    def saved(self) -> Expr:
        return param(f"{self.heading}__", "bhi")

    @property
    def heading(self) -> str:
        return self.title or self.name

    def start(self, dtype: torch.dtype) -> float:
        """What it starts from: finite, so that a row without open keys makes no inf - inf."""
        least = float(torch.finfo(dtype).min)
        return {"sum": 0.0, "max": least, "min": -least}[self.op]


#: The sum of a row's weights u.
MASS = Statistic("l", title="mass")


class Normalizer:
    """A declaration: subclasses give a ``name`` and `weight`, and whatever differs from the defaults here.

    label: for people. normalized: weights are divided by their sum. exponential: the weight is the exponential of the
    score up to a factor per row, so that scores may be kept in units of log 2 and other forms of the exponential apply.
    invariant: "row" where a number per row may be added to the scores. merges: what is gathered of parts of the keys
    can be joined by `merge`.
    """

    name: ClassVar[str]
    label: ClassVar[str] = ""
    normalized: ClassVar[bool] = False
    exponential: ClassVar[bool] = False
    invariant: ClassVar[frozenset[str]] = frozenset()
    merges: ClassVar[bool] = True
    of_scores: ClassVar[tuple[Statistic, ...]] = ()
    of_weights: ClassVar[tuple[Statistic, ...]] = (MASS,)

    @property
    def kind(self) -> str:
        """What `aatc.attend` asks of its normaliser."""
        return self.name

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (*self.of_scores, *self.of_weights)

    # --- step ----------------------------------------------------------------------------------------------
    def weight(self, unit: float) -> Expr:
        """u of SCORE and the ``next`` of statistics of scores; 0 of -inf, and not below 0."""
        raise NotImplementedError

    def shrink(self, unit: float) -> Expr | None:
        """What sums of weights are multiplied by when statistics of scores go from ``value`` to ``next``."""
        return None

    # --- merge ---------------------------------------------------------------------------------------------
    def merge(self, unit: float) -> tuple[Mapping[Statistic, Expr], tuple[Expr, Expr] | None]:
        """How what is gathered of some keys joins what is gathered of others: the statistics of scores of all, over the
        ``value`` of the ones and the ``other`` of the others; and what sums of weights of either side are multiplied by
        before they are added, over these and ``next``, the statistic of all (None: by nothing)."""
        joined = {x: call(f"{x.op}imum", x.value, x.other) for x in self.of_scores}
        shrink = self.shrink(unit) if self.of_scores else None
        if shrink is None:
            return joined, None
        return joined, (shrink, substitute(shrink, {x.value: x.other for x in self.of_scores}))

    # --- finish --------------------------------------------------------------------------------------------
    def finish(self, unit: float) -> tuple[Expr | None, Expr]:
        """What the sum of u times value is multiplied by (None: nothing), and the log-sum-exp: here the logarithm of
        the sum of the weights u. Over the ``value`` of statistics."""
        factor = call("reciprocal", _or_one(MASS.value)) if self.normalized else None
        return factor, call("log", MASS.value)

    # --- cotangent -----------------------------------------------------------------------------------------
    def row_factor(self, unit: float, closed_form: bool = False) -> Expr:
        """What the gradient of the output is multiplied by to be that of the sum of u times value, over ``saved``
        statistics. 0 where the weights sum to 0. ``closed_form``: of an exponential, weights are those of a score that
        no statistic was subtracted from."""
        return _inverse(MASS.saved) if self.normalized else ONE

    def row_gradient(self, factor: Expr, grad_lse: Expr, dot: Expr) -> Expr:
        """What the u of a row get by way of their sum, or of what else is gathered of them, over ``saved`` statistics:
        ``factor`` is `row_factor`, ``dot`` <gradient of the output, output>. `cotangent` adds it to each."""
        if self.normalized:
            return mul(factor, sub(grad_lse, dot))
        return mul(_inverse(MASS.saved), grad_lse)

    def again(self, unit: float) -> Mapping[Statistic, Expr]:
        """The statistics of scores that the backward takes weights with, over ``saved`` ones."""
        return {s: s.saved for s in self.of_scores}

    def cotangent(self, unit: float, through: Expr, row: Expr) -> Expr:
        """The gradient of a score (not times ``unit``) from ``through``, that of its weight u by way of the output, and
        `row_gradient`; over SCORE, WEIGHT and the ``next`` of statistics of scores, which count as constants."""
        weight = self.weight(unit)
        slope = gradients([(weight, ONE)], [SCORE]).get(SCORE, ZERO)
        return mul(mul(const(unit), substitute(slope, {weight: WEIGHT})), add(through, row))

    # --- the formula on whole matrices -----------------------------------------------------------------------
    def reference(self, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of scores (B,H,N,M), -inf at closed pairs, and the log-sum-exp (B,H,N)."""
        u, env = self._gathered(s)
        factor, total = self.finish(1.0)
        lse = _number(total, env, s).expand(s.shape[:-1])
        return (u if factor is None else u * _number(factor, env, s).unsqueeze(-1)), lse

    def reference_cotangent(
        self, s: torch.Tensor, grad_weight: torch.Tensor, grad_lse: torch.Tensor | None
    ) -> torch.Tensor:
        """The gradient of the scores from those of `reference`'s results."""
        u, env = self._gathered(s)
        env |= {f"{x.heading}__": env[f"{x.name}_"] for x in self.statistics}
        factor = _number(self.row_factor(1.0), env, s).unsqueeze(-1)
        dot, gl = param("dot__", "bhi"), param("grad_lse__", "bhi")
        env["dot__"] = (u * factor * grad_weight).sum(-1)
        env["grad_lse__"] = torch.zeros_like(env["dot__"]) if grad_lse is None else grad_lse.to(s.dtype)
        env[ROW.name] = _number(self.row_gradient(self.row_factor(1.0), gl, dot), env, s)
        env |= {THROUGH.name: factor * grad_weight, WEIGHT.name: u}
        found = _number(self.cotangent(1.0, THROUGH, ROW), env, s)
        return torch.where(s == float("-inf"), 0.0, found)

    def _gathered(self, s: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """u of all pairs, and the statistics by the names of their parameters."""
        open_ = s != float("-inf")
        env = {SCORE.name: s}
        for x in self.of_scores:
            env[x.value.name] = env[x.next.name] = gather(x, _number(x.of, env, s), open_)
        env[SCORE.name] = s.masked_fill(~open_, 0.0)
        env[WEIGHT.name] = u = torch.where(open_, _number(self.weight(1.0), env, s), 0.0)
        for x in self.of_weights:
            env[x.value.name] = gather(x, _number(x.of, env, s), open_)
        return u, env

    # --- whether it holds together ---------------------------------------------------------------------------
    def check(self) -> None:
        """Raises VerifyError where the declaration does not hold together."""
        if not NAME.match(self.name):
            raise VerifyError(f"a normaliser is called {self.name!r}", hint="a name is an identifier")
        if not isinstance(self.weight(1.0), Expr):
            raise VerifyError(f"the weight of {self.name} is {self.weight(1.0)!r}, no expression of scores")
        given = {SCORE, *(x.next for x in self.of_scores)}
        free = [p for p in params(self.weight(1.0)) if p not in given]
        if free:
            raise VerifyError(f"the weight of {self.name} reads {free[0].name}, which is no statistic of scores")
        if self.of_scores and self.shrink(1.0) is None:
            raise VerifyError(
                f"{self.name} gathers {self.of_scores[0].name} of scores, and does not say how sums shrink"
            )
        for x in self.of_scores:
            if x.op not in ("max", "min") or x.of is not SCORE:
                raise VerifyError(f"{self.name}: {x.name} is no largest or smallest score")
        s = torch.full((1, 1, 1, 1), float("-inf"))
        env = {SCORE.name: s, WEIGHT.name: torch.zeros_like(s)}
        env |= {x.next.name: torch.zeros(1, 1, 1) for x in self.of_scores}
        closed = _number(self.weight(1.0), env, s).item()
        if closed != 0:
            raise VerifyError(f"{self.name} weighs a score of -inf {closed}", hint="a closed pair weighs 0")
        for x in self.of_weights:
            if x.op != "sum" or set(params(x.of)) != {WEIGHT} or _number(x.of, env, s).item() != 0:
                raise VerifyError(f"{self.name}: {x.name} is no sum over weights to which a weight of 0 adds nothing")


def gather(x: Statistic, values: torch.Tensor, open_: torch.Tensor) -> torch.Tensor:
    """The statistic of numbers (B,H,N,M) along the last axis."""
    start = x.start(values.dtype)
    values = torch.where(open_, values, start)
    if x.op == "sum" or not values.shape[-1]:
        return values.sum(-1) if x.op == "sum" else values.new_full(values.shape[:-1], start)
    return values.amax(-1).clamp(min=start) if x.op == "max" else values.amin(-1).clamp(max=start)


def _number(e: Expr, env: Mapping[str, torch.Tensor], s: torch.Tensor) -> torch.Tensor:
    """The value of an expression over pairs or rows of scores like ``s``, with as many dimensions."""
    b, h, n, m = s.shape
    out = evaluate(e, env, (b, h, n, m), dtype=s.dtype, device=s.device)[..., 0]
    return out if e.is_pair else out[..., 0]


def _or_one(x: Expr) -> Expr:
    return call("where", call("eq", x, const(0.0)), const(1.0), x)


def _inverse(x: Expr) -> Expr:
    return call("where", call("eq", x, const(0.0)), const(0.0), call("reciprocal", x))
