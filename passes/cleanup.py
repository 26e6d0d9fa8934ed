"""Canonicalisation of geo functions: dead code, common subexpressions, constant folding.

All three ask `ir.effects` what an operation does to memory: what is written later is not folded, two allocations of
which one is written or seen outside stay two, and a write goes only when nobody reads its target afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from aatc.ir.core import Func, Module, Op, Value
from aatc.ir.effects import NOTHING, Memory, has_memory
from aatc.ir.errors import AatcError
from aatc.ir.interpreter import Interpreter
from aatc.ir.printer import attrs_text
from aatc.ir.registry import Symbol, lookup_op
from aatc.ir.types import TensorType, dtype_name
from aatc.passes.base import Context, Pass, register


def _geo(module: Module) -> list[Func]:
    return [f for f in module.funcs.values() if f.level == "geo"]


@register
@dataclass(frozen=True)
class DeadCode(Pass):
    """``%unused = pure(...)`` → nothing, unless it may raise; a write to memory that nobody reads afterwards → nothing;
    functions that nobody calls → nothing."""

    name: ClassVar[str] = "dead-code"

    def run(self, module: Module, ctx: Context) -> Module:
        for func in _geo(module):
            ctx.count("dead-op", _sweep(func, Memory(func, module)))
        ctx.count("dead-func", _drop_unreachable(module))
        return module


def _sweep(func: Func, memory: Memory) -> int:
    live: set[Value] = set()
    read: set[Value] = set()  # classes of memory that operations further down look at
    kept = []
    for op in reversed(func.body.ops):
        effect = memory.effects[op]
        written = {memory.root(op.operands[o]) for o in effect.writes}
        seen = bool(written & read) or any(memory.outside(v) for v in written)
        idle = (op.results or written) and not any(r in live for r in op.results)
        if lookup_op(op.name).pure and not (effect.ordered or effect.checks) and idle and not seen:
            continue
        kept.append(op)
        live.update(op.operands)
        read.update(memory.root(v) for v in op.operands if has_memory(v))
    removed = len(func.body.ops) - len(kept)
    func.body.ops = kept[::-1]
    return removed


def _drop_unreachable(module: Module) -> int:
    reachable = _reachable(module)
    gone = [n for n in module.funcs if n not in reachable]
    for name in gone:
        del module.funcs[name]
    return len(gone)


def _reachable(module: Module) -> set[str]:
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
    """``%a = f(x); %b = f(x)`` → ``%a = f(x)`` with %b replaced by %a, when nothing that f reads was written between
    and nobody can tell one result from two."""

    name: ClassVar[str] = "common-subexpressions"

    def run(self, module: Module, ctx: Context) -> Module:
        for func in _geo(module):
            ctx.count("merged", _merge(func, Memory(func, module)))
        return module


def _merge(func: Func, memory: Memory) -> int:
    versions: Counter[Value] = Counter()  # how often each class of memory has been written so far
    seen: dict[tuple[Any, ...], Op] = {}
    table: dict[Value, Value] = {}
    kept = []
    for op in func.body.ops:
        effect = memory.effects[op]
        roots = [memory.root(v) for v in op.operands]
        op.operands = [table.get(v, v) for v in op.operands]
        twin = None
        if _mergeable(op, memory):
            key = (
                op.name,
                tuple(map(id, op.operands)),
                tuple(versions[r] for r in roots) if versions else (),
                attrs_text(op.attrs),
                tuple(str(r.type) for r in op.results),
            )
            twin = seen.setdefault(key, op)
        if twin is None or twin is op:
            kept.append(op)
        else:
            table.update(zip(op.results, twin.results, strict=True))
        versions.update({memory.root(op.operands[o]) for o in effect.writes})
    removed = len(func.body.ops) - len(kept)
    func.body.ops = kept
    return removed


def _mergeable(op: Op, memory: Memory) -> bool:
    """Whether one result can stand for two: a plain view unless it is itself returned, anything else unless its memory
    is written or seen outside."""
    effect = memory.effects[op]
    if not lookup_op(op.name).pure or effect.ordered or effect.writes or op.regions or not op.results:
        return False
    if effect.shares and not effect.copies:
        return not any(memory.raw(r) or memory.returned(r) for r in op.results)
    return not any(has_memory(r) and (memory.written(r) or memory.outside(r) or memory.raw(r)) for r in op.results)


@register
@dataclass(frozen=True)
class FoldConstants(Pass):
    """``torch.call`` of constants that are never written → ``geo.constant``, when it has at most ``limit`` elements."""

    limit: int = 256
    name: ClassVar[str] = "fold-constants"

    def run(self, module: Module, ctx: Context) -> Module:
        for func in _geo(module):
            ctx.count("folded", fold(module, func, Memory(func, module), self.limit))
        return module


def fold(module: Module, func: Func, memory: Memory, limit: int = 256) -> int:
    """Replaces calls of constants in ``func``; returns how many."""
    interpreter = Interpreter(module)
    known: dict[Value, Any] = {}
    folded = 0
    for n, op in enumerate(func.body.ops):
        if op.name == "geo.constant":
            known[op.result] = interpreter.evaluate(op, [])[0]
            continue
        if op.name != "torch.call" or not all(v in known for v in op.operands) or not _foldable(op, memory, limit):
            continue
        value = _value(op, [known[v] for v in op.operands], interpreter)
        if value is not None:
            known[op.result] = value
            func.body.ops[n] = _constant(op, value)
            memory.effects[func.body.ops[n]] = NOTHING
            folded += 1
    return folded


def _foldable(op: Op, memory: Memory, limit: int) -> bool:
    """Whether ``op`` gives the same on every call, and nobody can tell it from a constant."""
    effect = memory.effects[op]
    if effect.ordered or effect.writes or effect.undefined or len(op.results) != 1:
        return False
    if any(memory.written(v) for v in op.operands):
        return False
    result = op.result
    if effect.shares and (memory.outside(result) or memory.raw(result)):
        return False
    t = result.type
    return isinstance(t, TensorType) and all(d.is_static for d in t.shape) and _elements(t.shape) <= limit


def _value(op: Op, given: list[Any], interpreter: Interpreter) -> torch.Tensor | None:
    """What ``op`` gives, if that can be written down."""
    try:
        (value,) = interpreter.evaluate(op, given)
    except (AatcError, RuntimeError, IndexError, ValueError, TypeError):
        return None  # the interpreter refuses this operator, or torch does: leave it to run as it is
    plain = isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.layout == torch.strided
    if not plain or value.is_complex() or not value.is_contiguous() or value.is_neg():
        return None
    return value if TensorType.of(dtype_name(value.dtype), value.shape) == op.result.type else None


def _constant(op: Op, value: torch.Tensor) -> Op:
    """A constant that takes the place of ``op``; the result stays the same value of the IR."""
    t = op.result.type
    made = Op("geo.constant", [], {"values": tuple(value.flatten().tolist()), "type": t}, loc=op.loc)
    made.results = op.results
    op.result.owner = made
    return made


def _elements(shape: Iterable[Any]) -> int:
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
        for func in _geo(module):
            memory = Memory(func, module)  # what folding takes apart may count as one: that forbids, it allows nothing
            ctx.count("folded", fold(module, func, memory))
            ctx.count("merged", _merge(func, memory))
            ctx.count("dead-op", _sweep(func, memory))
        ctx.count("dead-func", _drop_unreachable(module))
        return module
