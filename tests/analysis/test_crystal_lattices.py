"""Lattices and wallpaper groups: drawn ones are found, exact or in noise, and noise alone has none."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.analysis.crystal import (
    CrystalError,
    RefractionSystem,
    compute_symmetries,
    detect_lattice,
    planar_class,
    reduced_basis,
)
from aatc.passes.analysis.crystal.translations import cosets_of, exact_translations, fold, hermite_form
from tests.analysis.crystal_cases import ITA, crystal_image, lattice_draw, planar_lattice, wallpaper

CLASSES = ("oblique", "rectangular", "centred rectangular", "square", "hexagonal")
#: Operations modulo translations.
ORDERS = {"p1": 1, "p2": 2, "pm": 2, "pg": 2, "cm": 2, "pmm": 4, "pmg": 4, "pgg": 4, "cmm": 4, "p4": 4, "p4m": 8,
          "p4g": 8, "p3": 3, "p3m1": 6, "p31m": 6, "p6": 6, "p6m": 12}  # fmt: skip
INTEGERS = st.integers(-9, 9)


@pytest.mark.parametrize("name", ITA)
def test_wallpaper_groups_of_drawn_patterns_are_found(name):
    for seed in range(20):
        pattern, sampling = wallpaper(name, np.random.default_rng([seed, list(ITA).index(name)]))
        found = compute_symmetries(pattern, sampling=sampling)
        assert found.value.name == name and found.proof_level == "P0"
        assert len(found.value.operations) == ORDERS[name]
        if seed < 2:
            assert found.verify() == 0


@given(st.lists(st.tuples(INTEGERS, INTEGERS), min_size=1, max_size=5))
def test_hermite_forms_hold_all_vectors_and_are_made_of_them(vectors):
    form = hermite_form(np.array(vectors))
    index = np.gcd.reduce([a * d - b * c for (a, b) in vectors for (c, d) in vectors])
    if len(form) == 2:
        assert form[0, 0] * form[1, 1] == index and form[1, 0] == 0 <= form[0, 1] < form[1, 1]
        assert all(cosets_of(form).number(*v) == 0 for v in vectors)
    else:
        assert index == 0 and len(form) == any(any(v) for v in vectors)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**31))
def test_translations_of_drawn_cells_are_found_and_verified(p, r, q, seed):
    rng = np.random.default_rng(seed)
    cosets = cosets_of(np.array([[p, q % r], [0, r]]))
    cell = rng.permutation(cosets.index)  # all entries differ: there is no finer lattice
    i, j = np.indices(rng.integers(22, 30, 2)) + rng.integers(0, 9)
    pattern = cell[cosets.number(i, j)]
    found = detect_lattice(pattern)
    assert found.proof_level == "P0" and found.value.rank == 2 and found.verify() <= found.tolerance
    assert hermite_form(found.value.vectors.astype(int)).tolist() == hermite_form(cosets.basis).tolist()
    torn = pattern.copy()
    torn[tuple(rng.integers(8, 14, 2))] = -1  # one entry within every overlap
    assert exact_translations(torn, np.eye(2)).shape[0] < 2 or fold(torn, cosets) is None


@given(st.sampled_from(CLASSES), st.integers(0, 2**31))
def test_classes_of_drawn_bases_do_not_depend_on_the_basis(kind, seed):
    rng = np.random.default_rng(seed)
    basis = planar_lattice(kind, rng, rng.uniform(0.1, 10))
    turned = (
        np.array([[1, int(rng.integers(-3, 4))], [0, 1]]) @ np.array([[1, 0], [int(rng.integers(-3, 4)), 1]]) @ basis
    )
    assert planar_class(turned) == kind
    reduced, made = reduced_basis(turned)
    assert abs(round(np.linalg.det(made))) == 1
    np.testing.assert_allclose(made @ turned, reduced, atol=1e-9)
    assert np.linalg.norm(reduced[0]) <= np.linalg.norm(reduced[1]) * (1 + 1e-12) and reduced[0] @ reduced[1] <= 1e-9


def test_lattices_in_noise_as_strong_as_they_are_found():
    right, draws = 0, 30
    for seed in range(draws):
        kind, _, image = lattice_draw(seed, (16, 32, 64, 48), (0, 10))
        found = detect_lattice(image)
        right += found.value.bravais == kind
        assert found.proof_level == "P3" and 0 < found.value.share <= 1
        if seed % 16 == 0:
            assert found.verify() <= found.tolerance
    assert right >= draws - 1  # bench/crystal.py counts 200 draws up to 256


def test_noise_alone_has_no_lattice():
    for seed in range(40):
        rng = np.random.default_rng([seed, 5])
        noise = rng.standard_normal(rng.choice([16, 32, 64, 128], 2))
        found = detect_lattice(noise if seed % 2 else np.exp(noise / 2))
        assert found.value.rank == 0 and found.value.bravais == "none"
        assert found.verify() == 0


def test_basis_vectors_in_noise_are_those_of_the_image():
    rng = np.random.default_rng(3)
    basis = planar_lattice("oblique", rng, 7.0)
    found = detect_lattice(crystal_image(basis, 96, rng, 0.5)).value
    turn = found.vectors @ np.linalg.inv(basis)
    np.testing.assert_allclose(turn, np.rint(turn), atol=0.02)
    assert abs(round(np.linalg.det(turn))) == 1


def test_stripes_masks_and_biases():
    n = 24
    i, j = np.indices((n, n))
    for array, vectors in (
        (np.tri(n, dtype=bool), [[1, 1]]),
        (-0.5 * np.abs(i - j), [[1, 1]]),
        (np.where(np.tri(n) > 0, -0.5 * (i - j), -np.inf), [[1, 1]]),
        (np.kron(np.eye(6), np.ones((4, 4))), [[4, 4]]),
        (np.eye(n), [[1, 1]]),
        (np.ones((n, n)), [[1, 0], [0, 1]]),
        ((i + j) % 2, [[1, 1], [1, -1]]),
    ):
        found = detect_lattice(array)
        assert found.value.vectors.tolist() == vectors and found.proof_level == "P0" and found.verify() == 0
    waves = detect_lattice(np.cos(0.7 * i + 0.3 * j)).value
    assert waves.bravais == "row"
    np.testing.assert_allclose(waves.vectors[0], 2 * np.pi * np.array([0.7, 0.3]) / 0.58, atol=1e-2)


def test_drifts_edges_and_periods_of_two_steps_are_no_lattice_in_noise():
    rng = np.random.default_rng(0)
    i, j = np.indices((32, 32))
    for array in ((i + j) % 2 + 0.3 * rng.standard_normal((32, 32)), i % 2 + 0.3 * rng.standard_normal((32, 32))):
        found = detect_lattice(array)
        assert found.value.rank == 0 and found.verify() == 0
    found = detect_lattice(np.tri(48) + 0.01 * rng.standard_normal((48, 48)))
    assert found.proof_level == "P3" and found.verify() <= found.tolerance


def test_operations_that_samples_cannot_show_are_named():
    cosets = cosets_of(np.array([[3, 4], [-4, 3]]))
    i, j = np.indices((30, 30))
    found = compute_symmetries(cosets.number(i, j))
    assert found.value.bravais == "square" and found.value.name == "p1"
    assert "4 isometries" in found.assumptions[1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: detect_lattice(np.zeros(3)),
        lambda: detect_lattice(np.full((4, 4), np.nan)),
        lambda: detect_lattice(torch.zeros(2, 2, 2)),
        lambda: detect_lattice(np.zeros((0, 4))),
        lambda: detect_lattice([["a"]]),
        lambda: detect_lattice(np.eye(9), method="guess"),
        lambda: detect_lattice(np.eye(9), level=0.0),
        lambda: detect_lattice(np.eye(9), sampling="cubic"),
        lambda: detect_lattice(np.eye(9), sampling=[[1, 0], [2, 0]]),
        lambda: detect_lattice(np.random.default_rng(0).choice([-np.inf, 1.0, 2.0], (9, 9))),
        lambda: compute_symmetries(np.tri(9)),
        lambda: compute_symmetries(np.random.default_rng(0).random((9, 9))),
        lambda: RefractionSystem("triangular"),
        lambda: planar_class(np.eye(3)),
    ],
)
def test_what_is_no_pattern_is_refused(call):
    with pytest.raises(CrystalError):
        call()
