"""Localisation: minimal models of chain complexes, and finite categories with arrows inverted.

A finite category has a calculus of left fractions for W when W holds identities and composites, every s: X → X′ in W
and f: X → Y are completed to a square by some t: Y → Z in W, and s·f = s·g with s in W implies f·t = g·t for some t in
W (a·b is first a, then b). Arrows X → Y of the localisation are then roofs X → Z ← Y modulo common extensions. Where
neither this nor its mirror image holds and W is everything, the localisation is the fundamental groupoid of the nerve.
Sources: Gabriel, Zisman, Calculus of Fractions and Homotopy Theory, chapter I; Quillen, Higher algebraic K-theory I,
section 1, for the fundamental groupoid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from aatc.passes.analysis.chains.complexes import ChainComplex, SimplicialComplex
from aatc.passes.analysis.chains.homology import minimal_model
from aatc.passes.analysis.chains.reduction import MinimalModel
from aatc.passes.analysis.homotopy.presentation import Presentation, Word, inverse, reduced
from aatc.passes.analysis.homotopy.simplicial_sets import Category, Name
from aatc.passes.analysis.homotopy.verify_homotopy import FractionsWitness, LocalizationWitness, OreWitness
from aatc.passes.analysis.result import AnalysisError, Cost, Result, Undecided, Verdict

#: Roofs looked at before an enumeration is given up.
LIMIT = 1 << 14
# Measured on one thread, for each triple of composable arrows of the category that comes out.
_SECONDS_PER_TRIPLE = 8e-6
_BYTES_PER_TRIPLE = 16.0


@dataclass(frozen=True)
class Roof:
    """X → Z ← Y: ``forward`` from X to the apex Z, ``inverted`` from Y to Z, in W. In a calculus of right fractions
    both arrows run the other way: X ← Z → Y with ``inverted`` from Z to X and ``forward`` from Z to Y."""

    forward: Name
    inverted: Name


@dataclass(frozen=True)
class Localized:
    """``category`` is C[W⁻¹] with roofs as the names of arrows, one of each class; ``functor`` sends the arrows of C to
    it; ``side`` says which fractions were used, "left" or "right"."""

    category: Category
    functor: dict[Name, Name] = field(repr=False)
    side: str


@dataclass(frozen=True)
class Component:
    """A component of a fundamental groupoid: its objects, π₁ at the first one, and the words of its arrows."""

    objects: tuple[Name, ...]
    group: Presentation
    words: dict[Name, Word] = field(repr=False)


@dataclass(frozen=True)
class FundamentalGroupoid:
    """C with all arrows inverted: between two objects of one component there are as many arrows as elements in its
    group, between components none. ``refused`` are the two failures of Ore's conditions, left and right."""

    components: tuple[Component, ...]
    refused: tuple[Verdict, Verdict] = field(repr=False)


@dataclass(frozen=True)
class LocalPlan:
    """What `LocalizedAttention.localize` takes: ``category`` with ``inverted`` (identities added, closed under
    composition) and the verdicts ``left`` and ``right`` on the calculus of fractions."""

    category: Category
    inverted: frozenset[Name]
    left: Verdict
    right: Verdict


def estimate_cost(category: Category) -> Cost:
    """What Ore's conditions and roofs take at most: when all objects come to be joined by one arrow each way."""
    objects = len(category.objects)
    triples = objects**4 + len(category.compose) * len(category.arrows) / max(1, objects)
    return Cost(1e-3 + _SECONDS_PER_TRIPLE * triples, 2**16 + _BYTES_PER_TRIPLE * triples)


def closure(category: Category, inverted: Iterable[Name]) -> frozenset[Name]:
    """Identities, the given arrows and all composites: inverting these inverts no more. AnalysisError for an arrow that
    is not there."""
    found = set(category.identity.values()) | set(inverted)
    unknown = found - set(category.arrows)
    if unknown:
        raise AnalysisError(f"{next(iter(unknown))!r} is no arrow of the category")
    while True:
        new = {h for (f, g), h in category.compose.items() if f in found and g in found} - found
        if not new:
            return frozenset(found)
        found |= new


