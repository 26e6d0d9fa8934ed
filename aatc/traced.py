"""Users' functions as score programs: what stands for q, k, the indices and captures while they run.

A `Traced` value records every operation done to it on a `Tape`, as plain constants. The tape is the key of the part
that owns the function, so the function runs again for every attention, at the cost of a few microseconds, and what
it reads (globals, closures, defaults, attributes) is never stale. Under Dynamo the function is inlined into the
trace, which guards what it reads; numbers that vary there, and tensors without dimensions anywhere, become captured
tensors of the program. The words behind the operations are in `aatc.traced_words`.

Everything that Python would decide while tracing (truth, iteration, length, hash) raises ScoreError with the user's
source line.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import torch

from aatc.ir.errors import ScoreError
from aatc.ir.score.expr import Expr, free_name, param
from aatc.parts import Capture, Key, Sizes, as_tensor, number_dtype, text_of, varies
from aatc.traced_arguments import unknown
from aatc.traced_words import METHODS, build, result_of

#: A recorded argument: ("node", n), ("number", n) for a captured tensor, ("f" | "i" | "b", text) for a constant,
#: ("list", entries), or ("word", text) for anything else that an operation may take (dims, dtypes, styles).
Entry = tuple[str, Any]
Node = tuple[str, tuple[Entry, ...], tuple[tuple[str, Entry], ...]]

_NEEDS_NO_TRUTH = "a score has no truth value while it is traced: this needs one answer, and a score is one per pair"
_INSTEAD = (
    "torch.where(condition, x, y) for a choice, & | ~ for and, or, not, (a < b) & (b < c) for a < b < c, "
    "torch.maximum and torch.minimum for max and min"
)


#: Leaves of a metric besides its captures and the indices; no capture can have such a name.
QUERY, KEY = "the query", "the key"
Declared = tuple[tuple[str, str, str], ...]  # name, axes and element type of each capture


@lru_cache(maxsize=1024)
def _leaves(declared: Declared) -> dict[str, Expr]:
    captures = {name: param(free_name(name), axes, dtype) for name, axes, dtype in declared}
    return {QUERY: param("q", "bhid"), KEY: param("k", "bhjd"), **captures}


class UnknownWordError(ScoreError, AttributeError):
    """A method or attribute that the score language does not have."""


def _prepare_dynamo() -> None:
    from aatc.frontend.traced_operators import teach_operators

    teach_operators(Traced)


# what torch.compiler.assume_constant_result does, which would import Dynamo
_prepare_dynamo._dynamo_marked_constant = True  # type: ignore[attr-defined]


class Tape:
    """Operations in order. ``values`` are their expressions, where the function is run by Python itself: errors then
    come at the user's line. Dynamo records only, and what is wrong is found when the program is built."""

    def __init__(self, declared: Declared):
        self.nodes: list[Node] = []
        self.tensors: list[torch.Tensor] = []
        self.values: list[Expr] | None = None
        if torch.compiler.is_dynamo_compiling():
            _prepare_dynamo()
        else:
            self.values = []
            self.leaves = _leaves(declared)

    def leaf(self, name: str) -> Traced:
        return self.node("leaf", (name,), {})

    def node(self, word: str, args: tuple, kwargs: Mapping[str, Any]) -> Traced:
        if self.values is None:
            self._append(word, args, kwargs)
        else:
            try:
                self._append(word, args, kwargs)
                self.values.append(build(self.nodes[-1], self.values, self.numbers, self.leaves))
            except ScoreError as error:
                raise _at_line(error) from None
        return Traced(self, len(self.nodes) - 1)

    def _append(self, word: str, args: tuple, kwargs: Mapping[str, Any]) -> None:
        entries = tuple([self.enter(a) for a in args])
        self.nodes.append((word, entries, tuple([(n, self.enter(x)) for n, x in kwargs.items()])))

    def enter(self, x: Any) -> Entry:
        """``x`` as an argument of a recorded operation."""
        if isinstance(x, Traced):
            if x._tape is not self:
                raise _error("a value of another metric or predicate is used here", "return it, don't keep it")
            return ("node", x._at)
        if isinstance(x, torch.Tensor):
            return self._tensor(x)
        if isinstance(x, bool):
            return ("b", repr(x))
        if isinstance(x, (int, torch.SymInt)):
            if varies(x):
                return self._tensor(as_tensor(x, torch.int64))
            if not -(2**63) <= x < 2**63:
                raise _error(f"{x} is no 64-bit integer", "write it as a float")
            return ("i", text_of(int(x)))
        if isinstance(x, (float, torch.SymFloat)):
            if varies(x):
                return self._tensor(as_tensor(x, torch.float64))
            return ("f", text_of(float(x)))
        if isinstance(x, (list, tuple)):
            return ("list", tuple([self.enter(y) for y in x]))
        if x is None or isinstance(x, (str, torch.dtype)):
            return ("word", x)
        if hasattr(x, "dtype") and hasattr(x, "item") and getattr(x, "ndim", 1) == 0:  # a number of numpy
            return self.enter(x.item())
        raise _error(f"a {type(x).__name__} cannot stand in a score", _CAPTURE)

    def _tensor(self, t: torch.Tensor) -> Entry:
        if t.dim() or t.is_complex():
            raise _error(f"a tensor of {t.dtype} {tuple(t.shape)} is read from outside the function", _CAPTURE)
        self.tensors.append(t)
        return ("number", len(self.tensors) - 1)

    @property
    def numbers(self) -> list[Expr]:
        return [param(f"number{n}", "", number_kind(t)) for n, t in enumerate(self.tensors)]


