"""Characteristic classes of bundles over a complex, from parallel transport along its edges.

An edge (a, b) carries the transport from the fibre over a to the fibre over b. The holonomy of a 2-cell is the product
of transports around its boundary; a connection is admissible where no holonomy turns by π, and then there is exactly
one bundle that it belongs to. Computed here: c₁ of U(1), which is also the Euler class of SO(2); w₁ of O(n); w₂ of
SO(n) as the obstruction to a lift to Spin(n); Whitney sums of real line bundles. Not computed: higher classes, and w₂
of bundles that are not orientable (except sums of lines).

Sources: Fukui, Hatsugai, Suzuki, J. Phys. Soc. Japan 74 (2005) 1674; Lüscher, Comm. Math. Phys. 85 (1982) 39; Phillips,
Stone, Comm. Math. Phys. 103 (1986) 599; Lawson, Michelsohn, Spin Geometry, II.1; Milnor, Stasheff, Characteristic
Classes, §4; Knöppel, Crane, Pinkall, Schröder, Globally optimal direction fields, ACM TOG 32 (2013), for surfaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm, schur

from aatc.passes.analysis.chains.complexes import ChainComplex, SimplicialComplex
from aatc.passes.analysis.chains.cup import cup
from aatc.passes.analysis.chains.homology import chain_complex, homology
from aatc.passes.analysis.chains.verify_hodge import FluxWitness
from aatc.passes.analysis.result import AnalysisError, Result, Undecided
from aatc.passes.analysis.stochastic import float_array

Reals = NDArray[np.float64]
Signs = NDArray[np.int64]


class TransportError(AnalysisError):
    """Edge transports that are not a connection of the kind that was asked for."""


@dataclass(frozen=True)
class Curvature:
    """F in (−π, π) per 2-cell, ``flux`` (count_2,), and the cocycle n of c₁, ``integers`` (count_2,): F = dθ + 2πn.

    F/2π and n differ by d(θ/2π), so they are one class over R.
    """

    flux: Reals
    integers: NDArray[np.int64]


def curvature(
    source: ChainComplex | SimplicialComplex, phases: Any, margin: float = 1e-9
) -> Result[Curvature] | Undecided:
    """F and the cocycle of c₁ for phases θ (count_1,) in radians, one for each edge in canonical orientation.

    θ counts modulo 2π. `Undecided` where |F| ≥ π − margin, since F + 2π is then as good. Raises `TransportError` for
    phases that do not fit and where n is not closed: then F sums to 2π over a 3-cell, a monopole, and there is no
    bundle.
    """
    chain = chain_complex(source)
    theta = float_array(phases)
    if theta.shape != (chain.count(1),) or not np.isfinite(theta).all():
        raise TransportError(f"a U(1) connection has {chain.count(1)} finite phases, got shape {theta.shape}")
    turned = chain.coboundary(1) @ theta
    integers = -np.round(turned / (2 * np.pi)).astype(np.int64)
    flux = turned + 2 * np.pi * integers
    largest = float(np.abs(flux).max(initial=0.0))
    if largest >= np.pi - margin:
        cell = int(np.abs(flux).argmax())
        return Undecided(f"|F| < π − {margin:g}", f"the holonomy of 2-cell {cell} turns by {flux[cell]:.6f}: refine")
    opened = np.flatnonzero(chain.coboundary(2) @ integers)
    if len(opened):
        raise TransportError(f"the flux out of 3-cell {int(opened[0])} is not 0: a monopole, so there is no bundle")
    return Result(Curvature(flux, integers), "P1", assumptions=(f"|F| ≤ {largest:.6g} < π",))


def chern_number(
    source: ChainComplex | SimplicialComplex, phases: Any, cycle: Any = None, margin: float = 1e-9
) -> Result[int] | Undecided:
    """⟨c₁, cycle⟩ = Σ F/2π over a 2-cycle (count_2,); by default the generator of H_2 = Z with first entry positive.

    With link phases θ = arg⟨u_a|u_b⟩ this is the Chern number in the sign of Fukui, Hatsugai and Suzuki. Raises
    `TransportError`, also where H_2 is not Z and no cycle is given.
    """
    chain = chain_complex(source)
    found = curvature(chain, phases, margin)
    if isinstance(found, Undecided):
        return found
    given = fundamental_cycle(chain) if cycle is None else np.asarray(cycle)
    around = given.astype(np.int64)
    if around.shape != (chain.count(2),) or (around != given).any() or (chain.boundary(2) @ around).any():
        raise TransportError(f"the flux is integrated over a 2-cycle of {chain.count(2)} integers")
    number = int(np.dot(around, found.value.integers))
    total = float(np.dot(around, found.value.flux)) / (2 * np.pi)
    witness = FluxWitness(
        chain.boundary(2), np.asarray(phases, float), found.value.flux, found.value.integers, around, number,
        chain.boundary(3) if cycle is None else None,
    )  # fmt: skip
    return Result(number, "P1", 1e-9, abs(total - number), witness, found.assumptions)


def euler_number(
    source: ChainComplex | SimplicialComplex, angles: Any, cycle: Any = None, margin: float = 1e-9
) -> Result[int] | Undecided:
    """The Euler number of an oriented plane bundle with SO(2) transports by ``angles`` (count_1,).

    It is the Chern number of the bundle as a complex line bundle; see `chern_number`.
    """
    return chern_number(source, angles, cycle, margin)


def fundamental_cycle(source: ChainComplex | SimplicialComplex) -> NDArray[np.int64]:
    """The generator (count_2,) of H_2 = Z whose first nonzero entry is positive. Raises `TransportError`."""
    chain = chain_complex(source)
    groups = homology(chain, "Z", representatives=True).value
    if len(groups) < 3 or groups[2].free_rank != 1:
        raise TransportError(
            f"H_2 is {groups[2] if len(groups) > 2 else 0}, not Z", hint="give the 2-cycle to integrate over"
        )
    representatives = groups[2].representatives
    assert representatives is not None
    cycle = representatives[0].astype(np.int64)
    oriented: NDArray[np.int64] = cycle * np.sign(cycle[np.flatnonzero(cycle)[0]])
    return oriented


def link_phases(source: ChainComplex | SimplicialComplex, states: Any) -> Reals:
    """θ_e = arg⟨u_a|u_b⟩ for the edges (a, b) and states (count_0, d), complex: the Berry connection on a grid.

    Raises `TransportError` where two neighbours are orthogonal, so that the link has no phase.
    """
    chain, vectors = chain_complex(source), np.asarray(states)
    if vectors.ndim != 2 or len(vectors) != chain.count(0):
        raise TransportError(f"states have the shape ({chain.count(0)}, d), not {vectors.shape}")
    ends = chain.boundary(1).T.tocsr()
    tails, heads = np.zeros(chain.count(1), np.int64), np.zeros(chain.count(1), np.int64)
    rows, columns = ends.nonzero()
    signs = np.asarray(ends[rows, columns]).ravel()
    if len(rows) != 2 * chain.count(1):
        raise TransportError("an edge does not join two different vertices")
    tails[rows[signs < 0]], heads[rows[signs > 0]] = columns[signs < 0], columns[signs > 0]
    overlaps = (vectors[tails].conj() * vectors[heads]).sum(-1)
    sizes = np.linalg.norm(vectors[tails], axis=-1) * np.linalg.norm(vectors[heads], axis=-1)
    orthogonal = np.flatnonzero(~(np.abs(overlaps) > 1e-12 * sizes))
    if len(orthogonal):
        raise TransportError(f"the states at the ends of edge {int(orthogonal[0])} are orthogonal: refine the grid")
    angles: Reals = np.angle(overlaps)
    return angles


def surface_connection(complex: SimplicialComplex) -> tuple[Reals, NDArray[np.int64]]:
    """Levi-Civita transport on an oriented closed surface whose triangles are unit equilateral ones.

    Returns angles (count_1,) and the orientation (count_2,), entries ±1. At a vertex of degree m the angles are
    stretched by 6/m to make 2π, the neighbours lie at multiples of 2π/m, and an edge is carried to itself; a triangle
    has curvature Σ 2π/m − π, so Σ F = 2πχ: the Euler number of the tangent bundle. Raises `TransportError` for a
    complex that is not an orientable closed surface.
    """
    triangles, faces = complex.simplices(2), complex.faces(2)
    if complex.dimension != 2 or (np.bincount(faces.ravel(), minlength=complex.count(1)) != 2).any():
        raise TransportError("a closed surface has two triangles at every edge")
    orientation = fundamental_cycle(complex)
    if (np.abs(orientation) != 1).any():
        raise TransportError("the surface is not connected")
    follows: dict[int, dict[int, int]] = {}
    for (a, b, c), sign in zip(triangles.tolist(), orientation.tolist()):
        for v, x, y in ((a, b, c), (b, c, a), (c, a, b)):
            follows.setdefault(v, {})[x if sign > 0 else y] = y if sign > 0 else x
    directions: dict[tuple[int, int], float] = {}
    for v, after in follows.items():
        first = neighbour = min(after)
        for i in range(len(after)):
            directions[v, neighbour] = 2 * np.pi * i / len(after)
            neighbour = after[neighbour]
        if neighbour != first or len({w for u, w in directions if u == v}) != len(after):
            raise TransportError(f"the triangles at vertex {v} do not make one disc")
    edges = complex.simplices(1).tolist()
    # Seen from b the edge points backwards: coordinates at b are those at a, turned by the difference.
    return np.array([directions[b, a] + np.pi - directions[a, b] for a, b in edges]), orientation


def _transports(complex: SimplicialComplex, transports: Any) -> Reals:
    g = float_array(transports)
    if g.ndim != 3 or g.shape[0] != complex.count(1) or g.shape[1] != g.shape[2] or not g.shape[1]:
        raise TransportError(f"transports have the shape ({complex.count(1)}, n, n), not {g.shape}")
    defect = np.abs(g @ g.swapaxes(1, 2) - np.eye(g.shape[1])).max(axis=(1, 2), initial=0)
    bad = np.flatnonzero(~(defect < 1e-6))
    if len(bad):
        raise TransportError(f"the transport of edge {int(bad[0])} is not orthogonal")
    return g


def _holonomies(complex: SimplicialComplex, g: NDArray[Any]) -> NDArray[Any]:
    """g_ac⁻¹ g_bc g_ab for the triangles (a, b, c)."""
    faces = complex.faces(2)
    bc, ac, ab = g[faces[:, 0]], g[faces[:, 1]], g[faces[:, 2]]
    around: NDArray[Any] = ac.conj().swapaxes(1, 2) @ bc @ ab
    return around


def w1_cocycle(complex: SimplicialComplex, transports: Any) -> Signs | Undecided:
    """The cocycle (count_1,) of w₁ in F_2 for O(n) transports (count_1, n, n): 1 where the determinant is −1.

    `Undecided` where a triangle's holonomy has determinant −1, so that it is not near 1. Raises `TransportError`.
    """
    g = _transports(complex, transports)
    signs: NDArray[np.int64] = (np.linalg.det(g) < 0).astype(np.int64)
    opened = np.flatnonzero(complex.chain_complex.coboundary(1) @ signs % 2)
    if len(opened):
        return Undecided("holonomy near 1", f"the holonomy of triangle {int(opened[0])} reverses orientation: refine")
    return signs


def w2_cocycle(complex: SimplicialComplex, transports: Any, margin: float = 1e-6) -> Signs | Undecided:
    """The cocycle (count_2,) of w₂ in F_2 for SO(n) transports (count_1, n, n), n ≥ 2.

    Every transport is lifted to Spin(n) through its logarithm; a triangle has 1 where the product of the lifts is minus
    the lift of its holonomy that is near 1. `Undecided` where a holonomy has an angle within ``margin`` of π. Raises
    `TransportError` for determinants −1 and where the cochain is not closed.
    """
    g = _transports(complex, transports)
    if g.shape[1] < 2 or (np.linalg.det(g) < 0).any():
        raise TransportError("w₂ is computed for SO(n), n ≥ 2: determinants are 1", hint="w1_cocycle says where not")
    gammas = _gamma_matrices(g.shape[1])
    around = _holonomies(complex, g)
    angles = np.array([np.abs(np.angle(np.linalg.eigvals(h))).max() for h in around])
    if (angles > np.pi - margin).any():
        return Undecided(f"angle < π − {margin:g}", f"the holonomy of triangle {int(angles.argmax())} turns by π")
    lifted = _holonomies(complex, np.array([_spin_lift(x, gammas) for x in g]).reshape(-1, *gammas.shape[1:]))
    near = np.array([_spin_lift(h, gammas) for h in around]).reshape(lifted.shape)
    overlap = np.einsum("tij,tij->t", near.conj(), lifted).real / gammas.shape[1]
    cocycle: NDArray[np.int64] = (overlap < 0).astype(np.int64)
    opened = np.flatnonzero(complex.chain_complex.coboundary(2) @ cocycle % 2)
    if len(opened):
        raise TransportError(f"w₂ is not closed on the 3-simplex {int(opened[0])}: the holonomies belong to no bundle")
    return cocycle


def _gamma_matrices(n: int) -> NDArray[np.complex128]:
    """n anticommuting hermitian matrices of square 1, (n, 2^⌈n/2⌉, 2^⌈n/2⌉)."""
    x, y, z = (np.array(m, complex) for m in ([[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]))
    half, found = (n + 1) // 2, []
    for i in range(half):
        for own in (x, y):
            product = np.eye(1, dtype=complex)
            for j in range(half):
                product = np.kron(product, z if j < i else own if j == i else np.eye(2))
            found.append(product)
    return np.array(found[:n])


def _spin_lift(rotation: Reals, gammas: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """exp(¼ Σ ω_ij γ_i γ_j), which turns v·γ into (Rv)·γ; ω is an antisymmetric logarithm with angles in [−π, π]."""
    omega = _rotation_logarithm(rotation)
    lift: NDArray[np.complex128] = expm(0.25 * np.einsum("ij,iab,jbc->ac", omega, gammas, gammas))
    return lift


def _rotation_logarithm(rotation: Reals) -> Reals:
    blocks, basis = schur(rotation, output="real")
    n, i = len(blocks), 0
    omega, flipped = np.zeros((n, n)), []
    while i < n:
        if i + 1 < n and abs(blocks[i + 1, i]) > 1e-12:
            angle = np.arctan2(blocks[i + 1, i] - blocks[i, i + 1], blocks[i, i] + blocks[i + 1, i + 1])
            omega[i + 1, i], omega[i, i + 1] = angle, -angle
            i += 2
            continue
        if blocks[i, i] < 0:
            flipped.append(i)
        i += 1
    for one, two in zip(flipped[::2], flipped[1::2]):
        omega[two, one], omega[one, two] = np.pi, -np.pi
    turned: Reals = basis @ omega @ basis.T
    return turned


def line_bundle_classes(complex: SimplicialComplex, signs: Any) -> tuple[Signs, Signs]:
    """Cocycles of w₁ (count_1,) and w₂ (count_2,) of a Whitney sum of real line bundles L_1 ⊕ ... ⊕ L_r.

    ``signs`` (r, count_1) are cocycles in F_2: 1 where the transport of L_i is −1. w = Π (1 + x_i), so w₁ = Σ x_i and
    w₂ = Σ_{i<j} x_i ∪ x_j. Raises `TransportError` for cochains that are not closed.
    """
    x = np.atleast_2d(np.asarray(signs, dtype=np.int64)) % 2
    if x.ndim != 2 or x.shape[1] != complex.count(1):
        raise TransportError(f"signs have the shape (r, {complex.count(1)}), not {np.shape(signs)}")
    if (complex.chain_complex.coboundary(1) @ x.T % 2).any():
        raise TransportError("a sign cochain is not closed: the transports of a line bundle multiply to 1 on triangles")
    second = np.zeros(complex.count(2), np.int64)
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            second += cup(complex, x[i], 1, x[j], 1, 2)
    return x.sum(axis=0) % 2, second % 2
