"""A backend in a page: tile functions run by the reference evaluation of every operation, with tokens in loops, too."""

from collections.abc import Callable, Sequence
from typing import Any

from aatc.backends import Backend, Lowerings
from aatc.backends.lowerings import tile_ops
from aatc.ir.core import Func, Module, Op
from aatc.ir.interpreter import Interpreter
from aatc.ir.legal import Workload
from aatc.ir.registry import lookup_op
from aatc.ir.schedule import Schedule
from aatc.ir.target import Target
from aatc.ir.tile_evaluate import Refused
from aatc.passes.cost_model import default_schedule

lowering = Lowerings("interpreting")


@lowering("tile.yield", "tile.return")
def _end(op: Op, values: list[Any], rounds: Interpreter) -> Sequence[Any]:
    return values


for declared in tile_ops("interpreting"):
    if declared.name not in lowering:
        lowering(declared.name)(declared.evaluate)


class Rounds(Interpreter):
    """Goes through the operations of a function by the table above."""

    def evaluate(self, op: Op, values: list[Any]) -> Sequence[Any]:
        return lowering[op.name](op, values, self)


class Interpreting(Backend):
    name = "interpreting"
    suffix = "lower-tokens"
    lowerings = lowering

    def target(self) -> Target:
        return Target("interpreting")

    def compile(self, func: Func) -> tuple[Callable[..., Any], str]:
        alone = Module()
        alone.add(func)

        def run(*tensors: Any) -> list[Any] | None:
            try:
                results = Rounds(alone).call(func.name, tensors)
            except Refused:
                return None
            return [t.clone() for t in results]

        return run, "".join(f"# {op.name}\n" for op in func.body.walk() if lookup_op(op.name).level == "tile")

    def devices(self) -> Sequence[dict[str, Any]]:
        return [{"backend": self.name, "name": "torch, operation by operation"}]

    def schedule_space(self, workload: Workload) -> Sequence[Schedule]:
        return [default_schedule(workload, self.target())]
