"""One attention through the passes and a backend, without Dynamo in between."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import aatc
from aatc import backends, passes
from aatc.frontend.attention import stages
from aatc.ir import Block, Func, Module, Op, TensorType, Value
from aatc.ir.types import dtype_name
from aatc.normalizers import with_sink


class Recorder(TorchFunctionMode):
    """Keeps the arguments of the attention op that runs under it."""

    args: tuple[Any, ...] | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if "aatc.attend" in str(func) and isinstance(args[-1], str):
            self.args = args
        return func(*args, **(kwargs or {}))


@dataclass
class Built:
    """A compiled attention: ``module`` before passes, ``result`` after, ``run()`` on the recorded operands."""

    module: Module
    result: passes.PipelineResult
    program: backends.Program
    operands: list[torch.Tensor]
    eager: Any
    spec: str

    sink: Any = None

    def run(self):
        return self.finished(*self.program.main(*self.operands))

    def finished(self, o, lse):
        """What `aatc.attend` makes of the results of its op."""
        if self.sink is None:
            return o, lse
        o, lse = with_sink(self.sink, o, lse)
        return o.to(self.eager[0].dtype), lse

    @property
    def forward(self) -> Func:
        return next(f for f in self.result.module.funcs.values() if f.level == "tile")


def module_of(operands, spec: str, key_heads: str | None = None) -> Module:
    """``(q, k, v, captures) -> (o, lse)`` as a geo module of the four stages; the number of k's and v's heads may be a
    symbol."""
    shapes = [list(t.shape) for t in operands]
    if key_heads is not None:
        shapes[1][1] = shapes[2][1] = key_heads
    values = [
        Value(TensorType.of(dtype_name(t.dtype), shape), f"x{n}")
        for n, (t, shape) in enumerate(zip(operands, shapes, strict=True))
    ]
    body = Block(values)
    o, lse = stages(body, values, spec, None)
    body.add(Op("geo.return", [o, lse]))
    module = Module(dims={} if key_heads is None else {key_heads: (1, None)})
    module.add(Func("main", "geo", body))
    return module.verify()


def record(q, k, v, **parts):
    """(operands, spec, eager result) of an `aatc.attend` call."""
    with Recorder() as recorder:
        eager = aatc.attend(q, k, v, return_lse=True, **parts)
    assert recorder.args is not None
    q, k, v, captures, spec = recorder.args
    return [q, k, v, *captures], spec, eager


#: (what the passes made, program) by module, passes and backend.
_shared: dict[tuple[str, str, str], tuple[passes.PipelineResult, backends.Program]] = {}


def build(
    q, k, v, *, tiles: str = "", library: bool | None = None, backend: str = "", shared: bool = False, **parts
) -> Built:
    """Compiles ``aatc.attend(q, k, v, **parts)`` for the backend named, by default that of torch code: ``library`` says
    whether it may call torch's fused attention, and where that is not said ``AATC_TEST_BACKEND`` names another backend
    (`make test-native`). ``tiles`` are options of adaptive-tile, whose rows are the library's too. ``shared``: what an
    earlier call that said so made of an equal module will do."""
    backend = backend or (os.environ.get("AATC_TEST_BACKEND", "cpu") if library is None else "cpu")
    operands, spec, eager = record(q, k, v, **parts)
    module = module_of(operands, spec)
    made_by = backends.get(backend)
    if made_by.target().levels:  # columns are whole vectors
        tiles = " ".join(f"cols={-(-int(w[5:]) // 16) * 16}" if w.startswith("cols=") else w for w in tiles.split())
    if "workgroups" in made_by.target().levels:  # a workgroup has one problem, and shared memory for no more
        tiles = " ".join(w for w in tiles.split() if not w.startswith("heads="))
    text = f"{passes.DEFAULT},{made_by.suffix}".replace("adaptive-tile", f"adaptive-tile{{{tiles}}}")
    rows = "".join(f"{{{word}}}" for word in tiles.split() if word.startswith("rows="))
    text = text.replace("call-library,", f"call-library{rows}," if library is not False else "")
    key = (str(module), text, backend) if shared else ("", "", "")
    found = _shared.get(key)
    if found is None:
        result = passes.Pipeline.parse(text).run(module, target=made_by.target())
        found = result, made_by.build(result.module)
        if shared:
            _shared[key] = found
    sink = getattr(parts.get("normalizer"), "sink", None)
    return Built(module, *found, operands, eager, spec, sink)
