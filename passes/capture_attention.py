"""Makes a program show its attentions to an observer as it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aatc.ir.core import Module, Op
from aatc.passes.base import Context, Pass, register
from aatc.passes.fuse_attention import attention_at


@register
@dataclass(frozen=True)
class CaptureAttention(Pass):
    """``aggregate(normalize(metric(q, k)), transport(v))`` → the same after ``observe(q, k, v)``.

    Tags are attend0, attend1, … in the order of the text. Run it before `simplify-score`: then the score that is
    observed is the one that the model wrote, with the constants of a row that softmax drops.
    """

    name: ClassVar[str] = "capture-attention"
    requires: ClassVar[tuple[str, ...]] = ("staged",)

    def run(self, module: Module, ctx: Context) -> Module:
        count = 0
        for func in module.funcs.values():
            for op in [o for o in func.body.ops if o.name == "geo.aggregate"]:
                operands, attrs, normalize = attention_at(op)
                seen = Op("geo.observe", operands, {**attrs, "tag": f"attend{count}"}, loc=normalize.loc or op.loc)
                func.body.ops.insert(func.body.ops.index(op), seen)
                ctx.count("observed")
                count += 1
        return module
