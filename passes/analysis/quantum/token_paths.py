"""Paths of tokens through layers of attention: their sum exactly, the likeliest one, and samples with error bounds.

A path leads from a token of the last layer to one of the input, x_L → ... → x_0, with the weight Π A^ℓ[x_ℓ, x_{ℓ−1}] =
e^{−S}, S = −Σ log A: the product of the layers' weights is the sum over paths, a path integral whose action is real.
Source of the bound: Maurer, Pontil, Empirical Bernstein bounds and sample variance penalization, COLT 2009.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aatc.passes.analysis.quantum.states import QuantumError, probabilities
from aatc.passes.analysis.quantum.verify_quantum import witnessed
from aatc.passes.analysis.result import Result


def layer_weights(patterns: Sequence[Any], skip: float = 0.0) -> list[Tensor]:
    """Patterns A^1, ..., A^L, each (..., n_ℓ, n_{ℓ−1}), from the input upwards; with ``skip`` s each is s + (1 − s)A,
    as of a residual connection that carries the share s. Raises `QuantumError`."""
    if not len(patterns):
        raise QuantumError("there are no layers")
    if not 0 <= skip <= 1:
        raise QuantumError(f"the share that skips a layer lies in [0, 1], not {skip}")
    layers = [probabilities(p) for p in patterns]
    for below, above in pairwise(layers):
        if min(below.ndim, above.ndim) < 2 or above.shape[-1] != below.shape[-2]:
            raise QuantumError(f"a layer {tuple(above.shape)} does not read what a layer {tuple(below.shape)} gives")
    if layers[0].ndim < 2:
        raise QuantumError(f"a pattern has shape (..., n, m), not {tuple(layers[0].shape)}")
    if skip and any(p.shape[-1] != p.shape[-2] for p in layers):
        raise QuantumError("a residual connection joins equally many tokens")
    return [
        (1 - skip) * p + skip * torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) if skip else p for p in layers
    ]


def path_action(path: Any, patterns: Sequence[Any], skip: float = 0.0) -> Tensor:
    """S = −Σ log A of paths (..., L + 1) of tokens, from the last layer to the input; ∞ where a weight is 0.
    Differentiable in the patterns (n, m). Raises `QuantumError`."""
    layers = layer_weights(patterns, skip)
    steps = torch.as_tensor(path)
    if steps.is_floating_point() or steps.ndim < 1 or steps.shape[-1] != len(layers) + 1:
        raise QuantumError(
            f"a path through {len(layers)} layers takes {len(layers) + 1} tokens, not {tuple(steps.shape)}"
        )
    action = torch.zeros(steps.shape[:-1], dtype=torch.float64)
    for k, a in enumerate(reversed(layers)):
        here, there = steps[..., k], steps[..., k + 1]
        if a.ndim != 2 or bool(((here < 0) | (here >= a.shape[0]) | (there < 0) | (there >= a.shape[1])).any()):
            raise QuantumError(f"a path leaves the tokens of a layer {tuple(a.shape)}")
        action = action - a[here, there].log()
    return action


@dataclass(frozen=True, eq=False)
class TokenPathSum:
    """``weights`` (..., n_L, n_0): Σ e^{−S} over all paths between two tokens; rows sum to 1. ``entropy`` (..., n_L),
    in nats: that of the paths from a token, e^entropy of them take part. ``free_energy``: −log weights."""

    weights: Tensor
    entropy: Tensor

    @property
    def free_energy(self) -> Tensor:
        return -self.weights.log()


def sum_over_paths(patterns: Sequence[Any], skip: float = 0.0) -> Result[Any]:
    """The sum over all token paths through the layers, exactly: a `TokenPathSum`. Differentiable. Raises
    `QuantumError`."""
    layers = layer_weights(patterns, skip)
    weights, entropy = layers[0], torch.special.entr(layers[0]).sum(-1)
    for a in layers[1:]:
        entropy = torch.special.entr(a).sum(-1) + (a @ entropy[..., None])[..., 0]
        weights = a @ weights
    value = TokenPathSum(weights, entropy)
    return witnessed(value, "token_paths", {"layers": tuple(layers)}, 1e-11)


@dataclass(frozen=True)
class LikeliestTokenPath:
    """``tokens`` from the last layer to the input, the ``action`` −log of its weight, and its ``share`` of all paths
    between the two tokens."""

    tokens: tuple[int, ...]
    action: float
    share: float


def likeliest_token_path(patterns: Sequence[Any], start: int, end: int, skip: float = 0.0) -> Result[Any]:
    """The path of least action from token ``start`` of the last layer to ``end`` of the input, the classical path of
    the sum (Viterbi): a `LikeliestTokenPath`. Patterns (n, m). Raises `QuantumError` where no path has weight."""
    layers = [p.detach().cpu().numpy() for p in layer_weights(patterns, skip)]
    if any(p.ndim != 2 for p in layers):
        raise QuantumError("the likeliest path is that of patterns (n, m)")
    if not 0 <= start < len(layers[-1]) or not 0 <= end < layers[0].shape[1]:
        raise QuantumError(f"there are no tokens {start} above and {end} below")
    with np.errstate(divide="ignore"):
        costs = [-np.log(p) for p in layers]
    best, back = costs[0][:, end], list[np.ndarray]()
    for cost in costs[1:]:
        through = cost + best[None, :]
        back.append(through.argmin(1))
        best = through.min(1)
    if not np.isfinite(best[start]):
        raise QuantumError(f"no path leads from token {start} to token {end}")
    tokens = [start]
    for choice in reversed(back):
        tokens.append(int(choice[tokens[-1]]))
    total = np.eye(len(layers[-1]))[start]
    for p in reversed(layers):
        total = total @ p
    action = float(best[start])
    value = LikeliestTokenPath((*tokens, end), action, math.exp(-action) / float(total[end]))
    return witnessed(value, "likeliest_token_path", {"layers": tuple(layers), "start": start, "end": end}, 1e-10)


@dataclass(frozen=True, eq=False)
class SampledTokenPaths:
    """``weights`` (n_0,) estimated from ``samples`` paths, each entry within ``error`` (n_0,) of the exact sum, all at
    once with ``confidence``."""

    weights: np.ndarray
    error: np.ndarray
    samples: int
    confidence: float


def sample_paths(
    patterns: Sequence[Any],
    start: int,
    samples: int,
    *,
    skip: float = 0.0,
    confidence: float = 0.95,
    seed: int | None = None,
) -> Result[Any]:
    """The sum over the paths from token ``start`` of the last layer, from paths drawn by their weights down to the
    first layer, whose rows are averaged: a `SampledTokenPaths`. Memory is O(n + samples) beside the patterns (n, m).

    The error is the empirical Bernstein bound √(2V log(4n/δ)/N) + 7 log(4n/δ)/3(N − 1), V the sample variance. Raises
    `QuantumError`.
    """
    layers = [p.detach().cpu().numpy() for p in layer_weights(patterns, skip)]
    if any(p.ndim != 2 for p in layers) or not 0 <= start < len(layers[-1]):
        raise QuantumError(f"there is no token {start} above patterns {[p.shape for p in layers]}")
    if not isinstance(samples, (int, np.integer)) or samples < 2 or not 0 < confidence < 1:
        raise QuantumError(f"samples {samples} are 2 or more, the confidence {confidence} lies between 0 and 1")
    rng = np.random.default_rng(seed)
    at = np.full(int(samples), start)
    for p in layers[:0:-1]:
        moved = np.empty_like(at)
        for token in np.unique(at):
            here = at == token
            moved[here] = rng.choice(p.shape[1], int(here.sum()), p=p[token] / p[token].sum())
        at = moved
    counts = np.bincount(at, minlength=len(layers[0]))
    value = _estimate(layers[0], counts, confidence)
    data = {"last": layers[0], "counts": counts, "confidence": confidence}
    given = (f"independent samples; the bound holds with probability {confidence:g}",)
    return witnessed(value, "sampled_paths", data, 1e-11, level="P3", assumptions=given)


def _estimate(last: np.ndarray, counts: np.ndarray, confidence: float) -> SampledTokenPaths:
    n = int(counts.sum())
    mean = counts @ last / n
    spread = (counts[:, None] * (last - mean) ** 2).sum(0) / (n - 1)
    log = math.log(4 * last.shape[1] / (1 - confidence))
    return SampledTokenPaths(mean, np.sqrt(2 * spread * log / n) + 7 * log / (3 * (n - 1)), n, confidence)
