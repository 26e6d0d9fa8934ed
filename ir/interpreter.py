"""The reference interpreter: what a module means, operation by operation, in torch.

Slow and plain on purpose. Each operation evaluates itself (`OpDef.evaluate`); this file holds functions,
scopes, symbolic dimensions, and the call of operators kept as they are.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NoReturn

import torch

from aatc.ir.core import Block, Func, Module, Op, Value
from aatc.ir.dims import Dim, factors
from aatc.ir.errors import AatcError, BackendError, ShapeError, VerifyError
from aatc.ir.printer import op_line
from aatc.ir.registry import OPS, Operand, TorchConst
from aatc.ir.torch_names import resolve
from aatc.ir.types import SHAPED, ListType, TensorType, torch_dtype

#: Functions of Python's operator module that a text may call, on numbers only (getitem: on lists).
ARITHMETIC: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in (
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "neg",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "getitem",
    )
}
_ATEN = re.compile(r"aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
_CHECKS = ("aten::_assert_scalar", "aten::sym_constrain_range", "aten::sym_constrain_range_for_size")
_NUMBER = (bool, int, float)


def run(module: Module, *tensors: Any) -> Any:
    """The entry function's results on ``tensors``: a tuple, or the only one as it is.

    ShapeError when an argument does not fit its type, naming the dimension.
    """
    results = Interpreter(module).call(module.entry.name, tensors)
    return results[0] if len(results) == 1 else tuple(results)


class Interpreter:
    """Runs functions of one module. Operations reach back through `call`, `block`, `dim`, `torch_call`."""

    def __init__(self, module: Module):
        self.module = module
        self.sizes: dict[str, int] = {}
        self.scopes: list[dict[Value, Any]] = []

    def call(self, name: str, values: Sequence[Any]) -> list[Any]:
        """The results of function ``name`` on ``values``."""
        func = self.module.funcs.get(name)
        if func is None:
            raise VerifyError(f"the module has no function @{name}")
        outer = self.sizes
        self.sizes = bind_sizes(func, values, self.module.dims, outer)
        self.scopes.append({})
        try:
            return self.block(func.body, values)
        finally:
            self.scopes.pop()
            self.sizes = outer

    def block(self, block: Block, values: Sequence[Any]) -> list[Any]:
        """Runs a block on the values of its arguments; returns what its terminator is given."""
        scope = self.scopes[-1]
        scope.update(zip(block.args, values, strict=True))
        for op in block.ops:
            inputs = [scope[v] for v in op.operands]
            definition = OPS[op.name]
            if definition.terminator:
                return inputs
            scope.update(zip(op.results, self.evaluate(op, inputs), strict=True))
        raise VerifyError("a block ends without returning")

    def evaluate(self, op: Op, values: list[Any]) -> Sequence[Any]:
        definition = OPS[op.name]
        if definition.evaluate is None:
            raise VerifyError(f"{op.name} has no reference evaluation", op=op_line(op))
        return definition.evaluate(op, values, self)

    def dim(self, d: Dim | int) -> int:
        """The size of a dimension under the arguments of the running function."""
        if isinstance(d, int):
            return d
        if d.is_static:
            return d.const
        missing = d.symbols - self.sizes.keys()
        return d.evaluate({**self.sizes, **{name: self._product(name) for name in missing}} if missing else self.sizes)

    def _product(self, name: str) -> int:
        """The size of a dimension ``A_x_B``, which stands for A times B and is in no argument's shape."""
        parts = factors(name)
        if len(parts) < 2 or not all(part in self.sizes for part in parts):
            raise ShapeError(f"dimension {name} has no size: no argument of the function has it in its shape")
        return math.prod(self.sizes[part] for part in parts)

    def torch_call(self, op: Op, values: Sequence[Any]) -> Sequence[Any]:
        """Runs a `torch.call`: its ATen overload, or arithmetic on numbers."""
        function = target_function(op.attrs["target"], op)
        args = [self._argument(a, values) for a in op.attrs["args"]]
        names = op.attrs.get("kwargs", ())
        split = len(args) - len(names)
        with torch.no_grad() if op.attrs.get("no_grad") else nullcontext():
            try:
                out = function(*args[:split], **dict(zip(names, args[split:], strict=True)))
            except AatcError:
                raise
            except Exception as error:
                raise BackendError(failure(op, error), where=str(op.loc) if op.loc else None) from error
        if not op.results:
            return []
        found = list(out) if gives_several(function, op) else [out]
        for value, result in zip(found, op.results, strict=False):
            self._check(value, result, op)
        return found

    def _check(self, value: Any, result: Value, op: Op) -> None:
        """That an operator of torch gave what the text says it gives; a precision of its own is no matter."""
        t = result.type
        if not isinstance(t, TensorType) or not isinstance(value, torch.Tensor):
            return
        want = [self.dim(d) if d.symbols <= self.sizes.keys() else None for d in t.shape]
        fits = len(want) == value.dim() and all(w in (None, n) for w, n in zip(want, value.shape, strict=True))
        if not fits or held(value.dtype) != held(torch_dtype(t.dtype)):
            got = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
            raise ShapeError(f"{op.attrs['target']} gives {got}, not {t} as %{result.name or '?'} is said to be")

    def _argument(self, a: Any, values: Sequence[Any]) -> Any:
        if isinstance(a, Operand):
            return values[a.position]
        if isinstance(a, tuple):
            return [self._argument(x, values) for x in a]
        if isinstance(a, TorchConst):
            return resolve(a)
        return self.dim(a) if isinstance(a, Dim) else a


