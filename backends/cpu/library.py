"""Attention that the library's fused kernel computes: when it applies, and the tile functions around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aatc.ir.core import Func, Value
from aatc.ir.dims import Dim
from aatc.ir.schedule import Schedule
from aatc.ir.score.derivative import gradients
from aatc.ir.score.expr import ONE, ZERO, Expr, add, call, const, mul, neg, param, sub
from aatc.ir.score.program import Program
from aatc.ir.types import TensorType, torch_dtype
from aatc.passes.factor import split_epilogue
from aatc.passes.gradients import operand_gradients
from aatc.passes.lowering import Attention, Builder, new_func
from aatc.passes.normal_form import Normaliser, Terms
from aatc.passes.score_forms import is_col
from aatc.passes.simplify_score import is_causal
from aatc.passes.tile_checks import Peaks
from aatc.passes.tile_core import Frame, classify
from aatc.passes.tile_forward import Forms, arguments, finish_output, whole_token
from aatc.passes.tile_rows import backward_arguments, row_cotangent

#: Beyond this the rounding of a log-sum-exp shows in the weights that the backward takes from it.
_MOST = {"f32": 128.0, "f64": 1e4}


@dataclass(frozen=True)
class Library:
    """A score that plain attention computes: query and key vectors of one width, a number per key, values.

    ``shift`` and ``far``: numbers per query and per key that are large where their sum is small (the difference of two
    positions); they are added in double precision for each block of rows before the library sees them.
    """

    row: Expr
    col: Expr
    bias: Expr | None
    causal: bool
    pad_qk: int
    pad_v: int
    shift: Expr | None = None
    far: Expr | None = None

    @property
    def biased(self) -> bool:
        return self.bias is not None or self.far is not None


def library_form(a: Attention) -> Library | None:
    """The attention as a library call, or None: its weights are a softmax, its score is one contraction plus a number
    per key, and what is carried is one vector per key. Widths that differ by up to 16 channels are padded: the library
    wants them equal."""
    if a.programs.kind != "softmax":
        return None
    rules = Normaliser()
    terms = rules.terms(a.programs.score.body)
    apart = _differences(terms) if a.dtype == "f32" else None
    if apart is not None:
        terms.others = []
    dots = rules.merged(terms)
    if len(dots) != 1 or terms.separable or terms.others or terms.row is not ZERO or terms.flat is not ZERO:
        return None
    inner, _, _ = split_epilogue(a.programs.carry.body)
    if inner.is_pair or not is_col(inner) or "j" not in inner.axes:
        return None
    (row, col), bias = dots[0], None if terms.col is ZERO else terms.col
    shift, far = (None, None) if apart is None else (apart.row, apart.col)
    mask = a.programs.mask
    causal = mask is not None and is_causal(mask.body)
    if mask is not None and not causal and bias is not None and shift is None:
        # mask and bias would have to be added up for every head: one more channel is cheaper
        row, col, bias = call("append", row, ONE), call("append", col, bias), None
    d, e = a.width(row), a.value_width
    if abs(d - e) > 16 or max(d, e) == 0:
        return None
    return Library(row, col, bias, causal, max(0, e - d), max(0, d - e), shift, far)


def _differences(terms: Terms) -> Terms | None:
    """What ``terms`` has besides contractions and numbers, if these are differences of a query's and a key's number: as
    a number per query and one per key."""
    rules, apart = Normaliser(split=True), Terms()
    for factor, e in terms.others:
        apart.absorb(rules.terms(e), factor)
    rest = apart.contractions or apart.separable or apart.others or apart.flat is not ZERO
    return None if rest or apart.col is ZERO or not rules.count["split"] else apart


def _padded(e: Expr, channels: int) -> Expr:
    for _ in range(channels):
        e = call("append", e, ZERO)
    return e


def _token(fr: Frame, e: Expr, axes: str, t: TensorType, hint: str) -> Value:
    """The buffer (b, h, token[, feature]) of a per-token expression."""
    program = Program.of(e)
    operands = [fr.operands[n] for n in program.names]
    return whole_token(fr, program, operands, t, hint, axes, "rows" if axes.endswith("d") else "")


def lower_library(a: Attention, forms: Forms, plain: Library, s: Schedule, name: str) -> Func:
    """The forward function when the library's fused attention does the work."""
    args = arguments(a)
    b = Builder(a.op.loc, a.dtype)
    fr = Frame(a, forms.f, s, b, dict(zip(a.names, args, strict=True)))
    width = a.width(plain.row) + plain.pad_qk
    row_type = TensorType(a.dtype, (a.batch, a.heads, a.rows, Dim(width)))
    col_type = TensorType(a.dtype, (a.batch, a.heads, a.cols, Dim(width)))

    operands = [
        _token(fr, _padded(plain.row, plain.pad_qk), "bhid", row_type, "rows"),
        _token(fr, _padded(plain.col, plain.pad_qk), "bhjd", col_type, "keys"),
        _token(fr, _padded(forms.carry[0].vector.expr, plain.pad_v), "bhjd", col_type, "values"),
    ]
    if plain.bias is not None:
        # in the precision of rows and keys even where it is added to ``far``: all must mean the same centre of the keys
        operands.append(_token(fr, plain.bias, "bhj", TensorType(a.dtype, (a.batch, a.heads, a.cols)), "bias"))
    if plain.far is not None:
        assert plain.shift is not None
        operands[3:] = [_with_bias(fr, plain.far, operands[3:])]
        # positions are whole numbers: their difference is exact only if they are
        operands.append(_token(fr, plain.shift, "bhi", TensorType("f64", (a.batch, a.heads, a.rows)), "shift"))
    _require_room(fr, forms, operands[:4] if plain.shift is None else operands[:2], plain.biased)
    mask = a.programs.mask if not plain.causal else None
    if mask is not None:
        tiles = classify(fr, s.rows, max(1, int(a.problems)) if a.problems.is_static else 1 << 30)
        assert tiles is not None
        operands += [tiles, *(fr.operands[n] for n in mask.names)]
    out, lse = b.op(
        "cpu.attention",
        operands,
        [row_type, TensorType(a.dtype, (a.batch, a.heads, a.rows))],
        names=["out", "lse"],
        causal=plain.causal,
        bias=plain.biased,
        shift=plain.shift is not None,
        map=mask is not None,
        mask=mask,
        rows=s.rows,
        sizes=a.sizes,
    )
    if plain.pad_v:
        out = _cut(b, a, out)
    _require_sums(fr, lse)
    return new_func(name, b, args, finish_output(fr, forms, out, lse, {"log_sum": lse}), {"schedule": str(s)})


