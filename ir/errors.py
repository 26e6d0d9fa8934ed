"""The typed errors of aatc. Each says what happened, where, and what to do about it."""

from __future__ import annotations


class AatcError(Exception):
    """Base class of every error raised on purpose by aatc.

    ``where`` is a source position ("model.py:12" or "line 3, column 7"); ``hint`` says what to try.
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None):
        self.message, self.where, self.hint = message, where, hint
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text}\n  hint: {hint}" if hint else text)

    def suggest(self, hint: str) -> None:
        """Adds what else may help to the message."""
        self.args = (f"{self.args[0]}{';' if self.hint else chr(10) + '  hint:'} {hint}",)
        self.hint = f"{self.hint}; {hint}" if self.hint else hint


def caret(source: str, line: int, column: int) -> str:
    """The line of ``source`` with a caret under the column (both 1-based), to be put behind a message."""
    lines = source.split("\n")
    shown = lines[line - 1].rstrip("\r").replace("\t", " ") if line <= len(lines) else ""
    start = max(0, column - 61)  # very long lines are shown around the column only
    return f"\n  {shown[start : start + 120]}\n  {' ' * (column - 1 - start)}^" if source and line <= len(lines) else ""


class TextError(AatcError):
    """An error in a text from outside: carries line, column (1-based) and shows a caret."""

    def __init__(self, message: str, *, line: int, column: int, source: str = "", hint: str | None = None):
        self.line, self.column = line, column
        super().__init__(message + caret(source, line, column), where=f"line {line}, column {column}", hint=hint)


class ParseError(TextError):
    """The text is not in the grammar, or names something that does not exist."""


class VersionError(ParseError):
    """The text is of another version of the IR, ``found``, than the one that is read and written, ``ours``."""

    found: int
    ours: int


class VerifyError(AatcError):
    """A module breaks a rule of the IR. ``op`` is the text of the offending operation, ``at`` the operation
    or function itself; ``line`` and ``column`` are set when the module was read from a text."""

    line: int | None = None
    column: int | None = None

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        op: str | None = None,
        hint: str | None = None,
        at: object = None,
    ):
        self.reason, self.op, self.at = message, op, at
        super().__init__(f"{message}\n  in: {op}" if op else message, where=where, hint=hint)

    def in_text(self, source: str, line: int, column: int) -> VerifyError:
        """The same error, shown at a place of the text the module was read from."""
        text = self.reason + caret(source, line, column)
        error = VerifyError(text, where=f"line {line}, column {column}", hint=self.hint, at=self.at)
        error.reason, error.op, error.line, error.column = self.reason, self.op, line, column
        return error


class ScoreError(AatcError):
    """A score, carry or mask program is ill-typed, or uses something the language lacks."""


class UnsupportedError(AatcError):
    """The model does something that cannot be compiled (only raised with ``fallback=False``)."""


class ShapeError(AatcError, ValueError):
    """Tensors handed to an attention do not fit together."""


class PassError(AatcError):
    """A pass pipeline is malformed, or a pass failed or broke a condition it had declared.

    ``users`` is set when a pass from outside aatc is at fault: such errors are never swallowed.
    """

    users: bool = False


class CaptureError(AatcError):
    """A captured tensor does not have the axes its declaration promises."""


class BackendError(AatcError):
    """A backend is unknown or cannot run here."""


class NoKernelError(BackendError):
    """An operator has no kernel on the device that the model runs on, and may not run on the host."""


class DeviceError(BackendError):
    """A device cannot do what was asked of it. The process goes on, and other backends still run."""


class NoDeviceError(DeviceError):
    """There is no device, or nothing installed that could drive it."""


class DeviceLostError(DeviceError):
    """The device stopped: a crash of its driver, a reset, or a program that ran for too long. It is opened anew by the
    next program."""


class DeviceMemoryError(DeviceError):
    """The device, or its driver, has no memory left."""


class DeviceLimitError(DeviceError):
    """A program is larger than a limit of the device, which the message names."""


class DeviceFeatureError(DeviceError):
    """A program uses what the device, or the executor that drives it, does not have."""


class ShaderError(DeviceError):
    """The text of a kernel does not compile, or nothing that compiles it is installed."""


class ScheduleError(AatcError):
    """A schedule that was asked for does not fit the program or the target it is for. Never swallowed."""

    users: bool = True


class AatcWarning(UserWarning):
    """Base class of the warnings aatc gives."""


class CompilerBugWarning(AatcWarning):
    """A part of the compiler failed. The numbers are PyTorch's own, but the model runs slower than it should: the
    message names the model's line and how to report it."""


class FallbackWarning(AatcWarning):
    """PyTorch runs something that costs much more than it would compiled: attention in n*m memory, or inputs beyond
    the limit of graphs."""
