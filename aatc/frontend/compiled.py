"""`aatc.compile`: a module in, the same module out; a function in, a function out."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import nn
from torch._guards import TracingContext

from aatc.errors import AatcError, UnsupportedError
from aatc.frontend.explain import Explanation, Fallback
from aatc.frontend.session import Graph, Options, Session

if TYPE_CHECKING:
    from aatc.ir.core import Module

M = TypeVar("M", bound=nn.Module)


class NotRunError(AatcError):
    """Something was asked of a compiled model that is known only after its first call."""


@overload
def compile(  # type: ignore[overload-overlap]  # a module is a callable, too
    model_or_fn: M,
    *,
    backend: str = ...,
    dynamic: bool | None = ...,
    tune: str = ...,
    passes: Any = ...,
    fallback: bool = ...,
) -> M: ...
@overload
def compile(
    model_or_fn: Callable[..., Any],
    *,
    backend: str = ...,
    dynamic: bool | None = ...,
    tune: str = ...,
    passes: Any = ...,
    fallback: bool = ...,
) -> CompiledFunction: ...
def compile(
    model_or_fn: Any,
    *,
    backend: str = "auto",
    dynamic: bool | None = None,
    tune: str = "none",
    passes: Any = None,
    fallback: bool = True,
) -> Any:
    """Compiles a model's geometric attentions; everything else runs as PyTorch runs it.

    An `nn.Module` gives an `nn.Module` of a class derived from the model's, which *shares* its parameters,
    buffers, hooks and train/eval state: change one and the other has changed. A function gives a function.
    Graphs are made when the result is called, and made again when a guard fails.

    backend: "auto" or a name of `aatc.devices`. dynamic: True makes sizes symbols from the first call on,
    None those that are seen to vary, False none. passes: a pipeline text, a `Pipeline`, or `Pass` objects to
    run among the built-in ones. fallback: with False, what cannot be compiled raises UnsupportedError naming
    the model's source line; with True it runs eagerly and ``explain()`` says so.

    The result also has ``ir(stage, graph)``, ``stages``, ``code``, ``graphs`` and ``explain()``.
    """
    options = Options(backend, dynamic, tune, passes, fallback)
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
        self._run: Callable[..., Any] | None = None
        self._breaks: list[Any] = []

    def _prepare(self) -> None:
        from aatc.frontend import dynamo

        session = self.session
        hooks = dynamo.Hooks(session.compile_graph, session.guard_failed)
        self._breaks = dynamo.graph_breaks()
        self._run = dynamo.wrap(
            _traceable(self.original),
            hooks,
            dynamic=self.options.dynamic,
            fullgraph=not self.options.fallback,
        )

    def call(self, *args: Any, **kwargs: Any) -> Any:
        run = self._run
        if run is None:
            with self.session.unhurried():
                self._prepare()
                return self.call(*args, **kwargs)
        seen = len(self._breaks)
        try:
            return run(*args, **kwargs)
        except Exception as error:
            return self._failed(error, args, kwargs)
        finally:
            if len(self._breaks) != seen:
                self._broke(self._breaks[seen:])

    def _failed(self, error: Exception, args: tuple, kwargs: dict[str, Any]) -> Any:
        from aatc.frontend import dynamo

        if dynamo.no_frames(error):
            return self.original(*args, **kwargs)
        if dynamo.models_own(error):
            self.original(*args, **kwargs)  # raises what the model raises
        typed = dynamo.as_error(error)
        if typed is None:
            raise error
        if not self.options.fallback:
            raise typed from error
        self.session.add_fallback(Fallback(self.session.name, typed.where or "", typed.message, typed.hint or ""))
        return self.original(*args, **kwargs)

    def _broke(self, reasons: Sequence[Any]) -> None:
        from aatc.frontend import dynamo, location

        for reason in reasons:
            broke = dynamo.break_from(reason)
            self.session.add_fallback(
                Fallback("graph break", location.where(broke.loc) or "", broke.reason, broke.hint or "")
            )

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
    return torch.compiler.is_compiling() and TracingContext.try_get() is not None


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
        """The graphs compiled so far."""
        return list(self._aatc.session.graphs)

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
    twin = cls.__new__(cls)
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
