"""Metrics: how the score of a query q_i and a key k_j is measured.

Every score is multiplied by ``scale`` of `aatc.attend`. Its default is 1/sqrt(D) where the entry below says
so, and 1 elsewhere. ``beta``, and other numbers, may be numbers of Python (constants of the program, unless
torch.compile has seen them vary) or tensors of shape () or (H,) (parameters, to which gradients flow).
``curvature`` is such a number, too; NaN, infinity and a wrong sign are a ScoreError, of tensors in eager mode alone.
"""

# Defaults that are floats are written as integers or None: with dynamic=True, torch.compile takes a float
# among a function's defaults for a variable of the graph, finds that it is none, and starts again.

from __future__ import annotations

import importlib
import inspect
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from aatc.curved_metrics import LorentzDistance, LorentzInner, Poincare, SphereGeodesic, Stereographic, unit
from aatc.ir.errors import CaptureError, ScoreError
from aatc.ir.score.expr import Expr, as_expr, call, param
from aatc.parts import (
    Capture,
    Sizes,
    as_tensor,
    captured,
    number_dtype,
    scalar_captures,
    scalar_expr,
    scalar_key,
    tensor,
)
from aatc.scored import Distance, Metric, Number
from aatc.traced import KEY, QUERY, Recorded, Traced, placed_at, rebuilt, recorded

_Q, _K = param("q", "bhid"), param("k", "bhjd")


class DotProduct(Metric):
    """s = q·k. Scale 1/sqrt(D)."""

    root_scale = True

    @classmethod
    def score(cls, key, q, k, captured):
        return q.dot(k)


class Euclidean(Metric):
    """s = -|q - k|², or -|q - k| with ``squared=False``. Scale 1/sqrt(D)."""

    root_scale = True

    def __init__(self, squared: bool = True):
        self.squared = squared

    def key(self):
        return (self.tag, bool(self.squared))

    @classmethod
    def score(cls, key, q, k, captured):
        difference = q - k
        square = difference.dot(difference)
        return -square if key[1] else -square.sqrt()


class Mahalanobis(Metric):
    """s = -(q - k)ᵀ M (q - k). Scale 1/sqrt(D).

    Give one of ``matrix`` M, symmetric positive semidefinite, (D, D) or (H, D, D); ``diagonal`` of M, (D,) or
    (H, D); ``factor`` L with M = L Lᵀ, (D, R) or (H, D, R).
    """

    root_scale = True

    def __init__(
        self,
        matrix: torch.Tensor | None = None,
        diagonal: torch.Tensor | None = None,
        factor: torch.Tensor | None = None,
    ):
        given = [n for n, t in (("matrix", matrix), ("diagonal", diagonal), ("factor", factor)) if t is not None]
        if len(given) != 1:
            raise CaptureError(f"Mahalanobis takes one of matrix, diagonal and factor, got {given or 'none'}")
        tensor(f"the {given[0]} of Mahalanobis", next(t for t in (matrix, diagonal, factor) if t is not None))
        self.matrix, self.diagonal, self.factor = matrix, diagonal, factor

    def key(self):
        return (self.tag, self._form()[0])

    def _form(self) -> tuple[str, torch.Tensor]:
        if self.matrix is not None:
            return "matrix", self.matrix
        if self.diagonal is not None:
            return "diagonal", self.diagonal
        assert self.factor is not None
        return "factor", self.factor

    def captures(self, sizes):
        form, t = self._form()
        axes = "d" if form == "diagonal" else "de"
        if t.dim() == len(axes) + 1:
            axes = "h" + axes
        d = axes.index("d") if t.dim() == len(axes) else None
        if d is None or t.shape[d] != sizes.d or (form == "matrix" and t.shape[d + 1] != sizes.d):
            wanted = {
                "matrix": "(D, D) or (H, D, D)",
                "diagonal": "(D,) or (H, D)",
                "factor": "(D, R) or (H, D, R)",
            }
            raise CaptureError(
                f"Mahalanobis {form} has shape {tuple(t.shape)}; with D = {sizes.d} features and "
                f"H = {sizes.h} heads it must be {wanted[form]}"
            )
        return [Capture({"matrix": "m", "diagonal": "m", "factor": "l"}[form], t, axes)]

    @classmethod
    def score(cls, key, q, k, captured):
        difference, m = q - k, next(captured)
        if key[1] == "matrix":
            return -difference.dot(call("matvec", m, difference))
        if key[1] == "diagonal":
            return -(m * difference * difference).sum()
        image = call("tmatvec", m, difference)
        return -image.dot(image)


