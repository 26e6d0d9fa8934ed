"""Fixed points of renormalisation maps, and the exponents of the map near them.

Near x* = R(x*), R moves by its Jacobian; an eigenvalue λ at a factor b is the exponent y = log|λ|/log b: relevant where
y > 0, irrelevant where y < 0. Source: Cardy, Scaling and Renormalization in Statistical Physics, chapter 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aatc.passes.analysis.result import Result
from aatc.passes.analysis.scale.coarse_graining import ScaleError
from aatc.passes.analysis.scale.renormalization_map import RenormalizationMap, RGFlow, point_of
from aatc.passes.analysis.scale.verify_scale import witnessed

ITERATIONS = 60
#: |R(x) − x| relative to 1 + |x| at which Newton's steps are done, and distance below which points are one.
FIXED, APART = 1e-12, 1e-7
#: By how much |λ| may differ from 1 in a marginal direction, and the least singular value of 1 − R′ at a single point.
MARGINAL, SINGULAR = 1e-6, 1e-6
#: |λ| that is taken for 0: its logarithm would be one of rounding.
VANISHED = 1e-8
#: Starts that are drawn from a domain, at most, and the most points that are kept.
STARTS, POINTS = 81, 64
#: What differences of the map in place of its derivatives may be off by.
TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """``couplings`` x* (d,) and the map's ``jacobian`` (d, d) there; its ``eigenvalues`` (d,) by falling modulus, and
    ``exponents`` y = log|λ|/log b (d,), −∞ for λ = 0 (to 1e-8). ``kind``: "attractive" (all irrelevant), "repulsive"
    (all relevant), "saddle", or "marginal" where an |λ| is 1. ``isolated``: no eigenvalue is 1, so that there is no
    other fixed point nearby."""

    couplings: np.ndarray
    jacobian: np.ndarray
    eigenvalues: np.ndarray
    exponents: np.ndarray
    kind: str
    isolated: bool

    @property
    def relevant(self) -> int:
        """How many directions lead away."""
        return int((np.abs(self.eigenvalues) > 1 + MARGINAL).sum())

    @property
    def correlation_exponent(self) -> float:
        """ν = 1/y of the most relevant direction; infinite where none is."""
        top = float(self.exponents.max())
        return 1 / top if self.relevant else math.inf


def _ordered_eigenvalues(jacobian: np.ndarray) -> np.ndarray:
    """Eigenvalues by falling modulus, those of one modulus by real and imaginary part. Moduli are compared to 9
    digits."""
    values = np.linalg.eigvals(jacobian).astype(np.complex128)
    keys = np.round([-np.abs(values), -values.real, -values.imag], 9)
    ordered: np.ndarray = values[np.lexsort(keys[::-1])]
    return ordered


def _jacobian(renormalization: RenormalizationMap, x: Tensor) -> Tensor:
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        image = renormalization.image(at)
        if not image.requires_grad:
            raise ScaleError("the map's values do not depend on its couplings by torch's operations",
                             hint="write it with torch on the tensor that it is given")  # fmt: skip
        rows = [torch.autograd.grad(y, at, retain_graph=True)[0] for y in image.unbind()]
    return torch.stack(rows)


def _newton(renormalization: RenormalizationMap, start: Tensor) -> Tensor | None:
    """From one start to a zero of R(x) − x, steps halved while they lead farther away; None where they do not get
    there. Where 1 − R′ is singular, the shortest step is taken."""

    def gap(at: Tensor) -> Tensor | None:
        with torch.no_grad():
            image = renormalization.image(at)
        return image - at if bool(image.isfinite().all()) else None

    x, apart = start, gap(start)
    one = torch.eye(len(start), dtype=torch.float64)
    for _ in range(ITERATIONS):
        if apart is None:
            return None
        jacobian = _jacobian(renormalization, x)
        if not bool(jacobian.isfinite().all()):
            return None
        step = torch.linalg.lstsq(one - jacobian, apart, rcond=1e-7, driver="gelsd").solution
        if float(apart.norm()) <= FIXED * (1 + float(x.norm())) and float(step.norm()) <= APART / 100:
            return x
        length, moved, following = 1.0, x, None
        while length > 1e-6:
            moved = x + length * step
            following = gap(moved)
            if following is not None and float(following.norm()) < float(apart.norm()):
                break
            length /= 2
        else:
            return None
        x, apart = moved, following
    return None


def _starts(renormalization: RenormalizationMap, given: Any, flow: RGFlow | None) -> list[Tensor]:
    if given is not None:
        rows: Iterable[Any] = given
        return [point_of(renormalization, s) for s in rows]
    found = [] if flow is None else [torch.as_tensor(row) for row in flow.couplings]
    if renormalization.domain:
        d = len(renormalization.domain)
        count = int(STARTS ** (1 / d) + 1e-9)
        axes = [np.linspace(*box, count) if count > 2 else [sum(box) / 2] for box in renormalization.domain]
        found += [torch.tensor(p, dtype=torch.float64) for p in itertools.product(*axes)]
    if not found:
        raise ScaleError("nothing says where to look for fixed points", hint="give starts=, or the map a domain")
    return found


def _inside(x: Tensor, domain: tuple[tuple[float, float], ...]) -> bool:
    """Whether couplings lie in a domain, but for rounding; any do where none is known."""
    return all(low - APART <= v <= high + APART for v, (low, high) in zip(x.tolist(), domain))


def fixed_point_at(renormalization: RenormalizationMap, x: Tensor) -> FixedPoint:
    """What there is to say of a fixed point x* (d,)."""
    jacobian = _jacobian(renormalization, x).detach().numpy()
    values = _ordered_eigenvalues(jacobian)
    moduli = np.abs(values)
    vanished = moduli <= VANISHED
    exponents = np.where(vanished, -math.inf, np.log(np.where(vanished, 1, moduli)) / math.log(renormalization.factor))
    out = moduli > 1 + MARGINAL
    marginal = bool((np.abs(moduli - 1) <= MARGINAL).any())
    kind = "marginal" if marginal else "repulsive" if out.all() else "saddle" if out.any() else "attractive"
    least = float(np.linalg.svd(np.eye(len(x)) - jacobian, compute_uv=False)[-1])
    return FixedPoint(x.detach().numpy().copy(), jacobian, values, exponents, kind, least > SINGULAR)


def fixed_points(flow: RGFlow | RenormalizationMap, *, starts: Any = None) -> Result[tuple[FixedPoint, ...]]:
    """Points x = R(x) that Newton's steps find from ``starts`` (k, d), in the order of their couplings, P2: all are
    fixed, and there may be others.

    Without ``starts`` the search begins from a grid over the map's domain, its middle where couplings are many, and
    from the points of a flow; what lies outside of the domain is left out. Where fixed
    points form a line, those that were met on it are given, `isolated` False. Exponents of couplings other than those
    of the field theory differ where the change between them is not smooth: −1/log t and 1 − t at t = 1. Raises
    `ScaleError`, also for a flow of observables, which no map takes on.
    """
    renormalization = flow if isinstance(flow, RenormalizationMap) else flow.map
    if renormalization is None:
        raise ScaleError(
            "observables of a chain do not determine what they become: this flow has no map, and no fixed points",
            hint="give a RenormalizationMap",
        )
    met: list[Tensor] = []
    for start in _starts(renormalization, starts, None if isinstance(flow, RenormalizationMap) else flow):
        x = _newton(renormalization, start)
        inside = x is not None and (starts is not None or _inside(x, renormalization.domain))
        if x is not None and inside and all(float((x - y).norm()) > APART * (1 + float(x.norm())) for y in met):
            met.append(x + 0.0)
        if len(met) == POINTS:
            break
    places = sorted(met, key=lambda x: tuple(round(v, 6) for v in x.tolist()))
    value = tuple(fixed_point_at(renormalization, x) for x in places)
    gaps = [float((renormalization(p.couplings).detach() - torch.as_tensor(p.couplings)).norm()) for p in value]
    data = {
        "map": {n: getattr(renormalization, n) for n in ("function", "factor", "name", "parameters")},
        "points": tuple(p.couplings.copy() for p in value),
        "jacobians": tuple(p.jacobian.copy() for p in value),
    }
    given = ("points that were found from the starts given: there may be others",)
    return witnessed(value, "fixed_points", data, TOLERANCE, residual=max(gaps, default=0.0), assumptions=given)
