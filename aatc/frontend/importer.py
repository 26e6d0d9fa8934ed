"""ATen-level graph with symbolic sizes -> geo IR. The one importer of `aatc.compile` and `aatc.export`."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from aatc.frontend import attention, location, private_torch
from aatc.frontend.nodes import is_fresh, positional, returns_nothing, target_name
from aatc.frontend.shapes import Shapes
from aatc.ir import collector
from aatc.ir.core import Block, Func, Loc, Module, Op, Value
from aatc.ir.effects import Memory, effect_of, has_memory
from aatc.ir.errors import UnsupportedError, VerifyError
from aatc.ir.interpreter import target_function
from aatc.ir.registry import Operand, Symbol, TorchConst
from aatc.ir.torch_names import problem
from aatc.ir.types import TensorType, Type, dtype_name, torch_dtype

#: Tensors the trace met as constants and that are at most this long are written into the IR.
SMALL = 256
_CASTABLE = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Imported:
    """A module and how to call it: ``constants`` go after the graph's inputs; ``outputs`` holds, in order,
    either the position among main's results or a plain value."""

    module: Module
    constants: list[torch.Tensor]
    outputs: list[tuple[int | None, Any]]
    sizes: dict[str, int]
    autocast: bool = False

    def bind(self, main: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
        """``main`` with the graph's own inputs and outputs."""
        constants, outputs = tuple(self.constants), self.outputs
        if self.autocast:
            main = _without_autocast(main)
        if not constants and [p for p, _ in outputs] == list(range(len(outputs))):
            return main

        def run(*inputs: Any) -> tuple[Any, ...]:
            results = main(*inputs, *constants)
            return tuple(plain if position is None else results[position] for position, plain in outputs)

        return run


def import_graph(
    graph: fx.GraphModule,
    names: Sequence[str] = (),
    given: Mapping[str, torch.Tensor] | None = None,
    ranges: Mapping[Any, Any] | None = None,
    *,
    held: Sequence[torch.Tensor] = (),
    kernels: bool = True,
) -> Imported:
    """The verified IR of ``graph``, whose nodes carry fake values in ``meta["val"]``.

    ``names`` are better names for its placeholders, in order; ``given`` are values of placeholders, by name,
    which become constants unless the graph writes to them or hands them out; ``ranges`` are those of torch's
    symbols, where they are known better; ``held`` are the tensors that the last placeholders always are, which anybody
    may write to between calls. ``kernels``: attentions will be kernels, so their feature widths become
    numbers, which the guards of the graph then hold, and their operands must be on the CPU. Raises
    UnsupportedError with the source line for what the IR has no word for.
    """
    if kernels:
        for node in _attentions(graph):
            attention.guard_widths(*positional(node.target, node))
    with collector.paused():
        return _imported(graph, names, given or {}, ranges, held, kernels)


def _imported(
    graph: fx.GraphModule,
    names: Sequence[str],
    given: Mapping[str, torch.Tensor],
    ranges: Mapping[Any, Any] | None,
    held: Sequence[torch.Tensor],
    kernels: bool,
) -> Imported:
    module, shapes = Module(), Shapes(ranges)
    constants = list(held)
    top = _Importer(module, shapes, constants, given=given, kernels=kernels)
    outputs = top.function("main", graph, names)
    kept = top.hand_in_changed()
    if kept:
        return _imported(graph, names, {n: t for n, t in given.items() if n not in kept}, ranges, held, kernels)
    top.hand_in_constants()
    module.dims.update(sorted(shapes.ranges.items()))
    module.verify()
    return Imported(module, constants, outputs, shapes.hints, _ambient_autocast() is not None)


def _attentions(graph: fx.GraphModule) -> Iterator[Any]:
    """The calls of ``aatc::attend`` in a graph and those nested in it."""
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            yield from (n for n in module.graph.nodes if attention.is_attention(n.target))


def _without_autocast(main: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    """``main`` for a caller inside autocast: the program holds the casts already."""

    def run(*inputs: Any) -> Sequence[Any]:
        with torch.autocast("cpu", enabled=False):
            return main(*inputs)

    return run


def _ambient_autocast() -> torch.dtype | None:
    """The dtype autocast on the CPU casts to at this moment, None when it is off."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


class _Importer:
    """One function of the module; nested graphs get importers of their own."""

    def __init__(
        self, module: Module, shapes: Shapes, constants: list[torch.Tensor], *,
        parent: _Importer | None = None, given: Mapping[str, torch.Tensor] | None = None, kernels: bool = True,
    ):  # fmt: skip
        self.module, self.shapes, self.constants, self.parent = module, shapes, constants, parent
        self.given, self.kernels = given or {}, kernels
        self.ambient = torch.is_grad_enabled()
        self.grad: bool = parent.grad if parent is not None else self.ambient
        self.autocast: torch.dtype | None = parent.autocast if parent is not None else _ambient_autocast()
        self.outer: list[torch.dtype | None] = []
        self.body = Block()
        self.env: dict[fx.Node, Any] = {}
        self.late: list[tuple[torch.Tensor, Value]] = []
        self.written_down: list[tuple[str | None, torch.Tensor, Op]] = []
        self.checkpoints: Iterator[int] = parent.checkpoints if parent is not None else itertools.count()
        self.loc: Loc | None = None

    # --- functions -----------------------------------------------------------------------------------------
    def function(self, name: str, graph: fx.GraphModule, names: Sequence[str] = ()) -> list[tuple[int | None, Any]]:
        self.module.add(Func(name, "geo", self.body))
        outputs = self.run(graph, None, names)
        flat: list[Value] = []
        template: list[tuple[int | None, Any]] = []
        for value in outputs:
            if isinstance(value, Value):
                template.append((len(flat), None))
                flat.append(value)
            else:
                template.append((None, value))
        self.body.add(Op("geo.return", flat))
        return template

    def run(self, graph: fx.GraphModule, given: Sequence[Any] | None, names: Sequence[str] = ()) -> list[Any]:
        """Imports the nodes of ``graph`` into the current body; ``given`` are its inputs if it is inlined."""
        position = 0
        for node in graph.graph.nodes:
            self.loc = location.from_trace(node.meta.get("stack_trace")) or self.loc
            if node.op == "placeholder":
                if given is not None:
                    self.env[node] = given[position]
                else:
                    self.env[node] = self.argument(node, names[position] if position < len(names) else node.name)
                position += 1
            elif node.op == "get_attr":
                self.env[node] = self.attribute(graph, node)
            elif node.op == "call_function":
                self.env[node] = self.call(node)
            elif node.op == "output":
                (result,) = node.args
                values = list(result) if isinstance(result, (list, tuple)) else [result]
                return [self.env[v] if isinstance(v, fx.Node) else v for v in values]
            else:
                raise self.unsupported(f"a {node.op} node")
        return []

    def argument(self, node: fx.Node, name: str) -> Any:
        value = node.meta.get("val")
        if value is None:
            return None
        if node.name in self.given:
            return self.constant(self.given[node.name], node.name, node.name)
        if isinstance(value, torch.SymInt):
            name = self.shapes.name_of(value) or name
        made = Value(self.shapes.type(value), _clean(name), self.body)
        self.body.args.append(made)
        return made

    def hand_in_changed(self) -> set[str]:
        """Tensors written down as constants that the function may write to, or let others write to, become arguments:
        what is written must stay written. Returns the placeholders among them, which have to stay arguments."""
        if not self.written_down:
            return set()
        memory = Memory(self.module.entry, self.module)
        places, gone = set(), set()
        for place, tensor, op in self.written_down:
            value = op.result
            if not (memory.written(value) or memory.outside(value) or memory.raw(value)):
                continue
            if place is not None:
                places.add(place)
            else:
                gone.add(op)
                self.late.append((tensor, value))
        if gone:
            self.body.ops = [op for op in self.body.ops if op not in gone]
        return places

    def hand_in_constants(self) -> None:
        """Tensors too large for the text become arguments after all others."""
        for tensor, value in self.late:
            self.constants.append(tensor)
            value.owner = self.body
            self.body.args.append(value)

    def attribute(self, graph: fx.GraphModule, node: fx.Node) -> Any:
        found = graph
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if not isinstance(found, torch.Tensor):
            return found
        return self.constant(found, node.name)

    def constant(self, tensor: torch.Tensor, name: str, place: str | None = None) -> Value:
        """``tensor`` as a constant of the IR, or as an argument after all others. ``place``: its placeholder."""
        if hasattr(tensor, "fake_mode"):
            raise self.unsupported("a constant that exists only while tracing")
        plain = not tensor.requires_grad and not tensor.is_complex() and tensor.device.type == "cpu"
        t = self.shapes.type(tensor)
        if plain and tensor.numel() <= SMALL:
            attrs = {"values": tuple(tensor.detach().reshape(-1).tolist()), "type": t}
            made = self.add(Op("geo.constant", [], attrs, [t], result_names=[_clean(name)]))
            if self.parent is None:
                self.written_down.append((place, tensor, made))
            return made.result
        if self.parent is not None:
            raise self.unsupported("a large tensor constant inside a checkpointed region")
        value = Value(t, _clean(name))
        self.late.append((tensor, value))
        return value

    # --- calls ---------------------------------------------------------------------------------------------
    def call(self, node: fx.Node) -> Any:
        target: Any = node.target
        args: Any = node.args
        if target is operator.getitem and isinstance(self.env[args[0]], (list, tuple)):
            return self.env[args[0]][args[1]]
        if target is private_torch.set_grad_enabled:
            return self.set_grad(args[0])
        if target is private_torch.enter_autocast:
            self.outer.append(self.autocast)
            return self.enter_autocast(*args)
        if target is private_torch.exit_autocast:
            self.autocast = self.outer.pop()
            return None
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self.higher_order(node)
        if target is torch.ops.aten.detach_.default and is_fresh(args[0]):
            return self.env[args[0]]
        if attention.is_attention(target):
            self.check_device(node)
            q, k, v, captures, spec = positional(target, node)
            operands = [self.detached(self.env[n]) for n in (q, k, v, *captures)]
            return attention.stages(self.body, operands, spec, self.loc)
        return self.torch_call(node)

    def check_device(self, attend: fx.Node) -> None:
        devices = {v.device.type for n in attend.all_input_nodes if isinstance(v := n.meta.get("val"), torch.Tensor)}
        if self.kernels and devices - {"cpu"}:
            raise UnsupportedError(
                f"an attention's operands are on {', '.join(sorted(devices))}; its kernels run on the CPU",
                where=location.where(self.loc),
                hint="move the model and its inputs to the CPU",
            )

    def torch_call(self, node: fx.Node) -> Any:
        operands: dict[Value, int] = {}
        dtype = self.cast_to(node)

        def read(value: Value) -> Value:
            return value if dtype is None else self.cast(value, dtype)

        args = tuple(self.literal(a, operands, read) for a in (*node.args, *node.kwargs.values()))
        called: Any = node.target
        if called is torch.sym_float:  # of a size, or of a number that is a float already
            called, args = operator.mul, (*args, 1.0)
        attrs: dict[str, Any] = {"target": self.callable(called), "args": args}
        if node.kwargs:
            attrs["kwargs"] = tuple(node.kwargs)
        value: Any = node.meta.get("val")
        several = isinstance(value, (list, tuple))
        returns = value if several else () if value is None and returns_nothing(node) else (value,)
        types = [self.shapes.type(v) for v in returns]
        name = _clean(node.name)
        names = [name] if len(types) == 1 else [f"{name}_{n}" for n in range(len(types))]
        op = self.add(Op("torch.call", list(operands), attrs, types, result_names=names))
        effect = effect_of(op)
        if effect.writes or effect.ordered:
            op.attrs["effect"] = True
        if effect.writes and dtype is not None:
            raise self.unsupported(f"{node.target} inside autocast")  # it would write to a cast copy
        if several:
            return list(op.results)
        return op.results[0] if op.results else None

    def literal(self, value: Any, operands: dict[Value, int], read: Callable[[Value], Value]) -> Any:
        """An argument as an attribute: values become ``#n``, torch's constants words of the IR."""
        if isinstance(value, fx.Node):
            value = self.env[value]
        if isinstance(value, Value):
            return Operand(operands.setdefault(read(value), len(operands)))
        if isinstance(value, (list, tuple)):
            return tuple(self.literal(v, operands, read) for v in value)
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.device):
            return TorchConst("device", str(value))
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            constant = TorchConst("torch", str(value).removeprefix("torch."))
            if problem(constant) is not None:
                raise self.unsupported(str(value))
            return constant
        raise self.unsupported(f"an argument of type {type(value).__name__}")

    def higher_order(self, node: fx.Node) -> Any:
        target: Any = node.target
        args: Any = node.args
        name = target.name()
        if name == "tag_activation_checkpoint":
            return self.checkpoint(node, *args)
        if name == "wrap_with_set_grad_enabled":
            enabled, body, *given = args
            return self.region(body, given, enabled)
        if name == "wrap_with_autocast":
            device, dtype, enabled, cache, body, *given = args
            return self.region(body, given, (device, dtype, enabled, cache))
        raise self.unsupported(f"the higher-order operator {name}")

    def checkpoint(self, node: fx.Node, body: fx.Node, *given: Any) -> list[Value]:
        name = f"checkpoint_{next(self.checkpoints)}"
        values = [self.env[g] if isinstance(g, fx.Node) else g for g in given]
        inner = _Importer(self.module, self.shapes, self.constants, parent=self, kernels=self.kernels)
        template = inner.function(name, self.env[body], [getattr(v, "name", "") or "arg" for v in values])
        if any(not isinstance(v, Value) for v in values) or any(p is None for p, _ in template):
            raise self.unsupported("a checkpointed region with plain numbers among its inputs or outputs")
        types = self.module.funcs[name].result_types
        names = [f"{_clean(node.name)}_{n}" for n in range(len(types))]
        attrs: dict[str, Any] = {"body": Symbol(name)}
        if not node.kwargs.get("preserve_rng_state", True):
            attrs["new_random"] = True
        op = Op("geo.checkpoint", values, attrs, types, result_names=names)
        return list(self.add(op).results)

    def region(self, body: Any, given: Sequence[Any], state: bool | tuple) -> list[Any]:
        """The nodes of ``body`` inline, with gradients on or off, or inside autocast with these arguments."""
        inputs = [self.env[g] if isinstance(g, fx.Node) else g for g in given]
        if isinstance(state, bool):
            before = self.grad
            self.set_grad(state)
            outputs = self.run(self.env[body], inputs)
            self.set_grad(before)
            return outputs
        outside = self.autocast
        self.enter_autocast(*state)
        outputs = self.run(self.env[body], inputs)
        self.autocast = outside
        return outputs

    # --- autocast ------------------------------------------------------------------------------------------
    def enter_autocast(self, device: str, dtype: Any, enabled: bool, _cache: Any = None) -> None:
        if device == "cpu":
            self.autocast = (dtype or torch.get_autocast_dtype("cpu")) if enabled else None

    def cast_to(self, node: fx.Node) -> str | None:
        """The dtype autocast casts a call's tensors to, if it does: the IR holds the casts instead."""
        target: Any = node.target
        if self.autocast is None or not isinstance(target, torch._ops.OpOverload):
            return None
        value = node.meta.get("val")
        results = value if isinstance(value, (list, tuple)) else (value,)
        made = {dtype_name(v.dtype) for v in results if isinstance(v, torch.Tensor) and v.is_floating_point()}
        given = {a.meta["val"] for a in node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)}
        read = {dtype_name(v.dtype) for v in given if v.dtype in _CASTABLE}
        if not made or not read or made == read:
            return None
        if len(made) == 1 and private_torch.casts_for_itself(target):
            return made.pop()
        if private_torch.is_composite(target) and made.isdisjoint(read):
            if target._opname in ("einsum", "tensordot", "matmul"):
                return made.pop()
            raise self.unsupported(f"{target} inside autocast")
        return None

    # --- gradients off -------------------------------------------------------------------------------------
    def set_grad(self, enabled: bool) -> None:
        """Whether the operations that follow record gradients; those that do not say so one by one."""
        if enabled and not self.ambient:
            raise self.unsupported("enable_grad inside a call without gradients")
        self.grad = enabled

    @property
    def quiet(self) -> bool:
        """Whether the model has switched gradients off here. Around the whole call, the caller's mode does it."""
        return self.ambient and not self.grad

    def detached(self, value: Value) -> Value:
        """``value`` as an attention reads it, which has no mode of its own but nothing to record, either."""
        if not self.quiet or not isinstance(value.type, TensorType):
            return value
        if value.type.dtype not in ("f64", "f32", "bf16", "f16", "c64", "c128"):
            return value
        return self.unary("aten.detach.default", value, value.type)

    # --- small things --------------------------------------------------------------------------------------
    def add(self, op: Op) -> Op:
        op.loc = self.loc
        if self.quiet and op.name == "torch.call" and any(has_memory(v) for v in op.operands):
            op.attrs["no_grad"] = True
        return self.body.add(op)

    def cast(self, value: Value, dtype: str) -> Value:
        t = value.type
        if not isinstance(t, TensorType) or t.dtype == dtype or t.dtype not in ("f32", "bf16", "f16"):
            return value
        constant = TorchConst("torch", str(torch_dtype(dtype)).removeprefix("torch."))
        return self.unary("aten.to.dtype", value, TensorType(dtype, t.shape), constant)

    def unary(self, target: str, value: Value, t: Type, *more: Any) -> Value:
        attrs = {"target": target, "args": (Operand(0), *more)}
        return self.add(Op("torch.call", [value], attrs, [t], result_names=[value.name])).result

    def callable(self, target: Any) -> str:
        """The name of ``target``, which the IR must be able to call."""
        name = target_name(target)
        try:
            target_function(name or "")
        except VerifyError:
            raise self.unsupported(name or str(target)) from None
        return str(name)

    def unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"{what} has no counterpart in the IR",
            where=location.where(self.loc),
            hint="this graph can only run eagerly",
        )


def _clean(name: str) -> str:
    text = re.sub(r"\W", "_", name)
    return text if text and not text[0].isdigit() else f"v{text}"