def left_fractions(category: Category, inverted: frozenset[Name]) -> Verdict:
    """Whether W, closed under composition, has a calculus of left fractions; the witness is the first failure."""
    arrows, compose = category.arrows, category.compose
    leaving: dict[Name, list[Name]] = {x: [] for x in category.objects}
    for f, (x, _) in arrows.items():
        leaving[x].append(f)
    statement = "squares and cancellation of a calculus of left fractions"
    for s in sorted(inverted, key=str):
        for f in leaving[arrows[s][0]]:
            around = {compose[s, g] for g in leaving[arrows[s][1]]}
            if not any(t in inverted and compose[f, t] in around for t in leaving[arrows[f][1]]):
                return Verdict(False, "P0", residual=1.0, statement=statement,
                               witness=OreWitness(arrows, compose, inverted, "square", s, f))  # fmt: skip
        for f in leaving[arrows[s][1]]:
            for g in leaving[arrows[s][1]]:
                if f == g or arrows[f][1] != arrows[g][1] or compose[s, f] != compose[s, g]:
                    continue
                if not any(t in inverted and compose[f, t] == compose[g, t] for t in leaving[arrows[f][1]]):
                    return Verdict(False, "P0", residual=1.0, statement=statement,
                                   witness=OreWitness(arrows, compose, inverted, "cancel", s, f, g))  # fmt: skip
    return Verdict(True, "P0", statement=statement,
                   witness=FractionsWitness(arrows, compose, category.identity, inverted))  # fmt: skip


class LocalizedAttention:
    """Localisations, with the seed's method names. ``attention`` is a chain or simplicial complex, whose weak
    equivalences are the quasi-isomorphisms, or a finite `Category` with a set of arrows."""

    def __init__(self, budget: Cost | None = None) -> None:
        self.budget = budget or Cost()

    def compute_local(self, attention: Any, weak_equiv: Iterable[Name] | str) -> Result[MinimalModel | LocalPlan]:
        """The local object of a complex (``weak_equiv="quasi-isomorphisms"``): its integral minimal model by Morse
        cancellation, with the equivalence as witness up to 300 cells a degree. For a category: the arrows to be
        inverted, "all" or names, closed under composition, and the verdicts on Ore's conditions; P0.

        Raises `BudgetError`, AnalysisError.
        """
        if isinstance(attention, (ChainComplex, SimplicialComplex)):
            if weak_equiv != "quasi-isomorphisms":
                raise AnalysisError("complexes are localised at the 'quasi-isomorphisms'")
            model = minimal_model(attention, self.budget if self.budget != Cost() else None)
            small = max(model.chain.counts, default=0) <= 300
            return Result(model, "P1", witness=model.witness() if small else None)
        if not isinstance(attention, Category):
            raise AnalysisError(f"a complex or a finite category is localised, not a {type(attention).__name__}")
        if weak_equiv != "all" and (isinstance(weak_equiv, str) or not isinstance(weak_equiv, Iterable)):
            raise AnalysisError(f"the arrows to be inverted are 'all' or a set of names, not {weak_equiv!r}")
        estimate_cost(attention).check(self.budget, f"Ore's conditions of {len(attention.arrows)} arrows")
        inverted = closure(attention, attention.arrows if weak_equiv == "all" else weak_equiv)
        left, right = left_fractions(attention, inverted), left_fractions(attention.opposite(), inverted)
        return Result(LocalPlan(attention, inverted, left, right), "P0")

    def localize(
        self, local: MinimalModel | LocalPlan
    ) -> Result[MinimalModel | Localized | FundamentalGroupoid | Undecided]:
        """C[W⁻¹] by left fractions, else by right ones, else, where W is all arrows, the fundamental groupoid (P1).
        `Undecided` where none applies: arrows are then zig-zags without a bound on their length. A minimal model is its
        own localisation: where homology is free, quasi-isomorphisms between minimal models are isomorphisms; with
        torsion they are homotopy equivalences.
        """
        if isinstance(local, MinimalModel):
            small = max(local.chain.counts, default=0) <= 300
            return Result(local, "P1", witness=local.witness() if small else None)
        if local.left:
            return _by_roofs(local, "left")
        if local.right:
            return _by_roofs(local, "right")
        if local.inverted == frozenset(local.category.arrows):
            return Result(_groupoid(local), "P1")
        bound = "calculi of fractions and fundamental groupoids"
        return Result(Undecided(bound, "Ore's conditions fail and not all arrows are inverted"), "P0")

    def localize_attention(self, attention: Any, weak_equiv: Iterable[Name] | str) -> Result[Any]:
        """`localize` of `compute_local`."""
        return self.localize(self.compute_local(attention, weak_equiv).value)


