"""Witnesses of zeta functions and chromatic polynomials of graphs, and the small programs that re-check them.

All is done in integers. A deviation of an exact fact is reported as infinity. Nothing here uses the code that made a
witness.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.result import mismatch, verify

WRONG = float("inf")
PRIMES = (2147483647, 2147483629, 2147483587)
COLOURINGS = 200_000
COUNTED = 12  # steps of closed walks that are counted along the edges
PARTITIONS = 30_000  # of a frontier's vertices into colours, that are kept at once


@dataclass(frozen=True, eq=False)
class IharaWitness:
    """(1 − u²)^``exponent`` Σ ``determinant[k]`` u^k claims to be 1/L(u) of the graph on ``n`` vertices whose ``edges``
    (k, 2) carry ``transports`` (k, r, r)."""

    n: int
    edges: np.ndarray
    transports: np.ndarray
    exponent: int
    determinant: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class CyclesWitness:
    """The numbers of prime cycles of 1, ..., ``length`` steps are those of this ``zeta`` function of a graph."""

    zeta: IharaWitness
    length: int


@dataclass(frozen=True, eq=False)
class ChromaticWitness:
    """``coefficients``, from the constant up, claim to be the chromatic polynomial of the graph with ``edges`` (k, 2);
    ``elimination`` claims to be a perfect elimination order; empty where there is none."""

    n: int
    edges: np.ndarray
    coefficients: tuple[int, ...]
    elimination: tuple[int, ...]


def _determinant(matrix: np.ndarray, prime: int) -> int:
    """The determinant modulo a prime below 2³¹ by elimination."""
    work, value = matrix % prime, 1
    for k in range(len(work)):
        pivots = np.flatnonzero(work[k:, k])
        if len(pivots) == 0:
            return 0
        swap = k + int(pivots[0])
        if swap != k:
            work[[k, swap]] = work[[swap, k]]
            value = -value
        value = value * int(work[k, k]) % prime
        factors = work[k + 1 :, k] * pow(int(work[k, k]), -1, prime) % prime
        work[k + 1 :, k:] = (work[k + 1 :, k:] - factors[:, None] * work[k, k:] % prime) % prime
    return value % prime


def _inverses(witness: IharaWitness) -> np.ndarray:
    """The integer inverses of the transports. ValueError where there are none."""
    carried = witness.transports
    inverse = np.rint(np.linalg.inv(carried)).astype(np.int64)
    if carried.dtype.kind not in "iu" or (carried @ inverse != np.eye(carried.shape[-1], dtype=np.int64)).any():
        raise ValueError("a transport is no integer matrix with an integer inverse")
    return inverse


def _edge_determinant(witness: IharaWitness, u: int, prime: int) -> int:
    """det(I − uB_ρ) over directed edges, modulo a prime."""
    r, k = witness.transports.shape[-1], len(witness.edges)
    inverse = _inverses(witness)
    carried = np.concatenate([witness.transports, inverse])
    tails, heads = np.concatenate([witness.edges, witness.edges[:, ::-1]]).T
    table = np.eye(2 * k * r, dtype=np.int64).reshape(2 * k, r, 2 * k, r)
    for e, f in np.argwhere(heads[:, None] == tails[None, :]):
        if f != (e + k) % (2 * k):
            table[e, :, f, :] -= u * carried[e]
    return _determinant(table.reshape(2 * k * r, 2 * k * r), prime)


def _vertex_determinant(witness: IharaWitness, u: int, prime: int) -> int:
    """(1 − u²)^{r(|E|−|V|)} det(I − uA_ρ + u²Q), modulo a prime."""
    r, n = witness.transports.shape[-1], witness.n
    table = np.eye(n * r, dtype=np.int64).reshape(n, r, n, r)
    inverses = _inverses(witness)
    for (i, j), forward, backward in zip(witness.edges, witness.transports, inverses):
        table[i, :, j, :] -= u * forward
        table[j, :, i, :] -= u * backward
    degrees = np.bincount(witness.edges.reshape(-1), minlength=n)
    flat = table.reshape(n * r, n * r) % prime
    flat[np.arange(n * r), np.arange(n * r)] += u * u % prime * np.repeat(degrees - 1, r)
    power = pow((1 - u * u) % prime, r * (len(witness.edges) - n), prime)
    return power * _determinant(flat, prime) % prime


@verify.register
def _ihara(witness: IharaWitness) -> float:
    """0 if the polynomial agrees with a determinant at a random number modulo each of three primes: that of directed
    edges where it is small enough, otherwise that of vertices. A wrong polynomial passes with odds below 10⁻²⁰."""
    draw = random.Random(repr(witness.determinant))
    edges = witness.edges
    if edges.shape != (len(witness.transports), 2) or (edges[:, 0] == edges[:, 1]).any():
        return WRONG
    if len(edges) and not 0 <= edges.min() <= edges.max() < witness.n:
        return WRONG
    small = 0 < 2 * len(witness.edges) * witness.transports.shape[-1] <= 300
    for prime in PRIMES:
        u = draw.randrange(2, prime - 1)
        claimed = pow((1 - u * u) % prime, witness.exponent, prime)
        claimed = claimed * (sum(c * pow(u, k, prime) for k, c in enumerate(witness.determinant)) % prime) % prime
        found = (_edge_determinant if small else _vertex_determinant)(witness, u, prime)
        if claimed != found:
            return WRONG
    return 0.0


def _colourings(witness: ChromaticWitness, q: int) -> int:
    """Assignments of q colours that differ along every edge, by looking at all q^n."""
    codes = np.arange(q**witness.n)
    legal = np.ones(len(codes), dtype=bool)
    for v, w in witness.edges:
        legal &= codes // q ** int(v) % q != codes // q ** int(w) % q
    return int(legal.sum())


@mismatch.register
def _ihara_value(witness: IharaWitness, value: Any) -> float:
    same = all(isinstance(x, int) for x in (value.exponent, *value.determinant))
    same = same and value.exponent == witness.exponent and tuple(value.determinant) == witness.determinant
    return 0.0 if same else WRONG


@verify.register
def _cycles(witness: CyclesWitness) -> float:
    """That of the zeta function of a graph whose edges carry nothing."""
    return verify(witness.zeta) if (witness.zeta.transports == 1).all() and witness.length >= 0 else WRONG


@mismatch.register
def _cycles_value(witness: CyclesWitness, value: Any) -> float:
    """The value is how many prime cycles of length 1, 2, …, ``length`` there are."""
    whole = len(value) == witness.length and all(isinstance(count, int) for count in value)
    return 0.0 if whole and _counts_cycles(witness.zeta, value) else WRONG


def _counts_cycles(witness: IharaWitness, primes: Sequence[int]) -> bool:
    """Whether ``primes`` are the numbers of closed walks of each length without backtracking or tail, up to where they
    start and not run through several times: with their starting points, those of few steps are counted along the edges,
    and N_m of all lengths fulfil −u P′ = P Σ N_m u^m, P being the inverse zeta function."""
    length, c = len(primes), witness.determinant
    walks = [0] * (length + 1)
    for d, count in enumerate(primes, start=1):
        for m in range(d, length + 1, d):
            walks[m] += d * count
    few = min(length, COUNTED)
    if walks[1 : few + 1] != _closed_walks(witness, few):
        return False
    of_determinant = [n - (0 if m % 2 else 2 * witness.exponent) for m, n in enumerate(walks)]
    return all(
        sum(c[k] * of_determinant[m - k] for k in range(min(m, len(c)))) == (-m * c[m] if m < len(c) else 0)
        for m in range(1, length + 1)
    )


def _closed_walks(witness: IharaWitness, length: int) -> list[int]:
    """How many closed walks of 1, ..., ``length`` steps have neither backtracking nor a tail, modulo as many primes as
    tell such numbers apart, put together by the Chinese remainder theorem."""
    vertices, places = np.unique(witness.edges, return_inverse=True)
    edges = places.reshape(-1, 2)
    if not len(edges):
        return [0] * length
    degrees = np.bincount(edges.reshape(-1))
    primes, modulus = list[int](), 1
    # a walk is told by its first step and, at every other, by which of the edges ahead it takes
    most = 2 * len(edges) * max(1, int(degrees.max()) - 1) ** length
    candidate = math.isqrt((1 << 53) // len(vertices))  # products of residues are summed exactly in float64
    while modulus <= most:
        candidate -= 1
        if (candidate % np.arange(2, math.isqrt(candidate) + 1) != 0).all():
            primes.append(candidate)
            modulus *= candidate
    residues = [_walks_modulo(edges, degrees, length, p) for p in primes]
    parts = [modulus // p * pow(modulus // p, -1, p) for p in primes]
    return [sum(r * part for r, part in zip(of_length, parts)) % modulus for of_length in zip(*residues)]


def _walks_modulo(edges: np.ndarray, degrees: np.ndarray, length: int, prime: int) -> list[int]:
    """`_closed_walks` modulo a prime whose square times the number of vertices is below 2⁵³.

    Walks of m + 1 steps without backtracking are those of m steps and any other, less those that turn back:
    A_{m+1} = A_m A − A_{m−1}Q, where Q is the degrees less 1, and the degrees for m = 1. One with a tail is one of
    m − 2 steps between two copies of an edge, of which its own ends leave deg − 2, or deg − 1 where it has a tail."""
    n = len(degrees)
    table = np.zeros((n, n))
    np.add.at(table, (edges[:, 0], edges[:, 1]), 1.0)
    step = (table + table.T) % prime
    ahead, inner = ((degrees - d) % prime for d in (1, 2))
    before, walks, tails = np.eye(n), step, [0, 0]
    found = list[int]()
    for m in range(1, length + 1):
        closed = np.diagonal(walks)
        found.append((int(closed.sum()) - tails[m - 1]) % prime)
        tails.append((int((inner * closed % prime).sum()) + tails[m - 1]) % prime)
        turned = before * (degrees % prime if m == 1 else ahead) % prime
        before, walks = walks, (walks @ step % prime - turned) % prime
    return found


# --- chromatic polynomials ---------------------------------------------------------------------------------
def _neighbours(n: int, edges: Iterable[tuple[int, int]]) -> list[set[int]]:
    near: list[set[int]] = [set() for _ in range(n)]
    for v, w in edges:
        near[v].add(w)
        near[w].add(v)
    return near


def frontier_order(n: int, edges: Iterable[tuple[int, int]]) -> tuple[list[int], int]:
    """An order of the vertices, and an upper bound of how many partitions into colours the vertices have that are kept
    at once because a neighbour is still to come: each next vertex leaves few of them."""
    near = _neighbours(n, edges)
    order: list[int] = []
    placed, kept = set[int](), set[int]()
    worst = 1
    while len(order) < n:
        waiting = [v for v in range(n) if v not in placed]
        close = [v for v in waiting if near[v] & kept] or waiting
        _, v = min((len(_kept(near, placed | {v}, kept | {v})), v) for v in close)
        order.append(v)
        placed.add(v)
        kept = _kept(near, placed, kept | {v})
        worst = max(worst, _bell(len(kept) + 1))
    return order, worst


def _kept(near: list[set[int]], placed: set[int], kept: set[int]) -> set[int]:
    """Those with a neighbour that is not placed."""
    return {w for w in kept if near[w] - placed}


def _bell(size: int) -> int:
    """How many partitions a set has."""
    row = [1]
    for _ in range(size):
        row = list(itertools.accumulate([row[-1], *row]))
    return row[0]


def _count_modulo(n: int, edges: list[tuple[int, int]], order: list[int], u: int, prime: int) -> int:
    """The chromatic polynomial at u modulo a prime. Vertex by vertex in this order, colourings are told apart by which
    vertices with a neighbour to come have one colour; a new colour is any of the u that none of these has."""
    near, place = _neighbours(n, edges), {v: i for i, v in enumerate(order)}
    last = [max((place[w] for w in near[v]), default=-1) for v in range(n)]
    counts: dict[frozenset[frozenset[int]], int] = {frozenset(): 1}
    for at, v in enumerate(order):
        after: dict[frozenset[frozenset[int]], int] = {}
        for parts, count in counts.items():
            choices = [(parts - {p} | {p | {v}}, 1) for p in parts if not p & near[v]]
            choices.append((parts | {frozenset([v])}, u - len(parts)))
            for made, ways in choices:
                left = frozenset(frozenset(w for w in p if last[w] > at) for p in made) - {frozenset()}
                after[left] = (after.get(left, 0) + count * ways) % prime
        counts = after

    return sum(counts.values()) % prime


@mismatch.register
def _chromatic_value(witness: ChromaticWitness, value: Any) -> float:
    """The value is the class, or the least number of colours."""
    c = witness.coefficients
    if isinstance(value, int):
        least = next(q for q in range(witness.n + 1) if sum(x * q**k for k, x in enumerate(c)) > 0)
        return 0.0 if value == least else WRONG
    whole = all(isinstance(x, int) for x in value.coefficients)
    return 0.0 if whole and tuple(value.coefficients) == c else WRONG


@verify.register
def _chromatic(witness: ChromaticWitness) -> float:
    """0 if the leading coefficients are 1 and −|E|, all colourings with few colours are counted right (up to 200 000
    assignments a count), and colourings counted along a full elimination order, if one is given, else along an order in
    which few vertices are kept, yield the same values at a random number modulo each of three primes. A wrong
    polynomial passes that with odds below 10⁻¹⁵."""
    c, n = witness.coefficients, witness.n
    if (
        not all(isinstance(x, int) for x in c)
        or len(c) != n + 1
        or c[n] != 1
        or (n > 0 and c[n - 1] != -len(witness.edges))
    ):
        return WRONG
    q = 1
    while q <= n + 1 and q**n <= COLOURINGS:
        if sum(x * q**k for k, x in enumerate(c)) != _colourings(witness, q):
            return WRONG
        q += 1
    pairs = [(int(v), int(w)) for v, w in witness.edges]
    if len({frozenset(e) for e in pairs}) != len(pairs) or any(v == w for v, w in pairs):
        return WRONG
    degrees = _elimination_degrees(witness) if len(witness.elimination) else []
    if degrees is None:
        return WRONG
    order, partitions = frontier_order(n, pairs) if len(degrees) < n else ([], 0)
    if partitions > PARTITIONS:
        raise ValueError("too many partitions of a frontier: this polynomial cannot be checked")
    draw = random.Random(repr(c))
    for prime in PRIMES:
        u, claimed, product = draw.randrange(prime), 0, 1
        for x in reversed(c):
            claimed = (claimed * u + x) % prime
        for degree in degrees:
            product = product * (u - degree) % prime
        if claimed != (_count_modulo(n, pairs, order, u, prime) if order else product):
            return WRONG
    return 0.0


def _elimination_degrees(witness: ChromaticWitness) -> list[int] | None:
    """How many later neighbours each vertex of the elimination order has; None unless it names every vertex once and
    the later neighbours of each are adjacent to each other."""
    if sorted(witness.elimination) != list(range(witness.n)):
        return None
    place = {v: i for i, v in enumerate(witness.elimination)}
    later: dict[int, set[int]] = {v: set() for v in place}
    for v, w in witness.edges.tolist():
        first, second = (v, w) if place[v] < place[w] else (w, v)
        later[first].add(second)
    for near in later.values():
        if any(b not in later[a] and a not in later[b] for a, b in itertools.combinations(near, 2)):
            return None
    return [len(later[v]) for v in witness.elimination]
