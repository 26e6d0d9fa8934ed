"""What every backend shares: a verified module and the backend's compiled tile functions become a program.

The entry is torch code (`entry`), an attention a differentiable function (`kernel`); a backend compiles tile functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aatc.backends.entry import Entry
from aatc.backends.kernel import Kernel, Version
from aatc.backends.program import Program
from aatc.ir import collector
from aatc.ir.core import Module, Op
from aatc.ir.errors import BackendError, UnsupportedError
from aatc.ir.geo import VERSIONS, attention_of
from aatc.ir.registry import Symbol

if TYPE_CHECKING:
    from aatc.backends.contract import Backend


def build(module: Module, backend: Backend) -> Program:
    """The program of a module that has been through ``backend``'s passes."""
    with collector.paused():
        return _build(module, backend)


def _build(module: Module, backend: Backend) -> Program:
    kernels: dict[str, Kernel] = {}
    attentions = []
    for op in module.walk():
        if op.name == "geo.kernel":
            _check_supported(op, module, backend)
            kernel = kernels[op.attrs["forward"].name] = _kernel(op, module, backend)
            attentions.append(describe(op, module, kernel, backend.name))
    entry = Entry(module, module.entry, kernels)
    main, text = entry.build()
    parts = [text, *entry.namespace.get("texts", [])]
    return Program(main, lambda: "\n\n".join([*parts, *(k.code() for k in kernels.values())]), attentions)


def _check_supported(op: Op, module: Module, backend: Backend) -> None:
    """Raises UnsupportedError where a tile function of a kernel has an operation that the backend refuses. Before
    anything runs: a backward is compiled when it is first needed, and then it is too late."""
    refused = backend.lowerings.unsupported
    for symbol in op.attrs.values():
        for x in module.funcs[symbol.name].body.walk() if refused and isinstance(symbol, Symbol) else ():
            if x.name in refused:
                raise UnsupportedError(
                    f"backend {backend.name!r} has no {x.name}: {refused[x.name]}",
                    where=str(op.loc) if op.loc else None,
                )


def _kernel(op: Op, module: Module, backend: Backend) -> Kernel:
    a, att = op.attrs, attention_of(op)

    def version(forward: str, backward: str, grads: str) -> Version:
        return Version(module.funcs[a[forward].name], module.funcs[a[backward].name], a[grads], att, backend)

    versions, finite = [version(*v) for v in VERSIONS if v[0] in a], backend.finite()
    if not callable(finite):
        raise BackendError(
            f"backend {backend.name!r} finds numbers that are not finite by {finite!r}, which cannot be called",
            hint="finite() has to return a function of a tensor, or leave it to Backend.finite",
        )
    return Kernel(a["names"], a.get("mask"), a.get("axes", ()), versions, finite)


def describe(op: Op, module: Module, kernel: Kernel, backend: str) -> dict[str, Any]:
    """What `explain` shows of one attention."""
    forward = module.funcs[op.attrs["forward"].name]
    certificates = [c for c in module.certificates if c.subject == str(op.loc)]
    return {
        "name": forward.name,
        "kind": forward.attrs.get("kind", "attention"),
        "lowering": forward.attrs.get("lowering", ""),
        "engine": forward.attrs.get("engine", ""),
        "schedule": forward.attrs.get("schedule", ""),
        "arena_bytes": forward.attrs.get(f"{backend}.arena", 0),
        "loc": op.loc,
        "kernel": kernel,
        "certificates": list({str(c): c for c in certificates}.values()),
    }
