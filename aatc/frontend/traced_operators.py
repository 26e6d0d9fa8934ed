"""What Dynamo is taught of traced scores, and of masks and biases: operators that users' functions are full of."""

from __future__ import annotations

import functools
import operator

from aatc.frontend import private_torch
from aatc.frontend.private_torch import operators
from aatc.parts import Part

_MIRRORED = {
    operator.lt: operator.gt, operator.le: operator.ge, operator.gt: operator.lt, operator.ge: operator.le,
    operator.eq: operator.eq, operator.ne: operator.ne,
}  # fmt: skip
#: Operators by which parts of an attention combine with tensors, and the methods of the left and the right side.
_COMBINING = {
    operator.add: ("__add__", "__radd__"), operator.iadd: ("__add__", "__radd__"),
    operator.and_: ("__and__", "__rand__"), operator.iand: ("__and__", "__rand__"),
    operator.or_: ("__or__", "__ror__"), operator.ior: ("__or__", "__ror__"),
}  # fmt: skip


@functools.cache
def teach_operators(traced: type) -> None:
    """Makes Dynamo run operators of traced scores by their own methods, as Python does: ``~x``, ``x @ y``, comparisons
    with numbers that vary, ``in``, numbers that vary in texts, and masks and biases combined with tensors. And makes it
    notice changed defaults."""
    private_torch.guard_defaults()
    operators.run_methods_of_objects()
    operators.compare_by_methods(traced, _MIRRORED)
    operators.refuse_membership(traced, "`in` needs one truth value, and a score is one per pair")
    operators.format_as_written()
    operators.combine_by_methods(Part, _COMBINING)
