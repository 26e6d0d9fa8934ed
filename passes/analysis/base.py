"""What analytical passes share: what they study, how results are kept, budgets, progress, a cache by content."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType, ModuleType
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from aatc.ir.core import Module
from aatc.passes.analysis.attention_rows import MEMORY, SECONDS_PER_PAIR, SECONDS_PER_PRODUCT, AttentionRows
from aatc.passes.analysis.deadline import deadline
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Result, Undecided
from aatc.passes.base import Context, Pass

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One result. ``subject`` is the name of the captured attention it belongs to, or "ir" for the whole module;
    ``head`` and ``batch`` say which pattern, -1 where it is about no single one."""

    subject: str
    family: str
    item: str
    result: Any
    head: int = -1
    batch: int = -1


@dataclass
class Study:
    """What analytical passes work on. ``progress(family, done, total)`` is called as patterns are finished.

    ``budget`` is what all ``passes`` together may still take, in seconds of a clock that runs from ``started`` (None:
    from the first pass on), and what each piece of work may take of memory. While a pass runs, it is what is left of
    the pass's share: no more than the passes to come leave over by their estimates, those that want least being served
    first.
    """

    captured: Sequence[AttentionRows] = ()
    budget: Cost = field(default_factory=Cost)
    memory: int = MEMORY
    progress: Callable[[str, int, int], None] | None = None
    passes: Sequence[AnalysisPass] = ()
    started: float | None = None
    _until: float = field(default=float("inf"), init=False)
    _total: float = field(default=float("inf"), init=False)
    _done: list[AnalysisPass] = field(default_factory=list, init=False)

    def begin(self, p: AnalysisPass) -> None:
        """Sets aside the share of ``p``, which is about to run."""
        now = time.perf_counter()
        if not self._done:
            self._total = (now if self.started is None else self.started) + self.budget.seconds
        self._done.append(p)
        left = max(0.0, self._total - now)
        coming = [q for q in self.passes if not any(q is d for d in self._done)]
        self._until = now + (_share(left, [q.estimates(self) for q in coming]) if left < float("inf") else left)
        self.proceed()

    def proceed(self) -> None:
        """Before each piece of work: ``budget`` is what is left of the share."""
        if self._done:
            self.budget = Cost(max(0.0, self._until - time.perf_counter()), self.budget.bytes)

    def heads(self) -> Iterator[tuple[AttentionRows, int, int]]:
        """(attention, batch element, head) of every pattern."""
        for seen in self.captured:
            b, h = seen.sizes[:2]
            for batch in range(b):
                for head in range(h):
                    yield seen, batch, head


def _noted(result: Any, seen: AttentionRows) -> Any:
    """A result with what has to be known of how its attention was seen."""
    if not seen.notes or not isinstance(result, Result):
        return result
    return replace(result, assumptions=(*result.assumptions, *seen.notes))


def _share(left: float, coming: Sequence[tuple[float, float]]) -> float:
    """What a pass may take of ``left`` seconds beside those to come, (all they want, their least piece of work) each.

    Those that want least get all of it, the others equal parts; a pass whose part is too short for its least piece
    leaves it to the others, the one with the largest piece first."""
    coming = sorted(coming)
    while True:
        rest, hopeless = left, []
        for place, (wanted, least) in enumerate(coming):
            part = min(wanted, rest / (len(coming) + 1 - place))
            rest -= part
            if part < least:
                hopeless.append((least, wanted))
        if not hopeless:
            return rest
        least, wanted = max(hopeless)
        coming.remove((wanted, least))


