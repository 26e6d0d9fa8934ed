"""The analytical pass of the heads family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from aatc.passes.analysis.attention_rows import AttentionRows
from aatc.passes.analysis.base import AnalysisPass, Study, weights_cost, with_scores
from aatc.passes.analysis.result import BudgetError, Cost, Result, Undecided
from aatc.passes.base import register

#: Rounding of a mean over weights of float64.
ROUNDING = 1e-12


@register
@dataclass(frozen=True)
class AnalyzeHeads(AnalysisPass):
    """Where every head's weight goes, and what the layers make together.

    Previous token, itself, first key, busiest key, distance and effective context of every head; where tokens are known
    also what followed a token before (induction); mean times to absorption where a pattern has transient tokens, as
    causal ones have, up to ``states`` tokens. Rollout over layers up to ``states`` tokens, flow of the last token up to
    ``flow_tokens``.
    """

    states: int = 2048
    flow_tokens: int = 96
    name: ClassVar[str] = "analyze-heads"
    family: ClassVar[str] = "heads"

    def estimate_cost(self, n: int, dim: int) -> Cost:
        weights = weights_cost(n, dim)
        absorbed = 6e-9 * n * n if n <= self.states else 0.0
        return Cost(2e-3 + weights.seconds + 4e-8 * n * n + absorbed, weights.bytes + 16.0 * min(n, self.states) ** 2)

    def estimate_pattern(self, seen: AttentionRows, study: Study) -> Cost:
        n, m = seen.sizes[2:]
        side = int(np.sqrt(n * m)) + 1
        return with_scores(self.estimate_cost(side, seen.width), seen, side)

    def of_pattern(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        from aatc.passes.analysis.heads.positions import ProfileSums, absorption_times
        from aatc.passes.analysis.pattern_source import PatternSource

        n, m = seen.sizes[2:]
        tokens = None if seen.tokens is None else seen.tokens[batch]
        sums = ProfileSums(n, m, tokens)
        blind = 0
        kept = []  # the whole pattern where it is wanted again
        for start, rows in seen.stripes(head, batch):
            array = rows.numpy()
            blind += int((~array.any(1)).sum())
            sums.add(start, array)
            if n == m <= self.states and sums.causal:
                kept.append(array)
        profile = sums.profile()
        given = (f"{blind} queries without a key left out",) if blind else ()
        found = dict(_rows(profile, given))
        if n != m or not profile.causal or blind or n > self.states or n < 2:
            return found
        times = absorption_times(np.concatenate(kept))
        witness = None
        if 8 * n * n <= study.memory:  # the witness names the pattern: a report keeps no matrix
            source = PatternSource(seen, head, batch, study.memory)
            witness = type(times.witness)(source, times.witness.recurrent, times.value)
        mean = float(times.value[1:].mean())
        scale = max(1.0, mean)
        note = (*given, *times.assumptions)
        found["absorption_times"] = Result(times.value, "P2", times.tolerance, times.residual, witness, note)
        found["mean_absorption_time"] = Result(mean, "P2", times.tolerance * scale, times.residual, assumptions=note)
        return found

    def of_layers(self, study: Study) -> Iterator[tuple[str, int, str, Any]]:
        square = [c for c in study.captured if c.sizes[2] == c.sizes[3]]
        if len(square) < 2:
            return
        n = Counter(c.sizes[2] for c in square).most_common(1)[0][0]
        layers = [c for c in square if c.sizes[2] == n]
        if len(layers) < 2:
            return
        for place, element in enumerate(layers[0].batch):
            for item, result in self._layers(layers, n, place, study).items():
                yield "layers", element, item, result

    def _layers(self, layers: Sequence[AttentionRows], n: int, place: int, study: Study) -> Mapping[str, Any]:
        from aatc.passes.analysis.heads.layers import attention_flow, attention_rollout, estimate_cost

        given = (f"layers {', '.join(c.name for c in layers)}", "half of a token passes a layer unchanged")
        if n > self.states:
            return {"rollout": Undecided(f"{self.states} tokens", f"{n} tokens a layer")}
        seconds = sum(c.sizes[1] * c.weights_seconds for c in layers) + 2e-10 * len(layers) * n**3
        try:
            Cost(seconds, 24.0 * n * n).check(study.budget, f"rollout over {len(layers)} layers of {n} tokens")
            means = [_mean_over_heads(c, place) for c in layers]
        except BudgetError as refusal:
            return {"refused": refusal}
        if any(not m.any(1).all() for m in means):
            return {"rollout": Undecided("rows with a key", "some queries see no key")}
        rollout = attention_rollout(means)
        entropy = -(rollout * np.log(np.where(rollout > 0, rollout, 1.0))).sum(1)
        found: dict[str, Any] = {
            "rollout": Result(rollout, "P2", ROUNDING, assumptions=given),
            "rollout_context": Result(float(np.exp(entropy).mean()), "P2", ROUNDING * n, assumptions=given),
            "rollout_to_first": Result(
                float(rollout[1:, 0].mean()) if n > 1 else 1.0, "P2", ROUNDING, assumptions=given
            ),
        }
        if n <= self.flow_tokens and estimate_cost(n, len(layers), n).within(study.budget):
            flow = attention_flow(means)
            found["flow_to_last"] = Result(flow.value, "P2", flow.tolerance, assumptions=given)
        return found


def _mean_over_heads(seen: AttentionRows, batch: int) -> np.ndarray:
    heads = seen.sizes[1]
    mean = np.zeros(seen.sizes[2:])
    for head in range(heads):
        for start, rows in seen.stripes(head, batch):
            mean[start : start + len(rows)] += rows.numpy() / heads
    return mean


def _rows(profile: Any, given: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(item, result) of all that the profile has."""
    names = {
        "previous": "previous_token_mass",
        "itself": "self_mass",
        "sink": "sink_mass",
        "busiest": "busiest_key_mass",
        "distance": "mean_distance",
        "context": "effective_context",
        "context_share": "effective_context_share",
    }
    for field, item in names.items():
        value = getattr(profile, field)
        if value is not None:
            yield item, Result(value, "P2", ROUNDING * max(1.0, value), assumptions=given)
    yield "busiest_key", Result(profile.busiest_key, "P2", assumptions=given)
    for field in ("induction", "duplicate"):
        mass = getattr(profile, field)
        if isinstance(mass, Undecided):
            yield f"{field}_mass", mass
        elif mass is not None:
            note = (*given, f"{mass.queries} queries whose token came before", f"equal weights: {mass.uniform:.4g}")
            yield f"{field}_mass", Result(mass.mass, "P2", ROUNDING, assumptions=note)
            yield f"{field}_excess", Result(mass.mass - mass.uniform, "P2", ROUNDING, assumptions=note)
