"""The backends the suite runs on: all that are found, and one that a test adds. What runs on a device, in single
precision, has a suite of its own (tests/vulkan)."""

from collections.abc import Iterator

import pytest

from aatc import backends
from aatc.backends import Backend, found
from tests.conformance.interpreting import Interpreting


@pytest.fixture(params=[*(n for n in backends.names() if n != "vulkan"), Interpreting.name])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Each backend in turn, found by its name; what was registered for a test is forgotten after it."""
    monkeypatch.setattr(found, "_backends", dict(found._backends))
    if request.param == Interpreting.name:
        backends.register(Interpreting())
    return backends.get(request.param)
