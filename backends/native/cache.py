"""Object code on disk, so that a later process need not compile what an earlier one has.

The folder is ``native`` in the one that the environment variable ``AATC_CACHE`` names, else in the user's cache folder;
``AATC_CACHE=off`` does without. An entry is one file: a line of JSON with everything the code depends on and the
checksum of the code, then the code. Code is run, so nothing is read that another user could have written; what is
damaged or foreign is left alone with one warning and written anew. A folder that cannot be read or written is no error.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import stat
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import llvmlite
import platformdirs
from llvmlite import binding

from aatc.backends.native.isa import Isa
from aatc.ir.errors import AatcWarning

#: Changes with the layout of entries and with how `machine` compiles: entries of another format are other entries.
FORMAT = 2
#: Bytes that a folder may hold. Above, what was not used for longest goes until a fifth is free.
LIMIT = 256 << 20

_SUFFIX, _TEMPORARY = ".code", ".tmp"
_HEADER_LIMIT = 1 << 16


@dataclass(frozen=True)
class Key:
    """What object code depends on, as JSON, and the hash of it that names its entry."""

    fields: str
    digest: str


def key(text: str, isa: Isa) -> Key:
    """Of the code that a module compiles to for an instruction set."""
    fields = {
        **_versions(),
        "isa": isa.name,
        "cpu": isa.cpu,
        "features": isa.features,
        "text": hashlib.sha256(text.encode()).hexdigest(),
    }
    shown = json.dumps(fields, sort_keys=True)
    return Key(shown, hashlib.sha256(shown.encode()).hexdigest())


@functools.cache
def _versions() -> dict[str, object]:
    try:
        ours = importlib.metadata.version("aatc")
    except importlib.metadata.PackageNotFoundError:
        ours = "unknown"
    llvm = ".".join(map(str, binding.llvm_version_info))
    triple = binding.get_process_triple()
    return {"format": FORMAT, "aatc": ours, "llvmlite": llvmlite.__version__, "llvm": llvm, "triple": triple}


def folder() -> Path | None:
    """Where entries are; None without any."""
    named = os.environ.get("AATC_CACHE", "").strip()
    if named.lower() == "off":
        return None
    root = os.path.expanduser(named or platformdirs.user_cache_dir("aatc"))
    return None if root.startswith("~") else Path(root) / "native"  # a user without a home


def read(key: Key) -> bytes | None:
    """The object code of an entry; None if there is none that can be trusted."""
    where = folder()
    if where is None:
        return None
    path = where / f"{key.digest}{_SUFFIX}"
    try:
        data = _own_bytes(path)
    except OSError:
        return None
    except ValueError as error:
        _note(path, str(error))
        return None
    code = _checked(data, key)
    if code is None:
        _note(path, "it is damaged, or not what its name says")
        return None
    with suppress(OSError):
        os.utime(path)
    return code


def _own_bytes(path: Path) -> bytes:
    """What a file holds. Raises OSError if it cannot be read, ValueError if somebody else may have written it."""
    _check_owner(os.stat(path.parent), "its folder")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if os.path.isdir(path):
        raise ValueError("it is a folder")
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        _check_owner(status, "it")
        return file.read()


def _check_owner(status: os.stat_result, what: str) -> None:
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid != os.geteuid():
        raise ValueError(f"{what} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"other users may write to {what}")


def _entry(key: Key, code: bytes) -> bytes:
    header = {"key": json.loads(key.fields), "size": len(code), "sha256": hashlib.sha256(code).hexdigest()}
    return json.dumps(header, sort_keys=True).encode() + b"\n" + code


def _checked(data: bytes, key: Key) -> bytes | None:
    """The code of an entry that is whole, and of this key."""
    end = data.find(b"\n", 0, _HEADER_LIMIT)
    code = data[end + 1 :]
    return code if end >= 0 and data[: end + 1] == _entry(key, code)[: end + 1] else None


def write(key: Key, code: bytes) -> None:
    """Keeps object code. Other processes see all of it or nothing."""
    where = folder()
    if where is None:
        return
    path = where / f"{key.digest}{_SUFFIX}"
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(os.stat(where), "its folder")
        handle, temporary = tempfile.mkstemp(_TEMPORARY, dir=where)  # of this user alone
    except OSError:
        return
    except ValueError:
        return  # said when it was read
    try:
        with open(handle, "wb") as file:
            file.write(_entry(key, code))
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        return
    _evict(where, keep=path.name)


def drop(key: Key) -> None:
    """Forgets an entry."""
    where = folder()
    if where is not None:
        with suppress(OSError):
            os.unlink(where / f"{key.digest}{_SUFFIX}")


def _evict(where: Path, keep: str) -> None:
    """Makes room: entries by their last use, and what writers that died have left."""
    entries, now = [], time.time()
    try:
        with os.scandir(where) as found:
            for file in found:
                with suppress(OSError):
                    status = file.stat(follow_symlinks=False)
                    if file.name.endswith(_SUFFIX):
                        entries.append((status.st_mtime, status.st_size, file.name))
                    elif file.name.endswith(_TEMPORARY) and now - status.st_mtime > 3600:
                        os.unlink(file.path)
    except OSError:
        return
    total = sum(size for _, size, _ in entries)
    if total <= LIMIT:
        return
    for _, size, name in sorted(entries):
        if total <= LIMIT * 4 // 5:
            break
        if name != keep:
            with suppress(OSError):
                os.unlink(where / name)
                total -= size


_noted = False


def _note(path: Path, why: str) -> None:
    """Says once that an entry was not used; the code is compiled instead."""
    global _noted
    if _noted:
        return
    _noted = True
    warnings.warn(
        f"native code in {path} is not used: {why}. It is compiled again; AATC_CACHE chooses another folder, "
        "AATC_CACHE=off none",
        AatcWarning,
        stacklevel=2,
    )
