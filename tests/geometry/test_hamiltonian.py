"""Hamiltonian systems against closed forms: structure preserved, orders observed, brackets a Lie algebra."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.geometry.dynamics import symplectic
from aatc.geometry.dynamics.hamiltonian import METHODS, HamiltonianSystem
from aatc.geometry.manifold import GeometryError

F64 = torch.float64


def half_square(p):
    return 0.5 * (p * p).sum(-1)


OSCILLATOR = HamiltonianSystem(lambda q, p: half_square(q) + half_square(p))
PENDULUM = HamiltonianSystem(lambda q, p: half_square(p) + (1 - torch.cos(q)).sum(-1))
KEPLER = HamiltonianSystem.separable(half_square, lambda q: -1 / q.square().sum(-1).sqrt())
HALF_PLANE = HamiltonianSystem.geodesic(lambda q: q[..., 1, None, None] ** 2 * torch.eye(2, dtype=q.dtype))
SYSTEMS = {"oscillator": OSCILLATOR, "pendulum": PENDULUM, "kepler": KEPLER, "half-plane": HALF_PLANE}
PAIRS = [(s, m) for s in SYSTEMS for m in METHODS if s != "half-plane" or m == "implicit_midpoint"]


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def kepler_start(eccentricity):
    """Perihelion of the orbit of semi-major axis 1, whose period is 2π."""
    e = torch.as_tensor(eccentricity, dtype=F64)
    zero = torch.zeros_like(e)
    return torch.stack((1 - e, zero), -1), torch.stack((zero, ((1 + e) / (1 - e)).sqrt()), -1)


def start(name):
    if name == "half-plane":
        return tensor([0.0, 1.0], [0.3, 0.8]), tensor([1.0, 0.0], [0.4, -0.7])
    if name == "kepler":
        return kepler_start([0.1, 0.5])
    return tensor([0.4, -1.2], [1.1, 0.2]), tensor([0.9, 0.1], [-0.3, 0.7])


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_a_step_backwards_undoes_a_step(name, method):
    q, p = start(name)
    there = SYSTEMS[name].evolve(q, p, 0.04, 60, method)
    back = SYSTEMS[name].evolve(*there, -0.04, 60, method)
    torch.testing.assert_close(back, (q, p), rtol=0, atol=1e-10)
    mirrored = SYSTEMS[name].evolve(there[0], -there[1], 0.04, 60, method)
    torch.testing.assert_close(mirrored, (q, -p), rtol=0, atol=1e-10)
    assert (there[0] - q).abs().max() > 0.1


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_the_step_map_is_symplectic_and_its_forward_and_reverse_derivatives_agree(name, method):
    eye, zero = torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64)
    omega = torch.cat((torch.cat((zero, eye), 1), torch.cat((-eye, zero), 1)))

    def step(z):
        return torch.cat(SYSTEMS[name].evolve(z[:2], z[2:], 0.1, 3, method))

    for q, p in zip(*start(name)):
        jacobian = torch.func.jacrev(step)(torch.cat((q, p)))
        torch.testing.assert_close(jacobian.T @ omega @ jacobian, omega, rtol=0, atol=1e-12)
        assert (jacobian - torch.eye(4, dtype=F64)).abs().max() > 0.1
        tangent = torch.randn(4, dtype=F64)
        _, forward = torch.func.jvp(step, (torch.cat((q, p)),), (tangent,))
        torch.testing.assert_close(forward, jacobian @ tangent, rtol=0, atol=1e-12)


def test_leapfrog_energy_error_stays_bounded_over_1e5_steps():
    # Rows: three oscillators and three pendulums of growing amplitude; the last is near the separatrix.
    linear = tensor(1, 1, 1, 0, 0, 0)[:, None]
    pendular = 1 - linear
    q = tensor(0.1, 1.0, 3.0, 0.1, 1.5, 3.0)[:, None]
    p = torch.zeros_like(q)
    dt = 0.05

    def energy(q, p):
        return (0.5 * p * p + linear * 0.5 * q * q + pendular * (1 - torch.cos(q)))[:, 0]

    first = energy(q, p)
    errors = []
    with torch.no_grad():
        for _ in range(1000):
            q, p = symplectic.leapfrog(lambda p: p, lambda q: -(linear * q + pendular * torch.sin(q)), q, p, dt, 100)
            errors.append((energy(q, p) - first).abs())
    errors = torch.stack(errors)
    assert (errors.amax(0) <= dt**2 * first).all()
    assert (errors[-200:].amax(0) <= 1.1 * errors[:200].amax(0)).all()
    assert (errors.amax(0) > 1e-3 * dt**2 * first).all()


def test_the_closed_form_force_and_the_differentiated_one_give_one_orbit():
    q, p = kepler_start([0.0, 0.3, 0.6])
    for name in ("leapfrog", "yoshida4"):
        want = getattr(symplectic, name)(lambda p: p, lambda q: -q / q.norm(dim=-1, keepdim=True) ** 3, q, p, 0.05, 100)
        torch.testing.assert_close(KEPLER.evolve(q, p, 0.05, 100, name), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("method", "order"), [*zip(METHODS, (2, 4, 2))])
def test_observed_orders_on_kepler_and_the_oscillator(method, order):
    q, p = kepler_start([0.2])
    x, y = start("oscillator")
    want = torch.cat((x * math.cos(2) + y * math.sin(2), y * math.cos(2) - x * math.sin(2)))
    closed, exact = [], []
    for n in (100, 200):
        q1, p1 = KEPLER.evolve(q, p, 2 * math.pi / n, n, method)
        closed.append(float((q1 - q).norm() + (p1 - p).norm()))
        exact.append(float((torch.cat(OSCILLATOR.evolve(x, y, 8 / n, n // 4, method)) - want).norm()))
    assert math.log2(closed[0] / closed[1]) == pytest.approx(order, abs=0.2)
    assert math.log2(exact[0] / exact[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_angular_momentum_is_conserved_along_a_trajectory(method):
    q, p = KEPLER.trajectory(*kepler_start([0.0, 0.3, 0.6]), 0.02, 300, method, every=50)
    assert q.shape == p.shape == (7, 3, 2)
    torch.testing.assert_close(KEPLER.evolve(q[0], p[0], 0.02, 0, method), kepler_start([0.0, 0.3, 0.6]))
    torch.testing.assert_close(KEPLER.evolve(q[0], p[0], 0.02, 50, method), (q[1], p[1]), rtol=0, atol=1e-13)
    angular = q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]
    torch.testing.assert_close(angular, angular[:1].expand_as(angular), rtol=0, atol=1e-12)


def test_geodesics_of_the_half_plane_are_followed_and_keep_their_energy():
    q, p = tensor([0.0, 1.0]), tensor([1.0, 0.0])
    want = tensor([math.tanh(1.0), 1 / math.cosh(1.0)])
    position, energy = [], []
    for n in (50, 100):
        qs, ps = HALF_PLANE.trajectory(q, p, 1 / n, n, "implicit_midpoint")
        position.append(float((qs[-1] - want).norm()))
        energy.append(float((HALF_PLANE.compute_hamiltonian(qs, ps) - 0.5).abs().max()))
        torch.testing.assert_close(ps[..., 0], torch.ones_like(ps[..., 0]), rtol=0, atol=1e-13)
    assert position[1] < 1e-4 and energy[1] < 1e-4
    assert math.log2(position[0] / position[1]) == pytest.approx(2, abs=0.1)
    assert math.log2(energy[0] / energy[1]) == pytest.approx(2, abs=0.1)


@st.composite
def polynomials(draw):
    """A polynomial of degree ≤ 3 in (q1, q2, p1, p2), as a function of (state, momentum)."""
    monomial = st.tuples(st.integers(-3, 3), st.lists(st.integers(0, 3), max_size=3))
    terms = draw(st.lists(monomial, min_size=1, max_size=4))

    def f(q, p):
        z = torch.cat((q, p), -1)
        total = 0 * z[..., 0]
        for coefficient, factors in terms:
            term = coefficient * torch.ones_like(z[..., 0])
            for i in factors:
                term = term * z[..., i]
            total = total + term
        return total

    return f


POINTS = st.lists(st.floats(-1.5, 1.5), min_size=12, max_size=12).map(
    lambda x: tuple(torch.tensor(x, dtype=F64).view(2, 3, 2))
)


@given(polynomials(), polynomials(), polynomials(), POINTS)
def test_the_bracket_is_antisymmetric_a_derivation_and_obeys_jacobi(f, g, h, point):
    bracket = OSCILLATOR.poisson_bracket
    torch.testing.assert_close(bracket(f, g, *point), -bracket(g, f, *point), rtol=0, atol=1e-10)
    leibniz = f(*point) * bracket(g, h, *point) + bracket(f, h, *point) * g(*point)
    product = bracket(lambda q, p: f(q, p) * g(q, p), h, *point)
    torch.testing.assert_close(product, leibniz, rtol=1e-11, atol=1e-10)
    cycle = [bracket(bracket(a, b), c, *point) for a, b, c in ((f, g, h), (g, h, f), (h, f, g))]
    size = 1 + max(x.abs().max() for x in cycle)
    assert (sum(cycle).abs() <= 1e-12 * size).all()


@given(polynomials(), polynomials(), POINTS)
def test_the_bracket_is_the_form_on_hamiltonian_fields_and_the_rate_along_the_flow(f, h, point):
    fields = [HamiltonianSystem(x).hamilton_equations(*point) for x in (f, h)]
    bracket = OSCILLATOR.poisson_bracket(f, h, *point)
    for vectors in (tuple(fields), tuple(torch.cat(x, -1) for x in fields)):
        torch.testing.assert_close(OSCILLATOR.symplectic_form(vectors), bracket, rtol=1e-12, atol=1e-12)
    _, rate = torch.func.jvp(f, point, fields[1])
    torch.testing.assert_close(rate, bracket, rtol=1e-11, atol=1e-11)


def test_brackets_and_equations_of_the_textbook():
    q, p = torch.randn(2, 5, 3, dtype=F64)
    torch.testing.assert_close(PENDULUM.hamilton_equations(q, p), (p, -torch.sin(q)))
    bracket = OSCILLATOR.poisson_bracket

    def angular(i):
        return lambda q, p: torch.linalg.cross(q, p)[..., i]

    for i in range(3):
        for j in range(3):
            value = bracket(lambda q, p, i=i: q[..., i], lambda q, p, j=j: p[..., j], q, p)
            torch.testing.assert_close(value, torch.full((5,), float(i == j), dtype=F64))
        j, k = (i + 1) % 3, (i + 2) % 3
        torch.testing.assert_close(bracket(angular(i), angular(j), q, p), angular(k)(q, p))


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_of_evolution_in_point_step_and_parameter(method):
    q, p = (x.requires_grad_() for x in start("kepler"))
    dt = tensor(0.1, 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: KEPLER.evolve(*a, 2, method), (q, p, dt))
    stiff = tensor(1.3).requires_grad_()
    system = HamiltonianSystem(lambda q, p: half_square(p) + stiff * half_square(q))
    assert torch.autograd.gradcheck(lambda _: system.evolve(*start("oscillator"), 0.1, 3, method), (stiff,))
    assert torch.autograd.gradgradcheck(lambda q, p: PENDULUM.evolve(q, p, 0.1, 1, method), (q[:1], p[:1]))


def test_gradcheck_of_the_algebra():
    q, p, u, v = (torch.randn(3, 2, dtype=F64).requires_grad_() for _ in range(4))
    system = HamiltonianSystem(lambda q, p: (q.sin() * p.exp()).sum(-1))

    check = torch.autograd.gradcheck
    assert check(system.compute_hamiltonian, (q, p))
    assert check(system.hamilton_equations, (q, p))
    assert check(system.poisson_bracket(system.hamiltonian, lambda q, p: (q * q * p).sum(-1)), (q, p))
    assert check(lambda u, v: system.symplectic_form((u, v)), (u, v))


def test_the_implicit_step_has_its_derivative_at_an_equilibrium_too():
    # The fixed point is found at once there; the derivative must not stop after one term of its series.
    jacobian = torch.func.jacrev(lambda z: torch.cat(OSCILLATOR.evolve(z[:1], z[1:], 0.5, 1, "implicit_midpoint")))
    half = tensor([0.0, 0.25], [-0.25, 0.0])
    eye = torch.eye(2, dtype=F64)
    want = torch.linalg.solve(eye - half, eye + half)
    torch.testing.assert_close(jacobian(torch.zeros(2, dtype=F64)), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_float32_stays_and_large_batches_pass(method):
    q, p = torch.randn(2, 10_000, 64, dtype=torch.float32)
    q1, p1 = PENDULUM.evolve(q, p, 0.1, 2, method)
    assert q1.dtype == p1.dtype == torch.float32 and q1.shape == q.shape
    want = PENDULUM.evolve(q[:3].double(), p[:3].double(), 0.1, 2, method)
    torch.testing.assert_close((q1[:3].double(), p1[:3].double()), want, rtol=0, atol=1e-5)
    assert not q1.requires_grad
    empty = PENDULUM.evolve(q[:0], p[:0], 0.1, 2, method)
    assert empty[0].shape == (0, 64)


def test_points_that_do_not_fit_are_refused():
    grid, whole = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.long)
    for point in ((grid, torch.zeros(2)), (grid, grid.double()), (whole, whole), (torch.zeros(()), torch.zeros(()))):
        for call in (OSCILLATOR.compute_hamiltonian, OSCILLATOR.hamilton_equations):
            with pytest.raises(symplectic.PhaseShapeError):
                call(*point)
        for method in METHODS:
            with pytest.raises(symplectic.PhaseShapeError):
                OSCILLATOR.evolve(*point, 0.1, 1, method)


def test_other_shapes_that_do_not_fit_are_refused():
    q, p = start("oscillator")
    energy = OSCILLATOR.hamiltonian
    for message, call in (
        ("one value each", lambda: HamiltonianSystem(lambda q, p: q * p).compute_hamiltonian(q, p)),
        ("one phase space", lambda: OSCILLATOR.symplectic_form((torch.zeros(4), torch.zeros(6)))),
        ("2d", lambda: OSCILLATOR.symplectic_form((torch.zeros(3), torch.zeros(3)))),
        ("give both", lambda: OSCILLATOR.poisson_bracket(energy, energy, q)),
        ("dt", lambda: OSCILLATOR.evolve(q, p, torch.ones(5), 1)),
    ):
        with pytest.raises(symplectic.PhaseShapeError, match=message):
            call()


def test_what_a_method_cannot_do_is_refused():
    q, p = start("half-plane")
    assert issubclass(symplectic.HamiltonianError, GeometryError)
    for method in METHODS:
        for dt in (math.nan, math.inf):
            with pytest.raises(symplectic.HamiltonianError, match="finite"):
                OSCILLATOR.evolve(q, p, dt, 1, method)
        with pytest.raises(symplectic.PhaseShapeError):
            OSCILLATOR.evolve(q[..., :0], p[..., :0], 0.1, 1, method)
    with pytest.raises(symplectic.PhaseShapeError, match="inverse_metric"):
        HamiltonianSystem.geodesic(lambda q: torch.eye(3, dtype=q.dtype)).compute_hamiltonian(q, p)
    with pytest.raises(symplectic.UnknownMethodError, match="leapfrog, yoshida4, implicit_midpoint"):
        OSCILLATOR.evolve(q, p, 0.1, 1, "euler")
    for steps in (-1, 1.5, True):
        with pytest.raises(symplectic.HamiltonianError, match="steps"):
            OSCILLATOR.evolve(q, p, 0.1, steps)
    for method in ("leapfrog", "yoshida4"):
        with pytest.raises(symplectic.NotSeparableError, match="implicit_midpoint"):
            HALF_PLANE.evolve(q, p, 0.1, 1, method)
        with pytest.raises(symplectic.NotSeparableError):
            HALF_PLANE.evolve(q, torch.zeros_like(p), 0.1, 1, method)


def test_an_implicit_step_that_is_not_solved_is_an_error():
    q, p = start("oscillator")
    with pytest.raises(symplectic.ConvergenceError, match="smaller dt") as caught:
        OSCILLATOR.evolve(q, p, 3.0, 1, "implicit_midpoint")
    assert caught.value.residual > 1e-3 and caught.value.iterations == 100
    with pytest.raises(symplectic.ConvergenceError):
        symplectic.implicit_midpoint(lambda q, p: (p / 0, q), q, p, 0.1)
    zero = torch.zeros(1, 1, dtype=F64, requires_grad=True)
    with pytest.raises(symplectic.ConvergenceError, match="derivative"):
        OSCILLATOR.evolve(zero, zero, 3.0, 1, "implicit_midpoint")


def bump(x, centre):
    """Smooth, and exactly 0 beyond 1/2 from the centre."""
    inside = (x - centre).abs() < 0.5
    near = torch.where(inside, x - centre, torch.zeros_like(x))
    return torch.where(inside, (-1 / (0.25 - near * near)).exp(), torch.zeros_like(x))


@pytest.mark.parametrize("method", ["leapfrog", "yoshida4"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("couple", [lambda q, p: bump(q, 2.0) * p * p, lambda q, p: bump(p, -1.5) * q], ids="qp")
def test_a_hamiltonian_that_mixes_elsewhere_is_refused_when_it_gets_there(couple, method, dtype):
    def energy(q, p):
        return (0.5 * q * q + 0.5 * p * p + 3 * couple(q, p)).sum(-1)

    system = HamiltonianSystem(energy)
    q, p = torch.tensor([[0.0], [0.0]], dtype=dtype), torch.tensor([[0.3], [2.0]], dtype=dtype)
    # The first circle has the radius 0.3, and no coupling; the second comes to q = 2 and to p = −2.
    system.evolve(q[:1], p[:1], 0.05, 60, method)
    system.evolve(q, p, 0.05, 12, method)
    for act in (system.evolve, system.trajectory):
        with pytest.raises(symplectic.NotSeparableError, match="on the way, at leapfrog"):
            act(q, p, 0.05, 130, method)


def test_a_sum_in_disguise_is_separable_along_the_whole_way():
    """log(e^T e^V) and a product of exponentials are sums, whose gradients are rounded otherwise at each point."""
    system = HamiltonianSystem(lambda q, p: (half_square(p).exp() * half_square(q).exp()).log())
    for dtype in (torch.float32, F64):
        q, p = torch.tensor([1.0, -2.0], dtype=dtype), torch.tensor([0.5, 1.0], dtype=dtype)
        moved = system.evolve(q, p, 0.02, 200)
        exact = OSCILLATOR.evolve(q.to(F64), p.to(F64), 0.02, 200)
        room = 1e-12 if dtype == F64 else 1e-4
        torch.testing.assert_close([x.to(F64) for x in moved], list(exact), rtol=0, atol=room)


def test_the_watch_changes_neither_values_nor_gradients():
    q, p = start("pendulum")
    parts = HamiltonianSystem.separable(half_square, lambda q: (1 - torch.cos(q)).sum(-1))
    results = []
    for system in (PENDULUM, parts):
        leaves = q.clone().requires_grad_(), p.clone().requires_grad_()
        end = system.evolve(*leaves, 0.1, 20, "yoshida4")
        results.append((*end, *torch.autograd.grad(end[0].sum() + end[1].square().sum(), leaves)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-13)
