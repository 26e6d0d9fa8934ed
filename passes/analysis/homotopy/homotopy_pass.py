"""The analytical pass of the homotopy family."""

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

SECONDS_PER_CELL = 3e-5
SECONDS_PER_STEP = 1e-8
BYTES_PER_CELL = 3000.0


@register
@dataclass(frozen=True)
class AnalyzeHomotopy(AnalysisPass):
    """Components, homotopy groups and the threshold spectral sequence of every pattern; loops of the data flow.

    Components are those of {max(A, Aᵀ) ≥ 1/m} on the pattern A pooled to m ≤ ``nodes`` tiles. The space is the clique
    complex, up to ``dimension``, of this pattern at the threshold at which it becomes connected, or, where weights of
    0 keep it apart, falls into fewest parts; its groups are those of the first tile's part. ``bound`` cosets are tried
    for the order of its fundamental group.
    """

    nodes: int = 32
    dimension: int = 3
    bound: int = 1024
    name: ClassVar[str] = "analyze-homotopy"
    family: ClassVar[str] = "homotopy"

    def estimate_cost(self, n: int, dim: int) -> Cost:
        """For patterns that connect with few edges: `of_pattern` adds `cells_cost` once it knows the complex."""
        weights = weights_cost(n, dim)
        path = SECONDS_PER_STEP * n * n  # of the likeliest path, by all weights once more
        return Cost(0.009 + 2 * weights.seconds + path, weights.bytes + 16.0 * n * n)

    def estimate_pattern(self, seen: AttentionRows, study: Study) -> Cost:
        return self._estimate_square(seen, times=2)

    def of_pattern(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        n, m = seen.sizes[2:]
        if n != m:
            return {"homotopy_groups": Undecided("square patterns", "queries and keys are different tokens")}
        from aatc.passes.analysis.chains.complexes import threshold_complex
        from aatc.passes.analysis.chains.spectral_sequence import levels_by_weight, spectral_sequence
        from aatc.passes.analysis.homotopy.homotopy_groups import homotopy_groups, persistent_components
        from aatc.passes.analysis.homotopy.verify_components import WeightsWitness

        pooled = seen.coarse(head, batch, nodes=self.nodes)
        given: tuple[str, ...] = (f"tiles of {pooled.block} tokens",)
        merges = persistent_components(pooled.array).value.merges[:, 0]
        # even weights, which rounding puts on either side of 1/m, are edges
        apart = int((merges < (1 - 1e-9) / len(pooled.array)).sum())
        even = (*given, f"weights of at least 1/{len(pooled.array)}")
        # tiles of a head of 1,024 tokens are 32² numbers: a witness may hold them
        edge = WeightsWitness(pooled.array, (1 - 1e-9) / len(pooled.array))
        found: dict[str, Any] = {"components": Result(1 + apart, "P1", witness=edge, assumptions=even)}
        merges = merges[merges > 0]
        if not len(merges):
            return found
        threshold, parts = float(merges[-1]), len(pooled.array) - len(merges)
        if parts > 1:
            given = (*given, f"{parts} parts that exchange no weight")
        found["connecting_threshold"] = Result(threshold, "P2", 1e-6, 0.0, WeightsWitness(pooled.array), given)
        known = self.estimate_pattern(seen, study)
        cells = cells_cost(clique_counts(pooled.array, threshold, self.dimension))
        Cost(known.seconds + cells.seconds, known.bytes + cells.bytes).check(
            study.budget, f"{self.family} of {seen.name}, head {head}, at its threshold {threshold:.4g},"
        )
        complex = threshold_complex(pooled.array, threshold, self.dimension)
        given = (*given, f"threshold {threshold:.4g}", f"cliques up to dimension {self.dimension}")
        answer = homotopy_groups(complex, bound=self.bound)
        groups = answer.value
        found |= {
            "fundamental_group": Result(groups.fundamental.presentation, "P1", assumptions=given),
            "order": Result(groups.order, "P1", assumptions=given),
            "pi_2": Result(groups.second, "P1", witness=answer.witness, assumptions=given),
        }
        thresholds = np.unique([*np.quantile(merges, [0.75, 0.5, 0.25]), threshold])[::-1]
        levels = levels_by_weight(complex, pooled.array, thresholds.tolist())
        sequence = spectral_sequence(complex, levels, "F2")
        found["spectral_sequence_converges_at"] = Result(
            sequence.value.converges_at, "P1", witness=sequence.witness, assumptions=given
        )
        found["likeliest_path"] = _across(seen, head, batch, study.memory)
        return found

    def of_module(self, module: Module) -> Mapping[str, Any]:
        import networkx as nx

        graph = nx.Graph(module.graph())
        rank = graph.number_of_edges() - len(graph) + nx.number_connected_components(graph) if len(graph) else 0
        return {"dataflow_free_loops": Result(rank, "P0", assumptions=("undirected data flow",))}


def clique_counts(weights: np.ndarray, threshold: float, dimension: int) -> tuple[int, ...]:
    """How many cells of degrees 0, 1, … ``dimension`` the clique complex of {max(A, Aᵀ) ≥ threshold} has. Cliques below
    the top degree are gone through; those of the top degree are only counted."""
    n = len(weights)
    after = np.triu(np.maximum(weights, weights.T) >= threshold, 1)
    counts, common = [n], after  # row by row: the later vertices that belong to all vertices of a clique
    for k in range(1, dimension + 1):
        counts.append(int(np.count_nonzero(common)))
        if k < dimension:
            parent, vertex = np.nonzero(common)
            common = common[parent] & after[vertex]
    return tuple(counts)


def cells_cost(counts: tuple[int, ...]) -> Cost:
    """What homotopy groups and the spectral sequence of a clique complex with so many cells take. A fundamental group
    that is infinite saves the half that the universal cover takes."""
    cells = sum(counts)
    return Cost(SECONDS_PER_CELL * cells, BYTES_PER_CELL * cells)


def _across(seen: AttentionRows, head: int, batch: int, memory: int) -> Result[Any] | Undecided:
    """The likeliest path of the chain from the last token to the first, which a causal pattern allows. It is one of
    tokens: a step between tiles is not made of steps of tokens."""
    from aatc.passes.analysis.homotopy.path_space import UnreachableError, likeliest_path
    from aatc.passes.analysis.pattern_source import StepLengths, WholePattern

    n = seen.sizes[2]
    if max(seen.pooled_sizes(memory)) < n:
        return Undecided(f"{memory / 2**20:.3g} MiB", f"{n} tokens take more, and tiles hide their steps")
    source = WholePattern(seen, head, batch)
    try:
        path = likeliest_path(source, n - 1, 0)
    except UnreachableError as error:
        return Undecided("paths of positive weight", error.message)
    return replace(path, witness=replace(path.witness, costs=StepLengths(source)))
