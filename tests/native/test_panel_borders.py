"""Blocks of keys begin where panels do, whoever made the schedule: results are right, or the schedule is refused."""
# ruff: noqa: E501  (IR texts keep their lines)

import random

import pytest
import torch

import aatc
from aatc import backends, passes
from aatc.errors import BackendError, ScheduleError, VerifyError
from aatc.ir.parser import parse
from aatc.passes import schedule_attention
from tests.compiler.harness import module_of, record
from tests.compiler.test_passes import GEO_PASSES

MASKS = {None: None, "causal": aatc.masks.causal(), "window": aatc.masks.sliding_window(5)}
ROWS = "split(i, 48) split(j, 64)"
KEYS = "split(i, 16) split(j, 128)"


def attention(mask, schedule, n=70, width=16):
    """Distances to the eager results and gradients, of an attention that a file of schedules is for."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, width, requires_grad=True) for _ in range(3))
    operands, spec, eager = record(q, k, v, metric=aatc.metrics.DotProduct(), mask=MASKS[mask])
    native = backends.get("native")
    pipeline = passes.Pipeline.parse(f"{GEO_PASSES},schedule,adaptive-tile,{native.suffix}")
    module = passes.with_schedules(pipeline, schedule).run(module_of(operands, spec), target=native.target()).module
    results = native.build(module).main(*operands)
    probe = torch.randn_like(eager[0])
    got, want = (torch.autograd.grad(x[0], (q, k, v), probe) for x in (results, eager))
    return max(float((x - y).detach().abs().max()) for x, y in zip((results[0], *got), (eager[0], *want), strict=True))


def both(forward, backward=KEYS):
    return f"attend0.forward: {forward}\nattend0.backward: {backward}\n"


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "schedule",
    [
        both(f"{ROWS} pack(k, 64)"),
        both(f"{ROWS} pack(k, 64) split-keys(2)"),
        both("split(i, 48) split(j, 128) pack(k, 64)"),
        both(ROWS, f"{KEYS} pack(k, 16)"),
        both(ROWS, f"{KEYS} pack(v, 16)"),
        both(ROWS, f"{KEYS} pack(k, 32) pack(v, 16) order(rows-and-columns)"),
    ],
)
def test_a_grain_that_is_left_out_is_whole_panels(mask, schedule):
    assert attention(mask, schedule) <= 1e-4


@pytest.mark.parametrize("mask", ["causal", "window"])
@pytest.mark.parametrize(
    "schedule",
    [
        both(f"{ROWS} grain(j, 16) pack(k, 64)"),
        both(f"{ROWS} grain(j, 16) pack(k, 64) split-keys(2)"),
        both(ROWS, f"{KEYS} grain(j, 40) pack(k, 16)"),
        both(ROWS, f"{KEYS} grain(j, 24) pack(v, 16)"),
        both(ROWS, "split(i, 16) split(j, 40) grain(j, 16) pack(k, 16) order(rows-and-columns)"),
    ],
)
def test_a_grain_that_panels_do_not_divide_is_refused(mask, schedule, monkeypatch):
    with pytest.raises(ScheduleError, match="within a panel"):
        attention(mask, schedule)
    monkeypatch.setattr(schedule_attention, "legal", lambda *_: None)
    with pytest.raises(VerifyError, match="within a panel"):
        attention(mask, schedule)


def test_tiles_that_panels_do_not_divide_are_refused(monkeypatch):
    schedule = both("split(i, 48) split(j, 100) pack(k, 16)")
    with pytest.raises(ScheduleError, match="multiples of 100, within a panel"):
        attention(None, schedule, 300)
    assert attention(None, schedule, 100) <= 1e-4, "one block of keys begins at the first panel"
    monkeypatch.setattr(schedule_attention, "legal", lambda *_: None)
    with pytest.raises(VerifyError, match="rounds of the loop begin at multiples of 100"):
        attention(None, schedule, 300)


@pytest.mark.parametrize("seed", range(12))
def test_drawn_schedules_are_right_or_refused(seed):
    """What is legal is accepted by the verifier and computes the attention; what is not tells why."""
    r = random.Random(seed)

    def one(backward):
        split = r.choice([16, 32, 48, 64, 80, 128])
        parts = [f"split(i, {r.choice([4, 16, 48])})", f"split(j, {split})"]
        parts += [f"grain(j, {r.choice([g for g in (8, 16, 24, 40, 64) if g <= split])})"] if r.random() < 0.6 else []
        parts += [f"pack({x}, {r.choice([16, 32, 64])})" for x in "kv" if r.random() < 0.6]
        last = "order(rows-and-columns)" if backward else "split-keys(2)"
        return " ".join([*parts, *([last] if r.random() < 0.4 else [])])

    for _ in range(3):
        text = both(one(False), one(True))
        try:
            off = attention(r.choice([*MASKS]), text, r.choice([33, 70, 130]))
        except (ScheduleError, BackendError):  # the latter: panels that the vectors of a tile do not fill
            continue
        assert off <= 1e-4, text


@pytest.mark.parametrize("n", [17, 70, 300])
@pytest.mark.parametrize("mask", MASKS)
def test_defaults_read_panels_from_their_borders(mask, n):
    assert attention(mask, "", n) <= 1e-4


# --- who reads panels ----------------------------------------------------------------------------------------------
PACKED = """aatc 2
tile.func @f(%x: f32[1,16,{width}], %y: f32[1,16,{width}]) {{
  %out = tile.alloc() {{fill = 0.0}} : f32[1,16,{width}]
  %p = tile.pack(%y) {{axes = "gjd"}} : f32[1,16,{width}; {panels}]
  tile.for() {{axis = "g", upper = 1, step = 1, kind = "seq"}} (%g: index) {{
    tile.for() {{axis = "i", upper = 16, step = 16, kind = "seq"}} (%i: index) {{
      tile.for() {{axis = "j", upper = 16, step = 16, kind = "seq"}} (%j: index) {{
        %a = tile.load(%x, %g, %i) {{axes = "gid"}} : tile<f32[1,16,{width}]>
        {load}
        {body}
        tile.store(%r, %out, %g, %i) {{axes = "gid", add = false}}
        tile.yield()
      }}
      tile.yield()
    }}
    tile.yield()
  }}
  tile.return(%out)
}}
"""
LOAD = '%b = tile.load(%p, %g, %j) {axes = "gjd"} : tile<f32[1,16,16]>'
READERS = {
    "a product along tokens": '%r = tile.dot(%a, %b) {form = "nn"} : tile<f32[1,16,16]>',
    "a product along queries": '%r = tile.dot(%a, %b) {form = "tn"} : tile<f32[1,16,16]>',
    "a first factor": '%r = tile.dot(%b, %a) {form = "nt"} : tile<f32[1,16,16]>',
    "an addend": '%r = tile.dot(%a, %a, %b) {form = "nt"} : tile<f32[1,16,16]>',
    "a map": "%r = tile.map(%b) {programs = [fn(x: f[bhid]) => x]} : tile<f32[1,16,16]>",
    "a store": '%r = tile.slice(%b) {over = "j", start = 0, stride = 1} : tile<f32[1,16,16]>',
    "a joined loop": '%r = native.join(%b) {programs = [fn(x: f[bhid]) => x], keeps = ["tile"], into = []} : tile<f32[1,16,16]>',
    "a joined product": '%r = native.join(%b, %a) {form = "nt", programs = [fn(x: f[bhij]) => x], keeps = ["tile"], into = []} : tile<f32[1,16,16]>',
    "a carried tile": "%r = tile.for(%b) {axis = \"c\", upper = 2, step = 1, kind = \"seq\"} (%c: index, %n: tile<f32[1,16,16]>) {\n tile.yield(%n)\n } : tile<f32[1,16,16]>",
}  # fmt: skip


def compiled(body, load=LOAD, width=16, panels="panels(16)"):
    func = parse(PACKED.format(body=body, load=load, width=width, panels=panels)).funcs["f"]
    return backends.get("native").compile(func)[0]


@pytest.mark.parametrize("name", READERS)
def test_what_reads_rows_refuses_panels(name):
    with pytest.raises(BackendError, match="in panels"):
        compiled(READERS[name])


def test_products_whose_columns_are_tokens_read_panels():
    x, y = torch.randn(2, 1, 16, 16)
    got = compiled('%r = tile.dot(%a, %b) {form = "nt"} : tile<f32[1,16,16]>')(x, y)[0]
    torch.testing.assert_close(got, x @ y.mT)


@pytest.mark.parametrize("mapped", [True, False])
def test_lines_and_other_axes_of_panels_are_refused(mapped):
    """A single feature of every token, and one feature at a loop's position."""
    if mapped:
        load = '%b = tile.load(%p, %g, %j) {axes = "gjd"} : tile<f32[1,16,1]>'
        body = "%r = tile.map(%b) {programs = [fn(x: f[bhi]) => x]} : tile<f32[1,16,1]>"
        with pytest.raises(BackendError, match="in panels"):
            compiled(body, load, 1)
        return
    load = """%z = tile.for(%a) {axis = "c", upper = 16, step = 1, kind = "seq"} (%c: index, %n: tile<f32[1,16,16]>) {
          %b = tile.load(%p, %g, %i, %c) {axes = "gic"} : tile<f32[1,16,1]>
          %m = tile.map(%n, %b) {programs = [fn(x: f[bhid], y: f[bhi]) => x + y]} : tile<f32[1,16,16]>
          tile.yield(%m)
        } : tile<f32[1,16,16]>"""
    with pytest.raises(BackendError, match="no block of vectors"):
        compiled("%r = tile.map(%z) {programs = [fn(x: f[bhid]) => x]} : tile<f32[1,16,16]>", load)


