"""The pass manager: passes are frozen dataclasses, pipelines are lists of them with a text form."""

from __future__ import annotations

import dataclasses
import hashlib
import marshal
import re
import time
import types
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aatc.ir import collector
from aatc.ir.core import Module, Op
from aatc.ir.errors import PassError
from aatc.ir.known import Known
from aatc.ir.registry import load
from aatc.ir.target import Target
from aatc.passes.certificate import Certificate, certify
from aatc.passes.numerics import Numerics
from aatc.passes.options import option_text, options_of, read_pipeline


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

    def certify(self, op: Op, rule: str, statement: str, witness: tuple[Any, ...], **more: Any) -> None:
        """Checks a witness and keeps the certificate, tied to the operation's source line."""
        self.certificates.append(certify(rule, statement, witness, subject=str(op.loc), **more))


@dataclass(frozen=True)
class Pass:
    """Base of passes. Subclass as a frozen dataclass whose fields are the pass's options.

    ``name`` is its name in a pipeline; ``requires`` and ``ensures`` name conditions of `CONDITIONS`, checked
    before and after. ``before`` or ``after`` names the stage beside which it runs when it is added to the built-in
    pipeline. ``run`` may change the module in place and returns the module to go on with. ``counts`` promises that it
    counts a rewrite whenever it changes anything: when it counts none, the module need not be looked at again.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[str] = ""
    after: ClassVar[str] = ""
    counts: ClassVar[bool] = False

    def run(self, module: Module, ctx: Context) -> Module:
        raise PassError(f"pass {self.name or type(self).__name__} defines no run(module, ctx)")

    def __str__(self) -> str:
        options = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.init and value != default_of(f):
                options.append(f"{f.name.replace('_', '-')}={option_text(value)}")
        return f"{self.name}{{{' '.join(options)}}}" if options else self.name

    @classmethod
    def identity(cls) -> str:
        """Where the pass is defined and a digest of its code: two passes of one name differ."""
        code = hashlib.sha256()
        for base in cls.__mro__[:-1]:
            for member in vars(base).values():
                function = getattr(member, "__func__", member)
                if isinstance(function, types.FunctionType):
                    code.update(marshal.dumps(function.__code__))
        return f"{cls.__module__}.{cls.__qualname__}:{code.hexdigest()[:16]}"


def default_of(f: dataclasses.Field[Any]) -> Any:
    """A field's default, MISSING if it has none."""
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


@dataclass(frozen=True)
class Placed:
    """A pass and the stage it runs before or after, whatever its class says: ``Placed(MyPass(), after="import")``."""

    item: Pass
    before: str = ""
    after: str = ""


def checked(p: Any) -> Pass:
    """``p``, if it is a pass: an object of a frozen dataclass derived from `Pass`. PassError otherwise."""
    if not isinstance(p, Pass):
        raise PassError(f"{p!r} is not a pass", hint="objects of classes derived from aatc.passes.Pass")
    _check_class(type(p))
    return p


def _check_class(cls: Any) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise PassError(f"{cls!r} is not derived from aatc.passes.Pass")
    params = vars(cls).get("__dataclass_params__")  # its own: a class that lacks the decorator inherits its base's
    if params is None or not params.frozen:
        raise PassError(
            f"{cls.__name__} is not a frozen dataclass, so its options would be unknown",
            hint="decorate it with @dataclass(frozen=True)",
        )
    if not re.fullmatch(r"[a-z][a-z0-9-]*", cls.name):
        raise PassError(f"{cls.__name__}.name is {cls.name!r}", hint="lower-case words joined by hyphens")


REGISTRY: dict[str, type[Pass]] = {}


