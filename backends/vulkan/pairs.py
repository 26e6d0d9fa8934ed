"""Operations on single pairs: tables that pairs add to, and pairs that are computed again channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

from aatc.backends.vulkan.elements import entries
from aatc.backends.vulkan.emit import Emitter
from aatc.backends.vulkan.lanes import chunks
from aatc.backends.vulkan.language import Array, For, Function, Let, Set, Statement, Var
from aatc.backends.vulkan.memory import items, put_rows, token, word
from aatc.backends.vulkan.reductions import across, fold
from aatc.backends.vulkan.table import lowering
from aatc.backends.vulkan.tiles import Tile
from aatc.backends.vulkan.words import convert, enter
from aatc.ir.core import Op
from aatc.ir.errors import UnsupportedError
from aatc.ir.score.expr import Expr, postorder
from aatc.ir.tile_pairs import is_inside


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
    numbers = e.pairs_array(e.lanes.down * e.lanes.high * (e.lanes.across * wide + 1))
    places = e.need("places", "i32", rows * cols).name
    e.writing(numbers)
    e.writing(places)
    for n, x in enumerate(items(e, tile)):
        r, c = n // wide, n % wide
        inside = [x for x in (e.row_in[r], e.col_in[c]) if x != "true"]
        where = e.let("where", "i32", f"({e.row_of(r)}) * {cols} + {e.col_of(c)}")
        e.when(f"{e.row_of(r)} < {rows} && {e.col_of(c)} < {cols}")
        e.body.set(f"{numbers}[own_scatter({where})]", x)
        e.body.set(f"{places}[own_scatter({where})]", f"select(-1, {at[n]}, {' && '.join(inside) or 'true'})")
        e.close()
    e.reading(numbers)
    e.reading(places)
    e.body.open()
    counter = e.body.fresh("n")
    place = e.let("place", "i32", f"{places}[{counter}]")
    e.when(f"{place} >= 0 && {place} % {e.lanes.threads} == thread")
    e.body.write("f32", place, f"load_f({place}) + {numbers}[{counter}]")
    e.close()
    e.body.close_for(counter, "0", str(rows * cols), 1)


# --- pairs by channel ----------------------------------------------------------------------------------------
@dataclass
class Read:
    """How a function of one pair reads an operand: a number as it is, or a vector from where a row of it begins."""

    param: Expr
    tile: Tile
    vector: bool

    @property
    def staged(self) -> str:
        return self.tile.staged.name if self.tile.staged is not None and self.tile.source is None else ""

    def channel(self, name: str, d: str) -> str:
        return f"{self.staged}[{name} + ({d} >> 2u)][{d} & 3]" if self.staged else f"load_f({name} + {d})"

    def four(self, name: str, d: str) -> str:
        """Channels ``d`` and three more; those behind the last are that one again."""
        if self.staged:
            return f"{self.staged}[{name} + ({d} >> 2u)]"
        if self.tile.source is not None and self.tile.source.aligned:
            return f"load_4({name} + {d})"
        last = self.tile.width - 1
        return f"vec4f({', '.join(f'load_f({name} + min({d} + {m}, {last}))' for m in range(4))})"


def reads(e: Emitter, params: tuple[Expr, ...], tiles: list[Tile]) -> list[Read]:
    out = []
    for p, t in zip(params, tiles, strict=True):
        if p.rank and t.source is None and t.staged is None:
            put_rows(e, t, "rows")
        if not p.rank and t.form != "one" and t.source is None:
            raise UnsupportedError("pairs computed again from computed numbers of a row have no kernel")
        out.append(Read(p, t, bool(p.rank)))
    return out


def start(e: Emitter, read: Read, place: str, row: str, col: str) -> str:
    """The argument for an operand: a number, or where a vector begins; ``place``: of the row in the block, ``row`` and
    ``col``: tokens."""
    t = read.tile
    if read.staged:
        assert t.staged is not None
        return f"({place}) * {t.staged.stride}"
    if not read.vector and t.form == "one":
        return items(e, t)[0]
    s = t.source
    assert s is not None
    at = e.plus(s.base, token(e, s, "r", row), token(e, s, "c", col))
    return at if read.vector else convert(word(s, at), s.kind, "f")


def by_channel(e: Emitter, body: Expr, operands: list[Read], width: int, hint: str) -> str:
    """A function of one pair: sums over channels are loops in it. Of a vector it is four channels, from one on."""
    names = [f"a{n}" for n in range(len(operands))]
    params = tuple(("i32" if x.vector else "f32", a) for x, a in zip(operands, names, strict=True))
    statements: list[Statement] = []
    sums: dict[Expr, tuple[str, str]] = {}

    def at(d: str, four: bool) -> dict[Expr, tuple[str, str]]:
        found = dict(sums)
        for x, a in zip(operands, names, strict=True):
            if not x.vector:
                found[x.param] = a, "f"
            else:
                found[x.param] = (x.four(a, d), "4") if four else (x.channel(a, d), "f")
        return found

    for node in postorder(body):
        if node.fn in ("dot", "sum") and node not in sums:
            total, n, inner = f"sum{len(sums)}", f"d{len(sums)}", list[Let]()
            parts = [enter(a, at(n, False), inner, f"x{len(sums)}_{k}_")[0] for k, a in enumerate(node.args)]
            statements.append(Var(total, "f32", "0.0"))
            step: tuple[Statement, ...] = (*inner, Set(total, f"{total} + {' * '.join(parts)}"))
            statements.append(For(n, "0", str(width), 1, step))
            sums[node] = total, "f"
    lets: list[Let] = []
    result, kind = enter(body, at("d", True), lets)
    name, type = e.body.fresh(f"pair_{hint}"), "vec4f" if body.rank else "f32"
    result = f"vec4f({result})" if body.rank and kind != "4" else result
    channel = (("i32", "d"),) if body.rank else ()
    e.body.functions.append(Function(name, (*params, *channel), type, (*statements, *lets), result))
    return name


def width_of(operands: list[Read]) -> int:
    return max((x.tile.width for x in operands if x.vector), default=1)


def again(e: Emitter, op: Op, values: list[str], low: Tile, high: Tile) -> list[str]:
    """Whether each of these numbers of pairs is computed again."""
    (least,), (most,) = items(e, low), items(e, high)
    sign = "" if is_inside(op) else "!"
    return [f"{sign}({x} >= {least} && {x} <= {most})" for x in values]


def _stride(e: Emitter) -> int:
    return e.lanes.across * e.lanes.wide + 1


def _put(e: Emitter, texts: list[str]) -> str:
    """A thread's pairs at their places in shared memory."""
    array = e.pairs_array(e.lanes.down * e.lanes.high * _stride(e))
    e.writing(array)
    for n, x in enumerate(texts):
        r, c = n // e.lanes.wide, n % e.lanes.wide
        e.body.set(f"{array}[own_pairs(({e.row_of(r)}) * {_stride(e)} + {e.col_of(c)})]", x)
    return array


