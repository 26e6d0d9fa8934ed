"""What is installed is one package, ``aatc``, and all of it, however it is installed."""

import configparser
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("ir", "passes", "backends", "shaders")
LEFT_OUT = (".git", ".venv", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "results")

# Prints where each name of ours comes from and how many modules were loaded from each file of ours.
PROBE = """
import collections, json, pathlib, sys
import aatc, aatc.ir, aatc.passes, aatc.backends, aatc.shaders
here = pathlib.Path(aatc.__file__).resolve().parents[1]
loaded = collections.Counter(
    str(pathlib.Path(m.__file__).resolve()) for n, m in list(sys.modules.items())
    if n != "__main__" and getattr(m, "__file__", None) and here in pathlib.Path(m.__file__).resolve().parents
    and (n + ".").startswith(("aatc.", "ir.", "passes.", "backends.", "shaders.")))
print(json.dumps({
    "names": {n: str(pathlib.Path(sys.modules[n].__file__).resolve())
              for n in ("aatc", "aatc.ir", "aatc.passes", "aatc.backends", "aatc.shaders")},
    "twice": [f for f, count in loaded.items() if count > 1],
    "attributes": all(getattr(aatc, n) is sys.modules["aatc." + n] for n in ("ir", "passes", "backends")),
    "modules": sorted(n for n in sys.modules if n.split(".")[0] == "aatc"),
}))
"""


def python(*args: str, cwd: Path, path: Path | None = None) -> str:
    """Standard output of a Python of its own, which sees ``path`` (if any) and the installed packages."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    env.update({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_of_checkout(to: Path, *, links: bool = True) -> Path:
    shutil.copytree(ROOT, to, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    if not links:
        for folder in FOLDERS:
            (to / "aatc" / folder).unlink()
    return to


def wheel_of(checkout: Path, to: Path) -> zipfile.ZipFile:
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    python("-m", "pip", "wheel", *options, "-w", str(to), ".", cwd=checkout)
    (built,) = to.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    work = tmp_path_factory.mktemp("packaging")
    return wheel_of(copy_of_checkout(work / "checkout"), work / "wheel")


def sources() -> set[str]:
    """Every Python file, grammar and shader of ours, named as it must lie in the wheel."""
    found = set()
    for folder, prefix in {**{f: f"aatc/{f}" for f in FOLDERS}, "aatc": "aatc"}.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".lark", ".glsl", ".wgsl", ".comp") or path.name == "py.typed":
                found.add(str(PurePosixPath(prefix, *path.relative_to(ROOT / folder).parts)))
    return found


def test_the_links_of_a_checkout_are_relative_and_lead_to_the_folders():
    for folder in FOLDERS:
        link = ROOT / "aatc" / folder
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{folder}"


def test_constraints_pin_the_torch_that_the_range_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = (ROOT / "constraints.txt").read_text("utf-8").split()
    assert "torch==2.13.0" in pins
    assert "torch>=2.11,<2.15" in project["dependencies"]


@pytest.mark.slow
def test_the_wheel_installs_nothing_but_aatc(wheel):
    tops = {PurePosixPath(name).parts[0] for name in wheel.namelist()}
    assert tops == {"aatc", f"aatc-{_version()}.dist-info"}


@pytest.mark.slow
def test_the_wheel_holds_every_source_grammar_and_the_typing_marker(wheel):
    installed = {name for name in wheel.namelist() if name.startswith("aatc/") and not name.endswith("/")}
    assert installed == sources()
    assert "aatc/py.typed" in installed
    assert any(name.startswith("aatc/ir/") and name.endswith(".lark") for name in installed)


@pytest.mark.slow
def test_the_wheel_declares_the_command_and_the_torch_compile_backend(wheel):
    points = configparser.ConfigParser()
    points.read_string(wheel.read(f"aatc-{_version()}.dist-info/entry_points.txt").decode())
    assert points["console_scripts"]["aatc"] == "aatc.cli:main"
    assert points["torch_dynamo_backends"]["aatc"] == "aatc.frontend.dynamo:backend"


@pytest.mark.slow
def test_a_checkout_without_links_builds_the_same_wheel(wheel, tmp_path):
    other = wheel_of(copy_of_checkout(tmp_path / "checkout", links=False), tmp_path / "wheel")
    assert sorted(other.namelist()) == sorted(wheel.namelist())


@pytest.mark.slow
def test_wheel_and_checkout_import_the_same_modules_once_each(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    seen = {
        "wheel": (tmp_path / "site", json.loads(python("-c", PROBE, cwd=tmp_path, path=tmp_path / "site"))),
        "checkout": (ROOT, json.loads(python("-c", PROBE, cwd=tmp_path, path=ROOT))),
    }
    for root, probe in seen.values():
        assert probe["twice"] == []
        assert probe["attributes"]
        assert all(Path(file).is_relative_to(root.resolve()) for file in probe["names"].values())
    assert seen["wheel"][1]["modules"] == seen["checkout"][1]["modules"]


def _version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
