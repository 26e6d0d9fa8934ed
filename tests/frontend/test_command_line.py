"""The command line, run as users run it: in processes, with pipes, with mistakes."""

import io
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aatc
from aatc.cli import main
from tests.frontend import frontend_models as models

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line in this process: ``command("opt", "-", cwd=..., stdin=...)``."""

    def run(*args: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(args))
        out, err = capsys.readouterr()
        code = left.value.code if isinstance(left.value.code, int) else 0 if left.value.code is None else 1
        return subprocess.CompletedProcess(args, code, out, err)

    return run


def process(*args: str, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a shell does."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("AATC_")}
    env |= {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "aatc", *args],
        cwd=cwd,
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def text() -> str:
    torch.manual_seed(0)
    return str(aatc.export(models.Block().eval(), (torch.randn(2, 5, 16),)))


@pytest.fixture
def file(tmp_path, text) -> Path:
    path = tmp_path / "block.aatc"
    path.write_text(text, "utf-8")
    return path


def failed(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_opt_without_passes_gives_the_text_back(command, tmp_path, text):
    done = command("opt", "-", cwd=tmp_path, stdin=text)
    assert done.returncode == 0, done.stderr
    assert aatc.parse(done.stdout) == aatc.parse(text)
    assert done.stderr == ""


def test_opt_pipes_into_opt(file):
    once = process("opt", "--pipeline", "canonicalize", str(file), cwd=file.parent)
    twice = process("opt", "-p", "simplify-score,fuse-attention", cwd=file.parent, stdin=once.stdout)
    assert twice.returncode == 0, twice.stderr
    module = aatc.parse(twice.stdout)
    assert any(op.name == "geo.attend" for op in module.walk())


def test_opt_reports_time_and_stages_on_standard_error(command, file):
    done = command(
        "opt",
        "-p",
        "canonicalize,fuse-attention",
        "--timing",
        "--print-after-all",
        "block.aatc",
        cwd=file.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "// after 2, fuse-attention" in done.stderr
    assert "total" in done.stderr and " ms" in done.stderr
    assert "//" not in done.stdout


TILED = "canonicalize,simplify-score,fuse-attention,fuse-normalizer,schedule,adaptive-tile"


def test_opt_obeys_a_file_of_schedules_and_writes_one(command, file):
    wish = "# small tiles\nattend0.forward: split(i, 2) split(j, 3)  # of both\n"
    (file.parent / "wish.txt").write_text(wish, "utf-8")
    given = ("opt", "-p", TILED, "block.aatc", "--schedule")
    done = command(*given, "wish.txt", cwd=file.parent)
    assert done.returncode == 0, done.stderr
    assert "split(i, 2) split(j, 3)" in str(aatc.parse(done.stdout).funcs["attend0"].attrs["schedule"])
    written = command(*given, "wish.txt", "--print-schedule", cwd=file.parent).stdout
    assert [line.partition(":")[0] for line in written.splitlines()] == ["attend0.forward", "attend0.backward"]
    (file.parent / "again.txt").write_text(written, "utf-8")
    assert command(*given, "again.txt", cwd=file.parent).stdout == done.stdout


@pytest.mark.parametrize(
    ("pipeline", "wish", "says"),
    [
        (TILED, "attend0.forward: split(i, 2", "parse error: line 1, column 28"),
        (TILED, "\nattend9.forward: split(i, 2)", "parse error: line 2, column 1: there is no attention 'attend9'"),
        (TILED, "attend0.forward: bind(i, lanes)", "schedule error: line 1, attend0.forward: bind(i, lanes)"),
        ("canonicalize", "attend0.forward: split(i, 2)", "no attention stage stands alone"),
    ],
)
def test_opt_refuses_schedules_with_their_place(command, file, pipeline, wish, says):
    (file.parent / "wish.txt").write_text(wish, "utf-8")
    message = failed(command("opt", "-p", pipeline, "block.aatc", "--schedule", "wish.txt", cwd=file.parent), 1)
    assert says in message and "hint: " in message


def test_opt_lists_the_passes(command, tmp_path):
    done = command("opt", "--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "canonicalize" in done.stdout and "plan-memory" in done.stdout


def test_a_malformed_text_is_shown_with_a_caret(tmp_path):
    (tmp_path / "bad.aatc").write_text("geo.func @main(%x f32[2]) {\n", "utf-8")
    message = failed(process("opt", "bad.aatc", cwd=tmp_path), 1)
    assert message.startswith("bad.aatc: parse error: line 1, column 19")
    assert message.splitlines()[2].strip() == "^"


def test_a_module_that_breaks_a_rule_is_refused(command, file, text):
    wrong = text.replace("geo.return(", "geo.return(%nowhere, ", 1)
    message = failed(command("opt", "-", cwd=file.parent, stdin=wrong), 1)
    assert "<stdin>: " in message and "nowhere" in message


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("opt", "missing.aatc"), 1, "missing.aatc: No such file"),
        (("opt", "-p", "no-such-pass", "block.aatc"), 1, "no-such-pass"),
        (("opt", "--no-such-option"), 2, "No such option"),
        (("dump", "nocolon"), 2, "module:factory"),
        (("dump", "no_such_module:f"), 2, "no_such_module"),
        (("run", "block.aatc", "--sizes", "N=x"), 2, "N=64"),
        (("polish",), 2, "No such command"),
    ],
)
def test_mistakes_get_a_message_and_an_exit_code(command, file, args, code, says):
    assert says in failed(command(*args, cwd=file.parent), code)


FACTORY = "from tests.frontend.frontend_models import Breaking, tiny, untold\n"


@pytest.fixture
def factory(tmp_path) -> Path:
    (tmp_path / "mymodels.py").write_text(FACTORY, "utf-8")
    return tmp_path


def test_dump_prints_a_stage_of_a_model_from_the_current_folder(command, factory):
    done = command("dump", "mymodels:tiny", "--stage", "import", "--explain", cwd=factory)
    assert done.returncode == 0, done.stderr
    assert any(op.name == "geo.metric" for op in aatc.parse(done.stdout).walk())
    assert "1 graph, 1 attention, nothing left to PyTorch" in done.stderr


def test_dump_takes_shapes_for_models_without_examples(command, factory):
    done = command("dump", "mymodels:untold", "--stage", "canonicalize", "--inputs", "2x6x16", cwd=factory)
    assert done.returncode == 0, done.stderr
    assert "f32[2,6,16]" in done.stdout
    assert "--inputs 2x16x64" in failed(command("dump", "mymodels:untold", cwd=factory), 2)


def test_dump_of_what_cannot_be_compiled_names_the_line(command, factory):
    message = failed(command("dump", "mymodels:Breaking", "--inputs", "2x4x16", cwd=factory), 1)
    assert "frontend_models.py:" in message and "# the break" in message


def test_dump_of_an_unknown_stage_lists_the_stages(command, factory):
    message = failed(command("dump", "mymodels:tiny", "--stage", "imaginary", cwd=factory), 1)
    assert "stages: import" in message


def test_run_is_reproduced_by_its_seed_and_takes_saved_inputs(command, file, text):
    first, again, other = (
        command("run", "block.aatc", "--seed", seed, "-o", f"{n}.pt", cwd=file.parent) for n, seed in enumerate("112")
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("0: f32[2,5,16]")
    assert first.stdout == again.stdout != other.stdout
    module = aatc.parse(text)
    inputs = [torch.ones([int(d) for d in a.type.shape]) for a in module.entry.args]
    torch.save(inputs, file.parent / "x.pt")
    done = command("run", "block.aatc", "--inputs", "x.pt", "-o", "y.pt", cwd=file.parent)
    assert done.returncode == 0, done.stderr
    (result,) = torch.load(file.parent / "y.pt")
    torch.testing.assert_close(result, aatc.run(module, *inputs))


def test_run_refuses_a_file_that_is_no_list_of_tensors(command, file):
    (file.parent / "x.pt").write_bytes(b"nonsense")
    assert "not a saved list" in failed(command("run", "block.aatc", "--inputs", "x.pt", cwd=file.parent), 1)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0], "takes"), (3, "not a saved list"), ([torch.ones(3)], "takes"), ({"x": 1}, "argument %"),
        (None, "No such file"),
    ],
)  # fmt: skip
def test_run_refuses_inputs_that_do_not_fit(command, file, values, says):
    if values is not None:
        torch.save(values, file.parent / "x.pt")
    assert says in failed(command("run", "block.aatc", "--inputs", "x.pt", cwd=file.parent), 1)


SMALL = """aatc 2

