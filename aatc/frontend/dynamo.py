"""Everything that leans on semi-private parts of torch 2.13: Dynamo's hooks, graph capture, stacks, guards.

No other file of the package may import `torch._dynamo`, `torch._guards` or `torch.fx.experimental`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import os
import re
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from aatc.frontend import calls, location
from aatc.frontend.held import Tracer, held_tensors, tensor_at
from aatc.ir.core import Loc
from aatc.ir.errors import AatcError, ScoreError, UnsupportedError

_CHECKPOINT = "tag_activation_checkpoint"
_LIMIT = "Dynamo recompile limit exceeded"
#: Functions in a graph that change a state of torch, or of a tensor, which operators in the IR know nothing of.
_STATE = re.compile(r"_?(set|enter|exit)_\w+|_saved_tensors_hooks_\w+|_lower_version_count\w*")
#: Graphs one function may have before the rest of its inputs runs in PyTorch. Dynamo's own default, 8, is passed by
#: training and evaluating with and without gradients in two dtypes.
GRAPHS = 32


def backend(gm: fx.GraphModule, example_inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """The Dynamo backend behind ``torch.compile(model, backend="aatc", options={...})``.

    ``options`` are the keywords of `aatc.compile` (backend, tune, passes, fallback, verify).
    """
    from aatc.frontend.session import Options, Session

    teach_operators()
    given = {**(options.pop("options", None) or {}), **options}
    known = {n: given[n] for n in ("backend", "tune", "passes", "fallback", "verify") if n in given}
    return Session(Options(**known), "torch.compile").compile_graph(gm, example_inputs)


# --- operators of traced scores ----------------------------------------------------------------------------
@functools.cache
def teach_operators() -> None:
    """Makes Dynamo run ``~x`` of objects by their ``__invert__``, and compare objects with numbers that vary by their
    own methods, as it does for all other operators; users' predicates are full of both."""
    from torch._dynamo.variables.builtin import BuiltinVariable
    from torch._dynamo.variables.constant import ConstantVariable
    from torch._dynamo.variables.tensor import SymNodeVariable
    from torch._dynamo.variables.user_defined import UserDefinedObjectVariable

    handlers: Any = BuiltinVariable
    if not hasattr(handlers, "call_invert"):

        def call_invert(self: Any, tx: Any, x: Any) -> Any:
            x = x.realize()
            return x.call_method(tx, "__invert__", [], {}) if isinstance(x, UserDefinedObjectVariable) else None

        def call_matmul(self: Any, tx: Any, x: Any, y: Any) -> Any:
            x, y = x.realize(), y.realize()
            return x.call_method(tx, "__matmul__", [y], {}) if isinstance(x, UserDefinedObjectVariable) else None

        handlers.call_invert, handlers.call_matmul = call_invert, call_matmul

    table = BuiltinVariable._binop_handlers()
    for op in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
        for number in (SymNodeVariable, ConstantVariable):
            table[op].insert(0, ((number, UserDefinedObjectVariable), _compared(_MIRRORED[op], 1)))
        table[op].insert(0, ((UserDefinedObjectVariable, SymNodeVariable), _compared(op, 0)))
    BuiltinVariable.call_function_handler_cache.clear()
    _refuse_membership()
    _format_as_written()


MORE_GRAPHS = "hand varying numbers in as tensors, or raise torch._dynamo.config.recompile_limit"


def _refuse_membership() -> None:
    """Lets ``in`` with traced scores raise as Python does; Dynamo would take it for False, or for several `==`."""
    from torch._dynamo import utils
    from torch._dynamo.exc import raise_type_error
    from torch._dynamo.variables import lists
    from torch._dynamo.variables.user_defined import UserDefinedObjectVariable

    from aatc.traced import Traced

    own = utils.iter_contains

    def contains(items: Any, search: Any, tx: Any, *rest: Any, **more: Any) -> Any:
        items = list(items)
        for x in (search, *items):
            if isinstance(x, UserDefinedObjectVariable) and isinstance(x.value, Traced):
                raise_type_error(tx, "`in` needs one truth value, and a score is one per pair")
        return own(items, search, tx, *rest, **more)

    for module in (utils, lists):
        module.iter_contains = contains  # type: ignore[attr-defined]


