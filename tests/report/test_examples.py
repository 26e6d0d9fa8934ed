"""The examples run, and write the pictures they promise; the manual's examples print what it says."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MANUALS = {
    name: (EXAMPLES.parent / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("geometry", "analysis")
}
BLOCKS = [
    pytest.param(*block, id=f"{name}-{n}")
    for name, text in MANUALS.items()
    for n, block in enumerate(re.findall(r"```python\n((?:(?!```).)*)```\n\n```text\n(.*?)```", text, flags=re.DOTALL))
]
PICTURES = {
    "geodesics": ("digit_geodesic", "sphere_holonomy", "torus_geodesic"),
    "geometric_flow": ("digit_graph_curvature", "sphere_extinction", "torus_flow"),
    "turing": ("turing_pattern", "pattern_bifurcation", "nerve_bifurcation"),
    "attention_flow": ("attention_flow", "attention_snapshots"),
    "validate": ("pendulum",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_an_example_runs_and_writes_its_pictures(name, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--quick", "--output", str(tmp_path / "new" / "folder")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {path.stem: path.read_bytes()[:8] for path in (tmp_path / "new" / "folder").glob("*.png")}
    assert found == {picture: b"\x89PNG\r\n\x1a\n" for picture in PICTURES[name]}


@pytest.mark.slow
def test_a_trained_model_is_analysed():
    pytest.importorskip("sklearn")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / "analyze_topology.py"), "--epochs", "1", "--images", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "picks most" in done.stdout and "least buffers" in done.stdout
    assert all(f"{layer}.{head}" in done.stdout for layer in range(2) for head in range(4))


@pytest.mark.slow
def test_three_models_are_told_apart(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent), "COLUMNS": "120"}
    command = [sys.executable, str(EXAMPLES / "heads_of_models.py"), "--epochs", "1", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    said = re.findall("• (.*)", done.stdout)
    assert [s.split()[0] for s in said] == ["Heads", "Nothing", "An"]
    assert (
        re.search(r"0\.[01] .*previous token", done.stdout)
        and len(re.findall(r"1\.[01] .*induction", done.stdout)) >= 1
    )
    pages = {p.stem: p.read_text("utf-8") for p in tmp_path.glob("*.html")}
    assert set(pages) == {"trained_digits", "llama-shaped_random_weights", "induction_toy"}
    assert all(page.count("<img") >= 8 and "http" not in page for page in pages.values())


@pytest.mark.slow
def test_what_training_leaves_in_heads_is_said(tmp_path):
    """By every family, within the minute that it may take."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent), "COLUMNS": "160"}
    command = [sys.executable, str(EXAMPLES / "analyze_digits.py"), "--epochs", "3", "--images", "1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    taken = [(int(n), float(t)) for n, t in re.findall(r"(\d+) findings in ([\d.]+) s", done.stdout)]
    assert len(taken) == 2 and all(findings > 300 and seconds < 60 for findings, seconds in taken)
    # an encoder with random weights averages: its heads read nearly all of the patches, those that were trained do not
    row = next(line for line in done.stdout.splitlines() if "effective context " in line and "keys" in line)
    low, high = (max(map(float, re.findall(r"[\d.]+", cell))) for cell in row.split("│")[3:5])
    assert low < 12 < 14 < high
    said = set(re.findall(r"• (\w+), .* after training", done.stdout))
    assert said >= {"heads", "information", "quantum", "scale"}
    assert {p.stem for p in tmp_path.glob("*.html")} == {"digits_trained", "digits_random"}


@pytest.mark.parametrize(("program", "printed"), BLOCKS)
def test_an_example_of_the_manual_prints_what_the_manual_says(program, printed):
    pytest.importorskip("matplotlib")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(program, {})
    assert out.getvalue() == printed


def test_every_example_in_the_manual_has_an_output_and_every_script_is_named():
    text = MANUALS["geometry"]
    assert sum(b.id.startswith("geometry") for b in BLOCKS) == text.count("```python") > 5
    assert all(f"(../examples/{name}.py)" in text for name in PICTURES)
