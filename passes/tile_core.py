"""The inner loop that forward and backward share: atoms of a tile, and the sweep over keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aatc.ir.access import access
from aatc.ir.core import Value
from aatc.ir.dims import Dim
from aatc.ir.schedule import Schedule, Unroll, Vectorize
from aatc.ir.score.expr import Expr, call, param, params
from aatc.ir.score.program import Program
from aatc.ir.types import BOOL, INDEX, RunsType, TileType
from aatc.passes.factor import ChannelSum, Contraction, Factored, Lookup, Refined, Stored, Token
from aatc.passes.lowering import Attention, Builder, load_channel, load_token


@dataclass
class Frame:
    """What is in reach while code is emitted: buffers by token name, loop positions, loaded tiles by axes."""

    a: Attention
    f: Factored
    s: Schedule
    b: Builder
    operands: dict[str, Value]
    buffers: dict[str, Value] = field(default_factory=dict)
    at: dict[str, Value] = field(default_factory=dict)
    tiles: dict[str, Value] = field(default_factory=dict)
    tile_map: Value | None = None
    partial: Value | None = None  # whether the mask must be looked at in this tile
    parallel: str = ""  # axes of the loops around that run in parallel
    bounds: dict[str, tuple[Value, Value]] = field(default_factory=dict)  # of refined numbers, as buffers

    def token_named(self, name: str) -> Token:
        return next(t for t in self.f.tokens.values() if t.name == name)

    def tile(self, t: Token) -> Value:
        """The tile of a token at the current positions, loaded once per loop body."""
        if t.name not in self.tiles:
            self.tiles[t.name] = load_token(self.b, self.a, self.s, t, self.buffers[t.name], self.at)
        return self.tiles[t.name]

    def scoped(self) -> Frame:
        """A frame for a nested body: what is loaded there is forgotten outside."""
        return Frame(
            self.a,
            self.f,
            self.s,
            self.b,
            self.operands,
            self.buffers,
            dict(self.at),
            dict(self.tiles),
            self.tile_map,
            self.partial,
            self.parallel,
            self.bounds,
        )

    def shared(self, owned: Callable[[str], bool]) -> str | None:
        """How sums in a buffer meet that is not the parallel loops' own."""
        return None if all(map(owned, self.parallel)) else "ordered"


def token_names(exprs: Sequence[Expr]) -> list[str]:
    return [p.name for p in params(*exprs)]


def atom_env(fr: Frame, exprs: Sequence[Expr]) -> dict[str, Value]:
    """Tiles for every parameter of ``exprs``: token tiles are loaded, atoms must be computed already."""
    for name in token_names(exprs):
        if name not in fr.tiles:
            fr.tile(fr.token_named(name))
    return fr.tiles


def compute_atoms(fr: Frame, wanted: Sequence[Expr]) -> None:
    """Emits contractions, lookups, loads and channel sums that ``wanted`` needs, in order."""
    needed = _closure(fr.f, wanted)
    for atom in fr.f.atoms.values():
        if atom.atom.name not in needed or atom.atom.name in fr.tiles:
            continue
        fr.tiles[atom.atom.name] = _atom(fr, atom)


def _closure(f: Factored, wanted: Sequence[Expr]) -> set[str]:
    by_name = {x.atom.name: x for x in f.atoms.values()}
    todo, seen = token_names(wanted), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        atom = by_name.get(name)
        if isinstance(atom, Lookup):
            todo += token_names(atom.positions)
        elif isinstance(atom, ChannelSum):
            todo += token_names([atom.body])
        elif isinstance(atom, Refined):
            todo += token_names([atom.plain])
    return seen


