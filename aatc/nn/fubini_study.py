"""Pure states and their Fubini-Study geometry under a learned Hermitian form.

A state ψ of C^m is kept as 2m real numbers, real parts before imaginary ones; ⟨φ|ψ⟩ = Σ φ*ψ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aatc.errors import ShapeError
from aatc.ir.reference import compute_dtype
from aatc.ir.score.expr import call
from aatc.metrics import Metric, Number
from aatc.parts import Capture, scalar_captures, scalar_expr, scalar_key


class FubiniStudy(Metric):
    """s = -beta d², d = acos|⟨q|k⟩|, the distance of the rays of two unit states of C^(D/2). Scale 1.

    q and k are unit vectors of D = 2m reals, real parts first. Computed as asin √(1 - |⟨q|k⟩|²), the same for unit
    states; d lies in [0, π/2]. Source: Bengtsson, Życzkowski, "Geometry of Quantum States", 2017, section 4.5.
    """

    def __init__(self, beta: Number = 1):
        self.beta = beta

    def key(self):
        return (self.tag, scalar_key(self.beta))

    def captures(self, sizes):
        if sizes.d % 2:
            raise ShapeError(f"states have {sizes.d} channels", hint="give real parts, then as many imaginary ones")
        # i k as a rotation of channel c with c + D/2: constants of the language are numbers, so the angle is a tensor
        quarter = torch.full((sizes.d // 2,), math.pi / 2, dtype=sizes.dtype, device=sizes.device)
        return [*scalar_captures("beta", self.beta, sizes), Capture("quarter", quarter, "d")]

    @classmethod
    def score(cls, key, q, k, captured):
        beta = scalar_expr(key[1], captured)
        turned = call("rotate", k, next(captured), attrs=("half",))
        fidelity = q.dot(k) ** 2 + q.dot(turned) ** 2
        distance = call("asinsqrt", 1.0 - fidelity)
        return -(beta * distance * distance)


def as_complex(states: Tensor) -> Tensor:
    """States (..., 2m) as complex numbers (..., m), of single precision for half precision."""
    return torch.complex(*states.to(compute_dtype(states.dtype)).chunk(2, -1))


def normalised(states: Tensor) -> Tensor:
    """Vectors (..., d) divided by their norms; the zero vector stays. Half precision has no norms as small or large as
    its vectors: they are found in single precision."""
    eps = max(1e-12, torch.finfo(states.dtype).tiny)  # gradients at 0 are 1/eps times those of the direction
    return torch.nn.functional.normalize(states.to(compute_dtype(states.dtype)), dim=-1, eps=eps).to(states.dtype)


def measured(states: Tensor, factor: Tensor) -> Tensor:
    """Unit states (B, H, N, 2m) as unit states (B, H, N, 2(m + r)) whose inner products are those of g = 1 + LL†.

    ψ ↦ (ψ, L†ψ)/√⟨ψ|g|ψ⟩ keeps ⟨φ|g|ψ⟩, so that distances under g are distances of the images. ``factor``
    (H, 2m, r): L, its real part above its imaginary one.
    """
    above, below = factor.chunk(2, -2)
    real, imaginary = states.chunk(2, -1)
    of_real = states @ factor
    of_imaginary = states @ torch.cat((-below, above), -2)
    return normalised(torch.cat((real, of_real, imaginary, of_imaginary), -1))


def hermitian_form(factor: Tensor) -> Tensor:
    """g = 1 + LL†, complex (H, m, m), of ``factor`` (H, 2m, r)."""
    low_rank = torch.complex(*factor.to(compute_dtype(factor.dtype)).chunk(2, -2))
    return torch.eye(low_rank.shape[-2], dtype=low_rank.dtype, device=factor.device) + low_rank @ low_rank.mH
