"""Products of bfloat16 two at a time: where passes make them, that they are right at all edges, and what else runs."""

import dataclasses
import math
import re

import pytest
import torch

from aatc import backends, biases, errors, masks, metrics, passes
from aatc.backends.native import compiled, isa, machine
from aatc.backends.native.regions import generate
from aatc.ir.interpreter import Interpreter
from aatc.ir.parser import parse
from tests.compiler.harness import build

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def few_queries(monkeypatch):
    """Products of bfloat16 even where they do not pay."""
    native = backends.get("native").__class__
    monkeypatch.setattr(native, "suffix", native.suffix.replace("bf16-products", "bf16-products{queries=1}"))


DOT = metrics.DotProduct()
HERE = pytest.mark.skipif(not any(found.bf16 for found in isa.available()), reason="the processor has no such products")


def operands(b, h, hk, n, m, d, e, *, seed=0, amplitude=1.0, dtype=torch.bfloat16):
    g = torch.Generator().manual_seed(seed)
    shapes = (b, h, n, d), (b, hk, m, d), (b, hk, m, e)
    q, k, v = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes)
    return [(amplitude * q).to(dtype), k.to(dtype), v.to(dtype)]


def formula(q, k, v, score=None, opened=None):
    """Output and log-sum-exp in float64, by hand."""
    q, k, v = (t.double() for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    s = q @ k.mT / math.sqrt(q.shape[-1]) if score is None else score(q, k)
    if opened is not None:
        s = s.masked_fill(~opened, -math.inf)
    return s.softmax(-1) @ v, s.logsumexp(-1)


def off(got, want):
    if not want.numel():
        return float(got.shape != want.shape)
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-3))


def forward_text(built):
    return str(built.result.module).partition("tile.func @attend0(")[2].partition("tile.func")[0]


def causal(n, m):
    return torch.ones(n, m, dtype=torch.bool).tril()


SIZES = [
    (1, 2, 1, 256, 300, 64, 64),
    (1, 2, 2, 33, 47, 7, 5),
    (1, 1, 1, 130, 131, 1, 1),  # one feature
    (1, 2, 2, 40, 41, 2, 1),
    (2, 2, 1, 64, 129, 17, 16),
    (1, 2, 2, 100, 1, 8, 9),  # one key
    (1, 2, 2, 100, 2, 8, 9),
    (1, 2, 2, 16, 700, 3, 33),
    (1, 1, 1, 1, 64, 8, 8),  # one query
    (2, 1, 1, 0, 5, 4, 4),
    (1, 2, 2, 70, 255, 128, 96),
    (1, 1, 1, 300, 77, 31, 63),
]


@HERE
@pytest.mark.parametrize(
    ("size", "equal"), [(1e-27, True), (1e-36, True), (1e-37, True), (2e-38, True), (1e-27, False), (1e-35, False)]
)
def test_values_close_to_nothing(size, equal):
    """The instruction takes what is below 1.2e-38 for 0, in its sums, too."""
    q, k, v = operands(1, 2, 2, 64, 96, 32, 32)
    v = torch.full_like(v, size) if equal else (v.double() * size).bfloat16()
    v[..., 5] = 0.0
    got = build(3 * q, k, v, metric=DOT, backend="native").run()[0].double()
    want = formula(3 * q, k, v)[0].bfloat16().double()
    assert float((got - want).abs().max()) <= (0.0 if equal else 2.0**-7 * float(want.abs().max()))


@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize("amplitude", [1.0, 5.0])
@pytest.mark.parametrize("sizes", SIZES)
def test_results_are_those_of_the_formula(sizes, amplitude, mask):
    """Outputs within half a unit of their own rounding, and as much for that of the weights; sums are exact."""
    q, k, v = operands(*sizes, amplitude=amplitude)
    parts = {"mask": masks.causal()} if mask == "causal" else {}
    o, lse = build(q, k, v, backend="native", metric=DOT, **parts).run()
    want, lse_want = formula(q, k, v, opened=causal(q.shape[2], k.shape[2]) if parts else None)
    assert off(o, want) <= 2.0**-8
    assert ((lse.double() - lse_want).abs() <= 2e-6 * (1 + amplitude)).all()


