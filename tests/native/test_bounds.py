"""Kernels stay inside of their operands, results and temporary memory."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aatc.backends.native import bounds, compiled, isa
from aatc.backends.native.llvm import Code, Module, Val, index
from aatc.errors import BackendError
from tests.compiler.harness import build
from tests.conformance.cases import Sizes, case

pytestmark = pytest.mark.usefixtures("one_thread")
ISAS = [found.name for found in isa.available()]


@pytest.fixture
def checked(monkeypatch):
    monkeypatch.setenv("AATC_CHECK", "bounds")


def built(kind, mask, dtype, sizes):
    c = case(kind, mask, dtype, sizes)
    return build(*c.operands[:3], backend="native", tiles="rows=16 cols=32 grain=16", **c.parts)


def run(attention):
    o, lse = attention.run()
    wanted = [t for t in attention.operands if t.requires_grad]
    torch.autograd.grad(o.float().sum() + lse.float().sum(), wanted, allow_unused=True)


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize(
    ("kind", "mask", "dtype", "sizes"),
    [
        ("dot product", "causal", torch.float32, Sizes(2, 2, 1, 19, 37, 17)),
        ("relative table", "dense", torch.bfloat16, Sizes(1, 2, 2, 33, 7, 3)),
        ("hyperboloid transport", "window", torch.float64, Sizes(1, 1, 1, 15, 18, 5)),
    ],
)
def test_checks_find_nothing(checked, monkeypatch, name, kind, mask, dtype, sizes):
    monkeypatch.setenv("AATC_ISA", name)
    run(built(kind, mask, dtype, sizes))


def test_an_operand_shorter_than_its_shape_is_told_by_the_operation(checked, monkeypatch):
    sizes = Sizes(1, 1, 1, 19, 21, 4)
    built("dot product", "none", torch.float32, sizes).run()
    true = compiled._bytes
    monkeypatch.setattr(compiled, "_bytes", lambda *layout: true(*layout) - 1)
    with pytest.raises(BackendError, match=r"@attend0\w* leaves its memory in: .*(tile|native)\.\w+"):
        built("dot product", "none", torch.float32, sizes).run()


def test_scratch_memory_is_held_tile_by_tile(checked, monkeypatch):
    """A tile that is planned too small is found, though what follows it belongs to the task, too."""
    from aatc.backends.native import emit

    monkeypatch.setattr(emit, "scratch_bytes", lambda isa, t: 64)
    with pytest.raises(BackendError, match="leaves its memory in"):
        built("dot product", "none", torch.float32, Sizes(1, 1, 1, 19, 21, 4)).run()


def test_an_address_of_unknown_memory_is_refused():
    code = Code(Module(check=True), "f", [("context", "ptr")])
    stray = code.op("ptr", "inttoptr i64 64 to ptr")
    with pytest.raises(BackendError, match="belongs to no known memory"):
        code.load("float", code.at(stray, index(1), "float"))
    assert code.load("i64", code.at(Val("%context", "ptr"), index(1), "i64")).type == "i64"


def test_code_without_checks_has_none(monkeypatch):
    monkeypatch.delenv("AATC_CHECK", raising=False)
    assert not bounds.wanted()
    text = next(
        iter(built("dot product", "none", torch.float32, Sizes(1, 1, 1, 5, 5, 4)).program.code.splitlines()), ""
    )
    assert "outside" not in text


def _child(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tests.native.guarded", *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are Linux's")
def test_nothing_beside_operands_is_touched():
    found = _child()
    last = found.stdout.strip().splitlines()[-1:] or [found.stderr[-2000:]]
    assert found.returncode == 0, f"{last[0]}: {found.stderr[-2000:]}"
    assert re.fullmatch(r"\d+ kernels stayed inside", last[0])


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are Linux's")
def test_guards_are_there():
    assert _child("outside").returncode in (-signal.SIGSEGV, -signal.SIGBUS)
