"""A folder of its own for each test, and nothing left in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from aatc.tuning import store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of this test's entries; it does not exist yet."""
    monkeypatch.setenv("AATC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_memory", {})
    monkeypatch.setattr(store, "_noted", set())
    yield tmp_path / "cache" / "tune"
