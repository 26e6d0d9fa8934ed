"""The entry of a module as Python: calls of ATen operators and of attention kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from aatc.backends import openmp
from aatc.backends.kernel import Formula, Kernel
from aatc.backends.source import Source, compile_source, number
from aatc.ir.core import Func, Module, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.effects import Memory, effect_of
from aatc.ir.errors import BackendError
from aatc.ir.geo import constant_tensor, whole_attention_of
from aatc.ir.interpreter import Interpreter, gives_several, target_function
from aatc.ir.registry import OPS, Operand, TorchConst
from aatc.ir.torch_names import resolve
from aatc.ir.types import TensorType


class Entry:
    """The source of one geo function; ``kernels`` by the names of their forwards."""

    def __init__(self, module: Module, func: Func, kernels: dict[str, Kernel]):
        self.module, self.func, self.kernels = module, func, kernels
        self.memory = Memory(func, module)
        self.read = {v for op in func.body.ops for v in op.operands}
        self.src = Source()
        self.within: tuple[str, ...] = ()  # contexts that are open
        self.namespace: dict[str, Any] = {
            "torch": torch,
            "aten": torch.ops.aten,
            "inf": float("inf"),
            "nan": float("nan"),
            "constants": [],
            "regions": {},
            "kernels": kernels,
            "one_thread": openmp.one_thread,
        }

    def build(self) -> tuple[Any, str]:
        args = [self.src.name(a) for a in self.func.args]
        last = self._last_uses()
        for n, op in enumerate(self.func.body.ops):
            quiet = ("torch.no_grad()",) if op.attrs.get("no_grad") else ()
            self._switch(quiet + (("one_thread()",) if _is_short(op) else ()))
            self._op(op)
            dead = [self.src.name(v) for v in last.get(n, ())]
            if dead and op.name != "geo.return":
                self.src.line(f"del {', '.join(dead)}")
        text = "\n".join([f"def main({', '.join(args)}):", *self.src.lines]) + "\n"
        return compile_source(text, self.namespace, self.func.name)["main"], text

    def _switch(self, within: tuple[str, ...]) -> None:
        """Opens or closes a block in contexts, which calls that follow each other share."""
        if within and within != self.within:
            self.src.depth = 1
            self.src.line(f"with {', '.join(within)}:")
        self.within, self.src.depth = within, 2 if within else 1

    def _last_uses(self) -> dict[int, list[Value]]:
        """Values to forget after each operation, so that memory is given back as early as eagerly."""
        at: dict[Value, int] = {}
        for n, op in enumerate(self.func.body.ops):
            for v in (*op.operands, *op.results):
                at[v] = n
        out: dict[int, list[Value]] = {}
        for v, n in at.items():
            out.setdefault(n, []).append(v)
        return out

    def _op(self, op: Op) -> None:
        if op.name in _CODE:
            _CODE[op.name](self, op)
        elif OPS[op.name].level == "geo" and OPS[op.name].evaluate is not None:
            self._interpreted(op)
        else:
            raise BackendError(f"there is no code for {op.name}")

    def _results(self, op: Op, text: str, *, several: bool = True) -> None:
        """Assigns what ``text`` returns: a sequence of all results if ``several``, else the only one."""
        names = [self.src.name(r) for r in op.results]
        comma = "," if several and len(names) == 1 else ""
        self.src.line(f"{', '.join(names)}{comma} = {text}" if names else text)

    def constant(self, value: Any) -> str:
        self.namespace["constants"].append(value)
        return f"constants[{len(self.namespace['constants']) - 1}]"

    # --- operations ----------------------------------------------------------------------------------------
    def _torch_call(self, op: Op) -> None:
        target: str = op.attrs["target"]
        function = target_function(target, op)
        args = [self._argument(a, op) for a in op.attrs["args"]]
        names = op.attrs.get("kwargs", ())
        split = len(args) - len(names)
        args[split:] = [f"{k}={v}" for k, v in zip(names, args[split:], strict=True)]
        called = target if target.startswith("aten.") else self.constant(function)
        if op.loc:
            self.src.comment(op.loc.text or "", op.loc)
        self._results(op, f"{called}({', '.join(args)})", several=gives_several(function, op))

    def _argument(self, a: Any, op: Op) -> str:
        if isinstance(a, Operand):
            return self.src.name(op.operands[a.position])
        if isinstance(a, tuple):
            return f"[{', '.join(self._argument(x, op) for x in a)}]"
        if isinstance(a, TorchConst):
            return self.constant(resolve(a))
        if isinstance(a, str):
            return self.constant(a)
        if isinstance(a, Dim):
            raise BackendError(f"{op.name} has a symbolic size {a} as an argument", hint="pass sizes as values")
        return "None" if a is None else number(a)

    def _geo_constant(self, op: Op) -> None:
        """One tensor serves all calls unless somebody may write to it, in here or outside."""
        shared = not (self.memory.written(op.result) or self.memory.outside(op.result) or self.memory.raw(op.result))
        self._results(op, f"({self.constant(constant_tensor(op))}{'' if shared else '.clone()'},)")

    def _geo_kernel(self, op: Op) -> None:
        name = op.attrs["forward"].name
        self.src.comment(f"attention @{name}", op.loc)
        operands = ", ".join(self.src.name(v) for v in op.operands)
        if op.results[1] in self.read:
            self._results(op, f"kernels[{name!r}]({operands})")
        else:
            self._results(op, f"kernels[{name!r}].output({operands}), None")

    def _geo_checkpoint(self, op: Op) -> None:
        name = op.attrs["body"].name
        main, text = Entry(self.module, self.module.funcs[name], self.kernels).build()
        self.namespace["regions"][name] = main
        self.namespace.setdefault("texts", []).append(text)
        self.namespace["checkpoint"] = _checkpoint
        args = ", ".join(self.src.name(v) for v in op.operands)
        unread = _unread(self.module.funcs[name], self.module)
        how = f"{unread}, {not op.attrs.get('new_random')}"
        self.src.comment(f"recomputed in the backward pass: {name}", op.loc)
        self._results(op, f"checkpoint(regions[{name!r}], {how}, {args})")

    def _geo_return(self, op: Op) -> None:
        self.src.line(f"return [{', '.join(self.src.name(v) for v in op.operands)}]")

    def _interpreted(self, op: Op) -> None:
        """Operations without code of their own run by their reference evaluation, which is differentiable torch."""
        self.src.comment(f"{op.name} by its reference formula", op.loc)
        found = Formula(whole_attention_of(op)) if op.name == "geo.attend" else _Reference(self.module, op)
        self._results(op, f"{self.constant(found)}({', '.join(self.src.name(v) for v in op.operands)})")


#: So many numbers an operator of torch's handles by itself; beyond, it calls all threads.
_GRAIN = 1 << 15
#: And so many one thread handles within a hundred microseconds.
_SHORT = 1 << 17
_COPIES = ("aten._to_copy.default", "aten.clone.default", "aten.to.dtype")


def _is_short(op: Op) -> bool:
    """Whether a second thread would save some microseconds of an operation, and on a machine with a busy core take
    milliseconds to come, as for the angles of rotary positions: one that works element by element on a few numbers."""
    if op.name != "torch.call" or op.attrs.get("effect"):
        return False
    function = target_function(op.attrs["target"], op)
    if torch.Tag.pointwise not in getattr(function, "tags", ()) and op.attrs["target"] not in _COPIES:
        return False
    shapes = [v.type.shape for v in (*op.operands, *op.results) if isinstance(v.type, TensorType)]
    sizes = [math.prod(map(int, shape)) if all(d.is_static for d in shape) else _SHORT + 1 for shape in shapes]
    return bool(sizes) and _GRAIN <= max(sizes) <= _SHORT


#: What writes an operation of the geo level; the others run by their reference evaluation.
_CODE: dict[str, Callable[[Entry, Op], None]] = {
    "torch.call": Entry._torch_call,
    "geo.constant": Entry._geo_constant,
    "geo.kernel": Entry._geo_kernel,
    "geo.checkpoint": Entry._geo_checkpoint,
    "geo.return": Entry._geo_return,
}


class _Reference:
    """One operation's reference evaluation as a function of its operands."""

    def __init__(self, module: Module, op: Op):
        self.interpreter, self.op = Interpreter(module), op

    def __call__(self, *values: Any) -> list[Any]:
        return list(self.interpreter.evaluate(self.op, list(values)))


def _unread(func: Func, module: Module) -> list[int]:
    """Positions of arguments that ``func`` writes to and nothing else, as batch norm counts its batches."""
    readers: dict[Value, bool] = {}
    for op in func.body.ops:
        effect = effect_of(op, module)
        for n, v in enumerate(op.operands):
            readers[v] = readers.get(v, False) or n not in effect.writes or len(effect.writes) != 1
    for op in func.body.ops:
        if any(r in readers for r in op.results):  # what a write gives back is what it wrote to
            readers.update((v, True) for v in op.operands)
    return [n for n, a in enumerate(func.args) if readers.get(a) is False]


def _checkpoint(region: Any, unread: list[int], same_random: bool, *args: Any) -> Any:
    """``unread`` arguments are written again in the backward pass, and nobody minds that they have changed."""
    from torch.utils.checkpoint import checkpoint

    def run(*given: Any) -> Any:
        return region(*(args[n] if n in unread else g for n, g in enumerate(given)))

    given = [None if n in unread else a for n, a in enumerate(args)]
    return checkpoint(run if unread else region, *given, use_reentrant=False, preserve_rng_state=same_random)
