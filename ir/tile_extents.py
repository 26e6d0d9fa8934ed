"""How large tiles are in a round: extents in their types are upper bounds, and at ragged edges tiles are smaller.

Along each axis a tile has a number of entries, or as many as the round of a loop whose last one may be shorter: then
the loop's position stands for it. Tiles meet only where these agree: numbers that happen to be equal in the types of
two tiles say nothing of the last round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aatc.ir.access import access, repeats
from aatc.ir.blame import fail
from aatc.ir.core import Op, Value
from aatc.ir.dims import Dim
from aatc.ir.registry import lookup_op
from aatc.ir.score.words import reading
from aatc.ir.types import TileType

Extent = int | Value
Extents = tuple[Extent, ...]
Tiles = Mapping[Value, Extents]

_AXIS = {"i": 1, "j": 2}


def of_round(loop: Op) -> Extent:
    """The extent of a tile at the position of a loop."""
    upper, step = Dim.of(loop.attrs["upper"]), int(loop.attrs["step"])
    if step == 1:
        return 1
    if upper.is_static and lookup_op(loop.name).traits.carried[1] == 1:  # runs of a sweep end anywhere
        if int(upper) <= step:
            return int(upper)
        if int(upper) % step == 0:
            return step
    return loop.regions[0].args[0]


def placed(op: Op, letters: str, at: Mapping[str, Extent], shape: Sequence[Dim]) -> Extents:
    """Extents of a tile whose axes are ``letters``, at positions with the extents ``at`` by letter."""
    return tuple(at[c] if c in "gij" else 1 if c == "1" else int(d) for c, d in zip(letters, shape, strict=True))


def meet(op: Op, operands: Sequence[Value], tiles: Tiles) -> tuple[tuple[int, ...], Extents]:
    """Shape and extents of the broadcast of tiles; VerifyError where they do not fit."""
    shape: list[int] = [1, 1, 1]
    extents: list[Extent] = [1, 1, 1]
    for v in operands:
        for n, (d, e) in enumerate(zip(v.type.shape, tiles[v], strict=True)):  # type: ignore[attr-defined]
            size = int(d)
            if size == 1:
                continue
            if shape[n] == 1:
                shape[n], extents[n] = size, e
            elif shape[n] != size or extents[n] != e:
                fail(op, f"tiles of different extents meet in {op.name}: along axis {n} of %{v.name or '?'}, {v.type}")
    return tuple(shape), tuple(extents)


Rule = Callable[[Op, Tiles, Callable[[Value], Extent]], list[Extents]]


def extent_rule(name: str, rule: Rule) -> None:
    """Says how large the tiles are that an operation makes, for one whose results' types do not tell (`_like`)."""
    _RULES[name] = rule


