"""RHom of bounded complexes and of finitely generated abelian groups; homotopy limits and colimits over finite posets.

RHom(X, Y) is Hom of free resolutions: free complexes are their own, a group given by generators and relations has one
with two terms. Homotopy limits are the totalisation of the cosimplicial replacement, normalised: products over strict
chains p_0 < … < p_k. Sources: Weibel, An Introduction to Homological Algebra, section 10.7; Bousfield, Kan, Homotopy
Limits, Completions and Localizations, chapter XI.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import sparse

from aatc.passes.analysis.chains.complexes import ChainComplex, ComplexError
from aatc.passes.analysis.chains.graded_complexes import (
    BlockLayout,
    GradedComplex,
    GradedMap,
    cone,
    hom_complex,
    shifted,
)
from aatc.passes.analysis.chains.homology import AbelianGroup
from aatc.passes.analysis.chains.smith import integer_array, smith_normal_form
from aatc.passes.analysis.chains.verify_cohomology import EquivalenceWitness
from aatc.passes.analysis.result import AnalysisError, Cost, Result, Undecided

Name = Hashable
#: Chains of a poset looked at before an enumeration is given up.
LIMIT = 1 << 14
# Measured on one thread: a mapping complex and its reduction with a witness, for each generator.
_SECONDS_PER_GENERATOR = 8e-5
_BYTES_PER_GENERATOR = 4000.0


@dataclass(frozen=True)
class PresentedGroup:
    """Z^generators modulo the columns of ``relations`` (generators, m)."""

    generators: int
    relations: tuple[tuple[int, ...], ...] = ()

    @staticmethod
    def cyclic(order: int) -> PresentedGroup:
        """Z/order; Z for order 0."""
        return PresentedGroup(1, ((order,),))

    @staticmethod
    def of(group: AbelianGroup) -> PresentedGroup:
        """The homology group, one generator for each summand. Only over Z: AnalysisError else."""
        if group.coeff != "Z":
            raise AnalysisError(f"a group over {group.coeff} is no finitely generated abelian group")
        orders = [0] * group.free_rank + list(group.torsion)
        return PresentedGroup(
            len(orders), tuple(tuple(t if i == j else 0 for j in range(len(orders))) for i, t in enumerate(orders))
        )


@dataclass(frozen=True)
class DerivedMapping:
    """RHom(source, target) as a complex of free groups; ``resolutions`` are what Hom was taken of."""

    complex: GradedComplex
    resolutions: tuple[GradedComplex, GradedComplex] = field(repr=False)

    def homology(self, degree: int) -> AbelianGroup:
        """H_n of the mapping complex: maps of degree n up to homotopy."""
        return self.complex.homology(degree)

    def ext(self, degree: int) -> AbelianGroup:
        """Extⁿ = H_{−n}."""
        return self.complex.homology(-degree)


@dataclass(frozen=True)
class Diagram:
    """A functor from a finite poset to complexes: ``maps[p, q]`` is D(p) → D(q) for p < q.

    ``maps`` need to hold the covering relations only; the others follow by composition. Raises AnalysisError for
    relations with a cycle, and where two ways round give different maps.
    """

    objects: Mapping[Name, GradedComplex]
    maps: Mapping[tuple[Name, Name], GradedMap]

    def __post_init__(self) -> None:
        closed = dict(self.maps)
        for (p, q), f in closed.items():
            if p not in self.objects or q not in self.objects:
                raise AnalysisError(f"the map {p!r} → {q!r} joins objects that are not there")
            if f.source is not self.objects[p] or f.target is not self.objects[q]:
                raise AnalysisError(f"the map {p!r} → {q!r} does not join the complexes of these objects")
        grown = True
        while grown:
            grown = False
            for (p, q), f in list(closed.items()):
                for (r, s), g in list(closed.items()):
                    if q != r:
                        continue
                    if p == s:
                        raise AnalysisError(f"the relations between {p!r} and {q!r} are a cycle, no partial order")
                    whole = f.then(g)
                    if (p, s) not in closed:
                        closed[p, s], grown = whole, True
                    elif not closed[p, s].equals(whole):
                        raise AnalysisError(f"the diagram does not commute from {p!r} to {s!r} by way of {q!r}")
        object.__setattr__(self, "maps", closed)

    def chains(self) -> list[tuple[Name, ...]]:
        """Strict chains p_0 < … < p_k, k ≥ 0; no more than `LIMIT` + 1 of them."""
        found: list[tuple[Name, ...]] = [(p,) for p in self.objects]
        grown = found
        while grown:
            grown = [(*c, q) for c in grown for (p, q) in self.maps if p == c[-1]]
            found = found + grown
            if len(found) > LIMIT:
                return found[: LIMIT + 1]
        return found


def estimate_cost(generators: int) -> Cost:
    """What the homology of a mapping complex of this rank takes."""
    return Cost(0.01 + _SECONDS_PER_GENERATOR * generators, 2**20 + _BYTES_PER_GENERATOR * generators)


class DerivedAttention:
    """Derived mapping complexes and homotopy limits. Attention patterns enter by the chains of their complexes; the
    seed's Map(X•, Y) is the complex Hom(resolution of X, Y)."""

    def __init__(self, budget: Cost | None = None) -> None:
        self.budget = budget or Cost()

    def resolve(self, source: Any) -> GradedComplex:
        """A free resolution: of a `PresentedGroup` Z^r → Z^n in degrees 1 and 0, injective; complexes of free groups
        (`GradedComplex`, `ChainComplex`, `SimplicialComplex`) are their own."""
        if not isinstance(source, PresentedGroup):
            return GradedComplex.of(source)
        if source.generators < 0:
            raise ComplexError(f"a group has 0 or more generators, not {source.generators}")
        if any(len(column) != source.generators for column in source.relations):
            raise ComplexError(f"a relation among {source.generators} generators has as many entries")
        if not source.relations:
            return GradedComplex(ChainComplex([], [source.generators]))
        matrix = integer_array(list(map(list, source.relations))).T
        form = smith_normal_form(matrix)
        # the columns U⁻¹ D are a basis of the image
        basis = form.left_inverse[:, : form.rank] * np.array(form.factors, dtype=object)
        try:
            basis = basis.astype(np.int64)
        except OverflowError as large:
            raise ComplexError("the resolution has entries beyond 64 bits", hint="present the group by less") from large
        return GradedComplex.from_boundaries({0: source.generators, 1: form.rank}, {1: basis})

    def compute_derived(self, resolution: GradedComplex, target: Any) -> Result[DerivedMapping]:
        """Hom(resolution, target), the target resolved too, which changes nothing up to quasi-isomorphism.

        The witness is the equivalence of the mapping complex with its minimal model. Raises `BudgetError`.
        """
        other = self.resolve(target)
        size = sum(resolution.dim(i) * other.dim(j) for i in resolution.degrees for j in other.degrees)
        self._check_size(size, "a mapping complex")
        found = DerivedMapping(hom_complex(resolution, other), (resolution, other))
        return Result(found, "P1", witness=_witness(found.complex))

    def _check_size(self, size: int, what: str) -> None:
        estimate_cost(size).check(self.budget, f"{what} of rank {size}")

    def derived_mapping(self, source: Any, target: Any) -> Result[DerivedMapping]:
        """RHom(source, target)."""
        return self.compute_derived(self.resolve(source), target)

    def homotopy_limit(self, diagram: Diagram) -> Result[GradedComplex | Undecided]:
        """holim_n = ∏ over chains p_0 < … < p_k of D(p_k)_{n+k}.

        (∂φ)(p_0 … p_{k+1}) = (−1)^{k+1} ∂(φ(p_0 … p_{k+1})) + Σ_{i ≤ k} (−1)^i φ(… p_i left out …)
        + (−1)^{k+1} D(p_k < p_{k+1}) φ(p_0 … p_k).
        It is a limit of complexes: holim(0 → C → 0 from both sides) = C[−1], so that the reduced chains of X give
        H_n = H̃_{n+1}(X), the loops of spectra and not the chains of the space ΩX. `Undecided` beyond `LIMIT` chains;
        raises `BudgetError`.
        """
        chains = diagram.chains()
        if len(chains) > LIMIT:
            return Result(Undecided(f"{LIMIT} chains of the poset"), "P1")
        self._check_size(sum(sum(diagram.objects[c[-1]].chain.counts) for c in chains), "a homotopy limit")
        layout = BlockLayout()
        for c in chains:
            top = diagram.objects[c[-1]]
            for k in top.degrees:
                layout.add(k - len(c) + 1, c, top.dim(k))
        for c in chains:
            k, top = len(c) - 1, diagram.objects[c[-1]]
            for degree in top.degrees:
                layout.put(degree - k, c, c, (-1) ** k * top.boundary(degree))
            for i in range(k):
                for degree in top.degrees:
                    # from φ(c without p_i), of degree n = degree − (k − 1), into the component of c
                    layout.put(degree - k + 1, c, (*c[:i], *c[i + 1 :]), (-1) ** i * _unit(top, degree))
            if k:
                before, f = diagram.objects[c[-2]], diagram.maps[c[-2], c[-1]]
                for degree in before.degrees:
                    layout.put(degree - k + 1, c, c[:-1], (-1) ** k * f.matrix(degree))
        found = layout.build()
        return Result(found, "P1", witness=_witness(found))

    def homotopy_colimit(self, diagram: Diagram) -> Result[GradedComplex | Undecided]:
        """hocolim_n = ⊕ over chains p_0 < … < p_k of D(p_0)_{n−k}, with
        ∂(p_0 … p_k; x) = (p_1 … p_k; D(p_0 < p_1) x) + Σ_{i ≥ 1} (−1)^i (… p_i left out …; x) + (−1)^k (p_0 … p_k; ∂x).
        """
        chains = diagram.chains()
        if len(chains) > LIMIT:
            return Result(Undecided(f"{LIMIT} chains of the poset"), "P1")
        self._check_size(sum(sum(diagram.objects[c[0]].chain.counts) for c in chains), "a homotopy colimit")
        layout = BlockLayout()
        for c in chains:
            bottom = diagram.objects[c[0]]
            for degree in bottom.degrees:
                layout.add(degree + len(c) - 1, c, bottom.dim(degree))
        for c in chains:
            k, bottom = len(c) - 1, diagram.objects[c[0]]
            for degree in bottom.degrees:
                layout.put(degree + k, c, c, (-1) ** k * bottom.boundary(degree))
                if k:
                    layout.put(degree + k, c[1:], c, diagram.maps[c[0], c[1]].matrix(degree))
                for i in range(1, k + 1):
                    layout.put(degree + k, (*c[:i], *c[i + 1 :]), c, (-1) ** i * _unit(bottom, degree))
        found = layout.build()
        return Result(found, "P1", witness=_witness(found))


