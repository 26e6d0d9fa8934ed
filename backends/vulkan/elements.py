"""Operations element by element: each thread on what it holds."""

from __future__ import annotations

from aatc.backends.vulkan.emit import Emitter, kind_of
from aatc.backends.vulkan.memory import item, items, letters_of, problem
from aatc.backends.vulkan.table import lowering
from aatc.backends.vulkan.tiles import Tile
from aatc.backends.vulkan.words import convert, number
from aatc.ir.core import Op, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import UnsupportedError
from aatc.ir.score.program import Program
from aatc.ir.types import TensorType, TileType


def joined(tiles: list[Tile]) -> tuple[str, str]:
    """The letters of a tile that tiles are broadcast to."""
    out = []
    for n in range(2):
        found = [t.letters[n] for t in tiles if t.letters[n] != "1"]
        out.append(found[0] if found else "1")
    return out[0], out[1]


@lowering("tile.map")
def map_tiles(e: Emitter, op: Op) -> None:
    tiles = [e.tile(v) for v in op.operands]
    for program, result in zip(op.attrs["programs"], op.results, strict=True):
        used = set(_params(program))
        kept = [t for t, p in zip(tiles, program.params, strict=True) if p in used]
        out = e.made(result, _letters(result.type, joined(kept), joined(tiles)))  # type: ignore[arg-type]
        out.items = apply(e, program, tiles, out, result.name or "t")


def _letters(t: TileType, used: tuple[str, str], given: tuple[str, str]) -> tuple[str, str]:
    """The letters of a result: of what its program reads, or, as far as it is wider, of all that is handed in."""
    out = []
    for n, (u, w) in enumerate(zip(used, given, strict=True)):
        letter = w if u == "1" and int(t.shape[n + 1]) != 1 else u
        out.append("1" if letter in "de" and int(t.shape[n + 1]) == 1 else letter)
    return out[0], out[1]


def _params(program: Program) -> list[object]:
    from aatc.ir.score.expr import params

    return list(params(program.body))


def apply(e: Emitter, program: Program, tiles: list[Tile], out: Tile, hint: str) -> list[str]:
    """A program over tiles, for every register of a tile of ``out``'s form."""
    used = set(_params(program))
    kept = [n for n, p in enumerate(program.params) if p in used]
    small = Program(tuple(program.params[n] for n in kept), program.body)
    args = [tiles[n] for n in kept]
    count, type = e.count(out.form, out.width), e.type_of(out)
    if type != "vec4f":
        name = e.programs.function(small, tuple(t.kind for t in args), out.kind, hint)
        texts = [f"{name}({', '.join(item(e, t, out.form, n) for t in args)})" for n in range(count)]
        return e.lets(hint, type, texts)
    wide = tuple(t.form in ("rowvec", "vec") for t in args)
    if not args:
        name = e.programs.function(small, (), "f", hint)
        return e.lets(hint, type, [f"vec4f({name}())"] * count)
    whole = e.programs.vectors(small, wide, hint) if any(wide) and all(t.kind == "f" for t in args) else None
    if whole is not None:
        texts = [f"{whole}({', '.join(item(e, t, out.form, n, out.width) for t in args)})" for n in range(count)]
        return e.lets(hint, type, texts)
    name = e.programs.function(small, tuple(t.kind for t in args), "f", hint)
    texts = []
    for n in range(count):
        given = [item(e, t, out.form, n, out.width) for t in args]
        parts = [
            f"{name}({', '.join(f'{x}.{c}' if w else x for x, w in zip(given, wide, strict=True))})" for c in "xyzw"
        ]
        texts.append(f"vec4f({', '.join(parts)})")
    return e.lets(hint, type, texts)


@lowering("tile.mask")
def mask(e: Emitter, op: Op) -> None:
    value, partial, *captures = op.operands
    tile, tiles = e.tile(value), [e.tile(v) for v in captures]
    out = e.made(op.result, tile.letters)
    hint, type = op.result.name or "masked", e.type_of(tile)
    wide = type == "vec4f"
    names = [e.body.var(hint, type, x) for x in items(e, tile)]
    for t in tiles:
        items(e, t)  # read before the condition
    program: Program = op.attrs["mask"]
    used = set(_params(program))
    kept = [n for n, p in enumerate(program.params) if p in used]
    small = Program(tuple(program.params[n] for n in kept), program.body)
    args = [tiles[n] for n in kept]
    keep = e.programs.function(small, tuple(t.kind for t in args), "b", "open")
    fill = number(op.attrs["value"], tile.kind)
    fill = f"vec4f({fill})" if wide else fill
    e.when(e.at[partial])
    for n, name in enumerate(names):
        is_open = f"{keep}({', '.join(item(e, t, tile.form, n, tile.width) for t in args)})"
        e.body.set(name, f"select({fill}, {name}, {is_open})")
    e.close()
    out.items = names


@lowering("tile.fill")
def fill(e: Emitter, op: Op) -> None:
    t: TileType = op.result.type  # type: ignore[assignment]
    out = e.made(op.result, letters_of(op, t))
    text = number(op.attrs["value"], out.kind)
    if out.form == "colvec":
        raise UnsupportedError("vectors of columns are held by no thread", hint="order(rows-and-columns)")
    text = f"vec4f({text})" if e.type_of(out) == "vec4f" else text
    out.items = [text] * e.count(out.form, out.width)


