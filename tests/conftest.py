"""What every test shares: hypothesis profiles, two threads, a fixed seed, and golden texts.

Profiles (environment variable HYPOTHESIS_PROFILE): ``ci``, the default, draws the same few examples every
time; ``fuzz`` draws many new ones.
"""

import contextlib
import difflib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.vulkan import validation

_UNHURRIED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("ci", derandomize=True, max_examples=25, print_blob=True, **_UNHURRIED)
settings.register_profile("fuzz", max_examples=2000, print_blob=True, **_UNHURRIED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Two threads, but one where several processes share the cores (pytest -n).
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--accept",
        action="store_true",
        help="take what the tests with golden texts give as golden",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--accept"):
        return
    with_golden = [item for item in items if "golden" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in with_golden])
    items[:] = with_golden


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What torch and the tests themselves are made of stays; looking through it for garbage is a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="module", autouse=True)
def _settled() -> Iterator[None]:
    """What a module leaves, as Dynamo's cache of what it compiled, stays, too."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For operations so small that they would only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def check_golden(path: Path, text: str, *, accept: bool) -> None:
    """Compare ``text`` with the file ``path``, or write it there when ``accept`` is set."""
    text = text.rstrip("\n") + "\n"
    if accept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    if not path.exists():
        pytest.fail(f"no golden text {path}; `make accept` would write:\n{text}", pytrace=False)
    want = path.read_text(encoding="utf-8")
    if want != text:
        lines = difflib.unified_diff(
            want.splitlines(), text.splitlines(), f"golden: {path.name}", "this run", lineterm=""
        )
        diff = "\n".join(lines)
        pytest.fail(f"{path} differs; if the change is meant, run `make accept`\n{diff}", pytrace=False)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)``: the text is that of the file ``golden/<name>`` beside the test."""
    folder = request.path.parent / "golden"
    accept = bool(request.config.getoption("--accept"))
    return lambda name, text: check_golden(folder / name, text, accept=accept)


@pytest.fixture(scope="session", autouse=True)
def validated(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever a test asks of Vulkan is checked by its validation layer; tests/vulkan looks at what that says."""
    validation.activate(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Schedules of a run lie in a folder of the run, which its processes share. Object code stays from run to run, but
    with ``AATC_CACHE=off``: an entry is of the very text that it was compiled from."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "aatc-cache"
    folder.mkdir(mode=0o700, exist_ok=True)
    before = os.environ.get("AATC_CACHE")
    if before != "off":
        kept = Path(platformdirs.user_cache_dir("aatc-tests")) / "native"
        with contextlib.suppress(OSError):  # another process was first, or there is nowhere to keep it
            kept.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / "native").symlink_to(kept)
    os.environ["AATC_CACHE"] = str(folder)
    yield
    if before is None:
        del os.environ["AATC_CACHE"]
    else:
        os.environ["AATC_CACHE"] = before
