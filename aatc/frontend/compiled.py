"""`aatc.compile`: a module in, the same module out; a function in, a function out."""

from __future__ import annotations

import copy
import functools
import threading
import types
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import nn

from aatc.errors import AatcError, CompilerBugWarning, UnsupportedError
from aatc.frontend import breaks, calls, dynamo, failures, private_torch
from aatc.frontend.explain import Explanation, Fallback
from aatc.frontend.session import Graph, Options, Session
from aatc.ir import transforms

if TYPE_CHECKING:
    from aatc.backends.profile import Profile
    from aatc.ir.core import Module

M = TypeVar("M", bound=nn.Module)


#: Why calls run by the model's own operators: what is the case, what that means, and what to do instead.
_TRANSFORMED = (
    "the call is part of a transform (torch.func, torch.vmap, dual numbers)",
    "which the model's own operators go through",
    "transform the model itself, not its compiled form",
)
_HOOKED = (
    "a hook of all modules is registered (torch.nn.modules.module.register_module_...)",
    "of which graphs know nothing",
    "register hooks with the modules that they are for",
)


class NotRunError(AatcError, AttributeError):
    """Something was asked of a compiled model that is known only after its first call."""


@overload
def compile(  # type: ignore[overload-overlap]  # a module is a callable, too
    model_or_fn: M,
    *,
    backend: str = ...,
    dynamic: bool | None = ...,
    tune: Any = ...,
    passes: Any = ...,
    fallback: bool = ...,
    verify: str = ...,
    executor: str = ...,
) -> M: ...
@overload
def compile(
    model_or_fn: Callable[..., Any],
    *,
    backend: str = ...,
    dynamic: bool | None = ...,
    tune: Any = ...,
    passes: Any = ...,
    fallback: bool = ...,
    verify: str = ...,
    executor: str = ...,
) -> CompiledFunction: ...
def compile(
    model_or_fn: Any,
    *,
    backend: str = "auto",
    dynamic: bool | None = None,
    tune: Any = "none",
    passes: Any = None,
    fallback: bool = True,
    verify: str = "ir",
    executor: str = "auto",
) -> Any:
    """Compiles a model's geometric attentions; everything else runs as PyTorch runs it.

    An `nn.Module` gives an `nn.Module` of a class derived from the model's, which *shares* its parameters,
    buffers, hooks and train/eval state: change one and the other has changed. A function gives a function.
    Graphs are made when the result is called, and made again when a guard fails.

    backend: "auto" or a name of `aatc.devices`. dynamic: True makes sizes symbols from the first call on,
    None those that are seen to vary, False none. passes: a pipeline text, a `Pipeline`, or `Pass` objects to
    run among the built-in ones; what they raise is raised as PassError. fallback: with False, what cannot be
    compiled raises UnsupportedError naming the model's source line; with True it runs eagerly and ``explain()``
    says so and counts it. Failures of the compiler itself give a CompilerBugWarning, attention in much n*m
    memory and more graphs than the limit a FallbackWarning. verify: "numerics" compares every pass's result
    with what went in, on small random inputs. executor: what runs programs of ``backend="vulkan"``: "wgpu", "native",
    "kompute", or "auto", the first of these that is installed; explain() says which and why.

    tune: "cached" takes the schedules that were measured on this device (`aatc.tune`, ``aatc tune``) where there
    are any. "quick" (or True) and "full" also measure what there is none for, after the first call, on its inputs;
    later calls are compiled with what was found. A ``.json`` file, or what `aatc.tune` or `aatc.tuning.load` returned,
    gives the schedules itself. Whatever the schedule, results are the same to rounding.

    The result also has ``ir(stage, graph)``, ``stages``, ``code``, ``graphs`` and ``explain()``.
    """
    options = Options(backend, dynamic, tune, passes, fallback, verify, executor)
    target = _original(model_or_fn)
    if isinstance(target, nn.Module):
        return _twin(target, options)
    if isinstance(target, type):
        raise UnsupportedError(f"{target.__name__} is a class", hint="compile an instance of it")
    if not callable(target):
        raise UnsupportedError(f"a {type(target).__name__} cannot be compiled", hint="hand in a module or a function")
    return CompiledFunction(target, options)


def _original(model_or_fn: Any) -> Any:
    """What a compiled object, ours or torch.compile's, was made from."""
    if isinstance(model_or_fn, (Compiled, CompiledFunction)):
        return model_or_fn._aatc.original
    if type(model_or_fn).__name__ == "OptimizedModule":
        return model_or_fn._orig_mod
    return getattr(model_or_fn, "_torchdynamo_orig_callable", model_or_fn)


