"""Compiling on one thread, whatever torch's operators take elsewhere."""

import threading
from dataclasses import dataclass

import pytest
import torch

import aatc
from aatc.backends import openmp
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
