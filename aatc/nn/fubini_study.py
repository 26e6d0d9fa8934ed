"""Pure states, their Fubini-Study distance as a score, and their overlap as the amplitude by which values arrive.

A state ψ of C^m is kept as 2m real numbers, real parts before imaginary ones; ⟨φ|ψ⟩ = Σ φ*ψ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aatc.connections import Connection
from aatc.errors import ShapeError
from aatc.ir.reference import compute_dtype
from aatc.ir.score.expr import call
from aatc.metrics import Metric, Number
from aatc.parts import Capture, Sizes, scalar_captures, scalar_expr, scalar_key


def _quarter(name: str, width: int, sizes: Sizes) -> Capture:
    """Quarter turns of all channels: i ψ as a rotation of channel c with c + D/2. Constants of the language are
    numbers, so the angles are a tensor."""
    if width % 2:
        raise ShapeError(f"states have {width} channels", hint="give real parts, then as many imaginary ones")
    return Capture(name, torch.full((width // 2,), math.pi / 2, dtype=sizes.dtype, device=sizes.device), "d")


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
        return [*scalar_captures("beta", self.beta, sizes), _quarter("quarter", sizes.d, sizes)]

    @classmethod
    def score(cls, key, q, k, captured):
        beta = scalar_expr(key[1], captured)
        turned = call("rotate", k, next(captured), attrs=("half",))
        fidelity = q.dot(k) ** 2 + q.dot(turned) ** 2
        distance = call("asinsqrt", 1.0 - fidelity)
        return -(beta * distance * distance)


class Overlap(Connection):
    """v_j arrives at query i as ⟨k_j|q_i⟩ v_j, the amplitude of q_i to be found at k_j, so that values interfere:
    o_i = Σ_j w_ij |v_j⟩⟨k_j|q_i⟩. Scores are not changed.

    q and k are states of D/2 complex numbers, v of Dv/2, real parts before imaginary ones. Where q and k are unit
    states, v too, and the weights sum to 1, Σ_j w_ij |v_j⟩⟨k_j| is a contraction, and |o_ic|² is the probability with
    which it leaves q_i in channel c; the rest is lost. Two terms per value, (q·k) v + (q·ik) iv.
    """

    def captures(self, sizes):
        return [_quarter("quarter_k", sizes.d, sizes), _quarter("quarter_v", sizes.dv, sizes)]

    @classmethod
    def carried_value(cls, key, q, k, v, captured):
        turned_k, turned_v = (call("rotate", x, t, attrs=("half",)) for x, t in zip((k, v), captured, strict=True))
        return q.dot(k) * v + q.dot(turned_k) * turned_v


def as_complex(states: Tensor) -> Tensor:
    """States (..., 2m) as complex numbers (..., m), of single precision for half precision."""
    return torch.complex(*states.to(compute_dtype(states.dtype)).chunk(2, -1))


def normalised(states: Tensor) -> Tensor:
    """Vectors (..., d) divided by their norms; the zero vector stays. Half precision has no norms as small or large as
    its vectors: they are found in single precision."""
    eps = max(1e-12, torch.finfo(states.dtype).tiny)  # gradients at 0 are 1/eps times those of the direction
    return torch.nn.functional.normalize(states.to(compute_dtype(states.dtype)), dim=-1, eps=eps).to(states.dtype)
