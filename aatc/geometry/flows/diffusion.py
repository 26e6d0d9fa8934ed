"""Diffusion operators: Laplace–Beltrami in conservative form, connection Laplacians, and their stable explicit steps.

A metric is (..., N1, ..., Nd, d, d) on a grid; open axes reflect, so nothing flows through their ends. A graph is a
list of edges (E, 2) with conductances (..., E). Everything is differentiable and batched over leading axes.

Sources: Jost, Riemannian Geometry and Geometric Analysis, sections 3.1 and 4.2; Singer, Wu, Vector diffusion maps and
the connection Laplacian, Comm. Pure Appl. Math. 65 (2012) 1067.
"""

import math

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.flows.grid_metric import MetricGrid, check_positive, largest_inverse_eigenvalue
from aatc.geometry.manifold import GeometryError, PointShapeError


def _face_sum(x: Tensor, dim: int, periodic: bool) -> Tensor:
    """x at both sides of each face between neighbours, added."""
    if periodic:
        return x + x.roll(-1, dim)
    size = x.shape[dim]
    return x.narrow(dim, 1, size - 1) + x.narrow(dim, 0, size - 1)


def _face_difference(x: Tensor, dim: int, periodic: bool) -> Tensor:
    """The step of x across each face."""
    return x.roll(-1, dim) - x if periodic else x.diff(dim=dim)


def _cell_sides(faces: Tensor, dim: int, periodic: bool) -> tuple[Tensor, Tensor]:
    """The values on the faces before and after each cell; zero at the ends of an open axis."""
    if periodic:
        return faces.roll(1, dim), faces
    shape = list(faces.shape)
    shape[dim] = 1
    end = faces.new_zeros(shape)
    return torch.cat([end, faces], dim), torch.cat([faces, end], dim)


def _density(metric: Tensor, grid: MetricGrid) -> tuple[Tensor, Tensor]:
    """√g (..., N) and g⁻¹ (..., N, d, d)."""
    d = grid.dim
    if not metric.is_floating_point() or metric.ndim < d + 2 or tuple(metric.shape[-2:]) != (d, d):
        raise PointShapeError(
            f"a metric on this grid is a floating tensor (..., {'N, ' * d}{d}, {d}), not {tuple(metric.shape)} of "
            f"{metric.dtype}"
        )
    return check_positive(metric), torch.linalg.inv(metric)


def _check_field(field: Tensor, metric: Tensor, grid: MetricGrid) -> None:
    d = grid.dim
    if not field.is_floating_point() or field.shape[-d:] != metric.shape[-2 - d : -2]:
        raise PointShapeError(
            f"a scalar field on a metric {tuple(metric.shape)} is floating and ends with the grid's axes "
            f"{tuple(metric.shape[-2 - d : -2])}, not {tuple(field.shape)} of {field.dtype}"
        )


def _flow_and_energy(field: Tensor, metric: Tensor, grid: MetricGrid) -> tuple[Tensor, Tensor, Tensor]:
    """∂_i(√g g^{ij} ∂_j A), √g, and the Dirichlet energy per cell volume, of which the first is minus the gradient."""
    _check_field(field, metric, grid)
    density, inverse = _density(metric, grid)
    d, spacing = grid.dim, grid.spacing
    mobility = density[..., None, None] * inverse
    dims, wraps = range(-d, 0), [grid.axis_is_periodic(i) for i in range(d)]
    steps = [_face_difference(field, dims[i], wraps[i]) / spacing[i] for i in range(d)]
    slopes = []
    for i in range(d):
        before, after = _cell_sides(steps[i], dims[i], wraps[i])
        slopes.append(0.5 * (before + after))
    total, energy = torch.zeros_like(field), field.new_zeros(field.shape[:-d])
    for i in range(d):
        along = 0.5 * _face_sum(mobility[..., i, i], dims[i], wraps[i]) * steps[i]
        energy = energy + 0.5 * (along * steps[i]).sum(tuple(dims))
        for j in range(d):
            if j != i:
                cross = mobility[..., i, j] * slopes[j]
                along = along + 0.5 * _face_sum(cross, dims[i], wraps[i])
                energy = energy + 0.5 * (cross * slopes[i]).sum(tuple(dims))
        before, after = _cell_sides(along, dims[i], wraps[i])
        total = total + (after - before) / spacing[i]
    return total, density, energy * math.prod(spacing)


