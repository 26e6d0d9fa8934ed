"""Makes a failing attention smaller while it fails in the same way: parts go, trees shrink, leaves become plain."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from tests.fuzz.build import captures_of
from tests.fuzz.check import Wrong, described
from tests.fuzz.strategies import Case


def kind_of(error: BaseException | None) -> str:
    """A short name of a failure, by which they are counted."""
    if error is None:
        return "right"
    if isinstance(error, Wrong):
        return f"wrong: {re.sub(r'[0-9]+$', '', str(error).split(':')[0])}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    last = frames[-1]
    place = "a kernel" if last.filename.startswith("<") else f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
    return re.sub(r"[0-9]+", "#", f"{type(error).__name__} at {place}: {str(error)[:70]}")


def failure(case: Case, check: Callable[[Case], None]) -> Exception | None:
    """What ``check`` raises."""
    try:
        torch.manual_seed(0)
        check(case)
    except Exception as error:
        return error
    return None


def checked(case: Case, check: Callable[[Case], None], most: int = 150) -> None:
    """``check(case)``; a failure is reported for the smallest case found that fails alike."""
    error = failure(case, check)
    if error is not None:
        small = smaller(case, lambda c: kind_of(failure(c, check)) == kind_of(error), most)
        raise AssertionError(f"{failure(small, check)}\n{described(small)}") from error


def _subtrees(tree: tuple) -> Iterator[tuple]:
    for x in tree[1:]:
        if isinstance(x, tuple):
            yield x


def _shrunk(tree: tuple) -> Iterator[tuple]:
    """The tree's parts, then the tree with one part shrunk."""
    yield from _subtrees(tree)
    if tree[0] not in ("const", "q", "k", "cap", "index"):
        yield ("const", 1.0)
    for n, x in enumerate(tree):
        if isinstance(x, tuple):
            for y in _shrunk(x):
                yield (*tree[:n], y, *tree[n + 1 :])


def _smaller(case: Case) -> Iterator[Case]:
    for name, plain in (
        ("connection", None), ("mask", None), ("bias", None), ("scale", None), ("dropout", 0.0), ("ties", ()),
        ("grad_lse", False), ("grad_layout", "contiguous"), ("tiles", ""), ("library", True),
        ("metric", ("dot",)), ("normalizer", ("softmax", None)), ("soft_cap", None),
    ):  # fmt: skip
        if getattr(case, name) != plain:
            yield replace(case, **{name: plain})
    if case.dtype != "float64" or any("float" in x.dtype and x.dtype != "float64" for x in case.leaves.values()):
        doubled = {n: replace(x, dtype="float64") if "float" in x.dtype else x for n, x in case.leaves.items()}
        yield replace(case, dtype="float64", leaves=doubled)
    for n, x in case.leaves.items():
        for change in ({"grad": False}, {"layout": "contiguous"}, {"kind": "normal"} if n in "qkv" else {}):
            if any(getattr(x, key) != value for key, value in change.items()):
                yield replace(case, leaves={**case.leaves, n: replace(x, **change)})
    if case.metric[0] == "user":
        for tree in _shrunk(case.metric[1]):
            yield replace(case, metric=("user", tree))
    for name in ("mask", "bias"):
        tree = getattr(case, name)
        if tree is not None:
            for smaller in _shrunk(tree):
                yield replace(case, **{name: smaller})


def _tidied(case: Case) -> Case:
    """Without tensors that nothing reads."""
    used = {"q", "k", "v"}
    for part in (
        case.metric,
        case.connection,
        case.mask,
        case.bias,
        (case.scale, case.seed, case.soft_cap, *case.normalizer),
    ):
        used |= _names(part)
    if case.metric[0] == "mahalanobis":
        used.add("m")
    return replace(case, leaves={n: x for n, x in case.leaves.items() if n in used})


def _names(part: object) -> set[str]:
    if isinstance(part, str):
        return {part}
    if isinstance(part, tuple):
        found = set().union(*map(_names, part), set())
        return found | (set(captures_of(part)) if part and isinstance(part[0], str) else set())
    return set()


def smaller(case: Case, fails: Callable[[Case], bool], most: int = 300) -> Case:
    """The smallest case found that still ``fails``."""
    tried = 0
    progress = True
    while progress and tried < most:
        progress = False
        for candidate in _smaller(case):
            tried += 1
            candidate = _tidied(candidate)
            if fails(candidate):
                case, progress = candidate, True
                break
            if tried >= most:
                break
    return case
