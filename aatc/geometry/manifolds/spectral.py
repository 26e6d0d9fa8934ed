"""Functions of symmetric matrices by their eigenvalues, with derivatives up to the third that hold at equal ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from aatc.geometry.manifold import GeometryError, atanhc, sinhc

_HIGHEST = 3
# Nodes of the trapezoidal rule in log t: its error is e^(−2π²/step), and the ends are beyond eigenvalues whose ratio is
# that of the largest and the least number of double precision's digits.
_STEP, _REACH = 0.5, 60.0


def symmetric(a: Tensor) -> Tensor:
    """(a + aᵀ)/2."""
    return (a + a.mT) / 2


def spectral(a: Tensor, name: str, shift: Tensor | None = None) -> Tensor:
    """f of a symmetric matrix, f being ``exp``, ``sqrt``, ``log`` (of a + shift·1, shift 0 or 1) or ``floor``.

    (..., n, n) to (..., n, n). Derivatives up to the third, of ``floor`` up to the second, in every mode; higher ones
    are a GeometryError.
    """
    return _derivative(a, name, shift)


def spectral_derivative(a: Tensor, name: str, change: Tensor, shift: Tensor | None = None) -> Tensor:
    """The derivative of `spectral` at ``a`` along the symmetric ``change``, with derivatives up to the second."""
    a, change = torch.broadcast_tensors(a, change)
    return _derivative(a, name, shift, change)


def _derivative(a: Tensor, name: str, shift: Tensor | None, *changes: Tensor) -> Tensor:
    shift = a.new_zeros(()).expand(*a.shape[:-2], 1) if shift is None else shift
    values, vectors = torch.linalg.eigh(a.detach())
    return _apply(name, a, values, vectors, shift, *changes)


def _apply(name: str, a: Tensor, values: Tensor, vectors: Tensor, shift: Tensor, *changes: Tensor) -> Tensor:
    if len(changes) > (2 if name == "floor" else _HIGHEST):
        raise GeometryError(f"{name} of symmetric matrices has no derivatives of order {len(changes)}")
    if not torch.compiler.is_compiling():
        return cast(Tensor, _Everywhere.apply(name, a, values, vectors, shift, *changes))
    given = torch.broadcast_tensors(a, *changes)
    result: Tensor = torch.ops.aatc_spectral.derivative(given[0], values, vectors, shift, list(given[1:]), name)
    for tensor in given:
        result = result + _NoTangent.apply(tensor)
    return result


class _Everywhere(torch.autograd.Function):
    """The k-th derivative of f at A along H₁..H_k, D^k f(A)[H₁, ..., H_k]; k = 0 is f(A).

    In the eigenbasis of A its entries are Σ_π Σ f[λ_i, λ_k, ..., λ_j] (H_π1)_ik ... (H_πk)_lj, over permutations π,
    f[.] being divided differences, which at equal eigenvalues are derivatives, where those of single eigenvectors are
    infinite (Daleckii, Krein, 1965). tr(G D^k f(A)[H₁..H_k]) is symmetric in all its matrices, so each derivative is a
    D^k or D^(k+1) again. Eigenvalues and eigenvectors are given, and do not carry derivatives themselves.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, a: Tensor, values: Tensor, vectors: Tensor, shift: Tensor, *changes: Tensor) -> Tensor:
        return _evaluate(name, values, vectors, shift, *changes)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.name, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        given, changes = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        of_a = _apply(ctx.name, *given, *changes, grads[0]) if ctx.needs_input_grad[1] else None
        rest = [
            _apply(ctx.name, *given, *changes[:i], grads[0], *changes[i + 1 :]) if ctx.needs_input_grad[5 + i] else None
            for i in range(len(changes))
        ]
        return None, of_a, None, None, None, *rest

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        given, changes = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        terms = [_apply(ctx.name, *given, *changes, tangents[1])] if tangents[1] is not None else []
        for i, tangent in enumerate(tangents[5:]):
            if tangent is not None:
                terms.append(_apply(ctx.name, *given, *changes[:i], tangent, *changes[i + 1 :]))
        return torch.stack(terms).sum(0) if terms else None


