"""LLVM IR becomes functions that run, for each instruction set, and object code on disk is trusted only where it may
be."""

import ctypes
import os
import re
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from aatc.backends.native import cache, isa, machine
from aatc.errors import AatcWarning, BackendError
from tests.native.kernels import VECTORS, growth_kib

ROOT = Path(__file__).parent.parent.parent
X86 = "x86_64" in {found.triple_arch for found in isa.available()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a cache of its own."""
    monkeypatch.setenv("AATC_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_noted", False)
    return tmp_path / "native"


@pytest.fixture
def compilations(monkeypatch):
    """A list that grows by what is compiled."""
    texts = []
    compile_object = machine.compile_object
    monkeypatch.setattr(machine, "compile_object", lambda text, to: (texts.append(text), compile_object(text, to))[1])
    return texts


def squares(library: machine.Library) -> list[float]:
    data = (ctypes.c_float * 16)(*range(16))
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(library.address("square"))(ctypes.addressof(data))
    return list(data)


RIGHT = [x * x + 1.5 for x in range(16)]


# --- instruction sets --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [found.name for found in isa.available()])
def test_functions_run_for_every_instruction_set_of_this_machine(folder, name):
    (chosen,) = [found for found in isa.available() if found.name == name]
    library = machine.load(VECTORS, chosen)
    assert squares(library) == RIGHT
    exponential = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(library.address("exponential"))
    assert exponential(1.0) == pytest.approx(2.718281828459045, rel=1e-15)


@pytest.mark.parametrize(
    ("name", "has", "lacks"),
    [
        ("avx512", "zmm", "ymm"),
        ("avx2", "ymm", "zmm"),
        ("sse", "xmm", "[yz]mm"),
        ("neon", "fmla", "[xyz]mm"),
    ],
)
def test_generated_code_uses_the_vectors_of_its_instruction_set(name, has, lacks):
    chosen = {found.name: found for found in isa.available()}
    for of in {isa.TABLE[name], chosen.get(name, isa.TABLE[name])}:
        text = machine.assembly(VECTORS, of)
        assert re.search(rf"\b{has}", text)
        assert not re.search(rf"\b{lacks}", text)


@pytest.mark.parametrize("found", isa.TABLE.values(), ids=lambda found: found.name)
def test_what_the_table_calls_an_instruction_is_one(found):
    lanes = found.lanes()
    vector = f"<{lanes} x float>"
    text = f"""
declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})
define {vector} @fma({vector} %a) {{
  %y = call {vector} @llvm.fma.v{lanes}f32({vector} %a, {vector} %a, {vector} %a)
  ret {vector} %y
}}
define {vector} @half(<{lanes} x half> %a) {{
  %y = fpext <{lanes} x half> %a to {vector}
  ret {vector} %y
}}
"""
    fma, half = machine.assembly(text, found).split("half:")
    calls = r"\b(call\w*|bl)\b"
    assert bool(re.search(calls, fma)) is not found.fma
    assert bool(re.search(calls, half)) is not found.half


def test_the_environment_restricts_the_instruction_set(monkeypatch):
    monkeypatch.delenv("AATC_ISA", raising=False)
    best = isa.host()
    assert best == isa.available()[0]
    for found in isa.available():
        monkeypatch.setenv("AATC_ISA", found.name)
        assert isa.host() == found


@pytest.mark.parametrize("name", ["avx1024", "neon" if X86 else "avx2"])
def test_an_instruction_set_that_is_not_here_is_an_error(monkeypatch, name):
    monkeypatch.setenv("AATC_ISA", name)
    with pytest.raises(BackendError, match=name) as error:
        isa.host()
    assert isa.available()[0].name in error.value.hint


# --- what is not LLVM IR -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("define void @f() {\n  %x = add i32 1, 2.0\n  ret void\n}", "%x = add i32 1, 2.0"),
        ("define void @f() {\n  ret void\n}\nnonsense", "nonsense"),
        ("define void @f() {\n  %x = add i32 %x, 1\n  ret void\n}", "add i32 %x, 1"),
        ("define i64 @f(i1 %c) {\na:\n  br i1 %c, label %b, label %d\nb:\n  %x = add i64 1, 2\n  br label %d\n"
         "d:\n  ret i64 %x\n}", "%x = add i64 1, 2"),
    ],
)  # fmt: skip
def test_text_that_is_not_llvm_ir_gives_its_line(text, line):
    with pytest.raises(BackendError) as error:
        machine.compile_object(text, isa.host())
    assert line in str(error.value)
    assert error.value.hint


def test_a_symbol_that_the_process_lacks_is_an_error(folder):
    text = "declare void @aatc_lacks_this()\ndefine void @f() {\n  call void @aatc_lacks_this()\n  ret void\n}"
    with pytest.raises(BackendError, match="aatc_lacks_this"):
        machine.load(text, isa.host())


def test_a_function_that_a_library_lacks_is_an_error(folder):
    with pytest.raises(BackendError, match="cube"):
        machine.load(VECTORS, isa.host()).address("cube")


def test_what_is_no_object_code_is_an_error():
    for code in (b"", b"not object code", machine.compile_object(VECTORS, isa.host())[:200]):
        with pytest.raises(BackendError, match="object code"):
            machine.Library(code, isa.host())


# --- memory ------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's figures of the process")
def test_compiling_running_and_dropping_does_not_grow_the_process(monkeypatch):
    monkeypatch.setenv("AATC_CACHE", "off")
    monkeypatch.delenv("AATC_ISA", raising=False)
    best = isa.host()
    assert growth_kib(lambda: squares(machine.load(VECTORS, best)), 200) < 2  # 100 where pass managers are not freed


def test_functions_live_as_long_as_their_library(folder):
    libraries = [machine.load(VECTORS.replace("1.5", f"{n}.5"), isa.host()) for n in range(1, 6)]
    del libraries[::2]
    assert [squares(library)[0] for library in libraries] == [2.5, 4.5]


def test_threads_may_compile_at_once(folder):
    found = []

    def compile_one(n: int) -> None:
        found.append(squares(machine.load(VECTORS.replace("1.5", f"{n}.5"), isa.host()))[0])

    threads = [threading.Thread(target=compile_one, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [n + 0.5 for n in range(6)]


# --- object code on disk -----------------------------------------------------------------------------------
def entry(folder: Path) -> Path:
    (path,) = folder.glob("*.code")
    return path


def test_code_on_disk_is_not_compiled_again(folder, compilations):
    assert squares(machine.load(VECTORS, isa.host())) == RIGHT
    assert squares(machine.load(VECTORS, isa.host())) == RIGHT
    assert len(compilations) == 1
    assert entry(folder).stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_code_is_of_its_text_and_instruction_set(folder, compilations):
    for found in isa.available():
        machine.load(VECTORS, found)
    machine.load(VECTORS.replace("1.5", "2.5"), isa.host())
    assert len(compilations) == len(isa.available()) + 1


def test_code_is_of_its_versions(folder, compilations, monkeypatch):
    machine.load(VECTORS, isa.host())
    for field in ("format", "aatc", "llvmlite", "llvm", "triple"):
        assert field in cache._versions()
        with monkeypatch.context() as changed:
            changed.setattr(cache, "_versions", lambda field=field: {**VERSIONS, field: "another"})
            machine.load(VECTORS, isa.host())
    assert len(compilations) == 6


def test_code_is_of_each_thing_that_it_is_made_from():
    """Entries differ where the text, the instruction set, the processor or its features alone do."""
    host = isa.host()
    others = [replace(host, **{field: getattr(host, field) + ",-x"}) for field in ("name", "cpu", "features")]
    keys = [cache.key(VECTORS, host), cache.key(VECTORS + "\n", host), *(cache.key(VECTORS, x) for x in others)]
    assert len({key.digest for key in keys}) == len({key.fields for key in keys}) == 5
    assert cache.key(VECTORS, replace(host)) == keys[0]


VERSIONS = dict(cache._versions())


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "header alone": lambda data: data[: data.index(b"\n") + 1],
    "no header": lambda data: data[data.index(b"\n") + 1 :],
    "too long": lambda data: data + b"\0",
    "flipped in the header": lambda data: flipped(data, 30),
    "flipped in the code": lambda data: flipped(data, -100),
    "garbage": lambda data: bytes(range(256)) * 40,
    "text": lambda data: b"{}\n",
    "another key": lambda data: data.replace(b"avx", b"xva"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_noted_once_and_written_anew(folder, compilations, damage):
    machine.load(VECTORS, isa.host())
    path = entry(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.warns(AatcWarning, match="compiled again"):
        assert squares(machine.load(VECTORS, isa.host())) == RIGHT
    assert path.read_bytes() == whole
    path.write_bytes(damage(whole))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert squares(machine.load(VECTORS, isa.host())) == RIGHT
    assert len(compilations) == 3


def test_an_entry_of_another_key_is_not_read(folder, compilations):
    machine.load(VECTORS, isa.host())
    mine = entry(folder)
    machine.load(VECTORS.replace("1.5", "2.5"), isa.host())
    (other,) = set(folder.glob("*.code")) - {mine}
    mine.write_bytes(other.read_bytes())
    with pytest.warns(AatcWarning):
        assert squares(machine.load(VECTORS, isa.host())) == RIGHT


def test_an_entry_that_checks_but_does_not_link_is_compiled_again(folder, compilations):
    key = cache.key(VECTORS, isa.host())
    cache.write(key, b"not object code")
    assert cache.read(key) == b"not object code"
    assert squares(machine.load(VECTORS, isa.host())) == RIGHT
    assert squares(machine.load(VECTORS, isa.host())) == RIGHT
    assert len(compilations) == 1


def test_a_folder_in_an_entrys_place_is_left_alone(folder, compilations):
    machine.load(VECTORS, isa.host())
    path = entry(folder)
    path.unlink()
    path.mkdir()
    with pytest.warns(AatcWarning, match="folder"):
        assert squares(machine.load(VECTORS, isa.host())) == RIGHT
    assert path.is_dir()
    assert list(folder.glob("*.tmp")) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes in the file system")
def test_a_pipe_in_an_entrys_place_does_not_block(folder):
    machine.load(VECTORS, isa.host())
    path = entry(folder)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.warns(AatcWarning):
        assert squares(machine.load(VECTORS, isa.host())) == RIGHT


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners of files")
@pytest.mark.parametrize("what", ["entry", "folder"])
@pytest.mark.parametrize("how", [0o722, 0o720, 0o702, "another's"])
def test_code_that_another_user_may_have_written_is_not_run(folder, compilations, monkeypatch, what, how):
    machine.load(VECTORS, isa.host())
    path = entry(folder) if what == "entry" else folder
    if isinstance(how, int):
        path.chmod(how)
    else:
        other = os.geteuid() + 1
        stat, fstat, owner = os.stat, os.fstat, lambda found: os.stat_result([*found[:4], other, *found[5:]])
        if what == "entry":
            monkeypatch.setattr(os, "fstat", lambda *a, **k: owner(fstat(*a, **k)))
        else:
            monkeypatch.setattr(os, "stat", lambda p, **k: owner(stat(p, **k)) if p == folder else stat(p, **k))
    with pytest.warns(AatcWarning, match="other users may write|another user"):
        assert squares(machine.load(VECTORS, isa.host())) == RIGHT
    assert len(compilations) == 2


def test_without_a_folder_code_is_compiled(tmp_path, monkeypatch, compilations):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for named in ("off", "OFF", str(blocked), str(blocked / "below"), "/proc/aatc", "~nobody-of-this-name/x"):
            monkeypatch.setenv("AATC_CACHE", named)
            assert squares(machine.load(VECTORS, isa.host())) == RIGHT
    assert len(compilations) == 6


def test_a_folder_that_cannot_be_written_is_read(folder, compilations, monkeypatch):
    machine.load(VECTORS, isa.host())

    def refuse(*args, **kwargs):
        raise PermissionError

    monkeypatch.setattr(cache.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    assert squares(machine.load(VECTORS, isa.host())) == RIGHT
    assert squares(machine.load(VECTORS.replace("1.5", "2.5"), isa.host()))[0] == 2.5
    assert len(compilations) == 2


def test_a_full_folder_drops_what_was_used_least_lately(folder, monkeypatch):
    keys = [cache.key(str(n), isa.host()) for n in range(12)]
    for n, key in enumerate(keys[:6]):
        cache.write(key, bytes(4000))
        os.utime(folder / f"{key.digest}.code", (1000 + n, 1000 + n))
    monkeypatch.setattr(cache, "LIMIT", 9 * (folder / f"{keys[0].digest}.code").stat().st_size)
    assert cache.read(keys[0]) is not None  # used
    left = folder / "left.tmp"
    left.write_bytes(b"")
    os.utime(left, (1000, 1000))
    for key in keys[6:]:
        cache.write(key, bytes(4000))
    held = [n for n, key in enumerate(keys) if cache.read(key) is not None]
    assert 0 in held and 11 in held
    assert 1 not in held and 2 not in held
    assert sum(path.stat().st_size for path in folder.iterdir()) <= cache.LIMIT
    assert not left.exists()


WRITER = """
import sys
from aatc.backends.native import cache, isa
host = isa.host()
for n in range(150):
    key = cache.key(str(n % 5), host)
    code = bytes([n % 5]) * 50_000
    found = cache.read(key)
    assert found in (None, code), "torn"
    cache.write(key, code)
"""


def test_processes_may_write_at_once(folder):
    command = [sys.executable, "-W", "error", "-c", WRITER]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors.decode()
    assert len(list(folder.iterdir())) == 5
