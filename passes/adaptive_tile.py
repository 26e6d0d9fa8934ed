"""Chooses how each attention runs and writes it as tile functions, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from aatc.ir.core import Func, Module, Op, Value, replace_uses
from aatc.ir.errors import PassError, UnsupportedError
from aatc.ir.legal import DIRECTIONS
from aatc.ir.registry import Symbol, lookup_op
from aatc.ir.schedule import Schedule
from aatc.ir.schedule_file import SCHEDULE_OF, attentions
from aatc.ir.score.expr import ZERO, Expr, postorder
from aatc.ir.specialize import hoist_loads, prune
from aatc.passes.base import Context, Pass, register
from aatc.passes.factor import ChannelSum, Contraction, Factored, Lookup, Stored
from aatc.passes.lowering import Attention
from aatc.passes.normal_form import Normaliser, Terms
from aatc.passes.schedule_attention import chosen
from aatc.passes.simplify_score import is_causal
from aatc.passes.tile_backward import lower_backward
from aatc.passes.tile_forward import Forms, lower_forward
from aatc.passes.twins import Twins

#: Of the forward and of the backward.
Schedules = tuple[Schedule, Schedule]


@register
@dataclass(frozen=True)
class AdaptiveTile(Pass):
    """``geo.attend`` → ``geo.kernel`` with a forward and a backward tile function, made as its schedules say.

    rows, cols, heads, grain: tile extents in the place of both schedules'; 0 leaves these alone. Raises: PassError for
    negative ones, ScheduleError for those that make a schedule illegal.
    """

    rows: int = 0
    cols: int = 0
    heads: int = 0
    grain: int = 0
    name: ClassVar[str] = "adaptive-tile"
    counts: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("fused",)

    def __post_init__(self) -> None:
        for extent in ("rows", "cols", "heads", "grain"):
            if getattr(self, extent) < 0:
                raise PassError(
                    f"adaptive-tile: {extent} = {getattr(self, extent)}",
                    hint="an extent is positive, or 0 for a default",
                )

    def run(self, module: Module, ctx: Context) -> Module:
        stems = {op: name for name, op in attentions(module).items()}
        twins = Twins(module, ctx)
        for func in list(module.funcs.values()):
            tiled: dict[Value, Value] = {}
            for n, op in enumerate(func.body.ops):
                if op.name != "geo.attend":
                    continue
                before = set(module.funcs)
                try:
                    kernel = self._lower(module, op, stems[op], ctx, twins)
                except UnsupportedError as e:
                    ctx.notes.append(f"{op.loc or 'attention'}: runs by its reference formula: {e.message}")
                    for name in set(module.funcs) - before:
                        del module.funcs[name]
                    continue
                func.body.ops[n] = kernel
                tiled.update(zip(op.results, kernel.results, strict=True))
                ctx.count("tiled")
            if tiled:
                replace_uses(func.body, tiled)
        return module

    def _lower(self, module: Module, op: Op, stem: str, ctx: Context, twins: Twins) -> Op:
        """The kernel of one attention."""
        attrs = {**op.attrs, **twins.lower(op, stem, lambda: self._versions(module, op, stem, ctx))}
        return Op(
            "geo.kernel",
            op.operands,
            attrs,
            [r.type for r in op.results],
            loc=op.loc,
            result_names=[r.name for r in op.results],
        )

    def _versions(self, module: Module, op: Op, stem: str, ctx: Context) -> dict[str, Any]:
        """Enters the tile functions of an attention; returns the attributes that a kernel has besides its statement.
        Where single precision keeps its digits under conditions only, a second version in double precision stands
        ready; where it never does, that is the first one. Where differences were multiplied out, that has conditions,
        too, and behind it stands one that does not do so."""
        a = Attention(op, module.dims, double=bool(op.attrs.get("double")))
        schedules = self._schedules(op, ctx)
        attrs = add_stream(module, a, stem, schedules, ctx)
        attrs |= {SCHEDULE_OF[d]: str(s) for d, s in zip(DIRECTIONS, schedules, strict=True)}
        last = stem
        if may_leave(module.funcs[stem]) and a.dtype != "f64":
            attrs |= add_exact(module, op, stem, self._schedules(op, ctx, double=True), ctx)
            last = attrs["exact"].name
        if may_leave(module.funcs[last]):
            whole, schedules = Attention(op, module.dims, whole=True), self._schedules(op, ctx, double=True)
            found = add_stream(module, whole, f"{stem}_whole", schedules, ctx)
            attrs |= {f"whole_{n}": x for n, x in found.items()}
            ctx.count("whole-difference-version")
        if a.programs.mask is not None:
            attrs["axes"] = tuple(a.programs.axes.get(n, "") for n in a.names)
        return attrs

    def _schedules(self, op: Op, ctx: Context, *, double: bool = False) -> Schedules:
        forward, backward = (chosen(op, d, ctx, double=double, change=self._change) for d in DIRECTIONS)
        return forward, backward

    def _change(self, s: Schedule) -> Schedule:
        if not (self.rows or self.cols or self.heads or self.grain):
            return s
        # A mask is classified in columns no wider than a tile: what is admitted of them is one run.
        grain = min(self.grain or s.grain, self.cols or s.cols)
        return s.with_extents(g=self.heads, i=self.rows, j=self.cols, grain=grain).fitted()


def add_stream(module: Module, a: Attention, stem: str, schedules: Schedules, ctx: Context) -> dict[str, Any]:
    """Adds a forward and a backward tile function that go over the keys in tiles; returns the attributes of
    ``geo.kernel`` that name them."""
    forms = Forms(a)
    forward = lower_forward(a, forms, schedules[0], stem)
    backward, grads = lower_backward(a, Forms(a, backward=True), schedules[1], f"{stem}_backward", summed=False)
    plain = plain_terms(a.programs.score.body)
    linear = "" if plain is None else "G" if plain.col is ZERO else "G+1"
    return add_version(module, a, forms, (forward, backward), grads, linear, "stream", ctx)


def add_version(
    module: Module,
    a: Attention,
    forms: Forms,
    functions: tuple[Func, Func],
    grads: Sequence[str],
    linear: str,
    engine: str,
    ctx: Context,
) -> dict[str, Any]:
    """Enters a forward and a backward in ``module``, in the place of those of their names if there are any. ``linear``:
    the class of a score that is one contraction, G, plus a number per key, G+1; else empty."""
    forward, backward = functions
    forward.attrs |= {"kind": kind_of(a, linear), "lowering": lowering_class(forms, linear), "engine": engine}
    for f in functions:
        prune(f)
        ctx.count("hoisted-load", hoist_loads(f))
        module.add(f)
    return {"forward": Symbol(forward.name), "backward": Symbol(backward.name), "grads": tuple(grads)}


def may_leave(forward: Func) -> bool:
    """Whether a tile function has conditions on its data."""
    return any(lookup_op(x.name).traits.leaves for x in forward.body.walk())


def add_exact(module: Module, op: Op, stem: str, schedules: Schedules, ctx: Context) -> dict[str, Any]:
    """The version in double precision and the attributes that name it."""
    a = Attention(op, module.dims, double=True)
    exact = add_stream(module, a, f"{stem}_exact", schedules, ctx)
    ctx.count("double-precision-version")
    return {"exact": exact["forward"], "exact_backward": exact["backward"], "exact_grads": exact["grads"]}


# --- what it is called ---------------------------------------------------------------------------------------
def plain_terms(score: Expr) -> Terms | None:
    """The linear form of a score that is one contraction plus a number per key; None of any other."""
    rules = Normaliser()
    terms = rules.terms(score)
    if (
        len(rules.merged(terms)) != 1
        or terms.separable
        or terms.others
        or terms.row is not ZERO
        or terms.flat is not ZERO
    ):
        return None
    return terms


_GEOMETRY = {"acosh": "hyperbolic distance", "acos": "spherical distance", "asinsqrt": "spherical distance"}


def kind_of(a: Attention, linear: str) -> str:
    """A name for people: geometry, mask, connection, normaliser, read off the programs as they stand."""
    words = {e.fn for e in postorder(a.programs.score.body)}
    name = next((n for w, n in _GEOMETRY.items() if w in words), None)
    if name is None:
        name = {"G": "contraction", "G+1": "contraction plus key bias"}.get(linear, "metric given as a program")
    if a.programs.carry.body.fn != "param":
        name += ", values carried"
    if a.programs.mask is not None:
        name += ", causal" if is_causal(a.programs.mask.body) else ", masked"
    if a.programs.normalizer.label:
        name += f", {a.programs.normalizer.label}"
    return name


def lowering_class(forms: Forms, linear: str) -> str:
    """G one contraction, E a function of contractions, B indices, D a stored n*n bias, T2 transport of rank two,
    P truly pairwise; a plus when several apply."""
    f: Factored = forms.f
    kinds = []
    atoms = list(f.atoms.values())
    dots = [x for x in atoms if isinstance(x, Contraction)]
    if any(isinstance(x, ChannelSum) for x in atoms):
        kinds.append("P")
    elif linear:
        kinds.append(linear)
    elif dots:
        kinds.append("E")
    if any(not t.coef.is_const and t.coef.is_pair for t in forms.carry) and len(forms.carry) > 1:
        kinds.append("T2")
    if any(isinstance(x, Lookup) for x in atoms):
        kinds.append("B")
    if any(isinstance(x, Stored) and x.source.dtype == "f" for x in atoms):
        kinds.append("D")
    return "+".join(kinds) or "B"
