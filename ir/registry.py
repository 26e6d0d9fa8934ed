"""What an operation is: declared once, read by printer, parser, verifier, interpreter, docs and fuzzers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aatc.ir.dims import Dim
from aatc.ir.errors import VerifyError
from aatc.ir.score.program import Program
from aatc.ir.types import Type, unplaced

if TYPE_CHECKING:
    from aatc.ir.core import Func, Op


@dataclass(frozen=True)
class Attr:
    """An attribute: the Python types its value may have, whether it must be there, allowed values, and whether it is a
    list of one item per result."""

    types: tuple[type, ...]
    doc: str
    required: bool = True
    choices: tuple[Any, ...] = ()
    per_result: bool = False

    @staticmethod
    def of(
        kind: str, doc: str, *, required: bool = True, choices: tuple[Any, ...] = (), per_result: bool = False
    ) -> Attr:
        return Attr(_KINDS[kind], doc, required, choices, per_result)


@dataclass(frozen=True, slots=True)
class Symbol:
    """The name of a function in the module, written ``@name``."""

    name: str

    def __str__(self) -> str:
        return f"@{self.name}"


@dataclass(frozen=True, slots=True)
class Operand:
    """Placeholder for the n-th operand inside a nested attribute, written ``#n`` (arguments of `torch.call`)."""

    position: int

    def __str__(self) -> str:
        return f"#{self.position}"


@dataclass(frozen=True, slots=True)
class TorchConst:
    """A dtype, layout, memory format or device among the arguments of `torch.call`, written ``torch.float32``
    or, for devices, ``device("cpu")``; ``kind`` is "torch" or "device"."""

    kind: str
    name: str


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
    "list": (tuple,),
    "program": (Program,),
    "type": (Type,),
    "dim": (Dim, int),
    "symbol": (Symbol,),
    "any": (object,),
}


@dataclass(frozen=True)
class Traits:
    """What passes and backends may take for granted of an operation, besides what it computes.

    writes: positions of the operands whose memory it changes. replaces: the operands whose place a result may take,
    none of them read any more once writing has begun. view: its results lie where an operand lies. region: "loop", run
    any number of times, or "branch", run or not. carried: position of the first operand that goes through the region
    to the results, and of the first argument of the region that does. accumulates: operands that are only added to
    or compared with, by position, with the positions of the results that hold it. leaves: it may end the function
    early. layouts: those in which it makes a buffer when the result's type says so, first what it makes when the type
    says nothing.
    """

    writes: tuple[int, ...] = ()
    replaces: slice | None = None
    view: bool = False
    region: str = ""
    carried: tuple[int, int] = (0, 0)
    accumulates: Callable[[Op], Mapping[int, int]] | None = None
    leaves: bool = False
    layouts: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class OpDef:
    """A declaration.

    operands: names in order; one ending in ``*`` takes any number. results: number, or -1 for any number.
    infer: result types from the op, or None when they must be written. verify: raises VerifyError.
    evaluate: reference evaluation ``(op, values, interpreter) -> sequence of results`` in torch. traits: see `Traits`.
    """

    name: str
    level: str
    doc: str
    operands: tuple[str, ...] = ()
    results: int = 1
    attrs: dict[str, Attr] = field(default_factory=dict)
    regions: tuple[str, ...] = ()
    infer: Callable[[Op], Sequence[Type]] | None = None
    verify: Callable[[Op], None] | None = None
    evaluate: Callable[..., Sequence[Any]] | None = None
    pure: bool = True
    terminator: bool = False
    traits: Traits = Traits()

    @cached_property
    def fixed(self) -> int:
        """How many operands it takes at least."""
        return sum(not n.endswith("*") for n in self.operands)

    @cached_property
    def variadic(self) -> bool:
        return self.fixed != len(self.operands)

    @cached_property
    def required(self) -> tuple[str, ...]:
        """The attributes it must have."""
        return tuple(n for n, a in self.attrs.items() if a.required)


OPS: dict[str, OpDef] = {}


@dataclass(frozen=True)
class Extension:
    """What a backend's own passes add to the common IR: attributes of operations and of tile functions, written with
    the backend's name in front (``cpu.plan``), and a rule that a function with such attributes keeps."""

    ops: dict[str, Attr]
    funcs: dict[str, Attr]
    check: Callable[[Func, Mapping[str, tuple[int, int | None]]], None]


