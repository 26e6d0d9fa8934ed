"""A program on a device: kernels compiled, arena taken, parameters uploaded, dispatches recorded; then called."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aatc.backends.vulkan.executors import found
from aatc.backends.vulkan.executors.contract import Arena, Executor, Launch, Range, Recording, Step, Zero, pack
from aatc.backends.vulkan.kernels import Kernel
from aatc.backends.vulkan.pool import Pool, pool_of
from aatc.backends.vulkan.transfers import Transfers, transfers
from aatc.ir.core import Func, Op, Value
from aatc.ir.errors import BackendError, DeviceLimitError, DeviceLostError
from aatc.ir.registry import Operand
from aatc.ir.types import TensorType, torch_dtype
from aatc.ir.verify_program import planned, spans
from aatc.passes.plan_program import depth

_I32 = torch.iinfo(torch.int32)


@dataclass(frozen=True)
class LevelTime:
    """What ran in a level of a program, by the names of kernels, and for how long."""

    level: int
    kernels: tuple[str, ...]
    seconds: float


class Loaded:
    """``loaded(*tensors)`` runs a planned, verified program on an executor: a tensor per argument, on the CPU, and a
    list of new ones comes back. Parameters are uploaded when they are new or have been written to since.

    Raises, when it is made or called: DeviceLimitError and DeviceFeatureError for what the device cannot run,
    DeviceMemoryError, DeviceLostError (the next call opens the device anew), ShaderError; BackendError for tensors that
    are not the program's.
    """

    def __init__(self, executor: Executor, func: Func, kernels: Mapping[str, Kernel]) -> None:
        if not planned(func):
            raise BackendError(
                f"program @{func.name} has no levels and places", hint="the pass plan-program gives them"
            )
        self.func, self.kernels = func, dict(kernels)
        self.transfers: Transfers = transfers(func)
        self._spans = spans(func)
        self._where = (executor.name, executor.device.index)
        with executor.lock:
            self._load(executor)

    # --- loading --------------------------------------------------------------------------------------------
    def _load(self, executor: Executor) -> None:
        self.executor = executor
        self._given: dict[int, torch.Tensor] = {}  # parameters as they were uploaded
        pool = pool_of(executor)
        levels = self._levels(executor)
        arena = pool.take(self.func.attrs["words"])
        try:
            self._blocks(arena)
            recording = executor.record(arena, levels, self.transfers.inward, self.transfers.outward)
        except BaseException:
            pool.give(arena)
            raise
        self.arena, self.recording = arena, recording
        self._close = weakref.finalize(self, _drop, pool, arena, recording)

    def _reopen(self) -> None:
        """Loads the program anew if its device was lost."""
        if self.executor.closed:
            executor = found.open_executor(*self._where)
            with executor.lock:
                if self.executor.closed:
                    self._load(executor)

    def _levels(self, executor: Executor) -> list[list[Step]]:
        levels: list[list[Step]] = [[] for _ in range(depth(self.func))]
        for op in self.func.body.ops:
            if op.name == "program.zero":
                levels[op.attrs["level"]].append(Zero(self._range(op.operands[0])))
            elif op.name == "program.dispatch":
                levels[op.attrs["level"]].append(self._launch(executor, op))
        return levels

    def _launch(self, executor: Executor, op: Op) -> Launch:
        made = op.operands[0].owner
        assert isinstance(made, Op)
        kernel = self.kernels.get(made.attrs["hash"])
        if kernel is None:
            raise BackendError(f"there is no text of kernel {made.attrs['name']}, {made.attrs['hash'][:12]}")
        device, trips = executor.device, op.attrs.get("trips", 0)
        if device.trips and trips > device.trips:
            raise DeviceLimitError(
                f"the loops of kernel {kernel.name} go {trips} times, and the driver of {device.name} ends them after "
                f"{device.trips}",
                hint="a schedule of smaller blocks of keys, or Mesa 25.0 and later",
            )
        x, y, z = op.attrs["grid"]
        return Launch(executor.compile(kernel), (x, y, z), pack(self._words(op, op.attrs["push"])))

    def _words(self, op: Op, words: Sequence[Any]) -> list[int | float]:
        return [self._spans[op.operands[w.position]].first if isinstance(w, Operand) else w for w in words]

    def _range(self, v: Value) -> Range:
        span = self._spans[v]
        return Range(span.first, span.last - span.first)

    def _blocks(self, arena: Arena) -> None:
        for op in self.func.body.ops:
            if op.name == "program.block" and op.attrs["words"]:
                words = pack(self._words(op, op.attrs["words"]))
                arena.write(self._spans[op.operands[0]].first, torch.frombuffer(bytearray(words), dtype=torch.int32))

    # --- calls ----------------------------------------------------------------------------------------------
    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        self._check(tensors)
        given = dict(zip(self.func.args, tensors, strict=True))
        self._reopen()
        with self.executor.lock:
            try:
                self._upload(given, self.recording)
                self.recording.run()
                return self._results(given)
            except DeviceLostError:
                self._lose()
                raise

    def _check(self, tensors: Sequence[torch.Tensor]) -> None:
        args = self.func.args
        if len(tensors) != len(args):
            raise BackendError(f"program @{self.func.name} takes {len(args)} tensors, not {len(tensors)}")
        for n, (v, t) in enumerate(zip(args, tensors, strict=True)):
            assert isinstance(v.type, TensorType)
            if tuple(t.shape) != tuple(map(int, v.type.shape)) or t.dtype != torch_dtype(v.type.dtype):
                raise BackendError(f"argument {n} of @{self.func.name} is {t.dtype} {tuple(t.shape)}, not {v.type}")

    def _upload(self, given: Mapping[Value, torch.Tensor], recording: Recording) -> None:
        self._parameters(given)
        for piece in self.transfers.uploads:
            source, target = piece.op.operands
            _fill(recording.inputs[piece.copy][piece.start : piece.start + piece.words], given[source], target.type)

    def _parameters(self, given: Mapping[Value, torch.Tensor]) -> None:
        for n, op in enumerate(self.func.body.ops):
            if op.name != "program.parameter":
                continue
            source, target = op.operands
            t = given[source]
            # not by its version: what is written through .data, or numpy's view of it, counts none
            before = self._given.get(n)
            if before is None or not _same(before, t):
                at = self._range(target)
                words = torch.zeros(at.words, dtype=torch.int32)
                _fill(words, t, target.type)
                self.arena.write(at.offset, words)
                self._given[n] = t.detach().clone()

    def _results(self, given: Mapping[Value, torch.Tensor]) -> list[torch.Tensor]:
        made = dict(given)
        for piece in self.transfers.downloads:
            source = piece.op.operands[0]
            words = self.recording.outputs[piece.copy][piece.start : piece.start + piece.words]
            made[piece.op.result] = _tensor(words, source.type, piece.op.result.type)
        return [made[v] for v in self.func.body.ops[-1].operands]

    def profile(self, *tensors: torch.Tensor) -> list[LevelTime]:
        """Runs the program once, as a call does, and tells how long each level took by the device's clock. Empty where
        the executor cannot ask it ("native" can, where the device has one)."""
        self._check(tensors)
        self._reopen()
        with self.executor.lock:
            timed = self.executor.record(self.arena, self._levels(self.executor), self.transfers.inward, timed=True)
            try:
                self._upload(dict(zip(self.func.args, tensors, strict=True)), timed)
                timed.run()
                seconds = list(timed.seconds)
            finally:
                timed.close()
        names: list[list[str]] = [[] for _ in seconds]
        for op in self.func.body.ops:
            if "level" in op.attrs and seconds:
                made = op.operands[0].owner
                what = made.attrs["name"] if isinstance(made, Op) and op.name == "program.dispatch" else "zero"
                names[op.attrs["level"]].append(what)
        return [LevelTime(n, tuple(k), s) for n, (k, s) in enumerate(zip(names, seconds, strict=True))]

    def remember(self, buffer: Value, t: torch.Tensor) -> None:
        """``t`` of the host is what the device has in the buffer of a parameter: it need not be uploaded."""
        for n, op in enumerate(self.func.body.ops):
            if op.name == "program.parameter" and op.operands[1] is buffer:
                self._given[n] = t.detach().clone()

    def read(self, buffer: Value) -> torch.Tensor:
        """What stands in a buffer, such as a parameter that the device has updated, as a new tensor."""
        at = self._range(buffer)
        return _tensor(self.arena.read(at.offset, at.words), buffer.type, buffer.type)

    def _lose(self) -> None:
        """Forgets the device: what was made on it must not be touched any more."""
        self._close.detach()
        found.forget(self.executor)

    def close(self) -> None:
        """Gives its memory back; it cannot be called any more."""
        self._close()


def _same(old: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(old.itemsize)
    if bits is None or not old.dtype.is_floating_point:
        return torch.equal(old, new)
    return torch.equal(old.contiguous().view(bits), new.detach().contiguous().view(bits))


def _drop(pool: Pool, arena: Arena, recording: Recording) -> None:
    with pool.executor.lock:
        recording.close()
        pool.give(arena)


def too_large(t: torch.Tensor) -> bool:
    """Whether a tensor holds integers that 32 bits do not."""
    if t.dtype != torch.int64 or not t.numel():
        return False
    return int(t.max()) > _I32.max or int(t.min()) < _I32.min


def _fill(words: torch.Tensor, t: torch.Tensor, held: Any) -> None:
    """Writes a tensor as a buffer of type ``held`` has it; integers have to have 32 bits."""
    t = t.detach()
    if not t.numel():
        return
    if too_large(t):
        raise DeviceLimitError(
            "an argument holds integers of more than 32 bits, which no kernel computes", hint="it runs on the CPU"
        )
    view = words.view(torch_dtype(held.dtype))[: t.numel()].view(t.shape)
    view.copy_(t)


def _tensor(words: torch.Tensor, held: Any, wanted: Any) -> torch.Tensor:
    shape = [int(d) for d in wanted.shape]
    made = torch.empty(shape, dtype=torch_dtype(wanted.dtype))
    if made.numel():
        made.copy_(words.view(torch_dtype(held.dtype))[: made.numel()].view(shape))
    return made
