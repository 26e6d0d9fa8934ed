"""What analyses and validations return: a value with its proof, and what they say when they cannot answer.

Proof levels are those of certificates: P0 bit-exact, P1 exact in real arithmetic, P2 within ``tolerance``, P3
diagnostic only. A witness is plain data that `verify` re-checks without the code that made it, and `mismatch` reads off
it what it proves: each family registers a small function of each kind for its own classes of witness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Generic, TypeVar

from aatc.ir.errors import AatcError
from aatc.passes.certificate import LEVELS

V = TypeVar("V", covariant=True)
F = TypeVar("F", bound=Callable[..., float])
#: What a check of parts that do not belong together runs into.
UNFIT = (ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError, ValueError)


class AnalysisError(AatcError, ValueError):
    """An analysis was given something it cannot work on."""


class WitnessError(AnalysisError):
    """A witness whose parts do not even fit together, or that says nothing about its result's value."""


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
    ``tolerance``; ``witness`` is what `verify` takes, or None for a result that carries none.

    A result whose residual exceeds its tolerance, or is NaN, proves nothing: its level is P3, whatever was given."""

    value: V
    proof_level: str = "P3"
    tolerance: float = 0.0
    residual: float = 0.0
    witness: Any = None
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.proof_level not in LEVELS:
            raise AnalysisError(f"proof level {self.proof_level!r} is none of {', '.join(LEVELS)}")
        if not self._within():
            object.__setattr__(self, "proof_level", "P3")

    def _within(self) -> bool:
        return bool(self.residual <= self.tolerance)

    @property
    def witnessed(self) -> bool:
        """Whether there is a witness, which `verify` can check the value by."""
        return self.witness is not None

    def verify(self) -> float:
        """The larger of the witness's own residual and of how far the value is from what the witness proves, as the
        independent checks find them: at most ``tolerance`` for a result that is what it says. WitnessError where the
        witness's parts do not fit, AnalysisError where there is no witness."""
        if self.witness is None:
            raise AnalysisError(
                f"this {self.proof_level} result, of type {type(self.value).__name__}, carries no witness to check",
                hint="its .witness is None; docs/analysis.md, Limits, says which results carry one, and for some it is "
                "asked for: homology(witness=True), filtration_persistence(representatives=True)",
            )
        return worst(verify(self.witness), self._mismatch())

    def _mismatch(self) -> float:
        return mismatch(self.witness, self.value)


@dataclass(frozen=True)
class Verdict(Result[bool]):
    """A check that passed or failed: truthy or falsy. ``statement`` says what was checked; ``witness`` is the worst
    point, pair or step that was found, also when the check passed."""

    statement: str = ""

    def _within(self) -> bool:
        return True  # a residual above the tolerance is what a check that failed has found

    def _mismatch(self) -> float:
        """Where the witness alone does not say what was checked, the verdict is the comparison of its numbers."""
        if mismatch.knows(self.witness):
            return mismatch(self.witness, self.value)
        return 0.0 if self.value == (self.residual <= self.tolerance) else float("inf")

    def __bool__(self) -> bool:
        return self.value

    def __str__(self) -> str:
        word = "holds" if self.value else "FAILS"
        given = f" given {'; '.join(self.assumptions)}" if self.assumptions else ""
        return (
            f"{self.statement}: {word} [{self.proof_level}, residual {self.residual:.2e}, "
            f"tolerance {self.tolerance:.0e}]{given}"
        )


def worst(*found: float) -> float:
    """The largest of deviations; infinite where there is a NaN, which ``max`` may pass over; 0 of none."""
    return float("inf") if any(x != x for x in found) else float(max(found, default=0.0))


class _Check:
    """A function of a witness by its class. NaN, which no comparison would find, counts as infinite; a WitnessError
    stands for whatever parts that do not belong together run into."""

    def __init__(self, otherwise: Callable[..., float]) -> None:
        self.__doc__, self.__name__ = otherwise.__doc__, otherwise.__name__
        self._by_class: Any = singledispatch(otherwise)
        self._otherwise = otherwise

    def register(self, check: F) -> F:
        """Takes ``check`` for the class that its first argument is annotated with."""
        self._by_class.register(check)
        return check

    def knows(self, witness: Any) -> bool:
        return self._by_class.dispatch(type(witness)) is not self._otherwise

    def __call__(self, witness: Any, *value: Any) -> float:
        try:
            found = float(self._by_class(witness, *value))
        except AnalysisError:
            raise
        except UNFIT as cause:
            raise WitnessError(
                f"the parts of this {type(witness).__name__} do not fit together: {type(cause).__name__}: {cause}",
                hint="it was changed, or is not the witness of this result",
            ) from cause
        return found if found == found else float("inf")


@_Check
def verify(witness: Any) -> float:
    """Re-checks a witness, or a result's value by its witness, and returns the largest deviation found; 0 for an exact
    fact that holds.

    Raises AnalysisError for data that is no witness, and WitnessError for parts that do not fit together.
    """
    raise AnalysisError(
        f"a {type(witness).__name__} is no witness", hint="give the .witness of a result, or call its .verify()"
    )


@_Check
def mismatch(witness: Any, value: Any) -> float:
    """By how much ``value`` differs from what ``witness``, taken to be right, proves; 0 where it is just that, ∞ where
    it is something else. WitnessError for a witness that says nothing about such a value."""
    raise WitnessError(
        f"a {type(witness).__name__} says nothing about a {type(value).__name__}",
        hint="the witness is that of another result",
    )


@verify.register
def _(result: Result) -> float:  # type: ignore[type-arg]  # dispatch is by the class alone
    return result.verify()
