"""Keys that go in parts at the same time, whose sums are merged: ``split-keys`` of a schedule."""

import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aatc
from aatc import backends, biases, masks, metrics, normalizers, passes
from aatc.errors import ScheduleError, VerifyError
from aatc.ir.legal import Held, Workload, legal
from aatc.ir.normalizers import SCORE, Normalizer
from aatc.ir.normalizers.base import MASS
from aatc.ir.normalizers.probe import probe
from aatc.ir.normalizers.softmax import Softmax
from aatc.ir.parser import parse
from aatc.ir.schedule import Schedule
from aatc.ir.score.expr import ONE, call
from aatc.ir.target import Target
from aatc.passes.cost_model import default_schedule
from aatc.passes.schedule_space import thread_space
from tests.compiler.harness import module_of, record
from tests.compiler.test_passes import GEO_PASSES, module
from tests.conformance.interpreting import Interpreting
from tests.neutral.to_c import Kernel

PARTS = "split(g, {g}) split(i, 4) split(j, 16) grain(j, 4) split-keys({parts})"


def wished(parts, heads=1):
    return str(passes.ScheduleAttention(given=f"attend0.forward: {PARTS.format(parts=parts, g=heads)}"))


def made(backend, q, k, v, parts, heads=1, **what):
    """(the module after all passes, what runs it, its operands, the eager result)."""
    operands, spec, eager = record(q, k, v, **what)
    wish = f"{GEO_PASSES},{wished(parts, heads)},adaptive-tile,{backend.suffix.replace('call-library,', '')}"
    found = passes.Pipeline.parse(wish).run(module_of(operands, spec), target=backend.target()).module
    return found, backend.build(found), operands, eager


def every_backend():
    return [Interpreting(), *(backends.get(n) for n in ("cpu", "native") if backends.get(n).devices())]


# --- the tile program ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["euclidean", "sphere"])
def test_tile_programs_golden(name, golden):
    """Without a mask, and with one."""
    pipeline = passes.Pipeline.parse(f"{GEO_PASSES},{wished(2)},adaptive-tile")
    found = pipeline.run(module(name)).module
    found.funcs = {n: f for n, f in found.funcs.items() if n == "attend0"}
    golden(f"{name}.parts.aatc", str(found))


def test_a_tile_program_in_parts_is_its_text():
    for name in ("euclidean", "sphere"):
        found = passes.Pipeline.parse(f"{GEO_PASSES},{wished(3)},adaptive-tile").run(module(name)).module
        assert parse(str(found)) == found
        assert str(found).count("tile.for_part" if name == "euclidean" else "tile.sweep_part") >= 1


def broken(old, new, name="euclidean"):
    text = str(passes.Pipeline.parse(f"{GEO_PASSES},{wished(2)},adaptive-tile").run(module(name)).module)
    assert old in text
    return parse(text.replace(old, new))


@pytest.mark.parametrize(
    "old, new, says",
    [
        # every part would write to the place of the first
        (
            'tile.store(%l, %l_parts, %g, %s, %i) {axes = "gsi", add = false}',
            'tile.store(%l, %l_parts, %g, %s, %i) {axes = "gsi", add = false}\n'
            'tile.store(%l, %lse_all, %g, %i) {axes = "gi", add = false}',
            "write to the same places",
        ),
        ("parts = 2", "parts = 3", "3 parts"),
        ("parts = 2", "parts = 0", "at least one part"),
        ("tile.for_part(%s,", "tile.for_part(%i,", "axis s"),
        ('axis = "s", upper = 2, step = 1, kind = "seq"', 'axis = "s", upper = 3, step = 1, kind = "seq"', "bounds"),
        ('axis = "s", upper = 2, step = 1, kind = "seq"', 'axis = "s", upper = 2, step = 2, kind = "seq"', "one part"),
        ('axis = "s", upper = 2, step = 1, kind = "seq"', 'axis = "s", upper = 2, step = 1, kind = "par"', "hand"),
    ],
)
def test_programs_that_race_or_lose_a_part_are_refused(old, new, says):
    with pytest.raises(VerifyError, match=says):
        broken(old, new).verify()


