"""What operations of the program level ask of their own operands, attributes and results."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable, Sequence

from aatc.ir.core import Op
from aatc.ir.errors import VerifyError
from aatc.ir.registry import Operand
from aatc.ir.types import KERNEL, TensorType, Type, itemsize

#: Words a dispatch may push: all that every device takes.
MAX_PUSH = 32
#: What a buffer may hold; the host's tensors are converted.
HELD = ("f32", "i32", "f16")
#: Buffers end with a whole vector of four words, so that the last one may be read to its end.
VECTOR = 4
ACCESS = ("read", "write", "update")
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_MOST_F32 = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]


def kernel_hash(
    glsl: str, wgsl: str | None, push: Sequence[str], local: Sequence[int], shared: int, features: Iterable[str],
    block: bool,
) -> str:  # fmt: skip
    """Names a kernel by all that it is."""
    fields = [glsl, wgsl, list(push), list(local), shared, sorted(features), block]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def words(t: Type) -> int:
    """Words of the arena that a buffer of type ``t`` takes; 0 of an empty one. Its shape is of numbers."""
    assert isinstance(t, TensorType)
    nbytes = math.prod(int(d) for d in t.shape) * itemsize(t.dtype)
    return -(-nbytes // (4 * VECTOR)) * VECTOR


def kind(dtype: str) -> str:
    """f, i of what the host's tensors hold; empty of what no buffer takes."""
    return "" if dtype in ("c64", "c128") else "f" if "f" in dtype else "i"


def _tensor(op: Op, t: Type, what: str) -> TensorType:
    if not isinstance(t, TensorType):
        raise VerifyError(f"{what} of {op.name} is {t}, which is no tensor")
    return t


def _integers(op: Op, name: str, low: int, count: int = -1) -> None:
    values = op.attrs[name]
    if (count >= 0 and len(values) != count) or any(
        not isinstance(v, int) or isinstance(v, bool) or v < low or v >= 2**32 for v in values
    ):
        many = f"{count} " if count >= 0 else ""
        raise VerifyError(f"{op.name}: {name} are {many}integers of at least {low}")


def _names(op: Op, name: str) -> None:
    values = op.attrs[name]
    if any(not isinstance(v, str) or not v for v in values) or len(set(values)) != len(values):
        raise VerifyError(f"{op.name}: {name} are words, none of them twice")


def _pushed(op: Op, name: str) -> None:
    """Words: 32-bit integers, numbers of f32, and operands that are buffers."""
    for v in op.attrs[name]:
        if isinstance(v, Operand):
            if not 1 <= v.position < len(op.operands):
                raise VerifyError(f"{op.name}: {v} is no buffer of it")
        elif isinstance(v, bool) or not isinstance(v, (int, float)):
            raise VerifyError(f"{op.name}: a word is an integer, a number or an operand, not {v!r}")
        elif isinstance(v, int) and not -(2**31) <= v < 2**32:
            raise VerifyError(f"{op.name}: {v} has no 32 bits")
        elif isinstance(v, float) and math.isfinite(v) and abs(v) > _MOST_F32:
            raise VerifyError(f"{op.name}: {v} is no number of f32")


def kernel_infer(op: Op) -> list[Type]:
    return [KERNEL]


def kernel_verify(op: Op) -> None:
    a = op.attrs
    _names(op, "push")
    _names(op, "features")
    _integers(op, "local", 1, 3)
    if a["shared"] < 0:
        raise VerifyError(f"{op.name}: a workgroup shares {a['shared']} bytes")
    if not a["block"] and len(a["push"]) > MAX_PUSH:
        raise VerifyError(
            f"{op.name}: {len(a['push'])} push words are more than {MAX_PUSH}, all that every device takes",
            hint="block = true puts them into the arena",
        )
    if not _HASH.match(a["hash"]):
        raise VerifyError(f"{op.name}: a hash has 64 hexadecimal digits")
    if "wgsl" in a and "glsl" not in a:
        raise VerifyError(f"{op.name}: a text in WGSL stands beside one in GLSL")
    if "glsl" in a:
        made = kernel_hash(a["glsl"], a.get("wgsl"), a["push"], a["local"], a["shared"], a["features"], a["block"])
        if made != a["hash"]:
            raise VerifyError(f"{op.name}: the hash is not that of the texts, which is {made}")


def buffer_verify(op: Op) -> None:
    t = _tensor(op, op.results[0].type, "the result")
    if t.dtype not in HELD:
        raise VerifyError(f"{op.name}: a buffer holds {', '.join(HELD)}, not {t.dtype}")
    if not all(d.is_static for d in t.shape):
        raise VerifyError(f"{op.name}: a program is for given sizes, unlike {t}")
    if op.attrs.get("offset", 0) < 0:
        raise VerifyError(f"{op.name}: offset {op.attrs['offset']} lies before the arena")


def part_verify(op: Op) -> None:
    whole = _tensor(op, op.operands[0].type, "operand 0")
    buffer_verify(op)
    start, size = op.attrs["start"], words(op.results[0].type)
    if start < 0 or start % VECTOR:
        raise VerifyError(f"{op.name}: a part begins at a multiple of {VECTOR} words, not at {start}")
    if start + size > words(whole):
        raise VerifyError(f"{op.name}: words {start} to {start + size} of a buffer of {words(whole)}")


def _same(op: Op, host: TensorType, device: TensorType) -> None:
    if host.shape != device.shape or not kind(host.dtype) or kind(host.dtype) != kind(device.dtype):
        raise VerifyError(f"{op.name}: {host} and {device} do not hold the same")


def transfer_verify(op: Op) -> None:
    _same(op, _tensor(op, op.operands[0].type, "operand 0"), _tensor(op, op.operands[1].type, "operand 1"))


def download_verify(op: Op) -> None:
    _same(op, _tensor(op, op.results[0].type, "the result"), _tensor(op, op.operands[0].type, "operand 0"))


def block_verify(op: Op) -> None:
    t = _tensor(op, op.operands[0].type, "operand 0")
    _pushed(op, "words")
    if t.dtype != "i32" or words(t) < len(op.attrs["words"]):
        raise VerifyError(f"{op.name}: {len(op.attrs['words'])} words do not fit into {t}")


def dispatch_verify(op: Op) -> None:
    if op.operands[0].type != KERNEL:
        raise VerifyError(f"{op.name}: operand 0 is {op.operands[0].type}, no kernel")
    for n, v in enumerate(op.operands[1:], 1):
        _tensor(op, v.type, f"operand {n}")
    access = op.attrs["access"]
    if len(access) != len(op.operands) - 1 or any(a not in ACCESS for a in access):
        raise VerifyError(f"{op.name}: access says of every buffer one of {', '.join(ACCESS)}")
    _integers(op, "grid", 1, 3)
    _pushed(op, "push")
    if len(op.attrs["push"]) > MAX_PUSH:
        raise VerifyError(f"{op.name}: {len(op.attrs['push'])} push words are more than {MAX_PUSH}")
