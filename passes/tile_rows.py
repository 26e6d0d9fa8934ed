"""What the backward takes of rows of queries: its arguments, and numbers per row that the normaliser makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aatc.ir.core import Value
from aatc.ir.normalizers import Statistic
from aatc.ir.normalizers.softmax import Softmax
from aatc.ir.score.derivative import gradients
from aatc.ir.score.expr import ZERO, Expr, call, const, mul, param
from aatc.ir.types import TensorType, compute_name
from aatc.passes.factor import Token
from aatc.passes.lowering import Attention, compute_tokens
from aatc.passes.tile_core import Frame
from aatc.passes.tile_forward import Forms, arguments, saved_type, statistic_type


@dataclass
class Extra:
    """Tokens only the backward has (the output's gradient times the row's factor, what all weights of a row get, and
    the statistics that weights are taken with), and gradient buffers by token name: ``buffers`` for what comes through
    scores and coefficients, which carries a factor until the end, ``values`` for carried vectors."""

    grad: Token
    rho: Token
    given: dict[Statistic, Token]
    summed: bool  # the statistics are the log-sum-exp
    row_dots: dict[str, Token] = field(default_factory=dict)
    buffers: dict[str, Value] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)


def backward_arguments(a: Attention, summed: bool) -> tuple[dict[str, Value], list[Value]]:
    """What a backward takes, by the names its programs know it under: gradients of output and log-sum-exp, the output
    before the query's map, and of each row its statistics, or with ``summed`` its log-sum-exp; then the operands."""
    v = a.types[a.names[2]]
    rows = (a.batch, a.heads, a.rows)
    kinds = {
        "grad_o": TensorType(v.dtype, (*rows, v.shape[3])),
        "grad_lse": TensorType(compute_name(a.types[a.names[0]].dtype), rows),
        "o": saved_type(a),
        **{n: statistic_type(a) for n in (("log_sum",) if summed else _titles(a))},
    }
    return {f"{n}__": Value(t, n) for n, t in kinds.items()}, arguments(a)


def _is_closed(summed: bool) -> Expr:
    """Whether a row has no open key."""
    if summed:
        return call("eq", param("log_sum__", "bhi"), const(float("-inf")))
    return call("eq", param("mass__", "bhi"), const(0.0))


def row_cotangent(summed: bool) -> Expr:
    """The gradient of the number per query that the log-sum-exp gets added: 0 where that is -inf and stays it."""
    return call("where", _is_closed(summed), ZERO, param("grad_lse__", "bhi"))


def _titles(a: Attention) -> list[str]:
    return [x.heading for x in a.programs.normalizer.statistics]


def _row_statistics(forms: Forms, summed: bool) -> tuple[Mapping[Statistic, Expr], Expr]:
    """The statistics that weights are taken with, and the row's factor; rows without open keys weigh nothing."""
    n = forms.normalizer
    if summed:
        assert isinstance(n, Softmax)
        return n.from_lse(forms.unit)
    return n.again(forms.unit), n.row_factor(forms.unit, closed_form=forms.weight is not None)


def extra_tokens(fr: Frame, forms: Forms, summed: bool) -> Extra:
    """Computes the tokens that only the backward has."""
    a = fr.a
    go, o, gl = param("grad_o__", "bhid"), param("o__", "bhid"), param("grad_lse__", "bhi")
    pulled = go
    if forms.epilogue is not None:
        pulled = gradients([(forms.epilogue, go)], [forms.place])[forms.place]
        fr.operands[forms.place.name] = fr.operands["o__"]
    given, factor = _row_statistics(forms, summed)
    grad = Token("grad_t", mul(factor, pulled), "bhid")
    rho = Token("rho_t", forms.normalizer.row_gradient(factor, gl, call("dot", pulled, o)), "bhi")
    extra = Extra(grad, rho, {x: Token(f"{x.heading}_t", e, "bhi") for x, e in given.items()}, summed)
    extra_tokens = [grad, rho, *extra.given.values()]
    for term in forms.carry:
        if not term.col:
            t = Token(f"rd_{term.vector.name}", mul(factor, call("dot", pulled, term.vector.expr)), "bhi")
            extra.row_dots[term.vector.name] = t
            extra_tokens.append(t)
    fr.buffers |= compute_tokens(fr.b, a, fr.f, fr.operands, extra_tokens)
    for t in extra_tokens:
        fr.f.tokens[t.expr, f"{t.name}"] = t
    return extra
