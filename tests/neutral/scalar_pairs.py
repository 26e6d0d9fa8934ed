"""Operations on single pairs of a tile as loops over numbers: a condition per pair, and loops over its channels."""

from __future__ import annotations

from aatc.ir.core import Op, Value
from aatc.ir.score.expr import postorder


class Pairs:
    """The part of `scalar_code.Scalar` that takes pairs one by one."""

    def tile_refine(self, op: Op) -> None:
        tile, low, high, *tiles = op.operands
        self.declare(op.result, self.extent[tile])
        self.copy(op.result, tile)
        x = self.each(self.extent[tile])
        self.open(f"if ({self.lost(op, op.result, low, high, x)})")
        done = self.pair_numbers([op.attrs["program"]], tiles, x)
        self.line(f"{self.item(op.result, x)} = {done[op.attrs['program'].body]};")
        self.close()
        self.done()

    def tile_refine_gradient(self, op: Op) -> None:
        cotangent, tile, low, high, *tiles = op.operands
        rest, *grads = op.results
        self.declare(rest, self.extent[cotangent])
        self.copy(rest, cotangent)
        for d, t in zip(grads, tiles, strict=True):
            self.declare(d, (self.extent[tile][0], *self.extent[t][1:]))
            x = self.each(self.extent[d])
            self.line(f"{self.item(d, x)} = 0;")
            self.done()
        x = self.each(self.extent[tile])
        self.open(f"if ({self.lost(op, tile, low, high, x)} && {self.item(rest, x)} != 0)")
        programs = op.attrs["programs"]
        done = self.pair_numbers(programs, [cotangent, *tiles], x)
        bound = dict(zip(programs[0].params, [cotangent, *tiles], strict=True))
        for program, d, p in zip(programs, grads, programs[0].params[1:], strict=True):
            c = self.loop(str(int(d.type.shape[2]))) if p.rank else ""
            value = self.channel(program.body, bound, x, c, done)
            self.line(f"{self.item(d, self.of_pair(p, x, c))} += {value};")
            if c:
                self.close()
        self.line(f"{self.item(rest, x)} = 0;")
        self.close()
        self.done()

    def lost(self, op: Op, v: Value, low: Value, high: Value, x) -> str:
        value = self.item(v, x)
        between = f"({value} >= {self.item(low, x)} && {value} <= {self.item(high, x)})"
        return between if op.attrs.get("inside") else f"!{between}"

    def of_pair(self, p, x, c: str) -> tuple[str, str, str]:
        """The index of what a pair ``x`` has in the tile of a parameter, at channel ``c`` of a vector."""
        g, i, j = x
        return (g, i if "i" in p.attrs[1] else j, c) if p.rank else (g, i, j)

    def pair_numbers(self, programs, tiles: list[Value], x) -> dict:
        """Names of the numbers, not vectors, in programs of one pair."""
        bound = dict(zip(programs[0].params, tiles, strict=True))
        done: dict = {}
        kind = tiles[0].type.dtype
        for e in postorder(*(p.body for p in programs)):
            if e.rank:
                continue
            if e.fn not in ("dot", "sum"):
                done[e] = self.channel(e, bound, x, "", done)
                continue
            done[e] = self.fresh("sum")
            self.line(f"{self.types[kind]} {done[e]} = 0;")
            width = next(bound[p].type.shape[2] for p in postorder(e) if p in bound and p.rank)
            c = self.loop(str(int(width)))
            factors = [self.channel(a, bound, x, c, done) for a in e.args]
            self.line(f"{done[e]} += {' * '.join(factors)};")
            self.close()
        return done

    def channel(self, e, bound: dict, x, c: str, done: dict) -> str:
        """An expression of a pair at channel ``c``."""
        if e in done:
            return done[e]
        if e in bound:
            return self.item(bound[e], self.of_pair(e, x, c))
        if e.is_const:
            return self.number(e.value, e.dtype, next(iter(bound.values())).type.dtype)
        return self.words[e.fn].format(*(self.channel(a, bound, x, c, done) for a in e.args))
