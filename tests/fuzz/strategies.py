"""Hypothesis strategies for whole attentions, as plain data.

`OFF` names what is not drawn; set AATC_FUZZ_OFF to a list of names with commas (or to nothing, to draw everything).
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st

from tests.fuzz.tensors import CHANGING, LAYOUTS, TANGENT, VALUES, Leaf, dtype_of
from tests.fuzz.trees import Trees

#: Classes of draws that are switched off.
OFF = frozenset(os.environ.get("AATC_FUZZ_OFF", "").split(","))

METRICS = (
    "dot", "euclidean", "mahalanobis", "lorentz-inner", "cosine", "lorentz", "poincare", "sphere", "fisher-rao",
    "user", "user", "user", "user", "user",
)  # fmt: skip
CONNECTIONS = ("rotary", "frames", "sphere", "hyperboloid")
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 16)
LENGTHS = (1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 17, 21)


@dataclass(frozen=True)
class Case:
    """One drawn attention. Tensors are named; trees and options refer to their names."""

    seed_of_tensors: int
    sizes: tuple[int, int, int, int]
    d: int
    dv: int
    dtype: str
    leaves: dict[str, Leaf]
    metric: tuple
    connection: tuple | None = None
    mask: tuple | None = None
    bias: tuple | None = None
    scale: Any = None
    dropout: float = 0.0
    seed: Any = None
    domain: str | None = None
    ties: tuple[tuple[str, str], ...] = ()
    grad_lse: bool = False
    grad_layout: str = "contiguous"
    tiles: str = ""
    library: bool = True
    tags: frozenset[str] = field(default_factory=frozenset)
    normalizer: tuple = ("softmax", None)  # and a sink of softmax, a bias of sigmoid
    soft_cap: Any = None

    @property
    def torch_dtype(self) -> torch.dtype:
        return dtype_of(self.dtype)


class _Draw:
    """Draws one case from a source of random choices."""

    def __init__(self, pick: random.Random, off: frozenset[str], dtypes: tuple[str, ...]):
        self.pick, self.off = pick, off
        self.leaves: dict[str, Leaf] = {}
        self.layouts = ("contiguous",) if "layouts" in off else LAYOUTS
        self.dtype = pick.choice(dtypes)
        self.tags: set[str] = set()

    def chance(self, n: int) -> bool:
        return self.pick.randrange(n) == 0

    def on(self, name: str) -> bool:
        return name not in self.off

    def leaf(self, name: str, shape, kind: str = "normal", dtype: str = "", grad: bool | None = None, layout: str = ""):
        if not dtype:
            dtype = self.dtype if not self.chance(4) else self.pick.choice(("float32", "float64"))
        floating = "float" in dtype
        grad = floating and (not self.chance(4) if grad is None else grad)
        self.leaves[name] = Leaf(tuple(shape), dtype, kind, layout or self.pick.choice(self.layouts), grad)
        return name

    def case(self) -> Case:
        pick = self.pick
        empty = self.on("empty") and self.chance(25)
        b = pick.choice((1, 1, 2, 3)) if not (empty and self.chance(3)) else 0
        hk = pick.choice((1, 1, 2, 3)) if not (empty and self.chance(3)) else 0
        h = hk * pick.choice((1, 1, 2, 3))
        n, m = pick.choice(LENGTHS), pick.choice(LENGTHS)
        if self.chance(3):
            m = n
        if empty and self.chance(2):
            n, m = pick.choice(((0, m), (n, 0), (0, 0)))
        if not empty and self.chance(20):  # several tiles of the mask's grain
            n, m = pick.choice(((70, 65), (33, 130), (66, 40)))
            b, hk, h = 1, min(hk, 1), min(h, 1)
        d = pick.choice(WIDTHS)
        sizes = (b, h, n, m)
        metric, domain = self.metric(sizes, d)
        if metric[0] in ("cosine", "sphere") and d == 1:  # constant along rays: every gradient is rounding
            d = 2
        connection, domain, dv = self.connection(sizes, d, domain)
        kinds = VALUES if self.on("values") else ("normal",)
        if domain and "fuse" not in self.off:
            kinds = ("normal", "normal", "zero-tokens", "equal-tokens", "sparse", "tiny", "negative")
        kq = pick.choice(kinds)
        kk = kq if self.chance(2) else pick.choice(kinds)
        faithful = [x for x in self.layouts if not (domain and x in CHANGING)]
        self.leaf("q", (b, h, n, d), kq, self.dtype, layout=pick.choice(faithful))
        self.leaf("k", (b, hk, m, d), kk, self.dtype, layout=pick.choice(faithful))
        kv = pick.choice(VALUES if self.on("values") else ("normal",))
        as_they_are = [x for x in self.layouts if x not in CHANGING]
        tangent = connection is not None and connection[0] in TANGENT
        self.leaf("v", (b, hk, m, dv), kv, self.dtype, layout=pick.choice(as_they_are) if tangent else "")
        ties: tuple[tuple[str, str], ...] = ()
        if self.on("tied") and h == hk and n == m and self.chance(3):
            ties = (("k", "q"),)
            self.tags |= {"tied", "object"} if self.chance(3) else {"tied"}
        mask = self.mask(sizes, 2) if not self.chance(4) else None
        bias = self.bias(sizes, 1) if self.chance(3) else None
        scale = None
        if self.chance(3):
            scale = pick.choice((0.5, 0.0, -1.0, 2.5, "scale", "scale"))
            if scale == "scale":
                self.leaf("scale", pick.choice(((), (h,), (1,))) if h != 1 else (), "positive")
        dropout, seed = 0.0, None
        if self.chance(6):
            dropout, seed = pick.choice((0.1, 0.3, 0.9)), pick.choice((0, 7, -3, 2**40 + 1, 2**62, "seed"))
            if seed == "seed":
                self.leaf("seed", (), "seed", "int64")
        tiles = ""
        if not self.chance(4):
            cols = pick.randrange(1, 10)
            heads, rows, grain = pick.randrange(1, 5), pick.randrange(1, 10), pick.randrange(1, cols + 1)
            tiles = f"heads={heads} rows={rows} cols={cols} grain={grain}"
        if not self.on("grads"):
            self.leaves = {k: Leaf(v.shape, v.dtype, v.kind, v.layout, False) for k, v in self.leaves.items()}
        made = Case(
            pick.randrange(2**20), sizes, d, dv, self.dtype, self.leaves, metric, connection, mask, bias, scale,
            dropout, seed, domain, ties, self.chance(2), pick.choice(self.layouts), tiles, not self.chance(3),
            frozenset(self.tags),
        )  # fmt: skip
        return self.weighed(made)

    def weighed(self, case: Case) -> Case:
        """The case with a normaliser and a soft cap: drawn last, so that all else stays what a seed made of it."""
        normalizer: tuple = ("softmax", None)
        if self.chance(4) and self.on("normalizer"):
            kind = self.pick.choice(("softmax", "sigmoid", "sigmoid"))
            number = self.pick.choice((None, -1.5, "more")) if kind == "sigmoid" else self.pick.choice((0.5, "more"))
            if number == "more":
                h = case.sizes[1]
                self.leaf("more", self.pick.choice(((), (h,))) if h != 1 else (), grad=None)
            normalizer = (kind, number)
        soft_cap = None
        if self.chance(8) and self.on("soft-cap"):
            soft_cap = self.pick.choice((0.5, 2.0, 50.0, "cap"))
            if soft_cap == "cap":
                h = case.sizes[1]
                self.leaf("cap", self.pick.choice(((), (h,))) if h != 1 else (), "positive")
        return replace(case, leaves=self.leaves, normalizer=normalizer, soft_cap=soft_cap)

    def beta(self, h: int) -> Any:
        beta = self.pick.choice((1, 1, 1.5, 0.25, "beta"))
        if beta == "beta":
            self.leaf("beta", self.pick.choice(((), (h,))), "positive")
        return beta

    def metric(self, sizes, d: int):
        _b, h, _n, _m = sizes
        name = self.pick.choice([x for x in METRICS if self.on(x)])
        flag, other = self.chance(2), self.chance(2)
        if name == "user":
            trees = Trees(self.pick, sizes, d, self.dtype, self.leaves, self.layouts, self.off)
            tree = trees.number(self.pick.randrange(1, 4))
            if self.on("uniform") and self.chance(12):
                self.leaves["u"] = Leaf((), "int64", "seed", "contiguous", False)
                tree = ("add", tree, ("uniform", "u"))
            return (name, tree), None
        if name == "euclidean":
            return (name, flag), None
        if name == "mahalanobis":
            form = self.pick.choice(("matrix", "diagonal", "factor"))
            lead = (h,) if flag else ()
            tail = {"matrix": (d, d), "diagonal": (d,), "factor": (d, self.pick.choice((1, 2, d)))}[form]
            kind = {"matrix": "spd", "diagonal": "positive", "factor": "normal"}[form]
            self.leaf(
                "m", lead + tail, kind, grad=None if form != "matrix" else not self.chance(3), layout="contiguous"
            )
            return (name, form), None
        if name == "lorentz-inner":
            return (name, flag), None if flag else "hyperboloid"
        if name == "lorentz":
            c = self.pick.choice((1, 1, 0.5, 2)) if other else 1
            return (name, self.beta(h), self.chance(3), c, other), None if other else "hyperboloid"
        if name == "poincare":
            return (name, self.beta(h), flag), "ball"
        if name == "sphere":
            return (name, self.beta(h)), None
        if name == "fisher-rao":
            return (name, self.beta(h), flag), None if flag else "simplex"
        return (name,), None

    def connection(self, sizes, d: int, domain: str | None):
        b, h, n, m = sizes
        dv = self.pick.choice((d, 1, 3, 5, 8))
        names = [x for x in CONNECTIONS if self.on(x)]
        if not names or not self.chance(3):
            return None, domain, dv
        name = self.pick.choice(names)
        if name == "rotary":
            if d % 2:
                return None, domain, dv
            values = self.chance(2)
            qp = kp = None
            if not self.chance(3):
                axes = self.pick.choice([a for a in (1, 1, 2, 3, d // 2) if (d // 2) % a == 0])
                lead = self.pick.choice(((), (), (b,)))
                kind = self.pick.choice(("positions", "positions", "far-positions", "normal"))
                kinds = ("int64", "int64", self.dtype) if kind == "positions" else ("int64",)
                dtype = self.pick.choice(kinds) if kind != "normal" else self.dtype
                for key, t in (("qp", n), ("kp", m)):
                    shape = (*lead, t) if axes == 1 and not lead and self.chance(2) else (*lead, t, axes)
                    self.leaf(key, shape, kind, dtype)
                qp, kp = "qp", "kp"
            if (qp is None or not self.chance(2)) and n == m and qp:
                kp = None
                del self.leaves["kp"]
            style = self.pick.choice(("half", "pairs"))
            return (name, qp, kp, self.pick.choice((10000, 10.0)), style, values), domain, d if values else dv
        if name == "frames":
            values = self.chance(2)
            lead = self.pick.choice(((), (b,), (b, h)))
            for key, t in (("fq", n), ("fk", m)):
                layout = "contiguous" if self.chance(2) else "mT"
                wide = self.dtype if "16" not in self.dtype else "float32"  # orthogonal to the digits of scores
                self.leaf(key, (*lead, t, d, d), "orthogonal", wide, layout=layout)
            return (name, "fq", "fk", values), domain, d if values else dv
        return (name,), {"sphere": "sphere"}.get(name, name) if domain in (None, "sphere") else domain, d

    def mask(self, sizes, depth: int) -> tuple:
        b, _h, n, m = sizes
        pick = self.pick
        word = pick.choice(
            ["causal", "causal", "window", "documents", "padding", "dense", "predicate"]
            + ["and", "or", "not"] * (depth > 0)
        )
        if not self.on(word):
            word = "causal"
        name = f"m{len(self.leaves)}"
        if word == "causal":
            return (word, pick.choice((0, 0, m - n, 1, -1, -2, 3)))
        if word == "window":
            return (word, pick.choice((1, 2, 3, 4, 7)))
        if word == "documents":
            kind = pick.choice(("documents", "documents", "documents-mixed", "documents-huge"))
            dtype = pick.choice(("int64", "int64", "int32")) if kind != "documents-huge" else "int64"
            same = n == m and self.chance(2)
            lead = pick.choice(((), (b,)))
            self.leaf(name, (*lead, n), kind, dtype)
            if not same:
                self.leaf(name + "k", (*pick.choice(((), (b,))), m), kind, dtype)
            return (word, name, name if same else name + "k")
        if word == "padding":
            self.leaf(name, pick.choice(((b, m), (m,))), pick.choice(("keep", "keep-few", "keep-none")), "bool")
            return (word, name)
        if word == "dense":
            self.leaf(name, self.broadcast(sizes), pick.choice(("keep", "keep", "keep-few", "keep-all")), "bool")
            return (word, name)
        if word == "predicate":
            return (word, self.trees(sizes).truth(2, indices_only=True))
        if word == "not":
            return (word, self.mask(sizes, depth - 1))
        return (word, self.mask(sizes, depth - 1), self.mask(sizes, depth - 1))

    def trees(self, sizes) -> Trees:
        return Trees(self.pick, sizes, 1, self.dtype, self.leaves, self.layouts, self.off)

    def broadcast(self, sizes) -> tuple[int, ...]:
        """A pair tensor's shape: 1 to 4 dimensions, any of size 1."""
        dims = self.pick.choice((1, 2, 2, 3, 4))
        return tuple(1 if self.chance(4) else s for s in sizes[4 - dims :])

    def bias(self, sizes, depth: int) -> tuple:
        _b, h, _n, _m = sizes
        pick = self.pick
        word = pick.choice(["alibi", "alibi", "alibi-heads", "table", "dense", "dense"] + ["sum"] * (depth > 0))
        name = f"s{len(self.leaves)}"
        if word == "alibi-heads" and (h == 0 or not self.on("alibi-heads")):
            word = "alibi"
        if word == "alibi":
            return (word, self.leaf(name, pick.choice(((h,), ())), "uniform"))
        if word == "alibi-heads":
            return (word, h)
        if word == "table":
            reach = pick.choice((0, 1, 3, 8))
            return (word, self.leaf(name, pick.choice(((h, 2 * reach + 1), (2 * reach + 1,)))))
        if word == "dense":
            kinds = ["normal"] * 4 + [
                k for k in ("fill-thousand", "fill-billion", "fill-min", "fill-inf") if self.on(k)
            ]
            return (word, self.leaf(name, self.broadcast(sizes), pick.choice(kinds)))
        return (word, self.bias(sizes, depth - 1), self.bias(sizes, depth - 1))


def spoilable(case: Case) -> list[str]:
    """Tensors whose entries a mask may hide: `check_spoiled` takes one of them."""
    return ["k", "v", *([case.bias[1]] if case.bias is not None and case.bias[0] == "dense" else [])]


def draw_case(pick: random.Random, off: frozenset[str] = OFF, dtypes=("float64", "float32", "bfloat16", "float16")):
    return _Draw(pick, off, dtypes).case()


@st.composite
def cases(draw, dtypes=("float64", "float32", "bfloat16", "float16"), off: frozenset[str] = OFF) -> Case:
    """A drawn attention. Its choices are hypothesis's own, so that a failing one is made smaller."""
    return draw_case(draw(st.randoms(use_true_random=False)), off, dtypes)
