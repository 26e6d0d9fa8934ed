"""Bifurcations of equilibria of u' = f(u, μ): located on extended systems, named by their normal forms, and followed.

A diagram is found by continuation from one equilibrium. Where the signs of `EquilibriumCurve.events` change, a point is
located by Newton's method on a system that is regular there, named by the derivatives of f at it, and, at pitchforks
and transcritical points, the branch that crosses is followed in turn.

Sources: Kuznetsov, Elements of Applied Bifurcation Theory, chapters 3, 5 and 10; Govaerts, Numerical Methods for
Bifurcations of Dynamical Equilibria, chapters 3–4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.dynamics.continuation import (
    ContinuationError,
    ContinuationSettings,
    EquilibriumCurve,
    Event,
    Field,
    Node,
    crossing_order,
)

KINDS = ("saddle-node", "pitchfork", "transcritical", "hopf", "degenerate")


@dataclass(frozen=True)
class Branch:
    """A curve of m equilibria: ``parameters`` (m,), ``states`` (m, *state), ``eigenvalues`` (m, n) complex, the leading
    ones first, ``stable`` (m,) bool, and why each end of it ``ended`` (see `EquilibriumCurve.trace`)."""

    parameters: Tensor
    states: Tensor
    eigenvalues: Tensor
    stable: Tensor
    ended: tuple[str, str]


@dataclass(frozen=True)
class BifurcationPoint:
    """A bifurcation. ``kind``: "saddle-node", "pitchfork", "transcritical", "hopf", or "degenerate" where the kernel
    has more than one dimension or the normal form's coefficient vanishes.

    ``eigenvector``: a unit vector of the kernel, of the state's shape; for "hopf" a complex one of the eigenvalue
    i·``frequency``. ``criticality``: "supercritical" or "subcritical" at pitchforks and Hopf points. ``coefficient``:
    of the normal form, in the coordinate along that unit vector: quadratic for "saddle-node" and "transcritical", cubic
    for "pitchfork", the first Lyapunov coefficient for "hopf". ``residual``: of the extended system.
    """

    kind: str
    parameter: float
    state: Tensor
    eigenvector: Tensor
    frequency: float | None = None
    criticality: str | None = None
    coefficient: float | None = None
    residual: float = 0.0


@dataclass(frozen=True)
class BifurcationDiagram:
    """The branches that were found, in the order of their discovery, and the points on them by ascending parameter."""

    branches: tuple[Branch, ...]
    points: tuple[BifurcationPoint, ...]

    def of_kind(self, kind: str) -> tuple[BifurcationPoint, ...]:
        """The points named ``kind``. Raises `ContinuationError` for a name that is not in `KINDS`."""
        if kind not in KINDS:
            raise ContinuationError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        return tuple(point for point in self.points if point.kind == kind)


@arguments(field="function", state=Tensor, parameter_range="sequence of numbers")
def bifurcation_diagram(
    field: Field,
    state: Tensor,
    parameter_range: tuple[float, float],
    *,
    start: float | None = None,
    settings: ContinuationSettings | None = None,
) -> BifurcationDiagram:
    """The equilibria of u' = ``field(u, μ)`` that hang together with one near ``state`` at ``start``.

    ``field`` takes a state of any one shape and μ of shape (), both float64, and gives a tensor of the state's shape;
    `torch.func` must be able to differentiate it. ``start`` is the lower bound of the range unless given. Meant for
    states of up to about a hundred numbers: matrices are dense. Points are located to about 1e-10 where f is of order
    1; two of them nearer than 1e-5 are taken for one, and pairs of like points within one step may be missed: choose
    a smaller ``max_step``. A continuous symmetry makes every equilibrium degenerate: remove it first. Raises
    `ContinuationError`.
    """
    settings = settings or ContinuationSettings()
    low, high = (float(x) for x in parameter_range)
    begin = low if start is None else float(start)
    if not (math.isfinite(low) and math.isfinite(high) and low < high and low <= begin <= high):
        raise ContinuationError(f"range ({low}, {high}) with start {begin}: need finite low ≤ start ≤ high, low < high")
    if state.numel() == 0 or not bool(state.isfinite().all()):
        raise ContinuationError(f"the state {tuple(state.shape)} must be finite and not empty")
    with torch.no_grad():
        curve = EquilibriumCurve(field, state.shape, (low, high))
        value = field(state.double(), torch.tensor(begin, dtype=torch.float64))
        if value.shape != state.shape:
            raise ContinuationError(f"the field gives {tuple(value.shape)} for a state {tuple(state.shape)}")
        search = _Search(curve, state, settings)
        search.run(curve.start(state.double(), begin))
        return search.diagram()


@dataclass
class _Crossing:
    """A branch point, the two tangents through it, and which of them have been followed."""

    z: Tensor
    tangents: tuple[Tensor, Tensor]
    followed: list[bool]


class _Search:
    """The branches and points found so far."""

    def __init__(self, curve: EquilibriumCurve, state: Tensor, settings: ContinuationSettings) -> None:
        self.curve, self.settings, self.shape, self.device = curve, settings, state.shape, state.device
        self.branches: list[Branch] = []
        self.points: list[tuple[Tensor, BifurcationPoint]] = []
        self.crossings: list[_Crossing] = []

    def run(self, first: Node) -> None:
        backwards, ended = self._trace(_reversed(first))
        forwards, other = ([], ended) if ended == "closed" else self._trace(first)
        self._add([*[_reversed(node) for node in reversed(backwards)], first, *forwards], (ended, other))
        while len(self.branches) < self.settings.max_branches:
            pending = [(c, i) for c in self.crossings for i in (0, 1) if not c.followed[i]]
            if not pending:
                break
            self._switch(*pending[0])

    def diagram(self) -> BifurcationDiagram:
        points = sorted((point for _, point in self.points), key=lambda point: point.parameter)
        return BifurcationDiagram(tuple(self.branches), tuple(points))

    def _trace(self, node: Node) -> tuple[list[Node], str]:
        nodes, ended = self.curve.trace(node, self.settings)
        for before, after in zip([node, *nodes], nodes):
            for event in self.curve.events(before, after):
                self._record(event)
        return nodes, ended

    def _add(self, nodes: list[Node], ended: tuple[str, str]) -> None:
        z = torch.stack([node.z for node in nodes])
        eigenvalues = torch.stack([node.eigenvalues for node in nodes]).to(self.device)
        states = z[:, :-1].reshape(-1, *self.shape).to(self.device)
        stable = (eigenvalues.real < 0).all(-1)
        self.branches.append(Branch(z[:, -1].to(self.device), states, eigenvalues, stable, ended))

    def _known(self, z: Tensor) -> bool:
        return any(self.curve.norm(z - other) < 1e-5 for other, _ in self.points)

    def _record(self, event: Event) -> None:
        located = _LOCATE[event.kind](self.curve, event, self.shape)
        if located is None or not _is_near(self.curve, located[0], event):
            # Another point close by may have caught Newton's method: isolate this one further.
            length = self.curve.norm(event.after.z - event.before.z)
            for closer in self.curve.events(event.before, event.after, max(0.1 * length, 1e-9)):
                if self.curve.norm(closer.after.z - closer.before.z) < 0.5 * length:
                    self._record(closer)
            return
        z, point, tangents = located
        if tangents is not None:
            self._pass(z, tangents, event.after.z - event.before.z)
        if not self._known(z):
            self.points.append((z, point))

    def _pass(self, z: Tensor, tangents: tuple[Tensor, Tensor], direction: Tensor) -> None:
        """Note that the curve ran through a branch point along one of its tangents."""
        crossing = next((c for c in self.crossings if self.curve.norm(c.z - z) < 1e-5), None)
        if crossing is None:
            crossing = _Crossing(z, tangents, [False, False])
            self.crossings.append(crossing)
        along = [abs(float((self.curve.weights * t * direction).sum())) for t in crossing.tangents]
        crossing.followed[int(along[1] > along[0])] = True

    def _switch(self, crossing: _Crossing, which: int) -> None:
        """Follow the branch along a tangent that nothing has run along yet, both ways."""
        crossing.followed[which] = True
        tangent = crossing.tangents[which]
        sides: list[list[Node]] = []
        ended: list[str] = []
        for sign in (-1.0, 1.0):
            node = self._leave(crossing, sign * tangent, crossing.tangents[1 - which])
            nodes, reason = ([], "step") if node is None else self._trace(node)
            sides.append(nodes if node is None else [node, *nodes])
            ended.append(reason)
            if reason == "closed":
                break
        nodes = [_reversed(node) for node in reversed(sides[0])] + (sides[1] if len(sides) > 1 else [])
        if nodes:
            self._add(nodes, (ended[0], ended[-1]))

    def _leave(self, crossing: _Crossing, tangent: Tensor, other: Tensor) -> Node | None:
        weights = self.curve.weights
        step = self.settings.step
        while step >= self.settings.min_step:
            found = self.curve.correct(crossing.z + step * tangent, weights * tangent, step)
            if found is not None and self.curve.low <= float(found[0][-1]) <= self.curve.high:
                moved = (found[0] - crossing.z) / self.curve.norm(found[0] - crossing.z)
                along, across = (abs(float((weights * t * moved).sum())) for t in (tangent, other))
                if along > across:
                    return self.curve.node(found[0], moved)
            step *= 0.3
        return None


def _reversed(node: Node) -> Node:
    return Node(
        node.z,
        -node.tangent,
        node.derivative,
        node.eigenvalues,
        bool(node.tangent[-1] <= 0),
        # The determinant with the opposite last row.
        not node.orientation,
        node.unstable,
    )


def _is_near(curve: EquilibriumCurve, z: Tensor, event: Event) -> bool:
    """Whether a located point belongs to the event."""
    middle = 0.5 * (event.before.z + event.after.z)
    return curve.norm(z - middle) <= 10 * curve.norm(event.after.z - event.before.z) + 1e-6


Located = tuple[Tensor, BifurcationPoint, tuple[Tensor, Tensor] | None]


def _newton(system: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float] | None:
    """A regular zero of ``system`` from nearby, and its residual; None where Newton's method does not converge."""
    for _ in range(12):
        value, matrix = system(x), torch.func.jacfwd(system)(x)
        step, info = torch.linalg.solve_ex(matrix, value)
        if int(info) or not bool(step.isfinite().all()):
            return None
        x = x - step
        if float(step.abs().max()) <= 1e-11 * (1 + float(x.abs().max())):
            return x, float(system(x).abs().max())
    return None


