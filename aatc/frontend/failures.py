"""What a failed compilation is told as: a typed error, an entry of `explain()`, or a warning."""

from __future__ import annotations

import sys
import warnings

from aatc.errors import AatcError, BackendError, PassError, ScheduleError, UnsupportedError
from aatc.frontend import location

#: Scores that an attention left to PyTorch may store before it is warned about, in bytes.
LARGE = 64 << 20
_REPORT = (
    "This is a bug of aatc. With AATC_DUMP=dir, dir gets a script that reproduces it: please report it with that script"
)


def expected(error: BaseException) -> bool:
    """Whether ``error`` says that something cannot be compiled; everything else is a bug."""
    return isinstance(error, UnsupportedError)


def users(error: BaseException) -> bool:
    """Whether ``error`` comes from a pass, a pipeline or a schedule of the user's, and so must reach the user."""
    return isinstance(error, (PassError, ScheduleError)) and error.users


def typed(error: Exception, where: str | None) -> AatcError:
    """``error`` as an error of aatc."""
    if isinstance(error, AatcError):
        return error
    return BackendError(f"compiling failed: {type(error).__name__}: {error}", where=where, hint=_REPORT)


def reason(error: BaseException) -> str:
    return (error.message if isinstance(error, AatcError) else f"{type(error).__name__}: {error}").strip()


def bug(model: str, doing: str, error: BaseException, where: str | None) -> str:
    """The text of a `CompilerBugWarning`."""
    place = getattr(error, "where", None) or where or "an unknown line"
    kind = "" if isinstance(error, AatcError) and type(error) is AatcError else f"{type(error).__name__}: "
    text = error.message if isinstance(error, AatcError) else str(error)
    return f"{model}: {doing} failed, and PyTorch runs it instead.\n  {kind}{text}\n  at {place}\n  {_REPORT}."


def warn(text: str, category: type[Warning]) -> None:
    """Warns at the line of the user's that called into aatc."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and not location.is_users(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def users_line() -> str | None:
    """The user's innermost line on the stack of this thread."""
    frame = sys._getframe(1)
    while frame is not None:
        if location.is_users(frame.f_code.co_filename):
            return location.where(location.of_line(frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back  # type: ignore[assignment]
    return None
