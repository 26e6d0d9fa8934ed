"""Executors that are installed here; tests of the others are skipped, and say what is missing."""

import pytest

from aatc.backends.vulkan.executors import found

EXECUTORS = tuple(found.EXTRAS)


def usable(name: str) -> str:
    """Why there is nothing to run on under an executor."""
    return found.why_not(name) or ("" if found.devices(name) else "it sees no device")


@pytest.fixture(params=EXECUTORS)
def executor(request):
    name = request.param
    if why := usable(name):
        pytest.skip(f"executor {name}: {why} (make vulkan)")
    return found.open_executor(name)