def _atom(fr: Frame, atom: Any) -> Value:
    b, name = fr.b, atom.atom.name
    if isinstance(atom, Contraction):
        return b.dot("nt", fr.tile(atom.row), fr.tile(atom.col), name=name)
    if isinstance(atom, Stored):
        dtype = fr.a.element(atom.source.dtype, atom.exact)
        axes = atom.source.attrs[1]
        repeated = [] if access(axes).lead else [fr.at["g"]]
        return b.op(
            "tile.load",
            [fr.operands[atom.source.name], *repeated, *at_positions(fr, axes)],
            [TileType.of(dtype, (fr.s.heads, fr.s.rows, fr.s.cols))],
            names=[name],
            axes=axes,
            sizes=fr.a.sizes,
        )[0]
    if isinstance(atom, Lookup):
        positions, tiles = position_programs(fr, atom)
        return b.op(
            "tile.lookup",
            [fr.operands[atom.table.name], fr.at["g"], *tiles],
            [TileType.of(fr.a.element(atom.atom.dtype, atom.exact), (fr.s.heads, fr.s.rows, fr.s.cols))],
            names=[name],
            positions=positions,
            axes=atom.table.attrs[1],
            sizes=fr.a.sizes,
        )[0]
    if isinstance(atom, Refined):
        x = atom_env(fr, [atom.plain]).get(atom.plain.name) if atom.plain.fn == "param" else None
        if x is None:
            tile = b.tile(fr.s.heads, fr.s.rows, fr.s.cols)
            x = b.map([(f"{name}_plain", atom.plain, tile)], atom_env(fr, [atom.plain]))[0]
        program = Program(tuple(t.atom for t in atom.tokens), atom.body)
        operands = [x, *bounds(fr, atom), *map(fr.tile, atom.tokens)]
        return b.op("tile.refine", operands, [x.type], names=[name], program=program, inside=atom.inside or None)[0]
    return _channel_sum(fr, atom)


def bounds(fr: Frame, atom: Refined) -> list[Value]:
    """Tiles of the two numbers between which contractions give ``atom`` well enough."""
    one = fr.b.tile(1, 1, 1)
    return [fr.b.op("tile.load", [v], [one], names=[f"{v.name}_t"], axes="")[0] for v in fr.bounds[atom.atom.name]]


def position_programs(fr: Frame, atom: Lookup) -> tuple[tuple[Program, ...], list[Value]]:
    env = atom_env(fr, atom.positions)
    used = tuple(params(*atom.positions))
    return tuple(Program(used, p) for p in atom.positions), [env[p.name] for p in used]


def at_positions(fr: Frame, axes: str) -> list[Value]:
    """The loop positions that an access of ``axes`` takes."""
    return [fr.at[c] for c in access(axes).walks]


def _channel_sum(fr: Frame, atom: ChannelSum) -> Value:
    """``for c: sum += body(row[c], col[c])``: no value ever has a channel axis next to both i and j."""
    b, s = fr.b, fr.s
    outside = [p for p in params(atom.body) if p not in dict(atom.rows) and p not in dict(atom.cols)]
    atom_env(fr, outside)
    zero = b.fill(0.0, "gij", fr.at, s.heads, s.rows, s.cols, name=f"{atom.atom.name}_0")
    tile = b.tile(s.heads, s.rows, s.cols)
    c, acc = b.open([INDEX, tile], ["c", f"{atom.atom.name}_acc"])
    at = {**fr.at, "c": c}
    env = {p.name: fr.tiles[p.name] for p in outside}
    for p, t in (*atom.rows, *atom.cols):
        env[p.name] = load_channel(b, fr.a, s, t, fr.buffers[t.name], at)
    acc_atom = param("acc_", "bhij")
    (new,) = b.map([(f"{atom.atom.name}_n", call("add", acc_atom, atom.body), tile)], {**env, acc_atom.name: acc})
    body = b.close([new])
    token = (*atom.rows, *atom.cols)[0][1]
    return b.op(
        "tile.for",
        [zero],
        [tile],
        regions=[body],
        names=[atom.atom.name],
        axis="c",
        upper=fr.a.width(token.expr),
        step=1,
        kind="red",
    )[0]


def mask_tile(fr: Frame, mask: Expr | None, tile: Value, partial: Value | None, value: float, name: str) -> Value:
    """``tile`` with ``value`` where the mask does not hold."""
    if mask is None or partial is None:
        return tile
    compute_atoms(fr, [mask])
    env = atom_env(fr, [mask])
    program = Program.of(mask)
    return fr.b.op(
        "tile.mask",
        [tile, partial, *(env[n] for n in program.names)],
        [tile.type],
        names=[name],
        mask=program,
        value=value,
    )[0]


