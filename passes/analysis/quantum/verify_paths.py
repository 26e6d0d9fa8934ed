"""Checks of path integrals, lattice fields and sums over token paths, with numpy, SciPy and mpmath.

Slices are multiplied one by one; integrals without dimension are those of special functions; the propagator of the free
field is a solution of its equation; the strip is summed ring by ring.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.linalg

from aatc.passes.analysis.quantum.verify_quantum import recomputes

Data = Mapping[str, Any]


def _require(sound: Any, what: str) -> None:
    if not bool(np.all(sound)):
        raise ValueError(f"the data of this witness is no {what}")


# --- slices ------------------------------------------------------------------------------------------------
class _Slices:
    """The slices of one level: positions, tables of the potential, and one slice between any two sets of them."""

    def __init__(self, data: Data, level: Data) -> None:
        self.mass, self.order, self.count = float(data["mass"]), data["order"], int(level["slices"])
        self.tau, self.grid = float(data["time"]) / self.count, np.asarray(level["grid"])
        self.potential = np.asarray(level["potential"])
        _require(self.tau > 0 and self.mass > 0 and self.order in (2, 4) and self.count >= 1, "path integral")
        steps = np.diff(self.grid)
        self.step = float(steps.mean())
        _require(np.abs(steps - self.step) <= 1e-9, "grid")
        _require(self.potential.shape == self.grid.shape and np.isfinite(self.potential), "table")
        width = math.sqrt(self.tau / self.mass / (1 if self.order == 2 else 2))
        _require(self.step <= width / 2 * (1 + 1e-9) or len(self.grid) == 33, "grid fine enough")
        if self.order == 4:
            middle = self.potential + self.tau**2 / (48 * self.mass) * np.asarray(level["slope"]) ** 2
            self.middle = np.exp(-2 * self.tau / 3 * middle) * self.step

    def between(self, x: np.ndarray, v_x: np.ndarray, y: np.ndarray, v_y: np.ndarray) -> np.ndarray:
        share = self.tau / (2 if self.order == 2 else 6)
        found = self.kernel(x, y, self.tau) if self.order == 2 else None
        if found is None:
            half = [self.kernel(z, self.grid, self.tau / 2) for z in (x, y)]
            found = np.einsum("ig,g,jg->ij", half[0], self.middle, half[1], optimize=True)
        result: np.ndarray = np.exp(-share * v_x)[:, None] * found * np.exp(-share * v_y)
        return result

    def kernel(self, x: np.ndarray, y: np.ndarray, span: float) -> np.ndarray:
        spread = span / self.mass
        gaussian: np.ndarray = np.exp(-((x[:, None] - y) ** 2) / (2 * spread)) / math.sqrt(2 * math.pi * spread)
        return gaussian

    def matrix(self) -> np.ndarray:
        return self.between(self.grid, self.potential, self.grid, self.potential) * self.step


def _sliced(data: Data, one: Any) -> dict[str, Any]:
    """The value of both levels as a `SlicedValue`."""
    levels = [_Slices(data, level) for level in data["levels"]]
    _require(len(levels) == 2 and levels[1].count == max(1, levels[0].count // 2), "pair of levels")
    fine, coarse = (np.asarray(one(s, level, k)) for k, (s, level) in enumerate(zip(levels, data["levels"])))
    error = float(np.abs(fine - coarse).max()) / (2 ** data["order"] - 1)
    return {"value": fine, "step_error": error, "slices": levels[0].count, "points": len(levels[0].grid)}


@recomputes("sliced_propagator")
def _propagator(data: Data) -> Any:
    x, y = np.asarray(data["initial"]), np.asarray(data["final"])

    def one(s: _Slices, level: Data, _: int) -> np.ndarray:
        v_x, v_y = np.asarray(level["initial_potential"]), np.asarray(level["final_potential"])
        if s.count == 1:
            return s.between(y, v_y, x, v_x)
        state = s.between(s.grid, s.potential, x, v_x)
        matrix = s.matrix()
        for _ in range(s.count - 2):
            state = matrix @ state
        result: np.ndarray = s.between(y, v_y, s.grid, s.potential) * s.step @ state
        return result

    return _sliced(data, one)


@recomputes("sliced_partition")
def _partition(data: Data) -> Any:
    def one(s: _Slices, _: Data, __: int) -> float:
        return float(np.trace(np.linalg.matrix_power(s.matrix(), s.count)))

    return _sliced(data, one)


@recomputes("sliced_correlation")
def _correlation(data: Data) -> Any:
    times = [float(t) for t in data["times"]]
    order = sorted(range(len(times)), key=times.__getitem__)

    def one(s: _Slices, _: Data, which: int) -> float:
        tables = np.asarray(data["operators"][which])
        values, frames = scipy.linalg.eigh(s.matrix(), driver="ev")
        decay = np.maximum(values / values[-1], 0.0)
        whole = math.inf if data["ground"] else float(data["time"])
        _require([0 <= t <= whole for t in times], "ordering of times")
        inserted = [frames.T @ (tables[k][:, None] * frames) for k in order]
        last, product = times[order[0]], inserted[0]
        for k, operator in zip(order[1:], inserted[1:]):
            product = (operator * decay ** ((times[k] - last) / s.tau)) @ product
            last = times[k]
        if data["ground"]:
            return float(product[-1, -1])
        rest = decay ** ((whole - last + times[order[0]]) / s.tau)
        return float((rest * product.diagonal()).sum() / (decay ** (whole / s.tau)).sum())

    return _sliced(data, one)


@recomputes("effective_action")
def _effective(data: Data) -> Any:
    x, v, curvature = (np.asarray(data[k]) for k in ("field", "potential", "curvature"))
    n, mass = len(x), float(data["mass"])
    tau = float(data["time"]) / n
    _require(tau > 0 and mass > 0 and v.shape == curvature.shape == x.shape, "closed path")
    action = sum(mass * (x[(k + 1) % n] - x[k]) ** 2 / (2 * tau) + tau * v[k] for k in range(n))
    hessian = np.diag(2 + tau**2 / mass * curvature)
    for k in range(n):
        hessian[k, (k + 1) % n] -= 1
        hessian[(k + 1) % n, k] -= 1
    triangle = np.linalg.cholesky(hessian)  # fails where the action is not convex
    return {"classical": float(action), "one_loop": float(np.log(triangle.diagonal()).sum())}


# --- lattice fields ----------------------------------------------------------------------------------------
@recomputes("free_propagator")
def _free(data: Data) -> Any:
    from scipy.sparse import csr_array, eye_array, kron
    from scipy.sparse.linalg import splu

    sizes, mass = tuple(data["shape"]), float(data["mass"])
    _require(mass > 0, "massive field")
    operator = mass**2 * eye_array(math.prod(sizes))
    for axis, n in enumerate(sizes):
        ring = 2 * np.eye(n)
        for k in range(n):
            ring[k, (k + 1) % n] -= 1
            ring[k, (k - 1) % n] -= 1
        before, after = eye_array(math.prod(sizes[:axis])), eye_array(math.prod(sizes[axis + 1 :]))
        operator = operator + kron(kron(before, csr_array(ring)), after)
    source = np.zeros(math.prod(sizes))
    source[0] = 1
    return splu(operator.tocsc()).solve(source).reshape(sizes)


@recomputes("phi4_partition")
def _phi4(data: Data) -> Any:
    import mpmath

    m2, g = float(data["mass_squared"]), float(data["coupling"])
    with mpmath.workdps(30):
        if g == 0:
            return float(mpmath.sqrt(2 * mpmath.pi / m2))
        # ∫ e^{−m²φ²/2 − λφ⁴/24} = √π (λ/12)^{−¼} e^{z²/4} D_{−½}(z), z = m² √(3/λ)
        z = mpmath.mpf(m2) * mpmath.sqrt(3 / mpmath.mpf(g))
        return float(
            mpmath.sqrt(mpmath.pi) * (mpmath.mpf(g) / 12) ** -0.25 * mpmath.exp(z * z / 4) * mpmath.pcfd(-0.5, z)
        )


@recomputes("phi4_effective")
def _phi4_effective(data: Data) -> Any:
    from scipy.integrate import quad
    from scipy.optimize import brentq

    m2, g, field = (float(data[k]) for k in ("mass_squared", "coupling", "field"))

    def moments(j: float) -> tuple[float, float]:
        """⟨φ⟩ and log Z with a source, by adaptive quadrature around the peaks."""
        roots = np.roots([g / 6, 0.0, m2, -j]) if g else np.array([j / m2])
        peaks = roots[np.abs(roots.imag) <= 1e-6 * (1 + np.abs(roots))].real
        top = max(-m2 * x**2 / 2 - g * x**4 / 24 + j * x for x in peaks)
        width = 12 / math.sqrt(max(abs(m2), math.sqrt(g)))
        limits = {"points": np.sort(peaks), "limit": 400, "epsabs": 1e-14, "epsrel": 1e-13, "full_output": 1}

        def weight(x: float) -> float:
            return math.exp(-m2 * x**2 / 2 - g * x**4 / 24 + j * x - top)

        low, high = peaks.min() - width, peaks.max() + width
        z = quad(weight, low, high, **limits)[0]
        return quad(lambda x: x * weight(x), low, high, **limits)[0] / z, math.log(z) + top

    reach = 1.0
    while moments(reach)[0] < abs(field):
        reach *= 2
    source = float(brentq(lambda j: moments(j)[0] - field, -reach, reach, xtol=1e-14, rtol=1e-14))
    return (source * field - moments(source)[1], source)


@recomputes("ising_strip")
def _ising(data: Data) -> Any:
    coupling, field = float(data["coupling"]), float(data["field"])
    around, length = int(data["around"]), int(data["length"])
    _require(1 <= around <= 12 and length >= 2, "strip")
    states = [[1 - 2 * ((s >> k) & 1) for k in range(around)] for s in range(1 << around)]
    pairs = [(k, (k + 1) % around) for k in range(around)] if around > 2 else [(0, 1)] if around == 2 else []
    table = np.array(states, dtype=np.float64)
    inner = np.array([sum(s[a] * s[b] for a, b in pairs) for s in states], dtype=np.float64)

    def product(k: float) -> tuple[np.ndarray, float]:
        """The matrix of a ring's weight times the bonds to the next, and the logarithm that it was scaled by."""
        exponent = k * (table @ table.T) + (k * inner + field * table.sum(1))[:, None]
        return np.exp(exponent - exponent.max()), float(exponent.max())

    def log_z(k: float) -> float:
        matrix, scale = product(k)
        return length * scale + _log_trace_power(matrix, length)

    matrix, _ = product(coupling)
    spin = table[:, :1]
    powers = [np.eye(len(matrix))]
    for _ in range(length):
        following = powers[-1] @ matrix
        powers.append(following / following.max())
    correlation = []
    for r in range(length):
        joined = (spin * powers[r]).T * (spin * powers[length - r])
        plain = powers[r].T * powers[length - r]
        correlation.append(float(joined.sum() / plain.sum()))
    total, volume = log_z(coupling), around * length
    slope = _slope(matrix, table, inner, length)
    return {
        "log_partition": total, "free_energy": -total / volume, "energy": -slope / volume,
        "correlation": np.array(correlation),
    }  # fmt: skip