class _Runner:
    """Calls the original through Dynamo, and answers questions about what was compiled."""

    def __init__(self, original: Any, options: Options):
        self.original, self.options = original, options
        name = type(original).__name__ if isinstance(original, nn.Module) else getattr(original, "__name__", "function")
        self.session = Session(options, name)
        weakref.finalize(self, self.session.forget).atexit = False
        self._run: Callable[..., Any] | None = None
        self._preparing = threading.Lock()
        self._measures = options.tuning.effort

    def _prepare(self) -> Callable[..., Any]:
        session = self.session
        with self._preparing:
            if self._run is not None:
                return self._run
            hooks = dynamo.Hooks(session.compile_graph, session.guard_failed)
            try:
                run = dynamo.wrap(
                    _traceable(self.original),
                    hooks,
                    dynamic=self.options.dynamic,
                    fullgraph=not self.options.fallback,
                )
            except UnsupportedError as error:
                if not self.options.fallback:
                    raise
                session.add_fallback(Fallback(session.name, "", error.message, error.hint or ""))
                run = self.original
            self._run = run
        return run

    def call(self, *args: Any, **kwargs: Any) -> Any:
        if self._run is None:
            return self._first(args, kwargs)
        if transforms.transformed():
            return self._uncompiled(_TRANSFORMED, args, kwargs)
        if private_torch.hooks_of_all_modules():
            return self._uncompiled(_HOOKED, args, kwargs)
        call = calls.Call(self.session)
        try:
            with calls.Calling(call):
                result = self._within(call, args, kwargs)
        except BaseException:
            # the limit of graphs and what could not be recorded are told of calls that succeed: when the model raises,
            # Dynamo sees breaks that are none
            call.breaks.clear()
            self.session.called(call)
            raise
        self.session.called(call)
        for category, text in call.warnings:
            failures.warn(text, category)
        return result

    def _first(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A call, the first of this model or at the same time as the first."""
        hurry = self.session.hurry = calls.Hurry()
        with self._preparing:
            effort, self._measures = self._measures, ""
        try:
            if effort:
                return self._measured(effort, args, kwargs)
            self._prepare()
            return self.call(*args, **kwargs)
        finally:
            hurry.end()

    def _measured(self, effort: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The first call, after which schedules are measured on the operands its attentions had. If one is faster than
        the default, the next call compiles anew, with it."""
        from aatc.tuning.measure import measured_after

        session = self.session
        with measured_after(session, effort) as done:
            self._prepare()
            result = self.call(*args, **kwargs)
        session.notes += done.notes
        if done.found:
            fresh = Session(self.options, session.name)
            fresh.notes += done.notes
            with self._preparing:
                self.session, self._run = fresh, None
        return result

    def _within(self, call: calls.Call, args: tuple, kwargs: dict[str, Any]) -> Any:
        assert self._run is not None
        if not self.options.fallback:
            off = private_torch.switched_off()
            if off is not None:
                raise UnsupportedError(f"nothing can be compiled: {off}", hint="switch Dynamo on, or allow fallback")
        before = None if self.options.fallback else private_torch.count_frames(0)
        try:
            return self._run(*args, **kwargs)
        except Exception as error:
            if private_torch.ends_recomputation(error):
                raise
            failed = error
        finally:
            if before is not None:
                private_torch.count_frames(before)
        return self._failed(call, failed, args, kwargs)

    def _uncompiled(self, why: tuple[str, str, str], args: tuple, kwargs: dict[str, Any]) -> Any:
        """A call that the model's own operators have to go through."""
        what, instead, hint = why
        if not self.options.fallback:
            raise UnsupportedError(what, hint=hint)
        session = self.session
        session.add_fallback(Fallback(session.name, "", f"{what}, {instead}"), calls=1)
        call = calls.Call(session)
        with calls.Calling(call):
            result = self.original(*args, **kwargs)
        session.called(call)
        for category, text in call.warnings:
            failures.warn(text, category)
        return result

    def _failed(self, call: calls.Call, error: Exception, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The original's results after Dynamo gave up, or what is to be raised."""
        typed = breaks.as_error(error)
        if typed is None or failures.users(typed):
            raise typed or error
        started = call.ran or call.left or call.breaks
        if breaks.models_own(error) and not started:
            result = self.original(*args, **kwargs)  # raises what the model raises
            if self.options.fallback:
                return result
        if not self.options.fallback:
            raise self._limited(typed, call) from error
        if started:  # running the model again would repeat what it did up to here
            self._run = self.original
            if private_torch.of_operator(error):
                raise error
            again = "the model was run up to there; called again, it runs in PyTorch from the start"
            raise UnsupportedError(typed.message, where=typed.where, hint=again) from error
        session, bug = self.session, breaks.is_bug(error)
        session.add_fallback(Fallback(session.name, typed.where or "", typed.message, typed.hint or ""), calls=1)
        if bug:
            text = failures.bug(session.name, "recording the model", typed, typed.where)
            session.warn(CompilerBugWarning, text, ("record", typed.where, typed.message))
        return self.original(*args, **kwargs)

    def _limited(self, typed: AatcError, call: calls.Call) -> AatcError:
        if not typed.message.startswith("the limit of graphs") or not call.guards:
            return typed
        reasons = "; ".join(dict.fromkeys(call.guards))
        return UnsupportedError(f"{typed.message}; last reason: {reasons}", where=typed.where, hint=typed.hint)

    # --- questions -----------------------------------------------------------------------------------------
    def graph(self, index: int) -> Graph:
        graphs = self.session.graphs
        if not graphs:
            raise NotRunError(
                f"{self.session.name} has no graph yet",
                hint="run the model once: graphs are made when it is called",
            )
        try:
            return graphs[index]
        except IndexError:
            raise NotRunError(f"there is no graph {index}", hint=f"there are {len(graphs)}, from 0 on") from None

    def ir(self, stage: str = "final", graph: int = -1) -> Module:
        found = self.graph(graph)
        if not found.stages:
            raise NotRunError(f"graph {found.index} could not be imported: {found.error}", hint="explain() says why")
        if stage not in found.stages:
            raise NotRunError(f"there is no stage {stage!r}", hint=f"stages: {', '.join(found.stages)}")
        return found.stages[stage]

    def code(self) -> str:
        self.graph(-1)
        return "\n\n".join(
            f"# graph {g.index}\n{g.code}" if len(self.session.graphs) > 1 else g.code for g in self.session.graphs
        )


def _traceable(target: Any) -> Any:
    """Dynamo takes modules and functions; any other callable is called from a function."""
    if isinstance(target, (nn.Module, types.FunctionType, types.MethodType, types.BuiltinFunctionType)):
        return target

    def call(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)

    return call


def _being_traced() -> bool:
    """Whether this call is part of a model that is being traced. ``torch.compiler.is_compiling`` alone would not do: it
    is one flag for all threads, and another one may be compiling."""
    if torch.compiler.is_dynamo_compiling():
        return True
    return private_torch.being_traced()


class _Questions:
    """The members every compiled object has besides those of what it was made from."""

    _aatc: _Runner

    def ir(self, stage: str = "final", graph: int = -1) -> Module:
        """The IR of a graph, the last one by default, after a stage: "import", a pass's name, "final"."""
        return self._aatc.ir(stage, graph)

    @property
    def stages(self) -> list[str]:
        """The stages `ir` knows, in order."""
        return list(self._aatc.graph(-1).stages)

    @property
    def code(self) -> str:
        """The generated source of every graph."""
        return self._aatc.code()

    @property
    def graphs(self) -> list[Graph]:
        """The graphs compiled so far, as they are now."""
        return [copy.copy(g) for g in self._aatc.session.graphs]

    def profile(self, inputs: Any = None, *, runs: int = 3, backward: bool = False) -> Profile:
        """Where the time of the kernels goes: time and share of every operation of their tile programs, from builds of
        the kernels that count; ``str()`` is a table.

        inputs: a tensor or a tuple of the call's arguments. Without, the graphs compiled so far run on random tensors
        of their shapes, which may take other branches than data does. backward: also the gradients of the outputs' sum.
        Raises BackendError for backends that do not count.
        """
        from aatc.frontend import profiling

        return profiling.profile(self, self._aatc, inputs, runs=runs, backward=backward)

    def explain(self) -> Explanation:
        """What was fused, tiled and proved, and what was left to PyTorch and why; ``str()`` is a report."""
        return self._aatc.session.explain()


class Compiled:
    """Mixed into the class of a compiled module. The instance shares its ``__dict__`` with the original."""

    _aatc: _Runner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _being_traced():  # within a model that is being compiled: one graph, not one in another
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        return self._aatc.call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if isinstance(vars(type(self)).get(name), property):
            vars(type(self))[name].fget(self)  # a property has raised an AttributeError: that one is to be seen
        original = self._aatc.original
        if not isinstance(self, type(original)):  # whose class was changed since: by parametrizations, say
            return getattr(original, name)
        return super().__getattr__(name)  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":
            raise UnsupportedError(
                "the class of a compiled model cannot be changed, as parametrizations do",
                hint="change the model itself, and compile it then",
            )
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _twin(copy.deepcopy(self._aatc.original, memo), self._aatc.options)

    def __copy__(self) -> Any:
        return _twin(copy.copy(self._aatc.original), self._aatc.options)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _twin, (self._aatc.original, self._aatc.options)

    def _get_name(self) -> str:
        return type(self._aatc.original).__name__


def _twin(model: M, options: Options) -> M:
    base = type(model)
    meta: Any = type(base)
    members = {"_aatc": _Runner(model, options), "__module__": base.__module__, "__doc__": base.__doc__}
    # a model's own attributes win: many a vision model has `stages`
    members |= {n: m for n, m in vars(_Questions).items() if not n.startswith("_") and not hasattr(model, n)}
    cls = meta(f"Compiled{base.__name__}", (Compiled, base), members)
    twin: M = cls.__new__(cls)
    object.__setattr__(twin, "__dict__", model.__dict__)
    return twin


class CompiledFunction(_Questions):
    """A compiled function: called as the original, with its name and signature."""

    def __init__(self, function: Callable[..., Any], options: Options):
        functools.update_wrapper(self, function)
        self._aatc = _Runner(function, options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _being_traced():
            return self._aatc.original(*args, **kwargs)
        return self._aatc.call(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledFunction:
        return CompiledFunction(self._aatc.original, self._aatc.options)

    def __reduce__(self) -> Any:
        return CompiledFunction, (self._aatc.original, self._aatc.options)

    def __repr__(self) -> str:
        return f"<aatc.compile of {self._aatc.session.name}>"
