"""Operations that go over the numbers of one tile, one after the other, do it in one loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from aatc.backends.native import declarations, elementary
from aatc.ir.core import Block, Func, Module, Op, Value
from aatc.ir.dims import NAME
from aatc.ir.registry import lookup_op
from aatc.ir.score.expr import Expr, free_name, param, postorder, substitute
from aatc.ir.score.program import Program
from aatc.ir.types import TileType
from aatc.passes.base import Context, Pass, register


@register
@dataclass(frozen=True)
class JoinLoops(Pass):
    """``map`` and ``reduce`` along j of one tile's numbers, several → ``native.join``; so with the ``dot`` nt whose
    result they read, if nothing else reads it and they are of few words.

    A tile that only its own loop reads is in registers, never in memory. What follows a product's last step runs beside
    the first steps of the next block of it.

    words: a product is joined with programs of so many words in all, at most; their code stands there once for every
    vector of a register block. tiles: a loop reads so many tiles at most.
    """

    words: int = 12
    tiles: int = 8
    name: ClassVar[str] = "join-loops"
    counts: ClassVar[bool] = True

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            if func.level == "tile":
                self._join(func, ctx)
        return module

    def _join(self, func: Func, ctx: Context) -> None:
        for block in list(_blocks(func.body)):
            users: dict[Value, int] = {}
            for op in func.body.walk():
                for v in op.operands:
                    users[v] = users.get(v, 0) + 1
            for group in _groups(block.ops, self.tiles):
                done = _Join(group, users, self.words)
                if not done.pays:
                    continue
                made = done.op()
                last = block.ops.index(group[-1])
                block.ops[last] = made
                gone = set(done.members) - {group[-1]}
                block.ops = [op for op in block.ops if op not in gone]
                ctx.count("joined with a product" if "form" in made.attrs else "joined")


def _blocks(block: Block) -> Iterator[Block]:
    yield block
    for op in list(block.ops):
        for region in op.regions:
            yield from _blocks(region)


# --- which belong together ---------------------------------------------------------------------------------
def _extents(v: Value) -> tuple[int, ...]:
    return tuple(int(d) for d in v.type.shape) if isinstance(v.type, TileType) else ()


def _numbers(v: Value) -> str:
    """The floating-point type of a tile's numbers; "" of any other value."""
    return v.type.dtype if isinstance(v.type, TileType) and v.type.dtype in ("f32", "f64") else ""


def _loop_of(op: Op) -> tuple[tuple[int, ...], str]:
    """Extents of the tile that an operation goes over, element by element, and the type of what it makes of it; () of
    one that does not."""
    if op.name == "tile.reduce" and op.attrs["over"] == "j":
        over = _extents(op.operands[0])
        return (over, _numbers(op.operands[0])) if over[2] > 1 and _numbers(op.operands[0]) else ((), "")
    if op.name == "tile.map":
        whole = tuple(max(_extents(v)[n] for v in op.operands) for n in range(3)) if op.operands else ()
        made = {(_extents(r), _numbers(r)) for r in op.results}
        numbers = all(p.body.dtype == "f" for p in op.attrs["programs"])
        if len(made) == 1 and whole and whole[2] > 1 and numbers:
            ((shape, dtype),) = made
            if shape == whole and dtype:
                return whole, dtype
    return (), ""


def _groups(ops: Sequence[Op], most: int) -> list[list[Op]]:
    """Operations that one loop may do where the last of them stands, in order; a product that one of them reads may be
    the first."""
    done: list[list[Op]] = []
    open_: _Group | None = None
    for op in ops:
        over = _loop_of(op)
        if open_ is not None and not open_.takes(op, over, most):
            if open_.ends(op) or over[0] or _starts(op):
                done.append(open_.ops)
                open_ = None
        elif open_ is not None:
            open_.add(op)
            continue
        if open_ is None and (over[0] or _starts(op)):
            open_ = _Group(over if over[0] else (_extents(op.result), _numbers(op.result)))
            open_.add(op)
    return [*done, *([open_.ops] if open_ is not None else [])]


def _starts(op: Op) -> bool:
    if op.name != "tile.dot" or op.attrs["form"] != "nt" or len(op.operands) != 2:
        return False
    if "factor" in op.attrs or declarations.few_rows(op):
        return False
    return _extents(op.result)[2] > 1 and all(_numbers(v) for v in op.operands)