@lowering("tile.refine")
def refine(e: Emitter, op: Op) -> None:
    """A thread that has such a pair goes through its own in shared memory, so that the program stands there once."""
    tile, low, high, *tiles = (e.tile(v) for v in op.operands)
    operands = reads(e, op.attrs["program"].params, tiles)
    hint = op.result.name or "refined"
    function = by_channel(e, op.attrs["program"].body, operands, width_of(operands), hint)
    for x in operands:
        if x.staged:
            e.reading(x.staged)
    items(e, low), items(e, high)
    values = [e.body.var(hint, "f32", x) for x in items(e, tile)]
    some = e.let("some", "bool", " || ".join(again(e, op, values, low, high)))
    array = e.pairs_array(e.lanes.down * e.lanes.high * _stride(e))
    e.writing(array)
    high_, wide, lanes = e.lanes.high, e.lanes.wide, e.lanes
    places = [f"({e.row_of(n // wide)}) * {_stride(e)} + {e.col_of(n % wide)}" for n in range(high_ * wide)]
    own = [f"{array}[own_pairs({at})]" for at in places]
    e.when(some)
    for value, mine in zip(values, own, strict=True):
        e.body.set(mine, value)
    e.body.open()
    n = e.body.fresh("n")
    place = e.let("place", "i32", f"{e.ty} + {n} / {wide} * {lanes.down}")
    other = e.let("other", "i32", f"{e.tx} + {n} % {wide} * {lanes.across}")
    row = e.let("row", "i32", f"{e.row_first} + min({place}, {e.row_extent} - 1)")
    col = e.let("col", "i32", f"{e.col_first} + min({other}, {e.col_extent} - 1)")
    at = e.let("at", "i32", f"{place} * {_stride(e)} + {other}")
    (condition,) = again(e, op, [f"{array}[own_pairs({at})]"], low, high)
    e.when(condition)
    e.body.set(f"{array}[own_pairs({at})]", f"{function}({', '.join(start(e, o, place, row, col) for o in operands)})")
    e.close()
    e.body.close_for(n, "0", str(high_ * wide), 1)
    for value, mine in zip(values, own, strict=True):
        e.body.set(value, mine)
    e.close()
    e.made(op.result, tile.letters).items = values


