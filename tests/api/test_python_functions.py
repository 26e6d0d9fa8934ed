"""Functions of Python drawn over everything a metric may do: the score program against the function itself, run on
tensors of whole pairs by plain broadcasting."""

import math

import torch
import torch.nn.functional as F
from hypothesis import given, reject
from hypothesis import strategies as st

import aatc
from aatc import masks
from aatc.nn.pairs import admitted_pairs, pair_scores

B, H, N, M, D = 2, 2, 5, 6, 6
F64 = torch.float64


# Pieces of source. What is drawn has a rank (0 number, 1 vector) and a kind (f number, i integer, b truth value).
NUMBERS = ["0.5", "-1.25", "2", "-3", "0.0", "1", "7", "0.125"]
ELEMENTWISE = [
    "-{x}", "abs({x})", "torch.abs({x})", "{x}.square()", "torch.exp(-abs({x}))", "torch.tanh({x})", "{x}.sin()",
    "torch.cos({x})", "torch.sigmoid({x})", "F.softplus({x})", "F.softplus({x}, beta=2)", "F.relu({x})", "F.silu({x})",
    "F.logsigmoid({x})", "torch.floor({x})", "{x}.ceil()", "torch.sign({x})", "torch.log1p(abs({x}))",
    "(abs({x}) + 0.5).log()", "torch.log2(abs({x}) + 1)", "torch.log10(abs({x}) + 1)", "(abs({x}) + 0.25).rsqrt()",
    "abs({x}).sqrt()", "{x} ** 2", "{x} ** 3", "(abs({x}) + 0.5) ** -1.5", "2.0 ** torch.tanh({x})",
    "1.5 ** torch.tanh({x})", "{x} % 3", "{x} % -2.5", "{x} // 2", "{x} // -0.7", "{x} / 49",
    "torch.remainder({x}, 1.5)",
    "torch.div({x}, 3, rounding_mode='floor')", "torch.clamp({x}, -1, 1)", "{x}.clamp(min=0.25)", "{x}.clip(max=0.5)",
    "torch.sub({x}, 0.5, alpha=2)", "{x}.to(torch.float64)", "torch.where({x} > 0, {x}, 0.1 * {x})",
    "torch.exp2(-abs({x}))",
    "torch.reciprocal(abs({x}) + 1)", "+{x}", "5 - {x}", "7 % (abs({x}) + 1)", "9 // (abs({x}) + 1)",
    "2 / (abs({x}) + 1)",
]  # fmt: skip
BINARY = [
    "{x} + {y}", "{x} - {y}", "{x} * {y}", "{x} / (abs({y}) + 0.5)", "torch.maximum({x}, {y} + 0.013)",
    "torch.minimum({x} + 0.017, {y})", "{x} % (abs({y}) + 0.5)", "{x} // (abs({y}) + 0.5)",
    "(abs({x}) + 0.5) ** torch.tanh({y})", "torch.add({x}, {y}, alpha=0.5)", "torch.where({x} > {y}, {x}, {y})",
    "{x}.where({y} < 0, {y})", "torch.max({x} + 0.011, {y} * 1.0)", "torch.clamp({x}, max={y} + 0.019)",
]  # fmt: skip
COMPARE = ["{x} == {y}", "{x} != {y}", "{x} < {y}", "{x} <= {y}", "{x} > {y}", "{x} >= {y}", "torch.eq({x}, {y})"]
JOIN = ["{x} & {y}", "{x} | {y}", "{x} ^ {y}", "~{x} & {y}", "torch.logical_or({x}, ~{y})", "{x} == {y}"]
REDUCE = [
    "{x}.sum(-1, keepdim=True)", "{x}.mean(dim=-1, keepdim=True)", "{x}.norm(dim=-1, keepdim=True)",
    "torch.linalg.vector_norm({x}, ord=1, dim=-1, keepdim=True)", "{x}.norm(p=math.inf, dim=-1, keepdim=True)",
    "torch.amax({x}, -1, keepdim=True)", "{x}.amin(-1, keepdim=True)", "torch.sum({x}, dim=(-1,), keepdim=True)",
    "({x} > 0.1).sum(-1, keepdim=True)", "torch.linalg.norm({x}, dim=-1, keepdim=True)",
    "torch.linalg.vecdot({x}, {x} + 1).unsqueeze(-1)", "F.cosine_similarity({x}, {x} + 1, dim=-1).unsqueeze(-1)",
]  # fmt: skip


@st.composite
def source(draw, rank, kind, depth, captures=True):
    """An expression of Python; without ``captures`` of the indices alone."""
    pick = lambda items: draw(st.sampled_from(items))  # noqa: E731
    sub = lambda rank, kind: draw(source(rank, kind, depth - 1, captures))  # noqa: E731
    if kind == "b":
        if depth > 1 and pick([0, 0, 1]):
            return f"({pick(JOIN).format(x=sub(0, 'b'), y=sub(0, 'b'))})"
        return f"({pick(COMPARE).format(x=_tensor(sub(rank, pick('fi'))), y=sub(0, pick('fi')))})"
    if kind == "i":
        if depth == 0:
            return pick(["i", "j", "h", "b", "(3 - i)", "(2 * j + 1)", *(["ids"] if captures else [])])
        form = pick(["{x} + {y}", "{x} - {y}", "{x} * {y}", "({x} - {y}) % 3", "({x} - {y}) // 2", "({x} - {y}) % -4"])
        form = pick([form, "abs({x} - {y})", "torch.where({x} > {y}, {x}, {y})"])
        return f"({form.format(x=sub(0, 'i'), y=sub(0, 'i'))})"
    if depth == 0:
        return (
            pick(["q", "k", "(q - k)", "weight"]) if rank else pick([*(["beta"] * captures), *NUMBERS, "i", "(i - j)"])
        )
    reduce = ["reduce"] * 3 if rank == 0 and captures else []
    word = pick(["elementwise", "elementwise", "binary", "binary", "where", "counted", *reduce])
    if word == "elementwise":
        return f"({pick(ELEMENTWISE).format(x=_tensor(sub(rank, 'f')))})"
    if word == "binary":
        other = sub(0 if pick([0, 1]) else rank, "f")
        return f"({pick(BINARY).format(x=_tensor(sub(rank, 'f')), y=_tensor(other))})"
    if word == "where":
        return f"torch.where({sub(0, 'b')}, {sub(rank, 'f')}, {_tensor(sub(rank, 'f'))})"
    if word == "counted":
        return f"({sub(rank, 'f')} + {pick(['5.0', '0.5'])} * ({sub(0, 'b')}))"
    return pick(REDUCE).format(x=_tensor(sub(1, "f")))


