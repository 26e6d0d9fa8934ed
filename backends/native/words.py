"""The element-wise words of the score language as LLVM code, and whole expressions of them.

Operands are scalars or vectors of any number of lanes. A number "f" is a ``float`` or a ``double``, as the caller
says; an integer "i" is an ``i64`` that wraps around; a truth value "b" is an ``i1``. What a word means, to its last
NaN and signed zero, is what torch makes of it (`Function.evaluate`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from aatc.backends.native import elementary
from aatc.backends.native.llvm import Code, Val, number, size_of, vector_of
from aatc.backends.native.polynomials import at_least, root
from aatc.ir.errors import BackendError
from aatc.ir.score.expr import Expr
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.program import Program
from aatc.ir.score.walk import beyond

#: Lowering of a word: takes the code and its operands, all of one number of lanes, then its constants in brackets.
Lower = Callable[..., Val]
WORDS: dict[str, Lower] = {}


def program(code: Code, program: Program, operands: Sequence[Val], kind: str) -> Val:
    """The value of a program of element-wise words; ``operands`` belong to its parameters, in order."""
    return expression(code, program.body, dict(zip(program.params, operands, strict=True)), kind)


def expression(code: Code, body: Expr, bound: dict[Expr, Val], kind: str) -> Val:
    """The value of ``body``, of which the nodes in ``bound`` are ready; a node that is used twice is computed once.

    Constants are scalars: so is the result where nothing in it is a vector. Raises: BackendError for a node that is
    neither ready nor a constant nor element by element, and for an integer of more than 64 bits.
    """
    return expressions(code, [body], bound, kind)[0]


def expressions(code: Code, bodies: Sequence[Expr], bound: dict[Expr, Val], kind: str) -> list[Val]:
    """The values of several, which share what they have in common."""
    done = dict(bound)
    for body in bodies:
        _enter(code, body, done, kind)
    return [done[body] for body in bodies]


def _enter(code: Code, body: Expr, done: dict[Expr, Val], kind: str) -> None:
    for e in beyond(body, done):
        if e.is_const:
            done[e] = _constant(e, kind)
            continue
        known = FUNCTIONS.get(e.fn)
        if known is None or known.kind != "pointwise":
            raise BackendError(
                f"native code has no element-wise {e.fn}", hint="hand its value in, as one of those that are ready"
            )
        if known.spelled is not None:
            other = known.spelled(*e.args, *e.attrs)
            _enter(code, other, done, kind)
            done[e] = done[other]
        else:
            done[e] = word(code, e, [done[a] for a in e.args], kind)


def _constant(e: Expr, kind: str) -> Val:
    if e.dtype == "i" and not -(2**63) <= e.value < 2**63:
        raise BackendError(f"the integer {e.value} does not fit in 64 bits")
    return number(e.value, {"f": kind, "i": "i64", "b": "i1"}[e.dtype])


def word(code: Code, e: Expr, args: Sequence[Val], kind: str) -> Val:
    """The value of one node from those of its arguments, which may be scalars and vectors of one number of lanes.

    Raises: BackendError for a word that has no lowering.
    """
    lower = WORDS.get(e.fn)
    if lower is None:
        raise BackendError(f"native code has no element-wise {e.fn}")
    lanes = max(a.lanes for a in args)
    kept = 1 if e.fn == "where" else 0  # its condition stays a truth value
    values = [convert(code, a, t) for a, t in zip(args[kept:], _operand_types(e, args[kept:], kind), strict=True)]
    out = lower(code, *(code.splat(a, lanes) for a in (*args[:kept], *values)), *e.attrs)
    return convert(code, out, _type_of(e.dtype, kind))


def _type_of(dtype: str, kind: str) -> str:
    return {"f": kind, "i": "i64", "b": "i1"}[dtype]


def _operand_types(e: Expr, args: Sequence[Val], kind: str) -> list[str]:
    """What a word's operands are converted to: a number's to numbers; those of a comparison to the wider of them."""
    if e.fn == "pair_uniform":
        return ["i64", "i64"]
    if e.dtype != "b" or e.fn == "where":
        return [_type_of(e.dtype, kind)] * len(args)
    met = {a.scalar for a in args}
    wide = kind if any(a.floating for a in args) else "i64" if "i64" in met else "i1"
    return [wide] * len(args)


def convert(code: Code, a: Val, scalar: str) -> Val:
    """``a`` as values of another scalar type, lane by lane. Raises: BackendError for numbers as truth values."""
    if a.scalar == scalar:
        return a
    to = vector_of(scalar, a.lanes)
    if a.floating:
        if scalar not in ("float", "double"):
            raise BackendError(f"a {a.scalar} cannot become {scalar}", hint="floor or a comparison says which one")
        return code.cast("fpext" if size_of(scalar) > size_of(a.scalar) else "fptrunc", a, to)
    if scalar == "i1":
        raise BackendError(f"a {a.scalar} is no truth value", hint="compare it with 0")
    if scalar in ("float", "double"):
        if a.text.lstrip("-").isdigit():
            return number(int(a.text), to)
        return code.cast("uitofp" if a.scalar == "i1" else "sitofp", a, to)
    return code.cast("zext" if a.scalar == "i1" else "sext", a, to)


def check(words: dict[str, Lower] | None = None) -> None:
    """Raises BackendError unless every element-wise word that is not spelled in others has a lowering."""
    have = WORDS if words is None else words
    needed = {f.name for f in FUNCTIONS.values() if f.kind == "pointwise" and f.spelled is None}
    missing = sorted(needed - have.keys())
    if missing:
        raise BackendError(
            f"native code has no lowering for the words {', '.join(missing)}",
            hint="enter one in backends.native.words.WORDS, or spell the word in others",
        )


# --- arithmetic --------------------------------------------------------------------------------------------
def _square(code: Code, x: Val) -> Val:
    return code.binary("mul", x, x)


def _abs(code: Code, x: Val) -> Val:
    if x.floating:
        return code.call("llvm.fabs", x.type, [x])
    return code.select(code.compare("slt", x, number(0, x.type)), code.neg(x), x)


def _sign(code: Code, x: Val) -> Val:
    """Of a NaN, 0."""
    zero, one = number(0, x.type), number(1, x.type)
    above, below = (
        code.compare("ogt" if x.floating else "sgt", x, zero),
        code.compare("olt" if x.floating else "slt", x, zero),
    )
    return code.select(above, one, code.select(below, number(-1, x.type), zero))


def _step(code: Code, x: Val) -> Val:
    return code.select(code.compare("ogt", x, number(0.0, x.type)), number(1.0, x.type), number(0.0, x.type))


def _floor(code: Code, x: Val) -> Val:
    return code.call("llvm.floor", x.type, [x]) if x.floating else x


def _reciprocal(code: Code, x: Val) -> Val:
    return code.div(number(1.0, x.type), x)


def _sqrt(code: Code, x: Val) -> Val:
    return root(code, at_least(code, x, 0.0))


def _rsqrt(code: Code, x: Val) -> Val:
    return _reciprocal(code, root(code, x))


def _relu(code: Code, x: Val) -> Val:
    return at_least(code, x, 0.0)


def _extremum(code: Code, x: Val, y: Val, *, larger: bool) -> Val:
    """A NaN on either side shows."""
    if not x.floating:
        return code.select(code.compare("sgt" if larger else "slt", x, y), x, y)
    best = code.select(code.compare("ogt" if larger else "olt", x, y), x, y)  # y where either is NaN
    return best if _literal_number(x) else code.select(code.compare("uno", x, x), x, best)


def _literal_number(x: Val) -> bool:
    """Whether ``x`` is a constant and no NaN."""
    return not x.text.startswith("%") and "0x7FF8" not in x.text and "0xFFF8" not in x.text


# --- quotients ---------------------------------------------------------------------------------------------
def _whole_quotient(code: Code, x: Val, y: Val) -> tuple[Val, Val, Val]:
    """Of integers: quotient towards zero, its remainder, and where that has not y's sign. y is not 0; what
    -1 divides does not trap."""
    zero = number(0, x.type)
    minus = code.compare("eq", y, number(-1, y.type))
    safe = code.select(minus, number(1, y.type), y)
    quotient = code.op(x.type, f"sdiv {x.type} {x.text}, {safe.text}")
    rest = code.sub(x, code.mul(quotient, safe))
    quotient = code.select(minus, code.neg(x), quotient)
    apart = code.compare("slt", code.binary("xor", rest, y), zero)
    return quotient, rest, code.binary("and", apart, code.compare("ne", rest, zero))


def _floordiv(code: Code, x: Val, y: Val) -> Val:
    if not x.floating:
        quotient, _rest, lower = _whole_quotient(code, x, y)
        return code.select(lower, code.sub(quotient, number(1, x.type)), quotient)
    zero, one = number(0.0, x.type), number(1.0, x.type)
    plain = code.div(x, y)
    rest, lower = _float_rest(code, x, y)
    quotient = code.div(code.sub(x, rest), y)
    quotient = code.select(lower, code.sub(quotient, one), quotient)
    whole = _floor(code, quotient)
    short = code.compare("ogt", code.sub(quotient, whole), number(0.5, x.type))
    whole = code.select(short, code.add(whole, one), whole)
    nothing = code.call("llvm.copysign", x.type, [zero, plain])
    whole = code.select(code.compare("oeq", quotient, zero), nothing, whole)
    return code.select(code.compare("oeq", y, zero), plain, whole)


def _remainder(code: Code, x: Val, y: Val) -> Val:
    if not x.floating:
        _quotient, rest, lower = _whole_quotient(code, x, y)
    else:
        rest, lower = _float_rest(code, x, y)
    return code.select(lower, code.add(rest, y), rest)


def _float_rest(code: Code, x: Val, y: Val) -> tuple[Val, Val]:
    """What is left of x divided by y towards zero, exactly, and where that has not y's sign."""
    zero = number(0.0, x.type)
    rest = code.binary("rem", x, y)
    apart = code.binary("xor", code.compare("olt", y, zero), code.compare("olt", rest, zero))
    return rest, code.binary("and", code.compare("une", rest, zero), apart)