def _log_trace_power(matrix: np.ndarray, power: int) -> float:
    """log tr Mⁿ of a matrix of numbers ≥ 0, by squaring, rescaled all along."""
    result, scale, base, base_scale = np.eye(len(matrix)), 0.0, matrix, 0.0
    while power:
        if power & 1:
            result, scale = result @ base, scale + base_scale
            top = float(result.max())
            result, scale = result / top, scale + math.log(top)
        base, base_scale = base @ base, 2 * base_scale
        top = float(base.max())
        base, base_scale = base / top, base_scale + math.log(top)
        power >>= 1
    return scale + math.log(float(np.trace(result)))


def _slope(matrix: np.ndarray, table: np.ndarray, inner: np.ndarray, length: int) -> float:
    """∂ log tr Mⁿ/∂K = n tr(Mⁿ⁻¹ ∂M)/tr Mⁿ."""
    derivative = matrix * (table @ table.T + inner[:, None])
    power = np.eye(len(matrix))
    for _ in range(length - 1):
        power = power @ matrix
        power /= power.max()
    return length * float((power.T * derivative).sum() / (power.T * matrix).sum())


# --- token paths -------------------------------------------------------------------------------------------
def _layers(data: Data) -> list[np.ndarray]:
    layers = [np.asarray(p, dtype=np.float64) for p in data["layers"]]
    _require(len(layers) > 0, "stack of layers")
    for p in layers:
        _require(p.ndim >= 2 and p.min() >= 0 and np.abs(p.sum(-1) - 1).max() <= 1e-9, "pattern")
    return layers


