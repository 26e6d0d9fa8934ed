"""Random corruptions of witnesses and values: what `test_corrupted_witnesses` draws from.

A corruption changes one thing somewhere in a tree of dataclasses, arrays, tuples and dictionaries: a number, a sign, an
entry left out, two entries swapped, all permuted, nothing left. What holds the problem itself, or says nothing about
the value, is not touched: changed, it would be another problem.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import sparse

#: Fields of results that are no value: how it is to be read.
LABELS = {"proof_level", "tolerance", "residual", "assumptions", "statement", "backend", "reason"}


class Unchanged(Exception):
    """This draw changed nothing: draw again."""


def corrupted(tree: Any, rng: np.random.Generator, fixed: frozenset[str] = frozenset()) -> Any:
    """``tree`` with one change; fields named in ``fixed`` are left alone. Raises `Unchanged`."""
    changed = _change(tree, rng, fixed | LABELS)
    if same(changed, tree):
        raise Unchanged
    return changed


def same(one: Any, two: Any) -> bool:
    """Whether two trees are equal through and through."""
    if type(one) is not type(two):
        return False
    if one is two:
        return True
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(two, f.name)) for f in dataclasses.fields(one))
    if sparse.issparse(one):
        return one.shape == two.shape and not (one != two).nnz
    if isinstance(one, np.ndarray):
        return one.shape == two.shape and bool(np.all((one == two) | ((one != one) & (two != two))))
    if isinstance(one, (tuple, list)):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        one, two = ({k: v for k, v in x.items() if not _empty(v)} for x in (one, two))
        return one.keys() == two.keys() and all(same(v, two[k]) for k, v in one.items())
    return bool(one == two)


def _empty(x: Any) -> bool:
    """A matrix without rows or columns, which families of matrices may leave out."""
    return (isinstance(x, np.ndarray) or sparse.issparse(x)) and 0 in x.shape


def _change(x: Any, rng: np.random.Generator, fixed: frozenset[str]) -> Any:
    if isinstance(x, bool | np.bool_):
        return not x
    if isinstance(x, int | np.integer):
        return type(x)(rng.choice([int(x) + 1, int(x) - 1, -int(x), 2 * int(x), 0])) if abs(x) < 2**60 else x + 1
    if isinstance(x, float | np.floating):
        step = 1e-3 * max(abs(float(x)), 1e-2) if np.isfinite(x) else 0.0
        return type(x)(rng.choice([x + step, x - step, -x, 4 * x, 0.0, np.nan]))
    if isinstance(x, complex):
        return complex(rng.choice([x * 1.01, -x if x.imag else 1.02 * x, x + 0.05j]))
    if isinstance(x, Fraction):
        return rng.choice([x + 1, -x, x / 2, 4 * x, x + Fraction(1, 7)])
    if sparse.issparse(x):
        if not x.nnz:
            raise Unchanged
        data = x.data.copy()
        data[rng.integers(len(data))] *= -1 if rng.integers(2) else 2
        return type(x)((data, x.indices, x.indptr), shape=x.shape)
    if isinstance(x, np.ndarray):
        return _change_array(x, rng)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        names = [f.name for f in dataclasses.fields(x) if f.init and f.name not in fixed]
        return _replaced(x, str(rng.choice(_or_unchanged(names))), rng, fixed)
    if isinstance(x, tuple | list):
        return type(x)(_change_sequence(list(x), rng, fixed))
    if isinstance(x, dict):
        return _change_mapping(dict(x), rng, fixed)
    if isinstance(x, frozenset):
        kept = sorted(x, key=str)
        kept.pop(int(rng.integers(len(_or_unchanged(kept)))))
        return frozenset(kept)
    if isinstance(x, str):
        known = ["first", "second", "square", "cancel", "left", "right", "entropy_rate", "information_flow", "Q", "F3"]
        return str(rng.choice([*known, "mean_row_entropy", "least_row_entropy", "edge_utilisation", ""]))
    raise Unchanged


def _or_unchanged(items: Any) -> Any:
    if not len(items):
        raise Unchanged
    return items


def _replaced(x: Any, name: str, rng: np.random.Generator, fixed: frozenset[str]) -> Any:
    part = _change(getattr(x, name), rng, fixed)
    try:
        return dataclasses.replace(x, **{name: part})
    except (ValueError, TypeError, AttributeError, LookupError):  # refused by the class itself
        raise Unchanged from None


def _change_array(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _or_unchanged(x.reshape(-1))
    kind, out = rng.integers(7), x.copy()
    flat = out.reshape(-1)
    i, j = rng.integers(len(flat), size=2)
    if kind == 0 or not x.shape:
        flat[i] = _change(flat[i].item() if not x.dtype.hasobject else flat[i], rng, frozenset())
    elif kind == 1:
        flat[i], flat[j] = flat[j], flat[i]
    elif kind == 2:
        out = rng.permutation(x, axis=int(rng.integers(x.ndim)))
    elif kind == 3:
        out = np.delete(x, rng.integers(x.shape[0]), axis=0)
    elif kind == 4:
        out = x[:0]
    elif kind == 5:
        out = ~x if x.dtype == bool else -x
    else:
        nonzero = np.flatnonzero(flat)
        flat[_or_unchanged(nonzero)[rng.integers(len(nonzero))]] *= -1
    return out


def _change_sequence(items: list[Any], rng: np.random.Generator, fixed: frozenset[str]) -> list[Any]:
    kind, n = rng.integers(6), len(_or_unchanged(items))
    i, j = rng.integers(n, size=2)
    if kind <= 1:
        items[i] = _change(items[i], rng, fixed)
    elif kind == 2:
        items[i], items[j] = items[j], items[i]
    elif kind == 3:
        items.pop(i)
    elif kind == 4:
        items.insert(i, items[j])
    else:
        items.clear()
    return items


def _change_mapping(items: dict[Any, Any], rng: np.random.Generator, fixed: frozenset[str]) -> dict[Any, Any]:
    keys = list(_or_unchanged(items))
    i, j = (keys[k] for k in rng.integers(len(keys), size=2))
    kind = rng.integers(5)
    if kind <= 1:
        items[i] = _change(items[i], rng, fixed)
    elif kind == 2:
        items[i], items[j] = items[j], items[i]
    elif kind == 3:
        del items[i]
    else:
        items.clear()
    return items
