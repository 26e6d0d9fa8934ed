"""The intermediate representation: types, operations, text, verifier, reference interpreter."""

from aatc.ir import geo as geo
from aatc.ir import tile as tile
from aatc.ir.core import Block, Func, Loc, Module, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.registry import OPS, Attr, OpDef, Operand, Symbol
from aatc.ir.types import BOOL, FLOAT, INDEX, INT, ListType, OpaqueType, PairType, ScalarType, TensorType, TileType

__all__ = [
    "BOOL",
    "FLOAT",
    "INDEX",
    "INT",
    "OPS",
    "Attr",
    "Block",
    "Dim",
    "Func",
    "ListType",
    "Loc",
    "Module",
    "Op",
    "OpDef",
    "OpaqueType",
    "Operand",
    "PairType",
    "ScalarType",
    "Symbol",
    "TensorType",
    "TileType",
    "Value",
]