_CAPTURE = 'declare captured tensors with their axes: @aatc.metric(beta="h") def score(q, k, beta)'


def number_kind(t: torch.Tensor) -> str:
    return "f" if t.is_floating_point() else "b" if t.dtype == torch.bool else "i"


# --- running a function --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Recorded:
    """What a function did: plain constants, and the tensors without dimensions that it read."""

    key: Key
    tensors: tuple[torch.Tensor, ...]
    body: Expr | None  # None under Dynamo

    def captures(self, sizes: Sizes) -> list[Capture]:
        found = []
        for t in self.tensors:
            kind = number_kind(t)
            dtype = {"f": number_dtype(sizes), "i": torch.int64, "b": torch.bool}[kind]
            found.append(Capture("number", t.to(device=sizes.device, dtype=dtype), "", kind))
        return found


def recorded(
    function: Callable[..., Any],
    positional: tuple[str, ...],
    named: tuple[str, ...],
    declared: Declared,
    check: Callable[[Expr], Expr],
) -> Recorded:
    """Calls ``function`` with symbols: QUERY, KEY, those ``declared``, and b, h, i, j for the indices.

    ``check`` says, by ScoreError, whether the result is of the right type.
    """
    tape = Tape(declared)
    if tape.values is None:
        result = tape.enter(function(*[tape.leaf(n) for n in positional], **{n: tape.leaf(n) for n in named}))
        return Recorded((tuple(tape.nodes), result, len(tape.tensors)), tuple(tape.tensors), None)
    try:
        value = function(*[tape.leaf(n) for n in positional], **{n: tape.leaf(n) for n in named})
    except TypeError as error:  # of torch's own check of arguments, say
        found = ScoreError(f"{error}".partition("\n")[0], hint="in a metric or predicate, numbers are traced scores")
        raise _of_traceback(found, error) from error
    try:
        result = tape.enter(value)
        body = check(result_of(result, tape.values, tape.numbers))
    except ScoreError as error:
        raise placed_at(error, function) from None
    return Recorded((tuple(tape.nodes), result, len(tape.tensors)), tuple(tape.tensors), body)


def rebuilt(key: Key, leaves: Mapping[str, Expr], captured: Iterator[Expr], check: Callable[[Expr], Expr]) -> Expr:
    """The expression of a recorded function; its numbers are taken from ``captured``."""
    nodes, result, count = key
    numbers = [next(captured) for _ in range(count)]
    values: list[Expr] = []
    for node in nodes:
        values.append(build(node, values, numbers, leaves))
    return check(result_of(result, values, numbers))


def _error(what: str, hint: str) -> Any:
    """ScoreError. Dynamo can't make one: it raises another, the model runs without Dynamo and raises this one."""
    return TypeError(what) if torch.compiler.is_dynamo_compiling() else ScoreError(what, hint=hint)


def _at_line(error: ScoreError) -> ScoreError:
    """``error`` with the user's source line that is being run."""
    if error.where is not None:
        return error
    from aatc.frontend import location

    frames: list[tuple[str, int, str]] = []
    frame = sys._getframe(1)
    while frame is not None:
        frames.append((frame.f_code.co_filename, frame.f_lineno, ""))
        frame = frame.f_back  # type: ignore[assignment]
    return _placed(error, location.source_line(location.innermost(reversed(frames))))


