"""Each pass on its own: golden texts of what it turns into what, refusals, certificates, conditions."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings

import aatc
from aatc import backends, biases, connections, masks, metrics, passes
from aatc.backends.liveness import Interval, max_live, place
from aatc.ir import Module
from aatc.ir.errors import PassError, ScoreError
from aatc.ir.parser import parse
from aatc.ir.score import Program, call, const, index, param, substitute
from aatc.passes.certificate import certify, verify
from aatc.passes.normal_form import Normaliser
from aatc.passes.score_bounds import static_bound
from aatc.passes.score_rules import SCORE_RULES
from tests.compiler.draw import attentions, l1
from tests.compiler.harness import build, module_of, record

CASES = {
    "dot": {"metric": metrics.DotProduct()},
    "euclidean": {"metric": metrics.Euclidean()},
    "mahalanobis": {"metric": metrics.Mahalanobis(matrix=torch.eye(4))},
    "lorentz-distance": {"metric": metrics.LorentzDistance()},
    "lorentz-rotary": {
        "metric": metrics.LorentzDistance(lift=True),
        "connection": connections.Rotary(torch.arange(6.0)),
    },
    "poincare": {"metric": metrics.Poincare()},
    "sphere": {"metric": metrics.SphereGeodesic(), "mask": masks.sliding_window(3)},
    "fisher-rao": {"metric": metrics.FisherRao()},
    "causal-alibi": {
        "metric": metrics.DotProduct(),
        "mask": masks.causal(),
        "bias": biases.ALiBi(torch.tensor([0.5, 0.25])),
    },
    "transport": {"metric": metrics.LorentzInner(), "connection": connections.HyperboloidTransport()},
    "l1": {"metric": l1},
}
GEO_PASSES = "canonicalize,simplify-score,fuse-attention,fuse-normalizer"


def module(name: str) -> Module:
    q, k, v = (torch.rand(1, 2, 6, 4) for _ in range(3))
    operands, spec, _ = record(q, k, v, **CASES[name])
    return module_of(operands, spec)


@pytest.mark.parametrize("name", CASES)
def test_geo_passes_golden(name, golden):
    result = passes.Pipeline.parse(GEO_PASSES).run(module(name))
    shown = [f"// {stage}\n{result.stages[stage]}" for stage in ("import", "simplify-score", "fuse-normalizer")]
    rules = [f"// {r.name}: {', '.join(f'{k} {n}' for k, n in sorted(r.rewrites.items()) if n)}" for r in result.report]
    golden(f"{name}.aatc", "\n".join([*shown, *rules]))


@pytest.mark.parametrize("name", ["euclidean", "lorentz-distance", "sphere", "l1", "transport"])
def test_tile_programs_golden(name, golden):
    pipeline = passes.Pipeline.parse(f"{GEO_PASSES},adaptive-tile{{rows=4 cols=4 heads=1 grain=2}}")
    golden(f"{name}.tile.aatc", str(pipeline.run(module(name)).module))


@pytest.mark.parametrize("name", ["euclidean", "l1"])
def test_programs_of_the_torch_backend_golden(name, golden):
    pipeline = f"{GEO_PASSES},adaptive-tile{{rows=4 cols=4 heads=1 grain=2}},call-library,plan-memory"
    result = passes.Pipeline.parse(pipeline).run(module(name), target=aatc.ir.target.Target(library=("sdpa",)))
    golden(f"{name}.cpu.aatc", str(result.module))


@pytest.mark.parametrize("name", CASES)
def test_every_stage_survives_its_text(name):
    pipeline = passes.Pipeline.parse(
        f"{GEO_PASSES},adaptive-tile{{rows=4 cols=4 heads=1 grain=2}},call-library,plan-memory"
    )
    for stage in pipeline.run(module(name)).stages.values():
        assert parse(str(stage)) == stage


@settings(max_examples=15)
@given(attentions(torch.float64))
def test_drawn_stages_survive_their_text(drawn):
    q, k, v, parts, tiles, library = drawn
    for stage in build(q, k, v, tiles=tiles, library=library, **parts).result.stages.values():
        assert parse(str(stage)) == stage


@pytest.mark.parametrize(
    "name, rules",
    [
        ("euclidean", {"expand", "centre", "merge", "drop-row-constant"}),
        ("mahalanobis", {"expand", "merge", "adjoint"}),
        ("lorentz-rotary", {"adjoint", "isometry", "absorb-separable"}),
        ("causal-alibi", {"causal-distance"}),
        ("lorentz-distance", set()),
        ("l1", set()),
    ],
)
def test_rules_fire_where_they_should(name, rules):
    report = passes.Pipeline.parse("simplify-score").run(module(name)).report[0]
    fired = {r for r, n in report.rewrites.items() if n}
    assert rules <= fired <= set(SCORE_RULES.names) | {"normalised-carry"}
    assert rules or not fired


def test_the_normaliser_meets_the_metric():
    result = passes.Pipeline.parse(GEO_PASSES).run(module("lorentz-distance"))
    (op,) = [o for o in result.module.walk() if o.name == "geo.attend"]
    assert op.attrs["weight"].body.fn == "expacosh"
    assert {c.rule for c in result.module.certificates} >= {"exp-acosh", "static-bound"}


def test_lse_gets_back_what_softmax_does_not_see():
    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.float64) for _ in range(3))
    built = build(q, k, v, metric=metrics.Euclidean())
    torch.testing.assert_close(built.run()[1], built.eager[1])
    (fused,) = [o for o in built.result.stages["fuse-attention"].walk() if o.name == "geo.attend"]
    assert fused.attrs["row"].body.axes == {"b", "h", "i"}


# --- certificates ------------------------------------------------------------------------------------------
@given(attentions(torch.float64))
def test_certificates_are_issued_and_hold(drawn):
    q, k, v, parts, _, _ = drawn
    for c in build(q, k, v, **parts).result.module.certificates:
        assert c.proof_level == "P1" and c.residual <= c.tolerance <= 1e-9 and verify(c.witness) == c.residual


def test_a_wrong_rewrite_gets_no_certificate():
    q, k = param("q", "bhid"), param("k", "bhjd")
    with pytest.raises(ScoreError, match="does not hold"):
        certify("planted", "a lie", ("equal", -((q - k) @ (q - k)), 2.0 * (q @ k) - k @ k))
    with pytest.raises(ScoreError, match="does not hold"):
        certify("planted", "a lie", ("row-constant", q @ k, 2.0 * (q @ k)))
    with pytest.raises(ScoreError, match="does not hold"):
        certify("planted", "a lie", ("bound", q @ q, -1.0, 0.0))
    with pytest.raises(ScoreError, match="does not hold"):
        certify(
            "planted",
            "a lie",
            (
                "equal-where",
                index("j") >= index("i"),
                index("j") >= index("i"),
                abs(index("i") - index("j")) * 1.0,
                (index("i") - index("j")) * 1.0,
            ),
        )


_X, _Y, _S = param("x", "bhid"), param("y", "bhjd"), param("s", "bj")
_ONE = call("exp", 0.0 * _X)


@pytest.mark.parametrize(
    "before, after",
    [
        (call("sqrt", _X * _Y), call("sqrt", _X) * call("sqrt", _Y)),  # entries that are not negative
        (abs(_X @ _Y), _X @ _Y),
        (call("square", call("sqrt", _X @ _Y)), _X @ _Y),
        (call("maximum", _X @ _Y, call("neg", _X @ _Y)), _X @ _Y),
        (call("sign", _X @ _X), call("exp", 0.0 * (_X @ _X))),  # no token is zero
        (call("tanh", _X @ _Y), _X @ _Y - (_X @ _Y) ** 3.0 / 3.0),  # small numbers
        ((_X - _Y) @ (_X - _Y), _X @ _X - _Y @ _Y),  # equal tokens
        (_X @ _Y, (_X @ _Y) / call("sqrt", _X @ _X)),  # unit vectors
        ((_ONE @ _ONE) * _S, 4.0 * _S),  # four channels
        (call("floor", _S), _S),  # integers
        (call("minimum", _X @ _Y, 100.0 * call("exp", 0.0 * _S)), _X @ _Y),  # numbers below a hundred
        (
            call("where", call("eq", (_X - _Y) @ (_X - _Y), const(0.0)), const(1e-4), const(0.0)),
            0.0 * (_X @ _Y),
        ),  # tokens that differ
    ],
)
def test_what_holds_on_part_of_the_domain_only_gets_no_certificate(before, after):
    before, after = (e if e.rank == 0 else call("sum", e) for e in (before, after))
    with pytest.raises(ScoreError, match="does not hold"):
        certify("planted", "a lie", ("equal", before, after), widths=(("x", (5,)), ("y", (5,))))


@pytest.mark.parametrize("width", [4, 5])
@pytest.mark.parametrize("learned", ["beta", "scale"])
def test_rounding_at_roots_of_nothing_refuses_no_rewrite(learned, width):
    """sqrt and asin take half of the digits of what cancels, wherever the samples happen to have such pairs."""
    q, k, v = (torch.rand(1, 3, 4, width, dtype=torch.float64) for _ in range(3))
    beta, scale = torch.tensor(1.5, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    parts = {"beta": {"metric": metrics.FisherRao(beta), "bias": biases.Dense(scale[:1, None])}}
    built = build(q, k, v, **parts.get(learned, {"metric": metrics.FisherRao(1.5, logits=True), "scale": scale}))
    assert any(c.rule == "normal-form" for c in built.result.module.certificates)


def test_what_rounding_does_not_explain_is_refused_beside_a_root():
    distance = call("asinsqrt", 0.25 * ((_X - _Y) @ (_X - _Y)))
    for lie in (distance * (1 + 1e-7), call("asinsqrt", 0.25 * ((_X - _Y) @ (_X - _Y)) + 1e-8)):
        with pytest.raises(ScoreError, match="does not hold"):
            certify("planted", "a lie", ("equal", distance, lie), widths=(("x", (5,)), ("y", (5,))))


@pytest.mark.parametrize(
    "open_at",
    [
        lambda b, h, i, j: i == 10,
        lambda b, h, i, j: i * i == j + 123_456,
        lambda b, h, i, j: b == 77,
        lambda b, h, i, j: i < 0,
    ],
)
def test_distances_under_masks_that_open_far_away_or_never(open_at):
    q, k, v = (torch.randn(1, 2, 12, 4, dtype=torch.float64) for _ in range(3))
    mask = masks.causal() & masks.predicate(open_at)
    built = build(q, k, v, metric=metrics.DotProduct(), bias=biases.ALiBi(2), mask=mask)
    torch.testing.assert_close(built.run()[0], built.eager[0])
    (c,) = [c for c in built.result.module.certificates if c.rule == "normal-form"]
    assert c.witness[0] == "equal-where"


def test_a_mask_that_does_not_imply_what_is_assumed_is_refused():
    i, j = index("i"), index("j")
    distance = ("equal-where", (j <= i) | (j <= 3.0), j <= i, abs(i - j) * 1.0, (i - j) * 1.0)
    with pytest.raises(ScoreError, match="does not hold"):
        certify("planted", "a lie", distance)
    nowhere = ("equal-where", i < j, call("ne", i, i), abs(i - j) * 1.0, (i - j) * 1.0)
    with pytest.raises(ScoreError, match="does not hold"):
        certify("planted", "a lie", nowhere)


@pytest.mark.parametrize(
    "score, rule",
    [
        (call("sum", call("sqrt", _X * _Y)), "root-of-product"),
        (call("square", call("sqrt", _X @ _Y)), "square-of-root"),
    ],
)
def test_rules_that_need_a_sign_do_not_fire_without_one(score, rule):
    rules = Normaliser()
    rules.number(score)
    assert not rules.count[rule]
    squares = {_X: call("square", _X), _Y: call("square", _Y)}
    rules = Normaliser()
    rules.number(substitute(score, squares))
    assert rules.count[rule]


def test_only_frames_are_certified_as_isometries():
    q, k, f = param("q", "bhid"), param("k", "bhjd"), param("f", "de")
    certify("isometry", "frames", ("equal", call("turn", f, q) @ call("turn", f, k), q @ k))
    with pytest.raises(ScoreError, match="does not hold"):
        certify("planted", "a lie", ("equal", call("matvec", f, q) @ call("matvec", f, k), q @ k))


def test_angles_are_known_by_their_use_not_by_their_name():
    @aatc.metric(phi="id", psi="jd")
    def turned(q, k, phi, psi):
        d = metrics.word("rotate", q, phi, attrs=("half",)) - metrics.word("rotate", k, psi, attrs=("half",))
        return -d.dot(d)

    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.float64) for _ in range(3))
    metric = turned(phi=torch.randn(6, 2, dtype=torch.float64), psi=torch.randn(6, 2, dtype=torch.float64))
    built = build(q, k, v, metric=metric)
    torch.testing.assert_close(built.run()[0], built.eager[0])
    assert any(c.rule == "normal-form" for c in built.result.module.certificates)


@pytest.mark.parametrize(
    "score",
    [
        lambda q, k, w, p: -(0.1 * k.sum() - q).square().sum(),
        lambda q, k, w, p: -(0.1 * q.sum() - k).square().sum(),
        lambda q, k, w, p: q.dot(w * p) + q.dot(k),
    ],
    ids=["key's number", "query's number", "vector of no token times a key's number"],
)
def test_numbers_beside_vectors(score):
    """What is broadcast against a vector is none: no mean is taken of it, and it does not take a vector's place."""
    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.float64) for _ in range(3))
    w, p = torch.randn(4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    built = build(q, k, v, metric=aatc.metric(w="d", p="j")(score)(w=w, p=p))
    torch.testing.assert_close(built.run()[0], built.eager[0])


def test_frames_that_differ_are_no_isometry():
    q, k = param("q", "bhid"), param("k", "bhjd")
    f, g = param("f", "ide"), param("g", "ide")
    e = call("dot", call("turn", f, q), call("turn", g, k))
    rules = Normaliser()
    rules.number(e)
    assert not rules.count["isometry"]


def test_static_bounds_know_unit_vectors_and_nothing_more():
    q, k = param("q", "bhid"), param("k", "bhjd")

    def unit(x):
        return x / (x @ x).sqrt()

    assert static_bound(3.0 * (unit(q) @ unit(k)))[1] == pytest.approx(3.0, rel=1e-4)
    assert static_bound(unit(q) @ k)[1] == float("inf")
    assert static_bound(-param("beta", "h") * call("acosh", q @ k))[1] == float("inf")
    assert static_bound(-call("acosh", q @ k)) == (float("-inf"), 0.0)


@pytest.mark.parametrize("form", [
    lambda x, c: x * call("rsqrt", x @ x + c), lambda x, c: x / call("sqrt", c + x @ x),
    lambda x, c: x * call("reciprocal", call("sqrt", x @ x + c)),
    lambda x, c: x / call("maximum", call("sqrt", x @ x + c), const(0.1)),
])  # fmt: skip
def test_only_what_adds_to_a_length_makes_no_vector_longer_than_one(form):
    """|x| = 1 becomes 100 where 0.9999 is taken away from its square."""
    q, k = param("q", "bhid"), param("k", "bhjd")
    for added in (0.0, 1e-6, 0.5):
        assert static_bound(form(q, const(added)) @ form(k, const(added)))[1] == pytest.approx(1.0, rel=1e-4)
    for taken in (-1e-6, -0.9999):
        assert static_bound(form(q, const(taken)) @ form(k, const(0.0))) == (float("-inf"), float("inf"))
        assert static_bound(form(q, const(0.0)) @ form(k, const(taken))) == (float("-inf"), float("inf"))


# --- tiling ------------------------------------------------------------------------------------------------
def test_a_window_visits_few_tiles():
    from aatc.ir.tilemap import FULL, PARTIAL, TileMap

    i, j = index("i"), index("j")
    tiles = TileMap.of(Program.of((i - j < 64) & (j - i < 64)), [], (1, 1, 1024, 1024), 64, 64, 1)
    assert tiles.counts == {"empty": 256 - 46, "partial": 30, "full": 16}
    causal = TileMap.of(Program.of(j <= i), [], (1, 1, 1024, 1024), 64, 64, 1)
    assert causal.counts == {"empty": 120, "partial": 16, "full": 120}
    assert causal.runs()[0, 640 // 64].tolist() == [[0, 640, FULL], [640, 704, PARTIAL], [0, 0, 0]]


@given(attentions(torch.float64))
def test_tile_maps_never_call_an_open_tile_empty(drawn):
    from aatc.ir.score.evaluate import evaluate
    from aatc.ir.tile_evaluate import bind
    from aatc.ir.tilemap import EMPTY, FULL, TileMap

    q, k, v, parts, _, _ = drawn
    built = build(q, k, v, **parts)
    (op,) = [o for o in built.result.stages["fuse-attention"].walk() if o.name == "geo.attend"]
    if "mask" not in op.attrs:
        return
    main = built.result.stages["fuse-attention"].entry
    arguments = dict(zip(main.args, built.operands, strict=True))
    env = {n: arguments[x] for n, x in zip(op.attrs["names"], op.operands, strict=True) if x in arguments}
    mask, sizes = op.attrs["mask"], (*q.shape[:3], k.shape[2])
    captures = [env[n] for n in mask.names]
    tiles = TileMap.of(mask, captures, sizes, 4, 3, 1)
    keep = (
        evaluate(mask.body, bind(mask, captures, sizes), sizes, dtype=torch.float64)[..., 0].expand(sizes).flatten(0, 1)
    )
    for g in range(keep.shape[0]):
        for r, row in enumerate(tiles.kinds[g % len(tiles.kinds)]):
            for c, kind in enumerate(row):
                block = keep[g, 4 * r : 4 * r + 4, 3 * c : 3 * c + 3]
                assert not (kind == EMPTY and block.any()) and not (kind == FULL and not block.all())


def test_what_cannot_be_tiled_runs_by_its_formula_and_says_so():
    @aatc.metric(w="de")
    def mixed(q, k, w):
        return -(w @ torch.tanh(q - k)).abs().sum()

    q, k, v = (torch.randn(1, 1, 5, 4, dtype=torch.float64) for _ in range(3))
    built = build(q, k, v, metric=mixed(w=torch.randn(4, 4, dtype=torch.float64)))
    torch.testing.assert_close(built.run()[0], built.eager[0])
    (note,) = [n for r in built.result.report for n in r.notes if "reference formula" in n]
    assert "mixes channels" in note


def test_memory_plans_are_tight_and_do_not_overlap():
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        intervals = []
        for _ in range(20):
            start, length, size = (int(torch.randint(0, n, (), generator=generator)) for n in (30, 8, 6))
            intervals.append(Interval(64 * (size + 1), start, start + length))
        arena = place(intervals)
        for n, x in enumerate(intervals):
            for y in intervals[:n]:
                if x.start <= y.end and y.start <= x.end:
                    assert x.offset + x.size <= y.offset or y.offset + y.size <= x.offset
        assert max_live(intervals) <= arena <= 1.5 * max_live(intervals)


# --- pipelines ---------------------------------------------------------------------------------------------
def test_pipelines_have_a_text():
    text = "fuse-attention,fuse-normalizer{limit=30.0},adaptive-tile{rows=64},call-library{rows=32},plan-memory"
    assert str(passes.Pipeline.parse(text)) == text
    assert str(passes.default_pipeline()) == passes.DEFAULT


@pytest.mark.parametrize(
    "text, what",
    [
        ("no-such-pass", "no pass named"),
        ("canonicalize{x=1}", "no option"),
        ("adaptive-tile{rows=many}", "type int"),
        ("adaptive-tile{cols=-8}", "cols = -8"),
        ("canonicalize;dead-code", "column"),
        ("", "cannot be read"),
    ],
)
def test_malformed_pipelines_say_what_is_wrong(text, what):
    with pytest.raises(PassError, match=what):
        passes.Pipeline.parse(text)


@pytest.mark.parametrize(
    ("backend", "tiles"),
    [
        *(("cpu", t) for t in ("rows=8 cols=8", "rows=8 cols=10 grain=4", "rows=3 cols=7 grain=100", "cols=1")),
        *(("native", t) for t in ("rows=8 cols=16", "rows=5 cols=48 grain=16", "rows=1 cols=64 grain=100")),
    ],
)
def test_tiles_of_any_size_under_a_mask_agree_with_the_reference(backend, tiles):
    q, k, v = (torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (33, 50, 50))
    q.requires_grad_(), k.requires_grad_()

    def attended(q, k, v):
        return aatc.attend(q, k, v, metric=metrics.SphereGeodesic(), mask=masks.causal())

    pipeline = str(backends.pipeline(backend)).replace("call-library,", "")
    pipeline = pipeline.replace("adaptive-tile", f"adaptive-tile{{{tiles}}}")
    compiled = aatc.compile(attended, backend=backend, passes=pipeline, fallback=False)
    results = [f(q, k, v) for f in (compiled, attended)]
    for got, want in zip(*[(o, *torch.autograd.grad(o.square().sum(), (q, k))) for o in results]):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)


def test_order_is_checked():
    with pytest.raises(PassError, match="adaptive-tile requires"):
        passes.Pipeline.parse("adaptive-tile").run(module("dot"))


@dataclass(frozen=True)
class CountOps(passes.Pass):
    """Counts operations; for tests."""

    factor: int = 1
    name: ClassVar[str] = "count-ops"

    def run(self, module, ctx):
        ctx.count("seen", self.factor * sum(1 for _ in module.walk()))
        return module


def test_a_users_pass_runs_in_its_place():
    result = passes.default_pipeline([CountOps(2)]).run(module("dot"))
    names = [r.name for r in result.report]
    assert names.index("count-ops{factor=2}") == names.index("fuse-attention") + 1
    assert next(r for r in result.report if r.name.startswith("count-ops")).rewrites["seen"] > 0


def test_a_pass_that_breaks_the_module_is_caught():
    @dataclass(frozen=True)
    class Break(passes.Pass):
        name: ClassVar[str] = "break"

        def run(self, module, ctx):
            module.entry.body.ops.pop(0)
            return module

    with pytest.raises(aatc.errors.PassError, match="pass break failed: VerifyError") as caught:
        passes.Pipeline((Break(),)).run(module("dot"))
    assert isinstance(caught.value.__cause__, aatc.errors.VerifyError)


def test_constants_fold_and_duplicates_merge():
    text = """
geo.func @main(%x: f32[3]) {
  %a = geo.constant() {values = [1.0, 2.0, 3.0], type = type(f32[3])} : f32[3]
  %b = torch.call(%a, %a) {target = "aten.add.Tensor", args = [#0, #1]} : f32[3]
  %c = torch.call(%x, %b) {target = "aten.mul.Tensor", args = [#0, #1]} : f32[3]
  %d = torch.call(%x, %b) {target = "aten.mul.Tensor", args = [#0, #1]} : f32[3]
  %e = torch.call(%c, %d) {target = "aten.add.Tensor", args = [#0, #1]} : f32[3]
  %dead = torch.call(%c, %d) {target = "aten.sub.Tensor", args = [#0, #1]} : f32[3]
  geo.return(%e)
}
"""
    before = parse(text)
    after = passes.Pipeline.parse("canonicalize").run(before).module
    x = torch.randn(3)
    torch.testing.assert_close(aatc.run(after, x), aatc.run(before, x))
    assert [o.name for o in after.walk()].count("torch.call") == 2