@lowering("tile.refine_gradient")
def refine_gradient(e: Emitter, op: Op) -> None:
    """Cotangents of what was computed again go through shared memory; each thread adds up the vectors of its rows."""
    cotangent, refined, low, high, *tiles = (e.tile(v) for v in op.operands)
    wide = e.lanes.wide
    held, conditions = items(e, cotangent), again(e, op, items(e, refined), low, high)
    there = [f"({x}) && {e.row_in[n // wide]} && {e.col_in[n % wide]}" for n, x in enumerate(conditions)]
    own = e.lets("own", "f32", [f"select(0.0, {x}, {c})" for x, c in zip(held, there, strict=True)])
    rest = e.made(op.results[0], cotangent.letters)
    rest.items = e.lets(
        op.results[0].name or "rest", "f32", [f"select({x}, 0.0, {c})" for x, c in zip(held, there, strict=True)]
    )
    wanted = [x for x in zip(op.attrs["programs"], op.results[1:], tiles, strict=True) if e.uses.get(x[1])]
    if not wanted:
        return
    array = _put(e, own)
    some = [fold(e, [f"abs({x})" for x in own], "max", "f32", "some")]
    (any_,) = across(e, some, "max", "f32", "some") if e.lanes.across > 1 else some
    made = []
    for program, result, t in wanted:
        if t.form not in ("rowvec", "row"):
            raise UnsupportedError(f"gradients of tiles of form {t.form} from pairs computed again have no kernel")
        operands = [Read(program.params[0], cotangent, False), *reads(e, program.params[1:], tiles)]
        function = by_channel(e, program.body, operands, width_of(operands), result.name or "own")
        out = e.made(result, t.letters)
        zero = "vec4f(0.0)" if t.form == "rowvec" else "0.0"
        count = e.count(out.form, out.width)
        out.items = [e.body.var(result.name or "own", e.type_of(out), zero) for _ in range(count)]
        made.append((function, operands, out, bool(program.body.rank)))
    e.reading(array)
    for _, operands, _, _ in made:
        for x in operands:
            if x.staged:
                e.reading(x.staged)
    e.when(f"{any_} > 0.0")
    _add_own(e, array, made)
    e.close()


#: A function of one pair, its operands, the tile of its sums, whether it gives a vector.
_Own = tuple[str, list[Read], Tile, bool]


def _add_own(e: Emitter, array: str, made: list[_Own]) -> None:
    """Adds up what pairs of a thread's rows give, in loops: all of it is rare, and stands in the kernel once."""
    sums = []
    for _, _, out, _ in made:
        assert out.items is not None
        sums.append(e.body.fresh("sums"))
        e.body.add(Array(sums[-1], e.type_of(out), len(out.items)))
        e.body.open()
        n = e.body.fresh("n")
        e.body.set(f"{sums[-1]}[{n}]", "vec4f(0.0)" if out.form == "rowvec" else "0.0")
        e.body.close_for(n, "0", str(len(out.items)), 1)
    e.body.open()
    r = e.body.fresh("r")
    place = e.let("place", "i32", f"{e.ty} + {r} * {e.lanes.down}")
    row = e.let("row", "i32", f"{e.row_first} + min({place}, {e.row_extent} - 1)")
    e.body.open()
    j = e.body.fresh("j")
    g = e.let("own", "f32", f"{array}[{place} * {_stride(e)} + {j}]")
    e.when(f"{g} != 0.0")
    for name, (function, operands, out, vector) in zip(sums, made, strict=True):
        args = [g, *(start(e, x, place, row, f"({e.col_first} + {j})") for x in operands[1:])]
        if out.form == "row":  # a vector of one feature is a number, too
            value = f"{function}({', '.join([*args, '0'])}).x" if vector else f"{function}({', '.join(args)})"
            e.body.set(f"{name}[{r}]", f"{name}[{r}] + {value}")
            continue
        vectors = e.lanes.vectors(out.width)
        args = [e.let("at", "i32" if x.vector else "f32", a) for x, a in zip(operands, args, strict=True)]
        e.body.open()
        k = e.body.fresh("k")
        d = e.let("d", "i32", f"4 * min({e.tx} + {k} * {e.lanes.across}, {chunks(out.width) - 1})")
        at = f"{name}[{r} * {vectors} + {k}]"
        e.body.set(at, f"{at} + {function}({', '.join([*args, d])})")
        e.body.close_for(k, "0", str(vectors), 1)
    e.close()
    e.body.close_for(j, "0", e.col_extent, 1)
    e.body.close_for(r, "0", str(e.lanes.high), 1)
    for name, (_, _, out, _) in zip(sums, made, strict=True):
        for m, x in enumerate(out.items or []):
            e.body.set(x, f"{name}[{m}]")
