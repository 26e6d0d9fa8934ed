"""The model structure on bounded chain complexes over a field: factorisations and lifts.

Weak equivalences are quasi-isomorphisms, cofibrations injections, fibrations surjections; over a field every object is
fibrant and cofibrant. Source: Hovey, Model Categories, section 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aatc.passes.analysis.chains.complexes import SimplicialComplex
from aatc.passes.analysis.chains.field_algebra import Field, Matrix, Row, solve
from aatc.passes.analysis.chains.field_complexes import FieldMap, blocks, mapping_cylinder, mapping_path_object, spanned
from aatc.passes.analysis.homotopy.verify_models import (
    FactorizationsWitness,
    FactorizationWitness,
    LiftWitness,
    ObstructionWitness,
)
from aatc.passes.analysis.result import AnalysisError, Cost, Result

# Measured on one thread: elimination over Q, per unknown squared; over F_p it takes a tenth.
_SECONDS_PER_UNKNOWN_SQUARED = 1.2e-6
_BYTES_PER_UNKNOWN = 1500.0


class LiftError(AnalysisError):
    """A square without a lift. ``witness`` shows that there is none; it is None where the square does not commute."""

    def __init__(self, message: str, witness: ObstructionWitness | None = None, hint: str | None = None):
        self.witness = witness
        super().__init__(message, hint=hint)


@dataclass(frozen=True)
class Factorization:
    """whole = fibration ∘ cofibration; ``acyclic`` names the one that is a weak equivalence by construction."""

    cofibration: FieldMap
    fibration: FieldMap
    acyclic: str


@dataclass(frozen=True)
class Factorizations:
    """Both factorisations of a map X → Y, and ``comparison``: P → Cyl, the lift in the square of the acyclic
    cofibration X → P against the acyclic fibration Cyl → Y. It is a weak equivalence just where the map is."""

    whole: FieldMap
    by_cylinder: Factorization
    by_path_object: Factorization
    comparison: FieldMap = field(repr=False)


@dataclass(frozen=True)
class Square:
    """p ∘ top = bottom ∘ i, with i: A → B, p: X → Y, top: A → X, bottom: B → Y."""

    top: FieldMap
    bottom: FieldMap


def lift_unknowns(cofibration: FieldMap, fibration: FieldMap) -> int:
    """How many entries a map B → X has, the unknowns of a lift."""
    b, x = cofibration.target, fibration.source
    return sum(n * x.dim(k) for k, n in b.dims.items())


def estimate_cost(unknowns: int) -> Cost:
    """What a linear system with this many unknowns takes."""
    return Cost(0.01 + _SECONDS_PER_UNKNOWN_SQUARED * unknowns**2, 2**20 + _BYTES_PER_UNKNOWN * unknowns)


class AttentionModel:
    """Factorisations and lifts of maps between the chain complexes of attention patterns, over "Q" or a prime field.

    The seed's ``compute_lifting(cof, fib)`` lacks the square that is to be lifted; it is the third argument here, and
    ``factor_map`` returns both factorisations with the lift that compares them.
    """

    def __init__(self, coeff: str | int = "Q", budget: Cost | None = None) -> None:
        self.field = Field.of(coeff)
        self.budget = budget or Cost()

    def attention_map(
        self, source: SimplicialComplex, target: SimplicialComplex, vertex_map: dict[int, int]
    ) -> FieldMap:
        """The chain map of a simplicial map between complexes of patterns. Raises `ComplexError`."""
        return FieldMap.of_simplicial(source, target, vertex_map, self.field)

    def model_factorization(self, attention_map: FieldMap) -> tuple[Result[Factorization], Result[Factorization]]:
        """By the mapping cylinder (the fibration is acyclic) and by the path object (the cofibration is)."""
        self._check_field(attention_map)
        found = []
        for make, acyclic in ((mapping_cylinder, "second"), (mapping_path_object, "first")):
            first, second = make(attention_map)
            witness = _factorization_witness(attention_map, first, second, acyclic)
            named = "cofibration" if acyclic == "first" else "fibration"
            found.append(Result(Factorization(first, second, named), "P0", witness=witness))
        return found[0], found[1]

    def factor_map(self, attention_map: FieldMap) -> Result[Factorizations]:
        """Both factorisations, and the lift that compares them."""
        parts = self.model_factorization(attention_map)
        cylinder, path = (found.value for found in parts)
        lift = _comparison(attention_map, cylinder, path)
        witness = FactorizationsWitness(parts[0].witness, parts[1].witness, lift.witness)
        return Result(Factorizations(attention_map, cylinder, path, lift.value), "P0", witness=witness)

    def compute_lifting(self, cof: FieldMap, fib: FieldMap, square: Square) -> Result[FieldMap]:
        """h: B → X with h∘i = top, p∘h = bottom, by one linear system.

        It exists whenever i is injective, p is onto and one of them is a weak equivalence; it is looked for in any
        commuting square. Raises `LiftError` where the square does not commute or has no lift, `BudgetError`.
        """
        if square.top.source is not cof.source or square.bottom.source is not cof.target:
            raise LiftError("the square's maps start at the two ends of the cofibration")
        if square.top.target is not fib.source or square.bottom.target is not fib.target:
            raise LiftError("the square's maps end at the two ends of the fibration")
        self._check_field(cof)
        if not square.top.then(fib).equals(cof.then(square.bottom)):
            raise LiftError("the square does not commute", hint="p ∘ top has to be bottom ∘ i")
        unknowns = lift_unknowns(cof, fib)
        estimate_cost(unknowns).check(self.budget, f"a lift with {unknowns} unknowns")
        system = _LiftSystem(cof, fib, square)
        solution, functional = solve(self.field, system.rows, system.values)
        if solution is None:
            assert functional is not None
            raise LiftError(
                "no lift exists in this square",
                system.obstruction(functional),
                "one of the two maps has to be a quasi-isomorphism for every square to have a lift",
            )
        lift = FieldMap(cof.target, fib.source, system.matrices(solution))
        witness = LiftWitness(*system.witness_parts(), {k: lift.matrix(k) for k in system.degrees})
        return Result(lift, "P0", witness=witness)

    def _check_field(self, f: FieldMap) -> None:
        if f.source.field != self.field:
            raise AnalysisError(f"this model works over {self.field.name}, the map is over {f.source.field.name}")


def _factorization_witness(whole: FieldMap, first: FieldMap, second: FieldMap, acyclic: str) -> FactorizationWitness:
    complexes = (whole.source, first.target, whole.target)
    degrees = spanned(*complexes)
    above = range(degrees.start, degrees.stop + 1)
    boundaries = [{k: c.boundary(k) for k in above} for c in complexes]
    maps = [{k: f.matrix(k) for k in degrees} for f in (first, second, whole)]
    return FactorizationWitness(
        whole.source.field.modulus, boundaries[0], boundaries[1], boundaries[2], maps[0], maps[1], maps[2], acyclic
    )


def _comparison(f: FieldMap, cylinder: Factorization, path: Factorization) -> Result[FieldMap]:
    """The lift P → Cyl written down, without a system of equations: the cofibration x ↦ (x, f x, 0) is undone by the
    projection r: P → X, the fibration Cyl → Y has the section s y = (0, 0, y), both are chain maps, and
    h = top∘r + s∘(bottom − f∘r) has h∘i = top and p∘h = bottom. So h(x, y, y′) = (x, 0, y − f x)."""
    field, x, y = f.source.field, f.source, f.target
    source, target = path.cofibration.target, cylinder.fibration.source
    degrees = spanned(x, source, target, y)
    matrices = {}
    for k in degrees:
        heights, widths = (x.dim(k), x.dim(k - 1), y.dim(k)), (x.dim(k), y.dim(k), y.dim(k + 1))
        parts = {(0, 0): field.identity(x.dim(k)), (2, 0): field.reduce(-f.matrix(k)), (2, 1): field.identity(y.dim(k))}
        matrices[k] = blocks(field, heights, widths, parts)
    lift = FieldMap(source, target, matrices)
    above = range(degrees.start, degrees.stop + 1)
    maps = (path.cofibration, cylinder.fibration, cylinder.cofibration, path.fibration, lift)
    i, p, top, bottom, h = ({k: g.matrix(k) for k in degrees} for g in maps)
    b, c = ({k: z.boundary(k) for k in above} for z in (source, target))
    return Result(lift, "P0", witness=LiftWitness(field.modulus, i, p, top, bottom, b, c, h))


class _LiftSystem:
    """The equations h i = top, p h = bottom, ∂h = h∂ for the entries of h: B → X. ``labels`` say which entry of which
    of the three an equation is."""

    def __init__(self, cof: FieldMap, fib: FieldMap, square: Square) -> None:
        self.cof, self.fib, self.square = cof, fib, square
        self.b, self.x = cof.target, fib.source
        self.degrees = spanned(cof.source, self.b, self.x, fib.target)
        self.offset: dict[int, int] = {}
        total = 0
        for k in self.degrees:
            self.offset[k] = total
            total += self.x.dim(k) * self.b.dim(k)
        self.rows: list[Row] = []
        self.values: list[Any] = []
        self.labels: list[tuple[str, int, int, int]] = []
        for k in self.degrees:
            self._restrictions(k)
            self._projections(k)
            self._boundaries(k)

    def _place(self, k: int, i: int, j: int) -> int:
        """The number of the unknown h_k[i, j]."""
        return self.offset[k] + i * self.b.dim(k) + j

    def _add(self, row: Row, value: Any, label: tuple[str, int, int, int]) -> None:
        self.rows.append({j: v for j, v in row.items() if v})
        self.values.append(value)
        self.labels.append(label)

    def _restrictions(self, k: int) -> None:
        i, top = self.cof.matrix(k), self.square.top.matrix(k)
        for r, c in np.ndindex(*top.shape):
            self._add({self._place(k, r, j): i[j, c] for j in range(self.b.dim(k))}, top[r, c], ("u", k, r, c))

    def _projections(self, k: int) -> None:
        p, bottom = self.fib.matrix(k), self.square.bottom.matrix(k)
        for r, c in np.ndindex(*bottom.shape):
            self._add({self._place(k, i, c): p[r, i] for i in range(self.x.dim(k))}, bottom[r, c], ("v", k, r, c))

    def _boundaries(self, k: int) -> None:
        down, below = self.x.boundary(k), self.b.boundary(k)
        reduce, zero = self.x.field.reduce, self.x.field.scalar(0)
        for r, c in np.ndindex(self.x.dim(k - 1), self.b.dim(k)):
            row = {self._place(k, i, c): down[r, i] for i in range(self.x.dim(k))}
            row.update({self._place(k - 1, r, j): reduce(-below[j, c]) for j in range(self.b.dim(k - 1))})
            self._add(row, zero, ("w", k, r, c))

    def matrices(self, solution: Row) -> dict[int, Matrix]:
        found = {k: self.x.field.zeros(self.x.dim(k), self.b.dim(k)) for k in self.degrees}
        for k, matrix in found.items():
            for i, j in np.ndindex(*matrix.shape):
                matrix[i, j] = solution.get(self._place(k, i, j), matrix[i, j])
        return found

    def witness_parts(self) -> tuple[int, Mapping[int, Matrix], Any, Any, Any, Any, Any]:
        above = range(self.degrees.start, self.degrees.stop + 1)
        maps = (self.cof, self.fib, self.square.top, self.square.bottom)
        i, p, top, bottom = ({k: f.matrix(k) for k in self.degrees} for f in maps)
        b, x = ({k: c.boundary(k) for k in above} for c in (self.b, self.x))
        return self.x.field.modulus, i, p, top, bottom, b, x

    def obstruction(self, functional: Row) -> ObstructionWitness:
        zeros = self.x.field.zeros
        u = {k: zeros(self.x.dim(k), self.cof.source.dim(k)) for k in self.degrees}
        v = {k: zeros(self.fib.target.dim(k), self.b.dim(k)) for k in self.degrees}
        w = {k: zeros(self.x.dim(k - 1), self.b.dim(k)) for k in self.degrees}
        parts = {"u": u, "v": v, "w": w}
        for e, value in functional.items():
            kind, k, r, c = self.labels[e]
            parts[kind][k][r, c] = value
        return ObstructionWitness(*self.witness_parts(), u, v, w)
