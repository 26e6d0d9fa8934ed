"""One `aatc.compile` call: its options, the graphs it has made, and how each is compiled."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from aatc import backends
from aatc.backends import openmp
from aatc.errors import BackendError, CompilerBugWarning, FallbackWarning, PassError, UnsupportedError
from aatc.frontend import breaks, calls, failures, location, log, private_torch
from aatc.frontend.capture import capture
from aatc.frontend.dump import Dump
from aatc.frontend.explain import AttentionInfo, Explanation, Fallback, GraphInfo, PassInfo
from aatc.ir import effects, transforms
from aatc.tuning.origins import origins
from aatc.tuning.request import Request

if TYPE_CHECKING:
    from torch import fx

    from aatc.ir.core import Module
    from aatc.passes import Pipeline

VERIFY = ("ir", "numerics")


@dataclass(frozen=True)
class Options:
    """The keywords of `aatc.compile`, checked."""

    backend: str = "auto"
    dynamic: bool | None = None
    tune: Any = "none"
    passes: Any = None
    fallback: bool = True
    verify: str = "ir"
    executor: str = "auto"
    tuning: Request = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tuning", Request.of(self.tune))
        if self.verify not in VERIFY:
            raise UnsupportedError(f"verify={self.verify!r} is not known", hint=f"there are: {', '.join(VERIFY)}")
        if self.dynamic not in (None, True, False):
            raise UnsupportedError(f"dynamic={self.dynamic!r} is not known", hint="there are: None, True, False")
        if not isinstance(self.backend, str):
            raise BackendError(f"backend={self.backend!r} is not a name", hint="aatc.devices() lists what is there")
        if not isinstance(self.executor, str):
            raise BackendError(f"executor={self.executor!r} is not a name", hint="aatc.devices() lists what is there")

    @property
    def own_pipeline(self) -> bool:
        """Whether the order of all passes is the user's."""
        from aatc import passes

        return isinstance(self.passes, (str, passes.Pipeline))

    def pipeline(self) -> Pipeline:
        """The passes to run: those of the backend, these with the user's, or just the user's; before `schedule`, with
        tuning, the one that looks measured schedules up."""
        found = self._passes()
        if not self.tuning.on:
            return found
        from aatc.tuning.apply import with_tuned

        return with_tuned(found, self.tuning.given)

    def _passes(self) -> Pipeline:
        from aatc import passes

        chosen = self.passes
        if chosen is None:
            return backends.pipeline(self.backend)
        if isinstance(chosen, passes.Pipeline):
            return chosen
        if isinstance(chosen, str):
            return passes.Pipeline.parse(chosen)
        try:
            extra = tuple(chosen)
        except TypeError:
            raise PassError(
                f"passes={chosen!r} is neither passes nor a pipeline", hint="a list of passes, a Pipeline, or its text"
            ) from None
        return backends.pipeline(self.backend, extra)


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
    key: str = ""
    runs: int = 0
    eager_runs: int = 0
    passes: Pipeline | None = None

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
    """Compiles graphs on demand and remembers them. Threads may share one."""

    def __init__(self, options: Options, name: str = "function"):
        log.configure()
        self.options, self.name = options, name
        self.pipeline = options.pipeline()
        self.backend = backends.get(options.backend).using(options.executor)
        self.backend.target()  # what is wrong with the choice of a backend is said at once
        self.graphs: list[Graph] = []
        self.notes: list[str] = list(self.backend.notes())
        if options.backend == "auto" and (reason := backends.automatic()[1]):
            self.notes.append(f"No native kernels, but torch code: {reason}.")
        self.calls = self.elsewhere = 0
        self.hurry: calls.Hurry | None = None
        self._fallbacks: dict[Fallback, set[int]] = {}  # and the graphs they are part of
        self._counts: dict[Fallback, int] = {}
        self._warned: set[Any] = set()
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Lets go of what `explain()` and the like tell of graphs. Dynamo keeps what it compiled as long as the code
        of the model, also when nobody can call it any more."""
        for graph in self.graphs:
            graph.stages, graph.report, graph.program = {}, (), None

    # --- compiling -----------------------------------------------------------------------------------------
    def compile_graph(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """The Dynamo backend: a callable for ``gm``. With ``fallback`` it raises only what a user's pass raises."""
        graph = self._begin(gm)
        where = location.where(breaks.line_of(gm))
        dump = Dump.begin(f"{self.name} graph {graph.index}")
        try:
            run = self._compile(graph, gm, dump)
        except Exception as error:
            graph.error = error
            if dump is not None:
                dump.failed(error, gm)
            if failures.users(error):
                raise
            if not self.options.fallback:
                raise failures.typed(error, where) from error
            self._failed(graph, f"compiling graph {graph.index}", error, where)
            return self._eager(graph, gm.forward, where)
        finally:
            if self.hurry is not None:
                self.hurry.end()
        return self._watched(graph, run, gm.forward, where)

    def _begin(self, gm: fx.GraphModule) -> Graph:
        call = calls.current()
        reasons = [] if call is None else call.guards
        with self._lock:
            graph = Graph(len(self.graphs), _reason(reasons), pipeline=str(self.pipeline), backend=self.backend.name)
            graph.passes = self.pipeline
            self.graphs.append(graph)
        if call is not None:
            call.made += 1
        if graph.recompiled:
            log.write("recompiles", "%s, graph %d: %s", self.name, graph.index, graph.recompiled)
        broke = breaks.break_of(gm)
        if broke is not None:
            graph.ended = f"{location.where(broke.loc) or 'an unknown line'}: {broke.reason}"
        return graph

    @transforms.undisturbed
    def _compile(self, graph: Graph, gm: fx.GraphModule, dump: Dump | None) -> Callable[..., Any]:
        from aatc.frontend.importer import import_graph

        clock = _Clock(graph.seconds)
        captured = capture(gm)
        clock.lap("capture")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not captured.inference):
            imported = import_graph(captured.graph, captured.names, held=captured.held)
        clock.lap("import")
        backend, target = self.backend, self.backend.target()
        graph.stages = {"import": imported.module}
        graph.key = program_key(imported.module, self.pipeline, backend.name, target)
        graph.key += " in inference mode" if captured.inference else ""  # tensors a program keeps are those of its mode
        if dump is not None:
            dump.repro(graph.pipeline, graph.backend, imported.sizes, _modules(self.pipeline))
        same = next((g for g in self.graphs if g.key == graph.key and g.program is not None), None)
        if same is not None and dump is None:  # a guard asked for another graph, but its program is one we have
            graph.stages, graph.report, graph.program = same.stages, same.report, same.program
        else:
            on_stage = (lambda n, name, module: dump.stage(n, name, str(module))) if dump is not None else None
            verify = self.options.verify
            try:
                with openmp.one_thread():
                    result = self.pipeline.run(imported.module, target=target, on_stage=on_stage, verify=verify)
            except PassError as error:
                error.users = error.users or self.options.own_pipeline  # who orders the passes is told
                raise
            graph.stages, graph.report = dict(result.stages), result.report
            clock.lap("passes")
            graph.program = backend.build(result.module)
            if graph.program.beside is not None:
                graph.program.beside.refused = not self.options.fallback
            clock.lap("backend")
        self._report_untiled(graph)
        if dump is not None:
            dump.write("code.py", graph.code)
        self._log(graph)
        run = imported.bind(graph.program.main)
        return torch.inference_mode()(run) if captured.inference else run

    def _report_untiled(self, graph: Graph) -> None:
        """Attentions that have no tile program run by their reference formula: told, or refused."""
        marker = "runs by its reference formula: "
        reasons = [n.partition(marker)[::2] for r in graph.report for n in r.notes if marker in n]
        for where, reason in reasons:
            where = where.removesuffix(": ")
            if not self.options.fallback:
                raise UnsupportedError(f"this attention has no tile program: {reason}", where=where)
            self.add_fallback(
                Fallback("aatc.attend", where, f"runs by its formula, in n*n memory: {reason}"), graph.index
            )

    def _log(self, graph: Graph) -> None:
        if log.enabled("ir"):
            for stage in ("import", "final"):
                log.write("ir", "%s, graph %d, %s:\n%s", self.name, graph.index, stage, graph.stages[stage])
        for p in graph.report if log.enabled("passes") else ():
            log.write("passes", "%s: %.1f ms, %s %s", p.name, 1e3 * p.seconds, dict(p.rewrites), "; ".join(p.notes))
        if log.enabled("code"):
            log.write("code", "%s, graph %d:\n%s", self.name, graph.index, graph.code)

    # --- running -------------------------------------------------------------------------------------------
    def _watched(
        self, graph: Graph, run: Callable[..., Any], eager: Callable[..., Any], where: str | None
    ) -> Callable[..., Any]:
        """``run``, until it fails where ``eager`` does not: then ``eager`` from there on, or a typed error.

        A graph that changes something besides its results is not run twice: what it raises is raised.
        """
        left = self._eager(graph, eager, where)
        twice = not _changes_state(graph.stages["final"])
        draws = twice and _draws(graph.stages["final"])

        def running(*inputs: Any) -> Any:
            call = calls.current()
            if call is not None:
                call.ran += 1
            graph.runs += 1
            state = torch.get_rng_state() if draws else None  # what is run again draws the same again
            try:
                return run(*inputs)
            except Exception as error:
                if not twice or private_torch.ends_recomputation(error):
                    raise
                failed = error
            if state is not None:
                torch.set_rng_state(state)
            return self._instead(graph, failed, left, inputs, where, chosen)

        chosen = [running]
        return lambda *inputs: chosen[0](*inputs)

    def _instead(
        self, graph: Graph, error: Exception, left: Callable[..., Any], inputs: tuple, where: str | None, chosen: list
    ) -> Any:
        """The results of ``left`` after the program raised ``error``; raises what the model raises, if it does."""
        call = calls.current()
        if call is not None:
            call.ran -= 1
        results = left(*inputs)
        if not self.options.fallback:
            raise failures.typed(error, where) from error
        if not (failures.expected(error) and transforms.transformed()):  # else it may do in the next call
            chosen[0] = left
            graph.error = error
        self._failed(graph, f"running graph {graph.index}", error, where)
        return results

    def _eager(self, graph: Graph, forward: Callable[..., Any], where: str | None) -> Callable[..., Any]:
        """``forward``, counted."""

        def left(*inputs: Any) -> Any:
            graph.eager_runs += 1
            call = calls.current()
            if call is None:
                return forward(*inputs)
            call.left, before, call.where = call.left + 1, call.where, where
            try:
                return forward(*inputs)
            finally:
                call.where = before

        return left

    def _failed(self, graph: Graph, doing: str, error: BaseException, where: str | None) -> None:
        place = getattr(error, "where", None) or where or ""
        hint = getattr(error, "hint", None) or ""
        self.add_fallback(Fallback(f"graph {graph.index}", place, failures.reason(error), hint), graph.index)
        if not failures.expected(error):
            self.warn(CompilerBugWarning, failures.bug(self.name, doing, error, where), (type(error), place))

    # --- what happens while the model runs -----------------------------------------------------------------
    def guard_failed(self, reason: str) -> None:
        call = calls.current()
        if call is not None:
            call.guards.append(reason)

    def called(self, call: calls.Call) -> None:
        """Keeps what ``call``, which is over, has shown."""
        with self._lock:
            self.calls += 1
            self.elsewhere += call.ran == 0
        for b in call.breaks:
            self.add_fallback(Fallback("graph break", location.where(b.loc) or "", b.reason, b.hint or ""))
        for limit in call.limits:
            self._limited(limit)

    def _limited(self, limit: breaks.Limit) -> None:
        place, reason = location.where(limit.loc) or "", _reason([limit.reason]) if limit.reason else "unknown"
        text = f"the limit of {limit.graphs} graphs is reached, other inputs run in PyTorch; last reason: {reason}"
        self.add_fallback(Fallback("limit of graphs", place, text, breaks.MORE_GRAPHS))
        self.warn(FallbackWarning, f"{self.name}: {text}\n  at {place}\n  hint: {breaks.MORE_GRAPHS}", ("limit", place))

    def formula_ran(self, size: int) -> None:
        """An attention stores ``size`` bytes of scores while the model is called."""
        if size <= failures.LARGE:
            return
        call = calls.current()
        place = (call.where if call is not None else None) or failures.users_line() or "an unknown line"
        why = next((f.reason for f in reversed(self._fallbacks)), "no graph was made for it")
        text = f"attention runs by its plain formula and stores {size / 2**20:.0f} MiB of scores"
        self.warn(FallbackWarning, f"{self.name}: {text}\n  at {place}\n  because: {why}", ("formula", place))

    def warn(self, category: type[Warning], text: str, key: Any) -> None:
        """Warns once per ``key``: after the call, since inside Dynamo a warning turned error would be swallowed."""
        with self._lock:
            if key in self._warned:
                return
            self._warned.add(key)
        call = calls.current()
        if call is not None:
            call.warnings.append((category, text))
        else:
            failures.warn(text, category)

    def add_fallback(self, fallback: Fallback, graph: int | None = None, *, calls: int = 0) -> None:
        """``graph`` is the graph it is part of; ``calls`` are added to those counted already."""
        with self._lock:
            self._fallbacks.setdefault(fallback, set()).update(() if graph is None else (graph,))
            self._counts[fallback] = self._counts.get(fallback, 0) + calls

    # --- what it was ---------------------------------------------------------------------------------------
    @property
    def fallbacks(self) -> list[Fallback]:
        """What was left to PyTorch, with the number of calls."""
        with self._lock:
            found = [(f, set(g)) for f, g in self._fallbacks.items()]
        return [replace(f, calls=self._counts[f] + sum(self._times(f, n) for n in graphs)) for f, graphs in found]

    def _times(self, fallback: Fallback, graph: int) -> int:
        g = self.graphs[graph]
        return g.runs if fallback.op == "aatc.attend" else g.eager_runs

    def explain(self) -> Explanation:
        notes = list(self.notes)
        if self.calls and not any(g.error is None for g in self.graphs):
            notes.append(f"Nothing was compiled: {self._why_nothing()}.")
        for g in self.graphs:
            beside = g.program.beside if g.program is not None else None
            for reason, count in beside.reasons.items() if beside is not None else ():
                notes.append(f"Graph {g.index}, {count} {'call' if count == 1 else 'calls'}: {reason}.")
        return Explanation(
            self.name, self.backend.name,
            tuple(a for g in self.graphs for a in _attentions(g)), tuple(self.fallbacks),
            _passes(self.graphs), tuple(g.info() for g in self.graphs), tuple(notes), self.calls, self.elsewhere,
        )  # fmt: skip

    def _why_nothing(self) -> str:
        off = private_torch.switched_off()
        if off is not None:
            return off
        if self._fallbacks:
            return "see what was left to PyTorch"
        shares = not private_torch.PARTS["isolate_recompiles"].present()
        other = ", or graphs of another callable of the same code ran" if shares else ""
        return f"no operation of torch was recorded{other}"


