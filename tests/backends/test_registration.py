"""How backends are found, and what is known of them when they are."""

import subprocess
import sys
import types
import warnings
from importlib.metadata import EntryPoint

import pytest
import torch

import aatc
from aatc import backends
from aatc.backends import Lowerings, found
from aatc.backends.cpu import CpuBackend
from aatc.backends.cpu.table import lowering
from aatc.backends.native import isa, launch, machine, usable
from aatc.errors import AatcWarning, BackendError, PassError, UnsupportedError
from aatc.ir.registry import OPS


def renamed(name: str, **changes) -> Lowerings:
    """The CPU backend's table under another name, less what ``changes`` take away."""
    table = Lowerings(name, unsupported={n: "planted" for n in changes.get("refused", ())})
    left_out = {*changes.get("left_out", ()), *changes.get("refused", ())}
    for op in (d.name for d in OPS.values() if d.level == "tile" and d.name.startswith("tile.")):
        if op not in left_out:
            table(op)(lowering[op])
    return table


def other(name: str = "other", **changes) -> backends.Backend:
    members = {"name": name, "lowerings": renamed(name, **changes), "suffix": changes.get("suffix", "plan-memory")}
    return type("Other", (CpuBackend,), members)()


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Whatever a test registers is forgotten after it."""
    monkeypatch.setattr(found, "_backends", dict(found._backends))
    found._declared.cache_clear()
    yield
    found._declared.cache_clear()


def declare(monkeypatch, *points: tuple[str, str]) -> None:
    monkeypatch.setattr(found, "_points", lambda: [EntryPoint(n, at, found.GROUP) for n, at in points])
    found._declared.cache_clear()


def module_with(monkeypatch, name: str, **members) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)


def attend(q, k, v):
    return aatc.attend(q, k, v, metric=aatc.metrics.Euclidean(), mask=aatc.masks.causal())


def test_a_registered_backend_compiles_models():
    backend = backends.register(other())
    assert backends.get("other") is backend
    assert "other" in backends.names()
    q, k, v = torch.randn(3, 1, 2, 9, 4)
    compiled = aatc.compile(attend, backend="other", fallback=False)
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))
    assert compiled.explain().backend == "other"


def test_ours_is_there_without_being_installed(monkeypatch):
    declare(monkeypatch)
    assert backends.names() == ["cpu", "native", "vulkan"]
    assert backends.get("auto").name == "native"


@pytest.fixture
def asked_anew():
    usable._why_not.cache_clear()
    yield
    usable._why_not.cache_clear()


def no_openmp(monkeypatch):
    monkeypatch.setattr(launch, "_gomp", lambda: None)


def strange_processor(monkeypatch):
    monkeypatch.setattr(isa, "available", lambda: ())
    monkeypatch.setattr(isa, "architecture", lambda: "hexagon")


def no_executable_memory(monkeypatch):
    def refused(self, code, isa):
        raise BackendError("object code cannot be linked: Permission denied")

    monkeypatch.setattr(machine.Library, "__init__", refused)


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        (strange_processor, "there are none for hexagon processors"),
        (no_openmp, "torch's OpenMP, on whose threads they run, was not found"),
        (no_executable_memory, "the system runs no code that is made in the process: object code cannot be linked"),
    ],
)
def test_torch_code_runs_where_native_kernels_cannot_and_explain_says_why(monkeypatch, asked_anew, without, reason):
    without(monkeypatch)
    assert backends.get("auto").name == backends.get().name == "cpu"
    assert backends.pipeline("auto").passes[-1].name == "plan-memory"
    q, k, v = torch.randn(3, 1, 2, 9, 4)
    compiled = aatc.compile(attend, fallback=False)
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))
    told = compiled.explain()
    assert told.backend == "cpu"
    (line,) = (line for line in str(told).splitlines() if "No native kernels, but torch code: " in line)
    assert reason in line
    assert "No native kernels" not in str(aatc.compile(attend, backend="cpu").explain())


def test_without_llvmlite_all_runs_as_torch_code():
    script = """