# --- what is legal -------------------------------------------------------------------------------------------
WORK = Workload("forward", 4, 1, 8192, 4, 64, 2)


@pytest.mark.parametrize(
    "work, directive, says",
    [
        (replace(WORK, direction="backward"), "split-keys(2)", "a backward"),
        (replace(WORK, unmerged="relu"), "split-keys(2)", "relu cannot merge"),
        (WORK, "split-keys(0)", "1 to 4096"),
        (WORK, "split-keys(5000)", "1 to 4096"),
        (WORK, "split-keys(2) split-keys(3)", "second split-keys"),
        (replace(WORK, problems=1 << 12, rows=1 << 12), "split-keys(64)", "sums of all parts"),
    ],
)
def test_what_cannot_be_cut_is_refused(work, directive, says):
    schedule = Schedule.parse(f"split(g, 1) split(i, 1) split(j, 64) {directive}")
    with pytest.raises(ScheduleError, match=says):
        legal(schedule, work, Interpreting().target())


def test_a_normaliser_that_cannot_merge_keeps_its_keys_together():
    class Apart(Softmax):
        name = "apart"
        merges = False

    normalizers.register(Apart())
    q, k, v = (torch.rand(1, 2, 6, 4) for _ in range(3))
    with pytest.raises(ScheduleError, match="apart cannot merge"):
        made(Interpreting(), q, k, v, 2, metric=metrics.DotProduct(), normalizer="apart")


class ForgetsTheLargest(Softmax):
    name = "forgets"

    def merge(self, unit):
        return super().merge(unit)[0], None


class KeepsTheFirst(Softmax):
    name = "keeps"

    def merge(self, unit):
        joined, factors = super().merge(unit)
        return {x: x.value for x in joined}, factors


class Twice(Softmax):
    name = "twice"

    def merge(self, unit):
        joined, (mine, _) = super().merge(unit)
        return joined, (mine, ONE)


@pytest.mark.parametrize("wrong", [ForgetsTheLargest, KeepsTheFirst, Twice])
def test_a_merge_that_is_none_is_noticed(wrong):
    probe(Softmax())
    with pytest.raises(VerifyError, match="merges"):
        probe(wrong())


# --- numbers -------------------------------------------------------------------------------------------------
class Relu(Normalizer):
    name = "relu_in_parts"
    of_weights = (MASS,)

    def weight(self, unit):
        return call("relu", SCORE)


normalizers.register(Relu())
MASKS = {
    "none": lambda: None,
    "causal": masks.causal,
    "window": lambda: masks.sliding_window(3),
    "heads": lambda: masks.predicate(lambda b, h, i, j: j + 2 * h + 3 < 8 * i),  # some rows see nothing
}
METRICS = {
    "dot": metrics.DotProduct(),
    "euclidean": metrics.Euclidean(),
    "lorentz": metrics.LorentzDistance(lift=True),  # a bound of one side: sums that underflow are done again
    "poincare": metrics.Poincare(),
}


