"""Keys go to panels block by block, and panels are written as a whole."""

import pytest
import torch

from aatc import backends, passes
from aatc.errors import VerifyError
from aatc.ir.interpreter import run
from aatc.ir.parser import parse
from tests.compiler.harness import module_of, record
from tests.compiler.test_passes import CASES, GEO_PASSES

GIVEN = "attend0.forward: split(g, 1) split(i, 4) split(j, 16) grain(j, 16) pack(k, 16)\n"
TEXT = """aatc 2
tile.func @f(%x: f32[2,8,4]) {{
  %p = tile.alloc() : f32[2,8,4; panels(4)]
  tile.for() {{axis = "g", upper = 2, step = 1, kind = "seq"}} (%g: index) {{
    tile.for() {{axis = "i", upper = 8, step = {step}, kind = "seq"}} (%i: index) {{
      %t = tile.load(%x, %g, %i) {{axes = "gid"}} : tile<f32[1,{step},4]>
      tile.store(%t, %p, %g, %i) {{axes = "gid", add = {add}}}
      tile.yield()
    }}
    tile.yield()
  }}
  tile.return(%x)
}}
"""


@pytest.mark.parametrize("name", ["dot", "euclidean"])
def test_keys_are_packed_where_they_are_given_or_computed(name):
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.rand(1, 2, 20, 4, generator=generator) for _ in range(3))
    operands, spec, (o, _) = record(q, k, v, **CASES[name])
    native = backends.get("native")
    pipeline = passes.Pipeline.parse(f"{GEO_PASSES},schedule,adaptive-tile,{native.suffix}")
    module = passes.with_schedules(pipeline, GIVEN).run(module_of(operands, spec), target=native.target()).module
    (kernel,) = [op for op in module.walk() if op.name == "geo.kernel"]
    forward = module.funcs[kernel.attrs["forward"].name]
    assert not any(op.name == "tile.pack" for op in forward.body.walk())
    made = [op.result.type for op in forward.body.ops if op.name == "tile.alloc"]
    assert [t.panel for t in made if t.panel] == [16]
    vectors = [t for t in made if t.rank == 3 and t.shape[2] == 4]
    assert all(t.panel for t in vectors), "rows are kept beside the panels"
    torch.testing.assert_close(run(module, *operands)[0], o, rtol=0, atol=2e-5)
    torch.testing.assert_close(native.compile(forward)[0](*operands)[0], o, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("step", "add", "message"), [(4, "true", "adds nothing"), (2, "false", "as a whole"), (4, "false", None)]
)
def test_panels_are_written_as_a_whole(step, add, message):
    text = TEXT.format(step=step, add=add)
    if message is None:
        parse(text).verify()
        return
    with pytest.raises(VerifyError, match=message):
        parse(text).verify()
