"""Reference attention: the plain formula over whole score matrices, forward and backward in closed form.

O(N*M) memory. It is the eager implementation of `aatc::attend`, the interpreter of `geo.attend`, and what
passes are tested against. Shapes: q (B,H,N,D), k (B,Hk,M,D), v (B,Hk,M,E), Hk dividing H.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aatc.ir import observe
from aatc.ir.aggregations import SUM, Aggregation, aggregation_named
from aatc.ir.containment import spoiled_rows
from aatc.ir.errors import ShapeError
from aatc.ir.normalizers import Normalizer, normalizer_named
from aatc.ir.score.derivative import gradients
from aatc.ir.score.evaluate import add_entries, evaluate, expand_heads, lookup, numbered, sum_to_axes
from aatc.ir.score.expr import ZERO, Expr, param, params, postorder
from aatc.ir.score.program import Program


@dataclass(frozen=True)
class Attention:
    """The programs of one attention. ``names`` are those of q, k, v and the captures, in operand order; ``row`` is a
    number per query that the log-sum-exp gets added; ``kind`` names the normaliser."""

    names: tuple[str, ...]
    score: Program
    carry: Program
    mask: Program | None = None
    row: Program | None = None
    kind: str = "softmax"
    aggregate: str = "mean"

    @property
    def normalizer(self) -> Normalizer:
        return normalizer_named(self.kind)

    @property
    def aggregation(self) -> Aggregation:
        return aggregation_named(self.aggregate)

    @property
    def programs(self) -> list[Program]:
        return [p for p in (self.score, self.carry, self.mask, self.row) if p is not None]

    @property
    def axes(self) -> dict[str, str]:
        """Axes of each tensor the programs read, by name."""
        return {n: p.attrs[1] for n, p in self.declared().items()}

    def declared(self) -> dict[str, Expr]:
        """Parameter nodes by name; one name has one declaration in all programs."""
        found: dict[str, Expr] = {}
        for program in self.programs:
            for p in program.params:
                if found.setdefault(p.name, p) is not p:
                    raise ShapeError(f"parameter {p.name} is declared in two ways: {found[p.name].attrs} and {p.attrs}")
        return found


def check_fit(att: Attention, shapes: Sequence[Sequence[int]]) -> None:
    """ShapeError unless operands of these ``shapes`` fit together, along the axes that the programs read them: heads
    may be fewer where they divide q's, any other extent is that of all operands or 1."""
    q, k = (list(s) for s in shapes[:2])
    sizes, axes = dict(zip("bhij", (*q[:3], k[2]), strict=True)), att.axes
    for name, shape in zip(att.names, shapes, strict=True):
        for c, have in zip(axes.get(name, ""), shape, strict=False):
            want = sizes.get(c, have)
            if have not in (1, want) and not (c == "h" and have and want % have == 0):
                raise ShapeError(
                    f"{name} has shape {list(shape)}, axes {axes[name]}: {have} along {c} do not fit {want}",
                    hint=f"q has {q}, k has {k}; heads may be fewer where their number divides that of q's",
                )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores and sums of half-precision inputs are kept in float32."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


#: Words whose slope is infinite at ordinary arguments: the rounding of these, which are near 1 for tokens near each
#: other, would be all that single precision leaves of a distance.
_STEEP = frozenset(("acosh", "expacosh", "acos", "arcsinc", "arcroot", "arcsquare"))


def score_dtype(score: Expr, like: torch.Tensor) -> torch.dtype:
    """The dtype that scores of operands such as ``like`` are evaluated in, before they are rounded to
    `compute_dtype`."""
    wide = like.device.type != "mps" and any(e.fn in _STEEP for e in postorder(score))
    return torch.float64 if wide else compute_dtype(like.dtype)


def _prepare(att: Attention, tensors: Mapping[str, torch.Tensor]) -> Any:
    q, k, _v = (tensors[n] for n in att.names[:3])
    heads = q.shape[1]
    env = {n: expand_heads(t, heads) if n in att.names[1:3] else t for n, t in tensors.items()}
    sizes = (q.shape[0], heads, q.shape[2], k.shape[2])
    return env, sizes, score_dtype(att.score.body, q)


def admitted(att: Attention, env: Mapping[str, torch.Tensor], sizes: Any) -> torch.Tensor | None:
    """Which pairs the mask admits, up to broadcasting; None without one. Its numbers are float64, whatever q's are."""
    if att.mask is None:
        return None
    return evaluate(att.mask.body, env, sizes, dtype=torch.float64)[..., 0]


