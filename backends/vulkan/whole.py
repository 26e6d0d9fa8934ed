"""Kernels of operations on whole buffers: means, largest lengths, fills, and what stands outside of loops."""

from __future__ import annotations

from dataclasses import dataclass

from aatc.backends.vulkan.emit import Emitter, Names
from aatc.backends.vulkan.kernels import Buffer, Dispatch, Extent, Kernel, Offset, Rounds
from aatc.backends.vulkan.lanes import PLAIN_THREADS, Lanes
from aatc.backends.vulkan.memory import word
from aatc.backends.vulkan.printers import glsl, wgsl
from aatc.backends.vulkan.races import check_races
from aatc.backends.vulkan.reductions import down
from aatc.backends.vulkan.table import lowering
from aatc.backends.vulkan.tiles import Source
from aatc.backends.vulkan.uniform import check_uniform
from aatc.backends.vulkan.words import convert, number
from aatc.ir.core import Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import UnsupportedError
from aatc.ir.types import TensorType

#: Workgroups that look at parts of a buffer for its largest entry.
PARTS = 32
_ONE = Rounds((Dim.of(1),))


@dataclass(frozen=True)
class Device:
    """What code generation asks of a device: lanes that shuffle (0: none), shared bytes, threads of a workgroup."""

    subgroup: int = 8
    shared_bytes: int = 32768
    threads: int = 1024


def plain(func: Func, names: Names, name: str, device: Device, threads: int = PLAIN_THREADS) -> Emitter:
    """A kernel whose threads stand in one column."""
    threads = min(threads, device.threads)
    lanes = Lanes(threads, 1, threads, 1, device.subgroup)
    return Emitter(func, names, name, lanes, "", "", device.shared_bytes)


def finished(e: Emitter, grid: tuple[Rounds, Rounds, Rounds], trips: tuple[Rounds, ...] = ()) -> Dispatch:
    """The dispatch of what was written, verified and printed."""
    body = e.body
    check_uniform(body)
    check_races(body)
    features = frozenset(body.features)
    if "subgroup" in features:
        features |= {f"subgroup({e.lanes.across})"}
    kernel = Kernel(
        body.name,
        glsl(body),
        wgsl(body),
        tuple(body.push),
        (body.threads, 1, 1),
        body.shared_bytes,
        features,
        len(body.push) > 32,
    )
    reads = dict.fromkeys(e.names.of(e.instead.get(v, (v,))[0]) for v in e.reads)
    writes = dict.fromkeys(e.names.of(e.instead.get(v, (v,))[0]) for v in e.writes)
    if e.refuses:
        writes["refused"] = None
    return Dispatch(kernel, grid, {w: e.push[w] for w in body.push}, tuple(reads), tuple(writes), trips)


def elements(dims: tuple[Dim, ...], each: int) -> tuple[Rounds, Rounds, Rounds]:
    """A grid over all elements of a shape, ``each`` per workgroup."""
    return Rounds(dims or (Dim.of(1),), each), _ONE, _ONE


def _count(e: Emitter, dims: tuple[Dim, ...]) -> str:
    e.push["n_all"] = Extent(dims)
    return e.body.word("n_all")


def fill(func: Func, names: Names, op: Op, device: Device) -> Dispatch:
    """A buffer filled: one kernel for all of them."""
    e = plain(func, names, "fill", device)
    t: TensorType = op.result.type  # type: ignore[assignment]
    count = _count(e, t.shape)
    e.push["o_buffer"] = Offset(names.of(op.result))
    start = e.body.word("o_buffer")
    floating = t.dtype in ("f32", "bf16", "f16")
    if floating:
        e.push["f_value"] = float(op.attrs["fill"])
        value = e.body.word("f_value")
    else:
        value = number(int(op.attrs["fill"]), "i")
    at = e.let("at", "i32", f"4 * (group.x * {e.lanes.threads} + thread)")
    e.when(f"{at} < {count}")
    if floating:
        e.body.write("vec4f", f"{start} + {at}", f"vec4f({value})")
    else:
        for n in range(4):
            e.body.write("i32", f"{start} + {at} + {n}", value)
    e.close()
    e.writes[op.result] = None
    return finished(e, elements(t.shape, 4 * e.lanes.threads))