def homotopy_pullback(f: GradedMap, g: GradedMap) -> GradedComplex:
    """The pullback of A → C ← B up to homotopy: the cone of (f, −g): A ⊕ B → C, shifted down by one.

    Its long exact sequence … → H_{n+1}(C) → H_n(pullback) → H_n(A) ⊕ H_n(B) → H_n(C) is Mayer's and Vietoris'.
    """
    if f.target is not g.target:
        raise ComplexError("the two maps of a pullback end in one complex (the same object)")
    layout = BlockLayout()
    for name, x in (("a", f.source), ("b", g.source)):
        for k in x.degrees:
            layout.add(k, name, x.dim(k))
        for k in x.degrees:
            layout.put(k, name, name, x.boundary(k))
    both = layout.build()
    degrees = {*f.source.degrees, *g.source.degrees}
    pair = GradedMap(both, f.target, {k: sparse.hstack([f.matrix(k), -g.matrix(k)]) for k in degrees})
    return shifted(cone(pair), -1)


def _unit(x: GradedComplex, degree: int) -> Any:
    return sparse.eye_array(x.dim(degree), dtype="int64")


def _witness(x: GradedComplex) -> EquivalenceWitness | None:
    """The dense equivalence where it is small enough to be written down."""
    return replace(x.model.witness(), lowest=x.lowest) if max(x.chain.counts, default=0) <= 300 else None
