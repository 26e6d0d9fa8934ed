"""Transport of keys and values from tile to tile of a sequence.

Source of the pole ladder and of its exactness on symmetric spaces: X. Pennec, "Parallel transport with pole ladder: a
third order scheme in affine connection spaces which is exact in affine symmetric spaces", 2018; M. Lorenzi, X. Pennec,
"Efficient parallel transport of deformations in time series of images", J. Math. Imaging Vis. 50 (2014) 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.manifold import GeometryError, Manifold, PointShapeError
from aatc.geometry.manifolds.curvature import require_full_precision
from aatc.geometry.manifolds.product import Product

METHODS = ("auto", "closed", "pole_ladder")


class TileError(GeometryError):
    """Tiles, edges or settings that do not fit together."""


class NotTangentError(GeometryError):
    """Vectors that are not tangent at the base point of their tile: their transport would be no isometry."""


def has_closed_transport(manifold: Manifold) -> bool:
    """Whether ``manifold.transport`` is implemented, of each factor where it is a product."""
    if isinstance(manifold, Product):
        return all(has_closed_transport(factor) for factor, _ in manifold.factors)
    return type(manifold)._transport is not Manifold._transport


@arguments(manifold=Manifold, x=Tensor, y=Tensor, v=Tensor)
def pole_ladder(manifold: Manifold, x: Tensor, y: Tensor, v: Tensor, *, rungs: int = 1, size: float = 0.25) -> Tensor:
    """Transport of ``v`` from x to y along the shortest geodesic by ``exp`` and ``log`` alone, points (..., *P).

    Each of ``rungs`` equal parts of the geodesic takes v to −log_y(s_m(exp_x(v))), s_m the reflection in its middle:
    exact on symmetric spaces (all manifolds of this package) with one rung, third order in |v| and in the part
    elsewhere. Vectors are brought to the length ``size`` and back, which keeps their digits; ``size`` and the
    part together must stay inside the injectivity radius, and on manifolds that are not complete (`Simplex`) inside
    the manifold. Raises `TileError` for rungs or a size that are not positive, `PointShapeError`, `CutLocusError`.
    """
    _check_ladder(rungs, size)
    manifold._check(x, y, v)
    # The squares of very long and very short vectors are not finite or 0: transport is linear, so a factor is free.
    unit = v.detach().abs().amax(tuple(range(-manifold.point_ndim, 0)), keepdim=True)
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    norm = manifold.norm(x, v / unit)
    nonzero = norm > 0
    scale = size / torch.where(nonzero, norm, torch.ones_like(norm))
    scale = scale.reshape(*scale.shape, *[1] * manifold.point_ndim)
    moved, near = v / unit * scale, x
    for rung in range(1, rungs + 1):
        far = y if rung == rungs else manifold.geodesic(x, y, rung / rungs)
        middle = manifold.geodesic(near, far, 0.5)
        pole = manifold.exp(middle, -manifold.log(middle, manifold.exp(near, moved)))
        moved, near = -manifold.log(far, pole), far
    return moved / scale * unit


def _check_ladder(rungs: int, size: float) -> None:
    if isinstance(rungs, bool) or not isinstance(rungs, int) or rungs < 1 or not (math.isfinite(size) and size > 0):
        raise TileError(f"rungs = {rungs!r} and size = {size!r}: an integer ≥ 1 and a positive length are needed")


@dataclass(frozen=True)
class TileConnection:
    """The steps between consecutive base points (..., T, *P): by the manifold's closed form or by the pole ladder."""

    manifold: Manifold
    path: Tensor
    method: str
    rungs: int
    size: float

    @property
    def tiles(self) -> int:
        """T."""
        return self.path.shape[self.path.ndim - self.manifold.point_ndim - 1]

    def point(self, tile: int) -> Tensor:
        """The base point of a tile with an axis for its vectors, (..., 1, *P)."""
        return self.path.narrow(-self.manifold.point_ndim - 1, tile, 1)

    def carry(self, vectors: Tensor, source: int, target: int) -> Tensor:
        """Vectors (..., m, *P) tangent at tile ``source``, at tile ``target``, through every tile between."""
        sign = 1 if target >= source else -1
        for tile in range(source, target, sign):
            x, y = self.point(tile), self.point(tile + sign)
            if self.method == "closed":
                vectors = self.manifold.transport(x, y, vectors)
            else:
                vectors = pole_ladder(self.manifold, x, y, vectors, rungs=self.rungs, size=self.size)
        return vectors