import sys, warnings
sys.modules["llvmlite"] = None
import torch, aatc
from aatc.errors import BackendError
f = lambda q: aatc.attend(q, q, q, metric=aatc.metrics.Euclidean())
compiled = aatc.compile(f, fallback=False)
q = torch.randn(1, 2, 9, 4)
torch.testing.assert_close(compiled(q), f(q))
assert "llvmlite cannot be loaded: ModuleNotFoundError: " in str(compiled.explain()), compiled.explain()
with warnings.catch_warnings(record=True) as told:
    assert {d["backend"] for d in aatc.devices()} - {"vulkan"} == {"cpu"}
assert any("backend 'native' cannot be loaded" in str(w.message) for w in told), told
try:
    aatc.compile(f, backend="native")
except BackendError as error:
    assert "llvmlite" in str(error)
else:
    raise AssertionError("native kernels without llvmlite")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_an_instruction_set_that_is_not_there_is_an_error_not_another_backend(monkeypatch, backend):
    monkeypatch.setenv("AATC_ISA", "mmx")
    with pytest.raises(BackendError, match="AATC_ISA names an unknown instruction set, 'mmx'"):
        aatc.compile(attend, backend=backend)


def test_our_own_entry_point_is_the_one_pyproject_declares():
    import tomllib
    from pathlib import Path

    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    assert declared["project"]["entry-points"][found.GROUP] == found._OWN


def test_entry_points_are_read(monkeypatch):
    module_with(monkeypatch, "planted_backend", Made=other)
    declare(monkeypatch, ("cpu", "aatc.backends.cpu:CpuBackend"), ("other", "planted_backend:Made"))
    assert backends.names() == ["cpu", "native", "vulkan", "other"]
    assert backends.get("other").suffix == "plan-memory"


def test_a_package_does_not_take_our_name(monkeypatch):
    declare(monkeypatch, ("cpu", "planted_backend:Made"))
    assert type(backends.get("cpu")) is CpuBackend


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([("other", "not_a_module_of_anyone:Made")], "cannot be loaded from not_a_module_of_anyone:Made: ModuleNot"),
        ([("other", "planted_backend:Missing")], "cannot be loaded from planted_backend:Missing: AttributeError"),
        ([("other", "planted_backend:Made"), ("other", "planted_backend:Else")], "several packages declare"),
        ([("mine", "planted_backend:Made")], "declared as backend 'mine', calls itself 'other'"),
    ],
)
def test_a_broken_entry_point_is_told_and_leaves_the_rest_alone(monkeypatch, points, message):
    module_with(monkeypatch, "planted_backend", Made=other, Else=other)
    declare(monkeypatch, *points)
    name = points[0][0]
    with pytest.raises(BackendError, match=message):
        backends.get(name)
    with pytest.warns(AatcWarning, match=message):
        assert [d["backend"] for d in backends.devices() if d["backend"] != "vulkan"] == ["cpu", "native"]


def test_nothing_is_searched_for_while_ours_will_do(monkeypatch):
    monkeypatch.setattr(found, "_points", lambda: pytest.fail("the installed packages were searched"))
    backends.pipeline("auto")
    backends.get("cpu")


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(BackendError, match="there is no backend 'gpu'\n  hint: there are: auto, cpu"):
        aatc.compile(lambda x: x, backend="gpu")


def test_a_name_is_taken_once():
    backends.register(other())
    with pytest.raises(BackendError, match="there is a backend 'other' already"):
        backends.register(other())
    second = other()
    assert backends.register(second, replace=True) is backends.get("other") is second
    with pytest.raises(BackendError, match="already"):
        backends.register(CpuBackend())


@pytest.mark.parametrize("name", ["auto", "tile", "", "Upper", "two words", 3, None])
def test_names_that_cannot_be(name):
    backend = other()
    type(backend).name = name
    with pytest.raises(BackendError, match="cannot be called"):
        backends.register(backend)


def test_what_is_no_backend():
    with pytest.raises(BackendError, match="is no backend"):
        backends.register("cpu")  # type: ignore[arg-type]