def _format_as_written() -> None:
    """Makes a number that varies a guarded constant where an f-string shows it: Dynamo may give the number itself back
    in the place of its text, and cannot record what has a format."""
    from torch._dynamo.symbolic_convert import InstructionTranslatorBase
    from torch._dynamo.variables.constant import ConstantVariable
    from torch._dynamo.variables.tensor import SymNodeVariable

    translator: Any = InstructionTranslatorBase
    own = translator._format_value

    def format_value(self: Any, spec: Any, flags: int) -> None:
        shown = self.stack[-1].realize()
        if isinstance(shown, SymNodeVariable):
            self.stack[-1] = ConstantVariable.create(shown.evaluate_expr(self.output))
        own(self, spec, flags)

    translator._format_value = format_value


_MIRRORED = {
    operator.lt: operator.gt, operator.le: operator.ge, operator.gt: operator.lt, operator.ge: operator.le,
    operator.eq: operator.eq, operator.ne: operator.ne,
}  # fmt: skip


def _compared(op: Any, at: int) -> Callable[..., Any]:
    """Dynamo's handler of a comparison with a number: the traced score, argument ``at``, is asked. Dynamo would ask the
    number, which knows no scores, and take `==` for identity."""
    from aatc.traced import Traced

    def handler(tx: Any, *sides: Any) -> Any:
        score, number = sides[at], sides[1 - at]
        if not isinstance(getattr(score, "value", None), Traced):
            return None
        return score.call_method(tx, f"__{op.__name__}__", [number], {})

    return handler


@dataclass(frozen=True)
class Captured:
    """An ATen-level graph with symbolic fake values, the names of its inputs as the user knows them, and the values of
    its last inputs: tensors that Dynamo's graph held itself."""

    graph: fx.GraphModule
    names: tuple[str, ...]
    held: tuple[torch.Tensor, ...] = ()
    #: The whole graph is inside ``torch.inference_mode()``, as is what runs it.
    inference: bool = False


@dataclass(frozen=True)
class Break:
    """Why Dynamo ended a graph, and where in the model."""

    reason: str
    loc: Loc | None
    hint: str | None = None


@dataclass(frozen=True)
class Limit:
    """A function that has as many graphs as it may have, and where it is."""

    graphs: int
    loc: Loc
    reason: str


# --- capture -----------------------------------------------------------------------------------------------
def capture(gm: fx.GraphModule) -> Captured:
    """The ATen-level graph of what Dynamo recorded, before autograd, one node per operator.

    Sizes stay symbols of Dynamo's own shape environment, so its guards hold for the result.
    """
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental.proxy_tensor import make_fx

    _leave_alone()
    places = [n for n in gm.graph.nodes if n.op == "placeholder"]
    values = [n.meta["example_value"] for n in places]
    modes = {v.fake_mode for v in values if isinstance(v, FakeTensor)}
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

    with grad, _quiet(), fx.traceback.preserve_node_meta(), alone, mode or contextlib.nullcontext():
        fakes = [n.meta["example_value"] for n in held.values()]
        graph = make_fx(run, pre_dispatch=True, tracing_mode="real")(*values, *fakes)
    return Captured(graph, names, tuple(tensor_at(gm, n) for n in held.values()), inference)


def _held(gm: fx.GraphModule) -> dict[str, fx.Node]:
    try:
        return held_tensors(gm)
    except ValueError as error:
        raise _unsupported(error.args[0], "a tensor held by a checkpointed region") from None