@arguments(field=Tensor, metric=Tensor, grid=MetricGrid)
def laplace_beltrami(field: Tensor, metric: Tensor, grid: MetricGrid) -> Tensor:
    """ΔA = (1/√g) ∂_i(√g g^{ij} ∂_j A) = g^{ij}(∂_i∂_jA − Γ^l_ij ∂_lA) of scalar fields (..., N1, ..., Nd).

    Fluxes live on the faces between neighbours, so Σ √g ΔA = 0 to rounding; −√g Δ is symmetric and positive
    semidefinite for every metric. Of order two inside; open axes reflect. Raises `PointShapeError` and
    `DegenerateMetricError`.
    """
    total, density, _ = _flow_and_energy(field, metric, grid)
    return total / density


@arguments(field=Tensor, metric=Tensor, grid=MetricGrid)
def dirichlet_energy(field: Tensor, metric: Tensor, grid: MetricGrid) -> Tensor:
    """½∫ g^{ij} ∂_iA ∂_jA dV, (...), the sum whose gradient is −√g ΔA times the cell's volume."""
    return _flow_and_energy(field, metric, grid)[2]


@arguments(field=Tensor, metric=Tensor, grid=MetricGrid)
def mass(field: Tensor, metric: Tensor, grid: MetricGrid) -> Tensor:
    """∫ A dV = Σ √g A Πh, (...)."""
    _check_field(field, metric, grid)
    density, _ = _density(metric, grid)
    return (density * field).sum(tuple(range(-grid.dim, 0))) * math.prod(grid.spacing)


@arguments(metric=Tensor, grid=MetricGrid)
def diffusion_step_bound(metric: Tensor, grid: MetricGrid) -> float:
    """The largest explicit step of `laplace_beltrami`, for which energy falls, and no value leaves the range of the
    others where g is diagonal.

    The smaller of 1/(2 λ_max(g⁻¹) Σ 1/h²), which is h²/(2 d λ_max) on a square grid, and the same with the varying √g
    taken into account: 1/max Σ_i (b₊ + b₋)/(√g h_i²), b = √g λ(g⁻¹) averaged to the faces of a cell.
    """
    with torch.no_grad():
        density, inverse = _density(metric, grid)
        top = largest_inverse_eigenvalue(inverse)
        stiffness, d = torch.zeros_like(density), grid.dim
        for i, h in enumerate(grid.spacing):
            faces = 0.5 * _face_sum(density * top, i - d, grid.axis_is_periodic(i))
            before, after = _cell_sides(faces, i - d, grid.axis_is_periodic(i))
            stiffness = stiffness + (before + after) / (density * h**2)
        flat = 2 * float(top.max()) * sum(h**-2 for h in grid.spacing)
        return 1 / max(float(stiffness.max()), flat)


def grid_conductances(metric: Tensor, grid: MetricGrid) -> tuple[Tensor, Tensor, Tensor]:
    """The grid as a graph: edges (E, 2) of flattened cells, √g g^{ii}/h² on them (..., E), and √g (..., V).

    Raises `GeometryError` for a metric that is not diagonal, which would need conductances that are not positive.
    """
    density, inverse = _density(metric, grid)
    d = grid.dim
    off = inverse - torch.diag_embed(inverse.diagonal(dim1=-2, dim2=-1))
    if float(off.detach().abs().max()) > 1e-12 * float(inverse.detach().abs().max()):
        raise GeometryError("simplex-valued fields need a diagonal metric on their grid: others break positivity")
    sizes = density.shape[-d:]
    cells = torch.arange(math.prod(sizes), device=metric.device).reshape(sizes)
    edges, conductances = [], []
    for i, h in enumerate(grid.spacing):
        wraps = grid.axis_is_periodic(i)
        if cells.shape[i] == 1:
            continue
        if wraps:
            pairs = torch.stack([cells, cells.roll(-1, i)], -1)
        else:
            size = cells.shape[i] - 1
            pairs = torch.stack([cells.narrow(i, 0, size), cells.narrow(i, 1, size)], -1)
        faces = 0.5 * _face_sum(density * inverse[..., i, i], i - d, wraps) / h**2
        edges.append(pairs.reshape(-1, 2))
        conductances.append(faces.flatten(-d))
    if not edges:
        return cells.new_zeros(0, 2), density.new_zeros(0), density.flatten(-d)
    return torch.cat(edges), torch.cat(conductances, -1), density.flatten(-d)


