"""Operations of the geo level: the whole model as values, a whole attention as one operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from aatc.ir import observe, reference, stage_evaluate
from aatc.ir.aggregations import aggregation_named
from aatc.ir.containment import spoiled_rows
from aatc.ir.core import Op
from aatc.ir.dims import NAME
from aatc.ir.errors import ParseError, VerifyError
from aatc.ir.normalizers import normalizer_named
from aatc.ir.registry import Attr, OpDef, Operand, define
from aatc.ir.schedule import Schedule
from aatc.ir.score.expr import ZERO, param, sub
from aatc.ir.score.program import Program
from aatc.ir.stages import DIGITS, REFINED, WHOLE, check_binding, tensor_operand
from aatc.ir.tile_evaluate import Refused
from aatc.ir.types import TensorType, Type, compute_name, torch_dtype


# --- the fused form ----------------------------------------------------------------------------------------
def attention_of(op: Op) -> reference.Attention:
    """The programs a fused attention operation carries."""
    a = op.attrs
    carry = a.get("carry", _carry_of(a["names"][2]))
    return reference.Attention(
        a["names"], a["score"], carry, a.get("mask"), a.get("row"), a.get("kind", "softmax"), a.get("aggregate", "mean")
    )


def whole_attention_of(op: Op) -> reference.Attention:
    """The same attention with the score in which no difference was multiplied out, if there is one."""
    att, a = attention_of(op), op.attrs
    if "whole" not in a:
        return att
    row: Program | None = att.row
    if "dropped" in a:
        given = ZERO if row is None else row.body
        rest = ZERO if given is a["dropped"].body else sub(given, a["dropped"].body)
        row = None if rest is ZERO else Program.of(rest)
    return replace(att, score=a["whole"], row=row)


def _carry_of(name: str) -> Program:
    v = param(name, "bhjd")
    return Program((v,), v)


def _attend_types(op: Op) -> list[Type]:
    q, v = tensor_operand(op, 0, 4), tensor_operand(op, 2, 4)
    return [
        TensorType(v.dtype, (*q.shape[:3], v.shape[3])),
        TensorType(compute_name(q.dtype), q.shape[:3]),
    ]


def _check_names(op: Op, operands: Any) -> None:
    names = op.attrs["names"]
    if not _are_names(names) or len(names) != len(operands):
        raise VerifyError(f"{op.name}: names {names} do not name its {len(operands)} operands one by one")


def _are_names(names: Any) -> bool:
    """Distinct identifiers: they end up in programs and in generated source."""
    return all(isinstance(n, str) and NAME.match(n) for n in names) and len(set(names)) == len(names)


def _attend_verify(op: Op) -> None:
    names = op.attrs["names"]
    _check_names(op, op.operands)
    bound = dict(zip(names, op.operands, strict=True))
    att = attention_of(op)
    att.declared()
    aggregation_named(att.aggregate)
    if not normalizer_named(att.kind).exponential and "weight" in op.attrs:
        raise VerifyError(
            f"{op.name}: the weights of {att.kind} are no exponentials, of which `weight` is a closed form"
        )
    whole = whole_attention_of(op)
    whole.declared()
    for program in {*att.programs, *whole.programs, *(p for n in REFINED for p in op.attrs.get(n, ()))}:
        missing = [n for n in program.names if n not in bound]
        if missing:
            raise VerifyError(f"{op.name}: program parameter {missing[0]} is not among its operands {names}")
        check_binding(op, program, [bound[n] for n in program.names])
    q, k, v = (tensor_operand(op, n, 4) for n in range(3))
    if k.shape[:3] != v.shape[:3]:
        raise VerifyError(f"{op.name}: keys {k} and values {v} differ in batch, heads or length")
    if q.shape[1].is_static and k.shape[1].is_static and int(q.shape[1]) % max(1, int(k.shape[1])):
        raise VerifyError(f"{op.name}: {q.shape[1]} query heads cannot share {k.shape[1]} key heads")
    for attr in ("schedule", "schedule_backward"):
        try:
            Schedule.parse(op.attrs.get(attr, ""))
        except ParseError as e:
            raise VerifyError(f"{op.name}: {attr}, column {e.column}: {e.message}", hint=e.hint) from None


def _run_attend(op: Op, values: list[Any], _: Any) -> list[Any]:
    att = attention_of(op)
    reference.check_fit(att, [t.shape for t in values])
    return list(reference.attend(att, dict(zip(att.names, values, strict=True))))


_ATTEND = {
    "names": Attr.of("list", "names of q, k, v and the captures in the programs"),
    "score": Attr.of("program", "the score"),
    "carry": Attr.of("program", "the carried value; v itself when absent", required=False),
    "mask": Attr.of("program", "which pairs may talk; all when absent", required=False),
    "weight": Attr.of(
        "program", "exp(score) in closed form, bounded, so that no running maximum is needed", required=False
    ),
    "row": Attr.of("program", "a number per query that the log-sum-exp gets added", required=False),
    "floor": Attr.of("float", "static lower bound of the score when there is a weight", required=False),
    **DIGITS,
    **WHOLE,
    **REFINED,
    "kind": Attr.of("str", "normaliser, see `ir.normalizers`"),
    "aggregate": Attr.of("str", "how values are combined, see `ir.aggregations`"),
    "schedule": Attr.of("str", "how the forward's tile program is made, see `ir.schedule`", required=False),
    "schedule_backward": Attr.of("str", "how the backward's is", required=False),
}

define(
    OpDef(
        "geo.attend",
        "geo",
        "a whole attention: output and log-sum-exp, without any n*n value",
        ("q", "k", "v", "captures*"),
        results=2,
        attrs=_ATTEND,
        infer=_attend_types,
        verify=_attend_verify,
        evaluate=_run_attend,
    )
)


def _backward_types(op: Op) -> list[Type]:
    return [v.type for v in op.operands[4:]]


def _run_backward(op: Op, values: list[Any], _: Any) -> list[Any]:
    o, lse, grad_o, grad_lse, *tensors = values
    env = dict(zip(op.attrs["names"], tensors, strict=True))
    grads = reference.attend_backward(attention_of(op), env, o, lse, grad_o, grad_lse)
    return [grads.get(n, torch.zeros_like(t)) for n, t in env.items()]


define(
    OpDef(
        "geo.attend_backward",
        "geo",
        "gradients of an attention's operands from those of its output and log-sum-exp",
        ("o", "lse", "grad_o", "grad_lse", "q", "k", "v", "captures*"),
        results=-1,
        attrs=_ATTEND,
        infer=_backward_types,
        verify=lambda op: _check_names(op, op.operands[4:]),
        evaluate=_run_backward,
    )
)


#: Attributes of a kernel's versions: each runs when a condition of those before it fails.
VERSIONS = (
    ("forward", "backward", "grads"),
    ("exact", "exact_backward", "exact_grads"),
    ("whole_forward", "whole_backward", "whole_grads"),
)


def _check_axes(op: Op) -> None:
    """``axes`` say what the programs say, of which numbers that are not finite spoil which rows."""
    names, read = op.attrs["names"], attention_of(op).axes
    axes = op.attrs.get("axes")
    if axes is None:
        if "mask" in op.attrs and any(read.get(n) for n in names[3:]):
            raise VerifyError(
                f"{op.name}: with a mask and captures it needs axes",
                hint=f"axes = [{', '.join(f'{chr(34)}{read.get(n, str())}{chr(34)}' for n in names)}]",
            )
        return
    if len(axes) != len(names):
        raise VerifyError(f"{op.name}: {len(axes)} axes for {len(names)} names")
    for name, word in zip(names, axes, strict=True):
        if word != read.get(name, ""):
            raise VerifyError(f"{op.name}: axes of {name} are {word!r}; its programs read {read.get(name, '')!r}")


def _kernel_verify(op: Op) -> None:
    _attend_verify(op)
    _check_axes(op)
    for grads in (op.attrs.get(g, ()) for _, _, g in VERSIONS):
        if not _are_names(grads) or not set(grads) <= set(op.attrs["names"]):
            raise VerifyError(f"{op.name}: grads {grads} are not among its names {op.attrs['names']}")
    for version in VERSIONS:
        given = [n for n in version if n in op.attrs]
        if len(given) not in (0, 3):
            raise VerifyError(f"{op.name}: {', '.join(version)} go together; there is {given[0]} only")


def run_kernel(
    op: Op, values: Sequence[Any], interp: Any
) -> tuple[list[torch.Tensor], list[torch.Tensor], tuple[str, str, str]]:
    """Operands as computed with, all results of the forward, and which of `VERSIONS` that was."""
    a = op.attrs
    reference.check_fit(attention_of(op), [t.shape for t in values])
    tensors, axes = dict(zip(a["names"], values, strict=True)), dict(zip(a["names"], a.get("axes", ()), strict=False))
    clean, spoiled = spoiled_rows(a.get("mask"), a["names"], axes, tensors)
    used = [clean[n] for n in a["names"]]
    *others, last = [v for v in VERSIONS if v[0] in a]
    for version in others:
        try:
            results = interp.call(a[version[0]].name, used)
            break
        except Refused:
            continue
    else:
        version, results = last, interp.call(a[last[0]].name, used)
    if spoiled is not None:
        rows = spoiled.unsqueeze(-1)
        results = [x.masked_fill(rows if x.dim() == 4 else spoiled, float("nan")) for x in results]
    return used, list(results), version


define(
    OpDef(
        "geo.kernel",
        "geo",
        "an attention as `geo.attend` states it, and the tile functions that compute it, forward and backward",
        ("q", "k", "v", "captures*"),
        results=2,
        attrs={
            **_ATTEND,
            "forward": Attr.of(
                "symbol", "tile function (operands) -> (o, lse, o for the backward, its row statistics)"
            ),
            "backward": Attr.of("symbol", "tile function (grad_o, grad_lse, o, statistics, operands) -> gradients"),
            "axes": Attr.of(
                "list", "axes of q, k, v and the captures, in order; empty for unread ones", required=False
            ),
            "grads": Attr.of("list", "names whose gradients the backward returns, in order"),
            "exact": Attr.of(
                "symbol", "the forward in double precision, for when a condition of the first fails", required=False
            ),
            "exact_backward": Attr.of("symbol", "its backward", required=False),
            "exact_grads": Attr.of("list", "names whose gradients that returns", required=False),
            "whole_forward": Attr.of(
                "symbol", "the forward with no difference multiplied out, for when one of those fails", required=False
            ),
            "whole_backward": Attr.of("symbol", "its backward", required=False),
            "whole_grads": Attr.of("list", "names whose gradients that returns", required=False),
        },
        infer=_attend_types,
        verify=_kernel_verify,
        evaluate=lambda op, values, interp: run_kernel(op, values, interp)[1][:2],
    )
)


def _run_observe(op: Op, values: list[Any], _: Any) -> list[Any]:
    observe.observe(op, values)
    return []


define(
    OpDef(
        "geo.observe",
        "geo",
        "hands the operands of an attention to whoever observes the program; computes nothing",
        ("q", "k", "v", "captures*"),
        results=0,
        attrs={
            **{n: _ATTEND[n] for n in ("names", "score", "carry", "mask", "kind", "aggregate")},
            "tag": Attr.of("str", "what the observer calls the attention"),
        },
        infer=lambda op: [],
        verify=_attend_verify,
        evaluate=_run_observe,
        pure=False,
    )
)


# --- everything else ---------------------------------------------------------------------------------------
def _map_verify(op: Op) -> None:
    program: Program = op.attrs["program"]
    if program.body.is_pair:
        raise VerifyError("geo.map works per token: its program must not depend on both i and j")
    check_binding(op, program, op.operands)


define(
    OpDef(
        "geo.map",
        "geo",
        "a number per token by a program; shaped like its first operand",
        ("tensors*",),
        attrs={"program": Attr.of("program", "a number per token")},
        infer=lambda op: [op.operands[0].type],
        verify=_map_verify,
        evaluate=stage_evaluate.map_tokens,
    )
)


def constant_tensor(op: Op) -> torch.Tensor:
    """The tensor of a `geo.constant`: a new one on the CPU, whatever torch's default device and mode are."""
    t = op.attrs["type"]
    with torch.inference_mode(False):
        made = torch.tensor(op.attrs["values"], dtype=torch_dtype(t.dtype), device="cpu")
        return made.reshape([int(d) for d in t.shape])