def _second(curve: EquilibriumCurve, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The second derivative of f at ``z`` in the directions ``a`` and ``b``."""
    first = lambda x: torch.func.jvp(curve.value, (x,), (a,))[1]  # noqa: E731
    change: Tensor = torch.func.jvp(first, (z,), (b,))[1]
    return change


def _third(curve: EquilibriumCurve, z: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The third derivative of f at ``z`` in three directions."""
    second = lambda x: _second(curve, x, a, b)  # noqa: E731
    change: Tensor = torch.func.jvp(second, (z,), (c,))[1]
    return change


def _kernels(derivative: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Unit null vectors φ (right) and ψ (left, ψ·φ > 0) of f_u, and whether they span a simple zero eigenvalue."""
    left, values, right = torch.linalg.svd(derivative[:, :-1])
    phi, psi = right[-1], left[:, -1]
    pairing = float(psi @ phi)
    simple = abs(pairing) > 1e-6 and (len(values) == 1 or float(values[-2]) > 1e-6 * float(values[0]))
    return phi, psi * (1.0 if pairing >= 0 else -1.0), simple


def _padded(u: Tensor, parameter: float = 0.0) -> Tensor:
    return torch.cat((u, torch.tensor([parameter], dtype=u.dtype)))


def _complement(jacobian: Tensor, phi: Tensor, psi: Tensor, right: Tensor) -> Tensor:
    """The x ⊥ φ with f_u x = ``right``, up to ψ, by the bordered system."""
    top = torch.cat((jacobian, psi[:, None]), 1)
    bottom = torch.cat((phi, torch.zeros(1, dtype=phi.dtype)))
    solved: Tensor = torch.linalg.solve(torch.cat((top, bottom[None])), _padded(right))[:-1]
    return solved


def _locate_fold(curve: EquilibriumCurve, event: Event, shape: torch.Size) -> Located | None:
    """A zero of f = 0, f_u v = 0, v₀·v = 1."""
    n = curve.size
    nearest = min(event.before, event.after, key=lambda node: abs(float(node.tangent[-1])))
    begin = _kernels(nearest.derivative)[0]

    def system(x: Tensor) -> Tensor:
        z, v = x[: n + 1], x[n + 1 :]
        pushed = torch.func.jvp(curve.value, (z,), (torch.cat((v, torch.zeros_like(v[:1]))),))
        return torch.cat((pushed[0], pushed[1], (begin @ v - 1)[None]))

    found = _newton(system, torch.cat((nearest.z, begin)))
    if found is None:
        return None
    z = found[0][: n + 1]
    _, derivative = curve.linearise(z)
    phi, psi, simple = _kernels(derivative)
    # Without a simple kernel, as at a Bogdanov–Takens point, ψ·φ may vanish and there is no such coefficient.
    bend = float(psi @ _second(curve, z, _padded(phi), _padded(phi)))
    coefficient = 0.5 * bend / float(psi @ phi) if simple else None
    name = "saddle-node" if coefficient is not None and abs(coefficient) > 1e-8 else "degenerate"
    point = BifurcationPoint(name, float(z[-1]), z[:-1].reshape(shape), phi.reshape(shape), None, None, coefficient)
    return z, replace(point, residual=found[1]), None


def _locate_branch_point(curve: EquilibriumCurve, event: Event, shape: torch.Size) -> Located | None:
    """A zero of f + βψ = 0, ψᵀ(f_u, f_μ) = 0, ψ·ψ = 1 with β = 0: two curves of equilibria cross there."""
    n = curve.size
    middle = 0.5 * (event.before.z + event.after.z)
    psi = torch.linalg.svd(curve.linearise(middle)[1]).U[:, -1]

    def system(x: Tensor) -> Tensor:
        z, beta, psi = x[: n + 1], x[n + 1], x[n + 2 :]
        pulled = torch.func.vjp(curve.value, z)
        return torch.cat((pulled[0] + beta * psi, pulled[1](psi)[0], (psi @ psi - 1)[None]))

    found = _newton(system, torch.cat((_padded(middle), psi)))
    if found is None or abs(float(found[0][n + 1])) > 1e-7:
        return None
    z = found[0][: n + 1]
    point, tangents = _name_branch_point(curve, z, shape)
    return z, replace(point, residual=found[1]), tangents


def _name_branch_point(
    curve: EquilibriumCurve, z: Tensor, shape: torch.Size
) -> tuple[BifurcationPoint, tuple[Tensor, Tensor] | None]:
    """The name of a branch point and the tangents of the curves through it, from the algebraic bifurcation equation
    aα² + 2bαβ + cβ² = 0 on the kernel of (f_u, f_μ), spanned by (φ, 0) and (w, 1)."""
    _, derivative = curve.linearise(z)
    jacobian = derivative[:, :-1]
    phi, psi, simple = _kernels(derivative)
    state, vector = z[:-1].reshape(shape), phi.reshape(shape)
    plain = BifurcationPoint("degenerate", float(z[-1]), state, vector)
    if not simple:
        return plain, None
    psi = psi / (psi @ phi)
    flat, slope = _padded(phi), _padded(_complement(jacobian, phi, psi, -derivative[:, -1]), 1.0)
    a, b, c = (float(psi @ _second(curve, z, *pair)) for pair in ((flat, flat), (flat, slope), (slope, slope)))
    discriminant = b * b - a * c
    if not discriminant > 1e-14 * (b * b + abs(a * c)) or (b == 0 and c == 0):
        return plain, None
    # The root r = β/α of smaller size first, without cancellation.
    large = -(b + math.copysign(math.sqrt(discriminant), b))
    tangents = []
    for alpha, beta in ((large, a), (c, large)):
        tangent = alpha * flat + beta * slope
        tangents.append(tangent / curve.norm(tangent))
    width = curve.high - curve.low
    if abs(a / large) / width > 1e-6 / math.sqrt(curve.size):
        point = BifurcationPoint("transcritical", float(z[-1]), state, vector, None, None, 0.5 * a)
        return point, (tangents[0], tangents[1])
    bend = _complement(jacobian, phi, psi, -_second(curve, z, flat, flat))
    cubic = _third(curve, z, flat, flat, flat) + 3 * _second(curve, z, flat, _padded(bend))
    coefficient = float(psi @ cubic) / 6
    if abs(coefficient) <= 1e-8:
        return plain, (tangents[0], tangents[1])
    criticality = "supercritical" if coefficient < 0 else "subcritical"
    point = BifurcationPoint("pitchfork", float(z[-1]), state, vector, None, criticality, coefficient)
    return point, (tangents[0], tangents[1])


def _locate_multiple(curve: EquilibriumCurve, event: Event, shape: torch.Size) -> Located | None:
    """Where several real eigenvalues vanish at once, as near as the event isolates it."""
    z = 0.5 * (event.before.z + event.after.z)
    phi = torch.linalg.svd(event.before.derivative[:, :-1]).Vh[-1]
    residual = float(curve.value(z).abs().max())
    point = BifurcationPoint("degenerate", float(z[-1]), z[:-1].reshape(shape), phi.reshape(shape), residual=residual)
    return z, point, None


def _locate_hopf(curve: EquilibriumCurve, event: Event, shape: torch.Size) -> Located | None:
    """A zero of f = 0, f_u p = −ωq, f_u q = ωp, p₀·p = |p₀|², p₀·q = 0."""
    n = curve.size
    node = event.before
    values, vectors = torch.linalg.eig(node.derivative[:, :-1])
    scale = float(values.abs().max())
    for index in crossing_order(values, event.after):
        if float(values[index].imag) > 1e-8 * scale:
            found = _hopf_point(curve, node.z, values[index], vectors[:, index])
            if (
                found is not None
                and float(found[0][n + 1]) > 1e-8 * scale
                and _is_near(curve, found[0][: n + 1], event)
            ):
                return _name_hopf_point(curve, *found, shape)
    return None


def _hopf_point(curve: EquilibriumCurve, z: Tensor, value: Tensor, vector: Tensor) -> tuple[Tensor, float] | None:
    """The solution (u, μ, ω, p, q) of the system of `_locate_hopf` from an eigenpair at ``z``, and its residual."""
    n = curve.size
    # Turned so that the real and the imaginary part are orthogonal, the real one the longer.
    turn = 0.5 * torch.angle((vector * vector).sum())
    vector = vector * torch.exp(-1j * turn)
    begin = vector.real / vector.real.square().sum()

    def system(x: Tensor) -> Tensor:
        z, omega, p, q = x[: n + 1], x[n + 1], x[n + 2 : 2 * n + 2], x[2 * n + 2 :]
        still = torch.zeros_like(p[:1])
        by_p = torch.func.jvp(curve.value, (z,), (torch.cat((p, still)),))
        by_q = torch.func.jvp(curve.value, (z,), (torch.cat((q, still)),))
        norms = torch.stack((begin @ p - 1, begin @ q))
        return torch.cat((by_p[0], by_p[1] + omega * q, by_q[1] - omega * p, norms))

    return _newton(system, torch.cat((z, value.imag[None], vector.real, vector.imag)))


def _name_hopf_point(curve: EquilibriumCurve, x: Tensor, residual: float, shape: torch.Size) -> Located:
    n = curve.size
    z, omega = x[: n + 1], float(x[n + 1])
    q = torch.complex(x[n + 2 : 2 * n + 2], x[2 * n + 2 :])
    q = q / q.abs().square().sum().sqrt()
    lyapunov = _first_lyapunov(curve, z, omega, q)
    criticality = None
    if lyapunov is not None and abs(lyapunov) > 1e-8:
        criticality = "supercritical" if lyapunov < 0 else "subcritical"
    point = BifurcationPoint(
        "hopf" if criticality else "degenerate",
        float(z[-1]),
        z[:-1].reshape(shape),
        q.reshape(shape),
        omega,
        criticality,
        lyapunov,
        residual,
    )
    return z, point, None


def _first_lyapunov(curve: EquilibriumCurve, z: Tensor, omega: float, q: Tensor) -> float | None:
    """The first Lyapunov coefficient (Kuznetsov, equation 5.39): negative where the cycles born are stable."""
    _, derivative = curve.linearise(z)
    jacobian = derivative[:, :-1].to(q.dtype)
    eye = torch.eye(curve.size, dtype=q.dtype)
    p = torch.linalg.svd(jacobian.mH + 1j * omega * eye).Vh[-1].conj()
    pairing = p.conj() @ q
    if float(pairing.abs()) < 1e-8:
        return None
    p = p / pairing.conj()

    def second(a: Tensor, b: Tensor) -> Tensor:
        parts = [[_second(curve, z, _padded(x), _padded(y)) for y in (b.real, b.imag)] for x in (a.real, a.imag)]
        return torch.complex(parts[0][0] - parts[1][1], parts[0][1] + parts[1][0])

    # C(q, q, q̄) by its real form: q = x + iy gives C(x,x,x) + C(x,y,y) + i(C(x,x,y) + C(y,y,y)).
    x, y = _padded(q.real), _padded(q.imag)
    cubic = torch.complex(
        _third(curve, z, x, x, x) + _third(curve, z, x, y, y), _third(curve, z, x, x, y) + _third(curve, z, y, y, y)
    )
    mean, info = torch.linalg.solve_ex(jacobian, second(q, q.conj()))
    if int(info):
        return None
    double, resonant = torch.linalg.solve_ex(2j * omega * eye - jacobian, second(q, q))
    if int(resonant):
        return None
    total = p.conj() @ (cubic - 2 * second(q, mean) + second(q.conj(), double))
    return float(total.real) / (2 * omega)


_LOCATE: dict[str, Callable[[EquilibriumCurve, Event, torch.Size], Located | None]] = {
    "fold": _locate_fold,
    "branch": _locate_branch_point,
    "hopf": _locate_hopf,
    "multiple": _locate_multiple,
}


__all__ = [
    "KINDS",
    "BifurcationDiagram",
    "BifurcationPoint",
    "Branch",
    "ContinuationError",
    "ContinuationSettings",
    "bifurcation_diagram",
]
