"""Every instruction set gives the right numbers, those that this machine lacks code that assembles."""

import pytest
import torch

from aatc import backends, metrics
from aatc.backends.native import compiled, isa, machine
from aatc.backends.native.regions import generate
from tests.compiler.harness import build
from tests.conformance.cases import Sizes, case
from tests.conformance.test_conformance import check

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", [found.name for found in isa.available()])
@pytest.mark.parametrize(
    ("kind", "mask", "dtype", "sizes"),
    [
        ("dot product", "causal", torch.float32, Sizes(1, 4, 2, 33, 35, 17)),
        ("lorentz, learned beta", "window", torch.float32, Sizes(1, 2, 1, 19, 23, 5)),
        ("relative table", "dense", torch.bfloat16, Sizes(2, 2, 2, 17, 9, 3)),
        ("hyperboloid transport", "none", torch.float64, Sizes(1, 1, 1, 9, 18, 6)),
    ],
)
def test_numbers_of_every_instruction_set(monkeypatch, name, kind, mask, dtype, sizes):
    monkeypatch.setenv("AATC_ISA", name)
    check(backends.get("native"), kind, mask, dtype, sizes)


@pytest.mark.parametrize("name", [found.name for found in isa.available()])
def test_half_precision_is_rounded_as_torch_does(monkeypatch, name):
    """Of a kernel that hands its values on: one key, so that the output is the value."""
    monkeypatch.setenv("AATC_ISA", name)
    edges = [0.0, -0.0, 1.0, 65504.0, -65504.0, 6.1e-5, 6e-8, 5.96e-8, 1e-7, 2.0**-14, 1.0009765625, 3.14159, 1e-20]
    for dtype in (torch.float16, torch.bfloat16):
        v = torch.tensor([edges, [-x for x in edges]]).to(dtype).reshape(1, 2, 1, -1)
        q = torch.ones(1, 2, 3, 4, dtype=dtype)
        o = build(q, q[:, :, :1], v, backend="native", metric=metrics.DotProduct()).run()[0]
        want = v.expand(1, 2, 3, -1)
        if dtype == torch.bfloat16:  # processors with instructions for it take what is below 2**-126 for 0
            want = torch.where(want.abs() < 2.0**-126, 0.0, want)
        assert torch.equal(o, want), name


def test_code_for_another_machine_assembles(monkeypatch):
    neon = isa.TABLE["neon"]
    monkeypatch.setattr(isa, "host", lambda: neon)
    monkeypatch.setattr(backends.get("native").__class__, "build", lambda self, module: None)
    c = case("lorentz, learned beta", "causal", torch.bfloat16, Sizes(1, 2, 1, 19, 23, 5))
    module = build(*c.operands[:3], backend="native", **c.parts).result.module
    for name in ("attend0", "attend0_backward"):
        func = module.funcs[name]
        text = generate(func, neon, compiled.blocks_of(func, neon)).text
        assembly = machine.assembly(text, neon)
        assert "fmla" in assembly and "zmm" not in assembly
        code = machine.compile_object(text, neon)
        assert code[:4] == b"\x7fELF" and code[18] == 183  # EM_AARCH64
