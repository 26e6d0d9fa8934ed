"""Pseudo-arclength continuation of equilibria of u' = f(u, μ): the curve, its tangents and what changes along it.

Curves live in (u, μ)-space with the norm |u|²/n + (μ/width)², n being the number of unknowns and width that of the
parameter range, so that a step means the same on a coarse and on a fine grid.

Sources: Keller, Numerical solution of bifurcation and nonlinear eigenvalue problems (1977); Allgower, Georg,
Introduction to Numerical Continuation Methods, chapters 2–6.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError

Field = Callable[[Tensor, Tensor], Tensor]


class ContinuationError(GeometryError):
    """Equilibria cannot be followed from what was given."""


@dataclass(frozen=True)
class ContinuationSettings:
    """Steps of the continuation, in the norm of the module: the first, the largest and the smallest one.

    ``max_points`` bounds each direction of a branch, ``max_state`` the largest entry of a state, ``max_branches`` the
    branches of a diagram.
    """

    step: float = 0.01
    max_step: float = 0.05
    min_step: float = 1e-7
    max_points: int = 1000
    max_state: float = 1e3
    max_branches: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.min_step <= self.step <= self.max_step < math.inf:
            raise ContinuationError(
                f"steps {self.min_step}, {self.step}, {self.max_step}: need 0 < min_step ≤ step ≤ max_step"
            )


@dataclass(frozen=True)
class Node:
    """A point (u, μ) of a branch with its unit tangent, f's derivative (n, n + 1) and the signs that events change."""

    z: Tensor
    tangent: Tensor
    derivative: Tensor
    eigenvalues: Tensor
    turning: bool
    orientation: bool
    unstable: int


@dataclass(frozen=True)
class Event:
    """What lies between two nodes, a "fold", a "branch" point, a "hopf" point or a "multiple" real eigenvalue that
    vanishes, and the nodes on either side."""

    kind: str
    before: Node
    after: Node


