"""Modules, functions, blocks, operations, values: plain objects in SSA form.

An `Op` is an instance of a declaration in `ir.registry`. Values are identified by object; names are only
for people and are made unique by the printer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aatc.ir.types import Type

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, slots=True)
class Loc:
    """Where in the user's model an operation comes from. ``text`` is the source line, for messages only."""

    file: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Value:
    """A result of an operation or an argument of a block."""

    __slots__ = ("name", "owner", "type")

    def __init__(self, type: Type, name: str = "", owner: Op | Block | None = None):
        self.type, self.name, self.owner = type, name, owner

    def __repr__(self) -> str:
        return f"%{self.name or '?'}: {self.type}"


class Op:
    """One operation: ``name`` keys the registry, ``attrs`` are constants, ``regions`` nested blocks."""

    __slots__ = ("attrs", "loc", "name", "operands", "regions", "results")

    def __init__(
        self,
        name: str,
        operands: Sequence[Value] = (),
        attrs: dict[str, Any] | None = None,
        result_types: Sequence[Type] = (),
        *,
        regions: Sequence[Block] = (),
        loc: Loc | None = None,
        result_names: Sequence[str] = (),
    ):
        self.name, self.operands, self.attrs, self.loc = name, list(operands), dict(attrs or {}), loc
        names = [*result_names, *[""] * (len(result_types) - len(result_names))]
        self.results = [Value(t, n, self) for t, n in zip(result_types, names, strict=True)]
        self.regions = list(regions)

    @property
    def result(self) -> Value:
        """The only result."""
        (value,) = self.results
        return value

    def __repr__(self) -> str:
        return _readers.line(self)


class Block:
    """A list of operations with arguments."""

    __slots__ = ("args", "ops")

    def __init__(self, args: Iterable[Value] = (), ops: Iterable[Op] = ()):
        self.args, self.ops = list(args), list(ops)
        for a in self.args:
            a.owner = self

    def add(self, op: Op) -> Op:
        self.ops.append(op)
        return op

    def walk(self) -> Iterator[Op]:
        """Every operation, nested ones after the one that holds them."""
        blocks = [iter(self.ops)]  # one generator, however deep: as many as there are levels take turns for every one
        while blocks:
            for op in blocks[-1]:
                yield op
                if op.regions:
                    blocks.append(inner for region in op.regions for inner in region.ops)
                    break
            else:
                blocks.pop()


@dataclass
class Func:
    """A function: level "geo", "tile" or "program", a body whose last operation returns."""

    name: str
    level: str
    body: Block
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> list[Value]:
        return self.body.args

    @property
    def result_types(self) -> list[Type]:
        return [v.type for v in self.body.ops[-1].operands] if self.body.ops else []


@dataclass
class Module:
    """A program: functions in order (the first geo function is the entry) and ranges of symbolic dimensions.

    ``certificates`` are the facts the rewrites so far rest on, ``findings`` what analytical passes found out about its
    operations; neither is part of the text.
    """

    funcs: dict[str, Func] = field(default_factory=dict)
    dims: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    certificates: list[Any] = field(default_factory=list, compare=False)
    findings: list[Any] = field(default_factory=list, compare=False)

    def add(self, func: Func) -> Func:
        self.funcs[func.name] = func
        return func

    @property
    def entry(self) -> Func:
        return self.funcs["main"] if "main" in self.funcs else next(iter(self.funcs.values()))

    def walk(self) -> Iterator[Op]:
        for func in self.funcs.values():
            yield from func.body.walk()

    def clone(self) -> Module:
        """A deep copy; types, attributes and locations are immutable and shared."""
        funcs = {name: clone_func(f) for name, f in self.funcs.items()}
        return Module(funcs, dict(self.dims), list(self.certificates), list(self.findings))

    def __str__(self) -> str:
        return _readers.text(self)

    def __eq__(self, other: object) -> bool:
        """Structural equality: value names do not count."""
        return isinstance(other, Module) and _readers.canonical(self) == _readers.canonical(other)

    __hash__ = None  # type: ignore[assignment]  # modules are mutable

    def verify(self, known: Any = None) -> Module:
        """Checks every rule of the IR; raises VerifyError; returns self. ``known`` (`ir.known.Known`) keeps what was
        found sound from one call to the next."""
        _readers.verify(self, known)
        return self

    def graph(self) -> networkx.MultiDiGraph:
        """The data flow as a networkx graph; see `ir.graph.to_networkx`."""
        return _readers.graph(self)

    def dot(self) -> str:
        """The data flow in Graphviz's DOT language."""
        return _readers.dot(self)


@dataclass(frozen=True)
class Readers:
    """What prints, checks and draws modules. All of it knows the classes above, so that `aatc.ir` hands it in when it
    has loaded."""

    line: Callable[[Op], str]
    text: Callable[[Module], str]
    canonical: Callable[[Module], str]
    verify: Callable[[Module, Any], None]
    graph: Callable[[Module], networkx.MultiDiGraph]
    dot: Callable[[Module], str]


_readers: Readers


def read_by(readers: Readers) -> None:
    global _readers
    _readers = readers


def clone_func(func: Func) -> Func:
    return Func(func.name, func.level, clone_block(func.body, {}), dict(func.attrs))


def clone_block(block: Block, mapping: dict[Value, Value]) -> Block:
    args = []
    for a in block.args:
        mapping[a] = Value(a.type, a.name)
        args.append(mapping[a])
    return Block(args, [clone_op(op, mapping) for op in block.ops])


def clone_op(op: Op, mapping: dict[Value, Value]) -> Op:
    """A copy whose operands go through ``mapping``; its results are entered there."""
    new: Op = object.__new__(Op)  # past __init__, which takes as long again: programs are copied after every pass
    new.name, new.loc, new.attrs = op.name, op.loc, dict(op.attrs)
    new.regions = [clone_block(r, mapping) for r in op.regions] if op.regions else []
    get = mapping.get
    new.operands = [get(v, v) for v in op.operands]
    new.results = []
    for r in op.results:
        copy = mapping[r] = Value(r.type, r.name, new)
        new.results.append(copy)
    return new


def replace_uses(block: Block, table: dict[Value, Value]) -> None:
    """Lets every operation below ``block`` use the mapped values; chains in ``table`` are followed."""

    def final(v: Value) -> Value:
        while v in table:
            v = table[v]
        return v

    for op in block.walk():
        op.operands = [final(v) for v in op.operands]