def centre(func: Func, names: Names, op: Op, device: Device) -> list[Dispatch]:
    e = plain(func, names, f"{func.name}_{names.of(op.result)}", device)
    buffer = op.operands[0]
    shape = e.shape(buffer)
    axis = next(n for n, c in enumerate(op.attrs["axes"]) if c in "ij")
    e.reads[buffer] = None
    e.writes[op.result] = None
    rest = (*shape[:axis], *shape[axis + 1 :])
    count, tokens = _count(e, rest), e.dim(shape[axis])
    tail = e.times("1", *(e.dim(d) for d in shape[axis + 1 :]))
    s = Source(e.offset(buffer), {}, e_kind(buffer))
    at = e.let("at", "i32", f"group.x * {e.lanes.threads} + thread")
    e.when(f"{at} < {count}")
    start = e.let("start", "i32", f"{s.base} + {at} / ({tail}) * ({e.times(tokens, tail)}) + {at} % ({tail})")
    total = e.body.var("total", "f32", "0.0")
    e.body.open()
    n = e.body.fresh("n")
    x = e.let("x", "f32", convert(word(s, f"{start} + {e.times(n, f'({tail})')}"), s.kind, "f"))
    e.body.set(total, f"{total} + select(0.0, {x}, w_finite({x}))")
    e.body.close_for(n, "0", tokens, 1)
    mean = f"select(0.0, {total} / f32(max({tokens}, 1)), {tokens} > 0)"
    e.body.write("f32", f"{e.offset(op.result)} + {at}", mean)
    e.close()
    return [finished(e, elements(rest, e.lanes.threads), (Rounds((shape[axis],)),))]


def e_kind(v: Value) -> str:
    from aatc.backends.vulkan.emit import kind_of

    assert isinstance(v.type, TensorType)
    return kind_of(v.type.dtype)


def peak(func: Func, names: Names, op: Op, device: Device, made: list[Buffer]) -> list[Dispatch]:
    """In two steps: parts of the buffer, then the parts. What is not finite counts as infinite."""
    buffer = op.operands[0]
    part = Value(TensorType.of("f32", (PARTS,)), f"{op.result.name}_parts")
    made.append(Buffer(names.of(part), "scratch", "f32", (Dim.of(PARTS),)))
    e = plain(func, names, f"{func.name}_{names.of(part)}", device)
    shape = e.shape(buffer)
    lines = shape[:-1] if op.attrs["rows"] else shape
    width = e.dim(shape[-1]) if op.attrs["rows"] else "1"
    e.reads[buffer] = None
    e.writes[part] = None
    count = _count(e, lines)
    s = Source(e.offset(buffer), {}, e_kind(buffer))
    best = e.body.var("best", "f32", "0.0")
    each = PARTS * e.lanes.threads
    e.body.open()
    n = e.body.fresh("n")
    line = e.let("line", "i32", f"{n} + group.x * {e.lanes.threads} + thread")
    e.when(f"{line} < {count}")
    if op.attrs["rows"]:
        total = e.body.var("total", "f32", "0.0")
        e.body.open()
        d = e.body.fresh("d")
        x = e.let("x", "f32", f"load_f({s.base} + {line} * {width} + {d})")
        e.body.set(total, f"{total} + {x} * {x}")
        e.body.close_for(d, "0", width, 1)
        value = f"sqrt({total})"
    else:
        total = e.let("x", "f32", convert(word(s, f"{s.base} + {line}"), s.kind, "f"))
        value = f"abs({total})"
    e.body.set(best, f"select(bits_f(0x7f800000u), max({best}, {value}), w_finite({total}))")
    e.close()
    e.body.close_for(n, "0", count, each)
    (most,) = down(e, [best], "max", "f32", "most")
    e.when("thread == 0")
    e.body.write("f32", f"{e.offset(part)} + group.x", most)
    e.close()
    first = finished(e, (Rounds((Dim.of(PARTS),)), _ONE, _ONE), (Rounds(lines, each), Rounds(shape[-1:])))
    e = plain(func, names, "largest", device, 1)
    e.reads[part] = None
    e.writes[op.result] = None
    e.push |= {"o_parts": Offset(names.of(part)), "o_most": Offset(names.of(op.result))}
    best = e.body.var("best", "f32", "0.0")
    e.body.open()
    n = e.body.fresh("n")
    e.body.set(best, f"max({best}, load_f({e.body.word('o_parts')} + {n}))")
    e.body.close_for(n, "0", str(PARTS), 1)
    e.body.write("f32", e.body.word("o_most"), best)
    return [first, finished(e, (_ONE, _ONE, _ONE))]


