"""What a planted fault is, and the lists of tests that should notice some: for `ir_faults`, `pass_faults`,
`program_faults`, `backend_faults`."""

from __future__ import annotations

from dataclasses import dataclass

IR = ("tests/ir/test_ir_score.py", "tests/ir/test_ir_interpreter.py", "tests/ir/test_ir_verifier.py")
TEXT = ("tests/ir/test_ir_text.py", "tests/ir/test_ir_refused_text.py", "tests/ir/test_ir_score.py")
KERNELS = ("tests/fuzz", "tests/compiler/test_kernels.py")
PASSES = ("tests/compiler/test_passes.py",)
TILES = ("tests/compiler/test_masks_tiles.py", "tests/ir/test_ir_score.py")
RACES = ("tests/ir/test_races.py", "tests/ir/test_runs.py", "tests/compiler/test_masks_tiles.py")
ORDERS = ("tests/compiler/test_backward_orders.py",)
TOKENS = ("tests/compiler/test_tile_parts.py", "tests/compiler/test_lower_tokens.py")
KEY_PARTS = ("tests/compiler/test_key_parts.py",)
BEHAVIOUR = ("tests/ir/test_ir_edges.py", "tests/compiler/test_kernel_edges.py")


@dataclass(frozen=True)
class Fault:
    """The text ``old`` of one file replaced by ``new``. ``tests``: the files that should notice, likeliest first."""

    name: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]
