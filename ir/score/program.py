"""A score program: named, typed parameters and one expression over them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aatc.ir.errors import ScoreError
from aatc.ir.score.expr import Expr, params
from aatc.ir.score.text import expr_text


@dataclass(frozen=True)
class Program:
    """``(q: f[bhid], k: f[bhjd]) => dot(q, k)``. Parameters are `Expr` nodes of fn "param"."""

    params: tuple[Expr, ...]
    body: Expr

    def __post_init__(self) -> None:
        names = [p.name for p in self.params]
        if len(set(names)) != len(names):
            raise ScoreError(f"parameter names repeat in {names}")
        missing = [p for p in params(self.body) if p not in self.params]
        if missing:
            raise ScoreError(
                f"free variable {missing[0].name}: {param_text(missing[0])} is not among the parameters "
                f"({', '.join(map(param_text, self.params))})"
            )

    @staticmethod
    def of(body: Expr, order: Iterable[Expr] = ()) -> Program:
        """The program of ``body`` with just the parameters it uses, those in ``order`` first."""
        used = params(body)
        first = [p for p in order if p in used]
        return Program(tuple(first + [p for p in used if p not in first]), body)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.params)

    def __str__(self) -> str:
        return f"({', '.join(map(param_text, self.params))}) => {expr_text(self.body, self.names)}"


def param_text(p: Expr) -> str:
    name, axes, dtype = p.attrs
    return f"{name}: {dtype}[{axes}]"
