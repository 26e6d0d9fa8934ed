"""What code generation hands to the planner of dispatches: kernels as text, and how a tile function dispatches them.

Everything a program touches on the device lies in one arena of 32-bit words; a kernel finds its buffers by offsets, its
extents and numbers by push words. Nothing here knows a device: dimensions may be symbols, and one template serves all
shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aatc.ir.dims import Dim

#: What a buffer is to the tile function: handed in, handed out, in between, runs of a mask (made by the host), or the
#: word that says whether a condition failed (0 before the first dispatch; anything else refuses the call).
ROLES = ("argument", "result", "scratch", "runs", "refused")


@dataclass(frozen=True)
class Kernel:
    """One compute kernel. ``push``: names of its push words in order; each is 32 bits, floats by their bits. With
    ``block`` the words lie in the arena as a parameter block, and the one word pushed is the block's offset. ``local``:
    threads of a workgroup along x, y, z. ``shared_bytes``: memory of a workgroup. ``features``: what the device must
    have: "subgroup" (arithmetic and shuffles), "subgroup(8)" (of at least that many lanes, in step)."""

    name: str
    glsl: str
    wgsl: str | None
    push: tuple[str, ...]
    local: tuple[int, int, int]
    shared_bytes: int = 0
    features: frozenset[str] = frozenset()
    block: bool = False


@dataclass(frozen=True)
class Buffer:
    """A buffer of whole words: floating point as f32, integers and truth values as i32. ``dtype`` is the element type
    of the host's tensor; ``shape`` may be symbolic. A "runs" buffer has the shape that the host's array has (four axes,
    symbols of its own named after it: see `runs_symbol`)."""

    name: str
    role: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def floating(self) -> bool:
        return self.dtype in ("f64", "f32", "bf16", "f16")

    def words(self, sizes: Mapping[str, int]) -> int:
        """Words it takes, a whole number of vectors of four: a last vector may be read to its end."""
        n = 1
        for d in self.shape:
            n *= d.evaluate(sizes)
        return -(-n // 4) * 4


def runs_symbol(buffer: str, axis: int) -> str:
    """The symbol of the extent of a runs buffer along one of its four axes."""
    return f"{buffer}_n{axis}"


@dataclass(frozen=True)
class Offset:
    """A push word: where a buffer begins in the arena, in words; always a multiple of 4."""

    buffer: str


@dataclass(frozen=True)
class Extent:
    """A push word: the product of dimensions."""

    dims: tuple[Dim, ...]

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        n = 1
        for d in self.dims:
            n *= d.evaluate(sizes)
        return n


@dataclass(frozen=True)
class Rounds:
    """How often a loop of ``step`` goes to its upper bound, a product of dimensions."""

    dims: tuple[Dim, ...]
    step: int = 1

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        return -(-Extent(self.dims).evaluate(sizes) // self.step)


@dataclass(frozen=True)
class Dispatch:
    """One dispatch. ``grid``: workgroups along x, y, z; one with a 0 does nothing. ``push``: what each of the kernel's
    words is. ``reads`` and ``writes``: names of buffers; what is added to stands in both. ``trips``: how often the
    loops of one thread go, in all, as a product of rounds (drivers have limits)."""

    kernel: Kernel
    grid: tuple[Rounds, Rounds, Rounds]
    push: Mapping[str, Extent | float | Offset]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    trips: tuple[Rounds, ...] = ()


@dataclass(frozen=True)
class Template:
    """A tile function on a device: ``dispatches`` in the order of the program; two may run at the same time where
    neither writes what the other touches. ``symbols``: dimensions of the arguments' types."""

    name: str
    buffers: tuple[Buffer, ...]
    dispatches: tuple[Dispatch, ...]
    symbols: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    returns: tuple[str, ...] = ()  # names of buffers that the function returns, in order; one may come twice
    derived: tuple[tuple[str, Rounds], ...] = ()  # symbols of shapes that follow from others

    def buffer(self, name: str) -> Buffer:
        return next(b for b in self.buffers if b.name == name)

    @property
    def arguments(self) -> tuple[Buffer, ...]:
        return tuple(b for b in self.buffers if b.role == "argument")

    @property
    def results(self) -> tuple[Buffer, ...]:
        return tuple(b for b in self.buffers if b.role == "result")
