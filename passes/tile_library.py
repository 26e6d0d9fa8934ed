"""Attention that the library's fused kernel computes: when it applies, and the tile functions around it."""

from __future__ import annotations

from dataclasses import dataclass

from aatc.ir.core import Func, Value
from aatc.ir.dims import Dim
from aatc.ir.score.derivative import gradients
from aatc.ir.score.expr import ONE, ZERO, Expr, call, neg, param
from aatc.ir.score.program import Program
from aatc.ir.types import TensorType
from aatc.passes.gradients import operand_gradients
from aatc.passes.lowering import Attention, Builder, Schedule, new_func
from aatc.passes.score_rules import Normaliser
from aatc.passes.simplify_score import is_causal
from aatc.passes.tile_core import Frame, classify
from aatc.passes.tile_forward import Forms, arguments, finish_output, saved_type


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


def _token(fr: Frame, e: Expr, axes: str, t: TensorType, hint: str) -> Value:
    """The buffer (b, h, token[, feature]) of a per-token expression."""
    program = Program.of(e)
    operands = [fr.operands[n] for n in program.names]
    layout = "rows" if axes.endswith("d") else None
    return fr.b.op(
        "tile.token",
        operands,
        [t],
        names=[hint],
        program=program,
        axes=axes,
        sizes=fr.a.sizes,
        flat=False,
        layout=layout,
    )[0]


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
        operands.append(_token(fr, plain.bias, "bhj", TensorType(a.dtype, (a.batch, a.heads, a.cols)), "bias"))
    mask = a.programs.mask if not plain.causal else None
    if mask is not None:
        tiles = classify(fr, s.rows, int(a.problems) if a.problems.is_static else 1 << 30)
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


def lower_library_backward(
    a: Attention, forms: Forms, plain: Library, s: Schedule, name: str
) -> tuple[Func, list[str]]:
    """``(grad_o, grad_lse, o, lse, q, k, v, captures) -> gradients`` by the library's backward, and their names.

    One channel is added to all: (1, bias) to query and key, whose gradient is that of the bias, which the library
    does not give; 0 to the value; and (1, -grad_lse) to the output's gradient and the output. The library subtracts
    <grad_o, o> from the weights' gradient, so that last product lets the log-sum-exp's gradient in.
    """
    inputs = arguments(a)
    rows = TensorType(a.dtype, (a.batch, a.heads, a.rows))
    o_type = TensorType(a.types[a.names[2]].dtype, (a.batch, a.heads, a.rows, a.types[a.names[2]].shape[3]))
    lead = [Value(o_type, "grad_o"), Value(rows, "grad_lse"), Value(saved_type(a, forms), "o"), Value(rows, "lse")]
    b = Builder(a.op.loc, a.dtype)
    fr = Frame(a, forms.f, s, b, dict(zip(a.names, inputs, strict=True)))
    names = ("grad_o__", "grad_lse__", "o__", "lse__")
    fr.operands |= dict(zip(names, lead, strict=True))
    go, gl, o = param(names[0], "bhid"), param(names[1], "bhi"), param(names[2], "bhid")
    pulled = go if forms.epilogue is None else gradients([(forms.epilogue, go)], [forms.place])[forms.place]
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
        fr.operands["lse__"],
    ]
    found = b.op(
        "tile.library_backward",
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
    results, grads = operand_gradients(fr, sides, env)
    return new_func(name, b, [*lead, *inputs], results, {"schedule": str(s)}), grads
