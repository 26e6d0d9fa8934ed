"""Attentions that say the same, as those of a model's layers do, are lowered once and copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from aatc.ir.core import Func, Loc, Module, Op, clone_func
from aatc.ir.known import frozen
from aatc.ir.registry import Symbol
from aatc.passes.base import Context


class Twins:
    """The lowerings of one pass over a module, whose results depend on nothing but the operation, the types of what it
    is given, the module's dimensions, the pass and its context."""

    def __init__(self, module: Module, ctx: Context):
        self.module, self.ctx = module, ctx
        self._made: dict[Any, tuple[str, dict[str, Any], Counter[str]]] = {}

    def lower(self, op: Op, stem: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The attributes that ``make`` returns after it has entered the functions which they name in the module, all of
        them called ``stem`` and something; for an operation like one before, those of its functions' copies."""
        key = self._key(op, stem)
        found = self._made.get(key)
        if key is not None and found is not None:
            return self._copy(found, stem, op.loc)
        counted, said = Counter(self.ctx.rewrites), len(self.ctx.notes)
        attrs = make()
        own = all(v.name.startswith(stem) for v in attrs.values() if isinstance(v, Symbol))
        if key is not None and own and len(self.ctx.notes) == said:  # what is said is said of one operation
            self._made[key] = (stem, attrs, Counter(self.ctx.rewrites) - counted)
        return attrs

    def _key(self, op: Op, stem: str) -> Any:
        """What a lowering depends on; None if it cannot be told."""
        if not all(map(frozen, op.attrs.values())):
            return None
        attrs = tuple((n, exact(_relative(v, stem))) for n, v in op.attrs.items())
        return op.name, attrs, tuple(v.type for v in op.operands), tuple(r.type for r in op.results)

    def _copy(self, made: tuple[str, dict[str, Any], Counter[str]], stem: str, loc: Loc | None) -> dict[str, Any]:
        first, attrs, counted = made
        for v in attrs.values():
            if isinstance(v, Symbol):
                self.module.add(_renamed(self.module.funcs[v.name], stem + v.name.removeprefix(first), loc))
        self.ctx.rewrites.update(counted)
        return {n: Symbol(stem + v.name.removeprefix(first)) if isinstance(v, Symbol) else v for n, v in attrs.items()}


def _relative(value: Any, stem: str) -> Any:
    """Names of an attention's own functions without its name."""
    if isinstance(value, Symbol) and value.name.startswith(stem):
        return ("own", value.name.removeprefix(stem))
    return value


def exact(value: Any) -> Any:
    """``value`` as a key under which only what reads the same is found: 1, 1.0 and True differ, as do 0.0 and -0.0."""
    if isinstance(value, tuple):
        return tuple(map(exact, value))
    return (type(value), repr(value) if isinstance(value, float) else value)


def _renamed(func: Func, name: str, loc: Loc | None) -> Func:
    copy = clone_func(func)
    copy.name = name
    for op in copy.body.walk():
        op.loc = loc
    return copy