def repeated(x, h):
    return x.repeat_interleave(h // x.shape[1], 1)


@settings(max_examples=15)
@given(
    st.sampled_from(list(METRICS)),
    st.sampled_from(list(MASKS)),
    st.sampled_from(["softmax", "sink", "sigmoid", "relu_in_parts"]),
    st.tuples(st.integers(1, 9), st.integers(0, 70)),
    st.sampled_from([(1, 1), (4, 2), (4, 1)]),
    st.integers(1, 7),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.1, 1.0, 30.0]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_any_parts_give_what_float64_gives(kind, mask, normalizer, lengths, heads, parts, step, scale, biased, seed):
    torch.manual_seed(seed)
    n, m = lengths
    h, hk = heads
    q, k, v = torch.randn(2, h, n, 6) * scale, torch.randn(2, hk, m, 6) * scale, torch.randn(2, hk, m, 5)
    if kind == "poincare":
        q, k = (0.9 * x / (1 + x.norm(dim=-1, keepdim=True)) for x in (q, k))
    what = {"metric": METRICS[kind], "mask": MASKS[mask]()}
    if biased:
        what["bias"] = biases.ALiBi(torch.linspace(0.1, 1.0, h))
    what["normalizer"] = normalizers.Softmax(sink=torch.linspace(-1, 2, h)) if normalizer == "sink" else normalizer
    exact = aatc.attend(*(x.double() for x in (q, repeated(k, h), repeated(v, h))), return_lse=True, **what)
    if normalizer == "sink":  # sugar around the kernel
        what["normalizer"] = "softmax"
        exact = aatc.attend(*(x.double() for x in (q, repeated(k, h), repeated(v, h))), return_lse=True, **what)
    for backend in every_backend():
        _, program, operands, _ = made(backend, q, k, v, parts, step, **what)
        o, lse = program.main(*operands)
        size = max(1.0, float(exact[0].abs().amax())) if exact[0].numel() else 1.0
        torch.testing.assert_close(o.double(), exact[0], rtol=2e-5 * scale, atol=2e-5 * size * max(scale, 1))
        torch.testing.assert_close(lse.double(), exact[1], rtol=2e-5 * scale, atol=2e-5 * max(scale, 1) ** 2)


def test_scores_far_apart_from_part_to_part():
    """The largest score of one part is nothing beside that of another; a merge without it would be inf or 0."""
    q = torch.zeros(1, 1, 3, 4)
    q[..., 0] = 1.0
    k = torch.zeros(1, 1, 64, 4)
    k[..., :, 0] = torch.tensor([-400.0, 400.0, 0.0, -200.0]).repeat_interleave(16)
    v = torch.randn(1, 1, 64, 4)
    for order in ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 1, 0), (3, 2, 0, 1)):
        moved = k.reshape(1, 1, 4, 16, 4)[:, :, list(order)].reshape(k.shape)
        want = torch.softmax((q.double() @ moved.double().mT), -1) @ v.double()
        for backend in every_backend():
            _, program, operands, _ = made(backend, q, moved, v, 4, metric=metrics.DotProduct(), scale=1.0)
            torch.testing.assert_close(program.main(*operands)[0].double(), want, rtol=0, atol=1e-6)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize("mask", MASKS)
def test_parts_in_c(mask, tmp_path):
    for n, m, heads in ((3, 37, 1), (5, 70, 2), (1, 8, 4)):
        q, k, v = (torch.rand(2, h, t, 4, dtype=torch.float64) for h, t in ((4, n), (2, m), (2, m)))
        found, _, operands, (o, lse) = made(
            Interpreting(), q, k, v, 3, heads, metric=metrics.DotProduct(), mask=MASKS[mask]()
        )
        (op,) = [op for op in found.walk() if op.name == "geo.kernel"]
        (tmp_path / f"{m}").mkdir()
        got = Kernel(found, found.funcs[op.attrs["forward"].name], tmp_path / f"{m}")(*operands)
        torch.testing.assert_close(got[0], o, rtol=0, atol=1e-11)
        torch.testing.assert_close(got[1], lse, rtol=0, atol=1e-11)


# --- who chooses it ------------------------------------------------------------------------------------------
CORES = Target(
    "native",
    cores=2,
    caches=(48 << 10, 1 << 20),
    vector_bytes=64,
    registers=32,
    directives=("split", "grain", "bind", "pack", "vectorize", "split-keys", "order"),
    levels=("threads",),
)


