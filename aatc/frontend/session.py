"""One `aatc.compile` call: its options, the graphs it has made, and how each is compiled."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from aatc import backends
from aatc.errors import AatcError, BackendError, PassError, UnsupportedError
from aatc.frontend import location, log
from aatc.frontend.dump import Dump
from aatc.frontend.explain import AttentionInfo, Explanation, Fallback, GraphInfo, PassInfo
from aatc.ir import effects

if TYPE_CHECKING:
    from torch import fx

    from aatc.ir.core import Module
    from aatc.passes import Pipeline, PipelineResult

TUNE = ("none",)


@dataclass(frozen=True)
class Options:
    """The keywords of `aatc.compile`, checked."""

    backend: str = "auto"
    dynamic: bool | None = None
    tune: str = "none"
    passes: Any = None
    fallback: bool = True

    def __post_init__(self) -> None:
        if self.tune not in TUNE:
            raise UnsupportedError(f"tune={self.tune!r} is not known", hint=f"there is: {', '.join(TUNE)}")
        if self.dynamic not in (None, True, False):
            raise UnsupportedError(f"dynamic={self.dynamic!r} is not known", hint="there are: None, True, False")
        if not isinstance(self.backend, str):
            raise BackendError(f"backend={self.backend!r} is not a name", hint="aatc.devices() lists what is there")

    def pipeline(self) -> Pipeline:
        """The passes to run: the default ones, the default ones with the user's, or just the user's."""
        from aatc import passes

        chosen = self.passes
        if chosen is None:
            return passes.default_pipeline()
        if isinstance(chosen, passes.Pipeline):
            return chosen
        if isinstance(chosen, str):
            return passes.Pipeline.parse(chosen)
        extra = tuple(chosen)
        for p in extra:
            if not isinstance(p, passes.Pass):
                raise PassError(
                    f"passes= holds {p!r}, which is not a pass",
                    hint="objects of classes derived from aatc.passes.Pass",
                )
        return passes.default_pipeline(extra=extra)


@dataclass
class Graph:
    """One graph Dynamo handed over, and what became of it."""

    index: int
    recompiled: str = ""
    ended: str = ""
    stages: dict[str, Module] = field(default_factory=dict)
    report: Sequence[Any] = ()
    program: Any = None
    seconds: dict[str, float] = field(default_factory=dict)
    pipeline: str = ""
    backend: str = ""
    error: BaseException | None = None

    @property
    def key(self) -> str:
        """Identifies the program: the imported IR, the passes and their options, backend and torch."""
        from aatc.ir.printer import canonical_text

        text = canonical_text(self.stages["import"]) if self.stages else ""
        return hashlib.sha256("\0".join((text, self.pipeline, self.backend, torch.__version__)).encode()).hexdigest()

    @property
    def code(self) -> str:
        return self.program.code if self.program is not None else ""

    def info(self) -> GraphInfo:
        module = self.stages.get("import")
        varying = tuple(a.name for a in module.entry.args if str(a.type) == "int") if module else ()
        count = sum(1 for _ in module.walk()) if module else 0
        heads = sum(op.name == "geo.metric" for op in module.walk()) if module else 0
        return GraphInfo(
            self.index, varying, count, heads, self.seconds, self.recompiled, self.ended, self.error is None
        )


class Session:
    """Compiles graphs on demand and remembers them."""

    def __init__(self, options: Options, name: str = "function"):
        log.configure()
        self.options, self.name = options, name
        self.pipeline = options.pipeline()
        self.backend = backends.get(options.backend)
        self.graphs: list[Graph] = []
        self.fallbacks: list[Fallback] = []
        self.notes: list[str] = []
        self._failed_guards: list[str] = []
        self._resume = False

    @contextlib.contextmanager
    def unhurried(self) -> Iterator[None]:
        """Without cyclic garbage collection up to the first graph: importing Dynamo and tracing make many
        objects that stay, and looking through them again and again takes a sixth of the time."""
        self._resume = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            self._collect()

    def _collect(self) -> None:
        if self._resume:
            self._resume = False
            gc.enable()

    # --- compiling -----------------------------------------------------------------------------------------
    def compile_graph(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """The Dynamo backend: a callable for ``gm``. With ``fallback`` it never raises."""
        from aatc.frontend import dynamo

        graph = Graph(len(self.graphs), self._take_reason(), pipeline=str(self.pipeline), backend=self.backend.name)
        self.graphs.append(graph)
        if graph.recompiled:
            log.write("recompiles", "%s, graph %d: %s", self.name, graph.index, graph.recompiled)
        broke = dynamo.break_of(gm)
        if broke is not None:
            graph.ended = f"{location.where(broke.loc) or 'an unknown line'}: {broke.reason}"
        dump = Dump.begin(f"{self.name} graph {graph.index}")
        try:
            return self._compile(graph, gm, dump)
        except Exception as error:
            graph.error = error
            if dump is not None:
                dump.failed(error, gm)
            if not self.options.fallback:
                raise _typed(error) from error
            self._fell_back(f"graph {graph.index}", error)
            return gm.forward
        finally:
            self._collect()

    def _compile(self, graph: Graph, gm: fx.GraphModule, dump: Dump | None) -> Callable[..., Any]:
        from aatc.frontend import dynamo
        from aatc.frontend.importer import import_graph

        clock = _Clock(graph.seconds)
        captured = dynamo.capture(gm)
        clock.lap("capture")
        imported = import_graph(captured.graph, captured.names)
        clock.lap("import")
        backend = self.backend
        graph.stages = {"import": imported.module}
        if dump is not None:
            dump.repro(graph.pipeline, graph.backend, imported.sizes, _modules(self.pipeline))
        on_stage = (lambda n, name, module: dump.stage(n, name, str(module))) if dump is not None else None
        result = self.pipeline.run(imported.module, target=backend.target(), on_stage=on_stage)
        graph.stages, graph.report = dict(result.stages), result.report
        clock.lap("passes")
        self._report_untiled(result)
        graph.program = backend.build(result.module)
        clock.lap("backend")
        if dump is not None:
            dump.write("code.py", graph.code)
        self._log(graph)
        run = imported.bind(graph.program.main)
        if not self.options.fallback or _changes_state(imported.module):
            return run
        return self._watched(graph, run, gm.forward)

    def _report_untiled(self, result: PipelineResult) -> None:
        """Attentions that have no tile program run by their reference formula: told, or refused."""
        marker = "runs by its reference formula: "
        reasons = [n.partition(marker)[::2] for r in result.report for n in r.notes if marker in n]
        for where, reason in reasons:
            where = where.removesuffix(": ")
            if not self.options.fallback:
                raise UnsupportedError(f"this attention has no tile program: {reason}", where=where)
            self.add_fallback(Fallback("aatc.attend", where, f"runs by its formula, in n*n memory: {reason}"))

    def _watched(self, graph: Graph, run: Callable[..., Any], eager: Callable[..., Any]) -> Callable[..., Any]:
        """``run``, whose first call may find that the program does not work; then ``eager`` from there on.
        Only for graphs that may be run twice."""

        def first(*inputs: Any) -> Any:
            try:
                results = run(*inputs)
            except Exception as error:
                results = eager(*inputs)  # raises what the model raises, if it was the model's fault
                graph.error = error
                self._fell_back(f"graph {graph.index}", error)
                chosen[0] = eager
            else:
                chosen[0] = run
            return results

        chosen = [first]
        return lambda *inputs: chosen[0](*inputs)

    def _log(self, graph: Graph) -> None:
        if log.enabled("ir"):
            for stage in ("import", "final"):
                log.write("ir", "%s, graph %d, %s:\n%s", self.name, graph.index, stage, graph.stages[stage])
        for p in graph.report if log.enabled("passes") else ():
            log.write("passes", "%s: %.1f ms, %s %s", p.name, 1e3 * p.seconds, dict(p.rewrites), "; ".join(p.notes))
        if log.enabled("code"):
            log.write("code", "%s, graph %d:\n%s", self.name, graph.index, graph.code)

    # --- what happens while the model runs -----------------------------------------------------------------
    def guard_failed(self, reason: str) -> None:
        self._failed_guards.append(reason)

    def _take_reason(self) -> str:
        reasons, self._failed_guards = self._failed_guards, []
        return "; ".join(dict.fromkeys(_short(r) for r in reasons))

    def _fell_back(self, op: str, error: BaseException) -> None:
        reason = error.message if isinstance(error, AatcError) else f"{type(error).__name__}: {error}"
        loc = getattr(error, "where", None) or ""
        self.add_fallback(Fallback(op, loc, reason.strip(), getattr(error, "hint", None) or ""))

    def add_fallback(self, fallback: Fallback) -> None:
        if fallback not in self.fallbacks:
            self.fallbacks.append(fallback)

    # --- what it was ---------------------------------------------------------------------------------------
    def explain(self) -> Explanation:
        notes = list(self.notes)
        if self._failed_guards:
            last = _short(self._failed_guards[-1])
            notes.append(f"Some inputs run in PyTorch: the limit of graphs is reached; last reason: {last}")
        return Explanation(
            self.name, self.backend.name,
            tuple(a for g in self.graphs for a in _attentions(g)), tuple(self.fallbacks),
            _passes(self.graphs), tuple(g.info() for g in self.graphs), tuple(notes),
        )  # fmt: skip


class _Clock:
    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.last = seconds, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now


def _typed(error: Exception) -> AatcError:
    if isinstance(error, AatcError):
        return error
    return UnsupportedError(
        f"compiling failed: {type(error).__name__}: {error}",
        hint="this is a bug of aatc; AATC_DUMP=dir writes a script that reproduces it",
    )


def _changes_state(module: Module) -> bool:
    """Whether running it twice would differ from running it once, beyond the random numbers it draws: it writes to what
    it is given. What it makes itself it makes again."""
    return effects.changes_arguments(module)


def _modules(pipeline: Pipeline) -> list[str]:
    """Modules outside aatc that define passes of ``pipeline``."""
    names = (type(p).__module__ for p in pipeline.passes)
    return sorted({n for n in names if not n.startswith("aatc.")})


def _short(reason: str) -> str:
    """``0/0: tensor 'x' size mismatch at index 1. expected 7, actual 9`` without the compile id."""
    head, sep, rest = reason.partition(": ")
    text = rest if sep and "/" in head else reason
    return " ".join(text.split("  #")[0].split())


def _attentions(graph: Graph) -> list[AttentionInfo]:
    found = []
    for n, a in enumerate(getattr(graph.program, "attentions", None) or ()):
        loc = a.get("loc")
        certificates = {str(c): c for c in a.get("certificates") or ()}
        found.append(
            AttentionInfo(
                str(a.get("name") or f"attention {n}"), str(a.get("kind", "")), str(a.get("lowering", "")),
                str(a.get("schedule") or ""), tuple(certificates.values()),
                (location.where(loc) or "") if loc is None or hasattr(loc, "file") else str(loc), graph.index,
                str(a.get("engine") or ""), int(a.get("arena_bytes") or 0),
            )
        )  # fmt: skip
    return found


def _passes(graphs: Sequence[Graph]) -> tuple[PassInfo, ...]:
    """The reports of all graphs, added up by position in the pipeline."""
    rows: dict[tuple[int, str], PassInfo] = {}
    for g in graphs:
        for n, p in enumerate(g.report):
            before = rows.get((n, p.name), PassInfo(p.name, 0.0, {}))
            counts = dict(before.rewrites)
            for rule, times in p.rewrites.items():
                counts[rule] = counts.get(rule, 0) + times
            notes = tuple(dict.fromkeys((*before.notes, *p.notes)))
            rows[n, p.name] = PassInfo(p.name, before.seconds + p.seconds, counts, notes)
    return tuple(rows.values())
