"""Score expressions compiled alone: a loop over arrays whose body is one expression, for several processors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llvmlite.binding as llvm
import numpy as np

from aatc.backends.native.isa import Isa
from aatc.backends.native.llvm import Code, Module, Val, number, vector_of
from aatc.backends.native.words import expression
from aatc.ir.score.expr import Expr, params

SCALARS = {"float": np.float32, "double": np.float64, "i64": np.int64, "i1": np.bool_}

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()


def module_for(isa: Isa) -> Module:
    return Module(fma=isa.fma, avx512=isa.name == "avx512")


def enter(module: Module, name: str, body: Expr, kind: str, lanes: int) -> None:
    """``void name(ptr in0, ..., ptr out, i64 n)``: ``out[x] = body`` for n values, n a multiple of the lanes; the
    arrays hold the parameters of the body in order of first use."""
    inputs = params(body)
    types = [type_of(p, kind) for p in inputs]
    code = Code(module, name, [*((f"a{n}", "ptr") for n in range(len(inputs))), ("out", "ptr"), ("n", "i64")])

    def one(x: Val) -> None:
        values = [_load(code, t, code.args[n], x, lanes) for n, t in enumerate(types)]
        result = code.splat(expression(code, body, dict(zip(inputs, values, strict=True)), kind), lanes)
        memory = "i8" if result.scalar == "i1" else result.scalar
        result = code.cast("zext", result, vector_of("i8", lanes)) if memory == "i8" else result
        code.store(result, code.at(code.args[-2], x, memory))

    code.loop(Val("0", "i64"), code.args[-1], lanes, one)
    code.do("ret void")
    code.finish()


def type_of(e: Expr, kind: str) -> str:
    return {"f": kind, "i": "i64", "b": "i1"}[e.dtype]


def _load(code: Code, scalar: str, base: Val, x: Val, lanes: int) -> Val:
    if scalar != "i1":
        return code.load(vector_of(scalar, lanes), code.at(base, x, scalar))
    byte = code.load(vector_of("i8", lanes), code.at(base, x, "i8"))
    return code.compare("ne", byte, number(0, byte.type))


def _optimized(module: Module, isa: Isa, triple: str) -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
    parsed = llvm.parse_assembly(f'target triple = "{triple}"\n{module.text()}')
    parsed.verify()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=isa.cpu, features=isa.features, opt=2)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(parsed, builder)
    return parsed, machine


def assembly(module: Module, isa: Isa) -> str:
    """Of a processor that need not be this one."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    parsed, machine = _optimized(module, isa, f"{isa.triple_arch}-unknown-linux-gnu")
    return machine.emit_assembly(parsed)


class Program:
    """A module in machine code."""

    def __init__(self, module: Module, isa: Isa):
        self._engine = llvm.create_mcjit_compiler(*_optimized(module, isa, llvm.get_process_triple()))
        self._engine.finalize_object()

    def __call__(self, name: str, result: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
        arrays = [np.ascontiguousarray(a) for a in arrays]
        out = np.zeros(len(arrays[0]), SCALARS[result])
        pointers = [a.ctypes.data for a in (*arrays, out)]
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(pointers), ctypes.c_int64)
        function(self._engine.get_function_address(name))(*pointers, len(out))
        return out