# --- fractions ---------------------------------------------------------------------------------------------
class _Roofs:
    """Left fractions: all roofs, joined where one extends another by an arrow that keeps the second leg in W."""

    def __init__(self, category: Category, inverted: frozenset[Name]) -> None:
        self.category, self.inverted = category, inverted
        arrows, compose = category.arrows, category.compose
        self.into: dict[Name, list[Name]] = {x: [] for x in category.objects}
        self.leaving: dict[Name, list[Name]] = {x: [] for x in category.objects}
        for f, (x, y) in arrows.items():
            self.leaving[x].append(f)
            self.into[y].append(f)
        self.parent: dict[Roof, Roof] = {}
        for z in category.objects:
            for f in self.into[z]:
                for s in self.into[z]:
                    if s in inverted:
                        self.parent[Roof(f, s)] = Roof(f, s)
        for roof in list(self.parent):
            for u in self.leaving[arrows[roof.forward][1]]:
                further = Roof(compose[roof.forward, u], compose[roof.inverted, u])
                if further.inverted in inverted:
                    self.join(roof, further)

    def root(self, roof: Roof) -> Roof:
        while self.parent[roof] != roof:
            self.parent[roof] = self.parent[self.parent[roof]]
            roof = self.parent[roof]
        return roof

    def join(self, one: Roof, two: Roof) -> None:
        self.parent[self.root(two)] = self.root(one)

    def ends(self, roof: Roof) -> tuple[Name, Name]:
        return self.category.arrows[roof.forward][0], self.category.arrows[roof.inverted][0]

    def of_arrow(self, f: Name) -> Roof:
        return self.root(Roof(f, self.category.identity[self.category.arrows[f][1]]))

    def composite(self, one: Roof, two: Roof) -> Roof:
        """First X → Z ← Y, then Y → Z′ ← V: the square of Y → Z and Y → Z′ is completed."""
        compose, arrows = self.category.compose, self.category.arrows
        s, g = one.inverted, two.forward
        for t in self.leaving[arrows[g][1]]:
            if t in self.inverted:
                for h in self.leaving[arrows[s][1]]:
                    if compose[g, t] == compose[s, h]:
                        return self.root(Roof(compose[one.forward, h], compose[two.inverted, t]))
        raise AnalysisError(f"the square of {s!r} and {g!r} is not completed: there is no calculus of fractions")


def _by_roofs(local: LocalPlan, side: str) -> Result[Localized | Undecided | Any]:
    category = local.category if side == "left" else local.category.opposite()
    sizes = {x: 0 for x in category.objects}
    for _, y in category.arrows.values():
        sizes[y] += 1
    if sum(n * n for n in sizes.values()) > LIMIT:
        return Result(Undecided(f"{LIMIT} roofs"), "P0")
    roofs = _Roofs(category, local.inverted)
    classes = sorted({roofs.root(r) for r in roofs.parent}, key=str)
    arrows = {c: roofs.ends(c) for c in classes}
    compose = {(c, d): roofs.composite(c, d) for c in classes for d in classes if arrows[c][1] == arrows[d][0]}
    units = {x: roofs.of_arrow(e) for x, e in category.identity.items()}
    found = Category(category.objects, arrows, units, compose)
    functor = {f: roofs.of_arrow(f) for f in local.category.arrows}
    witness = LocalizationWitness(
        category.arrows, category.compose, category.identity, local.inverted, arrows, compose, units, functor
    )
    if side == "right":
        found = found.opposite()
    return Result(Localized(found, functor, side), "P0", witness=witness)


# --- all arrows inverted -----------------------------------------------------------------------------------
def _groupoid(local: LocalPlan) -> FundamentalGroupoid:
    """π₁ of the nerve by components: arrows are generators, composites relators, arrows of a spanning tree trivial."""
    category = local.category
    left = list(category.objects)
    components = []
    while left:
        tree, reached = _spanning_tree(category, left[0])
        left = [x for x in left if x not in reached]
        inside = [f for f, (x, _) in category.arrows.items() if x in reached]
        number = {f: n for n, f in enumerate(inside, 1)}
        relators: list[Word] = [(number[f],) for f in tree]
        relators += [(number[category.identity[x]],) for x in reached]
        relators += [(number[f], number[g], -number[h]) for (f, g), h in category.compose.items() if f in number]
        simple, images = Presentation(len(inside), tuple(relators)).simplification()
        components.append(Component(tuple(reached), simple, {f: images[number[f] - 1] for f in inside}))
    return FundamentalGroupoid(tuple(components), (local.left, local.right))


def _spanning_tree(category: Category, root: Name) -> tuple[list[Name], dict[Name, None]]:
    """Arrows of a spanning tree of the component, and its objects in the order of their discovery."""
    tree: list[Name] = []
    reached: dict[Name, None] = {root: None}
    grown = True
    while grown:
        grown = False
        for f, (x, y) in category.arrows.items():
            if (x in reached) != (y in reached):
                tree.append(f)
                reached.setdefault(x)
                reached.setdefault(y)
                grown = True
    return tree, reached


def word_of_zigzag(component: Component, steps: Iterable[tuple[Name, int]]) -> Word:
    """The element of the group that a zig-zag stands for: ``steps`` are (arrow, +1 forwards or −1 backwards)."""
    return reduced(g for f, way in steps for g in (component.words[f] if way > 0 else inverse(component.words[f])))
