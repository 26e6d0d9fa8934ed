"""What a backend provides, and what a module becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from aatc.backends.host import build
from aatc.backends.lowerings import Lowerings
from aatc.backends.profile import Profiler
from aatc.backends.program import Program
from aatc.ir.containment import sums_up
from aatc.ir.core import Func, Module
from aatc.ir.errors import BackendError
from aatc.ir.legal import Workload
from aatc.ir.schedule import Schedule
from aatc.ir.target import Target

_COUNTS = 'backend="native" does; a profiler of the process sees the others, as torch.profiler'


class Backend(ABC):
    """What turns tile functions into something that runs; autograd, containment of numbers that are not finite, the
    entry program and its constants are the host's.

    name: a word of its own. suffix: the text of its passes, which follow the neutral ones; may be empty. lowerings: its
    table of tile operations. listings: words of the forms that `listing` shows a tile function's code in.
    """

    name: ClassVar[str]
    suffix: ClassVar[str] = ""
    lowerings: ClassVar[Lowerings]
    listings: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def target(self) -> Target:
        """The machine as passes see it."""

    @abstractmethod
    def compile(self, func: Func) -> tuple[Callable[..., Any], str]:
        """A tile function as a callable of its tensors that returns a sequence of tensors, and its source. The callable
        returns None where an operation that may leave the function (`tile.require`) does; results are tensors of their
        own, not views of arguments or of each other. It may have a method ``first(count, *tensors)``, which gives that
        many of them."""

    @abstractmethod
    def devices(self) -> Sequence[dict[str, Any]]:
        """What it can run on here; each entry has at least ``backend`` and ``name``."""

    @abstractmethod
    def schedule_space(self, workload: Workload) -> Sequence[Schedule]:
        """Schedules worth trying for one direction of an attention, the default first, none twice."""

    def using(self, executor: str) -> Backend:
        """The same backend with another ``executor``, which is what runs its programs; "auto" leaves the choice to it.
        Raises: BackendError if it has none of that name."""
        if executor != "auto":
            raise BackendError(f"backend {self.name!r} has no executor {executor!r}", hint='backend="vulkan" has some')
        return self

    def notes(self) -> Sequence[str]:
        """What `explain` says of what was chosen here: a device, an executor, and why."""
        return ()

    def finite(self) -> Callable[[torch.Tensor], bool]:
        """What says whether all numbers of a tensor are finite; False sends a call to where they are looked at one by
        one. Masked attentions ask it in every call."""
        return sums_up

    def profiler(self) -> Profiler:
        """What counts the time of tile operations. Raises BackendError if the backend has none."""
        raise BackendError(f"backend {self.name!r} does not count the time of tile operations", hint=_COUNTS)

    def listing(self, func: Func, form: str) -> str:
        """The code of a tile function in a form of ``listings``. Raises BackendError for another."""
        have = ", ".join(self.listings) or "none: its source is the stage code"
        raise BackendError(f"backend {self.name!r} has no listing {form!r}", hint=f"it has {have}")

    def build(self, module: Module) -> Program:
        """The program of a verified module that has been through this backend's passes."""
        return build(module, self)
