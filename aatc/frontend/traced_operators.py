"""What Dynamo is taught of traced scores: the operators that users' predicates and metrics are full of."""

from __future__ import annotations

import functools

from aatc.frontend import private_torch


@functools.cache
def teach_operators(traced: type) -> None:
    """Makes Dynamo run operators of traced scores by their own methods, as Python does: ``~x``, ``x @ y``, comparisons
    with numbers that vary, ``in``, and numbers that vary in texts."""
    private_torch.run_methods_of_objects()
    private_torch.compare_by_methods(traced)
    private_torch.refuse_membership(traced, "`in` needs one truth value, and a score is one per pair")
    private_torch.format_as_written()
