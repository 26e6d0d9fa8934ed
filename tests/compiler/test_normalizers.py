"""Sigmoid, and normalisers and aggregations that a test declares, against plain torch."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import aatc
from aatc import biases, connections, masks, metrics, normalizers
from aatc.ir import aggregations
from aatc.ir.errors import VerifyError
from aatc.ir.interpreter import Interpreter
from aatc.ir.normalizers import NORMALIZERS, SCORE, WEIGHT, Normalizer, Statistic, register
from aatc.ir.normalizers.base import MASS
from aatc.ir.score.expr import call, const, mul
from tests.compiler.harness import build
from tests.compiler.plain import check, close
from tests.compiler.plain_weights import DTYPES, INF, MASKS, TILES, drawn, heads, weighed

SQUARES = Statistic("squares", of=mul(WEIGHT, WEIGHT))


# --- normalisers and an aggregation in one class each -----------------------------------------------------------
class SquaredRelu(Normalizer):
    """o = Σ relu(s)² v: only what it weighs."""

    name = "squared_relu"

    def weight(self, unit):
        return call("square", call("relu", SCORE))


class ReluShare(Normalizer):
    """o = Σ relu(s) v / Σ relu(s)."""

    name = "relu_share"
    label = "relu weights"
    normalized = True

    def weight(self, unit):
        return call("relu", SCORE)


class ReluSphere(Normalizer):
    """o = Σ u v / √(Σ u²), u = relu(s), lse = ½ log Σ u²: two statistics of weights."""

    name = "relu_sphere"
    of_weights = (MASS, SQUARES)

    def weight(self, unit):
        return call("relu", SCORE)

    def finish(self, unit):
        some = call("where", SQUARES.value > 0, SQUARES.value, const(1.0))
        return call("rsqrt", some), mul(const(0.5), call("log", SQUARES.value))

    def row_factor(self, unit, closed_form=False):
        return call("where", SQUARES.saved > 0, call("rsqrt", SQUARES.saved), const(0.0))

    def row_gradient(self, factor, grad_lse, dot):
        return mul(mul(factor, factor), grad_lse - dot)

    def cotangent(self, unit, through, row):
        return mul(call("step", SCORE), through + WEIGHT * row)


class Squashed(aggregations.Aggregation):
    """The sum, squashed: an epilogue that is not linear."""

    name = "squashed"

    def finish(self, o):
        return call("tanh", o)


@pytest.fixture(autouse=True)
def _declared():
    register(SquaredRelu()), register(ReluShare()), register(ReluSphere()), aggregations.register(Squashed())
    yield
    (
        NORMALIZERS.pop("squared_relu"),
        NORMALIZERS.pop("relu_sphere"),
        NORMALIZERS.pop("relu_share"),
        aggregations.AGGREGATIONS.pop("squashed"),
    )


# --- what they mean -----------------------------------------------------------------------------------------
KINDS = ["sigmoid", "squared_relu", "relu_share", "relu_sphere"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_in_ragged_tiles(kind, mask, dtype):
    made, truth = MASKS[mask]

    def formula(q, k, v):
        s = q @ heads(k, 4).mT * q.shape[-1] ** -0.5
        p, lse = weighed(kind, s, None if truth is None else truth(*s.shape[2:]))
        return p @ heads(v, 4), lse

    check(
        formula,
        *drawn(2, 4, 2, 13, 11, 6, 5, dtype=dtype),
        metric=metrics.DotProduct(),
        mask=made,
        normalizer=kind,
        tolerance=DTYPES[dtype],
        compiled=TILES,
    )


@pytest.mark.parametrize("kind", ["sigmoid", "squared_relu"])
def test_row_constants_are_kept_where_weights_see_them(kind):
    """A squared distance has a part per query, which only softmax may drop."""

    def formula(q, k, v):
        s = 1 - (q.unsqueeze(3) - k.unsqueeze(2)).square().sum(-1) * 0.1
        p, lse = weighed(kind, s)
        return p @ v, lse

    built = check(
        formula,
        *drawn(1, 2, 2, 9, 7, 4, 3),
        metric=metrics.Euclidean(),
        scale=0.1,
        bias=torch.ones(1, dtype=torch.float64),
        normalizer=kind,
        compiled=TILES,
    )
    assert not any("drop-row-constant" in r.rewrites for r in built.result.report)


@pytest.mark.parametrize("beta", [1.0, 0.7])
def test_closed_forms_of_the_exponential_are_softmax_s_own(beta):
    def formula(q, k, v):
        lift = [torch.cat([(1 + x.square().sum(-1, keepdim=True)).sqrt(), x], -1) for x in (q, k)]
        inner = lift[0][..., :1] @ lift[1][..., :1].mT - q @ k.mT
        p, lse = weighed("sigmoid", -beta * torch.acosh(inner.clamp(min=1)))
        return p @ v, lse

    built = check(
        formula,
        *drawn(1, 2, 2, 9, 7, 4, 3),
        metric=metrics.LorentzDistance(beta, lift=True),
        normalizer="sigmoid",
        compiled=TILES,
    )
    assert all("weight" not in op.attrs for op in built.result.module.walk() if op.name == "geo.kernel")


def test_learned_bias_of_sigmoid_per_head():
    shift = torch.tensor([-1.0, 0.5], dtype=torch.float64)

    def formula(q, k, v, shift):
        p, lse = weighed("sigmoid", q @ k.mT * 0.5 + shift.reshape(2, 1, 1))
        return p @ v, lse

    check(
        formula,
        *drawn(1, 2, 2, 9, 7, 4, 3),
        metric=metrics.DotProduct(),
        tensors=[shift],
        normalizer=normalizers.Sigmoid(shift),
        compiled=TILES,
    )
    q, k, v = drawn(1, 2, 2, 9, 7, 4, 3)
    given_number = aatc.attend(q, k, v, metric=metrics.DotProduct(), normalizer=normalizers.Sigmoid(-math.log(7)))
    close(given_number, weighed("sigmoid", q @ k.mT * 0.5 - math.log(7))[0] @ v, 1e-12, "output")


def test_additive_masks_and_carried_values_under_sigmoid():
    q, k, v = drawn(1, 2, 2, 9, 9, 4, 4)
    fill = torch.zeros(9, 9, dtype=torch.float64).masked_fill(torch.rand(9, 9) < 0.3, -INF)
    fill[4] = -INF

    def rotated(x, angle):
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    def formula(q, k, v):
        at = torch.arange(9.0, dtype=torch.float64).reshape(-1, 1) * 10.0 ** -torch.tensor([0.0, 0.5]).double()
        p, lse = weighed("sigmoid", rotated(q, at) @ rotated(k, at).mT * 0.5 + fill)
        return rotated(p @ rotated(v, at), -at), lse

    check(
        formula,
        q,
        k,
        v,
        metric=metrics.DotProduct(),
        connection=connections.Rotary(base=10.0, style="half", values=True),
        bias=biases.Dense(fill),
        normalizer="sigmoid",
        compiled=TILES,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nan_spoils_the_rows_that_see_it_and_no_others(kind):
    q, k, v = drawn(1, 2, 2, 12, 12, 4, 3)
    k[0, 1, 7, 2] = float("nan")
    built = build(q, k, v, metric=metrics.DotProduct(), mask=masks.causal(), normalizer=kind, **TILES)
    for o, lse in (built.eager, built.run()):
        spoiled = torch.isnan(o).any(-1)
        assert not spoiled[0, 0].any() and torch.equal(spoiled[0, 1], torch.arange(12) >= 7)
        assert torch.equal(torch.isnan(lse), spoiled)


@pytest.mark.parametrize("kind", [*KINDS, "softmax"])
def test_every_stage_means_the_same_and_survives_its_text(kind):
    q, k, v = drawn(1, 2, 1, 11, 9, 6, 6)
    built = build(
        q,
        k,
        v,
        metric=metrics.Euclidean(squared=False),
        mask=masks.causal(),
        connection=connections.Rotary(values=True),
        normalizer=kind,
        soft_cap=2.0,
        scale=-1.0,
        **TILES,
    )
    for name, module in built.result.stages.items():
        o, lse = Interpreter(module).call("main", built.operands)
        close(o, built.eager[0], 1e-11, f"output after {name}")
        close(lse, built.eager[1], 1e-11, f"log-sum-exp after {name}")
        assert aatc.parse(str(module)) == module


@pytest.mark.parametrize("kind", [*KINDS, "softmax"])
@pytest.mark.parametrize("mask", ["none", "rows without keys"])
def test_second_derivatives(kind, mask):
    made, truth = MASKS[mask]
    q, k, v = drawn(1, 2, 1, 7, 5, 4, 3)
    probe = torch.randn(1, 2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def ours(q, k, v):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=made, normalizer=kind)

    def plain(q, k, v):
        s = q @ heads(k, 2).mT * 0.5
        return weighed(kind, s, None if truth is None else truth(7, 5))[0] @ heads(v, 2)

    found = []
    for f in (ours, plain):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        first = torch.autograd.grad((f(*leaves) * probe).sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for n, (g, w) in enumerate(zip(*found, strict=True)):
        close(g, w, 1e-10, f"second derivative {n}")


def test_the_declaration_s_formula_is_softmax_s_own():
    """Softmax evaluates by torch's operators; its declaration means the same."""
    softmax = NORMALIZERS["softmax"]
    s = torch.randn(1, 2, 6, 9, dtype=torch.float64) * 30
    s[0, 0, 3] = -INF
    s[0, 1, 2, 4:] = -INF
    grad_w, grad_lse = torch.randn_like(s), torch.randn(1, 2, 6, dtype=torch.float64)
    for got, want in zip(Normalizer.reference(softmax, s), softmax.reference(s), strict=True):
        close(got, want, 1e-13, "weights and log-sum-exp")
    got = Normalizer.reference_cotangent(softmax, s, grad_w, grad_lse)
    close(got, softmax.reference_cotangent(s, grad_w, grad_lse), 1e-13, "gradient")


