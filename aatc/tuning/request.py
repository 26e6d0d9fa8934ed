"""What ``aatc.compile(tune=...)`` may be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aatc.errors import UnsupportedError
from aatc.tuning.exchange import Schedules, load

WORDS = ("none", "cached", "quick", "full")


@dataclass(frozen=True)
class Request:
    """``effort``: that of the measurement after the first call, or empty. ``given``: the text of imported schedules, in
    the place of those that are kept. ``on``: whether there are any other schedules than the cost model's."""

    on: bool = False
    effort: str = ""
    given: str = ""

    @staticmethod
    def of(tune: Any) -> Request:
        """Raises: UnsupportedError for what is no such thing; OSError and ScheduleError for files."""
        if tune is True or tune is False or tune is None:
            tune = "quick" if tune else "none"
        if isinstance(tune, Schedules):
            return Request(True, given=tune.to_json())
        if isinstance(tune, str) and tune in WORDS:
            return Request(tune != "none", tune if tune in ("quick", "full") else "")
        if isinstance(tune, os.PathLike) or (isinstance(tune, str) and Path(tune).suffix == ".json"):
            return Request(True, given=load(Path(tune)).to_json())
        raise UnsupportedError(
            f"tune={str(tune)[:80]!r} is not known",
            hint=f"there are: {', '.join(WORDS)}, a .json file of exported schedules, what aatc.tune returns",
        )
