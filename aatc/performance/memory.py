"""`MemoryManager`: the arena that native programs run in, to take tensors from and to read figures of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aatc.backends.native.arena import ARENA, Arena
from aatc.errors import AatcError, ShapeError
from aatc.performance.products import ProductBytes, matmul, product_bytes

_QUANTIZED = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4)


class InPlaceError(AatcError):
    """An operation cannot be done, or was not done, in the memory of its tensor."""


class MemoryManager:
    """The arena that compiled programs run in (``backend="native"``): tensors of it, and what is in use.

    All managers are of the one arena of the process, unless one is given; figures are in bytes and hold for all that is
    lent from it: tensors of any manager, and temporary memory of native programs while they run. What is not in it:
    results of programs and other tensors of torch's, code, and what a library uses inside a product.

    The seed's names are kept. It counted every tensor by the Python object, which views outlive: here memory comes back
    with the last view of it. Its fragmentation compared the sizes of tensors, which says nothing of free memory.
    ``allocate_tensor`` takes a dtype; `matmul_bytes` is added.
    """

    def __init__(self, arena: Arena | None = None) -> None:
        self._arena = ARENA if arena is None else arena
        self._watch = self._arena.watch()

    def allocate_tensor(
        self, size: int | Sequence[int], *, dtype: torch.dtype = torch.float32, zeroed: bool = True
    ) -> Tensor:
        """A contiguous tensor of the arena's, aligned to 64 bytes; zeros, or with ``zeroed=False`` anything.

        It cannot be resized. Its memory comes back when the last tensor (or array) that shares it has gone. Raises
        `ShapeError` for a size or dtype that no tensor has, MemoryError if there is no memory.
        """
        shape = (size,) if isinstance(size, int) else tuple(size)
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
            raise ShapeError(f"{size!r} is no size of a tensor", hint="give integers of at least 0")
        if not isinstance(dtype, torch.dtype) or dtype in _QUANTIZED:
            raise ShapeError(f"{dtype!r} is no dtype of dense tensors", hint="take one like torch.float32")
        made = self._arena.tensor(shape, dtype)
        return made.zero_() if zeroed else made

    def get_allocated_memory(self) -> int:
        """Bytes that are lent now, as they were asked for."""
        return self._arena.figures().allocated

    def get_peak_memory(self) -> int:
        """The most bytes that were lent at once since this manager was made, those lent then included."""
        return self._watch.peak

    def get_fragmentation_ratio(self) -> float:
        """1 - (largest free span) / (free bytes) of what the arena holds: the part of its free memory that one tensor
        could not have. 0 where nothing is free, or all of it in one span."""
        return self._arena.figures().fragmentation

    def inplace_operation(self, tensor: Tensor, operation: Callable[[Tensor], Any]) -> None:
        """Calls ``operation(tensor)``, which writes to the tensor's own memory: ``lambda t: t.add_(1)``.

        The tensor may be any with memory of its own, of this arena or not. What the operation returns is None, or a
        tensor in that memory. Raises `InPlaceError` before the call if autograd would not have it (a leaf that requires
        grad, or a view of one, unless grad mode is off) or elements share memory; and after it if the operation
        returned other memory, as ``torch.exp`` does, or gave the tensor other memory. What ``operation`` raises itself
        is raised.
        """
        _check_writable(tensor)
        before = _memory(tensor)
        found = operation(tensor)
        if _memory(tensor) != before:
            raise InPlaceError(
                "the operation gave its tensor other memory",
                hint="write to the tensor; don't use set_, resize_ or .data =",
            )
        if found is None or (isinstance(found, Tensor) and _memory(found)[0] == before[0]):
            return
        name = getattr(operation, "__name__", type(operation).__name__)
        what = "a new tensor" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InPlaceError(
            f"{name} returned {what} and not the one it was given",
            hint="use operations that end in an underscore, such as t.exp_(), or out=t",
        )

    def optimized_matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """x @ y as `torch.matmul` means it, of vectors, matrices and batches, in memory of the arena. Differentiable.

        Operands are read where they lie if their rows or columns are contiguous, transposed and broadcast ones
        included; else a copy lies in the arena until the product is done. `matmul_bytes` says beforehand what is taken.
        Raises `ShapeError` for shapes without a product, different dtypes, and tensors that are not dense on the CPU.

        The seed added up products of slices of 256 columns, which copies and rounds more: the library divides them.
        """
        return matmul(self._arena, x, y)

    def matmul_bytes(self, x: Tensor, y: Tensor) -> ProductBytes:
        """What `optimized_matmul` takes of the arena for these operands. Raises `ShapeError`."""
        return product_bytes(x, y)


def _memory(t: Tensor) -> tuple[int, int]:
    """(address of the memory, bytes of it)."""
    storage = t.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _check_writable(t: Tensor) -> None:
    if not isinstance(t, Tensor) or t.layout is not torch.strided or t.device.type == "meta":
        raise InPlaceError(f"{type(t).__name__} has no memory of its own to write to", hint="give a dense tensor")
    of = t if t.is_leaf or t._base is None else t._base
    if torch.is_grad_enabled() and of.requires_grad and of.is_leaf:
        what = "a leaf" if of is t else "a view of a leaf"
        raise InPlaceError(f"the tensor is {what} that requires grad", hint="use torch.no_grad(), or detach() it")
    if _overlaps(t):
        raise InPlaceError(
            f"elements of the tensor share memory: {tuple(t.shape)} with strides {t.stride()}", hint="clone() it"
        )


def _overlaps(t: Tensor) -> bool:
    """Whether two elements lie at one place."""
    axes = sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n != 1)
    if not t.numel() or not axes:
        return False
    if axes[0][0] == 0:
        return True
    reach = 0
    for stride, n in axes:
        if stride <= reach:
            break
        reach += (n - 1) * stride
    else:
        return False
    places = torch.zeros((), dtype=torch.int64)
    for stride, n in axes:
        places = places[..., None] + torch.arange(n) * stride
    distinct: int = places.unique().numel()
    return distinct < t.numel()
