"""The analytical pass of the cohomology family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from aatc.ir.core import Module
from aatc.passes.analysis.attention_rows import AttentionRows
from aatc.passes.analysis.base import AnalysisPass, Study, weights_cost
from aatc.passes.analysis.result import Cost, Result, Undecided
from aatc.passes.base import register


@register
@dataclass(frozen=True)
class AnalyzeCohomology(AnalysisPass):
    """Integral homology, cup products and barcodes of every pattern; components and cycles of the data flow.

    Barcodes are of the whole matrix up to ``points`` tokens, else of tiles. Groups are those of the clique complex, up
    to ``dimension``, of the pattern pooled to ``nodes`` tiles, at the threshold at which it becomes connected, or
    falls into fewest parts where weights of 0 keep it apart. Where queries and keys are different tokens, barcodes are
    those of the Dowker filtration of the pattern pooled to ``nodes`` tiles a side.
    """

    nodes: int = 32
    points: int = 1024
    dimension: int = 3
    name: ClassVar[str] = "analyze-cohomology"
    family: ClassVar[str] = "cohomology"

    def estimate_cost(self, n: int, dim: int) -> Cost:
        from aatc.passes.analysis.cohomology.persistence import estimate_cost

        points = min(n, self.points)
        bars = estimate_cost(points, 1)
        weights = weights_cost(n, dim)
        return Cost(0.05 + bars.seconds + 2 * weights.seconds, bars.bytes + weights.bytes)

    def estimate_pattern(self, seen: AttentionRows, study: Study) -> Cost:
        n, m = seen.sizes[2:]
        if n == m:
            return self._estimate_square(seen, times=2)
        from aatc.passes.analysis.cohomology.dowker_persistence import estimate_cost

        bars = estimate_cost(min(n, self.nodes), min(m, self.nodes))
        return Cost(bars.seconds + seen.weights_seconds, bars.bytes + (1 << 26))

    def of_pattern(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        n, m = seen.sizes[2:]
        if n != m:
            return self._crossed(seen, head, batch, study)
        from aatc.passes.analysis.cohomology.persistence import attention_persistence

        groups = self._groups(seen, head, batch, study)  # first: it may be above the budget
        points = seen.coarse(head, batch, nodes=self.points)
        bars = attention_persistence(np.clip(points.array, 0, 1))
        given = bars.assumptions if points.kind == "whole" else (*bars.assumptions, _pooled(points.block))
        longest = [_longest(b) for b in bars.value.bars]
        found: dict[str, Any] = {
            "barcodes": Result(bars.value, bars.proof_level, bars.tolerance, bars.residual, bars.witness, given),
            "longest_bar_h0": Result(longest[0], "P3", bars.tolerance, assumptions=given),
            "longest_bar_h1": Result(longest[1], "P3", bars.tolerance, assumptions=given),
        }
        return {**found, **groups}

    def _crossed(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        """Of queries and keys that are different tokens: barcodes of the relation between them."""
        from aatc.passes.analysis.cohomology.dowker_persistence import dowker_persistence

        pooled = seen.coarse(head, batch, nodes=self.nodes)
        if not pooled.array.any():
            return {"dowker_barcodes": Undecided("rows with a key", "no query sees a key")}
        bars = dowker_persistence(np.clip(pooled.array, 0, 1))
        given = (*bars.assumptions, _pooled(pooled.block))
        found: dict[str, Any] = {"dowker_barcodes": Result(bars.value, "P1", assumptions=given)}
        for degree, some in enumerate(bars.value.bars):
            found[f"dowker_longest_bar_h{degree}"] = Result(_longest(some), "P3", assumptions=given)
        return found

    def _groups(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        from aatc.passes.analysis.chains.complexes import threshold_complex
        from aatc.passes.analysis.chains.homology import estimate_cost, homology
        from aatc.passes.analysis.cohomology.cohomology import CohomologyStructure
        from aatc.passes.analysis.homotopy.homotopy_pass import clique_counts

        pooled = seen.coarse(head, batch, nodes=self.nodes)
        threshold = connecting_threshold(pooled.array)
        known = self.estimate_pattern(seen, study)
        cells = estimate_cost(sum(clique_counts(pooled.array, threshold, self.dimension)))
        Cost(known.seconds + cells.seconds, known.bytes + cells.bytes).check(
            study.budget, f"{self.family} of {seen.name}, head {head}, at its threshold {threshold:.4g},"
        )
        complex = threshold_complex(pooled.array, threshold, self.dimension)
        structure = CohomologyStructure(complex)
        answer = homology(structure.model)
        groups = answer.value
        given = (_pooled(pooled.block), f"threshold {threshold:.4g}", f"cliques up to dimension {self.dimension}")
        # the top degree of a truncated complex is not that of the clique complex
        shown = groups[: self.dimension]
        complex_itself = replace(answer.witness, degrees=len(shown))
        found: dict[str, Any] = {"homology": Result(shown, "P1", witness=complex_itself, assumptions=given)}
        ranks = tuple(g.free_rank for g in shown)
        found["betti_numbers"] = Result(ranks, "P1", witness=complex_itself, assumptions=given)
        if len(shown) > 2 and 0 < shown[1].free_rank <= 12:
            # H² is the free part of H₂ and the torsion of H₁: where there is none, products vanish.
            room = shown[2].free_rank or shown[1].torsion
            products = int(np.count_nonzero(structure.cup_table(1, 1).any(axis=-1))) if room else 0
            found["cup_products_of_h1"] = Result(products, "P1", assumptions=given)
        return found

    def of_module(self, module: Module) -> Mapping[str, Any]:
        import networkx as nx

        graph = nx.Graph(module.graph())
        components = nx.number_connected_components(graph) if len(graph) else 0
        cycles = graph.number_of_edges() - len(graph) + components
        return {"dataflow_betti_numbers": Result((components, cycles), "P0")}


def connecting_threshold(array: np.ndarray) -> float:
    """The largest t at which {max(A, Aᵀ) ≥ t} has as few components as at any t > 0, which is one unless weights of 0
    keep parts of it apart; infinity where no two points exchange weight."""
    from aatc.passes.analysis.homotopy.homotopy_groups import persistent_components

    merges = persistent_components(array).value.merges[:, 0]
    return float(merges[merges > 0].min(initial=np.inf))


def _pooled(block: int) -> str:
    return "tokens" if block == 1 else f"tiles of {block} tokens"


def _longest(bars: np.ndarray) -> float:
    finite = bars[np.isfinite(bars[:, 1])] if len(bars) else bars
    return float((finite[:, 1] - finite[:, 0]).max(initial=0.0))