class EquilibriumCurve:
    """The zeros of ``field(state, parameter)``, states of ``shape``, in float64 vectors z = (u, μ)."""

    def __init__(self, field: Field, shape: torch.Size, parameter_range: tuple[float, float]) -> None:
        low, high = parameter_range
        self.low, self.high = float(low), float(high)
        self.size = math.prod(shape)
        self._field, self._shape = field, shape
        self.weights = torch.full((self.size + 1,), 1 / self.size, dtype=torch.float64)
        self.weights[-1] = 1 / (self.high - self.low) ** 2

    def value(self, z: Tensor) -> Tensor:
        """f(u, μ), (n,), of z = (u, μ), (n + 1,)."""
        return self._field(z[:-1].reshape(self._shape), z[-1]).reshape(-1)

    def linearise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f and its derivative (n, n + 1)."""

        def twice(x: Tensor) -> tuple[Tensor, Tensor]:
            value = self.value(x)
            return value, value

        derivative, value = torch.func.jacfwd(twice, has_aux=True)(z)
        return value, derivative

    def norm(self, difference: Tensor) -> float:
        return math.sqrt(float((self.weights * difference.square()).sum()))

    def correct(self, z: Tensor, row: Tensor, limit: float = math.inf) -> tuple[Tensor, int] | None:
        """Newton's method on f = 0 with row·z kept, and the number of its iterations; None where it fails."""
        target = row @ z
        start = z
        for iteration in range(1, 9):
            value, derivative = self.linearise(z)
            matrix = torch.cat((derivative, row[None]))
            right = torch.cat((value, (row @ z - target)[None]))
            step, info = torch.linalg.solve_ex(matrix, right)
            if int(info) or not bool(step.isfinite().all()):
                return None
            z = z - step
            if self.norm(z - start) > limit:
                return None
            if self.norm(step) <= 1e-10 * (1 + self.norm(z)):
                return z, iteration
        return None

    def node(self, z: Tensor, reference: Tensor) -> Node | None:
        """The node at ``z`` with the tangent that points along ``reference``; None where it has no one tangent."""
        _, derivative = self.linearise(z)
        matrix = torch.cat((derivative, (self.weights * reference)[None]))
        right = torch.zeros(self.size + 1, dtype=z.dtype)
        right[-1] = 1
        tangent, info = torch.linalg.solve_ex(matrix, right)
        if int(info) or not bool(tangent.isfinite().all()):
            return None
        tangent = tangent / self.norm(tangent)
        sign, _ = torch.linalg.slogdet(torch.cat((derivative, (self.weights * tangent)[None])))
        eigenvalues = torch.linalg.eigvals(derivative[:, :-1])
        return Node(
            z,
            tangent,
            derivative,
            eigenvalues[eigenvalues.real.argsort(descending=True)],
            turning=bool(tangent[-1] >= 0),
            orientation=bool(sign >= 0),
            unstable=int((eigenvalues.real > 0).sum()),
        )

    def start(self, state: Tensor, parameter: float) -> Node:
        """The node of the equilibrium at ``parameter`` that Newton's method finds from ``state``."""
        z = torch.cat((state.reshape(-1), torch.tensor([parameter], dtype=torch.float64)))
        row = torch.zeros_like(z)
        row[-1] = 1
        found = self.correct(z, row)
        if found is None:
            raise ContinuationError(
                f"Newton's method finds no equilibrium at parameter {parameter} from the given state (largest rate "
                f"{float(self.value(z).abs().max()):.3g}): give a state nearer to one"
            )
        _, derivative = self.linearise(found[0])
        kernel = torch.linalg.svd(derivative).Vh[-1]
        node = self.node(found[0], kernel * torch.where(kernel[-1] < 0, -1.0, 1.0))
        if node is None:
            raise ContinuationError(f"parameter {parameter} is a branch point itself: start beside it")
        return node

    def advance(self, node: Node, step: float) -> tuple[Node, int] | None:
        """The node at a distance ``step`` along the tangent, or None where Newton fails or the curve bends too fast."""
        found = self.correct(node.z + step * node.tangent, self.weights * node.tangent, step)
        if found is None:
            return None
        following = self.node(found[0], node.tangent)
        if following is None or float((self.weights * node.tangent * following.tangent).sum()) < 0.94:
            return None
        return following, found[1]

    def trace(self, node: Node, settings: ContinuationSettings) -> tuple[list[Node], str]:
        """The nodes after ``node`` in the direction of its tangent, and why they end.

        The reasons: "range" (the parameter left its range; the last node lies on the bound), "closed" (the curve came
        back), "state" (an entry beyond ``max_state``), "points" (``max_points``), "step" (below ``min_step``).
        """
        nodes, step, first = [node], settings.step, node
        while len(nodes) <= settings.max_points:
            done = self.advance(node, step)
            if done is None:
                step *= 0.47
                if step < settings.min_step:
                    return nodes[1:], "step"
                continue
            following, iterations = done
            if not self.low <= float(following.z[-1]) <= self.high:
                last = self._at_bound(node, following)
                return nodes[1:] + ([] if last is None else [last]), "range"
            nodes.append(following)
            if float(following.z[:-1].abs().max()) > settings.max_state:
                return nodes[1:], "state"
            back = self.norm(following.z - first.z)
            if len(nodes) > 3 and back < step and float((self.weights * first.tangent * following.tangent).sum()) > 0.9:
                return nodes[1:], "closed"
            node = following
            if iterations <= 4:
                step = min(1.3 * step, settings.max_step)
        return nodes[1:], "points"

    def _at_bound(self, inside: Node, outside: Node) -> Node | None:
        """The node where the curve leaves the range; None if that is ``inside`` itself."""
        bound = self.low if outside.z[-1] < self.low else self.high
        across = float(outside.z[-1] - inside.z[-1])
        fraction = (bound - float(inside.z[-1])) / across
        z = inside.z + fraction * (outside.z - inside.z)
        z[-1] = bound
        row = torch.zeros_like(z)
        row[-1] = 1
        found = self.correct(z, row, self.norm(outside.z - inside.z))
        if found is None or self.norm(found[0] - inside.z) < 1e-9:
            return None
        return self.node(found[0], inside.tangent)

    def events(self, before: Node, after: Node, width: float = 2e-3) -> Iterator[Event]:
        """The events between two neighbouring nodes, each isolated to within ``width``, in the curve's order.

        Folds change the sign of dμ/ds, branch points that of det(f_u, f_μ; tangent), Hopf points neither, but the
        number of unstable eigenvalues by two.
        """
        fold, branch = before.turning != after.turning, before.orientation != after.orientation
        change = abs(after.unstable - before.unstable)
        if not (fold or branch or change):
            return
        length = self.norm(after.z - before.z)
        real = change == 2 and not (fold or branch) and _crosses_as_real(before, after)
        simple = not real and change == (2 if not (fold or branch) else int(fold != branch))
        # A fold beside a branch point looks like the fold of the crossing branch at it: only distance tells them apart.
        width = min(width, 1e-5) if fold and branch else width
        if length > width or (length > 1e-9 and not simple):
            middle = self._between(before, after)
            if middle is not None:
                yield from self.events(before, middle, width)
                yield from self.events(middle, after, width)
                return
        if branch:
            yield Event("branch", before, after)
        elif fold:
            yield Event("fold", before, after)
        elif change == 2:
            yield Event("multiple" if real else "hopf", before, after)

    def _between(self, before: Node, after: Node) -> Node | None:
        row = self.weights * before.tangent
        length = float(row @ (after.z - before.z))
        for fraction in (0.5, 0.43, 0.57):
            guess = before.z + fraction * (after.z - before.z)
            # The same arclength row as the step itself, so that the middle lies on the same stretch of the curve.
            guess = guess + (fraction * length - float(row @ (guess - before.z))) * before.tangent
            found = self.correct(guess, row, length)
            middle = None if found is None else self.node(found[0], before.tangent)
            if middle is not None:
                return middle
        return None


def crossing_order(values: Tensor, after: Node) -> list[int]:
    """The indices of the eigenvalues ``values`` before an event: first those whose nearest eigenvalue ``after`` it lies
    on the other side of the imaginary axis, and among these and the rest the ones nearest to that axis."""
    partners = (values[:, None] - after.eigenvalues).abs().argmin(1)
    stays = ((values.real > 0) == (after.eigenvalues[partners].real > 0)).tolist()
    distances = values.real.abs().tolist()
    return sorted(range(len(values)), key=lambda i: (stays[i], distances[i]))


def _crosses_as_real(before: Node, after: Node) -> bool:
    """Whether the eigenvalue that crosses the imaginary axis does so as a real one."""
    crossing = before.eigenvalues[crossing_order(before.eigenvalues, after)[0]]
    return float(crossing.imag.abs()) <= 1e-6 * float(before.eigenvalues.abs().max())


__all__ = ["ContinuationError", "ContinuationSettings", "EquilibriumCurve", "Event", "Field", "Node", "crossing_order"]
