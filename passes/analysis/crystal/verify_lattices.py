"""Checks of translations, wallpaper groups and Brillouin zones.

Translations are compared shift by shift, symmetries coset by coset; a group is named by its orbifold: the orbits of
centres of rotation, on mirrors or off them (Conway, Huson, The orbifold notation for two-dimensional groups, 2002).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from aatc.passes.analysis.crystal.verify_crystal import checks

Data = Mapping[str, Any]
FALSE = float("inf")

#: (centres off mirrors, centres on mirrors, whether there are mirrors, whether there are glides of their own).
_ORBIFOLDS = {
    ((), (), False, False): "p1", ((), (), True, False): "pm", ((), (), False, True): "pg", ((), (), True, True): "cm",
    ((2, 2, 2, 2), (), False, False): "p2", ((), (2, 2, 2, 2), True, False): "pmm", ((2, 2), (), True, True): "pmg",
    ((2, 2), (), False, True): "pgg", ((2,), (2, 2), True, True): "cmm", ((2, 4, 4), (), False, False): "p4",
    ((), (2, 4, 4), True, True): "p4m", ((4,), (2,), True, True): "p4g", ((3, 3, 3), (), False, False): "p3",
    ((), (3, 3, 3), True, True): "p3m1", ((3,), (3,), True, True): "p31m", ((2, 3, 6), (), False, False): "p6",
    ((), (2, 3, 6), True, True): "p6m",
}  # fmt: skip
_SYMBOLS = ("p1", "p2", "p1m1", "p1g1", "c1m1", "p2mm", "p2mg", "p2gg", "c2mm", "p4", "p4mm", "p4gm", "p3", "p3m1",
            "p31m", "p6", "p6mm")  # fmt: skip
_NAMES = ("p1", "p2", "pm", "pg", "cm", "pmm", "pmg", "pgg", "cmm", "p4", "p4m", "p4g", "p3", "p3m1", "p31m", "p6",
          "p6m")  # fmt: skip


# --- lattices ----------------------------------------------------------------------------------------------
def automorphisms(basis: np.ndarray, room: float) -> list[np.ndarray]:
    """Integer matrices that keep lengths and angles of a basis (2, 2) within the relative ``room``: images of its
    vectors are looked for among all short ones."""
    few = np.array(list(itertools.product(range(-2, 3), repeat=2)))
    points = few @ basis
    lengths = np.linalg.norm(points, axis=1)
    a, b = np.linalg.norm(basis, axis=1)
    first, second = (np.flatnonzero(np.abs(lengths - x) <= room * x) for x in (a, b))
    angle = float(basis[0] @ basis[1])
    return [
        np.array([few[i], few[j]])
        for i in first
        for j in second
        if abs(points[i] @ points[j] - angle) <= room * a * b
        and abs(few[i][0] * few[j][1] - few[i][1] * few[j][0]) == 1
    ]


def class_of(basis: np.ndarray, room: float) -> str:
    """The Bravais class by the number of isometries, and whether a reflection is the identity modulo 2."""
    found = automorphisms(basis, room)
    if len(found) == 4:
        straight = all((w % 2 == np.eye(2)).all() for w in found)
        return "rectangular" if straight else "centred rectangular"
    return {2: "oblique", 8: "square", 12: "hexagonal"}[len(found)]


def is_reduced(basis: np.ndarray) -> bool:
    """Whether no other reduced basis with an angle that is not acute comes before this one."""
    a, b = basis
    room = 1e-9 * float(b @ b)
    if not (a @ a <= b @ b + room and -(a @ a) / 2 - room <= a @ b <= room):
        return False
    mine = tuple(np.round(basis, 9).ravel())
    for h, k, s, t in itertools.product((-1, 0, 1), repeat=4):
        c, d = h * a + k * b, s * a + t * b
        if abs(h * t - k * s) != 1 or c @ c > d @ d + room:
            continue
        if -(c @ c) / 2 - room <= c @ d <= room and tuple(np.round([*c, *d], 9)) > mine:
            return False
    return True


class Periodic:
    """An array continued over Z² by a lattice of rank 2 of integers: ValueError where it has no such continuation, or
    shows no whole cell."""

    def __init__(self, array: np.ndarray, basis: np.ndarray):
        (a, b), (c, d) = (tuple(int(x) for x in v) for v in basis)
        self.size = abs(a * d - b * c)
        if not self.size:
            raise ValueError("these vectors make no lattice of rank 2")
        self.inverse = np.array([[d, -b], [-c, a]]) * (1 if a * d > b * c else -1)
        i, j = np.indices(array.shape)
        keys = self.key(i.ravel(), j.ravel())
        self.keys, where = np.unique(keys, return_index=True)
        self.values = array.ravel()[where]
        if not (self.values[np.searchsorted(self.keys, keys)] == array.ravel()).all():
            raise ValueError("the array is not periodic so")

    def key(self, i: Any, j: Any) -> np.ndarray:
        x, y = ((i * self.inverse[0, k] + j * self.inverse[1, k]) % self.size for k in (0, 1))
        result: np.ndarray = x * self.size + y
        return result

    def at(self, i: Any, j: Any) -> np.ndarray:
        result: np.ndarray = self.values[np.searchsorted(self.keys, self.key(i, j))]
        return result

    def points(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """One point of each coset, within the array."""
        i, j = np.indices(shape)
        where = np.unique(self.key(i.ravel(), j.ravel()), return_index=True)[1]
        return i.ravel()[where], j.ravel()[where]


def _equal_shifts(array: np.ndarray) -> list[tuple[int, int]]:
    """All shifts of up to half of each side, one of ±u each, after which what overlaps is equal, and not constant
    unless all of the array is."""
    n, m = array.shape
    constant = array.min() == array.max()
    rng = np.random.default_rng(1)
    a, b = (x.ravel() for x in np.meshgrid(np.arange(n // 2 + 1), np.arange(-(m // 2), m // 2 + 1), indexing="ij"))
    kept = np.flatnonzero((a > 0) | (b > 0))
    for _ in range(24):
        i = rng.integers(0, n - a[kept])
        low, high = np.maximum(0, -b[kept]), m - np.maximum(0, b[kept])
        j = rng.integers(low, high)
        kept = kept[array[i, j] == array[i + a[kept], j + b[kept]]]
    found = []
    for s in kept:
        u, v = int(a[s]), int(b[s])
        here = array[: n - u, max(0, -v) : m - max(0, v)]
        shows = constant or here.min() < here.max()
        if shows and (here == array[u:, max(0, v) : m + min(0, v)]).all():
            found.append((u, v))
    return found


def _generated(vectors: Sequence[Sequence[int]]) -> np.ndarray:
    """A basis of the lattice of integer vectors: the longest is made shorter by the others until it is nothing."""
    rows = [np.array(v, dtype=object) for v in vectors if any(v)]
    while True:
        rows = sorted((v for v in rows if v.any()), key=lambda v: int(v @ v))
        for k in range(1, len(rows)):
            shorter = min(
                (rows[k] - sum((h * rows[i] for i, h in enumerate(hs)), np.zeros(2, dtype=object))
                 for hs in itertools.product(*(
                     (round(Fraction(int(rows[k] @ rows[i]), int(rows[i] @ rows[i]))) + e for e in (-1, 0, 1))
                     for i in range(min(k, 2))))),
                key=lambda v: int(v @ v),
            )  # fmt: skip
            if shorter @ shorter < rows[k] @ rows[k]:
                rows[k] = shorter
                break
        else:
            return np.array([[int(x) for x in v] for v in rows]).reshape(-1, 2)


def _is_periodic(array: np.ndarray, basis: np.ndarray) -> bool:
    if len(basis) == 2:
        try:
            Periodic(array, basis)
        except ValueError:
            return False
        return True
    return tuple(basis[0] if tuple(basis[0]) > (0, 0) else -basis[0]) in set(_equal_shifts(array))


def _exact_lattice(array: np.ndarray, vectors: np.ndarray) -> bool:
    """Whether an array has just these translations: it has them, and no shift with which it would still be periodic is
    left out."""
    if vectors.size and (vectors != np.rint(vectors)).any():
        return False
    basis = np.rint(vectors).astype(np.int64).reshape(-1, 2)
    if len(basis) and not _is_periodic(array, basis):
        return False
    left = _equal_shifts(array)
    if len(basis) == 2:
        inside = Periodic(array, basis)
        origin = inside.key(0, 0)
        left = [s for s in left if inside.key(*s) != origin]
    elif len(basis) == 1:
        u = basis[0]
        left = [s for s in left if len(_generated([u, s])) > 1 or tuple(abs(_generated([u, s])[0])) != tuple(abs(u))]
    return not any(_is_periodic(array, _generated([*basis.tolist(), s])) for s in left)


@checks("translations")
def _translations(data: Data, claim: Any) -> float:
    array, steps = np.asarray(data["pattern"]), np.asarray(data["sampling"], dtype=np.float64)
    vectors = np.asarray(claim["vectors"], dtype=np.float64)
    rank = len(vectors)
    if not (np.isfinite(steps).all() and vectors.shape == (rank, 2) and claim["rank"] == rank and rank <= 2):
        return FALSE
    if claim["exact"] is not True or claim["share"] != 1.0 or np.isnan(array.astype(float)).any():
        return FALSE
    if not _exact_lattice(array, vectors):
        return FALSE
    basis = vectors @ steps
    off = (
        float(np.abs(np.asarray(claim["basis"]) - basis).max(initial=0.0))
        if claim["basis"].shape == (rank, 2)
        else FALSE
    )
    kind = ("none", "row")[rank] if rank < 2 else class_of(basis, 1e-8)
    sound = claim["bravais"] == kind and (rank < 2 or is_reduced(basis))
    if rank == 1:
        sound = sound and tuple(vectors[0]) > (0, 0)
    return off if sound else FALSE


# --- wallpaper groups --------------------------------------------------------------------------------------
Point = tuple[Fraction, Fraction]
Move = tuple[tuple[int, int, int, int], Point]


def _apply(move: Move, x: Point) -> Point:
    (a, b, c, d), (s, t) = move
    return (x[0] * a + x[1] * c + s) % 1, (x[0] * b + x[1] * d + t) % 1


def _after(one: Move, two: Move) -> Move:
    (a, b, c, d), (e, f, g, h) = one[0], two[0]
    return (a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h), _apply(two, one[1])


def _moves(array: np.ndarray, basis: np.ndarray, steps: np.ndarray) -> set[Move]:
    """All motions modulo the lattice that keep every entry: each isometry with each coset for its translation."""
    whole = Periodic(array, basis)
    i, j = whole.points(array.shape)
    if len(i) != whole.size:
        raise ValueError("the window shows no whole cell")
    entries, found = array[i, j], set()
    inverse = [[Fraction(int(x), whole.size) for x in row] for row in whole.inverse]
    for w in automorphisms(basis @ steps, 1e-8):
        over = whole.inverse @ w @ basis
        if (over % whole.size).any():
            continue
        over = over // whole.size
        x, y = i * over[0, 0] + j * over[1, 0], i * over[0, 1] + j * over[1, 1]
        goals = np.arange(whole.size)
        for k in np.random.default_rng(2).permutation(whole.size):
            goals = goals[whole.at(x[k] + i[goals], y[k] + j[goals]) == entries[k]]
            if len(goals) < 2 and k > 32:
                break
        for g in goals:
            if (whole.at(x + i[g], y + j[g]) == entries).all():
                t = [int(i[g]) * inverse[0][c] + int(j[g]) * inverse[1][c] for c in (0, 1)]
                found.add(((int(w[0, 0]), int(w[0, 1]), int(w[1, 0]), int(w[1, 1])), (t[0] % 1, t[1] % 1)))
    return found


def _shifted(move: Move) -> list[Move]:
    (s, t), few = move[1], range(-2, 3)
    return [(move[0], (s + h, t + k)) for h in few for k in few]


def _twice(move: Move) -> Point:
    """Where a reflection done twice moves everything: twice its glide."""
    (a, b, c, d), (s, t) = move
    return s * (1 + a) + t * c, s * b + t * (1 + d)


def _turn(move: Move) -> int:
    """The order of a rotation, 0 of a reflection."""
    a, b, c, d = move[0]
    return {2: 1, -2: 2, -1: 3, 0: 4, 1: 6}[a + d] if a * d - b * c == 1 else 0


def _kind_of(move: Move) -> str:
    turn = _turn(move)
    if turn:
        return f"rotation {turn}" if turn > 1 else "translation"
    return "mirror" if any(not any(_twice(m)) for m in _shifted(move)) else "glide"


def _centres(moves: set[Move]) -> set[Point]:
    found = set()
    for (a, b, c, d), (s, t) in (m for move in moves if _turn(move) > 1 for m in _shifted(move)):
        # x (1 − W) = t
        size = Fraction((1 - a) * (1 - d) - b * c)
        found.add((((s * (1 - d) + t * c) / size) % 1, ((s * b + t * (1 - a)) / size) % 1))
    return found


def _orbifold(moves: set[Move]) -> str:
    """The name of a group by its centres of rotation, one for each orbit, and its reflections."""
    off: list[int] = []
    on: list[int] = []
    left = _centres(moves)
    while left:
        point = next(iter(left))
        left -= {_apply(m, point) for m in moves}
        fixing = [m for m in moves if _apply(m, point) == point]
        turns = sum(_turn(m) > 0 for m in fixing)
        (on if turns < len(fixing) else off).append(turns)
    flips = [m for m in moves if not _turn(m)]
    mirrors = any(_kind_of(m) == "mirror" for m in flips)
    own = any(x.denominator > 1 for m in flips for s in _shifted(m) for x in (_twice(s)[0] / 2, _twice(s)[1] / 2))
    return _ORBIFOLDS[tuple(sorted(off)), tuple(sorted(on)), mirrors, own]


def _move_of(operation: Mapping[str, Any]) -> Move:
    (a, b), (c, d) = operation["matrix"]
    s, t = operation["translation"]
    return (a, b, c, d), (Fraction(s), Fraction(t))


@checks("symmetries")
def _symmetries(data: Data, claim: Any) -> float:
    array, steps = np.asarray(data["pattern"]), np.asarray(data["sampling"], dtype=np.float64)
    basis = np.asarray(claim["basis"])
    sound = basis.shape == (2, 2) and _exact_lattice(array, basis.astype(np.float64)) and is_reduced(basis @ steps)
    if not sound or claim["bravais"] != class_of(basis @ steps, 1e-8):
        return FALSE
    moves = _moves(array, basis.astype(np.int64), steps)
    claimed = [_move_of(o) for o in claim["operations"]]
    kinds = all(o["kind"] == _kind_of(_move_of(o)) for o in (*claim["operations"], *claim["generators"]))
    order = [(m[0] != (1, 0, 0, 1), _kind_of(m), (m[0][:2], m[0][2:])) for m in claimed]
    if set(claimed) != moves or len(claimed) != len(moves) or not kinds or order != sorted(order):
        return FALSE
    made, makers = {((1, 0, 0, 1), (Fraction(0), Fraction(0)))}, [_move_of(o) for o in claim["generators"]]
    for maker in makers:
        if maker not in moves or maker in made:
            return FALSE
        size = 0
        made |= {maker}
        while size != len(made):
            size = len(made)
            made |= {_after(x, y) for x in made for y in made}
    name = _orbifold(moves)
    place = _NAMES.index(name)
    told = (claim["name"], claim["symbol"], claim["number"]) == (name, _SYMBOLS[place], place + 1)
    return 0.0 if told and made == moves else FALSE
