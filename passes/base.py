"""The pass manager: passes are frozen dataclasses, pipelines are lists of them with a text form."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aatc.ir import collector
from aatc.ir.core import Module, Op
from aatc.ir.errors import PassError
from aatc.ir.target import Target
from aatc.passes.certificate import Certificate, certify


@dataclass
class Context:
    """What a running pass is given and what it reports: target, counted rewrites, notes, certificates.

    ``study`` is what analytical passes work on (`aatc.passes.analysis.base.Study`), if anything.
    """

    target: Target = field(default_factory=Target)
    study: Any = None
    rewrites: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    certificates: list[Certificate] = field(default_factory=list)

    def count(self, rule: str, n: int = 1) -> None:
        self.rewrites[rule] += n

    def certify(self, op: Op, rule: str, statement: str, witness: tuple, **more: Any) -> None:
        """Checks a witness and keeps the certificate, tied to the operation's source line."""
        self.certificates.append(certify(rule, statement, witness, subject=str(op.loc), **more))


@dataclass(frozen=True)
class Pass:
    """Base of passes. Subclass as a frozen dataclass whose fields are the pass's options.

    ``name`` is its name in a pipeline; ``requires`` and ``ensures`` name conditions of `CONDITIONS`, checked
    before and after. ``run`` may change the module in place and returns the module to go on with.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[tuple[str, ...]] = ()

    def run(self, module: Module, ctx: Context) -> Module:
        raise PassError(f"pass {self.name or type(self).__name__} defines no run(module, ctx)")

    def __str__(self) -> str:
        options = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                options.append(f"{f.name.replace('_', '-')}={_option_text(value)}")
        return f"{self.name}{{{' '.join(options)}}}" if options else self.name


REGISTRY: dict[str, type[Pass]] = {}


def register(cls: type[Pass]) -> type[Pass]:
    """Makes a pass known by name to pipelines' text and the command line. Usable as a decorator."""
    if not (isinstance(cls, type) and issubclass(cls, Pass) and dataclasses.is_dataclass(cls)):
        raise PassError(f"{cls!r} is not a frozen dataclass derived from aatc.passes.Pass")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", cls.name):
        raise PassError(f"{cls.__name__}.name is {cls.name!r}", hint="lower-case words joined by hyphens")
    known = REGISTRY.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise PassError(f"a pass named {cls.name} exists already: {known.__qualname__}")
    REGISTRY[cls.name] = cls
    return cls


#: Conditions passes may require or ensure: name -> (check, what it means).
CONDITIONS: dict[str, tuple[Callable[[Module], bool], str]] = {
    "staged": (
        lambda m: not any(op.name in ("geo.kernel", "geo.attend") for op in m.walk()),
        "attention stands as its four stages",
    ),
    "fused": (
        lambda m: (
            not any(op.name in ("geo.metric", "geo.normalize", "geo.transport", "geo.aggregate") for op in m.walk())
        ),
        "no attention stage stands alone",
    ),
    "planned": (
        lambda m: all("arena" in f.attrs for f in m.funcs.values() if f.level == "tile"),
        "every tile function has a memory plan",
    ),
}


