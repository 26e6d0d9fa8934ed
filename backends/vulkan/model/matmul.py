"""Products of matrices, in batches, of operands that lie anyhow; what is done with a product's elements comes along."""

from __future__ import annotations

from dataclasses import dataclass

from aatc.backends.vulkan.kernels import Dispatch
from aatc.backends.vulkan.language import Barrier, Shared
from aatc.backends.vulkan.model.nodes import Node, views_in
from aatc.backends.vulkan.model.views import View, contiguous
from aatc.backends.vulkan.model.writing import MOST_GROUPS, Writer, merged, total

#: What the sum of products is called in what is done with it.
PRODUCT = "product"
#: Rows and columns of a workgroup's tile, of a thread's, and terms that are staged at once.
_TILE, _EACH, _DEPTH = 32, 4, 16
_ACROSS = _TILE // _EACH
_THREADS = _ACROSS * _ACROSS


@dataclass(frozen=True)
class Product:
    """``a`` (..., m, k) times ``b`` (..., k, n), both with the batch axes of the result."""

    a: View
    b: View

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.a.shape[:-1], self.b.shape[-1])


def fits(p: Product) -> bool:
    """Whether there is a kernel: batches that lie in at most two steps, and no more of them than a grid takes."""
    batch = p.shape[:-2]
    axes, _ = merged(batch, [p.a.strides[:-2], p.b.strides[:-2], contiguous(p.shape)[:-2]])
    return len(axes) <= 2 and total(batch) <= MOST_GROUPS and -(-p.shape[-2] // _TILE) <= MOST_GROUPS


def matmul(name: str, p: Product, root: Node, out: View) -> list[Dispatch]:
    """``out``, contiguous, = ``root``, in which the product is held as `PRODUCT`."""
    if not out.count:
        return []
    rows, cols, depth = p.shape[-2], p.shape[-1], p.a.shape[-1]
    views = [v.expanded(p.shape) for v in views_in(root)]
    lead = len(p.shape) - 2
    axes, steps = merged(p.shape[:-2], [x.strides[:lead] for x in (p.a, p.b, out, *views)])
    w = Writer(name, _THREADS)
    b = w.body
    b.shared += [Shared("left", "f32", _DEPTH * (_TILE + 1)), Shared("right", "f32", _DEPTH * (_TILE + 1))]
    m, n, k = w.size("m", rows), w.size("n", cols), w.size("k", depth)
    batch = _batch(w, axes)
    places = [
        _start(w, x, s, batch, f"b{at}", write=at == 2)
        for at, (x, s) in enumerate(zip((p.a, p.b, out, *views), steps, strict=True))
    ]
    row0, col0 = b.let("row", "i32", f"group.y * {_TILE}"), b.let("col", "i32", f"group.x * {_TILE}")
    down, across = b.let("down", "i32", f"thread / {_ACROSS}"), b.let("across", "i32", f"thread % {_ACROSS}")
    sums = [[b.var(f"s{r}{c}", "f32", "0.0") for c in range(_EACH)] for r in range(_EACH)]
    b.open()
    _stage(w, "left", places[0], (row0, m, p.a.strides[-2], "am"), ("t", k, p.a.strides[-1], "ak"))
    _stage(w, "right", places[1], (col0, n, p.b.strides[-1], "bn"), ("t", k, p.b.strides[-2], "bk"))
    b.add(Barrier())
    b.open()
    lefts = [b.let("l", "f32", f"left[d * {_TILE + 1} + {down} + {_ACROSS * r}]") for r in range(_EACH)]
    rights = [b.let("r", "f32", f"right[d * {_TILE + 1} + {across} + {_ACROSS * c}]") for c in range(_EACH)]
    for r in range(_EACH):
        for c in range(_EACH):
            b.set(sums[r][c], f"{sums[r][c]} + {lefts[r]} * {rights[c]}")
    b.close_for("d", "0", str(_DEPTH), 1)
    b.add(Barrier())
    b.close_for("t", "0", k, _DEPTH)
    strides = [
        [w.size(f"v{at}{x}", s) if s else 0 for x, s in zip("mn", v.strides[-2:], strict=True)]
        for at, v in enumerate(views)
    ]
    for r in range(_EACH):
        at_row = b.let("i", "i32", f"{row0} + {down} + {_ACROSS * r}")
        for c in range(_EACH):
            at_col = b.let("j", "i32", f"{col0} + {across} + {_ACROSS * c}")
            b.open()
            loads = {}
            for v, whole, start, s in zip(views_in(root), views, places[3:], strides, strict=True):
                loads[v] = w.loaded(
                    whole,
                    " + ".join([start, *(f"{x} * {y}" for x, y in zip((at_row, at_col), s, strict=True) if y != 0)]),
                )
            (text,) = w.evaluate([root], loads, {PRODUCT: sums[r][c]})
            w.store(out, f"{places[2]} + {at_row} * {n} + {at_col}", text, root.kind)
            b.close_if(f"{at_row} < {m} && {at_col} < {n}")
    grid = (-(-cols // _TILE), -(-rows // _TILE), total(axes))
    return [w.dispatch(grid, [-(-depth // _DEPTH), _DEPTH])]


def _batch(w: Writer, axes: list[int]) -> list[str]:
    """The coordinates of a workgroup's problem."""
    if len(axes) < 2:
        return ["group.z"] * len(axes)
    inner = w.size("inner", axes[1])
    return [w.body.let("outer", "i32", f"group.z / {inner}"), w.body.let("within", "i32", f"group.z % {inner}")]


def _start(w: Writer, view: View, steps: list[int], batch: list[str], word: str, *, write: bool) -> str:
    """Where the problem's matrix begins."""
    parts = [w.base(view, write=write)]
    parts += [f"{at} * {w.size(f'{word}{n}', s)}" for n, (s, at) in enumerate(zip(steps, batch, strict=True)) if s]
    return w.body.let("start", "i32", " + ".join(parts)) if len(parts) > 1 else parts[0]


def _stage(
    w: Writer, array: str, start: str, across: tuple[str, str, int, str], along: tuple[str, str, int, str]
) -> None:
    """Copies a block of an operand to shared memory, 0 where it ends: `_TILE` places ``across`` (first, bound, stride,
    word), `_DEPTH` terms ``along``. Threads next to each other take the axis that lies closer."""
    b = w.body
    first, bound, stride, word = across
    term, terms, step, name = along
    for n in range(_TILE * _DEPTH // _THREADS):
        at = b.let("at", "i32", f"thread + {n * _THREADS}")
        by_term = step <= stride
        d, x = (f"{at} % {_DEPTH}", f"{at} / {_DEPTH}") if by_term else (f"{at} / {_TILE}", f"{at} % {_TILE}")
        d, x = b.let("d", "i32", d), b.let("x", "i32", x)
        inside = b.let("in", "bool", f"({first} + {x} < {bound}) && ({term} + {d} < {terms})")
        far = f"({first} + {x}) * {w.size(word, stride)} + ({term} + {d}) * {w.size(name, step)}"
        place = f"{start} + select(0, {far}, {inside})"
        b.set(f"{array}[{d} * {_TILE + 1} + {x}]", f"select(0.0, load_f({place}), {inside})")