def _only_inference(gm: fx.GraphModule) -> bool:
    """Whether all of a graph is inside ``torch.inference_mode()``. If so, a trace does not see the mode from then on,
    and eager runs of the graph enter it as before."""
    grad_mode = torch.autograd.grad_mode
    nodes = [n for n in gm.graph.nodes if n.op not in ("placeholder", "output", "get_attr")]
    ends = (grad_mode._enter_inference_mode, grad_mode._exit_inference_mode)
    if len(nodes) < 2 or (nodes[0].target, nodes[-1].target) != ends or nodes[0].args != (True,):
        return False
    if nodes[-1].args != (nodes[0],) or any(n.target in ends for n in nodes[1:-1]):
        return False
    nodes[0].target, nodes[-1].target = enter_inference, exit_inference
    gm.recompile()
    return True


def enter_inference(mode: bool) -> Any:
    """Enters inference mode, but not while a graph is traced: fake tensors cannot be made in it."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    tracing = get_proxy_mode() is not None
    return None if tracing else torch.autograd.grad_mode._enter_inference_mode(mode)


def exit_inference(context: Any) -> None:
    if context is not None:
        torch.autograd.grad_mode._exit_inference_mode(context)


def _fake_mode_of(gm: fx.GraphModule) -> Any:
    """A graph without tensor inputs still has fake values inside."""
    from torch._subclasses.fake_tensor import FakeTensor

    for node in gm.graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return None


def _prepare(gm: fx.GraphModule) -> None:
    """Makes the recorded graph fit for tracing; it still computes the same."""
    amp = torch.amp.autocast_mode
    for module in gm.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            if node.target is amp._enter_autocast:
                node.target = enter_autocast
            elif node.target is amp._exit_autocast:
                node.target = exit_autocast
            elif (getattr(node.target, "__module__", None) or "").startswith("torch._functorch"):
                raise _unsupported(node, "a function transform (torch.vmap, torch.func)")
            elif _sets_state(node.target):
                raise _unsupported(node, _STATE_NAMES.get(node.target.__name__, f"{node.target.__name__} (a state)"))
            elif isinstance(node.target, torch._ops.HigherOrderOperator):
                if node.target.name() != _CHECKPOINT:
                    raise _unsupported(node, node.target.name())
                body = getattr(module, node.args[0].target)
                if body.meta.get("_checkpoint_context_fn") is None:
                    body.meta["_checkpoint_context_fn"] = torch.utils.checkpoint.noop_context_fn


_STATE_NAMES = {
    "_enter_inference_mode": "torch.inference_mode", "_exit_inference_mode": "torch.inference_mode",
    "_lower_version_count_by_1": "setting a tensor's .data",
}  # fmt: skip


def _sets_state(target: Any) -> bool:
    """Whether a function in a graph changes what operators do from then on; gradients on or off are data flow."""
    if target is torch._C._set_grad_enabled or isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
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
        if node.target is torch._C._set_grad_enabled:
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning about checkpoint contexts: they are ours."""
    from torch._higher_order_ops import wrap

    before, wrap.log.disabled = wrap.log.disabled, True
    try:
        yield
    finally:
        wrap.log.disabled = before


def ambient_autocast() -> torch.dtype | None:
    """The dtype autocast on the CPU casts to at this moment, None when it is off."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


def casts_for_itself(op: torch._ops.OpOverload) -> bool:
    """Whether autocast on the CPU has a rule for ``op``: it then casts all its tensors to one dtype."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "AutocastCPU")


def is_composite(op: torch._ops.OpOverload) -> bool:
    """Whether ``op`` is made of other operators, which autocast would treat one by one."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")


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


# --- why graphs end, and why they are made again -----------------------------------------------------------
def break_of(gm: fx.GraphModule) -> Break | None:
    """The graph break that ended this graph, if one did."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    return break_from(reason) if reason is not None and reason.graph_break else None


def line_of(gm: fx.GraphModule) -> Loc | None:
    """The model's line a graph stands for: its first attention's, or else its first operation's."""
    nodes = [n for n in gm.graph.nodes if n.meta.get("stack_trace")]
    first = next((n for n in nodes if "aatc" in str(n.target)), nodes[0] if nodes else None)
    return location.from_trace(first.meta["stack_trace"]) if first is not None else None


