"""The benchmark of a device runs on any, and says what it left out."""

import json

import pytest
from typer.testing import CliRunner

from bench import vulkan
from tests.vulkan.running import EXECUTORS, usable

pytestmark = pytest.mark.skipif(
    all(usable(name) for name in EXECUTORS), reason="no executor sees a device; make vulkan installs one"
)


def app():
    import typer

    made = typer.Typer()
    made.command()(vulkan.main)
    return made


def test_attention_is_measured_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(vulkan, "RESULTS", tmp_path)
    monkeypatch.setattr(vulkan, "WIDTHS", (64,))
    arguments = ["--lengths", "17", "--kinds", "dot-product", "--no-operators"]
    done = CliRunner().invoke(app(), arguments, catch_exceptions=False)
    assert done.exit_code == 0
    (kept,) = tmp_path.glob("vulkan-*.json")
    (row,) = json.loads(kept.read_text())["rows"]
    assert row["flops"] == 4 * 8 * 17 * 17 * 64
    assert 0 < row["kernel"] <= row["call"]
    assert row["off"] < 1e-5
    assert list(tmp_path.glob("vulkan-*.png"))


def test_what_there_is_no_time_for_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(vulkan, "RESULTS", tmp_path)
    done = CliRunner().invoke(app(), ["--lengths", "17", "--no-operators", "--patience", "-1"])
    assert "no time was left" in done.output
    assert CliRunner().invoke(app(), ["--kinds", "nothing"]).exit_code == 2
    assert CliRunner().invoke(app(), ["--lengths", "short"]).exit_code == 2


def test_a_device_as_such():
    found = vulkan.GPUPerformanceTests(size=1 << 12).benchmark_operations()
    assert all(x > 0 for numbers in found.values() for x in numbers.values())
    assert set(found) == {"allocation", "transfers", "operators", "synchronisation"}
