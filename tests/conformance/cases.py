"""The cases of the conformance suite: kinds of attention, masks, sizes, and how exact each dtype has to be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

import aatc
from aatc import biases, connections, masks, metrics, normalizers
from tests.conformance import oracle


class Sizes(NamedTuple):
    b: int
    h: int
    hk: int
    n: int
    m: int
    d: int


SIZES = {
    "ragged": Sizes(2, 4, 2, 37, 45, 6),
    "even": Sizes(1, 2, 2, 64, 64, 16),
    "tall": Sizes(1, 2, 1, 67, 9, 8),
    "wide": Sizes(3, 1, 1, 5, 70, 4),
    "single": Sizes(1, 1, 1, 1, 1, 4),
    "without keys": Sizes(1, 2, 2, 4, 0, 4),
    "without queries": Sizes(1, 2, 2, 0, 4, 4),
}
#: Largest deviation of outputs and of gradients, relative to the largest entry, from the formula in float64 on the same
#: operands: a few roundings of sums over some dozens of terms; the results themselves are rounded to bfloat16.
TOLERANCES = {torch.float64: (1e-12, 1e-11), torch.float32: (5e-6, 5e-5), torch.bfloat16: (8e-3, 3e-2)}

Tensors = list[torch.Tensor]


@dataclass
class Kind:
    """``parts``: keywords of `aatc.attend` from the tensors; ``scores``: by hand, from q, k with the heads repeated and
    the tensors; ``carried``: values per pair from q, k, v. ``domain`` maps normal numbers to points the kind is
    defined for, ``tangent`` from k and v to values it is defined for; ``tensors`` makes the learned ones.
    ``attention``: from scores, values and what is open, by hand."""

    parts: Callable[..., dict[str, Any]]
    scores: Callable[..., torch.Tensor]
    domain: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    tensors: Callable[[Sizes], Tensors] = lambda s: []
    carried: Callable[..., torch.Tensor] | None = None
    tangent: Callable[..., torch.Tensor] | None = None
    attention: Callable[..., tuple[torch.Tensor, torch.Tensor]] = oracle.attention


@aatc.metric
def taxicab(q, k):
    return -(q - k).abs().sum()


def _root(q):
    return q.shape[-1] ** -0.5


def _per_head(x):
    return x.reshape(-1, 1, 1)


def _ball(x):
    return 0.7 * x / (1 + x.norm(dim=-1, keepdim=True))


def _unit(x):
    """Points of the sphere no two of which are opposite to each other."""
    return x.abs() / x.norm(dim=-1, keepdim=True)


def _on_hyperboloid(x):
    return oracle.lifted(x[..., 1:])


def _dot(q, k):
    return q @ k.mT * _root(q)


def _rotary(q, k):
    return _dot(*(oracle.turned(x, torch.arange(x.shape[2])) for x in (q, k)))


def _mahalanobis(q, k, diagonal):
    return -(oracle.differences(q, k).square() * diagonal).sum(-1) * _root(q)


KINDS: dict[str, Kind] = {
    "dot product": Kind(lambda: {"metric": metrics.DotProduct()}, _dot),
    "euclidean": Kind(
        lambda: {"metric": metrics.Euclidean()},
        lambda q, k: -oracle.differences(q, k).square().sum(-1) * _root(q),
    ),
    "mahalanobis": Kind(
        lambda d: {"metric": metrics.Mahalanobis(diagonal=d)}, _mahalanobis, tensors=lambda s: [torch.rand(s.d) + 0.5]
    ),
    "lorentz inner": Kind(
        lambda: {"metric": metrics.LorentzInner()},
        lambda q, k: (2 + 2 * oracle.lorentz(q, k)) * _root(q),
        domain=_on_hyperboloid,
    ),
    "lorentz distance": Kind(
        lambda: {"metric": metrics.LorentzDistance(lift=True)},
        lambda q, k: -torch.acosh(-oracle.lorentz(oracle.lifted(q), oracle.lifted(k))),
    ),
    "lorentz, learned beta": Kind(
        lambda beta: {"metric": metrics.LorentzDistance(beta=beta, lift=True)},
        lambda q, k, beta: -_per_head(beta) * torch.acosh(-oracle.lorentz(oracle.lifted(q), oracle.lifted(k))),
        tensors=lambda s: [torch.rand(s.h) + 0.5],
    ),
    "poincare": Kind(lambda: {"metric": metrics.Poincare()}, lambda q, k: -oracle.poincare(q, k), domain=_ball),
    "cosine": Kind(lambda: {"metric": metrics.Cosine(), "scale": 3.0}, lambda q, k: 3 * oracle.cosine(q, k)),
    "sphere": Kind(
        lambda: {"metric": metrics.SphereGeodesic(beta=1.5)}, lambda q, k: -1.5 * torch.acos(oracle.cosine(q, k))
    ),
    "fisher-rao": Kind(
        lambda: {"metric": metrics.FisherRao()},
        lambda q, k: -oracle.fisher_rao(q, k),
        domain=lambda x: torch.softmax(x, -1),
    ),
    "taxicab": Kind(lambda: {"metric": taxicab}, lambda q, k: -oracle.differences(q, k).abs().sum(-1)),
    "alibi": Kind(
        lambda slopes: {"metric": metrics.DotProduct(), "bias": biases.ALiBi(slopes)},
        lambda q, k, slopes: _dot(q, k) - _per_head(slopes) * oracle.distances(q.shape[2], k.shape[2]),
        tensors=lambda s: [torch.rand(s.h)],
    ),
    "relative table": Kind(
        lambda table: {"metric": metrics.DotProduct(), "bias": biases.RelativeTable(table)},
        lambda q, k, table: _dot(q, k) + oracle.relative(table, q.shape[2], k.shape[2]),
        tensors=lambda s: [torch.randn(s.h, 9)],
    ),
    "dense bias": Kind(
        lambda bias: {"metric": metrics.Euclidean(), "bias": biases.Dense(bias)},
        lambda q, k, bias: -oracle.differences(q, k).square().sum(-1) * _root(q) + bias,
        tensors=lambda s: [torch.randn(s.h, s.n, s.m)],
    ),
    "soft cap": Kind(
        lambda: {"metric": metrics.DotProduct(), "soft_cap": 2.0}, lambda q, k: 2 * torch.tanh(_dot(q, k) / 2)
    ),
    "sigmoid": Kind(
        lambda bias: {"metric": metrics.Euclidean(), "normalizer": normalizers.Sigmoid(bias)},
        lambda q, k, bias: -oracle.differences(q, k).square().sum(-1) * _root(q) + _per_head(bias),
        tensors=lambda s: [torch.randn(s.h)],
        attention=oracle.independent,
    ),
    "rotary": Kind(lambda: {"metric": metrics.DotProduct(), "connection": connections.Rotary(None)}, _rotary),
    "sphere transport": Kind(
        lambda: {"metric": metrics.Cosine(), "connection": connections.SphereTransport()},
        oracle.cosine,
        domain=_unit,
        carried=oracle.sphere_carried,
        tangent=lambda k, v: v - (k * v).sum(-1, keepdim=True) * k,
    ),
    "hyperboloid transport": Kind(
        lambda: {"metric": metrics.LorentzInner(), "connection": connections.HyperboloidTransport()},
        lambda q, k: (2 + 2 * oracle.lorentz(q, k)) * _root(q),
        domain=_on_hyperboloid,
        carried=oracle.hyperboloid_carried,
    ),
}


def _checkered(s: Sizes) -> torch.Tensor:
    """Every third pair is closed, and the second row altogether."""
    keep = (torch.arange(s.n).unsqueeze(-1) + torch.arange(s.m)) % 3 > 0
    return keep & (torch.arange(s.n) != 1).unsqueeze(-1)


def _documents(n: int) -> torch.Tensor:
    return torch.arange(n) // 11


def _valid(s: Sizes) -> torch.Tensor:
    return torch.arange(s.m) < torch.tensor([max(0, s.m - 13 * (n + 1)) for n in range(s.b)]).unsqueeze(-1)


def _far(s: Sizes) -> torch.Tensor:
    return torch.arange(s.n).unsqueeze(-1) - torch.arange(s.m)


#: The mask from the sizes, and what it keeps by hand, which broadcasts to (B,H,N,M); None keeps all.
MASKS: dict[str, tuple[Callable[[Sizes], Any], Callable[[Sizes], torch.Tensor | None]]] = {
    "none": (lambda s: None, lambda s: None),
    "causal": (lambda s: masks.causal(), lambda s: _far(s) >= 0),
    "window": (lambda s: masks.sliding_window(5), lambda s: _far(s).abs() < 5),
    "documents": (
        lambda s: masks.documents(_documents(s.n), _documents(s.m)),
        lambda s: _documents(s.n).unsqueeze(-1) == _documents(s.m),
    ),
    "padding": (lambda s: masks.key_padding(_valid(s)), lambda s: _valid(s)[:, None, None, :]),
    "dense": (lambda s: masks.dense(_checkered(s)), _checkered),
    "predicate": (
        lambda s: masks.predicate(lambda b, h, i, j: (j + 4 < i) | (h == 1)),
        lambda s: (_far(s) > 4) | (torch.arange(s.h) == 1).reshape(-1, 1, 1),
    ),
}


@dataclass
class Case:
    """Operands of one case. ``formula`` is the oracle on float64 operands: (q, k, v, *tensors) -> (output, lse)."""

    operands: Tensors
    parts: dict[str, Any]
    formula: Callable[..., tuple[torch.Tensor, torch.Tensor]]


def case(kind: str, mask: str = "none", dtype: torch.dtype = torch.float64, sizes: str | Sizes = "ragged") -> Case:
    """Operands in ``dtype``, drawn anew with the same seed, and what they are to give."""
    s = SIZES[sizes] if isinstance(sizes, str) else sizes
    what = KINDS[kind]
    generator = torch.random.fork_rng(devices=[])
    with generator:
        torch.manual_seed(0)
        x, y, v = (torch.randn(s.b, h, n, s.d) for h, n in ((s.h, s.n), (s.hk, s.m), (s.hk, s.m)))
        tensors = what.tensors(s)
    q, k = what.domain(x.double()), what.domain(y.double())
    v = what.tangent(k, v.double()) if what.tangent is not None else v
    operands = [t.to(dtype).requires_grad_() for t in (q, k, v, *tensors)]
    make, keep = MASKS[mask]

    def formula(q, k, v, *tensors):
        k, v = (t.repeat_interleave(s.h // s.hk, 1) for t in (k, v))
        values = v if what.carried is None else what.carried(q, k, v)
        return what.attention(what.scores(q, k, *tensors), values, keep(s))

    return Case(operands, {**what.parts(*operands[3:]), "mask": make(s)}, formula)
