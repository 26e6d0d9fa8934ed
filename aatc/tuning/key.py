"""What a measured schedule holds for: the attention, its sizes and types, the device, the versions.

Lengths go by buckets, so that an entry serves the lengths around those it was measured at. Everything else is exact.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from aatc.backends import Backend
from aatc.ir.core import Op
from aatc.ir.geo import attention_of
from aatc.ir.legal import Workload
from aatc.ir.printer import attrs_text
from aatc.ir.schedule_file import SCHEDULE_OF
from aatc.ir.types import TensorType

#: Changes with the meaning of keys and entries.
FORMAT = 1
#: Largest difference of a candidate's numbers from the default's, relative to the largest of the tensor.
TOLERANCE = {"f64": 1e-11, "f32": 2e-5, "bf16": 8e-3, "f16": 2e-3}

#: Fields that say which problem it is: schedules from elsewhere are for the same one. What they say to people.
PROBLEM = {
    "statement": "the attention",
    "direction": "direction",
    "types": "types",
    "widths": "widths",
    "groups": "heads that share keys",
    "problems": "problems",
    "queries": "queries",
    "keys": "keys",
}
DEVICE = {
    "backend": "backend",
    "device": "device",
    "features": "instruction set",
    "cores": "cores",
    "caches": "caches",
    "registers": "registers",
    "space": "schedules to try",
    "accuracy": "accuracy",
    "aatc": "aatc",
    "torch": "torch",
    "llvmlite": "llvmlite",
    "format": "format",
}
FIELDS = {**PROBLEM, **DEVICE}


@dataclass(frozen=True)
class Key:
    """Fields by name, all of them texts, and the digest that names an entry."""

    fields: tuple[tuple[str, str], ...]

    @staticmethod
    def of(values: Mapping[str, str]) -> Key:
        return Key(tuple((name, values[name]) for name in FIELDS))

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.fields).encode()).hexdigest()

    @property
    def problem(self) -> tuple[str, ...]:
        """What it is that has a schedule, without the device."""
        known = dict(self.fields)
        return tuple(known[name] for name in PROBLEM)

    def differences(self, other: Key) -> list[str]:
        """Names of the fields in which ``other`` is not the same."""
        theirs = dict(other.fields)
        return [name for name, value in self.fields if theirs[name] != value]


def key_of(op: Op, direction: str, backend: Backend) -> Key:
    """That of one direction of a ``geo.attend``, on the device that ``backend`` sees."""
    w = Workload.of(op, direction)
    types: list[TensorType] = [v.type for v in op.operands]  # type: ignore[misc]
    q, k = types[:2]
    groups = f"{q.shape[1]} to {k.shape[1]}" if q.shape[1] != k.shape[1] else "none"
    return Key.of(
        {
            "statement": _statement(op),
            "direction": direction,
            "types": " ".join(t.dtype for t in types),
            "widths": " ".join(f"{x.name}:{x.width}{x.along}" for x in w.operands),
            "groups": groups,
            "problems": bucket(w.problems, 16),
            "queries": bucket(w.rows),
            "keys": bucket(w.cols),
            **_device(backend, w),
        }
    )


def _statement(op: Op) -> str:
    """Digest of what an attention computes, as the text of its programs says it."""
    own = {n: v for n, v in op.attrs.items() if n not in SCHEDULE_OF.values()}
    return hashlib.sha256(attrs_text(dict(sorted(own.items()))).encode()).hexdigest()[:32]


def bucket(n: int | None, exact: int = 8) -> str:
    """The bucket of a length: numbers up to ``exact`` are alone, others go to the next power of two."""
    if n is None:
        return "any"
    if n <= exact:
        return str(n)
    high = 1 << (n - 1).bit_length()
    return f"{high // 2 + 1} to {high}"


def _rounded(n: int | None, exact: int = 8) -> int | None:
    """The largest of the bucket."""
    return n if n is None or n <= exact else 1 << (n - 1).bit_length()


def _device(backend: Backend, w: Workload) -> dict[str, str]:
    t = backend.target()
    whole = replace(w, problems=_rounded(w.problems, 16), rows=_rounded(w.rows), cols=_rounded(w.cols))
    seen = backend.devices()
    return {
        "backend": backend.name,
        "device": str(seen[0].get("name", "")) if seen else "",
        "features": " ".join(t.features) or str(seen[0].get("isa", "") if seen else ""),
        "cores": str(t.cores),
        "caches": " ".join(map(str, t.caches)),
        "registers": f"{t.registers} of {t.vector_bytes} bytes",
        "space": _space(backend, whole),
        "accuracy": " ".join(f"{name} {x:g}" for name, x in TOLERANCE.items()),
        **_versions(),
    }


def _space(backend: Backend, w: Workload) -> str:
    return _digest(tuple(backend.schedule_space(w)))


@lru_cache(maxsize=256)
def _digest(space: tuple[object, ...]) -> str:
    return hashlib.sha256("\n".join(map(str, space)).encode()).hexdigest()[:16]


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in ("aatc", "torch", "llvmlite"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return {**found, "format": str(FORMAT)}


def kind_of(op: Op) -> str:
    """A few words for people."""
    att = attention_of(op)
    return (
        "attention" + (", masked" if att.mask is not None else "") + (f", {att.kind}" if att.kind != "softmax" else "")
    )
