"""Homology with coefficients in Z, Q and F_p: ranks, torsion, generating cycles, relative groups and induced maps.

Everything is read off the integral minimal model, which determines homology with every coefficient group.
Source: Hatcher, Algebraic Topology, sections 2.1, 3.A; Munkres, Elements of Algebraic Topology, §11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
from scipy import sparse

from aatc.passes.analysis.chains.complexes import ChainComplex, ComplexError, SimplicialComplex
from aatc.passes.analysis.chains.reduction import MinimalModel, apply
from aatc.passes.analysis.chains.smith import Integers, check_prime
from aatc.passes.analysis.chains.verify_homology import ChainsWitness
from aatc.passes.analysis.result import AnalysisError, Cost, Result

# Measured on one thread, on 3-tori and random flag complexes of 30,000 to 160,000 cells.
_SECONDS_PER_CELL = 7e-6
_BYTES_PER_CELL = 1200.0


class CoefficientError(AnalysisError):
    """A coefficient group that is not "Z", "Q" or a prime field."""


@dataclass(frozen=True)
class Coefficients:
    """Z, Q or F_p: ``name`` is "Z", "Q" or "F2", "F3", ...; ``modulus`` is p, or 0."""

    name: str
    modulus: int = 0

    def kills(self, order: int) -> bool:
        """Whether ``order`` ≥ 2 is zero in the field, so that a pair ∂s = order·r gives two classes."""
        return bool(self.modulus) and order % self.modulus == 0


def coefficients(coeff: str | int) -> Coefficients:
    """The coefficients that "Z", "Q", "F5" or the prime 5 name.

    Raises `CoefficientError`, and `IntegerMatrixError` for a number that is not a prime.
    """
    if coeff in ("Z", "Q"):
        return Coefficients(str(coeff))
    digits = str(coeff).removeprefix("F") if not isinstance(coeff, bool) else ""
    if not digits.isdecimal():
        raise CoefficientError(f"coefficients are 'Z', 'Q', 'Fp' or a prime p, not {coeff!r}")
    check_prime(int(digits))
    return Coefficients(f"F{int(digits)}", int(digits))


@dataclass(frozen=True)
class AbelianGroup:
    """One homology or cohomology group: R^free_rank ⊕ Z/t_1 ⊕ ..., R the coefficients, t only over Z.

    ``representatives`` is (m, count_k) with one (co)cycle for each summand, of the order in ``orders`` (0 for free
    ones), free ones first; None where they were not asked for. Over F_p entries are in 0, ..., p − 1.
    """

    degree: int
    coeff: str
    free_rank: int
    torsion: tuple[int, ...]
    orders: tuple[int, ...]
    representatives: Integers | None = None

    def __str__(self) -> str:
        free = self.coeff if self.free_rank == 1 else f"{self.coeff}^{self.free_rank}"
        parts = [free] if self.free_rank else []
        return " ⊕ ".join([*parts, *(f"Z/{t}" for t in self.torsion)]) or "0"


@singledispatch
def chain_complex(source: Any) -> ChainComplex:
    """The chain complex of a `ChainComplex` or `SimplicialComplex`. Raises `ComplexError`."""
    raise ComplexError(f"a complex is a ChainComplex or a SimplicialComplex, not a {type(source).__name__}")


@chain_complex.register
def _(source: ChainComplex) -> ChainComplex:
    return source


@chain_complex.register
def _(source: SimplicialComplex) -> ChainComplex:
    return source.chain_complex


def estimate_cost(cells: int) -> Cost:
    """What `homology` takes for a complex of this many cells whose reduction is small."""
    return Cost(0.002 + _SECONDS_PER_CELL * cells, 2**16 + _BYTES_PER_CELL * cells)


def minimal_model(source: ChainComplex | SimplicialComplex, budget: Cost | None = None) -> MinimalModel:
    """The integral minimal model; raises `BudgetError` before starting where the estimate is above ``budget``."""
    chain = chain_complex(source)
    if budget is not None:
        estimate_cost(sum(chain.counts)).check(budget, f"the homology of {sum(chain.counts)} cells")
    return MinimalModel(chain)


def homology(
    source: ChainComplex | SimplicialComplex | MinimalModel,
    coeff: str | int = "Z",
    *,
    representatives: bool = False,
    witness: bool = False,
    budget: Cost | None = None,
) -> Result[tuple[AbelianGroup, ...]]:
    """H_0, ..., H_d with the given coefficients.

    The witness is the complex, of which `verify` computes the groups again. ``witness=True`` gives in its place, for
    complexes of some hundred cells a degree, the dense equivalence with the minimal model, which proves them by
    products of matrices. Raises `BudgetError`, `CoefficientError`, `ComplexError`.
    """
    field = coefficients(coeff)
    model = source if isinstance(source, MinimalModel) else minimal_model(source, budget)
    groups = tuple(group(model, k, field, representatives) for k in range(len(model.counts)))
    return Result(groups, "P1", witness=model.witness() if witness else ChainsWitness.of(model.chain, field.name))


def betti_numbers(source: ChainComplex | SimplicialComplex | MinimalModel, coeff: str | int = "Q") -> tuple[int, ...]:
    """The free ranks of all homology groups; over Z as over Q."""
    return tuple(found.free_rank for found in homology(source, coeff).value)


def summands(model: MinimalModel, degree: int, field: Coefficients, dual: bool = False) -> tuple[list[int], list[int]]:
    """Model elements whose classes generate H_k, or with ``dual`` whose duals generate H^k; and their orders, 0 for
    free ones.

    A pair ∂s = t·r gives Z/t to the homology in the degree of r, and, by d(r*) = t·s*, to the cohomology in that of s.
    """
    free = model.free[degree]
    if field.modulus:
        low = [i for i, t in zip(model.bounding[degree], model.orders_below[degree]) if field.kills(t)]
        high = [j for j, t in zip(model.bounded[degree], model.orders_above[degree]) if field.kills(t)]
        places = [*free, *low, *high]
        return places, [0] * len(places)
    if field.name == "Q":
        return list(free), [0] * len(free)
    elements = model.bounded[degree] if dual else model.bounding[degree]
    orders = model.orders_above[degree] if dual else model.orders_below[degree]
    return [*free, *elements], [0] * len(free) + orders


def group(
    model: MinimalModel, degree: int, field: Coefficients, representatives: bool, dual: bool = False
) -> AbelianGroup:
    """H_k, or with ``dual`` H^k, read off the model."""
    places, orders = summands(model, degree, field, dual)
    chains = None
    if representatives:
        carry = model.extend if dual else model.lift
        chains = carry(degree, unit_columns(model.counts[degree], places)).T
        chains = chains % field.modulus if field.modulus else chains
    torsion = tuple(t for t in orders if t)
    return AbelianGroup(degree, field.name, len(orders) - len(torsion), torsion, tuple(orders), chains)


def unit_columns(size: int, places: Sequence[int]) -> Integers:
    """(size, m): the basis vectors at ``places``."""
    columns = np.zeros((size, len(places)), dtype=object)
    for j, i in enumerate(places):
        columns[i, j] = 1
    return columns


def homology_coordinates(model: MinimalModel, degree: int, cycles: Any, coeff: str | int = "Z") -> Integers:
    """Coordinates (m, r) of the classes of cycles (m, count_k) in the generators that `homology` returns.

    Torsion coordinates are reduced modulo their orders. Raises `ComplexError` for a chain that is no cycle, or that has
    entries which are not integers over Z or F_p.
    """
    field = coefficients(coeff)
    columns = exact_rows(cycles, model.chain.count(degree), field.name).T
    boundary = apply(model.chain.boundary(degree), columns)
    if np.any(boundary % field.modulus if field.modulus else boundary):
        raise ComplexError(f"a chain of degree {degree} is not a cycle over {field.name}")
    places, orders = summands(model, degree, field)
    return reduce_orders(model.project(degree, columns)[places].T, orders, field)


def reduce_orders(coordinates: Integers, orders: Sequence[int], field: Coefficients) -> Integers:
    """Coordinates (m, r) with each column modulo its order, or modulo p."""
    out = coordinates.copy()
    for j, order in enumerate(orders):
        if modulus := field.modulus or order:
            out[:, j] %= modulus
    return out


def induced_map(
    source: MinimalModel, target: MinimalModel, chain_map: Sequence[Any], coeff: str | int = "Z"
) -> tuple[Integers, ...]:
    """The matrices of H_k(source) → H_k(target), in the generators that `homology` returns, for all degrees of source.

    ``chain_map[k]`` is an integer matrix (target count_k, source count_k). Raises `ComplexError` where the matrices do
    not commute with the boundaries.
    """
    field, found = coefficients(coeff), []
    maps = [sparse.csc_array(m, dtype=np.int64) for m in chain_map]
    for k in range(len(source.counts)):
        if maps[k].shape != (target.chain.count(k), source.chain.count(k)):
            raise ComplexError(f"the chain map in degree {k} has shape {maps[k].shape}")
        difference = target.chain.boundary(k) @ maps[k]
        if k:
            difference = difference - maps[k - 1] @ source.chain.boundary(k)
        if difference.nnz and np.any(difference.data):
            raise ComplexError(f"the matrices do not commute with the boundary of degree {k}")
        generators = group(source, k, field, True).representatives
        assert generators is not None
        images = apply(maps[k], generators.T).T
        if k < len(target.counts):
            found.append(homology_coordinates(target, k, images, coeff).T)
        else:
            found.append(np.zeros((0, len(generators)), dtype=object))
    return tuple(found)


def simplicial_map(source: SimplicialComplex, target: SimplicialComplex, vertex_map: dict[int, int]) -> list[Any]:
    """The chain map of a map of vertices between complexes of ascending simplices: collapsed simplices go to 0.

    Raises `ComplexError` where the image of a simplex is not one.
    """
    maps = []
    for k, cells in enumerate(source.cells):
        images = np.array([[vertex_map[int(v)] for v in row] for row in cells], np.int64).reshape(cells.shape)
        order = np.argsort(images, axis=1, kind="stable")
        ascending = np.take_along_axis(images, order, axis=1)
        whole = (ascending[:, 1:] != ascending[:, :-1]).all(axis=1)
        place = target.index(ascending) if k < len(target.cells) else np.full(len(cells), -1)
        if (place[whole] < 0).any():
            raise ComplexError(f"the image of a {k}-simplex is not a simplex of the target")
        signs = np.array([_permutation_sign(row) for row in order], np.int64)
        columns = np.flatnonzero(whole)
        shape = (target.count(k), len(cells))
        maps.append(sparse.csc_array((signs[whole], (place[whole], columns)), shape=shape))
    return maps


def _permutation_sign(order: Any) -> int:
    inversions = sum(int(order[i] > order[j]) for i in range(len(order)) for j in range(i + 1, len(order)))
    return -1 if inversions % 2 else 1


def relative_complex(whole: SimplicialComplex, part: SimplicialComplex) -> ChainComplex:
    """C(X)/C(A): the cells of X that are not in A, in canonical order. Raises `ComplexError` unless A lies in X."""
    keep = []
    for k, cells in enumerate(whole.cells):
        inside = np.zeros(len(cells), bool)
        if k < len(part.cells):
            place = whole.index(part.cells[k])
            if (place < 0).any():
                raise ComplexError(f"a {k}-simplex of the part is not in the whole")
            inside[place] = True
        keep.append(np.flatnonzero(~inside))
    if len(part.cells) > len(whole.cells):
        raise ComplexError("the part has cells of a degree that the whole has not")
    boundaries = [whole.boundary(k)[keep[k - 1]][:, keep[k]] for k in range(1, len(keep))]
    return ChainComplex(boundaries, [len(c) for c in keep])


def exact_rows(rows: Any, count: int, coeff: str) -> Integers:
    """(Co)chains (m, count) with Python numbers: integers over Z and F_p, finite numbers over Q. Raises
    `ComplexError`."""
    array = np.atleast_2d(np.asarray(rows))
    if array.ndim != 2 or array.shape[1] != count:
        raise ComplexError(f"(co)chains have the shape (m, {count}), not {np.shape(rows)}")
    exact = np.array(array.tolist(), dtype=object).reshape(array.shape)
    wrong = [x for x in exact.ravel() if not (math.isfinite(x) if coeff == "Q" else x % 1 == 0)]
    if wrong:
        wanted = "a finite number" if coeff == "Q" else "an integer"
        raise ComplexError(f"the entry {wrong[0]!r} of a (co)chain over {coeff} is not {wanted}")
    return exact
