"""What an operation is: declared once, read by printer, parser, verifier, interpreter, docs and fuzzers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aatc.ir.dims import Dim
from aatc.ir.errors import VerifyError
from aatc.ir.score.program import Program
from aatc.ir.types import Type

if TYPE_CHECKING:
    from aatc.ir.core import Op


@dataclass(frozen=True)
class Attr:
    """An attribute: the Python types its value may have, whether it must be there, allowed values."""

    types: tuple[type, ...]
    doc: str
    required: bool = True
    choices: tuple[Any, ...] = ()

    @staticmethod
    def of(kind: str, doc: str, *, required: bool = True, choices: tuple[Any, ...] = ()) -> Attr:
        return Attr(_KINDS[kind], doc, required, choices)


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
class OpDef:
    """A declaration.

    operands: names in order; one ending in ``*`` takes any number. results: number, or -1 for any number.
    infer: result types from the op, or None when they must be written. verify: raises VerifyError.
    evaluate: reference evaluation ``(op, values, interpreter) -> sequence of results`` in torch.
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


def define(definition: OpDef) -> OpDef:
    if definition.name in OPS:
        raise ValueError(f"operation {definition.name} is declared twice")
    OPS[definition.name] = definition
    return definition


def lookup_op(name: str) -> OpDef:
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
        attr = d.attrs.get(name)
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
        if inferred != [r.type for r in op.results]:
            found = ", ".join(str(r.type) for r in op.results)
            raise VerifyError(f"{op.name} yields ({', '.join(map(str, inferred))}), not ({found})")
    if d.verify is not None:
        d.verify(op)


def ops_table() -> str:
    """The operations as a Markdown table (docs/ops.md is this text)."""
    lines = ["| operation | operands | attributes | what it means |", "| --- | --- | --- | --- |"]
    for d in OPS.values():
        attrs = ", ".join(n if a.required else f"{n}?" for n, a in d.attrs.items())
        lines.append(f"| `{d.name}` | {', '.join(d.operands)} | {attrs} | {d.doc} |")
    return "\n".join(lines) + "\n"
