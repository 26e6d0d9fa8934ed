"""Chooses how each attention runs and writes it as tile functions, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aatc.ir.core import Func, Module, Op
from aatc.ir.dims import Dim
from aatc.ir.errors import UnsupportedError
from aatc.ir.registry import Symbol
from aatc.ir.score.expr import ONE, ZERO, Expr, call, param, postorder
from aatc.ir.score.program import Program
from aatc.ir.specialize import hoist_loads, prune
from aatc.ir.target import Target
from aatc.ir.tilemap import TileMap
from aatc.ir.types import TensorType, itemsize
from aatc.passes.base import Context, Pass, register
from aatc.passes.factor import ChannelSum, Contraction, Factored, Lookup, Stored
from aatc.passes.lowering import Attention, Builder, Schedule, new_func
from aatc.passes.score_rules import Normaliser
from aatc.passes.simplify_score import is_causal
from aatc.passes.tile_backward import lower_backward
from aatc.passes.tile_core import Frame, classify
from aatc.passes.tile_forward import Forms, arguments, finish_output, lower_forward


@register
@dataclass(frozen=True)
class AdaptiveTile(Pass):
    """``geo.attend`` → ``geo.kernel`` with a forward and a backward tile function.

    rows, cols, heads, grain: tile extents; 0 leaves the choice to the cost model.
    """

    rows: int = 0
    cols: int = 0
    heads: int = 0
    grain: int = 0
    library: bool = True
    name: ClassVar[str] = "adaptive-tile"
    requires: ClassVar[tuple[str, ...]] = ("fused",)

    def run(self, module: Module, ctx: Context) -> Module:
        taken = set(module.funcs)
        for func in list(module.funcs.values()):
            for n, op in enumerate(func.body.ops):
                if op.name != "geo.attend":
                    continue
                stem = _fresh("attend", taken)
                try:
                    kernel = self._lower(module, op, stem, ctx)
                except UnsupportedError as e:
                    ctx.notes.append(f"{op.loc or 'attention'}: runs by its reference formula: {e.message}")
                    taken.discard(stem)
                    continue
                func.body.ops[n] = kernel
                for user in func.body.walk():
                    user.operands = [
                        kernel.results[op.results.index(v)] if v in op.results else v for v in user.operands
                    ]
                ctx.count("tiled")
        return module

    def _lower(self, module: Module, op: Op, stem: str, ctx: Context) -> Op:
        a = Attention(op, module.dims)
        forms = Forms(a)
        schedule = self._schedule(a, ctx.target)
        plain = self._library_form(a, ctx.target)
        forward = lower_library(a, forms, plain, schedule, stem) if plain else lower_forward(a, forms, schedule, stem)
        backward, grads = lower_backward(a, Forms(a), schedule, f"{stem}_backward")
        forward.attrs |= {
            "kind": kind_of(a),
            "lowering": lowering_class(a, forms),
            "engine": "library" if plain else "stream",
        }
        for f in (forward, backward):
            prune(f)
            ctx.count("hoisted-load", hoist_loads(f))
            module.add(f)
        attrs = {"forward": Symbol(stem), "backward": Symbol(backward.name), "names": a.names, "grads": tuple(grads)}
        if a.programs.mask is not None:
            attrs["mask"] = a.programs.mask
        return Op(
            "geo.kernel",
            op.operands,
            attrs,
            [r.type for r in op.results],
            loc=op.loc,
            result_names=[r.name for r in op.results],
        )

    def _schedule(self, a: Attention, target: Target) -> Schedule:
        chosen = cost_model(
            a, target, library="sdpa" in target.library and self.library and library_form(a) is not None
        )
        return Schedule(
            self.heads or chosen.heads, self.rows or chosen.rows, self.cols or chosen.cols, self.grain or chosen.grain
        )

    def _library_form(self, a: Attention, target: Target) -> Library | None:
        return library_form(a) if self.library and "sdpa" in target.library else None


def _fresh(stem: str, taken: set[str]) -> str:
    n = 0
    while f"{stem}{n}" in taken:
        n += 1
    taken.add(f"{stem}{n}")
    return f"{stem}{n}"


# --- how large ---------------------------------------------------------------------------------------------
def cost_model(a: Attention, target: Target, *, library: bool = False) -> Schedule:
    """Tile extents from cache, shapes and mask.

    All cores work on one score tile, which fills half of their caches together (what flows in and out takes the
    rest): large tiles, since every operation on one is a fork and a join. It is wide, since each row costs an
    update of its sums per tile. Small problems are taken several heads at a time. Masks are classified in
    narrow columns.
    """
    budget = max(4096, target.cores * target.cache_bytes // 2 // itemsize(a.dtype))
    n, m, g = (_extent(d, default) for d, default in ((a.rows, 1 << 20), (a.cols, 1 << 20), (a.problems, 1)))
    cols = min(m, 512)
    rows = min(n, max(32, budget // max(cols, 1)))
    heads = max(1, min(g, budget // max(1, rows * cols))) if rows >= n and cols >= m else 1
    if a.programs.mask is not None:
        rows = masked_rows(a.programs.mask, n, m, rows, library)
    return Schedule(heads, max(rows, 1), max(cols, 1), min(64, max(cols, 1)))


def masked_rows(mask: Program, n: int, m: int, most: int, library: bool) -> int:
    """Rows of a tile under a mask: short ones follow its edge closely, tall ones cost less per score.

    The cost counts visited scores, partial ones heavier, plus what every call costs. A mask that reads
    captured tensors shows its shape at run time only; then tiles are of middling height.
    """
    if is_causal(mask.body) and library:
        return most  # the library skips within its own tiles
    if mask.params or n > 1 << 16 or m > 1 << 16:
        return min(most, 256)
    start = 56_000  # what a call costs, in scores of one head: measured for either engine
    best, least = most, float("inf")
    rows = most
    while rows >= min(most, 64):
        tiles = TileMap.of(mask, [], (1, 1, n, m), rows, 64, 1)
        counts, blocks = tiles.counts, range(0, n, rows)
        calls = len(blocks) if library else sum(1 for i in blocks for _ in tiles.runs(0, i, 512))
        cost = (counts["full"] + 1.2 * counts["partial"]) * rows * 64 + calls * start
        if cost < least:
            best, least = rows, cost
        rows //= 2
    return best


def _extent(d, default: int) -> int:
    return int(d) if d.is_static else default


# --- which way ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Library:
    """A score that plain attention computes: query and key vectors of one width, a number per key, values."""

    row: Expr
    col: Expr
    bias: Expr | None
    causal: bool
    pad_qk: int
    pad_v: int


def library_form(a: Attention) -> Library | None:
    """The attention as a library call, or None: its score is one contraction plus a number per key, and what is
    carried is one vector per key. Widths that differ by up to 16 channels are padded, the library wants them equal."""
    rules = Normaliser()
    terms = rules.terms(a.programs.score.body)
    dots = rules.merged(terms)
    number_free = terms.row is ZERO and terms.flat is ZERO
    if len(dots) != 1 or terms.separable or terms.others or not number_free:
        return None
    forms = Forms(a)
    if (
        len(forms.carry) != 1
        or not forms.carry[0].col
        or forms.carry[0].coef.fn != "const"
        or forms.carry[0].coef.value != 1
    ):
        return None
    (row, col), bias = dots[0], None if terms.col is ZERO else terms.col
    mask = a.programs.mask
    causal = mask is not None and is_causal(mask.body)
    if mask is not None and not causal and bias is not None:
        # mask and bias would have to be added up for every head: one more channel is cheaper
        row, col, bias = call("append", row, ONE), call("append", col, bias), None
    d, e = a.width(row), a.value_width
    if abs(d - e) > 16:
        return None
    return Library(row, col, bias, causal, max(0, e - d), max(0, d - e))


def _padded(e: Expr, channels: int) -> Expr:
    for _ in range(channels):
        e = call("append", e, ZERO)
    return e


def lower_library(a: Attention, forms: Forms, plain: Library, s: Schedule, name: str) -> Func:
    """The forward function when the library's fused attention does the work."""
    args = arguments(a)
    b = Builder(a.op.loc, a.dtype)
    fr = Frame(a, forms.f, s, b, dict(zip(a.names, args, strict=True)))
    width = a.width(plain.row) + plain.pad_qk
    row_type = TensorType(a.dtype, (a.batch, a.heads, a.rows, Dim(width)))
    col_type = TensorType(a.dtype, (a.batch, a.heads, a.cols, Dim(width)))

    def token(e: Expr, axes: str, t: TensorType, hint: str):
        program = Program.of(e)
        return b.op(
            "tile.token",
            [fr.operands[n] for n in program.names],
            [t],
            names=[hint],
            program=program,
            axes=axes,
            sizes=a.sizes,
            flat=False,
        )[0]

    operands = [
        token(_padded(plain.row, plain.pad_qk), "bhid", row_type, "rows"),
        token(_padded(plain.col, plain.pad_qk), "bhjd", col_type, "keys"),
        token(_padded(forms.carry[0].vector.expr, plain.pad_v), "bhjd", col_type, "values"),
    ]
    if plain.bias is not None:
        operands.append(token(plain.bias, "bhj", TensorType(a.dtype, (a.batch, a.heads, a.cols)), "bias"))
    mask = a.programs.mask if not plain.causal else None
    if mask is not None:
        tiles = classify(fr, s.rows, _extent(a.problems, 1 << 30))
        assert tiles is not None
        operands += [tiles, *(fr.operands[n] for n in mask.names)]
    out, lse = b.op(
        "tile.library",
        operands,
        [row_type, TensorType(a.dtype, (a.batch, a.heads, a.rows))],
        names=["out", "lse"],
        causal=plain.causal,
        bias=plain.bias is not None,
        map=mask is not None,
        mask=mask,
        rows=s.rows,
        sizes=a.sizes,
    )
    if plain.pad_v:
        out = _cut(b, a, out)
    return new_func(name, b, args, finish_output(fr, forms, out, lse), {"schedule": str(s)})