@pytest.mark.parametrize("sizes", [(1, 2, 1, 70, 75, 9, 12), (1, 2, 2, 40, 130, 16, 16)])
def test_gradients_are_those_of_the_formula(sizes):
    leaves = [t.requires_grad_() for t in operands(*sizes)]
    built = build(*leaves, backend="native", metric=DOT, mask=masks.causal())
    o, lse = built.run()
    exact = [t.detach().double().requires_grad_() for t in leaves]
    want, lse_want = formula(*exact, opened=causal(sizes[3], sizes[4]))
    probe, pull = torch.randn_like(o), torch.randn_like(lse)
    found = torch.autograd.grad([o, lse], leaves, [probe, pull])
    wanted = torch.autograd.grad([want, lse_want], exact, [probe.double(), pull.double()])
    assert all(off(g, w) <= 1e-2 for g, w in zip(found, wanted, strict=True))


def test_weights_are_rounded_together_with_their_sum():
    """Values that are all the same come out as they are, whatever the weights."""
    q, k, v = operands(1, 1, 1, 60, 200, 8, 12, amplitude=4.0)
    v = v[:, :, :1].expand_as(v)
    for metric in (DOT, metrics.LorentzDistance(lift=True), metrics.Euclidean()):
        o, _ = build(q, k, v, backend="native", metric=metric).run()
        assert torch.equal(o, v[:, :, :1].expand_as(o)), metric


def test_other_scores_and_biases():
    q, k, v = operands(1, 2, 2, 90, 101, 12, 20)
    slopes = torch.tensor([0.5, 0.05])

    def alibi(q, k):
        i, j = torch.arange(90).unsqueeze(1), torch.arange(101)
        return q @ k.mT / math.sqrt(12) - slopes.double().reshape(2, 1, 1) * (i - j).abs()

    built = build(q, k, v, backend="native", metric=DOT, bias=biases.ALiBi(slopes))
    (o, lse), (want, lse_want) = built.run(), formula(q, k, v, alibi)
    assert off(o, want) <= 2.0**-8 and off(lse, lse_want) <= 1e-6
    built = build(q, k, v, backend="native", metric=metrics.Euclidean())
    (o, lse), (want, lse_want) = built.run(), formula(q, k, v, lambda q, k: -(torch.cdist(q, k) ** 2) / math.sqrt(12))
    assert off(o, want) <= 2.0**-8 and off(lse, lse_want) <= 2e-6


# --- which products --------------------------------------------------------------------------------------------------
@HERE
def test_scores_of_arguments_and_their_values_are_products_of_bf16():
    built = build(*operands(1, 2, 2, 64, 128, 16, 16), backend="native", metric=DOT, mask=masks.causal())
    text = forward_text(built)
    assert "panels(64, 2)" in text and "panels(2)" in text and "tile.require" in text
    assert "tile.pack" not in text and "bf16[2,128,16]" not in text  # panels are filled from the operands
    assert '{form = "nt", factor = 0.36' in text  # the scale stands behind the sum: a factor would be rounded
    assert '= tile.reduce(%p_r, %l_s_r) {op = "sum", over = "j"}' in text  # what divides the output
    llvm = backends.get("native").listing(built.result.module.funcs["attend0"], "llvm")
    assert llvm.count("call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512") > 20
    assert "vdpbf16ps" in backends.get("native").listing(built.result.module.funcs["attend0"], "asm")


