"""Chooses how each attention runs and writes it as tile functions, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from aatc.ir.core import Module, Op, Value, replace_uses
from aatc.ir.errors import PassError, UnsupportedError
from aatc.ir.registry import Symbol
from aatc.ir.score.expr import postorder
from aatc.ir.score.program import Program
from aatc.ir.specialize import hoist_loads, prune
from aatc.ir.target import Target
from aatc.ir.tilemap import TileMap
from aatc.ir.types import itemsize
from aatc.passes.base import Context, Pass, register
from aatc.passes.factor import ChannelSum, Contraction, Factored, Lookup, Stored
from aatc.passes.lowering import Attention, Schedule
from aatc.passes.simplify_score import is_causal
from aatc.passes.tile_backward import lower_backward
from aatc.passes.tile_forward import Forms, lower_forward
from aatc.passes.tile_library import Library, library_form, lower_library, lower_library_backward


@register
@dataclass(frozen=True)
class AdaptiveTile(Pass):
    """``geo.attend`` → ``geo.kernel`` with a forward and a backward tile function.

    rows, cols, heads, grain: tile extents; 0 leaves the choice to the cost model. Raises: PassError for negative ones.
    """

    rows: int = 0
    cols: int = 0
    heads: int = 0
    grain: int = 0
    library: bool = True
    name: ClassVar[str] = "adaptive-tile"
    requires: ClassVar[tuple[str, ...]] = ("fused",)

    def __post_init__(self) -> None:
        for extent in ("rows", "cols", "heads", "grain"):
            if getattr(self, extent) < 0:
                raise PassError(
                    f"adaptive-tile: {extent} = {getattr(self, extent)}",
                    hint="an extent is positive, or 0 for a default",
                )

    def run(self, module: Module, ctx: Context) -> Module:
        taken = set(module.funcs)
        for func in list(module.funcs.values()):
            tiled: dict[Value, Value] = {}
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
                tiled.update(zip(op.results, kernel.results, strict=True))
                ctx.count("tiled")
            if tiled:
                replace_uses(func.body, tiled)
        return module

    def _lower(self, module: Module, op: Op, stem: str, ctx: Context) -> Op:
        """The kernel of one attention. Where single precision keeps its digits under conditions only, a second version
        in double precision stands ready; where it never does, that is the only one."""
        a = Attention(op, module.dims, double=bool(op.attrs.get("double")))
        attrs = {"names": a.names, **self._version(module, a, stem, ctx)}
        if any(x.name == "tile.require" for x in module.funcs[stem].body.walk()):
            exact = self._version(module, Attention(op, module.dims, double=True), f"{stem}_exact", ctx, library=False)
            attrs |= {"exact": exact["forward"], "exact_backward": exact["backward"], "exact_grads": exact["grads"]}
            ctx.count("double-precision-version")
        if a.programs.mask is not None:
            attrs["mask"] = a.programs.mask
            attrs["axes"] = tuple(a.programs.axes.get(n, "") for n in a.names)
        return Op(
            "geo.kernel",
            op.operands,
            attrs,
            [r.type for r in op.results],
            loc=op.loc,
            result_names=[r.name for r in op.results],
        )

    def _version(
        self, module: Module, a: Attention, stem: str, ctx: Context, *, library: bool = True
    ) -> dict[str, Any]:
        """Adds a forward and a backward tile function; returns the attributes that name them."""
        forms = Forms(a)
        schedule = self._schedule(a, ctx.target)
        plain = self._library_form(a, ctx.target) if library else None
        forward = lower_library(a, forms, plain, schedule, stem) if plain else lower_forward(a, forms, schedule, stem)
        if plain and plain.shift is None and (a.programs.mask is None or plain.causal):
            backward, grads = lower_library_backward(a, forms, plain, schedule, f"{stem}_backward")
        else:
            summed = plain is not None
            backward, grads = lower_backward(a, Forms(a), schedule, f"{stem}_backward", summed=summed)
        forward.attrs |= {
            "kind": kind_of(a),
            "lowering": lowering_class(a, forms),
            "engine": "library" if plain else "stream",
        }
        for f in (forward, backward):
            prune(f)
            ctx.count("hoisted-load", hoist_loads(f))
            module.add(f)
        return {"forward": Symbol(stem), "backward": Symbol(backward.name), "grads": tuple(grads)}

    def _schedule(self, a: Attention, target: Target) -> Schedule:
        chosen = cost_model(
            a, target, library="sdpa" in target.library and self.library and library_form(a) is not None
        )
        cols = self.cols or chosen.cols
        # A mask is classified in columns no wider than a tile: what is admitted of them is one run.
        return Schedule(
            self.heads or chosen.heads, self.rows or chosen.rows, cols, min(self.grain or chosen.grain, cols)
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
    if mask.params or not n or not m or n > 1 << 16 or m > 1 << 16:
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


_GEOMETRY = {"acosh": "hyperbolic distance", "acos": "spherical distance", "asinsqrt": "spherical distance"}


def kind_of(a: Attention) -> str:
    """A name for people: geometry, mask, connection, read off the programs as they stand."""
    words = {e.fn for e in postorder(a.programs.score.body)}
    name = next((n for w, n in _GEOMETRY.items() if w in words), None)
    if name is None:
        plain = library_form(a)
        name = (
            "metric given as a program"
            if plain is None
            else "contraction plus key bias"
            if plain.biased
            else "contraction"
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
    elif plain := library_form(a):
        kinds.append("G+1" if plain.biased else "G")
    elif dots:
        kinds.append("E")
    if any(not t.coef.is_const and t.coef.is_pair for t in forms.carry) and len(forms.carry) > 1:
        kinds.append("T2")
    if any(isinstance(x, Lookup) for x in atoms):
        kinds.append("B")
    if any(isinstance(x, Stored) and x.source.dtype == "f" for x in atoms):
        kinds.append("D")
    return "+".join(kinds) or "B"
