"""Fixed points, exponents and anomalies against those known in closed form or counted by hand."""

import itertools
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.analysis import scale
from aatc.passes.analysis.scale.coarse_graining import ScaleError
from tests.analysis.scale_cases import by_distance, generation


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_the_ising_chain_stands_still_at_no_coupling_and_at_infinite_coupling(factor):
    found = scale.fixed_points(scale.ising_chain(factor))
    free, frozen = found.value
    assert found.verify() <= found.tolerance
    np.testing.assert_allclose([free.couplings[0], frozen.couplings[0]], [0, 1], atol=1e-12)
    assert free.kind == "attractive" and free.exponents[0] == -np.inf and free.correlation_exponent == np.inf
    # ξ = −1/log t, so that ν = 1 in 1 − t
    assert frozen.kind == "repulsive" and frozen.correlation_exponent == pytest.approx(1, abs=1e-9)


def test_the_ising_chain_in_a_field_has_the_exponents_of_zero_temperature():
    zero, *line = scale.fixed_points(scale.ising_chain_in_field()).value
    np.testing.assert_allclose(zero.couplings, [0, 1], atol=1e-10)
    np.testing.assert_allclose(zero.exponents, [2, 1], atol=1e-9)  # of e^{−4K}, and of the field
    assert zero.relevant == 2 and zero.isolated
    assert line and all(p.couplings[0] == pytest.approx(1) and p.kind == "marginal" and not p.isolated for p in line)


@given(st.floats(0.01, 2.0), st.floats(0.0, 1.0))
def test_the_map_in_a_field_is_the_sum_over_every_second_spin(k, h):
    """Of weights e^{K s s' + h (s + s')/2} a bond."""
    spin = np.array([1, -1])
    bond = np.exp(k * np.outer(spin, spin) + h * (spin[:, None] + spin) / 2)
    pair = bond @ bond
    expected = [pair[0, 1] * pair[1, 0] / (pair[0, 0] * pair[1, 1]), pair[1, 1] / pair[0, 0]]
    image = scale.ising_chain_in_field()([np.exp(-4 * k), np.exp(-2 * h)])
    np.testing.assert_allclose(image, expected, rtol=1e-10)


def test_bonds_that_are_moved_give_the_known_transition():
    """K′ = ½ log cosh 4K in two dimensions: K* = 0.3047, ν = 1.338 (Migdal, Kadanoff)."""
    found = scale.fixed_points(scale.migdal_kadanoff())
    free, critical = found.value
    k = critical.couplings[0]
    assert k == pytest.approx(np.log(np.cosh(4 * k)) / 2, abs=1e-12) and k == pytest.approx(0.30468893, abs=1e-8)
    assert critical.correlation_exponent == pytest.approx(np.log(2) / np.log(2 * np.tanh(4 * k)), rel=1e-9)
    assert critical.correlation_exponent == pytest.approx(1.338, abs=5e-4)
    assert free.kind == "attractive" and found.verify() <= found.tolerance


def test_period_doubling_has_the_constants_of_feigenbaum():
    (found,) = scale.fixed_points(scale.doubling_operator()).value
    assert found.eigenvalues[0].real == pytest.approx(4.669201609102990, abs=1e-9)
    assert found.relevant == 1 and found.kind == "saddle"
    assert 1 / (1 + found.couplings.sum()) == pytest.approx(-2.502907875095893, abs=1e-10)
    u = np.polynomial.chebyshev.Chebyshev(found.couplings, domain=[0, 1])
    series = u.convert(kind=np.polynomial.Polynomial).coef  # of x², x⁴, ... as Lanford has them
    np.testing.assert_allclose(series[:3], [-1.5276329970, 0.1048151947, 0.0267056705], atol=1e-8)
    x = np.linspace(-1, 1, 41)

    def g(y):
        return 1 + y * y * u(y * y)

    np.testing.assert_allclose(g(g(g(1.0) * x)) / g(1.0), g(x), atol=1e-9)  # between the points, too