@HERE
def test_what_would_lose_digits_is_multiplied_in_single_precision():
    q, k, v = operands(1, 2, 2, 64, 96, 16, 16)
    centred = forward_text(build(q, k, v, backend="native", metric=metrics.Euclidean()))
    assert re.search(r'form = "nt".* : .*tile<f32\[1,64,96\]>', centred)
    assert ", 2)" not in centred and "panels(2)" in centred
    free = forward_text(build(q, k, v, backend="native", metric=DOT, normalizer="sigmoid"))
    assert "tile<bf16[" not in free  # such weights have no sum to be divided by
    single = forward_text(build(q.float(), k.float(), v.float(), backend="native", metric=DOT))
    assert "bf16" not in single
    huge = forward_text(build(q, k, v, backend="native", metric=DOT, scale=1e15))
    assert "factor" not in huge and "panels(2)" in huge


@HERE
@pytest.mark.parametrize("setting", ["avx2", "avx512,-bf16", ",-bf16"])
def test_without_the_feature_all_products_are_of_single_precision(monkeypatch, setting):
    monkeypatch.setenv("AATC_ISA", setting)
    assert not isa.host().bf16
    q, k, v = operands(1, 2, 2, 64, 96, 16, 16)
    built = build(q, k, v, backend="native", metric=DOT)
    assert "tile<bf16[" not in str(built.result.module) and "exact" not in str(built.result.module)
    o, lse = built.run()
    want, lse_want = formula(q, k, v)
    assert off(o, want) <= 2.0**-8 and off(lse, lse_want) <= 1e-5


def test_other_features_cannot_be_taken_away(monkeypatch):
    monkeypatch.setenv("AATC_ISA", "avx512,-fma")
    with pytest.raises(errors.BackendError, match="takes away '-fma'"):
        isa.host()


# --- edges -----------------------------------------------------------------------------------------------------------
@HERE
@pytest.mark.parametrize(("left", "right"), [(1e25, 1e-25), (1e-36, 1e36), (3e19, 1e-19)])
def test_long_vectors_take_single_precision(left, right):
    """Products that leave the range of single precision before they are scaled, or come of numbers so small that the
    instruction takes them for 0."""
    q, k, v = operands(1, 2, 2, 64, 70, 16, 16)
    q, k = q * left, k * right
    built = build(q, k, v, backend="native", metric=DOT)
    o, _ = built.run()
    assert [a["kernel"].exact_calls for a in built.program.attentions] == [1]
    assert off(o, formula(q, k, v)[0]) <= 2.0**-8
    q = torch.full_like(q, math.nan)
    assert built.program.main(q, k, v)[0].isnan().all()


@HERE
def test_a_value_that_is_not_finite_spoils_only_rows_that_see_it():
    q, k, v = operands(1, 2, 2, 67, 67, 7, 9)
    built = build(q, k, v, backend="native", metric=DOT, mask=masks.causal())
    clean = built.run()[0]
    for bad in (math.inf, math.nan):
        spoiled = v.clone()
        spoiled[:, :, 33] = bad
        o = built.program.main(q, k, spoiled)[0]
        assert torch.equal(o[:, :, :33], clean[:, :, :33]) and not o[:, :, 33:].isfinite().any()


@HERE
def test_the_same_bits_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(compiled, "ALONE", 0)
    built = build(*operands(2, 4, 2, 333, 301, 33, 40), backend="native", metric=DOT, mask=masks.causal())
    want = built.run()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(g, w) for g, w in zip(built.run(), want, strict=True))


@HERE
def test_checks_of_addresses_find_nothing(monkeypatch):
    monkeypatch.setenv("AATC_CHECK", "bounds")
    for sizes in ((1, 2, 1, 33, 47, 7, 5), (1, 2, 2, 70, 91, 18, 33)):
        q, k, v = operands(*sizes)
        o, _ = build(q, k, v, backend="native", metric=DOT, mask=masks.causal()).run()
        assert off(o, formula(q, k, v, opened=causal(*sizes[3:5]))[0]) <= 2.0**-8


