"""The rules of the IR, in layers; each later layer may rely on the earlier ones.

1. SSA: values are defined once, before use, in an enclosing scope; blocks end with their terminator;
   functions are named once and call each other without circles.
2. Every operation against its declaration.
3. Levels: operations and types stand where they belong; symbolic dimensions are declared.
4. Tile accesses stay inside their buffers, and tiles fit together in every round (`ir.verify_tiles`); buffers have
   layouts that somebody makes (`ir.layouts`), and are written and read in order (`ir.verify_memory`); parallel loops
   are free of races (`ir.races`).
5. Levels and offsets of programs leave their meaning as it is (`ir.verify_program`).
6. What backends' own passes have added keeps the backends' rules (`ir.registry.Extension`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from aatc.ir.blame import fail
from aatc.ir.core import Block, Func, Module, Op, Value
from aatc.ir.dims import ATTRIBUTE, NAME, Dim, factors
from aatc.ir.errors import AatcError, ParseError, VerifyError
from aatc.ir.geo import VERSIONS
from aatc.ir.known import Known, key_of, key_of_function
from aatc.ir.layouts import check_layouts
from aatc.ir.races import check_races
from aatc.ir.registry import EXTENSIONS, OPS, Operand, Symbol, TorchConst, check_against_declaration, extended
from aatc.ir.schedule import Schedule
from aatc.ir.score.program import Program
from aatc.ir.torch_names import problem
from aatc.ir.types import KERNEL, SHAPED, ListType, PairType, TensorType, TileType, Type, fits
from aatc.ir.verify_memory import check_memory
from aatc.ir.verify_program import check_program
from aatc.ir.verify_tiles import check_tiles

LEVELS = ("geo", "tile", "program")
_INTEGERS = range(-(2**63), 2**64)
_ATTRIBUTES = (str, bool, int, float, Symbol, Operand, TorchConst, Type, Dim, Program)
#: What needs no look beyond its type.
_PLAIN = frozenset({type(None), bool, str, float, Operand, Program})


def verify(module: Module, known: Known | None = None) -> None:
    """Raises `VerifyError` at the first rule that ``module`` breaks. ``known`` keeps what was found sound from one call
    to the next, while only some of a program changes."""
    known = (Known() if known is None else known).under(module.dims)
    _check_module(module)
    seen: set[Op] = set()
    leaves: dict[Op, list[Any]] = {}
    new: dict[Any, Func] = {}
    for func in module.funcs.values():
        _check_block(func.body, func, f"{func.level}.return", set(), seen)
        key = key_of_function(func) if func.level != "geo" else None
        if known.get(key) or key in new:
            continue
        if func.level != "geo":
            new[func.name if key is None else key] = func
        _check_ops(func, module, leaves, known)
    _check_calls(module, leaves)
    for key, func in new.items():
        if func.level == "program":
            check_program(func)
        else:
            _check_tile_function(func, module)
        if isinstance(key, tuple) and not any(
            isinstance(v, Symbol) for op in func.body.walk() for v in leaves.get(op, ())
        ):
            known.add_function(key, True, func)


def _check_tile_function(func: Func, module: Module) -> None:
    check_tiles(func, module.dims)
    check_layouts(func)
    check_memory(func, module.dims)
    check_races(func)
    for extension in EXTENSIONS.values():
        extension.check(func, module.dims)


def _check_ops(func: Func, module: Module, leaves: dict[Op, list[Any]], known: Known) -> None:
    """Every operation by itself. ``leaves`` gets the types, dimensions and names of functions among the attributes of
    those that are new, and at least the names of those that are not."""
    new: list[tuple[Any, Op]] = []
    for op in func.body.walk():
        key = (func.level, *key_of(op)) if func.level == "geo" and not op.regions else None
        found = known.get(key)
        if found is None:
            new.append((key, op))
            found = _check_op(op)
        if found:
            leaves[op] = found
    _check_level(func, module, leaves, [op for _, op in new])
    for key, op in new:
        if key is not None:
            known.add(key, [v for v in leaves.get(op, ()) if isinstance(v, Symbol)], op)


# --- module and SSA ----------------------------------------------------------------------------------------
def _check_module(module: Module) -> None:
    if not module.funcs:
        raise VerifyError("the module has no function")
    for name, (low, high) in module.dims.items():
        if not NAME.match(name):
            raise VerifyError(f"{name!r} is no name of a dimension")
        if low < 0 or (high is not None and high < low):
            raise VerifyError(
                f"dimension {name} has the empty or negative range [{low}, {'inf' if high is None else high}]"
            )
        if why := _no_product(name, module.dims):
            raise VerifyError(why, hint="a name A_x_B stands for A times B")
    for name, func in module.funcs.items():
        if name != func.name:
            raise VerifyError(f"function @{func.name} is filed under the name @{name}", at=func)
        if not NAME.match(name):
            raise VerifyError(f"{name!r} is no name of a function", at=func)
        if func.level not in LEVELS:
            raise VerifyError(f"function @{name} has level {func.level!r}; there are {', '.join(LEVELS)}", at=func)


def _no_product(name: str, dims: dict[str, tuple[int, int | None]]) -> str | None:
    """What is wrong with a dimension ``A_x_B``, if it is one: it takes every product of what A and B may be."""
    parts = factors(name)
    if len(parts) == 1:
        return None
    if missing := [p for p in parts if p not in dims]:
        return f"dimension {name} is a product, and {missing[0] or 'what has no name'} is not declared"
    low, high = dims[name]
    tops = [dims[p][1] for p in parts]
    most = None if None in tops else math.prod(n for n in tops if n is not None)
    if low > math.prod(dims[p][0] for p in parts) or (high is not None and (most is None or most > high)):
        return f"dimension {name} is a product, which its range does not hold"
    return None


def _check_block(block: Block, func: Func, terminator: str, visible: set[Value], seen: set[Op]) -> None:
    own: list[Value] = []

    def define(v: Value, owner: Op | Block, what: Op | Func) -> None:
        if v in visible or v.owner is not owner:
            message = f"value %{v.name or '?'} has two owners"
            if isinstance(what, Op):
                fail(what, message)
            raise VerifyError(message, at=what)
        visible.add(v)
        own.append(v)

    for arg in block.args:
        define(arg, block, func)
    for op in block.ops:
        if op in seen:
            fail(op, "an operation stands in two places")
        seen.add(op)
        for v in op.operands:
            if v not in visible:
                fail(op, f"operand %{v.name or '?'} is used before it is defined, or out of its scope")
        for region in op.regions:
            _check_block(region, func, "tile.yield", visible, seen)
        for v in op.results:
            define(v, op, op)
    _check_terminator(block, func, terminator)
    visible.difference_update(own)


def _check_terminator(block: Block, func: Func, terminator: str) -> None:
    if not block.ops or block.ops[-1].name != terminator:
        message = f"a block of @{func.name} must end with {terminator}"
        if block.ops:
            fail(block.ops[-1], message)
        raise VerifyError(message, at=func)
    for op in block.ops[:-1]:
        if op.name in OPS and OPS[op.name].terminator:
            fail(op, f"{op.name} ends a block, yet operations follow it")


# --- single operations -------------------------------------------------------------------------------------
def _check_op(op: Op) -> list[Any]:
    """Returns the types, dimensions and names of functions among the attributes."""
    found: list[Any] = []
    for name, value in op.attrs.items():
        if not ATTRIBUTE.match(name):
            fail(op, f"{name!r} is no name of an attribute")
        if why := _unprintable(value, found):
            fail(op, f"attribute {name}: {why}")
    try:
        check_against_declaration(op)
    except AatcError as e:
        fail(op, getattr(e, "reason", e.message), e.hint)
    except Exception as e:  # rules read attributes and operands as if they were sound; text need not be
        fail(op, f"{op.name} is malformed: {type(e).__name__}: {e}")
    return found


def _unprintable(value: Any, found: list[Any]) -> str | None:
    """Why an attribute's value has no text form that reads back, or None. Its types, dimensions and names of functions
    are added to ``found``."""
    stack = [value]
    while stack:
        v = stack.pop()
        kind = type(v)
        if kind in _PLAIN:
            continue
        if isinstance(v, (tuple, list)):
            stack.extend(v)
        elif isinstance(v, int):
            if v not in _INTEGERS:
                return f"the integer {v:#x} does not fit into 64 bits"
        elif not isinstance(v, _ATTRIBUTES):
            return f"a {kind.__name__} cannot stand in an attribute"
        elif isinstance(v, TorchConst):
            if why := problem(v):
                return why
        elif isinstance(v, Symbol) and not NAME.match(v.name):
            return f"{v.name!r} is no name of a function"
        else:
            found.append(v)
    return None


# --- levels ------------------------------------------------------------------------------------------------
def _check_level(func: Func, module: Module, leaves: dict[Op, list[Any]], ops: list[Op]) -> None:
    """What the level and the module have to say of a function and of those of its operations in ``ops``."""
    sound: dict[int, Type] = {}  # by identity: equality takes as long as the check

    def check(t: Type) -> str | None:
        if id(t) in sound:
            return None
        why = _type_problem(t, func.level, module)
        if why is None:
            sound[id(t)] = t
        return why

    for v in func.args:
        if why := check(v.type):
            raise VerifyError(f"argument %{v.name or '?'} of @{func.name}: {why}", at=func)
    for name, value in func.attrs.items():
        if why := _unprintable(value, []):
            raise VerifyError(f"an attribute of @{func.name}: {why}", at=func)
        if "." in name and not isinstance(value, getattr(extended(name, function=True), "types", ())):
            raise VerifyError(f"@{func.name} has no attribute {name} of such a value", at=func)
        if name == "schedule" and func.level == "tile":
            _check_schedule(func, value)
    for op in ops:
        if OPS[op.name].level != func.level:
            fail(op, f"{op.name} belongs to level {OPS[op.name].level}, @{func.name} is of level {func.level}")
        found = leaves.get(op, ())
        for v in op.results:
            if why := check(v.type):
                fail(op, why)
        for t in (*(a.type for r in op.regions for a in r.args), *(v for v in found if isinstance(v, Type))):
            if why := check(t):
                fail(op, why)
        for d in found:
            if isinstance(d, Dim) and (missing := sorted(d.symbols - module.dims.keys())):
                fail(op, f"dimension {missing[0]} is not declared in the module's dims")


def _check_schedule(func: Func, text: Any) -> None:
    """What a tile function says it was made by is a schedule: backends read it."""
    if not isinstance(text, str):
        raise VerifyError(f"the schedule of @{func.name} is {text!r}, which is no text", at=func)
    try:
        Schedule.parse(text)
    except ParseError as e:
        raise VerifyError(f"schedule of @{func.name}, column {e.column}: {e.message}", hint=e.hint, at=func) from None


def _type_problem(t: Type, level: str, module: Module) -> str | None:
    while isinstance(t, ListType):
        t = t.element
    if isinstance(t, PairType) and level != "geo":
        return f"{t} exists at the geo level only"
    if isinstance(t, TileType) and level != "tile":
        return f"{t} exists at the tile level only"
    if t == KERNEL and level != "program":
        return f"{t} exists at the program level only"
    if isinstance(t, TensorType) and t.layout and level != "tile":
        return f"{t} has a layout, which only buffers of the tile level have"
    if isinstance(t, SHAPED):
        for d in t.shape:
            if missing := sorted(d.symbols - module.dims.keys()):
                return f"dimension {missing[0]} of {t} is not declared in the module's dims"
            if d.is_static and int(d) < 0:
                return f"{t} has a negative extent"
    if isinstance(t, TileType) and (len(t.shape) != 3 or not all(d.is_static for d in t.shape)):
        return f"a tile has three extents, which are numbers, unlike {t}"
    return None


# --- calls -------------------------------------------------------------------------------------------------
def _check_calls(module: Module, leaves: dict[Op, list[Any]]) -> None:
    calls: dict[str, list[tuple[str, Op]]] = {name: [] for name in module.funcs}
    for func in module.funcs.values():
        for op in func.body.walk():
            for v in leaves.get(op, ()):
                if not isinstance(v, Symbol):
                    continue
                if v.name not in module.funcs:
                    fail(op, f"there is no function {v}", f"functions: {', '.join(f'@{n}' for n in module.funcs)}")
                calls[func.name].append((v.name, op))
            _check_signature(op, module)
    state: dict[str, int] = {}  # 1 while on the path, 2 when done
    for root in calls:
        stack = [(root, iter(calls[root]))] if root not in state else []
        state.setdefault(root, 1)
        while stack:
            name, rest = stack[-1]
            step = next(rest, None)
            if step is None:
                state[name] = 2
                stack.pop()
                continue
            callee, op = step
            if state.get(callee) == 1:
                fail(op, f"@{callee} ends up calling itself")
            elif callee not in state:
                state[callee] = 1
                stack.append((callee, iter(calls[callee])))


def _check_signature(op: Op, module: Module) -> None:
    if op.name == "geo.checkpoint":
        given, results = [v.type for v in op.operands], [r.type for r in op.results]
        _check_call(op, module.funcs[op.attrs["body"].name], "geo", given, results, whole=True)
    elif op.name == "geo.kernel":
        for forward, backward, grads in VERSIONS:
            if forward in op.attrs:
                names = (op.attrs[forward].name, op.attrs[backward].name)
                _check_kernel(op, module.funcs[names[0]], module.funcs[names[1]], op.attrs[grads])


def _check_kernel(op: Op, forward: Func, backward: Func, grads: Sequence[str]) -> None:
    """A forward and its backward are called as the host calls them (`aatc.backends.kernel`)."""
    operands, results = [v.type for v in op.operands], [r.type for r in op.results]
    _check_call(op, forward, "tile", operands, results, whole=False)
    of = dict(zip(op.attrs["names"], operands, strict=True))
    saved = forward.result_types[len(results) :]
    _check_call(op, backward, "tile", [*results, *saved, *operands], [of[g] for g in grads], whole=True)


def _check_call(op: Op, func: Func, level: str, given: list[Type], results: list[Type], *, whole: bool) -> None:
    if func.level != level:
        fail(op, f"@{func.name} is not a {level} function")
    taken = [v.type for v in func.args]
    if len(given) != len(taken) or not all(map(fits, given, taken)):
        fail(
            op,
            f"@{func.name} takes ({', '.join(map(str, taken))}), it is given ({', '.join(map(str, given))})",
        )
    returned = func.result_types if whole else func.result_types[: len(results)]
    if len(returned) != len(results) or not all(map(fits, returned, results)):
        fail(
            op,
            f"@{func.name} returns ({', '.join(map(str, returned))}), not ({', '.join(map(str, results))})",
        )