@dataclass(frozen=True)
class PassReport:
    """What one pass did: seconds, rewrites by rule, notes for the user, certificates issued."""

    name: str
    seconds: float
    rewrites: dict[str, int]
    notes: tuple[str, ...]
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True)
class PipelineResult:
    """``stages`` maps "import", each pass's name in order, and "final" to the module as it stood then."""

    module: Module
    stages: dict[str, Module]
    report: tuple[PassReport, ...]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order. ``str`` and `parse` are inverse."""

    passes: tuple[Pass, ...]

    @staticmethod
    def parse(text: str) -> Pipeline:
        """Reads ``canonicalize,adaptive-tile{rows=64}``; PassError names what is wrong and what there is."""
        passes: list[Pass] = []
        position = 0
        for m in re.finditer(r"\s*([A-Za-z0-9_-]+)\s*(?:\{([^{}]*)\})?\s*(,|$)", text):
            if m.start() != position:
                break
            passes.append(_make(m[1], m[2] or ""))
            position = m.end()
        if position != len(text) or not passes:
            raise PassError(
                f"pipeline {text!r} cannot be read from column {position + 1} on", hint="write name,name{option=value}"
            )
        return Pipeline(tuple(passes))

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def run(
        self,
        module: Module,
        *,
        target: Target | None = None,
        verify_each: bool = True,
        on_stage: Callable[[int, str, Module], None] | None = None,
        study: Any = None,
    ) -> PipelineResult:
        """Runs the passes on a copy of ``module``. PassError names the pass whose condition fails."""
        with collector.paused():
            return self._run(module, target or Target(), verify_each, on_stage, study)

    def _run(
        self, module: Module, target: Target, verify_each: bool, on_stage: Callable[..., None] | None, study: Any
    ) -> PipelineResult:
        module = module.clone()
        stages = {"import": module.clone()}
        report = []
        if on_stage:
            on_stage(0, "import", module)
        for n, p in enumerate(self.passes, 1):
            _check(p, p.requires, module, "requires")
            ctx = Context(target, study)
            start = time.perf_counter()
            module = p.run(module, ctx)
            seconds = time.perf_counter() - start
            if not isinstance(module, Module):
                raise PassError(
                    f"pass {p.name} returned {type(module).__name__}, not a Module", hint="end run with `return module`"
                )
            if verify_each:
                module.verify()
            _check(p, p.ensures, module, "ensures")
            module.certificates += ctx.certificates
            report.append(PassReport(str(p), seconds, dict(ctx.rewrites), tuple(ctx.notes), tuple(ctx.certificates)))
            stages[_stage_name(p.name, stages)] = module.clone()
            if on_stage:
                on_stage(n, p.name, module)
        stages["final"] = module
        return PipelineResult(module, stages, tuple(report))


def run_passes(module: Module, passes: Iterable[Pass], target: Target | None = None) -> Module:
    """The module after ``passes``."""
    return Pipeline(tuple(passes)).run(module, target=target).module


def _stage_name(name: str, taken: dict[str, Any]) -> str:
    count = sum(1 for s in taken if s == name or s.startswith(f"{name}."))
    return f"{name}.{count + 1}" if count else name


def _check(p: Pass, conditions: tuple[str, ...], module: Module, word: str) -> None:
    for c in conditions:
        if c not in CONDITIONS:
            raise PassError(
                f"pass {p.name} {word} an unknown condition {c!r}", hint=f"there are: {', '.join(CONDITIONS)}"
            )
        check, meaning = CONDITIONS[c]
        if not check(module):
            raise PassError(
                f"pass {p.name} {word} that {meaning} ({c}), which does not hold",
                hint="check the order of the passes in the pipeline",
            )


def _make(name: str, options: str) -> Pass:
    cls = REGISTRY.get(name)
    if cls is None:
        raise PassError(f"there is no pass named {name!r}", hint=f"there are: {', '.join(sorted(REGISTRY))}")
    fields = {f.name.replace("_", "-"): f for f in dataclasses.fields(cls)}
    given: dict[str, Any] = {}
    for item in options.replace(",", " ").split():
        key, sep, text = item.partition("=")
        if key not in fields or not sep:
            raise PassError(f"pass {name} has no option {key!r}", hint=f"it has: {', '.join(fields) or 'none'}")
        given[fields[key].name] = _option_value(name, key, text, fields[key].default)
    return cls(**given)


def _option_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _option_value(name: str, key: str, text: str, default: Any) -> Any:
    """Reads an option as the type of its default: bool, int, float or str."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text]
        return type(default)(text) if isinstance(default, (int, float)) else text
    except (KeyError, ValueError):
        kind = type(default).__name__
        raise PassError(f"option {key} of pass {name} takes a value of type {kind}, not {text!r}") from None