# --- compiled models ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("given", ["sigmoid", "biased sigmoid", "relu_share", "relu_share itself"])
def test_compiled_models_and_what_is_explained(given):
    objects = {"biased sigmoid": normalizers.Sigmoid(-1.0), "relu_share itself": NORMALIZERS["relu_share"]}
    normalizer = objects.get(given, given)
    kind = normalizer if isinstance(normalizer, str) else normalizer.kind

    def model(q, k, v):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=masks.causal(), normalizer=normalizer)

    compiled = aatc.compile(model, fallback=False)
    for n in (10, 13, 17):
        q, k, v = drawn(1, 2, 2, n, n, 4, 3, seed=n)
        s = q @ k.mT * 0.5 - (1.0 if isinstance(normalizer, normalizers.Sigmoid) else 0.0)
        close(compiled(q, k, v), weighed(kind, s, torch.ones(n, n).tril().bool())[0] @ v, 1e-12, "output")
    shown = str(compiled.explain())
    assert {"sigmoid": "sigmoid weights", "relu_share": "relu weights"}[kind] in shown


def test_aggregations_have_an_epilogue():
    for library in (False, True):
        for kind in ("sigmoid", "softmax"):

            def plain(q, k, v, kind=kind):
                p, lse = weighed(kind, q @ k.mT * 0.5)
                return torch.tanh(p @ v), lse

            built = check(
                plain,
                *drawn(1, 2, 2, 9, 7, 4, 3),
                metric=metrics.DotProduct(),
                normalizer=kind,
                aggregate="squashed",
                tolerance=1e-10,
                compiled={**TILES, "library": library},
            )
            leaves = [t.detach().clone().requires_grad_() for t in built.operands]
            want = plain(*leaves)
            eager = torch.ops.aatc.attend(*leaves, [], built.spec)
            close(eager[0], want[0], 1e-12, "output")
            grads = (torch.autograd.grad(x[0].sum(), leaves, retain_graph=True) for x in (eager, want))
            for n, (g, w) in enumerate(zip(*grads, strict=True)):
                close(g, w, 1e-11, f"eager gradient {n}")