def _constant_verify(op: Op) -> None:
    try:
        constant_tensor(op)
    except Exception as error:
        raise VerifyError(f"geo.constant: its values are no {op.attrs['type']}: {error}") from error


define(
    OpDef(
        "geo.constant",
        "geo",
        "a small constant tensor, its elements in row-major order; a new one each time it is reached",
        (),
        attrs={"values": Attr.of("list", "numbers"), "type": Attr.of("type", "its type, static shape")},
        infer=lambda op: [op.attrs["type"]],
        verify=_constant_verify,
        evaluate=lambda op, values, _: [constant_tensor(op)],
    )
)


def _slots(args: Any) -> Any:
    for a in args:
        if isinstance(a, tuple):
            yield from _slots(a)
        elif isinstance(a, Operand):
            yield a.position


def _call_verify(op: Op) -> None:
    bad = [n for n in _slots(op.attrs["args"]) if not 0 <= n < len(op.operands)]
    if bad:
        raise VerifyError(f"torch.call refers to operand #{bad[0]}, it has {len(op.operands)}")
    kwargs = op.attrs.get("kwargs", ())
    if not _are_names(kwargs):
        raise VerifyError(f"torch.call: {kwargs} are not the names of keyword arguments")
    if len(kwargs) > len(op.attrs["args"]):
        raise VerifyError("torch.call names more keyword arguments than it has arguments")


