"""The crystal family against spglib, phonopy and seekpath, on patterns and lattices that are drawn."""

import numpy as np
import pytest

from aatc.analysis.crystal import (
    brillouin_zones,
    compute_symmetries,
    high_symmetry_points,
    phonon_modes,
    planar_class,
    reduced_basis,
)
from aatc.passes.analysis.crystal.lattices import sampling_basis
from aatc.passes.analysis.crystal.translations import cosets_of
from tests.analysis.crystal_cases import ITA, planar_lattice, wallpaper


@pytest.fixture(scope="module")
def spglib():
    return pytest.importorskip("spglib", reason="spglib is an oracle of the extra [oracles], and is not installed")


@pytest.mark.parametrize("name", ITA)
def test_wallpaper_groups_are_those_of_spglib(spglib, name):
    """Sampling points as atoms of kinds in a plane: of operations in space, what does not turn the plane over is left.
    The layer group of the same plane with one atom beside it is a part of these."""
    for seed in range(4):
        pattern, sampling = wallpaper(name, np.random.default_rng([seed, 99]))
        found = compute_symmetries(pattern, sampling=sampling).value
        steps, basis = sampling_basis(sampling), found.basis
        cosets = cosets_of(basis)
        i, j = np.indices(pattern.shape)
        numbers, where = np.unique(cosets.number(i, j), return_index=True)
        points = np.stack([i.ravel()[where], j.ravel()[where]], axis=1) @ np.linalg.inv(basis)
        kinds = np.unique(pattern.ravel()[where], return_inverse=True)[1]
        assert len(numbers) == cosets.index
        cell = np.eye(3) * 50
        cell[:2, :2] = basis @ steps
        atoms = np.concatenate(
            [np.pad(points, ((0, 0), (0, 1))), np.pad(points[:1], ((0, 0), (0, 1)), constant_values=0.1)]
        )
        layer = spglib.get_symmetry_layerdataset(
            (cell, atoms, [*(kinds + 1), kinds.max() + 2]), aperiodic_dir=2, symprec=1e-5
        )
        assert layer is not None and layer.number >= 1
        upright = {
            (tuple(map(int, r[:2, :2].T.ravel())), tuple(np.round(t[:2] % 1, 6) % 1))
            for r, t in zip(layer.rotations, layer.translations)
        }
        free = spglib.get_symmetry((cell, atoms[:-1], kinds + 1), symprec=1e-5)
        theirs = {
            (tuple(map(int, r[:2, :2].T.ravel())), tuple(np.round(t[:2] % 1, 6) % 1))
            for r, t in zip(free["rotations"], free["translations"])
            if r[2, 2] == 1
        }
        ours = {
            (tuple(np.ravel(o.matrix).tolist()), tuple(np.round([float(x) for x in o.translation], 6) % 1))
            for o in found.operations
        }
        assert ours == theirs and upright <= theirs


@pytest.mark.parametrize("kind", ["oblique", "rectangular", "centred rectangular", "square", "hexagonal"])
def test_reduced_bases_are_those_of_spglib(spglib, kind):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        basis = planar_lattice(kind, rng, 2.0)
        skewed = np.array([[1, 2], [1, 3]]) @ basis
        cell = np.eye(3) * 20
        cell[:2, :2] = skewed
        theirs = spglib.niggli_reduce(cell)
        lengths = np.sort(np.linalg.norm(theirs, axis=1))[:2]
        np.testing.assert_allclose(np.linalg.norm(reduced_basis(skewed)[0], axis=1), lengths, atol=1e-6)


def test_brillouin_zones_in_space_hold_as_many_operations_as_spglib_says(spglib):
    for basis in (1 - np.eye(3), 1 - 2 * np.eye(3), np.diag([1.0, 1.0, 1.4])):
        zone = brillouin_zones(basis).value[0]
        found = spglib.get_symmetry((basis, [[0, 0, 0]], [1]), symprec=1e-6)
        turns = [np.linalg.inv(basis.T) @ basis.T @ (basis.T @ r @ np.linalg.inv(basis.T)) for r in found["rotations"]]
        corners = {tuple(np.round(v, 6) + 0.0) for v in zone.vertices}
        for turn in turns:
            assert {tuple(np.round(v, 6) + 0.0) for v in zone.vertices @ turn.T} == corners


