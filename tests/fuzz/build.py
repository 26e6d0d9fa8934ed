"""A drawn attention as aatc's own parts."""

from __future__ import annotations

from typing import Any

import torch

import aatc
from aatc import biases, connections, masks, metrics

_OPERATORS = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "not": lambda x: ~x,
    "dot": lambda x, y: x @ y,
    "sum": lambda x: x.sum(-1),
    "norm": lambda x: x.norm(),
    "abs": abs,
    "mod": lambda x, y: x % y,
    "floordiv": lambda x, y: x // y,
    "power": lambda x, y: x**y,
    "mean": lambda x: x.mean(-1),
    "amax": lambda x: x.amax(-1),
    "amin": lambda x: torch.amin(x, -1),
}
_TORCH = frozenset(
    [
        "square",
        "sign",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "exp",
        "exp2",
        "log",
        "log2",
        "log1p",
        "sin",
        "cos",
        "tanh",
        "sigmoid",
        "relu",
        "floor",
        "acosh",
        "acos",
        "where",
    ]
)


def rendered(tree: tuple, env: dict[str, Any]) -> Any:
    """The value of a tree as user code would write it: Python operators, torch functions, aatc's own words."""
    done: dict[tuple, Any] = {}

    def visit(t: tuple) -> Any:
        if t not in done:
            done[t] = node(t)
        return done[t]

    def node(t: tuple) -> Any:
        word, *rest = t
        if word == "const":
            return rest[0]
        if word in ("q", "k"):
            return env[word]
        if word in ("cap", "index"):
            return env[rest[0]]
        if word == "lookup":
            return metrics.lookup(env[rest[0]], *map(visit, rest[2:]))
        if word == "uniform":
            return metrics.word(
                "pair_uniform", metrics.word("row_key", env[rest[0]]), env[rest[0]].call("call", "column_key", attrs=())
            )
        if word == "item":
            return visit(rest[0])[rest[1]]
        if word == "pow":
            return visit(rest[0]) ** rest[1]
        if word in ("rotate", "embed"):
            return metrics.word(word, *map(visit, rest[:2]), attrs=(rest[2],))
        args = [visit(a) for a in rest]
        if word in _OPERATORS:
            return _OPERATORS[word](*args)
        if word in _TORCH and not isinstance(args[0], (int, float)):
            return getattr(torch, word)(*args)
        return metrics.word(word, *args)

    return visit(tree)


def captures_of(tree: tuple) -> dict[str, str]:
    """name -> axes of the captured tensors a tree reads."""
    found: dict[str, str] = {}

    def visit(t: tuple) -> None:
        if t[0] in ("cap", "lookup"):
            found[t[1]] = t[2]
        if t[0] == "uniform":
            found[t[1]] = ""
        for x in t[1:]:
            if isinstance(x, tuple):
                visit(x)

    visit(tree)
    return found


def user_metric(tree: tuple, x: dict[str, torch.Tensor]) -> Any:
    """The tree as a function decorated by aatc.metric, with its captures bound."""
    declared = {}
    for name, axes in captures_of(tree).items():
        kind = "b" if x[name].dtype == torch.bool else "f" if x[name].is_floating_point() else "i"
        declared[name] = f"{kind}[{axes}]"
    names = ["q", "k", *declared, "b", "h", "i", "j"]
    space: dict[str, Any] = {"rendered": rendered, "tree": tree}
    pairs = ", ".join(f"{n!r}: {n}" for n in names)
    code = f"def drawn({', '.join(names)}):\n    return rendered(tree, {{{pairs}}})\n"
    exec(code, space)
    made = aatc.metric(**declared)(space["drawn"])
    return made(**{n: x[n] for n in declared})


def _value(v: Any, x: dict[str, torch.Tensor]) -> Any:
    return x[v] if isinstance(v, str) else v


def metric(case: Any, x: dict[str, torch.Tensor]) -> Any:
    name, *o = case.metric
    if name == "user":
        return user_metric(o[0], x)
    if name == "dot":
        return metrics.DotProduct()
    if name == "euclidean":
        return metrics.Euclidean(squared=o[0])
    if name == "mahalanobis":
        return metrics.Mahalanobis(**{o[0]: x["m"]})
    if name == "lorentz-inner":
        return metrics.LorentzInner(lift=o[0])
    if name == "cosine":
        return metrics.Cosine()
    beta = _value(o[0], x)
    if name == "lorentz":
        return metrics.LorentzDistance(beta, squared=o[1], curvature=o[2], lift=o[3])
    if name == "poincare":
        return metrics.Poincare(beta, squared=o[1])
    if name == "sphere":
        return metrics.SphereGeodesic(beta)
    return metrics.FisherRao(beta, logits=o[1])


def connection(case: Any, x: dict[str, torch.Tensor]) -> Any:
    if case.connection is None:
        return None
    name, *o = case.connection
    if name == "rotary":
        return connections.Rotary(x.get(o[0]), x.get(o[1]), base=o[2], style=o[3], values=o[4])
    if name == "frames":
        return connections.Frames(x[o[0]], x[o[1]], values=o[2])
    return connections.SphereTransport() if name == "sphere" else connections.HyperboloidTransport()


def mask(tree: tuple, x: dict[str, torch.Tensor]) -> Any:
    word, *o = tree
    if word == "causal":
        return masks.causal(offset=o[0])
    if word == "window":
        return masks.sliding_window(o[0])
    if word == "documents":
        return masks.documents(x[o[0]], x[o[1]])
    if word == "padding":
        return masks.key_padding(x[o[0]])
    if word == "dense":
        return masks.dense(x[o[0]])
    if word == "predicate":
        return masks.predicate(lambda b, h, i, j: rendered(o[0], {"b": b, "h": h, "i": i, "j": j}))
    if word == "not":
        return ~mask(o[0], x)
    left, right = (mask(m, x) for m in o)
    return left & right if word == "and" else left | right


def bias(tree: tuple, x: dict[str, torch.Tensor]) -> Any:
    word, *o = tree
    if word in ("alibi", "alibi-heads"):
        return biases.ALiBi(_value(o[0], x))
    if word == "table":
        return biases.RelativeTable(x[o[0]])
    if word == "dense":
        return biases.Dense(x[o[0]])
    return bias(o[0], x) + bias(o[1], x)


def parts(case: Any, x: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Keyword arguments of `aatc.attend` for a drawn attention on the tensors ``x``."""
    found: dict[str, Any] = {"metric": metric(case, x), "connection": connection(case, x)}
    found["bias"] = None if case.bias is None else bias(case.bias, x)
    found["mask"] = None if case.mask is None else mask(case.mask, x)
    found["scale"] = _value(case.scale, x)
    if case.dropout:
        found |= {"dropout": case.dropout, "seed": _value(case.seed, x)}
    return found
