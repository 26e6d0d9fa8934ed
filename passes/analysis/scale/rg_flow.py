"""Observables of a chain from scale to scale: what leaves blocks, what a step tells, how a function averages out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aatc.passes.analysis.result import Result
from aatc.passes.analysis.scale.coarse_graining import (
    SCHEMES,
    TOLERANCE,
    ScaleConnection,
    ScaleError,
    block_average,
    block_labels,
    connect,
    kept_states,
    law_of,
    lumpability,
    whole_number,
)
from aatc.passes.analysis.scale.renormalization_map import RenormalizationMap, RGFlow, trajectory
from aatc.passes.analysis.scale.verify_scale import witnessed
from aatc.passes.analysis.stochastic import real_array, row_stochastic

#: Steps that a map is followed for, and the most steps at a time of the scheme "steps", where nothing else is said.
STEPS = 12
POWERS = 64


def escape(chain: np.ndarray, law: np.ndarray) -> float:
    """Probability of leaving the state, Σ_i μ_i Σ_{j≠i} A_ij, summed without subtraction."""
    away = chain.copy()
    np.fill_diagonal(away, 0.0)
    return float(law @ away.sum(1))


def entropy_rate(chain: np.ndarray, law: np.ndarray) -> float:
    """−Σ_i μ_i Σ_j A_ij log A_ij, in nats."""
    return float(-(law @ (chain * np.log(np.where(chain > 0, chain, 1.0))).sum(1)) + 0.0)


OBSERVABLES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "escape": escape,
    "entropy_rate": entropy_rate,
}


def doubling_scales(n: int, least: int = 2) -> tuple[int, ...]:
    """1, 2, 4, ... while that many states make ``least`` blocks or more; at least 1."""
    return tuple(itertools.takewhile(lambda b: b == 1 or -(-n // b) >= least, (1 << k for k in itertools.count())))


def _scales(given: Sequence[int] | None, n: int, scheme: str) -> tuple[int, ...]:
    if scheme not in SCHEMES:
        raise ScaleError(f"there is no scheme {scheme!r}", hint=f"there are: {', '.join(SCHEMES)}")
    if given is None:
        return doubling_scales(POWERS + 1) if scheme == "steps" else doubling_scales(n)
    known = tuple(whole_number("a scale", s) for s in given)
    if not known or any(b % a or a == b for a, b in itertools.pairwise(known)):
        raise ScaleError(f"scales {known} of a flow grow, each by a whole factor", hint="give 1, 2, 4, 8")
    return known


def chains(chain: np.ndarray, law: np.ndarray, scales: Sequence[int], scheme: str) -> list[ScaleConnection]:
    """The connections from 1 to the first scale, and from each scale to the next."""
    found = list[ScaleConnection]()
    for previous, scale in itertools.pairwise((1, *scales)):
        step: Any = scale // previous
        at, measure = (found[-1].coarse, found[-1].coarse_law) if found else (chain, law)
        if scheme == "average":
            found.append(connect(at, measure, scheme, block_labels(1, len(at)), block_labels(step, len(at))))
        elif scheme == "complement":
            found.append(connect(at, measure, scheme, kept_states(1, len(at)), kept_states(step, len(at))))
        else:
            found.append(connect(at, measure, scheme, 1, step))
    return found


def renormalization_flow(
    pattern: Any,
    observable: Any,
    *,
    scales: Sequence[int] | None = None,
    scheme: str = "average",
    measure: Any = "stationary",
) -> Result[RGFlow]:
    """An observable of the chain of a pattern (n, n) at each scale: an `RGFlow` without a map, P2.

    ``observable``: "escape" (probability of leaving the block), "entropy_rate" (nats);
    "defect" (mean distance from exact lumping of the finest chain, scheme "average"); a function of (chain (m, m), law
    (m,)) to a number; or values (n,) of the states, which are averaged as the scheme does: their variance under the law
    and their energy ½ Σ μ_I A_IJ (f_I − f_J)². ``scales`` are whole numbers as in `scale_connection`, each a multiple
    of the one before; by default they double. Each chain is made of the one before it. Raises as `scale_connection`.
    """
    chain = row_stochastic(pattern, square=True)
    if chain.ndim != 2:
        raise ScaleError(f"one chain at a time has shape (n, n), not {chain.shape}")
    known, law = _scales(scales, len(chain), scheme), law_of(chain, measure)
    names, read = _reader(observable, chain, law, scheme)
    rows, values = [], read[1]
    for scale, made in zip(known, chains(chain, law, known, scheme)):
        values = None if values is None else made.restriction @ values
        rows.append(read[0](made.coarse, made.coarse_law, scale, values))
    value = RGFlow(np.array(known, dtype=np.float64), np.array(rows, dtype=np.float64), names)
    if not np.isfinite(value.couplings).all():
        raise ScaleError("the observable is not finite at every scale")
    kept = observable if callable(observable) or isinstance(observable, str) else read[1]
    data = {"pattern": chain.copy(), "law": law, "scheme": scheme, "scales": known, "observable": kept}
    return witnessed(value, "chain_flow", data, TOLERANCE)


def _reader(
    observable: Any, chain: np.ndarray, law: np.ndarray, scheme: str
) -> tuple[tuple[str, ...], tuple[Any, Any]]:
    """(names, (what to read of (chain, law, scale, averaged values), the values of states or None))."""
    if isinstance(observable, str):
        if observable == "defect" and scheme == "average":
            return ("defect",), (
                lambda a, mu, b, f: [lumpability(chain, block_labels(b, len(chain)), law).mean],
                None,
            )
        if observable not in OBSERVABLES:
            raise ScaleError(
                f"there is no observable {observable!r} of the scheme {scheme!r}",
                hint=f'there are: {", ".join(OBSERVABLES)}, and "defect" of the scheme "average"',
            )
        return (observable,), (lambda a, mu, b, f: [OBSERVABLES[observable](a, mu)], None)
    if callable(observable):
        return ("observable",), (lambda a, mu, b, f: [_number(observable(a, mu))], None)
    values = real_array(observable, "an observable")
    if values.shape != (len(chain),) or not np.isfinite(values).all():
        raise ScaleError(f"an observable of {len(chain)} states has finite values ({len(chain)},), not {values.shape}")
    return ("variance", "energy"), (lambda a, mu, b, f: [_variance(f, mu), _energy(f, a, mu)], values)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise ScaleError(f"an observable gives one number of a chain and its law, not {value!r}") from cause


def _variance(f: np.ndarray, law: np.ndarray) -> float:
    return float(law @ (f - law @ f) ** 2)


def _energy(f: np.ndarray, chain: np.ndarray, law: np.ndarray) -> float:
    return float(law @ (chain * (f[:, None] - f) ** 2).sum(1) / 2)


def map_flow(renormalization: RenormalizationMap, start: Any, steps: int = STEPS) -> Result[RGFlow]:
    """Couplings (d,) and what a map makes of them, step by step: an `RGFlow`, P2. Raises `ScaleError`."""
    value = trajectory(renormalization, start, steps)
    data = {"map": renormalization, "start": value.couplings[0].copy(), "steps": len(value.scales) - 1}
    return witnessed(value, "trajectory", data, TOLERANCE)


def block_escapes(chain: np.ndarray, scales: Sequence[int]) -> np.ndarray:
    """Share of the weights of a checked pattern (n, n) that leaves blocks of so many tokens, (k,), all queries alike;
    each scale is a multiple of the one before."""
    at, law, previous, found = chain, np.full(len(chain), 1 / len(chain)), 1, []
    for scale in scales:
        if scale != previous:
            at, law = block_average(at, block_labels(scale // previous, len(at)), law)
        previous = scale
        found.append(escape(at, law))
    return np.array(found)