def sweep(
    fr: Frame,
    inits: Sequence[Value],
    names: Sequence[str],
    kind: str,
    emit: Callable[[Frame, Value | None, list[Value]], Sequence[Value]],
    axis: str = "j",
) -> list[Value]:
    """A loop over keys, or with axis i over queries, that skips empty tiles when there is a tile map; in a loop over
    parts, over those of one part. ``emit`` gets (frame, partial, carried)."""
    b = fr.b
    types = [v.type for v in inits]
    upper, step = (fr.a.cols, fr.s.cols) if axis == "j" else (fr.a.rows, fr.s.rows)
    part = [fr.at["s"]] if "s" in fr.at else []
    parts = fr.s.parts if part else None
    if fr.tile_map is None:
        at, *carried = b.open([INDEX, *types], [axis, *names])
        inner = fr.scoped()
        inner.at[axis] = at
        body = b.close(emit(inner, None, carried))
        return b.op(
            "tile.for_part" if part else "tile.for",
            [*part, *inits],
            types,
            regions=[body],
            names=names,
            axis=axis,
            upper=_dim(upper),
            step=step,
            parts=parts,
            kind=kind,
            **body_attrs(fr.s, "j"),
        )
    at, partial, *carried = b.open([INDEX, BOOL, *types], [axis, "partial", *names])
    inner = fr.scoped()
    inner.at[axis], inner.partial = at, partial
    grain = fr.tile_map.type.grain  # type: ignore[attr-defined]
    body = b.close(emit(inner, partial, carried))
    return b.op(
        "tile.sweep_part" if part else "tile.sweep",
        [fr.tile_map, fr.at["g"], fr.at["i" if axis == "j" else "j"], *part, *inits],
        types,
        regions=[body],
        names=names,
        axis=None if axis == "j" else axis,
        upper=_dim(upper),
        step=step // grain * grain,
        parts=parts,
        kind=kind,
        **body_attrs(fr.s, "j"),
    )


def body_attrs(s: Schedule, axis: str) -> dict[str, Any]:
    """What the schedule says of the body of the loop over an axis."""
    return {"unroll": s.count(Unroll, axis), "vectorize": s.count(Vectorize, axis)}


def _dim(d: Any) -> Any:
    return int(d) if d.is_static else d


def loops(
    fr: Frame, emit: Callable[[Frame], None], kind: str = "par", blocks: str = "i", *, parts: bool = False
) -> None:
    """The loops over problems and blocks of queries, or with ``blocks`` j of keys, around ``emit``, in the order of the
    schedule, where keys then take the queries' place; within these with ``parts`` one over parts of the keys, which go
    where blocks of queries go. ``kind`` is that of the loop over blocks; problems and parts are independent."""
    b = fr.b
    nest = [blocks if axis == "i" else axis for axis in fr.s.nest if axis != "j"] + ["s"] * parts
    kinds = {"g": "par", blocks: kind, "s": "par"}
    inner = fr.scoped()
    for axis in nest:
        (inner.at[axis],) = b.open([INDEX], [axis])
    inner.parallel = "".join(axis for axis in ("g", blocks) if kinds[axis] == "par")
    emit(inner)
    upper = {"g": fr.a.problems, "i": fr.a.rows, "j": fr.a.cols, "s": Dim(fr.s.parts)}
    step = {"g": fr.s.heads, "i": fr.s.rows, "j": fr.s.cols, "s": 1}
    for axis in reversed(nest):
        body = b.close()
        said = "i" if axis in (blocks, "s") else axis
        b.op(
            "tile.for",
            [],
            [],
            regions=[body],
            axis=axis,
            upper=_dim(upper[axis]),
            step=step[axis],
            kind=kinds[axis],
            bind=fr.s.level(said),
            **({} if axis == "s" else body_attrs(fr.s, said)),
        )


def classify(fr: Frame, rows: int, heads: int, over: str = "j") -> Value | None:
    """The runs of the attention's mask for blocks of ``rows`` queries, or with over i those for blocks of keys; None
    without a mask."""
    mask = fr.a.programs.mask
    if mask is None:
        return None
    grain = min(fr.s.grain, fr.s.rows)
    block, along = (rows, fr.s.grain) if over == "j" else (fr.s.cols, grain)
    return fr.b.op(
        "tile.classify",
        [fr.operands[n] for n in mask.names],
        [RunsType(heads, block, along)],
        names=["tiles"],
        mask=mask,
        rows=rows if over == "j" else grain,
        cols=fr.s.grain if over == "j" else fr.s.cols,
        sizes=fr.a.sizes,
        heads=heads,
        over=None if over == "j" else over,
    )[0]