def register(cls: type[Pass]) -> type[Pass]:
    """Makes a pass known by name to pipelines' text and the command line. Usable as a decorator."""
    _check_class(cls)
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
        return Pipeline(tuple(_make(name, options) for name, options in read_pipeline(text)))

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
        verify: str = "ir",
    ) -> PipelineResult:
        """Runs the passes on a copy of ``module``.

        verify: "ir" checks the IR's rules after every pass (unless ``verify_each`` is off), "numerics" also compares
        the interpreter's results before and after. PassError names the pass whose condition fails, which changes
        numbers, or, if it is not aatc's, which raises anything.
        """
        if verify not in ("ir", "numerics"):
            raise PassError(f"verify={verify!r} is not known", hint="there are: ir, numerics")
        with collector.paused():
            return self._run(module, target or Target(), verify_each, on_stage, study, verify)

    def _run(
        self,
        module: Module,
        target: Target,
        verify_each: bool,
        on_stage: Callable[..., None] | None,
        study: Any,
        verify: str,
    ) -> PipelineResult:
        module = module.clone()
        last = module.clone()
        stages = {"import": last}
        numerics = Numerics(module) if verify == "numerics" else None
        report, known = [], Known()
        if on_stage:
            on_stage(0, "import", module)
        for n, p in enumerate(self.passes, 1):
            ctx = Context(target, study)
            start = time.perf_counter()
            module = _run(p, module, ctx, known if verify_each else None)
            seconds = time.perf_counter() - start
            if numerics is not None:
                try:
                    numerics.check(p.name, module, ctx.notes.append)
                except PassError as error:
                    error.users = True  # who asks for the check is told
                    raise
            module.certificates += ctx.certificates
            report.append(PassReport(str(p), seconds, dict(ctx.rewrites), tuple(ctx.notes), tuple(ctx.certificates)))
            last = last if _unchanged(p, ctx) else module.clone()
            stages[_stage_name(p.name, stages)] = last
            if on_stage:
                on_stage(n, p.name, module)
        stages["final"] = module
        return PipelineResult(module, stages, tuple(report))


def _run(p: Pass, module: Module, ctx: Context, known: Known | None) -> Module:
    """The module after ``p``, verified if there is something to know what is sound already by. What a pass from outside
    aatc does wrong is a PassError of the user's."""
    try:
        _check(p, p.requires, module, "requires")
        before = _interface(module)
        module = p.run(module, ctx)
        if not isinstance(module, Module):
            raise PassError(
                f"pass {p.name} returned {type(module).__name__}, not a Module", hint="end run with `return module`"
            )
        if known is not None and not _unchanged(p, ctx):
            module.verify(known)
            _check_interface(p, before, _interface(module))
        _check(p, p.ensures, module, "ensures")
    except Exception as error:
        if type(p).__module__.startswith("aatc."):
            raise
        if isinstance(error, PassError):
            error.users = True
            raise
        failed = PassError(f"pass {p.name} failed: {type(error).__name__}: {error}", hint="see the error it came from")
        failed.users = True
        raise failed from error
    return module


def _unchanged(p: Pass, ctx: Context) -> bool:
    return p.counts and not ctx.rewrites


def _interface(module: Module) -> tuple[list[str], list[str]]:
    """The types of what the entry takes and gives: its callers know it by them."""
    if not module.funcs:
        return [], []
    entry = module.entry
    return [str(a.type) for a in entry.args], [str(t) for t in entry.result_types]


def _check_interface(p: Pass, before: tuple[list[str], ...], after: tuple[list[str], ...]) -> None:
    for what, had, has in zip(("arguments", "results"), before, after, strict=True):
        if had != has:
            raise PassError(
                f"pass {p.name} changed the entry's {what} from ({', '.join(had)}) to ({', '.join(has)})",
                hint="whoever calls the program hands in and takes out what it did before the pass",
            )


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


def _make(name: str, options: dict[str, Any]) -> Pass:
    if name not in REGISTRY:
        load()
    cls = REGISTRY.get(name)
    if cls is None:
        raise PassError(f"there is no pass named {name!r}", hint=f"there are: {', '.join(sorted(REGISTRY))}")
    try:
        return cls(**options_of(cls, options))
    except TypeError as error:  # an option without a default is missing
        raise PassError(f"pass {name}: {error}") from None
