"""Surfaces in space, with a curve and the vectors that are carried along it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aatc.geometry.manifolds.riemannian import Geodesic, RiemannianStructure
from aatc.report.canvas import COLOURS, PictureError, array, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Embedding = Callable[[Tensor], Tensor]
Extent = tuple[tuple[float, float], tuple[float, float]]
_MESH = 40
# Both dark enough to be seen on the surface in grey.
_FRAME = (COLOURS[0], COLOURS[5])


@dataclass(frozen=True)
class Surface:
    """A surface in R³ over one chart: ``embedding`` maps (..., 2) to (..., 3), made of torch operations, ``extent`` is
    the rectangle of the chart that is drawn, and ``structure`` the metric, that of the embedding."""

    embedding: Embedding
    extent: Extent
    structure: RiemannianStructure

    @classmethod
    def of(cls, embedding: Embedding, extent: Extent) -> Surface:
        """With the metric that the embedding f induces, g_ij = ∂_i f·∂_j f."""

        def metric(x: Tensor) -> Tensor:
            slopes = _slopes(embedding, x)
            return slopes @ slopes.mT

        return cls(embedding, extent, RiemannianStructure(metric, dim=2))

    @classmethod
    def sphere(cls, radius: float = 1.0) -> Surface:
        """The sphere in colatitude and longitude, as `RiemannianStructure.sphere`."""

        def embedding(x: Tensor) -> Tensor:
            theta, phi = x.unbind(-1)
            return radius * torch.stack((theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()), -1)

        return cls(embedding, ((0.0, math.pi), (0.0, 2 * math.pi)), RiemannianStructure.sphere(radius))

    @classmethod
    def torus(cls, major: float = 2.0, minor: float = 0.8) -> Surface:
        """The torus of revolution in the angles round the tube and round the axis, in the metric of space.

        ``major`` is the distance of the tube's middle from the axis, ``minor`` < ``major`` the tube's radius. Raises
        `PictureError` for other radii.
        """
        if not 0 < minor < major < math.inf:
            raise PictureError(f"radii {major} and {minor}: a torus needs 0 < minor < major")

        def embedding(x: Tensor) -> Tensor:
            tube, around = x.unbind(-1)
            reach = major + minor * tube.cos()
            return torch.stack((reach * around.cos(), reach * around.sin(), minor * tube.sin()), -1)

        def metric(x: Tensor) -> Tensor:
            reach = major + minor * x[..., 0].cos()
            return torch.diag_embed(torch.stack((torch.full_like(reach, minor**2), reach.square()), -1))

        def connection(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
            slope, reach = minor * x[..., 0].sin(), major + minor * x[..., 0].cos()
            across = u[..., 0] * v[..., 1] + u[..., 1] * v[..., 0]
            return torch.stack((reach * slope / minor**2 * u[..., 1] * v[..., 1], -slope / reach * across), -1)

        structure = RiemannianStructure(metric, connection=connection, dim=2)
        return cls(embedding, ((0.0, 2 * math.pi), (0.0, 2 * math.pi)), structure)

    def push(self, points: Tensor, vectors: Tensor) -> Tensor:
        """Vectors (..., k, 2) at chart points (..., 2) as vectors of space, (..., k, 3)."""
        return vectors @ _slopes(self.embedding, points)


def _slopes(embedding: Embedding, x: Tensor) -> Tensor:
    """∂_i f, (..., 2, 3)."""
    # Forward differentiation refuses tensors whose entries share memory.
    x, basis = x.clone(), torch.eye(2, dtype=x.dtype, device=x.device)
    return torch.stack([torch.func.jvp(embedding, (x,), (e.expand(x.shape).clone(),))[1] for e in basis], -2)


def turning_angle(surface: Surface, points: Tensor, vectors: Tensor) -> float:
    """The angle in (−π, π] from the first to the last of ``vectors`` (T, 2) along a loop of ``points`` (T, 2).

    Counted in the orientation of the chart's coordinates. Raises `PictureError` unless the loop is closed in space, to
    1e-6 of its size, and the two vectors are not zero.
    """
    curve = surface.embedding(points)
    size = float((curve - curve.mean(0)).norm(dim=-1).max())
    if not float((curve[-1] - curve[0]).norm()) <= 1e-6 * size:
        raise PictureError("the curve does not return to where it began: a holonomy belongs to a loop")
    first, last = surface.push(points[[0, -1]], vectors[[0, -1], None])[:, 0]
    if not (float(first.norm()) > 0 and float(last.norm()) > 0):
        raise PictureError("a vector that vanishes has no angle")
    normal = torch.linalg.cross(*_slopes(surface.embedding, points[0]))
    sine = torch.linalg.cross(first, last) @ normal / normal.norm()
    return float(torch.atan2(sine, first @ last))


def geodesic_figure(
    path: Geodesic | Tensor,
    surface: Surface,
    *,
    frame: Tensor | None = None,
    holonomy: bool = False,
    arrows: int = 9,
    title: str = "",
) -> Figure:
    """A curve on a surface in space, and the vectors carried along it as arrows.

    ``path``: a `Geodesic` without a batch, or chart points (T, 2). ``frame``: vectors (T, k, 2) in chart components at
    its points, such as `RiemannianStructure.parallel_transport` gives them, of which about ``arrows`` places are shown.
    ``holonomy`` writes the angle by which the first vector of the frame has turned round a loop (`turning_angle`), and
    shows that vector at the start and at the end. Raises `PictureError` and `MissingLibraryError`.
    """
    points = path.points if isinstance(path, Geodesic) else path
    if points.ndim != 2 or points.shape[-1] != 2 or len(points) < 2:
        raise PictureError(f"a curve on a surface is (T, 2) with T ≥ 2, not {tuple(points.shape)}")
    if frame is not None and (frame.ndim != 3 or frame.shape[0] != len(points) or frame.shape[-1] != 2):
        raise PictureError(f"a frame along {len(points)} points is ({len(points)}, k, 2), not {tuple(frame.shape)}")
    if holonomy and frame is None:
        raise PictureError("a holonomy is the turn of a vector: give the frame that was carried")
    figure = new_figure(6.4, 6.0)
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot(projection="3d")
    u, v = (torch.linspace(*side, _MESH, dtype=points.dtype) for side in surface.extent)
    mesh = array("the surface", surface.embedding(torch.stack(torch.meshgrid(u, v, indexing="ij"), -1)))
    axes.plot_surface(*mesh.transpose(2, 0, 1), color="#d9d9d9", alpha=0.35, linewidth=0, rstride=1, cstride=1)
    axes.plot_wireframe(*mesh.transpose(2, 0, 1), color="#b0b0b0", linewidth=0.4, rstride=3, cstride=3)
    curve = array("the curve", surface.embedding(points))
    axes.plot(*curve.T, color="black", linewidth=2.0, label="geodesic" if isinstance(path, Geodesic) else "curve")
    axes.plot(*curve[:1].T, color="black", marker="o", markersize=6, linestyle="none", label="start")
    size = float(np.ptp(mesh.reshape(-1, 3), axis=0).max())
    if frame is not None:
        _draw_frame(axes, surface, points, frame, arrows, 0.16 * size, loop=holonomy)
    note = title
    if holonomy and frame is not None:
        angle = turning_angle(surface, points, frame[:, 0])
        note = f"{title}\n" * bool(title) + f"holonomy {angle:+.4f} rad ({math.degrees(angle):+.1f}°)"
    axes.set(xlabel="x", ylabel="y", zlabel="z")
    axes.set_title(note, fontsize=11, wrap=True)
    limits = (axes.get_xlim3d(), axes.get_ylim3d(), axes.get_zlim3d())
    axes.set_box_aspect(np.ptp(limits, axis=1), zoom=0.86)
    # Its label stands beyond the numbers of an axis that is seen at a slant.
    for axis in (axes.xaxis, axes.yaxis):
        axis.labelpad = 9
    for axis, count in ((axes.xaxis, 5), (axes.yaxis, 5), (axes.zaxis, 3)):
        axis.set_major_locator(MaxNLocator(count))
    axes.view_init(elev=32, azim=35)
    axes.legend(loc="upper left", fontsize=9)
    return figure


def _draw_frame(
    axes, surface: Surface, points: Tensor, frame: Tensor, arrows: int, length: float, *, loop: bool
) -> None:
    """Arrows of one length for each vector of the frame; of a loop, longer ones at its ends, for the first vector."""
    places = torch.linspace(0, len(points) - 1, min(max(arrows, 2), len(points))).round().long().unique()
    at = array("the curve", surface.embedding(points[places]))
    vectors = array("the frame", surface.push(points[places], frame[places]))
    longest = float(np.linalg.norm(vectors, axis=-1).max())
    if not longest > 0:
        raise PictureError("the frame vanishes along the whole curve")
    vectors = vectors * (length / longest)
    between = slice(1, -1) if loop else slice(None)
    for k in range(vectors.shape[1]):
        arrows_of = (*at[between].T, *vectors[between, k].T)
        axes.quiver(*arrows_of, color=_FRAME[k % 2], linewidth=2.2 - 0.9 * (k % 2), label=f"carried vector {k + 1}")
    if loop:
        for place, colour, name in ((0, "black", "before the loop"), (-1, COLOURS[3], "after the loop")):
            axes.quiver(*at[place], *(1.5 * vectors[place, 0]), color=colour, linewidth=3.0, label=name)
