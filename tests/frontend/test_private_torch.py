"""Parts of torch that not every supported version has, and what is done without them."""

import warnings
from typing import Any

import pytest
import torch
from torch._dynamo import eval_frame

import aatc
from aatc.errors import FallbackWarning
from aatc.frontend.private_torch import PARTS
from tests.frontend.frontend_models import TORCH


@pytest.fixture
def older(monkeypatch):
    """A torch whose `optimize` has no keyword for limits and none for caches of their own."""
    own = eval_frame._optimize

    def optimize(
        rebuild_ctx: Any,
        backend: Any,
        *,
        nopython: bool = False,
        guard_fail_fn: Any = None,
        dynamic: bool | None = None,
    ) -> Any:
        return own(rebuild_ctx, backend, nopython=nopython, guard_fail_fn=guard_fail_fn, dynamic=dynamic)

    monkeypatch.setattr(eval_frame, "_optimize", optimize)
    monkeypatch.delattr(torch._C._dynamo.eval_frame, "set_fullgraph_compiled_frame_count", raising=False)
    assert not any(PARTS[n].present() for n in ("isolate_recompiles", "set_fullgraph_compiled_frame_count"))


@pytest.mark.parametrize("name", PARTS)
def test_the_table_says_what_this_torch_has(name):
    assert PARTS[name].present() or PARTS[name].seen > TORCH


def powers(x, n):
    for _ in range(n):
        x = x * 2
    return x


def called(f, *numbers):
    """The session of ``f`` called with each of these numbers of Python, every result right."""
    x = torch.ones(3)
    for n in numbers:
        torch.testing.assert_close(f(x, n), x * 2.0**n)
    return f.explain()


def test_graphs_of_one_callable_are_limited_in_an_older_torch(older):
    with torch._dynamo.config.patch(recompile_limit=2):
        f = aatc.compile(powers, dynamic=False)
        with pytest.warns(FallbackWarning, match="limit of 2 graphs"):
            told = called(f, 1, 2, 3, 1)
    assert len(told.graphs) == 2 and [x.op for x in told.fallbacks] == ["limit of graphs"]


def test_other_callables_of_the_same_code_have_graphs_of_their_own_in_an_older_torch(older):
    with pytest.warns(FallbackWarning), torch._dynamo.config.patch(recompile_limit=1):
        called(aatc.compile(powers, dynamic=False), 1, 2)  # passes its own limit
    with torch._dynamo.config.patch(recompile_limit=2):
        several = [aatc.compile(powers, dynamic=False) for _ in range(3)]
        with warnings.catch_warnings():
            warnings.simplefilter("error", FallbackWarning)
            assert [len(called(f, 1, 2).graphs) for f in several] == [2, 2, 2]


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_limit_that_is_passed_is_told_in_an_older_torch(older, fullgraph):
    with torch._dynamo.config.patch(recompile_limit=1):
        f = aatc.compile(powers, dynamic=False, fallback=not fullgraph)
        called(f, 1, 1)
        if fullgraph:
            with pytest.raises(aatc.errors.UnsupportedError, match="limit of graphs"):
                called(f, 2)
        else:
            with pytest.warns(FallbackWarning, match="limit of 1 graphs"):
                called(f, 2)


def test_what_one_callable_leaves_to_python_another_compiles_in_an_older_torch(older):
    def doubled(x, n):
        return x * 2 if n else x

    idle, busy = aatc.compile(doubled), aatc.compile(doubled)
    x = torch.ones(3)
    for _ in range(2):
        assert idle(x, 0) is x
    torch.testing.assert_close(busy(x, 1), 2 * x)
    assert len(busy.graphs) == 1 and not idle.graphs
