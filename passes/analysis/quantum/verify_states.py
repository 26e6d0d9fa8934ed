"""Checks of states: evolution, expectation values, measurements, entropies, entanglement, Chern numbers, heads.

Everything is computed again with numpy and SciPy from a witness's data, by another way where there is one: evolution by
Taylor's series, negativity by a nuclear norm, entropies by singular values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse

from aatc.passes.analysis.quantum.verify_quantum import recomputes

Data = Mapping[str, Any]


def _room(array: np.ndarray) -> float:
    return 1e-3 if array.dtype in (np.complex64, np.float32) else 1e-9


def _require(sound: Any, what: str) -> None:
    if not bool(np.all(sound)):
        raise ValueError(f"the data of this witness is no {what}")


def _states(data: Data) -> np.ndarray:
    """Vectors (n, d) or matrices (n, d, d), which are states."""
    tensor = np.asarray(data["tensor"])
    _require(np.isfinite(tensor), "state")
    room = _room(tensor)
    if data["pure"]:
        flat = tensor.reshape(-1, tensor.shape[-1])
        _require(np.abs(np.sum(np.abs(flat) ** 2, axis=1) - 1) <= room, "state")
        return flat.astype(np.complex128)
    flat = tensor.reshape(-1, *tensor.shape[-2:]).astype(np.complex128)
    _require(np.abs(flat - flat.conj().transpose(0, 2, 1)) <= room, "state")
    _require(np.abs(np.trace(flat, axis1=1, axis2=2) - 1) <= room, "state")
    _require([scipy.linalg.eigvalsh(m)[0] >= -room for m in flat], "state")
    return flat


def _lead(data: Data) -> tuple[int, ...]:
    return tuple(np.shape(data["tensor"])[: -1 if data["pure"] else -2])


def _hermitian(matrix: Any) -> Any:
    skew = abs(matrix - (matrix.conj().T if scipy.sparse.issparse(matrix) else np.swapaxes(matrix.conj(), -1, -2)))
    _require(skew.max() <= 1e-9 * max(1.0, abs(matrix).max()), "Hermitian matrix")
    return matrix


# --- evolution ---------------------------------------------------------------------------------------------
@recomputes("evolution")
def _evolution(data: Data) -> Any:
    from scipy.sparse.linalg import expm_multiply

    states, h = _states(data), _hermitian(data["hamiltonian"])
    lead = _lead(data)
    d = states.shape[1]
    if scipy.sparse.issparse(h):
        time = float(np.asarray(data["time"]))
        moved = np.stack([expm_multiply(-1j * time * h, psi) for psi in states])
        return {"tensor": moved.reshape(*lead, d), "dims": data["dims"], "pure": True}
    batch = np.broadcast_shapes(lead, h.shape[:-2], np.shape(data["time"]))
    times = np.broadcast_to(np.asarray(data["time"], dtype=np.float64), batch).reshape(-1)
    matrices = np.broadcast_to(h, (*batch, d, d)).reshape(-1, d, d).astype(np.complex128)
    tail = (d,) if data["pure"] else (d, d)
    whole = np.broadcast_to(states.reshape(*lead, *tail), (*batch, *tail)).reshape(-1, *tail)
    found = []
    for matrix, time, state in zip(matrices, times, whole):
        part = expm_multiply(-1j * time * matrix, state)
        found.append(part if data["pure"] else expm_multiply(-1j * time * matrix, part.conj().T).conj().T)
    return {"tensor": np.stack(found).reshape(*batch, *tail), "dims": data["dims"], "pure": bool(data["pure"])}


# --- measurement -------------------------------------------------------------------------------------------
def _densities(states: np.ndarray, pure: bool) -> np.ndarray:
    return states[:, :, None] * states[:, None, :].conj() if pure else states


@recomputes("expectation")
def _expectation(data: Data) -> Any:
    states, lead = _states(data), _lead(data)
    o = _hermitian(np.asarray(data["observable"], dtype=np.complex128))
    batch = np.broadcast_shapes(lead, o.shape[:-2])
    d = states.shape[1]
    rhos = np.broadcast_to(_densities(states, data["pure"]).reshape(*lead, d, d), (*batch, d, d))
    # by the spectral law of the observable
    values, frames = np.linalg.eigh(o)
    law = np.einsum("...ik,...ij,...jk->...k", frames.conj(), rhos, frames).real
    mean = (law * values).sum(-1)
    return {"mean": mean, "variance": (law * (values - mean[..., None]) ** 2).sum(-1)}


@recomputes("measurement")
def _measurement(data: Data) -> Any:
    states, lead = _states(data), _lead(data)
    pure, d = data["pure"], states.shape[1]
    if "observable" in data:
        o = _hermitian(np.asarray(data["observable"], dtype=np.complex128))
        values, frames = scipy.linalg.eigh(o)
        apart = np.diff(values) > 1e3 * np.finfo(np.asarray(data["observable"]).dtype).eps * np.abs(values).max()
        groups = np.split(np.arange(d), np.flatnonzero(apart) + 1)
        outcomes = np.array([values[g].mean() for g in groups])
        roots = np.stack([frames[:, g] @ frames[:, g].conj().T for g in groups])
    else:
        effects = _hermitian(np.asarray(data["effects"], dtype=np.complex128))
        _require(np.abs(effects.sum(0) - np.eye(d)) <= 1e-9, "measurement")
        _require([scipy.linalg.eigvalsh(e)[0] >= -1e-9 for e in effects], "measurement")
        outcomes = np.arange(len(effects), dtype=np.float64)
        left, singular, _ = np.linalg.svd(effects)
        roots = left * np.sqrt(singular)[:, None, :] @ left.conj().transpose(0, 2, 1)
    rhos = _densities(states, pure)
    law = np.einsum("kij,njl,kil->nk", roots, rhos, roots.conj()).real.clip(0)
    law /= law.sum(1, keepdims=True)
    safe = np.where(law > 0, law, 1.0)
    if pure:
        after = np.einsum("kij,nj->nki", roots, states) / np.sqrt(safe)[..., None]
    else:
        after = np.einsum("kij,njl,kml->nkim", roots, rhos, roots.conj()) / safe[..., None, None]
    shape = (*lead, len(outcomes))
    return {
        "outcomes": outcomes, "probabilities": law.reshape(shape), "states": after.reshape(*shape, *after.shape[2:])
    }  # fmt: skip


@recomputes("counts")
def _counts(data: Data) -> Any:
    from scipy.stats import binomtest  # takes half a second to import, and only this check needs it

    counts, outcomes = np.asarray(data["counts"]), np.asarray(data["outcomes"], dtype=np.float64)
    confidence = float(data["confidence"])
    _require(counts.dtype.kind in "iu" and counts.min() >= 0 and 0 < confidence < 1, "count")
    shots, k = int(counts.sum()), len(counts)
    alpha = (1 - confidence) / k
    intervals = []
    for c in counts.tolist():
        found = binomtest(c, shots).proportion_ci(1 - alpha, method="exact")
        intervals.append((found.low, found.high))
    spread = float(outcomes.max() - outcomes.min())
    mean = float(counts / shots @ outcomes)
    return {
        "counts": counts, "shots": shots, "confidence": confidence, "intervals": np.array(intervals), "mean": mean,
        "mean_error": spread * math.sqrt(-math.log((1 - confidence) / 2) / 2 / shots),
    }  # fmt: skip


# --- entropy and entanglement ------------------------------------------------------------------------------
def _entropy(law: np.ndarray, order: float, floor: float) -> float:
    law = law[law > (floor if order < 1 else 0)]
    if order == 1:
        return float(-(law * np.log(law)).sum())
    if order == math.inf:
        return float(-np.log(law.max()))
    if order == 0:
        return math.log(len(law))
    return float(np.log(np.sum(np.exp(order * np.log(law)))) / (1 - order))


@recomputes("entropy")
def _entropies(data: Data) -> Any:
    states, order = _states(data), float(data["order"])
    floor = 64 * states.shape[1] * float(np.finfo(np.asarray(data["tensor"]).dtype).eps)
    if data["pure"]:
        return np.zeros(_lead(data))
    laws = [np.linalg.svd(m, compute_uv=False) for m in states]
    if order != 1 and abs(order - 1) < 1e-4:  # Rényi entropies near 1 follow from the first two cumulants of −log λ
        found = []
        for law in laws:
            law = law[law > (floor if order < 1 else 0)]
            surprise = -np.log(law)
            first = (law * surprise).sum()
            second, third = (law * (surprise - first) ** 2).sum(), (law * (surprise - first) ** 3).sum()
            found.append(first - (order - 1) * second / 2 + (order - 1) ** 2 * third / 6)
        return np.reshape(found, _lead(data))
    return np.reshape([_entropy(law, order, floor) for law in laws], _lead(data))


def _matrix(psi: np.ndarray, dims: tuple[int, ...], part: tuple[int, ...]) -> np.ndarray:
    rest = [k for k in range(len(dims)) if k not in part]
    size = math.prod(dims[k] for k in part)
    return np.moveaxis(psi.reshape(dims), [*part, *rest], range(len(dims))).reshape(size, -1)


def _transposed(rho: np.ndarray, dims: tuple[int, ...], part: tuple[int, ...]) -> np.ndarray:
    n = len(dims)
    table = rho.reshape(*dims, *dims)
    for k in part:
        table = np.swapaxes(table, k, n + k)
    return table.reshape(rho.shape)


def _hyperdeterminant(a: np.ndarray) -> float:
    """4 |discriminant of det(A₀ + x A₁)| of ψ as two 2 × 2 slices."""
    (p, q), (r, s) = a[0]
    (t, u), (v, w) = a[1]
    constant, linear, square = p * s - q * r, p * w + t * s - q * v - u * r, t * w - u * v
    return float(4 * abs(linear**2 - 4 * square * constant))


def _two_qubits(rho: np.ndarray) -> float:
    left, singular, _ = np.linalg.svd(rho)
    root = left * np.sqrt(singular) @ left.conj().T
    flip = np.fliplr(np.diag([-1.0, 1, 1, -1]))
    s = scipy.linalg.svdvals(root.T @ flip @ root)
    return float(max(0.0, s[0] - s[1:].sum()))


@recomputes("entanglement")
def _entanglement(data: Data) -> Any:
    states, dims, part = _states(data), tuple(data["dims"]), tuple(data["part"])
    rest = [k for k in range(len(dims)) if k not in part]
    _require(part and rest and list(part) == sorted(set(part)), "cut")
    _require(math.prod(dims) == states.shape[1] and set(part) <= set(range(len(dims))), "cut")
    rows: list[dict[str, Any]] = []
    for state in states:
        row: dict[str, Any] = {}
        if data["pure"]:
            s = scipy.linalg.svdvals(_matrix(state, dims, part))
            law = s**2
            row["schmidt"], row["entropy"] = s, _entropy(law / law.sum(), 1.0, 0.0)
            row["negativity"] = (s.sum() ** 2 - law.sum()) / 2
            row["witness"] = -float(s[0] * s[1]) if len(s) > 1 else 0.0
            row["concurrence"] = math.sqrt(2 * max(0.0, sum(float(x) * float(law.sum() - x) for x in law)))
            row["three_tangle"] = _hyperdeterminant(state.reshape(2, 2, 2)) if dims == (2, 2, 2) else 0.0
        else:
            turned = _transposed(state, dims, part)
            row["negativity"] = (scipy.linalg.svdvals(turned).sum() - 1) / 2
            row["witness"] = float(scipy.linalg.eigvals(turned).real.min())
            row["concurrence"] = _two_qubits(state) if dims == (2, 2) else 0.0
        row["log_negativity"] = math.log2(2 * row["negativity"] + 1)
        rows.append(row)
    lead = _lead(data)
    found: dict[str, Any] = {}
    for name in rows[0]:
        table = np.stack([np.asarray(r[name]) for r in rows])
        found[name] = table.reshape((*lead, *table.shape[1:]))
    mixed = "undecided: pure states"
    if not data["pure"]:
        found |= {"schmidt": mixed, "entropy": mixed, "three_tangle": mixed}
        found |= {} if dims == (2, 2) else {"concurrence": "undecided: two qubits"}
    elif dims != (2, 2, 2):
        found["three_tangle"] = "undecided: three qubits"
    return {"part": part, **found}


# --- geometry ----------------------------------------------------------------------------------------------
@recomputes("chern_number")
def _chern(data: Data) -> Any:
    states = np.asarray(data["states"], dtype=np.complex128)
    frames = states[..., None] if states.ndim == 3 else states
    n, m = frames.shape[:2]
    _require(frames.ndim == 4 and min(n, m) >= 3 and np.isfinite(frames).all(), "grid of states")

    def overlap(a: tuple[int, int], b: tuple[int, int]) -> complex:
        x, y = (frames[i % n, j % m] for i, j in (a, b))
        gram = np.abs(np.linalg.det(x.conj().T @ x) * np.linalg.det(y.conj().T @ y))
        link = complex(np.linalg.det(x.conj().T @ y))
        _require(abs(link) >= 1e-9 * math.sqrt(gram) > 0, "grid of states that overlap")
        return link / abs(link)

    flux = np.zeros((n, m))
    for i in range(n):
        for j in range(m):
            corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1), (i, j)]
            flux[i, j] = -np.angle(np.prod([overlap(a, b) for a, b in pairwise(corners)]))
    return {"value": round(flux.sum() / (2 * math.pi)), "flux": flux, "largest_flux": float(np.abs(flux).max())}


# --- heads -------------------------------------------------------------------------------------------------
def _pattern(data: Data) -> np.ndarray:
    rows = np.asarray(data["pattern"], dtype=np.float64)
    _require(rows.ndim == 2 and rows.size and rows.min() >= 0, "pattern")
    _require(np.abs(rows.sum(1) - 1) <= 1e-9, "pattern")
    return rows


@recomputes("query_key")
def _query_key(data: Data) -> Any:
    rows, figure = _pattern(data), data["figure"]
    s = scipy.linalg.svdvals(np.sqrt(rows / len(rows)), check_finite=True)
    law = s**2 / (s**2).sum()
    if figure == "entropy":
        return _entropy(law, 1.0, 0.0)
    if figure == "renyi_2":
        return _entropy(law, 2.0, 0.0)
    if figure == "negativity":
        return float((s.sum() ** 2 - (s**2).sum()) / 2)
    raise ValueError(f"there is no figure {figure!r}")


@recomputes("bloch_halves")
def _bloch_halves(data: Data) -> Any:
    rows = _pattern(data)
    half = (rows.shape[1] + 1) // 2
    first, second = rows[:, :half], rows[:, half:]
    across = np.sqrt(first[:, : second.shape[1]] * second).sum(1).mean()
    return np.array([2 * across, 0.0, (first.sum(1) - second.sum(1)).mean()])


@recomputes("fubini_study_step")
def _fubini_study_step(data: Data) -> Any:
    roots = np.sqrt(_pattern(data))
    _require(len(roots) > 1, "pattern of two queries")
    roots /= np.linalg.norm(roots, axis=1, keepdims=True)
    # Kahan's angle of two unit vectors
    apart, along = (np.linalg.norm(roots[1:] + sign * roots[:-1], axis=1) for sign in (-1, 1))
    return float((2 * np.arctan2(apart, along)).mean())


@recomputes("value_state")
def _value_state(data: Data) -> Any:
    values = np.asarray(data["values"], dtype=np.float64)
    _require(values.ndim == 2 and np.isfinite(values).all() and np.abs(values).max() > 0, "table of values")
    s = scipy.linalg.svdvals(values / np.abs(values).max())
    return _entropy(s**2 / (s**2).sum(), float(data["order"]), 0.0)
