"""Orbits of rational points under maps of projective space: preperiodic or escaping, decided in integers, and growth.

Source: Silverman, The Arithmetic of Dynamical Systems, sections 3.1 and 3.2 (Northcott's theorem).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aatc.passes.analysis.arithmetic.projective_map import (
    DegreeError,
    MapError,
    Morphism,
    ProjectiveMap,
    morphism,
    normalised,
)
from aatc.passes.analysis.arithmetic.verify_arithmetic import OrbitWitness
from aatc.passes.analysis.result import AnalysisError, Cost, Result, Undecided

Vector = tuple[int, ...]


@dataclass(frozen=True)
class Preperiodic:
    """φ^{tail + period}(x) = φ^tail(x), both least; ``orbit`` holds the tail + period different points."""

    tail: int
    period: int
    orbit: tuple[Vector, ...]

    @property
    def periodic(self) -> bool:
        return self.tail == 0


@dataclass(frozen=True)
class Escaping:
    """The orbit is infinite: at ``step`` the height exceeds C/(d − 1), so ĥ(x) ≥ ``canonical_bound`` > 0."""

    step: int
    canonical_bound: float


def log_height(vector: Sequence[int]) -> float:
    """log max|X_i| of a primitive vector."""
    return math.log(max(abs(x) for x in vector))


def projective_point(phi: ProjectiveMap, point: Any) -> Vector:
    """The normalised primitive vector of a point of the map's space; a number x stands for [x : 1] on P¹. Raises
    `RationalError` and `MapError`."""
    if isinstance(point, np.ndarray):
        point = point.tolist()
    if not isinstance(point, Sequence):
        point = (point, 1)
    if len(point) != len(phi.forms):
        raise MapError(f"a point of P^{phi.dimension} has {len(phi.forms)} coordinates, not {len(point)}")
    return normalised(point)


def dynamical(phi: ProjectiveMap) -> Morphism | Undecided:
    """The proof that φ is a morphism of degree at least 2. Raises `DegreeError` and `MapError`."""
    if phi.degree < 2:
        raise DegreeError(
            f"a map of degree {phi.degree} multiplies no height: canonical heights need degree ≥ 2",
            hint="for a linear map look at its eigenvalues",
        )
    return morphism(phi)


def orbit_type(
    phi: ProjectiveMap, point: Any, *, steps: int = 256
) -> Result[Preperiodic] | Result[Escaping] | Undecided:
    """Whether the orbit of a rational point under a morphism of degree d ≥ 2 is finite, exactly.

    Points are followed as integers until one returns, or until one has height above C/(d − 1), C the map's
    distortion: from there heights grow without bound. The points below are finitely many, so one of the two happens;
    `Undecided` if not within ``steps``, or if the map's distortion is not known. Raises `DegreeError`, `MapError` and
    `RationalError`.
    """
    proof = dynamical(phi)
    if isinstance(proof, Undecided):
        return proof
    return follow(proof, projective_point(phi, point), steps)


def follow(proof: Morphism, start: Vector, steps: int) -> Result[Preperiodic] | Result[Escaping] | Undecided:
    """`orbit_type` of a normalised point under a map that is known to be a morphism."""
    phi, limit = proof.map, proof.distortion / (proof.map.degree - 1)
    seen: dict[Vector, int] = {}
    at = start
    for step in range(steps):
        if at in seen:
            tail = seen[at]
            value = Preperiodic(tail, step - tail, tuple(seen))
            return Result(value, "P0", witness=OrbitWitness(phi.forms, start, tail, step - tail))
        excess = log_height(at) - limit
        if excess > 1e-9 * (1 + limit):
            return Result(Escaping(step, excess / phi.degree**step), "P1")
        seen[at] = step
        at = phi(at)
    return Undecided(f"{steps} steps", "the orbit neither returned nor left the region of small heights")


@dataclass(frozen=True)
class HeightGrowth:
    """``heights`` h(φⁿx), n = 0, 1, ...; ``ratios`` h(φⁿ⁺¹x)/h(φⁿx) , 0 where the divisor is 0;
    ``normalised`` h(φⁿx)/dⁿ, which tends to the canonical height for a morphism of degree d."""

    heights: tuple[float, ...]
    ratios: tuple[float, ...]
    normalised: tuple[float, ...]


def height_growth(phi: ProjectiveMap, point: Any, steps: int = 12, *, budget: Cost | None = None) -> HeightGrowth:
    """The heights along ``steps`` steps of an orbit, in exact integers whose size multiplies by d at each step.

    Raises `MapError` where the map is not defined, `RationalError`, and `BudgetError`.
    """
    if steps < 1:
        raise AnalysisError(f"growth takes at least one step, not {steps}")
    at = projective_point(phi, point)
    if budget is not None:
        estimate_cost(phi, at, steps).check(budget, f"{steps} steps of degree {phi.degree}")
    heights = [log_height(at)]
    for _ in range(steps):
        at = phi(at)
        heights.append(log_height(at))
    ratios = tuple(b / a if a > 0 else 0.0 for a, b in itertools.pairwise(heights))
    return HeightGrowth(tuple(heights), ratios, tuple(h / phi.degree**i for i, h in enumerate(heights)))


def estimate_cost(phi: ProjectiveMap, start: Vector, steps: int) -> Cost:
    """What ``steps`` exact steps take: the last numbers have about dⁿ(h(x) + log‖F‖) digits."""
    terms = sum(len(form) for form in phi.forms)
    norm = max(sum(abs(c) for c in form.values()) for form in phi.forms)
    growth = math.exp(min(steps * math.log(max(phi.degree, 1)), 300.0))  # already beyond every budget
    bits = (log_height(start) + math.log(norm + 1) + 1) * 1.5 * growth
    return Cost(seconds=1e-5 * steps * terms + 1e-9 * terms * phi.degree * bits**1.6 / 60, bytes=bits * (terms + 4) / 4)


def dynamical_degree(phi: ProjectiveMap) -> Result[float] | Undecided:
    """lim deg(φⁿ)^{1/n}, the exponential rate at which degrees, and so heights of general orbits, grow at most.

    d for a morphism of degree d, exactly. For a map by monomials the degree of φⁿ is, up to bounded factors, the size
    of the n-th power of the exponents' differences to the last coordinate, whose spectral radius is the answer; a
    radius below 1 stands for a map that is not dominant and is refused. `Undecided` for other maps. Raises `MapError`.
    """
    try:
        proof = morphism(phi)
    except MapError:
        proof = None
    if isinstance(proof, Morphism):
        return Result(float(phi.degree), "P0")
    if all(len(form) == 1 for form in phi.forms):
        exponents = np.array([next(iter(form)) for form in phi.forms], dtype=np.float64)
        affine = (exponents[:-1] - exponents[-1])[:, :-1]
        if round(float(np.linalg.det(affine))) == 0:
            raise MapError("these monomials are dependent: the map is not dominant")
        return Result(float(np.abs(np.linalg.eigvals(affine)).max()), "P2", 1e-9)
    return Undecided("morphisms and monomial maps", "degrees of iterates may drop for other maps")
