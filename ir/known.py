"""Knowing operations and functions again, so that what was found sound is not looked at twice.

They are told by the very objects they are made of. Types and attributes' values are immutable: what is made of the same
ones is the same, and a pass that changes something makes it of others. Equal is not enough: 1 and True are equal.
"""

from __future__ import annotations

from typing import Any

from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.registry import Operand, Symbol, TorchConst
from aatc.ir.score.program import Program
from aatc.ir.types import Type

#: Objects, by the classes they are of, that nobody can change.
_FROZEN = (str, bool, int, float, type(None), Symbol, Operand, TorchConst, Dim, Program)
Key = tuple[Any, ...]


def key_of(op: Op) -> Key:
    """What an operation without regions is made of, besides the values it is given and where it stands."""
    types = [id(v.type) for v in op.operands]
    return (op.name, len(types), *op.attrs, *map(id, op.attrs.values()), *types, *[id(r.type) for r in op.results])


def key_of_function(func: Func) -> Key | None:
    """What a function is made of, besides names and lines in the model; None if it reads what it does not define."""
    key: list[Any] = [func.level, *func.attrs, *map(id, func.attrs.values())]
    try:
        _enter(func.body, key, {})
    except KeyError:
        return None
    return tuple(key)


def _enter(block: Block, key: list[Any], numbers: dict[Value, int]) -> None:
    key.append(len(block.args))
    for a in block.args:
        numbers[a] = len(numbers)
        key.append(id(a.type))
    for op in block.ops:
        key += (op.name, len(op.operands), len(op.results), len(op.regions), *op.attrs)
        key += map(id, op.attrs.values())
        key += [numbers[v] for v in op.operands]
        for region in op.regions:
            _enter(region, key, numbers)
        for r in op.results:
            numbers[r] = len(numbers)
            key.append(id(r.type))
    key.append("end")


class Known:
    """What has been found under one set of dimensions, by key. It holds on to all that keys speak of, whose identity
    would else pass on to something new."""

    def __init__(self) -> None:
        self._dims: dict[str, Any] = {}
        self._found: dict[Key, Any] = {}
        self._held: list[Any] = []

    def under(self, dims: dict[str, Any]) -> Known:
        """Itself; what was found under other dimensions is forgotten."""
        if dims != self._dims:
            self._dims, self._found, self._held = dict(dims), {}, []
        return self

    def get(self, key: Key | None) -> Any:
        """What was found, None if nothing was."""
        return None if key is None else self._found.get(key)

    def add(self, key: Key, found: Any, op: Op) -> None:
        """Remembers what was found of an operation, unless something of it may still change."""
        if self._hold(op):
            self._found[key] = found

    def add_function(self, key: Key | None, found: Any, func: Func) -> None:
        """Remembers what was found of a function, unless something of it may still change."""
        ops = list(func.body.walk())
        if key is None or not all(map(frozen, func.attrs.values())) or not all(map(self._hold, ops)):
            return
        self._held.append((*func.attrs.values(), *[a.type for a in func.args]))
        self._held += [[a.type for a in r.args] for op in ops for r in op.regions]
        self._found[key] = found

    def _hold(self, op: Op) -> bool:
        values = list(op.attrs.values())
        if not all(map(frozen, values)):
            return False
        self._held.append((values, [v.type for v in op.operands], [r.type for r in op.results]))
        return True


def frozen(value: Any) -> bool:
    """Whether nothing of an attribute's value can change."""
    if type(value) is tuple:
        return all(map(frozen, value))
    return type(value) in _FROZEN or isinstance(value, Type)