def results(op: Op, tiles: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    """Extents of the tiles that an operation without a region makes."""
    rule = _RULES.get(op.name, _like)
    return rule(op, tiles, at)


def _load(op: Op, tiles: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    a, repeated = access(op.attrs["axes"]), op.name == "tile.load" and repeats(op)
    positions = op.operands[op.name == "tile.load" :]
    where = {c: at(p) for c, p in zip(a.walks, positions[repeated:], strict=True)}
    found = placed(op, a.tile, where, op.results[0].type.shape)  # type: ignore[attr-defined]
    return [(at(positions[0]), *found[1:]) if repeated else found]


def _position(op: Op, tiles: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    extent, n = at(op.operands[0]), _AXIS.get(op.attrs["axes"], 0)
    return [tuple(extent if k == n else 1 for k in range(3))]


def product_extents(op: Op, tiles: Tiles) -> Extents:
    """Of the contraction of the first two operands in the operation's form."""
    a, b = (tiles[v] for v in op.operands[:2])
    x, y, rows, cols = {"nt": (2, 2, 1, 1), "nn": (2, 1, 1, 2), "tn": (1, 1, 2, 2)}[op.attrs["form"]]
    if a[x] != b[y] or (a[0] != b[0] and b[0] != 1):
        fail(op, f"tiles of different extents are contracted in {op.name}: at ragged edges they differ")
    return a[0], a[rows], b[cols]


def _dot(op: Op, tiles: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    found = product_extents(op, tiles)
    _same(op, found, [tiles[v] for v in op.operands[2:]])
    return [found]


def _map(op: Op, tiles: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    shape, extents = meet(op, op.operands, tiles)
    out = []
    for program, r in zip(op.attrs["programs"], op.results, strict=True):
        used = [v for p, v in zip(program.params, op.operands, strict=True) if p in reading(program.body)[0]]
        least, _ = meet(op, used, tiles)
        wanted = tuple(int(d) for d in r.type.shape)  # type: ignore[attr-defined]
        if any(w not in (1, s) or (w == 1 and n != 1) for w, s, n in zip(wanted, shape, least, strict=True)):
            fail(op, f"{op.name} of {', '.join(str(v.type) for v in op.operands)} makes no {r.type}")
        out.append(tuple(1 if w == 1 else e for w, e in zip(wanted, extents, strict=True)))
    return out


def _within(op: Op, tiles: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    """Of a tile that others, which it is at least as large as, are applied to."""
    whole = op.operands[0]
    shape, _ = meet(op, [v for v in op.operands if v in tiles], tiles)
    if shape != tuple(int(d) for d in whole.type.shape):  # type: ignore[attr-defined]
        fail(op, f"{op.name} of {whole.type}: what it is to be chosen by is larger")
    return [tiles[whole]]


def _reduce(op: Op, tiles: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    found = tuple(1 if "-ij"[n] in op.attrs["over"] else e for n, e in enumerate(tiles[op.operands[0]]))
    _same(op, found, [tiles[v] for v in op.operands[1:]])
    return [found]


def _part(op: Op, tiles: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    """Parts of an axis are of one that is no shorter in some rounds."""
    n = _AXIS[op.attrs["over"]]
    insert = op.name == "tile.insert"
    whole = op.operands[insert]
    part = op.operands[0] if insert else op.results[0]
    extents = tiles[whole]
    if extents[n] != int(whole.type.shape[n]):  # type: ignore[attr-defined]
        fail(
            op,
            f"{op.name} along {op.attrs['over']} of %{whole.name or '?'}, which is shorter at ragged edges",
            "take parts along an axis of features, or make the loop's step a divisor of its extent",
        )
    size = int(part.type.shape[n])  # type: ignore[attr-defined]
    found = tuple(size if k == n else e for k, e in enumerate(extents))
    if insert:
        _same(op, found, [tiles[part]])
        return [extents]
    return [found]


def table_extents(op: Op, g: Extent, tiles: Tiles, operands: Sequence[Value]) -> tuple[tuple[int, ...], Extents]:
    """Shape, with 0 along the problems, and extents of what a table is read at."""
    shape, extents = meet(op, operands, tiles)
    if shape[0] != 1 and extents[0] != g:
        fail(op, f"{op.name}: positions of other problems than those of the loop")
    return (0, *shape[1:]), (g, *extents[1:])


def _lookup(op: Op, tiles: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    shape, extents = table_extents(op, at(op.operands[1]), tiles, op.operands[2:])
    made = op.results[0].type
    if tuple(map(int, made.shape[1:])) != shape[1:]:  # type: ignore[attr-defined]
        fail(op, f"{op.name} gives {shape[1]} by {shape[2]} entries per problem, not {made}")
    return [extents]


def _gradient(op: Op, tiles: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    first = tiles[op.operands[0]]
    return [first, *((first[0], *tiles[v][1:]) for v in op.operands[4:])]


def _like(op: Op, tiles: Tiles, at: Callable[[Value], Extent]) -> list[Extents]:
    """Of an operation that says nothing of it: along each axis as an operand of that extent."""
    given = [v for v in op.operands if v in tiles]
    out = []
    for r in op.results:
        if isinstance(r.type, TileType):
            found: list[Extent] = []
            for n, d in enumerate(r.type.shape):
                same = [tiles[v][n] for v in given if v.type.shape[n] == d and d != 1]  # type: ignore[attr-defined]
                found.append(same[0] if same else int(d))
            out.append(tuple(found))
    return out


def _same(op: Op, found: Extents, others: Sequence[Extents]) -> None:
    if any(x != found for x in others):
        fail(op, f"tiles of different extents meet in {op.name}: at ragged edges they differ")


_RULES: dict[str, Rule] = {
    "tile.load": _load,
    "tile.fill": _load,
    "tile.position": _position,
    "tile.dot": _dot,
    "tile.map": _map,
    "tile.mask": _within,
    "tile.refine": lambda op, tiles, at: [tiles[op.operands[0]]],
    "tile.refine_gradient": _gradient,
    "tile.reduce": _reduce,
    "tile.slice": _part,
    "tile.insert": _part,
    "tile.lookup": _lookup,
}
