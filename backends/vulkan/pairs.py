"""Operations on single pairs: tables that pairs add to, and pairs whose numbers are computed again."""

from __future__ import annotations

from aatc.backends.vulkan.elements import entries
from aatc.backends.vulkan.emit import Emitter
from aatc.backends.vulkan.memory import items
from aatc.backends.vulkan.table import lowering
from aatc.ir.core import Op
from aatc.ir.errors import UnsupportedError


@lowering("tile.scatter")
def scatter(e: Emitter, op: Op) -> None:
    """Numbers and places go to shared memory; the thread that a place belongs to adds what there is for it."""
    value, table, g, *values = op.operands
    e.reads[table] = e.writes[table] = None
    tile, tiles = e.tile(value), [e.tile(v) for v in values]
    if tile.form != "pair":
        raise UnsupportedError(f"a table that tiles of form {tile.form} are added to has no kernel")
    at = entries(e, op, table, g, tiles, "pair")
    rows, cols, wide = e.lanes.rows, e.lanes.cols, e.lanes.wide
    numbers = e.pairs_array(rows * (cols + 1))
    places = e.need("places", "i32", rows * (cols + 1)).name
    e.writing(numbers)
    e.writing(places)
    for n, x in enumerate(items(e, tile)):
        r, c = n // wide, n % wide
        inside = [x for x in (e.row_in[r], e.col_in[c]) if x != "true"]
        where = e.let("where", "i32", f"({e.row_of(r)}) * {cols} + {e.col_of(c)}")
        held = [f"{e.row_of(r)} < {rows}", f"{e.col_of(c)} < {cols}"]
        e.when(" && ".join(held))
        e.body.set(f"{numbers}[{where}]", x)
        e.body.set(f"{places}[{where}]", f"select(-1, {at[n]}, {' && '.join(inside) or 'true'})")
        e.close()
    e.reading(numbers)
    e.reading(places)
    e.body.open()
    n = e.body.fresh("n")
    place = e.let("place", "i32", f"{places}[{n}]")
    e.when(f"{place} >= 0 && {place} % {e.lanes.threads} == thread")
    e.body.write("f32", place, f"load_f({place}) + {numbers}[{n}]")
    e.close()
    e.body.close_for(n, "0", str(rows * cols), 1)


@lowering("tile.refine", "tile.refine_gradient")
def refine(e: Emitter, op: Op) -> None:
    raise UnsupportedError("pairs computed again have no kernel yet", hint="they run on the CPU")
