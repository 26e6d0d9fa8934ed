import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from aatc.passes.analysis.chains import spaces
from aatc.passes.analysis.chains.complexes import ComplexError, torus_grid
from aatc.passes.analysis.cohomology.characteristic import (
    TransportError,
    chern_number,
    curvature,
    euler_number,
    fundamental_cycle,
    line_bundle_classes,
    link_phases,
    surface_connection,
    w1_cocycle,
    w2_cocycle,
)
from aatc.passes.analysis.cohomology.cohomology import CohomologyStructure, DifferentialForm
from aatc.passes.analysis.result import Undecided, verify


def lower_band(mass: float, size: int) -> np.ndarray:
    """Lower eigenvectors of sin kx σx + sin ky σy + (m + cos kx + cos ky) σz, (size², 2), kx the slow index."""
    k = 2 * np.pi * np.arange(size) / size
    kx, ky = (x.ravel() for x in np.meshgrid(k, k, indexing="ij"))
    z = mass + np.cos(kx) + np.cos(ky)
    h = np.array([[z, np.sin(kx) - 1j * np.sin(ky)], [np.sin(kx) + 1j * np.sin(ky), -z]]).transpose(2, 0, 1)
    return np.linalg.eigh(h)[1][:, :, 0]


def random_phases(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-np.pi, np.pi, count)


@pytest.mark.parametrize("mass,number", [(-1.0, -1), (1.0, 1), (-0.3, -1), (3.0, 0), (-3.0, 0)])
def test_chern_number_of_the_lower_qwz_band(mass, number):
    grid = torus_grid(12, 12)
    result = chern_number(grid, link_phases(grid, lower_band(mass, 12)), np.ones(144, int))
    assert result.value == number and result.residual < 1e-12 and verify(result.witness) < 1e-12


@given(st.integers(0, 10**6))
def test_chern_number_does_not_depend_on_the_gauge(seed):
    grid, states = torus_grid(8, 8), lower_band(1.0, 8)
    phases = np.exp(1j * random_phases(seed, 64))
    result = chern_number(grid, link_phases(grid, states * phases[:, None]), np.ones(64, int))
    assert result.value == 1


@given(st.integers(-12, 12), st.integers(0, 10**6))
def test_uniform_flux_on_a_triangulated_torus_has_its_chern_number(number, seed):
    torus = spaces.torus()
    cycle = fundamental_cycle(torus)
    d = torus.chain_complex.coboundary(1).toarray()
    # The class of n·(dual of one triangle) has a connection of constant curvature: solve F = dθ + 2πn.
    integers = np.zeros(14, int)
    integers[3] = number * cycle[3]
    flux = 2 * np.pi * number * cycle / 14
    phases = np.linalg.lstsq(d.astype(float), flux - 2 * np.pi * integers, rcond=None)[0]
    gauge = torus.chain_complex.coboundary(0) @ random_phases(seed, 7)
    if abs(number) >= 7:
        found = chern_number(torus, phases + gauge, cycle)
        if abs(number) == 7:
            assert isinstance(found, Undecided)
        else:
            assert found.value == number - 14 * np.sign(number)
        return
    result = chern_number(torus, phases + gauge, cycle)
    assert result.value == number and np.allclose(curvature(torus, phases + gauge).value.flux, flux)
    c1 = CohomologyStructure(torus).characteristic_classes(phases=phases + gauge)["c1"]
    assert abs(c1.coordinates[0]) == abs(number)


@pytest.mark.parametrize(
    "surface", [spaces.torus(), spaces.oriented_surface(1), spaces.oriented_surface(2), spaces.oriented_surface(3)]
)
def test_euler_number_of_the_tangent_bundle_is_the_euler_characteristic(surface):
    angles, cycle = surface_connection(surface)
    result = euler_number(surface, angles, cycle)
    assert result.value == surface.euler_characteristic and verify(result.witness) < 1e-9
    structure = CohomologyStructure(surface, 2)
    c, s = np.cos(angles), np.sin(angles)
    w2 = structure.characteristic_classes(transports=np.array([[c, -s], [s, c]]).transpose(2, 0, 1))["w2"]
    assert w2.coordinates == (surface.euler_characteristic % 2,)


def icosahedron():
    top = [(0, 1 + i, 1 + (i + 1) % 5) for i in range(5)]
    middle = [(1 + i, 1 + (i + 1) % 5, 6 + i) for i in range(5)]
    lower = [(6 + i, 6 + (i + 1) % 5, 1 + (i + 1) % 5) for i in range(5)]
    bottom = [(11, 6 + i, 6 + (i + 1) % 5) for i in range(5)]
    return spaces.from_maximal_simplices([*top, *middle, *lower, *bottom])


