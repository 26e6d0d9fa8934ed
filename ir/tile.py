"""Operations of the tile level: loops over blocks of the score matrix, the schedule made explicit.

Axes: g counts batch*head problems, i queries, j keys, c (and d) features. A tile is a block with an extent
along each of its axes; extents in types are upper bounds, ragged edges are smaller. Whole buffers are
tensors whose leading "bh" may be flattened to g. Evaluation stands in `ir.tile_evaluate`.
"""

from __future__ import annotations

from typing import Any

from aatc.ir import tile_evaluate as ev
from aatc.ir import tile_rules as rules
from aatc.ir.access import AXES
from aatc.ir.layouts import verify_pack
from aatc.ir.registry import Attr, OpDef, Traits, define
from aatc.ir.schedule import LEVELS
from aatc.ir.types import INDEX, LAYOUTS, TensorType, summed_name


def _def(name: str, doc: str, operands: Any = (), attrs: Any = None, **more: Any) -> None:
    define(OpDef(name, "tile", doc, tuple(operands), attrs=attrs or {}, **more))


_SIZES = Attr.of("list", "extents (B, H, N, M) of the attention")
_NUMBERS = Attr.of(
    "str",
    "what numbers are computed in; when absent f64 where a buffer or the result is, or the result is i64, else f32",
    required=False,
    choices=("f32", "f64"),
)

