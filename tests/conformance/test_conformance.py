"""What every backend has to give: the same cases, the same tolerances, an oracle in plain torch.

``pytest tests/conformance`` runs it on all installed backends, ``-k NAME`` on one. Each kind of attention is tried with
some of the masks and sizes, in turn, and with all of them under ``HYPOTHESIS_PROFILE=fuzz``.
"""

import os

import pytest
import torch

import aatc
from aatc import backends, passes
from aatc.errors import ShapeError
from aatc.ir.legal import Workload, legal
from aatc.ir.parser import parse
from tests.compiler.harness import module_of, record
from tests.conformance.cases import KINDS, MASKS, SIZES, TOLERANCES, Sizes, case
from tests.conformance.interpreting import Interpreting

#: Tiles so small that every case has several of them, with ragged edges.
SMALL = "adaptive-tile{rows=16 cols=32 grain=8}"

pytestmark = pytest.mark.usefixtures("one_thread")


def compiled(backend, operands, parts, tiles=SMALL, key_heads=None):
    """(the module after all passes, its program, its operands) of one attention; ``key_heads``: a symbol for these."""
    q, k, v = operands[:3]
    taken, spec, _ = record(q, k, v, **parts)
    text = ",".join(filter(None, [passes.DEFAULT.replace("adaptive-tile", tiles), backend.suffix]))
    result = passes.Pipeline.parse(text).run(module_of(taken, spec, key_heads), target=backend.target())
    return result.module, backend.build(result.module), taken


def off(got, want):
    """The largest deviation relative to the largest number; infinities and NaN must be in the same places."""
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach()
    finite = torch.isfinite(want)
    assert torch.equal(torch.where(finite, 0.0, got), torch.where(finite, 0.0, want))
    if not finite.any():
        return 0.0
    return float((got - want)[finite].abs().max() / want[finite].abs().max().clamp(min=1e-3))


def check(backend, kind, mask="none", dtype=torch.float64, sizes="ragged", tiles=SMALL):
    """Output, log-sum-exp and the gradient of every operand against the oracle."""
    c = case(kind, mask, dtype, sizes)
    _, program, operands = compiled(backend, c.operands, c.parts, tiles)
    agree(c, program, operands, dtype)


def agree(c, program, operands, dtype=torch.float64):
    assert [a["kind"] for a in program.attentions], "the attention has no tile program"
    exact = [t.detach().double().requires_grad_() for t in c.operands]
    want, got = c.formula(*exact), program.main(*operands)
    forward, backward = TOLERANCES[dtype]
    numbers = torch.float32 if dtype == torch.bfloat16 else dtype
    assert (got[0].dtype, got[1].dtype) == (dtype, numbers)
    assert off(got[0], want[0]) <= forward, "output"
    assert off(got[1], want[1]) <= forward, "log-sum-exp"
    torch.manual_seed(1)
    probes = [torch.randn_like(w).masked_fill(~torch.isfinite(w), 0.0) for w in want]
    probes = [p.to(g.dtype) for p, g in zip(probes, got, strict=True)]
    wanted = torch.autograd.grad(want, exact, [p.double() for p in probes], allow_unused=True)
    found = torch.autograd.grad(got, c.operands, probes, allow_unused=True)
    for n, (g, w, t) in enumerate(zip(found, wanted, c.operands, strict=True)):
        g, w = (torch.zeros_like(t) if x is None else x for x in (g, w))
        assert g.dtype == dtype and off(g, w.double()) <= backward, f"gradient of operand {n}"


def in_turn(always, rest, count):
    """(kind, what): every kind with what is ``always`` tried, and with ``count`` of the ``rest``, in turn."""
    count = len(rest) if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else count
    turns = [[rest[(at + k) % len(rest)] for k in range(count)] for at in range(len(KINDS))]
    return [(kind, what) for kind, turn in zip(KINDS, turns, strict=True) for what in (*always, *turn)]


UNDER = in_turn(("none", "causal"), ["window", "predicate", "dense", "documents", "padding"], 2)
IN = in_turn(("even", "without keys"), ["tall", "wide", "single", "without queries"], 2)


def test_all_masks_and_sizes_are_tried():
    for pairs, names in ((UNDER, {*MASKS}), (IN, {*SIZES} - {"ragged"})):
        tried = [what for _, what in pairs]
        assert {*tried} == names and all(tried.count(n) > len(KINDS) / 4 for n in names)


