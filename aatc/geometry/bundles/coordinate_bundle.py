"""Bundles in coordinates: charts, transition functions that form a cocycle, elements of the total space.

Source: N. Steenrod, "The Topology of Fibre Bundles", 1951, sections 2 and 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.bundles.bundle_charts import Chart, Map
from aatc.geometry.bundles.continuity import largest_jumps
from aatc.geometry.manifold import GeometryError, Manifold, PointShapeError
from aatc.geometry.manifolds.charts import ChartError
from aatc.geometry.manifolds.curvature import require_full_precision

Element = Tensor | tuple[Tensor, Tensor]


class ResidualError(GeometryError):
    """An identity that does not hold; ``residual`` is the largest entry of the difference."""

    def __init__(self, message: str, *, residual: float) -> None:
        super().__init__(message)
        self.residual = residual


class CocycleError(ResidualError):
    """Transition functions without g_aa = 1 or g_ab g_bc g_ca = 1."""


class ContinuityError(ResidualError):
    """A transition function that jumps inside the overlap of its charts; ``residual`` is the jump's size."""


class BundleError(GeometryError):
    """Data that do not make a bundle, or an operation that this bundle does not have."""


@dataclass(frozen=True)
class TransitionMap:
    """x ↦ g_ab(x), which takes fibre coordinates of the chart ``source`` = b to those of ``target`` = a."""

    target: Chart
    source: Chart
    matrix: Map

    def __call__(self, point: Tensor) -> Tensor:
        """g_ab, (..., r, r), at base points (..., n) of both charts. Raises `ChartError` elsewhere."""
        for chart in (self.target, self.source):
            inside = chart.contains(point.detach())
            if not bool(inside.all()):
                raise ChartError(
                    f"{int((~inside).sum())} of {inside.numel()} points lie outside the chart {chart.name!r}: "
                    f"g_{self.target.name},{self.source.name} is defined where both charts are"
                )
        return self.matrix(point)


@dataclass(frozen=True)
class LocalTrivialization:
    """An element of the total space in one chart: ``coordinates`` (..., m), ``fibre`` (..., r) or (..., r, r)."""

    bundle: CoordinateBundle
    chart: str
    coordinates: Tensor
    fibre: Tensor

    def inverse(self) -> tuple[Tensor, Tensor]:
        """The pair (base point, fibre in the home chart's frame) that it came from."""
        point = self.bundle.chart(self.chart).point(self.coordinates)
        return point, self.bundle.change_chart(point, self.fibre, self.chart, None)


