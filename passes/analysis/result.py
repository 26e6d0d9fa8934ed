"""What analyses and validations return: a value with its proof, and what they say when they cannot answer.

Proof levels are those of certificates: P0 bit-exact, P1 exact in real arithmetic, P2 within ``tolerance``, P3
diagnostic only. A witness is plain data that `verify` re-checks without the code that made it: each family
registers a small function for its own class of witness.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Generic, TypeVar

from aatc.ir.errors import AatcError
from aatc.passes.certificate import LEVELS

V = TypeVar("V", covariant=True)


class AnalysisError(AatcError, ValueError):
    """An analysis was given something it cannot work on."""


class BudgetError(AatcError):
    """The estimated cost is above the budget. ``estimate`` and ``budget`` are a `Cost` each."""

    def __init__(self, message: str, *, estimate: Cost, budget: Cost, hint: str | None = None):
        self.estimate, self.budget = estimate, budget
        super().__init__(message, hint=hint or "raise budget=, or analyse a smaller or coarser pattern")


@dataclass(frozen=True)
class Cost:
    """Seconds on one thread of the machine at hand, and bytes at the peak; infinite where no limit is meant."""

    seconds: float = float("inf")
    bytes: float = float("inf")

    def within(self, budget: Cost) -> bool:
        return self.seconds <= budget.seconds and self.bytes <= budget.bytes

    def check(self, budget: Cost, what: str) -> None:
        """BudgetError unless this cost is within ``budget``."""
        if not self.within(budget):
            raise BudgetError(
                f"{what} would take about {self.seconds:.2g} s and {self.bytes / 2**20:.3g} MiB; "
                f"the budget is {budget.seconds:.2g} s and {budget.bytes / 2**20:.3g} MiB",
                estimate=self,
                budget=budget,
            )


@dataclass(frozen=True)
class Undecided:
    """No answer within ``bound``, a text such as "4096 cosets". Never stands for a value and has no truth value."""

    bound: str
    reason: str = ""

    def __bool__(self) -> bool:
        raise AnalysisError(f"undecided within {self.bound}: {self.reason or 'neither true nor false'}")


@dataclass(frozen=True)
class Result(Generic[V]):
    """``value`` under ``assumptions``. ``residual`` is the largest deviation that was found, to be compared with
    ``tolerance``; ``witness`` is what `verify` takes, or None for a result that carries none."""

    value: V
    proof_level: str = "P3"
    tolerance: float = 0.0
    residual: float = 0.0
    witness: Any = None
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.proof_level not in LEVELS:
            raise AnalysisError(f"proof level {self.proof_level!r} is none of {', '.join(LEVELS)}")

    def verify(self) -> float:
        """The residual as the independent check of the witness finds it. AnalysisError where there is no witness."""
        if self.witness is None:
            raise AnalysisError(
                f"this {self.proof_level} result, of type {type(self.value).__name__}, carries no witness to check",
                hint="its .witness is None; docs/analysis.md, Limits, says which results carry one, and for some it is "
                "asked for: homology(witness=True), filtration_persistence(representatives=True)",
            )
        return verify(self.witness)


@dataclass(frozen=True)
class Verdict(Result[bool]):
    """A check that passed or failed: truthy or falsy. ``statement`` says what was checked; ``witness`` is the worst
    point, pair or step that was found, also when the check passed."""

    statement: str = ""

    def __bool__(self) -> bool:
        return self.value

    def __str__(self) -> str:
        word = "holds" if self.value else "FAILS"
        given = f" given {'; '.join(self.assumptions)}" if self.assumptions else ""
        return (
            f"{self.statement}: {word} [{self.proof_level}, residual {self.residual:.2e}, "
            f"tolerance {self.tolerance:.0e}]{given}"
        )


@singledispatch
def verify(witness: Any) -> float:
    """Re-checks a witness and returns the largest deviation found; 0 for an exact fact that holds.

    Raises AnalysisError for data that is no witness.
    """
    raise AnalysisError(
        f"a {type(witness).__name__} is no witness", hint="give the .witness of a result, or call its .verify()"
    )
