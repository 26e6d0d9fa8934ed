"""`detect_lattice`: the translations of a pattern, exact where there are such, else those that stand out of noise."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from aatc.passes.analysis.crystal.lattices import (
    BravaisLattice,
    CrystalError,
    canonical_basis,
    deviations,
    planar_class,
    reduced_basis,
    sampling_basis,
)
from aatc.passes.analysis.crystal.spectral import ReciprocalFit, fitted_lattice
from aatc.passes.analysis.crystal.translations import as_pattern, exact_translations, source_of
from aatc.passes.analysis.crystal.verify_crystal import witnessed
from aatc.passes.analysis.result import Result

#: The widest room for a shape to be taken for a special one, however noisy the array.
WIDEST = 0.08
#: Steps that a period may be off across the window by what is not modelled.
EDGE = 0.3


def detect_lattice(
    pattern: Any, *, sampling: Any = "square", method: str = "auto", level: float = 1e-3, tolerance: float = 0.01
) -> Result[Any]:
    """The translations of an array (n, m), a `BravaisLattice`.

    ``sampling``: where its points lie, "square", "hexagonal", or the two steps (2, 2). ``method``:

    - "exact": integer shifts after which all that overlaps is equal (`exact_translations`), P0;
    - "spectral": real shifts of a periodic part in noise, P3, by peaks of the power spectrum. ``level`` is the
      probability, about, that white noise alone shows one. A lattice takes for its class the most symmetric one from
      whose shape it differs by less than ``tolerance``, 0.3 / min(n, m), or four standard errors, but never by more
      than 0.08. Two
      periods or more must fit in the window, and periods of just two steps are not looked for;
    - "auto": the first where there is an exact shift, else the second.

    Rank 0 means that nothing repeats, or nothing that could be told from noise. Raises `CrystalError`.
    """
    array, steps = as_pattern(pattern), sampling_basis(sampling)
    if method not in ("auto", "exact", "spectral"):
        raise CrystalError(f"there is no method {method!r}", hint="auto, exact or spectral")
    if not 0 < level < 1 or not 0 <= tolerance <= WIDEST:
        raise CrystalError(f"level {level} and tolerance {tolerance} lie in (0, 1) and [0, {WIDEST}]")
    if method != "spectral":
        vectors = exact_translations(array, steps)
        if len(vectors) or method == "exact":
            return _exact(pattern, steps, vectors)
    return _spectral(pattern, array, steps, level, tolerance)


def _exact(pattern: Any, steps: np.ndarray, vectors: np.ndarray) -> Result[Any]:
    kind = ("none", "row")[len(vectors)] if len(vectors) < 2 else planar_class(vectors @ steps)
    value = BravaisLattice(len(vectors), kind, vectors.astype(np.float64), vectors @ steps, 1.0, True)
    data = {"pattern": source_of(pattern), "sampling": steps}
    given = ("shifts of up to half of each side, of what the array shows",)
    return witnessed(value, "translations", data, 1e-9, level="P0", assumptions=given)


def _spectral(pattern: Any, array: np.ndarray, steps: np.ndarray, level: float, tolerance: float) -> Result[Any]:
    if not np.isfinite(array.astype(np.float64)).all():
        raise CrystalError(
            "a pattern with infinities has no spectrum", hint='method="exact" compares entries, and takes any'
        )
    scaled = array.astype(np.float64)
    scaled = scaled / max(float(np.abs(scaled).max()), np.finfo(float).tiny)
    fit, unsettled = _spectral_fit(scaled, level)
    given: tuple[str, ...] = ("noise is independent from point to point, or has a spectrum that varies slowly",)
    value = _lattice_of_fit(fit, steps, tolerance, (array.shape[0], array.shape[1]))
    frequencies = np.zeros((0, 2)) if fit is None else fit.orders @ fit.basis
    orders = np.rint(frequencies @ value.vectors.T).astype(np.int64)  # of the reciprocal of the vectors
    orders = np.array(sorted(max(h, [-x for x in h]) for h in orders.tolist())).reshape(len(orders), value.rank)
    data: dict[str, Any] = {
        "pattern": source_of(pattern),
        "sampling": steps,
        "level": level,
        "tolerance": tolerance,
        "orders": orders,
    }
    data["unsettled"] = unsettled
    if unsettled:
        given = (*given, "some waves stand out, which make no lattice: drifts and edges have such")
    return witnessed(value, "spectral_lattice", data, 1e-5, level="P3", assumptions=given)


def _spectral_fit(array: np.ndarray, level: float) -> tuple[ReciprocalFit | None, bool]:
    """The reciprocal lattice of the waves that stand out of an array, None where none does."""
    if min(array.shape) < 8 or array.max() == array.min():
        return None, False
    return fitted_lattice(array, level)


def _lattice_of_fit(
    fit: ReciprocalFit | None, steps: np.ndarray, tolerance: float, shape: tuple[int, int]
) -> BravaisLattice:
    """The direct lattice of a fit, with its class."""
    if fit is None:
        return BravaisLattice(0, "none", np.zeros((0, 2)), np.zeros((0, 2)), 0.0, False)
    vectors = _direct_vectors(fit, steps)
    kind = "row"
    if len(vectors) == 2:
        room = np.clip(4 * _shape_errors(fit, steps), max(tolerance, EDGE / min(shape)), WIDEST)
        kind = _class_within(vectors @ steps, room)
    return BravaisLattice(len(vectors), kind, vectors, vectors @ steps, fit.share, False)


def _class_within(basis: np.ndarray, room: np.ndarray) -> str:
    """The most symmetric class whose equations are missed by no more than ``room`` (3,): see `planar_class`."""
    rhombic, right, half = np.abs(deviations(reduced_basis(canonical_basis(basis))[0])) <= room
    if rhombic and half:
        return "hexagonal"
    if rhombic and right:
        return "square"
    if right:
        return "rectangular"
    return "centred rectangular" if rhombic or half else "oblique"


def _shape_errors(fit: ReciprocalFit, sampling: np.ndarray) -> np.ndarray:
    """Standard errors (3,) of the deviations of the direct lattice's reduced basis from the special shapes."""
    reduced, turn = reduced_basis(_direct(fit.basis, sampling))
    here = deviations(reduced)
    slopes = np.zeros((3, 2, 2))
    step = 1e-6 * float(np.abs(fit.basis).max())
    for i, c in itertools.product(range(2), range(2)):
        moved = fit.basis.copy()
        moved[i, c] += step
        slopes[:, i, c] = (deviations(turn @ _direct(moved, sampling)) - here) / step
    result: np.ndarray = np.sqrt(np.einsum("kic,cij,kjc->k", slopes, fit.covariance, slopes))
    return result


def _direct(reciprocal: np.ndarray, sampling: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.linalg.inv(reciprocal).T @ sampling
    return result


def _direct_vectors(fit: ReciprocalFit, sampling: np.ndarray) -> np.ndarray:
    """The basis (rank, 2) of the lattice in steps along the array's axes; of rank 1 the shortest shift in space that
    takes wave to wave."""
    back = np.linalg.inv(sampling)
    if len(fit.basis) == 2:
        found: np.ndarray = canonical_basis(_direct(fit.basis, sampling)) @ back
        return found
    wave = back @ fit.basis[0]  # cycles a unit of length
    shift: np.ndarray = wave / (wave @ wave) @ back
    lead = shift[0] if abs(shift[0]) > 1e-9 else shift[1]
    return shift[None] if lead > 0 else -shift[None]
