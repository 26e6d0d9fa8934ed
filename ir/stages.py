"""The four stages of attention: scores, weights, transported values, their aggregate."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from aatc.ir import stage_evaluate
from aatc.ir.aggregations import aggregation_named
from aatc.ir.core import Op
from aatc.ir.dims import Dim
from aatc.ir.errors import VerifyError
from aatc.ir.normalizers import normalizer_named
from aatc.ir.registry import Attr, OpDef, define
from aatc.ir.score.expr import ZERO
from aatc.ir.score.program import Program
from aatc.ir.score.widths import extents
from aatc.ir.types import PairType, TensorType, Type, compute_name


def tensor_operand(op: Op, n: int, rank: int | None = None) -> TensorType:
    t = op.operands[n].type
    if not isinstance(t, TensorType) or (rank is not None and t.rank != rank):
        raise VerifyError(f"operand {n} of {op.name} must be a tensor{f' of rank {rank}' if rank else ''}, is {t}")
    return t


def pair_operand(op: Op, n: int) -> PairType:
    t = op.operands[n].type
    if not isinstance(t, PairType):
        raise VerifyError(f"operand {n} of {op.name} must be a pair value, is {t}")
    return t


def check_binding(op: Op, program: Program, values: list[Any]) -> None:
    """Every parameter of ``program`` binds to a tensor with as many dimensions as it has axes, and vectors that are
    combined have as many channels: ScoreError where they have not."""
    if len(program.params) != len(values):
        raise VerifyError(f"{op.name}: program takes ({', '.join(program.names)}), {len(values)} values are bound")
    for p, v in zip(program.params, values, strict=True):
        _name, axes, dtype = p.attrs
        if not isinstance(v.type, TensorType) or v.type.rank != len(axes):
            raise VerifyError(f"{op.name}: parameter {p.name} has axes {axes!r}, its value is {v.type}")
        kind = {"f": "f", "i": "iu", "b": "b"}[dtype]
        found = "b" if v.type.dtype == "bool" else "f" if v.type.dtype == "bf16" else v.type.dtype[0]
        if found not in kind:
            raise VerifyError(f"{op.name}: parameter {p.name} is declared {dtype!r}, its value is {v.type}")
    tails = tuple([tuple(v.type.shape[v.type.rank - p.rank :]) for p, v in zip(program.params, values, strict=True)])
    _check_widths(program, tails)


@lru_cache(maxsize=1024)
def _check_widths(program: Program, tails: tuple[tuple[Dim, ...], ...]) -> None:
    known = {p.name: tail for p, tail in zip(program.params, tails, strict=True) if 0 < p.rank < 3}
    if all(d.is_static for tail in known.values() for d in tail):  # of symbols, more than one may be the same number
        extents([program.body], {n: tuple(map(int, tail)) for n, tail in known.items()})


def _made_by(op: Op, n: int, name: str) -> None:
    """Operand ``n`` of ``op`` is what an operation ``name`` makes for pairs."""
    owner = op.operands[n].owner
    if not isinstance(owner, Op) or owner.name != name or owner.results[0] is not op.operands[n]:
        raise VerifyError(f"operand {n} of {op.name} is %{op.operands[n].name}; it is what a {name} makes of pairs")


DIGITS = {
    "checks": Attr.of(
        "list",
        "kind, linear form of the program, bound of the slope in it: conditions under which single precision keeps the "
        "program's digits (`passes.rounding`)",
        required=False,
    ),
    "double": Attr.of("bool", "single precision never keeps them", required=False),
}
WHOLE = {
    "whole": Attr.of(
        "program",
        "the score plus ``dropped``, with no difference multiplied out, for when digits are lost otherwise",
        required=False,
    ),
    "dropped": Attr.of("program", "a number per query that the score lacks and ``whole`` has", required=False),
}
REFINED = {
    "refined": Attr.of(
        "list",
        "pairs of a linear form of the score and the same with no difference multiplied out, for those pairs of tokens "
        "at which the first has lost its digits",
        required=False,
    ),
    "apart": Attr.of(
        "list",
        "for the backward: the score plus ``dropped``, in which squares of differences stand apart, and of each square "
        "itself, the same with no difference multiplied out, and as it was written",
        required=False,
    ),
}


# --- the operations -----------------------------------------------------------------------------------------
def _metric_types(op: Op) -> list[Type]:
    q, k = tensor_operand(op, 0, 4), tensor_operand(op, 1, 4)
    return [PairType(compute_name(q.dtype), (q.shape[0], q.shape[1], q.shape[2], k.shape[2]))]


def _check_heads(op: Op, heads: Dim, shared: TensorType) -> None:
    if heads.is_static and shared.shape[1].is_static and int(heads) % max(1, int(shared.shape[1])):
        raise VerifyError(f"{op.name}: {heads} query heads cannot share {shared.shape[1]} key heads")


def _metric_verify(op: Op) -> None:
    _check_heads(op, tensor_operand(op, 0, 4).shape[1], tensor_operand(op, 1, 4))
    program: Program = op.attrs["score"]
    if program.body.rank or program.body.dtype == "b":
        raise VerifyError("a score must be a number per pair")
    lists = (p for n in REFINED for p in op.attrs.get(n, ()))
    for p in (program, *(op.attrs[n] for n in WHOLE if n in op.attrs), *lists):
        check_binding(op, p, op.operands)


define(
    OpDef(
        "geo.metric",
        "geo",
        "score of every (query, key) pair by a score program; its first parameters are q and k",
        ("q", "k", "captures*"),
        attrs={"score": Attr.of("program", "the score, a number per pair"), **DIGITS, **WHOLE, **REFINED},
        infer=_metric_types,
        verify=_metric_verify,
        evaluate=stage_evaluate.metric,
    )
)


def _normalize_types(op: Op) -> list[Type]:
    s = pair_operand(op, 0)
    return [s, TensorType(s.dtype, s.shape[:3])]


def _normalize_verify(op: Op) -> None:
    mask = op.attrs.get("mask")
    if mask is not None and (mask.body.rank or mask.body.dtype != "b"):
        raise VerifyError("a mask must be a truth value per pair")
    normalizer_named(op.attrs["kind"])
    _made_by(op, 0, "geo.metric")
    check_binding(op, mask or Program((), ZERO), op.operands[1:])


define(
    OpDef(
        "geo.normalize",
        "geo",
        "weights of each query over its keys, and their log-sum-exp; masked pairs weigh 0",
        ("scores", "captures*"),
        results=2,
        attrs={
            "kind": Attr.of("str", "normaliser, see `ir.normalizers`"),
            "mask": Attr.of("program", "which pairs may talk", required=False),
        },
        infer=_normalize_types,
        verify=_normalize_verify,
        evaluate=stage_evaluate.normalize,
    )
)


def _transport_types(op: Op) -> list[Type]:
    v, like = tensor_operand(op, 0, 4), pair_operand(op, 1)
    return [PairType(v.dtype, (*like.shape, v.shape[3]))]


def _transport_verify(op: Op) -> None:
    carry: Program = op.attrs["carry"]
    if carry.body.rank != 1:
        raise VerifyError("a carried value must be a feature vector")
    check_binding(op, carry, [op.operands[0], *op.operands[2:]])
    v, pairs = tensor_operand(op, 0, 4), pair_operand(op, 1)
    _check_heads(op, pairs.shape[1], v)
    if v.shape[2] != pairs.shape[3]:
        raise VerifyError(f"{op.name}: {v.shape[2]} values for {pairs.shape[3]} keys")


define(
    OpDef(
        "geo.transport",
        "geo",
        "the value of each key as it arrives at each query, by a carry program; its first "
        "parameter is v; the second operand gives the pairs",
        ("v", "pairs", "captures*"),
        attrs={"carry": Attr.of("program", "the carried value, a vector per pair"), **DIGITS},
        infer=_transport_types,
        verify=_transport_verify,
        evaluate=stage_evaluate.transport,
    )
)


def _aggregate_verify(op: Op) -> None:
    _made_by(op, 0, "geo.normalize")
    _made_by(op, 1, "geo.transport")


def _aggregate_types(op: Op) -> list[Type]:
    pair_operand(op, 0)
    aggregation_named(op.attrs["kind"])
    c = pair_operand(op, 1)
    return [TensorType(c.dtype, (*c.shape[:3], c.shape[4]))]


define(
    OpDef(
        "geo.aggregate",
        "geo",
        "sum over keys of weight times carried value",
        ("weights", "carried"),
        attrs={"kind": Attr.of("str", "how values are combined, see `ir.aggregations`")},
        infer=_aggregate_types,
        verify=_aggregate_verify,
        evaluate=stage_evaluate.aggregate,
    )
)
