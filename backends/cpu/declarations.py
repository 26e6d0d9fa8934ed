"""What this backend adds to the tile level: the library's fused attention as operations, and places in an arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from aatc.backends.cpu.verify_plan import check
from aatc.ir.core import Op
from aatc.ir.normalizers.softmax import softmax
from aatc.ir.registry import Attr, Extension, OpDef, define, extend
from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.program import Program
from aatc.ir.tile_evaluate import bind, dtype_of, extents

_SIZES = Attr.of("list", "extents (B, H, N, M) of the attention")


def _truth(mask: Program, captures: Sequence[torch.Tensor], sizes: tuple[int, int, int, int]) -> torch.Tensor:
    return evaluate(mask.body, bind(mask, captures, sizes), sizes, dtype=torch.float64)[..., 0]


def library(op: Op, values: Sequence[Any], interp: Any) -> list[torch.Tensor]:
    q, k, v = (x.to(torch.float64) if x.dtype == torch.float64 else x.float() for x in values[:3])
    b, h, n, m = extents(op, interp)
    rest = list(values[3:])
    s = q @ k.mT
    if op.attrs["bias"]:
        bias = rest.pop(0).reshape(b, h, 1, m)
        s = s + (bias + rest.pop(0).reshape(b, h, n, 1) if op.attrs["shift"] else bias).to(s.dtype)
    if op.attrs["map"]:
        rest.pop(0)
    keep = torch.ones(n, m, dtype=torch.bool).expand(b, h, n, m)
    if op.attrs["causal"]:
        keep = keep.tril()
    if "mask" in op.attrs:
        program = op.attrs["mask"]
        keep = keep & _truth(program, rest, (b, h, n, m))
    s = s.masked_fill(~keep, float("-inf"))
    p, lse = softmax(s)
    return [(p @ v).to(dtype_of(op.results[0].type)), lse.to(dtype_of(op.results[1].type))]


def library_backward(op: Op, values: Sequence[Any], interp: Any) -> list[torch.Tensor]:
    grad, q, k, v, out, lse = values
    s = q @ k.mT
    if op.attrs["causal"]:
        s = s.masked_fill(~torch.ones(s.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
    p = torch.exp(s - lse.unsqueeze(-1))
    ds = p * (grad @ v.mT - (grad * out).sum(-1, keepdim=True))
    return [ds @ k, ds.mT @ q, p.mT @ grad]


define(
    OpDef(
        "cpu.attention",
        "tile",
        "the library's fused attention over blocks of rows; (q, k, v) are buffers of equal width in layout "
        "rows, bias is one number per key; empty tiles are skipped and only partial ones see the mask",
        ("q", "k", "v", "rest*"),
        attrs={
            "causal": Attr.of("bool", "key j is open to query i iff j <= i"),
            "bias": Attr.of("bool", "the fourth operand is the bias"),
            "shift": Attr.of(
                "bool",
                "the fifth operand is a number per query to be added to the bias; both are in double precision, and "
                "the function ends without results where blocks of rows cannot keep the digits of their sum",
            ),
            "map": Attr.of("bool", "the next operand is the tile map"),
            "mask": Attr.of("program", "mask of partial tiles, over the remaining operands", required=False),
            "rows": Attr.of("int", "rows of a block"),
            "sizes": _SIZES,
        },
        results=2,
        evaluate=library,
    )
)

define(
    OpDef(
        "cpu.attention_backward",
        "tile",
        "gradients of q, k, v by the library's fused attention, scale 1, from (grad_out, q, k, v, out, lse), all but "
        "lse in layout rows",
        ("grad_out", "q", "k", "v", "out", "lse"),
        attrs={"causal": Attr.of("bool", "key j is open to query i iff j <= i")},
        results=3,
        infer=lambda op: [replace(v.type, layout="") for v in op.operands[1:4]],  # type: ignore[type-var]
        evaluate=library_backward,
    )
)

extend(
    "cpu",
    Extension(
        ops={
            "plan": Attr.of("list", "arena offset in bytes of each tile result; -1 for a view", per_result=True),
            "scratch": Attr.of("list", "arena offsets in bytes of temporaries"),
        },
        funcs={"arena": Attr.of("int", "bytes of the arena")},
        check=check,
    ),
)
