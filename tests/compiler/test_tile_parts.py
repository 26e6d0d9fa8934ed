"""Slices, insertions, positions and centres, one by one: the interpreter and the torch backend against plain torch."""

import pytest
import torch

from aatc import backends, passes
from aatc.errors import VerifyError
from aatc.ir.interpreter import run
from aatc.ir.parser import parse

X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def both(text: str, *tensors: torch.Tensor) -> list[torch.Tensor]:
    module = passes.Pipeline.parse("plan-memory").run(parse(text)).module
    (compiled,) = backends.get("cpu").compile(module.entry)[0](*tensors)
    return [run(parse(text), *tensors), compiled]


def tiles(body: str, result: str, kind: str = "tile<f64[1,5,6]>", out: str = "f64[2,5,6]", axes: str = "gid") -> str:
    return f"""
tile.func @f(%x: f64[2,5,6]) {{
  %out = tile.alloc() {{fill = 0.0}} : {out}
  tile.for() {{axis = "g", upper = 2, step = 1, kind = "par"}} (%g: index) {{
    tile.for() {{axis = "i", upper = 5, step = 5, kind = "par"}} (%i: index) {{
      %t = tile.load(%x, %g, %i) {{axes = "gid"}} : {kind}
{body}
      tile.store({result}, %out, %g, %i) {{axes = "{axes}", add = false}}
      tile.yield()
    }}
    tile.yield()
  }}
  tile.return(%out)
}}
"""


@pytest.mark.parametrize("start, stride, n", [(0, 1, 6), (1, 2, 3), (0, 3, 2), (5, 1, 1), (2, 1, 3)])
def test_a_slice_takes_every_so_many_th_channel(start, stride, n):
    body = f'      %s = tile.slice(%t) {{over = "j", start = {start}, stride = {stride}}} : tile<f64[1,5,{n}]>'
    for got in both(tiles(body, "%s", out=f"f64[2,5,{n}]"), X):
        torch.testing.assert_close(got, X[..., start : start + (n - 1) * stride + 1 : stride], rtol=0, atol=0)


@pytest.mark.parametrize("start, stride, n", [(0, 1, 6), (1, 2, 3), (0, 3, 2), (5, 1, 1), (2, 1, 3)])
def test_an_insertion_changes_what_a_slice_would_give_and_nothing_else(start, stride, n):
    body = f"""\
      %s = tile.slice(%t) {{over = "j", start = 0, stride = 1}} : tile<f64[1,5,{n}]>
      %m = tile.map(%s) {{programs = [fn(s: f[bhid]) => 2.0 * s + 1.0]}} : tile<f64[1,5,{n}]>
      %w = tile.insert(%m, %t) {{over = "j", start = {start}, stride = {stride}}} : tile<f64[1,5,6]>"""
    wanted = X.clone()
    wanted[..., start : start + (n - 1) * stride + 1 : stride] = 2 * X[..., :n] + 1
    for got in both(tiles(body, "%w"), X):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_positions_are_those_of_the_loop():
    body = """\
      %p = tile.position(%i) {axes = "i"} : tile<i64[1,5,1]>
      %h = tile.position(%g) {axes = "h", sizes = [1, 2, 5, 5]} : tile<i64[1,1,1]>
      %m = tile.map(%t, %p, %h) {programs = [fn(t: f[bhid], p: i[bhi], n: i[bh]) => t + p + 10 * n]} : tile<f64[1,5,6]>
"""
    wanted = X + torch.arange(5).reshape(1, 5, 1) + 10 * torch.arange(2).reshape(2, 1, 1)
    for got in both(tiles(body, "%m"), X):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-15)


def test_a_centre_is_the_mean_of_what_is_finite_over_all_tokens():
    text = 'tile.func @f(%x: f64[2,5,6]) {\n  %c = tile.centre(%x) {axes = "gid"} : f64[2,6]\n  tile.return(%c)\n}\n'
    x = X.clone()
    x[0, 1, 2], x[1, :, 3] = float("nan"), float("inf")
    wanted = torch.where(torch.isfinite(x), x, 0.0).sum(1) / 5
    for got in both(text, x):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-15)
    for got in both(text.replace("[2,5,6]", "[2,0,6]"), X[:, :0]):
        assert torch.equal(got, torch.zeros(2, 6, dtype=torch.float64))


@pytest.mark.parametrize("start, stride, n", [(4, 1, 3), (0, 3, 3), (-1, 1, 2), (0, 0, 2)])
def test_parts_beyond_a_tile_are_refused(start, stride, n):
    body = f'      %s = tile.slice(%t) {{over = "j", start = {start}, stride = {stride}}} : tile<f64[1,5,{n}]>'
    with pytest.raises(VerifyError, match="entries"):
        parse(tiles(body, "%s", out=f"f64[2,5,{n}]"))
