"""Every result of the crystal family is checked by its witness, and no corrupted value, claim or data passes."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from aatc.analysis.crystal import (
    band_structure,
    brillouin_zones,
    compute_symmetries,
    crystal,
    detect_lattice,
    phonon_modes,
    toeplitz_part,
)
from aatc.passes.analysis.crystal.crystal_pass import _pattern
from aatc.passes.analysis.crystal.verify_crystal import CHECKS, CrystalWitness
from aatc.passes.analysis.quantum.verify_quantum import deviation
from aatc.passes.analysis.result import AnalysisError, verify
from tests.analysis.claim_corruptions import corrupt_entry, corrupt_leaf, leaves, replaced
from tests.analysis.crystal_cases import crystal_image, planar_lattice, wallpaper

#: Corruptions of each result, and how many of them are of its data.
DRAWS, OF_DATA = 200, 30
#: What says how a value was looked for: changed a little, it may give the same value.
OPTIONS = ("level", "tolerance", "grid", "energy", "figure", "sampling", "unsettled")


def drawn(name):
    return wallpaper(name, np.random.default_rng(4))


def symmetries(name):
    pattern, sampling = drawn(name)
    return compute_symmetries(pattern, sampling=sampling)


def image():
    rng = np.random.default_rng(2)
    return crystal_image(planar_lattice("oblique", rng, 6.0), 40, rng, 0.5)


def head(item):
    rows = 0.7 * np.eye(9, k=-1) + 0.3 * np.random.default_rng(0).dirichlet(np.ones(9), 9)
    return _pattern(rows / rows.sum(1, keepdims=True), rows / rows.sum(1, keepdims=True), ())[item]


QWZ = crystal({(0, 0): np.diag([1.0, -1.0]), (1, 0): [[0.5, -0.5j], [-0.5j, -0.5]], (0, 1): [[0.5, -0.5], [0.5, -0.5]]})
SPRINGS = {0: np.array([[3.0, -1.0], [-1.0, 3.0]]), 1: np.array([[0.0, 0.0], [-2.0, 0.0]])}

MAKERS = {
    "exact lattice": lambda: detect_lattice(drawn("p2")[0]),
    "exact row": lambda: detect_lattice(np.tri(16)),
    "lattice in noise": lambda: detect_lattice(image()),
    "row in noise": lambda: detect_lattice(np.cos(np.indices((20, 20))[0] * 1.3) + 0.1 * image()[:20, :20]),
    "no lattice": lambda: detect_lattice(np.random.default_rng(0).standard_normal((16, 16))),
    **{f"group {name}": (lambda name=name: symmetries(name)) for name in ("p1", "pmg", "cm", "p4g", "p31m")},
    "planar zones": lambda: brillouin_zones([[1.0, 0.1], [0.3, 1.2]], 3),
    "first zone in space": lambda: brillouin_zones(1 - np.eye(3)),
    "chain": lambda: band_structure(crystal({0: [[0, 0.4], [0.4, 0]], 1: [[0, 0], [1.0, 0]]}), grid=8),
    "Chern insulator": lambda: band_structure(QWZ, np.array([[0.1, 0.2], [1.0, 2.0]]), grid=12),
    "symbol": lambda: band_structure(crystal({-1: 0.8, 0: 0.2, 2: 0.1}, hermitian=False), grid=8),
    "phonons": lambda: phonon_modes(SPRINGS, (1.0, 2.5), grid=5),
    "Toeplitz part": lambda: toeplitz_part(np.random.default_rng(0).standard_normal((6, 6)), 2),
    "exact Toeplitz part": lambda: toeplitz_part(np.exp(-np.abs(np.subtract.outer(range(5), range(5))))),
    "Toeplitz share": lambda: head("toeplitz_share"),
    "winding": lambda: head("symbol_winding"),
    "sound speed": lambda: head("sound_speed"),
}


def test_there_is_a_maker_for_every_kind():
    assert {make().witness.kind for make in MAKERS.values()} == set(CHECKS)


@pytest.mark.parametrize("name", MAKERS)
def test_results_are_what_their_witnesses_say(name):
    found = MAKERS[name]()
    assert found.residual <= found.tolerance <= 1e-5
    assert found.verify() <= found.tolerance


def _changed(rng, whole):
    change = (corrupt_leaf if whole else corrupt_entry)(rng)

    def change_any(x):
        if isinstance(x, Fraction):
            return (x + Fraction(1, int(rng.integers(2, 9)))) % 1
        if isinstance(x, np.ndarray) and x.dtype == bool:
            return x ^ (rng.random(x.shape) < 0.3)
        if isinstance(x, np.ndarray) and not x.size:
            return np.zeros((1, *x.shape[1:]))
        if isinstance(x, np.ndarray) and len(np.unique(x)) > 1 and rng.random() < 0.2:
            swapped = x.copy()
            flat = swapped.reshape(-1)
            one = rng.integers(flat.size)
            two = rng.choice(np.flatnonzero(np.abs(flat - flat[one]) > 1e-3 * np.abs(flat).max()))
            flat[one], flat[two] = flat[two], flat[one]
            return swapped
        return change(x)

    return change_any


@pytest.mark.parametrize("name", MAKERS)
def test_no_corrupted_result_is_accepted(name):
    rng = np.random.default_rng(len(name))
    good = MAKERS[name]()
    kind, data, claim = good.witness.kind, good.witness.data, good.witness.claim
    places = leaves(claim)
    sources = [p for p in leaves(data) if p[0] not in OPTIONS and np.size(data[p[0]])]
    accepted = []
    for n in range(DRAWS):
        if n < OF_DATA:
            at = sources[rng.integers(len(sources))]
            bad = dataclasses.replace(
                good, witness=CrystalWitness(kind, replaced(data, at, _changed(rng, True)), claim)
            )
            if name in ("no lattice", "winding"):
                continue  # other noise has no lattice either, and like weights wind alike
        else:
            at = places[rng.integers(len(places))]
            wrong = replaced(claim, at, _changed(rng, False))
            if deviation(wrong, claim) <= 1e-12:
                continue  # equal entries changed places
            lies = CrystalWitness(kind, data, wrong)
            bad = (
                dataclasses.replace(good, value=wrong),  # a value that is not the witness's
                dataclasses.replace(good, witness=lies),  # a claim that the data does not give
                dataclasses.replace(good, value=wrong, witness=lies),  # both in accord
            )[n % 3]
        with np.errstate(all="ignore"):
            if bad.verify() <= bad.tolerance:
                accepted.append((n % 3 if n >= OF_DATA else "data", at))
    assert accepted == []


def test_values_of_another_kind_do_not_pass():
    good = MAKERS["exact lattice"]()
    for value in (None, 1.0, "square", MAKERS["phonons"]().value, ()):
        assert dataclasses.replace(good, value=value).verify() == np.inf
    for kind in set(CHECKS) - {good.witness.kind}:
        assert verify(CrystalWitness(kind, good.witness.data, good.witness.claim)) == np.inf
    with pytest.raises(AnalysisError, match="kind"):
        verify(CrystalWitness("oracle", {}, None))


def test_lattices_that_leave_translations_or_symmetries_out_do_not_pass():
    pattern = np.tile(np.random.default_rng(0).standard_normal((4, 4)), (4, 4))
    found = detect_lattice(pattern)
    coarse = {**found.witness.claim, "vectors": np.array([[8.0, 0], [0, 4]]), "basis": np.array([[8.0, 0], [0, 4]])}
    for claim in (
        {**coarse, "bravais": "rectangular"},
        {**coarse, "vectors": coarse["vectors"][1:], "basis": coarse["basis"][1:], "rank": 1, "bravais": "row"},
        {**coarse, "vectors": np.zeros((0, 2)), "basis": np.zeros((0, 2)), "rank": 0, "bravais": "none"},
    ):
        assert verify(CrystalWitness("translations", found.witness.data, claim)) == np.inf
    group = symmetries("p4g")
    turns = ("translation", "rotation 2", "rotation 4")
    operations = tuple(o for o in group.witness.claim["operations"] if o["kind"] in turns)
    generators = group.witness.claim["generators"][:1]
    fewer = {**group.witness.claim, "operations": operations, "generators": generators}
    fewer |= {"name": "p4", "symbol": "p4", "number": 10}
    assert verify(CrystalWitness("symmetries", group.witness.data, fewer)) == np.inf
