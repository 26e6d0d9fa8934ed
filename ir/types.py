"""Types of IR values. Shapes are tuples of `Dim`; nothing here knows a device."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aatc.ir.dims import Dim

if TYPE_CHECKING:
    import torch

#: IR spelling of element types. Order is the order of the docs table.
DTYPES = ("f64", "f32", "bf16", "f16", "i64", "i32", "i16", "i8", "u8", "bool", "c64", "c128")
_TORCH = {
    "f64": "float64",
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "bool",
    "c64": "complex64",
    "c128": "complex128",
}
_SIZE = {
    "f64": 8,
    "f32": 4,
    "bf16": 2,
    "f16": 2,
    "i64": 8,
    "i32": 4,
    "i16": 2,
    "i8": 1,
    "u8": 1,
    "bool": 1,
    "c64": 8,
    "c128": 16,
}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype called ``name`` in the IR."""
    import torch

    dtype: torch.dtype = getattr(torch, _TORCH[name])
    return dtype


def dtype_name(dtype: Any) -> str:
    """The IR's name of a torch dtype; KeyError when the IR has no word for it."""
    spelled = str(dtype).removeprefix("torch.")
    for name, torch_name in _TORCH.items():
        if torch_name == spelled:
            return name
    raise KeyError(spelled)


def itemsize(name: str) -> int:
    return _SIZE[name]


def compute_name(dtype: str) -> str:
    """Scores of half-precision inputs are numbers of f32."""
    return "f64" if dtype == "f64" else "f32"


def summed_name(dtype: str) -> str:
    """What tiles of ``dtype`` are computed with and added up in."""
    return compute_name(dtype) if dtype in ("bf16", "f16") else dtype


#: Where a tile may lie: the registers of its lanes, memory of one lane or core, of a workgroup, or of the device.
TILE_SPACES = ("register", "private", "shared", "global")

#: What a buffer's type may say of its strides, the weaker first. rows: features next to each other, and tokens at least
#: that far apart. contiguous: as a new tensor of that shape.
LAYOUTS = ("rows", "contiguous")
_PANELS = re.compile(r"panels\(([1-9][0-9]*)(?:, ([1-9][0-9]*))?\)", re.ASCII)


class Type:
    """Base of all types."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TensorType(Type):
    """A tensor in memory: ``f32[2,8,N,64]`` with N symbolic.

    ``layout`` is what may be assumed of where its elements lie: nothing (any strides: transposed, overlapping, 0) where
    it is empty, as in arguments; one of `LAYOUTS`, ``f32[2,8,N,64; rows]``; or ``panels(16)`` of a buffer (problems,
    tokens, features), which has no strides: so many tokens after the other, those of a panel feature by feature, behind
    the last token whatever fills its panel. In ``panels(16, 2)`` two features of a token stand next to each other, with
    a 0 behind the last of an odd number. `ir.layouts` has the rules, and what holds where a type says nothing.
    """

    dtype: str
    shape: tuple[Dim, ...]
    layout: str = ""

    @staticmethod
    def of(dtype: str, shape: Iterable[Dim | int | str], layout: str = "") -> TensorType:
        return TensorType(dtype, tuple(Dim.of(s) for s in shape), layout)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def panel(self) -> int:
        """Tokens of a panel; 0 of a buffer that has strides."""
        m = _PANELS.fullmatch(self.layout)
        return int(m[1]) if m else 0

    @property
    def together(self) -> int:
        """Features of a token that stand next to each other in a panel."""
        m = _PANELS.fullmatch(self.layout)
        return int(m[2] or 1) if m else 1

    def nbytes(self, values: Mapping[str, int]) -> int:
        n = itemsize(self.dtype)
        for s in self.shape:
            n *= s.evaluate(values)
        return n

    def __str__(self) -> str:
        return f"{self.dtype}[{_shape(self.shape)}{f'; {self.layout}' if self.layout else ''}]"


@dataclass(frozen=True, slots=True)
class PairType(Type):
    """A value per (query, key) pair that is never stored: ``pair<f32[B,H,N,M]>``."""

    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"pair<{self.dtype}[{_shape(self.shape)}]>"


@dataclass(frozen=True, slots=True)
class TileType(Type):
    """A block held close to the core: ``tile<f32[1,256,512]>``; sizes are upper bounds at ragged edges.

    ``space``, one of `TILE_SPACES`, is where it lies, ``tile<f32[1,64,64], shared>``; empty where the backend decides.
    """

    dtype: str
    shape: tuple[Dim, ...]
    space: str = ""

    @staticmethod
    def of(dtype: str, shape: Iterable[Dim | int | str], space: str = "") -> TileType:
        return TileType(dtype, tuple(Dim.of(s) for s in shape), space)

    def __str__(self) -> str:
        return f"tile<{self.dtype}[{_shape(self.shape)}]{f', {self.space}' if self.space else ''}>"


@dataclass(frozen=True, slots=True)
class ScalarType(Type):
    """A number outside tensors: ``int``, ``float``, ``bool``; ``index`` is a loop position, ``kernel`` a kernel of a
    program."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class ListType(Type):
    """A short list of values of one type, as some ATen operators take and return."""

    element: Type

    def __str__(self) -> str:
        return f"list<{self.element}>"


@dataclass(frozen=True, slots=True)
class OpaqueType(Type):
    """A value the compiler passes on without looking at it (``opaque``)."""

    def __str__(self) -> str:
        return "opaque"


@dataclass(frozen=True, slots=True)
class RunsType(Type):
    """Which tiles under a mask a sweep visits: ``runs[heads,block,grain]``.

    An i32 array (problem blocks or 1, blocks, most runs + 1, 3) for blocks of ``heads`` problems and ``block`` rows (or
    columns). A run of columns (or rows) is (first, last + 1, kind), kind `tilemap.PARTIAL` or `tilemap.FULL`; kind 0
    ends those of a block. Runs begin at multiples of ``grain``; there is one block of problems when the mask is the
    same for all.
    """

    heads: int
    block: int
    grain: int

    def __str__(self) -> str:
        return f"runs[{self.heads},{self.block},{self.grain}]"


def unplaced(t: Type) -> Type:
    """``t``, wherever it lies."""
    return TileType(t.dtype, t.shape) if isinstance(t, TileType) and t.space else t


def fits(given: Type, wanted: Type) -> bool:
    """Whether a value may be handed on as ``wanted``: its layout may promise more, and nothing less."""
    if given == wanted or not isinstance(given, TensorType) or not isinstance(wanted, TensorType):
        return given == wanted
    known = ("", *LAYOUTS)
    if given.layout not in known or wanted.layout not in known or replace(given, layout=wanted.layout) != wanted:
        return False
    return known.index(given.layout) >= known.index(wanted.layout)


INT, FLOAT, BOOL, INDEX = ScalarType("int"), ScalarType("float"), ScalarType("bool"), ScalarType("index")
KERNEL = ScalarType("kernel")
SCALARS = {t.name: t for t in (INT, FLOAT, BOOL, INDEX, KERNEL)}
SHAPED = (TensorType, PairType, TileType)


def _shape(shape: tuple[Dim, ...]) -> str:
    return ",".join(map(str, shape))
