"""Programs of the score language as functions of the kernel language, one per program and kinds of its operands."""

from __future__ import annotations

import math

from aatc.backends.vulkan.language import Body, Function, Let
from aatc.ir.errors import UnsupportedError
from aatc.ir.score.expr import Expr, postorder
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.program import Program
from aatc.ir.score.walk import beyond

#: Kinds of values, "f" number, "i" integer, "b" truth value, as types.
TYPE = {"f": "f32", "i": "i32", "b": "bool"}
_CALLED = [
    "exp2", "exp", "log2", "log", "log1p", "tanh", "sigmoid", "softplus", "acosh", "expacosh", "asinsqrt", "acos",
    "power",
]  # fmt: skip
#: A word as text, from the texts of its operands.
WORDS: dict[str, str] = {
    "add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "div": "({0} / {1})", "neg": "(-{0})",
    "abs": "abs({0})", "square": "({0} * {0})", "sqrt": "sqrt(max({0}, 0.0))", "rsqrt": "inverseSqrt({0})",
    "reciprocal": "(1.0 / {0})", "sin": "sin({0})", "cos": "cos({0})", "floor": "floor({0})",
    "maximum": "max({0}, {1})", "minimum": "min({0}, {1})", "where": "select({2}, {1}, {0})",
    "step": "select(0.0, 1.0, {0} > 0.0)", "relu": "max({0}, 0.0)", "sign": "w_sign({0})",
    "lt": "({0} < {1})", "le": "({0} <= {1})", "gt": "({0} > {1})", "ge": "({0} >= {1})", "eq": "({0} == {1})",
    "ne": "({0} != {1})", "and": "({0} && {1})", "or": "({0} || {1})", "not": "(!{0})",
    "floordiv": "w_floordiv({0}, {1})", "remainder": "w_remainder({0}, {1})",
    "pair_uniform": "w_pair_uniform({0}, {1})",
    **{w: f"w_{w}({', '.join(f'{{{n}}}' for n in range(2 if w == 'power' else 1))})" for w in _CALLED},
}  # fmt: skip
_INTEGER = {
    "floordiv": "w_floordiv_i({0}, {1})", "remainder": "w_remainder_i({0}, {1})", "floor": "{0}",
    "sign": "sign({0})", "relu": "max({0}, 0)",
}  # fmt: skip
#: Words of numbers that take four at a time as they take one.
VECTORS = frozenset(["add", "sub", "mul", "div", "neg", "abs", "square"])


def number(value: float, kind: str) -> str:
    """A constant as text."""
    if kind == "b":
        return "true" if value else "false"
    if kind == "i":
        if not -(2**31) < value < 2**31:
            raise UnsupportedError(f"the integer {value} does not fit in 32 bits", hint="the native backend takes it")
        return f"({int(value)})" if value < 0 else str(int(value))
    value = float(value)
    if math.isnan(value):
        return "bits_f(0x7fc00000u)"
    if abs(value) > 3.4028234663852886e38:
        return f"bits_f({'0x7f800000u' if value > 0 else '0xff800000u'})"
    if 0.0 < abs(value) < 1.1754943508222875e-38:
        return "0.0"
    text = repr(value)
    text = text if "." in text or "e" in text else f"{text}.0"
    return f"({text})" if value < 0 else text


def convert(text: str, kind: str, to: str) -> str:
    """A value of one kind as another."""
    if kind == to:
        return text
    if to == "b":
        return f"({text} != {'0' if kind == 'i' else '0.0'})"
    if kind == "b":
        return f"select({'0, 1' if to == 'i' else '0.0, 1.0'}, {text})"
    return f"{TYPE[to]}({text})"


