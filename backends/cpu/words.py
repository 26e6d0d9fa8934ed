"""Per-token score expressions as torch source over views (b, h, token, feature)."""

from __future__ import annotations

import re
from collections import Counter

from aatc.backends.cpu.linear import COMPARISONS
from aatc.backends.source import Source, number
from aatc.ir.errors import BackendError
from aatc.ir.score.expr import Expr, postorder
from aatc.ir.score.functions import FUNCTIONS

#: Words with an obvious spelling; all others go through the table of the language itself.
_SPELLED = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "square": "{0}.square()",
    "abs": "{0}.abs()",
    "exp": "{0}.exp()",
    "log": "{0}.log()",
    "rsqrt": "{0}.rsqrt()",
    "reciprocal": "{0}.reciprocal()",
    "tanh": "{0}.tanh()",
    "sigmoid": "{0}.sigmoid()",
    "sin": "{0}.sin()",
    "cos": "{0}.cos()",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "not": "~{0}",
    "centre": "rt.centre({0})",
    "sum": "{0}.sum(-1, keepdim=True)",
    "dot": "({0} * {1}).sum(-1, keepdim=True)",
}


def emit_expression(
    src: Source, body: Expr, bound: dict[Expr, str], dtype: str, sizes: dict[str, str]
) -> tuple[str, list[str]]:
    """Emits what ``body`` needs, one line per shared or long node; returns its expression and the names to
    delete once that has been used. ``bound`` maps parameters to views."""
    done: dict[Expr, str] = dict(bound)
    order = postorder(body)
    uses = Counter(a for e in order for a in e.args)
    lines: list[tuple[str, str]] = []
    for e in order:
        if e in done:
            continue
        if e.is_const:
            done[e] = number(e.value)
            continue
        text = _node(e, [done[a] for a in e.args], dtype, sizes)
        if e is body or (uses[e] == 1 and len(text) < 60):
            done[e] = text
        else:
            done[e] = src.fresh("t")
            lines.append((done[e], text))
    return done[body], _emit_lines(src, lines, done[body])


def _emit_lines(src: Source, lines: list[tuple[str, str]], last: str) -> list[str]:
    """Emits assignments, deleting each name after the last line that reads it; returns those ``last`` reads."""
    read_at = {}
    for n, text in enumerate([*(t for _, t in lines), last]):
        for word in re.findall(r"[A-Za-z_]\w*", text):
            read_at[word] = n
    for n, (name, text) in enumerate(lines):
        src.line(f"{name} = {text}")
        dead = [other for other, _ in lines[:n] if read_at.get(other) == n]
        if dead:
            src.line(f"del {', '.join(dead)}")
    return [name for name, _ in lines if read_at.get(name) == len(lines)]


def _tight(text: str) -> str:
    """An argument as an operand: grouped unless it is a name or a number."""
    return text if re.fullmatch(r"[\w.\[\]']+(\([^()]*\))?", text) else f"({text})"


def _as_number(text: str, e: Expr, dtype: str) -> str:
    return f"{_tight(text)}.to(torch.{dtype})" if e.dtype == "i" and not e.is_const else text


def _as_tensor(text: str, e: Expr, user: Expr, dtype: str) -> str:
    """A constant as a tensor, for torch functions that take no numbers."""
    if not e.is_const:
        return text
    kind = {"b": "bool", "i": "int64" if user.dtype == "i" or user.fn in COMPARISONS else dtype, "f": dtype}[e.dtype]
    return f"torch.tensor({text}, dtype=torch.{kind})"


def _node(e: Expr, args: list[str], dtype: str, sizes: dict[str, str]) -> str:
    if e.fn == "index":
        axis = {"b": 0, "h": 1, "i": 2, "j": 2}[e.name]
        return f"rt.positions({sizes[e.name]}, {axis}, torch.int64)"
    if e.fn == "row_key":
        return f"rt.row_keys({args[0]}, B, H, N)"
    if e.fn == "column_key":
        return "rt.column_keys(M)"
    if e.fn == "lookup":
        where = [_as_tensor(a, x, x, dtype) for a, x in zip(args[1:], e.args[1:], strict=True)]
        where = [f"{w}.reshape(1, 1, 1, 1)" if x.is_const else w for w, x in zip(where, e.args[1:], strict=True)]
        return f"rt.token_lookup({', '.join([args[0], *where])})"
    if e.dtype == "f" or (e.dtype == "b" and "f" in {a.dtype for a in e.args}):  # torch has its own idea of 2 * i
        args = [_as_number(a, x, dtype) for a, x in zip(args, e.args, strict=True)]
    spelled = _SPELLED.get(e.fn)
    if e.fn in ("maximum", "minimum") and e.args[1].is_const:
        return f"{_tight(args[0])}.clamp({'min' if e.fn == 'maximum' else 'max'}={args[1]})"
    if spelled is None or "{0}." in spelled or all(a.is_const for a in e.args):
        args = [_as_tensor(a, x, e, dtype) for a, x in zip(args, e.args, strict=True)]
    if spelled:
        return spelled.format(*map(_tight, args))
    if e.fn not in FUNCTIONS:
        raise BackendError(f"unknown word {e.fn}")
    attrs = "".join(f", {a!r}" if isinstance(a, str) else f", {number(a)}" for a in e.attrs)
    return f"words[{e.fn!r}]({', '.join(args)}{attrs})"