class _NoTangent(torch.autograd.Function):
    """0, whose derivative is 0 backwards and NaN forwards, where Dynamo takes the forward for what it says: operators
    drop tangents, which would be wrong without a sign of it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return (a - a.detach()).square().sum().sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.zeros_like(ctx.saved_tensors[0])


# Dynamo has no rule for the forward derivatives of functions, and loses the derivatives of their backwards: in graphs
# an operator takes their place.
_LIBRARY = torch.library.Library("aatc_spectral", "DEF")
_LIBRARY.define(
    "derivative(Tensor a, Tensor values, Tensor vectors, Tensor shift, Tensor[] changes, str name) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _operator(
    a: Tensor, values: Tensor, vectors: Tensor, shift: Tensor, changes: Sequence[Tensor], name: str
) -> Tensor:
    return _evaluate(name, values, vectors, shift, *changes)


def _operator_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    *given, changes, ctx.name = inputs
    ctx.save_for_backward(*given, *changes)


def _operator_backward(ctx: Any, grad: Tensor) -> Any:
    given, changes = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    of_a = _apply(ctx.name, *given, *changes, grad) if ctx.needs_input_grad[0] else None
    rest = [_apply(ctx.name, *given, *changes[:i], grad, *changes[i + 1 :]) for i in range(len(changes))]
    return of_a, None, None, None, rest, None


def _operator_batched(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
    def front(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    given = [front(tensor, dim) for tensor, dim in zip(inputs[:4], in_dims[:4])]
    dims = in_dims[4] if in_dims[4] is not None else [None] * len(inputs[4])
    changes = [front(tensor, dim) for tensor, dim in zip(inputs[4], dims)]
    return torch.ops.aatc_spectral.derivative(*given, changes, inputs[5]), 0


_NAME = "aatc_spectral::derivative"
_LIBRARY.impl("derivative", _operator, "CompositeExplicitAutograd")
torch.library.register_fake(_NAME, lambda a, *rest: torch.empty_like(a), lib=_LIBRARY)
torch.library.register_autograd(_NAME, _operator_backward, setup_context=_operator_context, lib=_LIBRARY)
torch.library.register_vmap(_NAME, _operator_batched, lib=_LIBRARY)


def _evaluate(name: str, values: Tensor, vectors: Tensor, shift: Tensor, *changes: Tensor) -> Tensor:
    if not changes:
        return (vectors * _value(name, values, shift).unsqueeze(-2)) @ vectors.mT
    inner = [vectors.mT @ symmetric(change) @ vectors for change in changes]
    differences = _divided_differences(name, values, shift, len(changes))
    sums = "ij,ij->ij", "ikj,ik,kj->ij", "iklj,ik,kl,lj->ij"
    letters = sums[len(changes) - 1].replace(",", ",...").replace("->", "->...")
    orders = itertools.permutations(inner)
    total = torch.stack([torch.einsum("..." + letters, differences, *order) for order in orders]).sum(0)
    return vectors @ total @ vectors.mT


def _value(name: str, values: Tensor, shift: Tensor) -> Tensor:
    if name == "exp":
        return values.exp()
    if name == "sqrt":
        return values.clamp_min(0).sqrt()
    if name == "log":
        return torch.where(shift == 1, values.log1p(), _positive(values).log())
    return torch.maximum(values, _floor(values))


def _divided_differences(name: str, values: Tensor, shift: Tensor, order: int) -> Tensor:
    """f[λ_i, ..., λ_j] over ``order`` + 1 indices, (..., n, ..., n)."""
    if order == 1:
        return _first_differences(name, values, shift)
    if name == "exp":
        return _exponential_differences(values, order)
    if name == "floor":
        return _second_floor_differences(values)
    if name == "sqrt" and order == 2:
        total = _first_differences(name, values, shift)
        return -total.unsqueeze(-1) * total.unsqueeze(-3) * total.unsqueeze(-2)
    return _integrated_differences(name, _positive(values + shift), order)


def _first_differences(name: str, values: Tensor, shift: Tensor) -> Tensor:
    a, b = values.unsqueeze(-1), values.unsqueeze(-2)
    if name == "exp":
        return ((a + b) / 2).exp() * sinhc((a - b) / 2)
    if name == "sqrt":
        root = _positive(values).sqrt()
        return 1 / (root.unsqueeze(-1) + root.unsqueeze(-2))
    if name == "log":
        total = _positive(a + b + 2 * shift.unsqueeze(-1))
        return 2 * atanhc((a - b) / total) / total
    floor = _floor(values).unsqueeze(-1)
    over = (a > floor) & (b > floor)
    apart = over | (a <= floor) & (b <= floor)
    change = torch.maximum(a, floor) - torch.maximum(b, floor)
    return torch.where(apart, over.to(values.dtype), change / torch.where(apart, torch.ones_like(change), a - b))


def _exponential_differences(values: Tensor, order: int) -> Tensor:
    """exp[λ_0, ..., λ_k] is the corner of expm of the bidiagonal matrix of the λ and ones (G. Opitz, 1964)."""
    batch, n, indices = values.shape[:-1], values.shape[-1], range(order + 1)
    axes = [values.reshape(*batch, *(n if i == j else 1 for j in indices)) for i in indices]
    points = torch.stack(torch.broadcast_tensors(*axes), -1)
    middle = points.mean(-1, keepdim=True)
    above = torch.diag(torch.ones(order, dtype=values.dtype, device=values.device), 1)
    corner: Tensor = torch.linalg.matrix_exp(torch.diag_embed(points - middle) + above)[..., 0, -1]
    return corner * middle.squeeze(-1).exp()


def _second_floor_differences(values: Tensor) -> Tensor:
    first = _first_differences("floor", values, values)
    a, b, c = values[..., :, None, None], values[..., None, :, None], values[..., None, None, :]
    ab, bc, aa, ac = (
        first.unsqueeze(-1),
        first.unsqueeze(-3),
        torch.diagonal(first, dim1=-2, dim2=-1)[..., :, None, None],
        first.unsqueeze(-2),
    )
    ends, sides = a != c, a != b
    top = torch.where(ends, ab - bc, torch.where(sides, aa - ab, torch.zeros_like(ac)))
    bottom = torch.where(ends, a - c, torch.where(sides, a - b, torch.ones_like(ac)))
    return top / bottom


def _integrated_differences(name: str, values: Tensor, order: int) -> Tensor:
    """log[λ_0..λ_k] = (−1)^{k+1} ∫₀^∞ dt/Π(λ_i + t); of √, √t/π stands before it. All terms have one sign, so the
    trapezoidal rule in log t keeps every digit."""
    u = torch.arange(-_REACH, _REACH + _STEP, _STEP, dtype=values.dtype, device=values.device)
    middle = (values.amin(-1, keepdim=True).log() + values.amax(-1, keepdim=True).log()) / 2
    scaled, t = values / middle.exp(), u.exp()
    # the power of t is shared out, so that nothing overflows where a product is small
    power = (1.0 if name == "log" else 1.5) / (order + 1)
    poles = (power * u).exp() / (scaled.unsqueeze(-1) + t)
    factor = (_STEP if name == "log" else _STEP / math.pi) * (-1) ** (order + 1)
    letters = "iklj"[: order + 1]
    terms = ",".join(f"...{letter}u" for letter in letters)
    total = factor * torch.einsum(f"{terms}->...{letters}", *[poles] * (order + 1))
    scale = (-(order if name == "log" else order - 0.5) * middle).exp()
    return cast(Tensor, total * scale.reshape(*scale.shape, *[1] * order))


def _positive(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).tiny)


def _floor(values: Tensor) -> Tensor:
    largest = values.abs().amax(-1, keepdim=True)
    return 16 * values.shape[-1] * torch.finfo(values.dtype).eps * torch.where(largest > 0, largest, 1.0)