@lowering("tile.position")
def position(e: Emitter, op: Op) -> None:
    letter = op.attrs["axes"]
    t: TileType = op.result.type  # type: ignore[assignment]
    out = e.made(op.result, letters_of(op, t))
    if letter in "bh":
        sizes = [Dim.of(d) for d in op.attrs["sizes"]]
        texts = [problem(e, letter, e.at[op.operands[0]], sizes["bh".index(letter)], sizes)]
    else:
        texts = {"row": e.row_at, "col": e.col_at}.get(out.form, [e.at[op.operands[0]]])
    out.items = e.lets(op.result.name or letter, e.type_of(out), [convert(x, "i", out.kind) for x in texts])


# --- parts of rows -------------------------------------------------------------------------------------------
@lowering("tile.slice")
def slice_tile(e: Emitter, op: Op) -> None:
    tile, start, stride = e.tile(op.operands[0]), op.attrs["start"], op.attrs["stride"]
    t: TileType = op.result.type  # type: ignore[assignment]
    at = {"i": 1, "j": 2}[op.attrs["over"]]
    letter, n = tile.letters[at - 1], int(t.shape[at])
    letters = list(tile.letters)
    letters[at - 1] = "1" if n == 1 else letter
    if letter == "1":
        e.tiles[op.result] = tile
        return
    parts = features(e, tile)
    chosen = [[row[start + k * stride] for k in range(n)] for row in parts]
    out = e.made(op.result, (letters[0], letters[1]))
    out.items = gathered(e, chosen, op.result.name or "part")


@lowering("tile.insert")
def insert_tile(e: Emitter, op: Op) -> None:
    part, whole = (e.tile(v) for v in op.operands)
    start, stride = op.attrs["start"], op.attrs["stride"]
    t: TileType = op.operands[0].type  # type: ignore[assignment]
    at = {"i": 1, "j": 2}[op.attrs["over"]]
    n = int(t.shape[at])
    out = e.made(op.result, whole.letters)
    if whole.letters[at - 1] == "1":
        out.items = list(items(e, part))
        return
    old = features(e, whole)
    if part.form in ("row", "one"):
        new = [[x] for x in items(e, part)]
    else:
        new = features(e, part)
    if len(new) == 1:
        new = new * len(old)
    for row, put in zip(old, new, strict=True):
        for k in range(n):
            row[start + k * stride] = put[k]
    out.items = gathered(e, old, op.result.name or "whole")


def features(e: Emitter, tile: Tile) -> list[list[str]]:
    """The features of each row of a thread, where it holds all of them."""
    if e.lanes.across != 1 or tile.form not in ("rowvec", "vec"):
        raise UnsupportedError(f"parts of a tile of form {tile.form} have no kernel among lanes that share rows")
    held, vectors = items(e, tile), e.lanes.vectors(tile.width)
    rows = [held[n : n + vectors] for n in range(0, len(held), vectors)]
    return [[f"{row[f // 4]}.{'xyzw'[f % 4]}" for f in range(tile.width)] for row in rows]


def gathered(e: Emitter, rows: list[list[str]], hint: str) -> list[str]:
    """Vectors of four from the features of rows; single ones stay numbers."""
    if rows and len(rows[0]) == 1:
        return e.lets(hint, "f32", [row[0] for row in rows])
    texts = []
    for row in rows:
        padded = [*row, *["0.0"] * (-len(row) % 4)]
        texts += [f"vec4f({', '.join(padded[n : n + 4])})" for n in range(0, len(padded), 4)]
    return e.lets(hint, "vec4f", texts)


# --- tables --------------------------------------------------------------------------------------------------
def entries(e: Emitter, op: Op, table: Value, g: Value, tiles: list[Tile], form: str) -> list[str]:
    """Where in the arena the entry lies that each register of a tile of ``form`` reads of a table."""
    axes, shape = op.attrs["axes"], e.shape(table)
    sizes = [Dim.of(d) for d in op.attrs["sizes"]]
    lead = axes.rstrip("tu")
    terms = [e.offset(table)]
    for axis, c in enumerate(lead):
        terms.append(e.times(f"({problem(e, c, e.at[g], shape[axis], sizes)})", e.stride(table, axis)))
    base = e.let(f"at_{e.names.of(table)}", "i32", e.plus(*terms))
    programs = op.attrs["positions"]
    texts = [[base] for _ in range(e.count(form))]
    for n, program in enumerate(programs):
        axis = len(lead) + n
        out = Tile(("1", "1"), form, "f" if program.body.dtype == "f" else "i")
        stride, last = e.stride(table, axis), e.dim(shape[axis])
        for k, index in enumerate(apply(e, program, tiles, out, "index")):
            index = f"i32(round_even({index}))" if out.kind == "f" else index
            texts[k].append(e.times(f"clamp({index}, 0, {last} - 1)", stride))
    return e.lets("entry", "i32", [e.plus(*parts) for parts in texts])


@lowering("tile.lookup")
def lookup(e: Emitter, op: Op) -> None:
    table, g, *values = op.operands
    e.reads[table] = None
    tiles = [e.tile(v) for v in values]
    out = e.made(op.result, joined(tiles))
    assert isinstance(table.type, TensorType)
    kind = kind_of(table.type.dtype)
    read = "load_f" if kind == "f" else "load_i"
    texts = [
        convert(f"{read}({at})", "f" if kind == "f" else "i", out.kind)
        for at in entries(e, op, table, g, tiles, out.form)
    ]
    out.items = e.lets(op.result.name or "entry", e.type_of(out), texts)