# --- truth values ------------------------------------------------------------------------------------------
def _compare(code: Code, x: Val, y: Val, *, relation: str) -> Val:
    if x.floating:
        return code.compare("une" if relation == "ne" else f"o{relation}", x, y)
    return code.compare(relation if relation in ("eq", "ne") else f"s{relation}", x, y)


def _and(code: Code, x: Val, y: Val) -> Val:
    return code.binary("and", x, y)


def _or(code: Code, x: Val, y: Val) -> Val:
    return code.binary("or", x, y)


def _not(code: Code, x: Val) -> Val:
    return code.binary("xor", x, number(True, x.type))


# --- random numbers ----------------------------------------------------------------------------------------
def _pair_uniform(code: Code, rows: Val, columns: Val) -> Val:
    """`random.pair_numbers`, in 32 bits as soon as the upper ones no longer count: 24 bits as a float, exactly."""
    x = code.binary("xor", rows, columns)
    x = code.binary("xor", x, code.binary("ashr", x, number(16, x.type)))
    x = code.cast("trunc", x, vector_of("i32", x.lanes))
    x = code.binary("mul", x, number(0x7FEB352D, x.type))
    x = code.binary("xor", x, code.binary("lshr", x, number(15, x.type)))
    x = code.binary("mul", x, number(0x846CA68B, x.type))
    x = code.binary("xor", x, code.binary("lshr", x, number(16, x.type)))
    x = code.binary("lshr", x, number(8, x.type))
    kind = vector_of("float", x.lanes)
    return code.mul(code.cast("sitofp", x, kind), number(2.0**-24, kind))


WORDS |= {
    "add": Code.add, "sub": Code.sub, "mul": Code.mul, "div": Code.div, "neg": Code.neg,
    "floordiv": _floordiv, "remainder": _remainder, "abs": _abs, "square": _square, "step": _step, "sign": _sign,
    "sqrt": _sqrt, "rsqrt": _rsqrt, "reciprocal": _reciprocal, "relu": _relu, "floor": _floor,
    "maximum": partial(_extremum, larger=True), "minimum": partial(_extremum, larger=False),
    "where": Code.select,
    **{r: partial(_compare, relation=r) for r in ("lt", "le", "gt", "ge", "eq", "ne")},
    "and": _and, "or": _or, "not": _not,
    "pair_uniform": _pair_uniform,
    **elementary.WORDS,
}  # fmt: skip