def finish(func: Func, names: Names, op: Op, device: Device) -> list[Dispatch]:
    e = plain(func, names, f"{func.name}_{names.of(op.result)}", device)
    buffer = op.operands[0]
    e.reads[buffer] = None
    e.writes[op.result] = None
    count = _count(e, e.shape(buffer))
    at = e.let("at", "i32", f"group.x * {e.lanes.threads} + thread")
    e.when(f"{at} < {count}")
    s = Source(e.offset(buffer), {}, e_kind(buffer))
    x = f"{convert(word(s, f'{s.base} + {at}'), s.kind, 'f')} * {number(op.attrs['factor'], 'f')}"
    if e_kind(op.result) != "f":
        raise UnsupportedError("gradients of integers have no kernel")
    e.body.write("f32", f"{e.offset(op.result)} + {at}", x)
    e.close()
    return [finished(e, elements(e.shape(buffer), e.lanes.threads))]


@dataclass(frozen=True)
class Parts:
    """Places for partial sums of ``whole``, one per round of a loop: ``symbol`` is how many rounds it has."""

    whole: Value
    value: Value
    buffer: Buffer
    loop: Op
    symbol: str
    rounds: Rounds
    fill: Dispatch
    add: Dispatch

    def offset(self, e: Emitter) -> str:
        """Where the place of a workgroup's round begins."""
        size = e.times("1", *(e.dim(d) for d in e.shape(self.whole)))
        return f"group.x * {size if ' ' not in size else f'({size})'}"


def parts(func: Func, names: Names, buffer: Value, loop: Op, device: Device) -> Parts:
    known = next((p for p in names.parts if p.whole is buffer and p.loop is loop), None)
    if known is not None:
        return known
    symbol = f"rounds{len(names.parts)}"
    assert isinstance(buffer.type, TensorType)
    if e_kind(buffer) != "f":
        raise UnsupportedError("sums of integers have no kernel")
    shape = (Dim.of(symbol), *buffer.type.shape)
    made = Op(
        "tile.alloc", (), {"fill": 0.0}, [TensorType(buffer.type.dtype, shape)], result_names=[f"{buffer.name}_parts"]
    )
    value = made.result
    e = plain(func, names, f"{func.name}_{names.of(buffer)}_sum", device)
    e.reads |= {value: None, buffer: None}
    e.writes[buffer] = None
    count = _count(e, buffer.type.shape or (Dim.of(1),))
    at = e.let("at", "i32", f"group.x * {e.lanes.threads} + thread")
    e.when(f"{at} < {count}")
    total = e.body.var("total", "f32", f"load_f({e.offset(buffer)} + {at})")
    e.body.open()
    n = e.body.fresh("n")
    e.body.set(total, f"{total} + load_f({e.offset(value)} + {n} * {count} + {at})")
    e.body.close_for(n, "0", e.symbol(symbol), 1)
    e.body.write("f32", f"{e.offset(buffer)} + {at}", total)
    e.close()
    add = finished(e, elements(buffer.type.shape, e.lanes.threads), (Rounds((Dim.of(symbol),)),))
    rounds = Rounds((Dim.of(loop.attrs["upper"]),), int(loop.attrs["step"]))
    part = Parts(
        buffer, value, Buffer(names.of(value), "scratch", buffer.type.dtype, shape), loop, symbol, rounds,
        fill(func, names, made, device), add,
    )  # fmt: skip
    names.parts.append(part)
    return part


def unit(e: Emitter, op: Op) -> None:
    raise UnsupportedError(f"{op.name} stands inside a loop, where it has no kernel")


_UNITS = ("centre", "peak", "finish", "alloc", "classify", "token", "gradient", "table_gradient", "pack")
lowering(*(f"tile.{name}" for name in _UNITS))(unit)
