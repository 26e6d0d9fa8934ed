"""Dynamo taught operators of objects: by which it finds methods, comparisons, and texts of numbers that vary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Operator = Callable[..., Any]


def run_methods_of_objects() -> None:
    """Makes Dynamo run ``~x`` and ``x @ y`` of objects by their methods, as it does for all other operators."""
    from torch._dynamo.variables.builtin import BuiltinVariable
    from torch._dynamo.variables.user_defined import UserDefinedObjectVariable

    handlers: Any = BuiltinVariable
    if hasattr(handlers, "call_invert"):
        return

    def call_invert(self: Any, tx: Any, x: Any) -> Any:
        x = x.realize()
        return x.call_method(tx, "__invert__", [], {}) if isinstance(x, UserDefinedObjectVariable) else None

    def call_matmul(self: Any, tx: Any, x: Any, y: Any) -> Any:
        x, y = x.realize(), y.realize()
        return x.call_method(tx, "__matmul__", [y], {}) if isinstance(x, UserDefinedObjectVariable) else None

    handlers.call_invert, handlers.call_matmul = call_invert, call_matmul


def compare_by_methods(of: type, mirrored: Mapping[Operator, Operator]) -> None:
    """Makes Dynamo ask objects of the class ``of`` when they are compared with a number, by an operator or, on its
    right, by the mirrored one. It would ask the number, which knows no such objects, and take ``==`` for identity."""
    from torch._dynamo.variables.builtin import BuiltinVariable
    from torch._dynamo.variables.constant import ConstantVariable
    from torch._dynamo.variables.tensor import SymNodeVariable
    from torch._dynamo.variables.user_defined import UserDefinedObjectVariable

    def compared(op: Any, at: int) -> Callable[..., Any]:
        def handler(tx: Any, *sides: Any) -> Any:
            asked, number = sides[at], sides[1 - at]
            if not isinstance(getattr(asked, "value", None), of):
                return None
            return asked.call_method(tx, f"__{op.__name__}__", [number], {})

        return handler

    table = BuiltinVariable._binop_handlers()
    for op, other in mirrored.items():
        for number in (SymNodeVariable, ConstantVariable):
            table[op].insert(0, ((number, UserDefinedObjectVariable), compared(other, 1)))
        table[op].insert(0, ((UserDefinedObjectVariable, SymNodeVariable), compared(op, 0)))
    BuiltinVariable.call_function_handler_cache.clear()


def combine_by_methods(of: type, methods: Mapping[Operator, tuple[str, str]]) -> None:
    """Makes Dynamo ask objects of the class ``of`` when they are combined with a tensor, by the method of the left or
    of the right side. It would record an operator of tensors, which cannot take them."""
    from torch._dynamo.variables.builtin import BuiltinVariable

    handlers: Any = BuiltinVariable
    own = handlers._handle_insert_op_in_graph

    def insert(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        if self.fn in methods and len(args) == 2:
            x, y = (a.realize() for a in args)
            left, right = methods[self.fn]
            for asked, method, other in ((x, left, y), (y, right, x)):
                if isinstance(getattr(asked, "value", None), of) and hasattr(asked.value, method):
                    return asked.call_method(tx, method, [other], {})
        return own(self, tx, args, kwargs)

    handlers._handle_insert_op_in_graph = insert


def refuse_membership(of: type, message: str) -> None:
    """Lets ``in`` with objects of the class ``of`` raise TypeError as Python does; Dynamo would take it for False, or
    for several ``==``."""
    from torch._dynamo import utils
    from torch._dynamo.exc import raise_observed_exception
    from torch._dynamo.variables import lists
    from torch._dynamo.variables.user_defined import UserDefinedObjectVariable

    own = utils.iter_contains

    def contains(items: Any, search: Any, tx: Any, *rest: Any, **more: Any) -> Any:
        items = list(items)
        for x in (search, *items):
            if isinstance(x, UserDefinedObjectVariable) and isinstance(x.value, of):
                raise_observed_exception(TypeError, tx, args=[message])
        return own(items, search, tx, *rest, **more)

    for module in (utils, lists):
        module.iter_contains = contains  # type: ignore[attr-defined]


def format_as_written() -> None:
    """Makes a number that varies a guarded constant where an f-string shows it: Dynamo may give the number itself back
    in the place of its text, and cannot record what has a format."""
    from torch._dynamo.symbolic_convert import InstructionTranslatorBase
    from torch._dynamo.variables.constant import ConstantVariable
    from torch._dynamo.variables.tensor import SymNodeVariable

    translator: Any = InstructionTranslatorBase
    own = translator._format_value

    def format_value(self: Any, spec: Any, flags: int) -> None:
        shown = self.stack[-1].realize()
        if isinstance(shown, SymNodeVariable):
            self.stack[-1] = ConstantVariable.create(shown.evaluate_expr(self.output))
        own(self, spec, flags)

    translator._format_value = format_value
