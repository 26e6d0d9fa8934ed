"""Hypothesis strategies for whole attentions: metrics, connections, masks, biases, shapes, tile sizes."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

import aatc
from aatc import biases, connections, masks, metrics


@aatc.metric
def l1(q, k):
    return -(q - k).abs().sum()


@aatc.metric(beta="h")
def soft_l1(q, k, beta):
    return -beta * torch.log1p((q - k).abs()).sum()


def hyperboloid(x):
    return torch.cat([(1 + x[..., 1:].square().sum(-1, keepdim=True)).sqrt(), x[..., 1:]], -1)


def ball(x):
    return 0.7 * x / (1 + x.norm(dim=-1, keepdim=True))


#: name -> (metric from (H, D, dtype), map of raw q and k into the metric's domain)
METRICS = {
    "dot": (lambda h, d, t: metrics.DotProduct(), None),
    "euclidean": (lambda h, d, t: metrics.Euclidean(), None),
    "mahalanobis": (lambda h, d, t: metrics.Mahalanobis(matrix=_spd(d, t)), None),
    "diagonal": (lambda h, d, t: metrics.Mahalanobis(diagonal=torch.rand(d, dtype=t) + 0.5), None),
    "lorentz-inner": (lambda h, d, t: metrics.LorentzInner(), hyperboloid),
    "lorentz": (lambda h, d, t: metrics.LorentzDistance(), hyperboloid),
    "lorentz-heads": (lambda h, d, t: metrics.LorentzDistance(beta=torch.rand(h, dtype=t) + 0.5), hyperboloid),
    "lorentz-lift": (lambda h, d, t: metrics.LorentzDistance(beta=2.0, lift=True), None),
    "poincare": (lambda h, d, t: metrics.Poincare(), ball),
    "cosine": (lambda h, d, t: metrics.Cosine(), None),
    "sphere": (lambda h, d, t: metrics.SphereGeodesic(beta=1.5), None),
    "fisher-rao": (lambda h, d, t: metrics.FisherRao(), lambda x: F.softmax(x, -1)),
    "l1": (lambda h, d, t: l1, None),
    "soft-l1": (lambda h, d, t: soft_l1(beta=torch.rand(h, dtype=t) + 0.5), None),
}
CONNECTIONS = ("none", "none", "rotary", "rotary-2d", "rotary-values", "frames", "sphere", "hyperboloid")
MASKS = ("none", "causal", "window", "documents", "padding", "dense", "predicate", "and", "not")
BIASES = ("none", "none", "alibi", "table", "dense", "sum")


def _spd(d, dtype):
    m = torch.randn(d, d, dtype=dtype)
    return torch.eye(d, dtype=dtype) + 0.1 * m @ m.T


def connection(name, n, m, d, dtype):
    if name.startswith("rotary"):
        axes = (2,) if name == "rotary-2d" else ()
        q, k = torch.randint(0, 9, (n, *axes)).to(dtype), torch.randint(0, 9, (m, *axes)).to(dtype)
        return connections.Rotary(q, k, values=name == "rotary-values")
    if name == "frames":
        q, k = (torch.linalg.qr(torch.randn(x, d, d, dtype=dtype))[0] for x in (n, m))
        return connections.Frames(q, k)
    return {"sphere": connections.SphereTransport, "hyperboloid": connections.HyperboloidTransport}.get(
        name, lambda: None
    )()


def mask(name, b, h, n, m):
    ids = torch.arange(max(n, m)) // 3
    made = {
        "causal": masks.causal,
        "window": lambda: masks.sliding_window(3),
        "documents": lambda: masks.documents(ids[:n], ids[:m]),
        "padding": lambda: masks.key_padding(torch.rand(b, m) < 0.7),
        "dense": lambda: masks.dense(torch.rand(h, n, m) < 0.7),
        "predicate": lambda: masks.predicate(lambda b, h, i, j: (i + j * 1.0) > 3.0),
        "and": lambda: masks.causal() & masks.sliding_window(4),
        "not": lambda: ~masks.causal() | masks.sliding_window(2),
    }.get(name)
    return made() if made else None


def bias(name, b, h, n, m, dtype):
    made = {
        "alibi": lambda: biases.ALiBi(torch.rand(h, dtype=dtype)),
        "table": lambda: biases.RelativeTable(torch.randn(h, 7, dtype=dtype)),
        "dense": lambda: biases.Dense(torch.randn(1, h, n, m, dtype=dtype)),
        "sum": lambda: biases.ALiBi(torch.rand(h, dtype=dtype)) + biases.Dense(torch.randn(n, m, dtype=dtype)),
    }.get(name)
    return made() if made else None


@st.composite
def attentions(draw, dtype=torch.float64, connected=True):
    """(q, k, v, parts, tile options) of a random attention; all its tensors come from one drawn seed."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    b, hk = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    h = hk * draw(st.integers(1, 2))
    n, m = draw(st.integers(1, 21)), draw(st.integers(1, 21))
    d = draw(st.sampled_from([4, 8]))
    name = draw(st.sampled_from(sorted(METRICS)))
    link = draw(st.sampled_from(CONNECTIONS)) if connected else "none"
    if link not in ("none", "sphere", "hyperboloid") and name not in (
        "dot",
        "euclidean",
        "lorentz-lift",
        "cosine",
        "sphere",
    ):
        link = (
            "none"  # a rotation takes a point off the hyperboloid; user metrics per channel cannot be turned per pair
        )
    make, domain = METRICS[name]
    domain = {"sphere": lambda x: F.normalize(x, dim=-1), "hyperboloid": hyperboloid}.get(link, domain)
    if link in ("sphere", "hyperboloid") and name in (
        "poincare",
        "fisher-rao",
        "lorentz",
        "lorentz-heads",
        "lorentz-inner",
    ):
        name, make = "dot", METRICS["dot"][0]
    dv = d if link != "none" else draw(st.sampled_from([3, d]))
    q, k = (torch.randn(b, heads, x, d, dtype=dtype) for heads, x in ((h, n), (hk, m)))
    q, k = (domain(x) if domain else x for x in (q, k))
    v = torch.randn(b, hk, m, dv, dtype=dtype)
    parts = {
        "metric": make(h, d, dtype),
        "connection": connection(link, n, m, d, dtype),
        "mask": mask(draw(st.sampled_from(MASKS)), b, h, n, m),
        "bias": bias(draw(st.sampled_from(BIASES)), b, h, n, m, dtype),
    }
    if draw(st.integers(0, 3)) == 0:
        parts |= {"dropout": 0.3, "seed": draw(st.integers(0, 99))}
    heads, rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    tiles = f"heads={heads} rows={rows} cols={cols} grain={draw(st.integers(1, cols))}"
    return q, k, v, parts, tiles, draw(st.booleans())
