"""Models whose schedules are measured, kept, imported, and used in this and other processes. Kernels are real and
small; times are what they are, so that no test asks which schedule was faster."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import aatc
from aatc import backends, tuning
from aatc.backends.cpu import CpuBackend
from aatc.errors import PassError, ScheduleError, UnsupportedError
from aatc.passes import Pipeline
from aatc.tuning import measure as measuring
from aatc.tuning import store
from aatc.tuning.trial import Trial, difference

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


class Model(nn.Module):
    """A layer with hyperbolic attention, a buffer that every call changes and random numbers."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 24)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.proj(x).chunk(3, -1))
        x = aatc.attend(q, k, v, metric=aatc.metrics.LorentzDistance(lift=True), mask=aatc.masks.causal())
        return nn.functional.dropout(x, 0.5, self.training)


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def x():
    return torch.randn(2, 40, 8)


@pytest.fixture
def nothing_measured(monkeypatch):
    def never(self, schedule):
        raise AssertionError("a schedule is measured")

    monkeypatch.setattr(Trial, "prepare", never)


def tuned(model, x, **more):
    return aatc.tune(model, x, backend="cpu", budget=20.0, **more)


def choose(found, **schedules):
    """Puts other schedules, by direction, in the place of those that were kept."""
    chosen = tuning.Schedules(tuple(replace(e, schedule=schedules.get(e.direction, e.default)) for e in found))
    for e in chosen:
        store.put(e)
    return chosen


def chosen_of(compiled):
    (a,) = compiled.explain().attentions
    return dict(a.origins)


# --- aatc.tune ---------------------------------------------------------------------------------------------------
def test_both_directions_are_measured_once(model, x, cache, monkeypatch):
    found = tuned(model, x)
    assert [e.direction for e in found] == ["forward", "backward"]
    for e in found:
        assert e.tried > 2 and not e.dropped and 0 < e.seconds <= e.default_seconds and e.effort == "quick"
        assert e.is_default or e.ratio < 0.97
    assert len(list(cache.iterdir())) == 2

    def never(self, schedule):
        raise AssertionError("a schedule is measured")

    monkeypatch.setattr(Trial, "prepare", never)
    assert tuned(model, x) == found
    with pytest.raises(AssertionError, match="is measured"):
        tuned(model, x, again=True)
    with pytest.raises(AssertionError, match="is measured"):
        tuned(model, x, effort="full")


def test_the_model_its_inputs_and_random_numbers_are_as_before(model, x):
    model.train()
    before, state = x.clone(), torch.get_rng_state()
    tuned(model, x)
    assert model.calls == 0 and torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert model.proj.weight.grad is None


def test_without_gradients_the_forward_alone_is_measured(model, x):
    with torch.no_grad():
        (e,) = tuned(model, [x])
    assert e.direction == "forward"


def test_inputs_may_have_names(model, x):
    assert len(tuned(model, {"x": x})) == 2


def test_sizes_that_vary_have_schedules_of_their_own(model, x):
    fields = [dict(e.key.fields) for e in [*tuned(model, x), *tuned(model, x, dynamic=True)]]
    assert [f["queries"] for f in fields] == ["33 to 64"] * 2 + ["any"] * 2


def test_no_time_keeps_nothing_and_says_so(model, x, cache):
    found = aatc.tune(model, x, backend="cpu", budget=0.0)
    assert len(found) == 0 and not cache.exists()
    assert "attention, masked, forward: not measured, the time is over" in str(found)


def test_the_library_has_no_schedules(x):
    def plain(x):
        return aatc.attend(x, x, x, metric=aatc.metrics.DotProduct())

    found = tuned(plain, torch.randn(1, 2, 20, 8))
    assert len(found) == 0 and "PyTorch's fused attention runs it" in str(found)


@pytest.mark.parametrize(
    ("options", "why"), [({"effort": "heroic"}, "effort='heroic'"), ({"budget": -1.0}, "budget=-1.0 is no time")]
)
def test_wrong_options_are_refused(model, x, options, why):
    with pytest.raises(UnsupportedError, match=why):
        aatc.tune(model, x, **options)


def test_a_model_without_attention_is_refused(x):
    with pytest.raises(UnsupportedError, match="has no attention that is compiled"):
        aatc.tune(nn.Linear(8, 8), x)
    with pytest.raises(UnsupportedError, match="no schedules to be tuned"):
        aatc.tune(Model(), x, backend="cpu", passes="canonicalize,simplify-score,fuse-attention,fuse-normalizer")


