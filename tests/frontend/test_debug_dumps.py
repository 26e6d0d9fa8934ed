"""AATC_LOG and AATC_DUMP: texts, code, and a script that runs alone, also when compiling fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aatc
from tests.frontend import frontend_models as models

ROOT = Path(__file__).parents[2]


def python(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AATC_")}
    kept |= {"PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, *args], cwd=cwd, env=kept, capture_output=True, text=True, timeout=300)


def test_a_dump_holds_every_stage_the_code_and_a_script_that_runs_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("AATC_DUMP", str(tmp_path))
    compiled = aatc.compile(models.Classifier().eval(), dynamic=True)
    with torch.no_grad():
        compiled(torch.randn(2, 5, 16))
    (folder,) = tmp_path.iterdir()
    assert folder.name == "000-Classifier_graph_0"
    texts = sorted(p.name for p in folder.glob("*.aatc"))
    assert texts[0] == "00-import.aatc"
    assert [t[3:-5] for t in texts] == [s.split(".")[0] for s in compiled.stages[:-1]]
    assert aatc.parse((folder / texts[0]).read_text("utf-8")) == compiled.ir("import")
    assert (folder / "code.py").read_text("utf-8").strip() == compiled.code.strip()
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    done = python(str(elsewhere / "repro.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "output 0: relative difference" in done.stdout


PASSES = """
from dataclasses import dataclass
from typing import ClassVar
from aatc.errors import PassError
from aatc.passes import Pass, register

@register
@dataclass(frozen=True)
class Refuse(Pass):
    name: ClassVar[str] = "refuse"
    word: str = "no"
    def run(self, module, ctx):
        raise PassError(f"refused: {self.word}")
"""


def test_a_failed_compile_is_dumped_and_its_script_reproduces_the_failure(tmp_path):
    (tmp_path / "mine.py").write_text(PASSES, "utf-8")
    script = (
        "import torch, aatc, mine\n"
        "from tests.frontend import frontend_models as models\n"
        "c = aatc.compile(models.Block().eval(), passes=[mine.Refuse(word='never')])\n"
        "c(torch.randn(2, 4, 16))\n"
    )
    done = python("-c", script, cwd=tmp_path, AATC_DUMP="dumps", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert done.returncode == 1
    assert "PassError: refused: never" in done.stderr
    (folder,) = (tmp_path / "dumps").iterdir()
    assert "refused: never" in (folder / "error.txt").read_text("utf-8")
    assert (folder / "00-import.aatc").exists()
    again = python("repro.py", cwd=folder, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert again.returncode == 1
    assert again.stderr.startswith("PassError: ") and "refused: never" in again.stderr


def test_a_failure_before_there_is_ir_leaves_torchs_graph(tmp_path, monkeypatch):
    monkeypatch.setenv("AATC_DUMP", str(tmp_path))

    def f(x):
        with torch.enable_grad():
            return (x * 2).sum()

    with torch.no_grad():
        aatc.compile(f)(torch.randn(3, requires_grad=True))
    (folder,) = tmp_path.iterdir()
    assert "enable_grad" in (folder / "error.txt").read_text("utf-8")
    assert "def forward" in (folder / "graph.txt").read_text("utf-8")


def test_every_compile_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("AATC_DUMP", str(tmp_path))
    for _ in range(2):
        aatc.compile(torch.nn.Linear(2, 2))(torch.zeros(1, 2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000-Linear_graph_0", "001-Linear_graph_0"]


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> str:
    script = (
        "import torch, aatc\n"
        "c = aatc.compile(torch.nn.Linear(2, 2), dynamic=True)\n"
        "c(torch.zeros(3, 2)); c(torch.zeros(1, 2))\n"
    )
    words = "ir,passes,code,recompiles,loud"
    done = python("-c", script, cwd=tmp_path_factory.mktemp("log"), AATC_LOG=words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def test_the_log_says_what_was_asked_for(logged):
    assert "[aatc.ir] Linear, graph 0, import:" in logged
    assert "[aatc.ir] Linear, graph 0, final:" in logged
    assert "[aatc.passes] canonicalize:" in logged
    assert "[aatc.code] Linear, graph 0:" in logged
    assert "[aatc.recompiles] Linear, graph 1:" in logged


def test_an_unknown_word_of_the_log_is_met_with_the_list(logged):
    assert "there is no 'loud'; words: ir, passes, code, tune, recompiles" in logged


def test_without_knobs_nothing_is_written(tmp_path):
    done = python("-c", "import torch, aatc\naatc.compile(torch.nn.Linear(2, 2))(torch.zeros(3, 2))", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
