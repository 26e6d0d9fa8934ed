"""A look at what public functions are given, before their first line: tensors, manifolds, functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from aatc.geometry.errors import PointShapeError


def is_number(value: Any) -> bool:
    """Whether a value is one real number, or a tensor of one."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return hasattr(value, "__float__")


_KINDS: dict[str, Callable[[Any], bool]] = {
    "function": callable,
    "integer": lambda value: hasattr(value, "__index__") and not isinstance(value, Tensor),
    "number": is_number,
    "sequence of numbers": lambda value: (
        value.ndim == 1 and not value.is_complex()
        if isinstance(value, Tensor)
        else isinstance(value, (list, tuple)) and all(is_number(one) for one in value)
    ),
}

P = ParamSpec("P")
R = TypeVar("R")


def arguments(**kinds: type | str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Refuse arguments of another type, by name: a class, or "function", "integer", "number", "sequence of numbers".
    None passes where the default is None. Raises: PointShapeError."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = list(inspect.signature(function).parameters.values())
        looked = [(i, p.name, kinds[p.name], p.default is None) for i, p in enumerate(parameters) if p.name in kinds]

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            for index, name, kind, optional in looked:
                if index < len(args):
                    value: Any = args[index]
                elif name in kwargs:
                    value = kwargs[name]
                else:
                    continue
                if optional and value is None:
                    continue
                good = _KINDS[kind](value) if isinstance(kind, str) else isinstance(value, kind)
                if not good:
                    wanted = kind if isinstance(kind, str) else kind.__name__
                    article = "an" if wanted[0] in "aeiouAEIOU" else "a"
                    raise PointShapeError(
                        f"{function.__qualname__}: {name} is {article} {wanted}, got {type(value).__name__}"
                        + ("; make one with torch.tensor" if kind is Tensor else "")
                    )
            return function(*args, **kwargs)

        return run

    return decorate
