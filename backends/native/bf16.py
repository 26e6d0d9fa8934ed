"""Products of bfloat16 two at a time, summed in single precision: AVX-512's ``vdpbf16ps``.

An instruction adds, in each of 16 lanes, the products of two neighbouring numbers. So the contracted axis goes by in
steps of two: two features of a token, for nt, or one feature of two tokens, for nn, stand next to each other in the
second factor's panels, ``panels(n, 2)`` or ``panels(2)``. The first factor has its numbers in rows; two of them are
read as one word for all lanes. Where the contracted axis is odd, panels hold a 0 behind its end, and the first factor's
last number is read alone: what stands behind it may be no number.

Processors without the instruction multiply number by number; passes make no such tiles for them.
"""

from __future__ import annotations

from collections.abc import Sequence

from aatc.backends.native.emit import Emitter, resized
from aatc.backends.native.llvm import Val, index, number, vector_of
from aatc.backends.native.tiles import MOST_ROWS, Tile
from aatc.ir.core import Op
from aatc.ir.errors import BackendError
from aatc.ir.types import TensorType

#: Steps of the contracted axis that stand in the body of the loop.
_UNROLL = 4
_LANES = 16
_PAIR = f"<{2 * _LANES} x bfloat>"


def short_products(e: Emitter, op: Op, a: Tile, b: Tile, out: Tile, depth: Val) -> None:
    """``out``, which holds the addend if there is one, plus the contraction of ``a`` and ``b`` times its factor."""
    form, add, factor = op.attrs["form"], len(op.operands) > 2, op.attrs.get("factor", 1.0)
    packed = (form == "nt" and b.panel and b.together == 2) or (form == "nn" and b.panel == 2)
    if not packed or not e.isa.bf16 or out.shape[1] == 1 or out.line:
        _by_numbers(e, form, a, b, out, depth, factor, add)
        return
    _Blocks(e, form, a, b, out, depth, factor, add).write()


