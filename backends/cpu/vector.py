"""Element-wise straight-line code as in-place torch operations."""

from __future__ import annotations

import math

from aatc.backends.cpu.linear import Instr, Linear, Ref
from aatc.backends.source import number, torch_name
from aatc.ir.errors import BackendError

_UNARY = frozenset(
    [
        "neg",
        "abs",
        "sign",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "exp2",
        "log2",
        "log",
        "log1p",
        "sin",
        "cos",
        "tanh",
        "sigmoid",
        "floor",
        "acos",
        "asin",
        "square",
    ]
)
_BINARY = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "div": "div",
    "floordiv": "floor_divide",
    "remainder": "remainder",
    "power": "pow",
    "maximum": "maximum",
    "minimum": "minimum",
    "lt": "lt",
    "le": "le",
    "gt": "gt",
    "ge": "ge",
    "eq": "eq",
    "ne": "ne",
    "and": "logical_and",
    "or": "logical_or",
}


def emit_linear(code: Linear, inputs: list[str], results: list[str], temps: list[str]) -> list[str]:
    """One line of torch per instruction."""

    def name(r: Ref) -> str:
        if r.kind == "const":
            return number(r.value)
        return {"in": inputs, "out": results, "tmp": temps}[r.kind][int(r.value)]

    return [_line(x, name(x.dst), [name(a) for a in x.args]) for x in code.code]


def _line(x: Instr, dst: str, args: list[str]) -> str:
    if x.fn in _UNARY:
        return f"torch.{x.fn}({args[0]}, out={dst})"
    if x.fn in _BINARY:
        if x.fn in ("floordiv", "remainder") and x.args[0].kind == "const":
            args[0] = f"torch.tensor({args[0]}, dtype=torch.{torch_name(x.attrs[0])})"
        return f"torch.{_BINARY[x.fn]}({args[0]}, {args[1]}, out={dst})"
    if x.fn == "clamp":
        low, high = x.attrs
        bounds = [f"min={number(low)}"] * (low > -math.inf) + [f"max={number(high)}"] * (high < math.inf)
        return f"torch.clamp({', '.join([args[0], *bounds])}, out={dst})" if bounds else f"{dst}.copy_({args[0]})"
    if x.fn == "where":
        chosen = [
            f"torch.tensor({a}, dtype=torch.{torch_name(x.attrs[0])})" if r.kind == "const" else a
            for a, r in zip(args[1:], x.args[1:], strict=True)
        ]
        return f"torch.where({args[0]}, {', '.join(chosen)}, out={dst})"
    if x.fn == "not":
        return f"torch.logical_not({args[0]}, out={dst})"
    if x.fn == "pow":
        return f"torch.pow({args[0]}, {number(x.attrs[0])}, out={dst})"
    if x.fn == "copy":
        return f"{dst}.fill_({args[0]})" if x.args[0].kind == "const" else f"{dst}.copy_({args[0]})"
    if x.fn == "pair_uniform":
        return f"{dst}.copy_(rt.pair_numbers({args[0]}, {args[1]}))"
    raise BackendError(f"the CPU backend has no element-wise {x.fn}")
