"""Attention on a device: every kind, mask and size against plain torch in float64, forward and gradients."""

import os
import subprocess
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

import aatc
from aatc import backends, passes
from aatc.backends.vulkan import VulkanBackend, spirv
from aatc.backends.vulkan import compiled as compiled_kernels
from aatc.backends.vulkan.compiled import Compiled
from aatc.backends.vulkan.lower import lower
from aatc.backends.vulkan.whole import Device
from aatc.ir.errors import DeviceLimitError, UnsupportedError
from tests.compiler.draw import attentions
from tests.compiler.harness import record
from tests.conformance.cases import KINDS, MASKS, Sizes, case
from tests.conformance.test_conformance import agree, check, compiled, off
from tests.vulkan.running import EXECUTORS, need, usable

#: Small tiles, of which every case has several, with ragged edges; few threads, so that drivers compile little.
SMALL = passes.ScheduleAttention(
    given="\n".join(
        f"attend0.{direction}: split(g, 1) split(i, 16) split(j, 8) grain(j, 8) split(ii, 4) split(jj, 4) "
        f"bind(g, workgroups) bind(i, workgroups) bind(ii, lanes) bind(jj, lanes){more}"
        for direction, more in (("forward", ""), ("backward", " order(rows-and-columns)"))
    )
)
TILES = f"{SMALL},adaptive-tile"
F32 = torch.float32

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vulkan():
    """The backend under the first executor that runs here."""
    made = VulkanBackend()
    made.executor = next((name for name in ("native", "wgpu", "kompute") if not usable(name)), "")
    if not made.executor:
        need("native")
    return made


def on_device(vulkan, kind, mask="causal", sizes="ragged"):
    """Agrees with plain torch, and all of single precision has kernels."""
    c = case(kind, mask, F32, sizes)
    module, program, operands = compiled(vulkan, c.operands, c.parts, TILES)
    for name in ("attend0", "attend0_backward"):
        assert isinstance(vulkan.compile(module.funcs[name])[0], Compiled)
    agree(c, program, operands, F32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(vulkan, kind):
    on_device(vulkan, kind)


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask(vulkan, mask):
    on_device(vulkan, "dot product", mask)


@pytest.mark.parametrize("sizes", ["even", "tall", "wide", "single", "without keys", "without queries"])
def test_every_size(vulkan, sizes):
    on_device(vulkan, "dot product", "causal" if sizes == "even" else "none", sizes)


@aatc.metric(t="ht")
def looked_up(q, k, i, j, t):
    return (q * k).sum() + aatc.metrics.lookup(t, j) + aatc.metrics.lookup(t, j - i)


def test_positions_beyond_a_table_read_its_ends(vulkan):
    """And not the next head's: read once per key and once per pair, of 21 positions that go from -20 to 18."""
    q, k, v, t = torch.randn(1, 2, 21, 4), torch.randn(1, 2, 19, 4), torch.randn(1, 2, 19, 4), 3 * torch.randn(2, 5)
    module, program, operands = compiled(vulkan, [q, k, v], {"metric": looked_up(t=t)}, TILES)
    assert isinstance(vulkan.compile(module.funcs["attend0"])[0], Compiled)
    at, apart = torch.arange(19).clamp(max=4), (torch.arange(19) - torch.arange(21)[:, None]).clamp(0, 4)
    exact = [x.double() for x in (q, k, v, t)]
    score = exact[0] @ exact[1].mT + exact[3][:, None, at] + exact[3][:, apart]
    assert off(program.main(*operands)[0], torch.softmax(score, -1) @ exact[2]) <= 5e-6


def test_vectors_of_one_feature_and_matrices(vulkan):
    """Values of one feature; a metric's matrix, with its gradient."""
    q, k = torch.randn(1, 2, 21, 5), torch.randn(1, 2, 19, 5)
    v, a = torch.randn(1, 2, 19, 1), torch.eye(5) + 0.1 * torch.randn(5, 5)
    given = [t.requires_grad_() for t in (q, k, v, a)]
    exact = [t.detach().double().requires_grad_() for t in given]

    def formula(q, k, v, a):
        d = q.unsqueeze(3) - k.unsqueeze(2)
        scores = -((d @ a) * d).sum(-1) * 5**-0.5
        return torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1)

    parts = {"metric": aatc.metrics.Mahalanobis(matrix=given[3])}
    module, program, operands = compiled(vulkan, given[:3], parts, TILES)
    assert isinstance(vulkan.compile(module.funcs["attend0_backward"])[0], Compiled)
    got, want = program.main(*operands), formula(*exact)
    assert off(got[0], want[0]) <= 5e-6
    found, wanted = (torch.autograd.grad(x[0].square().sum(), y) for x, y in ((got, given), (want, exact)))
    assert all(off(g, w) <= 5e-5 for g, w in zip(found, wanted, strict=True))


