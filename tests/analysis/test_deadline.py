"""What takes longer than its estimate is given up on the way, and no import runs while a budget's clock does."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

import aatc
from aatc.analysis import BudgetError, Cost
from aatc.passes.analysis import base
from aatc.passes.analysis.deadline import deadline, proceed

BUDGET = 0.3


def band(rng, n):
    at = np.arange(n)
    return (np.abs(at[:, None] - at) <= 40) * rng.random((n, n))


PATTERNS = {
    "band": band,
    "local": lambda rng, n: np.exp(-np.abs(np.arange(n)[:, None] - np.arange(n)) / 5),
    "integers": lambda rng, n: rng.integers(0, 5, (n, n)) + np.eye(n),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_budget_is_kept_where_the_estimate_is_too_low(name, monkeypatch):
    monkeypatch.setattr(base.AnalysisPass, "_estimate_square", lambda self, seen, times=1: Cost(0.0, 0.0))
    weights = PATTERNS[name](np.random.default_rng(0), 520).astype(float)
    weights /= weights.sum(1, keepdims=True)
    aatc.analyze_weights(np.eye(3), "topology")
    before = time.process_time()
    found = aatc.analyze_weights(weights, "topology", budget=BUDGET)
    assert time.process_time() - before < 2 * BUDGET  # whole: some three seconds
    (refused,) = found.findings
    assert refused.item == "refused" and "topology of attend0, head 0 was given up after" in str(refused.result)
    assert refused.result.estimate.seconds > refused.result.budget.seconds


def test_what_was_given_up_is_not_kept(monkeypatch):
    monkeypatch.setattr(base.AnalysisPass, "estimate_pattern", lambda self, seen, study: Cost(0.0, 0.0))
    weights = np.random.default_rng(1).dirichlet(np.ones(300), 300)
    for budget, refused in ((1e-3, True), (None, False)):
        found = aatc.analyze_weights(weights, "information", budget=budget)
        assert bool(found.select(item="refused")) == refused


def test_deadlines_are_of_what_runs_within_them():
    proceed()
    with deadline(Cost(), "all"):
        proceed()
        with pytest.raises(BudgetError, match="a part was given up"), deadline(Cost(seconds=0.0), "a part"):
            proceed()
        proceed()
    proceed()


def test_nothing_is_imported_while_the_clock_runs():
    program = """
import json, sys
import numpy as np
import aatc.analysis as an
from aatc.analysis.run import FAMILIES, chosen_passes
an.analyze_weights
chosen_passes(tuple(FAMILIES))
before = set(sys.modules)
weights = np.random.default_rng(0).random((2, 24, 24))
weights[1] = np.tril(weights[1])
an.analyze_weights(weights / weights.sum(-1, keepdims=True))
print(json.dumps([sorted(set(sys.modules) - before), "scipy.stats" in sys.modules]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    new, statistics = json.loads(run.stdout)
    assert not [m for m in new if m.startswith(("aatc.", "scipy.", "networkx.", "gudhi."))] and not statistics
