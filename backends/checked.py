"""A compiled tile function, held to the function's types: what it is given, and what the backend's code hands back.

A call whose arguments have shapes seen before compares shapes and dtypes only, in about two microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from aatc.ir.core import Func
from aatc.ir.dims import factors
from aatc.ir.errors import BackendError, ShapeError
from aatc.ir.interpreter import bind_sizes
from aatc.ir.registry import lookup_op
from aatc.ir.types import TensorType, torch_dtype

if TYPE_CHECKING:
    from aatc.backends.contract import Backend

#: Shapes of arguments for which a function remembers those of its results.
_KNOWN = 64


class Checked:
    """What ``backend`` makes of ``func``, as a callable of tensors; ``run`` is the backend's own, ``source`` its text.

    ``fit`` is asked about the arguments' shapes whenever they are new, and raises ShapeError. Raises: BackendError if
    the backend returns no pair of a callable and a text, or if the callable returns other results than the function's.
    """

    def __init__(self, func: Func, backend: Backend, fit: Callable[[Sequence[torch.Tensor]], None] | None = None):
        self.func, self.backend, self._fit = func, backend, fit
        self.run, self.source = _pair(func, backend)
        self._first = getattr(self.run, "first", None)
        self._known: dict[Any, list[Any]] = {}

    def __call__(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor] | None:
        """The results; None where an operation left the function."""
        return self._called(tensors, None)

    def first(self, count: int, *tensors: torch.Tensor) -> Sequence[torch.Tensor] | None:
        """At least the first ``count`` results; None as above."""
        return self._called(tensors, None if self._first is None else count)

    def _called(self, tensors: Sequence[torch.Tensor], count: int | None) -> Sequence[torch.Tensor] | None:
        key = (count, *[x for t in tensors for x in (t.shape, t.dtype)])
        want = self._known.get(key)
        new = want is None
        if want is None:
            want = self._wanted(tensors, count)
        results = self.run(*tensors) if count is None else self._first(count, *tensors)  # type: ignore[misc]
        if results is None:
            if not any(lookup_op(op.name).traits.leaves for op in self.func.body.walk()):
                self._fail("returned None, which says that a condition fails, and it has none")
            return None
        try:
            same = [x for t in results for x in (t.shape, t.dtype)] == want
        except (AttributeError, TypeError):  # no sequence, or not of tensors
            same = False
        if not same or new:
            self._look(results, want, tensors)
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[key] = want
        found: Sequence[torch.Tensor] = results
        return found

    def _wanted(self, tensors: Sequence[torch.Tensor], count: int | None) -> list[Any]:
        """Shape and dtype of every result, or of the first ``count``, one after the other."""
        sizes = bind_sizes(self.func, tensors, {})
        for arg, t in zip(self.func.args, tensors, strict=True):
            if t.dtype != torch_dtype(arg.type.dtype):  # type: ignore[attr-defined]
                raise ShapeError(f"%{arg.name} of @{self.func.name} is {arg.type}, got {t.dtype} {tuple(t.shape)}")
        if self._fit is not None:
            self._fit(tensors)
        found: list[Any] = []
        for kind in self.func.result_types[:count]:
            assert isinstance(kind, TensorType)
            for name in {n for d in kind.shape for n in d.symbols} - sizes.keys():  # a product, which no shape shows
                sizes[name] = math.prod(sizes[n] for n in factors(name))
            found += [torch.Size([d.evaluate(sizes) for d in kind.shape]), torch_dtype(kind.dtype)]
        return found

    def _look(self, results: Any, want: list[Any], tensors: Sequence[torch.Tensor]) -> None:
        """Raises BackendError unless these are the results they should be, in memory of their own."""
        if not isinstance(results, (list, tuple)) or not all(isinstance(t, torch.Tensor) for t in results):
            self._fail(f"returned {_shown(results)}, which is no list or tuple of tensors")
        if len(results) != len(want) // 2:
            self._fail(f"returned {len(results)} tensors of {len(want) // 2} results")
        device = tensors[0].device
        taken = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
        values = self.func.body.ops[-1].operands
        for n, t in enumerate(results):
            v, (shape, dtype) = values[n], want[2 * n : 2 * n + 2]
            which = f"result {n}{f' (%{v.name})' if v.name else ''}"
            if (t.shape, t.dtype, t.device) != (shape, dtype, device):
                given, due = _tensor(t.dtype, t.shape, t.device), _tensor(dtype, shape, device)
                self._fail(f"returned {given} as {which}, which is {due}")
            if any(t is x and v is w for x, w in zip(results[:n], values, strict=False)):
                continue  # one value twice may be one tensor twice
            if t.numel() and t.untyped_storage().data_ptr() in taken:
                self._fail(f"returned {which} in memory of an argument or of another result")
            taken.add(t.untyped_storage().data_ptr())

    def _fail(self, what: str) -> NoReturn:
        raise BackendError(
            f"what backend {self.backend.name!r} made of @{self.func.name} {what}",
            hint="compile(func) has to return a callable whose results are those of tile.return, of their types and in "
            "memory of their own; another backend does without it",
        )


def _pair(func: Func, backend: Backend) -> tuple[Callable[..., Any], str]:
    made = backend.compile(func)
    if not isinstance(made, (tuple, list)) or len(made) != 2 or not callable(made[0]) or not isinstance(made[1], str):
        raise BackendError(
            f"backend {backend.name!r} compiled @{func.name} to {_shown(made)}",
            hint="compile(func) has to return a callable and its source, a text",
        )
    run, source = made
    return run, source


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of ({', '.join(type(x).__name__ for x in value)})"
    return "None" if value is None else f"a {type(value).__name__}"


def _tensor(dtype: torch.dtype, shape: Sequence[int], device: torch.device) -> str:
    return f"{str(dtype).removeprefix('torch.')}[{','.join(map(str, shape))}] on {device}"