class Programs:
    """Functions of a kernel by program; a program that comes twice is one function."""

    def __init__(self, body: Body):
        self.body = body
        self.made: dict[tuple[object, ...], str] = {}

    def function(self, program: Program, kinds: tuple[str, ...], result: str, hint: str) -> str:
        """The name of the function of ``program`` for operands of these kinds."""
        key = (program.body, program.params, kinds, result)
        if key not in self.made:
            self.made[key] = self._define(program, kinds, result, self.body.fresh(f"at_{hint}"), "f32")
        return self.made[key]

    def vectors(self, program: Program, wide: tuple[bool, ...], hint: str) -> str | None:
        """The same of four numbers at a time, of the operands that are ``wide``; None where a word has none."""
        needed = [e for e in postorder(program.body) if e.fn not in ("param", "const")]
        if not all(e.fn in VECTORS and e.dtype == "f" for e in needed) or not needed:
            return None
        if any(p.dtype != "f" for p in program.params):
            return None
        key = (program.body, program.params, wide, "4")
        if key not in self.made:
            kinds = tuple("4" if w else "f" for w in wide)
            self.made[key] = self._define(program, kinds, "4", self.body.fresh(f"at4_{hint}"), "vec4f")
        return self.made[key]

    def _define(self, program: Program, kinds: tuple[str, ...], result: str, name: str, wide: str) -> str:
        types = {**TYPE, "4": "vec4f"}
        params, done = [], {}
        lets: list[Let] = []
        for n, (p, kind) in enumerate(zip(program.params, kinds, strict=True)):
            params.append((types[kind], f"a{n}"))
            wanted = kind if kind == "4" else p.dtype
            done[p] = (f"a{n}" if kind in ("4", wanted) else convert(f"a{n}", kind, wanted), wanted)
        text, kind = enter(program.body, done, lets)
        if result == "4":
            text = text if kind == "4" else f"vec4f({text})"
            self.body.functions.append(Function(name, tuple(params), "vec4f", tuple(lets), text))
        else:
            function = Function(name, tuple(params), TYPE[result], tuple(lets), convert(text, kind, result))
            self.body.functions.append(function)
        return name


def enter(body: Expr, done: dict[Expr, tuple[str, str]], lets: list[Let], prefix: str = "t") -> tuple[str, str]:
    """Enters the values of all nodes, as names that begin with ``prefix``; returns (text, kind) of ``body``."""
    for e in beyond(body, done):
        if e.is_const:
            done[e] = number(e.value, e.dtype), e.dtype
            continue
        declared = FUNCTIONS.get(e.fn)
        if declared is None or declared.kind != "pointwise":
            raise UnsupportedError(f"no kernel computes {e.fn} per element", hint="the native backend may")
        if declared.spelled is not None:
            done[e] = enter(declared.spelled(*e.args, *e.attrs), done, lets, prefix)
            continue
        text, kind = _word(e, [done[a] for a in e.args])
        name = f"{prefix}{len(lets)}"
        lets.append(Let(name, "vec4f" if kind == "4" else TYPE[kind], text))
        done[e] = name, kind
    return done[body]


def _word(e: Expr, args: list[tuple[str, str]]) -> tuple[str, str]:
    kinds = [k for _, k in args]
    kind = e.dtype
    if e.fn == "pow":
        return _power(convert(*args[0], "f"), float(e.attrs[0])), "f"
    if e.fn not in WORDS:
        raise UnsupportedError(f"no kernel computes {e.fn} per element", hint="the native backend may")
    if "4" in kinds:
        if e.fn not in VECTORS:
            raise UnsupportedError(f"no kernel computes {e.fn} of four numbers at a time")
        return WORDS[e.fn].format(*(t for t, _ in args)), "4"
    if e.fn in ("lt", "le", "gt", "ge", "eq", "ne"):
        wide = "f" if "f" in kinds else "i" if "i" in kinds else "b"
        wide = "i" if wide == "b" and e.fn not in ("eq", "ne") else wide
        return WORDS[e.fn].format(*(convert(t, k, wide) for t, k in args)), "b"
    if e.fn == "where":
        chosen = [convert(t, k, kind) for t, k in args[1:]]
        return WORDS["where"].format(args[0][0], *chosen), kind
    wanted = "i" if e.fn == "pair_uniform" else kind
    word = _INTEGER.get(e.fn, WORDS[e.fn]) if wanted == "i" else WORDS[e.fn]
    if wanted == "i" and e.fn == "step":
        word = "select(0, 1, {0} > 0)"
    return word.format(*(convert(t, k, wanted) for t, k in args)), kind


def _power(x: str, p: float) -> str:
    if p == int(p) and 1 <= abs(p) <= 4:
        whole = " * ".join([x] * int(abs(p)))
        return f"(1.0 / ({whole}))" if p < 0 else f"({whole})"
    return f"w_power({x}, {number(p, 'f')})"
