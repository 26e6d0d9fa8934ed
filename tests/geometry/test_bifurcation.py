"""Bifurcations located and named: normal forms in random coordinates, Brusselator, Lorenz, and a Turing pitchfork."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.geometry.dynamics.bifurcation import (
    BifurcationDiagram,
    ContinuationError,
    ContinuationSettings,
    bifurcation_diagram,
)
from aatc.geometry.dynamics.pattern_dynamics import PatternDynamics
from aatc.geometry.dynamics.pattern_stability import reaction_jacobian, turing_conditions
from aatc.geometry.dynamics.reaction_diffusion import Grid, PatternError
from aatc.geometry.dynamics.reaction_terms import Schnakenberg

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("one_thread")


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def hopf(sign):
    def field(x, m):
        square = x[0] * x[0] + x[1] * x[1]
        return torch.stack((m * x[0] - 1.7 * x[1] + sign * x[0] * square, 1.7 * x[0] + m * x[1] + sign * x[1] * square))

    return field


# name: field of its own coordinates, their number, the equilibrium at μ = start, start, the kind and the criticality.
FORMS = {
    "saddle-node above": (lambda x, m: m - x * x, (1.0,), 1.0, "saddle-node", None),
    "saddle-node below": (lambda x, m: m + x * x, (-1.0,), -1.0, "saddle-node", None),
    "transcritical": (lambda x, m: m * x - x * x, (0.0,), -1.0, "transcritical", None),
    "supercritical pitchfork": (lambda x, m: m * x - x**3, (0.0,), -1.0, "pitchfork", "supercritical"),
    "subcritical pitchfork": (lambda x, m: m * x + x**3, (0.0,), -1.0, "pitchfork", "subcritical"),
    "supercritical hopf": (hopf(-1.0), (0.0, 0.0), -1.0, "hopf", "supercritical"),
    "subcritical hopf": (hopf(1.0), (0.0, 0.0), -1.0, "hopf", "subcritical"),
}

changes = st.tuples(st.integers(0, 3), st.floats(-2, 2), st.floats(0.5, 2), st.floats(0.6, 1.6), st.integers(0, 10**6))


def disguised(form, rest, change):
    """The normal form beside stable directions, in new coordinates y = Mx + c and a new parameter ν = a + bμ."""
    extra, shift, stretch, scale, seed = change
    n = len(rest) + extra
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(n, n, dtype=F64, generator=generator))
    shear = torch.eye(n, dtype=F64) + 0.2 * torch.randn(n, n, dtype=F64, generator=generator).triu(1)
    matrix = scale * turn @ shear
    inverse, centre = torch.linalg.inv(matrix), torch.randn(n, dtype=F64, generator=generator)
    decay = -0.5 - torch.rand(extra, dtype=F64, generator=generator)

    def field(y, nu):
        x = inverse @ (y - centre)
        inner, outer = x[: len(rest)], x[len(rest) :]
        # The stable directions are driven by the others, so that the centre manifold is curved.
        driven = decay * outer + 0.3 * inner.square().sum()
        return matrix @ torch.cat((form(inner, (nu - shift) / stretch), driven))

    x = torch.cat((tensor(*rest), -0.3 * tensor(*rest).square().sum() / decay))
    return field, matrix @ x + centre, centre


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=3)
@given(change=changes)
def test_normal_forms_are_found_and_named_in_any_coordinates(name, change):
    form, rest, begin, kind, criticality = FORMS[name]
    field, state, centre = disguised(form, rest, change)
    shift, stretch = change[1], change[2]
    found = bifurcation_diagram(
        field,
        state,
        (shift - 1.1 * stretch, shift + 1.2 * stretch),
        start=shift + begin * stretch,
        settings=ContinuationSettings(max_step=0.12),
    )
    assert [p.kind for p in found.points] == [kind]
    (point,) = found.points
    assert abs(point.parameter - shift) <= 1e-8
    torch.testing.assert_close(point.state, centre, rtol=0, atol=1e-7)
    assert point.criticality == criticality and point.residual < 1e-10
    jacobian = torch.func.jacrev(field)(point.state, torch.tensor(point.parameter, dtype=F64))
    vector = point.eigenvector.to(torch.complex128)
    frequency = point.frequency or 0.0
    torch.testing.assert_close(jacobian.to(vector) @ vector, 1j * frequency * vector, rtol=0, atol=1e-7)
    assert float(vector.abs().square().sum()) == pytest.approx(1)
    if kind == "hopf":
        assert frequency == pytest.approx(1.7, abs=1e-8)
    assert len(found.branches) == (2 if kind in ("pitchfork", "transcritical") else 1)
    check_branches(field, found)


def check_branches(field, found: BifurcationDiagram):
    """Every point of every branch rests, and its stability is that of its Jacobian."""
    for branch in found.branches:
        for i in range(0, len(branch.parameters), 7):
            parameter, state = branch.parameters[i], branch.states[i]
            assert float(field(state, parameter).abs().max()) < 1e-9
            jacobian = torch.func.jacrev(field)(state, parameter).reshape(state.numel(), -1)
            growth = float(torch.linalg.eigvals(jacobian).real.max())
            assert bool(branch.stable[i]) == (growth < 0) or abs(growth) < 1e-9
            assert float(branch.eigenvalues[i].real.max()) == pytest.approx(growth, abs=1e-8)


def test_pitchfork_branches_are_the_parabola_with_its_stability():
    for sign in (-1.0, 1.0):
        found = bifurcation_diagram(lambda x, m, s=sign: m * x + s * x**3, tensor(0.0), (-1.0, 1.0))
        trivial, bent = found.branches
        torch.testing.assert_close(trivial.states.abs().max(), tensor(0.0)[0])
        torch.testing.assert_close(bent.parameters, -sign * bent.states[:, 0].square(), rtol=0, atol=1e-10)
        assert float(bent.states.min()) == pytest.approx(-1) and float(bent.states.max()) == pytest.approx(1)
        off = bent.parameters.abs() > 1e-6
        assert bool(bent.stable[off].all()) if sign < 0 else not bool(bent.stable[off].any())
        assert bool(
            (
                trivial.stable[trivial.parameters.abs() > 1e-9]
                == (trivial.parameters < 0)[trivial.parameters.abs() > 1e-9]
            ).all()
        )
        assert found.points[0].coefficient == pytest.approx(sign)


def test_transcritical_branches_exchange_stability():
    found = bifurcation_diagram(lambda x, m: m * x - x * x, tensor(0.0), (-1.0, 1.0))
    _, crossing = found.branches
    torch.testing.assert_close(crossing.parameters, crossing.states[:, 0], rtol=0, atol=1e-10)
    off = crossing.parameters.abs() > 1e-6
    assert bool((crossing.stable == (crossing.parameters > 0))[off].all())
    assert float(crossing.parameters.min()) == pytest.approx(-1) and float(crossing.parameters.max()) == pytest.approx(
        1
    )


@settings(max_examples=2)
@given(st.floats(0.02, 0.2), st.sampled_from([-1.0, 1.0]))
def test_an_imperfect_pitchfork_has_one_fold_and_no_pitchfork(imperfection, sign):
    field = lambda x, m: m * x - x**3 + sign * imperfection  # noqa: E731
    attached = bifurcation_diagram(field, tensor(sign), (-1.0, 1.0), start=1.0)
    assert attached.points == () and bool(attached.branches[0].stable.all())
    detached = bifurcation_diagram(field, tensor(-sign), (-1.0, 1.0), start=1.0)
    (fold,) = detached.points
    assert fold.kind == "saddle-node"
    assert fold.parameter == pytest.approx(3 * (imperfection / 2) ** (2 / 3), abs=1e-9)
    assert float(fold.state[0]) == pytest.approx(-sign * (imperfection / 2) ** (1 / 3), abs=1e-9)


@settings(max_examples=2)
@given(st.floats(0.7, 1.6))
def test_the_brusselator_oscillates_beyond_its_hopf_point(a):
    def field(x, b):
        cubic = x[0] ** 2 * x[1]
        return torch.stack((a - (b + 1) * x[0] + cubic, b * x[0] - cubic))

    found = bifurcation_diagram(field, tensor(a, 1 / a), (1.0, 5.0))
    (point,) = found.points
    assert (point.kind, point.criticality) == ("hopf", "supercritical")
    assert point.parameter == pytest.approx(1 + a * a, abs=1e-8)
    assert point.frequency == pytest.approx(a, abs=1e-8)


def test_lorenz_has_a_pitchfork_and_two_subcritical_hopf_points():
    sigma, beta = 10.0, 8 / 3

    def field(x, rho):
        return torch.stack((sigma * (x[1] - x[0]), x[0] * (rho - x[2]) - x[1], x[0] * x[1] - beta * x[2]))

    coarse = ContinuationSettings(max_step=0.5)
    found = bifurcation_diagram(field, tensor(0.0, 0.0, 0.0), (0.0, 30.0), settings=coarse)
    pitchfork, *hopfs = found.points
    assert (pitchfork.kind, pitchfork.criticality) == ("pitchfork", "supercritical")
    assert pitchfork.parameter == pytest.approx(1, abs=1e-9)
    critical = sigma * (sigma + beta + 3) / (sigma - beta - 1)
    assert [(p.kind, p.criticality) for p in hopfs] == [("hopf", "subcritical")] * 2
    for point in hopfs:
        assert point.parameter == pytest.approx(critical, abs=1e-8)
        assert point.frequency == pytest.approx(math.sqrt(beta * (sigma + critical)), abs=1e-8)
        assert abs(float(point.state[0])) == pytest.approx(math.sqrt(beta * (critical - 1)), abs=1e-8)
    assert float(hopfs[0].state[0]) == pytest.approx(-float(hopfs[1].state[0]))


def test_two_bifurcations_in_one_step_are_told_apart():
    found = bifurcation_diagram(
        lambda x, m: (m - tensor(0.0, 0.004)) * x - x**3,
        tensor(0.0, 0.0),
        (-0.5, 0.5),
        settings=ContinuationSettings(max_branches=1),
    )
    assert [p.kind for p in found.points] == ["pitchfork", "pitchfork"]
    assert [p.parameter for p in found.points] == pytest.approx([0, 0.004], abs=1e-8)


@pytest.mark.parametrize("decay", [1e-4, 1e-7])
@pytest.mark.parametrize("frequency", [0.0, 2.0])
def test_a_slow_bystander_does_not_hide_a_hopf_point(decay, frequency):
    oscillator = hopf(-1.0)

    def field(x, m):
        slow = torch.stack((-decay * x[2] - frequency * x[3], frequency * x[2] - decay * x[3]))
        return torch.cat((oscillator(x[:2], m - 0.01234), slow))

    (point,) = bifurcation_diagram(field, torch.zeros(4, dtype=F64), (-0.5, 0.5)).points
    assert (point.kind, point.criticality) == ("hopf", "supercritical")
    assert point.parameter == pytest.approx(0.01234, abs=1e-9) and point.frequency == pytest.approx(1.7)


def test_two_hopf_points_in_one_step_are_told_apart():
    one, other = hopf(-1.0), hopf(1.0)
    found = bifurcation_diagram(
        lambda x, m: torch.cat((one(x[:2], m), other(x[2:], m - 1e-3))), torch.zeros(4, dtype=F64), (-0.5, 0.5)
    )
    assert [p.criticality for p in found.of_kind("hopf")] == ["supercritical", "subcritical"]
    assert [p.parameter for p in found.points] == pytest.approx([0, 1e-3], abs=1e-9)


def test_a_fold_beside_a_branch_point_is_found_with_it():
    found = bifurcation_diagram(
        lambda x, m: torch.stack((m - x[0] ** 2, x[1] * (x[0] - 1e-3) - x[1] ** 3)),
        tensor(1.0, 0.0),
        (-0.5, 1.0),
        start=1.0,
    )
    assert [p.kind for p in found.points] == ["saddle-node", "pitchfork"]
    assert [p.parameter for p in found.points] == pytest.approx([0, 1e-6], abs=1e-9)


def test_a_steep_pitchfork_is_followed_along_its_branch():
    found = bifurcation_diagram(lambda x, m: m * x - 1e6 * x**3, tensor(0.0), (-0.5, 0.5))
    branch = found.branches[1]
    torch.testing.assert_close(1e6 * branch.states[:, 0] ** 2, branch.parameters, rtol=0, atol=1e-8)
    assert float(branch.parameters.max()) == pytest.approx(0.5)


def test_points_of_higher_codimension_are_degenerate():
    takens = bifurcation_diagram(
        lambda x, m: torch.stack((x[1], m + x[0] ** 2 + x[0] * x[1])), tensor(-1.0, 0.0), (-1.0, 1.0)
    )
    assert [(p.kind, p.coefficient) for p in takens.points] == [("degenerate", None)]
    resonant = bifurcation_diagram(
        lambda x, m: torch.cat((hopf(-1.0)(x[:2], m), 3.4 * torch.stack((-x[3], x[2])))),
        torch.zeros(4, dtype=F64),
        (-0.5, 0.5),
    )
    assert [p.kind for p in resonant.points] == ["degenerate"]
    assert resonant.points[0].parameter == pytest.approx(0, abs=1e-9)


def test_a_double_kernel_is_degenerate_and_not_given_another_name():
    found = bifurcation_diagram(lambda x, m: m * x - x * x.square().sum(), tensor(0.0, 0.0), (-1.0, 1.0))
    assert [p.kind for p in found.points] == ["degenerate"]
    assert found.points[0].parameter == pytest.approx(0, abs=1e-8)
    linear = bifurcation_diagram(
        lambda x, m: torch.stack((m * x[0] - x[1], x[0] + m * x[1])), tensor(0.0, 0.0), (-1.0, 1.3)
    )
    assert [p.kind for p in linear.points] == ["degenerate"]


def test_a_closed_curve_of_equilibria_is_closed():
    found = bifurcation_diagram(lambda x, m: m * m + x * x - 1, tensor(-1.0), (-2.0, 2.0), start=0.0)
    assert [p.kind for p in found.points] == ["saddle-node"] * 2
    assert [p.parameter for p in found.points] == pytest.approx([-1, 1], abs=1e-9)
    assert found.branches[0].ended[0] == "closed"


@pytest.mark.parametrize("size", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_a_turing_pattern_branches_off_where_the_dispersion_relation_says(size):
    term = Schnakenberg(0.1, 0.9)
    rest = term.steady_states()[0]
    jacobian = reaction_jacobian(term, rest)
    threshold = turing_conditions(jacobian, tensor(1.0, 10.0)).critical_ratio
    k = turing_conditions(jacobian, tensor(1.0, threshold)).critical_wavenumber
    grid = Grid((math.pi / k,), "neumann")

    def at(ratio):
        return PatternDynamics(term, torch.stack((torch.ones_like(ratio), ratio)), grid)

    found = at(tensor(7.0)[0]).bifurcation_analysis(rest[:, None].expand(2, size), at, (7.0, 10.0))
    (point,) = found.points
    assert point.kind == "pitchfork" and point.criticality == "supercritical"
    assert point.parameter == pytest.approx(threshold, abs=1e-8)
    (x,) = grid.coordinates((size,))
    wave = torch.cos(k * x)
    activator = point.eigenvector[0]
    torch.testing.assert_close(activator / activator[0], wave / wave[0], rtol=0, atol=1e-7)
    pattern = found.branches[1].states[-1]
    assert bool(found.branches[1].stable[-1]) and float(pattern[0].max() - pattern[0].min()) > 0.1
    end = at(found.branches[1].parameters[-1])
    assert float(end.system.rate(pattern).abs().max()) < 1e-9


def test_a_parameter_of_the_reaction_can_be_named():
    term, grid = Schnakenberg(0.1, 0.9), Grid((1.0,), "neumann")
    dynamics = PatternDynamics(term, tensor(1.0, 1.0), grid)
    state = term.steady_states()[0][:, None].expand(2, 4)
    found = dynamics.bifurcation_analysis(state, "b", (0.5, 1.5), start=0.9)
    (point,) = found.of_kind("hopf")
    jacobian = reaction_jacobian(Schnakenberg(0.1, point.parameter), point.state[:, 0])
    assert float(jacobian.trace()) == pytest.approx(0, abs=1e-8)
    assert point.frequency == pytest.approx(float(jacobian.det().sqrt()), abs=1e-8)
    with pytest.raises(PatternError, match="no parameter 'c'"):
        dynamics.bifurcation_analysis(state, "c", (0.5, 1.5))


def test_what_cannot_be_followed_is_refused():
    fold = lambda x, m: m - x * x  # noqa: E731
    with pytest.raises(ContinuationError, match="no equilibrium at parameter -1"):
        bifurcation_diagram(fold, tensor(0.5), (-1.0, 1.0))
    for bad in ((1.0, -1.0), (0.0, math.nan)):
        with pytest.raises(ContinuationError, match="range"):
            bifurcation_diagram(fold, tensor(1.0), bad)
    with pytest.raises(ContinuationError, match="finite"):
        bifurcation_diagram(fold, tensor(math.nan), (0.0, 1.0))
    with pytest.raises(ContinuationError, match="field gives"):
        bifurcation_diagram(lambda x, m: x.sum(), tensor(1.0, 1.0), (0.0, 1.0))
    with pytest.raises(ContinuationError, match="not one of"):
        bifurcation_diagram(lambda x, m: m - x, tensor(0.0), (0.0, 1.0)).of_kind("cusp")
    with pytest.raises(ContinuationError, match="steps"):
        ContinuationSettings(step=1.0)