def _tensor(text):
    """Numbers of Python have no methods: they meet a score that has."""
    return f"({text} + 0.0 * i)" if text in NUMBERS else text


def compiled_function(text, names):
    namespace = {"torch": torch, "F": F, "math": math}
    exec(f"def f({', '.join(names)}):\n    return {text}\n", namespace)
    return namespace["f"]


def leaves(seed):
    g = torch.Generator().manual_seed(seed)
    # quarters, so that ties, integers and both zeros are frequent
    q, k = ((torch.randn(s, generator=g, dtype=F64) * 2).round() / 2 for s in ((B, H, N, D), (B, H, M, D)))
    q[..., 0, 0] = -0.0
    beta = torch.randn(H, generator=g, dtype=F64).requires_grad_()
    weight = torch.randn(D, generator=g, dtype=F64).requires_grad_()
    ids = torch.randint(-3, 4, (B, M), generator=g)
    return q.requires_grad_(), k.requires_grad_(), beta, weight, ids


def oracle(f, q, k, beta, weight, ids):
    ranges = {c: torch.arange(n) for c, n in zip("bhij", (B, H, N, M), strict=True)}
    axes = {c: r.reshape([-1 if a == c else 1 for a in "bhij"] + [1]) for c, r in ranges.items()}
    torch.set_default_dtype(F64)  # what torch makes of integers
    try:
        value = f(
            q.unsqueeze(3), k.unsqueeze(2), beta=beta[:, None, None, None], weight=weight,
            ids=ids[:, None, None, :, None], **axes,
        )  # fmt: skip
    except (RuntimeError, TypeError):
        reject()  # torch itself has no such function of integers
    finally:
        torch.set_default_dtype(torch.float32)
    return (
        (value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=F64))
        .to(F64)
        .expand(B, H, N, M, 1)[..., 0]
    )


NAMES = ["q", "k", "beta", "weight", "ids", "b", "h", "i", "j"]


@given(text=source(0, "f", 3), seed=st.integers(0, 99))
def test_a_metric_is_its_function(text, seed):
    f = compiled_function(text, NAMES)
    q, k, beta, weight, ids = leaves(seed)
    metric = aatc.metric(beta="h", weight="d", ids="i[bj]")(f)(beta=beta, weight=weight, ids=ids)
    want = oracle(f, q, k, beta, weight, ids)
    got = pair_scores(q, k, metric)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, equal_nan=True)


@given(text=source(0, "f", 3), seed=st.integers(0, 99))
def test_attention_by_a_function_has_its_gradients(text, seed):
    f = compiled_function(text, NAMES)
    g = torch.Generator().manual_seed(seed)
    q, k, beta, weight, ids = leaves(seed)
    with torch.no_grad():  # away from ties, where a derivative is a choice
        for t in (q, k):
            t += torch.randn(t.shape, generator=g, dtype=F64)
    v = torch.randn(B, H, M, D, generator=g, dtype=F64, requires_grad=True)
    scores = oracle(f, q, k, beta, weight, ids)
    wanted = [q, k, v, beta, weight]
    want = torch.softmax(scores, -1) @ v
    try:
        grads = torch.autograd.grad(want.sin().sum(), wanted, allow_unused=True)
    except RuntimeError:
        reject()  # torch has no derivative of // and of a divisor of %
    if not want.isfinite().all() or not all(t is None or t.isfinite().all() for t in grads) or scores.abs().max() > 1e4:
        reject()
    metric = aatc.metric(beta="h", weight="d", ids="i[bj]")(f)(beta=beta, weight=weight, ids=ids)
    got = aatc.attend(q, k, v, metric=metric)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
    for g, w in zip(torch.autograd.grad(got.sin().sum(), wanted, allow_unused=True), grads, strict=True):
        g, w = (torch.zeros(()) if x is None else x for x in (g, w))
        torch.testing.assert_close(
            g.expand_as(w) if g.dim() == 0 else g, w.expand_as(g), rtol=1e-6, atol=1e-6, check_dtype=False
        )


@given(text=source(0, "b", 3, captures=False), seed=st.integers(0, 99))
def test_a_predicate_is_its_function(text, seed):
    f = compiled_function(text, ["b", "h", "i", "j"])
    q, k, *_ = leaves(seed)
    want = oracle(lambda q, k, beta, weight, ids, **axes: f(**axes), *leaves(seed)) != 0
    torch.testing.assert_close(admitted_pairs(masks.predicate(f), q, k), want)
