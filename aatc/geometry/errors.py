"""The typed errors of points, vectors and parameters."""

from __future__ import annotations


class GeometryError(ValueError):
    """A point, a vector or a parameter that the geometry cannot use."""


class PointShapeError(GeometryError):
    """What is no tensor, or tensors whose shapes or dtypes are not those of points and tangent vectors."""


class NotOnManifoldError(GeometryError):
    """A point that the manifold does not have, or one with coordinates that are not finite."""


class CutLocusError(GeometryError):
    """Two points with more than one shortest geodesic between them: ``log`` and ``transport`` have no value."""


class RangeError(GeometryError):
    """Finite points and vectors whose result, or what it is made of, is beyond the largest number of the dtype."""
