"""Walks a geo function for given inputs and decides, operator by operator, what runs on the device."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from aatc.backends.vulkan.loaded import too_large
from aatc.backends.vulkan.model import convolution, lookups  # noqa: F401  (operators)
from aatc.backends.vulkan.model.items import (
    KEYS,
    RESHAPES,
    Given,
    Known,
    check_held,
    dtype_of,
    flat,
    may_view,
    meta_of,
    several_of,
)
from aatc.backends.vulkan.model.nodes import Node, load, nodes_of, number
from aatc.backends.vulkan.model.operators import OPERATORS, Unsupported
from aatc.backends.vulkan.model.pointwise import POINTWISE, SAME
from aatc.backends.vulkan.model.segment import Segment
from aatc.backends.vulkan.model.tracing import decomposition, out_of_place, traced
from aatc.backends.vulkan.model.views import View, kind_of, views_of
from aatc.ir.core import Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import UnsupportedError
from aatc.ir.geo import constant_tensor
from aatc.ir.interpreter import gives_several, target_function
from aatc.ir.registry import Operand, TorchConst
from aatc.ir.torch_names import resolve
from aatc.ir.types import dtype_name


@dataclass
class DeviceStep:
    """``uploads``: buffers and the host's tensors that fill them; ``downloads``: values and where they lie."""

    segment: Segment
    uploads: dict[str, Value] = field(default_factory=dict)
    downloads: dict[Value, View] = field(default_factory=dict)


@dataclass
class HostStep:
    """An operator that runs on the host, and why."""

    op: Op
    reason: str


@dataclass
class Plan:
    """A function for given inputs: ``steps`` in order; ``returns`` are values of steps, arguments, or tensors that are
    known, as are values that steps on the host read, ``known``."""

    steps: list[DeviceStep | HostStep]
    returns: list[Value | torch.Tensor]
    known: dict[Value, Any] = field(default_factory=dict)

    @property
    def host(self) -> list[HostStep]:
        return [s for s in self.steps if isinstance(s, HostStep)]