def test_curvature_of_the_icosahedron_is_that_of_the_round_sphere():
    sphere = icosahedron()
    angles, cycle = surface_connection(sphere)
    assert np.allclose(curvature(sphere, angles).value.flux * cycle, 4 * np.pi / 20)
    assert euler_number(sphere, angles).value in (2, -2) and euler_number(sphere, angles, cycle).value == 2


def test_a_tetrahedron_is_too_coarse_to_decide():
    sphere = spaces.sphere(2)
    angles, cycle = surface_connection(sphere)
    found = euler_number(sphere, angles, cycle)
    assert isinstance(found, Undecided) and "refine" in found.reason


def test_a_monopole_has_no_bundle():
    solid = spaces.simplex(3)
    flux = fundamental_cycle(spaces.sphere(2)) * 2 * np.pi / 4
    d = solid.chain_complex.coboundary(1).toarray().astype(float)
    integers = np.array([flux[0] / abs(flux[0]), 0, 0, 0])
    phases = np.linalg.lstsq(d, flux - 2 * np.pi * integers, rcond=None)[0]
    assert np.allclose(d @ phases, flux - 2 * np.pi * integers)
    with pytest.raises(TransportError, match="monopole"):
        curvature(solid, phases)


def test_a_wrong_chern_number_is_caught():
    grid = torus_grid(8, 8)
    witness = chern_number(grid, link_phases(grid, lower_band(1.0, 8)), np.ones(64, int)).witness
    assert verify(witness) < 1e-12
    assert verify(dataclasses.replace(witness, number=2)) > 0.5
    assert verify(dataclasses.replace(witness, curvature=witness.curvature + 0.01)) > 0.005
    far = witness.curvature.copy()
    far[0] += 2 * np.pi
    turned = witness.integers.copy()
    turned[0] += 1
    assert verify(dataclasses.replace(witness, curvature=far, integers=turned, number=2)) == np.inf


def plane_line():
    plane = spaces.projective_plane()
    structure = CohomologyStructure(plane, 2)
    return plane, structure, structure.basis(1)[0].cocycle.astype(int)


def test_first_class_of_the_tautological_line_bundle():
    plane, structure, x = plane_line()
    transports = ((-1.0) ** x)[:, None, None]
    found = structure.characteristic_classes(transports=transports)
    assert found["w1"].coordinates == (1,) and "w2" not in found
    assert (w1_cocycle(plane, transports) == x).all()


@pytest.mark.parametrize("copies,second", [(1, 0), (2, 1), (3, 1), (4, 0), (5, 0)])
def test_sums_of_the_tautological_line_obey_the_binomial_formula(copies, second):
    plane, structure, x = plane_line()
    one, two = line_bundle_classes(plane, np.tile(x, (copies, 1)))
    assert structure.cohomology_class(DifferentialForm(1, one)).coordinates == (copies % 2,)
    assert structure.cohomology_class(DifferentialForm(2, two)).coordinates == (second,)


@pytest.mark.parametrize("signs", [(1, 1), (1, 1, 0), (1, 1, 1, 1), (1, 1, 0, 1, 1)])
@pytest.mark.parametrize("space", [spaces.projective_plane(), spaces.klein_bottle()])
def test_the_spin_obstruction_agrees_with_products_of_line_bundles(space, signs):
    structure = CohomologyStructure(space, 2)
    for generator in structure.basis(1):
        x = np.array([s * generator.cocycle.astype(int) for s in signs])
        transports = np.array([np.diag((-1.0) ** column) for column in x.T])
        found = structure.characteristic_classes(transports=transports)["w2"]
        want = structure.cohomology_class(DifferentialForm(2, line_bundle_classes(space, x)[1]))
        assert found.coordinates == want.coordinates