class CoordinateBundle:
    """A vector bundle of rank r, or with ``principal`` its bundle of r×r frames, given by an atlas.

    ``base``: the manifold whose points (..., n), n = ``dimension``, are the base points; ``charts``: its atlas;
    ``transitions``: g_ab for pairs (a, b) of chart names, functions (..., n) → (..., r, r), one order of each pair
    sufficing, with v_a = g_ab v_b for fibre coordinates. Functions treat the points of a batch apart. A fibre
    without a chart named is in the frame of the *home chart* of its base point, the chart of the largest margin
    (of equal ones the first); a packed element is (..., n + r), a principal one (..., n + r²).

    The cocycle is checked when the bundle is made, at ``samples`` (default: 64 random float64 points of the base on
    the CPU, drawn from a fixed seed), and the transitions are searched for jumps between them; `check_cocycle` and
    `check_continuity` check elsewhere.

    Raises: BundleError for charts or transitions that are missing or singular; CocycleError; ContinuityError;
    PointShapeError; ChartError for points outside the charts asked for, and points and fibres that are not finite.
    """

    @arguments(base=Manifold, dimension="integer", rank="integer", samples=Tensor)
    def __init__(
        self,
        base: Manifold,
        dimension: int,
        rank: int,
        charts: Sequence[Chart],
        transitions: Mapping[tuple[str, str], Map],
        *,
        principal: bool = False,
        samples: Tensor | None = None,
    ) -> None:
        if dimension < 1 or rank < 1:
            raise BundleError(f"dimension = {dimension} and rank = {rank}: both are at least 1")
        self.base, self.dimension, self.rank, self.principal = base, dimension, rank, principal
        self.charts = tuple(charts)
        names = [chart.name for chart in self.charts]
        if not names or len(set(names)) < len(names):
            raise BundleError(f"an atlas has at least one chart, and names differ: {names}")
        for pair in transitions:
            if not set(pair) <= set(names):
                raise BundleError(f"a transition between {pair}, the charts are {names}")
        for i, a in enumerate(names):
            for b in names[:i]:
                if (a, b) not in transitions and (b, a) not in transitions:
                    raise BundleError(f"no transition between the charts {b!r} and {a!r}")
        self._index = {name: i for i, name in enumerate(names)}
        self._transitions = dict(transitions)
        if transitions:
            if samples is None:
                generator = torch.Generator().manual_seed(0)
                samples = base.random_point((64, dimension), generator, dtype=torch.float64)
            self.check_cocycle(samples)
            self.check_continuity(samples)

    def chart(self, name: str) -> Chart:
        """The chart of that name. Raises `ChartError`."""
        return self.charts[self._number(name)]

    def home_chart(self, point: Tensor) -> Tensor:
        """The index in ``charts`` of each base point's home chart, int64 (...). Raises `ChartError` outside all."""
        self._check_points(point)
        return self._deepest(self._margins(point), "base points")

    def bundle_projection(self, total_space: Element) -> Tensor:
        """The base point (..., n) of an element, packed (..., n + r) or a pair. Raises `PointShapeError`."""
        return self._element(total_space)[0]

    def local_trivialization(self, point: Element, chart: str | None = None) -> LocalTrivialization:
        """An element of the total space, packed or a pair, in ``chart`` (default: the home chart of them all).

        Raises `ChartError` if a point lies outside the chart, or without a chart named, if home charts differ.
        """
        base, fibre = self._element(point)
        if chart is None:
            home = self.home_chart(base).unique()
            if home.numel() != 1:
                raise ChartError("the points of this batch have different home charts: name one that has them all")
            chart = self.charts[int(home[0])].name
        self._require_inside(base, chart)
        return LocalTrivialization(
            self, chart, self.chart(chart).coordinates(base), self.change_chart(base, fibre, None, chart)
        )

    def transition_functions(self, chart1: str, chart2: str) -> TransitionMap:
        """g_ab of a = ``chart1``, b = ``chart2``, a map of points in both. Raises `ChartError`."""
        a, b = self._number(chart1), self._number(chart2)
        return TransitionMap(self.charts[a], self.charts[b], lambda x: self._pair(a, b, x))

    def change_chart(self, point: Tensor, fibre: Tensor, source: str | None, target: str | None) -> Tensor:
        """Fibre coordinates of ``source`` as those of ``target``, at points (..., n); None is the home chart."""
        self._check_points(point)
        for name in (source, target):
            self._require_inside(point, name)
        return self._act(self._transition(point, self._numbers(target, point), self._numbers(source, point)), fibre)

    def check_cocycle(self, point: Tensor, atol: float | None = None) -> Tensor:
        """The largest entry of g_aa − 1 and g_ab g_bc g_ca − 1 over all charts at each point, (...).

        Triples with a chart that a point is not in are left out. Raises `CocycleError` if one exceeds ``atol``
        (default: the root of the dtype's epsilon) or is not finite.
        """
        self._check_points(point)
        flat = point.reshape(-1, self.dimension)
        inside = self._margins(flat) > 0
        residual = flat.new_zeros(flat.shape[0])
        for triple in itertools.product(range(len(self.charts)), repeat=3):
            where = inside[:, list(triple)].all(-1).nonzero().squeeze(-1)
            if where.numel():
                x = flat[where]
                if triple[0] == triple[1] == triple[2]:
                    product = self._pair(triple[0], triple[0], x)
                else:
                    a, b, c = triple
                    product = self._pair(a, b, x) @ self._pair(b, c, x) @ self._pair(c, a, x)
                one = torch.eye(self.rank, dtype=x.dtype, device=x.device)
                defect = (product - one).abs().amax((-2, -1))
                residual = residual.index_put((where,), torch.maximum(residual[where], defect))
        self._refuse(residual, atol, CocycleError, "the transition functions are no cocycle: g_ab g_bc g_ca − 1")
        return residual.reshape(point.shape[:-1])

    def check_continuity(self, point: Tensor, atol: float | None = None) -> Tensor:
        """The largest jump of a transition's entry between consecutive points (N, ..., n), ().

        Searched along the segments, in a chart's coordinates, from each point of an overlap to the next, and from the
        last to the first, where they stay in the overlap: see `aatc.geometry.bundles.continuity`. Overlaps may have
        several parts, and what differs between them is no jump. Raises `ContinuityError` if one exceeds ``atol``
        (default: the root of the dtype's epsilon), or if a transition is not finite there.
        """
        self._check_points(point)
        flat = point.detach().reshape(-1, self.dimension)
        room = torch.finfo(flat.dtype).eps ** 0.5 if atol is None else atol
        inside, worst = self._margins(flat) > 0, flat.new_zeros(())
        for target, source in self._transitions:
            a, b = self._index[target], self._index[source]
            chart, both = self.charts[a], inside[:, a] & inside[:, b]
            if a == b or not bool(both.any()):
                continue
            y = chart.coordinates(flat[both])

            def matrix(z: Tensor, a: int = a, b: int = b) -> Tensor:
                return self._pair(a, b, self.charts[a].point(z))

            def defined(z: Tensor, a: int = a, b: int = b) -> Tensor:
                return (self._margins(self.charts[a].point(z))[:, [a, b]] > 0).all(-1)

            size, place = largest_jumps(matrix, defined, y, y.roll(-1, 0), room)
            most = int(size.argmax())
            if not float(size[most]) <= room:
                where = ", ".join(f"{float(c):.4g}" for c in chart.point(place[most]))
                raise ContinuityError(
                    f"the transition g_{target},{source} jumps by {float(size[most]):.3g} at ({where}), allowed "
                    f"{room:.3g}: a bundle's transitions are continuous, and an angle that comes back to its start "
                    "must enter them through a function of the same period",
                    residual=float(size[most]),
                )
            worst = torch.maximum(worst, size[most])
        return worst

    def _number(self, name: str) -> int:
        if name not in self._index:
            raise ChartError(f"there is no chart {name!r}; the charts are {', '.join(self._index)}")
        return self._index[name]

    def _numbers(self, name: str | None, point: Tensor) -> Tensor:
        """The chart's index for each point, int64 (...); None is the home chart."""
        if name is None:
            return self.home_chart(point)
        return torch.full(point.shape[:-1], self._number(name), device=point.device)

    def _margins(self, point: Tensor) -> Tensor:
        """(..., number of charts)."""
        return torch.stack([chart.margin(point.detach()) for chart in self.charts], -1)

    @staticmethod
    def _deepest(margins: Tensor, what: str) -> Tensor:
        deepest = margins.max(-1)
        outside = ~(deepest.values > 0)
        if bool(outside.any()):
            raise ChartError(f"{int(outside.sum())} of {outside.numel()} {what} lie in no chart")
        return deepest.indices

    def _require_inside(self, point: Tensor, name: str | None) -> None:
        if name is not None:
            inside = self.chart(name).contains(point.detach())
            if not bool(inside.all()):
                raise ChartError(f"{int((~inside).sum())} of {inside.numel()} points lie outside the chart {name!r}")

    def _check_points(self, *tensors: Tensor) -> None:
        self.base._check(*tensors)
        if tensors[0].shape[-1] != self.dimension:
            raise PointShapeError(f"base points have {self.dimension} coordinates, got {tensors[0].shape[-1]}")
        if any(tensor.dtype != tensors[0].dtype for tensor in tensors):
            raise PointShapeError(f"points and vectors are of one dtype, got {[t.dtype for t in tensors]}")
        for tensor in tensors:
            self._require_finite(tensor, "base points or tangent vectors")

    @staticmethod
    def _require_finite(tensor: Tensor, what: str) -> None:
        if not bool(tensor.detach().isfinite().all()):
            raise ChartError(f"{what} {tuple(tensor.shape)} are not finite")

    def _element(self, element: Element) -> tuple[Tensor, Tensor]:
        tail = (self.rank, self.rank) if self.principal else (self.rank,)
        if isinstance(element, Tensor):
            size = self.dimension + math.prod(tail)
            if element.ndim == 0 or element.shape[-1] != size:
                raise PointShapeError(f"packed elements have the shape (..., {size}), got {tuple(element.shape)}")
            point, packed = element.split([self.dimension, size - self.dimension], -1)
            fibre = packed.reshape(*packed.shape[:-1], *tail)
        else:
            point, fibre = element
        self._check_points(point)
        self._check_fibre(fibre, point.dtype)
        return point, fibre

    def _check_fibre(self, fibre: Tensor, dtype: torch.dtype) -> None:
        tail = (self.rank, self.rank) if self.principal else (self.rank,)
        if tuple(fibre.shape[-len(tail) :]) != tail:
            raise PointShapeError(f"fibres have the shape (..., {', '.join(map(str, tail))}), got {tuple(fibre.shape)}")
        if fibre.dtype != dtype:
            raise PointShapeError(f"fibres are of the dtype of the base points, {dtype}, got {fibre.dtype}")
        self._require_finite(fibre, "fibres")

    def _act(self, matrix: Tensor, fibre: Tensor) -> Tensor:
        self._check_fibre(fibre, matrix.dtype)
        try:
            return matrix @ fibre if self.principal else (matrix @ fibre.unsqueeze(-1)).squeeze(-1)
        except RuntimeError as error:
            raise PointShapeError(
                f"fibres {tuple(fibre.shape)} do not broadcast with points of batch {tuple(matrix.shape[:-2])}"
            ) from error

    def _pair(self, a: int, b: int, point: Tensor) -> Tensor:
        """g_ab of two charts by number, refused unless (..., r, r)."""
        names = self.charts[a].name, self.charts[b].name
        if names in self._transitions:
            matrix = self._transitions[names](point)
        elif a == b:
            one = torch.eye(self.rank, dtype=point.dtype, device=point.device)
            return one.expand(*point.shape[:-1], self.rank, self.rank)
        else:
            backwards = self._transitions[names[::-1]](point)
            require_full_precision(backwards, "inverses of transitions")
            try:
                matrix = torch.linalg.inv(backwards)
            except torch.linalg.LinAlgError as error:
                raise BundleError(f"the transition {names[::-1]} is singular at a point: it has no inverse") from error
        if matrix.shape != (*point.shape[:-1], self.rank, self.rank):
            raise PointShapeError(
                f"the transition {names} gave {tuple(matrix.shape)} for points {tuple(point.shape)}, not "
                f"(..., {self.rank}, {self.rank})"
            )
        return matrix

    def _transition(self, point: Tensor, target: Tensor, source: Tensor) -> Tensor:
        """g between the charts of the given numbers, (...), at each point."""
        count = len(self.charts)
        return self._scatter(target * count + source, lambda k, x: self._pair(k // count, k % count, x), point)

    @staticmethod
    def _scatter(index: Tensor, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """``function(k, *parts)`` on the elements whose index (...) is k; tensors are (..., their own last axis)."""
        values = index.unique().tolist()
        if len(values) == 1:
            return function(values[0], *tensors)
        flat = index.reshape(-1)
        rows = [t.reshape(-1, t.shape[-1]) for t in tensors]
        places = [(flat == k).nonzero().squeeze(-1) for k in values] or [flat]
        results = torch.cat([function(k, *[r[at] for r in rows]) for k, at in zip(values or [0], places)])
        ordered = results[torch.cat(places).argsort()]
        return ordered.reshape(*index.shape, *ordered.shape[1:])

    @staticmethod
    def _refuse(residual: Tensor, atol: float | None, error: type[ResidualError], text: str) -> None:
        room = torch.finfo(residual.dtype).eps ** 0.5 if atol is None else atol
        bad = ~(residual.detach() <= room)
        if bool(bad.any()):
            worst = float(residual.detach().max())
            raise error(
                f"{text} has entries up to {worst:.3g} at {int(bad.sum())} of {bad.numel()} points, allowed {room:.3g}",
                residual=worst,
            )
