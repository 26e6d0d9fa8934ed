"""Whether a pass kept the numbers: the interpreter before and after it, on small inputs of every kind."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import torch

from aatc.ir import reference
from aatc.ir.core import Module, Op, Value
from aatc.ir.effects import Memory, has_memory
from aatc.ir.errors import AatcError, PassError
from aatc.ir.geo import attention_of, run_kernel
from aatc.ir.interpreter import Interpreter
from aatc.ir.parser import parse
from aatc.ir.printer import attrs_text
from aatc.ir.samples import TOLERANCE, difference
from aatc.ir.types import TensorType, torch_dtype
from aatc.passes.trial_inputs import Draw, Maker

#: Largest difference of gradients that counts as agreement, relative to the largest number among them: a derivative
#: has lost more digits than its function.
GRADIENTS = {torch.float64: 1e-7, torch.float32: 2e-3, torch.bfloat16: 1e-1, torch.float16: 5e-2}
_HINT = "look at the IR before and after it (aatc opt --print-after-all), or leave the pass out"
_OTHER = r"\b(bf16|f16|c64)\b|torch\.(float|half|bfloat16|double)"
#: How far inputs are moved, in units of their last digit, to see what rounding does to results, and how much of that
#: a pass may add.
_NUDGE, _ROUNDING = 8.0, 200.0
#: How much of what single precision does to results double precision may do: where distances vanish, the square root of
#: a unit of rounding is lost, not the unit. And what it may do to scores of large numbers in any case.
_DOUBLE, _LARGE = 3e-4, 1e-6
#: Largest difference of single and double precision of an attention whose numbers are compared at all.
_AGREE = 0.1

T = TypeVar("T")


class Numerics:
    """Compares a module with the one that came before it, pass by pass.

    Sizes that are symbols are small; others are as they stand. Numbers are float64 where the module's text can be
    widened to it; a text that asks for another precision is compared as it stands, too. Compared are the results, the
    inputs as they are left, which of them share memory, the state of random numbers, and the gradients of
    every floating-point input.
    """

    def __init__(self, module: Module):
        self._maker = Maker(module)
        self._before = Forms(module.clone())
        self._compared = False  # whether what `_before` computes is known to be right

    def check(self, name: str, module: Module, note: Callable[[str], None]) -> None:
        """PassError if ``module`` computes other numbers than its predecessor; ``note`` is told if that can't be
        known."""
        before, after = self._before, Forms(module.clone())
        if self._compared and before.text == after.text:
            return
        self._before = after
        failed = "it has no wide form"
        if before.wide is not None and after.wide is not None:
            others = (before.narrow, after.narrow) if before.narrow is not None and after.narrow is not None else ()
            failed = self._check(name, Pair(before.wide, after.wide, others, _DOUBLE))
        others = (before.wide, after.wide) if before.wide is not None and after.wide is not None else ()
        pair = Pair(before.plain, after.plain, others, 4.0)
        if failed:
            failed = self._check(name, pair)
        elif re.search(_OTHER, f"{before.text}{after.text}"):
            failed = self._check(name, pair, gradients=False)
        if failed:
            note(failed)
        self._compared = not failed

    def _check(self, name: str, pair: Pair, *, gradients: bool = True) -> str:
        """Why something could not be compared, if so."""
        for draw in self._maker.draws():
            if draw.kind == "large" and self._maker.attention and pair.before.written is None:
                continue  # single precision need not carry the scores of such numbers
            try:
                want = self._outcome(pair.before, draw)
            except Exception as error:
                if draw.kind == "plain":
                    return f"its numbers were not compared: the module before it cannot be run: {_shown(error)}"
                continue  # not every program takes every input
            if draw.kind == "nan" and self._maker.attention and not all(map(_is_finite, want.values[: want.count])):
                continue  # how far NaN spreads in an attention is for its passes to choose, within bounds
            got = _attempt(name, "cannot be run", self._outcome, pair.after, draw)
            _compare(name, got, want, self._rounding(pair, draw, want, got), draw)
        # autograd of stages is not quite the closed form: it knows no edges of domains and no closed rows
        alike = _stages(pair.before.module) == _stages(pair.after.module)
        return self._check_gradients(name, pair) if gradients and alike else ""

    def _rounding(self, pair: Pair, draw: Draw, want: Outcome, got: Outcome) -> list[float]:
        """What rounding may do to each value, relative to its largest number."""
        if self._maker.attention:
            found = _by_precision(pair, want.values, got.values, lambda form: self._outcome(form, draw).values)
            return [max(x, _LARGE) for x in found] if draw.kind == "large" else found
        if draw.kind != "large":
            return [0.0] * len(want.values)
        near = self._outcome(pair.before, draw, _NUDGE)
        return [_ROUNDING * difference(n, w)[0] for n, w in zip(near.values, want.values, strict=True)]

    def _outcome(self, form: Form, draw: Draw, nudge: float = 0.0) -> Outcome:
        return form.once(("results", draw, nudge), lambda: self._run(form, draw, nudge))

    def _run(self, form: Form, draw: Draw, nudge: float) -> Outcome:
        inputs = self._inputs(form.module, draw, nudge)
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.manual_seed(draw.seed)
            results = form.interpreter().call(form.module.entry.name, inputs)
            values = list(_flat([*results, *inputs]))
            return Outcome(values, len(values) - len(inputs), sharing(values), torch.get_rng_state())

    def _inputs(self, module: Module, draw: Draw, nudge: float) -> list[Any]:
        inputs = self._maker.inputs(module, draw)
        generator = torch.Generator().manual_seed(draw.seed)
        if not nudge:
            return inputs
        return [_nudged(x, nudge, generator) if _floats(x) else x for x in inputs]

    # --- gradients -----------------------------------------------------------------------------------------
    def _check_gradients(self, name: str, pair: Pair) -> str:
        for draw in self._maker.draws():
            if draw.kind != "plain":
                continue
            try:
                want, recorded = self._gradients(pair.before, draw)
            except Exception as error:
                return f"its gradients were not compared: those of the module before it fail: {_shown(error)}"
            got, records = _attempt(name, "has no gradients", self._gradients, pair.after, draw)
            for n, (r, w) in enumerate(zip(records, recorded, strict=True)):
                if r != w and not self._maker.attention:  # whose log-sum-exp is said to have gradients in any case
                    raise PassError(
                        f"pass {name} changed the gradients: result {n} {'has' if r else 'lacks'} a history of them",
                        hint=_HINT,
                    )
            if self._maker.attention:
                rounding = _by_precision(pair, want, got, partial(self._only_gradients, draw))
            else:
                near, _ = self._gradients(pair.before, draw, _NUDGE)
                rounding = [_ROUNDING * _gap(x, w) for x, w in zip(near, want, strict=True)]
            _compare_gradients(name, got, want, rounding)
        return ""

    def _only_gradients(self, draw: Draw, form: Form) -> list[torch.Tensor]:
        return self._gradients(form, draw)[0]

    def _gradients(self, form: Form, draw: Draw, nudge: float = 0.0) -> tuple[list[torch.Tensor], list[bool]]:
        """The gradient of every floating-point input (0 where nothing depends on it), for random ones of all results
        and written inputs, and which of these record any."""
        return form.once(("gradients", draw, nudge), lambda: self._derive(form, draw, nudge))

    def _derive(self, form: Form, draw: Draw, nudge: float) -> tuple[list[torch.Tensor], list[bool]]:
        inputs = self._inputs(form.module, draw, nudge)
        leaves = [x.requires_grad_() for x in inputs if _floats(x)]
        generator = torch.Generator().manual_seed(draw.seed)
        with torch.random.fork_rng(devices=()), torch.enable_grad():
            torch.manual_seed(draw.seed)
            given = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]  # a leaf cannot be written to
            results = form.interpreter().call(form.module.entry.name, given)
            tensors = [x for x in _flat([*results, *given]) if isinstance(x, torch.Tensor)]
            roots = [t for t in tensors if t.requires_grad]
            wide = [torch.complex128 if t.is_complex() else torch.float64 for t in roots]  # the same in all precisions
            cotangents = [
                torch.randn(t.shape, generator=generator, dtype=d).to(t.dtype) for t, d in zip(roots, wide, strict=True)
            ]
            found = torch.autograd.grad(roots, leaves, cotangents, allow_unused=True) if roots else [None] * len(leaves)
        frames = [inputs[n] for n in self._maker.frames]  # whose gradients are those along rotations, or are not
        grads = [
            torch.zeros_like(x) if g is None or any(x is f for f in frames) else g
            for x, g in zip(leaves, found, strict=True)
        ]
        return [g.detach() for g in grads], [t.requires_grad for t in tensors]


@dataclass(frozen=True)
class Outcome:
    """What a run left: its ``count`` results followed by the inputs, what of it shares memory (a number per value, the
    same for those that do), the state of random numbers."""

    values: list[Any]
    count: int
    shared: list[int]
    random: torch.Tensor

    def called(self, n: int) -> str:
        """What the n-th value is."""
        return f"result {n}" if n < self.count else f"input {n - self.count}"


def sharing(values: Sequence[Any]) -> list[int]:
    """For each value the first position whose memory is the same."""
    first: dict[int, int] = {}
    out = []
    for n, x in enumerate(values):
        place = x.untyped_storage().data_ptr() if isinstance(x, torch.Tensor) and x.numel() else 0
        out.append(first.setdefault(place, n) if place else n)
    return out


@dataclass(frozen=True)
class Form:
    """A module as it is compared, and as it was written if it has been widened."""

    module: Module
    written: Module | None = None
    found: dict[Any, Any] = field(default_factory=dict)

    def interpreter(self) -> Trial:
        return Trial(self.module, self.written)

    def once(self, what: Any, find: Callable[[], T]) -> T:
        """What ``find`` gives, found once: what a pass has left is what the next one is given. Not to be changed."""
        if what not in self.found:
            self.found[what] = find()
        found: T = self.found[what]
        return found


class Forms:
    """A module, not to be changed, as it is and in other precisions; None where it has no such form."""

    def __init__(self, module: Module):
        self.module, self.plain = module, Form(module)

    @cached_property
    def text(self) -> str:
        return str(self.module)

    @cached_property
    def wide(self) -> Form | None:
        return self._in("f64")

    @cached_property
    def narrow(self) -> Form | None:
        return self._in("f32")

    def _in(self, dtype: str) -> Form | None:
        made = _retyped(self.text, dtype)
        return None if made is None else Form(made, self.module)


@dataclass(frozen=True)
class Pair:
    """What went into a pass and what came out. ``others`` are these in another precision: ``factor`` times what that
    makes of the results is what rounding may do to them."""

    before: Form
    after: Form
    others: tuple[Form, ...]
    factor: float


class Trial(Interpreter):
    """The interpreter, with two differences. Attentions have the gradients that they have when compiled: in closed form
    where a whole attention is one operation, by the tile function for them where it is a kernel. And what depends on
    constants alone has the digits it has in ``written``, whatever precision ``module`` has been widened to: a pass may
    write its value down."""

    def __init__(self, module: Module, written: Module | None = None):
        super().__init__(module)
        self.known: dict[Value, Any] = {}
        self.twins: dict[Op, Op] = {}
        self.memory: dict[str, Memory] = {}
        if written is not None:
            self.twins = dict(zip(module.walk(), written.walk(), strict=True))
            self.memory = {f.name: Memory(f, module) for f in module.funcs.values() if f.level == "geo"}
            self.plain = Interpreter(written)

    def evaluate(self, op: Op, values: list[Any]) -> Sequence[Any]:
        if op in self.twins and op.name in ("geo.constant", "torch.call") and self._constant(op):
            return self._as_written(op)
        if op.name not in ("geo.attend", "geo.kernel") or not any(_records(v) for v in values):
            return super().evaluate(op, values)
        whole = op.name == "geo.attend"
        run = lambda own: _Formula(op, own) if whole else _Tiles(op, own, self.module)  # noqa: E731
        results: Sequence[Any] = _Attention.apply(run, *values)  # type: ignore[no-untyped-call]
        return results

    def _constant(self, op: Op) -> bool:
        """Whether ``op`` gives the same on every call, and nobody can tell it from a constant."""
        memory = next((m for m in self.memory.values() if op in m.effects), None)
        if memory is None or not all(v in self.known for v in op.operands):
            return False
        effect = memory.effects[op]
        tensors = [v for v in (*op.operands, *op.results) if has_memory(v)]
        if effect.ordered or effect.writes or effect.undefined or any(memory.written(v) for v in tensors):
            return False
        return all(isinstance(r.type, TensorType) for r in op.results) and not (
            effect.shares and any(memory.outside(r) for r in op.results)
        )

    def _as_written(self, op: Op) -> Sequence[Any]:
        found = self.plain.evaluate(self.twins[op], [self.known[v] for v in op.operands])
        self.known.update(zip(op.results, found, strict=True))
        types = [r.type for r in op.results]
        return [x.to(torch_dtype(t.dtype)) for x, t in zip(found, types, strict=True) if isinstance(t, TensorType)]


class _Formula:
    """A `geo.attend`, and its gradients."""

    def __init__(self, op: Op, values: Sequence[torch.Tensor]):
        self.att, self.names = attention_of(op), tuple(op.attrs["names"])
        self.operands = dict(zip(self.names, values, strict=True))
        self.results = reference.attend(self.att, self.operands)

    def gradients(self, grad_o: torch.Tensor, grad_lse: torch.Tensor) -> dict[str, torch.Tensor]:
        return reference.attend_backward(self.att, self.operands, *self.results, grad_o, grad_lse)


class _Tiles:
    """A `geo.kernel`, and its gradients."""

    def __init__(self, op: Op, values: Sequence[torch.Tensor], module: Module):
        self.attrs, self.names, self.interpreter = op.attrs, tuple(op.attrs["names"]), Interpreter(module)
        self.used, self.results, self.version = run_kernel(op, values, self.interpreter)

    def gradients(self, grad_o: torch.Tensor, grad_lse: torch.Tensor) -> dict[str, torch.Tensor]:
        _, backward, grads = self.version
        given = [grad_o, grad_lse, *self.results[2:], *self.used]
        found = self.interpreter.call(self.attrs[backward].name, given)
        return dict(zip(self.attrs[grads], found, strict=True))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, start: Callable[..., _Formula | _Tiles], *values: torch.Tensor) -> Any:
        ctx.values = [v.detach().clone() for v in values]  # as they are now, whoever writes to them later
        ctx.attention = start(ctx.values)
        return tuple(x.clone() for x in ctx.attention.results[:2])

    @staticmethod
    def backward(ctx: Any, grad_o: Any, grad_lse: Any) -> Any:
        with torch.no_grad():
            found = ctx.attention.gradients(grad_o, grad_lse)
        named = zip(ctx.attention.names, ctx.values, strict=True)
        return None, *(found.get(n, torch.zeros_like(v)) if _floats(v) else None for n, v in named)


def _by_precision(
    pair: Pair, want: Sequence[Any], got: Sequence[Any], run: Callable[[Form], Sequence[Any]]
) -> list[float]:
    """What rounding may do to each value, relative to its largest number, from what another precision does to it
    before and after the pass, which may cost digits. Scores that are no numbers any more in single precision say
    nothing about a pass that takes them apart: no bound."""
    allowed = [0.0] * len(want)
    for form, values in zip(pair.others, (want, got), strict=False):
        try:
            found = run(form)
        except Exception:
            continue  # it has no such form
        for n, (f, x) in enumerate(zip(found, values, strict=False)):
            gap = _gap(f.to(x.dtype) if _floats(x) and _floats(f) else f, x)
            allowed[n] = max(allowed[n], pair.factor * gap if gap <= _AGREE or values is got else math.inf)
    return allowed


# --- comparing ---------------------------------------------------------------------------------------------
def _compare(name: str, got: Outcome, want: Outcome, rounding: Sequence[float], draw: Draw) -> None:
    if got.count != want.count:
        raise PassError(f"pass {name} changed the number of results from {want.count} to {got.count}", hint=_HINT)
    for n, (g, w) in enumerate(zip(got.values, want.values, strict=True)):
        allowed = max(TOLERANCE.get(w.dtype, 0.0) if isinstance(w, torch.Tensor) else 0.0, rounding[n])
        gap = difference(g, w)[0]
        if not gap <= allowed and allowed != math.inf:
            among = "" if draw.kind == "plain" else f" for {_KINDS[draw.kind]}"
            raise PassError(
                f"pass {name} changed the numbers: {want.called(n)} differs by {gap:.2e} of its largest number{among} "
                f"(allowed {allowed:.0e})",
                hint=_HINT,
            )
    for n, (g, w) in enumerate(zip(got.shared, want.shared, strict=True)):
        if g != w:
            other, now = (g, "shares memory") if g != n else (w, "no longer shares memory")
            raise PassError(
                f"pass {name} changed what shares memory: {want.called(n)} {now} with {want.called(other)}",
                hint=f"who writes to one of them later would see it; {_HINT}",
            )
    if not torch.equal(got.random, want.random):
        raise PassError(f"pass {name} changed how many random numbers are drawn", hint=_HINT)


def _compare_gradients(
    name: str, got: Sequence[torch.Tensor], want: Sequence[torch.Tensor], rounding: Sequence[float]
) -> None:
    """Where ``want`` is finite. What is small beside other gradients may be sums that cancel."""
    largest = max((w[w.isfinite()].abs().max().item() for w in want if w.isfinite().any()), default=0.0)
    for n, (g, w) in enumerate(zip(got, want, strict=True)):
        gap, allowed = _gap(g, w), max(GRADIENTS.get(w.dtype, 1e-3), rounding[n])
        if gap <= allowed or allowed == math.inf:
            continue
        if g.shape == w.shape and (g - w)[w.isfinite()].abs().max().item() <= TOLERANCE.get(w.dtype, 0.0) * largest:
            continue
        raise PassError(
            f"pass {name} changed the gradients: that of input {n} differs by {gap:.2e} of its largest number "
            f"(allowed {allowed:.0e})",
            hint=_HINT,
        )


_KINDS = {
    "large": "large inputs and such beside the program's constants",
    "integers": "large integers",
    "nan": "inputs that are NaN in places",
    "infinite": "inputs that are infinite in places",
    "tied": "inputs that are one tensor",
}


def _gap(got: Any, want: Any) -> float:
    """The relative difference where ``want`` is finite, infinite where it means something else."""
    if _floats(want) and _floats(got) and got.shape == want.shape:
        away = ~want.isfinite()
        got, want = got.masked_fill(away, 0.0), want.masked_fill(away, 0.0)
    return difference(got, want)[0]


def _stages(module: Module) -> list[str]:
    """The programs of attentions in stages, one text for each."""
    staged = ("geo.metric", "geo.normalize", "geo.transport", "geo.aggregate", "geo.map")
    return [f"{op.name} {attrs_text(op.attrs)}" for op in module.walk() if op.name in staged]


def _is_finite(x: Any) -> bool:
    return not _floats(x) or bool(x.isfinite().all())


def _attempt(name: str, what: str, run: Callable[..., Any], *args: Any) -> Any:
    try:
        return run(*args)
    except Exception as error:
        raise PassError(f"pass {name} made a module that {what}: {_shown(error)}", hint=_HINT) from error


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _nudged(x: torch.Tensor, digits: float, generator: torch.Generator) -> torch.Tensor:
    moved = 1 + digits * torch.finfo(x.dtype).eps * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return (x * moved).to(x.dtype)


def _floats(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _records(x: Any) -> bool:
    return torch.is_grad_enabled() and isinstance(x, torch.Tensor) and x.requires_grad


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for x in values:
        if isinstance(x, (list, tuple)):
            yield from _flat(x)
        else:
            yield x


def _retyped(text: str, dtype: str) -> Module | None:
    """The module of a text with all its numbers in ``dtype``, f64 or f32, or None if that makes none."""
    if re.search(r"\barena\b", text):
        return None
    text = re.sub(r"\b(f64|f32|bf16|f16)\b", dtype, text)
    text = re.sub(r"\b(c64|c128)\b", "c128" if dtype == "f64" else "c64", text)
    text = re.sub(r"\btorch\.(float64|float32|float16|bfloat16|float|half)\b", f"torch.float{dtype[1:]}", text)
    try:
        made = parse(text)
        made.verify()
    except AatcError:
        return None
    return made