@dataclass
class _Group:
    over: tuple[tuple[int, ...], str]
    ops: list[Op] = field(default_factory=list)
    made: set[Value] = field(default_factory=set)  # tiles that the loop makes
    late: set[Value] = field(default_factory=set)  # what is there only when the loop is done with a row
    read: set[Value] = field(default_factory=set)

    def takes(self, op: Op, over: tuple[tuple[int, ...], str], most: int) -> bool:
        """Whether the loop may do an operation as well: it reads what the loop reads or makes, and no sum of a row."""
        if over != self.over or any(v in self.late for v in op.operands):
            return False
        whole = {v for v in op.operands if _extents(v) == over[0]}
        if not whole & (self.made | self.read):
            return False
        return len(self.read | {v for v in op.operands if v not in self.made}) <= most

    def ends(self, op: Op) -> bool:
        """Whether an operation has to come behind the loop: the loop cannot wait for what comes after it."""
        touched = {*op.operands, *(v for r in op.regions for x in r.walk() for v in x.operands)}
        traits = lookup_op(op.name).traits
        effects = bool(op.regions or traits.writes or traits.leaves or lookup_op(op.name).terminator)
        return effects or bool(touched & (self.made | self.late))

    def add(self, op: Op) -> None:
        self.ops.append(op)
        self.read |= {v for v in op.operands if v not in self.made}
        (self.late if op.name == "tile.reduce" else self.made).update(op.results)


#: How many words of arithmetic elementary functions count as.
_WORDS = {**dict.fromkeys(elementary.WORDS, 20), "expacosh": 8, "exp2": 8, "exp": 10, "log2": 10}


# --- the operation that does it all ------------------------------------------------------------------------
class _Join:
    """A group as one operation. ``users``: how many operands a value is, in the function."""

    def __init__(self, group: list[Op], users: dict[Value, int], words: int):
        self.members = list(group)
        self.users = users
        self.inside: dict[Value, int] = {}
        self.product = self._product(words)
        for op in self.members:
            for v in op.operands:
                self.inside[v] = self.inside.get(v, 0) + 1

    def _product(self, words: int) -> Op | None:
        """The product that is computed in the loop, if that pays; else the group does without it."""
        if self.members[0].name != "tile.dot":
            return None
        dot, *rest = self.members
        programs = [p for op in rest if op.name == "tile.map" for p in op.attrs["programs"]]
        nodes = {e for p in programs for e in postorder(p.body) if e.args}
        if rest and _numbers(dot.result) == "f32" and sum(_WORDS.get(e.fn, 1) for e in nodes) <= words:
            return dot
        self.members = rest
        return None

    @property
    def pays(self) -> bool:
        return len(self.members) > 1

    def op(self) -> Op:
        self.bound: dict[Value, Expr] = {}  # parameters by the tile they are
        self.values: dict[Value, Expr] = {}  # what the loop makes, by the tile it is
        if self.product is not None:
            self._parameter(self.product.result, "bhij")
        self.kept: list[tuple[Expr, str, Value, Value | None]] = []
        for op in self.members:
            if op.name == "tile.map":
                self._map(op)
            elif op.name == "tile.reduce":
                into = op.operands[1] if len(op.operands) > 1 else None
                self.kept.append((self._value(op.operands[0]), op.attrs["op"], op.result, into))
        if self.product is not None and self._read_outside(self.product.result):
            self.kept.append((self.bound[self.product.result], "tile", self.product.result, None))
        params = tuple(self.bound.values())
        tiles = [v for v in self.bound if self.product is None or v is not self.product.result]
        made = [r for *_, r, _ in self.kept]
        sums = [(n, v) for n, (*_, v) in enumerate(self.kept) if v is not None]
        attrs = {
            **({"form": "nt"} if self.product is not None else {}),
            "programs": tuple(Program(params, e) for e, *_ in self.kept),
            "keeps": tuple(keep for _, keep, *_ in self.kept),
            "into": tuple(n for n, _ in sums),
        }
        operands = [*(self.product.operands if self.product is not None else []), *tiles, *(v for _, v in sums)]
        joined = Op("native.join", operands, attrs, [r.type for r in made], loc=self.members[-1].loc)
        joined.results = made
        for r in made:
            r.owner = joined
        return joined

    def _read_outside(self, v: Value) -> bool:
        return self.users.get(v, 0) > self.inside.get(v, 0)

    def _map(self, op: Op) -> None:
        for program, r in zip(op.attrs["programs"], op.results, strict=True):
            table = {
                p: self._value(v, p)
                for p, v in zip(program.params, op.operands, strict=True)
                if p in postorder(program.body)
            }
            self.values[r] = substitute(program.body, table, smart=False)
            if self._read_outside(r):
                self.kept.append((self.values[r], "tile", r, None))

    def _value(self, v: Value, p: Expr | None = None) -> Expr:
        if v in self.values:
            return self.values[v]
        if v not in self.bound:
            self._parameter(v, p.attrs[1] if p is not None else "bhij", p)
        return self.bound[v]

    def _parameter(self, v: Value, axes: str, p: Expr | None = None) -> None:
        names = {x.name for x in self.bound.values()}
        name = stem = p.name if p is not None else free_name(v.name) if NAME.match(v.name or "") else "x"
        n = 0
        while name in names:
            n += 1
            name = f"{stem}_{n}"
        self.bound[v] = param(name, axes, p.dtype if p is not None else "f")
