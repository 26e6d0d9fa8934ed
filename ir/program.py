"""Operations of the program level: a flat list of kernels, buffers of one arena, and dispatches in levels.

A program is for given sizes. Its arguments and what it returns are tensors of the host; buffers are ranges of one
block of 32-bit words, the arena. Operations mean what they do one after the other, in the order of the text. A program
that is planned has the attribute ``words``, the size of the arena; each of its buffers has an offset, and each step a
level: steps of one level may run at the same time, and a level sees all that earlier ones wrote. Uploads come before
all levels, downloads after. `ir.verify_program` proves that levels and offsets leave the meaning as it is.
"""

from __future__ import annotations

from typing import Any

from aatc.ir import program_rules as rules
from aatc.ir.registry import Attr, OpDef, define


def _def(name: str, doc: str, operands: Any = (), attrs: Any = None, **more: Any) -> None:
    define(OpDef(name, "program", doc, tuple(operands), attrs=attrs or {}, **more))


_LEVEL = Attr.of("int", "when it runs, in a program that is planned", required=False)
_PUSH = "the words it gets, in the kernel's order: integers, floating-point numbers, #n where operand n begins"

_def(
    "program.kernel",
    "a compute kernel; its texts stand elsewhere, under the hash, or here",
    attrs={
        "name": Attr.of("str", "for people"),
        "hash": Attr.of("str", "of its texts and of all that is below: 64 hexadecimal digits"),
        "push": Attr.of("list", "names of its push words"),
        "local": Attr.of("list", "threads of a workgroup along x, y, z"),
        "shared": Attr.of("int", "bytes a workgroup shares"),
        "features": Attr.of("list", "what a device must have for it"),
        "block": Attr.of("bool", "its words lie in the arena, and where is the one word it gets"),
        "glsl": Attr.of("str", "its text in GLSL", required=False),
        "wgsl": Attr.of("str", "its text in WGSL", required=False),
    },
    infer=rules.kernel_infer,
    verify=rules.kernel_verify,
)
_def(
    "program.buffer",
    "a range of the arena; its contents are undefined until they are written",
    attrs={
        "keep": Attr.of("bool", "it stays as it is from one call to the next, and shares its range with no other"),
        "offset": Attr.of("int", "where it begins, in words, in a program that is planned", required=False),
    },
    verify=rules.buffer_verify,
    pure=False,
)
_def(
    "program.part",
    "some of a buffer, read and written in its place",
    ("buffer",),
    {"start": Attr.of("int", "its first word in the buffer")},
    verify=rules.part_verify,
)
_def(
    "program.upload",
    "copies a tensor of the host to a buffer, in every call, before all levels",
    ("tensor", "buffer"),
    results=0,
    verify=rules.transfer_verify,
    pure=False,
)
_def(
    "program.parameter",
    "copies a tensor of the host to a buffer that is kept, when the program is loaded and when the tensor has changed",
    ("tensor", "buffer"),
    results=0,
    verify=rules.transfer_verify,
    pure=False,
)
_def(
    "program.block",
    "writes words to a buffer that is kept, when the program is loaded",
    ("buffer", "buffers*"),
    {"words": Attr.of("list", _PUSH)},
    results=0,
    verify=rules.block_verify,
    pure=False,
)
_def("program.zero", "sets all of a buffer to 0", ("buffer",), {"level": _LEVEL}, results=0, pure=False)
_def(
    "program.dispatch",
    "runs a kernel on buffers",
    ("kernel", "buffers*"),
    {
        "access": Attr.of("list", "what it does with each buffer: read, write (all of it), or update"),
        "grid": Attr.of("list", "workgroups along x, y, z"),
        "push": Attr.of("list", _PUSH),
        "trips": Attr.of("int", "how often the loops of one thread go in all; drivers have limits", required=False),
        "level": _LEVEL,
    },
    results=0,
    verify=rules.dispatch_verify,
    pure=False,
)
_def(
    "program.download",
    "a new tensor of the host with what stands in a buffer after all levels",
    ("buffer",),
    verify=rules.download_verify,
    pure=False,
)
_def("program.return", "ends the program", ("values*",), results=0, terminator=True, pure=False)
