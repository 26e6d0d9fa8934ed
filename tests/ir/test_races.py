"""Loops that say ``par`` are refused when their rounds meet, whatever they do there."""

import pytest

from aatc.ir.errors import VerifyError
from aatc.ir.parser import parse
from tests.ir.samples import TILE

LSE = "%lse = tile.token(%lse_all)"
STORE = '      tile.store(%lt, %lse_all, %g, %i) {axes = "gi", add = false}\n'

#: What is changed in attention over par g and par i, and what the verifier says.
RACES = {
    "rows of all problems in one place": (
        '%lse_all = tile.alloc() : f64[2,N]', '%lse_all = tile.alloc() : f64[N]',
        'tile.store(%lt, %lse_all, %g, %i) {axes = "gi"', 'tile.store(%lt, %lse_all, %i) {axes = "i"',
        "loop over g write to the same places",
    ),
    "a number per problem written by every block of rows": (
        '%lse_all = tile.alloc() : f64[2,N]', '%lse_all = tile.alloc() : f64[2]', STORE,
        '      %all = tile.reduce(%lt) {op = "sum", over = "i"} : tile<f64[1,1,1]>\n'
        '      tile.store(%all, %lse_all, %g) {axes = "g", add = false}\n', "loop over i write to the same places",
    ),
    "a number per problem added to by every block of rows": (
        '%lse_all = tile.alloc() : f64[2,N]', '%lse_all = tile.alloc() {fill = 0.0} : f64[2]', STORE,
        '      %all = tile.reduce(%lt) {op = "sum", over = "i"} : tile<f64[1,1,1]>\n'
        '      tile.store(%all, %lse_all, %g) {axes = "g", add = true}\n', "loop over i add into the same places",
    ),
    "rows read that another round writes": (
        STORE, STORE + '      %other = tile.load(%total, %g) {axes = "g"} : tile<f64[1,1,1]>\n'
        '      %sum = tile.reduce(%lt) {op = "sum", over = "i"} : tile<f64[1,1,1]>\n'
        '      tile.store(%sum, %total, %g) {axes = "g", add = true, shared = "ordered"}\n',
        '%acc_all = tile.alloc()', '%total = tile.alloc() {fill = 0.0} : f64[2]\n  %acc_all = tile.alloc()',
        "is read here",
    ),
}  # fmt: skip


def changed(*pairs):
    text = TILE
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("name", RACES)
def test_a_planted_race_is_refused(name):
    *pairs, message = RACES[name]
    if "%lse_all = tile.alloc() : f64[2,N]" in pairs:  # the result then comes from elsewhere
        pairs += [LSE, LSE.replace("(%lse_all)", "(%is)")]
    with pytest.raises(VerifyError, match=message):
        parse(changed(*pairs))


def test_sums_that_meet_are_allowed_when_they_say_how():
    *pairs, _ = RACES["a number per problem added to by every block of rows"]
    pairs += [LSE, LSE.replace("(%lse_all)", "(%is)")]
    for how in ("ordered", "atomic"):
        parse(changed(*pairs).replace('"g", add = true', f'"g", add = true, shared = "{how}"'))
    sequential = changed(*pairs, 'step = 8, kind = "par"', 'step = 8, kind = "seq"')
    parse(sequential)


def test_a_loop_that_carries_is_neither_parallel_nor_a_reduction_of_what_it_reads():
    sweep = '{upper = dim(M), step = 16, kind = "seq"'
    with pytest.raises(VerifyError, match="only accumulates"):
        parse(changed(sweep, sweep.replace("seq", "red")))


def test_gradients_of_a_table_that_heads_share_are_no_race():
    """The backward adds into one table from all problems: it says so, and without the word it is refused."""
    import torch

    import aatc
    from tests.compiler.harness import build

    q, k, v = (torch.randn(2, 2, 6, 4, dtype=torch.float64) for _ in range(3))
    table = torch.randn(5, dtype=torch.float64, requires_grad=True)

    @aatc.metric(t="t")
    def shifted(q, k, t, i, j):
        return q @ k + aatc.metrics.lookup(t, i - j)

    built = build(q, k, v, metric=shifted(t=table), tiles="rows=4 cols=4 heads=1 grain=2")
    text = str(built.result.stages["adaptive-tile"])
    assert 'shared = "ordered"' in text
    with pytest.raises(VerifyError, match="loop over g add into the same places"):
        parse(text.replace(', shared = "ordered"', ""))


