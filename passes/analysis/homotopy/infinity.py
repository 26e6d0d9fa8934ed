"""Quasicategories: mapping spaces, composition up to homotopy, the homotopy category, equivalences.

Source: Lurie, Higher Topos Theory, sections 1.1.2, 1.2.2 and 1.2.3; Joyal, Quasi-categories and Kan complexes, 2002.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aatc.passes.analysis.homotopy.simplicial_attention import SimplicialAttention
from aatc.passes.analysis.homotopy.simplicial_sets import (
    LIMIT,
    Category,
    KanReport,
    Name,
    Simplex,
    SimplicialSet,
    kan_condition,
    of_levels,
    plain,
)
from aatc.passes.analysis.homotopy.verify_homotopy import FillerWitness, KanWitness, NoFillerWitness
from aatc.passes.analysis.result import AnalysisError, Cost, Result, Undecided, Verdict

# Measured on one thread: one face of one simplex.
_SECONDS_PER_FACE = 5e-6
_BYTES_PER_FACE = 110.0


class NotQuasicategoryError(AnalysisError):
    """An inner horn has no filler. ``horn`` is (n, k, faces); ``witness`` lets `verify` check it."""

    def __init__(self, horn: tuple[int, int, dict[int, Simplex]], witness: KanWitness):
        self.horn, self.witness = horn, witness
        n, k, faces = horn
        named = {i: y.name for i, y in faces.items()}
        super().__init__(
            f"no filler for the inner horn Λ^{n}_{k} with faces {named}",
            hint="nerves (kind='preorder' or 'paths') are quasicategories; flag complexes of patterns that are not "
            "transitive are none",
        )


@dataclass(frozen=True)
class Quasicategory:
    """A simplicial set whose inner horns have fillers up to dimension ``checked``; ``ends`` are the two objects that
    were asked for."""

    set: SimplicialSet
    checked: int
    ends: tuple[Name, Name]

    def identity(self, x: Name) -> Simplex:
        """The degenerate arrow at the object x."""
        return self.set.degeneracy(self.set.simplex(x), 0)

    @cached_property
    def _arrows(self) -> dict[tuple[Name, Name], list[Simplex]]:
        found: dict[tuple[Name, Name], list[Simplex]] = {}
        for f in self.set.simplices(1):
            found.setdefault((self.set.vertex(f, 0), self.set.vertex(f, 1)), []).append(f)
        return found

    def arrows(self, x: Name, y: Name) -> list[Simplex]:
        """The 1-simplices from x to y."""
        return self._arrows.get((x, y), [])

    @cached_property
    def _by_edges(self) -> dict[tuple[Simplex, Simplex], list[Simplex]]:
        """2-simplices by (d_2, d_0)."""
        found: dict[tuple[Simplex, Simplex], list[Simplex]] = {}
        for z in self.set.simplices(2):
            found.setdefault((self.set.face(z, 2), self.set.face(z, 0)), []).append(z)
        return found

    @cached_property
    def _class_of(self) -> dict[Simplex, Simplex]:
        """The first arrow of each arrow's homotopy class."""
        parent = {f: f for between in self._arrows.values() for f in between}

        def root(f: Simplex) -> Simplex:
            while parent[f] != f:
                f = parent[f]
            return f

        order = {f: n for n, f in enumerate(parent)}
        for (first, second), fillers in self._by_edges.items():
            if first == self.identity(self.set.vertex(second, 0)):
                for z in fillers:
                    a, b = sorted((root(second), root(self.set.face(z, 1))), key=order.__getitem__)
                    parent[b] = a
        return {f: root(f) for f in parent}

    def homotopy_class(self, f: Simplex) -> Simplex:
        """The representative of the class of an arrow: the first one that is homotopic to it. AnalysisError for what is
        no arrow."""
        self._ends_of(f)
        return self._class_of[f]

    def _ends_of(self, f: Simplex) -> tuple[Name, Name]:
        """Source and target. AnalysisError for what is no 1-simplex."""
        if f not in self._class_of:
            raise AnalysisError(f"{f!r} is no arrow: arrows are the 1-simplices of the set")
        return self.set.vertex(f, 0), self.set.vertex(f, 1)

    def homotopic(self, f: Simplex, g: Simplex) -> Verdict:
        """Whether two arrows x → y are homotopic: there is a 2-simplex with faces d_2 = id_x, d_0 = f, d_1 = g. In a
        quasicategory this is an equivalence relation. The witness is the 2-simplex, or the set, which has none."""
        ends = [self._ends_of(h) for h in (f, g)]
        if ends[0] != ends[1]:
            raise AnalysisError(f"arrows {ends[0]} and {ends[1]} do not have the same ends")
        unit = self.identity(ends[0][0])
        found = [z for z in self._by_edges.get((unit, f), []) if self.set.face(z, 1) == g]
        witness: Any = self._filler(found[0], {2: unit, 0: f, 1: g}) if found else self._none(unit, f, g)
        return Verdict(bool(found), "P0", witness=witness, statement=f"{f.name!r} is homotopic to {g.name!r}")

    def _none(self, unit: Simplex, f: Simplex, g: Simplex) -> NoFillerWitness:
        return NoFillerWitness(*plain(self.set), {i: (y.onto, y.name) for i, y in ((2, unit), (0, f), (1, g))})

    def compose(self, f: Simplex, g: Simplex) -> Result[tuple[Simplex, ...]]:
        """All composites of first f, then g: the faces d_1 of the fillers of the horn (f, –, g); they are homotopic to
        each other. The witness is one filler. AnalysisError for arrows that do not fit."""
        if self._ends_of(f)[1] != self._ends_of(g)[0]:
            raise AnalysisError(f"{f.name!r} ends at another object than {g.name!r} starts from")
        fillers = self._by_edges.get((f, g), [])
        composites = tuple(dict.fromkeys(self.set.face(z, 1) for z in fillers))
        return Result(composites, "P0", witness=self._filler(fillers[0], {2: f, 0: g, 1: composites[0]}))

    def _filler(self, z: Simplex, required: dict[int, Simplex]) -> FillerWitness:
        vertices, faces = plain(self.set)
        return FillerWitness(faces, (z.onto, z.name), {i: (y.onto, y.name) for i, y in required.items()}, vertices)

    def mapping_space(self, x: Name, y: Name, level: int) -> SimplicialSet:
        """Hom^R(x, y) up to dimension ``level``: its n-simplices are the (n+1)-simplices whose last vertex is y and
        whose face opposite to it is degenerate at x. Names are (dimension, simplex). It is a skeleton.

        AnalysisError where the quasicategory is a skeleton of dimension ≤ ``level``, and for ``level`` < 0.
        """
        if level < 0:
            raise AnalysisError(f"a mapping space has simplices of dimension 0 and more, not {level}")
        if self.set.skeleton is not None and level + 1 > self.set.skeleton:
            raise AnalysisError(
                f"simplices of dimension {level + 1} are needed, the skeleton has dimension {self.set.skeleton}"
            )
        levels: list[list[Simplex]] = []
        for n in range(level + 1):
            constant = Simplex((0,) * (n + 1), x)
            levels.append([
                z for z in self.set.simplices(n + 1)
                if self.set.face(z, n + 1) == constant and self.set.vertex(z, n + 1) == y
            ])  # fmt: skip
        return of_levels(levels, self.set.face, self.set.degeneracy, skeleton=level)

    @cached_property
    def homotopy_category(self) -> Category:
        """Objects, homotopy classes of arrows (named by their representatives) and their composition."""
        objects = tuple(self.set.nondegenerate(0))
        classes = {c: None for c in self._class_of.values()}
        arrows = {c: (self.set.vertex(c, 0), self.set.vertex(c, 1)) for c in classes}
        compose = {
            (f, g): self._class_of[self.compose(f, g).value[0]]
            for f in classes
            for g in classes
            if arrows[f][1] == arrows[g][0]
        }
        return Category(objects, arrows, {x: self._class_of[self.identity(x)] for x in objects}, compose)

    def equivalences(self) -> tuple[Simplex, ...]:
        """The arrows whose class has an inverse."""
        category = self.homotopy_category
        return tuple(f for f, c in self._class_of.items() if category.inverse(c) is not None)

    @property
    def is_groupoid(self) -> bool:
        """Whether every arrow is an equivalence; by Joyal's theorem a quasicategory is then a Kan complex."""
        return len(self.equivalences()) == len(self._class_of)


