"""Tiles that loops carry, and those that stand before loops: what is still read keeps its numbers, whatever place a
result might take."""
# ruff: noqa: E501  (IR texts keep their lines)

import pytest
import torch

from aatc import backends
from aatc.errors import VerifyError
from aatc.ir.interpreter import Interpreter
from aatc.ir.parser import parse
from aatc.passes import Pipeline

X = torch.arange(12.0).reshape(2, 6) + 1
TILE = "tile<f32[1,6,1]>"


def text(body, yields):
    """A loop that carries %m and %l, which start as %a and %b, and yields %p and %q."""
    return f"""aatc 2
tile.func @f(%x: f32[2,6]) {{
  %o1 = tile.alloc() : f32[2,6]
  %o2 = tile.alloc() : f32[2,6]
  tile.for() {{axis = "g", upper = 2, step = 1, kind = "par"}} (%g: index) {{
    tile.for() {{axis = "i", upper = 6, step = 6, kind = "par"}} (%i: index) {{
      %y = tile.load(%x, %g, %i) {{axes = "gi"}} : {TILE}
      %a = tile.map(%y) {{programs = [fn(a: f[bhi]) => a + 1.0]}} : {TILE}
      %b = tile.map(%y) {{programs = [fn(a: f[bhi]) => 2.0 * a]}} : {TILE}
      %p, %q = tile.for(%a, %b) {{axis = "j", upper = 3, step = 1, kind = "seq"}} (%j: index, %m: {TILE}, %l: {TILE}) {{
        {body}
        tile.yield({yields})
      }} : {TILE}, {TILE}
      tile.store(%p, %o1, %g, %i) {{axes = "gi", add = false}}
      tile.store(%q, %o2, %g, %i) {{axes = "gi", add = false}}
      tile.yield()
    }}
    tile.yield()
  }}
  tile.return(%o1, %o2)
}}
"""


def one(made, of):
    return f"%{made} = tile.map(%{of}) {{programs = [fn(a: f[bhi]) => 3.0 * a + 1.0]}} : {TILE}\n"


def two(made, a, b):
    return f"%{made} = tile.map(%{a}, %{b}) {{programs = [fn(a: f[bhi], c: f[bhi]) => 3.0 * a + c]}} : {TILE}\n"


BODIES = {
    "a first value": (one("u", "m"), "%u, %b"),
    "both first values": ("", "%b, %a"),
    "a first value in another's place": (two("u", "m", "l"), "%b, %u"),
    "a first value read in every round": (two("u", "m", "a"), "%u, %l"),
    "a value from outside": (one("u", "m"), "%y, %u"),
    "values that trade places": ("", "%l, %m"),
    "results that trade places": (one("u", "m") + one("v", "l"), "%v, %u"),
    "one result in the place of the other": (one("u", "m"), "%l, %u"),
    "one value twice": (one("u", "m"), "%u, %u"),
    "one carried value twice": ("", "%l, %l"),
    "a loop within": (
        f'%r, %s = tile.for(%l, %m) {{axis = "c", upper = 2, step = 1, kind = "seq"}} (%c: index, %e: {TILE}, %h: {TILE}) {{\n'
        f"{two('w', 'e', 'l')} tile.yield(%h, %w)\n }} : {TILE}, {TILE}\n",
        "%r, %s",
    ),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("backend", ["native", "cpu"])
def test_what_a_loop_yields_is_read_before_it_is_overwritten(name, backend):
    module = parse(text(*BODIES[name]))
    want = Interpreter(module).call("f", [X])
    if backend == "cpu":
        try:
            planned = Pipeline.parse("plan-memory").run(module).module
        except VerifyError as e:  # the plan's own check refuses what trades places
            assert "of the arena are written while" in str(e)
            return
        module = planned
    got = backends.get(backend).compile(module.funcs["f"])[0](X)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_what_stands_before_a_loop_is_there_for_every_problem(step):
    module = parse(f"""aatc 2
tile.func @f(%x: f32[4]) {{
  %o = tile.alloc() : f32[4]
  %s = tile.alloc() {{fill = 2.0}} : f32[]
  %c = tile.load(%s) {{axes = ""}} : tile<f32[1,1,1]>
  %d = tile.map(%c) {{programs = [fn(a: f[bhi]) => a + 1.0]}} : tile<f32[1,1,1]>
  tile.for() {{axis = "g", upper = 4, step = {step}, kind = "par"}} (%g: index) {{
    %y = tile.load(%x, %g) {{axes = "g"}} : tile<f32[{step},1,1]>
    %e = tile.map(%d) {{programs = [fn(a: f[bhi]) => a * 3.0]}} : tile<f32[1,1,1]>
    %z = tile.map(%y, %e) {{programs = [fn(a: f[bhi], c: f[bhi]) => a + c]}} : tile<f32[{step},1,1]>
    tile.store(%z, %o, %g) {{axes = "g", add = false}}
    tile.yield()
  }}
  tile.return(%o)
}}
""")
    x = torch.arange(4.0)
    torch.testing.assert_close(backends.get("native").compile(module.funcs["f"])[0](x)[0], x + 9)
