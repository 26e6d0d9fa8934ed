"""Kernels that count, and listings of kernels."""

import pytest
import torch

import aatc
from aatc import backends
from aatc.errors import BackendError
from aatc.metrics import LorentzDistance

pytestmark = pytest.mark.usefixtures("one_thread")


def attention(q, k, v):
    return aatc.attend(q, k, v, metric=LorentzDistance(lift=True), mask=aatc.masks.causal())


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return tuple(0.3 * torch.randn(1, 2, 150, 32, generator=generator) for _ in range(3))


def test_a_profile_names_the_operations_and_shares_their_time(inputs):
    compiled = aatc.compile(attention, backend="native", fallback=False)
    found = compiled.profile(inputs, runs=4)
    assert found.backend == "native" and found.runs == 4 and found.threads == 1
    assert sum(row.share for row in found.operations) == pytest.approx(1)
    assert all(row.seconds >= 0 and row.calls > 0 and row.calls == int(row.calls) for row in found.operations)
    dots = [row for row in found.operations if "form=" in row.operation]  # alone, or joined with what it is read by
    assert len(dots) == 2 and sum(row.share for row in dots) > 0.05
    assert 0 < sum(row.seconds for row in found.operations) < found.seconds
    text = str(found)
    assert "form=nt" in text and "tile.dot form=nn" in text and "share" in text and "%" in text


def test_operations_of_regions_are_counted_apart_from_what_holds_them(inputs):
    compiled = aatc.compile(attention, backend="native", fallback=False)
    rows = {row.operation.split(" = ")[-1].split()[0]: row for row in compiled.profile(inputs).operations}
    assert rows["tile.sweep"].calls < rows["tile.dot"].calls
    assert rows["tile.sweep"].share < 0.5


def test_a_profile_of_gradients_has_both_directions(inputs):
    found = aatc.compile(attention, backend="native", fallback=False).profile(inputs, runs=2, backward=True)
    functions = {row.function for row in found.operations}
    assert len(functions) == 2 and any("backward" in name for name in functions)
    dots = sum("form=" in row.operation for row in found.operations)
    assert dots in (2 + 5, 2 + 7)  # a backward by rows, or by rows and by columns: that depends on the cores
    assert all(x.grad is None and not x.requires_grad for x in inputs)


def test_builds_that_count_compute_the_same_bits_on_any_number_of_threads(inputs):
    compiled = aatc.compile(attention, backend="native", fallback=False)
    want = compiled(*inputs)
    run = compiled.graphs[0].program.main  # itself: Dynamo compiles anew for another number of threads
    profiler = backends.get("native").profiler()
    with profiler:
        assert torch.equal(run(*inputs)[0], want)
        one = {(r.operation, r.calls) for r in profiler.result(1, 1.0).operations}
        torch.set_num_threads(3)
        profiler.restart()
        assert torch.equal(run(*inputs)[0], want)
        assert {(r.operation, r.calls) for r in profiler.result(1, 1.0).operations} == one
        profiler.restart()
    run(*inputs)  # outside: nothing counts
    assert profiler.result(1, 1.0).operations == []


def test_graphs_that_were_compiled_can_be_profiled_without_inputs(inputs):
    compiled = aatc.compile(attention, backend="native", fallback=False)
    with pytest.raises(aatc.errors.AatcError, match="no graph yet"):
        compiled.profile()
    compiled(*inputs)
    found = compiled.profile(runs=1)
    assert found.note == "random inputs" and any("tile.dot" in row.operation for row in found.operations)


def test_builds_that_count_can_check_addresses_too(inputs, monkeypatch):
    monkeypatch.setenv("AATC_CHECK", "bounds")
    compiled = aatc.compile(attention, backend="native", fallback=False)
    assert compiled.profile(inputs, runs=1).operations
    torch.testing.assert_close(compiled(*inputs), attention(*inputs), rtol=2e-5, atol=2e-5)


def test_a_backend_that_does_not_count_says_so(inputs):
    compiled = aatc.compile(attention, backend="cpu")
    with pytest.raises(BackendError, match="'cpu' does not count"):
        compiled.profile(inputs)
    with pytest.raises(ValueError, match="runs is 0"):
        compiled.profile(inputs, runs=0)


MODEL = """
import torch, aatc

def make():
    f = lambda q, k, v: aatc.attend(q, k, v, metric=aatc.metrics.Euclidean())
    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return f(q, k, v)
    return Attention(), tuple(torch.randn(3, 1, 2, 40, 32))
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from aatc.cli import app

    (tmp_path / "measured_model.py").write_text(MODEL, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda *words: CliRunner().invoke(app, [words[0], "measured_model:make", *words[1:]])


@pytest.mark.parametrize("isa, register", [("avx512", "%zmm"), ("avx2", "%ymm")])
def test_dump_shows_llvm_ir_and_assembly(command, monkeypatch, isa, register):
    from aatc.backends.native.isa import available

    if isa not in {x.name for x in available()}:
        pytest.skip(f"the processor has no {isa}")
    monkeypatch.setenv("AATC_ISA", isa)
    llvm = command("dump", "--backend", "native", "--stage", "llvm")
    assert llvm.exit_code == 0 and llvm.output.count("define void @region") >= 2
    assert (
        "; @attend0\n" in llvm.output and "; @attend0_backward\n" in llvm.output and "tile.dot form=nt" in llvm.output
    )
    asm = command("dump", "--backend", "native", "--stage", "asm")
    assert asm.exit_code == 0 and register in asm.output and "vfmadd" in asm.output
    code = command("dump", "--backend", "native", "--stage", "code")
    assert "define void @region" in code.output and "def main" in code.output


def test_dump_of_a_listing_that_a_backend_lacks_is_refused(command):
    result = command("dump", "--stage", "asm", "--backend", "cpu")
    assert isinstance(result.exception, BackendError) and "no listing 'asm'" in str(result.exception)


def test_the_command_profile_prints_a_table(command):
    result = command("profile", "--runs", "1")
    assert result.exit_code == 0 and "tile.dot" in result.output and "share" in result.output
    assert isinstance(command("profile", "--backend", "cpu").exception, BackendError)