define(
    OpDef(
        "torch.call",
        "geo",
        "an ATen operator kept as it is; #n stands for the n-th operand",
        ("operands*",),
        results=-1,
        attrs={
            "target": Attr.of("str", "operator and overload, as aten.linear.default"),
            "args": Attr.of("list", "arguments, possibly nested"),
            "kwargs": Attr.of("list", "names of the last arguments, which go by keyword", required=False),
            "effect": Attr.of("bool", "it changes state or draws random numbers: keep it, in order", required=False),
            "no_grad": Attr.of("bool", "it runs as within torch.no_grad()", required=False),
        },
        verify=_call_verify,
        evaluate=lambda op, values, interp: interp.torch_call(op, values),
    )
)

define(
    OpDef(
        "geo.checkpoint",
        "geo",
        "calls a function whose intermediates are recomputed in the backward pass",
        ("operands*",),
        results=-1,
        attrs={
            "body": Attr.of("symbol", "a geo function"),
            "new_random": Attr.of("bool", "the backward pass draws random numbers of its own", required=False),
        },
        evaluate=lambda op, values, interp: interp.call(op.attrs["body"].name, values),
        pure=False,
    )
)

define(
    OpDef("geo.return", "geo", "ends a function with its results", ("values*",), results=0, terminator=True, pure=False)
)
