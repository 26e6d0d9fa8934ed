"""Observables and Hamiltonians: Pauli matrices, spin chains, connection Laplacians; dense or sparse.

Source: Sakurai, Napolitano, Modern Quantum Mechanics, chapter 1; Singer, Wu, Vector diffusion maps (2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from aatc.passes.analysis.quantum.states import QuantumError
from aatc.passes.analysis.quantum.tensors import as_array, epsilon, factors, to_complex

#: Qubits of the longest spin chain: 2²⁰ states.
MOST_QUBITS = 20


def pauli(name: str) -> Tensor:
    """The Pauli matrix "I", "X", "Y" or "Z", or the product "XZY" of several qubits. Raises `QuantumError`."""
    table = {"I": [[1, 0], [0, 1]], "X": [[0, 1], [1, 0]], "Y": [[0, -1j], [1j, 0]], "Z": [[1, 0], [0, -1]]}
    if not name or set(name) - set(table):
        raise QuantumError(f"{name!r} is no product of Pauli matrices", hint="use the letters I, X, Y, Z")
    result = torch.ones(1, 1, dtype=torch.complex128)
    for letter in name:
        result = torch.kron(result, torch.tensor(table[letter], dtype=torch.complex128))
    return result


def hermitian(name: str, matrix: Any, dtype: torch.dtype | None = None) -> Tensor:
    """(H + H†)/2 of matrices (..., d, d). Raises `QuantumError` where H − H† is more than rounding."""
    h = to_complex(name, matrix, dtype)
    if h.ndim < 2 or h.shape[-1] != h.shape[-2]:
        raise QuantumError(f"{name} has shape (..., d, d), not {tuple(h.shape)}")
    known = h.detach()
    skew, size = float((known - known.mH).abs().max()), float(known.abs().max())
    if skew > 64 * max(epsilon(h), epsilon(matrix)) * size:
        raise QuantumError(f"{name} is not Hermitian: |H − H†| is {skew:.3g}, |H| is {size:.3g}")
    return (h + h.mH) / 2


def local_operator(operator: Any, factor: int, dims: int | Sequence[int]) -> Tensor:
    """1 ⊗ ... ⊗ A ⊗ ... ⊗ 1 with the operator (d_k, d_k) on factor k. Raises `QuantumError`."""
    sizes, a = factors(dims), to_complex("a local operator", operator)
    if not 0 <= factor < len(sizes) or a.shape != (sizes[factor], sizes[factor]):
        raise QuantumError(f"an operator {tuple(a.shape)} does not act on factor {factor} of {sizes}")
    before = int(np.prod(sizes[:factor], dtype=np.int64))
    after = int(np.prod(sizes[factor + 1 :], dtype=np.int64))
    eye = [torch.eye(k, dtype=a.dtype, device=a.device) for k in (before, after)]
    return torch.kron(torch.kron(eye[0], a.contiguous()), eye[1])


def sparse_hermitian(matrix: Any) -> scipy.sparse.csr_array[Any, tuple[int, int]]:
    """A SciPy or torch sparse matrix (d, d) as rows of float64 or complex128. Raises `QuantumError` unless it is
    finite and Hermitian."""
    if isinstance(matrix, Tensor):
        if matrix.requires_grad:
            raise QuantumError(
                "gradients with respect to a sparse Hamiltonian are not computed",
                hint="give it densely, or detach it: those of the state and of the time are",
            )
        coo = matrix.detach().cpu().to_sparse_coo().coalesce()
        matrix = scipy.sparse.coo_array((as_array(coo.values()), coo.indices().numpy()), shape=tuple(coo.shape))
    if not scipy.sparse.issparse(matrix) or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise QuantumError(f"a {type(matrix).__name__} is no sparse square matrix")
    rows = scipy.sparse.csr_array(matrix)
    rows = rows.astype(np.complex128 if np.iscomplexobj(rows) else np.float64)
    if not np.isfinite(rows.data).all():
        raise QuantumError("a sparse Hamiltonian has entries that are not finite")
    size = float(np.abs(rows.data).max(initial=0.0))
    skew = rows - rows.conj().T
    if skew.nnz and float(np.abs(skew.data).max()) > 1e-13 * size:
        raise QuantumError(f"a sparse Hamiltonian is not Hermitian: |H − H†| is {float(np.abs(skew.data).max()):.3g}")
    return rows


def heisenberg_chain(
    spins: int, coupling: float = 1.0, field: float = 0.0, *, anisotropy: float = 1.0, periodic: bool = True
) -> scipy.sparse.csr_array[Any, tuple[int, int]]:
    """H = J Σ_k (S^x S^x + S^y S^y + Δ S^z S^z)_{k,k+1} − h Σ_k S^z_k of spins ½, sparse (2^n, 2^n), real.

    Spin k is bit n − 1 − k of an index, 0 is up: factors are (2,) * n. Two spins have one bond even if ``periodic``.
    Raises `QuantumError` beyond MOST_QUBITS.
    """
    if not 1 <= spins <= MOST_QUBITS:
        raise QuantumError(f"a chain has 1 to {MOST_QUBITS} spins, not {spins}")
    index = np.arange(1 << spins, dtype=np.int32)
    up = [1 - 2.0 * ((index >> (spins - 1 - k)) & 1) for k in range(spins)]
    bonds = [(k, k + 1) for k in range(spins - 1)] + ([(spins - 1, 0)] if periodic and spins > 2 else [])
    diagonal = -field / 2 * sum(up, np.zeros(len(index)))
    rows, columns = [], []
    for a, b in bonds:
        diagonal = diagonal + coupling * anisotropy / 4 * up[a] * up[b]
        apart = index[up[a] != up[b]]
        rows.append(apart)
        columns.append(apart ^ np.int32((1 << (spins - 1 - a)) | (1 << (spins - 1 - b))))
    flips = sum(len(r) for r in rows)
    data = np.concatenate([diagonal, np.full(flips, coupling / 2)])
    at = (np.concatenate([index, *rows]), np.concatenate([index, *columns]))
    found = scipy.sparse.csr_array(scipy.sparse.coo_array((data, at), shape=(len(index), len(index))))
    found.sum_duplicates()
    return found


def connection_laplacian(weights: Any, links: Any = None) -> Tensor:
    """D − W∘U of symmetric weights (..., n, n) ≥ 0 and links U_ij, D_ii = Σ_j W_ij: Hermitian, positive.

    ``links``: phases (..., n, n), |U_ij| = 1 and U_ji = U_ij*, or unitary blocks (..., n, n, k, k) with U_ji = U_ij†,
    which make it (..., n k, n k);
    without links, the Laplacian of the graph. The diagonal of the weights plays no part. Raises `QuantumError`.
    """
    w = to_complex("weights", weights)
    if w.ndim < 2 or w.shape[-1] != w.shape[-2] or bool((w.detach().imag != 0).any() | (w.detach().real < 0).any()):
        raise QuantumError(f"weights {tuple(w.shape)} are no matrices (..., n, n) of numbers ≥ 0")
    n = int(w.shape[-1])
    w = hermitian("the matrix of weights", w) * (1 - torch.eye(n, dtype=w.dtype, device=w.device))
    u = torch.ones_like(w) if links is None else to_complex("links", links)
    blocks = u[..., None, None] if u.ndim == w.ndim else u
    if blocks.ndim != w.ndim + 2 or blocks.shape[-4:-2] != (n, n) or blocks.shape[-1] != blocks.shape[-2]:
        raise QuantumError(f"links {tuple(u.shape)} do not fit weights {tuple(w.shape)}")
    k = int(blocks.shape[-1])
    eye = torch.eye(k, dtype=w.dtype, device=w.device)
    kept = (w.detach() != 0)[..., None, None]
    unitary = torch.where(kept, blocks.detach() @ blocks.detach().mH - eye, 0).abs().max()
    if float(unitary) > 1e-9:
        raise QuantumError(f"a link is {float(unitary):.2g} from unitary")
    mixed = (w[..., None, None] * blocks).transpose(-3, -2).reshape(*w.shape[:-2], n * k, n * k)
    degree = torch.diag_embed(w.sum(-1))
    lifted = (degree[..., :, None, :, None] * eye[:, None, :]).reshape(*w.shape[:-2], n * k, n * k)
    return hermitian("the connection Laplacian", lifted - mixed)
