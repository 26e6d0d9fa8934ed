"""Per-token score expressions as torch source over views (b, h, token, feature)."""

from __future__ import annotations

from aatc.backends.cpu.source import Source, number
from aatc.ir.errors import BackendError
from aatc.ir.score.expr import Expr, postorder
from aatc.ir.score.functions import FUNCTIONS

#: Words with an obvious spelling; all others go through the table of the language itself.
_SPELLED = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "neg": "-{0}", "square": "{0}.square()",
    "abs": "{0}.abs()", "exp": "{0}.exp()", "log": "{0}.log()", "rsqrt": "{0}.rsqrt()", "reciprocal": "{0}.reciprocal()",
    "tanh": "{0}.tanh()", "sigmoid": "{0}.sigmoid()", "sin": "{0}.sin()", "cos": "{0}.cos()",
    "lt": "{0} < {1}", "le": "{0} <= {1}", "gt": "{0} > {1}", "ge": "{0} >= {1}", "and": "{0} & {1}", "or": "{0} | {1}",
    "not": "~{0}", "sum": "{0}.sum(-1, keepdim=True)", "dot": "({0} * {1}).sum(-1, keepdim=True)",
}  # fmt: skip


def emit_expression(src: Source, body: Expr, bound: dict[Expr, str], dtype: str, sizes: dict[str, str]) -> str:
    """Emits ``body`` node by node; returns the name (or number) that holds it. ``bound`` maps parameters to views."""
    done: dict[Expr, str] = dict(bound)
    for e in postorder(body):
        if e in done:
            continue
        if e.is_const:
            done[e] = number(e.value)
            continue
        name = src.fresh("t")
        src.line(f"{name} = {_node(e, [done[a] for a in e.args], dtype, sizes)}")
        done[e] = name
    return done[body]


def _node(e: Expr, args: list[str], dtype: str, sizes: dict[str, str]) -> str:
    if e.fn == "index":
        axis = {"b": 0, "h": 1, "i": 2, "j": 2}[e.name]
        return f"rt.positions({sizes[e.name]}, {axis}, torch.{dtype})"
    if e.fn == "row_key":
        return f"rt.row_keys({args[0]}, B, H, N)"
    if e.fn == "column_key":
        return "rt.column_keys(M)"
    if e.fn == "lookup":
        raise BackendError("a table is read per token: not in this backend")
    if all(a.is_const for a in e.args if a.rank == 0) and any(a.is_const for a in e.args) and e.fn not in _SPELLED:
        args = [f"torch.tensor({a}, dtype=torch.{dtype})" if x.is_const else a for a, x in zip(args, e.args, strict=True)]
    spelled = _SPELLED.get(e.fn)
    if spelled:
        return spelled.format(*(f"({a})" if a.startswith("-") else a for a in args))
    if e.fn not in FUNCTIONS:
        raise BackendError(f"unknown word {e.fn}")
    attrs = "".join(f", {a!r}" if isinstance(a, str) else f", {number(a)}" for a in e.attrs)
    return f"words[{e.fn!r}]({', '.join(args)}{attrs})"
