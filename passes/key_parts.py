"""A forward whose keys go in parts at the same time: what each part gathers stands in buffers, and is merged part by
part in their order, as the normaliser says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aatc.ir.core import Value
from aatc.ir.dims import Dim
from aatc.ir.normalizers import Normalizer, Statistic
from aatc.ir.score.expr import Expr, add, mul, param
from aatc.ir.types import INDEX, TensorType, torch_dtype
from aatc.passes.tile_core import Frame, loops


def starts(fr: Frame, statistics: Sequence[Statistic]) -> list[Value]:
    """What statistics and the sum of weight times value start from."""
    b, s, dtype = fr.b, fr.s, torch_dtype(fr.a.dtype)
    return [
        *(b.fill(x.start(dtype), "gi", fr.at, s.heads, s.rows, 1, name=f"{x.name}0") for x in statistics),
        b.fill(0.0, "gid", fr.at, s.heads, s.rows, fr.a.value_width, name="acc0"),
    ]


def in_parts(
    fr: Frame,
    n: Normalizer,
    unit: float,
    gathered: Callable[[Frame], list[Value]],
    finish: Callable[[Frame, list[Value]], None],
) -> None:
    """Emits the loops of a forward over parts of the keys, then those that merge them. ``gathered`` emits the
    statistics and acc of a block of rows and one part, ``finish`` takes those of all parts."""
    shape = (fr.a.problems, Dim(fr.s.parts), fr.a.rows)
    types = [TensorType.of(fr.a.dtype, shape) for _ in n.statistics]
    types.append(TensorType.of(fr.a.dtype, (*shape, fr.a.value_width)))
    names = [*(x.name for x in n.statistics), "acc"]
    buffers = [fr.b.op("tile.alloc", [], [t], names=[f"{x}_parts"])[0] for t, x in zip(types, names, strict=True)]

    def part(inner: Frame) -> None:
        at = [inner.at[c] for c in "gsi"]
        for value, buffer in zip(gathered(inner), buffers, strict=True):
            fr.b.op("tile.store", [value, buffer, *at], axes=_axes(buffer), add=False)

    loops(fr, part, parts=True)
    loops(fr, lambda inner: finish(inner, _merged(inner, n, unit, buffers)))


def _axes(buffer: Value) -> str:
    return "gsi" if buffer.type.rank == 3 else "gsid"  # type: ignore[attr-defined]


def _merged(fr: Frame, n: Normalizer, unit: float, buffers: Sequence[Value]) -> list[Value]:
    """The loop over the parts of a block of rows: the statistics and acc of all."""
    b, s = fr.b, fr.s
    row, sums = b.tile(s.heads, s.rows, 1), b.tile(s.heads, s.rows, fr.a.value_width)
    joined, factors = n.merge(unit)
    inits = starts(fr, n.statistics)
    names = [*(x.name for x in n.statistics), "acc"]
    part, *carried = b.open([INDEX, *(v.type for v in inits)], ["s", *names])
    at = [fr.at["g"], part, fr.at["i"]]
    *others, acc = (
        b.op("tile.load", [x, *at], [v.type], names=[f"{name}_part"], axes=_axes(x))[0]
        for x, v, name in zip(buffers, inits, names, strict=True)
    )
    env = {x.value.name: v for x, v in zip(n.statistics, carried, strict=False)}
    env |= {x.other.name: v for x, v in zip(n.statistics, others, strict=True)}
    news = [*b.map([(x.name, e, row) for x, e in joined.items()], env)] if joined else []
    env |= {x.next.name: v for x, v in zip(joined, news, strict=True)}
    scales: list[Value] = []
    if factors is not None:
        scales = b.map([("mine", factors[0], row), ("theirs", factors[1], row)], env)
    mine, theirs = param("mine_", "bhi"), param("theirs_", "bhi")

    def total(x: Expr, y: Expr) -> Expr:
        return add(mul(x, mine), mul(y, theirs)) if scales else add(x, y)

    env |= dict(zip((mine.name, theirs.name), scales, strict=False))
    if n.of_weights:
        news += b.map([(x.name, total(x.value, x.other), row) for x in n.of_weights], env)
    acc_, other = param("acc_", "bhid"), param("acc_other_", "bhid")
    news += b.map([("acc", total(acc_, other), sums)], {**env, acc_.name: carried[-1], other.name: acc})
    body = b.close(news)
    kind = "seq" if factors is not None or joined else "red"
    return b.op(
        "tile.for",
        inits,
        [v.type for v in inits],
        regions=[body],
        names=names,
        axis="s",
        upper=fr.s.parts,
        step=1,
        kind=kind,
    )