def test_half_precision_is_single_precision_rounded_once(vulkan):
    check(vulkan, "lorentz inner", "causal", torch.bfloat16, tiles=TILES)


#: Kinds whose first version has a condition; queries and keys that lie so far apart that it holds.
SPREAD = {"lorentz distance": (0.3, 2.0), "poincare": (0.2, 0.4), "fisher-rao": (0.05, 0.4)}


def spread(kind):
    """Queries along one axis, keys along another."""
    c = case(kind, "causal", F32)
    near, far = SPREAD[kind]
    with torch.no_grad():
        for n, x in enumerate(c.operands[:2]):
            x.copy_(near * torch.rand_like(x))
            x[..., n] += far
            if kind == "fisher-rao":
                x /= x.sum(-1, keepdim=True)
    return c


@pytest.mark.parametrize("kind", SPREAD)
def test_distances_of_points_that_are_far_apart_stay_on_the_device(vulkan, kind):
    c = spread(kind)
    module, program, operands = compiled(vulkan, c.operands, c.parts, TILES)
    run, _ = vulkan.compile(module.funcs["attend0"])
    assert isinstance(run, Compiled)
    assert run(*(t.detach() for t in operands)) is not None
    agree(c, program, operands, F32)


@pytest.mark.parametrize("mask", ["none", "window"])
@pytest.mark.parametrize("heads", [1, 2])
def test_keys_in_parts(vulkan, mask, heads):
    given = f"attend0.forward: split(g, {heads}) split(i, 16) split(j, 16) grain(j, 8) split-keys(3)"
    check(vulkan, "alibi", mask, F32, tiles=f"{passes.ScheduleAttention(given=given)},adaptive-tile")


def test_lengths_change_and_no_kernel_is_compiled_again(vulkan):
    def f(q, k, v):
        return aatc.attend(q, k, v, metric=aatc.metrics.Euclidean(), mask=aatc.masks.causal())

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends.found._backends, "vulkan", vulkan)
        run = aatc.compile(f, backend="vulkan", fallback=False, dynamic=True)
        counts = []
        for n in (37, 70, 41):
            q, k, v = (torch.randn(1, 2, n, 8, requires_grad=True) for _ in range(3))
            got, want = run(q, k, v), f(*(t.double() for t in (q, k, v)))
            assert off(got, want) <= 5e-5
            found, wanted = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (got, want))
            assert all(off(g, w.double()) <= 5e-5 for g, w in zip(found, wanted, strict=True))
            counts.append(vulkan._open().counters.shaders)
        assert counts[0] == counts[1] == counts[2]
        # more lengths than programs are kept: the one that was used for longest makes room, and is made anew
        patch.setattr(compiled_kernels, "PLANS", 2)
        for n in (12, 37, 37, 70, 12):
            q, k, v = given = [torch.randn(1, 2, n, 8, requires_grad=True) for _ in range(3)]
            got, exact = run(q, k, v), [t.detach().double().requires_grad_() for t in given]
            s = -(exact[0].unsqueeze(3) - exact[1].unsqueeze(2)).square().sum(-1) * 8**-0.5
            s = s.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
            want = torch.softmax(s, -1) @ exact[2]
            assert off(got, want) <= 5e-5
            found, wanted = (torch.autograd.grad(y.square().sum(), x) for y, x in ((got, given), (want, exact)))
            assert all(off(g, w) <= 5e-5 for g, w in zip(found, wanted, strict=True))


# --- devices -------------------------------------------------------------------------------------------------
def results(vulkan, module, operands, device=None):
    """Of the forward and backward kernels, with gradients of ones."""
    executor, out = vulkan._open(), []
    given = [t.detach() for t in operands]
    for name in ("attend0", "attend0_backward"):
        func = module.funcs[name]
        run = Compiled(lower(func, device or Device()), executor, lambda: None)
        found = run(*given)
        assert found is not None
        out += found
        given = [torch.ones_like(found[0]), torch.ones_like(found[1]), *found[2:], *given]
        run.close()
    return out


