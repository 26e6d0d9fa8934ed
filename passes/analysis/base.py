"""What analytical passes share: what they study, how results are kept, budgets, progress, a cache by content."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aatc.ir.core import Module
from aatc.passes.analysis.capture import MEMORY, CapturedAttention
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost
from aatc.passes.base import Context, Pass


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
    """What an analytical pass works on. ``progress(family, done, total)`` is called as patterns are finished."""

    captured: Sequence[CapturedAttention] = ()
    budget: Cost = field(default_factory=Cost)
    memory: int = MEMORY
    progress: Callable[[str, int, int], None] | None = None

    def heads(self) -> Iterator[tuple[CapturedAttention, int, int]]:
        """(attention, batch element, head) of every pattern."""
        for seen in self.captured:
            b, h = seen.sizes[:2]
            for batch in range(b):
                for head in range(h):
                    yield seen, batch, head


class _Cache:
    """Results by content, the least recently used forgotten first. Threads may share it."""

    def __init__(self, limit: int):
        self.limit, self.kept = limit, OrderedDict[tuple, Any]()
        self.lock = threading.Lock()

    def get(self, key: tuple, make: Callable[[], Any]) -> Any:
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        value = make()
        with self.lock:
            self.kept[key] = value
            while len(self.kept) > self.limit:
                self.kept.popitem(last=False)
        return value

    def clear(self) -> None:
        with self.lock:
            self.kept.clear()


CACHE = _Cache(4096)


def weights_cost(n: int, dim: int) -> Cost:
    """What evaluating all weights of one head takes: n² scores of ``dim`` products in float64, some rows at a time."""
    return Cost(1.6e-8 * n * n * (0.5 + dim / 128), 1 << 26)


@dataclass(frozen=True)
class AnalysisPass(Pass):
    """Base of analytical passes: results about each captured pattern and about the IR itself.

    Subclasses say `estimate_cost`, `of_pattern` and `of_module`; they change nothing in the module and may run in any
    order. Options that change a result are fields: they are part of the key that results are cached by.
    """

    family: ClassVar[str] = ""

    def estimate_cost(self, n: int, dim: int) -> Cost:
        """What one pattern of ``n`` queries and keys with head width ``dim`` will take. Every subclass says it."""
        raise NotImplementedError

    def of_pattern(self, seen: CapturedAttention, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        """Results about one head's pattern, by item."""
        return {}

    def of_module(self, module: Module) -> Mapping[str, Any]:
        """Results about the IR, by item."""
        return {}

    def run(self, module: Module, ctx: Context) -> Module:
        study = ctx.study if ctx.study is not None else Study()
        if not isinstance(study, Study):
            raise AnalysisError(f"pass {self.name} studies a Study, not a {type(study).__name__}")
        for item, result in self.of_module(module).items():
            module.findings.append(Finding("ir", self.family, item, result))
            ctx.count(item)
        patterns = list(study.heads())
        for done, (seen, batch, head) in enumerate(patterns):
            if study.progress is not None:
                study.progress(self.family, done, len(patterns))
            for item, result in self._pattern(seen, head, batch, study).items():
                module.findings.append(Finding(seen.name, self.family, item, result, head, seen.batch[batch]))
                ctx.count(item)
        if study.progress is not None:
            study.progress(self.family, len(patterns), len(patterns))
        return module

    def _pattern(self, seen: CapturedAttention, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        n, m = seen.sizes[2:]
        dim = seen.tensors[seen.attention.names[0]].shape[3]
        try:
            self.estimate_cost(max(n, m), dim).check(study.budget, f"{self.family} of {seen.name}, head {head}")
        except BudgetError as refusal:
            return {"refused": refusal}
        # the class itself: another of its name, as a notebook makes when a cell runs again, may say something else
        key = (type(self), str(self), seen.key, head, batch, study.memory)
        return CACHE.get(key, lambda: self.of_pattern(seen, head, batch, study))
