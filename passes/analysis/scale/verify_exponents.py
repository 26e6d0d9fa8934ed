"""Checks of exponents: boxes are those of the occupied cells' indices, increments are summed part by part, leaving
blocks is summed over pairs, lines are fitted by NumPy's polynomials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.special

from aatc.passes.analysis.scale.verify_chains import chain_of
from aatc.passes.analysis.scale.verify_scale import RECOMPUTE, recomputes, require

Data = Mapping[str, Any]


def _quantile(confidence: float, freedom: int) -> float:
    require(0 < confidence < 1 and freedom > 0, "confidence")
    return float(scipy.special.stdtrit(freedom, 0.5 + confidence / 2))


def _line(name: str, sign: int, scales: np.ndarray, measured: np.ndarray, confidence: float) -> dict[str, Any]:
    require(scales.shape == measured.shape and scales.ndim == 1 and len(set(scales)) >= 3, "row of scales")
    require(scales.min() > 0 and measured.min() > 0, "row of positive numbers")
    design = np.stack([np.log(scales), np.ones(len(scales))], axis=1)
    (slope, offset), *_ = np.linalg.lstsq(design, np.log(measured), rcond=None)
    left = np.log(measured) - design @ [slope, offset]
    variance = np.linalg.inv(design.T @ design)[0, 0] * (left**2).sum() / (len(scales) - 2)
    half = _quantile(confidence, len(scales) - 2) * math.sqrt(variance)
    middle = sign * float(slope)
    return {
        "name": name, "value": middle, "low": middle - half, "high": middle + half, "confidence": confidence,
        "slope": float(slope), "scales": scales, "measured": measured,
    }  # fmt: skip


@recomputes("line")
def _of_numbers(data: Data) -> Any:
    scales, measured = (np.asarray(data[k], dtype=np.float64) for k in ("scales", "measured"))
    return _line("exponent", 1, scales, measured, data["confidence"])


@recomputes("boxes")
def _boxes(data: Data) -> Any:
    occupied, base = np.asarray(data["occupied"]), data["base"]
    require(occupied.dtype == np.bool_ and base >= 2, "set of cells")
    cells = np.argwhere(occupied)
    sides, counts = [], []
    side = 1
    while side * base <= min(occupied.shape):
        sides.append(side)
        counts.append(len({tuple(c) for c in (cells // side).tolist()}))
        side *= base
    return _line("box dimension", -1, np.array(sides, float), np.array(counts, float), data["confidence"])


@recomputes("increments")
def _increments(data: Data) -> Any:
    x, confidence = np.asarray(data["series"], dtype=np.float64), data["confidence"]
    require(x.ndim == 1 and len(x) >= 128 and bool(np.isfinite(x).all()), "series")
    lags = [1 << k for k in range(40) if k == 0 or math.ceil(len(x) / (1 << k)) >= 64]
    parts = []  # by lag, the squares of each of 16 parts
    for lag in lags:
        squares = [(x[t + lag] - x[t]) ** 2 for t in range(len(x) - lag)]
        bounds = [-(-len(squares) * s // 16) for s in range(17)]
        parts.append([np.array(squares[a:b]) for a, b in pairwise(bounds)])
    logs = np.log2(lags)

    def slope(out: int | None) -> float:
        means = [np.concatenate([p for s, p in enumerate(row) if s != out]).mean() for row in parts]
        return float(np.polyfit(logs, np.log2(means), 1)[0])

    whole = slope(None)
    pseudo = np.array([16 * whole - 15 * slope(s) for s in range(16)]) / 2
    half = _quantile(confidence, 15) * math.sqrt(pseudo.var(ddof=1) / 16)
    return {
        "name": "Hurst exponent", "value": pseudo.mean(), "low": pseudo.mean() - half, "high": pseudo.mean() + half,
        "confidence": confidence, "slope": whole, "scales": np.array(lags, float),
        "measured": np.array([np.concatenate(row).mean() for row in parts]),
    }  # fmt: skip


def escapes(a: np.ndarray, scales: list[int]) -> np.ndarray:
    """Share of the weights between tokens of different blocks, by a sum over all pairs."""
    token = np.arange(len(a))
    return np.array([a[(token[:, None] // b) != (token[None, :] // b)].sum() / len(a) for b in scales])


def sizes_of_blocks(n: int, least: int) -> list[int]:
    return [1 << k for k in range(40) if k == 0 or math.ceil(n / (1 << k)) >= least]


@recomputes("escape_exponent")
def _escape_exponent(data: Data) -> Any:
    a = chain_of(data)
    scales = sizes_of_blocks(len(a), 4)
    even = escapes(np.full_like(a, 1 / len(a)), scales)
    return _line("escape exponent", -1, np.array(scales, float), escapes(a, scales) / even, data["confidence"])


@recomputes("invariants")
def _invariants(data: Data) -> Any:
    return tuple(RECOMPUTE[part["kind"]](part["data"]) for part in data["parts"])


# --- rows of a report --------------------------------------------------------------------------------------
@recomputes("block_escape")
def _block_escape(data: Data) -> Any:
    a = chain_of(data)
    return escapes(a, sizes_of_blocks(len(a), 2))


@recomputes("half_escape_block")
def _half_escape(data: Data) -> Any:
    a = chain_of(data)
    inside = (1 - e for e in escapes(a, [1 << k for k in range(40)]))
    return float(next(1 << k for k, share in enumerate(inside) if share >= 0.5 - 1e-9))


@recomputes("pooling_defect")
def _pooling(data: Data) -> Any:
    a = chain_of(data)
    label = np.arange(len(a)) // 2
    onto = np.stack([a[:, label == b].sum(1) for b in range(label[-1] + 1)], axis=1)
    pooled = np.stack([onto[label == b].mean(0) for b in range(label[-1] + 1)])
    return float(np.mean([np.abs(onto[i] - pooled[label[i]]).sum() / 2 for i in range(len(a))]))


@recomputes("escape_slope")
def _escape_slope(data: Data) -> Any:
    found = _escape_exponent({**data, "confidence": 0.95})
    return _part(found, data["part"])


@recomputes("heavy_dimension")
def _heavy_dimension(data: Data) -> Any:
    a = np.asarray(data["pattern"])
    require(a.ndim == 2 and a.min() >= 0 and np.abs(a.sum(1) - 1).max() <= 1e-9, "pattern")
    found = _boxes({"occupied": a * a.shape[1] > 1 + 1e-6, "base": 2, "confidence": 0.95})
    return _part(found, data["part"])


def _part(found: Mapping[str, Any], part: str) -> Any:
    require(part in ("value", "interval"), "part of an exponent")
    return found["value"] if part == "value" else np.array([found["low"], found["high"]])
