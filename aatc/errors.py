"""The typed errors of aatc: each says what happened, where, and what to do about it."""

from aatc.ir.errors import (
    AatcError,
    BackendError,
    CaptureError,
    ParseError,
    PassError,
    ScheduleError,
    ScoreError,
    ShapeError,
    TextError,
    UnsupportedError,
    VerifyError,
)

__all__ = [
    "AatcError", "BackendError", "CaptureError", "ParseError", "PassError", "ScheduleError", "ScoreError",
    "ShapeError", "TextError", "UnsupportedError", "VerifyError",
]  # fmt: skip
