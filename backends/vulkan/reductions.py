"""Sums and extremes: in the registers of a thread, then over lanes by shuffles or through shared memory."""

from __future__ import annotations

from collections.abc import Callable

from aatc.backends.vulkan.emit import Emitter
from aatc.backends.vulkan.memory import items
from aatc.backends.vulkan.table import lowering
from aatc.backends.vulkan.tiles import Tile, form_of
from aatc.ir.core import Op
from aatc.ir.errors import UnsupportedError

_NOTHING = {"sum": "0.0", "max": "bits_f(0xff800000u)", "min": "bits_f(0x7f800000u)"}
_INTEGER = {"sum": "0", "max": "(-2147483647)", "min": "2147483647"}


def both(how: str, a: str, b: str) -> str:
    return f"{a} + {b}" if how == "sum" else f"{how}({a}, {b})"


@lowering("tile.reduce")
def reduce(e: Emitter, op: Op) -> None:
    tile, how = e.tile(op.operands[0]), op.attrs["op"]
    letters = [tile.letters[{"i": 0, "j": 1}[c]] for c in op.attrs["over"]]
    known = {e.rows: "r", e.cols: "c", "d": "d", "e": "d", "1": ""}
    out = reduced(e, tile, how, "".join(known[x] for x in letters), op.result.name or "r")
    left = ("1" if "i" in op.attrs["over"] else tile.letters[0], "1" if "j" in op.attrs["over"] else tile.letters[1])
    texts = items(e, out)
    made = e.made(op.result, left)
    if len(op.operands) > 1:
        into = items(e, e.tile(op.operands[1]))
        texts = [both(how, x, y) for x, y in zip(texts, into, strict=True)]
    made.items = e.lets(op.result.name or "r", e.type_of(made), texts)


def reduced(e: Emitter, tile: Tile, how: str, over: str, hint: str = "r") -> Tile:
    """``tile`` without the axes ``over`` (r, c, d); every thread that holds a place of the result knows it whole."""
    nothing = _NOTHING[how] if tile.kind == "f" else _INTEGER[how]
    type = {"f": "f32", "i": "i32"}[tile.kind]
    known = {e.rows: "r", e.cols: "c", "d": "d", "e": "d", "1": ""}
    letters = tuple("1" if known.get(x) and known[x] in over else x for x in tile.letters)
    if not over:
        return tile
    if tile.form == "colvec":
        raise UnsupportedError("a sum over vectors of columns has no kernel")
    texts = list(items(e, tile))
    form = tile.form
    if "d" in over and form in ("rowvec", "vec"):
        texts = _features(e, texts, tile.width, how, nothing, hint)
        form = "row" if form == "rowvec" else "one"
        if e.lanes.across > 1:
            texts = across(e, texts, how, type, hint)
    if "c" in over and form in ("pair", "col"):
        rows = e.lanes.high if form == "pair" else 1
        kept = [_kept(e, texts[n], nothing, e.col_in[n % e.lanes.wide], e.col_sure) for n in range(len(texts))]
        texts = [fold(e, kept[r * e.lanes.wide : (r + 1) * e.lanes.wide], how, type, hint) for r in range(rows)]
        form = "row" if form == "pair" else "one"
        if e.lanes.across > 1:
            texts = across(e, texts, how, type, hint)
    if "r" in over and form in ("pair", "row", "rowvec"):
        texts, form = _over_rows(e, texts, form, tile, how, type, nothing, hint)
    return Tile(letters, form_of(letters, e.rows, e.cols), tile.kind, 1 if "d" in over else tile.width, texts)  # type: ignore[arg-type]


def _kept(e: Emitter, text: str, nothing: str, inside: str, sure: bool) -> str:
    return text if sure or inside == "true" else f"select({nothing}, {text}, {inside})"


def fold(e: Emitter, texts: list[str], how: str, type: str, hint: str) -> str:
    """All of them in one."""
    if how == "sum":
        return e.body.let(hint, type, " + ".join(texts))
    out = texts[0]
    for x in texts[1:]:
        out = f"{how}({out}, {x})"
    return e.body.let(hint, type, out)


def _features(e: Emitter, texts: list[str], width: int, how: str, nothing: str, hint: str) -> list[str]:
    """Row by row what a thread holds of its features."""
    vectors = e.lanes.vectors(width)
    out = []
    for first in range(0, len(texts), vectors):
        parts = []
        for k in range(vectors):
            x, chunk = texts[first + k], e.feature(k)
            if width % 4 == 0 and e.whole_vectors(width):
                parts += [f"{x}.{c}" for c in "xyzw"]
            else:
                parts += [f"select({nothing}, {x}.{c}, 4 * ({chunk}) + {n} < {width})" for n, c in enumerate("xyzw")]
        out.append(fold(e, parts, how, "f32", hint))
    return out


def across(e: Emitter, texts: list[str], how: str, type: str, hint: str) -> list[str]:
    """Each of them over the lanes of a row."""
    lanes = e.lanes.across
    if e.lanes.subgroup >= lanes and type == "f32":
        e.body.features.add("subgroup")
        step = 1
        while step < lanes:
            texts = [e.let(hint, type, both(how, x, f"shuffle_xor({x}, {step}u)")) for x in texts]
            step *= 2
        return texts
    return _through(e, texts, how, type, hint, lambda n, k: f"({e.ty} * {lanes} + {n}) * {len(texts)} + {k}", lanes)


def down(e: Emitter, texts: list[str], how: str, type: str, hint: str) -> list[str]:
    """Each of them over the threads of a column."""
    if e.lanes.down == 1:
        return texts
    lanes = e.lanes.across
    return _through(
        e, texts, how, type, hint, lambda n, k: f"({n} * {lanes} + {e.tx}) * {len(texts)} + {k}", e.lanes.down
    )


def _through(
    e: Emitter, texts: list[str], how: str, type: str, hint: str, at: Callable[[object, int], str], lanes: int
) -> list[str]:
    """Through shared memory: thread by thread in order, so that all come to the same bits."""
    array = e.scratch(type, e.lanes.threads * len(texts))
    e.writing(array)
    for k, x in enumerate(texts):
        e.body.set(f"{array}[own_lanes(thread * {len(texts)} + {k})]", x)
    e.reading(array)
    sums = [e.body.var(hint, type, f"{array}[{at('0', k)}]") for k in range(len(texts))]
    if lanes > 1:
        e.body.open()
        n = e.body.fresh("n")
        for k, s in enumerate(sums):
            e.body.set(s, both(how, s, f"{array}[{at(n, k)}]"))
        e.body.close_for(n, "1", str(lanes), 1)
    return [e.let(hint, type, s) for s in sums]


def _over_rows(
    e: Emitter, texts: list[str], form: str, tile: Tile, how: str, type: str, nothing: str, hint: str
) -> tuple[list[str], str]:
    """Over the rows of a thread, then over the threads of a column."""
    high = e.lanes.high
    per_row = len(texts) // high
    wide = "vec4f" if form == "rowvec" else type
    zero = f"vec4f({nothing})" if form == "rowvec" else nothing
    out = []
    for k in range(per_row):
        kept = []
        for r in range(high):
            x = texts[r * per_row + k]
            kept.append(x if e.row_in[r] == "true" else f"select({zero}, {x}, {e.row_in[r]})")
        out.append(fold(e, kept, how, wide, hint))
    out = down(e, out, how, wide, hint)
    return out, {"pair": "col", "row": "one", "rowvec": "vec"}[form]