def _with_bias(fr: Frame, far: Expr, bias: list[Value]) -> Value:
    """``far`` plus a number per key that is computed already, if there is one, in double precision."""
    a, near = fr.a, param("bias__", "bhj")
    program = Program.of(add(near, far), [near]) if bias else Program.of(far)
    operands = [*bias, *(fr.operands[n] for n in program.names[len(bias) :])]
    return whole_token(fr, program, operands, TensorType("f64", (a.batch, a.heads, a.cols)), "far", "bhj", "")


def _require_room(fr: Frame, forms: Forms, operands: list[Value], biased: bool) -> None:
    """The library takes rows that are not finite for rows without keys; and its precision must do for the
    contraction and the number per key, if differences were multiplied out."""
    peaks = Peaks(fr)
    size = mul(peaks.of_buffer(operands[0], True), peaks.of_buffer(operands[1], True))
    room = sub(const(torch.finfo(torch_dtype(fr.a.dtype)).max / 4), size)
    if any(c.kind == "spread" for c, _ in forms.checks):
        if biased and len(operands) == 4:
            size = add(size, peaks.of_buffer(operands[3], False))
        room = sub(const(forms.digits.spread), mul(const(forms.digits.unit), size))
    fr.b.op("tile.require", [peaks.scalar(room, "room")], [], least=0.0)


