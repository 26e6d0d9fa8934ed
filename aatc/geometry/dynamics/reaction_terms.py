"""Reaction terms with closed-form steady states: Schnakenberg, Gierer–Meinhardt, Gray–Scott, FitzHugh–Nagumo.

A reaction term takes concentrations (species, ...), the species first, and gives their rates in the same shape, point
by point. Parameters are numbers or tensors without axes, and rates are differentiable in them.

Sources: Murray, Mathematical Biology II, chapter 2 (Schnakenberg, Gierer–Meinhardt); Pearson, Complex patterns in a
simple system, Science 261 (1993) 189 (Gray–Scott); FitzHugh, Biophysical Journal 1 (1961) 445.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.dynamics.reaction_diffusion import PatternError

Parameter = float | Tensor


def _states(*states: tuple[Parameter, Parameter]) -> Tensor:
    """Steady states as a tensor (count, 2)."""
    rows = [torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in state]) for state in states]
    return torch.stack(rows) if rows else torch.empty(0, 2, dtype=torch.float64)


def _require(condition: bool | Tensor, term: object, need: str) -> None:
    if not bool(condition):
        raise PatternError(f"{term} has no closed-form steady states: need {need}")


@dataclass(frozen=True)
class Schnakenberg:
    """u' = a − u + u²v, v' = b − u²v, with a + b > 0. Species: activator u, substrate v."""

    a: Parameter = 0.1
    b: Parameter = 0.9

    def __call__(self, fields: Tensor) -> Tensor:
        u, v = fields
        autocatalysis = u * u * v
        return torch.stack((self.a - u + autocatalysis, self.b - autocatalysis))

    def steady_states(self) -> Tensor:
        """The one steady state (a + b, b/(a + b)²), as (1, 2) in float64. Raises `PatternError` unless a + b > 0."""
        total = self.a + self.b
        _require(total > 0, self, "a + b > 0")
        return _states((total, self.b / total**2))


@dataclass(frozen=True)
class GiererMeinhardt:
    """u' = a − bu + u²/v, v' = u² − v. Species: activator u, inhibitor v."""

    a: Parameter = 0.1
    b: Parameter = 1.0

    def __call__(self, fields: Tensor) -> Tensor:
        u, v = fields
        return torch.stack((self.a - self.b * u + u * u / v, u * u - v))

    def steady_states(self) -> Tensor:
        """The one steady state ((a + 1)/b, ((a + 1)/b)²), as (1, 2) in float64.

        Raises `PatternError` where b = 0 or a = −1.
        """
        _require(self.b != 0 and self.a != -1, self, "b ≠ 0 and a ≠ −1")
        activator = (self.a + 1) / self.b
        return _states((activator, activator**2))


@dataclass(frozen=True)
class GrayScott:
    """u' = −uv² + F(1 − u), v' = uv² − (F + k)v. Species: substrate u, catalyst v."""

    feed: Parameter = 0.04
    kill: Parameter = 0.06

    def __call__(self, fields: Tensor) -> Tensor:
        u, v = fields
        autocatalysis = u * v * v
        return torch.stack((self.feed * (1 - u) - autocatalysis, autocatalysis - (self.feed + self.kill) * v))

    def steady_states(self) -> Tensor:
        """(1, 0) and, where F > 4(F + k)², the two with u = ½(1 ∓ √(1 − 4(F + k)²/F)): (1, 2) or (3, 2), float64.

        Raises `PatternError` unless F > 0 and F + k > 0.
        """
        removal = self.feed + self.kill
        _require(self.feed > 0 and removal > 0, self, "feed > 0 and feed + kill > 0")
        discriminant = 1 - 4 * removal**2 / self.feed
        substrates: list[Parameter] = [1.0]
        if float(discriminant) > 0:
            substrates += [0.5 * (1 - discriminant**0.5), 0.5 * (1 + discriminant**0.5)]
        return _states(*[(u, self.feed * (1 - u) / removal) for u in substrates])


@dataclass(frozen=True)
class FitzHughNagumo:
    """u' = u − u³/3 − v + I, v' = ε(u + a − bv), with b > 0. Species: potential u, recovery v."""

    a: Parameter = 0.7
    b: Parameter = 0.8
    epsilon: Parameter = 0.08
    current: Parameter = 0.0

    def __call__(self, fields: Tensor) -> Tensor:
        u, v = fields
        return torch.stack((u - u**3 / 3 - v + self.current, self.epsilon * (u + self.a - self.b * v)))

    def steady_states(self) -> Tensor:
        """The real roots of u³ + 3(1/b − 1)u + 3(a/b − I) = 0 with v = (u + a)/b, ascending: (1 or 3, 2), float64.

        Raises `PatternError` unless b > 0.
        """
        _require(self.b > 0, self, "b > 0")
        p = torch.as_tensor(1 / self.b - 1, dtype=torch.float64)
        q = torch.as_tensor(1.5 * (self.a / self.b - self.current), dtype=torch.float64)
        discriminant = q * q + p**3
        if float(discriminant) < 0:
            # Next to a double root the quotient may round to just beyond ±1.
            angle = torch.acos((q / (p * (-p).sqrt())).clamp(-1, 1)) / 3
            roots = [2 * (-p).sqrt() * torch.cos(angle + 2 * math.pi * shift / 3) for shift in (1, 2, 0)]
        else:
            # The larger of the two cube roots, and −p over it; their sum cancels where p > 0, its other form does not.
            large = -torch.where(q >= 0, 1.0, -1.0) * (q.abs() + discriminant.sqrt()) ** (1 / 3)
            if float(p) > 0:
                roots = [-2 * q / (large * large + p + (p / large) ** 2)]
            else:
                roots = [large - p / large if float(large) else large]
        return _states(*[(u, (u + self.a) / self.b) for u in roots])


__all__ = ["FitzHughNagumo", "GiererMeinhardt", "GrayScott", "Schnakenberg"]
