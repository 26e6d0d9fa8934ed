"""What a module becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass
class Program:
    """A built module. ``main`` takes the entry's arguments and returns a list of results, differentiably;
    ``source`` makes the text of all generated code, ``code``; ``attentions`` describes each attention for `explain`."""

    main: Callable[..., list[Any]]
    source: Callable[[], str]
    attentions: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def code(self) -> str:
        return self.source()
