"""What is told of a model that does not run as it should: errors of the user's stay the user's, bugs of the compiler
warn, memory behind the user's back warns, and `explain()` counts."""

import gc
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import aatc
from aatc.errors import (
    AatcError,
    BackendError,
    CompilerBugWarning,
    FallbackWarning,
    PassError,
    UnsupportedError,
)
from aatc.passes import Pass
from tests.frontend import frontend_models as models


@pytest.fixture
def quiet():
    """Any warning of aatc is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", aatc.errors.AatcWarning)
        yield


class Backend:
    """A backend whose programs, or whose making them, goes wrong."""

    name = "cpu"

    def __init__(self, real, *, build=None, run=None):
        self.target, self.real, self.build_error, self.run_error, self.ran = real.target, real, build, run, 0

    def build(self, module):
        if self.build_error is not None:
            raise self.build_error

        def main(*inputs):
            self.ran += 1
            raise self.run_error

        return aatc.backends.Program(main, "")


def broken(function, options=None, **errors):
    compiled = aatc.compile(function, **(options or {}))
    session = compiled._aatc.session
    session.backend = Backend(session.backend, **errors)
    return compiled


def attend(q):
    return aatc.attend(q, q, q, metric=aatc.metrics.Euclidean())  # the attention


# --- bugs of the compiler -----------------------------------------------------------------------------------
@pytest.mark.parametrize("errors", [{"build": KeyError("planted")}, {"run": IndexError("planted")}])
def test_a_bug_warns_once_with_the_line_and_how_to_report_it(errors):
    compiled = broken(attend, **errors)
    q = torch.randn(1, 2, 5, 4)
    with pytest.warns(CompilerBugWarning) as caught:
        torch.testing.assert_close(compiled(q), attend(q))
    (warning,) = caught
    text = str(warning.message)
    assert "planted" in text and "AATC_DUMP" in text
    assert f"{__file__}:" in text and "# the attention" in text
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(q)
    (fallback,) = compiled.explain().fallbacks
    assert "planted" in fallback.reason and fallback.calls == 2


@pytest.mark.parametrize("errors", [{"build": KeyError("planted")}, {"run": IndexError("planted")}])
def test_without_fallback_a_bug_is_a_typed_error(errors):
    with pytest.raises(BackendError, match="planted") as caught:
        broken(attend, {"fallback": False}, **errors)(torch.randn(1, 2, 5, 4))
    assert "# the attention" in str(caught.value.where)
    assert "AATC_DUMP" in str(caught.value.hint)


def test_what_is_unsupported_falls_back_quietly(quiet):
    compiled = broken(attend, build=UnsupportedError("not today"))
    compiled(torch.randn(1, 2, 5, 4))
    (fallback,) = compiled.explain().fallbacks
    assert fallback.reason == "not today" and fallback.calls == 1


def test_a_warning_turned_into_an_error_is_raised_not_swallowed():
    compiled = broken(attend, build=KeyError("planted"))
    with pytest.raises(CompilerBugWarning, match="planted"):
        compiled(torch.randn(1, 2, 5, 4))


# --- errors of the user's -----------------------------------------------------------------------------------
def test_a_models_exception_is_raised_once_and_nothing_it_did_is_repeated(quiet):
    seen = []

    def f(x, table):
        y = x * 2
        seen.append(1)
        print(end="")
        return table[y.long()] + torch.nn.functional.embedding(x.long(), table)

    table = torch.randn(4, 3)
    compiled = aatc.compile(f)
    compiled(torch.ones(2), table)
    done = len(seen)
    with pytest.raises(IndexError) as caught:
        compiled(torch.full((2,), 9.0), table)
    assert not isinstance(caught.value, AatcError)
    assert len(seen) == done + 1


@pytest.mark.parametrize("fallback", [True, False])
def test_a_models_exception_in_a_compiled_graph_is_the_models(quiet, fallback):
    def f(x):
        return torch.linalg.cholesky(x)

    compiled = aatc.compile(f, fallback=fallback)
    compiled(torch.eye(3))
    with pytest.raises(torch.linalg.LinAlgError) as caught:
        compiled(-torch.eye(3))
    assert caught.value.__context__ is None
    torch.testing.assert_close(compiled(torch.eye(3)), torch.eye(3))
    assert not compiled.explain().fallbacks


def test_an_error_of_aatcs_that_the_model_raises_is_the_models(quiet):
    seen = []

    def f(q):
        seen.append(1)
        print(end="")
        return aatc.attend(q, q[:, :1], q, metric=aatc.metrics.Euclidean())

    # 2.11 fails to record the raise, when the model has been run up to there
    with pytest.raises(aatc.errors.ShapeError if models.TORCH >= (2, 13) else UnsupportedError):
        aatc.compile(f)(torch.randn(1, 2, 5, 4))
    assert len(seen) == 1


def test_a_graph_that_changes_state_is_not_run_twice():
    state = torch.zeros(3)

    def f(x):
        state.add_(1)
        return torch.linalg.cholesky(x)

    compiled = aatc.compile(f)
    with pytest.raises(torch.linalg.LinAlgError):
        compiled(-torch.eye(3))
    assert state.tolist() == [1.0, 1.0, 1.0]


def test_a_program_that_is_replaced_leaves_the_random_numbers_where_they_were():
    def f(x):
        return torch.nn.functional.dropout(x, 0.5)

    compiled = broken(f, run=KeyError("planted"))
    build = compiled._aatc.session.backend.build

    def drawing(module):
        program = build(module)

        def main(*inputs):
            torch.rand(7)
            return program.main(*inputs)

        return aatc.backends.Program(main, "")

    compiled._aatc.session.backend.build = drawing
    x = torch.ones(50)
    torch.manual_seed(5)
    with pytest.warns(CompilerBugWarning):
        got = compiled(x)
    torch.manual_seed(5)
    assert torch.equal(got, f(x))


# --- passes of the user's -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Refusing(Pass):
    kind: str = "pass"
    name: ClassVar[str] = "refusing"

    def run(self, module, ctx):
        if self.kind == "pass":
            raise PassError("refused on purpose")
        if self.kind == "unsupported":
            raise UnsupportedError("refused on purpose")
        if self.kind == "other":
            raise ZeroDivisionError("refused on purpose")
        module.entry.body.ops.pop(0)
        return module


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("kind", ["pass", "unsupported", "other", "broken IR"])
def test_what_a_users_pass_raises_reaches_the_user(kind, fallback, quiet):
    compiled = aatc.compile(attend, passes=[Refusing(kind)], fallback=fallback)
    for _ in range(2):
        with pytest.raises(PassError) as caught:
            compiled(torch.randn(1, 2, 5, 4))
        if kind == "pass":
            assert caught.value.message == "refused on purpose"
        else:
            assert "refusing" in caught.value.message
            assert type(caught.value.__cause__).__name__ in ("UnsupportedError", "ZeroDivisionError", "VerifyError")


# --- what ran elsewhere -------------------------------------------------------------------------------------
def test_passing_the_limit_of_graphs_warns_with_reason_and_line_and_is_counted():
    compiled = aatc.compile(lambda x: x + 1, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=3):
        for n in range(3):
            compiled(torch.ones(n + 2))
        with pytest.warns(FallbackWarning, match="limit of 3 graphs") as caught:
            for n in range(4):
                assert compiled(torch.ones(n + 4)).tolist() == [2.0] * (n + 4)
    assert len(caught) == 1
    assert f"{__file__}:" in str(caught[0].message) and "size mismatch at index 0" in str(caught[0].message)
    explanation = compiled.explain()
    assert (explanation.calls, explanation.elsewhere) == (7, 3)
    assert "nothing left" not in explanation.summary and "3 of 7 calls" in str(explanation)
    (fallback,) = explanation.fallbacks
    assert fallback.op == "limit of graphs" and __file__ in fallback.loc


def test_without_fallback_the_limit_of_graphs_is_a_typed_error():
    compiled = aatc.compile(lambda x: x + 1, fallback=False, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=2):
        compiled(torch.ones(2))
        compiled(torch.ones(3))
        with pytest.raises(UnsupportedError, match=r"limit of graphs.*size mismatch"):
            compiled(torch.ones(4))


def test_more_graphs_than_dynamos_default_are_made(quiet):
    compiled = aatc.compile(lambda x: x + 1, dynamic=False)
    for n in range(12):
        compiled(torch.ones(n + 2))
    assert len(compiled.graphs) == 12 and not compiled.explain().fallbacks


def test_graphs_with_one_program_share_it():
    compiled = aatc.compile(attend)
    q = torch.randn(1, 2, 5, 4)
    compiled(q.detach())
    compiled(q.clone().requires_grad_())
    first, second = compiled.graphs
    assert first.key == second.key and first.program is second.program
    compiled(torch.randn(1, 2, 6, 4))
    assert compiled.graphs[2].key != first.key


def test_large_scores_behind_the_users_back_warn_with_the_line_and_why():
    compiled = broken(attend, build=UnsupportedError("not today"))
    q = torch.randn(1, 2, 3000, 4)
    with pytest.warns(FallbackWarning, match="MiB of scores") as caught, torch.no_grad():
        compiled(q)
        compiled(q)
    (warning,) = caught
    assert "not today" in str(warning.message) and "# the attention" in str(warning.message)


@aatc.metric(w="de")
def mixed(q, k, w):
    return -aatc.metrics.word("matvec", w, torch.tanh(q - k)).abs().sum()


def test_calls_of_an_attention_without_a_tile_program_are_counted():
    w = torch.randn(2, 2)
    compiled = aatc.compile(lambda q: aatc.attend(q, q, q, metric=mixed(w=w)))
    q = torch.randn(1, 1, 4, 2)
    for _ in range(3):
        compiled(q)
    (fallback,) = compiled.explain().fallbacks
    assert fallback.op == "aatc.attend" and fallback.calls == 3


def loop(x):
    for _ in range(2):
        if x.sum() > 0:  # the decision
            x = x + 1
    return x


def test_a_model_without_a_graph_says_so_and_why(quiet):
    compiled = aatc.compile(loop)
    compiled(torch.ones(2))
    explanation = compiled.explain()
    assert explanation.elsewhere == explanation.calls == 1
    assert any("# the decision" in f.loc for f in explanation.fallbacks)
    assert "1 of 1 call ran in PyTorch alone" in str(explanation)

    plain = aatc.compile(nn.Identity())
    plain(torch.ones(2))
    assert "no operation of torch was recorded" in str(plain.explain())
    assert "nothing left" not in str(plain.explain())


def test_a_stance_that_forbids_compiling_is_told(quiet):
    compiled, strict = aatc.compile(attend), aatc.compile(attend, fallback=False)
    q = torch.randn(1, 2, 5, 4)
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(compiled(q), attend(q))
        assert "force_eager" in str(compiled.explain())
        with pytest.raises(UnsupportedError, match="force_eager"):
            strict(q)
    compiled(q)
    assert compiled.explain().elsewhere == 1 and compiled.explain().calls == 2


def test_a_disabled_dynamo_is_told():
    script = (
        "import torch, aatc\n"
        "f = lambda q: aatc.attend(q, q, q, metric=aatc.metrics.Euclidean())\n"
        "c = aatc.compile(f)\n"
        "q = torch.randn(1, 1, 3, 2)\n"
        "assert torch.equal(c(q), f(q))\n"
        "print(c.explain())\n"
    )
    env = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    assert "TORCHDYNAMO_DISABLE=1 is set" in done.stdout and "1 of 1 call ran in PyTorch alone" in done.stdout


def test_script_modules_run_as_they_are_and_are_told():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Linear(2, 2))
    x = torch.randn(3, 2)
    compiled = aatc.compile(scripted)
    torch.testing.assert_close(compiled(x), scripted(x))
    (fallback,) = compiled.explain().fallbacks
    assert "torch.jit.script" in fallback.reason
    with pytest.raises(UnsupportedError):
        aatc.compile(scripted, fallback=False)(x)


def test_a_call_within_a_transform_is_counted_and_strictly_an_error():
    compiled = aatc.compile(attend)
    q = torch.randn(1, 2, 5, 4)
    want = torch.func.jvp(attend, (q,), (q,))
    torch.testing.assert_close(torch.func.jvp(compiled, (q,), (q,)), want)
    compiled(q)
    (fallback,) = compiled.explain().fallbacks
    assert "transform" in fallback.reason and fallback.calls == 1
    with pytest.raises(UnsupportedError, match="transform"):
        torch.func.jvp(aatc.compile(attend, fallback=False), (q,), (q,))


# --- threads and the process --------------------------------------------------------------------------------
def in_threads(*functions):
    """Runs them at once; raises what any of them raises."""
    failed, gate = [], threading.Barrier(len(functions))

    def run(f):
        try:
            gate.wait()
            f()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(f,)) for f in functions]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
        assert not t.is_alive()
    if failed:
        raise failed[0]


def test_first_calls_at_once_leave_garbage_collection_as_it_was():
    compiled = [aatc.compile(models.Block().eval()) for _ in range(3)]
    x = torch.randn(2, 4, 16)
    for wanted in (True, False):
        gc.enable() if wanted else gc.disable()
        try:
            again = [aatc.compile(c) for c in compiled]
            in_threads(*(lambda c=c: c(x) for c in (*again, *again)))
            assert gc.isenabled() == wanted
        finally:
            gc.enable()


def test_each_model_hears_of_its_own_graph_breaks_only():
    compiled = [aatc.compile(models.Breaking().eval()) for _ in range(2)]
    whole = aatc.compile(models.Block().eval())
    x = torch.randn(2, 4, 16)

    def clear():
        for _ in range(50):
            torch._dynamo.utils.graph_break_reasons.clear()

    in_threads(*(lambda c=c: [c(x), c(x)] for c in (*compiled, whole, whole)), clear)
    for c in compiled:
        (fallback,) = c.explain().fallbacks
        assert fallback.op == "graph break"
    assert not whole.explain().fallbacks


def test_one_model_in_many_threads_gives_every_thread_its_numbers():
    compiled = aatc.compile(attend)
    inputs = [torch.randn(1, 2, n, 4) for n in (3, 5, 7, 9)]
    got = [None] * 4

    def run(n):
        for _ in range(5):
            got[n] = compiled(inputs[n])

    in_threads(*(lambda n=n: run(n) for n in range(4)))
    for x, y in zip(inputs, got, strict=True):
        torch.testing.assert_close(y, attend(x), rtol=1e-5, atol=1e-5)
    explanation = compiled.explain()
    assert explanation.calls == 20 and not explanation.elsewhere
    assert [g.index for g in explanation.graphs] == list(range(len(explanation.graphs)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_goes_on_with_what_was_compiled():
    script = (
        "import os, torch, aatc\n"
        "torch.set_num_threads(1)\n"
        "f = lambda q: aatc.attend(q, q, q, metric=aatc.metrics.Euclidean())\n"
        "c = aatc.compile(f)\n"
        "c(torch.randn(1, 1, 3, 2))\n"
        "pid = os.fork()\n"
        "q = torch.randn(1, 1, 3, 2), torch.randn(1, 1, 4, 2)\n"
        "good = all(torch.allclose(c(x), f(x), atol=1e-5) for x in q)\n"
        "if not pid: os._exit(0 if good else 3)\n"
        "assert good and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)


# --- what surrounds a call ----------------------------------------------------------------------------------
def test_default_device_and_dtype_around_compiling_and_calling_change_nothing():
    w = torch.rand(2) + 0.5

    def f(q, k):
        rotary = aatc.connections.Rotary(values=True)
        bias = aatc.biases.RelativeTable(table)
        return aatc.attend(
            q, k, k, metric=aatc.metrics.Euclidean(), scale=w, mask=aatc.masks.causal(1), connection=rotary, bias=bias
        )

    table = torch.randn(2, 5)
    q, k = torch.randn(1, 2, 6, 4) / 4, torch.randn(1, 2, 6, 4) / 4
    want = f(q, k)

    def check(compiled):
        x = q.clone().requires_grad_()
        y = compiled(x, k)
        assert y.dtype == torch.float32 and y.device.type == "cpu"
        torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
        (g,) = torch.autograd.grad(y.sin().sum(), x)
        assert g.dtype == torch.float32 and g.isfinite().all()

    after = aatc.compile(f)
    check(after)
    for context in (torch.device("meta"), _default_dtype(torch.float64)):
        with context:
            inside = aatc.compile(f)
            check(inside)
            check(after)
            assert not inside.explain().fallbacks and not after.explain().fallbacks
        check(inside)


class _default_dtype:
    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_):
        torch.set_default_dtype(self.before)