@given(st.integers(2, 5), st.integers(0, 10**6))
def test_the_spin_obstruction_does_not_depend_on_the_gauge(n, seed):
    rng = np.random.default_rng(seed)
    plane, structure, x = plane_line()
    generators = rng.normal(size=(plane.count(0), n, n))
    gauge = np.array([expm(g - g.T) for g in generators])
    small = np.array([expm(0.05 * (g - g.T)) for g in rng.normal(size=(plane.count(1), n, n))])
    flat = np.tile(np.eye(n), (plane.count(1), 1, 1))
    flat[:, 0, 0] = flat[:, 1, 1] = (-1.0) ** x
    tails, heads = plane.cells[1].T
    turned = gauge[heads] @ flat @ small @ gauge[tails].swapaxes(1, 2)
    assert structure.characteristic_classes(transports=turned)["w2"].coordinates == (1,)
    trivial = gauge[heads] @ small @ gauge[tails].swapaxes(1, 2)
    assert structure.characteristic_classes(transports=trivial)["w2"].coordinates == (0,)


def test_the_spin_obstruction_in_three_dimensions_agrees_with_quaternions():
    sphere, rng = icosahedron(), np.random.default_rng(5)
    frames = Rotation.random(12, rng)
    tails, heads = sphere.cells[1].T
    noise = Rotation.from_rotvec(rng.normal(size=(30, 3)) * 0.3)
    edges = frames[heads] * noise * frames[tails].inv()
    bc, ac, ab = sphere.faces(2).T
    product = edges[ac].inv() * edges[bc] * edges[ab]

    def times(p, q):
        return np.concatenate([p[3] * q[:3] + q[3] * p[:3] + np.cross(p[:3], q[:3]), [p[3] * q[3] - p[:3] @ q[:3]]])

    def lift(rotation):
        q = rotation.as_quat()
        return q if q[3] > 0 else -q

    want = []
    for f in range(20):
        inverse = lift(edges[ac[f]]) * [-1, -1, -1, 1]
        lifted = times(times(inverse, lift(edges[bc[f]])), lift(edges[ab[f]]))
        want.append(int(lifted @ lift(product[f]) < 0))
    assert 0 < sum(want) < 20
    assert w2_cocycle(sphere, edges.as_matrix()).tolist() == want


def test_holonomies_far_from_one_are_undecided():
    disc = spaces.simplex(2)
    turn = np.tile(np.eye(2), (3, 1, 1))
    turn[0] = [[1, 0], [0, -1]]
    assert isinstance(w1_cocycle(disc, turn), Undecided)
    turn[0] = -np.eye(2)
    assert isinstance(w2_cocycle(disc, turn), Undecided)
    assert isinstance(CohomologyStructure(disc).characteristic_classes(phases=[np.pi, 0, 0])["c1"], Undecided)


@pytest.mark.parametrize(
    "call",
    [
        lambda t: curvature(t, np.zeros(3)),
        lambda t: curvature(t, np.full(21, np.nan)),
        lambda t: w1_cocycle(t, np.full((21, 2, 2), 0.5)),
        lambda t: w1_cocycle(t, np.zeros((20, 2, 2))),
        lambda t: w2_cocycle(t, np.tile(np.diag([1.0, -1.0]), (21, 1, 1))),
        lambda t: chern_number(spaces.projective_plane(), np.zeros(15)),
        lambda t: chern_number(t, np.zeros(21), np.eye(14, dtype=int)[0]),
        lambda t: surface_connection(spaces.projective_plane()),
        lambda t: surface_connection(spaces.simplex(2)),
        lambda t: surface_connection(spaces.sphere(3)),
        lambda t: line_bundle_classes(t, np.eye(21, dtype=int)[:1]),
        lambda t: link_phases(t, np.eye(7)),
        lambda t: link_phases(torus_grid(1, 4), np.ones((4, 1))),
    ],
)
def test_what_is_no_connection_is_refused(call):
    with pytest.raises(TransportError):
        call(spaces.torus())


def test_classes_ask_for_the_coefficients_they_live_in():
    with pytest.raises(ComplexError, match="over Z"):
        CohomologyStructure(spaces.torus(), 2).characteristic_classes(phases=np.zeros(21))
    with pytest.raises(ComplexError, match="over F2"):
        CohomologyStructure(spaces.torus()).characteristic_classes(transports=np.ones((21, 1, 1)))


def test_a_cycle_of_fractions_is_refused():
    torus = spaces.torus()
    with pytest.raises(TransportError, match="integers"):
        chern_number(torus, np.zeros(torus.count(1)), fundamental_cycle(torus) / 2)


def test_nan_in_a_curvature_is_caught():
    torus = spaces.torus()
    witness = chern_number(torus, np.zeros(torus.count(1))).witness
    curvature_with_nan = np.where(np.arange(14) == 3, np.nan, witness.curvature)
    assert verify(dataclasses.replace(witness, curvature=curvature_with_nan)) == np.inf
