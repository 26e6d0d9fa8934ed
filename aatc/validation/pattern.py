"""Checks of patterns: stable under a perturbation, symmetric, scale invariant, exactly lumpable.

Sources: Cross, Hohenberg, Pattern formation outside of equilibrium, Rev. Mod. Phys. 65 (1993); Golubitsky, Stewart,
The Symmetry Perspective, chapter 1; Barenblatt, Scaling, chapter 1; Kemeny, Snell, Finite Markov Chains, chapter 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
import torch
from torch import Tensor

from aatc.passes.analysis.result import Verdict, verify
from aatc.passes.analysis.scale.block_sums import block_sums
from aatc.passes.analysis.scale.coarse_graining import block_average, block_labels, law_of
from aatc.passes.analysis.stochastic import row_stochastic
from aatc.validation.judgement import ValidationError, finite, judge, tolerance_of, worst

Dynamics = Callable[[Tensor], Tensor]
Element = Callable[[Tensor], Tensor] | Tensor | Sequence[int]
Group = Mapping[str, Element] | Sequence[Element]
# The ratio of the largest entries of a perturbation and its pattern below which differences of the dynamics, which
# round at 2e-16 of the pattern, are replaced by derivatives.
_SMALLEST = 1e-5
# The ratio up to which Gauss's rule with two nodes, whose error is (ratio)⁴/4320, stands for the difference.
_NEAR = 1e-3
_NODES = ((1 - 3**-0.5) / 2, (1 + 3**-0.5) / 2)


@dataclass(frozen=True)
class GrowthWitness:
    """Norms of the perturbation at the start and at ``time``, and the mean growth ``rate`` log(after/before)/time."""

    index: tuple[int, ...]
    before: float
    after: float
    time: float
    rate: float


@dataclass(frozen=True)
class SymmetryWitness:
    """The element that changes the pattern most, the entry where it does, the two values there, and the largest
    entry of the pattern."""

    element: str
    index: tuple[int, ...]
    value: complex
    image: complex
    scale: float


@dataclass(frozen=True)
class GroupWitness:
    """Distinct ``permutations`` and the composites p∘q of pairs of them that are not among them."""

    permutations: tuple[tuple[int, ...], ...]
    missing: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ScaleWitness:
    """The ``exponent`` with the half-width of its 95 % ``confidence`` interval (0 where it was given), and the worst
    sample: f at ``point`` and at ``factor`` times it, with the largest |f| of the points as ``scale``."""

    exponent: float
    confidence: float
    factor: float
    point: tuple[float, ...]
    value: float
    scaled: float
    scale: float


@dataclass(frozen=True, eq=False)
class LumpingWitness:
    """The block whose ``members`` (k,) step most differently: their laws on blocks, ``rows`` (k, m), their ``weights``
    (k,) in the law, and the ``worst`` of the members."""

    members: tuple[int, ...]
    rows: np.ndarray
    weights: np.ndarray
    worst: int


@verify.register
def _(witness: GrowthWitness) -> float:
    return max(0.0, witness.after / witness.before - 1)


@verify.register
def _(witness: SymmetryWitness) -> float:
    return abs(witness.image - witness.value) / (witness.scale or 1.0)


@verify.register
def _(witness: GroupWitness) -> float:
    known = set(witness.permutations)
    composites = {tuple(p[i] for i in q) for p in known for q in known}
    return float(len(composites - known))


@verify.register
def _(witness: ScaleWitness) -> float:
    growth: float = witness.factor**witness.exponent
    return abs(witness.scaled / growth - witness.value) / witness.scale


@verify.register
def _(witness: LumpingWitness) -> float:
    rows, weights = witness.rows.tolist(), witness.weights.tolist()
    unsound = max(abs(math.fsum(row) - 1) for row in rows)
    mean = [math.fsum(w * x for w, x in zip(weights, column)) / math.fsum(weights) for column in zip(*rows)]
    apart = [math.fsum(abs(x - m) for x, m in zip(row, mean, strict=True)) / 2 for row in rows]
    if not (min(min(row) for row in rows) >= 0 and min(weights) >= 0 and unsound <= 1e-9):
        return math.inf
    return max(apart) if apart[witness.members.index(witness.worst)] >= max(apart) - 1e-12 else math.inf


def _permutation(name: str, element: Tensor | Sequence[int], size: int | None = None) -> tuple[int, ...]:
    if isinstance(element, Tensor) and (element.ndim != 1 or element.is_floating_point() or element.is_complex()):
        raise ValidationError(f"{name} is neither a function nor a list of indices")
    try:
        order = tuple(index(i) for i in element)
    except TypeError:
        raise ValidationError(f"{name} is neither a function nor a list of indices") from None
    if sorted(order) != list(range(len(order))) or not order or size not in (None, len(order)):
        wanted = "" if size is None else f" of {size} indices"
        raise ValidationError(f"{name} is not a permutation{wanted}: {order[:8]}{'...' if len(order) > 8 else ''}")
    return order


def _named(group: Group) -> dict[str, Element]:
    if isinstance(group, Mapping):
        elements = dict(group)
    else:
        elements = {f"element {n}": element for n, element in enumerate(group)}
    if not elements:
        raise ValidationError("the symmetry group has no elements: give at least one")
    return elements


def _field(name: str, pattern: Tensor) -> Tensor:
    is_complex = isinstance(pattern, Tensor) and pattern.is_complex()
    return finite(name, pattern, dtype=torch.complex128 if is_complex else torch.float64)


def _largest(values: Tensor, batch_ndim: int) -> Tensor:
    """The largest |entry| of each member of the batch, with axes of size 1 for the others."""
    axes = tuple(range(batch_ndim, values.ndim))
    return values.abs().amax(axes, keepdim=True) if axes else values.abs()


def _norms(values: Tensor, batch_ndim: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values.reshape(*values.shape[:batch_ndim], -1), dim=-1)
    return norms


def _growth(dynamics: Dynamics, u: Tensor, w: Tensor, size: Tensor, time: float, batch_ndim: int) -> Tensor:
    """‖w(time)‖/‖w‖ of each member of the batch, where size w is a perturbation of u; infinite after a blow-up."""
    from torchdiffeq import odeint

    def rate(_: Tensor, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        here = dynamics(pair[0])
        return here, _slope_between(dynamics, pair[0], here, pair[1], size, batch_ndim)

    span, before = torch.tensor([0.0, time], dtype=u.dtype, device=u.device), _norms(w, batch_ndim)
    try:
        _, moved = odeint(rate, (u, w), span, rtol=1e-9, atol=1e-12)
    except AssertionError:
        # torchdiffeq's sign that the step has shrunk to nothing.
        return torch.full_like(before, math.inf)
    return (_norms(moved[-1], batch_ndim) / before).nan_to_num(nan=math.inf, posinf=math.inf)


def _slope_between(dynamics: Dynamics, u: Tensor, here: Tensor, w: Tensor, size: Tensor, batch_ndim: int) -> Tensor:
    """(f(u + size w) − f(u))/size, ``here`` being f(u), for a ``size`` (..., 1, ..., 1) however small.

    Where size is far below u, that is the mean of f′(u + s size w) w over s from 0 to 1, by Gauss's rule.
    """
    whole = _largest(u, batch_ndim)
    quotient = (dynamics(u + size * w) - here) / size
    small = (size < _SMALLEST * whole) & (size * _largest(w, batch_ndim) < _NEAR * whole)
    if not bool(small.any()):
        return quotient
    tangent = torch.zeros_like(u)
    try:
        for node in _NODES:
            tangent = tangent + torch.func.jvp(dynamics, (u + node * size * w,), (w,))[1] / 2
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise _too_small(whole, f"torch cannot differentiate the dynamics ({error})") from error
    still = small & (_largest(tangent, batch_ndim) == 0)
    if bool(still.any()):
        step = _NEAR * whole / _largest(w, batch_ndim).clamp_min(torch.finfo(w.dtype).tiny)
        change = _largest(dynamics(u + step * w) - dynamics(u - step * w), batch_ndim)
        # Beyond what the third derivative gives where the first is truly 0.
        if bool((still & (change > 10 * _NEAR**3 * (whole + _largest(here, batch_ndim)))).any()):
            raise _too_small(whole, "the dynamics have the derivative 0 where their values change, as after detach()")
    return torch.where(small, tangent, quotient)


def _too_small(whole: Tensor, reason: str) -> ValidationError:
    least = _SMALLEST * float(whole.max())
    return ValidationError(
        f"the perturbation is so small that its growth needs derivatives of the dynamics, and {reason}",
        hint=f"let torch.func.jvp differentiate the dynamics, or perturb by {least:.1e} or more",
    )


@dataclass(frozen=True)
class PatternValidation:
    """Checks of patterns. ``tolerance`` is used where a method is given none.

    The seed's methods are kept, with verdicts instead of bools. Its `check_pattern_stability` had no dynamics, and
    without them nothing grows or decays: they are an argument. Its `check_scale_invariance` took a pattern and a
    transformation, both values; a pattern must be evaluated at scaled points, so that it is a function here, and the
    transformation is the factors. `verify_group` and `check_lumpability` are added.
    """

    tolerance: float = 1e-6

    def check_pattern_stability(
        self,
        pattern: Tensor,
        perturbation: Tensor,
        time: float,
        dynamics: Dynamics,
        tolerance: float | None = None,
        *,
        batch_ndim: int = 0,
    ) -> Verdict:
        """Whether a perturbation is not larger after ``time`` than before: ‖δ(time)‖ ≤ (1 + tolerance) ‖δ(0)‖.

        ``dynamics`` gives du/dt of a state of the pattern's shape. The pattern u and w = δ/|δ(0)| (the largest entry)
        are integrated together (Dormand–Prince, relative error 1e-9) in float64, so that the pattern need not be at
        rest, and w′ = (f(u + |δ(0)| w) − f(u))/|δ(0)| is exact for perturbations of every size. For those below 1e-5
        of the pattern it is formed by `torch.func.jvp`; dynamics that it cannot differentiate are a ValidationError
        there. The 2-norm is over all but the first ``batch_ndim`` axes, the batch, whose members must not act on
        one another. A solution that blows up has grown without limit.
        A diagnostic (P3): it says nothing of other perturbations, and a stable pattern can amplify one for a while
        before it decays. ``residual`` is ‖δ(time)‖/‖δ(0)‖ − 1, or 0. Witness: `GrowthWitness`.
        Raises `ValidationError`.
        """
        room = tolerance_of(tolerance, self.tolerance)
        start, shift = finite("pattern", pattern), finite("perturbation", perturbation)
        if start.shape != shift.shape or not 0 <= batch_ndim <= start.ndim:
            raise ValidationError(
                f"pattern {tuple(start.shape)} and perturbation {tuple(shift.shape)} need one shape with at least "
                f"batch_ndim = {batch_ndim} axes"
            )
        if not 0 < time < math.inf:
            raise ValidationError(f"time is positive and finite, not {time}")
        size = _largest(shift, batch_ndim)
        if bool((size < torch.finfo(shift.dtype).tiny).any()):
            raise ValidationError("a perturbation is zero or subnormal: its growth has no value")
        slope = dynamics(start)
        if not isinstance(slope, Tensor) or slope.shape != start.shape:
            raise ValidationError(f"the dynamics give no tensor of the pattern's shape {tuple(start.shape)}")
        scaled = shift / size
        ratio = _growth(dynamics, start, scaled, size, float(time), batch_ndim)
        at = worst(ratio)
        first = float((_norms(scaled, batch_ndim) * size.reshape(ratio.shape))[at])
        growth = float(ratio[at].log()) / time
        witness = GrowthWitness(at, first, first * float(ratio[at]), float(time), growth)
        statement = f"perturbation does not grow by t = {time:g}"
        return judge(statement, verify(witness), room, witness, "P3", ("of the perturbation given",))

    def verify_symmetries(
        self,
        pattern: Tensor,
        symmetry_group: Group,
        tolerance: float | None = None,
        *,
        axis: int = -1,
        conjugate: bool = False,
    ) -> Verdict:
        """Whether every element leaves the pattern as it is. Elements need not form a group: see `verify_group`.

        An element, given in a sequence or under a name, is a function of the pattern, or a permutation p of
        ``axis``: x ↦ x[p]. With ``conjugate`` permutations act on both of the last two axes, A ↦ A[p][:, p], so that
        an attention matrix is equivariant: PAPᵀ = A. ``residual`` is the largest change of an entry over the largest
        entry; if it is 0 the equality is exact, P0, else within the tolerance, P2. Witness: `SymmetryWitness`.
        Raises `ValidationError`.
        """
        room = tolerance_of(tolerance, self.tolerance)
        values = _field("pattern", pattern)
        if conjugate and (values.ndim < 2 or values.shape[-1] != values.shape[-2]):
            raise ValidationError(f"PAPᵀ needs a pattern (..., n, n), not {tuple(values.shape)}")
        if not -values.ndim <= axis < values.ndim:
            raise ValidationError(f"a pattern {tuple(values.shape)} has no axis {axis}")
        scale = float(values.abs().max())
        witness: SymmetryWitness | None = None
        for name, element in _named(symmetry_group).items():
            if callable(element) and not isinstance(element, Tensor):
                image = _field(f"the image under {name}", element(pattern.clone()))
            else:
                order = torch.tensor(_permutation(name, element, values.shape[axis]), device=values.device)
                image = values.index_select(axis, order)
                if conjugate:
                    image = values.index_select(-2, order).index_select(-1, order)
            if image.shape != values.shape:
                raise ValidationError(f"{name} turns the shape {tuple(values.shape)} into {tuple(image.shape)}")
            change = (image - values).abs()
            at = worst(change)
            if witness is None or float(change[at]) > abs(witness.image - witness.value):
                witness = SymmetryWitness(name, at, values[at].item(), image[at].item(), scale)
        assert witness is not None
        residual = verify(witness)
        statement = "pattern equivariant" if conjugate else "pattern invariant"
        return judge(f"{statement} under its symmetries", residual, room, witness, "P0" if residual == 0 else "P2")

    def verify_group(
        self, permutations: Mapping[str, Tensor | Sequence[int]] | Sequence[Tensor | Sequence[int]]
    ) -> Verdict:
        """Whether permutations are a group: every composite of two is among them. Exact (P0).

        A finite set of permutations that is closed has the identity and inverses. ``residual`` is the number of
        missing composites, the tolerance 0. Witness: `GroupWitness`. Raises `ValidationError`.
        """
        given = permutations.values() if isinstance(permutations, Mapping) else permutations
        orders: list[tuple[int, ...]] = []
        for n, element in enumerate(given):
            orders.append(_permutation(f"element {n}", element, len(orders[0]) if orders else None))
        if not orders:
            raise ValidationError("the symmetry group has no elements: give at least one")
        known = set(orders)
        missing = {tuple(p[i] for i in q) for p in known for q in known} - known
        witness = GroupWitness(tuple(sorted(known)), tuple(sorted(missing)))
        return judge("permutations closed under composition", float(len(missing)), 0.0, witness, "P0")

    def check_scale_invariance(
        self,
        pattern: Callable[[Tensor], Tensor],
        scale_transformation: Tensor | Sequence[float],
        points: Tensor,
        tolerance: float | None = None,
        *,
        exponent: float | None = None,
    ) -> Verdict:
        """Whether f(s x) = s^α f(x) for every factor s > 0 of ``scale_transformation`` (S,) at ``points`` (N, d).

        ``pattern`` is f: (M, d) → (M,). α is ``exponent``, or the least-squares slope of log f(sx)/f(x) over log s,
        where both are of one sign, with its 95 % interval. ``residual`` is the largest |s^−α f(sx) − f(x)| over the
        largest |f(x)|. A statement on these points and factors (P2). Witness: `ScaleWitness`, with α.
        Raises `ValidationError`, also where f is 0 at every point, since α has no value there.
        """
        room = tolerance_of(tolerance, self.tolerance)
        where = finite("points", points)
        if where.ndim != 2:
            raise ValidationError(f"points have shape (N, d), not {tuple(where.shape)}")
        try:
            given_factors = torch.as_tensor(scale_transformation, dtype=where.dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValidationError(f"scale_transformation is no list of factors: {error}") from None
        factors = finite("scale_transformation", given_factors)
        factors = factors.to(where.device).reshape(-1)
        if bool((factors <= 0).any()) or bool((factors == 1).all()):
            raise ValidationError(f"factors are positive and not all 1, got {factors.tolist()}")
        value = finite("the pattern", pattern(where))
        moved = (factors[:, None, None] * where).reshape(-1, where.shape[-1])
        scaled = finite("the pattern at scaled points", pattern(moved))
        if value.shape != where.shape[:1] or scaled.shape != moved.shape[:1]:
            raise ValidationError(f"the pattern gives {tuple(value.shape)} for {len(where)} points; one number each")
        scaled, scale = scaled.reshape(len(factors), len(where)), float(value.abs().max())
        if scale == 0:
            raise ValidationError("the pattern is 0 at every point", hint="give points where it is not")
        alpha, confidence = (float(exponent), 0.0) if exponent is not None else _exponent(factors, value, scaled)
        powers = factors**alpha
        if not bool(powers.isfinite().all()) or bool((powers < torch.finfo(powers.dtype).tiny).any()):
            raise ValidationError(f"factors to the power {alpha:g} are out of range: {powers.tolist()}")
        defect = (scaled / powers[:, None] - value).abs() / scale
        s, n = worst(defect)
        witness = ScaleWitness(
            alpha,
            confidence,
            float(factors[s]),
            tuple(where[n].tolist()),
            float(value[n]),
            float(scaled[s, n]),
            scale,
        )
        width = f" ± {confidence:.1g}" if exponent is None else ""
        given = (f"at {len(where)} points and {len(factors)} factors",)
        statement = f"scale invariance with exponent {alpha:.6g}{width}"
        return judge(statement, float(defect[s, n]), room, witness, "P2", given)

    def check_lumpability(
        self,
        pattern: Tensor,
        blocks: int | Sequence[int],
        tolerance: float | None = None,
        *,
        measure: str | Sequence[float] = "uniform",
    ) -> Verdict:
        """Whether the chain of an attention pattern (n, n) may be pooled to blocks without loss: all tokens of a block
        give the same to each block.

        ``blocks`` is the size of blocks of consecutive tokens, or the block of each token (n,); ``measure`` the law
        that a block's mean is taken with, as in `aatc.analysis.scale`. ``residual`` is the largest total variation
        distance between what a token and what its block give to blocks. A statement within the tolerance (P2).
        Witness: `LumpingWitness`. Raises `ScaleError` and `PatternError`.
        """
        room = tolerance_of(tolerance, self.tolerance)
        chain = row_stochastic(pattern, square=True)
        if chain.ndim != 2:
            raise ValidationError(f"one pattern at a time has shape (n, n), not {chain.shape}")
        labels, law = block_labels(blocks, len(chain)), law_of(chain, measure)
        coarse, _ = block_average(chain, labels, law)
        onto = block_sums(chain, labels, 1)
        apart = np.abs(onto - coarse[labels]).sum(1) / 2
        at = int(apart.argmax())
        members = np.flatnonzero(labels == labels[at])
        witness = LumpingWitness(tuple(members.tolist()), onto[members], law[members], at)
        return judge("pattern exactly lumpable to blocks", float(apart[at]), room, witness, "P2")


def _exponent(factors: Tensor, value: Tensor, scaled: Tensor) -> tuple[float, float]:
    """The slope through 0 of log(f(sx)/f(x)) over log s, and the half-width of its 95 % interval (Student's t)."""
    from scipy.stats import t as student

    usable = (value * scaled > 0) & (factors != 1)[:, None]
    if not bool(usable.any()):
        raise ValidationError("f(x) and f(sx) are of one sign at no point: give exponent=")
    logs = factors.log()[:, None].expand_as(scaled)[usable]
    ratios = (scaled / value)[usable].log()
    weight = float(logs @ logs)
    slope = float(logs @ ratios) / weight
    free = len(logs) - 1
    if free == 0:
        return slope, math.inf
    spread = float((ratios - slope * logs).square().sum()) / free
    return slope, float(student.ppf(0.975, free)) * math.sqrt(spread / weight)
