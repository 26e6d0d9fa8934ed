"""Checks of coarse-grained chains and of their flows, with numpy: fluxes between blocks are summed pair by pair, states
are eliminated one at a time from all rows, steps are multiplied out, every scale begins with the finest chain again."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from aatc.passes.analysis.scale.verify_scale import recomputes, require

Data = Mapping[str, Any]


def chain_of(data: Data) -> np.ndarray:
    """The pattern of a witness, if it is a chain."""
    a = np.asarray(data["pattern"], dtype=np.float64)
    require(a.ndim == 2 and a.shape[0] == a.shape[1] > 0, "chain")
    require(a.min() >= 0 and np.abs(a.sum(1) - 1).max() <= 1e-9, "chain")
    return a


def _law(data: Data, n: int) -> np.ndarray:
    law = np.asarray(data["law"], dtype=np.float64)
    require(law.shape == (n,) and law.min() >= 0 and abs(law.sum() - 1) <= 1e-9, "law")
    return law


def _laws_of_blocks(labels: np.ndarray, law: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(law of blocks (m,), law within blocks (m, n))."""
    labels = np.asarray(labels)
    require(labels.shape == law.shape and labels.dtype.kind in "iu" and labels.min() == 0, "partition")
    within = np.zeros((int(labels.max()) + 1, len(law)))
    within[labels, np.arange(len(law))] = law
    mass = within.sum(1)
    require(mass > 0, "partition with weights")
    return mass, within / mass[:, None]


