"""Fixtures of the frontend's tests."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from aatc.passes import Context, Pass


@pytest.fixture
def broken_pass() -> type[Pass]:
    """A pass that always fails."""

    @dataclass(frozen=True)
    class Broken(Pass):
        name: ClassVar[str] = "broken"

        def run(self, module: object, ctx: Context) -> object:
            raise RuntimeError("broken on purpose")

    return Broken
