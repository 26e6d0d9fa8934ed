"""Blocks of packed buffers begin where panels do, in every kind of loop: the verifier proves it of the text alone."""
# ruff: noqa: E501  (IR texts keep their lines)

import pytest

from aatc.errors import VerifyError
from aatc.ir.parser import parse
from tests.ir.samples import TILE

SAMPLE = TILE.replace(
    "  %tiles = tile.classify()",
    '  %bp = tile.pack(%b) {axes = "gjd"} : f64[2,M,4; panels(8)]\n  %tiles = tile.classify()',
).replace("tile.load(%b, %g, %j)", "tile.load(%bp, %g, %j)")


def text(loop, upper="dim(M)", grain=4, body='%t = tile.load(%p, %g, %j) {axes = "gjd"} : tile<f32[1,16,4]>'):
    """A loop over keys within others; ``body`` reads or fills panels of 8."""
    runs = f"runs[1,8,{grain}]"
    return f"""aatc 2

dims {{M in [1, inf]}}

tile.func @f(%x: f32[2,M,4]) {{
  %o = tile.alloc() : f32[2,M,4; panels(8)]
  %c = tile.alloc() : f32[2,M,4]
  %p = tile.pack(%x) {{axes = "gjd"}} : f32[2,M,4; panels(8)]
  %runs = tile.classify() {{mask = fn() => j <= i, rows = 8, cols = {grain}, sizes = [1, 2, 64, {upper}], heads = 1}} : {runs}
  tile.for() {{axis = "g", upper = 2, step = 1, kind = "par"}} (%g: index) {{
    tile.for() {{axis = "i", upper = 64, step = 8, kind = "seq"}} (%i: index) {{
      tile.for() {{axis = "s", upper = 2, step = 1, kind = "seq"}} (%s: index) {{
        {loop} {{
          {body}
          tile.yield()
        }}
        tile.yield()
      }}
      tile.yield()
    }}
    tile.yield()
  }}
  tile.return()
}}
"""


SWEEP = 'tile.sweep(%runs, %g, %i) {{upper = {upper}, step = 16, kind = "seq"}} (%j: index, %b: bool)'
SWEEP_PART = (
    'tile.sweep_part(%runs, %g, %i, %s) {{upper = {upper}, step = 16, parts = 2, kind = "seq"}} (%j: index, %b: bool)'
)
FOR = 'tile.for() {{axis = "j", upper = {upper}, step = {step}, kind = "seq"}} (%j: index)'
FOR_PART = 'tile.for_part(%s) {{axis = "j", upper = {upper}, step = {step}, parts = 2, kind = "seq"}} (%j: index)'
STORE = """%t = tile.load(%x, %g, %j) {axes = "gjd"} : tile<f32[1,16,4]>
          tile.store(%t, %o, %g, %j) {axes = "gjd", add = false}"""


@pytest.mark.parametrize("loop", [SWEEP, SWEEP_PART])
@pytest.mark.parametrize("body", ["", STORE])
def test_runs_begin_where_panels_do(loop, body):
    more = {"body": body} if body else {}
    with pytest.raises(VerifyError, match=r"runs begin at multiples of 4, within a panel of f32\[2,M,4; panels\(8\)\]"):
        parse(text(loop.format(upper="dim(M)"), **more))
    parse(text(loop.format(upper="dim(M)"), grain=8, **more))


@pytest.mark.parametrize("loop", [FOR, FOR_PART])
def test_rounds_begin_where_panels_do(loop):
    with pytest.raises(VerifyError, match="rounds of the loop begin at multiples of 12, within a panel"):
        parse(text(loop.format(upper="dim(M)", step=12)))
    parse(text(loop.format(upper="dim(M)", step=16)))


@pytest.mark.parametrize("loop, upper, grain", [(SWEEP, 12, 12), (FOR, 12, 4), (FOR_PART, 12, 4)])
def test_a_single_block_begins_at_the_first_panel(loop, upper, grain):
    loop = loop.replace("step = 16", "step = 12").format(upper=upper, step=12)
    parse(text(loop, upper, grain).replace("[2,M,4", f"[2,{upper},4"))


def test_a_sample_that_packs():
    with pytest.raises(VerifyError, match="runs begin at multiples of 4, within a panel"):
        parse(SAMPLE)
    parse(SAMPLE.replace("cols = 4", "cols = 8").replace("runs[1,8,4]", "runs[1,8,8]"))
