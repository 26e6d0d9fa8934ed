"""GLSL is compiled once: modules are valid, kept by content, and not read where they are damaged."""

import subprocess

import pytest

from aatc.backends.vulkan import spirv
from aatc.backends.vulkan.executors import kompute
from aatc.errors import ShaderError
from tests.vulkan.kernels_by_hand import AXPY, EXP, TIMES, TURN

needs_compiler = pytest.mark.skipif(bool(spirv.why_not()), reason=f"{spirv.why_not()}; make vulkan")
pytestmark = needs_compiler


def validated(module, folder, target="vulkan1.1"):
    """Fails with the validator's words; Kompute takes modules of Vulkan 1.1."""
    found = spirv.tool("spirv-val")
    if found is None:
        pytest.skip("spirv-val is not installed")
    path = folder / "module.spv"
    path.write_bytes(module)
    done = subprocess.run([found[0], "--target-env", target, str(path)], env=found[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", [AXPY.glsl, EXP.glsl, TIMES.glsl, TURN.glsl, kompute._MOVE, kompute._ZERO])
def test_modules_are_valid(text, tmp_path):
    validated(spirv.compile_glsl(text, "kernel"), tmp_path)


def test_modules_for_newer_devices_are_valid(tmp_path):
    validated(spirv.compile_glsl(EXP.glsl, "kernel", "vulkan1.3"), tmp_path, "vulkan1.3")
    with pytest.raises(ShaderError, match="line 5: void main"):
        spirv.compile_glsl(EXP.glsl.replace("exp(", "expo("), "kernel", "vulkan1.3")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of its own, and how often a compiler has run."""
    monkeypatch.setenv("AATC_CACHE", str(tmp_path))
    real, runs = spirv._compiler("vulkan1.1"), []

    def run(text, target):
        runs.append(text)
        return real.run(text, target)

    monkeypatch.setattr(spirv, "_compiler", lambda target: spirv.Compiler(real.name, run))
    return tmp_path / "spirv", runs


def test_a_module_is_compiled_once(cache):
    folder, runs = cache
    first, second = (spirv.compile_glsl(EXP.glsl, "a kernel") for _ in range(2))
    assert first == second and len(runs) == 1
    assert len(list(folder.iterdir())) == 1
    spirv.compile_glsl(TURN.glsl, "another")
    assert len(runs) == 2


@pytest.mark.parametrize("damage", [b"", b"short", bytes(4096), None])
def test_damaged_entries_are_compiled_again(cache, damage):
    folder, runs = cache
    good = spirv.compile_glsl(EXP.glsl, "a kernel")
    (entry,) = folder.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-4] + b"abcd" if damage is None else damage)
    assert spirv.compile_glsl(EXP.glsl, "a kernel") == good and len(runs) == 2
    assert entry.read_bytes() == whole
    assert spirv.compile_glsl(EXP.glsl, "a kernel") == good and len(runs) == 2


def test_a_folder_that_cannot_be_used_is_done_without(cache, monkeypatch):
    folder, runs = cache
    folder.write_text("no folder")
    first, second = (spirv.compile_glsl(EXP.glsl, "a kernel") for _ in range(2))
    assert first == second and len(runs) == 2
    folder.unlink()
    monkeypatch.setenv("AATC_CACHE", "off")
    spirv.compile_glsl(EXP.glsl, "a kernel")
    assert len(runs) == 3 and not folder.exists()


def test_errors_name_the_kernel_and_show_the_line(cache):
    folder, _ = cache
    with pytest.raises(ShaderError) as caught:
        spirv.compile_glsl(EXP.glsl.replace("exp(", "expo("), "exponential")
    assert "kernel exponential does not compile" in str(caught.value)
    assert "line 5: void main()" in str(caught.value) and "expo" in str(caught.value)
    assert not folder.exists() or not list(folder.iterdir())


def test_without_a_compiler_there_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(spirv, "tool", lambda name: None)
    monkeypatch.setattr(spirv.importlib.util, "find_spec", lambda name: None)
    spirv._compiler.cache_clear()
    try:
        assert "nothing that compiles GLSL is installed" in spirv.why_not()
        with pytest.raises(ShaderError) as caught:
            spirv.compile_glsl(EXP.glsl, "a kernel")
        assert caught.value.hint == "pip install aatc[vulkan]"
    finally:
        spirv._compiler.cache_clear()
