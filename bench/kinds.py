"""The attentions that are measured: their inputs, through aatc and in plain PyTorch, and their bounds."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import peers

HEADS, WIDTH = 8, 64
Inputs = tuple[Tensor, ...]
Attention = Callable[..., Tensor]


@dataclass(frozen=True)
class Kind:
    """One attention: three tensors q, k, v and whatever else it needs, in; the output, out.

    ``over_sdpa``: the most its forward may cost at n 2048, as a multiple of SDPA with the same mask.
    ``under_compiled``: how many times faster than ``torch.compile`` of the eager formula it must be there.
    ``training``: the same for forward with backward.
    """

    name: str
    inputs: Callable[[int], Inputs]
    ours: Attention
    eager: Attention
    over_sdpa: float
    under_compiled: float | None = None
    training: float | None = None
    causal: bool = False
    length: int = 2048

    def sdpa(self, q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


def randn(n: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, HEADS, n, width, generator=generator)


def plain(n: int) -> Inputs:
    return randn(n), randn(n, seed=1), randn(n, seed=2)


def metric_matrix() -> Tensor:
    a = randn(WIDTH, seed=3)[0, 0] / math.sqrt(WIDTH)
    return a @ a.mT + 0.1 * torch.eye(WIDTH)


def hyperboloid(n: int) -> Inputs:
    q, k = (peers.lift(0.3 * randn(n, WIDTH - 1, seed)) for seed in (0, 1))
    return q, k, randn(n, seed=2)


def with_tangent_values(inputs: Inputs) -> Inputs:
    q, k, v = inputs
    along = (k[..., 1:] * v[..., 1:]).sum(-1, keepdim=True) - k[..., :1] * v[..., :1]
    return q, k, v + along * k


def ball(n: int) -> Inputs:
    q, k = (randn(n, seed=seed) for seed in (0, 1))
    q, k = (0.8 * torch.tanh(0.1 * x.norm(dim=-1, keepdim=True)) * F.normalize(x, dim=-1) for x in (q, k))
    return q, k, randn(n, seed=2)


def simplex(n: int) -> Inputs:
    return torch.softmax(randn(n), -1), torch.softmax(randn(n, seed=1), -1), randn(n, seed=2)


def slopes() -> Tensor:
    return 2.0 ** (-8.0 * torch.arange(1, HEADS + 1) / HEADS)


def kinds() -> list[Kind]:
    """Every kind, in the order of the report. ``aatc`` is imported here, so that peers run without it."""
    import aatc
    from aatc import biases as B
    from aatc import connections as C
    from aatc import masks as K
    from aatc import metrics as M

    def rotary(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        return aatc.attend(q, k, v, metric=M.DotProduct(), connection=C.Rotary(positions))

    def rotary_eager(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        q, k = peers.rotate(q, positions), peers.rotate(k, positions)
        return peers.attention(peers.dot_scores(q, k), v)

    def alibi(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        return aatc.attend(q, k, v, metric=M.DotProduct(), bias=B.ALiBi(slopes), mask=K.causal())

    def alibi_eager(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        n, m = q.shape[-2], k.shape[-2]
        return peers.attention(peers.dot_scores(q, k) + peers.alibi(slopes, n, m), v, peers.causal(n, m))

    def mahalanobis(q: Tensor, k: Tensor, v: Tensor, matrix: Tensor) -> Tensor:
        return aatc.attend(q, k, v, metric=M.Mahalanobis(matrix=matrix))

    def transport(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return aatc.attend(q, k, v, metric=M.LorentzDistance(), connection=C.HyperboloidTransport())

    def transport_eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = peers.lorentz_distance_scores(q, k)
        return peers.transported_attention(scores, peers.hyperboloid_transport(q, k, v))

    def learned(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        return aatc.attend(q, k, v, metric=M.LorentzDistance(beta=beta))

    def learned_eager(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        return peers.attention(beta[:, None, None] * peers.lorentz_distance_scores(q, k), v)

    def measured_by(metric: Callable[[], object]) -> Attention:
        return lambda q, k, v: aatc.attend(q, k, v, metric=metric())

    def written_out(scores: Callable[..., Tensor]) -> Attention:
        return lambda q, k, v, *rest: peers.attention(scores(q, k, *rest), v)

    return [
        Kind(
            "dot-product",
            plain,
            measured_by(M.DotProduct),
            written_out(peers.dot_scores),
            over_sdpa=1.3,
        ),
        Kind(
            "euclidean",
            plain,
            measured_by(M.Euclidean),
            written_out(peers.euclidean_scores),
            over_sdpa=1.3,
            training=1.3,
        ),
        Kind(
            "mahalanobis",
            lambda n: (*plain(n), metric_matrix()),
            mahalanobis,
            written_out(peers.mahalanobis_scores),
            over_sdpa=1.3,
        ),
        Kind("rotary", lambda n: (*plain(n), torch.arange(n)), rotary, rotary_eager, over_sdpa=1.3),
        Kind("alibi", lambda n: (*plain(n), slopes()), alibi, alibi_eager, over_sdpa=1.3, causal=True),
        Kind(
            "lorentz",
            hyperboloid,
            measured_by(M.LorentzDistance),
            written_out(peers.lorentz_distance_scores),
            over_sdpa=2.0,
            under_compiled=1.8,
            training=1.3,
        ),
        Kind(
            "lorentz-learned",
            lambda n: (*hyperboloid(n), 0.5 + 0.5 * torch.arange(1, HEADS + 1) / HEADS),
            learned,
            learned_eager,
            over_sdpa=2.6,
        ),
        Kind(
            "poincare",
            ball,
            measured_by(M.Poincare),
            written_out(peers.poincare_scores),
            over_sdpa=2.0,
            under_compiled=1.8,
        ),
        Kind(
            "sphere",
            plain,
            measured_by(M.SphereGeodesic),
            written_out(peers.sphere_scores),
            over_sdpa=2.6,
            under_compiled=1.5,
        ),
        Kind(
            "fisher-rao",
            simplex,
            measured_by(M.FisherRao),
            written_out(peers.fisher_rao_scores),
            over_sdpa=2.6,
            under_compiled=1.5,
        ),
        Kind(
            "transport",
            lambda n: with_tangent_values(hyperboloid(n)),
            transport,
            transport_eager,
            over_sdpa=6.0,
            length=1024,
        ),
    ]


def kind(name: str) -> Kind:
    return next(k for k in kinds() if k.name == name)
