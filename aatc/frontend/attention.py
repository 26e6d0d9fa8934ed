"""One `aatc::attend` node as its four declarative stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aatc.ir import geo as geo  # declares the operations
from aatc.ir.core import Block, Loc, Op, Value
from aatc.ir.registry import lookup_op
from aatc.ir.score.expr import Expr, param
from aatc.ir.score.program import Program
from aatc.ops import read_spec


def stages(body: Block, operands: Sequence[Value], spec: str, loc: Loc | None) -> tuple[Value, Value]:
    """Adds metric, normalize, transport and aggregate to ``body``; returns output and log-sum-exp.

    ``operands`` are q, k, v and the captures, in the order of the spec's names. The first parameters of the
    score are q and k, the first of the carry is v, also where a program does not read them.
    """
    attrs = read_spec(spec)
    names: tuple[str, ...] = attrs["names"]
    bound = dict(zip(names, operands, strict=True))
    score, carry, mask = attrs["score"], attrs.get("carry"), attrs.get("mask")
    declared: dict[str, Expr] = {p.name: p for g in (score, carry, mask) if g is not None for p in g.params}
    q, k, v = (declared.get(n, param(n, axes)) for n, axes in zip(names, ("bhid", "bhjd", "bhjd"), strict=False))

    def add(name: str, values: Sequence[Value], given: dict[str, Any], *result_names: str) -> Op:
        op = Op(name, values, given, loc=loc)
        infer = lookup_op(name).infer
        assert infer is not None
        types = list(infer(op))
        op.results = [Value(t, n, op) for t, n in zip(types, result_names, strict=True)]
        return body.add(op)

    metric = leading(score, q, k)
    s = add("geo.metric", [bound[n] for n in metric.names], {"score": metric}, "s").result
    given: dict[str, Any] = {"kind": attrs.get("kind", "softmax")}
    if mask is not None:
        given["mask"] = mask
    p, lse = add("geo.normalize", [s, *(bound[n] for n in (mask.names if mask else ()))], given, "p", "lse").results
    moved = leading(carry, v) if carry is not None else Program((v,), v)
    t = add("geo.transport", [bound[v.name], s, *(bound[n] for n in moved.names[1:])], {"carry": moved}, "t").result
    o = add("geo.aggregate", [p, t], {"kind": attrs.get("aggregate", "mean")}, "o").result
    return o, lse


def is_attention(target: Any) -> bool:
    """Whether a node of a graph calls ``aatc::attend``."""
    return isinstance(target, torch._ops.OpOverload) and target.name() == "aatc::attend"


def guard_widths(q: Any, k: Any, v: Any, captures: Sequence[Any], spec: str) -> None:
    """Makes symbolic feature widths of an attention's operands numbers: kernels are made for one width each.

    Asking a symbolic size for its number adds a guard to the graph, so that another width makes another graph.
    """
    attrs = read_spec(spec)
    programs = [attrs[n] for n in ("score", "carry", "mask") if attrs.get(n) is not None]
    axes = {p.name: p.attrs[1] for program in programs for p in program.params}
    first = dict(zip(attrs["names"], ("bhid", "bhjd", "bhjd"), strict=False))
    for name, node in zip(attrs["names"], (q, k, v, *captures), strict=True):
        value = node.meta.get("val")
        for axis, size in zip({**first, **axes}.get(name, ""), getattr(value, "shape", ()), strict=False):
            if axis not in "bhij":
                int(size)


def leading(program: Program, *first: Expr) -> Program:
    """``program`` with the parameters ``first`` before all others, declared if they were not."""
    return Program((*first, *(p for p in program.params if p not in first)), program.body)