def _of_traceback(error: ScoreError, cause: BaseException) -> ScoreError:
    """``error`` with the user's innermost line in the traceback of ``cause``."""
    from aatc.frontend import location

    frames = [(f.filename, f.lineno or 0, "") for f in traceback.extract_tb(cause.__traceback__)]
    return _placed(error, location.source_line(location.innermost(frames)))


def placed_at(error: ScoreError, function: Any) -> ScoreError:
    """``error`` with the place where ``function`` is written."""
    if error.where is not None:
        return error
    from aatc.frontend import location

    function = getattr(function, "func", function)  # of a partial
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    if code is None:
        return error
    return _placed(error, location.source_line(location.innermost([(code.co_filename, code.co_firstlineno, "")])))


def _placed(error: ScoreError, where: str | None) -> ScoreError:
    return type(error)(error.message, where=where, hint=error.hint)


# --- what a function sees ------------------------------------------------------------------------------------
class Traced:
    """A number, truth value or feature vector of one pair, while a metric or a predicate is traced."""

    __array_priority__ = 1000.0

    def __init__(self, tape: Tape, at: int):
        self._tape, self._at = tape, at

    @property
    def expr(self) -> Expr:
        """The expression of the score language that this stands for."""
        values = self._tape.values
        if values is None:
            raise ScoreError("under torch.compile a score has no expression before it is built")
        return values[self._at]

    def __repr__(self) -> str:
        return "a score that is being traced" if self._tape.values is None else repr(self.expr)

    def call(self, word: str, *args: Any, **kwargs: Any) -> Traced:
        """A recorded operation by its name in `aatc.traced_words`."""
        return self._tape.node(word, args, kwargs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        tape = _tape_among([*args, *kwargs.values()])
        return tape.node(func.__name__, tuple(args), kwargs)

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            raise self._refused(f"numpy's {ufunc.__name__}.{method}", "use torch functions in a metric")
        return self._tape.node(ufunc.__name__, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if torch.compiler.is_dynamo_compiling():
            raise AttributeError(name)
        error = unknown(name)
        raise _at_line(UnknownWordError(error.message, hint=error.hint))

    def _refused(self, what: str, hint: str) -> Exception:
        error = _error(what, hint)
        return error if torch.compiler.is_dynamo_compiling() else _at_line(error)

    def __bool__(self) -> NoReturn:
        raise self._refused(_NEEDS_NO_TRUTH, _INSTEAD)

    def __hash__(self) -> int:
        raise self._refused("a score cannot be hashed while it is traced", "keep scores out of sets and keys of dicts")

    def __iter__(self) -> NoReturn:
        raise self._refused("a feature vector cannot be iterated", "write the formula over whole vectors")

    def __contains__(self, x: Any) -> NoReturn:
        raise self._refused("`in` has no meaning for a score", "compare with == and combine with |")

    def __len__(self) -> NoReturn:
        raise self._refused(
            "the length of a feature vector is unknown while it is traced", "use x.mean() for an average"
        )

    def _as_number(self, *_: Any) -> NoReturn:
        raise self._refused(
            "a score is one number per pair, not a number of Python",
            "use torch's functions in place of math's and int()",
        )

    __float__ = __int__ = __index__ = __complex__ = __round__ = __trunc__ = _as_number

    def __setitem__(self, at: Any, value: Any) -> NoReturn:
        raise self._refused("a score cannot be changed in place", "use torch.where")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("_tape", "_at"):
            raise self._refused(f"a score has no attribute {name!r} to set", "keep values in names of your own")
        object.__setattr__(self, name, value)


def _tape_among(values: list) -> Tape:
    for x in values:
        if isinstance(x, Traced):
            return x._tape
        if isinstance(x, (list, tuple)):
            for y in x:
                if isinstance(y, Traced):
                    return y._tape
    raise _error("a score is handed to torch in a form that cannot be traced", "pass it as an argument")


def _method(word: str) -> Callable[..., Any]:
    def method(self: Traced, *args: Any, **kwargs: Any) -> Traced:
        return self._tape.node(word, (self, *args), kwargs)

    return method


def _reflected(word: str) -> Callable[..., Any]:
    def method(self: Traced, other: Any) -> Traced:
        return self._tape.node(word, (other, self), {})

    return method


_BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift divmod"
for _name in _BINARY.split():
    setattr(Traced, f"__{_name}__", _method(_name))
    setattr(Traced, f"__r{_name}__", _reflected(_name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "abs", "invert", "getitem", "floor", "ceil"):
    setattr(Traced, f"__{_name}__", _method(_name))
for _name in METHODS:
    setattr(Traced, _name, _method("where_method" if _name == "where" else _name))
