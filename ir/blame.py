"""Verifier errors at an operation: with its text and the place in the user's model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from aatc.ir.core import Op
from aatc.ir.errors import VerifyError
from aatc.ir.printer import op_line


def fail(op: Op, message: str, hint: str | None = None) -> NoReturn:
    """Raises `VerifyError` at an operation."""
    line = op_line(op)
    shown = line if len(line) <= 400 else f"{line[:400]}..."
    raise VerifyError(message, where=str(op.loc) if op.loc else None, op=shown, hint=hint, at=op)


def sound(op: Op, check: Callable[..., Any], *args: Any) -> Any:
    """``check(*args)``, which reads ``op`` as if it made sense; a text need not."""
    try:
        return check(*args)
    except VerifyError:
        raise
    except Exception as e:
        fail(op, f"{op.name} is malformed: {type(e).__name__}: {e}")
