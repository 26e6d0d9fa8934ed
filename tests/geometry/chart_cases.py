"""Charts that the tests of metric fields share, each with points inside it."""

import torch

from aatc.geometry.manifolds.riemannian import RiemannianStructure

F64 = torch.float64


def warped(x):
    """A metric without symmetry: I + h hᵀ, with h of tanh, sin and exp of the coordinates."""
    n = x.shape[-1]
    k = torch.arange(n, dtype=x.dtype)
    mix = torch.cos(1.3 * k[:, None, None] + 0.7 * k[:, None] - 0.4 * k**2)
    h = (
        0.4 * torch.einsum("aij,...a->...ij", mix, torch.tanh(x))
        + 0.2 * torch.sin(x)[..., None] * (0.3 * x).exp()[..., None, :]
    )
    return torch.eye(n, dtype=x.dtype) + h @ h.mT


WARPED = RiemannianStructure(warped)
CHARTS = {
    "euclidean": RiemannianStructure.euclidean(3),
    "simplex": RiemannianStructure.simplex(3),
    "sphere": RiemannianStructure.sphere(1.7),
    "stereographic": RiemannianStructure.stereographic(3, 0.6),
    "half-plane": RiemannianStructure.half_plane(),
    "ball": RiemannianStructure.poincare_ball(3, 0.8),
    "conformal": RiemannianStructure.conformal(lambda x: 1.5 + torch.sin(x).sum(-1).square(), dim=3),
}
CURVATURES = {
    "euclidean": 0,
    "simplex": 0.25,
    "sphere": 1 / 1.7**2,
    "stereographic": 0.6,
    "half-plane": -1,
    "ball": -0.8,
}


def points(name, seed, count=2):
    """``count`` points of a chart, drawn by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    structure = CHARTS.get(name, WARPED)
    n = structure.dim or 3
    u = torch.rand(count, n, generator=generator, dtype=F64)
    if name == "simplex":
        return torch.cat((u[:, :1], 4 * u), -1).softmax(-1)[:, 1:]
    if name in ("sphere", "half-plane"):
        return 0.4 + 1.3 * u
    return 1.1 * (u - 0.5)


def vectors(seed, count, n, among=2):
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(count, among, n, generator=generator, dtype=F64).unbind(0)
