"""Checks of renormalisation maps with numpy: the maps known in closed form by formulas of their own, derivatives by
differences, Feigenbaum's operator by NumPy's series."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from aatc.passes.analysis.scale.verify_scale import recomputes, require

Data = Mapping[str, Any]
Map = Callable[[np.ndarray], np.ndarray]


def _ising_chain(x: np.ndarray, factor: float) -> np.ndarray:
    """By the transfer matrix: (λ₋/λ₊) of its power."""
    t = float(x[0])
    power = np.linalg.matrix_power(np.array([[1 + t, 1 - t], [1 - t, 1 + t]]) / 2, int(factor))
    return np.array([power[0, 0] - power[0, 1]])


def _ising_in_field(x: np.ndarray) -> np.ndarray:
    """By the transfer matrix squared, divided by the weight of two spins up."""
    u, y = x
    # T₊₊ = 1, T₋₋ = e^{−2h} = y and T₊₋T₋₊ = e^{−4K}T₊₊T₋₋ = uy; of T² the same
    through = u * y
    plus, minus, mixed = 1 + through, through + y * y, through * (1 + y) ** 2
    return np.array([mixed / (plus * minus), minus / plus])


def _migdal_kadanoff(x: np.ndarray, dimension: float, factor: float) -> np.ndarray:
    bond = float(x[0]) * factor ** (dimension - 1)
    matrix = np.exp(np.array([[bond, -bond], [-bond, bond]]) - abs(bond))
    power = np.linalg.matrix_power(matrix, int(factor))
    return np.array([math.log(power[0, 0] / power[0, 1]) / 2])


def _doubling(x: np.ndarray, degree: float) -> np.ndarray:
    """With NumPy's Chebyshev series, and a linear system for the fit."""
    m = int(degree)
    basis = np.polynomial.chebyshev.Chebyshev(x, domain=[0, 1])
    at = (1 + np.cos(np.pi * (np.arange(m) + 0.5) / m)) / 2

    def g(y: np.ndarray) -> np.ndarray:
        result: np.ndarray = 1 + y * y * basis(y * y)
        return result

    unit = g(np.ones(1))
    image = (g(g(unit * np.sqrt(at))) / unit - 1) / at
    fitted: np.ndarray = np.linalg.solve(np.polynomial.chebyshev.chebvander(2 * at - 1, m - 1), image)
    return fitted


#: Relative steps of differences: the shorter, the less curvature matters, and the more rounding does.
STEPS = (1e-3, 1e-4, 1e-5)
KNOWN: dict[str, Callable[..., np.ndarray]] = {
    "ising_chain": _ising_chain,
    "ising_chain_in_field": _ising_in_field,
    "migdal_kadanoff": _migdal_kadanoff,
    "doubling_operator": _doubling,
}


def _map_of(data: Data) -> tuple[Map, float]:
    """(function on arrays, factor)."""
    given = data["map"]
    name, factor = given["name"], float(given["factor"])
    require(1 < factor < math.inf, "map")
    if name:
        formula, parameters = KNOWN[name], given["parameters"]

        def known(x: np.ndarray) -> np.ndarray:
            own = formula(x, *parameters)
            image = given["function"](torch.as_tensor(x)).numpy()
            require(np.abs(own - image).max() <= 1e-8 * (1 + np.abs(own).max()), "map of this name")
            return own

        return known, factor
    return lambda x: given["function"](torch.as_tensor(x)).numpy(), factor


def _differences(function: Map, x: np.ndarray, step: float) -> np.ndarray:
    """The Jacobian (d, d) by central differences over h and 2h, h⁴ cancelled."""
    columns = []
    for k in range(len(x)):
        h = np.zeros(len(x))
        h[k] = step * max(abs(x[k]), 0.1)
        near, far = (function(x + s * h) - function(x - s * h) for s in (1, 2))
        columns.append((8 * near - far) / (12 * h[k]))
    return np.stack(columns, axis=1)


@recomputes("fixed_points")
def _fixed_points(data: Data) -> Any:
    function, factor = _map_of(data)
    points = [np.asarray(p, dtype=np.float64) for p in data["points"]]
    d = len(points[0]) if points else 0
    found = []
    for x, given in zip(points, data["jacobians"], strict=True):
        jacobian = np.asarray(given, dtype=np.float64)
        require(x.shape == (d,) and bool(np.isfinite(x).all()) and jacobian.shape == (d, d), "point")
        room = 1e-6 * (1 + np.abs(jacobian).max())
        apart = min(np.abs(_differences(function, x, step) - jacobian).max() for step in STEPS)
        require(apart <= room, "derivative of the map")
        gap = function(x) - x
        step = np.linalg.pinv(np.eye(d) - jacobian, rcond=1e-7) @ gap
        require(max(np.abs(step).max(), np.abs(gap).max()) <= 1e-8 * (1 + np.abs(x).max()), "fixed point")
        found.append(_classified(x, jacobian, factor))
    order = [tuple(np.round(x, 6)) for x in points]
    require(order == sorted(set(order)), "list of distinct points in order")
    return tuple(found)


def _classified(x: np.ndarray, jacobian: np.ndarray, factor: float) -> dict[str, Any]:
    """Eigenvalues are the roots of the characteristic polynomial of one coupling or two, else by the Schur form."""
    import scipy.linalg

    if len(x) <= 2:
        half = complex(np.trace(jacobian)) / 2
        root = np.sqrt(half * half - np.linalg.det(jacobian))
        values = np.array([half + root, half - root] if len(x) == 2 else [2 * half])
    else:
        values = scipy.linalg.schur(jacobian, output="complex")[0].diagonal()
    values = np.array(sorted(values, key=lambda z: (round(-abs(z), 9), round(-z.real, 9), round(-z.imag, 9))))
    sizes = np.abs(values)
    far, near = int((sizes > 1 + 1e-6).sum()), int((np.abs(sizes - 1) <= 1e-6).sum())
    kind = "marginal" if near else {0: "attractive", len(x): "repulsive"}.get(far, "saddle")
    moved = np.eye(len(x)) - jacobian
    isolated = bool(scipy.linalg.eigvalsh(moved.T @ moved)[0] > 1e-12)
    exponents = np.array([math.log(size) / math.log(factor) if size > 1e-8 else -math.inf for size in sizes])
    return {
        "couplings": x, "jacobian": jacobian, "eigenvalues": values, "exponents": exponents, "kind": kind,
        "isolated": isolated,
    }  # fmt: skip


@recomputes("trajectory")
def _trajectory(data: Data) -> Any:
    function, factor = _map_of(data)
    x, steps = np.asarray(data["start"], dtype=np.float64), data["steps"]
    require(x.shape == (len(data["map"]["couplings"]),) and not isinstance(steps, bool) and steps >= 1, "start")
    rows = [x]
    for _ in range(steps):
        function(rows[-1])  # a known map is the one of its name
        rows.append(data["map"]["function"](torch.as_tensor(rows[-1])).numpy())
    scales = np.cumprod([1.0, *[factor] * steps])
    return {"scales": scales, "couplings": np.stack(rows), "names": data["map"]["couplings"], "map": data["map"]}