def break_from(reason: Any) -> Break:
    """One of Dynamo's reasons in our words."""
    message, hint = _readable(reason.reason)
    return Break(message, location.from_stack(reason.user_stack), hint)


@functools.cache
def _watch_breaks() -> None:
    """Tells the call of this thread every graph break: Dynamo's own list of them is one for all threads, and may be
    cleared at any time."""
    from torch._dynamo import output_graph

    class Told(list):
        def append(self, reason: Any) -> None:
            kept.append(reason)
            call = calls.current()
            if call is not None:
                call.breaks.append(break_from(reason))

    kept = output_graph.graph_break_reasons
    output_graph.graph_break_reasons = Told()


class _Convert:
    """Dynamo's compilation of one frame, which keeps why it gave up: it would only be logged."""

    def __init__(self, inner: Any, limit: int):
        self._inner, self._limit = inner, limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, frame: Any, *args: Any, skip: int = 0, **kwargs: Any) -> Any:
        call = calls.current()
        if call is not None:
            call.guards.clear()
        try:
            return self._inner(frame, *args, skip=skip + 1, **kwargs)
        except Exception as error:
            if call is not None:
                self._note(call, error, frame.f_code)
            raise

    def _note(self, call: calls.Call, error: Exception, code: types.CodeType) -> None:
        from torch._dynamo import exc

        start = location.of_line(code.co_filename, code.co_firstlineno)
        if getattr(error, "gb_type", None) == _LIMIT:
            call.limits.append(Limit(self._limit, start, "; ".join(call.guards)))
        elif isinstance(error, (exc.Unsupported, exc.UserError)) and not models_own(error):
            message, hint = _readable(getattr(error, "msg", None) or str(error))
            call.breaks.append(Break(message, location.from_stack(getattr(error, "real_stack", ())) or start, hint))


def _readable(message: str) -> tuple[str, str | None]:
    """The first lines of one of Dynamo's messages, and its first hint."""
    explanation, hint, title = "", None, ""
    for line in str(message).splitlines():
        text = line.strip()
        if text.startswith("Explanation:"):
            explanation = text.removeprefix("Explanation:").strip()
        elif text.startswith("Hint:") and hint is None:
            hint = text.removeprefix("Hint:").strip()
        elif text and not title:
            title = text
    return (f"{title}: {explanation}" if explanation else title), hint


def as_error(error: BaseException) -> AatcError | None:
    """The typed error for one of Dynamo's, naming the model's source line; None when it is not Dynamo's."""
    from torch._dynamo import exc

    if isinstance(error, AatcError):
        return None  # it passed through the model, and so is the model's
    inner: BaseException = error
    if isinstance(inner, exc.BackendCompilerFailed):
        inner = inner.inner_exception
    if isinstance(inner, AatcError):
        return inner
    if not isinstance(error, (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)):
        return None
    if isinstance(error, exc.FailOnRecompileLimitHit):
        return UnsupportedError("the limit of graphs is reached", hint=MORE_GRAPHS)
    stack = getattr(inner, "real_stack", None)
    loc = location.from_stack(stack) if stack else location.from_trace(str(inner))
    ours = _cause(error)
    if ours is not None:
        return type(ours)(ours.message, where=ours.where or location.where(loc), hint=ours.hint)
    message, hint = _readable(getattr(inner, "msg", None) or str(inner))
    return UnsupportedError(message, where=location.where(loc), hint=hint)


def _cause(error: BaseException) -> ScoreError | None:
    """The ScoreError that made Dynamo give up, if one did: a function outside the language."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ScoreError):
        seen = seen.__cause__ or seen.__context__
    return seen


def is_bug(error: BaseException) -> bool:
    """Whether one of Dynamo's errors says that Dynamo or we failed, not that something cannot be recorded."""
    from torch._dynamo import exc

    if "AsPythonConstantNotImplementedError" in str(error):
        return False  # Dynamo wants a number it knows, such as one that switches gradients, and was given a size
    return not isinstance(error, (exc.Unsupported, exc.UserError, exc.FailOnRecompileLimitHit, exc.TorchRuntimeError))


