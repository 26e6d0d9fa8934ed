"""`analyze_weights`: study attention weights that something else made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from aatc.analysis.run import FAMILIES, Analysis, chosen_passes, study_of
from aatc.passes.analysis.attention_rows import MEMORY
from aatc.passes.analysis.base import AnalysisPass
from aatc.passes.analysis.given_weights import given_weights
from aatc.passes.analysis.result import Cost


def analyze_weights(
    weights: Any,
    passes: str | AnalysisPass | Iterable[str | AnalysisPass] = tuple(FAMILIES),
    *,
    tokens: Any = None,
    budget: Cost | float | None = None,
    memory: int = MEMORY,
    batch: int | Sequence[int] = (0,),
    progress: Callable[[str, int, int], None] | None = None,
) -> Analysis:
    """Studies stochastic matrices, whatever made them: no model is run.

    weights: an array (torch, numpy, nested lists; any real dtype, on any device) of shape (n, m), (heads, n, m),
    (batch, heads, n, m) or (layers, batch, heads, n, m); a sequence or mapping of such arrays, as ``output_attentions``
    of transformers and saved files hold; a model's outputs that have ``.attentions`` (or ``.encoder_attentions``,
    ``.decoder_attentions``, ``.cross_attentions``); or what `capturing` saw. Rows sum to 1 up to the rounding of their
    dtype, and are divided by their sums; a row of zeros is a query that sees no key. tokens: integers or texts
    (n,) or (batch, n), for what needs to know where a token occurs again. The other arguments are those of `analyze`.

    Raises AnalysisError where there are no weights or no attention has as many tokens, and PatternError for rows that
    are no probability distributions.
    """
    chosen = chosen_passes(passes)
    started = time.perf_counter()
    seen = given_weights(weights, batch, tokens)
    study = study_of(seen, budget, memory, progress, chosen, started)
    findings = tuple(f for p in chosen for f in p.findings(study))
    return Analysis(findings, tuple(seen), (), notes=tuple(getattr(weights, "notes", ())))