@pytest.mark.parametrize(
    "problems, shared, rows, cols, width, heads, parts",
    [
        (32, 4, 1, 8192, 128, 4, 16),  # parts that stay in a cache from one of four heads to the next
        (32, 32, 1, 8192, 128, 16, 16),
        (32, 4, 4, 8192, 128, 4, 16),
        (32, 4, 1, None, 128, 4, 8),  # keys of a cache that grows
        (32, 1, 1, 8192, 128, 1, 1),  # enough problems for all cores
        (1, 1, 1, 8192, 64, 1, 4),  # one problem for both
        (1, 1, 1, 900, 64, 1, 1),  # too few keys to cut
        (1, 1, 512, 8192, 64, 1, 1),  # enough queries
    ],
)
def test_few_queries_have_their_keys_in_parts(problems, shared, rows, cols, width, heads, parts):
    held = (Held("q", "i", width), Held("k", "j", width), Held("v", "j", width))
    work = Workload("forward", problems, rows, cols, 4, width, 2, held, None, shared)
    s = default_schedule(work, CORES)
    legal(s, work, CORES)
    assert (s.heads, s.parts) == (heads, parts)
    assert default_schedule(replace(work, direction="backward"), CORES).parts == 1
    assert default_schedule(replace(work, unmerged="relu"), CORES).parts == 1
    found = {x.parts for x in thread_space(work, CORES)}
    assert found == {1} if parts == 1 else found >= {1, parts, 2 * parts}


native = pytest.mark.skipif(not backends.get("native").devices(), reason="no native kernels here")


def decode(q, k, v):
    return aatc.attend(q, k, v, metric=metrics.DotProduct())


@native
def test_decoding_has_the_same_bits_for_any_number_of_threads():
    q, k, v = torch.randn(1, 8, 1, 32), torch.randn(1, 2, 4500, 32), torch.randn(1, 2, 4500, 32)
    run = aatc.compile(decode, backend="native", fallback=False)
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 2, 1):
            torch.set_num_threads(n)
            found.append(run(q, k, v))
    finally:
        torch.set_num_threads(before)
    assert "split-keys(" in str(run.explain())
    assert all(torch.equal(x, found[0]) for x in found)
    exact = decode(*(x.double() for x in (q, k, v)))
    torch.testing.assert_close(found[0].double(), exact, rtol=0, atol=1e-6)


def test_heads_that_share_their_keys_are_known():
    for heads, keys, shared in ((8, 2, 4), (8, 8, 1), (8, 1, 8), (12, 4, 3)):
        q, k, v = (torch.rand(1, h, n, 4) for h, n in ((heads, 1), (keys, 20), (keys, 20)))
        taken, spec, _ = record(q, k, v, metric=metrics.DotProduct())
        fused = passes.Pipeline.parse(GEO_PASSES).run(module_of(taken, spec)).module
        (op,) = [op for op in fused.walk() if op.name == "geo.attend"]
        assert Workload.of(op).shared == shared


@native
def test_a_cache_that_grows():
    """One program for all lengths, shorter than a part's step and without keys among them; and its gradients."""
    run = aatc.compile(decode, backend="native", fallback=False, dynamic=True)
    for m in (700, 4500, 3, 1300, 9000):
        inputs = [torch.randn(1, h, n, 16, requires_grad=True) for h, n in ((4, 1), (2, m), (2, m))]
        exact = [x.detach().double().requires_grad_() for x in inputs]
        got, want = run(*inputs), decode(*exact)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-6)
        probe_ = torch.randn_like(got)
        found = torch.autograd.grad(got, inputs, probe_)
        for x, y in zip(found, torch.autograd.grad(want, exact, probe_.double()), strict=True):
            torch.testing.assert_close(x.double(), y, rtol=0, atol=1e-5)


def test_dropped_weights_are_the_same_in_parts():
    """Who is dropped depends on the pair, and not on the part."""
    q, k, v = (torch.rand(1, 2, n, 4, dtype=torch.float64) for n in (3, 60, 60))
    what = {"metric": metrics.DotProduct(), "dropout": 0.5, "seed": 5}
    for backend in every_backend():
        torch.manual_seed(3)
        _, whole, operands, _ = made(backend, q, k, v, 1, **what)
        torch.manual_seed(3)
        _, program, same, _ = made(backend, q, k, v, 3, **what)
        assert all(torch.equal(a, b) for a, b in zip(operands, same, strict=True))
        torch.testing.assert_close(program.main(*same)[0], whole.main(*operands)[0], rtol=0, atol=1e-12)
