"""Per-token programs as loops over tiles, for backends without operators on whole buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from aatc.ir.access import AXES, access, owned_by
from aatc.ir.core import Block, Func, Module, Op, Value, replace_uses
from aatc.ir.dims import Dim
from aatc.ir.errors import PassError
from aatc.ir.score.expr import ZERO, Expr, add, call, const, mul, param, params, postorder, rebuild, sub
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.widths import extents
from aatc.ir.tile_evaluate import token_numbers
from aatc.ir.types import INDEX, TensorType, TileType
from aatc.passes.base import Context, Pass, register
from aatc.passes.inline_tokens import inline, lengths_of_peaks, loads_in_tasks
from aatc.passes.lowering import Builder, product


class Left(Exception):
    """A program with a word that has no tile operations yet."""


@register
@dataclass(frozen=True)
class LowerTokens(Pass):
    """``tile.token``, ``tile.gradient`` → loops over blocks of tokens that load, compute and store tiles.

    rows: tokens of a block. inline: vectors of queries are computed in the loops over queries that read them, where
    that takes no longer. Programs of a matrix per token, tables and random words are left as they are.
    """

    rows: int = 64
    inline: bool = False
    name: ClassVar[str] = "lower-tokens"

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise PassError(f"lower-tokens: rows = {self.rows}", hint="a block has at least one token")

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            if func.level == "tile":
                self._lower(func, module, ctx)
        return module

    def _lower(self, func: Func, module: Module, ctx: Context) -> None:
        ops: list[Op] = []
        renamed: dict[Value, Value] = {}
        centres: Centres = {}
        if self.inline:
            lengths_of_peaks(func)
        for op in func.body.ops:
            op.operands = [renamed.get(v, v) for v in op.operands]
            if op.name in _LOWERED:
                known = dict(centres)
                try:
                    lowered = _LOWERED[op.name](op, self.rows, module, centres)
                    loads = loads_in_tasks(func, op) if self.inline and op.name == "tile.token" else None
                    if loads:
                        renamed |= lowered.inlined(func, loads)
                    else:
                        renamed[op.result] = lowered.run()
                except Left as e:
                    centres = known  # others were not made
                    ctx.notes.append(f"@{func.name}: %{op.result.name} is left as a program of whole buffers: {e}")
                else:
                    ops += lowered.b.blocks[0].ops
                    ctx.count("lowered")
                    continue
            ops.append(op)
        func.body.ops = ops
        replace_uses(func.body, renamed)


def _shape(v: Value) -> tuple[Dim, ...]:
    assert isinstance(v.type, (TensorType, TileType))
    return v.type.shape


#: Means of vectors over their tokens, by the vector and the buffers that it is computed from: one for all tokens.
Centres = dict[tuple[Expr, tuple[Value, ...]], Value]


class TokenLoops:
    """One `tile.token` being lowered. Be the tokens queries or keys, their loop walks axis i of the tiles."""

    def __init__(self, op: Op, rows: int, module: Module, centres: Centres):
        self.op, self.rows, self.module, self.centres = op, rows, module, centres
        self.sizes = tuple(Dim.of(d) for d in op.attrs["sizes"])
        self.numbers = token_numbers(op)
        self.b = Builder(op.loc, self.numbers)
        self.buffers = self._bound()
        self.at: dict[str, Value] = {}
        self.tiles: dict[str, Value] = {}
        self.done: dict[Expr, Expr] = {}
        tails = {p.name: tuple(map(int, _shape(v)[len(_shape(v)) - p.rank :])) for p, v in self.buffers.items()}
        body: Expr = op.attrs["program"].body
        self.widths = extents([body], {n: t for n, t in tails.items() if t})

    def _bound(self) -> dict[Expr, Value]:
        return dict(zip(self.op.attrs["program"].params, self.op.operands, strict=True))

    def _centres(self, body: Expr) -> None:
        for e in postorder(body):
            if e.fn == "centre" and e not in self.buffers:
                key = e, tuple(self.buffers[p] for p in params(e))
                if key not in self.centres:
                    self.centres[key] = self._centre(e.args[0])
                self.buffers[e] = self.centres[key]

    def run(self) -> Value:
        """The buffer that holds the result; its operations stand in ``b``."""
        op = self.op
        body: Expr = op.attrs["program"].body
        self._centres(body)
        return self._loops(body, op.attrs["axes"], op.result.type, op.result.name, op.attrs["flat"])  # type: ignore[arg-type]

    def inlined(self, func: Func, loads: list[tuple[Block, Op]]) -> dict[Value, Value]:
        """What stands for blocks of the result that are read; ``b`` holds what comes before all loops."""
        body: Expr = self.op.attrs["program"].body
        self._centres(body)
        return inline(func, loads, self)

    def block(self, load: Op) -> tuple[list[Op], Value]:
        """Operations that compute what a load of the result reads, and the tile."""
        before, self.b = self.b, Builder(self.op.loc, self.numbers)
        rows, self.rows = self.rows, int(_shape(load.result)[1])
        self.at = dict(zip("gi", load.operands[1:], strict=True))
        self.tiles, self.done = {}, {}
        body: Expr = self.op.attrs["program"].body
        value = self._filled(self.expr(body), body, self.op.result.type)  # type: ignore[arg-type]
        ops = self.b.blocks[0].ops
        self.b, self.rows = before, rows
        return ops, value

    def _centre(self, vector: Expr) -> Value:
        """The mean of a vector over the tokens it varies along."""
        axes = vector.attrs[1] if vector.fn == "param" else "bh" + ("i" if "i" in vector.axes else "j") + "d"
        buffer = self.buffers.get(vector)
        if buffer is None:
            tokens = self.sizes[2 if "i" in axes else 3]
            t = TensorType.of(self.numbers, [*self.sizes[:2], tokens, self.widths[vector][0]])
            buffer = self._loops(vector, axes, t, "centred", False)
        axes = self._word(axes, buffer)
        shape = [d for c, d in zip(axes, _shape(buffer), strict=True) if c not in "ij"]
        kind = TensorType.of(self.numbers, shape)
        return self.b.op("tile.centre", [buffer], [kind], names=["centre"], axes=axes)[0]

    def _word(self, axes: str, buffer: Value) -> str:
        """Axes of a buffer as an access spells them, b and h flat where the buffer has them so."""
        rank = len(_shape(buffer))
        return "g" + axes[2:] if axes.startswith("bh") and rank == len(axes) - 1 else axes

    # --- loops ---------------------------------------------------------------------------------------------
    def _loops(self, body: Expr, axes: str, t: TensorType, name: str, flat: bool) -> Value:
        """Stores ``body`` block by block in a new buffer of type ``t``, whose axes are ``axes``."""
        b = self.b
        out = b.op("tile.alloc", [], [t], names=[name])[0]
        store = ("g" + axes[2:] if flat and axes.startswith("bh") else axes).replace("j", "i")
        self.at, self.tiles, self.done = {}, {}, {}
        tokens = next((self.sizes["bhij".index(c)] for c in "ij" if c in axes), None)
        if "b" in axes:
            (self.at["g"],) = b.open([INDEX], ["g"])
        if tokens is not None:
            (self.at["i"],) = b.open([INDEX], ["i"])
        value = self._filled(self.expr(body), body, t)
        b.op("tile.store", [value, out, *self._walk(store)], axes=store, add=False, sizes=self._sizes(store))
        if tokens is not None:
            self._close("i", tokens, self.rows)
        if "b" in axes:
            self._close("g", product(self.sizes[0], self.sizes[1], self.module.dims), 1)
        return out

    def _close(self, axis: str, upper: Dim, step: int) -> None:
        region = self.b.close()
        bound = int(upper) if upper.is_static else upper
        self.b.op("tile.for", [], [], regions=[region], axis=axis, upper=bound, step=step, kind="par")

    def _walk(self, axes: str) -> list[Value]:
        return [self.at[c] for c in access(axes).walks]

    def _sizes(self, axes: str) -> tuple[Dim, ...] | None:
        return self.op.attrs["sizes"] if set(axes) & {"b", "h"} else None

    # --- tiles ---------------------------------------------------------------------------------------------
    def _atom(self, tile: Value, like: Expr, dtype: str = "f") -> Expr:
        """A parameter that stands for a tile in programs over tiles."""
        name = f"v{len(self.tiles)}"
        self.tiles[name] = tile
        return param(name, "bhid" if like.rank else "bhi", dtype)

    def _load(self, p: Expr, axes: str) -> Value:
        buffer = self.buffers[p]
        word = self._word(axes, buffer).replace("j", "i")
        if p.rank > 1 and "i" in word:
            raise Left(f"{p} is a matrix per token")
        if word not in AXES:
            raise Left(f"{p} is read by position")
        letters = access(word).tile
        shape = [1, self.rows if "i" in letters else 1, 1]
        for n, c in enumerate(letters):
            if c in "de":
                shape[n] = int(_shape(buffer)[word.index(c)])
        kind = {"f": self.numbers, "i": "i64", "b": "bool"}[p.dtype]
        name = p.name if p.fn == "param" else "centre"
        operands = [buffer, *self._walk(word)]
        return self.b.op(
            "tile.load", operands, [TileType.of(kind, shape)], names=[f"{name}_t"], axes=word, sizes=self._sizes(word)
        )[0]

    def _tile(self, e: Expr) -> Value:
        """The tile of an expression over atoms."""
        if e.fn == "param":
            return self.tiles[e.name]
        kind = self._kind(e)
        if not params(e):
            return self.b.op("tile.fill", [], [kind], names=["c"], value=float(e.value), axes="")[0]
        if kind.dtype == "bool":
            raise Left(f"{e} is a truth value")
        return self.b.map([("t", e, kind)], self.tiles)[0]

    def _kind(self, e: Expr) -> TileType:
        """The type of the tile of an expression over atoms."""
        shapes = [_shape(self.tiles[p.name]) for p in params(e)]
        shape = [max({int(s[n]) for s in shapes} - {1}, default=1) for n in range(3)]  # 0 where one has no entries
        return TileType.of({"f": self.numbers, "i": "i64", "b": "bool"}[e.dtype], shape)

    def _filled(self, value: Expr, e: Expr, t: TensorType) -> Value:
        """The tile of the result, of full extents even where it depends on fewer axes."""
        if e.dtype == "b" and value.fn != "param":
            raise Left("a truth value")
        width = self.widths[e][0] if e.rank else 1
        shape = (1, self.rows if "i" in self.at else 1, width)
        used = params(value)
        full = any(tuple(map(int, _shape(self.tiles[p.name]))) == shape for p in used)
        if not full and value.dtype == "f":
            axes = ("g" if "g" in self.at else "") + ("i" if "i" in self.at else "") + ("d" if width != 1 else "")
            zero = self.b.fill(0.0, axes, self.at, *shape, name="zero")
            value = add(value, call("mul", ZERO, self._atom(zero, e)))
        elif not full:
            raise Left(f"{e} is the same integer for all tokens")
        return self._tile(value)

    # --- words ---------------------------------------------------------------------------------------------
    def expr(self, root: Expr) -> Expr:
        """``root`` as an expression over atoms; what is not element by element becomes tiles of its own."""
        stack = [root]
        while stack:  # what is in a buffer is read there: its arguments are none of these tokens' business
            e = stack[-1]
            missing = [] if e in self.buffers or e.fn == "width" else [a for a in e.args if a not in self.done]
            if missing:
                stack += missing
                continue
            if e not in self.done:
                self.done[e] = self._word_of(e)
            stack.pop()
        return self.done[root]

    def _word_of(self, e: Expr) -> Expr:
        if e.is_const:
            return e
        if e in self.buffers:
            return self._stored(e)
        if e.fn == "index":
            return self._position(e)
        if e.fn == "width":
            return const(float(self.widths[e.args[0]][0]))
        if FUNCTIONS[e.fn].kind == "pointwise" and e.fn != "pair_uniform":
            return rebuild(e, tuple(self.done[a] for a in e.args))
        special = _WORDS.get(e.fn)
        if special is None:
            raise Left(f"the word {e.fn}")
        return special(self, e, [self.done[a] for a in e.args])

    def _stored(self, e: Expr) -> Expr:
        if e.fn == "param":
            axes = e.attrs[1]
        else:  # the centre of a vector: its axes without the token's
            inner = e.args[0]
            axes = inner.attrs[1] if inner.fn == "param" else "bhid"
            axes = axes.replace("i", "").replace("j", "")
        return self._atom(self._load(e, axes), e, e.dtype)

    def _position(self, e: Expr) -> Expr:
        axis = e.name if e.name in "bh" else "i"
        shape = (1, self.rows if axis == "i" else 1, 1)
        tile = self.b.op(
            "tile.position", [self.at["i" if axis == "i" else "g"]], [TileType.of("i64", shape)], names=[e.name],
            axes=axis, sizes=self.op.attrs["sizes"] if axis in "bh" else None,
        )[0]  # fmt: skip
        return self._atom(tile, e, "i")

    def _slice(self, tile: Value, start: int, size: int, stride: int = 1) -> Value:
        t: TileType = tile.type  # type: ignore[assignment]
        kind = TileType.of(t.dtype, (*t.shape[:2], size))
        return self.b.op("tile.slice", [tile], [kind], names=["part"], over="j", start=start, stride=stride)[0]

    def _insert(self, part: Value, whole: Value, start: int, stride: int = 1) -> Value:
        made = self.b.op(
            "tile.insert", [part, whole], [whole.type], names=["whole"], over="j", start=start, stride=stride
        )
        return made[0]

    def _full(self, e: Expr, rows: int) -> Value:
        """The tile of ``e`` with ``rows`` rows."""
        tile = self._tile(e)
        t: TileType = tile.type  # type: ignore[assignment]
        if int(t.shape[1]) == rows:
            return tile
        zero = self.b.fill(0.0, "gi" if "g" in self.at else "i", self.at, 1, rows, 1, name="zero")
        spread = add(self._atom(tile, e), call("mul", ZERO, self._atom(zero, ZERO)))
        return self._tile(spread)

    def _widened(self, tile: Value, width: int) -> Value:
        """A tile of zeros with the rows of ``tile``."""
        t: TileType = tile.type  # type: ignore[assignment]
        rows = int(t.shape[1])
        axes = ("g" if "g" in self.at else "") + ("id" if rows > 1 or "i" in self.at else "d")
        return self.b.fill(0.0, axes, self.at, 1, rows, width, name="wide")

    # --- words that are more than element by element --------------------------------------------------------
    def reduce(self, how: str, e: Expr, args: list[Expr]) -> Expr:
        return self._atom(self.b.reduce(how, "j", self._tile(args[0]), name=e.fn), e)

    def dot(self, e: Expr, args: list[Expr]) -> Expr:
        return self._atom(self.b.reduce("sum", "j", self._tile(mul(*args)), name="dot"), e)

    def item(self, e: Expr, args: list[Expr]) -> Expr:
        channel = e.attrs[0] % self.widths[e.args[0]][0]
        return self._atom(self._slice(self._tile(args[0]), channel, 1), e)

    def eta(self, e: Expr, args: list[Expr]) -> Expr:
        tile = self._tile(args[0])
        head = self._tile(call("neg", self._atom(self._slice(tile, 0, 1), ZERO)))
        return self._atom(self._insert(head, tile, 0), e)

    def append(self, e: Expr, args: list[Expr]) -> Expr:
        tile = self._tile(args[0])
        width, rows = self.widths[e.args[0]][0], int(_shape(tile)[1])
        last = self._full(args[1], rows)
        return self._atom(self._insert(last, self._insert(tile, self._widened(tile, width + 1), 0), width), e)

    def init(self, e: Expr, args: list[Expr]) -> Expr:
        return self._atom(self._slice(self._tile(args[0]), 0, self.widths[e][0]), e)

    def embed(self, e: Expr, args: list[Expr]) -> Expr:
        rows = self.rows if "i" in self.at else 1
        part = self._full(args[0], rows)
        width = self.widths[e][0]
        return self._atom(self._insert(part, self._widened(part, width), e.attrs[0] % width), e)

    def rotate(self, e: Expr, args: list[Expr]) -> Expr:
        tile, angle = self._tile(args[0]), self._atom(self._tile(args[1]), e)
        half, stride = self.widths[e][0] // 2, 1 if e.attrs[0] == "half" else 2
        starts = (0, half) if stride == 1 else (0, 1)
        x, y = (self._atom(self._slice(tile, s, half, stride), e) for s in starts)
        cosine, sine = call("cos", angle), call("sin", angle)
        turned = sub(mul(x, cosine), mul(y, sine)), add(mul(x, sine), mul(y, cosine))
        first, second = self.b.map([("t", t, self._kind(t)) for t in turned], self.tiles)  # one cosine, one sine
        whole = self._widened(first, 2 * half)
        return self._atom(self._insert(second, self._insert(first, whole, starts[0], stride), starts[1], stride), e)

    def rotate_angle(self, e: Expr, args: list[Expr]) -> Expr:
        half = self.widths[e][0]
        stride, starts = (1, (0, half)) if e.attrs[0] == "half" else (2, (0, 1))
        (xa, xb), (ya, yb) = (
            [self._atom(self._slice(self._tile(a), s, half, stride), e) for s in starts] for a in args
        )
        return self._atom(self._tile(call("sub", call("mul", xb, ya), call("mul", xa, yb))), e)

    def matvec(self, form: str, e: Expr, args: list[Expr]) -> Expr:
        matrix = e.args[0]
        if matrix.fn != "param":
            raise Left("a matrix that is computed")
        return self._atom(self.b.dot(form, self._tile(args[1]), self._tile(args[0]), name=e.fn), e)


class _Gradient(TokenLoops):
    """One `tile.gradient` being lowered: what tokens send to an operand is added up in a buffer of its shape."""

    def _bound(self) -> dict[Expr, Value]:
        names = self.op.attrs["program"].params
        return dict(zip(names, self.op.operands[1 : len(names) + 1], strict=True))

    def run(self) -> Value:
        op, b = self.op, self.b
        body: Expr = op.attrs["program"].body
        self._centres(body)
        axes, t = op.attrs["axes"].replace("j", "i"), op.result.type
        assert isinstance(t, TensorType)
        if axes not in AXES:
            raise Left("a matrix per token")
        tokens = next((self.sizes["bhij".index(c)] for c in "ij" if c in body.axes or c in op.attrs["axes"]), None)
        walked = [*"g", *(["i"] if tokens is not None else [])]
        shared = None if all(owned_by(axes, t.shape, self.sizes, loop) for loop in walked) else "ordered"
        # parts are added up as they were computed, and rounded once
        added = shared is not None or op.attrs["add"]
        kept = TensorType.of(self.numbers, t.shape) if added and t.dtype != self.numbers else t
        fill = None if op.attrs["add"] else 0.0
        out = b.op("tile.alloc", [], [kept], names=[op.result.name], fill=fill)[0]
        if op.attrs["add"]:
            self._copied(op.operands[-1], out, axes)
        self.at, self.tiles, self.done = {}, {}, {}
        (self.at["g"],) = b.open([INDEX], ["g"])
        if tokens is not None:
            (self.at["i"],) = b.open([INDEX], ["i"])
        value = self._summed(body, "i" in axes)
        where = self._walk(axes)
        b.op("tile.store", [value, out, *where], axes=axes, add=True, sizes=self._sizes(axes), shared=shared)
        if tokens is not None:
            self._close("i", tokens, self.rows)
        self._close("g", product(self.sizes[0], self.sizes[1], self.module.dims), 1)
        if kept is t:
            return out
        rounded = b.op("tile.alloc", [], [t], names=[op.result.name])[0]
        self._copied(out, rounded, axes)
        return rounded

    def _summed(self, body: Expr, per_token: bool) -> Value:
        """The tile of a cotangent, summed over its tokens unless the operand has them."""
        if body.rank == 2:
            if per_token:
                raise Left("a matrix per token")
            total: Value | None = None
            for left, right in self._factors(body):
                factors = [self.expr(left), self.expr(right)]
                rows = max(int(_shape(self._tile(x))[1]) for x in factors)  # one may be the same for all tokens
                first, second = (self._full(x, rows) for x in factors)
                total = self.b.dot("tn", first, second, total, name="outer")
            assert total is not None
            return total
        if per_token:
            return self._filled(self.expr(body), body, self.op.result.type)  # type: ignore[arg-type]
        tile = self._tile(self.expr(body))
        return tile if int(_shape(tile)[1]) == 1 else self.b.reduce("sum", "i", tile, name="total")

    def _factors(self, body: Expr) -> list[tuple[Expr, Expr]]:
        """The pairs of vectors whose outer products a matrix is the sum of."""
        if body.fn == "outer":
            return [(body.args[0], body.args[1])]
        if body.fn == "neg":
            return [(self._noted(call("neg", x), x), y) for x, y in self._factors(body.args[0])]
        if body.fn in ("add", "sub"):
            first, second = map(self._factors, body.args)
            return first + (second if body.fn == "add" else [(self._noted(call("neg", x), x), y) for x, y in second])
        if body.fn == "mul":
            for number, matrix in (body.args, body.args[::-1]):
                if number.rank == 0:
                    return [(self._noted(call("mul", number, x), x), y) for x, y in self._factors(matrix)]
        raise Left(f"{body.fn} of matrices")

    def _noted(self, e: Expr, like: Expr) -> Expr:
        self.widths[e] = self.widths[like]
        return e

    def _copied(self, part: Value, out: Value, axes: str) -> None:
        """Copies a buffer of the operand's shape."""
        b, shape = self.b, dict(zip(axes, _shape(part), strict=True))
        one = Dim(1)
        own = (shape.get("b", one), shape.get("h", one))
        sizes = (*own, *self.sizes[2:])
        at: dict[str, Value] = {}
        if set(axes) & {"b", "h"}:
            (at["g"],) = b.open([INDEX], ["g"])
        if "i" in axes:
            (at["i"],) = b.open([INDEX], ["i"])
        where = [at[c] for c in access(axes).walks]
        rows = [self.rows if c == "i" else int(shape[c]) if c in shape and c in "de" else 1 for c in access(axes).tile]
        named = sizes if "g" in at else None
        kind = [TileType.of(self.numbers, rows)]
        tile = b.op("tile.load", [part, *where], kind, names=["part"], axes=axes, sizes=named)[0]
        b.op("tile.store", [tile, out, *where], axes=axes, add=False, sizes=named)
        if "i" in at:
            self._close("i", shape["i"], self.rows)
        if "g" in at:
            self._close("g", product(*own, self.module.dims), 1)


_LOWERED = {"tile.token": TokenLoops, "tile.gradient": _Gradient}
_WORDS: dict[str, Callable[[Any, Expr, list[Expr]], Expr]] = {
    "sum": lambda t, e, args: t.reduce("sum", e, args),
    "amax": lambda t, e, args: t.reduce("max", e, args),
    "amin": lambda t, e, args: t.reduce("min", e, args),
    "dot": TokenLoops.dot,
    "item": TokenLoops.item,
    "eta": TokenLoops.eta,
    "append": TokenLoops.append,
    "init": TokenLoops.init,
    "embed": TokenLoops.embed,
    "rotate": TokenLoops.rotate,
    "rotate_angle": TokenLoops.rotate_angle,
    "matvec": lambda t, e, args: t.matvec("nt", e, args),
    "turn": lambda t, e, args: t.matvec("nt", e, args),
    "tmatvec": lambda t, e, args: t.matvec("nn", e, args),
    "unturn": lambda t, e, args: t.matvec("nn", e, args),
}