def failure(op: Op, error: Exception) -> str:
    """What is said of an operation that fails on its values."""
    said = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return f"{op.name} failed on the values it was given: {said}\n  in: {op_line(op)[:400]}"


def held(dtype: torch.dtype) -> str:
    """What a dtype holds, whatever its precision."""
    if dtype == torch.bool:
        return "truth"
    return "complex" if dtype.is_complex else "real" if dtype.is_floating_point else "whole"


def target_function(target: str, op: Op | None = None) -> Callable[..., Any]:
    """What a `torch.call` may run: an overload ``aten.name.overload``, or ``operator.name``.

    VerifyError for anything else.
    """
    kind, _, name = target.partition(".")
    if kind == "operator" and name in ARITHMETIC:
        text = op_line(op) if op is not None else None
        return lambda *args: _arithmetic(name, args, text)
    overload, message, hint = _overload(target)
    if overload is None:
        raise VerifyError(message, op=op_line(op) if op is not None else None, hint=hint)
    return overload


@lru_cache(maxsize=4096)
def _overload(target: str) -> tuple[torch._ops.OpOverload | None, str, str | None]:
    """The overload, or what is wrong with its name and what would be right."""
    m = _ATEN.fullmatch(target)
    if m is None:
        return None, f"{target!r} cannot be called", f"aten.name.overload, or operator. with {', '.join(ARITHMETIC)}"
    packet = getattr(torch.ops.aten, m[1], None)
    overload = getattr(packet, m[2], None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
    if not isinstance(overload, torch._ops.OpOverload):
        return None, f"torch has no operator {target}", None
    if not _is_data_flow(overload):
        return None, f"{target} is no function of tensors and is not called", None
    return overload, "", None


def _is_data_flow(overload: torch._ops.OpOverload) -> bool:
    """Whether an operator computes with tensors and touches neither files nor torch's global state."""
    if overload.name() in _CHECKS:
        return True
    arguments, returns = overload._schema.arguments, overload._schema.returns
    return any("Tensor" in str(a.type) for a in (*arguments, *returns)) and not any(
        a.name == "filename" for a in arguments
    )


def gives_several(function: Any, op: Op) -> bool:
    """Whether the results of a `torch.call` are the elements of what ``function`` returns, which its schema says: one
    that returns a list gives each element as a result, however many there are, or the list itself as a value of such a
    type."""
    if not isinstance(function, torch._ops.OpOverload):
        return False
    returns = function._schema.returns
    if len(returns) != 1:
        return True
    if not isinstance(returns[0].type, torch._C.ListType):
        return False
    return len(op.results) != 1 or not isinstance(op.result.type, ListType)


def _arithmetic(name: str, args: Sequence[Any], text: str | None) -> Any:
    def fail(why: str) -> NoReturn:
        raise VerifyError(f"operator.{name} {why}", op=text)

    if name == "getitem":
        items, at = args if len(args) == 2 else (None, None)
        if not isinstance(items, (list, tuple)) or isinstance(at, bool) or not isinstance(at, int):
            return fail("takes a list and a position")
        if not -len(items) <= at < len(items):
            fail(f"of position {at} in a list of {len(items)}")
        return items[at]
    if not args or not all(isinstance(a, _NUMBER) for a in args) or len(args) != (1 if name == "neg" else 2):
        fail("takes numbers here")
    try:
        out = ARITHMETIC[name](*args)
    except ArithmeticError as e:
        fail(f"of {', '.join(map(str, args))}: {e}")
    if isinstance(out, int) and not -(2**63) <= out < 2**63:
        fail("leaves 64 bits")
    return out


# --- symbolic dimensions -----------------------------------------------------------------------------------
def bind_sizes(
    func: Func, values: Sequence[Any], ranges: Mapping[str, tuple[int, int | None]], known: dict[str, int] | None = None
) -> dict[str, int]:
    """Sizes of the symbolic dimensions from the shapes of a function's arguments; all of them are checked.

    ``known`` holds sizes bound outside. ShapeError names the dimension and both sizes.
    """
    if len(values) != len(func.args):
        raise ShapeError(f"@{func.name} takes {len(func.args)} arguments, got {len(values)}")
    sizes: dict[str, int] = dict(known or {})
    pending: list[tuple[Dim, int, str]] = []
    for n, (arg, value) in enumerate(zip(func.args, values, strict=True)):
        what = f"argument {n}{f' (%{arg.name})' if arg.name else ''} of @{func.name}"
        if isinstance(arg.type, TensorType) and not isinstance(value, torch.Tensor):
            raise ShapeError(f"{what} must be a tensor {arg.type}, got {type(value).__name__}")
        if not isinstance(arg.type, SHAPED):
            continue
        shape = tuple(value.shape)
        if len(shape) != len(arg.type.shape):
            raise ShapeError(f"{what} must have {len(arg.type.shape)} dimensions, as {arg.type}; got shape {shape}")
        pending += [
            (d, size, f"dimension {axis} of {what}") for axis, (d, size) in enumerate(zip(arg.type.shape, shape))
        ]
    while pending:
        rest = [(d, size, what) for d, size, what in pending if not _bind(d, size, what, sizes, ranges)]
        if len(rest) == len(pending):
            d, _, what = rest[0]
            unknown = ", ".join(sorted(d.symbols - sizes.keys()))
            raise ShapeError(f"{what}: the sizes of {unknown} in {d} cannot be told apart")
        pending = rest
    for name, size in sizes.items():
        parts = factors(name)
        if len(parts) > 1 and all(p in sizes for p in parts) and size != math.prod(sizes[p] for p in parts):
            are = " times ".join(str(sizes[p]) for p in parts)
            raise ShapeError(f"@{func.name}: dimension {name} is {size}, which is not {are}")
    return sizes


def _bind(d: Dim, size: int, what: str, sizes: dict[str, int], ranges: Mapping[str, tuple[int, int | None]]) -> bool:
    """Checks one dimension, or solves it for its only unknown; False when it has several."""
    unknown = [(name, c) for name, c in d.terms if name not in sizes]
    if len(unknown) > 1:
        return False
    if not unknown:
        if (want := d.evaluate(sizes)) != size:
            shown = f"{d} = {want}" if d.terms else str(want)
            raise ShapeError(f"{what} must be {shown}, got {size}")
        return True
    ((name, c),) = unknown
    rest = size - d.evaluate({**sizes, name: 0})
    if rest % c:
        raise ShapeError(f"{what} must be {d}; no {name} makes that {size}")
    value = rest // c
    low, high = ranges.get(name, (0, None))
    if value < low or (high is not None and value > high):
        raise ShapeError(f"{what} gives {name} = {value}, which is outside [{low}, {'inf' if high is None else high}]")
    sizes[name] = value
    return True