def test_a_suffix_names_passes_there_are():
    with pytest.raises(PassError, match="paint"):
        backends.register(other(suffix="paint"))


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("suffix", None, "backend 'other' has the suffix None, which is no text\n  hint: suffix ="),
        (
            "target",
            lambda self: None,
            r"backend 'other' has the target None\n  hint: target\(\) has to return a Target",
        ),
        ("lowerings", {"tile.dot": print}, "backend 'other' has no table of lowerings"),
        ("listings", None, "backend 'other' has the listings None"),
        ("listings", "asm", "backend 'other' has the listings 'asm'"),
    ],
)
def test_what_a_backend_says_of_itself_is_looked_at_when_it_is_registered(monkeypatch, member, value, message):
    made = other()
    monkeypatch.setattr(type(made), member, value)
    with pytest.raises(BackendError, match=message):
        backends.register(made)
    module_with(monkeypatch, "planted_backend", Made=lambda: made)
    declare(monkeypatch, ("other", "planted_backend:Made"))
    with pytest.raises(BackendError, match=message):
        backends.get("other")


def test_a_backend_that_knows_no_machine_here_can_be_registered(monkeypatch):
    made = other()

    def target(self):
        raise OSError("no such device")

    monkeypatch.setattr(type(made), "target", target)
    assert backends.register(made) is made


def test_a_lowering_can_be_called():
    table = Lowerings("other")
    with pytest.raises(
        BackendError, match=r"backend 'other' lowers tile\.dot, tile\.map by None, which cannot be called"
    ):
        table("tile.dot", "tile.map")(None)


@pytest.mark.parametrize("said", [None, [None], [{"name": "a chip"}]])
def test_devices_that_are_none_are_told_and_leave_the_rest_alone(monkeypatch, said):
    made = backends.register(other())
    monkeypatch.setattr(type(made), "devices", lambda self: said)
    with pytest.warns(AatcWarning, match="backend 'other' cannot list its devices"):
        assert [d["backend"] for d in backends.devices() if d["backend"] != "vulkan"] == ["cpu", "native"]


def test_a_missing_lowering_is_known_at_registration():
    with pytest.raises(BackendError, match=r"has no lowering for tile\.dot, tile\.sweep\n"):
        backends.register(other(left_out=("tile.sweep", "tile.dot")))


def test_a_refused_operation_needs_a_reason_and_gives_it():
    backend = other(refused=("tile.dot",))
    backends.register(backend)
    with pytest.raises(BackendError, match=r"'other' cannot run tile\.dot: planted"):
        backend.lowerings["tile.dot"]
    silent = other("silent", left_out=("tile.dot",))
    silent.lowerings.unsupported["tile.dot"] = ""
    with pytest.raises(BackendError, match="without a reason"):
        backends.register(silent)


def test_a_model_that_needs_a_refused_operation_is_left_to_torch_and_told():
    backends.register(other(refused=("tile.table_gradient", "tile.scatter")))
    table = torch.randn(2, 5, requires_grad=True)

    def f(q, bias):
        return aatc.attend(q, q, q, metric=aatc.metrics.Euclidean(), bias=bias)

    q = torch.randn(1, 2, 9, 4)
    left = aatc.compile(lambda q: f(q, aatc.biases.RelativeTable(table)), backend="other")
    torch.testing.assert_close(left(q), f(q, aatc.biases.RelativeTable(table)))
    (fallback,) = left.explain().fallbacks
    assert "backend 'other' has no tile.scatter: planted" in fallback.reason
    assert "test_registration.py" in fallback.loc
    strict = aatc.compile(lambda q: f(q, aatc.biases.RelativeTable(table)), backend="other", fallback=False)
    with pytest.raises(UnsupportedError, match=r"has no tile\.scatter: planted"):
        strict(q)
    assert not aatc.compile(lambda q: f(q, None), backend="other")(q).isnan().any()


def test_a_table_names_operations_there_are_and_each_once():
    typo = other("typo")
    typo.lowerings("tile.dott")(lambda *a: None)
    with pytest.raises(BackendError, match=r"tile\.dott, which no tile operation is called"):
        backends.register(typo)
    both = other("both")
    both.lowerings.unsupported["tile.dot"] = "why"
    with pytest.raises(BackendError, match=r"both lowers and refuses tile\.dot"):
        backends.register(both)
    with pytest.raises(BackendError, match=r"lowers tile\.dot twice"):
        both.lowerings("tile.dot")(lambda *a: None)


def test_the_table_of_another_backend_will_not_do():
    with pytest.raises(BackendError, match="has no table of lowerings"):
        backends.register(type("Other", (CpuBackend,), {"name": "other"})())


def test_every_backend_here_is_complete():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for backend in backends.load():
            backend.lowerings.check()
