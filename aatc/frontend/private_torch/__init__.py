"""Everything of the frontend that leans on private parts of torch: Dynamo's hooks, tracing, the states graphs set.

`PARTS` says which of these parts not every supported version has, and what is done without them. What a version has is
asked of it, not concluded from its number; `make test-torch TORCH=2.11.0` runs the tests with another version.
Dynamo is imported when it is first needed. `operators`: what Dynamo is taught of operators.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx
from torch._guards import TracingContext


# --- what not every version has ----------------------------------------------------------------------------
@dataclass(frozen=True)
class Part:
    """A private part of torch: the oldest version that was seen to have it, what is done without it, and whether the
    torch at hand has it."""

    name: str
    seen: tuple[int, int]
    without: str
    present: Callable[[], bool]


def _isolates() -> bool:
    from torch._dynamo import eval_frame

    return "isolate_recompiles" in inspect.signature(eval_frame._optimize).parameters


def _counts_frames() -> bool:
    return hasattr(torch._C._dynamo.eval_frame, "set_fullgraph_compiled_frame_count")


def _looks_at_defaults() -> bool:
    from torch._dynamo import config

    entries: Any = vars(config)["_config"]
    return not entries["skip_guards_on_constant_func_defaults"].default


PARTS = {
    p.name: p
    for p in (
        Part(
            "isolate_recompiles",
            (2, 13),
            "callables that share code share its cache in Dynamo; graphs are counted here, for each callable apart",
            _isolates,
        ),
        Part(
            "set_fullgraph_compiled_frame_count",
            (2, 13),
            "Dynamo itself says so where nothing was compiled, and not what is to blame",
            _counts_frames,
        ),
        Part(
            "guards on constant defaults",
            (2, 13),
            "Dynamo is set to guard them (skip_guards_on_constant_func_defaults), in the whole process",
            _looks_at_defaults,
        ),
    )
}


def guard_defaults() -> None:
    """Has Dynamo guard the defaults of functions that it inlines, predicates and metrics among them."""
    from torch._dynamo import config

    config.skip_guards_on_constant_func_defaults = False


# --- states of torch, as graphs set them -------------------------------------------------------------------
set_grad_enabled: Any = torch._C._set_grad_enabled
enter_autocast: Any = torch.amp.autocast_mode._enter_autocast
exit_autocast: Any = torch.amp.autocast_mode._exit_autocast
enter_inference: Any = torch.autograd.grad_mode._enter_inference_mode
exit_inference: Any = torch.autograd.grad_mode._exit_inference_mode


def sets_data(target: Any) -> bool:
    """Whether a function in a graph is part of how Dynamo records ``x.data = y``: ``set_`` and a step back of the
    version; since 2.14 an operator whose schema does not tell that the two share memory from then on."""
    name = str(getattr(target, "__name__", "")).partition(".")[0]
    return name in ("_lower_version_count_by_1", "shallow_copy_data_")


def casts_for_itself(op: torch._ops.OpOverload) -> bool:
    """Whether autocast on the CPU has a rule for ``op``: it then casts all its tensors to one dtype."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "AutocastCPU")


def is_composite(op: torch._ops.OpOverload) -> bool:
    """Whether ``op`` is made of other operators, which autocast would treat one by one."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")


# --- tracing -----------------------------------------------------------------------------------------------
def fake_mode(value: Any) -> Any:
    """The mode of a fake tensor; None for everything else."""
    from torch._subclasses.fake_tensor import FakeTensor

    return value.fake_mode if isinstance(value, FakeTensor) else None


def trace(function: Callable[..., Any], values: Sequence[Any]) -> fx.GraphModule:
    """The graph of ATen operators that ``function`` runs on ``values``, fake tensors and symbols, before autograd."""
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(function, pre_dispatch=True, tracing_mode="real")(*values)


def tracing() -> bool:
    """Whether `trace` is running in this thread."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return get_proxy_mode() is not None


def being_traced() -> bool:
    """Whether what runs in this thread is traced by Dynamo or exported; other threads may be."""
    return torch.compiler.is_compiling() and TracingContext.try_get() is not None


def complete_checkpoint(body: fx.GraphModule) -> None:
    """Gives a checkpointed region the context that torch expects of one that is run as a graph."""
    if body.meta.get("_checkpoint_context_fn") is None:
        body.meta["_checkpoint_context_fn"] = torch.utils.checkpoint.noop_context_fn


@contextlib.contextmanager
def quiet_checkpoints() -> Iterator[None]:
    """Without torch's warning about checkpoint contexts: they are ours."""
    from torch._higher_order_ops import wrap

    before, wrap.log.disabled = wrap.log.disabled, True
    try:
        yield
    finally:
        wrap.log.disabled = before


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


