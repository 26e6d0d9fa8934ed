"""Programs put together of templates: tile functions on a device, one after the other, for given sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aatc.backends.vulkan.kernels import Dispatch, Kernel, Offset, Template
from aatc.ir.core import Block, Func, Module, Op, Value
from aatc.ir.errors import BackendError
from aatc.ir.program_rules import kernel_hash, words
from aatc.ir.registry import Operand
from aatc.ir.types import KERNEL, TensorType
from aatc.passes.plan_program import plan


class Assembly:
    """A program while it is written: inputs and parameters first or in between, templates in the order they run in,
    outputs last. Values are buffers of the arena; a buffer may be handed on as another shape of as many words."""

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.args: list[Value] = []
        self.ops: list[Op] = []
        self.outputs: list[Value] = []
        self.kernels: dict[str, Kernel] = {}
        self._declared: dict[str, Value] = {}

    def input(self, dtype: str, shape: Sequence[int], name: str = "") -> Value:
        """A tensor of the host that is uploaded in every call; its buffer."""
        return self._given("program.upload", dtype, shape, name, keep=False)

    def parameter(self, dtype: str, shape: Sequence[int], name: str = "") -> Value:
        """A tensor of the host that is uploaded when it has changed; its buffer, which stays."""
        return self._given("program.parameter", dtype, shape, name, keep=True)

    def _given(self, how: str, dtype: str, shape: Sequence[int], name: str, *, keep: bool) -> Value:
        self.args.append(Value(TensorType.of(dtype, shape), name))
        buffer = self.buffer(held(dtype), shape, name, keep=keep)
        self.ops.append(Op(how, (self.args[-1], buffer)))
        return buffer

    def buffer(self, dtype: str, shape: Sequence[int], name: str = "", *, keep: bool = False) -> Value:
        """A new buffer of f32, i32 or f16."""
        self.ops.append(
            Op("program.buffer", (), {"keep": keep}, [TensorType.of(dtype, shape)], result_names=[name or "b"])
        )
        return self.ops[-1].result

    def zero(self, buffer: Value) -> None:
        self.ops.append(Op("program.zero", (buffer,)))

    def output(self, buffer: Value, dtype: str, shape: Sequence[int] | None = None) -> None:
        """What the program returns next: a tensor of ``dtype`` with what ``buffer`` holds in the end."""
        assert isinstance(buffer.type, TensorType)
        whole = [int(d) for d in buffer.type.shape]
        if shape is not None and math.prod(shape) != math.prod(whole):
            raise BackendError(f"a buffer of shape {whole} is no tensor of shape {list(shape)}")
        found = TensorType.of(dtype, whole)
        self.ops.append(Op("program.download", (buffer,), {}, [found]))
        self.outputs.append(self.ops[-1].result)

    def run(self, template: Template, sizes: Mapping[str, int], given: Mapping[str, Value]) -> dict[str, Value]:
        """Runs a template on ``given`` arguments and runs; all its buffers by name, "refused" with them. Raises:
        BackendError for an argument that is missing or too small."""
        found: dict[str, Value] = {}
        for b in template.buffers:
            shape = [d.evaluate(sizes) for d in b.shape]
            mine = TensorType.of("f32" if b.floating else "i32", shape)
            if b.name in given:
                found[b.name] = _fitting(given[b.name], mine, f"{template.name}: {b.name}")
            elif b.role in ("argument", "runs"):
                raise BackendError(f"{template.name} is run without its {b.role} {b.name}")
            else:
                found[b.name] = self.buffer(mine.dtype, shape, b.name)
                if b.role == "refused":
                    self.zero(found[b.name])
        for dispatch in template.dispatches:
            self._dispatch(dispatch, sizes, found)
        return found

    def _dispatch(self, d: Dispatch, sizes: Mapping[str, int], found: Mapping[str, Value]) -> None:
        grid = tuple(g.evaluate(sizes) for g in d.grid)
        if 0 in grid:
            return
        touched = list(dict.fromkeys([*d.reads, *d.writes]))
        access = ["read" if b not in d.writes else "update" if b in d.reads else "write" for b in touched]
        buffers = [found[b] for b in touched]
        pushed: list[object] = []
        for word in d.kernel.push:
            value = d.push[word]
            if isinstance(value, Offset):
                if value.buffer not in touched:  # where it lies is told to a kernel that does not touch it
                    touched.append(value.buffer)
                    access.append("read")
                    buffers.append(found[value.buffer])
                pushed.append(Operand(touched.index(value.buffer) + 1))
            else:
                pushed.append(value if isinstance(value, float) else value.evaluate(sizes))
        if d.kernel.block:
            block = self.buffer("i32", [len(pushed)], "block", keep=True)
            self.ops.append(Op("program.block", (block, *buffers), {"words": tuple(pushed)}))
            buffers.append(block)
            access.append("read")
            pushed = [Operand(len(buffers))]
        attrs: dict[str, object] = {"access": tuple(access), "grid": grid, "push": tuple(pushed)}
        if d.trips:
            attrs["trips"] = math.prod(t.evaluate(sizes) for t in d.trips)
        self.ops.append(Op("program.dispatch", (self._kernel(d.kernel), *buffers), attrs))

    def _kernel(self, k: Kernel) -> Value:
        digest = kernel_hash(k.glsl, k.wgsl, k.push, k.local, k.shared_bytes, k.features, k.block)
        if digest not in self._declared:
            attrs = {"name": k.name, "hash": digest, "push": tuple(k.push), "local": tuple(k.local),
                     "shared": k.shared_bytes, "features": tuple(sorted(k.features)), "block": k.block}  # fmt: skip
            self.ops.append(Op("program.kernel", (), attrs, [KERNEL], result_names=[k.name]))
            self.kernels[digest] = k
            self._declared[digest] = self.ops[-1].result
        return self._declared[digest]

    def finish(self, alignment: int = 64) -> Module:
        """The program, planned and verified. ``alignment``: words."""
        self.ops.append(Op("program.return", self.outputs))
        module = Module()
        func = module.add(Func(self.name, "program", Block(self.args, self.ops)))
        plan(func, alignment)
        return module.verify()


def held(dtype: str) -> str:
    """What buffers hold of tensors of ``dtype``."""
    return "f32" if dtype in ("f64", "f32", "bf16", "f16") else "i32"


def _fitting(value: Value, wanted: TensorType, what: str) -> Value:
    if words(value.type) < words(wanted):
        raise BackendError(f"{what} is {value.type}, where {wanted} is read")
    return value
