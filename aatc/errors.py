"""The typed errors and warnings of aatc: each says what happened, where, and what to do about it."""

from aatc.ir.errors import (
    AatcError,
    AatcWarning,
    BackendError,
    CaptureError,
    CompilerBugWarning,
    DeviceError,
    DeviceFeatureError,
    DeviceLimitError,
    DeviceLostError,
    DeviceMemoryError,
    FallbackWarning,
    NoDeviceError,
    NoKernelError,
    ParseError,
    PassError,
    ScheduleError,
    ScoreError,
    ShaderError,
    ShapeError,
    TextError,
    UnsupportedError,
    VerifyError,
    VersionError,
)

__all__ = [
    "AatcError", "AatcWarning", "BackendError", "CaptureError", "CompilerBugWarning", "DeviceError",
    "DeviceFeatureError", "DeviceLimitError", "DeviceLostError", "DeviceMemoryError", "FallbackWarning",
    "NoDeviceError", "NoKernelError", "ParseError", "PassError", "ScheduleError", "ScoreError", "ShaderError",
    "ShapeError", "TextError", "UnsupportedError", "VerifyError", "VersionError",
]  # fmt: skip
