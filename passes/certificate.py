"""Certificates: the facts rewrites rest on, with witnesses that a small independent check re-examines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from aatc.ir.errors import ScoreError
from aatc.ir.score.evaluate import evaluate
from aatc.ir.score.expr import Expr, params, postorder

LEVELS = ("P0", "P1", "P2", "P3")  # bit-exact; exact in real arithmetic; within epsilon; diagnostic only


@dataclass(frozen=True)
class Certificate:
    """``rule`` was applied at ``subject``. ``witness`` is (kind, ...) as `verify` takes it; ``residual`` is
    the largest deviation found when it was issued, relative, to be at most ``tolerance``."""

    rule: str
    proof_level: str
    statement: str
    assumptions: tuple[str, ...] = ()
    witness: tuple[Any, ...] = ()
    residual: float = 0.0
    tolerance: float = 1e-9
    subject: str = ""

    def __str__(self) -> str:
        given = f" given {'; '.join(self.assumptions)}" if self.assumptions else ""
        return f"{self.rule} [{self.proof_level}, residual {self.residual:.1e}]: {self.statement}{given}"


def certify(
    rule: str,
    statement: str,
    witness: tuple,
    *,
    assumptions: tuple[str, ...] = (),
    level: str = "P1",
    tolerance: float = 1e-9,
    subject: str = "",
) -> Certificate:
    """A certificate whose witness has just been checked; ScoreError when the check fails (a compiler bug)."""
    residual = verify(witness)
    if not residual <= tolerance:
        raise ScoreError(
            f"rewrite {rule} does not hold: residual {residual:.2e} above {tolerance:.0e}",
            hint="this is a bug of aatc; the module before the rewrite is still valid",
        )
    return Certificate(rule, level, statement, assumptions, witness, residual, tolerance, subject)


@lru_cache(maxsize=1024)
def verify(witness: tuple) -> float:
    """Re-checks a witness numerically in float64 and returns the largest relative deviation.

    Witnesses: ("equal", before, after) for equal expressions; ("row-constant", before, after) for ones whose
    difference must not depend on the key; ("equal-where", mask, before, after) for equality on open pairs;
    ("bound", expression, low, high) for a static range. Shares no code with the rules: it only evaluates.
    """
    kind, *items = witness
    generator = torch.Generator().manual_seed(20240 + len(items))
    roots = [e for e in items if isinstance(e, Expr)]
    sizes = (2, 2, 5, 6)
    angles, frames = _read_by(roots, ("rotate",), 1), _read_by(roots, ("turn", "unturn"), 0)
    worst = 0.0
    for _ in range(3):
        env = {p.name: _sample(p, sizes, generator, angles, frames) for p in params(*roots)}
        values = [evaluate(e, env, sizes, dtype=torch.float64).expand(*sizes, -1) for e in roots]
        worst = max(worst, _deviation(kind, items, values))
    return worst


def _read_by(roots: list[Expr], words: tuple[str, ...], at: int) -> set[Expr]:
    """Parameters in the argument ``at`` of any of ``words``."""
    return {p for e in postorder(*roots) if e.fn in words for p in params(e.args[at])}


def _sample(p: Expr, sizes, generator, angles: set[Expr], frames: set[Expr]) -> torch.Tensor:
    """Random data a parameter may hold: half as many angles as channels, orthogonal frames, and any other matrix far
    from orthogonal, so that what holds for frames alone is refused for it. Feature vectors are kept small and
    positive: points of the open ball and of the positive cone alike, where the formulas of all geometries hold."""
    _name, axes, dtype = p.attrs
    shape = [dict(zip("bhij", sizes, strict=True)).get(c, 4 if c in "de" else 32) for c in axes]
    if p in angles and axes.endswith("d"):
        shape[-1] = 2
    if dtype == "i":
        return torch.randint(0, 3, shape, generator=generator)
    if dtype == "b":
        return torch.rand(shape, generator=generator) < 0.6
    x = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.3 + 0.05
    return torch.linalg.qr(x)[0] if p in frames else x


def _deviation(kind: str, items, values) -> float:
    if kind == "bound":
        _, low, high = items
        v = values[0]
        return max(float((low - v).max()), float((v - high).max()), 0.0)
    if kind == "equal-where":
        mask, before, after = values
        before, after = before * mask, after * mask
    else:
        before, after = values
    scale = before.abs().max().clamp(min=1.0)
    difference = before - after
    if kind == "row-constant":
        difference = difference - difference[:, :, :, :1]
    return float(difference.abs().max() / scale) if not torch.isnan(difference).any() else float("inf")
