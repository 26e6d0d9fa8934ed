"""Where tiles lie and how large they are in the current round: offsets from the plan, extents from the loops."""

from __future__ import annotations

from aatc.backends.cpu.linear import temporaries
from aatc.ir.access import access, repeats
from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.registry import lookup_op
from aatc.ir.types import TileType

Axes = tuple[str, str, str]  # per dimension: "g", "i", "j" for the loop's extent, else a number


def _planned(op: Op) -> list[tuple[int, Value]]:
    """Results and where they lie; none before memory is planned."""
    return list(zip(op.attrs["cpu.plan"], op.results, strict=True)) if "cpu.plan" in op.attrs else []


class Places:
    """Axes and arena offsets of every tile value of a function."""

    def __init__(self, func: Func):
        self.axes: dict[Value, Axes] = {}
        self.offsets: dict[Value, tuple[int, str]] = {}
        self.scratch: dict[Op, list[tuple[int, str, Axes]]] = {}
        self._block(func.body)

    def _block(self, block: Block) -> None:
        for op in block.ops:
            if op.regions:
                self._region(op)
            else:
                for r in op.results:
                    if isinstance(r.type, TileType):
                        self.axes[r] = self._result(op, r)
            for offset, r in _planned(op):
                if offset >= 0:
                    self.offsets[r] = (offset, r.type.dtype)  # type: ignore[attr-defined]
            if "cpu.scratch" in op.attrs:
                self.scratch[op] = [
                    (offset, dtype, self._axes_of(op, shape))
                    for offset, (dtype, shape) in zip(op.attrs["cpu.scratch"], temporaries(op), strict=True)
                ]

    def _region(self, op: Op) -> None:
        body = op.regions[0]
        traits = lookup_op(op.name).traits
        skip, lead = traits.carried
        for offset, r in _planned(op):
            if offset >= 0:
                self.offsets[r] = (offset, r.type.dtype)  # type: ignore[attr-defined]
        inits = op.operands[skip:]
        for init, r in zip(inits, op.results, strict=True):
            self.axes[r] = self.axes[init]
        if traits.region == "loop":
            for arg, r in zip(body.args[lead:], op.results, strict=True):
                self.axes[arg] = self.axes[r]
                if r in self.offsets:
                    self.offsets[arg] = self.offsets[r]
        self._block(body)

    def _result(self, op: Op, r: Value) -> Axes:
        t: TileType = r.type  # type: ignore[assignment]
        if op.name in ("tile.load", "tile.fill"):
            letters = access(op.attrs["axes"]).tile
            if op.name == "tile.load" and repeats(op):
                letters = f"g{letters[1:]}"
            return tuple(str(int(d)) if c in "1de" else c for c, d in zip(letters, t.shape, strict=True))  # type: ignore[return-value]
        if op.name == "tile.dot":
            a, b = (self.axes[v] for v in op.operands[:2])
            return {"nt": (a[0], a[1], b[1]), "nn": (a[0], a[1], b[2]), "tn": (a[0], a[2], b[2])}[op.attrs["form"]]
        if op.name == "tile.reduce":
            a, over = self.axes[op.operands[0]], op.attrs["over"]
            return (a[0], "1" if "i" in over else a[1], "1" if "j" in over else a[2])
        if op.name == "tile.lookup":
            _, rows, cols = self._axes_of(op, tuple(int(d) for d in t.shape))
            return ("g", rows, cols)
        if op.name == "tile.position":
            return {"i": ("1", "i", "1"), "j": ("1", "1", "j")}.get(op.attrs["axes"], ("g", "1", "1"))
        if op.name == "tile.insert":
            return self.axes[op.operands[1]]
        if op.name == "tile.slice":
            of, at = list(self.axes[op.operands[0]]), {"i": 1, "j": 2}[op.attrs["over"]]
            of[at] = str(int(t.shape[at]))
            return (of[0], of[1], of[2])
        if op.name == "tile.refine_gradient" and r is not op.results[0]:
            tile = self.axes[op.operands[3 + op.results.index(r)]]
            return (self.axes[op.operands[0]][0], tile[1], tile[2])
        if op.name in ("tile.mask", "tile.refine", "tile.refine_gradient"):
            return self.axes[op.operands[0]]
        return self._axes_of(op, tuple(int(d) for d in t.shape))

    def _axes_of(self, op: Op, shape: tuple[int, ...]) -> Axes:
        """Axes of a broadcast over the operands of an element-wise operation."""
        tiles = [v for v in op.operands if isinstance(v.type, TileType)]
        out = []
        for n, size in enumerate(shape):
            found = [self.axes[v][n] for v in tiles if int(v.type.shape[n]) == size and size != 1]  # type: ignore[attr-defined]
            named = [a for a in found if a in "gij"]
            out.append(named[0] if named else found[0] if found else str(size))
        return tuple(out)  # type: ignore[return-value]

    def same(self, a: Value, b: Value) -> bool:
        return a in self.offsets and self.offsets[a] == self.offsets.get(b)
