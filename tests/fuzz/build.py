"""A drawn attention as aatc's own parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import aatc
from aatc import biases, connections, masks, metrics, normalizers

#: How a word is written by a user, given the texts of its arguments; the others are `metrics.word` or torch's.
_WRITTEN = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}", "neg": "-{}", "lt": "{} < {}",
    "le": "{} <= {}", "gt": "{} > {}", "ge": "{} >= {}", "eq": "{} == {}", "ne": "{} != {}", "and": "{} & {}",
    "or": "{} | {}", "not": "~{}", "dot": "{} @ {}", "sum": "{}.sum(-1)", "norm": "{}.norm()", "abs": "abs({})",
    "mod": "{} % {}", "floordiv": "{} // {}", "power": "{} ** {}", "mean": "{}.mean(-1)", "amax": "{}.amax(-1)",
    "amin": "torch.amin({}, -1)",
}  # fmt: skip
_TORCH = frozenset(
    "square sign sqrt rsqrt reciprocal exp exp2 log log2 log1p sin cos tanh sigmoid relu floor acosh acos where".split()  # noqa: SIM905
)


def source(tree: tuple, parameters: list[str]) -> str:
    """A function ``drawn`` as user code would write it: Python operators, torch functions, aatc's own words."""
    names: dict[tuple, str] = {}
    lines: list[str] = []

    def visit(t: tuple) -> str:
        word, *rest = t
        if word == "const":
            return repr(rest[0]) if rest[0] >= 0 else f"({rest[0]!r})"
        if word in ("q", "k"):
            return word
        if word in ("cap", "index"):
            return rest[0]
        if t not in names:
            text = node(word, rest)
            names[t] = f"t{len(lines)}"
            lines.append(f"    {names[t]} = {text}")
        return names[t]

    def node(word: str, rest: list) -> str:
        if word == "lookup":
            return f"metrics.lookup({', '.join([rest[0], *map(visit, rest[2:])])})"
        if word == "uniform":
            return f'word("pair_uniform", word("row_key", {rest[0]}), {rest[0]}.call("call", "column_key", attrs=()))'
        if word == "item":
            return f"{visit(rest[0])}[{rest[1]}]"
        if word == "pow":
            return f"{visit(rest[0])} ** {rest[1]!r}"
        if word in ("rotate", "embed"):
            return f"word({word!r}, {visit(rest[0])}, {visit(rest[1])}, attrs=({rest[2]!r},))"
        args = [visit(a) for a in rest]
        if word in _WRITTEN:
            return _WRITTEN[word].format(*args)
        if word in _TORCH and rest[0][0] != "const":
            return f"torch.{word}({', '.join(args)})"
        return f"word({', '.join([repr(word), *args])})"

    result = visit(tree)
    return "\n".join([f"def drawn({', '.join(parameters)}):", *lines, f"    return {result}"]) + "\n"


def function(tree: tuple, parameters: list[str]) -> Any:
    space: dict[str, Any] = {"torch": torch, "metrics": metrics, "word": metrics.word}
    exec(source(tree, parameters), space)
    return space["drawn"]


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


@dataclass(frozen=True)
class Functions:
    """What a user writes outside a model: the metric, not yet bound to tensors, and predicates by their trees."""

    metric: Any
    predicates: dict[tuple, Any]

    @staticmethod
    def of(case: Any, x: dict[str, torch.Tensor]) -> Functions:
        made = None
        if case.metric[0] == "user":
            declared = {}
            for name, axes in captures_of(case.metric[1]).items():
                kind = "b" if x[name].dtype == torch.bool else "f" if x[name].is_floating_point() else "i"
                declared[name] = f"{kind}[{axes}]"
            made = aatc.metric(**declared)(function(case.metric[1], ["q", "k", *declared, *"bhij"]))
        return Functions(made, {t: function(t, [*"bhij"]) for t in _predicates(case.mask)})


def _predicates(mask: tuple | None) -> list[tuple]:
    if mask is None:
        return []
    if mask[0] == "predicate":
        return [mask[1]]
    return [t for m in mask[1:] if isinstance(m, tuple) for t in _predicates(m)]


def _value(v: Any, x: dict[str, torch.Tensor]) -> Any:
    return x[v] if isinstance(v, str) else v


def metric(case: Any, x: dict[str, torch.Tensor], made: Functions) -> Any:
    name, *o = case.metric
    if name == "user":
        return made.metric(**{n: x[n] for n in captures_of(o[0])})
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


def mask(tree: tuple, x: dict[str, torch.Tensor], made: Functions) -> Any:
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
        return masks.predicate(made.predicates[o[0]])
    if word == "not":
        return ~mask(o[0], x, made)
    left, right = (mask(m, x, made) for m in o)
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


def parts(case: Any, x: dict[str, torch.Tensor], made: Functions | None = None) -> dict[str, Any]:
    """Keyword arguments of `aatc.attend` for a drawn attention on the tensors ``x``."""
    made = Functions.of(case, x) if made is None else made
    found: dict[str, Any] = {"metric": metric(case, x, made), "connection": connection(case, x)}
    found["bias"] = None if case.bias is None else bias(case.bias, x)
    found["mask"] = None if case.mask is None else mask(case.mask, x, made)
    found["scale"] = _value(case.scale, x)
    if case.soft_cap is not None:
        found["soft_cap"] = _value(case.soft_cap, x)
    kind, number = case.normalizer
    if kind == "sigmoid":
        found["normalizer"] = normalizers.Sigmoid(_value(number, x))
    elif number is not None:
        found["normalizer"] = normalizers.Softmax(_value(number, x))
    if case.dropout:
        found |= {"dropout": case.dropout, "seed": _value(case.seed, x)}
    return found