def test_period_doubling_of_the_logistic_map_has_the_same_constant():
    """Superstable parameters of 1 − ax², whose critical orbits have periods 2ᵏ: their gaps shrink by δ."""

    def orbit(a, period):
        x = 0.0
        for _ in range(period):
            x = 1 - a * x * x
        return x

    found, guess = [0.0, 1.0], 1.0
    for k in range(2, 8):
        guess = found[-1] + (found[-1] - found[-2]) / (4.669 if k > 2 else 3.2)
        for _ in range(30):
            h = 1e-9
            value, slope = orbit(guess, 2**k), (orbit(guess + h, 2**k) - orbit(guess - h, 2**k)) / (2 * h)
            guess -= float(value / slope)
        found.append(guess)
    ratio = (found[-2] - found[-3]) / (found[-1] - found[-2])
    (fixed,) = scale.fixed_points(scale.doubling_operator()).value
    assert ratio == pytest.approx(fixed.eigenvalues[0].real, abs=2e-3)


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_linear_maps_stand_still_at_the_origin_with_their_eigenvalues(seed, d):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(d, d)) * 2
    shift = rng.normal(size=d)
    if np.abs(np.linalg.eigvals(matrix) - 1).min() < 0.05:
        return
    one = scale.RenormalizationMap(
        lambda x: torch.as_tensor(matrix) @ x + torch.as_tensor(shift), 3.0, tuple(f"g{k}" for k in range(d))
    )
    found = scale.fixed_points(one, starts=[np.zeros(d)])
    (point,) = found.value
    np.testing.assert_allclose(point.couplings, np.linalg.solve(np.eye(d) - matrix, shift), atol=1e-8)
    moduli = np.sort(np.abs(np.linalg.eigvals(matrix)))[::-1]
    np.testing.assert_allclose(np.sort(np.abs(point.eigenvalues))[::-1], moduli, atol=1e-8)
    assert point.relevant == (moduli > 1).sum() and found.verify() <= found.tolerance
    assert point.kind == ("repulsive" if (moduli > 1).all() else "saddle" if (moduli > 1).any() else "attractive")


def test_a_flow_leads_to_the_points_near_it():
    flow = scale.map_flow(scale.RenormalizationMap(lambda x: torch.cos(x)), [1.0], 30)
    assert flow.verify() <= flow.tolerance
    (point,) = scale.fixed_points(flow.value).value
    assert point.couplings[0] == pytest.approx(0.7390851332151607, abs=1e-12)
    assert point.eigenvalues[0].real == pytest.approx(-np.sin(0.7390851332151607)) and point.kind == "attractive"
    assert scale.fixed_points(scale.RenormalizationMap(lambda x: x + 1), starts=[[0.0]]).value == ()


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: scale.RenormalizationMap(lambda x: x, 1.0), "above 1"),
        (lambda: scale.RenormalizationMap(None), "function"),
        (lambda: scale.RenormalizationMap(lambda x: x, domain=((1.0, 0.0),)), "intervals"),
        (lambda: scale.RenormalizationMap(lambda x: x, domain=((0.0, 1.0),) * 2), "domain"),
        (lambda: scale.RenormalizationMap(lambda x: x[0])([1.0]), "gives"),
        (lambda: scale.RenormalizationMap(torch.log)([-1.0]), "finite"),
        (lambda: scale.ising_chain()([1.0, 2.0]), "tanh K"),
        (lambda: scale.ising_chain()(["a"]), "numbers"),
        (lambda: scale.map_flow(scale.RenormalizationMap(lambda x: x**9), [1e9], 9), "finite"),
        (lambda: scale.map_flow(scale.ising_chain(), [0.5], 0), "whole number"),
        (lambda: scale.fixed_points(scale.RenormalizationMap(lambda x: x * x)), "starts"),
        (lambda: scale.fixed_points(scale.RenormalizationMap(lambda x: torch.ones(1)), starts=[[0.0]]), "depend"),
        (lambda: scale.fixed_points(scale.renormalization_flow(by_distance(8, 1), "escape").value), "no map"),
        (lambda: scale.doubling_operator(3), "5 or more"),
    ],
)
def test_what_is_no_map_is_refused(call, text):
    with pytest.raises(ScaleError, match=text):
        call()


def test_a_generation_of_the_standard_model_has_no_anomaly_of_hypercharge():
    found = scale.anomaly_polynomial(generation())
    y = found.value
    assert dict(y.cubic)[0, 0, 0] == 0 and y.linear[0] == 0  # ΣY³ = ΣY = 0
    assert dict(y.mixed)["SU(2)", 0] == 0 and dict(y.mixed)["SU(3)", 0] == 0
    # baryon less lepton number lacks a neutrino
    assert dict(y.cubic)[1, 1, 1] == -1 and y.linear[1] == -1 and not y.vanishes
    assert str(y) == "-1 B−L·B−L·B−L; -1 grav²·B−L"
    whole = scale.anomaly_polynomial(generation(right_handed_neutrino=True))
    assert whole.value.vanishes and str(whole.value) == "0" and whole.proof_level == "P0" and whole.verify() == 0


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3))
def test_coefficients_are_those_of_the_expanded_polynomial(seed, f, k):
    rng = np.random.default_rng(seed)
    charges = [[Fraction(int(p), int(q)) for p, q in rng.integers(1, 9, (k, 2)) * [rng.choice([-1, 1]), 1]]
               for _ in range(f)]  # fmt: skip
    signs, counts = rng.choice([-1, 1], f).tolist(), rng.integers(1, 5, f).tolist()
    table = scale.charge_table(charges, chirality=signs, multiplicity=counts)
    found = scale.anomaly_polynomial(table)
    fields, p1 = sympy.symbols(f"F0:{k}"), sympy.Symbol("p1")
    expected = sum(
        s * m * (q**3 / 6 - p1 * q / 24)
        for s, m, q in (
            (s, m, sum(sympy.Rational(c.numerator, c.denominator) * x for c, x in zip(row, fields)))
            for s, m, row in zip(signs, counts, charges)
        )
    )
    own = found.value([sympy.nsimplify(x) for x in fields], p1)
    assert sympy.expand(sympy.nsimplify(own) - expected) == 0 and found.verify() == 0