def scores(att: Attention, tensors: Mapping[str, torch.Tensor], done: dict[Expr, Any] | None = None) -> torch.Tensor:
    """Scores (B,H,N,M), -inf where the mask is closed; not yet rounded, see `score_dtype`."""
    env, sizes, dtype = _prepare(att, tensors)
    s = evaluate(att.score.body, env, sizes, dtype=dtype, values=done)[..., 0].to(dtype).expand(sizes)
    keep = admitted(att, env, sizes)
    if keep is not None:
        s = s.masked_fill(~keep, float("-inf"))
    return s


def weights(att: Attention, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention weights (B,H,N,M) and log-sum-exp (B,H,N); masked rows have weight 0 and lse -inf."""
    return att.normalizer.reference(scores(att, tensors))


def tell(q: torch.Tensor, k: torch.Tensor) -> None:
    """Tells whoever watches (`observe.formula`) that scores of these queries and keys are about to be stored."""
    if observe.formula.report is not None:
        pairs = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
        observe.formula.report(pairs * compute_dtype(q.dtype).itemsize)


def attend(att: Attention, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B,H,N,E) in v's dtype and log-sum-exp (B,H,N) in the compute dtype."""
    tell(tensors[att.names[0]], tensors[att.names[1]])
    tensors, spoiled = spoiled_rows(att.mask, att.names, att.axes, tensors)
    env, sizes, dtype = _prepare(att, tensors)
    p, lse = weights(att, tensors)
    v = env[att.names[2]]
    if att.carry.body.fn == "param":
        o = p @ v.to(dtype)
    else:
        carried = evaluate(att.carry.body, env, sizes, dtype=dtype)
        o = _open(p.unsqueeze(-1) * carried, admitted(att, env, sizes)).sum(3)
    o = aggregated(att.aggregation, o)
    if spoiled is not None:
        o, lse = o.masked_fill(spoiled.unsqueeze(-1), float("nan")), lse.masked_fill(spoiled, float("nan"))
    if att.row is not None:
        lse = lse + evaluate(att.row.body, env, sizes, dtype=dtype)[..., 0, 0].expand(lse.shape)
    return o.to(v.dtype), lse.to(compute_dtype(tensors[att.names[0]].dtype))


def aggregated(aggregation: Aggregation, o: torch.Tensor) -> torch.Tensor:
    """The output (B,H,N,E) of sums of weight times carried value."""
    if aggregation.plain:
        return o
    return evaluate(aggregation.finish(SUM), {SUM.name: o}, (*o.shape[:3], 1), dtype=o.dtype)[:, :, :, 0]


def _pulled(aggregation: Aggregation, o: torch.Tensor, grad_o: torch.Tensor) -> torch.Tensor:
    """The gradient of the sums ``o`` from that of the output."""
    if aggregation.plain:
        return grad_o
    go = param("grad_o__", "bhid")
    pulled = gradients([(aggregation.finish(SUM), go)], [SUM]).get(SUM, ZERO)
    env = {SUM.name: o, go.name: grad_o}
    return evaluate(pulled, env, (*o.shape[:3], 1), dtype=o.dtype)[:, :, :, 0].expand(o.shape)


def attend_backward(
    att: Attention, tensors: Mapping[str, torch.Tensor], o: Any, lse: Any, grad_o: Any, grad_lse: Any
) -> dict[str, torch.Tensor]:
    """Gradients of every floating tensor the programs use, by name, from those of output and lse."""
    tensors, spoiled = spoiled_rows(att.mask, att.names, att.axes, tensors)
    env, sizes, dtype = _prepare(att, tensors)
    keep = admitted(att, env, sizes)
    done: dict[Expr, torch.Tensor] = {}
    s = scores(att, tensors, done)
    p, bare = att.normalizer.reference(s)
    if spoiled is not None:
        p = _open(p.masked_fill(spoiled.unsqueeze(-1), float("nan")), keep)
    carried = evaluate(att.carry.body, env, sizes, dtype=dtype, values=done)
    go = grad_o.to(dtype)
    if not att.aggregation.plain:
        go = _pulled(att.aggregation, _open(p.unsqueeze(-1) * carried, keep).sum(3), go)
    d_weight = _open((go.unsqueeze(3) * carried).sum(-1), keep)
    d_score = att.normalizer.reference_cotangent(s, d_weight, grad_lse)
    if spoiled is not None:
        d_score = d_score.masked_fill(spoiled.unsqueeze(-1), float("nan"))
    d_score = _open(d_score, keep)
    extra = {"grad_score": d_score, "grad_carry": p.unsqueeze(-1) * go.unsqueeze(3)}
    gs, gc = param("grad_score", "bhij"), param("grad_carry", "bhijd")
    declared = att.declared()
    leaves = [e for n, e in declared.items() if e.dtype == "f"]
    result: dict[str, torch.Tensor] = {}
    outputs = [(att.score.body, gs), (att.carry.body, gc)]
    _pull(result, outputs, leaves, {**env, **extra}, sizes, dtype, done, keep)
    if att.row is not None and grad_lse is not None:
        # apart from those of pairs, which are summed over the keys; a row without open keys stays at -inf
        extra = {"grad_row": grad_lse.to(dtype).masked_fill(bare == float("-inf"), 0.0)}
        outputs = [(att.row.body, param("grad_row", "bhi"))]
        _pull(result, outputs, leaves, {**env, **extra}, (*sizes[:3], 1), dtype, {}, None)
    return {n: _fold_heads(g, tensors[n]).to(tensors[n].dtype) for n, g in result.items()}


def _pull(result: Any, outputs: Any, leaves: Any, env: Any, sizes: Any, dtype: Any, done: Any, keep: Any) -> None:
    """Adds the gradients of ``outputs``, (expression, its cotangent) with numbers on all axes of ``sizes``, to
    ``result``, by name."""
    lookups = [e for e in postorder(*(e for e, _ in outputs)) if e.fn == "lookup" and e.dtype == "f"]
    for leaf, expression in gradients(outputs, [*leaves, *lookups], far=True).items():
        # a slope at a closed pair need not be finite, and 0 times it need not be 0
        value = _open(evaluate(expression, env, sizes, dtype=dtype, values=done), keep)
        if leaf.fn == "lookup":
            _scatter(result, leaf, value, env, sizes, dtype, done)
            continue
        # an expression of lower rank than its leaf stands for equal entries along the missing axes
        part = sum_to_axes(_broadcast(value, leaf, sizes), leaf, tuple(env[leaf.name].shape))
        result[leaf.name] = result[leaf.name] + part if leaf.name in result else part


def _open(value: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """A value per pair (B,H,N,M,...), 0 where the pair is closed."""
    return value if keep is None else value.masked_fill(~keep.reshape(*keep.shape, *(1,) * (value.dim() - 4)), 0.0)


def _broadcast(value: torch.Tensor, leaf: Expr, sizes: tuple[int, ...]) -> torch.Tensor:
    """Expands over the pair axes that are about to be summed, which a size of one would forget."""
    own = set(leaf.attrs[1])
    shape = [
        n if c not in own or value.shape[d] != 1 else value.shape[d]
        for d, (c, n) in enumerate(zip("bhij", sizes, strict=True))
    ]
    return value.expand(*shape, *value.shape[4:])


def _scatter(result: Any, leaf: Any, value: Any, env: Any, sizes: Any, dtype: Any, done: Any) -> None:
    table = leaf.args[0]
    shape = env[table.name].shape
    positions = [evaluate(a, env, sizes, dtype=dtype, values=done) for a in leaf.args[1:]]
    where = lookup(numbered(shape), table.attrs[1], positions, sizes)
    # entries that many pairs read get many numbers, one after the other: in double precision, and fewer, as all pairs
    # that read the same one for their place are summed first
    same = [d for d, n in enumerate(where.shape) if n == 1]
    value = value.expand(*sizes, *value.shape[4:]).sum(same, keepdim=True) if same else value
    part = torch.zeros(shape, dtype=torch.float64)
    add_entries(part, where, value)
    result[table.name] = result[table.name] + part.to(dtype) if table.name in result else part.to(dtype)


def _fold_heads(g: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if g.shape == like.shape:
        return g
    folded: torch.Tensor = g.unflatten(1, (like.shape[1], -1)).sum(2)
    return folded


def used_names(att: Attention) -> list[str]:
    """Names the programs read, in operand order."""
    used = {p.name for program in att.programs for p in params(program.body)}
    return [n for n in att.names if n in used]