class _Clock:
    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.last = seconds, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now


def program_key(module: Module, pipeline: Pipeline, backend: str, target: Any) -> str:
    """Identifies a program: the imported IR with its source lines, the passes (their code and options), the backend,
    the device as passes see it, the versions of aatc and torch."""
    import aatc

    passes = [f"{p.identity()} {p}" for p in pipeline.passes]
    parts = (str(module), *passes, backend, str(target), aatc.__version__, torch.__version__)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _reason(reasons: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(_short(r) for r in reasons))


def _changes_state(module: Module) -> bool:
    """Whether running it twice would differ from running it once, beyond the random numbers it draws: it writes to what
    it is given, or shows somebody its operands. What it makes itself it makes again."""
    return effects.changes_arguments(module) or any(op.name == "geo.observe" for op in module.walk())


def _draws(module: Module) -> bool:
    return any(op.attrs.get("effect") for op in module.walk())


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
    chosen = origins(graph.stages, graph.passes) if graph.program is not None and graph.passes else {}
    for n, a in enumerate(getattr(graph.program, "attentions", None) or ()):
        loc = a.get("loc")
        certificates = {str(c): c for c in a.get("certificates") or ()}
        found.append(
            AttentionInfo(
                str(a.get("name") or f"attention {n}"), str(a.get("kind", "")), str(a.get("lowering", "")),
                str(a.get("schedule") or ""), tuple(certificates.values()),
                (location.where(loc) or "") if loc is None or hasattr(loc, "file") else str(loc), graph.index,
                str(a.get("engine") or ""), int(a.get("arena_bytes") or 0),
                int(getattr(a.get("kernel"), "exact_calls", 0)), tuple(chosen.get(str(a.get("name")), {}).items()),
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