# --- whole buffers -----------------------------------------------------------------------------------------
_def(
    "tile.token",
    "a per-token program over whole buffers; the result has the axes named, b and h flattened to g when flat",
    ("buffers*",),
    {
        "program": Attr.of("program", "what is computed; must not depend on both i and j"),
        "axes": Attr.of("str", "axes of the result", choices=("bhid", "bhjd", "bhi", "bhj", "bh", "")),
        "sizes": _SIZES,
        "flat": Attr.of("bool", "one leading axis g in place of b, h"),
        "numbers": _NUMBERS,
    },
    verify=rules.token_verify,
    evaluate=ev.token,
    traits=Traits(layouts=("", *LAYOUTS)),
)
_def(
    "tile.gradient",
    "a per-token program summed to the shape of the first buffer: the gradient of that operand; with "
    "add, the last buffer is added to it",
    ("like", "buffers*"),
    {
        "program": Attr.of("program", "the cotangent, possibly on more axes than the operand has"),
        "axes": Attr.of("str", "declared axes of the operand"),
        "sizes": _SIZES,
        "add": Attr.of("bool", "the last buffer is another part of the gradient"),
        "numbers": _NUMBERS,
    },
    infer=lambda op: [rules.like_first(op)],
    verify=rules.gradient_verify,
    evaluate=ev.gradient,
)
_def(
    "tile.table_gradient",
    "a number per token added up in a table of the first buffer's shape, at the positions a lookup reads; with add, "
    "the last buffer is added to it",
    ("like", "buffers*"),
    {
        "program": Attr.of("program", "the cotangent"),
        "positions": Attr.of("list", "programs of the table positions, over the same parameters"),
        "axes": Attr.of("str", "axes of the table"),
        "sizes": _SIZES,
        "add": Attr.of("bool", "the last buffer is another part of the gradient"),
        "numbers": _NUMBERS,
    },
    infer=lambda op: [rules.like_first(op)],
    verify=rules.gradient_verify,
    evaluate=ev.table_gradient,
)
_def(
    "tile.finish",
    "an accumulated pair or table gradient in the shape and type of its operand, times a factor",
    ("buffer",),
    {"factor": Attr.of("float", "what it is multiplied by")},
    verify=rules.finish_verify,
    evaluate=ev.finish,
)
_def(
    "tile.alloc",
    "a new buffer, filled when a fill is given",
    (),
    {"fill": Attr.of("float", "initial value", required=False)},
    verify=rules.alloc_verify,
    evaluate=ev.alloc,
    traits=Traits(layouts=("contiguous", "rows", "panels")),
)
_def(
    "tile.pack",
    "a copy of a buffer of vectors in panels of tokens, as its type says; its shape is that of the buffer",
    ("buffer",),
    {"axes": Attr.of("str", "axes of the buffer", choices=("gid", "gjd"))},
    verify=verify_pack,
    evaluate=ev.pack,
    traits=Traits(layouts=("panels",)),
)
_def(
    "tile.peak",
    "the largest length of a vector along the last axis of a buffer, or the largest magnitude of an entry; 0 of an "
    "empty buffer",
    ("buffer",),
    {"rows": Attr.of("bool", "lengths of vectors, not entries")},
    infer=lambda op: [TensorType.of(summed_name(op.operands[0].type.dtype), ())],
    verify=rules.peak_verify,
    evaluate=ev.peak,
)
_def(
    "tile.require",
    "ends the function without results unless every entry is at least a limit: its caller then takes the version of "
    "the kernel that needs no such condition",
    ("value",),
    {"least": Attr.of("float", "the limit")},
    results=0,
    verify=rules.require_verify,
    evaluate=ev.require,
    pure=False,
    traits=Traits(leaves=True),
)
_def(
    "tile.centre",
    "the mean of a buffer over its tokens, feature by feature; entries that are not finite count as 0, and so does the "
    "mean of no token",
    ("buffer",),
    {"axes": Attr.of("str", "axes of the buffer, one of i and j among them", choices=AXES)},
    verify=rules.centre_verify,
    evaluate=ev.centre,
)
_def(
    "tile.classify",
    "the runs of columns that each block of rows of a mask visits, by interval bounds over its captures",
    ("captures*",),
    {
        "mask": Attr.of("program", "which pairs may talk"),
        "rows": Attr.of("int", "rows of a tile"),
        "cols": Attr.of("int", "columns of a tile"),
        "sizes": _SIZES,
        "heads": Attr.of("int", "problems of a g tile"),
        "over": Attr.of(
            "str", "j, or i: runs of rows that each block of columns visits", required=False, choices=("i", "j")
        ),
    },
    infer=lambda op: [rules.runs_type(op)],
    verify=rules.classify_verify,
    evaluate=ev.classify,
)
#: How a schedule wants the body of a loop made; what a backend does not know it ignores.
_BODY = {
    "unroll": Attr.of("int", "rounds that stand in the body", required=False),
    "vectorize": Attr.of("int", "entries along the axis that are one vector", required=False),
}
# --- loops -------------------------------------------------------------------------------------------------
_def(
    "tile.for",
    "loop over an axis in steps; carries values from one round to the next",
    ("inits*",),
    {
        "axis": Attr.of("str", "what it walks", choices=("g", "i", "j", "c", "s")),
        "upper": Attr.of("dim", "extent of the axis"),
        "step": Attr.of("int", "tile extent"),
        "kind": Attr.of(
            "str",
            "par: rounds are independent; red: they only accumulate; seq: in order",
            choices=("par", "red", "seq"),
        ),
        "bind": Attr.of("str", "what its rounds, which are independent, go to", required=False, choices=LEVELS),
        **_BODY,
    },
    results=-1,
    regions=("body",),
    verify=lambda op: rules.for_verify(op, 0, [INDEX]),
    evaluate=ev.loop,
    traits=Traits(region="loop", replaces=slice(0, None), carried=(0, 1)),
)
_def(
    "tile.sweep",
    "loop over the non-empty runs of one block; the second argument of the body tells whether the run is partial",
    ("runs", "g", "block", "inits*"),
    {
        "axis": Attr.of("str", "what it walks: j, or i over runs of rows", required=False, choices=("i", "j")),
        "upper": Attr.of("dim", "extent of that axis"),
        "step": Attr.of("int", "largest run"),
        "kind": Attr.of("str", "as in tile.for", choices=("red", "seq")),
        **_BODY,
    },
    results=-1,
    regions=("body",),
    verify=rules.sweep_verify,
    evaluate=ev.sweep,
    traits=Traits(region="loop", replaces=slice(3, None), carried=(3, 2)),
)
_PARTS = Attr.of("int", "how many parts: of as many whole steps each, but for the last ones, which may be empty")
_def(
    "tile.for_part",
    "a tile.for over one part of an axis, whose number is the position of a loop over s",
    ("part", "inits*"),
    {
        "axis": Attr.of("str", "what it walks", choices=("i", "j")),
        "upper": Attr.of("dim", "extent of the axis"),
        "step": Attr.of("int", "tile extent"),
        "parts": _PARTS,
        "kind": Attr.of("str", "as in tile.for", choices=("red", "seq")),
        **_BODY,
    },
    results=-1,
    regions=("body",),
    verify=lambda op: rules.part_loop_verify(op, 0),
    evaluate=ev.loop_part,
    traits=Traits(region="loop", replaces=slice(1, None), carried=(1, 1)),
)
_def(
    "tile.sweep_part",
    "a tile.sweep over what lies in one part of the axis, whose number is the position of a loop over s",
    ("runs", "g", "block", "part", "inits*"),
    {
        "axis": Attr.of("str", "what it walks: j, or i over runs of rows", required=False, choices=("i", "j")),
        "upper": Attr.of("dim", "extent of that axis"),
        "step": Attr.of("int", "largest run; parts are whole steps"),
        "parts": _PARTS,
        "kind": Attr.of("str", "as in tile.for", choices=("red", "seq")),
        **_BODY,
    },
    results=-1,
    regions=("body",),
    verify=lambda op: rules.part_loop_verify(op, 3),
    evaluate=ev.sweep_part,
    traits=Traits(region="loop", replaces=slice(4, None), carried=(4, 2)),
)
_def(
    "tile.guard",
    "yields its operands unless an entry of the first lies below a limit; then what its body yields",
    ("values*",),
    {"least": Attr.of("float", "the limit")},
    results=-1,
    regions=("body",),
    infer=lambda op: [v.type for v in op.operands],
    verify=rules.guard_verify,
    evaluate=ev.guard,
    traits=Traits(region="branch", replaces=slice(0, None)),
)
_def("tile.yield", "ends a loop body with the carried values", ("values*",), results=0, terminator=True, pure=False)
_def(
    "tile.return",
    "ends a function with its results",
    ("values*",),
    results=0,
    verify=rules.return_verify,
    terminator=True,
    pure=False,
)

