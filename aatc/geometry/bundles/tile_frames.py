"""Per-token frames that replace a flat connection between tokens, by a spanning forest."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from aatc.geometry.arguments import arguments
from aatc.geometry.bundles.tile_transport import TileError
from aatc.geometry.manifold import GeometryError, PointShapeError
from aatc.geometry.manifolds.curvature import require_full_precision


class HolonomyError(GeometryError):
    """Transports that no frames give. ``frames`` is the `TileFrames` that was found, with the cycle that refutes."""

    def __init__(self, message: str, *, frames: TileFrames) -> None:
        super().__init__(message)
        self.frames = frames


@dataclass(frozen=True)
class TileFrames:
    """Frames with T_ij ≈ g_i g_j⁻¹ and what keeps them from equality.

    ``frames`` (..., n, d, d), the identity at each component's first token; ``residual`` the largest defect
    |T_ij g_j g_i⁻¹ − 1| (spectral norm) over the edges, () ; ``cycle`` the vertices of the cycle where it occurs,
    its edges running from each vertex to the one before, cyclically, empty if there is no cycle; ``lower_bound``:
    whatever frames are taken, |T_ij − g_i g_j⁻¹| reaches it on some edge of that cycle; ``isometric_bound``: the
    same for orthogonal frames, on a triangle of orthogonal transports residual/3.
    """

    frames: Tensor
    residual: Tensor
    cycle: tuple[int, ...]
    lower_bound: float
    isometric_bound: float


def _spanning_forest(edges: list[tuple[int, int]], count: int) -> tuple[list[int], list[tuple[int, int, bool]]]:
    """Parents (−1 for roots), and (child, edge, whether the edge ends at the child) by breadth first search."""
    at: list[list[tuple[int, int, bool]]] = [[] for _ in range(count)]
    for number, (i, j) in enumerate(edges):
        at[j].append((i, number, True))
        at[i].append((j, number, False))
    parent: list[int] = [-2] * count
    order: list[tuple[int, int, bool]] = []
    for root in range(count):
        if parent[root] != -2:
            continue
        parent[root] = -1
        waiting = deque([root])
        while waiting:
            here = waiting.popleft()
            for there, number, forward in at[here]:
                if parent[there] == -2:
                    parent[there] = here
                    order.append((there, number, forward))
                    waiting.append(there)
    return parent, order


def _cycle(parent: list[int], i: int, j: int) -> tuple[int, ...]:
    """i, j and the way in the forest from j back to i."""
    if i == j:
        return (i,)
    above = [i]
    while parent[above[-1]] >= 0:
        above.append(parent[above[-1]])
    depth = {vertex: k for k, vertex in enumerate(above)}
    way = [j]
    while way[-1] not in depth:
        way.append(parent[way[-1]])
    return (i, *way, *reversed(above[1 : depth[way[-1]]])) if way[-1] != i else (i, *way[:-1])


def _bounds(transports: Tensor, cycle: list[tuple[int, bool]], defect: float) -> tuple[float, float]:
    """What any frames, and what orthogonal frames, must err by on an edge of a cycle of (edge, backwards)."""
    if not cycle:
        return 0.0, 0.0
    used = transports[..., [number for number, _ in cycle], :, :]
    turns = [k for k, (_, backwards) in enumerate(cycle) if backwards]
    norms = torch.linalg.matrix_norm(used, ord=2).reshape(-1, len(cycle)).amax(0).tolist()
    inverse = 0.0
    if turns:
        sizes = torch.linalg.matrix_norm(torch.linalg.inv(used[..., turns, :, :]), ord=2).reshape(-1, len(turns))
        for k, value in zip(turns, sizes.amax(0).tolist()):
            norms[k] = value
        inverse = float(sizes.max())
    largest, n = max(norms), len(cycle)
    free = (largest**n + defect) ** (1 / n) - largest
    fixed = defect / sum(largest**k for k in range(n))
    if not turns:
        return free, fixed
    # An error ε of T is one of up to |T⁻¹|²ε/(1 − |T⁻¹|ε) of T⁻¹, or of |T⁻¹|ε where the frames are orthogonal.
    return min(free, free / (inverse * (inverse + free))), fixed / max(1.0, inverse)


def _solved(step: Tensor, right: Tensor, edge: tuple[int, int] | None) -> Tensor:
    try:
        solved: Tensor = torch.linalg.solve(step, right)
        return solved
    except torch.linalg.LinAlgError as error:
        place = "an edge" if edge is None else f"the edge {edge}"
        raise TileError(f"the transport of {place} is singular: frames need transports that have inverses") from error


def _check_edges(edges: Tensor, transports: Tensor, count: int) -> None:
    if not isinstance(count, int) or count < 0:
        raise TileError(f"count = {count!r}: a number of tokens is needed")
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.is_floating_point() or edges.dtype == torch.bool:
        raise PointShapeError(f"edges are integers (E, 2), got {edges.dtype} {tuple(edges.shape)}")
    shape = tuple(transports.shape)
    if transports.ndim < 3 or shape[-1] != shape[-2] or shape[-3] != edges.shape[0]:
        raise PointShapeError(f"transports of {edges.shape[0]} edges have the shape (..., E, d, d), got {shape}")
    require_full_precision(transports, "frames")
    if edges.numel() and not (int(edges.min()) >= 0 and int(edges.max()) < count):
        raise TileError(f"edges join the tokens 0 to {count - 1}, got {int(edges.min())} to {int(edges.max())}")
    if not bool(transports.detach().isfinite().all()):
        raise TileError("the transports are not finite")


@arguments(edges=Tensor, transports=Tensor)
def tile_frames(edges: Tensor, transports: Tensor, count: int, *, atol: float | None = None) -> TileFrames:
    """Per-token frames g_i with T_ij = g_i g_j⁻¹ on every edge, by a spanning forest, if the connection is flat.

    ``edges`` (E, 2), rows (i, j); ``transports`` (..., E, d, d), invertible, T_ij taking vectors at j to i;
    ``count``: the number of tokens. The forest is breadth first from the smallest token, so that with all pairs
    given the cycles checked are triangles. Frames are differentiable in the transports.

    Raises `HolonomyError`, carrying the frames found, if the defect of an edge exceeds ``atol`` (default: the root
    of the dtype's epsilon). The product of g_i g_j⁻¹ round a cycle is 1; comparing it factor by factor with that of
    the transports, δ away from 1, gives for the error ε of any frames (τ + ε)^L − τ^L ≥ δ, and for orthogonal ones
    ε Σ_{k<L} τ^k ≥ δ, that is ε ≥ δ/L where T is orthogonal too; L is the number of edges and τ the largest |T|.
    Where the cycle runs an edge backwards the bounds allow for the inverse. Raises `TileError` and
    `PointShapeError` for edges and transports that do not fit.
    """
    _check_edges(edges, transports, count)
    pairs = [(int(i), int(j)) for i, j in edges.tolist()]
    parent, order = _spanning_forest(pairs, count)
    batch, d = transports.shape[:-3], transports.shape[-1]
    one = torch.eye(d, dtype=transports.dtype, device=transports.device).expand(*batch, d, d)
    frames: list[Tensor] = [one] * count
    for child, number, forward in order:
        step, above = transports[..., number, :, :], frames[parent[child]]
        frames[child] = step @ above if forward else _solved(step, above, pairs[number])
    stacked = torch.stack(frames, -3) if count else one.unsqueeze(-3)[..., :0, :, :]
    if not pairs or not transports.numel():
        return TileFrames(stacked, transports.new_zeros(()), (), 0.0, 0.0)
    # Round the cycle from i and back, in the frame at i: (T_ij g_j) g_i⁻¹.
    moved = transports @ stacked[..., edges[:, 1], :, :]
    there = _solved(stacked[..., edges[:, 0], :, :].mT, moved.mT, None).mT
    defects = torch.linalg.matrix_norm(there - torch.eye(d, dtype=there.dtype, device=there.device), ord=2)
    defects = defects.reshape(-1, len(pairs)).amax(0)
    worst = int(defects.detach().argmax())
    residual = defects[worst]
    tree = {child: (number, forward) for child, number, forward in order}
    in_tree = any(number == worst for number, _ in tree.values())
    cycle = () if in_tree else _cycle(parent, *pairs[worst])
    ways = [(worst, False)] if cycle else []
    for to, source in zip(cycle[1:], (*cycle[2:], *cycle[:1])):
        down = parent[to] == source
        number, forward = tree[to if down else source]
        ways.append((number, forward != down))
    result = TileFrames(stacked, residual, cycle, *_bounds(transports.detach(), ways, float(residual.detach())))
    room = torch.finfo(transports.dtype).eps ** 0.5 if atol is None else atol
    if not float(residual.detach()) <= room:
        raise HolonomyError(
            f"the connection is not flat: round the tokens {cycle} the transports compose to 1 only within "
            f"{float(residual.detach()):.3g}, allowed {room:.3g}; any frames err by at least {result.lower_bound:.3g}",
            frames=result,
        )
    return result
