"""The analytical pass of the quantum family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from aatc.passes.analysis.attention_rows import AttentionRows
from aatc.passes.analysis.base import AnalysisPass, Study, weights_cost, with_scores
from aatc.passes.analysis.capture import CapturedAttention
from aatc.passes.analysis.result import Cost, Undecided
from aatc.passes.base import register

if TYPE_CHECKING:
    from aatc.passes.analysis.pattern_source import PatternSource


@dataclass(frozen=True, eq=False)
class HeadValues:
    """The values (m, d) of one head, read from what was captured whenever they are asked for."""

    seen: CapturedAttention = field(repr=False)
    head: int
    batch: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        table = self.seen.tensors[self.seen.attention.names[2]][self.batch]
        rows: np.ndarray = table[self.head * len(table) // self.seen.sizes[1]].double().numpy()
        return rows if dtype is None else rows.astype(dtype, copy=False)


@register
@dataclass(frozen=True)
class AnalyzeQuantum(AnalysisPass):
    """Entropy, negativity and Bloch vector of every pattern as the pure state √(A_ij/n) of queries and keys, how far
    successive queries' states √p are apart, and the entropy of the values' density matrix VᵀV/tr VᵀV.

    Patterns beyond ``states`` tokens, or the memory, are pooled to tiles.
    """

    states: int = 1024
    name: ClassVar[str] = "analyze-quantum"
    family: ClassVar[str] = "quantum"

    def estimate_cost(self, n: int, dim: int) -> Cost:
        weights, k = weights_cost(n, dim), min(n, self.states)
        seconds = 4e-3 + weights.seconds + 5e-10 * k**3 + 2e-8 * k * k + 1e-9 * n * dim * dim
        return Cost(seconds, weights.bytes + 48.0 * k * k + 32.0 * n * dim)

    def _memory(self, study: Study) -> int:
        return min(study.memory, 8 * self.states**2)

    def estimate_pattern(self, seen: AttentionRows, study: Study) -> Cost:
        states = max(seen.pooled_sizes(self._memory(study)))
        return with_scores(self.estimate_cost(states, seen.width), seen, states)

    def of_pattern(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        from aatc.passes.analysis.pattern_source import PatternSource, rows_of_laws

        memory = self._memory(study)
        pattern = seen.pattern(head, batch, memory=memory)
        given = () if pattern.kind == "whole" else (f"tiles of {pattern.block} tokens taken as states",)
        rows = rows_of_laws(pattern.array)
        found = dict(_values(seen, head, batch))
        if rows is None:
            return {"query_key_state": Undecided("rows with a key", "some queries see no key"), **found}
        return {**_pattern(rows, PatternSource(seen, head, batch, memory), given), **found}


def _pattern(rows: np.ndarray, source: PatternSource, given: tuple[str, ...]) -> Mapping[str, Any]:
    from aatc.passes.analysis.quantum.entanglement import schmidt_coefficients
    from aatc.passes.analysis.quantum.entropy import bloch_vector, entropy_of_spectrum
    from aatc.passes.analysis.quantum.geometry import fubini_study_distance
    from aatc.passes.analysis.quantum.states import QuantumState, attention_state, query_key_state
    from aatc.passes.analysis.quantum.verify_quantum import witnessed

    n, m = rows.shape
    schmidt = schmidt_coefficients(query_key_state(rows))
    law = schmidt.square() / schmidt.square().sum()
    figures = {
        "entropy": float(entropy_of_spectrum(law)),
        "renyi_2": float(entropy_of_spectrum(law, 2.0)),
        "negativity": float((schmidt.sum().square() - schmidt.square().sum()) / 2),
    }
    found: dict[str, Any] = {
        f"query_key_{figure}": witnessed(
            value, "query_key", {"pattern": source, "figure": figure}, 1e-9, assumptions=given
        )
        for figure, value in figures.items()
    }
    half = (m + 1) // 2
    padded = query_key_state(np.pad(rows, ((0, 0), (0, 2 * half - m))))
    bloch = bloch_vector(QuantumState(padded.tensor, (n, 2, half)), 1).numpy()
    found["key_bloch_vector"] = witnessed(bloch, "bloch_halves", {"pattern": source}, 1e-9, assumptions=given)
    if n > 1:
        psi = attention_state(rows).tensor.real
        step = float(fubini_study_distance(psi[1:], psi[:-1]).mean())
        found["fubini_study_step"] = witnessed(step, "fubini_study_step", {"pattern": source}, 1e-7, assumptions=given)
    return found


def _values(seen: AttentionRows, head: int, batch: int) -> Mapping[str, Any]:
    """Of a head whose values were captured; weights that were given alone have none."""
    from aatc.passes.analysis.quantum.entropy import von_neumann_entropy
    from aatc.passes.analysis.quantum.states import QuantumError, value_density
    from aatc.passes.analysis.quantum.verify_quantum import witnessed

    if not isinstance(seen, CapturedAttention):
        return {}
    source = HeadValues(seen, head, batch)
    try:
        entropy = float(von_neumann_entropy(value_density(np.asarray(source))))
    except QuantumError as error:
        return {"value_entropy": Undecided("values that are finite and not all 0", error.message)}
    return {"value_entropy": witnessed(entropy, "value_state", {"values": source, "order": 1.0}, 1e-9)}