class Cosine(Metric):
    """s = q·k/(|q||k|), norms at least ``eps`` (1e-12)."""

    def __init__(self, eps: Number | None = None):
        self.eps = 1e-12 if eps is None else eps

    def key(self):
        return (self.tag, scalar_key(self.eps, "eps"))

    def captures(self, sizes):
        return scalar_captures("eps", self.eps, sizes)

    @classmethod
    def score(cls, key, q, k, captured):
        eps = scalar_expr(key[1], captured)
        return unit(q, eps).dot(unit(k, eps))


class FisherRao(Distance):
    """s = -2 beta acos(Σ sqrt(q k)), the Fisher-Rao distance of categorical distributions.

    q and k are probabilities along the features; with ``logits`` their softmax is taken first. Computed as
    4 asin(|√q - √k| / 2), the same for probabilities, which keeps its digits where distributions are alike.
    """

    def __init__(self, beta: Number = 1, logits: bool = False):
        self.beta, self.logits = beta, logits

    def key(self):
        return (self.tag, scalar_key(self.beta, "beta"))

    def prepare(self, q, k):
        if not self.logits:
            return q, k
        # the root of a small probability is steep: in half precision its gradient overflows before softmax's cancels it
        dtype = torch.promote_types(q.dtype, torch.float32)
        return q.softmax(-1, dtype=dtype), k.softmax(-1, dtype=dtype)

    @classmethod
    def score(cls, key, q, k, captured):
        chord = q.sqrt() - k.sqrt()
        return -4.0 * (scalar_expr(key[1], captured) * call("asinsqrt", 0.25 * chord.dot(chord)))


# --- a user's own ------------------------------------------------------------------------------------------
_DECLARED = re.compile(r"(?:([fib])\[([a-z]*)\]|([a-z]*))$")
_Declared = tuple[tuple[str, str, str], ...]  # name, axes and element type of each capture


class UserMetric(Metric):
    """A metric from a Python function; call it with tensors for the captures it declares.

    The function is called with symbols once per attention, so what it reads may change between calls.
    """

    def __init__(
        self, function: Callable[..., Any], names: tuple[str, ...], declared: _Declared, bound: dict[str, torch.Tensor]
    ):
        self.function, self._names, self._declared, self._bound = function, names, declared, bound

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", "metric")

    def __call__(self, **tensors: torch.Tensor) -> UserMetric:
        names = [n for n, _, _ in self._declared]
        for n in tensors:
            if n not in names:
                raise CaptureError(f"metric {self.name} has no capture {n!r}", hint=f"it declares {names or 'none'}")
        return UserMetric(self.function, self._names, self._declared, {**self._bound, **tensors})

    def __repr__(self) -> str:
        return f"{self.name}: {self.program().body!r}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A decorated function is pickled by the name it has in its module, which is that of the metric."""
        place = (getattr(self.function, "__module__", ""), getattr(self.function, "__qualname__", ""))
        found = _named(*place)
        if isinstance(found, UserMetric) and found.function is self.function:
            return _unpickled, (*place, self._bound)
        return super().__reduce_ex__(protocol)

    def program(self) -> Recorded:
        """What the function does now."""
        return recorded(self.function, (QUERY, KEY), self._names, self._declared, _checked)

    def described(self, sizes):
        program = self.program()
        return (self.tag, self._declared, program.key), [*self._tensors(sizes), *program.captures(sizes)]

    def _tensors(self, sizes: Sizes) -> list[Capture]:
        found = []
        for name, axes, dtype in self._declared:
            if name not in self._bound:
                raise CaptureError(
                    f"metric {self.name} declares {name!r}, which has no tensor",
                    hint=f"metric={self.name}({name}=tensor)",
                )
            t = self._bound[name]
            if not isinstance(t, torch.Tensor):
                kind = {"f": number_dtype(sizes), "i": torch.int64, "b": torch.bool}[dtype]
                if not isinstance(t, (list, tuple)) and captured(t):
                    t = as_tensor(t, kind, sizes.device)
                else:
                    t = _as_capture(name, t, kind, sizes)
            found.append(Capture(name, t, axes, dtype))
        return found

    @classmethod
    def score(cls, key, q, k, captured):
        _, declared, program = key
        leaves = {QUERY: q, KEY: k}
        for name, _axes, _dtype in declared:
            leaves[name] = next(captured)
        return rebuilt(program, leaves, captured, _checked)


def _as_capture(name: str, x: Any, dtype: torch.dtype, sizes: Sizes) -> torch.Tensor:
    """A number or lists of them as a tensor."""
    if x is None or isinstance(x, str):
        raise CaptureError(f"{name} is {x!r}, not a tensor", hint="torch.tensor(...) makes one of numbers")
    return torch.tensor(x, dtype=dtype, device=sizes.device)