@pytest.mark.parametrize("kind", ["alibi", "relative table"])
def test_without_subgroups_lanes_meet_in_shared_memory(vulkan, kind):
    c = case(kind, "window", F32)
    module, _, operands = compiled(vulkan, c.operands, c.parts, TILES)
    func = module.funcs["attend0"]
    features = [d.kernel.features for d in lower(func).template.dispatches]
    assert any("subgroup" in x for x in features)
    assert not any(d.kernel.features for d in lower(func, Device(subgroup=0)).template.dispatches)
    want, got = results(vulkan, module, operands), results(vulkan, module, operands, Device(subgroup=0))
    assert all(off(g, w) <= 1e-6 for g, w in zip(got, want, strict=True))


def test_operands_are_read_from_the_arena_where_shared_memory_is_small(vulkan):
    c = case("alibi", "causal", F32)
    module, _, operands = compiled(vulkan, c.operands, c.parts, TILES)
    want, got = results(vulkan, module, operands), results(vulkan, module, operands, Device(shared_bytes=2048))
    small = lower(module.funcs["attend0"], Device(shared_bytes=2048)).template.dispatches
    assert max(d.kernel.shared_bytes for d in small) <= 2048
    assert all(off(g, w) <= 1e-6 for g, w in zip(got, want, strict=True))
    with pytest.raises(UnsupportedError, match="needs more shared memory than the 64 bytes"):
        lower(module.funcs["attend0"], Device(shared_bytes=64))


def test_all_executors_give_the_same_bits(vulkan):
    c = case("alibi", "causal", F32)
    found = {}
    for name in EXECUTORS:
        if not usable(name):
            vulkan = VulkanBackend()
            vulkan.executor = name
            module, _, operands = compiled(vulkan, c.operands, c.parts, TILES)
            device = Device(subgroup=0)  # what all of them can do
            found[name] = results(vulkan, module, operands, device)
    if len(found) < 2:
        pytest.skip(f"one executor is here: {', '.join(found)}")
    first, *others = found.values()
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_loops_longer_than_a_driver_goes_are_refused(vulkan, monkeypatch):
    c = case("dot product", "none", F32, Sizes(1, 1, 1, 16, 64, 4))
    module, _, operands = compiled(vulkan, c.operands, c.parts, TILES)
    run, _ = vulkan.compile(module.funcs["attend0"])
    executor = vulkan._open()
    monkeypatch.setattr(executor, "device", replace(executor.device, trips=5))
    with pytest.raises(DeviceLimitError, match="the loops of kernel attend0_mass go"):
        run(*(t.detach() for t in operands))


def test_double_precision_runs_on_the_cpu_and_says_so(vulkan):
    c = case("euclidean", "causal", torch.float64)
    module, program, operands = compiled(vulkan, c.operands, c.parts, TILES)
    _, text = vulkan.compile(module.funcs["attend0"])
    assert text.startswith("// @attend0 runs on the CPU: ")
    agree(c, program, operands)


def test_dropout_draws_the_same_numbers(vulkan):
    q, k, v = (torch.randn(1, 2, 21, 8) for _ in range(3))
    parts = {"metric": aatc.metrics.DotProduct(), "dropout": 0.4, "seed": torch.tensor(7)}
    taken, _, eager = record(q, k, v, **parts)
    module, program, _ = compiled(vulkan, [q, k, v], parts, TILES)
    assert isinstance(vulkan.compile(module.funcs["attend0"])[0], Compiled)
    assert off(program.main(*taken)[0], eager[0].double()) <= 5e-6


@pytest.mark.parametrize("kind", ["alibi", "relative table", "mahalanobis", "poincare", "hyperboloid transport"])
def test_modules_are_valid(vulkan, kind, tmp_path):
    """Every kernel of a kind, with subgroups and without, by the validator of SPIR-V."""
    found = spirv.tool("spirv-val")
    if found is None or spirv.why_not():
        pytest.skip("spirv-val or a compiler of GLSL is not installed; make vulkan installs what it can")
    program, environment = found
    c = case(kind, "causal", F32)
    module, _, _ = compiled(vulkan, c.operands, c.parts, TILES)
    texts = {}
    for name in ("attend0", "attend0_backward"):
        for device in (Device(), Device(subgroup=0)):
            for d in lower(module.funcs[name], device).template.dispatches:
                texts[d.kernel.glsl] = d.kernel.name
    for n, (text, name) in enumerate(texts.items()):
        path = tmp_path / f"{n}.spv"
        path.write_bytes(spirv.compile_glsl(text, name))
        command = [program, "--target-env", "vulkan1.1", path]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