class _Cache:
    """Results by content, at most ``limit`` of them and ``bytes`` in all, the least recently used forgotten first. A
    result above ``bytes`` is not kept. Captured attentions, which the results of many heads share, count once. Threads
    may share it."""

    def __init__(self, limit: int, bytes: int):
        self.limit, self.bytes, self.held = limit, bytes, 0
        self.kept = OrderedDict[tuple[Any, ...], Any]()
        self.sizes = dict[tuple[Any, ...], tuple[int, dict[AttentionRows, int]]]()
        self.users = Counter[AttentionRows]()
        self.lock = threading.Lock()

    def get(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                kept: T = self.kept[key]
                return kept
        value = make()
        size = bytes_of(value)
        if size[0] > self.bytes:
            return value
        with self.lock:
            self._forget(key)  # another thread may have made it meanwhile
            self._keep(key, value, size)
            while len(self.kept) > self.limit or self.held > self.bytes:
                self._forget(next(iter(self.kept)))
        return value

    def _keep(self, key: tuple[Any, ...], value: Any, size: tuple[int, dict[AttentionRows, int]]) -> None:
        self.kept[key], self.sizes[key] = value, size
        self.held += size[0] + sum(bytes for seen, bytes in size[1].items() if not self.users[seen])
        self.users.update(size[1].keys())

    def _forget(self, key: tuple[Any, ...]) -> None:
        if key not in self.kept:
            return
        del self.kept[key]
        own, shared = self.sizes.pop(key)
        self.users.subtract(shared.keys())
        gone = [seen for seen in shared if not self.users[seen]]
        self.held -= own + sum(shared[seen] for seen in gone)
        for seen in gone:
            del self.users[seen]

    def clear(self) -> None:
        with self.lock:
            self.kept.clear()
            self.sizes.clear()
            self.users.clear()
            self.held = 0


def bytes_of(value: Any) -> tuple[int, dict[AttentionRows, int]]:
    """About the bytes that a result keeps alive: its arrays and tensors, what they are views of, and the containers and
    objects around them; and apart from these, those of each captured attention that it refers to.

    What is shared counts once; a list of plain numbers is taken by its length.
    """
    total, shared = 0, dict[AttentionRows, int]()
    seen, waiting = set[int](), [value]
    while waiting:
        x = waiting.pop()
        if id(x) in seen or x is None or isinstance(x, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(x))
        if isinstance(x, AttentionRows):
            shared[x] = sum(t.untyped_storage().nbytes() for t in x.tensors.values())
            continue
        total += sys.getsizeof(x)
        if isinstance(x, np.ndarray):
            total += x.nbytes if x.base is None and not x.flags.owndata else 0  # getsizeof counts what is its own
        elif isinstance(x, torch.Tensor):
            total += x.untyped_storage().nbytes()
        elif isinstance(x, (list, tuple, set, frozenset)) and isinstance(next(iter(x), None), (int, float)):
            total += len(x) * sys.getsizeof(next(iter(x)))
            continue
        waiting += _parts(x)
    return total, shared


def _parts(x: Any) -> list[Any]:
    """What an object refers to."""
    if isinstance(x, np.ndarray):
        return [x.base, *(x.reshape(-1).tolist() if x.dtype.hasobject else [])]
    if isinstance(x, torch.Tensor):
        return []
    if isinstance(x, Mapping):
        return [*x.keys(), *x.values()]
    if isinstance(x, (list, tuple, set, frozenset)):
        return list(x)
    slots = [getattr(x, n, None) for n in getattr(type(x), "__slots__", ()) if isinstance(n, str)]
    return [*getattr(x, "__dict__", {}).values(), *slots]


#: Results of patterns: at most 4096 of them, and some 512 MiB.
CACHE = _Cache(4096, 1 << 29)


def weights_cost(n: int, dim: int) -> Cost:
    """What evaluating all weights of one head takes where scores are inner products: n² of ``dim`` products in float64,
    some rows at a time."""
    return Cost(n * n * (SECONDS_PER_PAIR + dim * SECONDS_PER_PRODUCT), 1 << 26)


def with_scores(cost: Cost, seen: AttentionRows, n: int, times: int = 1) -> Cost:
    """``cost``, which takes the weights of ``n`` tokens for inner products, ``times`` over, with those of ``seen``'s
    tokens and scores in their place."""
    change = seen.weights_seconds - weights_cost(n, seen.width).seconds
    return Cost(max(0.0, cost.seconds + times * change), cost.bytes)


@dataclass(frozen=True)
class AnalysisPass(Pass):
    """Base of analytical passes: results about each captured pattern and about the IR itself.

    Subclasses say `estimate_cost`, `of_pattern` and `of_module`; they change nothing in the module and may run in any
    order. Options that change a result are fields: they are part of the key that results are cached by.
    """

    family: ClassVar[str] = ""

    def estimate_cost(self, n: int, dim: int) -> Cost:
        """What one whole pattern of ``n`` queries and keys with head width ``dim`` will take, scores being inner
        products. Every subclass says it."""
        raise NotImplementedError

    def estimate_pattern(self, seen: AttentionRows, study: Study) -> Cost:
        """What one head's pattern of ``seen`` will take before it is known: the weights of all tokens by the operations
        of their own scores, and `estimate_cost` of as many states as ``study.memory`` leaves. A subclass that pools by
        a rule of its own says otherwise; one that learns more from the pattern may check ``study.budget`` again."""
        states = max(seen.pooled_sizes(study.memory))
        return with_scores(self.estimate_cost(states, seen.width), seen, states)

    def _estimate_square(self, seen: AttentionRows, times: int = 1) -> Cost:
        """`estimate_pattern` of a pass that reads the weights of all tokens ``times`` over, whatever the memory, and
        leaves patterns alone that are not square."""
        n, m = seen.sizes[2:]
        return with_scores(self.estimate_cost(n, seen.width), seen, n, times) if n == m else Cost(1e-3, 1 << 20)

    def load(self) -> None:
        """Imports the modules of the family, where it is one of ours, so that no clock of a budget runs meanwhile."""
        package = type(self).__module__.rpartition(".")[0]
        ours = "aatc.passes.analysis."
        for folder in (package, f"{ours}chains") if package.startswith(ours) else ():
            for module in pkgutil.iter_modules(importlib.import_module(folder).__path__, f"{folder}."):
                importlib.import_module(module.name)

    def estimates(self, study: Study) -> tuple[float, float]:
        """Seconds that all patterns of a study will take by `estimate_pattern`, and that the least one will."""
        heads = ((c, c.sizes[0] * c.sizes[1]) for c in study.captured)
        pieces = [(self.estimate_pattern(c, study).seconds, count) for c, count in heads if count]
        return sum(s * count for s, count in pieces), min((s for s, _ in pieces), default=0.0)

    def estimate_module(self, module: Module) -> Cost:
        """What `of_module` will take; next to nothing unless a subclass says otherwise."""
        return Cost(0.0, 0.0)

    def of_pattern(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        """Results about one head's pattern, by item. A BudgetError stands for all of them."""
        return {}

    def of_module(self, module: Module) -> Mapping[str, Any]:
        """Results about the IR, by item."""
        return {}

    def of_layers(self, study: Study) -> Iterator[tuple[str, int, str, Any]]:
        """(subject, batch element, item, result) of what all layers make together."""
        return iter(())

    def run(self, module: Module, ctx: Context) -> Module:
        study = ctx.study if ctx.study is not None else Study()
        if not isinstance(study, Study):
            raise AnalysisError(f"pass {self.name} studies a Study, not a {type(study).__name__}")
        study.begin(self)
        found = [Finding("ir", self.family, item, result) for item, result in self._module(module, study).items()]
        for f in (*found, *self._findings(study)):
            module.findings.append(f)
            ctx.count(f.item)
        return module

    def findings(self, study: Study) -> Iterator[Finding]:
        """What there is to say of every pattern, and of all layers together."""
        study.begin(self)
        yield from self._findings(study)

    def _findings(self, study: Study) -> Iterator[Finding]:
        patterns = list(study.heads())
        for done, (seen, batch, head) in enumerate(patterns):
            if study.progress is not None:
                study.progress(self.family, done, len(patterns))
            study.proceed()
            for item, result in self._pattern(seen, head, batch, study).items():
                yield Finding(seen.name, self.family, item, _noted(result, seen), head, seen.batch[batch])
        study.proceed()
        for subject, batch, item, result in self._layers_within_budget(study) if patterns else ():
            yield Finding(subject, self.family, item, result, -1, batch)
        if study.progress is not None:
            study.progress(self.family, len(patterns), len(patterns))

    def _of_layers(self, study: Study) -> Iterator[tuple[str, int, str, Any]]:
        """`of_layers`; undecided where the rows of one of them are no probability distributions."""
        improper = [c for c in study.captured if c.improper]
        if not improper:
            yield from self.of_layers(study)
        elif len(study.captured) > 1 and type(self).of_layers is not AnalysisPass.of_layers:
            why = Undecided("rows that are probability distributions", f"{improper[0].name}: {improper[0].improper}")
            for element in improper[0].batch:
                yield "layers", element, "no_distribution", why

    def _layers_within_budget(self, study: Study) -> list[tuple[str, int, str, Any]]:
        found: list[tuple[str, int, str, Any]] = []
        try:
            with deadline(study.budget, f"{self.family} of all layers"):
                found.extend(self._of_layers(study))
        except BudgetError as refusal:
            found.append(("layers", -1, "refused", refusal))
        return found

    def _module(self, module: Module, study: Study) -> Mapping[str, Any]:
        what = f"{self.family} of the program"
        try:
            self.estimate_module(module).check(study.budget, what)
            with deadline(study.budget, what):
                return self.of_module(module)
        except BudgetError as refusal:
            return {"refused": refusal}

    def _pattern(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        if seen.improper:
            return {"no_distribution": Undecided("rows that are probability distributions", seen.improper)}
        # the class itself: another of its name, as a notebook makes when a cell runs again, may say something else
        key = (type(self), str(self), seen.key, head, batch, study.memory)
        what = f"{self.family} of {seen.name}, head {head}"
        try:
            self.estimate_pattern(seen, study).check(study.budget, what)
            with deadline(study.budget, what):
                return CACHE.get(key, lambda: self.of_pattern(seen, head, batch, study))
        except BudgetError as refusal:
            return {"refused": refusal}