# --- the accuracy gate -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "fault", [lambda t: t * 1.0001, lambda t: t.flatten().index_fill(0, torch.tensor(3), torch.nan)]
)
def test_a_schedule_that_gives_other_numbers_is_dropped_and_named(model, x, direction, fault, monkeypatch):
    """Whatever its time."""
    compile_right = CpuBackend.compile
    found = {e.direction: e for e in tuned(model, x)}
    work = found[direction]
    space = Trial.space
    planted: list[str] = []

    def watched(self):
        listed = space(self)
        if self.direction == direction:
            planted.append(str(listed[1]))
        return listed

    def compile_wrong(self, func):
        run, text = compile_right(self, func)
        if func.attrs.get("schedule") not in planted or ("backward" in func.name) != (direction == "backward"):
            return run, text

        def wrong(*tensors):
            done = run(*tensors)
            return done if done is None else [fault(r).reshape(r.shape) for r in done]

        return wrong, text

    monkeypatch.setattr(Trial, "space", watched)
    monkeypatch.setattr(CpuBackend, "compile", compile_wrong)
    again = tuned(model, x, again=True)
    (e,) = [e for e in again if e.direction == direction]
    assert [s for s, _ in e.dropped] == planted and e.schedule not in planted and e.tried == work.tried - 1
    assert "differs from the default's by 1.0e-04" in e.dropped[0][1] or "not finite" in e.dropped[0][1]
    assert planted[0] in str(again)


def test_differences_are_judged_by_dtype_and_kept_apart_from_infinities():
    a = torch.tensor([1.0, 2.0, float("inf"), float("nan")])
    assert not difference([a], [a]) and not difference([a * (1 + 1e-6)], [a])
    assert "by 1.0e-04" in difference([a * (1 + 1e-4)], [a])
    assert not difference([a.bfloat16() * (1 + 2**-8)], [a.bfloat16()])
    assert "not finite" in difference([a.nan_to_num(3.0)], [a])
    assert "not finite" in difference([torch.full((4,), torch.nan)], [a])
    assert "torch.float64" in difference([a.double()], [a])
    assert not difference([torch.zeros(0)], [torch.zeros(0)])
    assert "differs" in difference([torch.tensor([1])], [torch.tensor([2])])


# --- compile(tune=...) -------------------------------------------------------------------------------------------
SCHEDULE = "split(g, 1) split(i, 16) split(j, 8) grain(j, 8)"


def test_what_is_kept_is_used_and_said(model, x):
    choose(tuned(model, x), backward=SCHEDULE)
    model.eval()
    compiled = aatc.compile(model, backend="cpu", tune="cached", fallback=False, dynamic=False)
    torch.testing.assert_close(compiled(x), model(x))
    assert chosen_of(compiled) == {"forward": "default", "backward": "tuned"}
    assert "chosen    forward default, backward tuned" in str(compiled.explain())
    (op,) = [op for op in compiled.ir().walk() if op.name == "geo.kernel"]
    assert op.attrs["schedule_backward"] == SCHEDULE
    plain = aatc.compile(model, backend="cpu", fallback=False, dynamic=False)
    plain(x)
    assert chosen_of(plain) == {"forward": "default", "backward": "default"}
    assert "chosen    default" in str(plain.explain())


def test_a_miss_says_which_field_differs(model, x):
    choose(tuned(model, x), forward=SCHEDULE)
    compiled = aatc.compile(model, backend="cpu", tune="cached", fallback=False, dynamic=False)
    compiled(torch.randn(2, 70, 8))
    assert "what is kept is for queries 33 to 64, here 65 to 128; keys" in str(compiled.explain())
    assert chosen_of(compiled)["forward"] == "default"
    torch.set_num_threads(2)
    try:
        compiled = aatc.compile(model, backend="cpu", tune="cached", fallback=False, dynamic=False)
        compiled(x)
    finally:
        torch.set_num_threads(1)
    assert "what is kept is for cores 1, here 2" in str(compiled.explain())


def test_a_kept_schedule_that_is_not_legal_gives_way(model, x):
    choose(tuned(model, x), forward="split(i, 16) unroll(i, 2)")
    compiled = aatc.compile(model, backend="cpu", tune="cached", fallback=False, dynamic=False)
    compiled(x)
    assert "is not legal here: unroll(i, 2): the cpu backend obeys no unroll" in str(compiled.explain())
    assert chosen_of(compiled)["forward"] == "default"


def test_schedules_are_imported_from_results_and_files(model, x, tmp_path, monkeypatch):
    found = choose(tuned(model, x), forward=SCHEDULE)
    elsewhere = [replace(e, key=e.key.of(dict(e.key.fields) | {"device": "another"})) for e in found]
    path = tuning.Schedules(tuple(elsewhere)).export(tmp_path / "x.json")
    monkeypatch.setenv("AATC_CACHE", str(tmp_path / "other"))
    for given in (found, path, str(path)):
        compiled = aatc.compile(model, backend="cpu", tune=given, fallback=False, dynamic=False)
        compiled(x)
        assert chosen_of(compiled) == {"forward": "imported", "backward": "default"}
    assert "when it was measured, with another device" in str(compiled.explain())
    compiled(torch.randn(2, 90, 8))
    told = str(compiled.explain())
    assert "no imported schedule is for it" in told
    assert "tuned-schedules{...}" in told and "given=" not in told  # the file of schedules is not the pass's name
    text = str(compiled._aatc.session.pipeline)
    assert "tuned-schedules{given=" in text and str(Pipeline.parse(text)) == text


