"""The bounds of native kernels, as data. Batch 1, 8 heads of width 64, float32, two threads, unless said otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """``name`` is group/row, by which measurements find it; ``what`` says it to a person. The measured number, in
    ``unit``, is at most ``bound``, or at least it if ``at_least``."""

    name: str
    what: str
    bound: float
    unit: str = "× SDPA"
    at_least: bool = False

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g} {self.unit}"


TITLES = {
    "dot-product": "dot product",
    "rotary": "rotary",
    "euclidean": "Euclidean",
    "mahalanobis": "Mahalanobis",
    "alibi": "causal ALiBi",
    "lorentz": "Lorentz distance, β = 1",
    "poincare": "Poincaré distance",
    "lorentz-learned": "Lorentz distance, learned β",
    "sphere": "geodesic on the sphere",
    "fisher-rao": "Fisher–Rao",
    "transport": "transport on the hyperboloid",
}
PLAIN, HYPERBOLIC, CURVED = (
    ("dot-product", "rotary", "euclidean", "mahalanobis", "alibi"),
    ("lorentz", "poincare"),
    ("lorentz-learned", "sphere", "fisher-rao"),
)
FORWARD = {
    **dict.fromkeys(PLAIN, 0.55),
    "alibi": 0.6,
    **dict.fromkeys(HYPERBOLIC, 0.48),
    **dict.fromkeys(CURVED, 0.65),
    "transport": 1.1,
}
TRAINING = {"euclidean": 0.6, "lorentz": 0.65, "sphere": 0.75}
WITHOUT_PAIRWISE_CHANNELS = tuple(k for k in TITLES if k != "transport")
SMALL = (16, 64, 128)
LONG = 8192


def length_of(kind: str) -> int:
    return 1024 if kind == "transport" else 2048


def _kinds() -> list[Bound]:
    rows = []
    for kind, bound in FORWARD.items():
        peer = "× causal SDPA" if kind == "alibi" else "× SDPA"
        rows.append(Bound(f"forward/{kind}", f"{TITLES[kind]}, n {length_of(kind)}", bound, peer))
    rows += [
        Bound(f"training/{k}", f"{TITLES[k]}, forward and backward, n 2048", b, "× SDPA") for k, b in TRAINING.items()
    ]
    rows += [
        Bound(f"share/{k}", f"{TITLES[k]}, {what}", b, "of the multiply-add rate", at_least=True)
        for k, what, b in (("dot-product", "forward", 0.65), ("lorentz", "forward", 0.75))
    ]
    rows.append(Bound("share/backward", "dot product, backward", 0.6, "of the multiply-add rate", at_least=True))
    rows.append(Bound("bf16/dot-product", "dot product of bfloat16, n 2048", 0.7, "× native float32"))
    return rows


def _busy() -> list[Bound]:
    """With one core kept busy by another process: a ratio of medians, and how far single calls stray."""
    rows = []
    for name in [*(f"forward/{k}" for k in FORWARD), *(f"training/{k}" for k in TRAINING)]:
        group, _, kind = name.partition("/")
        what = f"{TITLES[kind]}{', forward and backward' if group == 'training' else ''}"
        end = f"{kind}{'-training' if group == 'training' else ''}"
        rows.append(Bound(f"busy/{end}", f"{what}, a core busy", 0.75, "× SDPA"))
        rows.append(Bound(f"slowest/{end}", f"{what}, a core busy, slowest of 20 calls", 5, "× their median"))
    return rows


def _small() -> list[Bound]:
    sizes = ", ".join(map(str, SMALL))
    return [
        *(
            Bound(f"small/{k}", f"{TITLES[k]}, n {sizes}: above SDPA's call", 50, "µs")
            for k in WITHOUT_PAIRWISE_CHANNELS
        ),
        *(
            Bound(f"small-busy/{k}", f"{TITLES[k]}, n {sizes}, a core busy: median", 1, "ms")
            for k in WITHOUT_PAIRWISE_CHANNELS
        ),
    ]


def _rest() -> list[Bound]:
    rows = [
        Bound("windows/swin", "256 problems × n 49 × D 32, relative bias and mask", 0.65),
        Bound("decoding/8192", "1 query, 8192 keys, 32/8 heads, D 128", 0.9),
    ]
    for kind in ("dot-product", "lorentz"):
        rows.append(Bound(f"masks/{kind}-causal", f"{TITLES[kind]}, causal, n {LONG}", 0.55, "× unmasked"))
        rows.append(Bound(f"masks/{kind}-window", f"{TITLES[kind]}, window of 512 keys, n {LONG}", 0.12, "× unmasked"))
        # of all pairs 12.1 % are in it: no kernel that computes them all can be as fast as the row before asks
        what = f"{TITLES[kind]}, window of 511 keys on either side, n {LONG}"
        rows.append(Bound(f"masks/{kind}-both", what, 0.16, "× unmasked"))
    for kind in TITLES:
        rows.append(Bound(f"memory/{kind}", f"{TITLES[kind]}, peak, n {LONG}, forward", 48, "MiB"))
        rows.append(Bound(f"memory/{kind}-backward", f"{TITLES[kind]}, peak, n {LONG}, with backward", 160, "MiB"))
    rows += [
        Bound("compile/kernel", "one kernel", 0.4, "s"),
        Bound("compile/model", "four-layer model, first call", 3, "s"),
        Bound("compile/second", "four-layer model, second process", 2, "s"),
    ]
    for kinds, bound in ((PLAIN, 1.0), (HYPERBOLIC, 1.0), (CURVED, 1.25)):
        rows += [Bound(f"avx2/{k}", f"{TITLES[k]}, n 2048, AVX2 only", bound, "× SDPA's AVX2") for k in kinds]
    rows.append(Bound("growth/calls", "10,000 calls: memory grows by", 1, "MiB"))
    rows.append(Bound("growth/cycles", "200 compile–run–drop cycles: memory grows by", 8, "MiB"))
    return rows


BOUNDS: dict[str, Bound] = {b.name: b for b in [*_kinds(), *_busy(), *_small(), *_rest()]}
