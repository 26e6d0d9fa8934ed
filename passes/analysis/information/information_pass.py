"""The analytical pass of the information family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from aatc.ir.core import Module
from aatc.passes.analysis.attention_rows import AttentionRows
from aatc.passes.analysis.base import AnalysisPass, Study, weights_cost
from aatc.passes.analysis.result import Cost, Result, Undecided
from aatc.passes.base import register

if TYPE_CHECKING:
    from aatc.passes.analysis.information.ergodic import SpectralGap
    from aatc.passes.analysis.information.markov import NotErgodic
    from aatc.passes.analysis.pattern_source import PatternSource

#: Rows whose Jacobian norm is computed; the others are bounded.
LOOKED_AT = 64


@register
@dataclass(frozen=True)
class AnalyzeInformation(AnalysisPass):
    """Entropy, information flow, ergodicity and stability of every pattern; operations and bytes of the program.

    Square patterns are read as Markov chains of tokens, those beyond the memory as chains of tiles.
    """

    tile: int = 64
    name: ClassVar[str] = "analyze-information"
    family: ClassVar[str] = "information"

    def estimate_cost(self, n: int, dim: int) -> Cost:
        from aatc.passes.analysis.information import ergodic, information

        flow, chain = information.estimate_cost(n), ergodic.estimate_cost(n)
        weights, rows = weights_cost(n, dim), 3e-3 + 7e-8 * n * n
        seconds = flow.seconds + chain.seconds + weights.seconds + rows
        return Cost(seconds, max(flow.bytes, chain.bytes) + weights.bytes + 8.0 * n * n)

    def of_pattern(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        from aatc.passes.analysis.information.information import edge_utilisation, row_entropies
        from aatc.passes.analysis.information.verify_information import JacobianWitness, RowsWitness
        from aatc.passes.analysis.pattern_source import PatternSource, rows_of_laws, underflowed
        from aatc.passes.analysis.stochastic import PatternError

        pattern = seen.pattern(head, batch, memory=study.memory)
        rows = rows_of_laws(pattern.array)
        if rows is None:
            return {"information": Undecided("rows with a key", "some queries see no key: their rows are no laws")}
        given = () if pattern.kind == "whole" else (f"tiles of {pattern.block} tokens taken as states",)
        entropy = row_entropies(rows)
        figures = {
            "mean_row_entropy": float(entropy.mean()),
            "least_row_entropy": float(entropy.min()),
            "edge_utilisation": float(edge_utilisation(rows).mean()),
        }
        source = PatternSource(seen, head, batch, study.memory)
        found: dict[str, Any] = {
            item: Result(value, "P2", 1e-12, 0.0, RowsWitness(source, item), given) for item, value in figures.items()
        }
        if seen.exponential:
            norm, slack = _largest_jacobian_norm(rows)
            found["largest_jacobian_norm"] = Result(norm, "P2", slack, 0.0, JacobianWitness(source, slack), given)
        if rows.shape[0] != rows.shape[1]:
            return found
        if vanished := underflowed(seen, head, batch):
            given = (*given, f"{vanished} weights below the range of float64 are 0")
        try:
            return {**found, **self._chain(rows, source, pattern.block, given)}
        except PatternError as error:
            return {**found, "ergodic": Undecided("one stationary law", error.message)}

    def _chain(self, rows: np.ndarray, source: PatternSource, block: int, given: tuple[str, ...]) -> Mapping[str, Any]:
        """What there is to say of a square pattern. Witnesses name it by ``source``: a report keeps no matrix."""
        from aatc.passes.analysis.information.ergodic import ergodic_analysis
        from aatc.passes.analysis.information.information import information_flow_metrics
        from aatc.passes.analysis.information.verify_chain import PeriodWitness, StabilityWitness
        from aatc.passes.analysis.information.verify_information import FigureWitness

        chain = ergodic_analysis(rows, source=source)
        c = chain.value
        laws, contraction = chain.witness.parts
        rounding, bound = len(rows) * 2.3e-16, "" if c.dobrushin_exact else "_bound"
        found = {
            "recurrent_classes": Result(len(c.stationary), "P1", chain.tolerance, chain.residual, laws, given),
            "period": Result(c.period, "P1", witness=PeriodWitness(source), assumptions=given),
            "stationary": Result(c.stationary, "P2", chain.tolerance, chain.residual, laws, given),
            "spectral_gap": _gap(c.gap, given),
            f"dobrushin{bound}": Result(c.dobrushin, "P2", rounding, 0.0, contraction, given),
        }
        if not c.unique:
            return found
        tile = max(1, self.tile // block)
        flow = information_flow_metrics(rows, tile)
        f = flow.value
        for item in ("entropy_rate", "information_flow", "cross_tile_flow", "cross_tile_information"):
            value = float(getattr(f, item))
            witness = FigureWitness(source, f.stationary, item, value, tile)
            found[item] = Result(value, "P2", flow.tolerance, flow.residual, witness, given)
        # what its bound is a lower bound of, and shown by the same witness
        stable = StabilityWitness(contraction)
        found[f"stability{bound}"] = Result(1 - c.dobrushin, "P2", rounding, 0.0, stable, given)
        return found

    def of_layers(self, study: Study) -> Iterator[tuple[str, int, str, Any]]:
        """Operations of one batch element at the sizes of this run, whatever the program leaves open."""
        from aatc.passes.analysis.information.complexity import complexity_analysis

        known = [c for c in study.captured if c.width and c.value_width]
        if not known:
            return
        flops = 0
        for c in known:
            _, h, n, m = c.sizes
            flops += complexity_analysis(n, c.width, h, keys=m, value_dim=c.value_width).flops
        given = ("every score one contraction", "one batch element at the sizes of this run")
        yield "layers", -1, "operations_of_a_sequence", Result(flops, "P1", assumptions=given)

    def of_module(self, module: Module) -> Mapping[str, Any]:
        from aatc.passes.analysis.information.complexity import complexity_analysis

        flops = eager = 0
        for op in module.walk():
            if op.name != "geo.observe":
                continue
            if not all(d.is_static for v in op.operands[:3] for d in v.type.shape):  # type: ignore[attr-defined]
                return {}  # of sizes that vary there is no one count: `of_layers` says that of this run
            q, k, v = (tuple(int(d) for d in x.type.shape) for x in op.operands[:3])  # type: ignore[attr-defined]
            counts = complexity_analysis(q[2], q[3], q[1], keys=k[2], value_dim=v[3], batch=q[0])
            flops, eager = flops + counts.flops, max(eager, counts.intermediate_bytes)
        if not flops:
            return {}
        given = ("every score one contraction", "4 bytes a number")
        return {
            "attention_operations": Result(flops, "P1", assumptions=given),
            "eager_attention_bytes": Result(eager, "P1", assumptions=given),
        }


def _largest_jacobian_norm(rows: np.ndarray) -> tuple[float, float]:
    """max ‖∂p/∂s‖₂ over the rows whose closed-form bounds are largest, and by how much another row may exceed it."""
    from aatc.passes.analysis.information.stability import softmax_jacobian_bound, softmax_jacobian_norm

    bound = np.minimum(softmax_jacobian_bound(rows), 0.5)
    order = np.argsort(-bound)
    best = float(softmax_jacobian_norm(rows[order[:LOOKED_AT]]).max())
    left = bound[order[LOOKED_AT:]]
    return best, max(1e-12, float(left.max(initial=0.0)) - best)


def _gap(gap: SpectralGap | NotErgodic | Undecided, given: tuple[str, ...]) -> Result[float] | Undecided:
    """The gap with its own proof level, error and witness."""
    if isinstance(gap, Undecided):
        return gap
    if not isinstance(gap, Result):
        return Undecided("ergodic chains", gap.reason)
    return Result(gap.value, gap.proof_level, gap.tolerance, gap.residual, gap.witness, (*gap.assumptions, *given))
