"""Maps, row sums and products in one loop: which are joined, and that they mean the same."""

import pytest
import torch

from aatc import backends, metrics, passes
from aatc.backends.native import isa
from aatc.ir.errors import AatcError
from aatc.ir.parser import parse
from aatc.ir.printer import func_text
from aatc.ir.target import Target
from tests.compiler.harness import build, module_of, record
from tests.compiler.test_passes import GEO_PASSES, module

pytestmark = pytest.mark.usefixtures("one_thread")

#: What a machine with AVX-512 would be asked for, whatever runs the test.
WIDE = Target(
    "native",
    2,
    (48 << 10, 1 << 20),
    64,
    32,
    directives=("split", "grain", "reorder", "order", "bind", "pack", "vectorize"),
    levels=("threads",),
)
TILES = "adaptive-tile{rows=4 cols=4 heads=1 grain=2}"
SUFFIX = "lower-tokens{inline=true},share-tokens,rows-by-use,panels-by-tile,forward-copies"


@pytest.mark.parametrize("name", ["dot", "lorentz-distance", "poincare"])
def test_joined_programs_golden(name, golden):
    text = f"{GEO_PASSES},{TILES},{SUFFIX},join-loops"
    result = passes.Pipeline.parse(text).run(module(name), target=WIDE)
    shown = [func_text(f) for f in result.module.funcs.values() if f.level == "tile"]
    golden(f"{name}.joined.aatc", "\n".join(shown))


@pytest.mark.parametrize("name", ["dot", "lorentz-distance", "causal-alibi"])
def test_the_interpreter_sees_no_difference(name):
    before = passes.Pipeline.parse(f"{GEO_PASSES},{TILES},{SUFFIX}").run(module(name), target=WIDE).module
    passes.Pipeline.parse("join-loops").run(before, target=WIDE, verify="numerics")


KINDS = {
    "dot": metrics.DotProduct(),
    "lorentz": metrics.LorentzDistance(lift=True),
    "sphere": metrics.SphereGeodesic(),
}


@pytest.mark.parametrize("instructions", [x.name for x in isa.available()])
@pytest.mark.parametrize(("kind", "n", "m", "d"), [("dot", 37, 65, 16), ("lorentz", 70, 130, 33), ("sphere", 2, 70, 5)])
def test_joined_loops_at_the_edges_of_vectors_and_blocks(kind, n, m, d, instructions, monkeypatch):
    monkeypatch.setenv("AATC_ISA", instructions)
    q, k = (0.3 * torch.randn(1, 2, x, d) for x in (n, m))
    v = torch.randn(1, 2, m, d)
    built = build(q, k, v, metric=KINDS[kind], backend="native")
    assert [op for op in built.forward.body.walk() if op.name == "native.join"]
    wide = build(*(x.double() for x in (q, k, v)), metric=KINDS[kind], backend="cpu")
    for got, want in zip(built.run(), wide.run(), strict=True):
        torch.testing.assert_close(got.double(), want.double(), atol=2e-5, rtol=2e-5)


