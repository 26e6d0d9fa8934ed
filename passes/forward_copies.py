"""Buffers that only hold what another one holds are not made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from aatc.ir.access import access, owns_problem
from aatc.ir.core import Block, Func, Module, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.specialize import prune
from aatc.ir.types import TensorType, TileType
from aatc.passes.base import Context, Pass, register


@register
@dataclass(frozen=True)
class ForwardCopies(Pass):
    """Loops that copy an argument's vectors, or number positions → ``load`` of the argument, ``position``, where that
    was read; loops that copy a buffer to a result → ``store`` to the result beside that to the buffer, or in its place
    where only the copy is read.

    Kernels read arguments in rows, which their caller sees to, so that a copy in rows would bring nothing.
    """

    name: ClassVar[str] = "forward-copies"
    counts: ClassVar[bool] = True

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            if func.level == "tile":
                ctx.count("forwarded", _Forward(func).run())
        return module


class _Forward:
    def __init__(self, func: Func):
        self.func = func
        self.uses: dict[Value, list[Op]] = {}
        for op in func.body.walk():
            for v in op.operands:
                self.uses.setdefault(v, []).append(op)
        self.around: dict[Op, list[Op]] = {}  # operations whose regions an operation stands in
        todo: list[tuple[Block, list[Op]]] = [(func.body, [])]
        while todo:
            block, outer = todo.pop()
            for op in block.ops:
                self.around[op] = outer
                todo += [(r, [*outer, op]) for r in op.regions]

    def run(self) -> int:
        count = 0
        for nest in list(self.func.body.ops):
            source, store = copy_of(nest) or (None, None)
            if source is None or store is None:
                continue
            if self._sums_in_place(nest, source, store):
                count += 1
            elif self._is_new(store.operands[1]) and not store.attrs["add"]:
                count += self._input(nest, source, store) or self._output(nest, source, store)
        if count:
            prune(self.func)
        return count

    def _is_new(self, v: Value) -> bool:
        return isinstance(v.owner, Op) and v.owner.name == "tile.alloc" and "fill" not in v.owner.attrs

    def _writers(self, v: Value) -> list[Op]:
        return [x for x in self.uses.get(v, []) if x.name in ("tile.store", "tile.scatter") and x.operands[1] is v]

    def _input(self, nest: Op, source: Op, store: Op) -> int:
        """Reads of the copy become reads of what was copied."""
        made = store.operands[1]
        readers = [x for x in self.uses[made] if x is not store]
        wanted = ("id", "jd") if source.name == "tile.load" else ("i", "j")
        if self._writers(made) != [store] or not readers:
            return 0
        if any(x.name != "tile.load" or access(x.attrs["axes"]).inside not in wanted for x in readers):
            return 0
        if source.name == "tile.load":
            argument: TensorType = source.operands[0].type  # type: ignore[assignment]
            if source.operands[0] not in self.func.args:
                return 0
            if argument.dtype != source.results[0].type.dtype and not all(map(self._read_once, readers)):  # type: ignore[attr-defined]
                return 0
        elif any(x.results[0].type.dtype != "i64" or x.results[0].type.shape[0] != 1 for x in readers):  # type: ignore[attr-defined]
            return 0
        for x in readers:
            inside = access(x.attrs["axes"]).inside
            if source.name == "tile.load":
                x.operands = [source.operands[0], *x.operands[1:]]
                x.attrs["axes"] = access(source.attrs["axes"]).lead + inside
                if "sizes" in source.attrs:
                    x.attrs["sizes"] = source.attrs["sizes"]
            else:
                _become_position(x, inside)
        return 1

    def _read_once(self, load: Op) -> bool:
        """Whether every part of a buffer is loaded in one round only: then it may as well be widened there."""
        walks = load.operands[1:]
        for loop in self.around[load]:
            if loop.name in ("tile.for", "tile.sweep") and loop.regions[0].args[0] not in walks:
                upper = Dim.of(loop.attrs["upper"])
                if not upper.is_static or int(upper) > loop.attrs["step"]:
                    return False
        return True

    def _output(self, nest: Op, source: Op, store: Op) -> int:
        """What is written to the buffer that is copied is written to the copy as well."""
        if source.name != "tile.load":
            return 0
        buffer, made = source.operands[0], store.operands[1]
        writers = self._writers(buffer)
        if not self._is_new(buffer) or len(writers) != 1 or self._writers(made) != [store]:
            return 0
        (writer,) = writers
        if writer.attrs.get("add") or "shared" in writer.attrs or access(writer.attrs["axes"]).lead != "g":
            return 0
        inside = access(writer.attrs["axes"]).inside
        if inside != access(source.attrs["axes"]).inside or access(source.attrs["axes"]).lead != "g":
            return 0
        attrs: dict[str, Any] = {**store.attrs, "axes": access(store.attrs["axes"]).lead + inside}
        again = Op("tile.store", [writer.operands[0], made, *writer.operands[2:]], attrs, [], loc=store.loc)
        for block in _blocks(self.func):
            if writer in block.ops:
                block.ops.insert(block.ops.index(writer) + 1, again)
        ops = self.func.body.ops
        ops.remove(nest)
        alloc: Op = made.owner  # type: ignore[assignment]
        ops.remove(alloc)
        ops.insert(0, alloc)
        self.uses[made] = [x for x in self.uses[made] if x is not store] + [again]
        self.uses[buffer] = [x for x in self.uses[buffer] if x is not source]
        return 1

    def _sums_in_place(self, nest: Op, source: Op, store: Op) -> bool:
        """Whether what is added up in a buffer, and then copied, is now added up in the copy."""
        buffer, made = source.operands[0], store.operands[1]
        zero: Op = made.owner  # type: ignore[assignment]
        if source.name != "tile.load" or not (isinstance(zero, Op) and zero.attrs.get("fill", 0.0) == 0.0):
            return False
        sums, held, whole = buffer.owner, buffer.type, made.type
        if not isinstance(sums, Op) or sums.name != "tile.alloc" or "fill" not in sums.attrs or "shared" in store.attrs:
            return False
        if held.dtype != whole.dtype or held.layout or access(source.attrs["axes"]).lead != "g":  # type: ignore[attr-defined]
            return False
        lead, sizes = access(store.attrs["axes"]).lead, store.attrs.get("sizes")
        if held.shape[1:] != whole.shape[len(lead) :] or not owns_problem(lead, whole.shape, sizes):  # type: ignore[attr-defined]
            return False
        users = [x for x in self.uses[buffer] if x is not source]
        if any(x.name not in ("tile.load", "tile.store") or access(x.attrs["axes"]).lead != "g" for x in users):
            return False
        if any(x is not store and x.name != "tile.return" for x in self.uses[made]):
            return False
        for x in users:
            x.operands = [made if v is buffer else v for v in x.operands]
            x.attrs = {**x.attrs, "axes": lead + access(x.attrs["axes"]).inside} | ({"sizes": sizes} if sizes else {})
        ops = self.func.body.ops
        zero.attrs = {**zero.attrs, "fill": sums.attrs["fill"]}
        for op in (nest, zero):
            ops.remove(op)
        ops[ops.index(sums)] = zero
        self.uses[made] = [*users, *(x for x in self.uses[made] if x is not store)]
        self.uses[buffer] = []
        return True


def copy_of(nest: Op) -> tuple[Op, Op] | None:
    """(load or position, store, which may add) of loops over problems and tokens that do nothing else."""
    ops = [nest]
    for axis in ("g", "i"):
        if len(ops) != 1 or ops[0].name != "tile.for" or ops[0].results or ops[0].attrs["axis"] != axis:
            return None
        ops = [x for x in ops[0].regions[0].ops if x.name != "tile.yield"]
    if len(ops) != 2 or ops[0].name not in ("tile.load", "tile.position") or ops[1].name != "tile.store":
        return None
    source, store = ops
    if store.operands[0] is not source.results[0] or store.operands[1].type.panel:  # type: ignore[attr-defined]
        return None
    if source.name == "tile.position" and (source.attrs["axes"] != "i" or store.attrs["axes"] != "gi"):
        return None
    if source.name == "tile.load":
        load, to = access(source.attrs["axes"]), access(store.attrs["axes"])
        tile: TileType = source.results[0].type  # type: ignore[assignment]
        numbers: TensorType = source.operands[0].type  # type: ignore[assignment]
        if load.inside != to.inside or load.inside not in ("id", "i"):
            return None
        if tile.dtype != numbers.dtype and (load.inside, numbers.dtype) not in (("id", "bf16"), ("id", "f16")):
            return None
        if source.operands[1:] != store.operands[2:]:
            return None
    return source, store


def _become_position(load: Op, inside: str) -> None:
    """A load of positions, in place, as the operation that makes them."""
    load.name = "tile.position"
    load.operands = [load.operands[-1]]
    load.attrs = {"axes": inside}


def _blocks(func: Func) -> Iterator[Block]:
    yield func.body
    for op in func.body.walk():
        yield from op.regions
