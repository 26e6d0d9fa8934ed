"""Renormalisation maps: finitely many couplings to those of the coarser system. Those known in closed form, and one of
functions, cut to polynomials.

Sources: Nelson, Fisher, Annals of Physics 91 (1975), for the Ising chain; Migdal, Sov. Phys. JETP 42 (1975), and
Kadanoff, Annals of Physics 100 (1976), for bonds that are moved; Feigenbaum, J. Stat. Phys. 21 (1979), for the doubling
operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aatc.passes.analysis.scale.coarse_graining import ScaleError, whole_number


@dataclass(frozen=True)
class RenormalizationMap:
    """``function`` takes couplings (d,), float64, to those of the system seen ``factor`` times coarser; it is written
    with torch, so that it has a Jacobian.

    ``couplings`` names them, ``domain`` holds the (least, largest) of each that fixed points are sought within, ()
    where none are known. ``name`` and ``parameters`` say which of the maps of this module it is, "" for others.
    """

    function: Callable[[Tensor], Tensor]
    factor: float = 2.0
    couplings: tuple[str, ...] = ("x",)
    domain: tuple[tuple[float, float], ...] = ()
    name: str = ""
    parameters: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.function) or not 1 < self.factor < float("inf"):
            raise ScaleError(f"a map is a function, and coarser by a factor above 1, not by {self.factor!r}")
        if not self.couplings or (self.domain and len(self.domain) != len(self.couplings)):
            raise ScaleError(f"{len(self.couplings)} couplings have a domain of {len(self.domain)} intervals")
        if any(not -float("inf") < low < high < float("inf") for low, high in self.domain):
            raise ScaleError(f"{self.domain} are no finite intervals")

    def __call__(self, couplings: Any) -> Tensor:
        """The couplings (d,) one factor coarser. Raises `ScaleError`, also where they are not finite any more."""
        x = point_of(self, couplings)
        image = self.image(x)
        if not bool(image.detach().isfinite().all()):
            raise ScaleError(f"the map leaves the finite numbers at {x.tolist()}", hint="begin elsewhere")
        return image

    def image(self, x: Tensor) -> Tensor:
        """The same of a tensor (d,), which may leave the finite numbers. Raises `ScaleError` for another shape."""
        image: Any = self.function(x)
        if not isinstance(image, Tensor) or image.shape != x.shape:
            shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ScaleError(f"the map gives {shape} for couplings {tuple(x.shape)}", hint="give and take tensors (d,)")
        result: Tensor = image.to(torch.float64)
        return result


def point_of(renormalization: RenormalizationMap, couplings: Any) -> Tensor:
    """``couplings`` as a tensor (d,), float64. Raises `ScaleError`."""
    try:
        x = torch.as_tensor(couplings, dtype=torch.float64).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise ScaleError(f"couplings of type {type(couplings).__name__} are no numbers: {cause}") from cause
    if len(x) != len(renormalization.couplings) or not bool(x.detach().isfinite().all()):
        raise ScaleError(
            f"couplings {', '.join(renormalization.couplings)} are {len(renormalization.couplings)} finite numbers, "
            f"not {x.tolist()}"
        )
    return x


def ising_chain(factor: int = 2) -> RenormalizationMap:
    """The Ising chain without a field, of whose spins every ``factor``-th stays: t′ = tᵇ of t = tanh K. K = 0 and K = ∞
    are t = 0 and 1."""
    b = whole_number("the factor", factor)
    return RenormalizationMap(lambda t: t**b, b, ("tanh K",), ((0.0, 1.0),), "ising_chain", (b,))


def ising_chain_in_field() -> RenormalizationMap:
    """The Ising chain in a field h, every second spin of which stays: of x = e^{−4K} and y = e^{−2h},
    x′ = x(1+y)²/((x+y)(1+xy)), y′ = y(x+y)/(1+xy). (0, 1) is zero temperature; x = 1, no coupling, is a line of fixed
    points."""

    def function(z: Tensor) -> Tensor:
        x, y = z
        return torch.stack([x * (1 + y) ** 2 / ((x + y) * (1 + x * y)), y * (x + y) / (1 + x * y)])

    return RenormalizationMap(function, 2.0, ("exp(-4K)", "exp(-2h)"), ((0.0, 1.0), (0.1, 1.0)), "ising_chain_in_field")


def migdal_kadanoff(dimension: int = 2, factor: int = 2) -> RenormalizationMap:
    """The Ising model in so many dimensions, b^{d−1} bonds moved together and every ``factor``-th spin kept:
    tanh K′ = tanhᵇ(b^{d−1}K). An approximation of the lattice, and exact on a hierarchical one."""
    b, d = whole_number("the factor", factor), whole_number("the dimension", dimension)
    return RenormalizationMap(
        lambda k: torch.atanh(torch.tanh(b ** (d - 1) * k) ** b), b, ("K",), ((0.0, 1.0),), "migdal_kadanoff", (d, b)
    )


def doubling_operator(degree: int = 10) -> RenormalizationMap:
    """Feigenbaum's operator (Tg)(x) = g(g(g(1)x))/g(1) on even polynomials g = 1 + u Σ_{k<degree} c_k T_k(2u − 1),
    u = x², with Chebyshev's polynomials T_k: Tg is fitted at as many Chebyshev points of u. At its fixed point 1/g(1)
    is the scale α, and the eigenvalue of the Jacobian above 1 is δ. Raises `ScaleError`."""
    m = whole_number("the degree", degree)
    if m < 5:
        raise ScaleError(f"polynomials of {m} terms have fixed points that functions have not", hint="take 5 or more")
    angles = torch.as_tensor(np.pi * (np.arange(m) + 0.5) / m)
    squares = (1 + torch.cos(angles)) / 2
    fit = torch.cos(torch.arange(m)[:, None] * angles) * (2 / m)
    fit[0] /= 2

    def function(c: Tensor) -> Tensor:
        def g(x: Tensor) -> Tensor:
            u = x * x
            last, past = torch.zeros_like(u), torch.zeros_like(u)
            for value in reversed(c[1:].unbind()):  # Clenshaw's sum
                last, past = value + 2 * (2 * u - 1) * last - past, last
            return 1 + u * (c[0] + (2 * u - 1) * last - past)

        unit = 1 + c.sum()
        return fit @ ((g(g(unit * squares.sqrt())) / unit - 1) / squares)

    names = tuple(f"c{k}" for k in range(m))
    return RenormalizationMap(function, 2.0, names, ((-3.0, 0.0), *[(-1.0, 1.0)] * (m - 1)), "doubling_operator", (m,))


@dataclass(frozen=True, eq=False)
class RGFlow:
    """``couplings`` (k, d) at the ``scales`` (k,), which are in units of the finest. ``names`` of the couplings;
    ``map`` takes one row to the next, or is None where the flow is one of observables of a chain."""

    scales: np.ndarray
    couplings: np.ndarray
    names: tuple[str, ...]
    map: RenormalizationMap | None = None


def trajectory(renormalization: RenormalizationMap, start: Sequence[float] | Any, steps: int) -> RGFlow:
    """``start`` (d,) and what ``steps`` steps make of it. Raises `ScaleError`."""
    points = [point_of(renormalization, start).detach()]
    with torch.no_grad():
        for _ in range(whole_number("the number of steps", steps)):
            points.append(renormalization(points[-1]))
    scales = renormalization.factor ** np.arange(len(points), dtype=np.float64)
    return RGFlow(scales, torch.stack(points).numpy(), renormalization.couplings, renormalization)
