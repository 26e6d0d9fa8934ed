"""Brillouin zones, bands, topology and phonons against closed forms."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.analysis.crystal import (
    Crystal,
    CrystalError,
    RefractionSystem,
    brillouin_zones,
    cell_volume,
    crystal,
    high_symmetry_points,
    path_of,
    phonon_modes,
    reciprocal_basis,
    springs,
    toeplitz_part,
)
from aatc.passes.analysis.result import Undecided
from tests.analysis.crystal_cases import planar_lattice

SYSTEM = RefractionSystem()
SX, SY, SZ = np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])
HEXAGON = np.array([[1, 0], [-0.5, 0.75**0.5]])
FCC, BCC = 1 - np.eye(3), 1 - 2 * np.eye(3)
SEEDS = st.integers(0, 2**31)


def qwz(m):
    return crystal({(0, 0): m * SZ, (1, 0): (SZ - 1j * SX) / 2, (0, 1): (SZ - 1j * SY) / 2})


def ssh(v, w):
    return crystal({0: [[0, v], [v, 0]], 1: [[0, 0], [w, 0]]})


# --- Brillouin zones ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("basis", "corners", "faces"),
    [(FCC, 24, 14), (BCC, 14, 12), (np.eye(3), 8, 6), (HEXAGON, 6, 6), (np.eye(2), 4, 4), ([[2.0]], 2, 2)],
)
def test_first_zones_have_their_corners_and_faces(basis, corners, faces):
    found = brillouin_zones(basis)
    (zone,) = found.value
    assert len(zone.vertices) == corners and len(zone.faces) == faces and found.proof_level == "P2"
    assert zone.volume == pytest.approx((2 * np.pi) ** len(basis) / cell_volume(basis), rel=1e-12)
    assert found.verify() <= found.tolerance


@given(SEEDS, st.integers(1, 3))
def test_zones_of_drawn_lattices_fill_a_cell_each_and_their_points_have_their_rank(seed, d):
    rng = np.random.default_rng(seed)
    basis = rng.uniform(0.7, 2, d)[:, None] * np.eye(d) + rng.uniform(-0.3, 0.3, (d, d))
    found = brillouin_zones(basis, {1: 6, 2: 4, 3: 2}[d])
    assert found.verify() <= found.tolerance
    dual = reciprocal_basis(basis)
    np.testing.assert_allclose(basis @ dual.T, 2 * np.pi * np.eye(d), atol=1e-12)
    around = np.array(list(itertools.product(range(-5, 6), repeat=d))) @ dual
    for zone in found.value:
        inside = np.array([p.mean(0) for p in zone.pieces])
        nearer = (
            np.linalg.norm(inside[:, None] - around, axis=-1) < np.linalg.norm(inside, axis=-1)[:, None] - 1e-9
        ).sum(1)
        assert (nearer == zone.order - 1).all()


def test_high_symmetry_points_are_corners_and_midpoints():
    for basis, corner in ((HEXAGON, "K"), (np.eye(2), "M"), (np.diag([1.0, 1.3]), "S")):
        at = high_symmetry_points(basis)[corner] @ reciprocal_basis(basis)
        assert np.linalg.norm(brillouin_zones(basis).value[0].vertices - at, axis=1).min() < 1e-9


# --- bands -------------------------------------------------------------------------------------------------
def test_graphene_has_no_gap_at_its_corner():
    lattice = crystal({(0, 0): [[0, 1], [1, 0]], (1, 0): [[0, 0], [1, 0]], (1, 1): [[0, 0], [1, 0]]})
    corner = 2 * np.pi * high_symmetry_points(HEXAGON)["K"]
    found = SYSTEM.band_structure(lattice, np.array([corner, [0.0, 0.0]]))
    np.testing.assert_allclose(found.value.energies, [[0, 0], [-3, 3]], atol=1e-12)
    assert isinstance(found.value.topology.chern, Undecided) and found.verify() <= found.tolerance


@pytest.mark.parametrize(("v", "w", "winding"), [(1.0, 0.5, 0), (0.5, 1.0, 1), (0.3, -2.0, 1)])
def test_ssh_chains_wind(v, w, winding):
    found = SYSTEM.band_structure(ssh(v, w), grid=512)
    assert abs(found.value.topology.winding) == winding and found.verify() <= found.tolerance
    k = found.value.points[:, 0]
    np.testing.assert_allclose(found.value.energies[:, 1], np.abs(v + w * np.exp(1j * k)), atol=1e-12)
    assert found.value.gaps[0] == pytest.approx(2 * abs(abs(v) - abs(w)), abs=1e-3)


def test_a_closed_gap_has_no_winding():
    assert isinstance(SYSTEM.band_structure(ssh(1.0, 1.0)).value.topology.winding, Undecided)


@pytest.mark.parametrize(("m", "number"), [(-1.0, 1), (1.0, -1), (3.0, 0), (-3.0, 0)])
def test_chern_numbers_of_the_qwz_model(m, number):
    found = SYSTEM.band_structure(qwz(m))
    assert found.value.topology.chern == ((0, 1, number, True), (1, 1, -number, True))
    assert found.verify() <= found.tolerance


def test_coarse_grids_are_not_taken_for_proofs():
    assert [c[3] for c in SYSTEM.band_structure(qwz(-1.95), grid=8).value.topology.chern] == [False, False]


@given(SEEDS, st.integers(-3, 3), st.integers(1, 3))
def test_windings_of_products_add_up(seed, shift, count):
    """Of a polynomial with drawn zeros: those within the circle, plus the shift."""
    rng = np.random.default_rng(seed)
    zeros = rng.choice([0.5, 1.8], count) * np.exp(1j * rng.uniform(0, 2 * np.pi, count))
    coefficients = np.poly(zeros)[::-1]
    model = crystal({n + shift: c for n, c in enumerate(coefficients)}, hermitian=False)
    found = SYSTEM.band_structure(model, grid=16)
    assert found.value.topology.winding == int((abs(zeros) < 1).sum()) + shift
    assert found.verify() <= found.tolerance


@given(SEEDS, st.integers(1, 3), st.integers(1, 3))
def test_bands_are_eigenvalues_of_the_finite_periodic_crystal(seed, sites, cells):
    rng = np.random.default_rng(seed)
    blocks = rng.standard_normal((2, sites, sites)) + 1j * rng.standard_normal((2, sites, sites))
    model = crystal({0: blocks[0] + blocks[0].conj().T, 1: blocks[1]})
    n = cells + 3
    ring = np.zeros((n, sites, n, sites), dtype=complex)
    for r, b in zip(model.shifts[:, 0], model.blocks):
        for i in range(n):
            ring[i, :, (i + r) % n] += b
    found = SYSTEM.band_structure(model, grid=n)
    expected = np.linalg.eigvalsh(ring.reshape(n * sites, -1))
    np.testing.assert_allclose(np.sort(found.value.energies.ravel()), expected, atol=1e-10)


def test_toeplitz_parts_are_projections():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((12, 12))
    found = toeplitz_part(a, 3)
    part = found.value
    dense = np.zeros((12, 12))
    for r, b in zip(part.shifts, part.blocks):
        for i in range(4):
            if 0 <= i + r < 4:
                dense[3 * i : 3 * i + 3, 3 * (i + r) : 3 * (i + r) + 3] = b
    assert abs(((a - dense) * dense).sum()) < 1e-12 and part.share == pytest.approx((dense**2).sum() / (a**2).sum())
    again = toeplitz_part(dense, 3)
    assert again.proof_level == "P0" and again.value.share == 1 and again.verify() == 0
    assert found.verify() <= found.tolerance


def test_a_previous_token_head_winds_once_backwards():
    assert SYSTEM.band_structure(np.eye(16, k=-1)).value.topology.winding == -1
    assert SYSTEM.band_structure(0.7 * np.eye(16, k=-1) + 0.2 * np.eye(16)).value.topology.winding == -1
    assert SYSTEM.band_structure(0.2 * np.eye(16, k=-1) + 0.7 * np.eye(16)).value.topology.winding == 0


# --- phonons -----------------------------------------------------------------------------------------------
@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_diatomic_chain(c, light, heavy):
    forces = {0: np.array([[2 * c, -c], [-c, 2 * c]]), 1: np.array([[0.0, 0.0], [-c, 0.0]])}
    found = phonon_modes(forces, (light, heavy))
    k = found.value.points[:, 0]
    mean = c * (1 / light + 1 / heavy)
    root = np.sqrt(np.maximum(mean**2 - 4 * c * c * np.sin(k / 2) ** 2 / (light * heavy), 0))
    expected = np.sqrt(np.maximum(np.stack([mean - root, mean + root], axis=1), 0))
    np.testing.assert_allclose(found.value.frequencies, expected, atol=1e-6 * np.sqrt(mean))
    assert found.value.acoustic_sum < 1e-12 and found.verify() <= found.tolerance


def test_springs_between_tokens_have_no_force_at_rest_and_unstable_crystals_show():
    a = np.random.default_rng(0).dirichlet(np.ones(12), 12)
    found = SYSTEM.phonon_modes(a)
    assert found.value.acoustic_sum < 1e-14 and abs(found.value.frequencies[0, 0]) < 1e-7
    assert (found.value.frequencies >= -1e-7).all() and found.verify() <= found.tolerance
    shifts, weights = toeplitz_part(a).value.shifts, toeplitz_part(a).value.blocks[:, 0, 0]
    omega = phonon_modes(springs(a), points=[[0.01]]).value.frequencies[0, 0]
    assert omega == pytest.approx(np.sqrt((weights * (1 - np.cos(0.01 * shifts))).sum()), rel=1e-9)
    assert phonon_modes({0: -1.0}).value.frequencies[0, 0] == -1


def test_paths_go_from_corner_to_corner():
    path = path_of([[0, 0], [1, 0], [1, 1]], 4)
    assert path.shape == (9, 2) and path[4].tolist() == [1, 0] and path[-1].tolist() == [1, 1]


def test_zones_of_drawn_planar_lattices_have_four_or_six_corners():
    for kind, corners in (
        ("rectangular", 4),
        ("oblique", 6),
        ("centred rectangular", 6),
        ("hexagonal", 6),
        ("square", 4),
    ):
        zone = brillouin_zones(planar_lattice(kind, np.random.default_rng(1), 2.0)).value[0]
        assert len(zone.vertices) == corners


@pytest.mark.parametrize(
    "call",
    [
        lambda: brillouin_zones(np.zeros((2, 2))),
        lambda: brillouin_zones(np.eye(4)),
        lambda: brillouin_zones(np.eye(2), 0),
        lambda: brillouin_zones(np.eye(3), 9),
        lambda: crystal({}),
        lambda: crystal({0.5: 1.0}),
        lambda: crystal({0: np.nan}),
        lambda: crystal({0: 1j}),
        lambda: crystal({1: 1.0, -1: 2.0}),
        lambda: crystal({0: 1.0, (0, 0): 1.0}),
        lambda: SYSTEM.band_structure(ssh(1, 2), np.zeros((3, 2))),
        lambda: SYSTEM.band_structure(ssh(1, 2), grid=2),
        lambda: SYSTEM.band_structure(np.zeros((3, 4))),
        lambda: toeplitz_part(np.eye(6), 4),
        lambda: phonon_modes({0: 1.0}, -1.0),
        lambda: phonon_modes({0: 1.0, 1: 1j}),
        lambda: phonon_modes(Crystal(np.array([[1]]), np.ones((1, 1, 1), dtype=complex))),
        lambda: phonon_modes({0: np.eye(3)}, components=2),
        lambda: path_of([[0, 0]]),
    ],
)
def test_what_is_no_crystal_is_refused(call):
    with pytest.raises(CrystalError):
        call()