@dataclass(frozen=True)
class FrameConnection:
    """The flat steps T_ij = g_i g_j⁻¹ of frames (..., T, d, d), invertible; vectors are (..., m, d)."""

    path: Tensor

    @property
    def tiles(self) -> int:
        """T."""
        return self.path.shape[-3]

    def carry(self, vectors: Tensor, source: int, target: int) -> Tensor:
        """g_target g_source⁻¹ applied to vectors (..., m, d): between flat frames the way does not matter."""
        if source == target:
            return vectors
        try:
            back: Tensor = torch.linalg.solve(self.path[..., source, :, :], vectors.mT)
            return (self.path[..., target, :, :] @ back).mT
        except torch.linalg.LinAlgError as error:
            raise TileError(f"a frame of tile {source} is singular: it has no inverse") from error


class TileTransport:
    """Carries vectors of tokens between the tiles of a sequence, ``tile`` tokens in each (the last may have fewer).

    A path is the tiles' base points (..., T, *P) on ``manifold``, or without a manifold their frames (..., T, d, d),
    which make the flat connection T_ij = g_i g_j⁻¹. Vectors are (..., n, *P), or (..., n, d). Each step follows the
    shortest geodesic between two consecutive base points; a longer way than that needs more base points.

    ``method``: "closed" (`Manifold.transport`; rank two on Sphere and Hyperboloid), "pole_ladder" (``rungs`` and
    ``size`` as in `pole_ladder`), or "auto", the closed form where there is one.

    The seed's method names are kept. Its Christoffel symbols would need coordinates and an integrator;
    `local_connection` gives the transports of the steps instead.

    Raises: TileError for a tile, a method or numbers of tiles and tokens that do not fit, for base points off the
    manifold, and for frames and vectors that are singular or not finite; NotTangentError; PointShapeError.
    """

    def __init__(
        self,
        manifold: Manifold | None = None,
        tile: int = 1,
        *,
        method: str = "auto",
        rungs: int = 1,
        size: float = 0.25,
    ) -> None:
        if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
            raise TileError(f"tile = {tile!r}: a tile holds at least one token")
        if method not in METHODS:
            raise TileError(f"method {method!r} is not one of {', '.join(METHODS)}")
        _check_ladder(rungs, size)
        if manifold is not None and method == "closed" and not has_closed_transport(manifold):
            raise TileError(f"{manifold!r} has no closed form of transport: use the method 'pole_ladder'")
        if manifold is not None and method == "auto":
            method = "closed" if has_closed_transport(manifold) else "pole_ladder"
        self.manifold, self.tile, self.method, self.rungs, self.size = manifold, tile, method, rungs, size

    def local_connection(self, path: Tensor) -> TileConnection | FrameConnection:
        """The steps along ``path``. Raises `TileError`, `PointShapeError`."""
        if self.manifold is None:
            if path.ndim < 3 or path.shape[-1] != path.shape[-2] or not path.is_floating_point():
                raise PointShapeError(f"frames have the shape (..., T, d, d), got {path.dtype} {tuple(path.shape)}")
            require_full_precision(path, "quotients of frames")
        else:
            self.manifold._check(path)
            if path.ndim <= self.manifold.point_ndim:
                raise PointShapeError(f"a path of tiles has the shape (..., T, *P), got {tuple(path.shape)}")
        if not bool(path.detach().isfinite().all()):
            raise TileError("the base points or frames of the tiles are not finite")
        if self.manifold is not None:
            self._check_base(self.manifold, path.detach())
        connection = (
            FrameConnection(path)
            if self.manifold is None
            else TileConnection(self.manifold, path, self.method, self.rungs, self.size)
        )
        if connection.tiles < 1:
            raise TileError("a path needs at least one tile")
        return connection

    @staticmethod
    def _check_base(manifold: Manifold, path: Tensor) -> None:
        """Refuse a path with base points off the manifold, where transport would be no isometry of anything."""
        if type(manifold)._belongs is Manifold._belongs:
            return  # one's own, of exp and log alone, which cannot tell
        good = manifold.belongs(path)
        if not bool(good.all()):
            index = tuple(int(i) for i in (~good).nonzero()[0])
            raise TileError(
                f"{int((~good).sum())} of {good.numel()} base points are off {manifold!r}, the first at {index}: bring "
                "them there with manifold.projection"
            )

    def parallel_transport(
        self, vector: Tensor, path: Tensor, connection: TileConnection | FrameConnection | None = None
    ) -> Tensor:
        """Vectors (..., m, *P) of the first tile, carried through every tile to the last.

        ``connection`` is `local_connection` of the path if it is at hand. Raises `NotTangentError`, `TileError`.
        """
        steps = self.local_connection(path) if connection is None else connection
        vector = self._broadcast(steps, vector, self._token_axis(vector))
        self._check_tangent(steps, vector, 0)
        return steps.carry(vector, 0, steps.tiles - 1)

    def transport_attention(self, vector: Tensor, path: Tensor, to: int = -1) -> Tensor:
        """Vectors (..., n, *P) of all tokens, each of the tile i // tile, carried to tile ``to``, (..., n, *P).

        Tokens before it come forwards through the tiles between, those after it backwards. Raises `NotTangentError`,
        and `TileError` unless there are ceil(n/tile) tiles.
        """
        steps = self.local_connection(path)
        axis = self._token_axis(vector)
        vector = self._broadcast(steps, vector, axis)
        count = vector.shape[axis]
        if steps.tiles != -(-count // self.tile):
            raise TileError(
                f"{count} tokens in tiles of {self.tile} are {-(-count // self.tile)} tiles; the path has {steps.tiles}"
            )
        if not isinstance(to, int) or not -steps.tiles <= to < steps.tiles:
            raise TileError(f"there is no tile {to} among {steps.tiles}")
        to %= steps.tiles
        blocks = list(vector.split(self.tile, axis))
        for number, block in enumerate(blocks):
            self._check_tangent(steps, block, number)
        if isinstance(steps, FrameConnection):
            return torch.cat([steps.carry(block, k, to) for k, block in enumerate(blocks)], axis)
        before: Tensor = blocks[0]
        for k in range(to):
            before = torch.cat([steps.carry(before, k, k + 1), blocks[k + 1]], axis)
        if to == steps.tiles - 1:
            return before
        after = blocks[-1]
        for k in range(steps.tiles - 1, to + 1, -1):
            after = torch.cat([blocks[k - 1], steps.carry(after, k, k - 1)], axis)
        return torch.cat([before, steps.carry(after, to + 1, to)], axis)

    def holonomy_defect(self, path: Tensor) -> Tensor:
        """The largest |Hv − v| over |v| = 1 tangent at the first tile, H once round the loop of the tiles, (...).

        The loop closes from the last tile to the first. 0 exactly for flat transport; 2 sin(α/2) where H turns one
        plane by α. For frames, 0. The norm is that of the metric; where H is the identity the gradient is that of one
        of many singular vectors. Raises `TileError`, `CutLocusError`, `PointShapeError` for half precision.
        """
        require_full_precision(path, "defects")
        steps = self.local_connection(path)
        if isinstance(steps, FrameConnection):
            return path.new_zeros(path.shape[:-3])
        manifold = steps.manifold
        axes, shape = manifold.point_ndim, tuple(path.shape[path.ndim - manifold.point_ndim :])
        size = math.prod(shape)
        start = steps.point(0)
        unit = torch.eye(size, dtype=path.dtype, device=path.device).reshape(size, *shape)
        around = start.unsqueeze(-axes - 1)
        left, right = (slice(None), None), (None, slice(None))
        rest = (slice(None),) * axes
        pair = [(..., *side, *rest) for side in (left, right)]
        # On a face of a simplex the metric does not see the directions out of it, and transport drops them.
        seen = (manifold.inner(around, unit[pair[0]], unit[pair[1]]).detach() != 0).any(-1)
        basis = manifold.tangent_projection(start, unit * seen.reshape(*seen.shape, *[1] * axes))
        loop = torch.cat([path, start], -axes - 1)
        closed = TileConnection(manifold, loop, self.method, self.rungs, self.size)
        change = closed.carry(basis, 0, closed.tiles - 1) - basis
        metric = manifold.inner(around, basis[pair[0]], basis[pair[1]]).detach()
        strain = manifold.inner(around, change[pair[0]], change[pair[1]]).detach()
        # The metric vanishes on the normal space, which the basis spans too: it is left out of the pencil.
        values, vectors = torch.linalg.eigh(metric)
        kept = values > values.amax(-1, keepdim=True) * size * torch.finfo(path.dtype).eps ** 0.75
        root = vectors * torch.where(kept, values.clamp_min(torch.finfo(path.dtype).tiny).rsqrt(), 0.0).unsqueeze(-2)
        most = (root @ torch.linalg.eigh(root.mT @ strain @ root).eigenvectors[..., -1:]).squeeze(-1)
        weights = most.reshape(*most.shape, *[1] * axes)
        # A Rayleigh quotient is stationary in its vector, so its gradient needs none of the eigenvector's.
        base = start.squeeze(-axes - 1)
        turned, along = (weights * change).sum(-axes - 1), (weights * basis).sum(-axes - 1)
        return manifold.norm(base, turned) / manifold.norm(base, along)

    def _token_axis(self, vector: Tensor) -> int:
        axis = -2 if self.manifold is None else -self.manifold.point_ndim - 1
        if vector.ndim < -axis:
            raise PointShapeError(f"vectors of tokens have the shape (..., n, *P), got {tuple(vector.shape)}")
        return axis

    def _broadcast(self, steps: TileConnection | FrameConnection, vector: Tensor, axis: int) -> Tensor:
        """``vector`` with every batch axis that the path has, of its dtype."""
        if vector.dtype != steps.path.dtype:
            raise PointShapeError(f"vectors are of the dtype of the path, {steps.path.dtype}, got {vector.dtype}")
        batch = steps.path.shape[: -3 if self.manifold is None else axis]
        try:
            whole = torch.broadcast_shapes(batch, vector.shape[:axis])
        except RuntimeError as error:
            raise PointShapeError(
                f"the batch axes of vectors {tuple(vector.shape)} and a path {tuple(steps.path.shape)} do not broadcast"
            ) from error
        return vector.expand(*whole, *vector.shape[axis:])

    def _check_tangent(self, steps: TileConnection | FrameConnection, vectors: Tensor, tile: int) -> None:
        self._token_axis(vectors)
        if isinstance(steps, FrameConnection):
            if vectors.shape[-1] != steps.path.shape[-1]:
                raise PointShapeError(f"frames {tuple(steps.path.shape)} carry no vectors {tuple(vectors.shape)}")
            if not bool(vectors.detach().isfinite().all()):
                raise TileError(f"the vectors of tile {tile} are not finite")
            return
        tangent = steps.manifold.is_tangent(steps.point(tile).detach(), vectors.detach())
        if not bool(tangent.all()):
            raise NotTangentError(
                f"{int((~tangent).sum())} of {tangent.numel()} vectors of tile {tile} are not tangent at its base "
                "point: project them with manifold.tangent_projection"
            )
