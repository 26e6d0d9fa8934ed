"""Wallpaper groups: all symmetries of a periodic pattern on sampling points, and which of the 17 groups they make.

The finite object: a function on Z² modulo the lattice Λ of a pattern's exact translations. Looked for are all motions
of the plane that keep Λ, take sampling points to sampling points, and leave every entry as it is; entries are compared
exactly. Source: International Tables for Crystallography A, chapters 1.5 and 2.2 (plane groups).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from aatc.passes.analysis.crystal.lattices import CrystalError, planar_class, sampling_basis
from aatc.passes.analysis.crystal.translations import (
    Cosets,
    as_pattern,
    codes_of,
    cosets_of,
    exact_translations,
    fold,
    hermite_form,
    source_of,
)
from aatc.passes.analysis.crystal.verify_crystal import witnessed
from aatc.passes.analysis.result import Result

#: Short names to full Hermann–Mauguin symbols, in the order of the International Tables.
GROUPS = {
    "p1": "p1", "p2": "p2", "pm": "p1m1", "pg": "p1g1", "cm": "c1m1", "pmm": "p2mm", "pmg": "p2mg", "pgg": "p2gg",
    "cmm": "c2mm", "p4": "p4", "p4m": "p4mm", "p4g": "p4gm", "p3": "p3", "p3m1": "p3m1", "p31m": "p31m", "p6": "p6",
    "p6m": "p6mm",
}  # fmt: skip
#: Relative difference of lengths and angles that are taken to be equal.
SHAPE = 1e-9


@dataclass(frozen=True)
class SymmetryOperation:
    """x → x W + t for coordinates x, a row, along the lattice's basis: ``matrix`` W of whole numbers, ``translation`` t
    of fractions in [0, 1). ``kind`` is "translation", "rotation 2", 3, 4 or 6, "mirror" or "glide"."""

    matrix: tuple[tuple[int, int], tuple[int, int]]
    translation: tuple[Fraction, Fraction]
    kind: str

    def __str__(self) -> str:
        (a, b), (c, d) = self.matrix
        return f"{self.kind} [{a} {b}; {c} {d}] + ({self.translation[0]}, {self.translation[1]})"


@dataclass(frozen=True, eq=False)
class SymmetryGroup:
    """A wallpaper group: its short ``name``, ``symbol`` and ``number`` 1 to 17, the reduced ``basis`` (2, 2) of its
    translations in steps along the array's axes, ``bravais`` the class of that lattice, ``operations`` modulo
    translations (the identity first), and ``generators``: some of these that make all, beside the translations."""

    name: str
    symbol: str
    number: int
    bravais: str
    basis: np.ndarray
    operations: tuple[SymmetryOperation, ...]
    generators: tuple[SymmetryOperation, ...]

    def __str__(self) -> str:
        return self.name


Motion = tuple[np.ndarray, tuple[Fraction, Fraction]]


def compute_symmetries(pattern: Any, *, sampling: Any = "square") -> Result[Any]:
    """The wallpaper group of an array (n, m) that repeats in two directions, a `SymmetryGroup`.

    ``sampling``: where its points lie, "square", "hexagonal", or the two steps (2, 2). P0 where a named sampling makes
    lengths exact, else P2 for lengths equal to 1e-9. A pattern finer than its samples may have operations that take
    sampling points between others: these cannot be seen, and the assumptions say so where the lattice allows for them.
    Raises `CrystalError` for a pattern that does not repeat, or that shows no whole cell.
    """
    array, steps = as_pattern(pattern), sampling_basis(sampling)
    basis = exact_translations(array, steps)
    if len(basis) < 2:
        raise CrystalError(
            f"the pattern repeats exactly in {len(basis)} directions, a wallpaper pattern in two",
            hint="detect_lattice says what it has; a window needs two cells a side, and noise leaves no exact symmetry",
        )
    cosets = cosets_of(basis)
    cell = fold(codes_of(array), cosets)
    if cell is None or (cell < 0).any():
        raise CrystalError("the window shows no whole cell of the lattice", hint="give a larger window")
    operations, unseen = _operations(cell, cosets, basis, steps)
    group = _named(operations, basis, planar_class(basis @ steps, SHAPE))
    given: tuple[str, ...] = ("the array is a part of a periodic pattern",)
    if unseen:
        given = (*given, f"{unseen} isometries of the lattice move sampling points between others and were not tried")
    level = "P0" if isinstance(sampling, str) else "P2"
    data = {"pattern": source_of(pattern), "sampling": steps}
    return witnessed(group, "symmetries", data, 0.0, level=level, assumptions=given)


# --- operations --------------------------------------------------------------------------------------------
def _operations(
    cell: np.ndarray, cosets: Cosets, basis: np.ndarray, steps: np.ndarray
) -> tuple[list[SymmetryOperation], int]:
    """All operations modulo Λ, and how many isometries of Λ do not keep the sampling points."""
    found, unseen = [], 0
    for w in isometries(basis @ steps):
        # in steps along the array's axes: y = x B⁻¹ W B
        over = _adjugate(basis) @ w @ basis
        size = int(basis[0, 0] * basis[1, 1] - basis[0, 1] * basis[1, 0])
        if (over % size).any():
            unseen += 1
            continue
        shift = _shift(cell, cosets, over // size)
        if shift is not None:
            t = _fraction(shift, basis)
            found.append(SymmetryOperation(_tuples(w), t, _kind(w, t)))
    found.sort(key=lambda o: (o.matrix != ((1, 0), (0, 1)), o.kind, o.matrix))
    return found, unseen


def isometries(basis: np.ndarray) -> Iterator[np.ndarray]:
    """Integer matrices W with |x W B| = |x B|, of a reduced basis B: their entries are −1, 0 and 1."""
    gram = basis @ basis.T
    room = SHAPE * gram.trace()
    for entries in itertools.product((1, 0, -1), repeat=4):
        w = np.array(entries).reshape(2, 2)
        if abs(round(float(np.linalg.det(w)))) == 1 and (abs(w @ gram @ w.T - gram) <= room).all():
            yield w


def _adjugate(b: np.ndarray) -> np.ndarray:
    return np.array([[b[1, 1], -b[0, 1]], [-b[1, 0], b[0, 0]]])


def _shift(cell: np.ndarray, cosets: Cosets, matrix: np.ndarray) -> tuple[int, int] | None:
    """t with cell(x M + t) = cell(x) for all x, or None. Points of the rarest entry must go to such."""
    values, counts = np.unique(cell, return_counts=True)
    rare = np.flatnonzero(cell == values[counts.argmin()])
    points = np.stack(cosets.point(np.arange(cosets.index)), axis=1)
    images = points @ matrix
    goals = np.stack(cosets.point(rare), axis=1) - images[rare[0]]
    # a few points first, which leave hardly a goal that is none
    order = np.random.default_rng(0).permutation(cosets.index)
    for start, stop in itertools.pairwise(np.unique([0, 4, 32, 256, cosets.index]).tolist()):
        some = order[start:stop]
        kept = []
        for part in np.array_split(goals, 1 + len(goals) * len(some) // (1 << 20)):
            i, j = (images[some, axis] + part[:, axis, None] for axis in (0, 1))
            kept.append(part[(cell[cosets.number(i, j)] == cell[some]).all(1)])
        goals = np.concatenate(kept)
        if not len(goals):
            return None
    return int(goals[0, 0]), int(goals[0, 1])


def _fraction(shift: tuple[int, int], basis: np.ndarray) -> tuple[Fraction, Fraction]:
    """A shift in steps as fractions of the basis, in [0, 1)."""
    size = int(basis[0, 0] * basis[1, 1] - basis[0, 1] * basis[1, 0])
    one, two = (int(x) for x in np.array(shift) @ _adjugate(basis))
    return Fraction(one, size) % 1, Fraction(two, size) % 1


def _tuples(w: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    (a, b), (c, d) = w.tolist()
    return (a, b), (c, d)


def _kind(w: np.ndarray, t: tuple[Fraction, Fraction]) -> str:
    """What an operation is: by determinant and trace, and whether a reflection can be made to move nothing along its
    line by a translation of the lattice."""
    if round(float(np.linalg.det(w))) == 1:
        order = {2: 1, -2: 2, -1: 3, 0: 4, 1: 6}[int(np.trace(w))]
        return "translation" if order == 1 else f"rotation {order}"
    along = np.eye(2, dtype=np.int64) + w
    glide = [t[0] * int(along[0, k]) + t[1] * int(along[1, k]) for k in (0, 1)]
    assert all(x.denominator == 1 for x in glide)  # twice a glide is a translation
    line = hermite_form(along)[0]
    lead = 0 if line[0] else 1
    return "mirror" if int(glide[lead]) % int(line[lead]) == 0 else "glide"


# --- names -------------------------------------------------------------------------------------------------
def _named(operations: Sequence[SymmetryOperation], basis: np.ndarray, bravais: str) -> SymmetryGroup:
    name = _name(operations)
    generators = _generators(operations)
    number = list(GROUPS).index(name) + 1
    return SymmetryGroup(name, GROUPS[name], number, bravais, basis, tuple(operations), generators)


def _rhombic(o: SymmetryOperation) -> bool:
    """Whether a reflection swaps two vectors of some basis: modulo 2 it is not the identity then."""
    return bool(((np.array(o.matrix) - np.eye(2, dtype=np.int64)) % 2).any())


def _name(operations: Sequence[SymmetryOperation]) -> str:
    """By the order of rotations, and where reflections are mirrors or glides."""
    order = max([int(o.kind.split()[1]) for o in operations if o.kind.startswith("rotation")], default=1)
    flips = [o for o in operations if o.kind in ("mirror", "glide")]
    if not flips:
        return f"p{order}"
    if order == 6:
        return "p6m"
    if order == 3:  # whether mirrors lie along shortest translations, which their matrices keep, up to sign
        shortest = [np.array(v) for v in ((1, 0), (0, 1), (1, 1), (1, -1))]
        gram = _invariant_gram(operations)
        least = min(int(v @ gram @ v) for v in shortest)
        along = any(np.array_equal(v @ np.array(flips[0].matrix), v) for v in shortest if int(v @ gram @ v) == least)
        return "p31m" if along else "p3m1"
    straight = [o for o in flips if not _rhombic(o)]
    if order == 4:
        return "p4m" if any(o.kind == "mirror" for o in straight) else "p4g"
    mirrors = sum(o.kind == "mirror" for o in straight)
    if order == 2:
        return ("pgg", "pmg", "pmm")[mirrors] if straight else "cmm"
    return ("pg", "pm")[mirrors] if straight else "cm"


def _invariant_gram(operations: Sequence[SymmetryOperation]) -> np.ndarray:
    """A Gram matrix that all operations keep: Σ W Wᵀ. Those of a lattice with a rotation of order 3 are multiples."""
    result: np.ndarray = sum(
        (np.array(o.matrix) @ np.array(o.matrix).T for o in operations), np.zeros((2, 2), np.int64)
    )
    return result


def compose(first: SymmetryOperation, second: SymmetryOperation) -> SymmetryOperation:
    """First one, then the other, modulo translations."""
    w = np.array(first.matrix) @ np.array(second.matrix)
    (a, b), (c, d) = second.matrix
    s, t = first.translation
    moved = ((s * a + t * c + second.translation[0]) % 1, (s * b + t * d + second.translation[1]) % 1)
    return SymmetryOperation(_tuples(w), moved, _kind(w, moved))


def _generators(operations: Sequence[SymmetryOperation]) -> tuple[SymmetryOperation, ...]:
    """Rotations of the highest order first: each that is not made by those before."""
    order = {"rotation 6": 0, "rotation 4": 1, "rotation 3": 2, "rotation 2": 3, "mirror": 4, "glide": 5}
    waiting = sorted((o for o in operations if o.kind != "translation"), key=lambda o: order[o.kind])
    chosen: list[SymmetryOperation] = []
    made = {operations[0].matrix: operations[0]}
    for o in waiting:
        if o.matrix in made:
            continue
        chosen.append(o)
        grown = True
        while grown:
            new = [compose(x, y) for x in made.values() for y in chosen]
            grown = any(x.matrix not in made for x in new)
            made |= {x.matrix: x for x in new if x.matrix not in made}
    return tuple(chosen)
