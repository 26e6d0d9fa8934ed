"""The analytical pass of the scale family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from aatc.passes.analysis.attention_rows import AttentionRows
from aatc.passes.analysis.base import AnalysisPass, Study, weights_cost, with_scores
from aatc.passes.analysis.result import Cost, Undecided
from aatc.passes.base import register

if TYPE_CHECKING:
    from aatc.passes.analysis.pattern_source import PatternSource
    from aatc.passes.analysis.scale.exponents import ScalingExponent


@register
@dataclass(frozen=True)
class AnalyzeScale(AnalysisPass):
    """How much of every pattern's weight leaves blocks of 1, 2, 4, ... tokens and by which power that falls, what
    pooling pairs of tokens loses, and the box dimension of the weights above the mean. All queries weigh alike.

    Patterns beyond ``states`` tokens, or the memory, are pooled to tiles, which are then the tokens.
    """

    states: int = 2048
    name: ClassVar[str] = "analyze-scale"
    family: ClassVar[str] = "scale"

    def estimate_cost(self, n: int, dim: int) -> Cost:
        weights, k = weights_cost(n, dim), min(n, self.states)
        return Cost(1.5e-3 + weights.seconds + 3e-8 * k * k, weights.bytes + 40.0 * k * k)

    def _memory(self, study: Study) -> int:
        return min(study.memory, 8 * self.states**2)

    def estimate_pattern(self, seen: AttentionRows, study: Study) -> Cost:
        states = max(seen.pooled_sizes(self._memory(study)))
        return with_scores(self.estimate_cost(states, seen.width), seen, states)

    def of_pattern(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        from aatc.passes.analysis.pattern_source import PatternSource, rows_of_laws

        memory = self._memory(study)
        pattern = seen.pattern(head, batch, memory=memory)
        given = () if pattern.kind == "whole" else (f"tiles of {pattern.block} tokens taken as tokens",)
        rows = rows_of_laws(pattern.array)
        if rows is None:
            return {"block_escape": Undecided("rows with a key", "some queries see no key")}
        source = PatternSource(seen, head, batch, memory)
        blocks = {} if rows.shape[0] != rows.shape[1] else _blocks(rows, source, given)
        return {**blocks, **_dimension(rows, source, given)}


#: Share that leaves a block which keeps half, but for rounding: that of equal weights is half exactly.
HALF = 0.5 + 1e-9


def _blocks(rows: np.ndarray, source: PatternSource, given: tuple[str, ...]) -> dict[str, Any]:
    from aatc.passes.analysis.scale.coarse_graining import ScaleError, block_labels, lumpability
    from aatc.passes.analysis.scale.exponents import BLOCKS, escape_fit
    from aatc.passes.analysis.scale.rg_flow import block_escapes, doubling_scales
    from aatc.passes.analysis.scale.verify_scale import witnessed

    n, data = len(rows), {"pattern": source}
    scales = doubling_scales(n)
    shares = block_escapes(rows, scales)
    half = next((b for b, share in zip(scales, shares) if share <= HALF), 2 * scales[-1])
    pooled = lumpability(rows, block_labels(2, n), np.full(n, 1 / n)).mean
    found: dict[str, Any] = {
        "block_escape": witnessed(shares, "block_escape", data, 1e-9, assumptions=given),
        "half_escape_block": witnessed(float(half), "half_escape_block", data, 1e-9, assumptions=given),
        "pooling_defect": witnessed(pooled, "pooling_defect", data, 1e-9, assumptions=given),
    }
    if len(doubling_scales(n, BLOCKS)) < 3:
        return found
    try:
        exponent = escape_fit(shares, n)
    except ScaleError as error:
        return {**found, "escape_exponent": Undecided("shares above 0", error.message)}
    return {**found, **_exponent("escape_exponent", "escape_slope", exponent, source, given)}


def _dimension(rows: np.ndarray, source: PatternSource, given: tuple[str, ...]) -> dict[str, Any]:
    from aatc.passes.analysis.scale.exponents import box_dimension, box_sizes, heavy_pairs

    heavy = heavy_pairs(rows)
    if len(box_sizes(rows.shape, 2)) < 3 or not heavy.any():
        return {"box_dimension": Undecided("8 queries and keys", "too few, or none above the mean")}
    return _exponent("box_dimension", "heavy_dimension", box_dimension(heavy).value, source, given)


def _exponent(
    item: str, kind: str, exponent: ScalingExponent, source: PatternSource, given: tuple[str, ...]
) -> dict[str, Any]:
    from aatc.passes.analysis.scale.exponents import LINE
    from aatc.passes.analysis.scale.verify_scale import witnessed

    values = {"value": exponent.value, "interval": np.array([exponent.low, exponent.high])}
    return {
        item if part == "value" else f"{item}_interval": witnessed(
            value, kind, {"pattern": source, "part": part}, 1e-9, level="P3", assumptions=(*given, LINE)
        )
        for part, value in values.items()
    }
