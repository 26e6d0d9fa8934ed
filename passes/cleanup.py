"""Canonicalisation of geo functions: dead code, common subexpressions, constant folding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aatc.ir.core import Block, Module, Op, Value, replace_uses
from aatc.ir.errors import AatcError
from aatc.ir.interpreter import Interpreter
from aatc.ir.printer import attrs_text
from aatc.ir.registry import lookup_op
from aatc.ir.types import TensorType, dtype_name
from aatc.passes.base import Context, Pass, register


def is_pure(op: Op) -> bool:
    """Whether the operation may be dropped, merged or moved."""
    return lookup_op(op.name).pure and not op.attrs.get("effect", False)


@register
@dataclass(frozen=True)
class DeadCode(Pass):
    """``%unused = pure(...)`` → nothing; functions that nobody calls → nothing."""

    name: ClassVar[str] = "dead-code"

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            if func.level == "geo":
                ctx.count("dead-op", _sweep(func.body))
        reachable = _reachable(module)
        for name in [n for n in module.funcs if n not in reachable]:
            del module.funcs[name]
            ctx.count("dead-func")
        return module


def _sweep(block: Block) -> int:
    live: set[Value] = set()
    kept = []
    for op in reversed(block.ops):
        if not is_pure(op) or not op.results or any(r in live for r in op.results):
            kept.append(op)
            live.update(op.operands)
            for region in op.regions:
                live.update(v for inner in region.walk() for v in inner.operands)
    removed = len(block.ops) - len(kept)
    block.ops = kept[::-1]
    return removed


def _reachable(module: Module) -> set[str]:
    from aatc.ir.registry import Symbol

    todo, seen = [module.entry.name], set()
    while todo:
        name = todo.pop()
        if name in seen or name not in module.funcs:
            continue
        seen.add(name)
        for op in module.funcs[name].body.walk():
            todo += [a.name for a in op.attrs.values() if isinstance(a, Symbol)]
    return seen


@register
@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """``%a = f(x); %b = f(x)`` → ``%a = f(x)`` with %b replaced by %a, for pure operations."""

    name: ClassVar[str] = "common-subexpressions"

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            if func.level != "geo" or any(op.attrs.get("effect") for op in func.body.ops):
                # a mutation may lie between two equal reads: leave such functions alone
                continue
            seen: dict[tuple, Op] = {}
            table: dict[Value, Value] = {}
            kept = []
            for op in func.body.ops:
                op.operands = [table.get(v, v) for v in op.operands]
                key = (
                    op.name,
                    tuple(map(id, op.operands)),
                    attrs_text(op.attrs),
                    tuple(str(r.type) for r in op.results),
                )
                twin = seen.get(key) if is_pure(op) and not op.regions and op.results else None
                if twin is None:
                    seen[key] = op
                    kept.append(op)
                else:
                    table.update(zip(op.results, twin.results, strict=True))
                    ctx.count("merged")
            func.body.ops = kept
        return module


@register
@dataclass(frozen=True)
class FoldConstants(Pass):
    """``torch.call`` of constants only → ``geo.constant``, when the result has at most ``limit`` elements."""

    limit: int = 256
    name: ClassVar[str] = "fold-constants"

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            if func.level != "geo":
                continue
            constants: set[Value] = set()
            for n, op in enumerate(func.body.ops):
                if op.name == "geo.constant":
                    constants.add(op.result)
                elif op.name == "torch.call" and is_pure(op) and all(v in constants for v in op.operands):
                    folded = self._fold(module, func, op)
                    if folded is not None:
                        func.body.ops[n] = folded
                        replace_uses(func.body, {op.result: folded.result})
                        constants.add(folded.result)
                        ctx.count("folded")
        return module

    def _fold(self, module: Module, func, op: Op) -> Op | None:
        if len(op.results) != 1 or not isinstance(op.result.type, TensorType):
            return None
        shape = op.result.type.shape
        if not all(d.is_static for d in shape) or _elements(shape) > self.limit:
            return None
        interp = Interpreter(module)
        known = {o.result: interp.evaluate(o, [])[0] for o in func.body.ops if o.name == "geo.constant"}
        try:
            (value,) = interp.evaluate(op, [known[v] for v in op.operands])
        except AatcError:
            return None  # the interpreter refuses this operator: leave it to run as it is
        if not isinstance(value, torch.Tensor) or value.is_complex():
            return None
        t = TensorType.of(dtype_name(value.dtype), value.shape)
        if t != op.result.type:
            return None
        return Op(
            "geo.constant",
            [],
            {"values": tuple(value.flatten().tolist()), "type": t},
            [t],
            loc=op.loc,
            result_names=[op.result.name],
        )


def _elements(shape) -> int:
    n = 1
    for d in shape:
        n *= int(d)
    return n


@register
@dataclass(frozen=True)
class Canonicalize(Pass):
    """Constant folding, common subexpressions, dead code."""

    name: ClassVar[str] = "canonicalize"

    def run(self, module: Module, ctx: Context) -> Module:
        for p in (FoldConstants(), CommonSubexpressions(), DeadCode()):
            module = p.run(module, ctx)
        return module
