"""Kernels with a thread per element: expressions, copies, and rows that are looked up."""

from __future__ import annotations

from collections.abc import Sequence

from aatc.backends.vulkan.kernels import Dispatch
from aatc.backends.vulkan.model.nodes import Node, views_in
from aatc.backends.vulkan.model.views import View, contiguous
from aatc.backends.vulkan.model.writing import MOST_GROUPS, Writer, merged, spread, total

_THREADS = 64


def elementwise(name: str, root: Node, out: View) -> list[Dispatch]:
    """``out`` = ``root``, which broadcasts to it; none for no elements."""
    if not out.count:
        return []
    views = views_in(root)
    shape, steps = merged(out.shape, [out.strides, *(v.expanded(out.shape).strides for v in views)])
    w = Writer(name, _THREADS)
    thread = _thread(w, total(shape))
    inside = w.body
    inside.open()
    flat, counts = list(contiguous(tuple(shape))), Coordinates(w, shape, thread)
    loads = {
        v: w.loaded(v, _place(w, v, s, flat, counts, f"s{n}"))
        for n, (v, s) in enumerate(zip(views, steps[1:], strict=True))
    }
    (text,) = w.evaluate([root], loads)
    w.base(out, write=True)
    w.store(out, _place(w, out, steps[0], flat, counts, "so", write=True), text, root.kind)
    inside.close_if(f"{thread} < {w.size('n', total(shape))}")
    return [w.dispatch(spread(total(shape), _THREADS))]


def lookup(name: str, source: View, axis: int, index: View, out: View, refused: str) -> list[Dispatch]:
    """``out`` = the entry of ``source`` along ``axis`` that ``index``, of the shape of ``out``, says; the other axes of
    ``source`` are those of ``out``, or of one entry. An index without an entry sets the buffer ``refused`` to 1."""
    if not out.count:
        return []
    of = [0 if n == axis or source.shape[n] == 1 else s for n, s in enumerate(source.strides)]
    shape, steps = merged(out.shape, [out.strides, index.expanded(out.shape).strides, of])
    w = Writer(name, _THREADS)
    thread = _thread(w, total(shape))
    w.body.open()
    flat, counts = list(contiguous(tuple(shape))), Coordinates(w, shape, thread)
    at = w.loaded(index, _place(w, index, steps[1], flat, counts, "si"))
    entries = w.size("entries", source.shape[axis])
    flag = View.whole(refused, "i32", (1,))
    w.body.open()
    w.body.write("i32", w.base(flag, write=True), "1")
    w.body.close_if(f"({at} < 0) || ({at} >= {entries})")
    kept = w.body.let("entry", "i32", f"clamp({at}, 0, {entries} - 1)")
    place = f"{_place(w, source, steps[2], flat, counts, 'ss')} + {kept} * {w.size('along', source.strides[axis])}"
    value = w.loaded(source, place)
    w.base(out, write=True)
    w.store(out, _place(w, out, steps[0], flat, counts, "so", write=True), value, source.kind)
    w.body.close_if(f"{thread} < {w.size('n', total(shape))}")
    return [w.dispatch(spread(total(shape), _THREADS))]


def scattered_sums(name: str, source: View, index: View, axis: int, out: View) -> list[Dispatch]:
    """``out``, contiguous, = along ``axis`` the sum of those of ``source`` whose ``index``, of the same shape, it is:
    in order, whatever the device. The other axes are the same."""
    if not out.count:
        return []
    rounds = source.shape[axis]
    if rounds >= MOST_GROUPS:
        raise NotImplementedError(f"sums of {rounds} entries")
    of = [[0 if n == axis else s for n, s in enumerate(v.strides)] for v in (source, index)]
    w = Writer(name, _THREADS)
    thread = _thread(w, out.count)
    w.body.open()
    counts, flat = Coordinates(w, out.shape, thread), list(contiguous(out.shape))
    places = [_place(w, v, s, flat, counts, f"s{n}") for n, (v, s) in enumerate(zip((source, index), of, strict=True))]
    mine = counts.names()[axis]
    sum_ = w.body.var("sum", "f32", "0.0")
    w.body.open()
    at = w.loaded(index, f"{places[1]} + t * {w.size('ti', index.strides[axis])}")
    w.body.open()
    value = w.loaded(source, f"{places[0]} + t * {w.size('ts', source.strides[axis])}")
    w.body.set(sum_, f"{sum_} + {value}")
    w.body.close_if(f"{at} == {mine}")
    w.body.close_for("t", "0", w.size("rounds", rounds), 1)
    w.store(out, f"{w.base(out, write=True)} + {thread}", sum_, "f")
    w.body.close_if(f"{thread} < {w.size('n', out.count)}")
    return [w.dispatch(spread(out.count, _THREADS), [rounds])]


class Coordinates:
    """The coordinates of a thread's element, written where they are first needed."""

    def __init__(self, w: Writer, shape: Sequence[int], thread: str):
        self.w, self.shape, self.thread = w, shape, thread
        self.made: list[str] | None = None

    def names(self) -> list[str]:
        if self.made is None:
            rest, found = self.thread, []
            for axis in range(len(self.shape) - 1, -1, -1):
                if axis == 0:
                    found.append(rest)
                    break
                n = self.w.size(f"d{axis}", self.shape[axis])
                found.append(self.w.body.let(f"c{axis}", "i32", f"{rest} % {n}"))
                rest = self.w.body.let(f"r{axis}", "i32", f"{rest} / {n}")
            self.made = found[::-1]
        return self.made


def _thread(w: Writer, count: int) -> str:
    return w.body.let("element", "i32", f"(group.y * groups.x + group.x) * {_THREADS} + thread")


def _place(
    w: Writer,
    view: View,
    steps: Sequence[int],
    flat: Sequence[int],
    counts: Coordinates,
    word: str,
    *,
    write: bool = False,
) -> str:
    """Where the thread's element of a view lies: by its number, by coordinates, or the same for all."""
    base = w.base(view, write=write)
    if not any(steps):
        return base
    if list(steps) == list(flat):
        return f"{base} + {counts.thread}"
    strides = [w.size(f"{word}_{n}", s) if s else 0 for n, s in enumerate(steps)]
    return (
        w.at(view, strides, counts.names())
        if not write
        else " + ".join([base, *(f"{c} * {s}" for s, c in zip(strides, counts.names(), strict=True) if s != 0)])
    )


def demand_finite(name: str, view: View, refused: str) -> list[Dispatch]:
    """Sets the buffer ``refused`` to 1 where a number of ``view`` is infinite or none."""
    if not view.count or view.kind != "f":
        return []
    shape, steps = merged(view.shape, [view.strides])
    w = Writer(name, _THREADS)
    thread = _thread(w, total(shape))
    w.body.open()
    place = _place(w, view, steps[0], list(contiguous(tuple(shape))), Coordinates(w, shape, thread), "s")
    value = w.loaded(view, place)
    w.body.open()
    w.body.write("i32", w.base(View.whole(refused, "i32", (1,)), write=True), "1")
    w.body.close_if(f"!w_finite({value})")
    w.body.close_if(f"{thread} < {w.size('n', total(shape))}")
    return [w.dispatch(spread(total(shape), _THREADS))]
