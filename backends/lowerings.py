"""The table of a backend: which function lowers which tile operation, and which operations it refuses, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from aatc.ir.errors import BackendError
from aatc.ir.registry import OPS, OpDef

F = TypeVar("F", bound=Callable[..., Any])


class Lowerings:
    """Lowerings by the names of operations; an instance is the decorator that registers one::

        lowering = Lowerings("mine", unsupported={"tile.lookup": "tables do not fit the device's memory"})

        @lowering("tile.dot")
        def dot(emitter, op): ...

    What a lowering takes and returns is the backend's own affair. ``unsupported``: operations it has none for, each
    with the reason. Raises: BackendError for an operation that is registered twice, or by what cannot be called.
    """

    def __init__(self, backend: str, *, unsupported: Mapping[str, str] | None = None):
        self.backend = backend
        self.unsupported: dict[str, str] = dict(unsupported or {})
        self._functions: dict[str, Callable[..., Any]] = {}

    def __call__(self, *names: str) -> Callable[[F], F]:
        def register(function: F) -> F:
            if not callable(function):
                raise BackendError(
                    f"backend {self.backend!r} lowers {', '.join(names)} by {function!r}, which cannot be called",
                    hint="register a function, or say why there is none in Lowerings(unsupported=...)",
                )
            for name in names:
                if name in self._functions:
                    raise BackendError(f"backend {self.backend!r} lowers {name} twice")
                self._functions[name] = function
            return function

        return register

    def __contains__(self, name: str) -> bool:
        return name in self._functions

    def __getitem__(self, name: str) -> Callable[..., Any]:
        found = self._functions.get(name)
        if found is None:
            raise BackendError(
                f"backend {self.backend!r} cannot run {name}: {self.unsupported.get(name, 'it has no lowering for it')}"
            )
        return found

    def check(self) -> None:
        """Raises BackendError unless every neutral tile operation, and each of the backend's own, is either lowered or
        refused with a reason, and no other is."""
        known = {d.name for d in tile_ops(self.backend)}
        missing = known - self._functions.keys() - self.unsupported.keys()
        if missing:
            raise BackendError(
                f"backend {self.backend!r} has no lowering for {_listed(missing)}",
                hint='register one, @lowering("tile.dot"), or say why there is none in Lowerings(unsupported=...)',
            )
        strange = (self._functions.keys() | self.unsupported.keys()) - known
        if strange:
            raise BackendError(
                f"backend {self.backend!r} lowers or refuses {_listed(strange)}, which no tile operation is called",
                hint="docs/ops.md lists them",
            )
        both = self._functions.keys() & self.unsupported.keys()
        if both:
            raise BackendError(f"backend {self.backend!r} both lowers and refuses {_listed(both)}")
        if not all(self.unsupported.values()):
            raise BackendError(f"backend {self.backend!r} refuses {_listed(self.unsupported)} without a reason")


def tile_ops(backend: str) -> list[OpDef]:
    """The tile operations that reach ``backend``: the neutral ones and its own."""
    return [d for d in OPS.values() if d.level == "tile" and d.name.partition(".")[0] in ("tile", backend)]


def lowerings_table(tables: Iterable[Lowerings]) -> str:
    """Tile operations by backends as a Markdown table (docs/backends.md ends with this text). Raises: BackendError when
    a table is not complete."""
    tables = list(tables)
    for table in tables:
        table.check()
    names = list(dict.fromkeys(d.name for t in tables for d in tile_ops(t.backend)))
    lines = [f"| operation | {' | '.join(t.backend for t in tables)} |", f"| --- |{' --- |' * len(tables)}"]
    lines += [f"| `{name}` | {' | '.join(_cell(t, name) for t in tables)} |" for name in names]
    return "\n".join(lines) + "\n"


def _cell(table: Lowerings, name: str) -> str:
    return "yes" if name in table else f"no: {table.unsupported[name]}" if name in table.unsupported else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
