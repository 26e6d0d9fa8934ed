"""Measured schedules on disk, a file each, shared by processes.

The folder is ``tune`` beside that of the native backend's object code: in the one that ``AATC_CACHE`` names, else in
the user's cache folder; with ``AATC_CACHE=off`` entries live as long as the process. The rules are those of object
code: nothing is read that another user could have written, writes are seen whole or not at all, what is damaged is left
alone with one warning, a folder that cannot be used is no error.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from aatc.backends.native import cache as disk
from aatc.ir.errors import AatcWarning, ScheduleError
from aatc.tuning.entry import Entry
from aatc.tuning.key import FIELDS, PROBLEM, Key

_SUFFIX = ".json"
_LARGEST = 1 << 20  # bytes of a file
_LOOKED_AT = 1000  # entries that are read to explain a miss

_memory: dict[str, Entry] = {}
_noted: set[str] = set()


def folder() -> Path | None:
    """Where entries are; None without any."""
    native = disk.folder()
    return None if native is None else native.parent / "tune"


def get(key: Key) -> Entry | None:
    """What is kept under a key."""
    where = folder()
    if where is None:
        return _memory.get(key.digest)
    found = _read(where / f"{key.digest}{_SUFFIX}")
    return found if found is not None and found.key == key else None


def put(entry: Entry) -> None:
    """Keeps an entry, in the place of one under the same key."""
    where = folder()
    if where is None:
        _memory[entry.key.digest] = entry
        return
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk._check_owner(os.stat(where), "its folder")
        handle, temporary = tempfile.mkstemp(".tmp", dir=where)  # of this user alone
    except OSError as error:
        _note(where, f"nothing can be kept there: {error.strerror}")
        return
    except ValueError as error:
        _note(where, str(error))
        return
    try:
        with open(handle, "wb") as file:
            file.write(_text(entry))
        os.replace(temporary, where / f"{entry.key.digest}{_SUFFIX}")
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        _note(where, f"nothing can be kept there: {error.strerror}")


def kept() -> list[Entry]:
    """Every entry that can be read, of all devices and versions."""
    where = folder()
    if where is None:
        return list(_memory.values())
    return [entry for path in _files(where) if (entry := _read(path)) is not None]


def _files(where: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted(p for p in where.iterdir() if p.suffix == _SUFFIX)


def _text(entry: Entry) -> bytes:
    """A line of JSON behind the digest of it."""
    body = json.dumps(entry.to_json(), sort_keys=True).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body + b"\n"


def _read(path: Path) -> Entry | None:
    try:
        data = disk._own_bytes(path)
    except OSError:
        return None
    except ValueError as error:
        _note(path, str(error))
        return None
    try:
        return _parsed(path, data)
    except ScheduleError as error:
        _note(path, error.message)
        return None


def _parsed(path: Path, data: bytes) -> Entry:
    digest, _, body = data.partition(b"\n")
    if len(data) > _LARGEST or hashlib.sha256(body.rstrip(b"\n")).hexdigest().encode() != digest:
        raise ScheduleError("it is damaged")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ScheduleError("it is not JSON") from None
    entry = Entry.of_json(value)
    if path.name != f"{entry.key.digest}{_SUFFIX}":
        raise ScheduleError("it is not what its name says")
    return entry


def _note(path: Path, why: str) -> None:
    """Says once for each file that it is not used."""
    if str(path) in _noted:
        return
    _noted.add(str(path))
    hint = "AATC_CACHE chooses another folder"
    warnings.warn(f"tuned schedules in {path} are not used: {why}; {hint}", AatcWarning, stacklevel=2)


def miss(key: Key) -> str:
    """Why nothing is kept under ``key``: what the entry closest to it is for."""
    where = folder()
    entries = list(_memory.values())
    if where is not None:
        entries = [e for path in list(_files(where))[:_LOOKED_AT] if (e := _read(path)) is not None]
    mine = dict(key.fields)
    alike = [e for e in entries if all(dict(e.key.fields)[n] == mine[n] for n in ("statement", "direction"))]
    if not alike:
        return "nothing is kept for this attention"
    closest = min(alike, key=lambda e: _distance(key, e.key))
    theirs = dict(closest.key.fields)
    differing = key.differences(closest.key)
    if len(differing) > 1 and "space" in differing:  # it follows from others
        differing.remove("space")
    parts = [f"{FIELDS[n]} {theirs[n]}, here {mine[n]}" for n in differing]
    return f"what is kept is for {'; '.join(parts)}"


def _distance(a: Key, b: Key) -> tuple[int, int]:
    differing = a.differences(b)
    return len(differing), sum(n in PROBLEM for n in differing)
