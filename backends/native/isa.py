"""Instruction sets as data: how wide a vector is, how many registers hold one, and what is an instruction.

A kernel is generated for an `Isa` and compiled for the same one. Names are coarse on purpose: a schedule chosen for one
holds for every processor that has it; what a processor has beyond that is in its ``features``, for LLVM.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace

from llvmlite import binding

from aatc.ir.errors import BackendError

#: What every 64-bit x86 processor has, and what level 3 and 4 of the psABI add to it. Names are LLVM's.
_X86_64 = frozenset({"64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2"})
_X86_64_V3 = _X86_64 | {
    "avx", "avx2", "bmi", "bmi2", "crc32", "cx16", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sahf", "sse3", "sse4.1",
    "sse4.2", "ssse3", "xsave",
}  # fmt: skip
_X86_64_V4 = _X86_64_V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}


@dataclass(frozen=True)
class Isa:
    """An instruction set.

    ``vector_bytes`` is the width of a vector, ``registers`` how many there are. ``fma``: multiply-adds that round once
    are instructions; without them ``llvm.fma`` is a function call per lane. ``half``: so are the conversions of
    float16. ``masks``: loads and stores of a part of a vector are instructions. ``bf16``: so are sums of two products
    of bfloat16. ``cpu`` and ``features`` are LLVM's: the processor whose timings count, and what it may be asked for.
    """

    name: str
    triple_arch: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    fma: bool
    half: bool
    masks: bool
    bf16: bool = False

    def lanes(self, bytes_per_element: int = 4) -> int:
        """Elements of a vector."""
        return self.vector_bytes // bytes_per_element


#: Wide vectors are asked for where they are used, whatever a processor would rather have its compilers choose.
_WIDE = "-prefer-256-bit"

#: From the best to the least.
TABLE: dict[str, Isa] = {
    isa.name: isa
    for isa in (
        Isa("avx512", "x86_64", "x86-64-v4", _WIDE, 64, 32, fma=True, half=True, masks=True),
        Isa("avx2", "x86_64", "x86-64-v3", "", 32, 16, fma=True, half=True, masks=True),
        Isa("sse", "x86_64", "x86-64", "", 16, 16, fma=False, half=False, masks=False),
        Isa("neon", "aarch64", "generic", "+neon", 16, 32, fma=True, half=True, masks=False),
    )
}
#: Features without which a machine does not have an instruction set.
_NEEDED = {"avx512": _X86_64_V4, "avx2": _X86_64_V3, "sse": frozenset[str](), "neon": frozenset[str]()}
#: Features that code for an instruction set may use, where the name does not stand for all that a machine has.
_ALLOWED = {"avx2": _X86_64_V3, "sse": _X86_64}


def host() -> Isa:
    """The best instruction set of this machine, or the one that the environment variable ``AATC_ISA`` names; with
    ``,-bf16`` behind it, without products of bfloat16.

    Raises BackendError if there is none, or not that one.
    """
    found = available()
    wanted, comma, without = (word.strip() for word in os.environ.get("AATC_ISA", "").partition(","))
    if comma and without != "-bf16":
        hint = f"{wanted},-bf16 takes away products of bfloat16"
        raise BackendError(f"AATC_ISA takes away {without!r}", hint=hint)
    if not found:
        hint = 'backend="cpu" runs on every processor'
        raise BackendError(f"there are no native kernels for {architecture()} processors", hint=hint)
    if not wanted:
        return _without(found[0], without)
    if wanted not in TABLE:
        raise BackendError(f"AATC_ISA names an unknown instruction set, {wanted!r}", hint=f"one of {', '.join(TABLE)}")
    for isa in found:
        if isa.name == wanted:
            return _without(isa, without)
    ours = ", ".join(isa.name for isa in found)
    raise BackendError(f"AATC_ISA names {wanted}, which this machine does not have", hint=f"it has {ours}")


def _without(isa: Isa, word: str) -> Isa:
    return replace(isa, bf16=False) if word else isa


@functools.cache
def available() -> tuple[Isa, ...]:
    """Every instruction set that this machine can run, from the best to the least."""
    arch, cpu, features = _machine()
    has = {name for name, present in features.items() if present}
    found = []
    for isa in TABLE.values():
        if isa.triple_arch == arch and _NEEDED[isa.name] <= has:
            used = has & _ALLOWED.get(isa.name, has)
            signed = [f"{'+' if name in used else '-'}{name}" for name in sorted(features)]
            text = ",".join([*filter(None, [isa.features]), *signed])
            bf16 = isa.name == "avx512" and "avx512bf16" in used
            found.append(replace(isa, cpu=cpu, features=text, bf16=bf16))
    return tuple(found)


def architecture() -> str:
    """Of this machine's processor, by LLVM's name."""
    return _machine()[0]


@functools.cache
def _machine() -> tuple[str, str, dict[str, bool]]:
    """(architecture, processor, features) of the machine that runs this process."""
    arch = binding.get_process_triple().split("-")[0]
    arch = {"arm64": "aarch64", "amd64": "x86_64"}.get(arch, arch)
    try:
        features = dict(binding.get_host_cpu_features())
    except RuntimeError:  # LLVM cannot tell for every system: what all processors of the architecture have is left
        features = {}
    return arch, binding.get_host_cpu_name(), features
