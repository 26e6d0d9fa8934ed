"""``AATC_CHECK=bounds``: every address that a kernel reads or writes is held against the memory it belongs to.

A pointer carries the range of the buffer, or of the tile in scratch memory, that it was derived from. In front of each
load and store stands a comparison; where it fails, the operation's number is left in the call's context, the task ends
before it touches anything, and so do all others. The caller raises BackendError.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aatc.backends.native.context import FAULT, REFUSED
from aatc.ir.errors import BackendError

if TYPE_CHECKING:
    from aatc.backends.native.llvm import Code, Val


def wanted() -> bool:
    """Whether the environment asks for checks."""
    return "bounds" in os.environ.get("AATC_CHECK", "").split(",")


@dataclass(frozen=True)
class _Range:
    """First address and the one behind the last, as i64."""

    first: Val
    end: Val


class Bounds:
    """The ranges of one function's pointers, by their names; None for the context's, which is not checked."""

    def __init__(self, code: Code):
        self.code = code
        self.ranges: dict[str, _Range | None] = {code.args[0].text: None} if code.args else {}

    def begin(self, pointer: Val, nbytes: Val) -> None:
        """``pointer``, and what is derived from it, may touch ``nbytes`` bytes from there."""
        code = self.code

        def write() -> Val:
            first = code.op("i64", f"ptrtoint ptr {pointer.text} to i64")
            end = code.op("i64", f"add i64 {first.text}, {nbytes.text}")
            self.ranges[pointer.text] = _Range(first, end)
            return first

        code.early(write)

    def derive(self, pointer: Val, base: Val) -> None:
        if base.text in self.ranges:
            self.ranges[pointer.text] = self.ranges[base.text]

    def check(self, at: Val, size: int, lanes: int, keep: Val | None) -> None:
        """Ends the task unless ``lanes`` elements of ``size`` bytes, those that ``keep`` keeps, lie in the range."""
        if at.text not in self.ranges:
            raise BackendError(f"the address {at.text} in {self.code.name} belongs to no known memory")
        found = self.ranges[at.text]
        if found is None:
            return
        code = self.code
        first = code.op("i64", f"ptrtoint ptr {at.text} to i64")
        end = code.op("i64", f"add i64 {first.text}, {size * max(1, lanes)}")
        some = "true"
        if keep is not None:
            first, end, some = self._kept(first, size, keep)
        low = code.op("i1", f"icmp ult i64 {first.text}, {found.first.text}")
        high = code.op("i1", f"icmp ugt i64 {end.text}, {found.end.text}")
        bad = code.op("i1", f"or i1 {low.text}, {high.text}")
        bad = code.op("i1", f"and i1 {bad.text}, {some}")
        self._trap(bad)

    def _kept(self, first: Val, size: int, keep: Val) -> tuple[Val, Val, str]:
        """The range between the first and the last lane of a mask, and whether it has any."""
        code, lanes = self.code, max(1, keep.lanes)
        kind = f"i{lanes}"
        bits = code.cast("bitcast", keep, kind)
        wide = code.cast("zext", bits, "i64")
        code.module.declare("llvm.cttz.i64", "i64", ["i64", "i1"])
        code.module.declare("llvm.ctlz.i64", "i64", ["i64", "i1"])
        before = code.op("i64", f"call i64 @llvm.cttz.i64(i64 {wide.text}, i1 false)")
        behind = code.op("i64", f"call i64 @llvm.ctlz.i64(i64 {wide.text}, i1 false)")
        used = code.op("i64", f"sub i64 64, {behind.text}")
        start = code.op("i64", f"add i64 {first.text}, {code.op('i64', f'mul i64 {before.text}, {size}').text}")
        end = code.op("i64", f"add i64 {first.text}, {code.op('i64', f'mul i64 {used.text}, {size}').text}")
        return start, end, code.op("i1", f"icmp ne i64 {wide.text}, 0").text

    def _trap(self, bad: Val) -> None:
        code = self.code
        number = code.module.operation(code.said)
        inside, after = code.fresh("outside"), code.fresh("inside")
        code.do(f"br i1 {bad.text}, label %{inside}, label %{after}, !prof !0")
        code.label(inside)
        for place, value in ((FAULT, number), (REFUSED, 1)):
            name = f"%{code.fresh()}"
            code.do(f"{name} = getelementptr i64, ptr {code.args[0].text}, i64 {place}")
            code.do(f"store atomic i64 {value}, ptr {name} monotonic, align 8")
        code.do("ret void")
        code.label(after)
