"""Lets products of bfloat16 take bfloat16, where the processor multiplies it twice as fast and no digit is lost that
counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from aatc.backends.native.rounded_sums import RoundedSums
from aatc.ir.access import access
from aatc.ir.core import Block, Func, Module, Op, Value, clone_func
from aatc.ir.dims import Dim
from aatc.ir.errors import PassError
from aatc.ir.score.expr import call, const, mul, param
from aatc.ir.score.program import Program
from aatc.ir.specialize import prune
from aatc.ir.types import TensorType, TileType
from aatc.passes.base import Context, Pass, register

#: The largest number, and the limits of a factor, with which neither a product leaves the range of single precision nor
#: what the instruction takes for 0, below 2**-126, counts.
_LARGEST, _FACTOR = 2.0**56, 2.0**40
#: Of values that are not 0: the instruction takes less than 2**-126 for 0, in what it sums up, too, and 2**21 keys are
#: to leave half the digits of single precision.
_SMALLEST = 2.0**-93


@register
@dataclass(frozen=True)
class Bf16Products(Pass):
    """``dot`` of what was widened from bf16 → ``dot`` of tiles of bf16, in forwards of a softmax and its mean.

    Scores: where both factors are arguments of bf16, but for a constant factor, which moves behind the sum. Products
    of bf16 are exact in f32. For numbers beyond 2**56 the function stays as it was.
    Values: where weights meet arguments of bf16, they are rounded to bf16, and the output is divided by the sum of what
    they are then (`rounded_sums`): it is still a mean. Its error is that of its own rounding. For values closer to 0
    than 2**-93 the function stays as it was.

    queries: of a problem, from which on it pays to pack its keys and values; that many there are where it is not known.
    """

    queries: int = 32
    name: ClassVar[str] = "bf16-products"
    counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise PassError(f"bf16-products: queries = {self.queries}", hint="from one query on, all are enough")

    def run(self, module: Module, ctx: Context) -> Module:
        if "bf16" not in ctx.target.features:
            return module
        lanes = ctx.target.vector_bytes // 4
        for op in [x for x in module.walk() if x.name == "geo.kernel"]:
            if (op.attrs["kind"], op.attrs.get("aggregate")) != ("softmax", "mean"):
                continue
            func = module.funcs[op.attrs["forward"].name]
            before = clone_func(func)
            found = _Narrow(func, lanes, self.queries)
            count = found.run()
            ctx.count("narrowed", count)
            if count and "exact" not in op.attrs:
                _keep(module, op, before)
        return module


def _keep(module: Module, op: Op, func: Func) -> None:
    """``func`` is what runs where a condition of the forward of ``op`` fails."""
    forward = op.attrs["forward"]
    func.name = f"{func.name}_wide"
    module.add(func)
    op.attrs |= {
        "exact": replace(forward, name=func.name),
        "exact_backward": op.attrs["backward"],
        "exact_grads": op.attrs["grads"],
    }


@dataclass(frozen=True)
class _Source:
    """An argument of bf16 that a buffer holds, times a factor: ``load`` reads a block of it, at the positions that a
    block of the buffer has."""

    load: Op
    factor: float


@dataclass(frozen=True)
class _Weights:
    """What reads a tile of weights: sums, and products with ``values``, which are loaded from a source each."""

    sums: list[Op]
    dots: list[Op]
    values: list[tuple[Op, _Source]]


class _Narrow:
    """One forward. ``scores``: how many of its products were those of scores."""

    def __init__(self, func: Func, lanes: int, queries: int):
        self.func, self.lanes, self.queries, self.scores = func, lanes, queries, 0
        self.uses: dict[Value, list[Op]] = {}
        self.loops: dict[Value, Op] = {}  # by their positions
        self.places: dict[Op, Op] = {}  # the operation of the body that an operation is part of
        self.blocks: dict[Op, Block] = {}
        for top in func.body.ops:
            for op in [top, *(x for r in top.regions for x in r.walk())]:
                self.places[op] = top
                for v in op.operands:
                    self.uses.setdefault(v, []).append(op)
                if op.name in ("tile.for", "tile.sweep"):
                    self.loops[op.regions[0].args[0]] = op
        for block in _blocks(func):
            self.blocks.update(dict.fromkeys(block.ops, block))
        self.copies: dict[tuple[Value, str], Value] = {}  # packed buffers by argument and layout
        self.long: list[Value] = []  # arguments whose numbers may be too large
        self.small: dict[Value, Op] = {}  # arguments whose numbers may be too small, and what loads one

    def run(self) -> int:
        for op in list(self.func.body.walk()):
            if op.name == "tile.dot" and op.attrs["form"] == "nt":
                self.scores += self._score(op)
        count = self._values()
        if self.small:
            self._require_size()
        if self.scores:
            self._require()
        if count + self.scores:
            prune(self.func)
        return count + self.scores

    def _few(self, op: Op) -> bool:
        """Whether keys are packed for few queries."""
        for loop in self.loops.values():
            if loop.attrs.get("axis") == "i" and self.places[loop] is self.places[op]:
                upper = Dim.of(loop.attrs["upper"])
                return upper.is_static and int(upper) < self.queries
        return True

    # --- scores --------------------------------------------------------------------------------------------
    def _score(self, op: Op) -> bool:
        row, col = self._loaded(op.operands[0]), self._loaded(op.operands[1])
        if row is None or col is None or len(op.operands) > 2:
            return False
        (a, left), (b, right) = row, col
        factor = left.factor * right.factor
        t: TileType = op.result.type  # type: ignore[assignment]
        if t.dtype != "f32" or not 1 / _FACTOR <= abs(factor) <= _FACTOR or self._few(op) or int(t.shape[2]) < 2:
            return False
        panel = self._panel(b, int(t.shape[2]))
        if not panel:
            return False
        packed = self._packed(right, op, f"panels({panel}, 2)")
        before = self.blocks[op].ops
        at = before.index(op)
        lead, inside = access(left.load.attrs["axes"]).lead, access(a.attrs["axes"]).inside
        attrs = {**a.attrs, "axes": lead + inside}
        if "sizes" in left.load.attrs:
            attrs["sizes"] = left.load.attrs["sizes"]
        rows = _read(left.load.operands[0], a.operands[1:], attrs, a)
        cols = _read(packed, b.operands[1:], b.attrs, b)
        # a block of queries is read where it was, not again for every block of keys
        home = self.blocks[a].ops
        home.insert(home.index(a), rows)
        at = before.index(op)
        before.insert(at, cols)
        op.operands = [rows.result, cols.result]
        if factor != 1.0:
            op.attrs = {**op.attrs, "factor": factor}
        self.blocks[rows], self.blocks[cols] = self.blocks[a], self.blocks[op]
        self.long += [left.load.operands[0], right.load.operands[0]]
        return True

    # --- values --------------------------------------------------------------------------------------------
    def _values(self) -> int:
        """Products of weights and values; how many."""
        found: dict[Value, _Weights] = {}
        for op in self.func.body.walk():
            if op.name == "tile.dot" and op.attrs["form"] == "nn" and op.operands[0] not in found:
                weights = self._weights(op)
                if weights is not None:
                    found[op.operands[0]] = weights
        sums = RoundedSums(self.func, [op for w in found.values() for op in w.sums])
        if not sums.possible():
            return 0
        rounded = {w: _rounded(w, self.blocks) for w in found}
        sums.add({op: rounded[w] for w in found for op in found[w].sums})
        for w, weights in found.items():
            for dot, (load, source) in zip(weights.dots, weights.values, strict=True):
                packed = self._packed(source, dot, "panels(2)")
                self.small[source.load.operands[0]] = source.load
                values = _read(packed, load.operands[1:], load.attrs, load)
                ops = self.blocks[dot].ops
                ops.insert(ops.index(dot), values)
                self.blocks[values] = self.blocks[dot]
                dot.operands = [rounded[w], values.result, *dot.operands[2:]]
        return sum(len(x.dots) for x in found.values())

    def _weights(self, op: Op) -> _Weights | None:
        """The weights of a product, where a map makes them, masks or not, and all that reads them are such products and
        at least one sum."""
        v = op.operands[0]
        chain = [v]
        while isinstance(v.owner, Op) and v.owner.name == "tile.mask":
            v = v.owner.operands[0]
            chain.append(v)
        if not isinstance(v.owner, Op) or v.owner.name != "tile.map" or v.type.dtype != "f32" or self._few(op):  # type: ignore[attr-defined]
            return None
        found = _Weights([], [], [])
        for x in chain:
            for use in self.uses.get(x, ()):
                first = use.operands[0] is x and use.operands.count(x) == 1
                if first and use.name == "tile.mask" and use.result in chain:
                    continue
                if first and x is chain[0] and use.name == "tile.dot" and use.attrs["form"] == "nn":
                    value = self._loaded(use.operands[1])
                    if value is None or value[1].factor != 1.0 or self._step(value[0]) % 2:
                        return None
                    found.dots.append(use)
                    found.values.append(value)
                elif first and x is chain[0] and use.name == "tile.reduce" and use.attrs["over"] == "j":
                    if use.attrs["op"] != "sum":
                        return None
                    found.sums.append(use)
                else:
                    return None
        return found if found.sums else None

    # --- where tiles come from -------------------------------------------------------------------------------
    def _loaded(self, v: Value) -> tuple[Op, _Source] | None:
        """The load of a tile, and what its buffer holds."""
        op = v.owner
        if not isinstance(op, Op) or op.name != "tile.load" or access(op.attrs["axes"]).inside not in ("id", "jd"):
            return None
        buffer = op.operands[0]
        if isinstance(buffer.owner, Op) and buffer.owner.name == "tile.pack":
            buffer = buffer.owner.operands[0]
        source = self._source(buffer)
        return None if source is None or op.attrs["axes"][:1] != "g" else (op, source)

    def _source(self, buffer: Value) -> _Source | None:
        made = buffer.owner
        if not isinstance(made, Op) or made.name != "tile.alloc" or "fill" in made.attrs:
            return None
        stores = [x for x in self.uses.get(buffer, ()) if x.name in ("tile.store", "tile.scatter")]
        if len(stores) != 1 or stores[0].name != "tile.store" or stores[0].attrs["add"]:
            return None
        (store,) = stores
        if store.attrs["axes"] != "gid" or not self._of_all_tokens(store):
            return None
        value, factor = store.operands[0], 1.0
        if isinstance(value.owner, Op) and value.owner.name == "tile.map":
            found = _scaling(value.owner)
            if found is None:
                return None
            value, factor = value.owner.operands[0], found
        load = value.owner
        if not isinstance(load, Op) or load.name != "tile.load" or load.operands[0] not in self.func.args:
            return None
        if load.operands[0].type.dtype != "bf16" or access(load.attrs["axes"]).inside != "id":  # type: ignore[attr-defined]
            return None
        return _Source(load, factor) if load.operands[1:] == store.operands[2:] else None

    def _of_all_tokens(self, store: Op) -> bool:
        """Whether a store stands in a loop over blocks of tokens in one over problems, and in no other."""
        top = self.places[store]
        if top.name != "tile.for" or top.attrs["axis"] != "g" or top.results:
            return False
        inner = [x for x in top.regions[0].ops if x.name == "tile.for" and store in x.regions[0].ops]
        return len(inner) == 1 and store.operands[2:] == [top.regions[0].args[0], inner[0].regions[0].args[0]]

    # --- panels ----------------------------------------------------------------------------------------------
    def _packed(self, source: _Source, before: Op, layout: str) -> Value:
        """An argument in panels, made before an operation of the function unless it is there."""
        arg = source.load.operands[0]
        key = (arg, layout)
        if key not in self.copies:
            nest = self.places[source.load]
            ops, at = self.func.body.ops, self.func.body.ops.index(self.places[before])
            made = _copied(nest, source.load)
            pack = Op(
                "tile.pack",
                [made[0].result],
                {"axes": "gjd"},
                [replace(made[0].result.type, layout=layout)],  # type: ignore[type-var]
                loc=source.load.loc,
                result_names=[f"{arg.name}_panels"],
            )
            ops[at:at] = [*made, pack]
            self.copies[key] = pack.result
        return self.copies[key]

    def _panel(self, load: Op, cols: int) -> int:
        """Tokens of a panel that blocks of keys begin at: those of the program's panels, or as many as fit."""
        given: TensorType = load.operands[0].type  # type: ignore[assignment]
        step = self._step(load)
        wanted = [given.panel] if given.panel else [n * self.lanes for n in (4, 3, 2, 1)]
        whole = -(-cols // self.lanes) * self.lanes
        fits = [n for n in wanted if n % self.lanes == 0 and whole % n == 0 and (not step or step % n == 0)]
        return fits[0] if fits else 0

    def _step(self, load: Op) -> int:
        """What divides all positions of keys that a block is loaded at."""
        loop = self.loops.get(load.operands[-1])
        if loop is None:
            return 1
        if loop.name == "tile.sweep":
            return int(loop.operands[0].type.grain)  # type: ignore[attr-defined]
        upper = Dim.of(loop.attrs["upper"])
        return 0 if upper.is_static and int(upper) <= loop.attrs["step"] else int(loop.attrs["step"])

    # --- conditions --------------------------------------------------------------------------------------------
    def _require_size(self) -> None:
        """No number of a value is too small, but for 0."""
        ops: list[Op] = []
        for arg, load in self.small.items():
            nest = _least(self.places[load], load, f"least_{arg.name}")
            ops += [*nest, Op("tile.require", [nest[0].result], {"least": _SMALLEST})]
        self.func.body.ops[:0] = ops

    def _require(self) -> None:
        """No number of a score's vectors is too large."""
        ops: list[Op] = []
        tiles = []
        one = TileType.of("f32", (1, 1, 1))
        for arg in dict.fromkeys(self.long):
            peak = Op(
                "tile.peak", [arg], {"rows": False}, [TensorType.of("f32", ())], result_names=[f"largest_{arg.name}"]
            )
            load = Op("tile.load", [peak.result], {"axes": ""}, [one], result_names=[f"largest_{arg.name}_t"])
            ops += [peak, load]
            tiles.append(load.result)
        names = [param(f"v{n}", "bhi") for n in range(len(tiles))]
        most = names[0]
        for x in names[1:]:
            most = call("maximum", most, x)
        body = call("sub", const(_LARGEST), most)
        room = Op("tile.alloc", [], {}, [TensorType.of("f32", ())], result_names=["room"])
        left = Op("tile.map", tiles, {"programs": (Program(tuple(names), body),)}, [one], result_names=["room_t"])
        store = Op("tile.store", [left.result, room.result], {"axes": "", "add": False})
        ops += [room, left, store, Op("tile.require", [room.result], {"least": 0.0})]
        self.func.body.ops[:0] = ops


def _rounded(w: Value, blocks: dict[Op, Block]) -> Value:
    """Weights in bf16, beside those that they are."""
    op = w.owner
    assert isinstance(op, Op)
    t: TileType = w.type  # type: ignore[assignment]
    short = TileType("bf16", t.shape, t.space)
    name = f"{w.name}_r"
    if op.name == "tile.mask":
        first = _rounded(op.operands[0], blocks)
        made = Op(op.name, [first, *op.operands[1:]], dict(op.attrs), [short], loc=op.loc, result_names=[name])
        ops = blocks[op].ops
        ops.insert(ops.index(op) + 1, made)
        blocks[made] = blocks[op]
        return made.result
    program = op.attrs["programs"][op.results.index(w)]
    op.attrs = {**op.attrs, "programs": (*op.attrs["programs"], program)}
    op.results = [*op.results, Value(short, name, op)]
    return op.results[-1]


def _read(buffer: Value, positions: list[Value], attrs: dict[str, object], like: Op) -> Op:
    t: TileType = like.result.type  # type: ignore[assignment]
    return Op(
        "tile.load",
        [buffer, *positions],
        dict(attrs),
        [TileType("bf16", t.shape, t.space)],
        loc=like.loc,
        result_names=[f"{buffer.name}_t"],
    )


def _copied(nest: Op, load: Op) -> list[Op]:
    """[a buffer, the loops that copy an argument to it], as those of ``nest`` around ``load``."""
    arg = load.operands[0]
    inner, source, like = _around(nest, load)
    made = Op("tile.alloc", [], {}, [TensorType(source.dtype, like.shape)], result_names=[f"{arg.name}_flat"])
    g, i, read = _read_again(nest, inner, load, source.dtype)
    write = Op("tile.store", [read.result, made.result, g, i], {"axes": "gid", "add": False}, loc=load.loc)
    tokens = Op("tile.for", [], dict(inner.attrs), regions=[Block([i], [read, write, Op("tile.yield")])], loc=load.loc)
    return [
        made,
        Op("tile.for", [], dict(nest.attrs), regions=[Block([g], [tokens, Op("tile.yield")])], loc=load.loc),
    ]


def _least(nest: Op, load: Op, name: str) -> list[Op]:
    """[a buffer of magnitudes, the smallest below 1 that is not 0 of each feature, the loops that find them]."""
    inner, _, like = _around(nest, load)
    tile: TileType = load.result.type  # type: ignore[assignment]
    g, i, read = _read_again(nest, inner, load, tile.dtype)
    row = TileType.of("f32", (tile.shape[0], 1, tile.shape[2]))
    buffer = Op("tile.alloc", [], {}, [TensorType("f32", (like.shape[0], like.shape[2]))], result_names=[name])
    first = Op("tile.fill", [g], {"value": 1.0, "axes": "gd"}, [row], result_names=[f"{name}_0"])
    so_far = Value(row, f"{name}_1")
    v = param("v", "bhid")
    size = Program((v,), call("where", call("eq", v, const(0.0)), const(1.0), call("abs", v)))
    sizes = Op("tile.map", [read.result], {"programs": (size,)}, [TileType.of("f32", tile.shape)])
    least = Op("tile.reduce", [sizes.result, so_far], {"op": "min", "over": "i"}, [row])
    body = Block([i, so_far], [read, sizes, least, Op("tile.yield", [least.result])])
    tokens = Op("tile.for", [first.result], {**inner.attrs, "kind": "seq"}, [row], regions=[body], loc=load.loc)
    store = Op("tile.store", [tokens.result, buffer.result, g], {"axes": "gd", "add": False}, loc=load.loc)
    region = Block([g], [first, tokens, store, Op("tile.yield")])
    return [buffer, Op("tile.for", [], dict(nest.attrs), regions=[region], loc=load.loc)]


def _around(nest: Op, load: Op) -> tuple[Op, TensorType, TensorType]:
    """The loop over tokens in a nest; the types of the argument that it reads and of the buffer that it fills."""
    inner = next(x for x in nest.regions[0].ops if x.name == "tile.for")
    store = next(x for x in nest.regions[0].walk() if x.name == "tile.store")
    return inner, load.operands[0].type, store.operands[1].type  # type: ignore[return-value]


def _read_again(nest: Op, inner: Op, load: Op, dtype: str) -> tuple[Value, Value, Op]:
    """Positions of new loops, and ``load`` at them."""
    g, i = (Value(x.regions[0].args[0].type, axis) for x, axis in ((nest, "g"), (inner, "i")))
    tile: TileType = load.result.type  # type: ignore[assignment]
    arg = load.operands[0]
    read = Op("tile.load", [arg, g, i], dict(load.attrs), [TileType(dtype, tile.shape)], loc=load.loc)
    read.result.name = f"{arg.name}_t"
    return g, i, read


def _scaling(op: Op) -> float | None:
    """c of a map that multiplies its one tile by c."""
    if len(op.operands) != 1 or len(op.results) != 1:
        return None
    body = op.attrs["programs"][0].body
    p = op.attrs["programs"][0].params[0]
    if body is p:
        return 1.0
    if body.fn == "mul" and body.args[1] is p and body.args[0].is_const and mul(body.args[0], p) is body:
        return float(body.args[0].value)
    return None


def _blocks(func: Func) -> Iterator[Block]:
    yield func.body
    for op in func.body.walk():
        yield from op.regions