def _named(module: str, name: str) -> Any:
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError):
        return None


def _unpickled(module: str, name: str, bound: dict[str, torch.Tensor]) -> UserMetric:
    found = _named(module, name)
    if not isinstance(found, UserMetric):
        raise ScoreError(f"{module}.{name} is no metric any more", hint="it was one when this was pickled")
    return found(**bound)


def metric(function: Callable[..., Any] | None = None, /, **captures: str) -> Any:
    """Makes a metric of a function of the feature vectors q and k.

    ``@aatc.metric`` above ``def l1(q, k): return -(q - k).abs().sum()`` gives a metric. Captured tensors are
    declared by their axes, as ``@aatc.metric(beta="h", table="ht", ids="i[bj]")``, are further parameters of
    the function, and are given by calling the metric: ``score(beta=t)``. Parameters named b, h, i, j are
    the indices. ScoreError, with the function's line, when it leaves the score language.
    """
    if function is None:
        return lambda f: metric(f, **captures)
    if not callable(function):
        raise ScoreError(f"aatc.metric decorates a function, not a {type(function).__name__}")
    declared = tuple([(n, *_declaration(n, text)) for n, text in captures.items()])
    if torch.compiler.is_dynamo_compiling() and hasattr(function, "__code__"):
        # Dynamo has no signatures of functions within functions; what is wrong with one shows when it is called
        code = function.__code__
        known = (*captures, "b", "h", "i", "j")
        parameters = code.co_varnames[2 : code.co_argcount + code.co_kwonlyargcount]
        return UserMetric(function, tuple([n for n in parameters if n in known]), declared, {})
    try:
        names = _names(function, tuple(captures))
    except ScoreError as error:
        raise placed_at(error, function) from None
    made = UserMetric(function, names, declared, {})
    if not torch.compiler.is_dynamo_compiling():
        made.program()  # refused where it is made, if it must be
    return made


def lookup(table: Any, *positions: Any) -> Any:
    """Inside a metric: the entry of a table, declared with axes t or tu, at rounded and clamped positions."""
    return table.call("lookup", table, *positions) if isinstance(table, Traced) else word("lookup", table, *positions)


def word(name: str, *args: Any, attrs: tuple = ()) -> Any:
    """Inside a metric: a word of the score language that has no operator and no function of torch, as
    ``word("rotate", x, angles, attrs=("half",))``."""
    for x in args:
        if isinstance(x, Traced):
            return x.call("call", name, *args, attrs=attrs)
    return call(name, *map(as_expr, args), attrs=attrs)


def _declaration(name: str, text: str) -> tuple[str, str]:
    found = _DECLARED.match(text)
    if not found:
        raise ScoreError(
            f"{name}={text!r} does not declare axes", hint='such as "h", "bj", "ht", or "i[bj]" for integers'
        )
    dtype, axes, plain = found.groups()
    return (axes, dtype) if dtype else (plain, "f")


def _names(function: Callable[..., Any], declared: Sequence[str]) -> tuple[str, ...]:
    """The parameters of ``function`` after the first two: captures and indices. Others keep their defaults."""
    name = getattr(function, "__name__", "metric")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:
        raise ScoreError(f"metric {name} has no signature", hint="wrap it in a function of Python") from None
    if len(parameters) < 2:
        taken = [p.name for p in parameters]
        raise ScoreError(f"metric {name} takes {taken}; its first two parameters are the features of q and of k")
    names = []
    for p in parameters[2:]:
        if p.name in declared or p.name in ("b", "h", "i", "j"):
            names.append(p.name)
        elif p.default is p.empty:
            raise ScoreError(
                f"metric {name} has a parameter {p.name!r} without axes", hint=f'declare it: @aatc.metric({p.name}="h")'
            )
    unused = [n for n in declared if n not in names]
    if unused:
        raise ScoreError(f"metric {name} declares {unused[0]!r}, which is not a parameter of the function")
    return tuple(names)


def _checked(body: Expr) -> Expr:
    if body.rank or body.dtype == "b":
        what = "a feature vector" if body.rank == 1 else f"{body!r}"
        raise ScoreError(f"the metric returns {what}; a score is a number per pair", hint="end with .sum() or q @ k")
    return body


__all__ = [
    "Cosine", "Distance", "DotProduct", "Euclidean", "FisherRao", "LorentzDistance", "LorentzInner", "Mahalanobis",
    "Metric", "Number", "Poincare", "SphereGeodesic", "Stereographic", "UserMetric", "lookup", "metric", "word",
]  # fmt: skip
