"""Compiling on one thread, whatever torch's operators take elsewhere."""

import threading
from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import aatc
from aatc import backends
from aatc.backends import openmp
from aatc.ir.parser import parse
from aatc.passes import Pass

needs_openmp = pytest.mark.skipif(
    openmp._counters() is None, reason="torch runs on another OpenMP than GNU's or LLVM's"
)


@needs_openmp
def test_one_thread_is_this_threads_alone_and_ends():
    before = torch.get_num_threads()
    seen = []
    torch.set_num_threads(3)
    try:
        with openmp.one_thread():
            seen.append(torch.get_num_threads())
            assert openmp.threads() == 3  # what a backend tells of the machine
            with openmp.one_thread():
                assert openmp.threads() == 3
            other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            other.start()
            other.join()
        with pytest.raises(ZeroDivisionError), openmp.one_thread():
            raise ZeroDivisionError
        assert [*seen, torch.get_num_threads()] == [1, 3, 3]
        assert openmp.threads() == 3
    finally:
        torch.set_num_threads(before)


@needs_openmp
def test_passes_run_on_one_thread():
    seen = []

    @dataclass(frozen=True)
    class Asks(Pass):
        name = "asks"

        def run(self, module, ctx):
            seen.append(torch.get_num_threads())
            return module

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = torch.randn(1, 1, 4, 4)

        def model(x):
            return aatc.attend(x, x, x, metric=aatc.metrics.DotProduct())

        aatc.compile(model, passes=[Asks()], fallback=False)(x)
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_openmp_nothing_changes(monkeypatch):
    monkeypatch.setattr(openmp, "_counters", lambda: None)
    monkeypatch.setattr(openmp, "_mkl_local", lambda: None)
    before = torch.get_num_threads()
    with openmp.one_thread():
        assert torch.get_num_threads() == before


@pytest.mark.skipif(openmp._mkl_local() is None, reason="torch has no MKL")
def test_mkl_counts_as_before_afterwards():
    ask = openmp._mkl_local()
    before = ask(0)  # of the process
    try:
        with openmp.one_thread():
            assert ask(1) == 1
        assert ask(0) == 0
        ask(3)
        with openmp.one_thread():
            pass
        assert ask(0) == 3
    finally:
        ask(before)


class Threads(TorchDispatchMode):
    """Notes the number of threads that each operator may take."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[str(function)] = torch.get_num_threads()
        return function(*args, **(kwargs or {}))


ANGLES = """aatc 2

geo.func @main(%p: f32[N,1], %w: f32[32], %x: f32[32,3]) {
  %a = torch.call(%p, %w) {target = "aten.mul.Tensor", args = [#0, #1], no_grad = true} : f32[N,32]
  %c = torch.call(%a) {target = "aten.cos.default", args = [#0], no_grad = true} : f32[N,32]
  %d = torch.call(%c, %a) {target = "aten.sub.Tensor", args = [#0, #1]} : f32[N,32]
  %m = torch.call(%d, %x) {target = "aten.mm.default", args = [#0, #1]} : f32[N,3]
  %s = torch.call(%a) {target = "aten.sin.default", args = [#0]} : f32[N,32]
  geo.return(%m, %s)
}
"""


@needs_openmp
@pytest.mark.parametrize(("n", "alone"), [(1000, False), (2048, True), (32768, False)])
def test_what_one_thread_does_in_no_time_waits_for_no_other(n, alone):
    """As angles of rotary positions: below 32,768 numbers torch itself takes one thread."""
    program = backends.get("cpu").build(parse(ANGLES.replace("N", str(n))))
    p, w, x = torch.linspace(0, 1, n).unsqueeze(-1), torch.arange(1.0, 33.0).requires_grad_(), torch.randn(32, 3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Threads() as threads:
            product, sine = program.main(p, w, x)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(product, ((p * w).cos() - p * w) @ x)
    torch.testing.assert_close(sine, (p * w).sin())
    assert not product.requires_grad and not sine.requires_grad
    assert threads.seen.pop("aten.mm.default") == 2  # products are worth a second thread
    assert len(threads.seen) == 4 and {*threads.seen.values()} == {1 if alone else 2}
