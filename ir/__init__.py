"""The intermediate representation: types, operations, text, verifier, reference interpreter."""

from aatc.ir import geo as geo
from aatc.ir import program as program
from aatc.ir import tile as tile
from aatc.ir import tile_pairs as tile_pairs
from aatc.ir.core import Block, Func, Loc, Module, Op, Readers, Value, read_by
from aatc.ir.dims import Dim
from aatc.ir.graph import to_dot, to_networkx
from aatc.ir.printer import canonical_text, module_text, op_line
from aatc.ir.registry import OPS, Attr, OpDef, Operand, Symbol
from aatc.ir.types import BOOL, FLOAT, INDEX, INT, ListType, OpaqueType, PairType, ScalarType, TensorType, TileType
from aatc.ir.verifier import verify

read_by(Readers(op_line, module_text, canonical_text, verify, to_networkx, to_dot))

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
