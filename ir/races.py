"""Whether loops that say ``par`` may run their rounds at the same time.

Rounds are independent when each place that one of them writes is read and written by no other. A buffer made in the
body is the round's own. In any other, a round has the places at its position: those that an access reaches by the
loop's position, along an axis where the buffer has more than one. What rounds share may only be added to, and says how
the sums meet (``shared``); nothing reads it before the loop ends. Rounds hand nothing on to each other. A ``red`` loop,
whose rounds may run in any order, hands on sums, extremes and products only, each of which is read by nothing but its
own step; and what its rounds share in memory they only add to, too.
"""

from __future__ import annotations

from aatc.ir.access import access, owned_by, owns_problem, repeats
from aatc.ir.blame import fail, sound
from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.registry import lookup_op
from aatc.ir.score.expr import postorder
from aatc.ir.score.program import Program
from aatc.ir.types import TensorType


def check_races(func: Func) -> None:
    """VerifyError at the first access that makes a parallel loop a race."""
    for op in func.body.walk():
        if op.attrs.get("kind") == "par" and lookup_op(op.name).traits.region == "loop":
            sound(op, _check_parallel, op)
        elif op.attrs.get("kind") == "red":
            sound(op, _check_reduction, op)


def _check_parallel(loop: Op) -> None:
    (body,) = loop.regions
    upper = Dim.of(loop.attrs["upper"])
    if upper.is_static and int(upper) <= loop.attrs["step"]:
        return  # one round
    if loop.results:
        fail(loop, f"rounds of {loop.name} run in parallel, yet hand values on", 'make its kind "seq" or "red"')
    _check_rounds(loop, body)


def _check_rounds(loop: Op, body: Block) -> None:
    """What a round writes no other reads, or writes but by adding."""
    ops = list(body.walk())
    own = {r for op in ops for r in op.results}
    position, axis = body.args[0], loop.attrs.get("axis", "j")
    kind = "parallel" if loop.attrs["kind"] == "par" else "accumulating"
    written: dict[Value, Op] = {}
    for op in ops:
        for n in lookup_op(op.name).traits.writes:
            buffer = op.operands[n]
            if buffer not in own:
                written[buffer] = op
                if not _is_own(op, n, position, axis):
                    _check_shared(op, axis, kind)
    for op in ops if written else ():
        writes = lookup_op(op.name).traits.writes
        for n, v in enumerate(op.operands):
            if v in written and n not in writes and not _is_own(op, n, position, axis):
                fail(
                    op,
                    f"%{v.name or '?'} is read here while rounds of {_A[kind]} loop over {axis} write to it",
                    "read it after the loop, or at the loop's position",
                )


def _is_own(op: Op, n: int, position: Value, axis: str) -> bool:
    """Whether operation ``op`` reaches places of its operand ``n`` that no other round of the loop reaches."""
    buffer, axes = op.operands[n].type, op.attrs.get("axes")
    if not isinstance(buffer, TensorType) or not isinstance(axes, str) or position not in op.operands[n + 1 :]:
        return False
    sizes = [Dim.of(d) for d in op.attrs["sizes"]] if "sizes" in op.attrs else None
    if op.name in ("tile.load", "tile.store"):
        first = n + 1 + (op.name == "tile.load" and repeats(op))
        at = dict(zip(access(axes).walks, op.operands[first:], strict=True))
        return at.get(axis) is position and owned_by(axes, buffer.shape, sizes, axis)
    if op.operands[n + 1] is not position:
        return False
    lead = axes[: len(axes) - len(axes.lstrip("bh"))]  # a table: where it is read or written depends on the data
    return axis == "g" and owns_problem(lead, buffer.shape, sizes)


_A = {"parallel": "a parallel", "accumulating": "an accumulating"}


def _check_shared(op: Op, axis: str, kind: str) -> None:
    if not op.attrs.get("add", True):
        fail(
            op,
            f"rounds of {_A[kind]} loop over {axis} write to the same places",
            'index the buffer by the loop, or make its kind "seq"',
        )
    if "shared" not in op.attrs and kind == "parallel":
        fail(
            op,
            f"rounds of a parallel loop over {axis} add into the same places",
            'say how their sums meet: shared = "ordered" or "atomic"; or make the loop\'s kind "seq"',
        )


def _check_reduction(loop: Op) -> None:
    """What a loop carries is only added to, or compared in; and so is what it writes."""
    (body,) = loop.regions
    _check_rounds(loop, body)
    _, lead = lookup_op(loop.name).traits.carried
    users: dict[Value, list[Op]] = {}
    for op in body.walk():
        for v in op.operands:
            users.setdefault(v, []).append(op)
    for n, arg in enumerate(body.args[lead:]):
        at = arg
        while at is not body.ops[-1].operands[n]:
            step = users.get(at, [])
            if len(step) != 1 or not _accumulates(step[0], at):
                fail(loop, f"a loop that only accumulates reads %{arg.name or '?'}", 'make its kind "seq"')
            at = step[0].results[_result_of(step[0], at)]
        if users.get(at, []) != [body.ops[-1]]:
            fail(loop, f"a loop that only accumulates reads %{arg.name or '?'}", 'make its kind "seq"')


def _accumulates(op: Op, v: Value) -> bool:
    at = op.operands.index(v)
    if op.operands.count(v) != 1:
        return False
    if op.name == "tile.map":
        return sum(_adds(p, at) for p in op.attrs["programs"]) == 1
    accumulates = lookup_op(op.name).traits.accumulates
    return accumulates is not None and at in accumulates(op)


def _result_of(op: Op, v: Value) -> int:
    at = op.operands.index(v)
    accumulates = lookup_op(op.name).traits.accumulates
    if accumulates is not None:
        return accumulates(op)[at]
    return next(n for n, p in enumerate(op.attrs["programs"]) if _adds(p, at))


def _adds(program: Program, at: int) -> bool:
    """Whether a program is its parameter ``at`` plus something that does not read it."""
    e, p = program.body, program.params[at]
    return e.fn == "add" and any(x is p and p not in postorder(y) for x, y in (e.args, e.args[::-1]))
