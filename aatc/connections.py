"""Connections: how keys and values are carried from their token to the query's.

A connection carries the key to the query before the metric compares the two, or the value before it is
averaged, or both.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from aatc.ir.errors import CaptureError, ScoreError, ShapeError
from aatc.ir.score.expr import Expr, call
from aatc.parts import Capture, Key, Part, Sizes, curvature_captures, number, scalar_expr, scalar_key, tensor
from aatc.parts import curvature as checked_curvature


class Connection(Part):
    """``carried_key`` and ``carried_value`` give the key and the value as they arrive at the query."""

    @classmethod
    def carried_key(cls, key: Key, q: Expr, k: Expr, captured: list[Expr]) -> Expr:
        return k

    @classmethod
    def carried_value(cls, key: Key, q: Expr, k: Expr, v: Expr, captured: list[Expr]) -> Expr:
        return v


def _same_width(who: str, sizes: Sizes) -> None:
    if sizes.dv != sizes.d:
        raise ShapeError(
            f"{who} carries values, which needs v as wide as q and k: v has {sizes.dv} features, q {sizes.d}"
        )


class Rotary(Connection):
    """Turns channel pairs by an angle proportional to the position (RoPE, Su et al. 2021): k arrives at the
    query as R(p_j - p_i) k, so that scores depend on relative positions.

    ``q_positions``: (N,), (N, A) for A axes, or (B, N, A); None for 0..N-1. ``k_positions`` likewise, for the
    keys; None for the same. Axis a turns the a-th of A equal shares of the D/2 pairs, by p_a base^(-2c A/D)
    for c = 0, 1, ... ``style`` "half" pairs channel c with c + D/2, "pairs" 2c with 2c + 1. With ``values``
    the value is turned as well. A rotation of all D channels keeps dot products and Euclidean, Poincaré and
    spherical distances; Lorentz metrics need ``lift=True`` beside it.
    """

    def __init__(
        self,
        q_positions: torch.Tensor | None = None,
        k_positions: torch.Tensor | None = None,
        base: float = 10000,
        style: str = "half",
        values: bool = False,
    ):
        if style not in ("half", "pairs"):
            raise ScoreError(f"rotary style {style!r}", hint='there are "half" and "pairs"')
        if q_positions is None and k_positions is not None:
            raise CaptureError("Rotary has k_positions without q_positions")
        base = number("the base of Rotary", base)
        if isinstance(base, torch.Tensor):
            if base.dim() or base.is_complex() or base.dtype == torch.bool:
                raise CaptureError(
                    f"the base of Rotary is a tensor of {base.dtype} of shape {tuple(base.shape)}; it is one number"
                )
        elif not base > 0:
            raise ScoreError(f"the base of Rotary is {base}", hint="angles are p base^(-2c/D): it is positive")
        q_positions = None if q_positions is None else tensor("q_positions", q_positions)
        k_positions = None if k_positions is None else tensor("k_positions", k_positions)
        self.q_positions, self.k_positions, self.base, self.style, self.values = (
            q_positions, k_positions, base, style, values,
        )  # fmt: skip

    def key(self):
        return (self.tag, self.style, bool(self.values))

    def captures(self, sizes):
        if sizes.d % 2:
            raise ShapeError(f"Rotary turns pairs of channels, q and k have an odd number: {sizes.d}")
        if self.values:
            _same_width("Rotary(values=True)", sizes)
        q_positions, k_positions = self.q_positions, self.k_positions
        if q_positions is None:
            q_positions = torch.arange(sizes.i, device=sizes.device)
            k_positions = torch.arange(sizes.j, device=sizes.device)
        theta_q, axes = self._angles(q_positions, sizes)
        if k_positions is None:
            return [Capture("theta_q", theta_q, axes + "id"), Capture("theta_k", theta_q, axes + "jd")]
        theta_k, k_axes = self._angles(k_positions, sizes)
        return [Capture("theta_q", theta_q, axes + "id"), Capture("theta_k", theta_k, k_axes + "jd")]

    def _angles(self, positions: torch.Tensor, sizes: Sizes) -> tuple[torch.Tensor, str]:
        if positions.dim() not in (1, 2, 3):
            raise CaptureError(
                f"rotary positions have shape {tuple(positions.shape)}; they are (N,), (N, A) or (B, N, A)"
            )
        if positions.dim() == 1:
            positions = positions.unsqueeze(-1)
        count, pairs = positions.shape[-1], sizes.d // 2
        if pairs % count:
            raise ShapeError(
                f"Rotary shares {pairs} pairs of channels among {count} axes",
                hint=f"make D a multiple of {2 * count}",
            )
        share = pairs // count
        steps = torch.arange(share, dtype=torch.float64, device=positions.device)
        each = self.base ** (-steps / share)  # in float64, and so is its product with positions of any type
        angles = positions * each if count == 1 else (positions.unsqueeze(-1) * each).flatten(-2)
        if sizes.dtype != torch.float64:
            # in float64 up to here: single precision holds a large angle to whole turns only. Not by torch.round, which
            # calls all threads for a few thousand numbers: on a busy machine that takes longer than a small attention
            angles = (torch.remainder(angles + math.pi, 2 * math.pi) - math.pi).to(torch.float32)
        return angles, "b" if positions.dim() == 3 else ""

    @classmethod
    def _carried(cls, key: Key, x: Expr, captured: list[Expr]) -> Expr:
        theta_q, theta_k = captured
        return call("rotate", call("rotate", x, theta_k, attrs=(key[1],)), -theta_q, attrs=(key[1],))

    @classmethod
    def carried_key(cls, key, q, k, captured):
        return cls._carried(key, k, captured)

    @classmethod
    def carried_value(cls, key, q, k, v, captured):
        return cls._carried(key, v, captured) if key[2] else v


class Frames(Connection):
    """Orthogonal frames per token: k arrives as F_iᵀ F_j k, and so does v with ``values``.

    The columns of F are a token's own axes. ``q_frames``: (N, D, D), (B, N, D, D) or (B, H, N, D, D);
    ``k_frames`` likewise for the keys; None for the same. That they are orthogonal is not checked here; gradients of
    learned frames are those along rotations, so parametrise them (matrix_exp of a skew matrix, say).
    """

    def __init__(self, q_frames: torch.Tensor, k_frames: torch.Tensor | None = None, values: bool = True):
        self.q_frames, self.k_frames, self.values = (
            tensor("q_frames", q_frames),
            tensor("k_frames", q_frames if k_frames is None else k_frames),
            values,
        )

    def key(self):
        return (self.tag, bool(self.values))

    def captures(self, sizes):
        if self.values:
            _same_width("Frames(values=True)", sizes)
        return [
            self._capture("frame_q", self.q_frames, "i", sizes),
            self._capture("frame_k", self.k_frames, "j", sizes),
        ]

    def _capture(self, name: str, frames: torch.Tensor, axis: str, sizes: Sizes) -> Capture:
        if frames.dim() not in (3, 4, 5) or frames.shape[-1] != sizes.d or frames.shape[-2] != sizes.d:
            raise CaptureError(
                f"{name} has shape {tuple(frames.shape)}; with D = {sizes.d} features, frames are (N, D, D), "
                "(B, N, D, D) or (B, H, N, D, D)"
            )
        return Capture(name, frames, ("", "b", "bh")[frames.dim() - 3] + axis + "de")

    @classmethod
    def _carried(cls, x: Expr, captured: list[Expr]) -> Expr:
        return call("unturn", captured[0], call("turn", captured[1], x))

    @classmethod
    def carried_key(cls, key, q, k, captured):
        return cls._carried(k, captured)

    @classmethod
    def carried_value(cls, key, q, k, v, captured):
        return cls._carried(v, captured) if key[1] else v


class SphereTransport(Connection):
    """Levi-Civita transport of values along great circles: v_j, tangent at k_j, arrives at q_i as
    v - c<q, v>/(1 + c<q, k>) (q + k). Scores are not changed; q and k are taken to be of length 1/sqrt(c), c > 0 being
    the ``curvature``, a number or a tensor () or (H,): unit vectors where it is 1.

    Between antipodes every great circle is a shortest geodesic. 1 + c<q, k> = c|q + k|²/2 counts as at least 4 ε, ε
    that of the tensors' dtype, but no less than 2⁻²⁶: nearer to the antipode than 0.01° in float64, 0.06° in float32,
    5° in float16 and 14° in bfloat16, where rounding decides the value, it turns less and less, and at the antipode it
    arrives unchanged.
    """

    def __init__(self, curvature: float | torch.Tensor = 1):
        self.curvature = checked_curvature(curvature)

    def key(self):
        return (self.tag, scalar_key(self.curvature, "curvature"))

    def captures(self, sizes):
        _same_width("SphereTransport", sizes)
        # As an integer, because numbers among the captures get gradients.
        # In float64 the quotient times q and times k, which are summed apart, must still leave half of the digits.
        bits = min(26, round(-math.log2(4 * torch.finfo(sizes.dtype).eps)))
        floor = Capture("bits", torch.full((), bits, dtype=torch.int64, device=sizes.device), "", "i")
        return [floor, *curvature_captures(self.curvature, sizes)]

    @classmethod
    def carried_value(cls, key, q, k, v, captured):
        # <q, v> = <q + k, v> of a tangent v: with the floor, the correction is at most 2|v| but for rounding.
        floor, c = call("exp2", -captured[0]), scalar_expr(key[1], iter(captured[1:]))
        return v - (c * q.dot(v) / call("maximum", 1.0 + c * q.dot(k), floor)) * (q + k)


class HyperboloidTransport(Connection):
    """Levi-Civita transport of values along geodesics of the hyperboloid <x, x>_L = -1/c, time coordinate first,
    ``curvature`` c > 0 a number or a tensor () or (H,): v_j, tangent at k_j, arrives at q_i as
    v + c<q, v>_L/(1 - c<q, k>_L) (q + k). Scores are not changed."""

    def __init__(self, curvature: float | torch.Tensor = 1):
        self.curvature = checked_curvature(curvature)

    def key(self):
        return (self.tag, scalar_key(self.curvature, "curvature"))

    def captures(self, sizes):
        _same_width("HyperboloidTransport", sizes)
        return curvature_captures(self.curvature, sizes)

    @classmethod
    def carried_value(cls, key, q, k, v, captured):
        c = scalar_expr(key[1], iter(captured))
        return v + (c * q.dot(call("eta", v)) / (1.0 - c * q.dot(call("eta", k)))) * (q + k)


def as_connection(connection: Any) -> Connection | None:
    if connection is None or isinstance(connection, Connection):
        return connection
    raise CaptureError(f"connection is a {type(connection).__name__}", hint="give an object of aatc.connections")
