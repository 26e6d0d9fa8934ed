"""The cup product of cochains on ordered simplices.

(φ ∪ ψ)(v_0, ..., v_{p+q}) = φ(v_0, ..., v_p) ψ(v_p, ..., v_{p+q}): front face times back face, in the order of vertices
that the canonical cells have. Source: Hatcher, Algebraic Topology, section 3.2; its δ has no sign, so that
δ(φ ∪ ψ) = δφ ∪ ψ + (−1)^p φ ∪ δψ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.chains.complexes import ComplexError, SimplicialComplex


def cochain_values(complex: SimplicialComplex, degree: int, values: Any) -> NDArray[Any]:
    """Values on the cells of one degree as an array (..., count_k). Raises `ComplexError` for shapes and NaN."""
    array = np.asarray(values)
    if array.ndim < 1 or array.shape[-1] != complex.count(degree):
        raise ComplexError(
            f"a cochain of degree {degree} has the shape (..., {complex.count(degree)}), not {array.shape}"
        )
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ComplexError(f"a cochain of degree {degree} has NaN at cell {int(np.argwhere(np.isnan(array))[0][-1])}")
    return array


def cup(complex: SimplicialComplex, one: Any, p: int, two: Any, q: int, modulus: int = 0) -> NDArray[Any]:
    """φ ∪ ψ for cochains φ (..., count_p) and ψ (..., count_q), batches broadcast: (..., count_{p+q}).

    ``modulus`` p reduces to 0, ..., p − 1. Raises `ComplexError`.
    """
    phi, psi = cochain_values(complex, p, one), cochain_values(complex, q, two)
    cells = complex.simplices(p + q)
    front, back = complex.index(cells[:, : p + 1]), complex.index(cells[:, p:])
    product: np.ndarray = phi[..., front] * psi[..., back]
    return product % modulus if modulus else product