def edge_steps(field: Tensor, edges: Tensor, transports: Tensor | None = None) -> Tensor:
    """A_j carried to i, less A_i, for every edge (i, j), (..., E, k); ``transports`` (E, k, k) carry from j to i."""
    here, there = field.index_select(-2, edges[:, 0]), field.index_select(-2, edges[:, 1])
    if transports is not None:
        there = torch.einsum("eab,...eb->...ea", transports, there)
    return there - here


@arguments(field=Tensor, edges=Tensor, conductances=Tensor, transports=Tensor)
def connection_laplacian(
    field: Tensor, edges: Tensor, conductances: Tensor, transports: Tensor | None = None
) -> Tensor:
    """(ΔA)_i = Σ_j w_ij (O_ij A_j − A_i) of fields (..., V, k) on the nodes of a graph.

    ``transports`` O_ij (E, k, k) are orthogonal and carry vectors at j to i; their transposes carry them back. Without
    them the components are scalars. Raises: PointShapeError for fields without nodes, and edges that are not (E, 2)
    of integers.
    """
    if field.ndim < 2 or edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype not in (torch.int32, torch.int64):
        raise PointShapeError(
            f"fields are (..., V, k) and edges (E, 2) of integers, got {tuple(field.shape)} and {tuple(edges.shape)} "
            f"of {edges.dtype}"
        )
    count = conductances.shape[-1] if conductances.ndim else 0
    if count != len(edges) or (transports is not None and transports.shape[-3:-2] != (count,)):
        raise PointShapeError(f"{len(edges)} edges need as many conductances and transports, got {count}")
    flow = conductances.unsqueeze(-1) * edge_steps(field, edges, transports)
    back = flow if transports is None else torch.einsum("eba,...eb->...ea", transports, flow)
    shape = torch.broadcast_shapes(field.shape[:-2], flow.shape[:-2]) + field.shape[-2:]
    return field.new_zeros(shape).index_add(-2, edges[:, 0], flow).index_add(-2, edges[:, 1], -back)


def degrees(edges: Tensor, conductances: Tensor, nodes: int) -> Tensor:
    """Σ_j w_ij at every node, (..., V)."""
    total = conductances.new_zeros(*conductances.shape[:-1], nodes)
    return total.index_add(-1, edges[:, 0], conductances).index_add(-1, edges[:, 1], conductances)


@arguments(field=Tensor, metric=Tensor, grid=MetricGrid)
def vector_laplacian(field: Tensor, metric: Tensor, grid: MetricGrid) -> Tensor:
    """g^{ij} ∇_i∇_j A^k of contravariant vector fields (..., N1, ..., Nd, d), by differences of order four.

    ∇_jA^k = ∂_jA^k + Γ^k_jl A^l and ∇_i∇_jA^k = ∂_i(∇_jA^k) + Γ^k_il ∇_jA^l − Γ^l_ij ∇_lA^k. Raises `PointShapeError`.
    """
    if field.shape[-1 - grid.dim :] != metric.shape[-2 - grid.dim : -1]:
        raise PointShapeError(
            f"a vector field on a metric {tuple(metric.shape)} ends with {tuple(metric.shape[-2 - grid.dim : -1])}, "
            f"not {tuple(field.shape)}"
        )
    jet = grid.jet(metric)
    slope = grid.gradient(field, 1)
    covariant = slope + torch.einsum("...kjl,...l->...jk", jet.connection, field)
    second = (
        grid.hessian(field, 1)
        + torch.einsum("...ikjl,...l->...ijk", jet.connection_slope, field)
        + torch.einsum("...kjl,...il->...ijk", jet.connection, slope)
        + torch.einsum("...kil,...jl->...ijk", jet.connection, covariant)
        - torch.einsum("...lij,...lk->...ijk", jet.connection, covariant)
    )
    return torch.einsum("...ij,...ijk->...k", jet.inverse, second)
