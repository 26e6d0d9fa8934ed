"""LLVM IR as text: typed values, loops and branches in SSA form, declarations collected as they are used.

A module is text because text is what a person reads in a dump; LLVM parses some thousand lines in milliseconds.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from aatc.backends.native.bounds import Bounds

if TYPE_CHECKING:
    from aatc.backends.native.counters import Counters

#: LLVM's names of the IR's element types in registers. A truth value is one bit; in memory it is a byte.
REGISTER = {"f64": "double", "f32": "float", "bf16": "bfloat", "f16": "half", "i64": "i64", "i32": "i32",
            "i16": "i16", "i8": "i8", "u8": "i8", "bool": "i1"}  # fmt: skip
MEMORY = {**REGISTER, "bool": "i8"}
_HALVES = ("half", "bfloat")
_FLOATS = ("half", "bfloat", "float", "double")


class Val(NamedTuple):
    """An operand as LLVM spells it, and its type."""

    text: str
    type: str

    @property
    def lanes(self) -> int:
        """Of a vector; 0 of a scalar."""
        return int(self.type[1:].split(" ", 1)[0]) if self.type.startswith("<") else 0

    @property
    def scalar(self) -> str:
        """The type of one lane."""
        return scalar_of(self.type)

    @property
    def floating(self) -> bool:
        return self.scalar in _FLOATS


def scalar_of(type_: str) -> str:
    return type_[1:-1].split(" x ")[1] if type_.startswith("<") else type_


def vector_of(type_: str, lanes: int) -> str:
    """``type_`` in ``lanes`` lanes; a scalar type for 0 or 1."""
    return f"<{lanes} x {scalar_of(type_)}>" if lanes > 1 else scalar_of(type_)


def number(value: float | int | bool, type_: str) -> Val:
    """A constant, the same in every lane. Floating-point numbers are rounded to the type and written bit by bit."""
    kind = scalar_of(type_)
    if kind == "i1":
        text = "true" if value else "false"
    elif kind in _FLOATS:
        if kind == "float" and math.isfinite(value):
            value = _rounded(value)
        text = f"0x{struct.unpack('<Q', struct.pack('<d', float(value)))[0]:016X}"
    else:
        text = str(int(value))
    return Val(f"splat ({kind} {text})" if type_.startswith("<") else text, type_)


def _rounded(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def index(value: int) -> Val:
    """A number of elements or bytes."""
    return Val(str(int(value)), "i64")


class Module:
    """Functions, and what they declare.

    ``fma``: the processor multiplies and adds in one step, with one rounding. ``avx512``: it has AVX-512 F, DQ, VL.
    ``halves``: LLVM's types of 16 bits that it converts.
    ``check``: addresses are checked, and ``operations`` are what an address may belong to, by number.
    ``counters``: of a build that counts.
    """

    def __init__(
        self,
        *,
        fma: bool = True,
        avx512: bool = False,
        halves: Sequence[str] = (),
        check: bool = False,
        counters: Counters | None = None,
    ) -> None:
        self.fma, self.avx512, self.halves, self.check = fma, avx512, tuple(halves), check
        self.counters = counters
        self.operations: list[str] = ["none"]
        self.functions: list[str] = []
        self.declared: dict[str, str] = {}
        self.constants: dict[str, str] = {}

    def declare(self, name: str, returns: str, args: Sequence[str]) -> None:
        self.declared[name] = f"declare {returns} @{name}({', '.join(args)})"

    def operation(self, said: str) -> int:
        """The number of an operation."""
        if self.operations[-1] != said:
            self.operations.append(said)
        return len(self.operations) - 1

    def text(self) -> str:
        rare = ['!0 = !{!"branch_weights", i32 1, i32 1000000}'] if self.check else []
        parts = [*rare, *self.constants.values(), "", *sorted(self.declared.values()), "", *self.functions]
        return "\n".join(parts) + "\n"


class Code:
    """The body of one function, written front to back. Every operation of an emitter goes through `op` and `do`."""

    def __init__(self, module: Module, name: str, args: Sequence[tuple[str, str]], returns: str = "void"):
        self.module, self.name, self.returns = module, name, returns
        self.args = [Val(f"%{n}", t) for n, t in args]
        self.lines: list[str] = ["entry:"]
        self.block = "entry"
        self._count = 0
        self._early = 1  # where lines of the entry go
        self.said = name
        self.bounds = Bounds(self) if module.check else None

    # --- text ----------------------------------------------------------------------------------------------
    def fresh(self, hint: str = "v") -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def note(self, text: str) -> None:
        """A comment; what it says is kept to one line."""
        self.said = text
        self.lines.append("  ; " + re.sub(r"[^\x20-\x7e]", " ", text))

    def do(self, text: str) -> None:
        self.lines.append("  " + text)

    def op(self, type_: str, text: str) -> Val:
        name = f"%{self.fresh()}"
        self.do(f"{name} = {text}")
        return Val(name, type_)

    def early(self, write: Callable[[], Val]) -> Val:
        """What ``write`` gives, written at the end of what was written so before, in the entry: it may be used
        everywhere behind."""
        rest, block = self.lines[self._early :], self.block
        del self.lines[self._early :]
        self.block = "entry"
        out = write()
        self._early = len(self.lines)
        self.lines += rest
        self.block = block
        return out

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.block = name

    def jump(self, to: str) -> None:
        self.do(f"br label %{to}")

    def finish(self, attributes: str = "", linkage: str = "") -> None:
        """Ends the function and adds it to its module."""
        args = ", ".join(f"{a.type} {a.text}" for a in self.args)
        head = f"define {linkage}{' ' if linkage else ''}{self.returns} @{self.name}({args}) {attributes}".rstrip()
        self.module.functions.append("\n".join([head + " {", *self.lines, "}", ""]))

    # --- arithmetic ----------------------------------------------------------------------------------------
    def binary(self, word: str, a: Val, b: Val, flags: str = "") -> Val:
        """``word`` is LLVM's, without the f of floating point: add, sub, mul, div, rem; and, or, xor, shl, ..."""
        assert a.type == b.type, (word, a, b)
        if a.floating and word in ("add", "sub", "mul", "div", "rem"):
            word = f"f{word}"
        return self.op(a.type, f"{word}{' ' + flags if flags else ''} {a.type} {a.text}, {b.text}")

    def add(self, a: Val, b: Val) -> Val:
        if a.type == "i64" and b.text == "0":
            return a
        if a.type == "i64" and a.text == "0":
            return b
        if a.type == "i64" and _literal(a) and _literal(b):
            return index(int(a.text) + int(b.text))
        return self.binary("add", a, b)

    def sub(self, a: Val, b: Val) -> Val:
        return self.binary("sub", a, b)

    def mul(self, a: Val, b: Val) -> Val:
        if a.type == "i64" and _literal(a) and _literal(b):
            return index(int(a.text) * int(b.text))
        if a.type == "i64" and (a.text == "1" or b.text == "0"):
            return b
        if a.type == "i64" and (b.text == "1" or a.text == "0"):
            return a
        return self.binary("mul", a, b)

    def div(self, a: Val, b: Val) -> Val:
        assert a.floating
        return self.binary("div", a, b)

    def fma(self, a: Val, b: Val, c: Val) -> Val:
        """a * b + c; rounded once where the processor does that."""
        if not self.module.fma:
            return self.add(self.mul(a, b), c)
        return self.call("llvm.fma", a.type, [a, b, c])

    def neg(self, a: Val) -> Val:
        if a.floating:
            return self.op(a.type, f"fneg {a.type} {a.text}")
        return self.binary("sub", number(0, a.type), a)

    def compare(self, word: str, a: Val, b: Val) -> Val:
        """``word`` of fcmp (olt, une, ...) or icmp (slt, eq, ...)."""
        out = vector_of("i1", a.lanes)
        return self.op(out, f"{'fcmp' if a.floating else 'icmp'} {word} {a.type} {a.text}, {b.text}")

    def select(self, keep: Val, a: Val, b: Val) -> Val:
        assert a.type == b.type, (a, b)
        return self.op(a.type, f"select {keep.type} {keep.text}, {a.type} {a.text}, {b.type} {b.text}")

    def cast(self, word: str, a: Val, type_: str) -> Val:
        """``word`` of LLVM's conversions: sitofp, fptosi, fpext, fptrunc, zext, sext, trunc, bitcast."""
        return a if a.type == type_ else self.op(type_, f"{word} {a.type} {a.text} to {type_}")

    def call(self, intrinsic: str, type_: str, args: Sequence[Val], suffixes: Sequence[str] | None = None) -> Val:
        """An overloaded intrinsic; its suffixes are the result's type unless given."""
        name = ".".join([intrinsic, *(mangled(t) for t in (suffixes or [type_]))])
        self.module.declare(name, type_, [a.type for a in args])
        text = f"call {type_} @{name}({', '.join(f'{a.type} {a.text}' for a in args)})"
        if type_ == "void":
            self.do(text)
            return Val("", "void")
        return self.op(type_, text)

    def extreme(self, intrinsic: str, a: Val, b: Val) -> Val:
        """llvm.maximum or llvm.minimum, NaN if one is; of -0 and 0 it may be either, which saves half the code."""
        name = f"{intrinsic}.{mangled(a.type)}"
        self.module.declare(name, a.type, [a.type, b.type])
        return self.op(a.type, f"call nsz {a.type} @{name}({a.type} {a.text}, {b.type} {b.text})")

    def external(self, name: str, type_: str, args: Sequence[Val]) -> Val:
        """A function of the C library, scalar by scalar."""
        self.module.declare(name, type_, [a.type for a in args])
        return self.op(type_, f"call {type_} @{name}({', '.join(f'{a.type} {a.text}' for a in args)})")

    # --- lanes ---------------------------------------------------------------------------------------------
    def splat(self, a: Val, lanes: int) -> Val:
        """The same scalar in every lane."""
        if lanes <= 1 or a.lanes:
            return a
        if not a.text.startswith("%"):
            return Val(f"splat ({a.type} {a.text})", vector_of(a.type, lanes))
        v = vector_of(a.type, lanes)
        first = self.op(v, f"insertelement {v} poison, {a.type} {a.text}, i64 0")
        mask = vector_of("i32", lanes)
        return self.op(v, f"shufflevector {v} {first.text}, {v} poison, {mask} zeroinitializer")

    def lane(self, a: Val, n: int) -> Val:
        return self.op(a.scalar, f"extractelement {a.type} {a.text}, i64 {n}") if a.lanes else a

    def with_lane(self, a: Val, x: Val, n: int) -> Val:
        return self.op(a.type, f"insertelement {a.type} {a.text}, {x.type} {x.text}, i64 {n}") if a.lanes else x

    def each_lane(self, f: Callable[..., Val], *args: Val) -> Val:
        """A scalar function of every lane."""
        lanes = args[0].lanes
        if not lanes:
            return f(*args)
        out: Val | None = None
        for n in range(lanes):
            x = f(*(self.lane(a, n) for a in args))
            v = vector_of(x.type, lanes)
            out = self.with_lane(Val("poison", v) if out is None else out, x, n)
        assert out is not None
        return out

    def steps(self, lanes: int) -> Val:
        """0, 1, 2, ... of i64."""
        if lanes <= 1:
            return index(0)
        return Val("<" + ", ".join(f"i64 {n}" for n in range(lanes)) + ">", vector_of("i64", lanes))

    def below(self, start: Val, end: Val, lanes: int) -> Val:
        """Per lane whether start + lane < end, of i64."""
        room = self.splat(self.sub(end, start), lanes)
        return self.compare("slt", self.steps(lanes), room)

    def transposed(self, rows: Sequence[Val]) -> list[Val]:
        """The vectors of the columns of a square of numbers, whose rows are given; their number is a power of two."""
        n = len(rows)
        low = ", ".join(f"i32 {k // 2 + (k % 2) * n}" for k in range(n))
        high = ", ".join(f"i32 {n // 2 + k // 2 + (k % 2) * n}" for k in range(n))
        out = list(rows)
        v, size = rows[0].type, 1
        while size < n:  # rows k and k + n/2 are interleaved, as often as doubles one to n
            out = [
                self.op(v, f"shufflevector {v} {out[k].text}, {v} {out[k + n // 2].text}, <{n} x i32> <{order}>")
                for k in range(n // 2)
                for order in (low, high)
            ]
            size *= 2
        return out

    # --- memory --------------------------------------------------------------------------------------------
    def at(self, base: Val, offset: Val, type_: str) -> Val:
        """The address of an element."""
        if offset.text == "0":
            return base
        if self.bounds is not None:  # one that is not inbounds would be undefined, and its check with it
            pointer = self.op("ptr", f"getelementptr {type_}, ptr {base.text}, i64 {offset.text}")
            self.bounds.derive(pointer, base)
            return pointer
        return self.op("ptr", f"getelementptr inbounds {type_}, ptr {base.text}, i64 {offset.text}")

    def touches(self, type_: str, at: Val, keep: Val | None = None) -> None:
        """Says that a scalar or vector is read or written; `load` and `store` do."""
        if self.bounds is not None:
            self.bounds.check(at, size_of(scalar_of(type_)), Val("", type_).lanes, keep)

    def load(self, type_: str, at: Val, align: int | None = None, keep: Val | None = None) -> Val:
        """A scalar or vector in memory, aligned as one element unless said; lanes that a mask leaves out are 0."""
        if scalar_of(type_) in _HALVES:  # as integers: else LLVM may convert them to float and back on the way
            bits = self.load(vector_of("i16", Val("", type_).lanes), at, align, keep)
            return self.cast("bitcast", bits, type_)
        align = align or size_of(scalar_of(type_))
        self.touches(type_, at, keep)
        if keep is None:
            return self.op(type_, f"load {type_}, ptr {at.text}, align {align}")
        name = f"llvm.masked.load.{mangled(type_)}.p0"
        self.module.declare(name, type_, ["ptr", "i32", keep.type, type_])
        zero = f"{type_} zeroinitializer"
        return self.op(type_, f"call {type_} @{name}(ptr {at.text}, i32 {align}, {keep.type} {keep.text}, {zero})")

    def store(self, value: Val, at: Val, align: int | None = None, keep: Val | None = None) -> None:
        if value.scalar in _HALVES:
            value = self.cast("bitcast", value, vector_of("i16", value.lanes))
        align = align or size_of(value.scalar)
        self.touches(value.type, at, keep)
        if keep is None:
            self.do(f"store {value.type} {value.text}, ptr {at.text}, align {align}")
            return
        name = f"llvm.masked.store.{mangled(value.type)}.p0"
        self.module.declare(name, "void", [value.type, "ptr", "i32", keep.type])
        self.do(f"call void @{name}({value.type} {value.text}, ptr {at.text}, i32 {align}, {keep.type} {keep.text})")

    # --- control -------------------------------------------------------------------------------------------
    def loop(
        self,
        start: Val,
        end: Val,
        step: int,
        body: Callable[..., Sequence[Val] | None],
        carried: Sequence[Val] = (),
    ) -> list[Val]:
        """``for (x = start; x < end; x += step)``; the body takes x and what is carried, and gives that back."""
        head, inside, after = self.fresh("head"), self.fresh("body"), self.fresh("after")
        before = self.block
        self.jump(head)
        self.label(head)
        x = Val(f"%{self.fresh('x')}", "i64")
        names = [Val(f"%{self.fresh('c')}", c.type) for c in carried]
        marker = f"phis of {x.text}"  # lines may come in before it
        self.lines.append(marker)
        more = self.compare("slt", x, end)
        self.do(f"br i1 {more.text}, label %{inside}, label %{after}")
        self.label(inside)
        out = body(x, *names) or []
        following = self.binary("add", x, index(step), "nuw nsw")
        latch = self.block
        self.jump(head)
        phis = [f"  {x.text} = phi i64 [{start.text}, %{before}], [{following.text}, %{latch}]"]
        phis += [
            f"  {n.text} = phi {n.type} [{c.text}, %{before}], [{o.text}, %{latch}]"
            for n, c, o in zip(names, carried, out, strict=True)
        ]
        place = self.lines.index(marker)
        self.lines[place : place + 1] = phis
        self.label(after)
        return names

    @contextmanager
    def when(self, condition: Val, likely: bool | None = None) -> Iterator[None]:
        """What is written inside runs only where a condition holds."""
        inside, after = self.fresh("then"), self.fresh("fi")
        self.do(f"br i1 {condition.text}, label %{inside}, label %{after}")
        self.label(inside)
        yield
        self.jump(after)
        self.label(after)

    def choose(self, condition: Val, a: Callable[[], Val], b: Callable[[], Val]) -> Val:
        """What one of two branches gives."""
        yes, no, after = self.fresh("yes"), self.fresh("no"), self.fresh("fi")
        self.do(f"br i1 {condition.text}, label %{yes}, label %{no}")
        self.label(yes)
        x = a()
        end_a = self.block
        self.jump(after)
        self.label(no)
        y = b()
        end_b = self.block
        self.jump(after)
        self.label(after)
        return self.op(x.type, f"phi {x.type} [{x.text}, %{end_a}], [{y.text}, %{end_b}]")


def _literal(v: Val) -> bool:
    return not v.text.startswith("%")


def mangled(type_: str) -> str:
    """A type as a suffix of an intrinsic's name."""
    names = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16", "ptr": "p0"}
    kind = scalar_of(type_)
    lanes = Val("", type_).lanes
    return f"{f'v{lanes}' if lanes else ''}{names.get(kind, kind)}"


def size_of(scalar: str) -> int:
    """Bytes of a scalar in memory."""
    return {"double": 8, "float": 4, "half": 2, "bfloat": 2, "i64": 8, "i32": 4, "i16": 2, "ptr": 8}.get(scalar, 1)