def test_charges_are_taken_as_they_are():
    exact = scale.charge_table([Fraction(1, 6), "-0.5", Decimal("0.25"), 2.0, np.int64(3), np.float32(-4)])
    assert [q for (q,) in exact.charges] == [Fraction(1, 6), Fraction(-1, 2), Fraction(1, 4), 2, 3, -4]


def distinct_tiles(basis, tile, reach=60):
    """Tiles of a pattern whose value at a pair says which coset of the lattice it is in, by looking at all of them."""
    (a, b), (c, d) = basis
    area = a * d - b * c
    i, j = np.mgrid[0:reach, 0:reach]
    # the coordinates of (i, j) in the basis, times the area, modulo the area
    coset = np.mod(i * d - j * c, area) * abs(area) + np.mod(j * a - i * b, area)
    h, w = tile
    corners = itertools.product(range(0, reach - h + 1, h), range(0, reach - w + 1, w))
    return len({coset[r : r + h, s : s + w].tobytes() for r, s in corners})


@given(st.lists(st.integers(-4, 4), min_size=4, max_size=4), st.integers(1, 5), st.integers(1, 5))
def test_translations_that_tiles_break_are_counted(entries, height, width):
    basis = [entries[:2], entries[2:]]
    area = abs(entries[0] * entries[3] - entries[1] * entries[2])
    if area == 0:
        return
    found = scale.anomaly_polynomial(scale.tiled_lattice(basis, (height, width)))
    value = found.value
    cosets = {
        ((x * entries[0] + y * entries[2]) % height, (x * entries[1] + y * entries[3]) % width)
        for x, y in itertools.product(range(height * width), repeat=2)
    }
    assert value.order == len(cosets) == np.prod(value.factors, dtype=int)
    assert value.vanishes == (value.order == 1) and found.verify() == 0
    if len(value.factors) == 2:
        assert value.factors[1] % value.factors[0] == 0
    for v in value.kept:
        assert v[0] % height == 0 and v[1] % width == 0
        coordinates = np.linalg.solve(np.array(basis, float).T, v)
        np.testing.assert_allclose(coordinates, np.round(coordinates), atol=1e-9)
    (a, b), (c, d) = value.kept
    assert abs(a * d - b * c) == area * value.order
    reach = max(height, width) * 20
    assert value.tiles == distinct_tiles(basis, (height, width), reach) or value.tiles > 100


def test_one_translation_leaves_infinitely_many_tiles():
    diagonal = scale.anomaly_polynomial(scale.tiled_lattice([[1, 1]], 64)).value
    assert diagonal.factors == (64,) and diagonal.kept == ((64, 64),) and diagonal.tiles == np.inf
    assert scale.anomaly_polynomial(scale.tiled_lattice([[64, 64]], 64)).value.vanishes


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: scale.charge_table([1 / 6]), "Fraction"),
        (lambda: scale.charge_table(["a"]), "rational"),
        (lambda: scale.tiled_lattice([[1, 2]], (2**20, 3**9)), "least common multiple"),
        (lambda: scale.fixed_points(scale.RenormalizationMap(lambda x: x.sum()), starts=[[0.5]]), "gives"),
        (lambda: scale.charge_table([[1, 2], [3]]), "one length"),
        (lambda: scale.charge_table([]), "one length"),
        (lambda: scale.charge_table([1, 2], chirality=[1, 0]), "chiralities"),
        (lambda: scale.charge_table([1, 2], multiplicity=[1, 0]), "whole number"),
        (lambda: scale.charge_table([1, 2], indices={"SU(2)": [(0, 1)]}), "all 2 fields"),
        (lambda: scale.charge_table([1], indices={"SU(2)": [(0, 2)]}), "singlet"),
        (lambda: scale.tiled_lattice([[1, 2], [2, 4]], 4), "depend"),
        (lambda: scale.tiled_lattice([[0, 0]], 4), "depend"),
        (lambda: scale.tiled_lattice([[1.5, 2]], 4), "whole"),
        (lambda: scale.tiled_lattice([[1, 2]], 0), "whole number"),
        (lambda: scale.tiled_lattice([[1, 2]], (1, 2, 3)), "two sides"),
        (lambda: scale.anomaly_polynomial("U(1)"), "symmetry"),
    ],
)
def test_what_is_no_symmetry_is_refused(call, text):
    with pytest.raises(ScaleError, match=text):
        call()
