"""A model run by Dynamo: a cache for each callable, numbers seen to vary as inputs, our own code left alone."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from aatc.frontend import breaks, private_torch
from aatc.frontend.traced_operators import teach_operators
from aatc.ir.errors import UnsupportedError
from aatc.traced import Traced

#: Graphs one function may have before the rest of its inputs runs in PyTorch. Dynamo's own default, 8, is passed by
#: training and evaluating with and without gradients in two dtypes.
GRAPHS = 32


def backend(gm: fx.GraphModule, example_inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """The Dynamo backend behind ``torch.compile(model, backend="aatc", options={...})``.

    ``options`` are the keywords of `aatc.compile` (backend, tune, passes, fallback, verify, executor).
    """
    from aatc.frontend.session import Options, Session

    teach_operators(Traced)
    leave_alone()
    given = {**(options.pop("options", None) or {}), **options}
    known = {n: given[n] for n in ("backend", "tune", "passes", "fallback", "verify", "executor") if n in given}
    return Session(Options(**known), "torch.compile").compile_graph(gm, example_inputs)


@dataclass
class Hooks:
    """What a compiled callable reports while it is called."""

    compile_graph: Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]
    guard_failed: Callable[[str], None]


def wrap(target: Any, hooks: Hooks, *, dynamic: bool | None, fullgraph: bool) -> Callable[..., Any]:
    """``target`` (a module or function) run by Dynamo, its graphs compiled by ``hooks.compile_graph``.

    Every wrap has a cache of its own: recompiling another copy of the same code never counts against it.
    """
    if isinstance(target, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        what = "what torch.jit.script or torch.jit.trace made is no Python that can be recorded"
        raise UnsupportedError(what, hint="compile what it was made from")
    teach_operators(Traced)
    varying = _Varying(dynamic)
    # weakly: Dynamo lets go of guards as late as of the globals that they watch, and all graphs would live as long
    told = weakref.WeakMethod(hooks.guard_failed)

    def failed(failure: Any) -> None:
        varying.note(failure.reason)
        if (tell := told()) is not None:
            tell(failure.reason)

    leave_alone()
    breaks.watch_breaks()
    limit = private_torch.own_limit() or GRAPHS  # whoever sets it means it
    counts = fullgraph and not private_torch.PARTS["isolate_recompiles"].present()
    wrapped: Any = private_torch.optimize(
        target,
        _limited(hooks.compile_graph, limit) if counts else hooks.compile_graph,
        fullgraph=fullgraph,
        dynamic=dynamic,
        limit=limit,
        guard_failed=failed,
        enter=varying.enter,
        watch=breaks.Watch(limit),
    )
    call: Callable[..., Any] = wrapped.forward if isinstance(target, torch.nn.Module) else wrapped
    return call


def _limited(compile_graph: Callable[..., Callable[..., Any]], limit: int) -> Callable[..., Callable[..., Any]]:
    """``compile_graph``, which may be called ``limit`` times."""
    made = itertools.count()

    def compile_counted(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        if next(made) >= limit:
            raise UnsupportedError("the limit of graphs is reached", hint=breaks.MORE_GRAPHS)
        return compile_graph(gm, example_inputs)

    return compile_counted


@functools.cache
def leave_alone() -> None:
    """Keeps Dynamo out of our own code where PyTorch runs it for a model: in ops that are left to PyTorch, and in
    backwards that a model starts itself."""
    from aatc import ops, traced, traced_arguments, traced_words
    from aatc.backends import entry, host, kernel

    modules = (ops, traced, traced_arguments, traced_words, kernel, entry, host)
    private_torch.leave_alone(c for m in modules for c in _codes_of(m))


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
        entries = ",".join(re.escape(n) + r"\Z" for n in self._sources if "," not in n)
        self._enter = private_torch.patchers(specialize_float=not self._floats, dynamic_sources=entries)

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