def _require_sums(fr: Frame, lse: Value) -> None:
    inner = param("lse", "bhi")
    closed = call("eq", inner, const(float("-inf")))
    open_ = Program((inner,), call("where", closed, const(0.0), inner))
    finite = whole_token(fr, open_, [lse], lse.type, "open", "bhi", "")  # type: ignore[arg-type]
    peaks = Peaks(fr)
    room = sub(const(_MOST[fr.a.dtype]), peaks.of_buffer(finite, False))
    fr.b.op("tile.require", [peaks.scalar(room, "sums")], [], least=0.0)


def _cut(b: Builder, a: Attention, out: Value) -> Value:
    """Drops the padded value channels."""
    x = param("padded", "bhid")
    e: Expr = x
    for _ in range(int(out.type.shape[3]) - a.value_width):  # type: ignore[attr-defined]
        e = call("init", e)
    t = TensorType(a.dtype, (a.batch, a.heads, a.rows, Dim(a.value_width)))
    return b.op(
        "tile.token", [out], [t], names=["cut"], program=Program((x,), e), axes="bhid", sizes=a.sizes, flat=False
    )[0]


def lower_library_backward(
    a: Attention, forms: Forms, plain: Library, s: Schedule, name: str
) -> tuple[Func, list[str]]:
    """``(grad_o, grad_lse, o, lse, q, k, v, captures) -> gradients`` by the library's backward, and their names.

    One channel is added to all: (1, bias) to query and key, whose gradient is that of the bias, which the library
    does not give; 0 to the value; and (1, -grad_lse) to the output's gradient and the output. The library subtracts
    <grad_o, o> from the weights' gradient, so that last product lets the log-sum-exp's gradient in.
    """
    lead, inputs = backward_arguments(a, True)
    b = Builder(a.op.loc, a.dtype)
    fr = Frame(a, forms.f, s, b, dict(zip(a.names, inputs, strict=True)))
    fr.operands |= lead
    go, gl, o = param("grad_o__", "bhid"), param("grad_lse__", "bhi"), param("o__", "bhid")
    pulled = go
    if forms.epilogue is not None:
        pulled = gradients([(forms.epilogue, go)], [forms.place])[forms.place]
        fr.operands[forms.place.name] = fr.operands["o__"]
    value = forms.carry[0].vector.expr
    bias = ZERO if plain.bias is None else plain.bias
    row = call("append", _padded(plain.row, plain.pad_qk), ONE)
    col = call("append", _padded(plain.col, plain.pad_qk), bias)
    val = call("append", _padded(value, plain.pad_v), ZERO)
    width = Dim(a.width(plain.row) + plain.pad_qk + 1)
    types = {
        axes: TensorType(a.dtype, (a.batch, a.heads, n, width)) for axes, n in (("bhid", a.rows), ("bhjd", a.cols))
    }

    def token(e: Expr, axes: str, hint: str) -> Value:
        return _token(fr, e, axes, types[axes], hint)

    operands = [
        token(call("append", _padded(pulled, plain.pad_v), ONE), "bhid", "grad_out"),
        token(row, "bhid", "rows"),
        token(col, "bhjd", "keys"),
        token(val, "bhjd", "values"),
        token(call("append", _padded(o, plain.pad_v), neg(gl)), "bhid", "out"),
        fr.operands["log_sum__"],
    ]
    found = b.op(
        "cpu.attention_backward",
        operands,
        [types["bhid"], types["bhjd"], types["bhjd"]],
        names=["d_rows", "d_keys", "d_values"],
        causal=plain.causal,
    )
    env = dict(fr.operands) | dict(zip(("d_rows__", "d_keys__", "d_values__"), found, strict=True))
    sides = {
        "i": [(row, param("d_rows__", "bhid"))],
        "j": [(col, param("d_keys__", "bhjd")), (val, param("d_values__", "bhjd"))],
    }
    if forms.epilogue is not None:
        sides["i"].append((forms.epilogue, go))
        env[forms.place.name] = fr.operands["o__"]
    if forms.row is not None:
        sides["i"].append((forms.row, row_cotangent(True)))
    results, grads = operand_gradients(fr, sides, env)
    return new_func(name, b, [*lead.values(), *inputs], results, {"schedule": str(s)}), grads
