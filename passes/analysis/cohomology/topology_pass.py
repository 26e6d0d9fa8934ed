"""The analytical pass that holds a head's topology against null models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from aatc.passes.analysis.attention_rows import AttentionRows
from aatc.passes.analysis.base import AnalysisPass, Study, weights_cost
from aatc.passes.analysis.result import Cost, Result, Undecided
from aatc.passes.base import register


@register
@dataclass(frozen=True)
class AnalyzeTopology(AnalysisPass):
    """How far the barcodes of every pattern are from those of null models: z-scores of the longest bars of degrees 0
    and 1 and of the total length in degree 1.

    Patterns are whole up to ``points`` tokens. Up to 256 tokens ``draws`` patterns of each null model are drawn, beyond
    fewer, 8 at least; the filtration takes the ``edges_per_token`` heaviest pairs a token, in the head and in the null
    models alike.
    """

    points: int = 1024
    draws: int = 20
    edges_per_token: int = 16
    seed: int = 0
    name: ClassVar[str] = "analyze-topology"
    family: ClassVar[str] = "topology"

    def _draws(self, n: int) -> int:
        return self.draws if n <= 256 else min(self.draws, max(8, self.draws * 256**2 // n**2))

    def estimate_cost(self, n: int, dim: int) -> Cost:
        from aatc.passes.analysis.cohomology.null_models import MODELS, estimate_cost

        points = min(n, self.points)
        one = estimate_cost(points, self._draws(points), self.edges_per_token)
        weights = weights_cost(n, dim)
        return Cost(0.01 + len(MODELS) * one.seconds + weights.seconds, one.bytes + weights.bytes)

    def estimate_pattern(self, seen: AttentionRows, study: Study) -> Cost:
        return self._estimate_square(seen)

    def of_pattern(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        from aatc.passes.analysis.cohomology.null_models import MODELS, STATISTICS, against_null, loop_statistics
        from aatc.passes.analysis.pattern_source import rows_of_laws

        n, m = seen.sizes[2:]
        if n != m:
            return {"topology": Undecided("square patterns", "queries and keys are different tokens")}
        points = seen.coarse(head, batch, nodes=self.points)
        rows = rows_of_laws(points.array)
        if rows is None or n < 3:
            return {"topology": Undecided("three tokens and rows with a key", "there is nothing to draw at random")}
        cut = (f"the {self.edges_per_token} heaviest pairs a token",)
        given = cut if points.kind == "whole" else (*cut, f"tiles of {points.block} tokens")
        observed = loop_statistics(rows, self.edges_per_token)
        found: dict[str, Any] = {
            f"{name}_bar" if name != "total_h1" else "total_persistence_h1": Result(
                observed[name], "P3", assumptions=given
            )
            for name in STATISTICS
        }
        for model in MODELS:
            answer = against_null(
                rows,
                model,
                draws=self._draws(len(rows)),
                edges_per_token=self.edges_per_token,
                seed=self.seed,
                observed=observed,
            )
            for name, compared in answer.value.items():
                item = f"{name}_z_{model}"
                if isinstance(compared, Undecided):
                    found[item] = compared
                else:
                    note = (*given, *answer.assumptions, str(compared))
                    found[item] = Result(float(np.round(compared.z, 6)), "P3", assumptions=note)
        return found