# --- the tile program ------------------------------------------------------------------------------------------------
@HERE
def test_the_tile_program_means_what_the_kernel_does():
    built = build(*operands(1, 2, 1, 40, 70, 7, 5), backend="native", metric=DOT, mask=masks.causal())
    again = parse(str(built.result.module))
    assert again == built.result.module
    o, lse = Interpreter(again).call("main", built.operands)
    got, lse_got = built.run()
    assert off(o, got.double()) <= 2.0**-8 and off(lse, lse_got.double()) <= 1e-5


@HERE
def test_torch_code_refuses_tiles_of_bf16():
    built = build(*operands(1, 2, 2, 64, 96, 16, 16), backend="native", metric=DOT)
    func = built.result.module.funcs["attend0"]
    with pytest.raises(errors.BackendError, match="no tiles like %"):
        backends.get("cpu").compile(func)


@HERE
def test_a_processor_without_the_instruction_multiplies_number_by_number():
    """A tile program that was made for another one."""
    q, k, v = operands(1, 2, 2, 33, 35, 7, 5)
    func = build(q, k, v, backend="native", metric=DOT).result.module.funcs["attend0"]
    for found in isa.available():
        run, text = compiled.compile_tile(func, dataclasses.replace(found, bf16=False))
        assert "dpbf16ps" not in text
        assert off(run(q, k, v)[0], formula(q, k, v)[0]) <= 2.0**-8, found.name


def test_code_for_a_processor_with_the_instruction_assembles(monkeypatch):
    given = dataclasses.replace(
        isa.TABLE["avx512"], cpu="cooperlake", features="-prefer-256-bit,+avx512bf16", bf16=True
    )
    monkeypatch.setattr(isa, "host", lambda: given)
    monkeypatch.setattr(backends.get("native").__class__, "build", lambda self, module: None)
    q, k, v = operands(1, 2, 2, 64, 67, 17, 18)
    func = build(q, k, v, backend="native", metric=DOT).result.module.funcs["attend0"]
    text = generate(func, given, compiled.blocks_of(func, given)).text
    assert "vdpbf16ps" in machine.assembly(text, given)


@HERE
def test_packing_pays_for_many_queries_only(monkeypatch):
    monkeypatch.undo()
    few, many = (forward_text(build(*operands(1, 1, 1, n, 64, 8, 8), backend="native", metric=DOT)) for n in (31, 32))
    assert "tile<bf16[" not in few and "tile<bf16[" in many
    with pytest.raises(errors.PassError, match="queries = 0"):
        passes.Pipeline.parse("bf16-products{queries=0}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 12])
def test_operands_that_are_read_once_are_widened_where_they_are_read(monkeypatch, queries, dtype):
    monkeypatch.undo()
    q, k, v = operands(1, 4, 2, queries, 300, 24, 17, dtype=dtype)
    built = build(q, k, v, backend="native", metric=DOT)
    assert "f32[4,300" not in forward_text(built) and "tile<f32[1,256,24]>" in forward_text(built)
    o, lse = built.run()
    want, lse_want = formula(q, k, v)
    assert off(o, want) <= 2.0**-8 and off(lse, lse_want) <= 1e-6


@HERE
@pytest.mark.parametrize("shape", [(1, 2, 3, 5), (2, 2, 40, 33), (2, 1, 7, 64), (1, 1, 5, 97), (1, 2, 3, 0)])
def test_the_largest_number_of_an_argument(shape):
    """What the condition of products looks at, NaN and subnormal numbers included."""
    t = f"bf16[{','.join(map(str, shape))}]"
    text = f"aatc 2\n\ntile.func @f(%x: {t}) {{\n %y = tile.peak(%x) {{rows = false}} : f32[]\n tile.return(%y)\n}}"
    run, _ = compiled.compile_tile(parse(text).funcs["f"], isa.host())
    x = torch.randn(shape).bfloat16()
    for hostile in (0.0, -7.0, 1e-40, -math.inf, math.nan):
        if x.numel():
            x.view(-1)[-1] = hostile
        want = x.float().abs().max() if x.numel() else torch.tensor(0.0)
        assert torch.equal(run(x)[0].nan_to_num(-1.0), want.nan_to_num(-1.0))
