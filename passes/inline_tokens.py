"""Vectors per query computed where a block of queries is read, without a buffer for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.score.expr import call, params, postorder
from aatc.ir.score.program import Program
from aatc.ir.tile_evaluate import token_numbers
from aatc.ir.types import TensorType

if TYPE_CHECKING:
    from aatc.passes.lower_tokens import TokenLoops


#: Words that multiply every token with a matrix.
_PRODUCTS = frozenset({"matvec", "tmatvec", "turn", "unturn"})
#: Keys per feature from where on that costs little beside the scores, so that it may be done twice.
_MANY = 8


def lengths_of_peaks(func: Func) -> int:
    """``peak`` of a token's vectors → ``token`` of their lengths, and the peak of these: vectors that only a peak and
    blocks of queries read need no buffer. Returns how many."""
    ops: list[Op] = []
    count = 0
    for op in func.body.ops:
        token = op.operands[0].owner if op.name == "tile.peak" and op.attrs["rows"] else None
        if isinstance(token, Op) and token.name == "tile.token" and token.attrs["flat"] and _is_plain(token):
            body = token.attrs["program"].body
            t: TensorType = token.result.type  # type: ignore[assignment]
            attrs = {
                **token.attrs,
                "program": Program(token.attrs["program"].params, call("sqrt", call("dot", body, body))),
                "axes": token.attrs["axes"].removesuffix("d"),
            }
            kind = TensorType.of(t.dtype, t.shape[:-1])
            length = Op("tile.token", token.operands, attrs, [kind], loc=token.loc)
            length.result.name = f"{token.result.name}_length"
            ops.append(length)
            op.operands = [length.result]
            op.attrs = {**op.attrs, "rows": False}
            count += 1
        ops.append(op)
    func.body.ops = ops
    return count


def _is_plain(token: Op) -> bool:
    """Whether a program has what all programs of vectors per token may have; others may run as a whole."""
    body = token.attrs["program"].body
    t: TensorType = token.result.type  # type: ignore[assignment]
    words = {e.fn for e in postorder(body)}
    return (
        token.attrs["axes"] in ("bhid", "bhjd")
        and t.dtype in ("f32", "f64")
        and not any(p.rank > 2 or (p.rank == 2 and p.axes & {"i", "j"}) for p in params(body))
        and not words & {"lookup", "pair_uniform"}
        and not (words & _PRODUCTS and _few_keys(token))
    )


def _few_keys(token: Op) -> bool:
    """Whether there are so few keys that products with a matrix are a large part of all work."""
    t: TensorType = token.result.type  # type: ignore[assignment]
    keys, width = Dim.of(token.attrs["sizes"][3]), t.shape[-1]
    return keys.is_static and width.is_static and keys.const < _MANY * width.const


def loads_in_tasks(func: Func, token: Op) -> list[tuple[Block, Op]] | None:
    """The loads of a token's vectors, with their blocks, where each block of queries is read once: in loops over
    problems and queries, outside of those over keys. None if anything else reads the vectors.

    Arguments of bfloat16 are left for products that take them as they are.
    """
    t: TensorType = token.result.type  # type: ignore[assignment]
    if token.attrs["axes"] != "bhid" or not token.attrs["flat"] or t.dtype not in ("f32", "f64"):
        return None
    if any(v.type.dtype == "bf16" for v in token.operands):  # type: ignore[attr-defined]
        return None
    if token_numbers(token) != t.dtype:  # what is computed in double precision is rounded where it is kept
        return None
    found: list[tuple[Block, Op]] = []
    for op, block, around in _walk(func.body, ()):
        if token.result not in op.operands:
            continue
        loops = [x for x in around if x.name != "tile.guard"]
        fits = op.name == "tile.load" and op.attrs["axes"] == "gid" and op.result.type.dtype == t.dtype  # type: ignore[attr-defined]
        if not fits or any(x.name != "tile.for" or x.attrs["axis"] not in "gi" for x in loops):
            return None
        if int(op.result.type.shape[0]) != 1:  # type: ignore[attr-defined]
            return None
        found.append((block, op))
    return found


def inline(func: Func, loads: list[tuple[Block, Op]], loops: TokenLoops) -> dict[Value, Value]:
    """Computes blocks of a token's vectors in the place of their loads; a load in the branch of a task that has read
    the block already takes that one. Returns what stands for the loads' results."""
    made: dict[Value, Value] = {}
    seen: list[tuple[Block, Op]] = []
    for block, load in loads:
        same = next((x for home, x in seen if x.operands == load.operands and _is_around(home, x, load)), None)
        if same is not None:
            made[load.result] = made[same.result]
            block.ops.remove(load)
            continue
        ops, value = loops.block(load)
        at = block.ops.index(load)
        block.ops[at : at + 1] = ops
        if value.name == "":
            value.name = load.result.name
        made[load.result] = value
        seen.append((block, load))
    return made


def _is_around(home: Block, first: Op, load: Op) -> bool:
    return any(load in region.walk() for op in home.ops for region in op.regions if op.name == "tile.guard")


def _walk(block: Block, around: tuple[Op, ...]) -> Iterator[tuple[Op, Block, tuple[Op, ...]]]:
    for op in list(block.ops):
        yield op, block, around
        for region in op.regions:
            yield from _walk(region, (*around, op))
