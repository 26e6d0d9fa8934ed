"""Which copies move a program's tensors: inputs that lie side by side in the arena are moved by one."""

from __future__ import annotations

from dataclasses import dataclass

from aatc.backends.vulkan.executors.contract import WORD, Range
from aatc.ir.core import Func, Op, Value
from aatc.ir.verify_program import Span, spans

#: Words between two inputs that are copied along; beyond, two copies are less.
_GAP = 64


@dataclass(frozen=True)
class Piece:
    """Part of a copy: the operation that it does, and its words within copy number ``copy``."""

    op: Op
    copy: int
    start: int
    words: int


@dataclass(frozen=True)
class Transfers:
    """Copies to the device and back, in every call, and what each holds."""

    inward: tuple[Range, ...]
    uploads: tuple[Piece, ...]
    outward: tuple[Range, ...]
    downloads: tuple[Piece, ...]

    @property
    def bytes_in(self) -> int:
        return WORD * sum(r.words for r in self.inward)

    @property
    def bytes_out(self) -> int:
        return WORD * sum(r.words for r in self.outward)


def transfers(func: Func) -> Transfers:
    """Of a planned program."""
    found = spans(func)
    moved = {n: [op for op in func.body.ops if op.name == f"program.{n}"] for n in ("upload", "download")}
    whole = [found[op.result] for op in func.body.ops if op.name == "program.buffer"]
    into = [(op, found[op.operands[1]]) for op in moved["upload"]]
    out_of = [(op, found[op.operands[0]]) for op in moved["download"]]
    inward, uploads = _merged(into, whole, gaps=True)
    outward, downloads = _merged(out_of, whole, gaps=False)
    return Transfers(inward, uploads, outward, downloads)


def _merged(
    items: list[tuple[Op, Span]], whole: list[Span], *, gaps: bool
) -> tuple[tuple[Range, ...], tuple[Piece, ...]]:
    """Neighbours as one copy. With ``gaps`` words between them are written, too, which then are nobody's."""
    copies: list[list[int]] = []  # first word, word behind the last
    pieces: list[Piece] = []
    for op, span in sorted(items, key=lambda item: item[1].first):
        size = span.last - span.first
        joins = bool(copies) and 0 <= span.first - copies[-1][1] <= _GAP
        if joins and span.first > copies[-1][1]:
            joins = not gaps or not any(s.first < span.first and copies[-1][1] < s.last for s in whole)
        if joins:
            copies[-1][1] = max(copies[-1][1], span.last)
        else:
            copies.append([span.first, span.last])
        pieces.append(Piece(op, len(copies) - 1, span.first - copies[-1][0], size))
    order = {op: n for n, (op, _) in enumerate(items)}
    pieces.sort(key=lambda p: order[p.op])
    return tuple(Range(a, b - a) for a, b in copies), tuple(pieces)


def kept_words(func: Func) -> int:
    """Words that stay from one call to the next: parameters and blocks."""
    found: dict[Value, Span] = spans(func)
    kept = (op for op in func.body.ops if op.name == "program.buffer" and op.attrs["keep"])
    return sum(found[op.result].last - found[op.result].first for op in kept)