def test_analyses_refuse_weights_that_are_no_probabilities():
    class Model(torch.nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind

        def forward(self, q, k, v):
            return aatc.attend(q, k, v, metric=metrics.DotProduct(), normalizer=self.kind)

    q, k, v = drawn(1, 1, 1, 6, 6, 4, 3)
    found = aatc.analyze(Model("relu_share"), (q, k.abs(), v), passes="information")
    (seen,) = found.captured
    close(seen.weights(0), weighed("relu_share", q @ k.abs().mT * 0.5)[0][0, 0], 1e-12, "weights")
    assert "largest_jacobian_norm" not in str(found)
    with pytest.raises(aatc.errors.AatcError, match="by sigmoid: its rows are no probabilities"):
        aatc.analyze(Model("sigmoid"), (q, k, v), passes="information")


# --- what a declaration is refused for ----------------------------------------------------------------------
def test_declarations_that_do_not_hold_together_are_refused():
    class Shifted(Normalizer):
        name = "shifted"

        def weight(self, unit):
            return call("exp", call("neg", SCORE))

    with pytest.raises(VerifyError, match=r"weighs a score of -inf inf"):
        register(Shifted())

    class Named(Normalizer):
        name = "no name"

        def weight(self, unit):
            return call("sigmoid", SCORE)

    with pytest.raises(VerifyError, match="identifier"):
        register(Named())
    with pytest.raises(VerifyError, match="already"):
        register(SquaredRelu())
    with pytest.raises(aatc.errors.UnsupportedError, match="another normalizer"):
        aatc.attend(*drawn(1, 1, 1, 2, 2, 2, 2), metric=metrics.DotProduct(), normalizer=ReluShare())
    with pytest.raises(aatc.errors.UnsupportedError, match='"softmax", "sigmoid"'):
        aatc.attend(*drawn(1, 1, 1, 2, 2, 2, 2), metric=metrics.DotProduct(), normalizer="sparsemax")


def test_texts_with_unknown_normalisers_are_refused():
    q, k, v = drawn(1, 1, 1, 3, 3, 2, 2)
    module = str(build(q, k, v, metric=metrics.DotProduct(), normalizer="sigmoid").module)
    for old, new, text in (
        ('kind = "sigmoid"', 'kind = "sparsemax"', "no normaliser 'sparsemax'"),
        ('kind = "mean"', 'kind = "median"', "no aggregation 'median'"),
    ):
        assert old in module
        with pytest.raises(VerifyError, match=text):
            aatc.parse(module.replace(old, new)).verify()


def test_the_manual_s_example_is_what_it_says():
    text = (Path(__file__).resolve().parents[2] / "docs" / "normalizers.md").read_text(encoding="utf-8")
    space = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    try:
        for block in blocks:
            exec(block, space)
        assert len(blocks) >= 2 and "relu" in NORMALIZERS and space["o"].shape == (1, 2, 16, 8)
        q, k, v = space["q"], space["k"], space["v"]
        close(space["o"], ((q @ k.mT * 8**-0.5).clamp(min=0) @ v).double(), 1e-5, "output")
    finally:
        NORMALIZERS.pop("relu", None)


@given(st.data())
def test_drawn_scores_and_sizes_under_sigmoid(data):
    n, m = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    size = data.draw(st.sampled_from([1e-3, 1.0, 20.0]))
    mask = data.draw(st.sampled_from(sorted(MASKS)))
    made, truth = MASKS[mask]

    def formula(q, k, v):
        p, lse = weighed("sigmoid", q @ k.mT * size, None if truth is None else truth(n, m))
        return p @ v, lse

    sizes = (1, 2, 2, n, m, 3, 2)
    check(
        formula,
        *drawn(*sizes, seed=data.draw(st.integers(0, 99))),
        metric=metrics.DotProduct(),
        scale=size,
        mask=made,
        normalizer="sigmoid",
        tolerance=1e-9,
        compiled={"tiles": f"rows={data.draw(st.integers(1, 6))} cols={data.draw(st.integers(1, 6))}"},
    )
