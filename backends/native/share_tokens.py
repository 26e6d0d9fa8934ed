"""What all problems compute of the same token is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aatc.ir.core import Block, Func, Module, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.score.expr import Expr, param, postorder, substitute
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.program import Program
from aatc.ir.specialize import prune
from aatc.ir.types import INDEX, TensorType, TileType
from aatc.passes.base import Context, Pass, register

#: Words that cost less than this, in passes over a tile, are not worth a buffer.
_DEAR = 4.0
#: Tokens of a round: their features stay in the first cache.
_ROWS = 64


@register
@dataclass(frozen=True)
class ShareTokens(Pass):
    """``map`` of what is loaded for every problem alike → loops over tokens alone, before all others, which compute the
    dear words once; ``load`` of their results.

    The angles of a rotary embedding are those of positions, the same in every head: their sines and cosines are, too.
    """

    name: ClassVar[str] = "share-tokens"
    counts: ClassVar[bool] = True

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            if func.level == "tile":
                ctx.count("shared", _Share(func).run())
        return module


class _Share:
    def __init__(self, func: Func):
        self.func = func
        self.made: dict[tuple[Value, str, Program], Value] = {}  # buffers, by what is read, as what, and by what
        self.before: list[Op] = []

    def run(self) -> int:
        for nest in self.func.body.ops:
            if nest.name == "tile.for" and nest.attrs["axis"] == "g" and Dim.of(nest.attrs["upper"]) != 1:
                for block in [nest.regions[0], *(r for op in nest.regions[0].walk() for r in op.regions)]:
                    self._block(block)
        if self.made:
            self.func.body.ops[:0] = self.before
            prune(self.func)
        return len(self.made)

    def _block(self, block: Block) -> None:
        ops: list[Op] = []
        for op in block.ops:
            if op.name == "tile.map":
                self._map(op, ops)
            ops.append(op)
        block.ops = ops

    def _map(self, op: Op, ops: list[Op]) -> None:
        """Has ``op`` read what may be shared, by loads that are added to ``ops``."""
        programs, count = list(op.attrs["programs"]), len(op.operands)
        for n, v in enumerate(tuple(op.operands)):
            load, of = _alike(v, programs[0].params[n])
            if load is None:
                continue
            for dear in dict.fromkeys(e for p in programs for e in _dear(p.body, p.params[n])):
                whole = substitute(dear, {programs[0].params[n]: of.body}, smart=False)
                shared = self._shared(load, Program(of.params, whole))
                again = Op("tile.load", [shared, *load.operands[1:]], dict(load.attrs), [v.type], loc=op.loc)
                ops.append(again)
                op.operands.append(again.result)
                _, axes, dtype = programs[0].params[n].attrs
                new = param(_free(programs), axes, dtype)
                programs = [Program((*p.params, new), substitute(p.body, {dear: new}, smart=False)) for p in programs]
        if len(op.operands) > count:
            op.attrs["programs"] = tuple(programs)
            _drop_unread(op)

    def _shared(self, load: Op, program: Program) -> Value:
        """A buffer of what ``program`` makes of all that ``load`` has a tile of."""
        source: TensorType = load.operands[0].type  # type: ignore[assignment]
        tile: TileType = load.result.type  # type: ignore[assignment]
        key = load.operands[0], tile.dtype, program
        if key not in self.made:
            attrs, at = {"axes": "id" if source.rank == 2 else "i"}, Value(INDEX, "i")
            made = Op("tile.alloc", [], {}, [TensorType(tile.dtype, source.shape)], result_names=["once"], loc=load.loc)
            tokens = source.shape[0]
            rows = max(1, min(_ROWS, int(tokens))) if tokens.is_static else _ROWS
            part = TileType.of(tile.dtype, (1, rows, tile.shape[2]))
            read = Op("tile.load", [load.operands[0], at], attrs, [part], loc=load.loc)
            done = Op("tile.map", [read.result], {"programs": (program,)}, [part], loc=load.loc)
            kept = Op("tile.store", [done.result, made.result, at], {**attrs, "add": False}, loc=load.loc)
            body = Block([at], [read, done, kept, Op("tile.yield")])
            loop = {"axis": "i", "upper": tokens, "step": rows, "kind": "par"}
            self.before += [made, Op("tile.for", [], loop, regions=[body], loc=load.loc)]
            self.made[key] = made.result
        return self.made[key]


def _alike(v: Value, x: Expr) -> tuple[Op | None, Program]:
    """(what loads ``v``, the parameter ``x``; or what loads all that a map makes ``v`` of, the map's program): if these
    are numbers of an argument's tokens that are the same for all problems, else None."""
    op, program = v.owner, Program((x,), x)
    if isinstance(op, Op) and op.name == "tile.map" and len(op.operands) == 1:
        program = op.attrs["programs"][op.results.index(v)]
        op = op.operands[0].owner
    return (op if isinstance(op, Op) and _is_load(op) else None), program


def _is_load(op: Op) -> bool:
    if op.name != "tile.load" or op.attrs["axes"] not in ("id", "jd", "i"):
        return False
    source: TensorType = op.operands[0].type  # type: ignore[assignment]
    tile: TileType = op.result.type  # type: ignore[assignment]
    if isinstance(op.operands[0].owner, Op) or tile.dtype not in ("f32", "f64"):
        return False
    width = source.shape[1] if source.rank == 2 else 1
    return source.shape[0] != 1 and tile.shape[1] != 1 and tile.shape[2] == width


def _dear(body: Expr, of: Expr) -> list[Expr]:
    """The largest parts of an expression that read nothing but ``of`` and have a dear word in them."""
    alone: dict[Expr, bool] = {}
    dear: dict[Expr, bool] = {}
    for e in postorder(body):
        alone[e] = e is of or e.is_const or (bool(e.args) and all(alone[a] for a in e.args))
        own = e.fn in FUNCTIONS and FUNCTIONS[e.fn].kind == "pointwise" and FUNCTIONS[e.fn].cost >= _DEAR
        dear[e] = own or any(dear[a] for a in e.args)
        alone[e] = alone[e] and e.dtype == "f"
    found: dict[Expr, None] = {}
    todo = [body]
    while todo:
        e = todo.pop()
        if alone[e] and dear[e]:
            found[e] = None
        elif dear[e]:
            todo += e.args
    return list(found)


def _free(programs: list[Program]) -> str:
    """A name that no parameter has."""
    taken = {name for p in programs for name in p.names}
    return next(name for n in range(len(taken) + 1) if (name := f"u{n}") not in taken)


def _drop_unread(op: Op) -> None:
    """Forgets operands that no program reads, their parameters and loads with them."""
    programs: tuple[Program, ...] = op.attrs["programs"]
    read = [any(p.params[n] in postorder(p.body) for p in programs) for n in range(len(op.operands))]
    op.operands = [v for v, r in zip(op.operands, read, strict=True) if r]
    op.attrs["programs"] = tuple(
        Program(tuple(x for x, r in zip(p.params, read, strict=True) if r), p.body) for p in programs
    )