@recomputes("token_paths")
def _token_paths(data: Data) -> Any:
    layers = _layers(data)
    weights = layers[-1]
    for p in reversed(layers[:-1]):  # from above, not from below
        weights = np.einsum("...ij,...jk->...ik", weights, p)
    # the entropy of a chain: that of each step under the law of where it begins
    law = np.broadcast_to(np.eye(layers[-1].shape[-2]), (*layers[-1].shape[:-2], *[layers[-1].shape[-2]] * 2))
    entropy = np.zeros(law.shape[:-1])
    for p in reversed(layers):
        entropy = entropy + np.einsum("...ij,...j->...i", law, -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1))
        law = law @ p
    return {"weights": weights, "entropy": entropy}


@recomputes("likeliest_token_path")
def _likeliest(data: Data) -> Any:
    layers, start, end = _layers(data), int(data["start"]), int(data["end"])
    _require(0 <= start < len(layers[-1]) and 0 <= end < layers[0].shape[1], "pair of tokens")
    # the largest products from above
    best, total, back = np.eye(len(layers[-1]))[start], np.eye(len(layers[-1]))[start], []
    for p in reversed(layers):
        through = best[:, None] * p
        back.append(through.argmax(0))
        best, total = through.max(0), total @ p
    _require(best[end] > 0, "pair of tokens that a path joins")
    tokens = [end]
    for choice in reversed(back):
        tokens.append(int(choice[tokens[-1]]))
    return {
        "tokens": tuple(reversed(tokens)), "action": float(-np.log(best[end])), "share": float(best[end] / total[end])
    }  # fmt: skip


@recomputes("sampled_paths")
def _sampled(data: Data) -> Any:
    last, counts = np.asarray(data["last"]), np.asarray(data["counts"])
    confidence = float(data["confidence"])
    _require(last.min() >= 0 and np.abs(last.sum(1) - 1).max() <= 1e-9, "pattern")
    _require(counts.dtype.kind in "iu" and counts.min() >= 0 and 0 < confidence < 1, "count of paths")
    rows = np.repeat(last, counts, axis=0)
    n = len(rows)
    log = math.log(4 * last.shape[1]) - math.log(1 - confidence)
    error = np.sqrt(2 * rows.var(0, ddof=1) * log / n) + 7 * log / (3 * (n - 1))
    return {"weights": rows.mean(0), "error": error, "samples": n, "confidence": confidence}
