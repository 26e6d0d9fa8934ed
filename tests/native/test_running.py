"""Kernels as they run: the same numbers on any threads, in any process, as often as one likes."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import aatc
from aatc import masks, metrics
from aatc.backends.native import compiled, isa
from tests.compiler.harness import build
from tests.conformance.cases import Sizes, case
from tests.native.kernels import growth_kib


@pytest.fixture
def threads():
    """Sets how many there are; what there was comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


SEVERAL = Sizes(2, 4, 2, 70, 70, 8)


def built(kind, mask="causal", sizes=SEVERAL, dtype=torch.float32):
    c = case(kind, mask, dtype, sizes)
    return build(*c.operands[:3], backend="native", tiles="rows=16 cols=32 grain=16", **c.parts)


def numbers(attention):
    """Output, log-sum-exp and all gradients."""
    o, lse = attention.run()
    wanted = [t for t in attention.operands if t.requires_grad]
    probe = torch.linspace(-1, 1, o.numel()).reshape(o.shape).to(o.dtype)
    return [o, lse, *torch.autograd.grad((o.mul(probe).sum() + lse.sum()), wanted)]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("relative table", torch.float32),
        ("dense bias", torch.float32),
        ("lorentz, learned beta", torch.float32),
        ("mahalanobis", torch.bfloat16),
        ("sigmoid", torch.float32),
    ],
)
def test_bits_do_not_depend_on_threads(threads, monkeypatch, kind, dtype):
    """Of gradients that many tasks add to, too: tables, numbers per head, matrices, keys of several heads."""
    monkeypatch.setattr(compiled, "ALONE", 0)
    attention = built(kind, dtype=dtype)
    threads(1)
    want = numbers(attention)
    for n in (1, 2, 3, 2):
        threads(n)
        for _ in range(3):
            assert all(torch.equal(g, w) for g, w in zip(numbers(attention), want, strict=True)), n


def test_several_threads_may_call_one_program(threads, monkeypatch):
    monkeypatch.setattr(compiled, "ALONE", 0)
    threads(2)
    attention = built("poincare")
    want = numbers(attention)
    wrong = []

    def often():
        for _ in range(20):
            if not all(torch.equal(g, w) for g, w in zip(numbers(attention), want, strict=True)):
                wrong.append(1)

    callers = [threading.Thread(target=often) for _ in range(4)]
    for t in callers:
        t.start()
    for t in callers:
        t.join(60)
    assert not wrong and not any(t.is_alive() for t in callers)


@pytest.mark.skipif(sys.platform != "linux", reason="signals and forks as Linux has them")
@pytest.mark.parametrize("what", ["interrupted", "disturbed", "forked", "loaded"])
def test_programs_around_kernels(what):
    found = subprocess.run(
        [sys.executable, "-m", "tests.native.running", what],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_calls_do_not_grow_the_process(threads):
    threads(1)
    attention = built("euclidean", sizes=Sizes(1, 1, 1, 5, 5, 4))
    operands = [t.detach() for t in attention.operands]
    assert growth_kib(lambda: attention.program.main(*operands), 10_000) < 0.05
    assert growth_kib(lambda: numbers(attention), 1_000) < 0.5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_compiling_running_and_dropping_does_not_grow_the_process(threads):
    threads(1)
    attention = built("dot product", sizes=Sizes(1, 1, 1, 5, 5, 4))
    operands = [t.detach() for t in attention.operands]
    want = attention.program.main(*operands)[0]

    def cycle():
        run, _ = compiled.compile_tile(attention.forward, isa.host())
        assert torch.equal(run(*operands)[0], want)

    assert growth_kib(cycle, 200) < 20


@pytest.mark.parametrize("mask", [None, masks.causal()])
def test_a_model_compiled_for_other_threads_gives_the_same_bits(mask):
    """Torch compiles again where their number changes, and the schedule must not."""
    q, k, v = torch.randn(3, 1, 2, 300, 32)

    def bits(threads):
        torch._dynamo.reset()
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            model = aatc.compile(
                lambda q, k, v: aatc.attend(q, k, v, metric=metrics.Euclidean(), mask=mask),
                backend="native",
                fallback=False,
            )
            leaves = [t.clone().requires_grad_() for t in (q, k, v)]
            out = model(*leaves)
            return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]
        finally:
            torch.set_num_threads(before)

    one = bits(1)
    for threads in (2, 4):
        assert all(torch.equal(x, y) for x, y in zip(one, bits(threads), strict=True))
