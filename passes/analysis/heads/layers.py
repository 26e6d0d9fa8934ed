"""What many layers of attention make together: rollout and flow.

Source: S. Abnar, W. Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020. A layer passes on half of what
stands at a token (the residual connection) and half of what its weights, the mean over heads, bring there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import maximum_flow

from aatc.passes.analysis.result import Cost, Result
from aatc.passes.analysis.stochastic import PatternError, row_stochastic

#: Units that a capacity of 1 is cut into: whole numbers of 32 bits.
UNITS = 1 << 30
_SECONDS_PER_EDGE = 2.5e-7


def _steps(layers: Sequence[Any], residual: float) -> list[np.ndarray]:
    if not 0 <= residual < 1:
        raise PatternError(f"residual={residual} is no share of a token that passes a layer unchanged")
    found: list[np.ndarray] = []
    for layer in layers:
        rows = row_stochastic(layer, square=True)
        if rows.ndim > 3 or (found and rows.shape[-1] != len(found[0])):
            raise PatternError(
                f"a layer of shape {rows.shape} among layers of {len(found[0]) if found else rows.shape[-1]} tokens",
                hint="give (n, n) or (heads, n, n) for each layer, of the same tokens",
            )
        mean = rows if rows.ndim == 2 else rows.mean(0)
        found.append((1 - residual) * mean + residual * np.eye(len(mean)))
    if not found:
        raise PatternError("no layers were given")
    return found


def attention_rollout(layers: Sequence[Any], *, residual: float = 0.5) -> np.ndarray:
    """Ã_L ⋯ Ã_1 (n, n), Ã = ``residual``·I + (1 − ``residual``)·A: row i is how much of the tokens that go into the
    first layer stands in token i behind the last. ``layers`` are (n, n) or (heads, n, n), the first one first. Raises
    `PatternError`."""
    steps = _steps(layers, residual)
    product = steps[0]
    for step in steps[1:]:
        product = step @ product
    return product


def estimate_cost(n: int, layers: int, targets: int) -> Cost:
    """What `attention_flow` takes for so many targets."""
    return Cost(1e-3 + _SECONDS_PER_EDGE * layers * n * n * targets, 64.0 * layers * n * n + 2**20)


def attention_flow(
    layers: Sequence[Any], query: int = -1, *, residual: float = 0.5, budget: Cost | None = None
) -> Result[np.ndarray]:
    """For each token of the input, (n,), the largest flow from ``query`` behind the last layer down to it, weights
    being capacities: what could reach the query if nothing else did.

    Capacities are cut to multiples of 2⁻³⁰, so that a flow is at most ``tolerance`` too small. Raises `PatternError`,
    and `BudgetError` above ``budget``.
    """
    steps = _steps(layers, residual)
    n, depth = len(steps[0]), len(steps)
    if not -n <= query < n:
        raise PatternError(f"there is no query {query} among {n} tokens")
    if budget is not None:
        estimate_cost(n, depth, n).check(budget, f"the flow through {depth} layers of {n} tokens")
    rows, columns, capacities = [], [], []
    for level, step in enumerate(reversed(steps)):  # from the last layer down
        i, j = np.nonzero(step >= 1 / UNITS)
        rows.append(level * n + i)
        columns.append((level + 1) * n + j)
        capacities.append((step[i, j] * UNITS).astype(np.int32))
    size = (depth + 1) * n
    graph = sparse.csr_array(
        (np.concatenate(capacities), (np.concatenate(rows), np.concatenate(columns))), shape=(size, size)
    )
    graph.indices, graph.indptr = graph.indices.astype(np.int32), graph.indptr.astype(np.int32)
    source = query % n
    flows = np.array([maximum_flow(sparse.csr_matrix(graph), source, depth * n + j).flow_value for j in range(n)])
    return Result(flows / UNITS, "P2", depth * n * n / UNITS)