class Builder:
    """``inputs``: a call's arguments, of which only numbers and the layouts of tensors count; of the tensors ``fixed``
    also what they hold, which is to be the same in every call. ``attention`` adds what
    a ``geo.kernel`` is to a segment: a function of (builder, operation) that returns views of its results."""

    def __init__(
        self,
        func: Func,
        inputs: Sequence[Any],
        attention: Callable[[Builder, Op], Sequence[View]],
        fixed: Sequence[int] = (),
    ):
        self.func, self.attention = func, attention
        self.items: dict[Any, Any] = {}
        self.steps: list[DeviceStep | HostStep] = []
        self.current: DeviceStep | None = None
        self.uses = Counter(v for op in func.body.ops for v in set(op.operands))
        self.target = ""
        self.outside: set[Value] = {a for a in func.args}  # arguments, and
        self.aliases: set[Value] = set()  # what lies in an argument's memory
        self.was_view, self.depth = False, 0  # within so many graphs that operators were traced to
        self.known: dict[Value, Any] = {}  # what operators on the host read of what is the same in every call
        self.made: list[torch.Tensor] = []  # tensors without data, as the operator at hand would return them
        for a, x in zip(func.args, inputs, strict=True):
            self.items[a] = Given(a, meta_of(x)) if isinstance(x, torch.Tensor) else x
        for n in fixed:
            self.items[func.args[n]] = Known(inputs[n].clone())

    def walk(self) -> None:
        """All operators, in order."""
        for op in self.func.body.ops[:-1]:
            self._op(op)
            self.uses.subtract(set(op.operands))

    @property
    def host_steps(self) -> list[HostStep]:
        return [s for s in self.steps if isinstance(s, HostStep)]

    def run(self) -> Plan:
        self.walk()
        last = self.func.body.ops[-1]
        returns: list[Value | torch.Tensor] = []
        if self.aliases & set(last.operands):
            raise UnsupportedError("a result lies in an argument's memory", hint="return a copy, x.clone()")
        for v in last.operands:
            item = self.items[v]
            returns.append(item.tensor if isinstance(item, Known) and v not in self.func.args else v)
        self._end(set(last.operands))
        return Plan(self.steps, returns, self.known)

    @property
    def segment(self) -> Segment:
        return self._step().segment

    def _step(self) -> DeviceStep:
        if self.current is None:
            self.current = DeviceStep(Segment())
            self.steps.append(self.current)
        return self.current

    # --- items ---------------------------------------------------------------------------------------------
    def is_tensor(self, x: Any) -> bool:
        return isinstance(x, (View, Node, Given, Known)) or (isinstance(x, KEYS) and self.is_tensor(self.items[x]))

    def item(self, x: Any) -> Any:
        return self.items[x] if isinstance(x, KEYS) else x

    def view(self, x: Any) -> View:
        """A tensor as it lies on the device, which it is brought to."""
        item = self.item(x)
        if isinstance(item, Given):
            dtype = dtype_name(item.meta.dtype)
            check_held(dtype)
            made = self.segment.new(
                x.name if isinstance(x, KEYS) else "given", dtype, tuple(item.meta.shape), "argument"
            )
            self._step().uploads[made.buffer] = item.value
        elif isinstance(item, Known):
            dtype = dtype_name(item.tensor.dtype)
            check_held(dtype)
            if too_large(item.tensor):
                raise Unsupported("integers of more than 32 bits")
            made = self.segment.constant(item.tensor, dtype)
        elif isinstance(item, Node):
            made = self.segment.written(item, {"f": "f32", "i": "i64", "b": "bool"}[item.kind])
        elif isinstance(item, View):
            return item
        else:
            raise Unsupported(f"a tensor is wanted, not {item!r}")
        if isinstance(x, KEYS):
            self.items[x] = made
        return made

    def node(self, x: Any) -> Node:
        """A tensor or number as an expression."""
        item = self.item(x)
        if isinstance(item, bool):
            return number(item, "b")
        if isinstance(item, int):
            return number(item, "i")
        if isinstance(item, float):
            return number(item, "f")
        if isinstance(item, Known) and item.tensor.dim() == 0 and item.tensor.dtype in (torch.float32, torch.float64):
            return number(item.tensor.item(), "f")
        return item if isinstance(item, Node) else load(self.view(x))

    # --- operations ----------------------------------------------------------------------------------------
    def _op(self, op: Op) -> None:
        if op.name == "geo.constant":
            self.items[op.result] = Known(constant_tensor(op))
            return
        mark = self._mark()
        try:
            if op.name == "geo.kernel":
                found: Sequence[Any] = self.attention(self, op)
            elif op.name == "torch.call":
                found = self._call(op)
            else:
                raise Unsupported(f"{op.name} has no kernel")
        except (Unsupported, UnsupportedError, NotImplementedError) as error:
            self._undo(mark)
            self._on_host(op, str(error))
            return
        for r, x in zip(op.results, found, strict=True):
            self.items[r] = x
            self._keep(r)

    def _keep(self, r: Value) -> None:
        """What several read is written down, where it is dear to compute again."""
        item = self.items[r]
        if isinstance(item, Node) and self.uses[r] > 1 and sum(1 for _ in nodes_of(item)) > 2:
            self.view(r)

    def _call(self, op: Op) -> Sequence[Any]:
        function = target_function(op.attrs["target"], op)
        if not op.results and op.attrs["target"].startswith("aten._assert_tensor_metadata"):
            return []  # importing the model has found it to hold for these shapes and types
        args, kwargs = self._arguments(op)
        found = self.call(function, op.attrs["target"], args, kwargs)
        several = gives_several(function, op)
        if len(found) == 1 and several and len(op.results) != 1:
            raise Unsupported(f"{op.attrs['target']} has no kernel")
        if args and isinstance(args[0], Value) and args[0] in self.outside:
            known = isinstance(self.items[args[0]], Known)
            if self.was_view or (known and isinstance(function, torch._ops.OpOverload) and may_view(function)):
                self.aliases |= set(op.results)
                self.outside |= set(op.results)
        return found

    def call(self, function: Any, target: str, args: list[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
        """What an operator makes of items, or of keys of `items`: an item per result. Raises: Unsupported."""
        self.target, self.was_view = target, False
        if target.startswith("aten.as_strided"):
            raise Unsupported("elements by where they lie in memory")
        if all(isinstance(self.item(x), Known) for x in flat([args, kwargs]) if self.is_tensor(x)):
            return self._constant(function, args, kwargs)
        name = target.rpartition(".")[0] if target.count(".") > 1 else target
        found = self._as_view(function, args, kwargs)
        if found is not None:
            self.was_view = True
            return found
        self._describe(function, args, kwargs)
        if name in SAME and len(self.made) == 1:
            return [self._copied(args[0])]
        if name in ("aten.to", "aten._to_copy", "aten.type_as"):
            return [self._converted(args[0])]
        if name in POINTWISE:
            return [self._pointwise(name, args, kwargs)]
        if name in OPERATORS:
            like = self.made
            made = OPERATORS[name](self, *args, **kwargs)
            several = made if isinstance(made, list) else [made]
            return [None if x is None else self._checked(x, m) for x, m in zip(several, like, strict=True)]
        return self._decomposed(function, args, kwargs)

    def _decomposed(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
        """An operator by what torch says it is made of."""
        body = decomposition(function)
        if body is None:
            raise Unsupported(f"{self.target} has no kernel")
        tensors = list(dict.fromkeys(x for x in flat([args, kwargs]) if self.is_tensor(x)))

        def run(*given: torch.Tensor) -> list[torch.Tensor]:
            of = dict(zip(tensors, given, strict=True))

            def bound(x: Any) -> Any:
                return [bound(y) for y in x] if isinstance(x, list) else of[x] if self.is_tensor(x) else x

            return several_of(body(*bound(args), **{k: bound(v) for k, v in kwargs.items()}))

        target = self.target
        try:
            graph = traced(run, [self.meta(x) for x in tensors], leaves=[False] * len(tensors))
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise Unsupported(f"{target}: {str(error).partition(chr(10))[0]}") from error
        return self.trace(graph, [self.item(x) for x in tensors], tensors)

    def trace(self, graph: fx.GraphModule, inputs: Sequence[Any], keys: Sequence[Any] = ()) -> list[Any]:
        """What a graph of operators makes of items. ``keys``: what the first inputs are kept under: where they come to
        the device in here, they are there from then on. Raises: Unsupported."""
        holders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        for n, x in zip(holders, inputs, strict=True):
            self.items[n] = x
        names = dict(zip(holders, keys, strict=False))
        self.depth += 1
        try:
            for n in graph.graph.nodes:
                if n.op == "get_attr":
                    self.items[n] = Known(getattr(graph, n.target))
                elif n.op == "call_function":
                    self._node(n, names)
            (out,) = (n for n in graph.graph.nodes if n.op == "output")
            return [self.item(names.get(x, x)) for x in out.args[0]]
        finally:
            self.depth -= 1
            for n in graph.graph.nodes:
                self.items.pop(n, None)

    def _node(self, n: fx.Node, names: dict[fx.Node, Any]) -> None:
        def read(a: Any) -> Any:
            if isinstance(a, fx.Node):
                item = self.items[names.get(a, a)]
                return names.get(a, a) if self.is_tensor(item) else item
            if isinstance(a, (list, tuple)):
                return [read(x) for x in a]
            return a

        args, kwargs = read(list(n.args)), {k: read(v) for k, v in n.kwargs.items()}
        if n.target is operator.getitem:
            self.items[n] = self.items[n.args[0]][args[1]]
            return
        if not isinstance(n.target, torch._ops.OpOverload):
            raise Unsupported(f"{n.target} has no kernel")
        target, in_place = out_of_place(n)
        if target is None or (in_place and n.args[0] in names):
            raise Unsupported(f"{n.target} has no kernel")
        found = self.call(target, str(target), args, kwargs)
        if in_place:
            self.items[args[0]] = found[0]
        returns = n.target._schema.returns
        single = len(returns) == 1 and returns[0].type.kind() != "ListType"
        self.items[n] = found[0] if single else found
        if single and isinstance(found[0], Node) and len(n.users) > 1 and sum(1 for _ in nodes_of(found[0])) > 2:
            self.view(n)

    def _arguments(self, op: Op) -> tuple[list[Any], dict[str, Any]]:
        """Arguments and keywords; tensors of the graph as its values, numbers of it as numbers."""

        def read(a: Any) -> Any:
            if isinstance(a, Operand):
                v = op.operands[a.position]
                return v if self.is_tensor(self.items[v]) else self.items[v]
            if isinstance(a, tuple):
                return [read(x) for x in a]
            if isinstance(a, TorchConst):
                return resolve(a)
            if isinstance(a, Dim):
                raise Unsupported("a symbolic size as an argument")
            return a

        args, names = [read(a) for a in op.attrs["args"]], op.attrs.get("kwargs", ())
        split = len(args) - len(names)
        return args[:split], dict(zip(names, args[split:], strict=True))

    def _describe(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Has torch say what the results are, in `made`."""

        def bare(x: Any) -> Any:
            if isinstance(x, list):
                return [bare(y) for y in x]
            return self.meta(x) if self.is_tensor(x) else x

        kept = {k: bare(v) for k, v in kwargs.items() if k != "device"}
        try:
            with torch.no_grad():
                made = function(*(bare(a) for a in args), **kept)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise Unsupported(f"{self.target}: {str(error).partition(chr(10))[0]}") from error
        self.made = [made] if isinstance(made, torch.Tensor) else list(made) if isinstance(made, (list, tuple)) else []
        if not self.made or not all(m is None or isinstance(m, torch.Tensor) for m in self.made):
            raise Unsupported(f"{self.target} makes no tensors")

    def meta(self, x: Any) -> torch.Tensor:
        """A tensor without data that lies as an item does."""
        item = self.item(x)
        if isinstance(item, View):
            return item.meta()
        if isinstance(item, Given):
            return item.meta
        if isinstance(item, Known):
            return item.tensor.to("meta")
        dtype = {"f": torch.float32, "i": torch.int64, "b": torch.bool}[item.kind]
        return torch.empty(item.shape, dtype=dtype, device="meta")

    def _constant(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
        """What reads nothing but what is known is computed now, on the host, unless it draws numbers."""
        if isinstance(function, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in function.tags:
            raise Unsupported(f"{self.target} draws random numbers")

        def bare(x: Any) -> Any:
            if isinstance(x, list):
                return [bare(y) for y in x]
            return self.item(x).tensor if self.is_tensor(x) else x

        made = function(*map(bare, args), **{k: bare(v) for k, v in kwargs.items() if k != "device"})
        return [Known(m) if isinstance(m, torch.Tensor) else m for m in several_of(made)]

    def _as_view(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Sequence[Any] | None:
        """Results that are elements of the first argument as they lie; None if the operator computes."""
        if not isinstance(function, torch._ops.OpOverload) or not args or not self.is_tensor(args[0]):
            return None
        if not may_view(function) or any(map(self.is_tensor, flat([args[1:], kwargs]))):
            return None
        view = self.view(args[0])
        found = views_of(view, function, args[1:], kwargs)
        if found is None and self.target.startswith(RESHAPES):
            found = views_of(self.segment.whole(view), function, args[1:], kwargs)
        return found

    def _pointwise(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Node:
        (made,) = self.made
        if name == "aten.clamp":
            args = [args[0], *(a if a is None else self.node(a) for a in args[1:])]
            args[0] = self.node(args[0])
        else:
            args = [self.node(a) if self.is_tensor(a) or isinstance(a, (bool, int, float)) else a for a in args]
        keep = ("alpha", "value", "approximate", "rounding_mode", "min", "max")
        for k, v in kwargs.items():
            if k not in keep or self.is_tensor(v):
                raise Unsupported(f"{self.target} with {k}")
        if name == "aten.clamp":
            kwargs = {{"min": "low", "max": "high"}[k]: v for k, v in kwargs.items()}
        found = POINTWISE[name](*args, **kwargs)
        if found is None:
            raise Unsupported(f"this form of {self.target}")
        checked: Node = self._checked(found, made)
        return checked

    def _copied(self, x: Any) -> Node:
        """The same numbers in memory of their own, wherever they come to stand."""
        node = self.node(x)
        return Node({"f": "as_f", "i": "as_i", "b": "as_b"}[node.kind], node.kind, node.shape, (node,))

    def _converted(self, x: Any) -> Any:
        (made,) = self.made
        item = self.item(x)
        node = self.node(x)
        to = dtype_name(made.dtype)
        if kind_of(to) == node.kind and to in ("f32", "i64", "bool") and dtype_of(item) == to:
            return self._copied(x)
        if to == "f32":
            return Node("as_f", "f", node.shape, (node,))
        if to == "bool":
            return Node("as_b", "b", node.shape, (node,))
        raise Unsupported(f"numbers as {to}")

    def _checked(self, made: Any, like: torch.Tensor) -> Any:
        """``made``, of the shape and type that torch says; Unsupported for another type."""
        dtype = dtype_name(like.dtype)
        kind = made.kind
        if dtype not in ("f32", "i64", "bool") or kind_of(dtype) != kind:
            raise Unsupported(f"{self.target} of {dtype}")
        shape = tuple(like.shape)
        if made.shape != shape:
            if isinstance(made, View):
                raise AssertionError(f"{self.target}: {made.shape} is not {shape}")
            made = (
                Node(made.op, made.kind, shape, made.args, made.data)
                if made.op != "load"
                else load(made.data.expanded(shape))
            )
        return made

    # --- the host ------------------------------------------------------------------------------------------
    def _on_host(self, op: Op, reason: str) -> None:
        """Ends the stretch on the device: what later operators read comes back with what this one reads."""
        self._end({v for v, n in self.uses.items() if n > 0 and v in self.items})
        for v in op.operands:
            if not isinstance(self.items[v], Given):
                self.known[v] = self.items[v].tensor if isinstance(self.items[v], Known) else self.items[v]
        self.steps.append(HostStep(op, reason))
        metas = self._host_results(op, reason)
        for r, m in zip(op.results, metas, strict=True):
            self.items[r] = Given(r, m) if isinstance(m, torch.Tensor) else m

    def _host_results(self, op: Op, reason: str) -> Sequence[Any]:
        if op.name == "torch.call":
            self.target = op.attrs["target"]
            args, kwargs = self._arguments(op)
            self._describe(target_function(self.target, op), args, kwargs)
            return self.made
        raise UnsupportedError(f"{op.name} has no kernel: {reason}")

    def _end(self, wanted: set[Value]) -> None:
        step = self.current
        for v in [v for v in self.items if v in wanted]:
            item = self.items[v]
            if isinstance(item, Node):
                item = self.view(v)
                step = self.current
            if isinstance(item, View):
                assert step is not None
                step.downloads[v] = item
                self.items[v] = Given(v, item.meta())
        self.current = None

    def _mark(self) -> tuple[Any, ...]:
        dispatches = 0 if self.current is None else len(self.current.segment.dispatches)
        return self.current, dispatches, dict(self.items)

    def _undo(self, mark: tuple[Any, ...]) -> None:
        """Takes back what an operator began before it was found to have no kernel."""
        current, dispatches, self.items = mark
        if current is None and self.current is not None:
            self.steps.remove(self.current)
            self.current = None
        elif current is not None:
            del current.segment.dispatches[dispatches:]