dims {N in [1, inf]}

geo.func @main(%x: f64[N]) {
  %y = torch.call(%x) {target = "aten.view.default", args = [#0, [7, 3]]} : f64[7,3] loc("model.py":7)
  geo.return(%y)
}
"""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--sizes", "N=4"), "model.py:7: torch.call failed on the values it was given: RuntimeError: shape '[7, 3]'"),
        (("--sizes", "N=999999999999999999"), "no input can be made up for %x: f64[N]"),
        (("--sizes", "N=99999999999999999999999999"), "no input can be made up for %x: f64[N]"),
        (("--sizes", "N=21", "-o", "nowhere/y.pt"), "nowhere/y.pt cannot be written"),
        (("--inputs", "single.pt"), "argument %x is f64[N], got torch.float32 (21,)"),
    ],
)
def test_run_says_what_failed(command, tmp_path, args, says):
    (tmp_path / "small.aatc").write_text(SMALL, "utf-8")
    torch.save([torch.ones(21)], tmp_path / "single.pt")
    assert says in failed(command("run", "small.aatc", *args, cwd=tmp_path), 1)
    assert command("run", "small.aatc", "--sizes", "N=21", cwd=tmp_path).returncode == 0


def test_files_that_are_no_text_are_told(command, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\x80\x01\xff")
    (tmp_path / "empty").write_text("", "utf-8")
    (tmp_path / "deep").write_text(SMALL.replace("[7, 3]", "[" * 50_000 + "]" * 50_000), "utf-8")
    for name, says in (("bytes", "not UTF-8"), ("empty", "no function"), ("deep", "line 6"), (".", "Is a directory")):
        for verb in ("run", "opt"):
            assert says in failed(command(verb, name, cwd=tmp_path), 1)


def test_mutated_texts_give_messages_only(command, tmp_path):
    """Numbers, names and words of goldens in each other's places."""
    golden = sorted((ROOT / "tests/compiler/golden").glob("*.aatc"))
    draw = random.Random(0)
    for n in range(150):
        words = re.findall(r'\s+|%?\w+|"[^"\n]*"|.', draw.choice(golden).read_text("utf-8"))
        for _ in range(draw.choice((1, 2))):
            like = draw.choice((str.isdigit, str.isalpha, lambda w: w[0] == "%", lambda w: w[0] == '"', lambda w: True))
            at = [i for i, w in enumerate(words) if like(w)]
            if at:
                words[draw.choice(at)] = words[draw.choice(at)]
        (tmp_path / "m.aatc").write_text("".join(words), "utf-8")
        args = (("run",), ("opt",), ("opt", "-p", "lower-tokens"), ("opt", "-p", "canonicalize,plan-memory"))[n % 4]
        done = command(*args, "m.aatc", cwd=tmp_path)
        assert done.returncode in (0, 1) and (done.returncode == 0 or "error" in done.stderr), (n, done.stderr)


def test_devices_lists_the_cpu(command, tmp_path):
    done = command("devices", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cpu" in done.stdout


def test_the_help_names_every_command(command, tmp_path):
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("opt", "dump", "run", "devices"))
