"""Operators, methods and torch functions as words of the score language: what a user's function may do.

Each is a Python function with torch's own parameters, so that an argument which cannot be honoured is refused, not
ignored. Arguments are expressions, or constants of Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from aatc import traced_arguments as arguments
from aatc.ir.errors import ScoreError
from aatc.ir.score import expr as e
from aatc.ir.score.expr import Expr, call, const
from aatc.ir.score.functions import FUNCTIONS

WORDS: dict[str, Callable[..., Expr]] = {}


def _word(*names: str) -> Callable[[Callable[..., Expr]], Callable[..., Expr]]:
    def declare(f: Callable[..., Expr]) -> Callable[..., Expr]:
        for n in names:
            WORDS[n] = f
        return f

    return declare


# --- reading a tape --------------------------------------------------------------------------------------------
def build(node: tuple, values: Sequence[Expr], numbers: Sequence[Expr], leaves: Mapping[str, Expr]) -> Expr:
    """The expression of one recorded operation; ScoreError when the language lacks it."""
    word, args, kwargs = node
    if word == "leaf":
        name = args[0][1]
        return leaves[name] if name in leaves else e.index(name)
    word = word.strip("_")  # of an operator of tensors, as __add__
    function = WORDS.get(word) or _declared_since(word)
    if function is None:
        raise arguments.unknown(word)
    given = [_read(a, values, numbers) for a in args]
    named = {n: _read(a, values, numbers) for n, a in kwargs}
    try:
        _signature(function).bind(*given, **named)
    except TypeError as error:
        known = ", ".join(_signature(function).parameters)
        raise ScoreError(f"{word}: {error}", hint=f"in a score it takes {known}") from None
    return function(*given, **named)


def result_of(entry: tuple, values: Sequence[Expr], numbers: Sequence[Expr]) -> Expr:
    """The expression of what a function returned."""
    value = _read(entry, values, numbers)
    if isinstance(value, (Expr, bool, int, float)):
        return arguments.expression(value)
    raise ScoreError(f"the function returns {value!r}", hint="return a score")


def _read(entry: tuple, values: Sequence[Expr], numbers: Sequence[Expr]) -> Any:
    kind, value = entry
    if kind == "node":
        return values[value]
    if kind == "number":
        return numbers[value]
    if kind == "list":
        return tuple(_read(x, values, numbers) for x in value)
    if kind == "word":
        return value
    return value == "True" if kind == "b" else int(value) if kind == "i" else float(value)


@lru_cache(maxsize=256)
def _signature(function: Callable[..., Expr]) -> inspect.Signature:
    return inspect.signature(function)


# --- arithmetic ------------------------------------------------------------------------------------------------
@_word("add")
def _add(input: Any, other: Any, *, alpha: Any = 1) -> Expr:
    x, y = arguments.two_numbers(input, other)
    return e.add(x, _scaled(alpha, y))


@_word("sub", "subtract")
def _sub(input: Any, other: Any, *, alpha: Any = 1) -> Expr:
    x, y = arguments.two_numbers(input, other)
    return e.sub(x, _scaled(alpha, y))


def _scaled(alpha: Any, y: Expr) -> Expr:
    return y if alpha == 1 and not isinstance(alpha, Expr) else e.mul(arguments.number(alpha, y), y)


@_word("rsub")
def _rsub(input: Any, other: Any, *, alpha: Any = 1) -> Expr:
    return _sub(other, input, alpha=alpha)


@_word("mul", "multiply")
def _mul(input: Any, other: Any) -> Expr:
    return e.mul(*arguments.two_numbers(input, other))


@_word("div", "divide", "truediv", "true_divide")
def _div(input: Any, other: Any, *, rounding_mode: Any = None) -> Expr:
    if rounding_mode == "floor":
        return _floordiv(input, other)
    if rounding_mode is not None:
        raise ScoreError(
            f"rounding_mode={rounding_mode!r} is not in the score language", hint='there is "floor", or //'
        )
    return e.div(*arguments.two_numbers(input, other))


@_word("floordiv", "floor_divide")
def _floordiv(input: Any, other: Any) -> Expr:
    return call("floordiv", *arguments.two_numbers(input, other))


@_word("mod", "remainder")
def _mod(input: Any, other: Any) -> Expr:
    return call("remainder", *arguments.two_numbers(input, other))


@_word("pow", "power")
def _pow(input: Any, exponent: Any) -> Expr:
    x, p = arguments.two_numbers(input, exponent)
    return e.power(x, p)


@_word("matmul", "inner", "vdot", "dot", "vecdot", "linalg_vecdot", "mv")
def _matmul(input: Any, other: Any, *, dim: Any = -1) -> Expr:
    arguments.over_features(dim, "a product")
    x, y = arguments.expression(input), arguments.expression(other)
    if x.rank == 2:
        return call("matvec", x, arguments.number(y, e.ONE))
    if y.rank == 2:
        return call("tmatvec", y, arguments.number(x, e.ONE))
    return call(
        "dot",
        arguments.number(arguments.vector(x, "a contraction"), e.ONE),
        arguments.number(arguments.vector(y, "a contraction"), e.ONE),
    )


@_word("neg", "negative")
def _neg(input: Any) -> Expr:
    return e.neg(arguments.number(input))


@_word("pos", "positive")
def _pos(input: Any) -> Expr:
    return arguments.number(input)


# --- truth -----------------------------------------------------------------------------------------------------
def _comparison(word: str) -> Callable[..., Expr]:
    def compare(input: Any, other: Any) -> Expr:
        x, y = arguments.expression(input), arguments.expression(other)
        if not (word in ("eq", "ne") and x.dtype == y.dtype == "b"):
            x, y = arguments.two_numbers(x, y)
        return call(word, x, y)

    return compare


for _names in ("lt less", "le less_equal", "gt greater", "ge greater_equal", "eq", "ne not_equal"):
    _word(*_names.split())(_comparison(_names.split()[0]))


def _truths(*xs: Any) -> list[Expr]:
    found = [arguments.expression(x) for x in xs]
    if any(x.dtype != "b" for x in found):
        raise ScoreError("& | ^ ~ combine truth values, and a number is none", hint="compare it first: x != 0")
    return found


@_word("and", "logical_and", "bitwise_and")
def _and(input: Any, other: Any) -> Expr:
    return call("and", *_truths(input, other))


@_word("or", "logical_or", "bitwise_or")
def _or(input: Any, other: Any) -> Expr:
    return call("or", *_truths(input, other))


@_word("xor", "logical_xor", "bitwise_xor")
def _xor(input: Any, other: Any) -> Expr:
    return call("ne", *_truths(input, other))


@_word("invert", "logical_not", "bitwise_not")
def _not(input: Any) -> Expr:
    return call("not", *_truths(input))


@_word("where")
def _where(condition: Any, input: Any, other: Any) -> Expr:
    c, x, y = arguments.expression(condition), arguments.expression(input), arguments.expression(other)
    if c.dtype != "b" and x.dtype == "b":  # Tensor.where(condition, other)
        c, x = x, c
    if (x.dtype == "b") != (y.dtype == "b"):
        x, y = arguments.two_numbers(x, y)
    return call("where", c, x, y)


@_word("where_method")
def _where_method(input: Any, condition: Any, other: Any) -> Expr:
    return _where(condition, input, other)


@_word("masked_fill")
def _masked_fill(input: Any, mask: Any, value: Any) -> Expr:
    return _where(mask, value, input)


# --- functions of a number -------------------------------------------------------------------------------------
def _unary(word: str) -> Callable[..., Expr]:
    def apply(input: Any, *, inplace: Any = False, out: Any = None) -> Expr:
        arguments.refuse(inplace=inplace, out=out)
        return call(word, arguments.number(input))

    return apply


def _declared_since(word: str) -> Callable[..., Expr] | None:
    """A word that somebody has declared, by a name of its own or of a torch function."""
    found = next((f for f in FUNCTIONS.values() if f.spelled and word in (f.name, *f.torch_names)), None)
    if found is None:
        return None
    return lambda *given: call(found.name, *(arguments.number(x) for x in given))


for _f in FUNCTIONS.values():
    if _f.arity == 1 and _f.kind == "pointwise" and _f.name not in ("neg", "not", "softplus"):
        _word(*(n for n in _f.torch_names if not n.startswith("_")))(_unary(_f.name))
_word("absolute", "fabs")(_unary("abs"))


@_word("ceil")
def _ceil(input: Any) -> Expr:
    return e.neg(call("floor", e.neg(arguments.number(input))))


@_word("softplus")
def _softplus(input: Any, beta: Any = 1, threshold: Any = 20) -> Expr:
    if threshold != 20:
        raise ScoreError(f"softplus with threshold={threshold!r} is not in the score language", hint="leave it out")
    x, b = arguments.number(input), arguments.number(beta)
    return call("softplus", x) if b.is_const and b.value == 1 else e.div(call("softplus", e.mul(b, x)), b)


@_word("silu")
def _silu(input: Any, inplace: Any = False) -> Expr:
    arguments.refuse(inplace=inplace)
    x = arguments.number(input)
    return e.mul(x, call("sigmoid", x))


@_word("logsigmoid", "log_sigmoid")
def _logsigmoid(input: Any) -> Expr:
    return e.neg(call("softplus", e.neg(arguments.number(input))))


@_word("log10")
def _log10(input: Any) -> Expr:
    return e.mul(const(0.30102999566398119521), call("log2", arguments.number(input)))


@_word("clamp", "clip")
def _clamp(input: Any, min: Any = None, max: Any = None) -> Expr:
    if min is None and max is None:
        raise ScoreError("clamp without bounds", hint="give min, max or both")
    x = arguments.number(input)
    if min is not None:
        x = call("maximum", x, _bound(min, x))
    return x if max is None else call("minimum", x, _bound(max, x))


@_word("clamp_min")
def _clamp_min(input: Any, min: Any) -> Expr:
    return _clamp(input, min=min)


@_word("clamp_max")
def _clamp_max(input: Any, max: Any) -> Expr:
    return _clamp(input, max=max)


def _bound(x: Any, like: Expr) -> Expr:
    if isinstance(x, int) and not isinstance(x, bool) and like.dtype == "f":
        x = float(x)
    return arguments.number(x, like)


@_word("unsqueeze", "squeeze")
def _as_it_is(input: Any, dim: Any) -> Expr:
    """What a sum without ``keepdim`` needs to meet vectors again: here a number per pair meets them anyway."""
    x = arguments.expression(input)
    if dim != -1 or x.rank:
        raise ScoreError(f"a change of dim {dim} of a score", hint="a metric sees one pair of vectors, without batch")
    return x


@_word("float", "double")
def _float(input: Any) -> Expr:
    return arguments.number(input)


@_word("to", "type")
def _to(input: Any, dtype: Any) -> Expr:
    if dtype in (torch.float32, torch.float64):
        return arguments.number(input)
    if dtype in (torch.int64, torch.int32):
        return _long(input)
    if dtype == torch.bool:
        return _bool(input)
    raise ScoreError(f"a score as {dtype}", hint="scores are computed in float32 or float64")


@_word("long", "int")
def _long(input: Any) -> Expr:
    x = arguments.number(input, const(0))
    if x.dtype == "f":
        raise ScoreError("a score cut to an integer", hint="torch.floor(x) rounds down and stays a number")
    return x


@_word("bool")
def _bool(input: Any) -> Expr:
    x = arguments.expression(input)
    return x if x.dtype == "b" else call("ne", x, const(0))


# --- vectors ---------------------------------------------------------------------------------------------------
@_word("sum")
def _sum(input: Any, dim: Any = -1, keepdim: Any = False, *, axis: Any = -1, dtype: Any = None) -> Expr:
    arguments.over_features(dim, "sum")
    arguments.over_features(axis, "sum")
    arguments.refuse(dtype=dtype)
    return call("sum", arguments.number(arguments.vector(input, "sum"), e.ONE))


@_word("mean")
def _mean(input: Any, dim: Any = -1, keepdim: Any = False, *, axis: Any = -1, dtype: Any = None) -> Expr:
    x = arguments.number(arguments.vector(input, "mean"), e.ONE)
    return e.div(_sum(x, dim, keepdim, axis=axis, dtype=dtype), e.width(x))


@_word("amax")
def _amax(input: Any, dim: Any = -1, keepdim: Any = False) -> Expr:
    arguments.over_features(dim, "amax")
    return call("amax", arguments.number(arguments.vector(input, "amax"), e.ONE))


@_word("amin")
def _amin(input: Any, dim: Any = -1, keepdim: Any = False) -> Expr:
    arguments.over_features(dim, "amin")
    return call("amin", arguments.number(arguments.vector(input, "amin"), e.ONE))


@_word("maximum")
def _maximum(input: Any, other: Any) -> Expr:
    return call("maximum", *arguments.two_numbers(input, other))


@_word("minimum")
def _minimum(input: Any, other: Any) -> Expr:
    return call("minimum", *arguments.two_numbers(input, other))


def _extreme(whole: Callable[..., Expr], pairwise: Callable[..., Expr], name: str) -> Callable[..., Expr]:
    def apply(input: Any, other: Any = None, keepdim: Any = False, *, dim: Any = None) -> Expr:
        if isinstance(other, (Expr, float)):
            return pairwise(input, other)
        if dim is not None or other is not None:
            raise ScoreError(f"{name} over a dim gives values and places", hint=f"x.a{name}(-1) gives the values alone")
        return whole(input)

    return apply


_word("max")(_extreme(_amax, _maximum, "max"))
_word("min")(_extreme(_amin, _minimum, "min"))


@_word("norm", "linalg_norm")
def _norm(
    input: Any, p: Any = 2, dim: Any = -1, keepdim: Any = False, out: Any = None, dtype: Any = None, *, ord: Any = 2
) -> Expr:
    arguments.refuse(out=out)
    return _vector_norm(input, ord if p in (2, "fro") else p, dim, keepdim, dtype=dtype)


@_word("vector_norm", "linalg_vector_norm")
def _vector_norm(input: Any, ord: Any = 2, dim: Any = -1, keepdim: Any = False, *, dtype: Any = None) -> Expr:
    arguments.over_features(dim, "norm")
    arguments.refuse(dtype=dtype)
    x = arguments.number(arguments.vector(input, "norm"), e.ONE)
    if ord in (None, "fro", 2):
        return call("sqrt", call("dot", x, x))
    if ord == 1:
        return call("sum", call("abs", x))
    if ord == 0:
        return call("sum", arguments.number(call("ne", x, e.ZERO)))
    if ord in (float("inf"), -float("inf")):
        return call("amax" if ord > 0 else "amin", call("abs", x))
    raise ScoreError(f"a norm of order {ord!r} is not in the score language", hint="there are 0, 1, 2, inf and -inf")


@_word("dist")
def _dist(input: Any, other: Any, p: Any = 2) -> Expr:
    return _vector_norm(_sub(input, other), p)


@_word("normalize")
def _normalize(input: Any, p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12, out: Any = None) -> Expr:
    arguments.refuse(out=out)
    arguments.over_features(dim, "normalize")
    x = arguments.number(input, e.ONE)
    return e.div(x, call("maximum", _vector_norm(x, p), arguments.number(eps)))


@_word("cosine_similarity")
def _cosine(x1: Any, x2: Any, dim: Any = 1, eps: Any = 1e-8) -> Expr:
    arguments.over_features(dim, "cosine_similarity")
    return call("dot", _normalize(x1, 2, -1, eps), _normalize(x2, 2, -1, eps))


@_word("getitem")
def _item(input: Any, channel: Any) -> Expr:
    if isinstance(channel, bool) or not isinstance(channel, int):
        raise ScoreError(f"channel {channel!r} is not an integer; only x[c] with a constant c is in the language")
    return e.channel(arguments.number(arguments.vector(input, "a channel"), e.ONE), channel)


@_word("lookup")
def _lookup(table: Any, *positions: Any) -> Expr:
    return call("lookup", arguments.expression(table), *(arguments.number(p, const(0)) for p in positions))


@_word("call")
def _call(word: str, *args: Any, attrs: Any = ()) -> Expr:
    return call(word, *(arguments.expression(a) for a in args), attrs=attrs)


#: Methods a traced value has; its operators are in `aatc.traced`.
METHODS = frozenset(WORDS) - set(
    ("where_method", "and", "or", "xor", "invert", "truediv", "floordiv", "mod", "pos", "getitem", "lookup", "call")
)