def test_a_nan_of_a_pair_shows_in_its_row():
    """In the largest, the smallest and the sum of a row alike, wherever it stands."""
    text = """
    tile.func @f(%x: f32[1,5,{n}], %l: f32[1,5]) {{
      %o = tile.alloc() : f32[1,5,3]
      tile.for() {{axis = "g", upper = 1, step = 1, kind = "par"}} (%g: index) {{
        tile.for() {{axis = "i", upper = 5, step = 5, kind = "par"}} (%i: index) {{
          %t = tile.load(%x, %g, %i) {{axes = "gid"}} : tile<f32[1,5,{n}]>
          %z = tile.fill(%g, %i) {{value = 0.0, axes = "gid"}} : tile<f32[1,5,3]>
          %s, %a, %b = native.join(%t) {{programs = [fn(t: f[bhij]) => t, fn(t: f[bhij]) => t + 1.0, fn(t: f[bhij]) => -t], keeps = ["sum", "max", "min"], into = []}} : tile<f32[1,5,1]>, tile<f32[1,5,1]>, tile<f32[1,5,1]>
          %z1 = tile.insert(%s, %z) {{over = "j", start = 0, stride = 1}} : tile<f32[1,5,3]>
          %z2 = tile.insert(%a, %z1) {{over = "j", start = 1, stride = 1}} : tile<f32[1,5,3]>
          %z3 = tile.insert(%b, %z2) {{over = "j", start = 2, stride = 1}} : tile<f32[1,5,3]>
          tile.store(%z3, %o, %g, %i) {{axes = "gid", add = false}}
          tile.yield()
        }}
        tile.yield()
      }}
      tile.return(%o)
    }}
    """  # noqa: E501
    for n in (7, 16, 53):
        (func,) = parse(text.format(n=n)).verify().funcs.values()
        run, _ = backends.get("native").compile(func)
        x = torch.randn(1, 5, n)
        want = torch.stack([x.sum(-1), (x + 1).amax(-1), (-x).amin(-1)], -1)
        torch.testing.assert_close(run(x, torch.zeros(1, 5))[0], want)
        for at in {0, n // 2, n - 1}:
            y = x.clone()
            y[0, 3, at] = float("nan")
            (got,) = run(y, torch.zeros(1, 5))
            assert got[0, 3].isnan().all()
            torch.testing.assert_close(got[0, [0, 1, 2, 4]], want[0, [0, 1, 2, 4]])


BAD = {
    'keeps = ["tile", "sum"], into = [1]': None,
    'keeps = ["tile", "mean"], into = [1]': "keeps",
    'keeps = ["tile"], into = [0]': "programs",
    'keeps = ["tile", "sum"], into = [0]': "no different sums",
    'keeps = ["sum", "sum"], into = [1]': "is no",
    'keeps = ["tile", "sum"], into = [1], form = "nt"': "keeps tile, sum",
}


@pytest.mark.parametrize("attrs", BAD)
def test_joins_are_verified(attrs):
    text = f"""
    tile.func @f(%x: f32[1,4,8], %l: f32[1,4]) {{
      %o = tile.alloc() : f32[1,4,8]
      tile.for() {{axis = "g", upper = 1, step = 1, kind = "par"}} (%g: index) {{
        tile.for() {{axis = "i", upper = 4, step = 4, kind = "par"}} (%i: index) {{
          %t = tile.load(%x, %g, %i) {{axes = "gid"}} : tile<f32[1,4,8]>
          %l_t = tile.load(%l, %g, %i) {{axes = "gi"}} : tile<f32[1,4,1]>
          %p, %s = native.join(%t, %l_t) {{programs = [fn(t: f[bhij]) => t, fn(t: f[bhij]) => t], {attrs}}} : tile<f32[1,4,8]>, tile<f32[1,4,1]>
          tile.store(%p, %o, %g, %i) {{axes = "gid", add = false}}
          tile.yield()
        }}
        tile.yield()
      }}
      tile.return(%o)
    }}
    """  # noqa: E501
    if BAD[attrs] is None:
        parse(text).verify()
        return
    with pytest.raises(AatcError, match=BAD[attrs]):
        parse(text).verify()


def test_what_comes_between_stays_before_the_loop_and_what_reads_it_behind():
    """A store to the buffer that a tile is a view of ends a loop: what was read before is not read behind it."""
    text = """
    tile.func @f(%x: f32[1,4,32], %y: f32[1,4,32]) {
      %b = tile.alloc() : f32[1,4,32]
      %o = tile.alloc() : f32[1,4,32]
      tile.for() {axis = "g", upper = 1, step = 1, kind = "par"} (%g: index) {
        tile.for() {axis = "i", upper = 4, step = 4, kind = "par"} (%i: index) {
          %t = tile.load(%x, %g, %i) {axes = "gid"} : tile<f32[1,4,32]>
          tile.store(%t, %b, %g, %i) {axes = "gid", add = false}
          %u = tile.load(%b, %g, %i) {axes = "gid"} : tile<f32[1,4,32]>
          %m = tile.map(%u) {programs = [fn(u: f[bhij]) => u * 2.0]} : tile<f32[1,4,32]>
          %w = tile.load(%y, %g, %i) {axes = "gid"} : tile<f32[1,4,32]>
          tile.store(%w, %b, %g, %i) {axes = "gid", add = false}
          %n = tile.map(%m) {programs = [fn(m: f[bhij]) => m + 1.0]} : tile<f32[1,4,32]>
          %k = tile.map(%n) {programs = [fn(m: f[bhij]) => m * 3.0]} : tile<f32[1,4,32]>
          tile.store(%k, %o, %g, %i) {axes = "gid", add = false}
          tile.yield()
        }
        tile.yield()
      }
      tile.return(%o)
    }
    """
    result = passes.Pipeline.parse("join-loops").run(parse(text).verify(), target=WIDE)
    (func,) = result.module.funcs.values()
    assert [op.name for op in func.body.walk()].count("native.join") == 1
    run, _ = backends.get("native").compile(func)
    x, y = torch.randn(1, 4, 32), torch.randn(1, 4, 32)
    torch.testing.assert_close(run(x, y)[0], (2 * x + 1) * 3)


def test_products_are_joined_with_few_words_only():
    def forms(words: int) -> list[str]:
        operands, spec, _ = record(*(torch.rand(1, 2, 96, 8) for _ in range(3)), metric=metrics.DotProduct())
        text = f"{GEO_PASSES},schedule,adaptive-tile,{SUFFIX},join-loops{{words={words}}}"
        result = passes.Pipeline.parse(text).run(module_of(operands, spec), target=WIDE)
        return [op.attrs.get("form", "") for op in result.module.walk() if op.name == "native.join"]

    assert "nt" in forms(12)
    assert "nt" not in forms(-1)