# --- errors ------------------------------------------------------------------------------------------------
#: What Dynamo calls a limit of graphs that is passed.
LIMIT = "Dynamo recompile limit exceeded"


def of_compiler(error: BaseException) -> BaseException:
    """What a backend raised within Dynamo; any other error as it is."""
    from torch._dynamo import exc

    return error.inner_exception if isinstance(error, exc.BackendCompilerFailed) else error


def of_dynamo(error: BaseException) -> bool:
    """Whether Dynamo raised ``error``, which may be no error of its own kinds where it fails."""
    from torch._dynamo import convert_frame, exc

    if isinstance(error, (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)):
        return True
    raised = traceback.extract_tb(error.__traceback__)
    return isinstance(error, AssertionError) and os.path.dirname(raised[-1].filename) == os.path.dirname(
        convert_frame.__file__
    )


def of_limit(error: BaseException) -> bool:
    """Whether no further graph is allowed where none may be missing."""
    from torch._dynamo import exc

    return isinstance(error, exc.FailOnRecompileLimitHit)


def cannot_record(error: BaseException) -> bool:
    """Whether Dynamo met something that it cannot record."""
    from torch._dynamo import exc

    return isinstance(error, (exc.Unsupported, exc.UserError))


def of_operator(error: BaseException) -> bool:
    """Whether one of torch's operators raised while its sizes were being worked out, most likely by the model's
    fault."""
    from torch._dynamo import exc

    return isinstance(error, exc.TorchRuntimeError)


def of_symbols(error: BaseException) -> bool:
    """Whether torch.export failed at a size that it was to keep unknown."""
    from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode

    return isinstance(error, (ConstraintViolationError, GuardOnDataDependentSymNode))


def is_known_to_be(size: torch.SymInt, number: int) -> bool:
    """Whether the guards so far say that a size is ``number``; no guard is added."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(size == number))


def ends_recomputation(error: BaseException) -> bool:
    """Whether an exception is torch's own way to end a computation early (`torch.utils.checkpoint`)."""
    from torch.utils import checkpoint

    return isinstance(error, checkpoint._StopRecomputationError)


# --- running -----------------------------------------------------------------------------------------------
class Watch(Protocol):
    """Told of every frame that Dynamo compiles, before it does and when it fails."""

    def starts(self) -> None: ...

    def failed(self, error: Exception, code: types.CodeType) -> None: ...


#: Changes options of Dynamo, and returns what sets them back.
Setting = Callable[[], Callable[[], None]]


class _Frames:
    """Dynamo's compilation of frames, watched. ``limit``: graphs that a code may have; None where Dynamo counts them
    for every callable apart. ``settings``: each is called before a frame is compiled, and what it returns after it."""

    def __init__(self, inner: Any, watch: Watch, limit: int | None, settings: Sequence[Setting]):
        self._inner, self._watch, self._limit, self._settings = inner, watch, limit, settings
        self._graphs: dict[types.CodeType, int] = {}
        self._left: dict[types.CodeType, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, frame: Any, *args: Any, skip: int = 0, **kwargs: Any) -> Any:
        code = frame.f_code
        if code in self._left:
            return self._left[code]
        self._watch.starts()
        backs = [change() for change in self._settings]
        try:
            with self._counted(code):
                result = self._inner(frame, *args, skip=skip + 1, **kwargs)
        except Exception as error:
            self._watch.failed(error, code)
            if self._limit is None or getattr(error, "gb_type", None) != LIMIT:
                raise
            result = _run_only()
        finally:
            for back in backs:
                back()
        if result.guarded_code is not None:
            self._graphs[code] = self._graphs.get(code, 0) + 1
        elif self._limit is not None:
            # Dynamo would make no more graphs of this code for anybody
            self._left[code] = result = dataclasses.replace(result, apply_to_code=False)
        return result

    def _counted(self, code: types.CodeType) -> contextlib.AbstractContextManager[Any]:
        """Lets Dynamo, which counts the graphs of a code for all callables together, see this one's count alone."""
        if self._limit is None:
            return contextlib.nullcontext()
        from torch._dynamo import config

        full = self._graphs.get(code, 0) >= self._limit
        counting: contextlib.AbstractContextManager[Any] = config.patch(
            recompile_limit=0 if full else config.accumulated_recompile_limit
        )
        return counting


def _run_only() -> Any:
    """Has a frame, and what it calls, run by the graphs there are."""
    from torch._dynamo.types import ConvertFrameReturn, FrameAction, FrameExecStrategy

    return ConvertFrameReturn(FrameExecStrategy(FrameAction.RUN_ONLY, FrameAction.RUN_ONLY))


def own_limit() -> int | None:
    """The limit of graphs that somebody has set, if it is not Dynamo's default, 8."""
    from torch._dynamo import config

    return None if config.recompile_limit == 8 else config.recompile_limit


