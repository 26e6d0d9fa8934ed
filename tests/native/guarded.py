"""Tensors between pages that nobody may touch: a kernel that reads or writes one byte beside them ends the process.

``python -m tests.native.guarded`` runs kernels of every instruction set on such tensors, their temporary buffers too.
"""

import ctypes
import math
import mmap
import os
import sys

import torch

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PAGE = mmap.PAGESIZE
_kept: list[mmap.mmap] = []


def memory(nbytes: int, *, at_end: bool) -> int:
    """The address of so many bytes that end where a forbidden page begins, or begin where one ends."""
    inside = max(1, -(-nbytes // _PAGE)) * _PAGE
    pages = mmap.mmap(-1, inside + 2 * _PAGE)
    _kept.append(pages)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for edge in (start, start + _PAGE + inside):
        if _libc.mprotect(edge, _PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return start + _PAGE + (inside - nbytes if at_end else 0)


def empty(shape, dtype: torch.dtype, *, at_end: bool = True) -> torch.Tensor:
    n = math.prod(shape)
    if not n:
        return torch.empty(shape, dtype=dtype)
    at = memory(n * dtype.itemsize, at_end=at_end)
    return torch.frombuffer((ctypes.c_char * (n * dtype.itemsize)).from_address(at), dtype=dtype).reshape(shape)


def guarded(t: torch.Tensor, *, at_end: bool = True) -> torch.Tensor:
    """A copy of ``t`` between such pages."""
    out = empty(t.shape, t.dtype, at_end=at_end)
    out.copy_(t.detach())
    return out.requires_grad_(t.requires_grad)


class _Torch:
    """torch, but that new tensors are guarded."""

    at_end = True

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, shape, dtype):
        return empty(shape, dtype, at_end=self.at_end)


class _Block:
    """Memory of a call, as the arena lends it."""

    def __init__(self, nbytes: int, *, at_end: bool):
        self.at_end = at_end
        self.address = memory(-(-nbytes // 64) * 64, at_end=at_end)

    def tensor(self, shape, dtype: torch.dtype) -> torch.Tensor:
        return empty(shape, dtype, at_end=self.at_end)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def guard_everything(*, at_end: bool) -> None:
    """Results and temporary memory of native kernels."""
    from aatc.backends.native import arena, compiled

    compiled.torch = _Torch()
    compiled.torch.at_end = at_end
    arena.Arena.take = lambda self, nbytes: _Block(nbytes, at_end=at_end)
    arena.Arena.give = lambda self, block: None


def touch_outside() -> None:
    """What the guards are for."""
    ctypes.string_at(memory(100, at_end=True), 101)


def main() -> None:
    from aatc.backends.native import isa
    from tests.compiler.harness import build
    from tests.conformance.cases import Sizes, case

    kinds = {
        "dot product": "causal", "poincare": "window", "relative table": "dense", "dense bias": "none",
        "hyperboloid transport": "causal", "sphere": "documents", "sigmoid": "padding", "taxicab": "predicate",
    }  # fmt: skip
    sizes = [Sizes(1, 1, 1, 1, 1, 3), Sizes(1, 2, 1, 17, 19, 3), Sizes(1, 1, 1, 66, 33, 17), Sizes(2, 1, 1, 16, 15, 4)]
    dtypes = [torch.float32, torch.bfloat16, torch.float64]
    torch.set_num_threads(1)
    count = 0
    for at_end in (True, False):
        guard_everything(at_end=at_end)
        for k, found in enumerate(isa.available()):
            os.environ["AATC_ISA"] = found.name
            for n, (kind, mask) in enumerate(kinds.items()):
                if not at_end and n % 4 != k:
                    continue
                count += 1
                s = sizes[(n + k + 2 * at_end) % 4]
                c = case(kind, mask, dtypes[(n + k) % 3], s)
                built = build(*c.operands[:3], backend="native", tiles="rows=16 cols=32 grain=16", **c.parts)
                taken = [guarded(t, at_end=at_end) for t in built.operands]
                print(found.name, kind, mask, dtypes[(n + k) % 3], s, "end" if at_end else "start", flush=True)
                o, lse = built.program.main(*taken)
                grads = [guarded(torch.ones_like(t), at_end=at_end) for t in (o, lse)]
                wanted = [t for t in taken if t.requires_grad]
                torch.autograd.grad((o, lse), wanted, grads, allow_unused=True)
    print(f"{count} kernels stayed inside")


if __name__ == "__main__":
    touch_outside() if "outside" in sys.argv else main()
