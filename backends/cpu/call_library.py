"""Lets PyTorch's fused attention do what it can."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from aatc.backends.cpu.library import Library, library_form, lower_library, lower_library_backward
from aatc.ir.core import Module, Op
from aatc.ir.errors import PassError
from aatc.ir.legal import Workload
from aatc.ir.schedule import Schedule
from aatc.ir.score.expr import Expr
from aatc.passes.adaptive_tile import add_exact, add_version, may_leave
from aatc.passes.base import Context, Pass, register
from aatc.passes.cost_model import default_schedule, masked_rows, unknown
from aatc.passes.lowering import Attention
from aatc.passes.schedule_attention import chosen
from aatc.passes.tile_backward import lower_backward
from aatc.passes.tile_forward import Forms, squares_apart
from aatc.passes.twins import Twins


@register
@dataclass(frozen=True)
class CallLibrary(Pass):
    """``geo.kernel`` whose score is one contraction plus a number per key → the same, by the library's fused attention.

    rows: queries of a block where there is a mask; 0 leaves the choice to the schedule if that is not the cost model's,
    and else to what is best for the library. PassError for a negative one.
    """

    rows: int = 0
    name: ClassVar[str] = "call-library"
    requires: ClassVar[tuple[str, ...]] = ("fused",)
    counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise PassError(f"call-library: rows = {self.rows}", hint="an extent is positive, or 0 for a default")

    def run(self, module: Module, ctx: Context) -> Module:
        if "sdpa" not in ctx.target.library:
            return module
        twins = Twins(module, ctx)
        for op in list(module.walk()):
            if op.name == "geo.kernel" and not _is_curved(op.attrs["score"].body):
                op.attrs |= twins.lower(op, op.attrs["forward"].name, partial(self._called, module, op, ctx))
        return module

    def _called(self, module: Module, op: Op, ctx: Context) -> dict[str, Any]:
        """Enters functions that call the library in the place of a kernel's; returns the attributes that name them:
        none where the library has nothing to offer."""
        a = Attention(op, module.dims, double=bool(op.attrs.get("double")))
        plain = library_form(a)
        if plain is None:
            return {}
        ctx.count("called")
        stem, forms = op.attrs["forward"].name, Forms(a)
        forward = lower_library(a, forms, plain, self._schedule(op, plain, "forward", ctx), stem)
        schedule = self._schedule(op, plain, "backward", ctx)
        backward_name = op.attrs["backward"].name
        apart = squares_apart(a)
        if not apart and plain.shift is None and (a.programs.mask is None or plain.causal):
            backward, grads = lower_library_backward(a, forms, plain, schedule, backward_name)
        else:
            backward, grads = lower_backward(a, Forms(a, backward=True), schedule, backward_name, summed=True)
        linear = "G+1" if plain.biased else "G"
        attrs = add_version(module, a, forms, (forward, backward), grads, linear, "library", ctx)
        if "exact" not in op.attrs and may_leave(forward):
            exact = chosen(op, "forward", ctx, double=True), chosen(op, "backward", ctx, double=True)
            attrs |= add_exact(module, op, stem, exact, ctx)
        return attrs

    def _schedule(self, op: Op, plain: Library, direction: str, ctx: Context) -> Schedule:
        s, w = chosen(op, direction, ctx), Workload.of(op, direction)
        default = s == default_schedule(w, ctx.target)
        return s.with_extents(i=self.rows or (library_rows(w, plain, ctx) if default else 0))


def _is_curved(score: Expr) -> bool:
    """Whether a score is at first sight no sum of contractions and numbers, as most distances are not: then its normal
    form need not be looked for."""
    while score.fn in ("neg", "mul", "div"):
        pairs = [x for x in score.args if x.is_pair]
        if len(pairs) != 1:
            return True
        score = pairs[0]
    return score.fn in _CURVED


_CURVED = frozenset(("acosh", "expacosh", "acos", "asinsqrt", "sqrt", "exp", "log", "log1p", "tanh", "sigmoid"))


def library_rows(w: Workload, plain: Library, ctx: Context) -> int:
    """Rows of a block: the library skips what is causal within its own tiles; other masks are cut into blocks."""
    most = default_schedule(w, ctx.target, masked=False).rows
    if w.mask is None or plain.causal:
        return most
    return masked_rows(w.mask, unknown(w.rows), unknown(w.cols), most, runs=False)
