"""What is measured, what is dropped, what is kept and when the search ends."""

import pytest

from aatc.tuning.search import EFFORTS, MARGIN, Effort, search
from tests.tuning.bench import Clock, Made, tiles

DEFAULT, *OTHERS = SPACE = [tiles(n) for n in (64, 32, 128, 256, 16)]
SMALL = Effort(3, 3, 2, 5, 30.0)


def found(times, effort=SMALL, budget=1000.0, **more):
    bench = Made({s: 1.0 for s in SPACE} | times, **more)
    return search(SPACE, bench, effort, budget, bench.clock), bench


def test_the_fastest_is_kept():
    result, _ = found({OTHERS[0]: 0.8, OTHERS[1]: 0.5})
    assert (result.schedule, result.default, result.tried, result.of) == (OTHERS[1], DEFAULT, 3, 4)
    assert (result.seconds, result.default_seconds) == (0.5, 1.0)


def test_the_default_wins_ties_and_what_is_less_than_noise():
    for t in (1.0, 1.0 - MARGIN / 2, 1.2):
        result, _ = found({s: t for s in OTHERS})
        assert result.schedule == DEFAULT and result.seconds == result.default_seconds == 1.0


def test_a_lucky_round_keeps_nothing():
    """One quiet moment on a busy machine is no gain."""
    lucky = {OTHERS[0]: lambda run: 0.3 if run == 5 else 1.0}
    assert found(lucky)[0].schedule == DEFAULT
    busy = {DEFAULT: lambda run: 1.0 if run % 2 else 4.0, OTHERS[0]: lambda run: 0.9 if run % 2 else 4.1}
    assert found(busy)[0].schedule == DEFAULT


def test_what_gives_other_numbers_is_dropped_and_named_before_it_is_timed():
    result, bench = found({OTHERS[0]: 0.1, OTHERS[1]: 0.1, OTHERS[2]: 0.9}, wrong=OTHERS[:1], broken=OTHERS[1:2])
    assert result.schedule == OTHERS[2] and result.tried == 1
    assert result.dropped == [
        (str(OTHERS[0]), "result 0 differs"),
        (str(OTHERS[1]), "RuntimeError: no such instruction"),
    ]
    assert bench.runs[OTHERS[0]] == bench.runs[OTHERS[1]] == 0


def test_the_default_runs_beside_every_candidate_and_the_hopeless_run_once():
    result, bench = found({OTHERS[0]: 5.0})
    assert bench.runs[OTHERS[0]] == 1 and bench.runs[DEFAULT] >= 1 + 3 + 3
    assert result.schedule == DEFAULT


def test_quick_tries_the_first_and_full_tries_all():
    assert found({})[1].prepared == SPACE[:4]
    assert found({}, EFFORTS["full"])[1].prepared == SPACE


def test_the_best_few_are_measured_again_in_turns():
    _, bench = found({OTHERS[0]: 0.9, OTHERS[1]: 0.8, OTHERS[2]: 0.7})
    assert bench.runs[OTHERS[0]] == 3  # the third best is not among the last
    assert bench.runs[OTHERS[1]] == bench.runs[OTHERS[2]] == 3 + 5


@pytest.mark.parametrize(("budget", "tried"), [(0.0, 0), (4.0, 1), (10.0, 2), (1000.0, 3)])
def test_the_budget_ends_it_between_candidates(budget, tried):
    """A second to compile, six to measure each; the default takes three in the beginning."""
    clock = Clock()
    result, bench = found({OTHERS[0]: 0.9}, budget=budget, clock=clock)
    assert result.tried == tried and result.finished == (tried == 3)
    assert result.schedule == (OTHERS[0] if tried else DEFAULT)
    assert len(bench.prepared) == 1 + tried


def test_progress_is_told():
    told = []
    bench = Made({s: 1.0 for s in SPACE})
    search(SPACE, bench, SMALL, 1000.0, bench.clock, lambda done, of: told.append((done, of)))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