def from_operator(error: BaseException) -> bool:
    """Whether one of torch's operators raised while its sizes were being worked out, most likely by the model's
    fault."""
    from torch._dynamo import exc

    return isinstance(error, exc.TorchRuntimeError)


def export_error(error: BaseException) -> AatcError | None:
    """The typed error for one of torch.export's; None when the model itself raised."""
    from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode

    if isinstance(error, RuntimeError) and "constant's list" in str(error):
        text = "the model makes a tensor that cannot be traced to what it is given"
        return UnsupportedError(text, hint="use x.detach() in the model, not x.data")
    if not isinstance(error, (ConstraintViolationError, GuardOnDataDependentSymNode)):
        return None
    loc = location.from_trace("".join(traceback.format_tb(error.__traceback__)))
    message, hint = _readable(str(error))
    return UnsupportedError(message, where=location.where(loc), hint=hint)


@contextlib.contextmanager
def whole_stacks() -> Iterator[None]:
    """Lets torch.export keep all frames below the model's forward, not only those called forward."""
    tracer: Any = fx.proxy.TracerBase
    before = tracer._filter_traceback_frames

    def keep(self: Any, frames: traceback.StackSummary) -> traceback.StackSummary:
        first = next((n for n, f in enumerate(frames) if f.name == "forward"), len(frames))
        return traceback.StackSummary.from_list(frames[first:])

    tracer._filter_traceback_frames = keep
    try:
        yield
    finally:
        tracer._filter_traceback_frames = before


def is_signal(error: BaseException) -> bool:
    """Whether an exception is torch's own way to end a computation early (`torch.utils.checkpoint`), no failure."""
    from torch.utils import checkpoint

    return isinstance(error, checkpoint._StopRecomputationError)


def models_own(error: BaseException) -> bool:
    """Whether Dynamo gave up because the model itself raised."""
    return getattr(error, "gb_type", None) == "Observed exception"


# --- running -----------------------------------------------------------------------------------------------
@dataclass
class Hooks:
    """What a compiled callable reports while it is called."""

    compile_graph: Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]
    guard_failed: Callable[[str], None]


def wrap(target: Any, hooks: Hooks, *, dynamic: bool | None, fullgraph: bool) -> Callable[..., Any]:
    """``target`` (a module or function) run by Dynamo, its graphs compiled by ``hooks.compile_graph``.

    Every wrap has a cache of its own: recompiling another copy of the same code never counts against it.
    """
    import torch._dynamo
    from torch._dynamo import config

    teach_operators()
    varying = _Varying(dynamic)

    def failed(failure: Any) -> None:
        varying.note(failure.reason)
        hooks.guard_failed(failure.reason)

    _leave_alone()
    _watch_breaks()
    own = config.recompile_limit
    limit = GRAPHS if own == 8 else own  # 8 is Dynamo's default; whoever sets it means it
    context: Any = torch._dynamo.optimize(
        hooks.compile_graph,
        nopython=fullgraph,
        dynamic=dynamic,
        guard_fail_fn=failed,
        recompile_limit=limit,
        isolate_recompiles=True,
    )
    if hasattr(context, "enter_exit_hooks"):  # absent when TORCHDYNAMO_DISABLE=1
        context.enter_exit_hooks.append(varying.enter)
        # graphs of all callables that share this code count against the accumulated limit
        total = max(config.accumulated_recompile_limit, 128 * limit)
        context.enter_exit_hooks.append(config._make_closure_patcher(accumulated_recompile_limit=total))
        convert: Any = getattr(context.callback, "_torchdynamo_orig_backend", None)
        if hasattr(convert, "_inner_convert"):
            convert._inner_convert = _Convert(convert._inner_convert, limit)
    try:
        wrapped: Any = context(target)
    except RuntimeError as error:  # script modules
        raise UnsupportedError(str(error).splitlines()[0], hint="compile what it was made from") from error
    return wrapped.forward if isinstance(target, torch.nn.Module) else wrapped


