"""Builds Kompute's Python package ``kp`` and installs it: ``python -m aatc.backends.vulkan.build_kompute``.

``pip install kp`` fails: its only release is of source, whose build clones what it needs and asks for another numpy
than ours. Built as here, in about a minute, it takes what the system has (Debian: ``apt-get install g++ libvulkan-dev
libfmt-dev``). The wheel is kept in the cache folder, and taken from there the next time.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import platformdirs

VERSION = "0.9.0"
#: What builds it, in an environment of its own: newer ones of these do not.
_TOOLS = ("pybind11<3", "setuptools<81", "wheel", "cmake", "ninja", "numpy>=2.0,<3")
_OPTIONS = {
    "KOMPUTE_OPT_USE_BUILT_IN_FMT": "OFF",
    "KOMPUTE_OPT_USE_BUILT_IN_PYBIND11": "OFF",
    "KOMPUTE_OPT_USE_BUILT_IN_VULKAN_HEADER": "OFF",
    "KOMPUTE_OPT_INSTALL": "OFF",
    "KOMPUTE_OPT_DISABLE_VK_DEBUG_LAYERS": "ON",
}
_PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet", "--retries", "1", "--timeout", "30")


def main() -> int:
    """Returns 0 if kp can be imported in the end; else says what went wrong."""
    if importlib.util.find_spec("kp"):
        return 0
    try:
        wheel = kept() or build()
        subprocess.run([sys.executable, *_PIP, "install", "--no-deps", str(wheel)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"kp was not built: {error}\nIt needs a C++ compiler, headers of Vulkan and fmt, and the network.\n"
              "Debian: apt-get install g++ libvulkan-dev libfmt-dev", file=sys.stderr)  # fmt: skip
        return 1
    return 0


def folder() -> Path:
    """Where wheels are kept: in the folder that ``AATC_CACHE`` names, else in the user's cache folder."""
    named = os.environ.get("AATC_CACHE", "").strip()
    chosen = named if named and named.lower() != "off" else platformdirs.user_cache_dir("aatc")
    return Path(chosen).expanduser() / "wheels"


def kept() -> Path | None:
    """A wheel for this interpreter that was built before."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return next(iter(sorted(folder().glob(f"kp-{VERSION}-{tag}-*.whl"))), None)


def build() -> Path:
    """Raises: OSError, CalledProcessError."""
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        venv.create(root, with_pip=True)
        scripts = Path(root) / ("Scripts" if os.name == "nt" else "bin")
        python = str(scripts / "python")
        subprocess.run([python, *_PIP, "install", *_TOOLS], check=True)
        # Its build finds the interpreter of the environment that is active.
        cmake = subprocess.run([python, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True)
        environment = {**os.environ, **_OPTIONS, "pybind11_DIR": cmake.stdout.strip(), "VIRTUAL_ENV": root,
                       "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}"}  # fmt: skip
        made = Path(root) / "wheels"
        wheel = [*_PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(made), f"kp=={VERSION}"]
        subprocess.run([python, *wheel], check=True, env=environment)
        (found,) = made.glob("*.whl")
        data, target = found.read_bytes(), folder() / found.name
    target.write_bytes(data)
    return target


if __name__ == "__main__":
    sys.exit(main())
