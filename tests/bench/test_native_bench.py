"""The benchmark of native kernels: its rows, its report and the README's figures. Nothing is timed here."""

import re

import pytest

from bench import readme
from bench.native import rate
from bench.native.bounds import BOUNDS
from bench.native.plans import Plan, Settings, plans
from bench.native.verdicts import Measured, table
from bench.report import Figure


def test_every_bound_is_measured_by_one_plan():
    names = [name for plan in plans() for name in plan.names]
    assert sorted(names) == sorted(BOUNDS)


def test_rows_are_chosen_by_name_or_description():
    chosen = {n for plan in plans() for n in plan.chosen(re.compile("^forward/|second process"), True)}
    assert {"forward/euclidean", "compile/second"} <= chosen
    assert not any(n.startswith(("busy/", "memory/")) for n in chosen)
    assert not any(plan.chosen(re.compile("busy/"), False) for plan in plans())


def test_a_measurement_that_fails_says_why_and_is_not_met():
    def fails(settings, wanted):
        raise RuntimeError("no such kind")

    (row,) = Plan(("windows/swin",), fails).rows(Settings(), frozenset({"windows/swin"}))
    assert row.value is None and row.met is False and "no such kind" in row.note


def test_verdicts():
    assert Measured("forward/euclidean", 0.5).met and Measured("forward/euclidean", 0.56).met is False
    assert Measured("share/backward", 0.7).met and Measured("share/backward", 0.5).met is False
    assert Measured("bf16/dot-product", None, note="not here: no such products").met is None
    assert table([Measured("forward/euclidean", 0.5, {"native": Figure((1.0, 2.0), "ms")})]).row_count == 1


def test_the_machines_rate_is_measured(one_thread):
    found = rate.measured(rounds=2000)
    found.call()
    assert found.operations > 0 and found.of(1.0) == pytest.approx(1e3 * found.operations)


def row_of(name, measured, note="", **figures):
    bound = BOUNDS[name]
    return {
        "name": name, "what": bound.what, "bound": bound.bound, "unit": bound.unit, "at_least": bound.at_least,
        "measured": measured, "met": bound.met(measured), "note": note,
        "figures": {who.replace("_", " "): {"values": [ms], "unit": "ms"} for who, ms in figures.items()},
    }  # fmt: skip


RESULT = {
    "device": {"processor": "A processor", "isa": "avx512", "threads": 2, "torch": "2.13.0", "llvm": "22.1"},
    "settings": {"runs": 9},
    "rows": [
        row_of("forward/euclidean", 0.5, "share of the rate 0.71", native=20, SDPA=40, torch_code=44),
        row_of("busy/euclidean", 0.6),
        row_of("memory/euclidean", 40.0),
        row_of("memory/sphere", 50.0),
        row_of("share/backward", 0.61),
    ],
}


def test_the_readmes_figures_are_those_of_the_result():
    page = readme.written(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter", RESULT)
    assert page.startswith("before\n") and page.endswith("\nafter") and "old" not in page
    assert "| Euclidean | 0.50× | ≤ 0.55 | 0.60× | 0.71 | 1.10× |  |" in page
    assert "| 50 MiB (geodesic on the sphere), not met | ≤ 48 |" in page
    assert "| dot product, backward: share of the multiply-add rate | 0.61 of the multiply-add rate | ≥ 0.6 |" in page
    with pytest.raises(ValueError, match="no place"):
        readme.written("a page", RESULT)


def test_the_readme_shows_what_is_published():
    page = readme.README.read_text("utf-8")
    assert readme.BEGIN in page and readme.END in page
    if readme.PUBLISHED.exists():
        import json

        assert readme.written(page, json.loads(readme.PUBLISHED.read_text("utf-8"))) == page
