"""The budget of an analysis is that of all of it, and is shared so that what wants little is served."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import aatc
from aatc.analysis import AnalysisPass, BudgetError, Cost, Result
from aatc.passes.analysis import base

HEADS = 10


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return Clock.now


@dataclass(frozen=True)
class Taking(AnalysisPass):
    """Says that a pattern takes ``says`` seconds, and takes ``takes``."""

    says: float = 1.0
    takes: float = 1.0
    label: str = "a"
    name: ClassVar[str] = "test-taking"
    family: ClassVar[str] = "taking"

    def estimate_cost(self, n, dim):
        return Cost(self.says, 0.0)

    def estimate_pattern(self, seen, study):
        return Cost(self.says, 0.0)

    def of_pattern(self, seen, head, batch, study):
        Clock.now += self.takes
        return {self.label: Result(self.takes, "P0")}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    for module in ("aatc.passes.analysis.base", "aatc.analysis.weights"):
        monkeypatch.setattr(f"{module}.time", Clock())
    base.CACHE.clear()


def run(passes, budget):
    weights = torch.rand(1, HEADS, 3, 3).softmax(-1)
    start = Clock.now
    found = aatc.analyze_weights(weights, passes, budget=budget)
    done = {label: len(found.select(item=label)) for label in dict.fromkeys(p.label for p in passes)}
    return done, len(found.select(item="refused")), Clock.now - start


def test_the_budget_is_of_all_patterns_together():
    done, refused, took = run([Taking()], 4.5)
    assert (done, refused, took) == ({"a": 4}, 6, 4.0)


def test_what_takes_longer_than_it_says_is_stopped_after_the_piece_that_overran():
    done, refused, took = run([Taking(says=0.1, takes=1.0)], 2.5)
    assert (done["a"], refused, took) == (3, 7, 3.0)


def test_those_that_want_little_are_served_whatever_their_place():
    passes = [Taking(label="dear", says=5, takes=5), Taking(label="cheap", says=0.1, takes=0.1)]
    for order in (passes, passes[::-1]):
        done, _, took = run(order, 12.0)
        base.CACHE.clear()
        assert done == {"dear": 2, "cheap": 10} and took == pytest.approx(11.0)


def test_the_dear_share_what_is_left():
    passes = [Taking(label=c, says=1.0, takes=1.0) for c in "abc"]
    done, _, took = run(passes, 9.1)
    assert done == {"a": 3, "b": 3, "c": 3} and took == 9.0


def test_a_part_that_is_too_short_for_one_piece_is_left_to_the_others():
    passes = [Taking(label="a"), Taking(label="vast", says=50.0, takes=50.0), Taking(label="b", says=0.5, takes=0.5)]
    assert run(passes, 15.2)[0] == {"a": 10, "vast": 0, "b": 10}


def test_what_is_left_over_goes_to_the_next():
    passes = [Taking(label="quick", says=1.0, takes=0.0), Taking(label="b", says=1.0, takes=1.0)]
    assert run(passes, 10.5)[0] == {"quick": 10, "b": 10}


def test_without_a_budget_all_is_done_and_bytes_bound_each_piece():
    assert run([Taking()], None)[0] == {"a": HEADS}
    refused = aatc.analyze_weights(torch.eye(3), [Heavy()], budget=Cost(bytes=10.0)).findings
    assert isinstance(refused[0].result, BudgetError)


@dataclass(frozen=True)
class Heavy(Taking):
    name: ClassVar[str] = "test-heavy"

    def estimate_pattern(self, seen, study):
        return Cost(0.0, 11.0)
