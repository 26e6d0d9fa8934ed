"""One stretch of a model on the device, being written: buffers, dispatches, and what comes from the host."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from aatc.backends.vulkan.kernels import Buffer, Dispatch, Extent, Offset, Rounds, Template
from aatc.backends.vulkan.model import matmul as products
from aatc.backends.vulkan.model.elementwise import elementwise
from aatc.backends.vulkan.model.nodes import Node, held, load, nodes_of, replaced
from aatc.backends.vulkan.model.views import View
from aatc.ir.dims import Dim


@dataclass
class Segment:
    """``constants``: buffers whose numbers are known now. ``checks``: buffers of one word that a kernel sets to 1 where
    it must not run."""

    buffers: list[Buffer] = field(default_factory=list)
    dispatches: list[Dispatch] = field(default_factory=list)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    parted: list[str] = field(default_factory=list)  # buffers that several kernels write to, each some of it
    count: int = 0
    known: dict[int, tuple[torch.Tensor, View]] = field(default_factory=dict)

    def name(self, hint: str) -> str:
        self.count += 1
        clean = "".join(c if c.isascii() and c.isalnum() else "_" for c in hint).strip("_") or "v"
        return f"{clean}_{self.count}"

    def new(self, hint: str, dtype: str, shape: tuple[int, ...], role: str = "scratch") -> View:
        """A buffer of its own, whole."""
        name = self.name(hint)
        self.buffers.append(Buffer(name, role, dtype, tuple(map(Dim.of, shape))))
        return View.whole(name, dtype, shape)

    def constant(self, t: torch.Tensor, dtype: str) -> View:
        """A tensor that is the same in every call."""
        if id(t) not in self.known:
            view = self.new("constant", dtype, tuple(t.shape), "argument")
            self.constants[view.buffer] = t
            self.known[id(t)] = t, view
        return self.known[id(t)][1]

    def check(self) -> str:
        """A new word that a kernel may set."""
        name = self.name("refused")
        self.buffers.append(Buffer(name, "refused", "i32", (Dim.of(1),)))
        self.checks.append(name)
        return name

    # --- numbers -------------------------------------------------------------------------------------------
    def written(self, root: Node, dtype: str, hint: str = "value") -> View:
        """A buffer with the numbers of ``root``, by one kernel, and one for each product of matrices but the last."""
        if root.op == "load" and root.data.dtype == dtype:
            found: View = root.data
            return found
        out = self.new(hint, dtype, root.shape)
        self.write(root, out, hint)
        return out

    def write(self, root: Node, out: View, hint: str) -> None:
        found = [n for n in nodes_of(root) if n.op == "product"]
        last = found[-1] if found and found[-1].shape == out.shape and out.is_flat else None
        table = {n: load(self.written_product(n, n, held(products.PRODUCT))) for n in found if n is not last}
        if last is None:
            self.dispatches += elementwise(hint, replaced(root, table), out)
        else:
            table[last] = held(products.PRODUCT)
            self.dispatches += products.matmul(hint, last.data, replaced(root, table), out)

    def written_product(self, product: Node, like: Node, root: Node) -> View:
        out = self.new("product", "f32", like.shape)
        self.dispatches += products.matmul("product", product.data, root, out)
        return out

    def whole(self, view: View) -> View:
        """The same elements as a whole buffer, in order."""
        sizes = {b.name: b for b in self.buffers}
        have = 1
        for d in sizes[view.buffer].shape:
            have *= int(d)
        if view.is_flat and view.offset == 0 and have == view.count:
            return view
        out = self.new("copy", view.dtype, view.shape)
        self.dispatches += elementwise("copy", load(view), out)
        return out

    # --- programs of others --------------------------------------------------------------------------------
    def insert(
        self, template: Template, arguments: dict[str, View], runs: dict[str, torch.Tensor], sizes: dict[str, int]
    ) -> dict[str, View]:
        """Adds a tile function's dispatches for given sizes; returns views of what it returns, by name."""
        names = {name: v.buffer for name, v in arguments.items()}
        sizes = dict(sizes)
        made: dict[str, View] = {}
        for b in template.buffers:
            if b.name in names:
                continue
            if b.role == "runs":
                t = runs[b.name]
                names[b.name] = self.constant(t, "i32").buffer
                sizes |= {f"{b.name}_n{n}": d for n, d in enumerate(t.shape)}
            elif b.role == "refused":
                names[b.name] = self.check()
            else:
                shape = tuple(d.evaluate(sizes) for d in b.shape)
                made[b.name] = self.new(b.name, b.dtype, shape)
                names[b.name] = made[b.name].buffer
        for d in template.dispatches:
            self.dispatches.append(_renamed(d, names, sizes))
        return {name: made.get(name) or arguments[name] for name in template.returns}


def _renamed(d: Dispatch, names: dict[str, str], sizes: dict[str, int]) -> Dispatch:
    push: dict[str, Extent | float | Offset] = {}
    for word, value in d.push.items():
        if isinstance(value, Offset):
            push[word] = replace(value, buffer=names[value.buffer])
        elif isinstance(value, Extent):
            push[word] = Extent((Dim.of(value.evaluate(sizes)),))
        else:
            push[word] = value

    def given(r: Rounds) -> Rounds:
        return replace(r, dims=tuple(Dim.of(x.evaluate(sizes)) for x in r.dims))

    x, y, z = map(given, d.grid)
    reads, writes = (tuple(names[n] for n in each) for each in (d.reads, d.writes))
    return replace(d, grid=(x, y, z), push=push, reads=reads, writes=writes, trips=tuple(map(given, d.trips)))
