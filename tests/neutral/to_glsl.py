"""A tile function as compute shaders: one per loop nest, a workgroup per round of its parallel loops.

Written from the neutral tile program; shapes and strides of buffers come in one buffer of integers.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

from aatc.ir.core import Func, Op, Value
from aatc.ir.dims import factors
from aatc.ir.types import RunsType, TensorType, TileType
from tests.neutral.scalar_code import Scalar
from tests.neutral.to_c import WORDS as C_WORDS

WORDS = {
    word: text.replace("fabs", "abs").replace("fmax", "max").replace("fmin", "min") for word, text in C_WORDS.items()
} | {
    "log1p": "log(1.0 + {0})", "step": "float({0} > 0.0)", "sign": "sign({0})",
    "isfinite": "!(isnan({0}) || isinf({0}))", "softplus": "(max({0}, 0.0) + log(1.0 + exp(-abs({0}))))",
}  # fmt: skip


class GLSL(Scalar):
    words, wide, minimum = WORDS, "f32", "min"
    types = {  # noqa: RUF012
        "f32": "float", "i64": "int", "bool": "bool", "index": "int", "inf": "uintBitsToFloat(0x7f800000u)",
        "true": "true", "false": "false",
    }  # fmt: skip

    def __init__(self, func: Func):
        super().__init__(func)
        runs = [op.result for op in func.body.ops if op.name == "tile.classify"]
        made = [r for op in func.body.ops for r in op.results if isinstance(r.type, TensorType)]
        self.buffers = [*func.args, *runs, *made]
        self.base, at = {}, 0
        for b in self.buffers:
            self.base[b] = at
            at += 8 if isinstance(b.type, RunsType) else 2 * max(1, len(b.type.shape))
        self.axes = "xyz"

    def stride(self, buffer: Value, axis: int) -> str:
        return f"meta[{self.base[buffer] + len(buffer.type.shape) + axis}]"

    def extent_of(self, buffer: Value, axis: int) -> str:
        return f"meta[{self.base[buffer] + axis}]"

    def symbol(self, name: str) -> str:
        return super().symbol(name).replace("dim_", "push.") if len(factors(name)) > 1 else f"push.{name}"

    def runs_shape(self, runs: Value) -> list[str]:
        return [f"meta[{self.base[runs] + n}]" for n in range(3)]

    def run(self, runs: Value, at: str) -> str:
        return f"{self.name(runs)}[{at}]"

    def refuse(self) -> None:
        self.line("refused[0] = 1;")

    def make(self, buffer: Value, fill: float | None) -> None:
        if fill is not None and not buffer.type.shape:
            self.line(f"{self.element(buffer, [])} = {self.number(fill, 'f', buffer.type.dtype)};")

    def loop_head(self, op: Op, p: str, upper: str, step: int) -> None:
        if op.attrs["kind"] == "par" and self.axes:
            axis, self.axes = self.axes[0], self.axes[1:]
            self.line(f"int {p} = int(gl_WorkGroupID.{axis}) * {step};")
            self.open(f"if ({p} < {upper})")
        else:
            super().loop_head(op, p, upper, step)

    # --- shaders -------------------------------------------------------------------------------------------
    def shaders(self) -> list[str]:
        """One text per dispatch, in order."""
        out = []
        for op in self.func.body.ops:
            if op.regions or op.name in ("tile.pack", "tile.centre", "tile.peak", "tile.require"):
                self.lines, self.axes = [], "xyz"
                self.names = {b: self.name(b) for b in self.buffers}
                for needed in self.needed(op):
                    getattr(self, needed.name.replace(".", "_"))(needed)
                getattr(self, op.name.replace(".", "_"))(op)
                out.append(self.text(op))
        return out

    def needed(self, op: Op) -> list[Op]:
        """Operations outside of any loop that make tiles for ``op``, in order."""
        wanted = {v for o in (op, *(x for r in op.regions for x in r.walk())) for v in o.operands}
        found = []
        for before in reversed(self.func.body.ops[: self.func.body.ops.index(op)]):
            if any(r in wanted and isinstance(r.type, TileType) for r in before.results):
                found.append(before)
                wanted |= set(before.operands)
        return found[::-1]

    def text(self, op: Op) -> str:
        body = "\n".join(self.lines)
        used = [b for b in self.buffers if f"{self.name(b)}[" in body]
        symbols = sorted({s for a in self.func.args for d in a.type.shape for s in d.symbols})
        head = ["#version 450", "layout(local_size_x = 1) in;"]
        head += [f"layout(push_constant) uniform Push {{ int {', '.join(symbols or ['none'])}; }} push;"]
        head += ["layout(std430, binding = 0) buffer Meta { int meta[]; };"]
        head += ["layout(std430, binding = 1) buffer Refused { int refused[]; };"]
        for n, b in enumerate(used, 2):
            kind = "int" if isinstance(b.type, RunsType) else self.types[b.type.dtype]
            kind = "uint" if kind == "bool" else kind
            head.append(f"layout(std430, binding = {n}) buffer B{n} {{ {kind} {self.name(b)}[]; }};")
        return "\n".join([*head, f"// {op.name}", "void main() {", body, "}", ""])


def tool(name: str) -> Path | None:
    found = Path(sysconfig.get_paths()["purelib"]) / "cmeel.prefix" / "bin" / name
    return found if found.exists() else None


def compiled(text: str, folder: Path, name: str) -> bytes:
    """SPIR-V of a shader, checked by the validator; CalledProcessError with the compiler's words."""
    source, binary = folder / f"{name}.comp", folder / f"{name}.spv"
    source.write_text(text)
    glslang, validator = tool("glslangValidator"), tool("spirv-val")
    env = {**os.environ, "LD_LIBRARY_PATH": str(glslang.parent.parent / "lib")}
    for command in (
        [glslang, "-V", "--target-env", "vulkan1.2", "-o", binary, source],
        [validator, "--target-env", "vulkan1.2", binary],
    ):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{text}"
    return binary.read_bytes()
