"""From LLVM IR to functions that run: parsing, a few passes, object code, and its life in memory.

The emitter writes vector code, so LLVM does not vectorise or unroll: it turns and tidies loops, selects instructions,
folds loads into arithmetic, moves what does not change out of loops, and allocates registers.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from llvmlite import binding
from llvmlite.binding.newpassmanagers import NewPassManager

from aatc.backends.native import cache
from aatc.backends.native.isa import Isa
from aatc.ir.errors import BackendError

T = TypeVar("T")
_lock = threading.RLock()
_count = itertools.count()

# LLVM is not entered while a process forks: a child whose parent held a lock inside of it could never compile.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Library:
    """Compiled functions, in memory for as long as this object lives. Whoever keeps an address must keep it, too."""

    def __init__(self, code: bytes, isa: Isa):
        self.isa, self.size = isa, len(code)
        with _lock:
            # A linker of its own: what it holds goes with it. JITLink puts all parts of a library near each other,
            # and says so if a symbol is missing or too far away; Windows has the older one only.
            linker = binding.create_lljit_compiler(
                _target_machine(isa), use_jit_link=sys.platform != "win32", suppress_errors=True
            )
            self._name = f"aatc{next(_count)}"
            builder = binding.JITLibraryBuilder().add_object_img(code).add_current_process()
            try:
                self._code = builder.link(linker, self._name)
            except RuntimeError as error:
                raise BackendError(f"object code cannot be linked: {error}") from error
            self._linker = linker
        self._found: dict[str, tuple[int, object]] = {}

    def address(self, function: str) -> int:
        """Where a function is in memory. Raises BackendError if there is no such one, or if it calls one that the
        process does not have."""
        if function not in self._found:
            with _lock:
                try:
                    tracker = self._linker.lookup(self._name, function)
                except RuntimeError as error:
                    raise BackendError(f"there is no native function {function!r} that can run: {error}") from error
                self._found[function] = (tracker[function], tracker)
        return self._found[function][0]


def load(text: str, isa: Isa) -> Library:
    """The functions of a module, from object code on disk if it was compiled before. Raises BackendError if the text is
    not LLVM IR, or calls what the process does not have."""
    key = cache.key(text, isa)
    code = cache.read(key)
    if code is not None:
        try:
            return _linked(code, text, isa)
        except BackendError:
            cache.drop(key)
    code = compile_object(text, isa)
    library = _linked(code, text, isa)
    cache.write(key, code)
    return library


def _linked(code: bytes, text: str, isa: Isa) -> Library:
    """A library whose functions can run: the first that is asked for links all of them."""
    library = Library(code, isa)
    first = re.search(r"^define\b(?! *(?:internal|private)\b)[^@\n]*@([\w.$-]+)\(", text, re.MULTILINE)
    if first:
        try:
            library.address(first[1])
        except BackendError as error:
            declared = re.findall(r"^declare\b[^@\n]*@(?!llvm\.)([\w.$-]+)\(", text, re.MULTILINE)
            missing = ", ".join(name for name in declared if not binding.address_of_symbol(name))
            raise BackendError(
                f"native code cannot be linked; missing: {missing or 'unknown'}", hint=_REPORT
            ) from error
    return library


def compile_object(text: str, isa: Isa) -> bytes:
    """Object code of a module. Raises BackendError if the text is not LLVM IR. What the compiler took is handed back to
    the system: a first call has large buffers to make next."""
    code: bytes = _compiled(text, isa, lambda machine, module: machine.emit_object(module))
    with suppress(OSError, AttributeError):  # of other C libraries
        ctypes.CDLL(None).malloc_trim(0)
    return code


def assembly(text: str, isa: Isa) -> str:
    """The same as assembly, for people; the instruction set may be that of another machine."""
    listing: str = _compiled(text, isa, lambda machine, module: machine.emit_assembly(module))
    return listing


def optimised(text: str, isa: Isa) -> str:
    """The module after LLVM's passes."""
    return _compiled(text, isa, lambda machine, module: str(module))


def _compiled(text: str, isa: Isa, to: Callable[[binding.TargetMachine, binding.ModuleRef], T]) -> T:
    with _lock, binding.create_context() as context:  # types are kept with a context: one of our own can go
        machine = _target_machine(isa)
        with _parsed(text, context) as module:
            module.triple = machine.triple
            module.data_layout = str(machine.target_data)
            _optimise(module, machine)
            return to(machine, module)


@contextmanager
def _parsed(text: str, context: binding.ContextRef) -> Iterator[binding.ModuleRef]:
    try:
        module = binding.parse_assembly(text, context)
    except RuntimeError as error:
        raise _of_text(str(error), text) from error
    with module:
        try:
            module.verify()
        except RuntimeError as error:
            raise BackendError(f"the generated LLVM IR is not valid: {error}", hint=_REPORT) from error
        yield module


_REPORT = 'this is a bug of the native backend; backend="cpu" does without it'


def _of_text(message: str, text: str) -> BackendError:
    """LLVM's error, with the line it is about."""
    found = re.search(r"<string>:(\d+):(\d+): (?:error: )?([^\n]*)", message)
    if not found:
        return BackendError(f"the generated LLVM IR cannot be read: {message}", hint=_REPORT)
    line, column = int(found[1]), int(found[2])
    lines = text.split("\n")
    shown = lines[line - 1].strip() if line <= len(lines) else ""
    return BackendError(
        f"the generated LLVM IR cannot be read: {found[3]}\n  in: {shown[:200]}",
        where=f"LLVM IR, line {line}, column {column}",
        hint=_REPORT,
    )


def _optimise(module: binding.ModuleRef, machine: binding.TargetMachine) -> None:
    """What the emitter leaves to LLVM before code is generated. The whole pipeline of -O2 takes two to four times as
    long as generating code does, and kernels are no faster for it: they are written as the processor is to run them."""
    options = binding.create_pipeline_tuning_options(speed_level=2)
    builder = binding.create_pass_builder(machine, options)
    manager = binding.create_new_module_pass_manager()
    try:
        manager.add_loop_rotate_pass()
        manager.add_instruction_combine_pass()
        manager.add_simplify_cfg_pass()
        manager.run(module, builder)
    finally:
        # close() of some versions frees nothing (ObjectRef's _dispose hides this one): up to 100 KB for every kernel.
        NewPassManager._dispose(manager)
        manager.detach()
        builder.close()
        options.close()


@functools.cache
def _target_machine(isa: Isa) -> binding.TargetMachine:
    """Kept: each would leave some memory behind."""
    _initialise()
    host = binding.get_process_triple()
    arch = {"arm64": "aarch64", "amd64": "x86_64"}.get(host.split("-")[0], host.split("-")[0])
    if arch != isa.triple_arch:  # code to be read, not run
        binding.initialize_all_targets()
        binding.initialize_all_asmprinters()
        host = f"{isa.triple_arch}-unknown-linux-gnu"
    target = binding.Target.from_triple(host)
    return target.create_target_machine(
        cpu=isa.cpu, features=isa.features, opt=2, reloc="pic", codemodel="small", jit=False
    )


@functools.cache
def _initialise() -> None:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
