"""A moment by which a piece of work has to be done, that long loops look at.

An estimate says whether work is begun; what it takes is known only on the way. `deadline` names the moment for all that
runs within it in this context, and `proceed`, called between steps of a loop, gives the work up once it has passed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from aatc.passes.analysis.result import BudgetError, Cost


@dataclass(frozen=True)
class _Limit:
    what: str
    begun: float
    budget: Cost


_LIMIT: ContextVar[_Limit | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline(budget: Cost, what: str) -> Iterator[None]:
    """Within it, `proceed` raises BudgetError once ``budget.seconds`` have passed since it began."""
    token = _LIMIT.set(_Limit(what, time.perf_counter(), budget) if budget.seconds < float("inf") else None)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def proceed() -> None:
    """BudgetError where the deadline has passed, with the seconds so far for an estimate; nothing where there is
    none."""
    limit = _LIMIT.get()
    if limit is None:
        return
    spent = time.perf_counter() - limit.begun
    if spent > limit.budget.seconds:
        raise BudgetError(
            f"{limit.what} was given up after {spent:.2g} s; {limit.budget.seconds:.2g} s were left of the budget",
            estimate=Cost(spent, 0.0),
            budget=limit.budget,
        )