# --- tiles -------------------------------------------------------------------------------------------------
_AXES = Attr.of("str", "the buffer's axes, see `ir.access`", choices=AXES)
_PROBLEM_SIZES = Attr.of("list", "extents (B, H, N, M), where the buffer has an axis b or h", required=False)
_SHARED = Attr.of(
    "str",
    "how sums of rounds that run at the same time meet in one place: atomic, in any order; ordered, in a fixed one",
    required=False,
    choices=("atomic", "ordered"),
)
_def(
    "tile.load",
    "the block of a buffer at loop positions; without axes of problems in the buffer, the position of one repeats it",
    ("buffer", "positions*"),
    {"axes": _AXES, "sizes": _PROBLEM_SIZES},
    verify=lambda op: rules.access_verify(op, 0),
    evaluate=ev.load,
    traits=Traits(view=True),
)
_def(
    "tile.store",
    "writes a tile to a buffer at loop positions, or adds it there, summed over problems where the buffer has no axis "
    "of them, and along i and j where a buffer of pairs has extent 1",
    ("value", "buffer", "positions*"),
    {"axes": _AXES, "add": Attr.of("bool", "add instead of write"), "sizes": _PROBLEM_SIZES, "shared": _SHARED},
    results=0,
    verify=lambda op: rules.access_verify(op, 1),
    evaluate=ev.store,
    pure=False,
    traits=Traits(writes=(1,)),
)
_def(
    "tile.dot",
    "contraction of two tiles, added to a third when given: nt (i,d)(j,d)->(i,j), nn (i,j)(j,d)->(i,d), "
    "tn (i,j)(i,d)->(j,d); of bf16, products and sums are of f32",
    ("a", "b", "c*"),
    {
        "form": Attr.of("str", "see above", choices=("nt", "nn", "tn")),
        "factor": Attr.of("float", "what the contraction of tiles of bf16 is multiplied by", required=False),
    },
    infer=lambda op: [rules.dot_type(op)],
    verify=rules.dot_verify,
    evaluate=ev.dot,
    traits=Traits(replaces=slice(2, None), accumulates=lambda op: {2: 0}),
)
_def(
    "tile.map",
    "programs over tiles element by element, broadcasting; parameters bind to operands in order",
    ("tiles*",),
    {"programs": Attr.of("list", "one program per result, all over the same parameters")},
    results=-1,
    verify=rules.map_verify,
    evaluate=ev.map_tiles,
    traits=Traits(replaces=slice(0, None)),
)
_def(
    "tile.mask",
    "a value where the mask does not hold; the mask is evaluated only in partial tiles",
    ("tile", "partial", "captures*"),
    {"mask": Attr.of("program", "which pairs may talk, over tiles"), "value": Attr.of("float", "the fill")},
    infer=lambda op: [op.operands[0].type],
    verify=rules.mask_verify,
    evaluate=ev.mask_tile,
    traits=Traits(replaces=slice(0, 1)),
)
_def(
    "tile.reduce",
    "largest or smallest entry or sum along i, j or both, with the second operand added or compared in",
    ("tile", "into*"),
    {
        "op": Attr.of("str", "what is kept", choices=("max", "min", "sum")),
        "over": Attr.of("str", "axes", choices=("i", "j", "ij")),
    },
    infer=lambda op: [rules.reduce_type(op)],
    verify=rules.reduce_verify,
    evaluate=ev.reduce,
    traits=Traits(replaces=slice(1, None), accumulates=lambda op: {1: 0}),
)
_def(
    "tile.fill",
    "a constant tile at loop positions",
    ("positions*",),
    {"value": Attr.of("float", "the constant"), "axes": _AXES},
    verify=rules.fill_verify,
    evaluate=ev.fill,
)
_def(
    "tile.position",
    "the positions along one axis that a tile at loop positions lies at",
    ("positions*",),
    {
        "axes": Attr.of("str", "the axis: b or h of the problem, or that of the loop", choices=("b", "h", "i", "j")),
        "sizes": _PROBLEM_SIZES,
    },
    verify=rules.position_verify,
    evaluate=ev.position,
)
_PART = {
    "over": Attr.of("str", "the tile's second axis, i, or its third, j", choices=("i", "j")),
    "start": Attr.of("int", "the first entry along it"),
    "stride": Attr.of("int", "from one entry to the next"),
}
_def(
    "tile.slice",
    "every stride-th entry of a tile along one axis, as many as its type says",
    ("tile",),
    _PART,
    verify=lambda op: rules.part_verify(op, op.operands[0].type, op.results[0].type),
    evaluate=ev.slice_tile,
)
_def(
    "tile.insert",
    "a tile with the entries that `tile.slice` would give replaced by those of another",
    ("part", "tile"),
    _PART,
    infer=lambda op: [op.operands[1].type],
    verify=lambda op: rules.part_verify(op, op.operands[1].type, op.operands[0].type),
    evaluate=ev.insert_tile,
    traits=Traits(replaces=slice(1, 2)),
)
_def(
    "tile.scatter",
    "adds a tile into a table at the positions a lookup reads",
    ("value", "table", "g", "tiles*"),
    {
        "positions": Attr.of("list", "programs of the table positions, over tiles"),
        "axes": Attr.of("str", "axes of the table"),
        "sizes": _SIZES,
        "shared": _SHARED,
    },
    results=0,
    verify=rules.table_verify,
    evaluate=ev.scatter,
    pure=False,
    traits=Traits(writes=(1,)),
)
_def(
    "tile.lookup",
    "entries of a table at positions computed per pair",
    ("table", "g", "tiles*"),
    {
        "positions": Attr.of("list", "programs of the table positions, over tiles"),
        "axes": Attr.of("str", "axes of the table"),
        "sizes": _SIZES,
    },
    verify=rules.table_verify,
    evaluate=ev.lookup_tile,
)
