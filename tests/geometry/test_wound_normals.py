"""Normal distributions on spheres at every scale, and in every way of running, against sums in mpmath."""

import math

import mpmath as mp
import pytest
import torch

from aatc.geometry import CutLocusError, Hyperboloid, NotOnManifoldError, PoincareBall, Sphere, WrappedNormal
from aatc.geometry.manifolds.lattice_sum import log_lattice_sum


def by_hand(a, epsilon, power):
    """The sum itself, term by term, with thirty digits."""
    with mp.workdps(30):
        most = int(mp.ceil((mp.sqrt(power) + 13) / mp.sqrt(2 * mp.mpf(epsilon)))) + 2
        k = range(-most, most + 1)
        return float(mp.log(mp.fsum(abs(j + mp.mpf(a)) ** power * mp.exp(-epsilon * (j + mp.mpf(a)) ** 2) for j in k)))


@pytest.mark.parametrize("power", [0, 1, 2, 3, 7, 20, 39, 41, 63])
def test_lattice_sums_of_any_width(power):
    for width in (0.05, 0.7, 2.0, 2.06, 2.08, 5.0, 40.0):
        epsilon = torch.tensor(0.5 / width**2, dtype=torch.float64)
        for a in (1e-3, 0.2, 0.31, 0.5):
            found = float(log_lattice_sum(torch.tensor(a, dtype=torch.float64), epsilon, power))
            want = by_hand(a, float(epsilon), power)
            assert abs(found - want) <= 2e-14 * (1 + abs(want)), (width, a, found, want)


def test_lattice_sums_have_derivatives_on_both_sides_of_their_forms():
    a = torch.tensor([0.1, 0.3, 0.45], dtype=torch.float64, requires_grad=True)
    epsilon = torch.tensor([0.05, 0.4, 3.0], dtype=torch.float64, requires_grad=True)
    for power in (0, 1, 2, 5):
        f = lambda x, e, p=power: log_lattice_sum(x, e, p)  # noqa: E731
        assert torch.autograd.gradcheck(f, (a, epsilon))
        assert torch.autograd.gradgradcheck(f, (a, epsilon))


@pytest.mark.parametrize("sigma", [0.3, 5.0, 60.0, 1e4])
def test_densities_on_the_circle_are_wound_normals_up_to_the_antipode(sigma):
    radius = 1.5
    mean = radius * torch.tensor([0.6, -0.8], dtype=torch.float64)
    normal = WrappedNormal(Sphere(radius), mean, sigma)
    start = math.atan2(-0.8, 0.6)
    t = torch.linspace(-3, 3, 7, dtype=torch.float64)
    t = torch.cat([t, torch.tensor([math.pi], dtype=torch.float64)])
    x = radius * torch.stack([(start + t).cos(), (start + t).sin()], -1)
    found = normal.log_prob(x)
    turn = 2 * math.pi * radius
    for angle, value in zip(t.tolist(), found.tolist(), strict=True):
        k = torch.arange(-int(10 * sigma / turn + 3), int(10 * sigma / turn + 4), dtype=torch.float64)
        want = (-((radius * angle + turn * k) ** 2) / (2 * sigma**2)).logsumexp(0) - math.log(
            sigma * math.sqrt(2 * math.pi)
        )
        assert abs(value - float(want)) <= 1e-11
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(normal.log_prob(x).sum(), x)
    assert slope.isfinite().all()
    assert (slope[-1].abs() < 1e-6).all()  # the antipode is as near one way as the other


