"""Runs a drawn attention everywhere it can run and compares it with the oracle: eager, interpreter, kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import aatc
from aatc.ir.core import Module, Op
from aatc.ir.geo import whole_attention_of
from aatc.ir.interpreter import Interpreter
from aatc.ir.score.expr import ZERO, sub
from aatc.ir.score.program import Program
from tests.compiler.harness import build
from tests.fuzz import oracle
from tests.fuzz.build import Functions, parts
from tests.fuzz.formula import Rounding
from tests.fuzz.strategies import Case
from tests.fuzz.tensors import CHANGING, LAYOUTS, laid_out, make

#: What is counted over all draws of a run, for the statistics of a long one.
COUNTS: Counter[str] = Counter()

#: relative to the largest entry: what is always allowed, and the unit of rounding
UNITS = {
    torch.float64: (1e-9, 2.0**-52),
    torch.float32: (2e-5, 2.0**-23),
    torch.bfloat16: (2.0**-7, 2.0**-7),
    torch.float16: (2.0**-10, 2.0**-10),
}
SLACK = 4.0
#: and in units of what is added up, which may cancel
SUMMANDS = 32.0
#: and in units of 1, or of the values: the digits bound of single precision, 2e-5. In double precision alone, where it
#: is far below what any fault makes; a number that cancels down to 1e-17 has no digits of its own.
UNITS_OF_ONE = 2e-5 / 2.0**-23


#: Orders of summation that are tried before a number is called wrong.
_ORDERS = 16

_FAITHFUL = frozenset(LAYOUTS) - frozenset(CHANGING)


class Wrong(AssertionError):
    """A number that is not right. ``where``: engine and result."""


@dataclass
class Truth:
    """Results of the oracle: o, lse, and gradients by name. By name, and for every entry of a gradient, ``sizes``: how
    large the numbers are that add up to it; ``rounding``: what rounding the output takes from it."""

    o: torch.Tensor
    lse: torch.Tensor
    grads: dict[str, torch.Tensor]
    sizes: dict[str, torch.Tensor]
    rounding: dict[str, torch.Tensor]
    parts_of_q: list[torch.Tensor] = field(
        default_factory=list
    )  # where queries are keys, how large what is added up is


def _made(case: Case) -> dict[str, torch.Tensor]:
    connection = case.connection[0] if case.connection else None
    return make(case.leaves, case.seed_of_tensors, case.domain, case.ties, connection)


def tensors(
    case: Case, dtype: torch.dtype | None = None, nudge: bool = False, instead: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """The case's tensors; floating ones in ``dtype``, or as they are drawn; ``nudge`` moves each by about one unit
    in the last place of float64, equal numbers equally. ``instead`` replaces some."""
    made = _made(case) | (instead or {})
    out = {}
    for name, t in made.items():
        if t.is_floating_point():
            if dtype is not None:
                t = t.to(dtype)
            if nudge:
                t = _nudged(t, 1e4 * 1.2345)
            t = t.detach()
            t.requires_grad_(case.leaves[name].grad)
        out[name] = t
    if "object" in case.tags:
        out["k"] = out["q"]
    return out


def _nudged(t: torch.Tensor, draw: float) -> torch.Tensor:
    """Every other number about one unit in the last place of float64 larger, equal ones equally."""
    odd = (t * draw).frac().abs() > 0.5
    return torch.where(odd, t * (1 + 2.0**-52), t) if t.is_floating_point() else t


def _as_whole(op: Op) -> None:
    """Puts the score without differences multiplied out in the place of the score."""
    whole = op.attrs["whole"]
    if op.name == "geo.attend":
        row = whole_attention_of(op).row
        op.attrs.pop("row", None)
        op.attrs |= {"score": whole} if row is None else {"score": whole, "row": row}
    else:
        dropped = op.attrs["dropped"].body if "dropped" in op.attrs else ZERO
        op.attrs["score"] = Program(whole.params, sub(whole.body, dropped))
    op.attrs.pop("whole"), op.attrs.pop("dropped", None)


def wanted(case: Case, x: dict[str, torch.Tensor]) -> list[str]:
    names = [n for n, t in x.items() if t.requires_grad]
    return [n for n in names if not (n == "k" and "object" in case.tags)]


def _probes(case: Case) -> tuple[torch.Tensor, torch.Tensor | None]:
    b, h, n, _ = case.sizes
    g = torch.Generator().manual_seed(case.seed_of_tensors + 5)
    o = laid_out(torch.randn(b, h, n, case.dv, generator=g, dtype=torch.float64).to(case.torch_dtype), case.grad_layout)
    lse = torch.randn(b, h, n, generator=g, dtype=torch.float64) if case.grad_lse else None
    return o, lse


def _pull(case: Case, o, lse, x, names) -> dict[str, torch.Tensor]:
    """Gradients by name of the probes' functional; zeros where nothing flows."""
    if not names:
        return {}
    po, pl = _probes(case)
    outs, probes = [], []
    if o.requires_grad:
        outs.append(o)
        probes.append(po.to(o.dtype) if po.dtype != o.dtype else po)
    if pl is not None and lse.requires_grad:
        outs.append(lse)
        probes.append(pl.to(lse.dtype).masked_fill(torch.isposinf(lse), 0.0))
    if not outs:
        return {n: torch.zeros_like(x[n]) for n in names}
    got = torch.autograd.grad(outs, [x[n] for n in names], probes, allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(x[n]) if g is None else g for n, g in zip(names, got)}