def _cut(b: Builder, a: Attention, out):
    """Drops the padded value channels."""
    x = param("padded", "bhid")
    e: Expr = x
    for _ in range(int(out.type.shape[3]) - a.value_width):
        e = call("init", e)
    t = TensorType(a.dtype, (a.batch, a.heads, a.rows, Dim(a.value_width)))
    return b.op(
        "tile.token", [out], [t], names=["cut"], program=Program((x,), e), axes="bhid", sizes=a.sizes, flat=False
    )[0]


_GEOMETRY = {"acosh": "hyperbolic distance", "acos": "spherical distance"}


def kind_of(a: Attention) -> str:
    """A name for people: geometry, mask, connection, read off the programs as they stand."""
    words = {e.fn for e in postorder(a.programs.score.body)}
    name = next((n for w, n in _GEOMETRY.items() if w in words), None)
    if name is None:
        plain = library_form(a)
        name = (
            "metric given as a program"
            if plain is None
            else "contraction"
            if plain.bias is None
            else "contraction plus key bias"
        )
    if a.programs.carry.body.fn != "param":
        name += ", values carried"
    if a.programs.mask is not None:
        name += ", causal" if is_causal(a.programs.mask.body) else ", masked"
    return name


def lowering_class(a: Attention, forms: Forms) -> str:
    """G one contraction, E a function of contractions, B indices, D a stored n*n bias, T2 transport of rank two,
    P truly pairwise; a plus when several apply."""
    f: Factored = forms.f
    kinds = []
    atoms = list(f.atoms.values())
    dots = [x for x in atoms if isinstance(x, Contraction)]
    if any(isinstance(x, ChannelSum) for x in atoms):
        kinds.append("P")
    elif library_form(a):
        kinds.append("G" if library_form(a).bias is None else "G+1")  # type: ignore[union-attr]
    elif dots:
        kinds.append("E")
    if any(not t.coef.is_const and t.coef.is_pair for t in forms.carry) and len(forms.carry) > 1:
        kinds.append("T2")
    if any(isinstance(x, Lookup) for x in atoms):
        kinds.append("B")
    if any(isinstance(x, Stored) and x.source.dtype == "f" for x in atoms):
        kinds.append("D")
    return "+".join(kinds) or "B"