def switched_off() -> str | None:
    """Why Dynamo records nothing at all in this process at this moment, if so."""
    if os.environ.get("TORCHDYNAMO_DISABLE", "") == "1":
        return "TORCHDYNAMO_DISABLE=1 is set"
    from torch._dynamo import eval_frame

    stance = eval_frame._stance.stance
    return None if stance in ("default", "aot_eager_then_compile") else f"torch.compiler's stance is {stance!r}"


@contextlib.contextmanager
def counted_frames() -> Iterator[None]:
    """Without Dynamo's complaint that nothing was compiled: it would come after the model has run."""
    count = torch._C._dynamo.eval_frame.set_fullgraph_compiled_frame_count
    before = count(0)
    try:
        yield
    finally:
        count(before)


@functools.cache
def _leave_alone() -> None:
    """Keeps Dynamo out of our own code where PyTorch runs it for a model: in ops that are left to PyTorch, and in
    backwards that a model starts itself."""
    from torch._dynamo.types import FrameAction, FrameExecStrategy

    from aatc import ops, traced, traced_words
    from aatc.backends import entry, host, kernel

    skip = FrameExecStrategy(FrameAction.SKIP, FrameAction.SKIP)
    for code in (c for m in (ops, traced, traced_words, kernel, entry, host) for c in _codes_of(m)):
        torch._C._dynamo.eval_frame.set_code_exec_strategy(code, skip)


def _codes_of(module: types.ModuleType) -> Iterator[types.CodeType]:
    """Code of everything a module defines: its functions, its classes' methods and the functions within these."""
    found: list[Any] = [v for v in vars(module).values() if getattr(v, "__module__", None) == module.__name__]
    found += [m for c in found if isinstance(c, type) for m in vars(c).values()]
    codes = [getattr(inspect.unwrap(getattr(f, "__func__", f)), "__code__", None) for f in found]
    while codes:
        code = codes.pop()
        if code is not None:
            yield code
            codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]


class _Varying:
    """Numbers of Python that were seen to differ between calls, from guards that failed: they become inputs of the next
    graph. Dynamo does so by itself for arguments, but takes integers of modules, closures and globals for constants;
    and with ``dynamic=True`` it would turn every eps and momentum into an input at once."""

    _NUMBER = re.compile(r"(?:\d+/\d+: )?(?P<source>\S+) == (?P<value>-?[0-9.]+(?:e[+-]?[0-9]+)?)\s*(?:#|$)", re.M)

    def __init__(self, dynamic: bool | None):
        self._dynamic = dynamic
        self._sources: list[str] = []
        self._floats = dynamic is None
        self._settings()

    def note(self, reason: str) -> None:
        """Remembers the number whose guard failed, if it was one."""
        if self._dynamic is False:
            return
        m = self._NUMBER.match(reason)
        if m is None:
            return
        if not m["value"].lstrip("-").isdecimal():
            self._floats = True
        elif (name := _source_name(m["source"])) not in self._sources:
            self._sources.append(name)
        self._settings()

    def _settings(self) -> None:
        from torch._dynamo import config
        from torch.compiler import config as sources

        entries = ",".join(re.escape(n) + r"\Z" for n in self._sources if "," not in n)
        self._enter = [config._make_closure_patcher(specialize_float=not self._floats)]
        if entries:
            make: Any = getattr(sources, "_make_closure_patcher")  # noqa: B009  # torch does not declare it
            self._enter.append(make(dynamic_sources=entries))

    def enter(self) -> Callable[[], None]:
        """Sets Dynamo's options for one call; returns what sets them back."""
        back = [change() for change in self._enter]

        def revert() -> None:
            for f in back:
                f()

        return revert


def _source_name(shown: str) -> str:
    """Dynamo's name of a source from how its messages show it: ``self.window`` is ``L['self'].window``."""
    return shown if shown.startswith("G[") else re.sub(r"^(\w+)", r"L['\1']", shown)
