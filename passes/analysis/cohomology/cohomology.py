"""Cohomology with coefficients in Z, Q and F_p: cochains, classes with coordinates, the cup product in coordinates.

A k-cochain (a discrete k-form) has one value for each k-cell in canonical order; d is the transposed boundary, so
Stokes' ∫_c dω = ∫_∂c ω holds by definition. Sources: Hatcher, Algebraic Topology, chapter 3; Desbrun, Hirani, Leok,
Marsden, Discrete exterior calculus (2005).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.arithmetic.heights import Height, arithmetic_height
from aatc.passes.analysis.chains.complexes import ChainComplex, ComplexError, SimplicialComplex
from aatc.passes.analysis.chains.cup import cochain_values, cup
from aatc.passes.analysis.chains.homology import (
    AbelianGroup,
    chain_complex,
    coefficients,
    exact_rows,
    group,
    minimal_model,
    reduce_orders,
    summands,
    unit_columns,
)
from aatc.passes.analysis.chains.reduction import MinimalModel, apply
from aatc.passes.analysis.chains.smith import Integers
from aatc.passes.analysis.chains.verify_cohomology import CocycleWitness
from aatc.passes.analysis.chains.verify_homology import ChainsWitness
from aatc.passes.analysis.cohomology import characteristic, hodge, persistence
from aatc.passes.analysis.information.ergodic import ErgodicAnalysis, ergodic_analysis
from aatc.passes.analysis.information.information import InformationFlowMetrics, information_flow_metrics
from aatc.passes.analysis.information.stability import PatternStabilityMeasures, pattern_stability_measures
from aatc.passes.analysis.result import Cost, Result, Undecided


@dataclass(frozen=True)
class DifferentialForm:
    """A cochain: ``values`` (count_k,) on the cells of one degree, integers, fractions or floats."""

    degree: int
    values: NDArray[Any]

    def integrate(self, chain: Any) -> Any:
        """∫_c ω = Σ c_σ ω(σ) for a chain (count_k,). Raises `ComplexError`."""
        coefficients_of = np.asarray(chain)
        if coefficients_of.shape != self.values.shape:
            raise ComplexError(f"a chain of shape {coefficients_of.shape} is not one of {self.values.shape}")
        return np.dot(coefficients_of, self.values)


@dataclass(frozen=True)
class CohomologyClass:
    """A class by a cocycle, with coordinates in the summands of H^k in the order of `cohomology_classes`; torsion
    coordinates are reduced modulo ``orders`` (0 for free summands)."""

    degree: int
    coeff: str
    cocycle: NDArray[Any]
    coordinates: tuple[Any, ...]
    orders: tuple[int, ...]

    @property
    def is_zero(self) -> bool:
        return not any(self.coordinates)


def cohomology(
    source: ChainComplex | SimplicialComplex | MinimalModel,
    coeff: str | int = "Z",
    *,
    representatives: bool = True,
    budget: Cost | None = None,
) -> Result[tuple[AbelianGroup, ...]]:
    """H^0, ..., H^d with the given coefficients, cocycles as representatives.

    The witness is the complex, of which `verify` computes the groups again; `cocycle_witness` proves one degree's
    generators to be a basis. Raises `BudgetError`, `CoefficientError`,
    `ComplexError`.
    """
    field = coefficients(coeff)
    model = source if isinstance(source, MinimalModel) else minimal_model(source, budget)
    groups = tuple(group(model, k, field, representatives, dual=True) for k in range(len(model.counts)))
    return Result(groups, "P1", witness=ChainsWitness.of(model.chain, field.name, dual=True))


def cocycle_witness(model: MinimalModel, degree: int, coeff: str | int = "Z") -> CocycleWitness:
    """Cocycles that generate H^k, cycles modulo their orders that are dual to them, and for each torsion class a
    cochain whose coboundary is the order times the cocycle."""
    field = coefficients(coeff)
    cocycles = group(model, degree, field, True, dual=True).representatives
    assert cocycles is not None
    places, orders = summands(model, degree, field, dual=True)
    cycles = model.lift(degree, unit_columns(model.counts[degree], places))
    primitives = np.zeros((len(orders), model.chain.count(degree - 1)), dtype=object)
    if torsion := [j for j, t in enumerate(orders) if t]:
        # the duals of r and s with ∂s = t·r have d(r*) = t·s*
        duals = unit_columns(model.counts[degree - 1], model.bounding[degree - 1])
        primitives[torsion] = model.extend(degree - 1, duals).T
    return CocycleWitness(
        model.chain.coboundary(degree),
        model.chain.boundary(degree),
        cocycles,
        cycles % field.modulus if field.modulus else cycles,
        tuple(orders),
        field.modulus,
        primitives,
        rational=field.name == "Q",
    )


def coordinates(model: MinimalModel, degree: int, cocycles: Any, coeff: str | int = "Z") -> NDArray[Any]:
    """Coordinates (m, r) of the classes of cocycles (m, count_k), exact numbers or, over Q, floats.

    Raises `ComplexError` for a cochain that is not closed (floats: beyond 1e-9 of its largest value).
    """
    field = coefficients(coeff)
    array = np.atleast_2d(np.asarray(cocycles))
    if array.dtype.kind == "f" and field.name != "Q":
        raise ComplexError(f"floats are no cochains over {field.name}", hint='use coeff="Q", or integers')
    columns = exact_rows(array, model.chain.count(degree), field.name).T
    derivative = apply(model.chain.coboundary(degree), columns)
    if field.modulus:
        derivative = derivative % field.modulus
    room = 1e-9 * max(1.0, float(np.abs(array).max(initial=0))) if array.dtype.kind == "f" else 0
    open_cells = np.argwhere(np.abs(derivative) > room)
    if len(open_cells):
        raise ComplexError(
            f"a {degree}-cochain is not closed over {field.name}: dω = {derivative[tuple(open_cells[0])]} on the cell "
            f"{int(open_cells[0][0])} of degree {degree + 1}"
        )
    places, orders = summands(model, degree, field, dual=True)
    return reduce_orders(model.restrict(degree, columns)[places].T, orders, field)


class CohomologyStructure:
    """Forms, classes, products and characteristic classes of one complex, with one ring of coefficients.

    The seed's vocabulary is kept and made definite: the coefficients are explicit (``coeff`` "Z", "Q", "Fp" or a prime)
    and echoed by every group and class; a class is given by a cocycle and has coordinates; `characteristic_classes`
    needs the connection whose classes they are, which the seed's signature left out. Products and characteristic
    classes need a `SimplicialComplex`; the rest takes any `ChainComplex`. The seed's information flow, ergodic and
    stability methods, and the height of a point, do not depend on the complex: they are those of the families
    information and arithmetic, and return their results with a proof level.
    """

    def __init__(
        self, complex: SimplicialComplex | ChainComplex, coeff: str | int = "Z", budget: Cost | None = None
    ) -> None:
        self.complex = complex
        self.chain = chain_complex(complex)
        self.field = coefficients(coeff)
        self.model = minimal_model(complex, budget)

    @property
    def coeff(self) -> str:
        return self.field.name

    def differential_forms(self, degree: int) -> tuple[DifferentialForm, ...]:
        """The basis of the group of k-cochains: for each k-cell the form that is 1 there and 0 elsewhere."""
        unit = np.eye(self.chain.count(degree), dtype=np.int64)
        return tuple(DifferentialForm(degree, row) for row in unit)

    def form(self, degree: int, values: Any) -> DifferentialForm:
        """The form with the given values (count_k,). Raises `ComplexError`."""
        array = np.asarray(values)
        if array.shape != (self.chain.count(degree),):
            raise ComplexError(f"a {degree}-form has the shape ({self.chain.count(degree)},), not {array.shape}")
        return DifferentialForm(degree, array)

    def exterior_derivative(self, form: DifferentialForm) -> DifferentialForm:
        """dω, with dω(σ) = ω(∂σ); over F_p reduced modulo p."""
        values = self.form(form.degree, form.values).values
        coboundary = self.chain.coboundary(form.degree)
        if values.dtype.kind == "O":
            derivative = apply(coboundary, values[:, None])[:, 0]
        else:
            derivative = coboundary @ values
        return DifferentialForm(form.degree + 1, self._reduced(derivative))

    def cohomology_classes(self, degree: int) -> AbelianGroup:
        """H^k with representative cocycles."""
        if not 0 <= degree < len(self.chain.counts):
            return AbelianGroup(degree, self.coeff, 0, (), (), np.zeros((0, self.chain.count(degree)), dtype=object))
        return group(self.model, degree, self.field, True, dual=True)

    def basis(self, degree: int) -> tuple[CohomologyClass, ...]:
        """The generators of H^k as classes."""
        cocycles = self.cohomology_classes(degree).representatives
        assert cocycles is not None
        return tuple(self.cohomology_class(DifferentialForm(degree, row)) for row in cocycles)

    def cohomology_class(self, form: DifferentialForm) -> CohomologyClass:
        """The class of a closed form. Raises `ComplexError` where dω ≠ 0."""
        values = self.form(form.degree, form.values).values
        if not 0 <= form.degree < len(self.chain.counts):
            return CohomologyClass(form.degree, self.coeff, values, (), ())
        row = coordinates(self.model, form.degree, values[None], self.coeff)[0]
        orders = summands(self.model, form.degree, self.field, dual=True)[1]
        return CohomologyClass(form.degree, self.coeff, values, tuple(row), tuple(orders))

    def cup_product(self, class1: CohomologyClass, class2: CohomologyClass) -> CohomologyClass:
        """The class of φ ∪ ψ with its coordinates in H^{p+q}. Raises `ComplexError` for other coefficients than these,
        or a complex that is not simplicial."""
        if {class1.coeff, class2.coeff} != {self.coeff}:
            raise ComplexError(f"classes over {class1.coeff} and {class2.coeff} in a structure over {self.coeff}")
        product = cup(
            self._simplicial(), class1.cocycle, class1.degree, class2.cocycle, class2.degree, self.field.modulus
        )
        return self.cohomology_class(DifferentialForm(class1.degree + class2.degree, product))

    def cup_table(self, p: int, q: int) -> Integers:
        """Coordinates (r_p, r_q, r_{p+q}) of the products of the generators of H^p and H^q."""
        rows = [[self.cup_product(a, b).coordinates for b in self.basis(q)] for a in self.basis(p)]
        size = len(self.cohomology_classes(p + q).orders)
        return np.array(rows, dtype=object).reshape(len(self.basis(p)), len(self.basis(q)), size)

    def characteristic_classes(
        self, *, phases: Any = None, transports: Any = None
    ) -> Mapping[str, CohomologyClass | Undecided]:
        """Classes of the bundle that a connection on the edges gives, where the coefficients fit.

        ``phases`` (count_1,), of a U(1) connection in radians: "c1" over Z or Q. ``transports`` (count_1, n, n), in
        O(n): "w1" and, where every one has determinant 1 and n ≥ 2, "w2", over F2. Angles of holonomy near π give
        `Undecided`. Raises `ComplexError` and the errors of `characteristic`.
        """
        complex, found = self._simplicial(), dict[str, CohomologyClass | Undecided]()
        if phases is not None:
            if self.field.modulus:
                raise ComplexError(f"c1 is a class over Z, not {self.coeff}")
            flux = characteristic.curvature(complex, phases)
            found["c1"] = (
                flux if isinstance(flux, Undecided) else self.cohomology_class(DifferentialForm(2, flux.value.integers))
            )
        if transports is not None:
            if self.field.modulus != 2:
                raise ComplexError(f"Stiefel–Whitney classes are classes over F2, not {self.coeff}")
            signs = characteristic.w1_cocycle(complex, transports)
            found["w1"] = signs if isinstance(signs, Undecided) else self.cohomology_class(DifferentialForm(1, signs))
            if not isinstance(signs, Undecided) and not signs.any() and np.shape(transports)[-1] >= 2:
                lifts = characteristic.w2_cocycle(complex, transports)
                found["w2"] = (
                    lifts if isinstance(lifts, Undecided) else self.cohomology_class(DifferentialForm(2, lifts))
                )
        return found

    def hodge_decomposition(
        self, form: DifferentialForm, weights: Sequence[Any] | None = None
    ) -> Result[hodge.HodgeDecomposition]:
        """ω = dα + δβ + h; see `hodge.hodge_decomposition`."""
        return hodge.hodge_decomposition(self.chain, form.degree, form.values, weights)

    def persistent_homology(self, values: Sequence[Any]) -> Result[persistence.Barcodes]:
        """Barcodes of the complex filtered by values on its cells, over F_p (F_2 unless the coefficients are F_p)."""
        return persistence.filtration_persistence(self.chain, values, self.field.modulus or 2)

    def arithmetic_height(self, point: Any, *, affine: bool = False) -> Result[Height]:
        """The Weil height of homogeneous rational coordinates, of the values of a `DifferentialForm`, or of a
        `CohomologyClass` by its free coordinates, its image in H^k(·; Q): see `heights.arithmetic_height`.

        Raises `ComplexError` for a class over F_p, `RationalError`, also where every coordinate is 0.
        """
        if isinstance(point, DifferentialForm):
            point = point.values
        elif isinstance(point, CohomologyClass):
            if coefficients(point.coeff).modulus:
                raise ComplexError(f"coordinates over {point.coeff} are no rational point: a height needs Z or Q")
            point = [x for x, order in zip(point.coordinates, point.orders, strict=True) if not order]
        return arithmetic_height(point, affine=affine)

    def information_flow_metrics(
        self, pattern: Any, tile_size: int = 64, **options: Any
    ) -> Result[InformationFlowMetrics]:
        """The flow of information along patterns (..., n, n): see `information.information_flow_metrics`."""
        return information_flow_metrics(pattern, tile_size, **options)

    def ergodic_analysis(self, pattern: Any, **options: Any) -> Result[ErgodicAnalysis]:
        """Classes, stationary laws, gap and mixing of a pattern (n, n): see `ergodic.ergodic_analysis`."""
        return ergodic_analysis(pattern, **options)

    def pattern_stability_measures(self, pattern: Any, values: Any | None = None) -> Result[PatternStabilityMeasures]:
        """How rows of patterns (..., n, m) answer to changed scores: see `stability.pattern_stability_measures`."""
        return pattern_stability_measures(pattern, values)

    def _simplicial(self) -> SimplicialComplex:
        if not isinstance(self.complex, SimplicialComplex):
            raise ComplexError("products and characteristic classes need a SimplicialComplex")
        return self.complex

    def _reduced(self, values: NDArray[Any]) -> NDArray[Any]:
        return values % self.field.modulus if self.field.modulus else values


__all__ = [
    "AbelianGroup",
    "CohomologyClass",
    "CohomologyStructure",
    "DifferentialForm",
    "cochain_values",
    "cocycle_witness",
    "cohomology",
    "coordinates",
]
