"""Checks of Toeplitz parts, bands, phonons, Brillouin zones and lattices in noise.

Winding numbers are counted again by the roots of the determinant, Chern numbers by products of projectors, zones by the
volume that all of them must have, lattices in noise by the slopes of the least squares, by finite differences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np
import scipy.linalg
from scipy.spatial import ConvexHull

from aatc.passes.analysis.claims import deviation
from aatc.passes.analysis.crystal.verify_crystal import checks
from aatc.passes.analysis.crystal.verify_lattices import FALSE, is_reduced
from aatc.passes.analysis.result import worst

Data = Mapping[str, Any]
#: What may stand in place of winding numbers, and of Chern numbers.
_OPEN = {
    1: tuple(f"undecided: {x}" for x in (
        "one dimension", "two sublattices, or a crystal that is not Hermitian", "16384 points")),
    2: tuple(f"undecided: {x}" for x in ("two dimensions", "bands that are apart")),
}  # fmt: skip


# --- crystals ----------------------------------------------------------------------------------------------
def _model(data: Data) -> dict[tuple[int, ...], np.ndarray]:
    shifts, blocks = np.asarray(data["shifts"]), np.asarray(data["blocks"], dtype=np.complex128)
    if shifts.dtype.kind not in "iu" or len(shifts) != len(blocks) or not np.isfinite(blocks).all():
        raise ValueError("these are no hoppings")
    table = {tuple(int(x) for x in r): b for r, b in zip(shifts, blocks)}
    if len(table) != len(shifts):
        raise ValueError("a shift is given twice")
    return table


def _matrices(table: Mapping[tuple[int, ...], np.ndarray], points: np.ndarray) -> np.ndarray:
    total = np.zeros((len(points), *next(iter(table.values())).shape), dtype=np.complex128)
    for r, b in table.items():
        angle = sum(points[:, c] * x for c, x in enumerate(r))
        total += (np.cos(angle) + 1j * np.sin(angle))[:, None, None] * b
    return total


def _is_hermitian(table: Mapping[tuple[int, ...], np.ndarray]) -> bool:
    rng = np.random.default_rng(3)
    h = _matrices(table, rng.uniform(0, 2 * np.pi, (7, len(next(iter(table))))))
    return bool(np.abs(h - h.conj().swapaxes(1, 2)).max() <= 1e-9 * max(np.abs(h).max(), 1e-300))


@checks("bands")
def _bands(data: Data, claim: Any) -> float:
    table = _model(data)
    points = np.asarray(data["points"], dtype=np.float64)
    if not np.array_equal(points, np.asarray(claim["points"])):
        return FALSE
    h, hermitian = _matrices(table, points), _is_hermitian(table)
    energies = np.sort_complex(np.linalg.eigvals(h))
    claimed = np.asarray(claim["energies"])
    if claimed.shape != energies.shape:
        return FALSE
    scale = max(1.0, float(np.abs(energies).max()))
    if hermitian:
        if np.iscomplexobj(claimed) or (np.diff(claimed, axis=1) < 0).any():
            return FALSE
        off = deviation(np.sort(energies.real, axis=1), claimed)
        gaps = np.array([claimed[:, b + 1].min() - claimed[:, b].max() for b in range(claimed.shape[1] - 1)])
    else:  # each is a root, and all of them have the sums of powers that the matrix has
        power, off = np.eye(h.shape[1]), 0.0
        for n in range(1, h.shape[1] + 1):
            power = power @ h
            gap = np.abs(np.trace(power, axis1=1, axis2=2) - (claimed**n).sum(1)).max()
            off = worst(off, float(gap) / scale**n)
        gaps = np.zeros(0)
    topology = claim["topology"]
    if not _winding_holds(table, float(data["energy"]), hermitian, topology["winding"]):
        return FALSE
    if not _chern_holds(table, int(data["grid"]), hermitian, topology["chern"]):
        return FALSE
    return worst(off, deviation(gaps, claim["gaps"]))


def _winding_holds(table: Mapping[tuple[int, ...], np.ndarray], energy: float, hermitian: bool, claim: Any) -> bool:
    """By the argument principle: zeros of det(H(z) − E) within the unit circle, less the order of its pole at 0."""
    undecided = isinstance(claim, str) and claim in _OPEN[1]
    sites = next(iter(table.values())).shape[0]
    if len(next(iter(table))) != 1:
        return undecided and claim == _OPEN[1][0]
    first, second = list(range(sites)), list(range(sites))
    if hermitian:
        graph = nx.Graph()
        graph.add_nodes_from(range(sites))
        graph.add_edges_from((a, b) for t in table.values() for a, b in np.argwhere(np.abs(t) > 0).tolist())
        if energy or not nx.is_connected(graph) or not nx.is_bipartite(graph):
            return undecided
        halves = nx.bipartite.sets(graph)
        first, second = (sorted(half) for half in sorted(halves, key=lambda half: 0 not in half))
        if len(first) != len(second):
            return undecided
    degree = max(abs(r[0]) for r in table) * len(first)
    if degree > 128:  # too many roots: the phase is followed in small steps
        points = 2 * np.pi * np.arange(1 << 16)[:, None] / (1 << 16)
        values = np.linalg.det(
            _matrices(table, points)[:, first][:, :, second] - (0 if hermitian else energy) * np.eye(len(first))
        )
        turn = np.unwrap(np.angle(np.append(values, values[0])))
        near = float(np.abs(values).min()) < 0.2 * float(np.abs(values).max())
        return near if undecided else type(claim) is int and claim == round(float(turn[-1] - turn[0]) / (2 * np.pi))
    count = 2 * degree + 1
    points = 2 * np.pi * np.arange(count)[:, None] / count
    h = _matrices(table, points) - (0 if hermitian else energy) * np.eye(sites)
    values = np.array([np.prod(scipy.linalg.eigvals(m[np.ix_(first, second)])) for m in h])
    coefficients = np.roll(np.fft.fft(values) / count, degree)  # of z^−degree to z^degree
    coefficients[np.abs(coefficients) <= 1e-12 * np.abs(coefficients).max()] = 0
    used = np.flatnonzero(coefficients)
    if not len(used):
        return undecided
    roots = np.roots(coefficients[used[0] : used[-1] + 1][::-1])
    inside = int((np.abs(roots) < 1).sum()) + int(used[0]) - degree
    if undecided:
        return bool(len(roots)) and float(np.abs(np.abs(roots) - 1).min()) < 0.05
    return bool(type(claim) is int and claim == inside)


def _chern_holds(table: Mapping[tuple[int, ...], np.ndarray], grid: int, hermitian: bool, claim: Any) -> bool:
    """Each number by det U† P P P U around the cells of the grid."""
    undecided = isinstance(claim, str) and claim in _OPEN[2]
    if len(next(iter(table))) != 2 or not hermitian:
        return undecided and claim == _OPEN[2][0]
    axis = 2 * np.pi * np.arange(grid) / grid
    points = np.array(list(itertools.product(axis, axis)))
    energies, frames = np.linalg.eigh(_matrices(table, points))
    sites = energies.shape[1]
    apart = np.diff(energies, axis=1).min(0) if sites > 1 else np.zeros(0)
    cuts = [b + 1 for b in range(sites - 1) if apart[b] > 1e-6 * max(np.abs(energies).max(), 1e-300)]
    if undecided:
        return not cuts and claim == _OPEN[2][1]
    groups = list(itertools.pairwise([0, *cuts, sites]))
    if len(claim) != len(groups) or not cuts:
        return False
    step = 2 * np.pi / grid
    slope = sum(np.linalg.svd(b, compute_uv=False)[0] * (abs(r[0]) + abs(r[1])) for r, b in table.items())
    for (low, high), (band, count, number, proved) in zip(groups, claim):
        u = frames[:, :, low:high].reshape(grid, grid, sites, high - low)
        p = u @ u.conj().swapaxes(-1, -2)
        around = np.roll(p, -1, 0) @ np.roll(p, (-1, -1), (0, 1)) @ np.roll(p, -1, 1)
        flux = -np.angle(np.linalg.det(u.conj().swapaxes(-1, -2) @ around @ u))
        gap = min(apart[e - 1] for e in (low, high) if 0 < e < sites)
        fine = bool(step * slope < math.sqrt(0.5) * (gap - step * slope))
        told = (band, count, proved) == (low, high - low, fine) and type(number) is int and type(proved) is bool
        if not told or abs(float(flux.sum()) / (2 * np.pi) - number) > 1e-6:
            return False
    return True


@checks("phonons")
def _phonons(data: Data, claim: Any) -> float:
    table, masses, parts = _model(data), np.asarray(data["masses"], dtype=np.float64), int(data["components"])
    points, omega = np.asarray(data["points"]), np.asarray(claim["frequencies"])
    if not np.array_equal(points, np.asarray(claim["points"])) or not (masses > 0).all() or not _is_hermitian(table):
        return FALSE
    mass = np.repeat(masses, parts)
    dynamical = _matrices(table, points) / np.sqrt(np.multiply.outer(mass, mass))
    modes = np.asarray(claim["modes"])
    if omega.shape != dynamical.shape[:2] or modes.shape != dynamical.shape or (np.diff(omega, axis=1) < 0).any():
        return FALSE
    scale = max(1.0, float(np.abs(dynamical).max()))
    unit = np.abs(modes.conj().swapaxes(1, 2) @ modes - np.eye(len(mass))).max()
    left = np.abs(dynamical @ modes - modes * (omega * np.abs(omega))[:, None, :]).max() / scale
    expected = np.sort(np.linalg.eigvals(dynamical).real, axis=1)
    signed = np.abs(omega * np.abs(omega) - expected).max() / scale
    forces = np.sum(list(table.values()), axis=0).real
    moved = np.abs(forces.reshape(len(mass), -1, parts).sum(1)).max() / max(np.abs(list(table.values())).max(), 1e-300)
    return float(worst(unit, left, signed, abs(moved - float(claim["acoustic_sum"])), deviation(omega, omega)))


@checks("toeplitz")
def _toeplitz(data: Data, claim: Any) -> float:
    array, block = np.asarray(data["pattern"], dtype=np.float64), int(data["block"])
    cells = len(array) // block
    means = np.zeros((2 * cells - 1, block, block))
    nearest = 0.0
    for a, b in itertools.product(range(block), repeat=2):
        tile = array[a::block, b::block]
        for n, r in enumerate(range(1 - cells, cells)):
            diagonal = np.diagonal(tile, r)
            means[n, a, b] = diagonal[0] if diagonal.min() == diagonal.max() else math.fsum(diagonal) / len(diagonal)
            nearest += len(diagonal) * means[n, a, b] ** 2
    share = nearest / float(np.linalg.norm(array) ** 2) if array.any() else 1.0
    exact = claim["share"] == 1.0 and abs(share - 1) < 1e-12
    found = {"shifts": np.arange(1 - cells, cells), "blocks": means, "share": 1.0 if exact else share}
    return deviation(found, claim)


@checks("head")
def _head(data: Data, claim: Any) -> float:
    """Figures of the Toeplitz part of one head."""
    array = np.asarray(data["pattern"], dtype=np.float64)
    n = len(array)
    means = {r: float(np.trace(array, offset=r)) / (n - abs(r)) for r in range(1 - n, n)}
    if data["figure"] == "toeplitz_share":
        kept = math.fsum((n - abs(r)) * w * w for r, w in means.items())
        return deviation(min(1.0, kept / float(np.square(array).sum())), claim)
    if data["figure"] == "sound_speed":
        return deviation(math.sqrt(math.fsum(w * r * r for r, w in means.items()) / 2), claim)
    if data["figure"] == "symbol_winding":
        table: dict[tuple[int, ...], np.ndarray] = {(r,): np.array([[w + 0j]]) for r, w in means.items() if w}
        return 0.0 if _winding_holds(table, 0.0, False, claim) else FALSE
    return FALSE


# --- Brillouin zones ---------------------------------------------------------------------------------------
@checks("brillouin")
def _brillouin(data: Data, claim: Any) -> float:
    """All pieces of a zone lie between the same midplanes, and fill the volume of a cell."""
    basis = np.asarray(data["basis"], dtype=np.float64)
    d = len(basis)
    basis = basis.copy()
    for _ in range(200):  # shorter vectors of the same lattice
        for i, j in itertools.permutations(range(d), 2):
            basis[i] -= round(float(basis[i] @ basis[j]) / float(basis[j] @ basis[j])) * basis[j]
    dual = scipy.linalg.solve(basis, 2 * np.pi * np.eye(d)).T
    volume = abs(float(np.linalg.det(dual)))
    far = max(float(np.linalg.norm(p, axis=-1).max()) for z in claim for p in z["pieces"])
    heights = [2 * far * float(np.linalg.norm(a)) / (2 * np.pi) for a in basis]
    around = (
        np.array([h for h in itertools.product(*(range(-int(x) - 1, int(x) + 2) for x in heights)) if any(h)]) @ dual
    )
    off = 0.0
    for n, zone in enumerate(claim):
        total = 0.0
        for piece in zone["pieces"]:
            side = piece @ around.T - (around**2).sum(1) / 2
            room = 1e-7 * (around**2).sum(1)
            behind, before = (side >= -room).all(0), (side <= room).all(0)
            if piece.ndim != 2 or not (behind | before).all() or int((behind & ~before).sum()) != n:
                return FALSE
            total += float(np.ptp(piece)) if d == 1 else float(ConvexHull(piece).volume)
        off = worst(off, abs(total / volume - 1), abs(float(zone["volume"]) / volume - 1))
        if zone["order"] != n + 1:
            return FALSE
        if n == 0:
            off = worst(off, _faces_off(zone, around))
        elif np.asarray(zone["faces"]).shape != (0, d):
            return FALSE
    return off


def _faces_off(zone: Any, around: np.ndarray) -> float:
    """Each vector of a face has d corners or more on its midplane that span it, each other vector fewer; each corner is
    one of d independent faces."""
    corners, faces = np.asarray(zone["pieces"][0]), np.asarray(zone["faces"])
    d = corners.shape[1]
    expected = []
    for g in around:
        on = corners[np.abs(corners @ g - g @ g / 2) <= 1e-7 * (g @ g)]
        if len(on) >= d and np.linalg.matrix_rank(on - on[0], tol=1e-5 * np.linalg.norm(g)) == d - 1:
            expected.append(g)
    if faces.shape != (len(expected), d) or list(map(tuple, faces)) != sorted(map(tuple, faces)):
        return FALSE
    gap = np.linalg.norm(faces[:, None] - np.array(expected)[None], axis=-1) / np.linalg.norm(faces, axis=1)[:, None]
    off = max(float(gap.min(0).max()), float(gap.min(1).max()))
    for p in corners:
        on = np.array([g for g in expected if abs(p @ g - g @ g / 2) <= 1e-7 * (g @ g)])
        if not len(on) or np.linalg.matrix_rank(on) < d:
            return FALSE
        at = np.linalg.lstsq(on, (on**2).sum(1) / 2, rcond=None)[0]
        off = worst(off, float(np.abs(at - p).max() / np.linalg.norm(p)))
    return off


# --- lattices in noise -------------------------------------------------------------------------------------
def _explained(array: np.ndarray, frequencies: np.ndarray) -> tuple[float, float]:
    """What weighted waves ±G explain, and the whole, by explicit sums over the array."""
    n, m = array.shape
    tapered = min(n, m) >= 40
    weights = [np.sin(np.pi * (np.arange(k) + 0.5) / k) ** 2 if tapered else np.ones(k) for k in (n, m)]
    both = np.concatenate([frequencies, -frequencies])
    rows, cols = (np.exp(2j * np.pi * np.outer(both[:, c], np.arange(k))) for c, k in ((0, n), (1, m)))
    gram = ((rows.conj() * weights[0]) @ rows.T) * ((cols.conj() * weights[1]) @ cols.T)
    right = (((rows.conj() * weights[0]) @ array) * (cols.conj() * weights[1])).sum(1)
    amplitude = np.linalg.lstsq(gram, right, rcond=1e-11)[0]
    return float((right.conj() @ amplitude).real), float(weights[0] @ array**2 @ weights[1])


@checks("spectral_lattice")
def _spectral_lattice(data: Data, claim: Any) -> float:
    array, steps = np.asarray(data["pattern"], dtype=np.float64), np.asarray(data["sampling"], dtype=np.float64)
    array = array / max(float(np.abs(array).max()), np.finfo(float).tiny)
    array = array - array.mean()
    vectors, orders = np.asarray(claim["vectors"], dtype=np.float64), np.asarray(data["orders"])
    rank = len(vectors)
    if (
        claim["rank"] != rank
        or claim["exact"] is not False
        or vectors.shape != (rank, 2)
        or orders.shape[1:] != (rank,)
    ):
        return FALSE
    basis = np.asarray(claim["basis"])
    if basis.shape != (rank, 2):
        return FALSE
    off = float(np.abs(basis - vectors @ steps).max(initial=0.0))
    if rank == 0:
        return (
            off
            if claim["bravais"] == "none"
            and claim["share"] == 0
            and (data["unsettled"] is True or _quiet(array, float(data["level"])))
            else FALSE
        )
    if not _class_holds(basis, claim["bravais"], float(data["tolerance"])):
        return FALSE
    dual = np.linalg.inv(vectors).T if rank == 2 else (steps @ basis[0] / (basis[0] @ basis[0]))[None]
    rows = [tuple(int(x) for x in row) for row in orders]
    if rows != sorted(set(rows)) or min(rows) <= (0,) * rank:
        return FALSE
    if math.gcd(*(int(x) for x in _minors(orders))) != 1 or orders.dtype.kind not in "iu":
        return FALSE
    step = 3e-4 / np.array(array.shape)
    power, whole = _explained(array, orders @ dual)

    def value(change: np.ndarray) -> float:
        return _explained(array, orders @ (dual + change.reshape(rank, 2) * step))[0]

    units = np.eye(2 * rank)
    ahead, behind = np.array([value(e) for e in units]), np.array([value(-e) for e in units])
    slope = (ahead - behind) / 2
    bend = np.diag(ahead + behind - 2 * power)
    for i, j in itertools.combinations(range(2 * rank), 2):
        bend[i, j] = bend[j, i] = (
            value(units[i] + units[j]) - ahead[i] - ahead[j] + power
            + value(-units[i] - units[j]) - behind[i] - behind[j] + power
        ) / 2  # fmt: skip
    if np.linalg.eigvalsh(bend)[-1] >= 0:
        return FALSE  # no maximum
    moved = np.linalg.solve(bend, -slope).reshape(rank, 2) * step
    cycles = float(np.abs(moved * np.array(array.shape)).max())
    return worst(off, cycles, abs(min(1.0, power / whole) - float(claim["share"])))


def _minors(orders: np.ndarray) -> list[int]:
    """Numbers whose greatest common divisor is the index of the lattice that integer rows generate."""
    if orders.shape[1] == 1:
        return [int(x) for x in orders[:, 0]]
    return [int(a[0] * b[1] - a[1] * b[0]) for a, b in itertools.combinations(orders.tolist(), 2)]


def _class_holds(basis: np.ndarray, name: str, tolerance: float) -> bool:
    """Whether a shape is near the class, and no more symmetric one is within the tolerance."""
    if len(basis) == 1:
        return name == "row" and tuple(np.round(basis[0], 9)) > (0, -np.inf)
    if not is_reduced(basis):
        return False
    a, b = np.linalg.norm(basis, axis=1)
    cosine = float(basis[0] @ basis[1]) / (a * b)
    missed = np.abs([math.log(b / a), cosine, 2 * abs(cosine) * b / a - 1])
    needed: dict[str, list[tuple[int, ...]]] = {
        "hexagonal": [(0, 2)], "square": [(0, 1)], "rectangular": [(1,)], "centred rectangular": [(0,), (2,)],
        "oblique": [()],
    }  # fmt: skip
    near = any(max((missed[k] for k in ks), default=0.0) <= 0.081 for ks in needed[name])
    above = {
        "oblique": needed["rectangular"] + needed["centred rectangular"],
        "rectangular": needed["square"], "centred rectangular": needed["square"] + needed["hexagonal"],
    }  # fmt: skip
    return near and not any(max(missed[k] for k in ks) <= tolerance for ks in above.get(name, []))


def _quiet(array: np.ndarray, level: float) -> bool:
    """Whether no wave stands far out of the noise."""
    if min(array.shape) < 8 or not array.any():
        return True
    n, m = array.shape
    high, wide = min(n, 256), min(m, 256)
    middle = array[(n - high) // 2 : (n + high) // 2, (m - wide) // 2 : (m + wide) // 2]
    power = np.abs(np.fft.fft2(middle - middle.mean())) ** 2 / middle.size
    cycles = np.hypot(np.fft.fftfreq(high)[:, None] * high, np.fft.fftfreq(wide)[None, :] * wide)
    for a, b in ((high // 2, 0), (0, wide // 2), (high // 2, wide // 2)):
        cycles[a, b] = 0.0  # waves of two steps are not looked for
    tallest = float(power[cycles >= 1.9].max())
    # where the spectrum slopes, the level is that of the tile, which the mean of the larger half bounds
    return tallest <= 2 * math.log(2 * middle.size / level) * float(
        np.mean(np.sort(power, axis=None)[power.size // 2 :])
    )
