"""A pass's options as text: ``adaptive-tile{rows=64 library=false}``. Reading follows the fields' annotations.

Numbers, ``true``, ``false`` and ``none`` stand as they are, texts too unless they could be read as something else or
hold other characters than letters, digits, ``_ . -``; then they stand in double quotes with ``\\`` before ``"`` and
``\\``. Tuples stand in parentheses: ``(1, 2)``. Nothing is evaluated.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aatc.ir.errors import PassError

_WORD = re.compile(r"[A-Za-z0-9_.+-]+")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_RESERVED = {"true", "false", "none", "inf", "nan"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_NAME = re.compile(r"[A-Za-z0-9_-]+")
#: Python reads 1_0, and digits of other scripts, as numbers, too.
_NUMBER = {
    int: re.compile(r"[+-]?[0-9]+"),
    float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|nan)", re.IGNORECASE),
}
#: How deep tuples may lie within each other.
_DEEPEST = 32


@dataclass(frozen=True)
class _Text:
    text: str
    quoted: bool = False


def option_text(value: Any) -> str:
    """``value`` as `read_pipeline` reads it. PassError for what has no text."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
            return value
        body = value.replace("\\", "\\\\").replace('"', '\\"')
        for letter, char in _ESCAPES.items():
            body = body.replace(char, f"\\{letter}")
        return f'"{body}"'
    if isinstance(value, tuple):
        return f"({', '.join(map(option_text, value))})"
    raise PassError(
        f"an option holds {value!r}, which has no text",
        hint="options are numbers, truth values, texts, None and tuples",
    )


def read_pipeline(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and options, still as read, of ``name,name{option=value}``."""
    s = _Scanner(text)
    while True:
        name = s.match(_NAME, "the name of a pass")
        options: dict[str, Any] = {}
        if s.take("{"):
            while not s.take("}"):
                key = s.match(_NAME, "an option")
                if key in options:
                    raise s.error(f"option {key} stands twice")
                s.expect("=")
                options[key] = s.value()
                s.take(",")
        yield name, options
        if s.done():
            return
        s.expect(",")


class _Scanner:
    def __init__(self, text: str):
        self.text, self.at = text, 0

    def error(self, what: str) -> PassError:
        return PassError(
            f"pipeline {self.text!r} cannot be read from column {self.at + 1} on: {what}",
            hint="write name,name{option=value}",
        )

    def done(self) -> bool:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.at == len(self.text)

    def take(self, char: str) -> bool:
        found = not self.done() and self.text[self.at] == char
        self.at += found
        return found

    def expect(self, char: str) -> None:
        if not self.take(char):
            raise self.error(f"expected {char!r}")

    def match(self, pattern: re.Pattern[str], what: str) -> str:
        self.done()
        m = pattern.match(self.text, self.at)
        if m is None:
            raise self.error(f"expected {what}")
        self.at = m.end()
        return m[0]

    def value(self, depth: int = 0) -> Any:
        if self.take("("):
            if depth == _DEEPEST:
                raise self.error(f"tuples lie within each other more than {_DEEPEST} deep")
            items = []
            while not self.take(")"):
                items.append(self.value(depth + 1))
                if not self.take(","):
                    self.expect(")")
                    break
            return tuple(items)
        if self.take('"'):
            return _Text(self._quoted(), True)
        return _Text(self.match(_WORD, "a value"))

    def _quoted(self) -> str:
        out: list[str] = []
        while self.at < len(self.text):
            c = self.text[self.at]
            self.at += 1
            if c == '"':
                return "".join(out)
            if c == "\\" and self.at < len(self.text):
                c = self.text[self.at]
                self.at += 1
                c = _ESCAPES.get(c, c)
            out.append(c)
        raise self.error("a text is not closed")


def options_of(cls: type, read: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the dataclass ``cls`` from options as `read_pipeline` gives them."""
    fields = {f.name.replace("_", "-"): f for f in dataclasses.fields(cls) if f.init}
    name = getattr(cls, "name", cls.__name__)
    hints = typing.get_type_hints(cls)
    given = {}
    for key, value in read.items():
        if key not in fields:
            raise PassError(f"pass {name} has no option {key!r}", hint=f"it has: {', '.join(fields) or 'none'}")
        kind = hints.get(fields[key].name, Any)
        try:
            given[fields[key].name] = _coerce(value, kind)
        except ValueError:
            shown = kind.__name__ if isinstance(kind, type) else str(kind)
            raise PassError(f"option {key} of pass {name} takes a value of type {shown}, not {_shown(value)}") from None
    return given


def _shown(value: Any) -> str:
    return f"({', '.join(map(_shown, value))})" if isinstance(value, tuple) else repr(value.text)


def _coerce(value: Any, kind: Any) -> Any:
    """``value`` as the annotation ``kind`` asks; ValueError if it does not fit."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _first(value, typing.get_args(kind))
    if origin is typing.Literal:
        found = next((c for c in typing.get_args(kind) if _fits(value, c)), None)
        if found is None:
            raise ValueError
        return found
    if kind is Any or kind is object:
        return _first(value, (None, bool, int, float, str, tuple))
    if kind is tuple or origin is tuple:
        return _tuple(value, typing.get_args(kind) or (Any, ...))
    if not isinstance(value, _Text):
        raise ValueError
    if kind is str:
        return value.text
    if value.quoted:
        raise ValueError
    if kind is bool:
        return {"true": True, "false": False}[value.text] if value.text in ("true", "false") else _refuse()
    if kind is None or kind is type(None):
        return None if value.text == "none" else _refuse()
    if kind in (int, float):
        return kind(value.text) if _NUMBER[kind].fullmatch(value.text) else _refuse()
    raise ValueError


def _refuse() -> Any:
    raise ValueError


def _fits(value: Any, choice: Any) -> bool:
    try:
        return bool(_coerce(value, type(choice)) == choice)
    except ValueError:
        return False


#: From the narrowest to the widest: what none of the narrower ones takes is for the next.
_ORDER = (type(None), bool, int, float, str)


def _first(value: Any, kinds: tuple[Any, ...]) -> Any:
    wanted = [type(None) if k is None else k for k in kinds]
    for kind in sorted(wanted, key=lambda k: _ORDER.index(k) if k in _ORDER else -1):
        try:
            return _coerce(value, kind)
        except ValueError:
            continue
    raise ValueError


def _tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise ValueError
    if kinds == ((),):  # tuple[()]
        kinds = ()
    if len(kinds) == 2 and kinds[1] is ...:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError
    return tuple(_coerce(v, k) for v, k in zip(value, kinds, strict=True))