def truth(case: Case, dtype: torch.dtype, nudge: bool = False, sizes: bool = False, instead=None) -> Truth:
    x = tensors(case, dtype, nudge, instead)
    names = wanted(case, x)
    one = x["q"]
    if "object" in case.tags:  # attention gives a gradient for each of its two operands, and autograd adds them
        x = {**x, "q": one.view_as(one), "k": one.view_as(one)}
    o, lse, *inner = oracle.attention(case, x, dtype)
    leaves = {n: one if n == "q" else x[n] for n in names}
    size, rounding = _conditions(case, leaves, o, lse, *inner) if sizes and names else ({}, {})
    grads = _pull(case, o, lse, {**x, **leaves}, names)
    parts_ = _pull(case, o, lse, x, ["q", "k"]) if sizes and x["q"] is not one and "q" in names else {}
    return Truth(o.detach(), lse.detach(), grads, size, rounding, [t.abs() for t in parts_.values()])


def _conditions(
    case: Case, leaves: dict[str, torch.Tensor], o, lse, s, p, carried, sink
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """``sizes`` and ``rounding`` of a Truth, from what the oracle gives."""
    po, pl = (None if t is None else t.to(o.dtype).unsqueeze(-1) for t in _probes(case))
    o, p, carried = o.detach(), p.detach(), carried.detach()
    # the gradient of a score is p (dw - Σ p dw) + share * pl, dw = Σ po v; all pairs of a row have the same Σ and pl
    dw = torch.where(p > 0, (po[..., 0].unsqueeze(3) * carried).abs().sum(-1), 0.0)
    mean = (p * dw).sum(-1, keepdim=True)
    added = [(s, p, dw)]
    if case.normalizer[0] != "sigmoid":
        added.append((s, p, mean))
    if pl is not None:
        share = p if sink is not None else p / p.sum(-1, keepdim=True).clamp(min=1e-300)
        added.append((s, share, pl.abs()))
    if sink is not None:
        taken = (sink - lse).detach().exp()
        added += [(sink, taken, row[..., 0]) for row in (mean, pl) if row is not None]
    rounding = {}
    if "16" in case.dtype and sink is None:
        # backwards take Σ p dw from the output, which is held in the dtype of q where no sink scales it
        lost = (po[..., 0] * o).abs().sum(-1, keepdim=True) * 4 * UNITS[case.torch_dtype][1]
        rounding = _added_up(leaves, [(s, p, lost)])
    return _added_up(leaves, added), rounding


#: So many sums of summands, each times a number drawn from [-1, 1], tell how large these are.
_DRAWS = 8


def _added_up(
    leaves: dict[str, torch.Tensor], summands: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """By name, how large the numbers are that every entry of a gradient is the sum of: the root of the sum of their
    squares, from draws of factors in [-1, 1]. No draw is above the sum of their absolute values, so where nothing
    cancels it is no larger than the entry. ``summands``: (source, weight, size), which add weight * size to a source's
    gradient; there is a factor per size. (Of signs alone, two summands of one size would often make 0.)"""
    g = torch.Generator().manual_seed(3)
    squares: dict[str, torch.Tensor] = {}
    summands = [x for x in summands if x[0].requires_grad]
    for _ in range(_DRAWS if summands else 0):
        signed = []
        for source, weight, size in summands:
            factor = 2 * torch.rand(size.shape, generator=g, dtype=size.dtype) - 1
            signed.append(torch.where(torch.isfinite(source), weight * size * factor, 0.0).to(source.dtype))
        sources = [source for source, _, _ in summands]
        got = torch.autograd.grad(sources, list(leaves.values()), signed, retain_graph=True, allow_unused=True)
        for n, t in zip(leaves, got):
            if t is not None:
                t = torch.where(torch.isfinite(t), t.double(), 0.0)
                squares[n] = squares.get(n, torch.zeros_like(t)) + t.square() / _DRAWS
    return {n: t.sqrt() for n, t in squares.items()}


def _largest(t: torch.Tensor) -> float:
    t = t.detach().double()
    t = t[torch.isfinite(t)]
    return float(t.abs().max()) if t.numel() else 0.0


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    both = torch.isfinite(a) & torch.isfinite(b)
    return _largest(torch.where(both, a - b, 0.0))


Part = Callable[[Truth], torch.Tensor]


class Judge:
    """Holds the truth of a case and says whether what an engine gives is within its tolerance."""

    def __init__(self, case: Case, instead: dict[str, torch.Tensor] | None = None):
        self.case = case
        self.low = case.torch_dtype
        self.compute = torch.float64 if self.low == torch.float64 else torch.float32
        self.want = truth(case, torch.float64, sizes=True, instead=instead)
        double = self.low == torch.float64
        self.slack = 64.0 if double else SLACK
        self.values = max(1.0, _largest(_made(case)["v"]))
        kinds = {case.leaves[n].kind for n in "qk"} | {case.leaves[n].layout for n in "qk"}
        self.close = bool(case.ties) or not kinds <= {"normal", "negative", "contiguous", *_FAITHFUL}
        self.instead = instead
        self.rough = [truth(case, self.compute, nudge=double, instead=instead), self._reordered(11)]

    def _reordered(self, seed: int) -> Truth:
        """The untouched formula with its sums in another order."""
        with Rounding(UNITS[self.compute][1], seed):
            return truth(self.case, self.compute, instead=self.instead)

    def tolerance(
        self,
        want: torch.Tensor,
        rough: list[torch.Tensor],
        dtype: torch.dtype,
        size: float | torch.Tensor = 0.0,
        more: float | torch.Tensor = 0.0,
    ) -> torch.Tensor:
        """Absolute, of every entry: the allowed part of the largest, or what the untouched formula loses of any, or
        what summands of the entry's own ``size`` lose by rounding; and ``more``."""
        allowed = max(UNITS[dtype][0], UNITS[self.compute][0])
        if self.compute == torch.float64 and self.close:
            allowed = 1e-6  # roots of differences: half the digits
        compute_unit = UNITS[self.compute][1]
        of_all = max(
            allowed * _largest(want),
            # of what is summed in another order, every order is but one sample
            *(
                (2 if n else 1) * self.slack * _distance(r.to(held), want)
                for n, r in enumerate(rough)
                # as it is, too: what a float32 gradient loses may be below the range of a half
                for held in {r.dtype, r.dtype if dtype == torch.float64 else dtype}
            ),
            # what is 0, or nearly, may come out as a difference of equal numbers
            self._next_to_zero(want),
        )
        of_each = SUMMANDS * compute_unit * torch.as_tensor(size, dtype=torch.float64)
        return of_each.clamp(min=of_all).expand(want.shape) + more

    def _next_to_zero(self, want: torch.Tensor) -> float:
        unit = UNITS[self.compute][1] * self.values
        if not _largest(want):
            return 256 * unit
        return UNITS_OF_ONE * unit if self.compute == torch.float64 else 1e-20

    def compare(self, where: str, got: torch.Tensor, want, part: Part, *tolerance) -> None:
        """``part``: what of the untouched formula's results is compared; ``tolerance``: size, unit and more. Where
        a fault is found, many orders of summation are asked: two may both be lucky where all digits cancel."""
        try:
            self._compare(where, got, want, [part(r) for r in self.rough], *tolerance)
        except Wrong:
            COUNTS["doubted"] += len(self.rough) < _ORDERS
            self.rough += [self._reordered(11 + n) for n in range(len(self.rough), _ORDERS)]
            self._compare(where, got, want, [part(r) for r in self.rough], *tolerance)

    def _compare(
        self,
        where: str,
        got: torch.Tensor,
        want,
        rough: list[torch.Tensor],
        size: float | torch.Tensor = 0.0,
        unit=None,
        more: float | torch.Tensor = 0.0,
    ) -> None:
        if tuple(got.shape) != tuple(want.shape):
            raise Wrong(f"{where}: shape {tuple(got.shape)}, want {tuple(want.shape)}")
        got = got.detach()
        tolerance = self.tolerance(want, rough, unit or got.dtype, size, more)
        finite, want_finite = torch.isfinite(got), torch.isfinite(want)
        if got.dtype != torch.float64:  # what may leave the range of the dtype may be infinite
            near = want.abs() + tolerance > torch.finfo(got.dtype).max
            either = (near | ~torch.isfinite(rough[0].to(got.dtype))) & torch.isfinite(want)
            finite, want_finite = finite | either, want_finite | either
        if not torch.equal(finite, want_finite):
            bad = (finite != want_finite).nonzero()[0].tolist()
            raise Wrong(f"{where}: {float(got[tuple(bad)])} at {bad}, want {float(want[tuple(bad)])}")
        COUNTS["compared"] += 1
        excess = torch.where(got.isfinite() & want.isfinite(), (got.double() - want).abs() - tolerance, 0.0)
        if bool((excess > 0).any()):
            at = int(excess.argmax())
            allowed = float(tolerance.flatten()[at])
            raise Wrong(
                f"{where}: off by {float(excess.flatten()[at]) + allowed:.2e}, allowed {allowed:.2e}, "
                f"largest {_largest(want):.2e}, untouched formula {_distance(rough[0], want):.2e}"
            )

    def results(self, engine: str, o, lse, more_of_o: float = 0.0, more_of_lse: float = 0.0) -> None:
        if o.dtype != self.low or lse.dtype != self.compute:
            raise Wrong(f"{engine}: o is {o.dtype}, lse {lse.dtype}")
        self.compare(f"{engine} o", o, self.want.o, lambda r: r.o, 0.0, None, more_of_o)
        if self.case.normalizer[0] == "sigmoid" and self.low != torch.float64:
            # a score that has lost its digits may have any sign: its weight is 0 where it should be 1
            self.compare(
                f"{engine} exp(lse)", lse.exp(), self.want.lse.exp(), lambda r: r.lse.exp(), 1.0, None, more_of_lse
            )
        else:
            self.compare(f"{engine} lse", lse, self.want.lse, lambda r: r.lse, 1.0, None, more_of_lse)

    def stage(self, name: str, module: Module, run, operands: list[torch.Tensor]) -> None:
        """What the interpreter makes of ``module``. A score that was multiplied out is right where the digits suffice,
        which kernels check: with it, results may be off by what rounding of the operands, equal numbers equally, makes
        of them. The score beside it, with differences as they were, has its digits whatever the operands are."""
        exact, expanded = module.clone(), False
        for op in exact.walk():
            if op.name in ("geo.metric", "geo.attend") and "whole" in op.attrs:
                expanded = True
                _as_whole(op)
        self.results(f"interpreter after {name}", *run(exact, operands))
        if expanded:
            o, lse = run(module, operands)
            moved = [run(module, [_nudged(t, 1e4 * (n + 1.2345)) for t in operands]) for n in range(3)]
            lost = [self.slack * max(_distance(a, b) for a in found) for b, found in zip((o, lse), zip(*moved))]
            self.results(f"interpreter after {name}, multiplied out,", o, lse, *lost)

    def gradients(self, engine: str, x, got: dict[str, torch.Tensor]) -> None:
        for n, g in got.items():
            if g.dtype != x[n].dtype:
                raise Wrong(f"{engine} grad {n}: {g.dtype} for {x[n].dtype}")
            want = self.want.grads[n]
            part: Part = lambda r, n=n: r.grads[n]  # noqa: E731
            size, more = (found.get(n, 0.0) for found in (self.want.sizes, self.want.rounding))
            if n in ("fq", "fk"):  # along rotations only: frames are taken to be orthogonal
                frame = x[n].detach().double()
                g, want = _tangent(frame, g).to(x[n].dtype), _tangent(frame, want)
                part = lambda r, n=n, frame=frame: _tangent(frame, r.grads[n])  # noqa: E731
                size, more = (y if isinstance(y, float) else _added_tangent(frame, y) for y in (size, more))
            # every gradient goes through o and grad_o, which are held in the dtype of q
            coarser = max(g.dtype, self.low, key=lambda t: UNITS[t][1])
            if n == "q" and self.want.parts_of_q:
                # each is rounded to, and may leave, the range of the dtype before they are added
                one, other = self.want.parts_of_q
                lost = ~g.isfinite() & (torch.maximum(one, other) > torch.finfo(g.dtype).max)
                g = torch.where(lost, want.to(g.dtype), g)
                more = more + UNITS[g.dtype][1] * (one + other)
            self.compare(f"{engine} grad {n}", g, want, part, size, coarser, more)


def _tangent(frame, gradient):
    t = frame.mT @ gradient.detach().double()
    return t - t.mT


def _added_tangent(frame, size):
    """Of sizes of summands what `_tangent` makes of gradients."""
    t = frame.mT.abs() @ size
    return t + t.mT


def check_attention(case: Case, stages: bool = True, backend: str = "auto") -> None:
    """Eager, kernel of a backend and, with ``stages``, the interpreter of every level. Raises Wrong, or what aatc
    raised."""
    judge = Judge(case)
    x = tensors(case)
    names = wanted(case, x)
    built = build(x["q"], x["k"], x["v"], tiles=case.tiles, library=case.library, backend=backend, **parts(case, x))
    COUNTS["draws"] += 1
    o, lse = built.eager
    judge.results("eager", o, lse)
    judge.gradients("eager", x, _pull(case, o, lse, x, names))
    o, lse = built.run()
    judge.results("kernel", o, lse)
    judge.gradients("kernel", x, _pull(case, o, lse, x, names))
    notes = " ".join(n for r in built.result.reports for n in r.notes) if hasattr(built.result, "reports") else ""
    COUNTS["reference formula"] += "reference formula" in notes
    if not stages or case.dtype != "float64":  # in lower precision, stages are judged by what becomes of them
        return
    operands = [t.detach() for t in built.operands]
    for name, module in built.result.stages.items():
        judge.stage(name, module, lambda m, x: built.finished(*Interpreter(m).call("main", x)), operands)


def _spoiled(case: Case, t: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """``t`` with numbers that are not finite here and there, and the pairs (B, H, N, M) that meet one."""
    b, h, n, m = case.sizes
    g = torch.Generator().manual_seed(case.seed_of_tensors + 9)
    value = (float("nan"), float("inf"), float("-inf"))[case.seed_of_tensors % 3]
    t = t.detach().clone()
    if name in ("k", "v"):
        where = torch.rand(t.shape[:3], generator=g) < 0.3
        channel = torch.randint(0, t.shape[3], t.shape[:3], generator=g)
        t = t.masked_fill(torch.nn.functional.one_hot(channel, t.shape[3]).bool() & where.unsqueeze(-1), value)
        return t, where.repeat_interleave(h // max(t.shape[1], 1), 1).unsqueeze(2).expand(b, h, n, m)
    where = torch.rand(t.shape, generator=g) < 0.3
    return t.masked_fill(where, value), where.reshape(*(1,) * (4 - t.dim()), *t.shape).expand(b, h, n, m)


def check_spoiled(case: Case, name: str, backend: str = "auto") -> None:
    """A key, value or bias that is not finite (``name``) spoils the rows that see it and nothing else; ``case`` has a
    mask. Where no row sees one, the gradients are right, too."""
    high = tensors(case, torch.float64)
    spoiled, bad = _spoiled(case, high[name], name)
    keep = oracle.scores(case, high, torch.float64)[1]
    assert keep is not None
    sees = (keep & bad).any(-1)
    with torch.no_grad():
        dirty = oracle.attention(case, {**high, name: spoiled}, torch.float64)[0]
    lost = sees & dirty.isnan().any(-1) & bool(spoiled.isnan().any())
    own = high[name].detach()  # a bias may have been drawn with -inf, which is there in the truth, too
    clean = torch.where(spoiled.isfinite() | (spoiled == own), own, 0.0)
    judge = Judge(case, {name: clean})
    x = tensors(case)
    x[name] = torch.where(spoiled.isfinite(), x[name].detach(), spoiled.to(x[name].dtype))
    x[name].requires_grad_(case.leaves[name].grad)
    if "object" in case.tags and name == "k":
        return
    names = wanted(case, x)
    COUNTS["spoiled"] += 1
    built = build(x["q"], x["k"], x["v"], tiles=case.tiles, library=case.library, backend=backend, **parts(case, x))
    runs = {"eager": built.eager, "kernel": built.run()}
    for engine, (o, lse) in runs.items():
        for what, got, want in (("o", o, judge.want.o), ("lse", lse, judge.want.lse)):
            blind = ~sees.unsqueeze(-1) if what == "o" else ~sees

            def seen(t: torch.Tensor, blind=blind) -> torch.Tensor:
                return torch.where(blind, t.detach().double(), 0.0)

            judge.compare(
                f"{engine} {what} beside {spoiled_word(spoiled)}",
                seen(got).to(got.dtype),
                seen(want),
                lambda r, what=what, seen=seen: seen(getattr(r, what)),
                1.0,
            )
        if not bool(o.detach().isnan().any(-1)[lost].all()):
            raise Wrong(f"{engine} o: a row that sees NaN in {name} is finite")
    if not bool(sees.any()):
        COUNTS["spoiled unseen"] += 1
        for engine in ("eager", "kernel"):
            judge.gradients(f"{engine} beside {spoiled_word(spoiled)}", x, _pull(case, *runs[engine], x, names))


def spoiled_word(t: torch.Tensor) -> str:
    return "NaN" if bool(t.isnan().any()) else "infinity"


def check_compiled(case: Case, dynamic: bool = False, backend: str = "auto") -> None:
    """The same through `aatc.compile`, without any fallback."""
    judge = Judge(case)
    x = tensors(case)
    names = wanted(case, x)

    def model(q, k, v, *rest):
        y = {**x, "q": q, "k": k, "v": v, **dict(zip(others, rest))}
        return aatc.attend(q, k, v, return_lse=True, **parts(case, y, made))

    others, made = [n for n in x if n not in ("q", "k", "v")], Functions.of(case, x)
    compiled = aatc.compile(model, dynamic=dynamic, backend=backend, fallback=False)
    try:
        o, lse = compiled(x["q"], x["k"], x["v"], *(x[n] for n in others))
    except aatc.errors.UnsupportedError as error:
        if "no tile program" not in error.message:  # maps that mix channels per pair have none, and say so
            raise
        COUNTS["no tile program"] += 1
        return
    judge.results("compiled", o, lse)
    judge.gradients("compiled", x, _pull(case, o, lse, x, names))


def described(case: Case) -> str:
    """The case as text, one part a line."""
    lines = [f"{k} = {v!r}" for k, v in vars(case).items() if k != "leaves"]
    return "\n".join(lines + [f"leaf {n}: {x}" for n, x in case.leaves.items()])
