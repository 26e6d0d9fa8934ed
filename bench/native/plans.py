"""How each bound is measured: several bounds of one attention come from the same runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import memory, startup
from bench.kinds import HEADS, WIDTH, Attention, Kind, kind, plain
from bench.native import fresh, rate
from bench.native.bounds import (
    BOUNDS,
    CURVED,
    FORWARD,
    HYPERBOLIC,
    LONG,
    PLAIN,
    SMALL,
    TITLES,
    TRAINING,
    WITHOUT_PAIRWISE_CHANNELS,
    length_of,
)
from bench.native.load import busy
from bench.native.verdicts import Measured
from bench.report import Figure
from bench.timing import alternate, forward, training

BUSY_CALLS = 20
Calls = dict[str, Callable[[], object]]
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Settings:
    runs: int = 9
    peers: bool = True
    """Whether torch.compile of the formula and the torch-code backend run, too."""


@dataclass(frozen=True)
class Plan:
    """One measurement. ``run`` gives the rows ``names``, or those of them that it is asked for. ``slow`` ones take more
    than a minute, and are left out unless wanted."""

    names: tuple[str, ...]
    run: Callable[[Settings, frozenset[str]], list[Measured]]
    slow: bool = False

    def chosen(self, only: re.Pattern[str], with_busy: bool) -> frozenset[str]:
        groups = () if with_busy else ("busy", "slowest", "small-busy")
        return frozenset(
            n for n in self.names if BOUNDS[n].group not in groups and only.search(f"{n} {BOUNDS[n].what}")
        )

    def rows(self, settings: Settings, wanted: frozenset[str]) -> list[Measured]:
        """The rows; ones that say why, if the measurement fails."""
        torch.compiler.reset()
        try:
            return [row for row in self.run(settings, wanted) if row.name in wanted]
        except Exception as error:  # one broken measurement must not cost the others
            first = (str(error).strip().splitlines() or [""])[0]
            note = f"{type(error).__name__}: {first}"[:160]
            return [Measured(n, None, note=note) for n in self.names if n in wanted]


def ours(f: Attention, backend: str = "native") -> Attention:
    import aatc

    compiled: Attention = aatc.compile(f, backend=backend, fallback=False)
    return compiled


def ratio(name: str, figures: dict[str, Figure], of: str = "native", to: str = "SDPA") -> Measured:
    return Measured(name, figures[of].least / figures[to].least, figures)


# --- attentions of 2048 tokens ---------------------------------------------------------------------------------
def forward_calls(k: Kind, n: int, peers: bool) -> Calls:
    inputs = k.inputs(n)
    calls = {"native": forward(ours(k.ours), inputs), "SDPA": forward(k.sdpa, inputs)}
    if peers:
        calls["torch code"] = forward(ours(k.ours, "cpu"), inputs)
        calls["torch.compile"] = forward(torch.compile(k.eager, dynamic=False), inputs)
    return calls


def forward_figures(name: str, runs: int, peers: bool) -> dict[str, Figure]:
    """Milliseconds of a kind's forward, and under "rate" what the machine can do."""
    return with_rate(forward_calls(kind(name), length_of(name), peers), runs)


def with_rate(calls: Calls, runs: int) -> dict[str, Figure]:
    """Milliseconds of calls in turns with the loop that only multiplies and adds, whose best run gives "rate"."""
    loop = rate.measured()
    figures = alternate({**calls, "rate": loop.call}, runs, peers=("torch code", "torch.compile"))
    return {**figures, "rate": Figure((loop.of(figures["rate"].least) / 1e9,), "GFLOP/s")}


def share_of(figures: dict[str, Figure], operations: float, who: str = "native") -> float:
    """Of the machine's multiply-add rate, from the best run of each."""
    return operations / (1e-3 * figures[who].least) / (1e9 * figures["rate"].least)


def under_load(name: str, calls: Calls) -> list[Measured]:
    """Medians of calls in turns, and the slowest of ours, while another process takes a core."""
    with busy():
        figures = alternate({who: calls[who] for who in ("native", "SDPA")}, BUSY_CALLS)
    ours_, sdpa = figures["native"], figures["SDPA"]
    slowest = max(ours_.values) / ours_.median
    return [
        Measured(f"busy/{name}", ours_.median / sdpa.median, figures, note=f"minima {ours_.least / sdpa.least:.2f}"),
        Measured(f"slowest/{name}", slowest, {"native": ours_}, note=f"SDPA's {max(sdpa.values) / sdpa.median:.1f}"),
    ]