def test_frequencies_are_those_of_phonopy():
    phonopy = pytest.importorskip("phonopy", reason="phonopy is an oracle of the extra [oracles], and is not installed")
    from phonopy.structure.atoms import PhonopyAtoms

    rng = np.random.default_rng(0)
    size, shifts = 3, [(a, b, 0) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    half = rng.standard_normal((3, 3, 6, 6))
    blocks = {(a, b): half[a + 1, b + 1] + half[1 - a, 1 - b].T for a, b, _ in shifts}
    unit = PhonopyAtoms(
        symbols=["Na", "Cl"], cell=np.diag([3.0, 4.0, 20.0]), scaled_positions=[[0, 0, 0], [0.3, 0.4, 0.1]]
    )
    phonon = phonopy.Phonopy(unit, supercell_matrix=np.diag([size, size, 1]), is_symmetry=False, log_level=0)
    places = phonon.supercell.scaled_positions * [size, size, 1]
    kinds = [int(phonon.supercell.s2u_map[k] != phonon.supercell.s2u_map[0]) for k in range(len(places))]
    cells = [tuple(np.rint(p - unit.scaled_positions[k])[:2].astype(int)) for p, k in zip(places, kinds)]
    forces = np.zeros((len(places), len(places), 3, 3))
    for x, (one, a) in enumerate(zip(cells, kinds)):
        for y, (two, b) in enumerate(zip(cells, kinds)):
            shift = tuple((v - u + 1) % size - 1 for u, v in zip(one, two))
            forces[x, y] = blocks[shift][3 * a : 3 * a + 3, 3 * b : 3 * b + 3]
    phonon.force_constants = forces
    # at wave vectors of the supercell it does not matter which image a force is taken to
    points = np.array([[0, 0, 0], [1 / 3, 0, 0], [1 / 3, 2 / 3, 0], [0, 2 / 3, 0]])
    ours = phonon_modes(blocks, phonon.primitive.masses, 2 * np.pi * points[:, :2], components=3).value
    for q, frequencies in zip(points, ours.frequencies):
        matrix = (
            phonon.get_dynamical_matrix_at_q(q) if hasattr(phonon, "get_dynamical_matrix_at_q") else _matrix(phonon, q)
        )
        squares = np.linalg.eigvalsh(matrix)
        np.testing.assert_allclose(np.sign(frequencies) * frequencies**2, squares, atol=1e-9)


def _matrix(phonon, q):
    phonon.dynamical_matrix.run(q)
    return phonon.dynamical_matrix.dynamical_matrix


@pytest.mark.parametrize(
    ("basis", "names"),
    [
        (np.eye(2), {"Γ": "GAMMA", "X": "X", "M": "M"}),
        ([[1, 0], [-0.5, 0.75**0.5]], {"Γ": "GAMMA", "M": "M", "K": "K"}),
        ([[1.0, 0], [0, 1.3]], {"Γ": "GAMMA", "X": "X", "Y": "Y", "S": "S"}),
    ],
)
def test_points_of_the_zone_are_those_of_seekpath(basis, names):
    seekpath = pytest.importorskip(
        "seekpath", reason="seekpath is an oracle of the extra [oracles], and is not installed"
    )
    cell = np.eye(3) * 3.0
    cell[:2, :2] = basis
    path = seekpath.get_path((cell, [[0, 0, 0]], [1]))
    dual = np.array(path["reciprocal_primitive_lattice"])
    ours = 2 * np.pi * np.linalg.inv(np.array(basis)).T
    for mine, theirs in names.items():
        # up to the symmetry of the zone: the distance from the centre
        expected = np.linalg.norm(np.array(path["point_coords"][theirs]) @ dual)
        assert np.linalg.norm(high_symmetry_points(basis)[mine] @ ours) == pytest.approx(expected, abs=1e-9)
    assert planar_class(basis) in ("square", "hexagonal", "rectangular")
