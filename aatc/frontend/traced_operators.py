"""What Dynamo is taught of traced scores, and of masks and biases: operators that users' functions are full of."""

from __future__ import annotations

import functools

from aatc.frontend import private_torch
from aatc.parts import Part


@functools.cache
def teach_operators(traced: type) -> None:
    """Makes Dynamo run operators of traced scores by their own methods, as Python does: ``~x``, ``x @ y``, comparisons
    with numbers that vary, ``in``, numbers that vary in texts, and masks and biases combined with tensors."""
    private_torch.run_methods_of_objects()
    private_torch.compare_by_methods(traced)
    private_torch.refuse_membership(traced, "`in` needs one truth value, and a score is one per pair")
    private_torch.format_as_written()
    private_torch.combine_by_methods(Part)
