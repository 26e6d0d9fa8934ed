"""Types of graph values: torch's symbolic sizes as `Dim`, tensors and lists as IR types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from aatc.frontend.private_torch import is_known_to_be
from aatc.ir.dims import Dim
from aatc.ir.errors import UnsupportedError
from aatc.ir.types import BOOL, FLOAT, INT, ListType, OpaqueType, TensorType, Type, dtype_name


class Shapes:
    """Turns sizes into `Dim` and collects the ranges of the symbols on the way.

    An affine expression over torch's symbols becomes the same expression; anything else (a product of two
    symbols, a floor division) becomes a fresh symbol, the same one for the same expression.
    """

    def __init__(self, ranges: Mapping[Any, Any] | None = None) -> None:
        self._given = ranges or {}
        self.ranges: dict[str, tuple[int, int | None]] = {}
        self.hints: dict[str, int] = {}
        self._fresh: dict[Any, Dim] = {}
        self._known: dict[Any, Dim] = {}

    def dim(self, size: Any) -> Dim:
        """The dimension for an int or a SymInt."""
        if not isinstance(size, torch.SymInt):
            return Dim(int(size))
        node = size.node
        known = node.maybe_as_int()
        if known is not None:
            return Dim(known)
        expression = node.expr
        if expression not in self._known:
            hint = node.hint if node.has_hint() else None
            dim = self._affine(expression, node.shape_env)
            if dim in self._fresh.values() and hint is not None and is_known_to_be(size, int(hint)):
                dim = Dim(int(hint))  # a guard says so, which torch does not put in the place of what it cannot solve
            self._known[expression] = dim
            if hint is not None and dim.terms and dim == Dim.of(dim.terms[0][0]):
                self.hints[dim.terms[0][0]] = int(hint)
        return self._known[expression]

    def name_of(self, size: torch.SymInt) -> str | None:
        """The symbol that ``size`` is, if it is one."""
        dim = self.dim(size)
        return dim.terms[0][0] if dim.terms and dim == Dim.of(dim.terms[0][0]) else None

    def _affine(self, expression: Any, env: Any) -> Dim:
        import sympy

        total = Dim(0)
        for term in sympy.Add.make_args(sympy.expand(expression)):
            coefficient, rest = term.as_coeff_Mul()
            if not coefficient.is_Integer:
                return self._other(expression, env)
            if rest == 1:
                total = total + int(coefficient)
            elif rest.is_Symbol:
                total = total + self._symbol(rest, env) * int(coefficient)
            else:
                return self._other(expression, env)
        return total

    def _symbol(self, symbol: Any, env: Any) -> Dim:
        known = self._given.get(symbol, env.var_to_range.get(symbol) if env is not None else None)
        self.ranges.setdefault(symbol.name, _range(known))
        return Dim.of(symbol.name)

    def _other(self, expression: Any, env: Any) -> Dim:
        if expression not in self._fresh:
            name = f"d{len(self._fresh)}"
            self.ranges[name] = _range(env.bound_sympy(expression) if env is not None else None)
            self._fresh[expression] = Dim.of(name)
        return self._fresh[expression]

    def type(self, value: Any) -> Type:
        """The type of a fake tensor, symbolic number, list of them, or anything else (opaque)."""
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided:
                raise UnsupportedError(f"a tensor has layout {value.layout}", hint="the IR holds dense tensors")
            try:
                dtype = dtype_name(value.dtype)
            except KeyError:
                raise UnsupportedError(f"a tensor has dtype {value.dtype}, for which the IR has no word") from None
            return TensorType(dtype, tuple(map(self.dim, value.shape)))
        if isinstance(value, (bool, torch.SymBool)):
            return BOOL
        if isinstance(value, (int, torch.SymInt)):
            return INT
        if isinstance(value, (float, torch.SymFloat)):
            return FLOAT
        if isinstance(value, (list, tuple)) and value:
            elements = {self.type(v) for v in value}
            if len(elements) == 1:
                return ListType(elements.pop())
        return OpaqueType()


def _range(found: Any) -> tuple[int, int | None]:
    if found is None:
        return 0, None

    def number(bound: Any) -> int | None:
        # infinities of sympy and of torch are not integers
        return int(bound) if getattr(bound, "is_Integer", False) else None

    high = number(found.upper)
    return max(0, number(found.lower) or 0), None if high is None or high >= 2**62 else high
