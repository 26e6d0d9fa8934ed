"""Manifolds in torch: batched, differentiable, following the device and dtype of their input."""

from aatc.geometry.hyperbolic import Hyperboloid, PoincareBall
from aatc.geometry.manifold import CutLocusError, Euclidean, GeometryError, Manifold, PointShapeError
from aatc.geometry.product import Product
from aatc.geometry.simplex import Simplex
from aatc.geometry.spd import SPD
from aatc.geometry.sphere import Sphere

__all__ = [
    "SPD",
    "CutLocusError",
    "Euclidean",
    "GeometryError",
    "Hyperboloid",
    "Manifold",
    "PoincareBall",
    "PointShapeError",
    "Product",
    "Simplex",
    "Sphere",
]
