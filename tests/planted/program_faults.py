"""Small faults to plant one at a time in programs: their verifier, their plans, their transfers, their barriers."""

from __future__ import annotations

from tests.planted.fault import Fault

PROGRAMS = ("tests/ir/test_programs.py", "tests/compiler/test_plan_program.py")
DEVICE = ("tests/vulkan/test_loaded.py", "tests/vulkan/test_barriers.py", "tests/vulkan/test_executors.py")

FAULTS = (
    Fault(
        "program-read-after-write",
        "ir/verify_program.py",
        "at <= s.written:\n                _late(op, value, at, s.writer, s.written, \"reads",
        "at < s.written:\n                _late(op, value, at, s.writer, s.written, \"reads",
        "a read in the level of its write",
        PROGRAMS,
    ),
    Fault(
        "program-write-after-read",
        "ir/verify_program.py",
        "if s.reader is not None and s.reader is not op and at <= s.read:",
        "if s.reader is not None and s.reader is not op and at < s.read:",
        "a write in the level of a read",
        PROGRAMS,
    ),
    Fault(
        "program-other-contents",
        "ir/verify_program.py",
        "if s.root is not span.root:",
        "if s.root is None:",
        "a buffer that is read when another one lies there",
        PROGRAMS,
    ),
    Fault(
        "program-race-inside",
        "ir/verify_program.py",
        "if m != n and at.first < span.last and span.first < at.last:",
        "if m > n and at.first < span.last and span.first < at.last:",
        "a dispatch that writes what it reads under another name",
        PROGRAMS,
    ),
    Fault(
        "program-alive",
        "passes/plan_program.py",
        "if born <= high and low <= gone:",
        "if born < high and low < gone:",
        "places shared by buffers of neighbouring levels",
        PROGRAMS,
    ),
    Fault(
        "program-order",
        "passes/plan_program.py",
        "func.body.ops.sort(key=_rank)",
        "pass",
        "levels that are not the order of the text",
        PROGRAMS,
    ),
    Fault(
        "program-reads-forgotten",
        "passes/plan_program.py",
        "after += [max(self.stretches[n].written, self.stretches[n].read) for n",
        "after += [self.stretches[n].written for n",
        "writes that do not wait for reads",
        PROGRAMS,
    ),
    Fault(
        "barrier-between-levels",
        "backends/vulkan/executors/native.py",
        "if number or (self.staging is not None and inputs):",
        "if number > 1 or (self.staging is not None and inputs):",
        "no barrier before the second level",
        DEVICE,
    ),
    Fault(
        "parameters-once",
        "backends/vulkan/loaded.py",
        "if before is None or not _same(before, t):",
        "if before is None:",
        "parameters that changed are not uploaded",
        DEVICE,
    ),
    Fault(
        "transfers-overlap",
        "backends/vulkan/transfers.py",
        "pieces.append(Piece(op, len(copies) - 1, span.first - copies[-1][0], size))",
        "pieces.append(Piece(op, len(copies) - 1, 0, size))",
        "inputs that are copied on top of each other",
        DEVICE,
    ),
)  # fmt: skip