def averaged(a: np.ndarray, labels: np.ndarray, law: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(chain of blocks, their law, law within blocks)."""
    mass, within = _laws_of_blocks(labels, law)
    flux = np.zeros((len(mass), len(mass)))
    np.add.at(flux, (labels[:, None], labels[None, :]), law[:, None] * a)
    return flux / mass[:, None], mass, within


def watched(a: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(chain on the states that stay, law of the first of them that each state meets), by a state at a time."""
    kept = np.asarray(kept)
    require(kept.ndim == 1 and kept.dtype.kind in "iu" and len(kept) > 0, "set of states")
    require((np.diff(kept) > 0).all() and kept[0] >= 0 and kept[-1] < len(a), "set of states")
    gone = [s for s in range(len(a)) if s not in set(kept.tolist())]
    rows = a.copy()
    for done, state in enumerate(gone):
        rows[state, state] = 0.0
        rows[state] /= rows[state].sum()
        others = np.arange(len(a)) != state
        rows[others] += rows[others, state][:, None] * rows[state]
        rows[others, state] = 0.0
        past = gone[:done]
        rows[past, past] = 0.0
        rows[past] /= rows[past].sum(1, keepdims=True)
    require(np.isfinite(rows), "chain that leaves the other states")
    met = rows[:, kept].copy()
    met[kept] = np.eye(len(kept))
    return rows[np.ix_(kept, kept)], met


def powered(a: np.ndarray, steps: int) -> np.ndarray:
    """Aˢ by its binary digits from above."""
    require(not isinstance(steps, bool) and int(steps) == steps >= 0, "number of steps")
    result = np.eye(len(a))
    for digit in bin(int(steps))[2:]:
        result = result @ result
        if digit == "1":
            result = a @ result
    rows: np.ndarray = result / result.sum(1, keepdims=True)
    return rows


@recomputes("scale_connection")
def _connection(data: Data) -> Any:
    a = chain_of(data)
    law, scheme = _law(data, len(a)), data["scheme"]
    if scheme == "average":
        first, second = (np.asarray(data[k]) for k in ("scale1", "scale2"))
        fine, fine_law, _ = averaged(a, first, law)
        coarse, coarse_law, _ = averaged(a, second, law)
        prolongation = np.zeros((len(fine), len(coarse)))
        prolongation[first, second] = 1
        require(prolongation.sum(1) == 1, "pair of scales")
        restriction = prolongation.T * fine_law / (prolongation.T @ fine_law)[:, None]
    elif scheme == "complement":
        first, second = (np.asarray(data[k]) for k in ("scale1", "scale2"))
        fine, (coarse, met) = watched(a, first)[0], watched(a, second)
        require(np.isin(second, first), "pair of scales")
        prolongation = met[first]  # of states of the finest chain: those between are met, and left, on the way
        restriction = (second[:, None] == first[None, :]).astype(np.float64)
        fine_law, coarse_law = (law[k] / law[k].sum() for k in (first, second))
    else:
        require(scheme == "steps" and data["scale2"] % data["scale1"] == 0, "pair of scales")
        fine, coarse = powered(a, data["scale1"]), powered(a, data["scale2"])
        prolongation = powered(a, data["scale2"] - data["scale1"])
        restriction, fine_law, coarse_law = np.eye(len(a)), law, law
    return {
        "scheme": scheme, "fine": fine, "coarse": coarse, "restriction": restriction, "prolongation": prolongation,
        "fine_law": fine_law, "coarse_law": coarse_law,
    }  # fmt: skip


@recomputes("cocycle")
def _cocycle(data: Data) -> Any:
    """The largest gap of connections that are each made of the finest chain."""
    scales, worst = data["scales"], 0.0
    require(isinstance(scales, tuple) and len(scales) > 0, "tuple of scales")

    def made(k: int, m: int) -> Any:
        return _connection({**data, "scale1": scales[k], "scale2": scales[m]})

    for k in range(len(scales)):
        for m in range(k + 1, len(scales)):
            for last in range(m + 1, len(scales)):
                short, long, whole = made(k, m), made(m, last), made(k, last)
                gaps = (
                    whole["restriction"] - long["restriction"] @ short["restriction"],
                    whole["prolongation"] - short["prolongation"] @ long["prolongation"],
                    short["coarse"] - long["fine"],
                )
                worst = max(worst, *(float(np.abs(g).max()) for g in gaps))
    made(0, len(scales) - 1)  # scales that are too few for a gap are a chain's, too
    return worst


@recomputes("lumpability")
def _lumpability(data: Data) -> Any:
    a = chain_of(data)
    law, labels = _law(data, len(a)), np.asarray(data["labels"])
    coarse, _, _ = averaged(a, labels, law)
    onto = a @ (labels[:, None] == np.arange(len(coarse))[None, :])
    apart = np.array([np.clip(onto[i] - coarse[labels[i]], 0, None).sum() for i in range(len(a))])
    return {"worst": float(apart.max()), "mean": float((law * apart).sum())}


def _energy_and_variance(f: np.ndarray, a: np.ndarray, law: np.ndarray) -> list[float]:
    n = len(f)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    energy = sum(law[i] * a[i, j] * (f[i] - f[j]) ** 2 for i, j in pairs) / 2
    variance = sum(law[i] * law[j] * (f[i] - f[j]) ** 2 for i, j in pairs) / 2
    return [float(variance), float(energy)]


def _observed(name: str, a: np.ndarray, law: np.ndarray) -> float:
    if name == "escape":
        return float(sum(law[i] * (a[i, :i].sum() + a[i, i + 1 :].sum()) for i in range(len(a))))
    require(name == "entropy_rate", "observable")
    i, j = np.nonzero(a)
    return float((law[i] * a[i, j] * -np.log(a[i, j])).sum())


@recomputes("chain_flow")
def _chain_flow(data: Data) -> Any:
    a = chain_of(data)
    n, scheme, observable = len(a), data["scheme"], data["observable"]
    law, scales = _law(data, n), data["scales"]
    require(len(scales) > 0 and all(int(s) == s >= 1 and not isinstance(s, bool) for s in scales), "row of scales")
    require(all(b > c and b % c == 0 for c, b in pairwise(scales)), "row of scales")
    given = None if isinstance(observable, str) or callable(observable) else np.asarray(observable, dtype=np.float64)
    if given is not None:
        require(given.shape == (n,), "observable")
    rows = []
    for scale in scales:
        if scheme == "average":
            labels = np.array([i // scale for i in range(n)])
            at, mu, within = averaged(a, labels, law)
            f = None if given is None else within @ given
        elif scheme == "complement":
            kept = np.array(range(0, n, scale))
            at, mu, f = watched(a, kept)[0], law[kept] / law[kept].sum(), None if given is None else given[kept]
        else:
            require(scheme == "steps", "scheme")
            at, mu, f = powered(a, scale), law, given
        if f is not None:
            rows.append(_energy_and_variance(f, at, mu))
        elif callable(observable):
            rows.append([float(observable(at, mu))])
        elif observable == "defect" and scheme == "average":
            rows.append([_lumpability({"pattern": a, "law": law, "labels": labels})["mean"]])
        else:
            rows.append([_observed(observable, at, mu)])
    own = (
        ("variance", "energy") if given is not None else (observable if isinstance(observable, str) else "observable",)
    )
    return {"scales": np.array(scales, dtype=np.float64), "couplings": np.array(rows), "names": own, "map": None}