@pytest.mark.parametrize("sigma", [1.0, 12.0, 14.0, 300.0])
@pytest.mark.parametrize("n", [2, 3, 30])
def test_densities_on_spheres_add_up_every_turn(n, sigma):
    generator = torch.Generator().manual_seed(0)
    sphere = Sphere(2.0)
    mean, x = (sphere.projection(torch.randn(n + 1, generator=generator, dtype=torch.float64)) for _ in "ab")
    found = float(WrappedNormal(sphere, mean, sigma).log_prob(x))
    angle = math.acos(float(mean @ x) / 4)
    total = by_hand(angle / (2 * math.pi), (4 * math.pi / sigma) ** 2 / 2, n - 1)
    want = total + (n - 1) * math.log(2 * math.pi / math.sin(angle)) - n * math.log(sigma * math.sqrt(2 * math.pi))
    assert abs(found - want) <= 1e-11 * (1 + abs(want))


CASES = [
    (Sphere(1.5), [1.5, 0.0], [0.0, 1.5]),
    (Sphere(), [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]),
    (PoincareBall(), [0.1, 0.2], [-0.5, 0.1]),
    (Hyperboloid(), [1.0, 0.0, 0.0], [math.sqrt(2), 1.0, 0.0]),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_densities_run_under_vmap_and_in_one_graph(case):
    manifold, mean, x = CASES[case]
    mean, x = (torch.tensor([p, p], dtype=torch.float64) for p in (mean, x))
    scale = torch.tensor([[0.5], [20.0]], dtype=torch.float64)
    f = lambda m, s, p: WrappedNormal(manifold, m, s).log_prob(p)  # noqa: E731
    want = f(mean, scale, x)
    torch.testing.assert_close(torch.func.vmap(f)(mean, scale, x), want)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="eager")(mean, scale, x), want)
    torch._dynamo.reset()
    drawn = torch.func.vmap(lambda m, s: WrappedNormal(manifold, m, s).rsample(), randomness="different")(
        mean, scale / 20
    )
    assert manifold.belongs(drawn).all()


@pytest.mark.parametrize("case", range(len(CASES)))
def test_empty_batches_and_dtypes(case):
    manifold, mean, x = CASES[case]
    mean, x = torch.tensor(mean), torch.tensor(x)
    none = WrappedNormal(manifold, mean.expand(0, -1), 0.5)
    assert none.log_prob(x).shape == (0,) and none.sample((3,)).shape == (3, 0, *mean.shape)
    number = torch.tensor([1.5 if case == 0 else 1.0], dtype=torch.float64)
    for learned in (manifold, type(manifold)(number), type(manifold)(number[0])):
        for scale in (0.5, torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)):
            normal = WrappedNormal(learned, mean, scale)
            assert normal.sample().dtype == torch.float32 and normal.log_prob(x).dtype == torch.float32
            torch.testing.assert_close(normal.log_prob(x), WrappedNormal(manifold, mean, 0.5).log_prob(x))
            assert normal.log_prob(x.double()).dtype == torch.float64


def test_far_points_of_hyperbolic_space_have_their_density_in_single_precision():
    space, r = Hyperboloid(), 80.0
    x = space.exp(torch.tensor([1.0, 0, 0], dtype=torch.float64), torch.tensor([0, r, 0], dtype=torch.float64)).float()
    found = WrappedNormal(space, torch.tensor([1.0, 0, 0]), 40.0).log_prob(x)
    want = -2 - 2 * math.log(40) - math.log(2 * math.pi) - (r - math.log(2 * r))
    assert abs(float(found) - want) < 1e-4
    big = WrappedNormal(space, torch.tensor([1.0, 0, 0]).double(), 300.0)._log_sinhc(torch.tensor([1e4]).double())
    assert abs(float(big) - (1e4 - math.log(2e4))) < 1e-9


def test_points_off_the_sphere_and_antipodes_of_higher_ones_are_typed_errors():
    for n in (2, 3):
        mean = torch.eye(n)[0]
        for bad in (2 * mean, math.nan * mean):
            with pytest.raises(NotOnManifoldError):
                WrappedNormal(Sphere(), mean).log_prob(bad)
    with pytest.raises(CutLocusError):
        WrappedNormal(Sphere(), mean).log_prob(-mean)