def place_in_panels(e: Emitter, token: Val, feature: Val, panel: int, together: int, width: int) -> Val:
    """Where a feature of a token stands behind the beginning of the panels."""
    code = e.code
    held = -(-width // together) * together

    def parts(x: Val, n: int) -> tuple[Val, Val]:
        if n == 1:
            return x, index(0)
        return code.op("i64", f"udiv i64 {x.text}, {n}"), code.op("i64", f"urem i64 {x.text}, {n}")

    (p, t), (f, one) = parts(token, panel), parts(feature, together)
    offset = code.add(code.mul(p, index(panel * held)), code.mul(f, index(panel * together)))
    return code.add(code.add(offset, code.mul(t, index(together))), one)


def _by_numbers(e: Emitter, form: str, a: Tile, b: Tile, out: Tile, depth: Val, factor: float, add: bool) -> None:
    code, zero = e.code, number(0, "float")

    def widened(at: Val) -> Val:
        return resized(code, code.load("bfloat", at), "float")

    def at_b(k: Val, j: Val) -> Val:
        token, feature = (j, k) if form == "nt" else (k, j)
        if not b.panel:
            return e.address(b, token, feature)
        return code.at(b.base, place_in_panels(e, token, feature, b.panel, b.together, b.shape[1]), b.memory)

    def one(i: Val, j: Val) -> None:
        def step(k: Val, t: Val) -> list[Val]:
            x = widened(e.address(a, k, i) if form == "tn" else e.address(a, i, k))
            return [code.fma(x, widened(at_b(k, j)), t)]

        (total,) = code.loop(index(0), depth, 1, step, [zero])
        at = e.address(out, i, j)
        code.store(_ended(e, total, factor, code.load(out.memory, at) if add else None), at)

    e.each_row(out.rows, lambda i: e.each_row(out.cols, lambda j: one(i, j)))


def _ended(e: Emitter, total: Val, factor: float, addend: Val | None) -> Val:
    """A contraction times its factor, added to what there is."""
    code = e.code
    if addend is None:
        return total if factor == 1.0 else code.mul(total, number(factor, total.type))
    return code.add(total, addend) if factor == 1.0 else code.fma(total, number(factor, total.type), addend)


class _Blocks:
    """One product in register blocks of ``high`` rows and some vectors, as those of other numbers (`products`)."""

    def __init__(
        self, e: Emitter, form: str, a: Tile, b: Tile, out: Tile, depth: Val, factor: float, add: bool
    ) -> None:
        self.e, self.form, self.a, self.b, self.out, self.depth, self.factor, self.add = (
            e, form, a, b, out, depth, factor, add,
        )  # fmt: skip
        self.high = max(1, min(e.blocks[0], MOST_ROWS, out.shape[0]))
        self.ragged = 0  # columns that the last vector may read, where it may not read all

    def write(self) -> None:
        e, code, out, b = self.e, self.e.code, self.out, self.b
        if self.form == "nt":
            vectors, held = b.panel // _LANES, -(-b.shape[1] // b.together) * b.together
            if b.panel % _LANES or -(-out.shape[1] // _LANES) * _LANES % b.panel:
                raise BackendError(f"panels of {b.panel} do not fit {out.shape[1]} columns in vectors of {_LANES}")
            step = index(2 * b.panel)
            code.loop(
                index(0),
                out.cols,
                b.panel,
                lambda j: self._columns(code.at(b.base, code.mul(j, index(held)), "bfloat"), j, step, vectors),
            )
            return
        width, step = out.shape[1], index(2 * b.shape[1])
        wide = min(e.blocks[1], -(-width // _LANES)) * _LANES
        whole = width // wide * wide

        def columns(j: Val, vectors: int) -> None:
            self._columns(code.at(b.base, code.mul(j, index(2)), "bfloat"), j, step, vectors)

        if whole:
            code.loop(index(0), index(whole), wide, lambda j: columns(j, wide // _LANES))
        if width - whole:
            self.ragged = (width - whole) % _LANES
            columns(index(whole), -(-(width - whole) // _LANES))

    def _columns(self, base: Val, j: Val, step: Val, vectors: int) -> None:
        self.e.code.loop(index(0), self.out.rows, self.high, lambda i: self._block(base, i, j, step, vectors))

    def _block(self, base: Val, i: Val, j: Val, step: Val, vectors: int) -> None:
        e, code, a, out = self.e, self.e.code, self.a, self.out
        last = code.sub(a.rows, index(1))
        heads: list[Val] = []
        for m in range(self.high):
            k = code.add(i, index(m))
            if m and not a.local:
                k = code.call("llvm.smin", "i64", [k, last])
            heads.append(code.at(a.base, code.mul(k, a.row), "bfloat"))
        keep = self._keep()

        def part(k: Val, sums: Sequence[Val], alone: bool) -> list[Val]:
            """Two numbers of the contracted axis from k on, or the last one."""
            half = code.op("i64", f"lshr i64 {k.text}, 1") if k.text.startswith("%") else index(int(k.text) // 2)
            source = code.at(base, code.mul(half, step), "bfloat")
            words = vector_of("i32", _LANES)
            found = [
                code.cast(
                    "bitcast",
                    code.load(
                        words,
                        code.at(source, index(2 * n * _LANES), "bfloat"),
                        align=2,
                        keep=keep if n == vectors - 1 else None,
                    ),
                    _PAIR,
                )
                for n in range(vectors)
            ]
            done = list(sums)
            for m, head in enumerate(heads):
                at = code.at(head, k, "bfloat")
                if alone:
                    x = code.cast("zext", code.load("i16", at, align=2), "i32")
                else:
                    x = code.load("i32", at, align=2)
                both = code.cast("bitcast", code.splat(x, _LANES), _PAIR)
                for n in range(vectors):
                    done[m * vectors + n] = _added(e, done[m * vectors + n], both, found[n])
            return done

        v = vector_of("float", _LANES)
        outs = [
            [e.address(out, code.add(i, index(m)), code.add(j, index(n * _LANES))) for n in range(vectors)]
            for m in range(self.high)
        ]
        if out.shape[0] == 1:
            outs = outs[:1]
        plain = self.add and self.factor == 1.0
        first = [code.load(v, outs[m][n]) if plain else number(0, v) for m in range(len(outs)) for n in range(vectors)]
        sums = self._contracted(part, first)
        for m in range(len(outs)):
            for n in range(vectors):
                x = sums[m * vectors + n]
                if not plain:
                    x = _ended(e, x, self.factor, code.load(v, outs[m][n]) if self.add else None)
                code.store(x, outs[m][n])

    def _keep(self) -> Val | None:
        if not self.ragged:
            return None
        flags = ", ".join(f"i1 {'true' if x < self.ragged else 'false'}" for x in range(_LANES))
        return Val(f"<{flags}>", vector_of("i1", _LANES))

    def _contracted(self, part, first: list[Val]) -> list[Val]:  # type: ignore[no-untyped-def]
        """The loop over the contracted axis, some steps of two at once."""
        code, depth = self.e.code, self.depth
        literal = not depth.text.startswith("%")

        def rounded(by: int) -> Val:
            return index(int(depth.text) // by * by) if literal else code.op("i64", f"and i64 {depth.text}, {-by}")

        def several(k: Val, *sums: Val) -> list[Val]:
            found = list(sums)
            for n in range(_UNROLL):
                found = part(code.add(k, index(2 * n)), found, False)
            return found

        most, even = rounded(2 * _UNROLL), rounded(2)
        sums = code.loop(index(0), most, 2 * _UNROLL, several, first)
        if not literal or most.text != even.text:
            sums = code.loop(most, even, 2, lambda k, *s: part(k, s, False), sums)
        if literal and int(depth.text) % 2 == 0:
            return sums
        return code.loop(even, depth, 2, lambda k, *s: part(k, s, True), sums)


def _added(e: Emitter, total: Val, a: Val, b: Val) -> Val:
    """total + a[2l] * b[2l] + a[2l + 1] * b[2l + 1] in every lane l."""
    return e.code.external(f"llvm.x86.avx512bf16.dpbf16ps.{32 * _LANES}", total.type, [total, a, b])


# --- panels ------------------------------------------------------------------------------------------------------
def pack_shorts(
    e: Emitter,
    source: Val,
    strides: tuple[Val, Val],
    to: Val,
    tokens: tuple[Val, Val],
    last: Val,
    width: int,
    t: TensorType,
) -> None:
    """Panels, as the type ``t`` says, of ``tokens``, from the first to behind the last, of vectors at ``source``;
    behind the ``last`` token, and feature, are zeros."""
    code = e.code
    unit = strides[1].text == "1"
    if unit and e.lanes == _LANES and t.together == 2 and t.panel % _LANES == 0:
        code.loop(tokens[0], tokens[1], t.panel, lambda j: _turned(e, source, strides[0], to, j, last, width, t.panel))
        return
    if unit and e.lanes == _LANES and t.together == 1 and t.panel == 2:
        code.loop(tokens[0], tokens[1], 2, lambda j: _interleaved(e, source, strides[0], to, j, last, width))
        return
    held = -(-width // t.together) * t.together

    def one(token: Val, feature: Val) -> None:
        inside = code.compare("slt", token, last)
        if held != width:
            there = code.compare("slt", feature, index(width))
            inside = code.op("i1", f"and i1 {inside.text}, {there.text}")
        at = code.add(code.mul(token, strides[0]), code.mul(feature, strides[1]))
        x = code.load("i16", code.at(source, code.select(inside, at, index(0)), "i16"))
        place = place_in_panels(e, token, feature, t.panel, t.together, width)
        code.store(code.select(inside, x, number(0, "i16")), code.at(to, place, "i16"))

    end = code.op("i64", f"udiv i64 {code.add(tokens[1], index(t.panel - 1)).text}, {t.panel}")
    end = code.mul(end, index(t.panel))
    code.loop(tokens[0], end, 1, lambda token: e.each_row(index(held), lambda d: one(token, d)))


def _row(e: Emitter, source: Val, row: Val, token: Val, last: Val, start: int, width: int, most: int) -> Val:
    """Up to ``most`` features of a token from ``start`` on, zeros behind its last one and of tokens that are not
    there."""
    code, v = e.code, vector_of("i16", most)
    here = min(most, width - start)
    keep = None
    if here < most:
        flags = ", ".join(f"i1 {'true' if x < here else 'false'}" for x in range(most))
        keep = Val(f"<{flags}>", vector_of("i1", most))
    inside = code.compare("slt", token, last)
    at = code.add(code.mul(code.select(inside, token, index(0)), row), index(start))
    x = code.load(v, code.at(source, at, "i16"), keep=keep)
    return code.select(inside, x, number(0, v))


def _turned(e: Emitter, source: Val, row: Val, to: Val, j: Val, last: Val, width: int, panel: int) -> None:
    """The panel that begins at token j, two features together: squares of words are turned in registers."""
    code = e.code
    held = -(-width // 2) * 2
    words = vector_of("i32", _LANES)

    def square(n: Val, d: int) -> None:
        rows = [
            code.cast(
                "bitcast",
                _row(e, source, row, code.add(code.add(j, n), index(m)), last, d, width, 2 * _LANES),
                words,
            )
            for m in range(_LANES)
        ]
        for m, x in enumerate(code.transposed(rows)[: min(_LANES, (held - d) // 2)]):
            place = code.add(code.add(code.mul(j, index(held)), index((d + 2 * m) * panel)), code.mul(n, index(2)))
            code.store(x, code.at(to, place, "i16"), align=2)

    for d in range(0, held, 2 * _LANES):
        code.loop(index(0), index(panel), _LANES, lambda n, d=d: square(n, d))


def _interleaved(e: Emitter, source: Val, row: Val, to: Val, j: Val, last: Val, width: int) -> None:
    """Tokens j and j + 1, feature by feature."""
    code = e.code
    both = vector_of("i16", 2 * _LANES)
    order = ", ".join(f"i32 {k // 2 + k % 2 * _LANES}" for k in range(2 * _LANES))
    for d in range(0, width, _LANES):
        x, y = (_row(e, source, row, code.add(j, index(m)), last, d, width, _LANES) for m in range(2))
        z = code.op(both, f"shufflevector {x.type} {x.text}, {y.type} {y.text}, <{2 * _LANES} x i32> <{order}>")
        here = min(_LANES, width - d)
        keep = None
        if here < _LANES:
            flags = ", ".join(f"i1 {'true' if k < 2 * here else 'false'}" for k in range(2 * _LANES))
            keep = Val(f"<{flags}>", vector_of("i1", 2 * _LANES))
        code.store(z, code.at(to, code.add(code.mul(j, index(width)), index(2 * d)), "i16"), keep=keep)