def optimize(
    target: Any,
    compile_graph: Callable[..., Any],
    *,
    fullgraph: bool,
    dynamic: bool | None,
    limit: int,
    guard_failed: Callable[[Any], None],
    enter: Setting,
    watch: Watch,
) -> Callable[..., Any]:
    """``target`` run by Dynamo, with at most ``limit`` graphs for one code, its cache apart from everybody else's. With
    ``fullgraph``, a torch that does not isolate caches leaves the limit to ``compile_graph``.

    ``enter`` is called before a frame is compiled and returns what is called after it: not in every call, of which
    that would be a tenth where an attention is small.
    """
    import torch._dynamo
    from torch._dynamo import config

    isolates = PARTS["isolate_recompiles"].present()
    keywords: dict[str, Any] = {"recompile_limit": limit, "isolate_recompiles": True} if isolates else {}
    context: Any = torch._dynamo.optimize(
        compile_graph, nopython=fullgraph, dynamic=dynamic, guard_fail_fn=guard_failed, **keywords
    )
    if hasattr(context, "enter_exit_hooks"):  # absent when TORCHDYNAMO_DISABLE=1
        # graphs of all callables that share this code count against the accumulated limit
        total = max(config.accumulated_recompile_limit, 128 * limit)
        # hooks that come and go after a frame was compiled are guarded: Dynamo would go on without them
        guards = config._make_closure_patcher(skip_nnmodule_hook_guards=False)
        settings = [enter, guards, config._make_closure_patcher(accumulated_recompile_limit=total)]
        convert: Any = getattr(context.callback, "_torchdynamo_orig_backend", None)
        if hasattr(convert, "_inner_convert"):
            counted = None if isolates else limit
            convert._inner_convert = _Frames(convert._inner_convert, watch, counted, settings)
        else:
            context.enter_exit_hooks += settings
            if not isolates:  # all of the target is one graph, and who compiles graphs counts them
                context.enter_exit_hooks.append(config._make_closure_patcher(recompile_limit=total))
    wrapped: Callable[..., Any] = context(target)
    return wrapped


def patchers(*, specialize_float: bool, dynamic_sources: str) -> list[Setting]:
    """What sets these options of Dynamo when called, and returns what sets them back."""
    from torch._dynamo import config
    from torch.compiler import config as sources

    found: list[Any] = [config._make_closure_patcher(specialize_float=specialize_float)]
    if dynamic_sources:
        make: Any = getattr(sources, "_make_closure_patcher")  # noqa: B009  # torch does not declare it
        found.append(make(dynamic_sources=dynamic_sources))
    return found


def hooks_of_all_modules() -> bool:
    """Whether a hook is registered that every module calls: Dynamo guards none of these."""
    return bool(torch.nn.modules.module._has_any_global_hook())


def switched_off() -> str | None:
    """Why Dynamo records nothing at all in this process at this moment, if so."""
    if os.environ.get("TORCHDYNAMO_DISABLE", "") == "1":
        return "TORCHDYNAMO_DISABLE=1 is set"
    stance = _eval_frame()._stance.stance
    return None if stance in ("default", "aot_eager_then_compile") else f"torch.compiler's stance is {stance!r}"


@functools.cache
def _eval_frame() -> Any:
    from torch._dynamo import eval_frame

    return eval_frame


def count_frames(count: int) -> int:
    """Sets how many frames Dynamo has compiled, and returns what it was. From 0 on it does not complain that nothing
    was compiled: that would come after the model has run."""
    setter = _frame_counter()
    return count if setter is None else setter(count)


@functools.cache
def _frame_counter() -> Callable[[int], int] | None:
    if not PARTS["set_fullgraph_compiled_frame_count"].present():
        return None
    found: Callable[[int], int] = torch._C._dynamo.eval_frame.set_fullgraph_compiled_frame_count
    return found


def leave_alone(codes: Iterator[types.CodeType]) -> None:
    """Keeps Dynamo out of these codes and all that they call."""
    from torch._dynamo.types import FrameAction, FrameExecStrategy

    skip = FrameExecStrategy(FrameAction.SKIP, FrameAction.SKIP)
    for code in codes:
        torch._C._dynamo.eval_frame.set_code_exec_strategy(code, skip)


def on_graph_break(tell: Callable[[Any], None]) -> None:
    """Has ``tell`` called with Dynamo's reason for every graph break, in the thread where it happens: Dynamo's own list
    of them is one for all threads, and may be cleared at any time."""
    from torch._dynamo import output_graph

    class Told(list):
        def append(self, reason: Any) -> None:
            kept.append(reason)
            tell(reason)

    kept = output_graph.graph_break_reasons
    output_graph.graph_break_reasons = Told()
