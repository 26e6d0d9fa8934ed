"""``aatc tune``: schedules are measured, listed, carried to another folder and refused."""

import sys

import pytest

from aatc.cli import main
from aatc.tuning import kept, load

MODEL = """
import torch, aatc

def f(q, k, v):
    return aatc.attend(q, k, v, metric=aatc.metrics.SphereGeodesic())

def model():
    return f, [torch.randn(1, 2, 20, 4) for _ in range(3)]
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, one_thread):
    (tmp_path / "a_model_to_tune.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(["tune", *args])
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return run


def test_a_model_is_measured_listed_exported_and_imported(command, tmp_path, monkeypatch):
    code, out, err = command("a_model_to_tune:model", "--backend", "cpu", "--export", "x.json")
    assert (code, err) == (0, "") and out.startswith("attention, forward: ") and "schedules tried)" in out
    assert command("--list") == (0, out, "")
    (entry,) = load(tmp_path / "x.json")
    assert kept() == [entry]
    monkeypatch.setenv("AATC_CACHE", str(tmp_path / "another"))
    assert command("--list") == (0, "no schedules\n", "")
    assert command("--import", "x.json") == (0, out, "")
    assert kept() == [entry]


def test_shapes_take_the_place_of_the_examples(command):
    shapes = "1x1x9x4,1x1x9x4,1x1x9x4"
    code, *_ = command("a_model_to_tune:model", "--backend", "cpu", "--inputs", shapes, "--budget", "5")
    assert code == 0 and [dict(e.key.fields)["queries"] for e in kept()] == ["9 to 16"]


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        ([], 2, "say one of: a model, --import FILE, --list"),
        (["a_model_to_tune:model", "--list"], 2, "say one of"),
        (["a_model_to_tune:model", "--effort", "heroic"], 1, "effort='heroic' is not known"),
        (["a_model_to_tune:model", "--backend", "abacus"], 1, "there is no backend 'abacus'"),
        (["--import", "missing.json"], 1, "missing.json"),
        (["--import", "a_model_to_tune.py"], 1, "schedule error: a_model_to_tune.py: a file of schedules is JSON"),
    ],
)
def test_mistakes_are_told(command, args, code, why):
    got, _, err = command(*args)
    assert got == code and why in err