@pytest.mark.parametrize("wish", ["quick", True])
def test_the_first_call_measures_and_the_second_uses_it(model, x, wish, monkeypatch):
    measured = []

    def found_fast(space, bench, *rest):
        measured.append(bench.direction)
        bench.prepare(space[0])
        return measuring_search(space, bench, *rest)

    def measuring_search(space, bench, *rest):
        found = search(space, bench, *rest)
        found.schedule, found.seconds = space[1], 0.5 * found.default_seconds
        return found

    search = measuring.search
    monkeypatch.setattr(measuring, "search", found_fast)
    model.eval()
    compiled = aatc.compile(model, backend="cpu", tune=wish, fallback=False, dynamic=False)
    want = model(x)
    calls = model.calls.clone()
    torch.testing.assert_close(compiled(x), want)
    assert measured == ["forward", "backward"] and model.calls == calls + 1
    assert "used from the next call on" in str(compiled.explain())
    torch.testing.assert_close(compiled(x), want)
    assert chosen_of(compiled) == {"forward": "tuned", "backward": "tuned"} and len(measured) == 2


def test_what_goes_wrong_while_measuring_is_a_note(model, x, monkeypatch):
    def broken(*args):
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(measuring, "search", broken)
    model.eval()
    compiled = aatc.compile(model, backend="cpu", tune="quick", fallback=False, dynamic=False)
    torch.testing.assert_close(compiled(x), model(x))
    assert "not measured: RuntimeError: the machine is on fire" in str(compiled.explain())


def test_another_process_uses_an_entry_without_measuring(model, x, cache, tmp_path):
    choose(tuned(model, x), forward=SCHEDULE)
    code = f"""
import sys, torch, aatc
from aatc.tuning.trial import Trial
from tests.tuning.test_models import Model
torch.set_num_threads(1)
Trial.prepare = None
compiled = aatc.compile(Model(), backend="cpu", tune="quick", fallback=False, dynamic=False)
compiled(torch.randn(2, 40, 8)); compiled(torch.randn(2, 40, 8))
print(*compiled.explain().passes[4].notes, *compiled.explain().notes, file=sys.stderr)
print(dict(compiled.explain().attentions[0].origins), compiled.explain().attentions[0].schedule == "{SCHEDULE}")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "{'forward': 'tuned', 'backward': 'default'} True\n", done.stderr


def test_tune_may_be_so_much_and_no_more(model, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ScheduleError, match="no file of"):
        aatc.compile(model, tune=tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        aatc.compile(model, tune="missing.json")
    with pytest.raises(UnsupportedError, match=r"there are: none, cached, quick, full"):
        aatc.compile(model, tune="loudly")
    with pytest.raises(PassError, match="no schedules to be tuned"):
        aatc.compile(model, tune="cached", passes="canonicalize")
    assert "tuned-schedules" not in str(aatc.compile(model, tune=False)._aatc.session.pipeline)


def test_a_search_that_the_budget_ended_is_taken_up_again(model, x, monkeypatch):
    """By `full`, which finds what `quick` or half of itself has kept and measures all."""

    def ended(*args):
        found = search(*args)
        found.finished = False
        return found

    search = measuring.search
    monkeypatch.setattr(measuring, "search", ended)
    with torch.no_grad():
        assert [e.effort for e in tuned(model, x, effort="full")] == ["quick"]
        monkeypatch.setattr(measuring, "search", search)
        (e,) = tuned(model, x, effort="full")
    assert e.effort == "full" and e.tried == e.of


def test_a_bar_is_for_terminals(model, x, capsys, monkeypatch):
    with torch.no_grad():
        tuned(model, x)
        assert capsys.readouterr() == ("", "")
        monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, for what draws the bar
        tuned(model, x, again=True, progress=True)
    assert "attention, masked, forward" in capsys.readouterr().err


def test_threads_at_once_measure_once(model, x, monkeypatch):
    """And all get their results."""
    measured = []
    monkeypatch.setattr(
        measuring, "search", lambda space, bench, *rest: measured.append(1) or search(space, bench, *rest)
    )
    search = sys.modules["aatc.tuning.search"].search
    model.eval()
    compiled = aatc.compile(model, backend="cpu", tune="quick", fallback=False, dynamic=False)
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(compiled(x).detach())) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    want = model(x)
    assert len(results) == 3 and len(measured) <= 2
    for r in results:
        torch.testing.assert_close(r, want)


@pytest.mark.slow
def test_native_schedules_are_measured_for_real(x):
    torch.set_num_threads(2)
    try:
        q, k, v = (torch.randn(1, 4, 200, 32, requires_grad=True) for _ in range(3))

        def f(q, k, v):
            return aatc.attend(q, k, v, metric=aatc.metrics.Euclidean())

        found = aatc.tune(f, (q, k, v), backend="native", budget=60.0)
        assert len(found) == 2 and not any(e.dropped for e in found)
        compiled = aatc.compile(f, backend="native", tune=found, fallback=False, dynamic=False)
        torch.testing.assert_close(compiled(q, k, v), f(q, k, v), rtol=1e-5, atol=1e-5)
        space = backends.get("native").schedule_space
        assert space and all(e.of > 20 for e in found)
    finally:
        torch.set_num_threads(1)
