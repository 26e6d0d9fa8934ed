"""Executors that are open while tests run."""

import pytest

from aatc.backends.vulkan.executors import Executor
from tests.vulkan import validation
from tests.vulkan.running import EXECUTORS, STAGED, opened


@pytest.fixture(scope="session")
def open_executors():
    """Executors by name, opened once."""
    made = {}
    yield lambda name: made[name] if name in made else made.setdefault(name, opened(name))
    for name, executor in made.items():
        if name in STAGED:
            executor.close()


@pytest.fixture(scope="session", autouse=True)
def told_apart():
    """What the validation layer cannot tell apart, dispatches of one level, it does not see (test_barriers does)."""
    if validation.installed():
        Executor.serial = True


@pytest.fixture(autouse=True)
def validation_messages():
    """Fails a test during which the validation layer said anything that the test has not asked for."""
    validation.messages()
    yield validation.messages
    assert validation.messages() == []


@pytest.fixture(params=(*EXECUTORS, *STAGED))
def executor(request, open_executors):
    return open_executors(request.param)
