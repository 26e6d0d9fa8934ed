"""How weighted values become an output: what is done to their sum. One object declares it."""

from __future__ import annotations

from typing import ClassVar

from aatc.ir.dims import NAME
from aatc.ir.errors import VerifyError
from aatc.ir.score.expr import Expr, param, params

#: The sum of weight times carried value of a query.
SUM = param("summed", "bhid")


class Aggregation:
    """A declaration: a ``name``, and the epilogue of a query's sum."""

    name: ClassVar[str]

    def finish(self, o: Expr) -> Expr:
        """The output of a query, a vector as wide as ``o``, from the sum of weight times carried value ``o``."""
        return o

    def check(self) -> None:
        """Raises VerifyError where the declaration does not hold together."""
        if not NAME.match(self.name):
            raise VerifyError(f"an aggregation is called {self.name!r}", hint="a name is an identifier")
        found = self.finish(SUM)
        if found.rank != 1 or set(params(found)) - {SUM}:
            raise VerifyError(f"the epilogue of {self.name} is no vector made of the sum alone")

    @property
    def plain(self) -> bool:
        """Whether the sum is the output."""
        return self.finish(SUM) is SUM


class Mean(Aggregation):
    """The sum itself: a mean, if the weights of a row sum to 1."""

    name = "mean"


AGGREGATIONS: dict[str, Aggregation] = {}


def register(aggregation: Aggregation) -> Aggregation:
    """Makes an aggregation known by its name. VerifyError where its declaration does not hold together, or the name is
    taken by another one."""
    if AGGREGATIONS.get(aggregation.name, aggregation) is not aggregation:
        raise VerifyError(f"there is an aggregation {aggregation.name!r} already", hint="give yours another name")
    aggregation.check()
    AGGREGATIONS[aggregation.name] = aggregation
    return aggregation


def aggregation_named(name: str) -> Aggregation:
    """The aggregation that programs call ``name``; VerifyError when there is none."""
    if name not in AGGREGATIONS:
        raise VerifyError(f"there is no aggregation {name!r}", hint=f"one of {', '.join(AGGREGATIONS)}")
    return AGGREGATIONS[name]


register(Mean())
