"""The ATen-level graph of what Dynamo recorded, fit for the importer."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from aatc.frontend import location, private_torch
from aatc.frontend.held import Tracer, held_tensors, tensor_at
from aatc.ir.errors import UnsupportedError

_CHECKPOINT = "tag_activation_checkpoint"
#: Functions in a graph that change a state of torch, or of a tensor, which operators in the IR know nothing of.
_STATE = re.compile(r"_?(set|enter|exit)_\w+|_saved_tensors_hooks_\w+")


@dataclass(frozen=True)
class Captured:
    """An ATen-level graph with symbolic fake values, the names of its inputs as the user knows them, and the values of
    its last inputs: tensors that Dynamo's graph held itself."""

    graph: fx.GraphModule
    names: tuple[str, ...]
    held: tuple[torch.Tensor, ...] = ()
    #: The whole graph is inside ``torch.inference_mode()``, as is what runs it.
    inference: bool = False


def capture(gm: fx.GraphModule) -> Captured:
    """The ATen-level graph of what Dynamo recorded, before autograd, one node per operator.

    Sizes stay symbols of Dynamo's own shape environment, so its guards hold for the result.
    """
    places = [n for n in gm.graph.nodes if n.op == "placeholder"]
    values = [n.meta["example_value"] for n in places]
    modes = {mode for v in values if (mode := private_torch.fake_mode(v)) is not None}
    held = _held(gm)
    names = tuple(_plain_name(n.target) for n in (*places, *held.values()))
    inference = _only_inference(gm)
    _prepare(gm)
    _check_gradients(gm, torch.is_grad_enabled())
    mode = modes.pop() if modes else _fake_mode_of(gm)
    # what is saved while tracing is nobody's: a checkpoint around the call must not count it
    alone = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    # tracing sets the states the graph sets, and may end early
    grad = torch.set_grad_enabled(torch.is_grad_enabled() and not inference)

    def run(*given: Any) -> Any:
        return Tracer(gm, dict(zip(held, given[len(values) :], strict=True))).run(*given[: len(values)])

    with (
        grad,
        private_torch.quiet_checkpoints(),
        fx.traceback.preserve_node_meta(),
        alone,
        mode or contextlib.nullcontext(),
    ):
        fakes = [n.meta["example_value"] for n in held.values()]
        graph = private_torch.trace(run, (*values, *fakes))
    return Captured(graph, names, tuple(tensor_at(gm, n) for n in held.values()), inference)


def _held(gm: fx.GraphModule) -> dict[str, fx.Node]:
    try:
        return held_tensors(gm)
    except ValueError as error:
        raise _unsupported(error.args[0], "a tensor held by a checkpointed region") from None


def _only_inference(gm: fx.GraphModule) -> bool:
    """Whether all of a graph is inside ``torch.inference_mode()``. If so, a trace does not see the mode from then on,
    and eager runs of the graph enter it as before."""
    nodes = [n for n in gm.graph.nodes if n.op not in ("placeholder", "output", "get_attr")]
    ends = (private_torch.enter_inference, private_torch.exit_inference)
    if len(nodes) < 2 or (nodes[0].target, nodes[-1].target) != ends or nodes[0].args != (True,):
        return False
    if nodes[-1].args != (nodes[0],) or any(n.target in ends for n in nodes[1:-1]):
        return False
    nodes[0].target, nodes[-1].target = enter_inference, exit_inference
    gm.recompile()
    return True


def enter_inference(mode: bool) -> Any:
    """Enters inference mode, but not while a graph is traced: fake tensors cannot be made in it."""
    return None if private_torch.tracing() else private_torch.enter_inference(mode)


def exit_inference(context: Any) -> None:
    if context is not None:
        private_torch.exit_inference(context)


def _fake_mode_of(gm: fx.GraphModule) -> Any:
    """A graph without tensor inputs still has fake values inside."""
    modes = (private_torch.fake_mode(n.meta.get("example_value")) for n in gm.graph.nodes)
    return next((mode for mode in modes if mode is not None), None)


def _prepare(gm: fx.GraphModule) -> None:
    """Makes the recorded graph fit for tracing; it still computes the same."""
    for module in gm.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            if node.target is private_torch.enter_autocast:
                node.target = enter_autocast
            elif node.target is private_torch.exit_autocast:
                node.target = exit_autocast
            elif (getattr(node.target, "__module__", None) or "").startswith("torch._functorch"):
                raise _unsupported(node, "a function transform (torch.vmap, torch.func)")
            elif private_torch.sets_data(node.target):
                raise _unsupported(node, "setting a tensor's .data")
            elif _sets_state(node.target):
                raise _unsupported(node, _STATE_NAMES.get(node.target.__name__, f"{node.target.__name__} (a state)"))
            elif isinstance(node.target, torch._ops.HigherOrderOperator):
                if node.target.name() != _CHECKPOINT:
                    raise _unsupported(node, node.target.name())
                private_torch.complete_checkpoint(getattr(module, node.args[0].target))


_STATE_NAMES = {"_enter_inference_mode": "torch.inference_mode", "_exit_inference_mode": "torch.inference_mode"}


def _sets_state(target: Any) -> bool:
    """Whether a function in a graph changes what operators do from then on; gradients on or off are data flow."""
    if target is private_torch.set_grad_enabled or isinstance(
        target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
    ):
        return False
    ours = str(getattr(target, "__module__", None)).startswith("torch")
    return ours and _STATE.fullmatch(getattr(target, "__name__", "")) is not None


def _check_gradients(gm: fx.GraphModule, enabled: bool) -> None:
    """Raises UnsupportedError unless gradients are as they were, on or off, when ``gm`` ends: with
    ``torch.set_grad_enabled(...)`` a function may change that for its caller."""
    now, last = enabled, None
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is private_torch.set_grad_enabled:
            now, last = node.args[0], node
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            for body in (a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"):
                inner = getattr(gm, str(body.target), None)
                if isinstance(inner, fx.GraphModule):
                    _check_gradients(inner, now)
    if last is not None and now != enabled:
        raise _unsupported(last, "gradients switched on or off for longer than the call")


def _unsupported(node: fx.Node, what: str) -> UnsupportedError:
    at = node
    while at.op != "output" and not at.meta.get("stack_trace"):  # what sets a state has no trace, what follows has
        at = at.next
    loc = location.from_trace(at.meta.get("stack_trace"))
    hint = "this graph can only run eagerly"
    return UnsupportedError(f"{what} has no counterpart in the IR", where=location.where(loc), hint=hint)


def enter_autocast(*args: Any) -> Any:
    """Enters autocast so that a trace both records it and sees its dtypes."""
    context = torch.amp.autocast_mode.autocast(*args)
    context.__enter__()
    return context


def exit_autocast(context: Any) -> None:
    context.__exit__(None, None, None)


def _plain_name(name: Any) -> str:
    """``L_self_modules_layers_modules_0_parameters_weight_`` as ``layers_0_weight``."""
    text = str(name)
    if not text.startswith(("L_", "l_")):
        return text
    text = text[2:].rstrip("_")
    argument = text.startswith("args_")
    for prefix in ("self_", "fn_", "args_", "kwargs_"):
        text = text.removeprefix(prefix)
    for word in ("modules_", "parameters_", "buffers_"):
        text = text.removeprefix(word).replace(f"_{word}", "_")
    text = text.replace("__", "_").strip("_")
    if text and not text[0].isdigit():
        return text
    return f"arg{text}" if argument else f"layer{text}"