def time_forward(name: str, settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    k, n = kind(name), length_of(name)
    rows = []
    idle = {f"forward/{name}", f"share/{name}"} & wanted
    calls = forward_calls(k, n, settings.peers and bool(idle))
    if idle:
        figures = with_rate(calls, settings.runs)
        operations = rate.operations(HEADS, n, n, WIDTH, rate.FORWARD) / (2 if k.causal else 1)
        share = share_of(figures, operations)
        rows.append(replace(ratio(f"forward/{name}", figures), note=f"share of the rate {share:.2f}"))
        if f"share/{name}" in BOUNDS:
            rows.append(Measured(f"share/{name}", share, {w: figures[w] for w in ("native", "rate")}))
    if wanted & {f"busy/{name}", f"slowest/{name}"}:
        rows += under_load(name, calls)
    return rows


def time_training(name: str, settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    k, n = kind(name), length_of(name)
    inputs, rows = k.inputs(n), []
    calls = {"native": training(ours(k.ours), inputs), "SDPA": training(k.sdpa, inputs)}
    if f"training/{name}" in wanted:
        more = dict(calls)
        if settings.peers:
            more["torch code"] = training(ours(k.ours, "cpu"), inputs)
            more["torch.compile"] = training(torch.compile(k.eager, dynamic=False), inputs)
        figures = with_rate(more, settings.runs)
        operations = rate.operations(HEADS, n, n, WIDTH, rate.FORWARD + rate.BACKWARD)
        note = f"share of the rate {share_of(figures, operations):.2f}"
        rows.append(replace(ratio(f"training/{name}", figures), note=note))
    if wanted & {f"busy/{name}-training", f"slowest/{name}-training"}:
        rows += under_load(f"{name}-training", calls)
    return rows


def time_backward(settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    """The backward alone, again and again after one forward."""
    k, n = kind("dot-product"), 2048
    leaves = tuple(x.requires_grad_() for x in k.inputs(n))
    out = {"native": ours(k.ours)(*leaves), "SDPA": k.sdpa(*leaves)}
    upstream = torch.ones_like(leaves[2])
    calls = {
        who: lambda o=o: torch.autograd.grad(o, leaves, upstream, retain_graph=True)  # type: ignore[misc]
        for who, o in out.items()
    }
    figures = with_rate(calls, settings.runs)
    share = share_of(figures, rate.operations(HEADS, n, n, WIDTH, rate.BACKWARD))
    note = f"{figures['native'].least / figures['SDPA'].least:.2f} × SDPA's"
    return [Measured("share/backward", share, figures, note=note)]


def time_bf16(settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    from aatc.backends.native.isa import host

    k, inputs = kind("dot-product"), plain(2048)
    halves = tuple(x.bfloat16() for x in inputs)
    calls = {
        "native": forward(ours(k.ours), halves),
        "native float32": forward(ours(k.ours), inputs),
        "SDPA": forward(k.sdpa, halves),
    }
    figures = alternate(calls, settings.runs)
    if not host().bf16:
        return [Measured("bf16/dot-product", None, figures, note="not here: the processor has no bf16 products")]
    return [ratio("bf16/dot-product", figures, to="native float32")]


# --- other shapes --------------------------------------------------------------------------------------------
def per_call(calls: Calls, runs: int, each: int) -> dict[str, Figure]:
    """Microseconds per call, in turns of ``each`` calls."""
    found = alternate({n: lambda f=f: [f() for _ in range(each)] for n, f in calls.items()}, runs)  # type: ignore[misc]
    return {name: Figure(tuple(1e3 * ms / each for ms in f.values), "µs") for name, f in found.items()}


def time_small(name: str, settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    k = kind(name)
    sized = {n: k.inputs(n) for n in SMALL}
    calls = {
        n: {"native": forward(ours(k.ours), inputs), "SDPA": forward(k.sdpa, inputs)} for n, inputs in sized.items()
    }
    rows = []
    if f"small/{name}" in wanted:
        figures = {n: per_call(calls[n], 2 * settings.runs, 20) for n in SMALL}
        above = {n: f["native"].least - f["SDPA"].least for n, f in figures.items()}
        each = {f"{who} {n}": f for n, found in figures.items() for who, f in found.items()}
        rows.append(Measured(f"small/{name}", max(above.values()), each))
    if f"small-busy/{name}" in wanted:
        with busy():
            found = {n: alternate(calls[n], 5 * settings.runs, warm=5) for n in SMALL}
        each = {f"{who} {n}": f for n, figures in found.items() for who, f in figures.items()}
        rows.append(Measured(f"small-busy/{name}", max(f["native"].median for f in found.values()), each))
    return rows


def time_windows(settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    """A shifted-window transformer's attention: 64 windows of 4 heads, a learned bias and a mask for each window."""
    import aatc

    windows, heads, n, width = 64, 4, 49, 32
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, windows, heads, n, width, generator=generator)
    bias = torch.randn(1, heads, n, n, generator=generator)
    keep = torch.rand(windows, 1, n, n, generator=generator) > 0.3
    keep |= torch.eye(n, dtype=torch.bool)
    added = bias.masked_fill(~keep, -torch.inf)  # as models hand it to SDPA

    def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
        out: Tensor = aatc.attend(q, k, v, metric=aatc.metrics.DotProduct(), bias=bias, mask=aatc.masks.dense(keep))
        return out

    calls = {
        "native": forward(ours(attention), (q, k, v, bias, keep)),
        "SDPA": forward(lambda *x: F.scaled_dot_product_attention(*x, attn_mask=added), (q, k, v)),
    }
    return [ratio("windows/swin", alternate(calls, 3 * settings.runs))]


def time_decoding(settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    import aatc

    q, k, v = (torch.randn(1, heads, n, 128) for heads, n in ((32, 1), (8, LONG), (8, LONG)))
    calls = {
        "native": forward(ours(lambda q, k, v: aatc.attend(q, k, v, metric=aatc.metrics.DotProduct())), (q, k, v)),
        "SDPA": forward(lambda *x: F.scaled_dot_product_attention(*x, enable_gqa=True), (q, k, v)),
    }
    return [ratio("decoding/8192", alternate(calls, 3 * settings.runs))]


def time_masks(name: str, settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    import aatc
    from aatc import masks, metrics

    metric = metrics.DotProduct if name == "dot-product" else metrics.LorentzDistance
    made: dict[str, Callable[[], object]] = {
        "unmasked": lambda: None,
        "causal": masks.causal,
        "window": lambda: masks.causal() & masks.sliding_window(512),
        "both": lambda: masks.sliding_window(512),
    }

    def attention(mask: Callable[[], object]) -> Attention:
        return lambda q, k, v: aatc.attend(q, k, v, metric=metric(), mask=mask())  # type: ignore[arg-type]

    inputs = kind(name).inputs(LONG)
    calls = {word: forward(ours(attention(mask)), inputs) for word, mask in made.items()}
    figures = alternate(calls, max(5, settings.runs // 2), warm=1)
    return [ratio(f"masks/{name}-{word}", figures, of=word, to="unmasked") for word in made if word != "unmasked"]


# --- memory and compile time ---------------------------------------------------------------------------------
def peak_memory(name: str, settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    """Forward and backward in two processes, at the same time: time does not matter here."""

    def one(row: str) -> Measured:
        mib, note = memory.measure("aatc-native", name, LONG, backward=row.endswith("-backward"))
        return Measured(row, mib, note=note)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, sorted(wanted)))


def compile_kernel(settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    figure = Figure(tuple(fresh.ask("kernels", "lorentz")), "s")
    return [Measured("compile/kernel", max(figure.values), {"each": figure}, note="the slowest of Lorentz's")]


def compile_model(settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    first, second = startup.compile_times(2, "native")
    return [Measured(f"compile/{n}", f.least, {n: f}) for n, f in (("model", first), ("second", second))]


def avx2(kinds: tuple[str, ...], settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    from aatc.backends.native.isa import available

    if not any(isa.name == "avx2" for isa in available()):
        return [Measured(f"avx2/{k}", None, note="not here: the processor has no AVX2") for k in kinds]
    chosen = [k for k in kinds if f"avx2/{k}" in wanted]
    found = fresh.ask("pair", ",".join(chosen), settings.runs, **fresh.AVX2)
    return [
        ratio(f"avx2/{k}", {who: Figure(tuple(ms), "ms") for who, ms in figures.items()})
        for k, figures in found.items()
    ]


def growth(task: str, row: str, count: int, settings: Settings, wanted: frozenset[str]) -> list[Measured]:
    start = time.perf_counter()
    grown = fresh.ask(task, count) / memory.MIB
    return [Measured(row, grown, note=f"{time.perf_counter() - start:.0f} s")]


def plans() -> Iterator[Plan]:
    """Every measurement, in the order of the report."""
    for name in FORWARD:
        names = tuple(f"{group}/{name}" for group in ("forward", "share", "busy", "slowest"))
        yield Plan(
            tuple(n for n in names if n in BOUNDS), lambda s, w, name=name: time_forward(name, s, w)  # type: ignore[misc]
        )  # fmt: skip
    for name in TRAINING:
        yield Plan(
            (f"training/{name}", f"busy/{name}-training", f"slowest/{name}-training"),
            lambda s, w, name=name: time_training(name, s, w),  # type: ignore[misc]
        )
    yield Plan(("share/backward",), time_backward)
    yield Plan(("bf16/dot-product",), time_bf16)
    for name in WITHOUT_PAIRWISE_CHANNELS:
        yield Plan((f"small/{name}", f"small-busy/{name}"), lambda s, w, name=name: time_small(name, s, w))  # type: ignore[misc]
    yield Plan(("windows/swin",), time_windows)
    yield Plan(("decoding/8192",), time_decoding)
    for name in ("dot-product", "lorentz"):
        yield Plan(
            tuple(f"masks/{name}-{word}" for word in ("causal", "window", "both")),
            lambda s, w, name=name: time_masks(name, s, w),  # type: ignore[misc]
        )
    for name in TITLES:
        yield Plan((f"memory/{name}", f"memory/{name}-backward"), lambda s, w, name=name: peak_memory(name, s, w))  # type: ignore[misc]
    yield Plan(("compile/kernel",), compile_kernel)
    yield Plan(("compile/model", "compile/second"), compile_model)
    for kinds in (PLAIN, HYPERBOLIC, CURVED):
        yield Plan(tuple(f"avx2/{k}" for k in kinds), lambda s, w, kinds=kinds: avx2(kinds, s, w))  # type: ignore[misc]
    yield Plan(("growth/calls",), lambda s, w: growth("growth", "growth/calls", 10_000, s, w))
    yield Plan(("growth/cycles",), lambda s, w: growth("cycles", "growth/cycles", 200, s, w), slow=True)
