"""Sums and extremes along the last axis, one after the other, and what is made of them: a workgroup per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aatc.backends.vulkan.kernels import Dispatch
from aatc.backends.vulkan.language import Barrier, Shared
from aatc.backends.vulkan.model.nodes import Node, views_in
from aatc.backends.vulkan.model.views import View
from aatc.backends.vulkan.model.writing import MOST_GROUPS, Writer, merged, spread, total

_THREADS = 64
_NOTHING = {"sum": "0.0", "max": "bits_f(0xff800000u)", "min": "bits_f(0x7f800000u)"}
#: Of two numbers one, where a NaN stays.
_BOTH = {
    "sum": "{0} + {1}",
    "max": "select(select({0}, {1}, {1} > {0}), {1}, w_isnan({1}))",
    "min": "select(select({0}, {1}, {1} < {0}), {1}, w_isnan({1}))",
}


@dataclass(frozen=True)
class Reduction:
    """``how`` ("sum", "max" or "min") over a row of ``of``; later nodes hold it as ``name``."""

    name: str
    how: str
    of: Node


def fits(shape: tuple[int, ...]) -> bool:
    """Whether there is a kernel for rows of ``shape``: as many rows as a grid takes, of no more than loops go."""
    return total(shape[:-1]) <= MOST_GROUPS * MOST_GROUPS and shape[-1] < MOST_GROUPS * _THREADS


def rows(name: str, shape: tuple[int, ...], reductions: Sequence[Reduction], root: Node, out: View) -> list[Dispatch]:
    """``out`` = ``root``: with the axes of ``shape`` an element each, with 1 in the place of the last a number per row.
    Nodes broadcast to ``shape``."""
    if not out.count:
        return []
    per_row = out.shape[-1] == 1 and shape[-1] != 1
    views = views_in(*(r.of for r in reductions), root)
    whole = [v.expanded(shape) for v in views]
    lead = len(shape) - 1
    axes, steps = merged(shape[:-1], [x.strides[:lead] for x in (out, *whole)])
    w = Writer(name, _THREADS)
    b = w.body
    b.shared.append(Shared("parts", "f32", _THREADS))
    row = b.let("row", "i32", "group.y * groups.x + group.x")
    count = w.size("rows", total(axes))
    there = f"{row} < {count}"
    # workgroups beyond compute the last row's numbers, for nobody: all of them come to barriers
    at = _coordinates(w, axes, b.let("row", "i32", f"min({row}, {count} - 1)"))
    starts = [
        _start(w, x, s, at, f"r{n}", write=n == 0) for n, (x, s) in enumerate(zip((out, *whole), steps, strict=True))
    ]
    width = w.size("width", shape[-1])
    along = [w.size(f"w{n}", v.strides[-1]) if v.strides[-1] else 0 for n, v in enumerate(whole)]

    def loads(t: str, needed: Sequence[View]) -> dict[View, str]:
        return {
            v: w.loaded(x, start + (f" + {t} * {s}" if s != 0 else ""))
            for v, x, start, s in zip(views, whole, starts[1:], along, strict=True)
            if v in needed
        }

    names: dict[str, str] = {}
    for r in reductions:
        sum_ = b.var(r.name, "f32", _NOTHING[r.how])
        b.open()
        (text,) = w.evaluate([r.of], loads("t", views_in(r.of)), names)
        b.set(sum_, _BOTH[r.how].format(sum_, b.let("y", "f32", text)))
        b.close_for("t", "thread", width, _THREADS)
        names[r.name] = _across(w, sum_, r.how)
    if per_row:
        b.open()
        (text,) = w.evaluate([root], loads("0", views_in(root)), names)
        w.store(out, starts[0], text, root.kind)
        b.close_if(f"thread == 0 && {there}")
    else:
        b.open()
        (text,) = w.evaluate([root], loads("t", views_in(root)), names)
        w.store(out, f"{starts[0]} + t * {w.size('wo', out.strides[-1])}", text, root.kind)
        b.close_for("t", "thread", f"select(0, {width}, {there})", _THREADS)
    return [w.dispatch(spread(total(axes), 1), [-(-shape[-1] // _THREADS) * (len(reductions) + 1)])]


def _across(w: Writer, text: str, how: str) -> str:
    """What all threads have together, for each of them; in the same order whatever the device."""
    b = w.body
    b.set("parts[thread]", text)
    b.add(Barrier())
    step = _THREADS // 2
    while step:
        b.open()
        mine, other = b.let("mine", "f32", "parts[thread]"), b.let("other", "f32", f"parts[thread + {step}]")
        b.set("parts[thread]", _BOTH[how].format(mine, other))
        b.close_if(f"thread < {step}")
        b.add(Barrier())
        step //= 2
    found = b.var("all", "f32", "parts[0]")
    b.add(Barrier())
    return found


def _coordinates(w: Writer, axes: Sequence[int], row: str) -> list[str]:
    found, rest = [], row
    for axis in range(len(axes) - 1, 0, -1):
        n = w.size(f"d{axis}", axes[axis])
        found.append(w.body.let(f"c{axis}", "i32", f"{rest} % {n}"))
        rest = w.body.let(f"q{axis}", "i32", f"{rest} / {n}")
    return [rest, *found[::-1]] if axes else []


def _start(w: Writer, view: View, steps: Sequence[int], at: Sequence[str], word: str, *, write: bool) -> str:
    parts = [w.base(view, write=write)]
    parts += [f"{c} * {w.size(f'{word}_{n}', s)}" for n, (s, c) in enumerate(zip(steps, at, strict=True)) if s]
    return w.body.let("start", "i32", " + ".join(parts)) if len(parts) > 1 else parts[0]
