"""Zeta and L-functions of finite graphs, as polynomials with integer coefficients.

For an undirected graph the Ihara zeta function is ζ(u) = ∏ (1 − u^{|P|})⁻¹ over primes P: closed walks without
backtracking or tails that are no powers, up to their starting point. Its inverse is a polynomial, by Ihara and Bass
(1 − u²)^{|E|−|V|} det(I − Au + Qu²), Q the degrees less 1, and by Hashimoto det(I − uB), B the non-backtracking steps
of directed edges. With a representation ρ on the edges, A carries ρ's matrices and L(u, ρ) is the Artin–Ihara
L-function. Only these polynomials and their values are computed. Source: Terras, Zeta Functions of Graphs, chapters
2, 11 and 18.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy
from sympy.polys.matrices import DomainMatrix

from aatc.passes.analysis.arithmetic.verify_graphs import IharaWitness
from aatc.passes.analysis.result import AnalysisError, Cost, Result

try:
    import flint
except ImportError:  # the extra [analysis] is not installed
    flint = None  # type: ignore[assignment]

Polynomial = tuple[int, ...]


class GraphError(AnalysisError):
    """A matrix or an edge list that is not a graph of the kind that is needed."""


def characteristic_polynomial(matrix: Any) -> Polynomial:
    """det(xI − M) of an integer matrix (n, n), coefficients from the lowest power up; by flint, or by sympy's
    Berkowitz steps without it. Raises `GraphError`."""
    table = np.asarray(matrix)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or table.dtype.kind not in "iubO":
        raise GraphError(f"an integer matrix (n, n) is needed, not {table.dtype} {table.shape}")
    rows = [[int(x) for x in row] for row in table]
    if table.dtype.kind == "O" and any(x != y for row, whole in zip(table, rows) for x, y in zip(row, whole)):
        raise GraphError("an integer matrix (n, n) is needed; this one has other entries")
    if not rows:
        return (1,)
    if flint is not None:
        return tuple(int(c) for c in flint.fmpz_mat(rows).charpoly().coeffs())
    exact = DomainMatrix([[sympy.ZZ(x) for x in row] for row in rows], table.shape, sympy.ZZ)
    return tuple(int(c) for c in reversed(exact.charpoly()))


def estimate_cost(n: int) -> Cost:
    """What the characteristic polynomial of an integer matrix (n, n) takes, with flint or without it."""
    seconds = 1e-4 + 4e-8 * float(n) ** 3 if flint is not None else 1e-4 + 3e-8 * float(n) ** 4
    return Cost(seconds=seconds, bytes=1e6 + 64.0 * n * n)


def edge_list(adjacency: Any) -> np.ndarray:
    """The edges (k, 2), i < j, in the order of the rows, of a symmetric matrix (n, n) of multiplicities.

    Raises `GraphError`, also for loops: a loop would be its own reverse.
    """
    table = np.asarray(adjacency)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or table.dtype.kind not in "iub":
        raise GraphError(f"an adjacency matrix holds integers of shape (n, n), not {table.dtype} {table.shape}")
    table = table.astype(np.int64)
    if (table < 0).any() or (table != table.T).any() or np.diagonal(table).any():
        raise GraphError("an undirected graph has a symmetric, non-negative matrix with a zero diagonal")
    pairs = np.argwhere(np.triu(table) > 0)
    return np.repeat(pairs, table[pairs[:, 0], pairs[:, 1]], axis=0).reshape(-1, 2)


@dataclass(frozen=True)
class InverseZeta:
    """The polynomial (1 − u²)^``exponent`` · Σ ``determinant[k]`` u^k, kept as this product: expanded, the one of a
    dense graph has |E| times more digits than the determinant. A forest's exponent is negative."""

    exponent: int
    determinant: Polynomial

    @property
    def coefficients(self) -> Polynomial:
        """The expanded polynomial, from the constant term up, without trailing zeros."""
        e, base = self.exponent, self.determinant
        if e >= 0:
            binomials = [(-1) ** k * math.comb(e, k) for k in range(e + 1)]
            current = [0] * (len(base) + 2 * e)
            for i, c in enumerate(base):
                if c:
                    for k, b in enumerate(binomials):
                        current[i + 2 * k] += c * b
        else:
            current = list(base)
            for _ in range(-e):
                for k in range(2, len(current)):
                    current[k] += current[k - 2]
                current = current[:-2]
        while len(current) > 1 and current[-1] == 0:
            current.pop()
        return tuple(current)

    def __call__(self, u: Any) -> Any:
        """The value at u: exact for ints and Fractions."""
        total, kept = 0 * u, self.exponent >= 0
        for c in reversed(self.determinant if kept else self.coefficients):
            total = total * u + c
        return (1 - u * u) ** self.exponent * total if kept else total

    def closed_walks(self, length: int) -> tuple[int, ...]:
        """N_1, ..., N_length with u ζ′/ζ = Σ N_m u^m, by Newton's identities, exact: for the Ihara zeta function the
        closed walks of m steps without backtracking or tail, counted with their starting points."""
        c = [*self.determinant, *([0] * max(0, length + 1 - len(self.determinant)))]
        counts: list[int] = []
        for m in range(1, length + 1):
            counts.append(-m * c[m] - sum(c[k] * counts[m - k - 1] for k in range(1, m)))
        return tuple(n + (2 * self.exponent if m % 2 == 0 else 0) for m, n in enumerate(counts, start=1))

    def primes(self, length: int) -> tuple[int, ...]:
        """π(1), ..., π(length): the primes of each length, π(m) = (1/m) Σ_{d|m} μ(m/d) N_d, exact. Both orientations
        of an undirected cycle count."""
        walks = self.closed_walks(length)
        return tuple(
            sum(int(sympy.mobius(m // d)) * walks[d - 1] for d in sympy.divisors(m)) // m for m in range(1, length + 1)
        )


def _integer_inverses(transports: np.ndarray) -> np.ndarray:
    singular = np.abs(np.abs(np.linalg.det(transports)) - 1) > 1e-6
    found = np.rint(np.linalg.inv(np.where(singular[:, None, None], np.eye(transports.shape[-1]), transports)))
    if singular.any() or (transports @ found != np.eye(transports.shape[-1])).any():
        raise GraphError("an edge carries a matrix without an integer inverse", hint="use unitary_l_inverse")
    return found.astype(np.int64)


def _bass(n: int, edges: np.ndarray, transports: np.ndarray) -> InverseZeta:
    """(1 − u²)^{r(|E|−|V|)} det(I − A_ρ u + (Q⊗I)u²) for integer transports (k, r, r) with integer inverses."""
    r = transports.shape[-1]
    size = n * r
    companion = np.zeros((2 * size, 2 * size), dtype=np.int64)
    for (i, j), forward, backward in zip(edges, transports, _integer_inverses(transports)):
        companion[i * r : (i + 1) * r, j * r : (j + 1) * r] += forward
        companion[j * r : (j + 1) * r, i * r : (i + 1) * r] += backward
    degrees = np.bincount(edges.reshape(-1), minlength=n)
    companion[:size, size:] = -np.diag(np.repeat(degrees - 1, r))
    companion[size:, :size] = np.eye(size, dtype=np.int64)
    return InverseZeta(r * (len(edges) - n), tuple(reversed(characteristic_polynomial(companion))))


def ihara_polynomial(adjacency: Any, *, budget: Cost | None = None) -> Result[InverseZeta]:
    """1/ζ(u) of an undirected graph (n, n), a polynomial of degree at most 2|E| with constant term 1, exact.

    The determinant is the reversed characteristic polynomial of [[A, −Q], [I, 0]]. Multiple edges are allowed, and
    so are forests, whose zeta function is 1. Raises `GraphError`, and `BudgetError` above ``budget``.
    """
    edges, n = edge_list(adjacency), len(np.asarray(adjacency))
    return artin_ihara_polynomial(n, edges, np.ones((len(edges), 1, 1), dtype=np.int64), budget=budget)


def _checked(n: int, edges: Any, transports: Any) -> tuple[np.ndarray, np.ndarray]:
    pairs, carried = np.asarray(edges), np.asarray(transports)
    if pairs.size and (pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu"):
        raise GraphError(f"edges are integers of shape (k, 2), not {pairs.dtype} {pairs.shape}")
    pairs = pairs.reshape(-1, 2)
    if carried.ndim == 1:
        carried = carried[:, None, None]
    if carried.ndim != 3 or carried.shape[1] != carried.shape[2] or len(carried) != len(pairs):
        raise GraphError(f"{len(pairs)} edges carry matrices (k, r, r), not {carried.shape}")
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= n or (pairs[:, 0] == pairs[:, 1]).any()):
        raise GraphError(f"edges join two different vertices among 0, ..., {n - 1}")
    return pairs.astype(np.int64), carried


def artin_ihara_polynomial(n: int, edges: Any, transports: Any, *, budget: Cost | None = None) -> Result[InverseZeta]:
    """1/L(u, ρ) of a graph on n vertices, exact: ``edges`` (k, 2), and ρ of each as a sign (k,) or an integer matrix
    (k, r, r) with an integer inverse (signs, permutations), which the reversed edge carries.

    With permutation matrices of a group's regular representation this is 1/ζ of the covering graph with these
    voltages; for signs, 1/ζ(double cover) = 1/ζ · 1/L(sign). Raises `GraphError`, and `BudgetError`.
    """
    pairs, carried = _checked(n, edges, transports)
    if carried.dtype.kind not in "iu":
        raise GraphError(f"exact transports are integers, not {carried.dtype}", hint="use unitary_l_inverse")
    if budget is not None:
        estimate_cost(2 * n * carried.shape[-1]).check(budget, f"the L-function of a graph on {n} vertices")
    carried = carried.astype(np.int64)
    value = _bass(n, pairs, carried)
    return Result(value, "P0", witness=IharaWitness(n, pairs, carried, value.exponent, value.determinant))


def unitary_l_inverse(n: int, edges: Any, transports: Any, u: complex) -> complex:
    """1/L(u, ρ) at one u for unitary transports (k, r, r) or phases (k,): the holonomy of a connection.

    Reversed edges carry the inverse, so the value depends on the holonomies of closed walks alone. Floating point.
    Raises `GraphError`, also for transports that are not unitary to 1e-9, and at u = ±1 where there are fewer edges
    than vertices: Bass's formula is 0/0 there.
    """
    pairs, carried = _checked(n, edges, transports)
    r = carried.shape[-1]
    matrices = carried.astype(np.complex128)
    if len(pairs) and np.abs(matrices @ matrices.conj().transpose(0, 2, 1) - np.eye(r)).max() > 1e-9:
        raise GraphError("edge transports are not unitary")
    if len(pairs) < n and abs(1 - u * u) == 0:
        raise GraphError(f"u = {u} is a removable singularity of Bass's formula", hint="take a u near it")
    table = np.eye(n * r, dtype=np.complex128).reshape(n, r, n, r)
    for (i, j), forward in zip(pairs, matrices):
        table[i, :, j, :] -= u * forward
        table[j, :, i, :] -= u * forward.conj().T
    degrees = np.bincount(pairs.reshape(-1), minlength=n)
    flat = table.reshape(n * r, n * r) + u * u * np.diag(np.repeat(degrees - 1, r))
    return complex((1 - u * u) ** (r * (len(pairs) - n)) * np.linalg.det(flat))


def hashimoto_matrix(adjacency: Any) -> np.ndarray:
    """B (2k, 2k) of an undirected graph: B_ef = 1 iff f starts where e ends and is not e reversed. Directed edges are
    those of `edge_list`, then their reverses in the same order. Raises `GraphError`."""
    edges = edge_list(adjacency)
    tails, heads = np.concatenate([edges, edges[:, ::-1]]).T
    steps = heads[:, None] == tails[None, :]
    reverse = np.roll(np.arange(len(tails)), len(edges))
    steps[np.arange(len(tails)), reverse] = False
    matrix: np.ndarray = steps.astype(np.int64)
    return matrix


def directed_zeta_polynomial(adjacency: Any, *, budget: Cost | None = None) -> Result[InverseZeta]:
    """1/ζ(u) = det(I − uA) of a directed graph with integer multiplicities (n, n), loops allowed, from the constant
    1 up, exact: the zeta function of closed walks, N_m = tr Aᵐ. Raises `GraphError`, and `BudgetError`."""
    table = np.asarray(adjacency)
    if budget is not None and table.ndim == 2:
        estimate_cost(len(table)).check(budget, f"the zeta function of a graph on {len(table)} vertices")
    return Result(InverseZeta(0, tuple(reversed(characteristic_polynomial(table)))), "P0")