@pytest.mark.parametrize(("kind", "mask"), UNDER)
def test_every_kind_under_several_masks(backend, kind, mask):
    check(backend, kind, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_every_dtype(backend, kind, dtype):
    check(backend, kind, "causal", dtype)


@pytest.mark.parametrize(("kind", "sizes"), IN)
def test_every_kind_in_several_sizes(backend, kind, sizes):
    check(backend, kind, "causal" if sizes in ("even", "without keys") else "none", sizes=sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_key_heads_may_vary(backend, kind):
    """One program, whose key heads are a symbol: as many as q's, half of them, one for all; no number that does not
    divide theirs."""
    sizes = Sizes(2, 4, 4, 19, 21, 6)
    c = case(kind, "causal", sizes=sizes)
    _, program, _ = compiled(backend, c.operands, c.parts, key_heads="Hk")
    for key_heads in (4, 2, 1):
        c = case(kind, "causal", sizes=sizes._replace(hk=key_heads))
        agree(c, program, record(*c.operands[:3], **c.parts)[0])
    for key_heads in (3, 8, 0):
        operands = [t.detach() for t in record(*c.operands[:3], **c.parts)[0]]
        operands[1:3] = (torch.randn(2, key_heads, 21, t.shape[-1], dtype=t.dtype) for t in operands[1:3])
        with pytest.raises(ShapeError, match=rf"{key_heads} along h do not fit 4"):
            program.main(*operands)


#: Three parts of the keys, some of which see nothing: the last ones are empty where keys are few.
PARTS = "split(g, {heads}) split(i, 16) split(j, 16) grain(j, 8) split-keys(3)"


def in_parts(heads=1):
    wish = passes.ScheduleAttention(given=f"attend0.forward: {PARTS.format(heads=heads)}")
    return f"{wish},adaptive-tile"


@pytest.mark.parametrize(("kind", "mask"), in_turn(("none",), ["window", "predicate"], 1))
def test_every_kind_with_its_keys_in_parts(backend, kind, mask):
    check(backend, kind, mask, tiles=in_parts())


@pytest.mark.parametrize("mask", MASKS)
def test_keys_in_parts_under_every_mask(backend, mask):
    """Several problems at a time."""
    check(backend, "dot product", mask, torch.float32, tiles=in_parts(2))


@pytest.mark.parametrize("sizes", [n for n in SIZES if n != "ragged"])
@pytest.mark.parametrize("kind", ["dot product", "sphere", "hyperboloid transport"])
def test_keys_in_parts_in_every_size(backend, kind, sizes):
    check(backend, kind, "causal" if sizes in ("even", "without keys") else "none", torch.bfloat16, sizes, in_parts(2))


# --- more of the contract ----------------------------------------------------------------------------------
@pytest.mark.parametrize("mask", ["none", "causal"])
def test_gradients_that_nobody_asked_for_change_nothing(backend, mask):
    """Every subset of q, k, v: the same numbers as with all of them."""
    c = case("lorentz, learned beta", mask)
    _, program, operands = compiled(backend, c.operands, c.parts)
    full = torch.autograd.grad(program.main(*operands)[0].sum(), c.operands)
    for wanted in ([0], [1], [2], [3], [0, 2], [1, 3]):
        given = [t.detach().requires_grad_(n in wanted) for n, t in enumerate(operands)]
        found = torch.autograd.grad(program.main(*given)[0].sum(), [given[n] for n in wanted])
        for n, g in zip(wanted, found, strict=True):
            assert off(g, full[n]) <= 1e-12, (wanted, n)


def test_operands_may_lie_anywhere_in_memory(backend):
    """Transposed, strided and expanded operands; results are tensors of their own."""
    c = case("euclidean", "causal", sizes=Sizes(2, 2, 2, 21, 21, 6))
    _, program, operands = compiled(backend, c.operands, c.parts)
    want = program.main(*operands)
    q, k, v = (t.detach() for t in operands)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    k = torch.stack([k, k], -1)[..., 0]
    got = program.main(q, k, v)
    assert all(off(g, w) <= 1e-12 for g, w in zip(got, want, strict=True))
    one = v[:, :1].expand_as(v)
    for g, w in zip(program.main(q, k, one), program.main(q, k, one.contiguous()), strict=True):
        assert off(g, w) <= 1e-12
        assert g.untyped_storage().data_ptr() not in {t.untyped_storage().data_ptr() for t in (q, k, one)}
        g.fill_(0.0)  # nothing else lies there


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_where_it_is_seen(backend, bad):
    c = case("euclidean", "causal", torch.float32, Sizes(1, 2, 2, 40, 40, 4))
    _, program, operands = compiled(backend, c.operands, c.parts)
    q, k, v = (t.detach().clone() for t in operands)
    clean = program.main(q, k, v)[0]
    v[0, 1, 25] = bad
    spoiled = program.main(q, k, v)[0]
    assert not torch.isfinite(spoiled[0, 1, 25:]).any()
    torch.testing.assert_close(spoiled[0, 0], clean[0, 0])
    torch.testing.assert_close(spoiled[0, 1, :25], clean[0, 1, :25])


def test_the_final_module_is_its_text(backend):
    c = case("sphere", "window")
    module, _, _ = compiled(backend, c.operands, c.parts)
    assert str(parse(str(module))) == str(module)


def test_every_schedule_of_the_space_gives_the_same(backend):
    c = case("lorentz distance", "causal", sizes=Sizes(1, 2, 2, 70, 70, 8))
    want = c.formula(*[t.detach() for t in c.operands])
    taken, spec, _ = record(*c.operands[:3], **c.parts)
    fused = passes.Pipeline.parse(passes.DEFAULT.partition(",schedule")[0]).run(module_of(taken, spec)).module
    (op,) = [op for op in fused.walk() if op.name == "geo.attend"]
    workload = Workload.of(op)
    space = backend.schedule_space(workload)
    assert space and len(set(space)) == len(space)
    default = compiled(backend, c.operands, c.parts, "adaptive-tile")[1].attentions[0]["schedule"]
    assert str(space[0]) == default
    for s in space:
        legal(s, workload, backend.target())
        wish = passes.ScheduleAttention(given=f"attend0.forward: {s}")
        _, program, operands = compiled(backend, c.operands, c.parts, f"{wish},adaptive-tile")
        assert program.attentions[0]["schedule"] == str(s)
        assert off(program.main(*operands)[0], want[0]) <= 1e-12, s


def test_a_model_is_compiled_for_it_and_trained(backend):
    """From `aatc.compile` on, with sizes that change from call to call."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 24).double()

    def f(x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in layer(x).chunk(3, -1))
        return aatc.attend(q, k, v, metric=aatc.metrics.Euclidean(), mask=aatc.masks.causal()).sum(-1)

    run = aatc.compile(f, backend=backend.name, fallback=False, dynamic=True)
    for n in (19, 23):
        x = torch.randn(2, n, 8, dtype=torch.float64)
        got, want = run(x), f(x)
        assert off(got, want) <= 1e-12
        (found, wanted) = (torch.autograd.grad(y.square().sum(), layer.weight)[0] for y in (got, want))
        assert off(found, wanted) <= 1e-11
    report = run.explain()
    assert report.backend == backend.name and len(report.attentions) >= 1 and not report.fallbacks
    assert run.code


def test_a_model_whose_key_heads_change_from_call_to_call(backend):
    run = aatc.compile(
        lambda q, k, v: aatc.attend(q, k, v, metric=aatc.metrics.DotProduct()), backend=backend.name, fallback=False
    )
    for key_heads in (4, 2, 4, 1):
        q, k, v = (torch.randn(1, h, 13, 8, dtype=torch.float64, requires_grad=True) for h in (4, key_heads, key_heads))
        got = run(q, k, v)
        want = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        assert off(got, want) <= 1e-12
        found, wanted = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (got, want))
        assert all(off(g, w) <= 1e-11 for g, w in zip(found, wanted, strict=True))


def test_it_says_what_it_runs_on(backend):
    target = backend.target()
    assert target.cores >= 1 and target.cache_bytes > 0
    assert all(d["backend"] == backend.name and d["name"] for d in backend.devices())
    assert backend.name in backends.names()
    assert str(backends.pipeline(backend.name)).startswith(passes.DEFAULT)


def test_the_suite_refuses_a_backend_that_is_wrong():
    class Careless(Interpreting):
        def compile(self, func):
            run, text = super().compile(func)
            return (lambda *tensors: [t * (1 + 1e-10) for t in run(*tensors)]), text

    check(Interpreting(), "euclidean", "causal")
    with pytest.raises(AssertionError, match="output"):
        check(Careless(), "euclidean", "causal")
