"""Object code on disk."""

from __future__ import annotations

from aatc.backends.native.isa import Isa


def key(text: str, isa: Isa) -> str:
    return ""


def read(key: str) -> bytes | None:
    return None


def drop(key: str) -> None:
    pass


def write(key: str, code: bytes) -> None:
    pass
