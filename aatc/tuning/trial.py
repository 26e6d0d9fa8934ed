"""One direction of one attention under different schedules: compiled, compared with the default, timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from aatc.backends import Backend
from aatc.backends.kernel import Kernel, Version
from aatc.ir.core import Block, Func, Module, Op, Value
from aatc.ir.errors import BackendError, ScheduleError, UnsupportedError
from aatc.ir.legal import Workload
from aatc.ir.schedule import Schedule
from aatc.ir.schedule_file import SCHEDULE_OF
from aatc.ir.types import dtype_name
from aatc.passes.base import Pipeline
from aatc.tuning.key import TOLERANCE
from aatc.tuning.recording import Recorded

#: Seconds that a measurement takes at least: quick kernels run several times in it.
_SAMPLE = 2e-3
_MOST_CALLS = 1000


def alone(module: Module, op: Op) -> Module:
    """A module with the attention ``op`` of ``module`` only, whose entry takes its operands."""
    args = [Value(v.type, name) for v, name in zip(op.operands, op.attrs["names"], strict=True)]
    body = Block(args)
    own = {n: v for n, v in op.attrs.items() if n not in SCHEDULE_OF.values()}
    done = body.add(Op(op.name, args, own, [r.type for r in op.results], loc=op.loc))
    body.add(Op("geo.return", done.results))
    single = Module(dims=dict(module.dims))
    single.add(Func("main", "geo", body))
    return single


class Trial:
    """A `Bench` of real kernels. ``pipeline`` begins with the pass `schedule`."""

    def __init__(self, single: Module, direction: str, pipeline: Pipeline, backend: Backend, recorded: Recorded):
        self.single, self.direction = single, direction
        self.pipeline, self.backend, self.recorded = pipeline, backend, recorded
        (self.op,) = [op for op in single.walk() if op.name == "geo.attend"]
        self._runs: dict[Schedule, Callable[[], Sequence[torch.Tensor]]] = {}
        self._default: Schedule | None = None
        self._calls = 0
        self._wanted: list[torch.Tensor] = []
        self._given: Any = None

    def space(self) -> Sequence[Schedule]:
        found = self.backend.schedule_space(Workload.of(self.op, self.direction))
        if not isinstance(found, (list, tuple)) or not found or not all(isinstance(s, Schedule) for s in found):
            raise BackendError(
                f"backend {self.backend.name!r} has the schedules {found!r} for an attention",
                hint="schedule_space(workload) has to return a list of Schedules, the default first",
            )
        return found

    def prepare(self, schedule: Schedule) -> None:
        kernel = self._kernel(schedule)
        run = self._forward(kernel) if self.direction == "forward" else self._backward(kernel)
        results = [x.clone() for x in run()]
        if self._default is None:
            self._default, self._wanted = schedule, results
        self._runs[schedule] = run

    def problem(self, schedule: Schedule) -> str:
        return difference(self._runs[schedule](), self._wanted)

    def seconds(self, schedule: Schedule) -> float:
        run = self._runs[schedule]
        if not self._calls:
            self._calls = 1
            once = self._timed(run)
            self._calls = min(_MOST_CALLS, max(1, round(_SAMPLE / max(once, 1e-9))))
        return self._timed(run)

    def _timed(self, run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        for _ in range(self._calls):
            run()
        return (time.perf_counter() - start) / self._calls

    def _kernel(self, schedule: Schedule) -> Kernel:
        module = self.single.clone()
        (op,) = [op for op in module.walk() if op.name == "geo.attend"]
        attribute = SCHEDULE_OF[self.direction]
        op.attrs[attribute] = str(schedule)
        result = self.pipeline.run(module, target=self.backend.target(), verify_each=False)
        done = next((op for op in result.module.walk() if op.name == "geo.kernel"), None)
        if done is None or done.attrs.get(attribute) != str(schedule):
            raise ScheduleError(f"the passes do not compile it by {schedule}")
        (attention,) = self.backend.build(result.module).attentions
        if attention["engine"] == "library":
            raise UnsupportedError("PyTorch's fused attention runs it, which has no schedule")
        kernel: Kernel = attention["kernel"]
        return kernel

    def _forward(self, kernel: Kernel) -> Callable[[], Sequence[torch.Tensor]]:
        def run() -> Sequence[torch.Tensor]:
            with torch.no_grad():
                return kernel.forward(*self.recorded.operands)[2]

        return run

    def _backward(self, kernel: Kernel) -> Callable[[], Sequence[torch.Tensor]]:
        """Runs the backward on what the default's forward has left."""
        if self._given is None:
            with torch.no_grad():
                version, used, (o, lse, *rest) = kernel.forward(*self.recorded.operands)
            generator = torch.Generator().manual_seed(0)
            grad = torch.randn(o.shape, generator=generator).to(o.dtype)
            self._given = kernel.versions.index(version), (grad, torch.zeros_like(lse), *rest, *used)
        n, given = self._given
        chosen: Version = kernel.versions[n]
        wanted = dict(zip(kernel.names, self.recorded.wanted, strict=True))
        compiled = chosen.backward(tuple(wanted[name] for name in chosen.grads))

        def run() -> Sequence[torch.Tensor]:
            with torch.no_grad():
                found = compiled(*given)
            if found is None:
                raise BackendError(f"@{chosen.backward_func.name} refused what its forward has taken")
            return found

        return run


def difference(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> str:
    """How tensors differ by more than rounding; empty if they do not."""
    for n, (g, w) in enumerate(zip(got, want, strict=True)):
        if g.shape != w.shape or g.dtype != w.dtype:
            return f"result {n} is {g.dtype} {tuple(g.shape)}, the default's {w.dtype} {tuple(w.shape)}"
        if not w.dtype.is_floating_point:
            if not torch.equal(g, w):
                return f"result {n} differs from the default's"
            continue
        g, w = g.double(), w.double()
        finite = w.isfinite()
        if not torch.equal(g[~finite].nan_to_num(1.5), w[~finite].nan_to_num(1.5)) or not g[finite].isfinite().all():
            return f"result {n} is not finite at other places than the default's"
        if not finite.any():
            continue
        gap = ((g - w)[finite].abs().max() / w[finite].abs().max().clamp(min=1e-30)).item()
        allowed = TOLERANCE[dtype_name(want[n].dtype)]
        if gap > allowed:
            return f"result {n} differs from the default's by {gap:.1e}, more than {allowed:g}"
    return ""
