"""A tile operation from one declaration and a lowering: texts, verifier, plans and both executions follow."""

import pytest
import torch

import aatc
from aatc import backends, passes
from aatc.backends.cpu.table import lowering
from aatc.errors import BackendError, VerifyError
from aatc.ir.core import Op
from aatc.ir.parser import parse
from aatc.ir.registry import OPS, Attr, OpDef, Traits, define
from aatc.ir.types import TileType
from tests.compiler.harness import module_of, record
from tests.compiler.test_passes import GEO_PASSES


def flipped(op, values, interp):
    return [values[0].flip(2)]


@pytest.fixture(scope="module", autouse=True)
def flip():
    define(
        OpDef(
            "tile.flip",
            "tile",
            "a tile with its third axis in reverse",
            ("tile",),
            attrs={"note": Attr.of("str", "anything", required=False)},
            infer=lambda op: [op.operands[0].type],
            evaluate=flipped,
            traits=Traits(),
        )
    )

    @lowering("tile.flip")
    def write(emitter, op):
        emitter.src.line(f"{emitter.name(op.result)}.copy_({emitter.name(op.operands[0])}.flip(-1))")

    yield
    del OPS["tile.flip"], lowering._functions["tile.flip"]


def planted(twice: bool):
    """Attention whose output is flipped along the features by the new operation (twice: not at all)."""
    q, k, v = (torch.rand(1, 2, n, 4, dtype=torch.float64) for n in (5, 7, 7))
    operands, spec, (o, _) = record(q, k, v, metric=aatc.metrics.LorentzInner())
    tiles = "adaptive-tile{rows=4 cols=4 heads=1 grain=2}"
    module = passes.Pipeline.parse(f"{GEO_PASSES},{tiles}").run(module_of(operands, spec)).module
    for block in [r for op in module.funcs["attend0"].body.walk() for r in op.regions]:
        for at, op in enumerate(block.ops):
            if op.name == "tile.store" and op.attrs["axes"] == "gid":
                assert isinstance(op.operands[0].type, TileType)
                flips = []
                for _ in range(2 if twice else 1):
                    flips.append(Op("tile.flip", [op.operands[0]], {}, [op.operands[0].type], loc=op.loc))
                    op.operands[0] = flips[-1].result
                block.ops[at:at] = flips
                break
    return module, operands, o


@pytest.mark.parametrize("twice", [False, True])
def test_a_new_operation_is_verified_printed_planned_and_run(twice):
    module, operands, o = planted(twice)
    wanted = o if twice else o.flip(-1)
    assert parse(str(module.verify())) == module
    torch.testing.assert_close(aatc.run(module, *operands)[0], wanted, rtol=0, atol=1e-12)
    ready = passes.Pipeline.parse("plan-memory").run(module).module
    torch.testing.assert_close(backends.get("cpu").build(ready).main(*operands)[0], wanted, rtol=0, atol=1e-12)


def test_what_a_declaration_says_is_checked_and_a_backend_without_a_lowering_is_told():
    text = str(planted(False)[0])
    line = next(x for x in text.splitlines() if "tile.flip" in x)
    with pytest.raises(VerifyError, match="yields"):
        parse(text.replace(line, line.replace("1,4,4", "1,4,2")))
    with pytest.raises(VerifyError, match="no attribute"):
        parse(text.replace(line, line.replace("tile.flip(", "tile.flip(").replace(") :", ") {colour = 1} :")))
    kept = lowering._functions.pop("tile.flip")
    try:
        with pytest.raises(BackendError, match=r"tile\.flip"):
            lowering.check()
    finally:
        lowering._functions["tile.flip"] = kept