def test_a_forward_whose_backward_has_no_kernels_runs_on_the_cpu(vulkan):
    """A backward by rows: its forward's numbers would have other bits."""
    given = (
        str(SMALL.given)
        .replace(" order(rows-and-columns)", " order(rows)")
        .replace(
            "backward: split(g, 1) split(i, 16) split(j, 8) grain(j, 8) split(ii, 4) split(jj, 4) bind(g, workgroups) "
            "bind(i, workgroups)",
            "backward: split(g, 1) split(i, 16) split(j, 8) grain(j, 8) split(ii, 4) split(jj, 4) bind(g, workgroups)",
        )
    )
    c = case("dot product", "causal", F32)
    module, program, operands = compiled(
        vulkan, c.operands, c.parts, f"{passes.ScheduleAttention(given=given)},adaptive-tile"
    )
    for name in ("attend0", "attend0_backward"):
        assert "@attend0_backward: a product tn" in vulkan.compile(module.funcs[name])[1].partition("\n")[0]
    assert program.attentions[0]["engine"].startswith("the CPU, as there is no kernel (@attend0_backward: ")
    agree(c, program, operands, F32)


# --- more of the contract ------------------------------------------------------------------------------------
@settings(max_examples=4)
@given(drawn=attentions(F32, connected=False))
def test_drawn_attentions(vulkan, drawn):
    """Of any sizes; the formula in single precision is the other side."""
    q, k, v, parts, _, _ = drawn
    given = [t.requires_grad_() for t in (q, k, v)]
    want = aatc.attend(*given, return_lse=True, **parts)
    _, program, operands = compiled(vulkan, given, parts, TILES)
    got = program.main(*operands)
    assert all(off(g, w.detach().double()) <= 5e-5 for g, w in zip(got, want, strict=True))
    probe = torch.randn_like(want[0])
    found, wanted = (torch.autograd.grad(x, given, probe) for x in (got[0], want[0]))
    largest = max(float(w.abs().max()) for w in wanted)
    assert all(float((g - w).abs().max()) <= 5e-5 * max(largest, 1e-3) for g, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_where_it_is_seen(vulkan, bad):
    c = case("euclidean", "causal", F32, Sizes(1, 2, 2, 40, 40, 4))
    _, program, operands = compiled(vulkan, c.operands, c.parts, TILES)
    q, k, v = (t.detach().clone() for t in operands)
    clean = program.main(q, k, v)[0]
    v[0, 1, 25] = bad
    spoiled = program.main(q, k, v)[0]
    assert not torch.isfinite(spoiled[0, 1, 25:]).any()
    torch.testing.assert_close(spoiled[0, 0], clean[0, 0])
    torch.testing.assert_close(spoiled[0, 1, :25], clean[0, 1, :25])


def test_the_number_of_key_heads_may_vary(vulkan):
    sizes = Sizes(2, 4, 4, 19, 21, 6)
    c = case("dot product", "causal", F32, sizes)
    _, program, _ = compiled(vulkan, c.operands, c.parts, TILES, key_heads="Hk")
    for key_heads in (4, 2, 1):
        c = case("dot product", "causal", F32, sizes._replace(hk=key_heads))
        agree(c, program, record(*c.operands[:3], **c.parts)[0], F32)


def test_gradients_that_nobody_asked_for_change_nothing(vulkan):
    c = case("alibi", "causal", F32)
    _, program, operands = compiled(vulkan, c.operands, c.parts, TILES)
    full = torch.autograd.grad(program.main(*operands)[0].sum(), c.operands)
    for wanted in ([0], [3], [1, 2]):
        given = [t.detach().requires_grad_(n in wanted) for n, t in enumerate(operands)]
        found = torch.autograd.grad(program.main(*given)[0].sum(), [given[n] for n in wanted])
        assert all(torch.equal(g, full[n]) for n, g in zip(wanted, found, strict=True)), wanted
