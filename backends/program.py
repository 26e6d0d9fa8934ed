"""What a module becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass
class Beside:
    """What a program of a device did elsewhere: ``reasons`` with the number of calls. If it is ``refused``, an
    operator that has no kernel is an error."""

    reasons: dict[str, int] = field(default_factory=dict)
    refused: bool = False

    def count(self, reason: str) -> None:
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


@dataclass
class Program:
    """A built module. ``main`` takes the entry's arguments and returns a list of results, differentiably;
    ``source`` makes the text of all generated code, ``code``; ``attentions`` describes each attention for `explain`;
    ``beside`` tells what calls so far ran beside the device, and how many of them."""

    main: Callable[..., list[Any]]
    source: Callable[[], str]
    attentions: list[dict[str, Any]] = field(default_factory=list)
    beside: Beside | None = None

    @cached_property
    def code(self) -> str:
        return self.source()
