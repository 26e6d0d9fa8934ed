"""Executors that are installed here; tests of the others are skipped, and say what is missing."""

import pytest

from aatc.backends.vulkan.executors import found

EXECUTORS = tuple(found.EXTRAS)
#: With memory that the processor does not reach, as on graphics cards, whatever device there is.
STAGED = ("native, staged", "kompute, staged")


def usable(name):
    """Why there is nothing to run on under an executor."""
    name = name.partition(",")[0]
    return found.why_not(name) or ("" if found.devices(name) else "it sees no device")


def need(name):
    if why := usable(name):
        pytest.skip(f"executor {name}: {why}; make vulkan installs what it can")


def opened(name):
    need(name)
    kind, _, staged = name.partition(", ")
    return found._module(kind).open_device(0, staged=True) if staged else found.open_executor(kind)
