"""float16 and bfloat16 in memory, where the processor does not convert them: LLVM would call functions that a process
need not have. Roundings are to the nearest, ties to even; a NaN stays one."""

from __future__ import annotations

from aatc.backends.native.llvm import Code, Val, number, vector_of


def widened(code: Code, x: Val) -> Val:
    """A half or bfloat as a float."""
    bits = code.cast("bitcast", x, vector_of("i16", x.lanes))
    wide, single = vector_of("i32", x.lanes), vector_of("float", x.lanes)
    b = code.cast("zext", bits, wide)

    def c(value: int) -> Val:
        return number(value, wide)

    if x.scalar == "bfloat":
        return code.cast("bitcast", code.binary("shl", b, c(16)), single)
    sign = code.binary("shl", code.binary("and", b, c(0x8000)), c(16))
    rest = code.binary("and", b, c(0x7FFF))
    moved = code.binary("shl", rest, c(13))
    normal = code.add(moved, c(112 << 23))
    infinite = code.binary("or", moved, c(0x7F800000))
    small = code.mul(code.cast("sitofp", rest, single), number(2.0**-24, single))
    out = code.select(code.compare("uge", rest, c(0x7C00)), infinite, normal)
    out = code.select(code.compare("ult", rest, c(0x0400)), code.cast("bitcast", small, wide), out)
    return code.cast("bitcast", code.binary("or", out, sign), single)


def narrowed(code: Code, x: Val, scalar: str) -> Val:
    """A float as a half or bfloat."""
    wide, single = vector_of("i32", x.lanes), vector_of("float", x.lanes)
    b = code.cast("bitcast", x, wide)

    def c(value: int) -> Val:
        return number(value, wide)

    def shifted(v: Val, by: int) -> Val:
        return code.binary("lshr", v, c(by))

    if scalar == "bfloat":
        odd = code.binary("and", shifted(b, 16), c(1))
        rounded = shifted(code.add(code.add(b, c(0x7FFF)), odd), 16)
        nan = code.binary("or", shifted(b, 16), c(0x40))
        out = code.select(code.compare("uno", x, x), nan, rounded)
    else:
        sign = code.binary("and", shifted(b, 16), c(0x8000))
        size = code.binary("and", b, c(0x7FFFFFFF))
        odd = code.binary("and", shifted(size, 13), c(1))
        normal = shifted(code.add(code.add(size, c(((15 - 127) << 23) + 0xFFF)), odd), 13)
        # added to 0.5, digits below those of the least halves are rounded away
        small = code.add(code.cast("bitcast", size, single), number(0.5, single))
        small = code.sub(code.cast("bitcast", small, wide), c(126 << 23))
        out = code.select(code.compare("ult", size, c(113 << 23)), small, normal)
        out = code.select(code.compare("uge", size, c(143 << 23)), c(0x7C00), out)
        nan = code.binary("or", code.binary("and", shifted(size, 13), c(0x3FF)), c(0x7E00))
        out = code.select(code.compare("ugt", size, c(0x7F800000)), nan, out)
        out = code.binary("or", out, sign)
    return code.cast("bitcast", code.cast("trunc", out, vector_of("i16", x.lanes)), vector_of(scalar, x.lanes))
