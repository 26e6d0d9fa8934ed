"""Makes a program show its attentions to an observer as it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aatc.ir.core import Module, Op
from aatc.passes.base import Context, Pass, register
from aatc.passes.fuse_attention import attention_at
from aatc.passes.snapshots import snapshot_operands


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
            snapshot_operands(func, module)
            ops: list[Op] = []
            for op in func.body.ops:
                if op.name == "geo.aggregate":
                    operands, attrs, normalize = attention_at(op)
                    given = {**attrs, "tag": f"attend{count}"}
                    ops.append(Op("geo.observe", operands, given, loc=normalize.loc or op.loc))
                    ctx.count("observed")
                    count += 1
                ops.append(op)
            func.body.ops = ops
        return module