def test_a_backward_whose_rows_add_into_keys_is_not_parallel_over_rows():
    import torch

    import aatc
    from tests.compiler.harness import build

    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.float64) for _ in range(3))
    tiles = "rows=4 cols=4 heads=1 grain=2"
    built = build(q, k, v, metric=aatc.metrics.SphereGeodesic(), tiles=tiles, backend="cpu")
    text = str(built.result.stages["adaptive-tile"])
    assert 'axis = "i", upper = 6, step = 4, kind = "seq"' in text
    with pytest.raises(VerifyError, match="loop over i add into the same places"):
        parse(
            text.replace(
                'axis = "i", upper = 6, step = 4, kind = "seq"', 'axis = "i", upper = 6, step = 4, kind = "par"'
            )
        )


@pytest.mark.parametrize("shape, axes", [((2, 1, 6, 7), "bij"), ((2, 6, 7), "hij"), ((2, 2, 6, 7), "bhij")])
def test_gradients_of_a_bias_are_shared_where_problems_share_it(shape, axes):
    """One bias for all heads is reached by the position along g, too, yet heads meet at the same place."""
    import torch

    import aatc
    from tests.compiler.harness import build

    q, k, v = (torch.randn(2, 2, n, 4, dtype=torch.float64) for n in (6, 7, 7))
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parts = {"metric": aatc.metrics.SphereGeodesic(), "bias": bias}
    text = str(build(q, k, v, tiles="rows=4 cols=4 heads=1 grain=2", **parts).result.stages["adaptive-tile"])
    (store,) = [x for x in text.splitlines() if "tile.store" in x and f'axes = "{axes}"' in x]
    assert ('shared = "ordered"' in store) == (axes != "bhij")
    if axes == "bhij":
        parse(text)
    else:
        with pytest.raises(VerifyError, match="loop over g add into the same places"):
            parse(text.replace(store, store.replace(', shared = "ordered"', "")))


@pytest.mark.parametrize("size", ["inf", "nan", "none"])
def test_sizes_that_are_no_sizes_are_refused(size):
    stored = "%o = tile.token(%acc_all)"
    text = changed(
        "  %acc_all = tile.alloc() : f64[2,N,4]",
        "  %acc_all = tile.alloc() : f64[1,2,N,4]",
        'tile.store(%ot, %acc_all, %g, %i) {axes = "gid", add = false}',
        'tile.store(%ot, %acc_all, %g, %i) {axes = "bhid", add = false, sizes = [1, 2, 6, SIZE]}',
    )
    assert stored in text
    parse(text.replace("SIZE", "6"))
    with pytest.raises(VerifyError, match="four extents"):
        parse(text.replace("SIZE", size))


@pytest.mark.parametrize(
    "program, message", [("a * 2.0", "only accumulates"), ("exp(a)", "only accumulates"), ("a + 1.0", "")]
)
def test_a_reduction_only_adds_to_what_it_carries(program, message):
    text = f"""
tile.func @f(%x: f64[2,6]) {{
  %out = tile.alloc() : f64[2]
  tile.for() {{axis = "g", upper = 2, step = 1, kind = "par"}} (%g: index) {{
    %a0 = tile.fill(%g) {{value = 1.0, axes = "g"}} : tile<f64[1,1,1]>
    %a = tile.for(%a0) {{axis = "j", upper = 6, step = 2, kind = "red"}} (%j: index, %acc: tile<f64[1,1,1]>) {{
      %n = tile.map(%acc) {{programs = [fn(a: f[bh]) => {program}]}} : tile<f64[1,1,1]>
      tile.yield(%n)
    }} : tile<f64[1,1,1]>
    tile.store(%a, %out, %g) {{axes = "g", add = false}}
    tile.yield()
  }}
  tile.return(%out)
}}
"""
    if message:
        with pytest.raises(VerifyError, match=message):
            parse(text)
    else:
        parse(text)
    parse(text.replace('kind = "red"', 'kind = "seq"'))