def test_panels_that_nothing_fills_are_refused():
    with pytest.raises(BackendError, match="no panels like those"):
        compiled('%r = tile.dot(%a, %b) {form = "nt"} : tile<f32[1,16,16]>', panels="panels(16, 2)")


@pytest.mark.parametrize("drop", ["rows-by-use", "lower-tokens{inline=true},bf16-products,share-tokens,rows-by-use,"])
def test_a_pipeline_without_rows_by_use_is_right_or_refused(drop):
    suffix = backends.get("native").suffix.replace(f"{drop},", "").replace(drop, "")
    text = f"canonicalize,simplify-score,fuse-attention,fuse-normalizer,schedule,adaptive-tile,{suffix}"
    wrong = []
    for metric in (aatc.metrics.DotProduct(), aatc.metrics.Euclidean()):
        for n in (6, 100):
            torch._dynamo.reset()
            attend = lambda q, k, v: aatc.attend(q, k, v, metric=metric)  # noqa: E731, B023
            operands = [torch.randn(1, 2, n, 4, requires_grad=True) for _ in range(3)]
            want = torch.autograd.grad(attend(*operands).square().sum(), operands)
            run = aatc.compile(attend, passes=text, backend="native", dynamic=True, fallback=False)
            try:
                got = torch.autograd.grad(run(*operands).square().sum(), operands)
            except BackendError as e:
                assert "in panels" in str(e)
                continue
            wrong += [n for x, y in zip(got, want, strict=True) if float((x - y).abs().max()) > 1e-4]
    assert not wrong
