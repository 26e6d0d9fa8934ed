"""A tile function as plain C with OpenMP: written from the neutral tile program and nothing else."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import torch

from aatc.ir.core import Func, Module, Op, Value
from aatc.ir.interpreter import bind_sizes
from aatc.ir.tilemap import TileMap
from aatc.ir.types import RunsType, TensorType
from tests.neutral.scalar_code import Scalar

WORDS = {
    "add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "div": "({0} / {1})", "neg": "(-{0})",
    "abs": "fabs({0})", "square": "({0} * {0})", "sqrt": "sqrt(fmax({0}, 0.0))", "rsqrt": "(1.0 / sqrt({0}))",
    "reciprocal": "(1.0 / {0})", "exp": "exp({0})", "exp2": "exp2({0})", "log": "log({0})", "log2": "log2({0})",
    "log1p": "log1p({0})", "sin": "sin({0})", "cos": "cos({0})", "tanh": "tanh({0})", "floor": "floor({0})",
    "acosh": "acosh(fmax({0}, 1.0))", "expacosh": "exp(-acosh(fmax({0}, 1.0)))", "isfinite": "isfinite({0})",
    "acos": "acos(fmin(fmax({0}, -1.0), 1.0))", "asinsqrt": "asin(sqrt(fmin(fmax({0}, 0.0), 1.0)))",
    "maximum": "fmax({0}, {1})", "minimum": "fmin({0}, {1})", "where": "({0} ? {1} : {2})",
    "sign": "(({0} > 0) - ({0} < 0))",
    "step": "(double)({0} > 0)", "relu": "fmax({0}, 0.0)", "sigmoid": "(1.0 / (1.0 + exp(-({0}))))",
    "softplus": "(fmax({0}, 0.0) + log1p(exp(-fabs({0}))))",
    "lt": "({0} < {1})", "le": "({0} <= {1})", "gt": "({0} > {1})", "ge": "({0} >= {1})", "eq": "({0} == {1})",
    "ne": "({0} != {1})", "and": "({0} && {1})", "or": "({0} || {1})", "not": "(!{0})",
}  # fmt: skip


class C(Scalar):
    words, wide, minimum = WORDS, "f64", "MIN"
    types = {  # noqa: RUF012
        "f32": "float", "f64": "double", "i64": "int64_t", "bool": "_Bool", "index": "int64_t", "inf": "INFINITY",
        "true": "1", "false": "0",
    }  # fmt: skip

    def __init__(self, func: Func):
        super().__init__(func)
        self.parallel = 0

    def stride(self, buffer: Value, axis: int) -> str:
        return f"{self.name(buffer)}_s[{axis}]"

    def extent_of(self, buffer: Value, axis: int) -> str:
        return f"{self.name(buffer)}_n[{axis}]"

    def refuse(self) -> None:
        self.line("refused = 1;")

    def runs_shape(self, runs: Value) -> list[str]:
        return [f"{self.name(runs)}_n[{n}]" for n in range(3)]

    def run(self, runs: Value, at: str) -> str:
        return f"{self.name(runs)}[{at}]"

    def loop_head(self, op: Op, p: str, upper: str, step: int) -> None:
        if op.attrs["kind"] == "par" and not self.parallel:
            self.line("#pragma omp parallel for schedule(dynamic)")
        self.parallel += 1
        super().loop_head(op, p, upper, step)

    def round(self, op: Op, arg: int, p: str, extent: str) -> None:
        super().round(op, arg, p, extent)
        self.parallel -= op.name == "tile.for"

    def make(self, buffer: Value, fill: float | None) -> None:
        t: TensorType = buffer.type
        name, n = self.name(buffer), len(t.shape)
        shape = ", ".join(self.dim(d) for d in t.shape) or "1"
        self.line(f"int64_t {name}_n[] = {{{shape}}}; int64_t {name}_s[{max(n, 1)}];")
        self.line(f"int64_t {name}_size = strides({name}_n, {name}_s, {n});")
        if t.panel:
            self.line(
                f"{name}_size = {name}_n[0] * (({name}_n[1] + {t.panel - 1}) / {t.panel} * {t.panel}) * {name}_n[2];"
            )
        self.line(f"{self.types[t.dtype]} *{name} = malloc(({name}_size + 1) * sizeof *{name});")
        if fill is not None:
            self.line(f"for (int64_t z = 0; z < {name}_size; ++z) {name}[z] = {float(fill)!r};")

    def tile_return(self, op: Op) -> None:
        for n, v in enumerate(op.operands):
            self.line(f"memcpy(outs[{n}], {self.name(v)}, {self.name(v)}_size * sizeof *{self.name(v)});")
        self.line("return refused;")

    def source(self) -> str:
        head = []
        for n, a in enumerate([*self.func.args, *self.runs()]):
            name = self.name(a)
            rank = 4 if isinstance(a.type, RunsType) else len(a.type.shape)
            kind = "int" if isinstance(a.type, RunsType) else self.types[a.type.dtype]
            head += [
                f"  const {kind} *{name} = ptrs[{n}]; const int64_t *{name}_n = meta; meta += {rank};",
                f"  const int64_t *{name}_s = meta; meta += {rank};",
            ]
        for k, symbol in enumerate(self.symbols()):
            head.append(f"  const int64_t dim_{symbol} = dims[{k}];")
        self.block(self.func.body)
        body = [
            PREAMBLE,
            "int kernel(void **ptrs, const int64_t *meta, const int64_t *dims, void **outs) {",
            "  int refused = 0;",
        ]
        return "\n".join([*body, *head, *self.lines, "}", ""])

    def runs(self) -> list[Value]:
        return [op.result for op in self.func.body.ops if op.name == "tile.classify"]

    def symbols(self) -> list[str]:
        found = {s for a in self.func.args for d in a.type.shape for s in d.symbols}
        return sorted(found)


PREAMBLE = """\
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define float(x) ((float)(x))
#define double(x) ((double)(x))
#define int64_t(x) ((int64_t)(x))
static int64_t strides(const int64_t *n, int64_t *s, int rank) {
  int64_t size = 1;
  for (int k = rank - 1; k >= 0; --k) { s[k] = size; size *= n[k]; }
  return size;
}"""


class Kernel:
    """A tile function compiled by the system's C compiler."""

    def __init__(self, module: Module, func: Func, folder: Path):
        self.module, self.func, self.code = module, func, C(func)
        text = self.code.source()
        source, library = folder / f"{func.name}.c", folder / f"{func.name}.so"
        source.write_text(text)
        flags = ["-O1", "-std=gnu11", "-fopenmp", "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, "-o", library, source, "-lm"], check=True, capture_output=True)
        self.run = ctypes.CDLL(str(library)).kernel

    def __call__(self, *operands: torch.Tensor) -> list[torch.Tensor] | None:
        """The results, or None where a condition of the function fails."""
        sizes = bind_sizes(self.func, operands, self.module.dims)
        ptrs, meta, kept = [], [], []
        for t in operands:
            ptrs.append(t.data_ptr())
            meta += [*t.shape, *t.stride()]
        for runs in self.code.runs():
            op: Op = runs.owner
            mask, a = op.attrs["mask"], op.attrs
            captures = [operands[self.func.args.index(v)] for v in op.operands]
            extents = tuple(d if isinstance(d, int) else d.evaluate(sizes) for d in a["sizes"])
            table = np.ascontiguousarray(TileMap.of(mask, captures, extents, a["rows"], a["cols"], a["heads"]).runs())
            kept.append(table)
            ptrs.append(table.ctypes.data)
            meta += [*table.shape, *(s // 4 for s in table.strides)]
        outs = []
        for v in self.func.body.ops[-1].operands:
            shape = [d.evaluate(sizes) for d in v.type.shape]
            outs.append(
                torch.full(shape, float("nan"), dtype={"f32": torch.float32, "f64": torch.float64}[v.type.dtype])
            )
        dims = [sizes[s] for s in self.code.symbols()]
        integers, pointers = ctypes.c_int64 * (len(meta) + len(dims) + 1), ctypes.c_void_p * (len(ptrs) + len(outs) + 1)
        results = [t.data_ptr() for t in outs]
        refused = self.run(pointers(*ptrs), integers(*meta), integers(*dims), pointers(*results))
        return None if refused else outs
