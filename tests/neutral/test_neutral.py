"""One tile program, three ways: torch code, C that runs here, GLSL that a compiler accepts.

The emitters of this folder are no backends; they show that the tile program says all a backend needs to know.
"""

import shutil

import pytest
import torch

import aatc
from aatc import masks, metrics, passes
from tests.compiler.harness import module_of, record
from tests.compiler.test_passes import CASES, GEO_PASSES
from tests.ir.test_schedule import NATIVE
from tests.neutral.to_c import Kernel
from tests.neutral.to_glsl import GLSL, compiled, tool

TILES = f"{GEO_PASSES},adaptive-tile{{rows=4 cols=5 heads=1 grain=2}},lower-tokens{{rows=3}}"
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def tiled(q, k, v, parts, text=TILES):
    operands, spec, eager = record(q, k, v, **parts)
    module = passes.Pipeline.parse(text).run(module_of(operands, spec)).module
    (op,) = [op for op in module.walk() if op.name == "geo.kernel"]
    return module, op, operands, eager


def tensors(n, m, dtype, heads=2, keys=2):
    generator = torch.Generator().manual_seed(n)
    shapes = ((2, heads, n, 4), (2, keys, m, 4), (2, keys, m, 4))
    return [torch.rand(s, dtype=dtype, generator=generator).mT.contiguous().mT for s in shapes]  # features apart


def answer(module, op, operands, folder):
    """Results of the first version whose conditions hold."""
    for version in ("forward", "exact", "whole_forward"):
        if version in op.attrs:
            got = Kernel(module, module.funcs[op.attrs[version].name], folder)(*operands)
            if got is not None:
                return got
    raise AssertionError("no version answers")


@needs_cc
@pytest.mark.parametrize("name", CASES)
def test_c_from_the_tile_program_agrees_with_the_formula(name, tmp_path):
    q, k, v = tensors(6, 6, torch.float64)
    module, op, operands, (o, lse) = tiled(q, k, v, CASES[name])
    got = answer(module, op, operands, tmp_path)
    torch.testing.assert_close(got[0], o, rtol=0, atol=1e-11)
    torch.testing.assert_close(got[1], lse, rtol=0, atol=1e-11)


MASKS = {
    None: None,
    "causal": masks.causal(),
    "window": masks.causal() & masks.sliding_window(3),
    "heads": masks.predicate(lambda b, h, i, j: (i - j <= 4 * h) & (j <= i + b)),
}
KINDS = {"dot": metrics.DotProduct(), "lorentz": metrics.LorentzDistance(lift=True)}


@needs_cc
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ragged_lengths_masks_and_shared_heads_in_c(kind, mask, dtype, tmp_path):
    for n, m in ((1, 1), (9, 9), (7, 13)):
        q, k, v = tensors(n, m, dtype, heads=4, keys=2)
        module, op, operands, _ = tiled(q, k, v, {"metric": KINDS[kind], "mask": MASKS[mask]})
        exact = [t.double() for t in (q, k, v)]
        o, lse = aatc.attend(*exact, metric=KINDS[kind], mask=MASKS[mask], return_lse=True)
        (tmp_path / f"{n}").mkdir()
        got = answer(module, op, operands, tmp_path / f"{n}")
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(got[0].double(), o, rtol=0, atol=200 * unit)
        torch.testing.assert_close(got[1].double(), lse, rtol=0, atol=200 * unit)


PACKED = "split(g, 1) split(i, 4) split(j, 32) grain(j, 16) pack(k, 16) pack(v, 16) bind(g, threads)"


def packed(kind, mask, operands):
    """Those of `tiled` for a target that packs."""
    pipeline = passes.Pipeline.parse(f"{GEO_PASSES},schedule,adaptive-tile,lower-tokens{{rows=3}}")
    operands, spec, _ = record(*operands, metric=KINDS[kind], mask=MASKS[mask])
    wish = passes.with_schedules(pipeline, f"attend0.forward: {PACKED}\n")
    module = wish.run(module_of(operands, spec), target=NATIVE).module
    (op,) = [op for op in module.walk() if op.name == "geo.kernel"]
    return module, op, operands


@needs_cc
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_panels_of_keys_and_values_in_c(kind, mask, tmp_path):
    for n, m in ((3, 37), (9, 16), (5, 70)):
        q, k, v = tensors(n, m, torch.float64, heads=4, keys=2)
        module, op, operands = packed(kind, mask, (q, k, v))
        made = [o.result.type for o in module.funcs[op.attrs["forward"].name].body.ops if o.name == "tile.pack"]
        assert [t.panel for t in made] == [16, 16]
        o, lse = aatc.attend(q, k, v, metric=KINDS[kind], mask=MASKS[mask], return_lse=True)
        (tmp_path / f"{m}").mkdir()
        got = answer(module, op, operands, tmp_path / f"{m}")
        torch.testing.assert_close(got[0], o, rtol=0, atol=1e-11)
        torch.testing.assert_close(got[1], lse, rtol=0, atol=1e-11)


@needs_cc
@pytest.mark.parametrize("mask", [None, "causal"])
@pytest.mark.parametrize("kind", [metrics.Euclidean(squared=False), metrics.Poincare()])
def test_pairs_that_are_computed_again_in_c(kind, mask, tmp_path):
    """Queries that are keys, and some next to keys: forward and backward of the version in double precision."""
    q, _, v = tensors(9, 9, torch.float32)
    q *= 0.4
    k = q.clone()
    k[..., ::3, 0] += 2e-6
    module, op, operands, _ = tiled(q, k, v, {"metric": kind, "mask": MASKS[mask]})
    o, lse, *saved = Kernel(module, module.funcs[op.attrs["exact"].name], tmp_path)(*operands)
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    exact = aatc.attend(*leaves, metric=kind, mask=MASKS[mask], return_lse=True)
    probes = [torch.randn_like(o), torch.randn_like(lse)]
    got = Kernel(module, module.funcs[op.attrs["exact_backward"].name], tmp_path)(*probes, *saved, *operands)
    want = torch.autograd.grad(exact, leaves, [p.double() for p in probes])
    assert op.attrs["exact_grads"] == ("q", "k", "v")
    for x, y in zip([o, lse, *got], [*exact, *want], strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-6, atol=1e-6)


needs_glslang = pytest.mark.skipif(
    tool("glslangValidator") is None or tool("spirv-val") is None, reason="there is no GLSL compiler (extra test)"
)


@needs_glslang
@pytest.mark.parametrize("mask", [None, "causal"])
@pytest.mark.parametrize("kind", KINDS)
def test_shaders_from_the_tile_program_compile(kind, mask, tmp_path):
    q, k, v = tensors(9, 13, torch.float32, heads=4, keys=2)
    module, op, _, _ = tiled(q, k, v, {"metric": KINDS[kind], "mask": MASKS[mask]})
    shaders = GLSL(module.funcs[op.attrs["forward"].name]).shaders()
    assert sum("gl_WorkGroupID.y" in s for s in shaders) >= 2  # blocks of tokens, blocks of rows
    module, op, _ = packed(kind, mask, (q, k, v))
    packing = GLSL(module.funcs[op.attrs["forward"].name]).shaders()
    assert sum("// tile.pack" in s for s in packing) == 2
    for n, text in enumerate([*shaders, *packing]):
        assert compiled(text, tmp_path, f"s{n}")[:4] == b"\x03\x02\x23\x07"


@needs_glslang
def test_a_shader_that_is_none_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="ERROR"):
        compiled("#version 450\nvoid main() { x = 1; }\n", tmp_path, "broken")