EXTENSIONS: dict[str, Extension] = {}


def extend(name: str, extension: Extension) -> None:
    if name in EXTENSIONS:
        raise ValueError(f"there is an extension {name} of the IR already")
    EXTENSIONS[name] = extension


#: Called once, when a text names what nobody has declared so far: it brings in what backends declare.
_loaders: list[Callable[[], object]] = []


def on_demand(bring: Callable[[], object]) -> None:
    """Has ``bring`` called when an operation, an attribute or a pass is not known yet."""
    _loaders.append(bring)


def load() -> None:
    """Brings in what backends declare, if that has not been done."""
    while _loaders:
        _loaders.pop()()


def extended(key: str, *, function: bool = False) -> Attr | None:
    """The declaration of an attribute ``name.attribute`` of operations, or of functions; None if there is none."""
    name, _, attribute = key.partition(".")
    if attribute and name not in EXTENSIONS:
        load()
    found = EXTENSIONS.get(name)
    return None if found is None else (found.funcs if function else found.ops).get(attribute)


def define(definition: OpDef) -> OpDef:
    if definition.name in OPS:
        raise ValueError(f"operation {definition.name} is declared twice")
    OPS[definition.name] = definition
    return definition


def lookup_op(name: str) -> OpDef:
    if name not in OPS:
        load()
    try:
        return OPS[name]
    except KeyError:
        raise VerifyError(f"unknown operation {name}", hint="`aatc.ir.registry.OPS` lists them") from None


def check_against_declaration(op: Op) -> None:
    """Operand count, attributes, regions and inferred types of one operation against its declaration."""
    d = lookup_op(op.name)
    if len(op.operands) < d.fixed or (len(op.operands) > d.fixed and not d.variadic):
        raise VerifyError(f"{op.name} takes operands ({', '.join(d.operands)}), got {len(op.operands)}")
    if d.results >= 0 and len(op.results) != d.results:
        raise VerifyError(f"{op.name} has {d.results} results, got {len(op.results)}")
    if len(op.regions) != len(d.regions):
        raise VerifyError(f"{op.name} has regions ({', '.join(d.regions)}), got {len(op.regions)}")
    for name, value in op.attrs.items():
        attr = d.attrs.get(name) or extended(name)
        if attr is None:
            raise VerifyError(f"{op.name} has no attribute {name}", hint=f"it has: {', '.join(d.attrs) or 'none'}")
        if not isinstance(value, attr.types) or (
            isinstance(value, bool) and bool not in attr.types and object not in attr.types
        ):
            raise VerifyError(f"attribute {name} of {op.name} is a {type(value).__name__}, which it cannot be")
        if attr.choices and value not in attr.choices:
            raise VerifyError(
                f"attribute {name} of {op.name} is {value!r}", hint=f"one of {', '.join(map(str, attr.choices))}"
            )
    for name in d.required:
        if name not in op.attrs:
            raise VerifyError(f"{op.name} lacks attribute {name} ({d.attrs[name].doc})")
    if d.infer is not None:
        inferred = list(d.infer(op))
        if inferred != [r.type for r in op.results] and list(map(unplaced, inferred)) != [
            unplaced(r.type) for r in op.results
        ]:
            found = ", ".join(str(r.type) for r in op.results)
            raise VerifyError(f"{op.name} yields ({', '.join(map(str, inferred))}), not ({found})")
    if d.verify is not None:
        d.verify(op)


def ops_table() -> str:
    """The operations, of backends too, as a Markdown table (docs/ops.md is this text)."""
    load()
    lines = ["| operation | operands | attributes | what it means |", "| --- | --- | --- | --- |"]
    # Those of backends come by name: in which order they are loaded is anybody's choice.
    owners = {d.name: d.name.partition(".")[0] for d in OPS.values()}
    common = ("geo", "torch", "program", "tile")
    for d in sorted(OPS.values(), key=lambda d: "" if owners[d.name] in common else owners[d.name]):
        attrs = ", ".join(n if a.required else f"{n}?" for n, a in d.attrs.items())
        lines.append(f"| `{d.name}` | {', '.join(d.operands)} | {attrs} | {d.doc} |")
    return "\n".join(lines) + "\n"
