"""Whether what a new word's declaration says of it agrees: its value, slopes, bounds and other spelling, at samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from aatc.ir.errors import ScoreError
from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.expr import Expr, call, param, postorder
from aatc.ir.score.functions import Function

_COUNT, _STEP = 96, 1e-5
_SIZES = (1, 1, 1, _COUNT)


def probe(f: Function) -> None:
    """ScoreError where the parts of a declaration contradict each other; the word is in the table by now."""
    if f.attributes:
        return  # what its constants may be is not known
    generator = torch.Generator().manual_seed(7)
    points = [3 * torch.randn(_COUNT, generator=generator, dtype=torch.float64) for _ in range(f.arity)]
    points = [torch.cat([x[: _COUNT // 2], x[_COUNT // 2 :].abs() * 0.3]) for x in points]
    value = _value(f, points)
    _elementwise(f, points, value)
    names = [param(f"x{n}_", "bhij") for n in range(f.arity)]
    env = {p.name: x.reshape(_SIZES) for p, x in zip(names, points, strict=True)}

    def number(e: Expr) -> torch.Tensor:
        found = evaluate(e, env, _SIZES, dtype=torch.float64)
        return found.to(torch.float64).expand(*_SIZES, 1).reshape(-1)

    _spelling(f, _run(f, "spelled", lambda: f.spelled(*names)), value, number)  # type: ignore[misc]
    if not f.jumps:
        _slopes(f, _run(f, "slopes", lambda: f.slopes(call(f.name, *names))), points, number)  # type: ignore[misc]
    _bounds(f, points)


def _wrong(f: Function, part: str, why: str) -> ScoreError:
    return ScoreError(f"the word {f.name}: its {part} {why}", hint="docs/extending.md shows a whole declaration")


def _run(f: Function, part: str, compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except Exception as error:
        raise _wrong(f, part, f"raises {type(error).__name__}: {error}") from error


def _value(f: Function, points: list[torch.Tensor]) -> torch.Tensor:
    """The word's value; of the shape and dtype of its arguments."""
    found = _run(f, "evaluate", lambda: f.evaluate(*points))  # type: ignore[misc]
    wanted = torch.bool if f.result == "b" else points[0].dtype
    if not isinstance(found, torch.Tensor) or found.shape != points[0].shape or found.dtype != wanted:
        got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise _wrong(f, "evaluate", f"makes {got} of {points[0].dtype} {tuple(points[0].shape)}")
    return found


def _elementwise(f: Function, points: list[torch.Tensor], value: torch.Tensor) -> None:
    half = _value(f, [x.flip(0)[::2].contiguous() for x in points])
    if not torch.allclose(half.double(), value.double().flip(0)[::2], rtol=1e-9, atol=1e-12, equal_nan=True):
        raise _wrong(f, "evaluate", "is not element by element: a number's value depends on others")
    _value(f, [x.float() for x in points])


def _spelling(f: Function, spelled: Any, value: torch.Tensor, number: Callable[[Expr], torch.Tensor]) -> None:
    if not isinstance(spelled, Expr) or any(e.fn == f.name for e in postorder(spelled)):
        raise _wrong(f, "spelled", "is no expression in other words")
    _agrees(f, "spelled", _run(f, "spelled", lambda: number(spelled)), value.double(), "its value")


def _slopes(f: Function, slopes: Any, points: list[torch.Tensor], number: Callable[[Expr], torch.Tensor]) -> None:
    if not isinstance(slopes, tuple) or len(slopes) != f.arity or not all(isinstance(s, Expr | None) for s in slopes):
        raise _wrong(f, "slopes", f"are not {f.arity} expressions or None, one per argument")
    for n, slope in enumerate(slopes):
        coarse, fine = (_difference(f, points, n, h) for h in (_STEP, _STEP / 2))
        smooth = (coarse - fine).abs() <= 1e-5 * (1 + fine.abs())
        found = torch.zeros_like(fine) if slope is None else _run(f, "slopes", lambda s=slope: number(s))  # type: ignore[misc]
        away = torch.where(smooth, fine, torch.nan)
        _agrees(f, "slopes", found, away, f"differences of its value for argument {n + 1}", 1e-4)


def _difference(f: Function, points: list[torch.Tensor], n: int, h: float) -> torch.Tensor:
    above, below = ([x + s * h if m == n else x for m, x in enumerate(points)] for s in (1, -1))
    return (_value(f, above) - _value(f, below)) / (2 * h)


def _agrees(f: Function, part: str, found: torch.Tensor, wanted: torch.Tensor, what: str, room: float = 1e-8) -> None:
    """Where ``wanted`` is finite."""
    off = wanted.isfinite() & ~((found - wanted).abs() <= room * (1 + wanted.abs()))
    if bool(off.any()):
        at = int(off.nonzero()[0])
        raise _wrong(f, part, f"gives {found[at].item():.6g} where {what} gives {wanted[at].item():.6g}")


def _bounds(f: Function, points: list[torch.Tensor]) -> None:
    ends = [(torch.minimum(x, x.flip(0)), torch.maximum(x, x.flip(0))) for x in points]
    found = _run(f, "bound", lambda: f.bound(*((a.numpy(), b.numpy()) for a, b in ends)))  # type: ignore[misc]
    try:
        low, high = (np.broadcast_to(np.asarray(x, dtype=np.float64), (_COUNT,)) for x in found)
    except (TypeError, ValueError) as error:
        raise _wrong(f, "bound", "is no pair of ends") from error
    for share in (0.0, 0.25, 0.5, 1.0):
        value = _value(f, [a + share * (b - a) for a, b in ends]).double().numpy()
        room = 1e-9 * (1 + np.abs(value))
        outside = np.isfinite(value) & ~((low - room <= value) & (value <= high + room))
        if outside.any():
            n = int(outside.nonzero()[0][0])
            raise _wrong(f, "bound", f"is [{low[n]:.6g}, {high[n]:.6g}] where its value is {value[n]:.6g}")
