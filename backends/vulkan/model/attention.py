"""Attentions within a model on the device: dispatches of their tile programs, and what they must hold for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aatc.backends.vulkan.compiled import all_sizes, classified
from aatc.backends.vulkan.lower import Lowered, lower
from aatc.backends.vulkan.model.builder import Builder
from aatc.backends.vulkan.model.elementwise import demand_finite
from aatc.backends.vulkan.model.nodes import Node
from aatc.backends.vulkan.model.operators import Unsupported
from aatc.backends.vulkan.model.views import View
from aatc.backends.vulkan.whole import Device
from aatc.ir.containment import checked
from aatc.ir.core import Module, Op, Value, clone_func
from aatc.ir.registry import Symbol
from aatc.ir.specialize import keep_results
from aatc.ir.types import TensorType


class Attentions:
    """The attentions of a module, as a builder asks for them. A tile function is lowered once."""

    def __init__(self, module: Module, device: Device):
        self.module, self.device = module, device
        self._lowered: dict[Any, Lowered] = {}
        self._saved: dict[Op, tuple[list[View], list[View]]] = {}  # all results of forwards, and their operands

    def forward(self, b: Builder, op: Op) -> Sequence[View]:
        """Output and log-sum-exp."""
        lowered = self._of(op.attrs["forward"])
        views = [b.segment.whole(b.view(v)) for v in op.operands]
        if "mask" in op.attrs:  # a product with 0 would spread what is not finite to rows that do not see it
            axes = dict(zip(op.attrs["names"], op.attrs.get("axes", ()), strict=False))
            for n in checked(op.attrs["names"], axes):
                b.segment.dispatches += demand_finite("finite", views[n], b.segment.check())
        made = _insert(b, lowered, views)
        self._saved[op] = made, views
        return made[: len(op.results)]

    def backward(self, b: Builder, op: Op, given: Sequence[Any], wanted: set[Value]) -> list[tuple[Value, View]]:
        """Gradients of the operands that are ``wanted``, of those that have any, given those of output and
        log-sum-exp. An operand that comes twice has two."""
        results, operands = self._saved[op]
        of = dict(zip(op.attrs["names"], op.operands, strict=True))
        needed = tuple(of[name] in wanted for name in op.attrs["grads"])
        if not any(needed):
            return []
        grads = [
            b.segment.written(Node("number", "f", r.shape, data=0.0) if g is None else b.node(g), "f32", "gradient")
            for r, g in zip(results[:2], given, strict=True)
        ]
        lowered = self._of(op.attrs["backward"], needed)
        views = [b.segment.whole(v) for v in (*grads, *results[2:], *operands)]
        names = [name for name, keep in zip(op.attrs["grads"], needed, strict=True) if keep]
        return [(of[name], view) for name, view in zip(names, _insert(b, lowered, views), strict=True)]

    def _of(self, symbol: Symbol, needed: tuple[bool, ...] = ()) -> Lowered:
        key = symbol.name, needed
        if key not in self._lowered:
            func = self.module.funcs[symbol.name]
            if needed:
                func = keep_results(clone_func(func), needed)
            self._lowered[key] = lower(func, self.device)
        return self._lowered[key]


def _insert(b: Builder, lowered: Lowered, views: Sequence[View]) -> list[View]:
    """Adds a tile function; views of all that it returns."""
    if lowered.before or lowered.after:
        step = (*lowered.before, *lowered.after)[0]
        raise Unsupported(f"{step.name} of an attention runs on the host")
    if any(op.operands for op in lowered.runs.values()):
        raise Unsupported("a mask that reads tensors is classified on the host")
    sizes = _sizes(lowered, views)
    runs = {name: classified(op, {}, sizes) for name, op in lowered.runs.items()}
    arguments = {x.name: v for x, v in zip(lowered.template.arguments, views, strict=True)}
    made = b.segment.insert(lowered.template, arguments, runs, sizes)
    return [made[name] for name in lowered.template.returns]


def _sizes(lowered: Lowered, views: Sequence[View]) -> dict[str, int]:
    """The symbols of a tile function, from its arguments' shapes."""
    func, sizes = lowered.func, dict[str, int]()
    shapes = [(_type(a).shape, v.shape) for a, v in zip(func.args, views, strict=True)]
    for shape, have in shapes:
        for d, n in zip(shape, have, strict=True):
            if len(d.terms) == 1 and d.terms[0][1] == 1 and d.const == 0:
                sizes.setdefault(d.terms[0][0], n)
    for shape, have in shapes:
        if tuple(d.evaluate(sizes) for d in shape) != have:
            raise Unsupported(f"@{func.name} takes {shape}, not {have}")
    return all_sizes(lowered, sizes)


def _type(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type