@dataclass(frozen=True)
class HigherMorphisms:
    """``space`` is Hom^R up to dimension ``level``, ``simplices`` those of dimension ``level``, ``classes`` the
    homotopy classes of arrows, by their representatives."""

    level: int
    space: SimplicialSet = field(repr=False)
    simplices: tuple[Simplex, ...]
    classes: tuple[Simplex, ...]

    @property
    def is_discrete(self) -> bool:
        """Whether the space has no simplex above dimension 0 but degenerate ones, up to ``level``."""
        return self.space.dimension <= 0


class InfinityAttention:
    """Higher morphisms of the simplicial set of an attention pattern, or of any `SimplicialSet`. ``top`` ≥ 2 is the
    dimension up to which inner horns are checked; with 3, composition of homotopy classes is associative.

    Objects of a `SimplicialAttention` are named as its set names its vertices: (i,) for flag complexes, (i, "object")
    for nerves.
    """

    def __init__(
        self,
        source: SimplicialAttention | SimplicialSet,
        *,
        top: int = 3,
        limit: int = LIMIT,
        budget: Cost | None = None,
    ) -> None:
        if top < 2:
            raise AnalysisError(f"the first inner horn has dimension 2, so top is at least 2, not {top}")
        self.set = source.set if isinstance(source, SimplicialAttention) else source
        self.top, self.limit, self.budget = top, limit, budget or Cost()

    def estimate_cost(self, level: int) -> Cost:
        """What the simplices of dimension level + 1, of which mapping spaces are made, take."""
        count = self.set.count(level + 1) * (level + 2)
        return Cost(_SECONDS_PER_FACE * count, _BYTES_PER_FACE * count)

    def quasi_structure(self, source: Hashable, target: Hashable) -> Result[Quasicategory | Undecided]:
        """The quasicategory with these two objects, its inner horns checked up to dimension ``top``; P0 up to there.

        Raises `NotQuasicategoryError` with the first inner horn that has no filler, AnalysisError for objects that are
        not there; `Undecided` beyond ``limit`` horns.
        """
        for x in (source, target):
            if x not in self.set.nondegenerate(0):
                raise AnalysisError(f"there is no object {x!r}", hint=f"objects are {self.set.nondegenerate(0)[:4]} …")
        kan = kan_condition(self.set, self.top, limit=self.limit, inner=True)
        report: Any = kan.value
        if isinstance(report, Undecided):
            return Result(report, "P0")
        assert isinstance(report, KanReport)
        if report.unfilled is not None:
            raise NotQuasicategoryError(report.unfilled, kan.witness)
        return Result(Quasicategory(self.set, self.top, (source, target)), "P0", witness=kan.witness,
                      assumptions=(f"inner horns up to dimension {self.top}",))  # fmt: skip

    def compute_higher(self, quasi: Quasicategory, level: int) -> Result[HigherMorphisms]:
        """Hom^R between the two objects of ``quasi``, up to ``level``. Raises `BudgetError`."""
        self.estimate_cost(level).check(self.budget, f"morphisms of level {level}")
        x, y = quasi.ends
        space = quasi.mapping_space(x, y, level)
        classes = tuple(dict.fromkeys(quasi.homotopy_class(f) for f in quasi.arrows(x, y)))
        found = HigherMorphisms(level, space, tuple(space.simplices(level)), classes)
        return Result(found, "P0", assumptions=(f"inner horns up to dimension {quasi.checked}",))

    def higher_morphisms(self, source: Hashable, target: Hashable, level: int) -> Result[HigherMorphisms | Undecided]:
        """`compute_higher` of `quasi_structure`."""
        quasi: Any = self.quasi_structure(source, target)
        if isinstance(quasi.value, Undecided):
            return Result(quasi.value, "P0")
        return self.compute_higher(quasi.value, level)
