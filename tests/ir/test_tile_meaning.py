"""What the verifier accepts of a tile program means one thing: the reference interpreter and generated code agree on
it, whatever order its rounds run in; and what could mean two is refused."""
# ruff: noqa: E501  (IR texts keep their lines)

import pytest
import torch

from aatc import backends
from aatc.errors import VerifyError
from aatc.ir.interpreter import Interpreter
from aatc.ir.parser import parse
from aatc.passes import Pipeline

X = torch.arange(12.0).reshape(2, 6) + 1


def func(body, args="%x: f32[2,6]", dims=""):
    return f"aatc 2\n{dims}\ntile.func @f({args}) {{\n{body}\n}}\n"


def loops(
    body, out="%out = tile.alloc() {fill = 0.0} : f32[2,6]", g="seq", i="seq", step=6, before="", args="%x: f32[2,6]"
):
    """A loop over problems and blocks of rows around ``body``, which adds to %out."""
    return func(
        f"""  {out}
{before}
  tile.for() {{axis = "g", upper = 2, step = 1, kind = "{g}"}} (%g: index) {{
    tile.for() {{axis = "i", upper = 6, step = {step}, kind = "{i}"}} (%i: index) {{
{body}
      tile.yield()
    }}
    tile.yield()
  }}
  tile.return(%out)""",
        args,
    )


def load(name="y", step=6):
    return f'%{name} = tile.load(%x, %g, %i) {{axes = "gi"}} : tile<f32[1,{step},1]>'


def store(name="q", add="false"):
    return f'tile.store(%{name}, %out, %g, %i) {{axes = "gi", add = {add}}}'


def lines(*parts):
    return "\n".join(parts)


def both(text, *tensors):
    """Results of the interpreter and of generated code, which leave their arguments as they are."""
    module = parse(text)
    given = [t.clone() for t in tensors]
    want = Interpreter(module).call("f", given)
    planned = Pipeline.parse("plan-memory").run(module).module
    got = backends.get("cpu").compile(planned.funcs["f"])[0](*given)
    for t, kept in zip(tensors, given, strict=True):
        assert torch.equal(t, kept), "an argument was written to"
    return want, got


def check(text, *tensors):
    want, got = both(text, *tensors)
    for x, y in zip(want, got, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=1e-6, atol=0, equal_nan=True)
    return want


# --- programs that mean one thing ----------------------------------------------------------------------------------
def masked(classified, mask="c <= r", inside=False):
    tiles = f"%tiles = tile.classify() {{mask = fn() => {classified}, rows = 6, cols = 6, sizes = [1,2,6,6], heads = 1}} : runs[1,6,6]"
    other = "%other = tile.classify() {mask = fn() => j <= i + 2, rows = 6, cols = 6, sizes = [1,2,6,6], heads = 1} : runs[1,6,6]"
    return func(f"""  %out = tile.alloc() {{fill = 0.0}} : f32[2,6]
  {other}
  {"" if inside else tiles}
  %js = tile.token() {{program = fn() => j, axes = "bhj", sizes = [1,2,6,6], flat = true}} : f64[2,6]
  %is = tile.token() {{program = fn() => i, axes = "bhi", sizes = [1,2,6,6], flat = true}} : f64[2,6]
  tile.for() {{axis = "g", upper = 2, step = 1, kind = "par"}} (%g: index) {{
    {tiles if inside else ""}
    tile.for() {{axis = "i", upper = 6, step = 6, kind = "par"}} (%i: index) {{
      tile.sweep(%tiles, %g, %i) {{upper = 6, step = 6, kind = "seq"}} (%j: index, %p: bool) {{
        %t0 = tile.load(%x, %g, %i) {{axes = "gi"}} : tile<f32[1,6,1]>
        %u = tile.load(%x, %g, %j) {{axes = "gj"}} : tile<f32[1,1,6]>
        %jt = tile.load(%js, %g, %j) {{axes = "gj"}} : tile<f64[1,1,6]>
        %it = tile.load(%is, %g, %i) {{axes = "gi"}} : tile<f64[1,6,1]>
        %t = tile.map(%t0, %u) {{programs = [fn(a: f[bhi], c: f[bhj]) => a * c]}} : tile<f32[1,6,6]>
        %m = tile.mask(%t, %p, %jt, %it) {{mask = fn(c: f[bhj], r: f[bhi]) => {mask}, value = 0.0}} : tile<f32[1,6,6]>
        %s = tile.reduce(%m) {{op = "sum", over = "j"}} : tile<f32[1,6,1]>
        tile.store(%s, %out, %g, %i) {{axes = "gi", add = true}}
        tile.yield()
      }}
      tile.yield()
    }}
    tile.yield()
  }}
  tile.return(%out)""")


@pytest.mark.parametrize("text", [
    masked("j <= i"), masked("j <= i + 1"), masked("j <= i + 3", "c <= r + 1"),
    masked("j <= i + 3", "c * 0.5 <= r"), masked("j <= 4", "c <= 3.0"),
])  # fmt: skip
def test_a_mask_decides_by_its_own_program(text):
    (out,) = check(text, X)
    assert float(out[0, 0]) < float((X[0, 0] * X[0]).sum())


def test_a_factor_at_the_end_leaves_what_others_read():
    a, b = check(
        func("""  %a = tile.finish(%x) {factor = 2.0} : f32[2,6]
  %b = tile.finish(%x) {factor = 3.0} : f32[12]
  tile.return(%a, %b)""").replace("f32[12]", "f32[2,6]"),
        X,
    )
    assert torch.equal(a, 2 * X) and torch.equal(b, 3 * X)
    (one,) = check(
        loops(lines(load(), store("y"))).replace(
            "tile.return(%out)", "%z = tile.finish(%out) {factor = 2.0} : f32[2,6]\n  tile.return(%z)"
        ),
        X,
    )
    assert torch.equal(one, 2 * X)


def test_sums_over_problems_that_go_in_steps():
    (out,) = check(
        func(
            """  %o = tile.alloc() {fill = 0.0} : f32[]
  tile.for() {axis = "g", upper = 3, step = 2, kind = "seq"} (%g: index) {
    %t = tile.load(%x, %g) {axes = "g"} : tile<f32[2,1,1]>
    tile.store(%t, %o) {axes = "", add = true}
    tile.yield()
  }
  tile.return(%o)""",
            "%x: f32[3]",
        ),
        torch.tensor([1.0, 2.0, 4.0]),
    )
    assert float(out) == 7.0
    check(
        func(
            """  %o = tile.alloc() {fill = 0.0} : f32[4]
  tile.for() {axis = "g", upper = 3, step = 2, kind = "seq"} (%g: index) {
    %t = tile.load(%x, %g) {axes = "gd"} : tile<f32[2,1,4]>
    tile.store(%t, %o) {axes = "d", add = true}
    tile.yield()
  }
  tile.return(%o)""",
            "%x: f32[3,4]",
        ),
        torch.arange(12.0).reshape(3, 4),
    )


def test_a_matrix_that_problems_share_is_contracted_with_several():
    check(
        func(
            """  %o = tile.alloc() {fill = 0.0} : f32[3,6,4]
  %m = tile.load(%w) {axes = "de"} : tile<f32[1,4,4]>
  tile.for() {axis = "g", upper = 3, step = 2, kind = "seq"} (%g: index) {
    tile.for() {axis = "i", upper = 6, step = 4, kind = "seq"} (%i: index) {
      %t = tile.load(%x, %g, %i) {axes = "gid"} : tile<f32[2,4,4]>
      %d = tile.dot(%t, %m, %t) {form = "nt"} : tile<f32[2,4,4]>
      tile.store(%d, %o, %g, %i) {axes = "gid", add = false}
      tile.yield()
    }
    tile.yield()
  }
  tile.return(%o)""",
            "%x: f32[3,6,4], %w: f32[4,4]",
        ),
        torch.rand(3, 6, 4),
        torch.rand(4, 4),
    )


def test_parts_of_an_axis_that_is_as_long_in_every_round():
    part = '%w = tile.slice(%y) {over = "i", start = 0, stride = 2} : tile<f32[1,2,1]>'
    text = loops(lines(load(step=3), part, '%s = tile.reduce(%w) {op = "sum", over = "i"} : tile<f32[1,1,1]>',
                       "%q = tile.map(%y, %s) {programs = [fn(a: f[bhi], c: f[bhi]) => a + c]} : tile<f32[1,3,1]>", store()), step=3)  # fmt: skip
    check(text, X)


@pytest.mark.parametrize("constant", ["6", "2.5", "inf * 2.0", "-(3.0)"])
def test_programs_of_constants(constant):
    check(
        func(f"""  %v = tile.token() {{program = fn() => {constant}, axes = "bhi", sizes = [1,2,6,6], flat = true}} : f32[2,6]
  %c = tile.gradient(%x) {{program = fn() => {constant}, axes = "bhi", sizes = [1,2,6,6], add = false}} : f32[1,2,6]
  tile.return(%v, %c)""", "%x: f32[1,2,6]"),
        X[None],
    )  # fmt: skip


# --- programs that would mean two ----------------------------------------------------------------------------------
B = "  %b = tile.alloc() {fill = 1.0} : f32[2,6]"
FILL = '%z = tile.fill(%g, %i) {axes = "gi", value = 1.0} : tile<f32[1,6,1]>'


def swept(sizes="[1,2,6,6]", rows=1, cols=1, step=1, heads=1, positions="%g, %i", upper=6):
    return func(f"""  %out = tile.alloc() {{fill = 0.0}} : f32[2,6]
  %tiles = tile.classify() {{mask = fn() => j <= i, rows = {rows}, cols = {cols}, sizes = {sizes}, heads = {heads}}} : runs[{heads},{rows},{cols}]
  tile.for() {{axis = "g", upper = 2, step = 1, kind = "par"}} (%g: index) {{
    tile.for() {{axis = "i", upper = 6, step = {step}, kind = "par"}} (%i: index) {{
      tile.sweep(%tiles, {positions}) {{upper = {upper}, step = 6, kind = "seq"}} (%j: index, %p: bool) {{
        %y = tile.load(%x, %g, %j) {{axes = "gj"}} : tile<f32[1,1,6]>
        %s = tile.reduce(%y) {{op = "sum", over = "j"}} : tile<f32[1,1,1]>
        %o = tile.fill(%g, %i) {{axes = "gi", value = 1.0}} : tile<f32[1,{step},1]>
        %t = tile.map(%s, %o) {{programs = [fn(a: f[bhi], c: f[bhi]) => a * c]}} : tile<f32[1,{step},1]>
        tile.store(%t, %out, %g, %i) {{axes = "gi", add = true}}
        tile.yield()
      }}
      tile.yield()
    }}
    tile.yield()
  }}
  tile.return(%out)""")


REFUSED = {
    "a tile kept while its buffer is written": (
        loops(lines('%q = tile.load(%b, %g, %i) {axes = "gi"} : tile<f32[1,6,1]>', load(), 'tile.store(%y, %b, %g, %i) {axes = "gi", add = false}', store()), before=B),
        "may be a view"),
    "a tile of an earlier round": (
        loops(lines('tile.for() {axis = "j", upper = 2, step = 1, kind = "seq"} (%j: index) {', store(), load(), 'tile.store(%y, %b, %g, %i) {axes = "gi", add = true}', "tile.yield()\n}"),
              before=B).replace('tile.for() {axis = "j"', '%q = tile.load(%b, %g, %i) {axes = "gi"} : tile<f32[1,6,1]>\n      tile.for() {axis = "j"'),
        "may be a view"),
    "panels of a buffer that changes": (
        func("""  %b = tile.alloc() {fill = 1.0} : f32[2,3,2]
  %p = tile.pack(%b) {axes = "gid"} : f32[2,3,2; panels(16)]
  %out = tile.alloc() {fill = 0.0} : f32[2,3,2]
  tile.for() {axis = "g", upper = 2, step = 1, kind = "seq"} (%g: index) {
    tile.for() {axis = "i", upper = 3, step = 3, kind = "seq"} (%i: index) {
      %z = tile.fill(%g, %i) {axes = "gid", value = 7.0} : tile<f32[1,3,2]>
      tile.store(%z, %b, %g, %i) {axes = "gid", add = false}
      %t = tile.load(%p, %g, %i) {axes = "gid"} : tile<f32[1,3,2]>
      tile.store(%t, %out, %g, %i) {axes = "gid", add = false}
      tile.yield()
    }
    tile.yield()
  }
  tile.return(%out)"""), "may be a view"),
    "a race through another name of a buffer": (
        loops(lines(load(step=1), 'tile.store(%y, %b, %g, %i) {axes = "bhi", add = false, sizes = [1,2,6,6]}',
                    'tile.for() {axis = "j", upper = 6, step = 6, kind = "seq"} (%j: index) {', '%t = tile.load(%v, %g, %j) {axes = "gj"} : tile<f32[1,1,6]>',
                    '%s = tile.reduce(%t) {op = "sum", over = "j"} : tile<f32[1,1,1]>', store("s"), "tile.yield()\n}"), g="par", i="par", step=1,
              before="  %b = tile.alloc() {fill = 1.0} : f32[1,2,6]\n  %v = tile.token(%b) {program = fn(q: f[bhi]) => q, axes = \"bhi\", sizes = [1,2,6,6], flat = true} : f32[2,6]"),
        "may be a view"),
    "an argument written to": (loops(lines(load(), 'tile.store(%y, %x, %g, %i) {axes = "gi", add = true}')), "tile.alloc has not made"),
    "a loop within one over the same axis": (
        func("""  %out = tile.alloc() {fill = 0.0} : f32[2]
  tile.for() {axis = "g", upper = 2, step = 1, kind = "par"} (%g: index) {
    tile.for() {axis = "g", upper = 2, step = 1, kind = "seq"} (%h: index) {
      %t = tile.load(%x, %h) {axes = "g"} : tile<f32[1,1,1]>
      tile.store(%t, %out, %g) {axes = "g", add = true}
      tile.yield()
    }
    tile.yield()
  }
  tile.return(%out)""", "%x: f32[2]"), "within one over g"),
    "a part of a ragged axis": (
        loops(lines(load(step=4), '%w = tile.slice(%y) {over = "i", start = 0, stride = 3} : tile<f32[1,2,1]>', '%s = tile.reduce(%w) {op = "sum", over = "i"} : tile<f32[1,1,1]>',
                    "%q = tile.map(%y, %s) {programs = [fn(a: f[bhi], c: f[bhi]) => a + c]} : tile<f32[1,4,1]>", store()), step=4), "ragged"),
    "entries put into a ragged axis": (
        loops(lines(load(step=4), '%w = tile.fill(%g) {axes = "gd", value = 1.0} : tile<f32[1,1,1]>', '%q = tile.insert(%w, %y) {over = "i", start = 3, stride = 1} : tile<f32[1,4,1]>', store()), step=4),
        "ragged"),
    "rounds of two loops in one tile": (
        loops(lines('tile.for() {axis = "j", upper = 5, step = 4, kind = "seq"} (%j: index) {', load(step=4), '%u = tile.load(%x, %g, %j) {axes = "gj"} : tile<f32[1,1,4]>',
                    '%t = tile.dot(%y, %u) {form = "nn"} : tile<f32[1,4,4]>', '%w = tile.dot(%t, %y) {form = "nn"} : tile<f32[1,4,1]>', store("w", "true"), "tile.yield()\n}"), step=4),
        "different extents"),
    "two addends": (loops(lines(load(), FILL, "%w = tile.dot(%y, %z, %z, %y) {form = \"nt\"} : tile<f32[1,6,6]>", '%q = tile.reduce(%w) {op = "sum", over = "j"} : tile<f32[1,6,1]>', store())), "tile.dot"),
    "keys' positions along the rows": (
        loops(lines(load(), '%z = tile.position(%i) {axes = "j"} : tile<i64[1,1,6]>', "%w = tile.map(%y, %z) {programs = [fn(a: f[bhi], c: f[bhj]) => a + c]} : tile<f32[1,6,6]>",
                    '%q = tile.reduce(%w) {op = "sum", over = "j"} : tile<f32[1,6,1]>', store())), "axis j is accessed"),
    "a loaded tile that a guard overwrites": (
        loops(lines(load(), '%q = tile.guard(%y) {least = 1e6} () {', FILL, "tile.yield(%z)\n} : tile<f32[1,6,1]>", store())), "may overwrite"),
    "a tile read after a guard overwrites it": (
        loops(lines(FILL, '%q = tile.guard(%z) {least = 1e6} () {', FILL.replace("%z", "%w").replace("1.0", "5.0"), "tile.yield(%w)\n} : tile<f32[1,6,1]>", store(), store("z", "true"))), "may overwrite"),
    "a table said to be of one problem": (
        func("""  %out = tile.alloc() {fill = 0.0} : f32[5]
  tile.for() {axis = "g", upper = 2, step = 1, kind = "par"} (%g: index) {
    %z = tile.load(%x, %g) {axes = "g"} : tile<f32[1,1,1]>
    tile.scatter(%z, %out, %g, %z) {positions = [fn(z: f[bh]) => z * 0.0], axes = "t", sizes = [1,1,6,6]}
    tile.yield()
  }
  tile.return(%out)""", "%x: f32[2]"), "past the 1 problems"),
    "more problems than a table has": (
        func("""  %out = tile.alloc() {fill = 0.0} : f32[2,5]
  tile.for() {axis = "g", upper = 7, step = 1, kind = "par"} (%g: index) {
    %z = tile.load(%x, %g) {axes = "g"} : tile<f32[1,1,1]>
    tile.scatter(%z, %out, %g, %z) {positions = [fn(z: f[bh]) => z * 0.0], axes = "bt", sizes = [2,1,6,6]}
    tile.yield()
  }
  tile.return(%out)""", "%x: f32[7]"), "past the 2 problems"),
    "an accumulating loop that overwrites": (
        func("""  %out = tile.alloc() {fill = 0.0} : f32[2]
  tile.for() {axis = "g", upper = 2, step = 1, kind = "seq"} (%g: index) {
    tile.for() {axis = "i", upper = 6, step = 1, kind = "red"} (%i: index) {
      %p = tile.load(%out, %g) {axes = "g"} : tile<f32[1,1,1]>
      %y = tile.load(%x, %g, %i) {axes = "gi"} : tile<f32[1,1,1]>
      %q = tile.map(%p, %y) {programs = [fn(a: f[bhi], c: f[bhi]) => a * 0.5 + c]} : tile<f32[1,1,1]>
      tile.store(%q, %out, %g) {axes = "g", add = false}
      tile.yield()
    }
    tile.yield()
  }
  tile.return(%out)"""), "accumulating loop over i write"),
    "one feature at a position of rows": (
        loops(lines(load(step=1), 'tile.store(%y, %out, %g, %i, %i) {axes = "gic", add = true}'), out="%out = tile.alloc() {fill = 0.0} : f32[2,6,6]", g="par", i="par", step=1), "axis c is accessed"),
    "features in steps": (
        func("""  %out = tile.alloc() {fill = 0.0} : f32[2,3]
  tile.for() {axis = "g", upper = 2, step = 1, kind = "seq"} (%g: index) {
    tile.for() {axis = "i", upper = 3, step = 3, kind = "seq"} (%i: index) {
      tile.for() {axis = "c", upper = 4, step = 2, kind = "seq"} (%c: index) {
        %y = tile.load(%x, %g, %i, %c) {axes = "gic"} : tile<f32[1,3,1]>
        tile.store(%y, %out, %g, %i) {axes = "gi", add = true}
        tile.yield()
      }
      tile.yield()
    }
    tile.yield()
  }
  tile.return(%out)""", "%x: f32[2,3,4]"), "in steps of 2"),
    "runs of other blocks": (swept(step=3), "blocks of 1 along i"),
    "runs at swapped positions": (swept(positions="%i, %g"), "axis g is accessed"),
    "runs past the keys": (swept("[1,2,6,60]"), "go up to 60"),
    "runs of fewer rows": (swept("[1,2,1,6]"), "axis i of the runs"),
    "runs of fewer problems": (swept("[1,1,6,6]"), "axis g of the runs"),
    "problems of unknown number": (
        func("""  %out = tile.alloc() {fill = 0.0} : f32[B,H,N]
  tile.for() {axis = "g", upper = 100, step = 1, kind = "par"} (%g: index) {
    tile.for() {axis = "i", upper = dim(N), step = 6, kind = "par"} (%i: index) {
      %t = tile.load(%x, %g, %i) {axes = "bhi", sizes = [dim(B),dim(H),dim(N),dim(N)]} : tile<f32[1,6,1]>
      tile.store(%t, %out, %g, %i) {axes = "bhi", add = false, sizes = [dim(B),dim(H),dim(N),dim(N)]}
      tile.yield()
    }
    tile.yield()
  }
  tile.return(%out)""", "%x: f32[B,H,N]", "dims {B in [1,inf], H in [1,inf], N in [1,inf]}"), "B_x_H problems"),
    "a product of dimensions with a range of its own": (
        func("""  %out = tile.alloc() {fill = 0.0} : f32[A_x_B]
  tile.for() {axis = "i", upper = 50, step = 50, kind = "seq"} (%i: index) {
    %t = tile.load(%out, %i) {axes = "i"} : tile<f32[1,50,1]>
    tile.store(%t, %out, %i) {axes = "i", add = false}
    tile.yield()
  }
  tile.return(%out)""", "%x: f32[A,B]", "dims {A in [1,inf], B in [1,inf], A_x_B in [100,inf]}"), "its range does not hold"),
    "runs made in every round": (masked("j <= i", inside=True), "tile.classify makes %tiles inside of a region"),
    "a buffer made in every round": (loops(lines("%n = tile.alloc() {fill = 0.0} : f32[2,6]", load(), store("y"))), "tile.alloc makes %n inside"),
    "tokens computed in every round": (
        loops(lines('%n = tile.token() {program = fn() => j, axes = "bhj", sizes = [1,2,6,6], flat = true} : f64[2,6]', load(), store("y"))), "tile.token makes %n inside"),
    "a buffer packed in every round": (
        loops(lines('%n = tile.pack(%x) {axes = "gid"} : f32[2,6,1; panels(4)]', load().replace('"gi"', '"gid"'), store("y")), args="%x: f32[2,6,1]"), "tile.pack makes %n inside"),
    "a buffer that nobody wrote": (func("  %o = tile.alloc() : f32[2,6]\n  tile.return(%o)"), "no fill, is read"),
    "a sum that starts anywhere": (loops(lines(load(), store("y", "true")), out="%out = tile.alloc() : f32[2,6]"), "no fill, is added to"),
    "a buffer written in part": (
        loops(lines(load(), store("y"))).replace("{fill = 0.0} ", "").replace("upper = 2", "upper = 1"), "no fill, is read"),
    "a buffer written in some rounds": (
        loops(lines(load(), '%q = tile.guard(%z) {least = 0.0} () {', store("y"), "tile.yield(%y)\n} : tile<f32[1,6,1]>").replace("%q", FILL + "\n      %q", 1),
              out="%out = tile.alloc() : f32[2,6]"), "no fill, is read"),
    "a block that a later round writes": (
        loops(lines(load(), store("y"), 'tile.for() {axis = "j", upper = 6, step = 6, kind = "seq"} (%j: index) {', '%t = tile.load(%out, %g, %j) {axes = "gj"} : tile<f32[1,1,6]>', "tile.yield()\n}"),
              out="%out = tile.alloc() : f32[2,6]"), "no fill, is read"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_mean_two_things_is_refused(name):
    text, message = REFUSED[name]
    with pytest.raises(VerifyError, match=message):
        parse(text)


def test_what_the_texts_above_were_made_of_is_accepted():
    check(loops(lines(load(), store("y"))), X)
    check(loops(lines(load(), store("y")), out="%out = tile.alloc() : f32[2,6]", g="par", i="par"), X)
    check(
        loops(
            lines(
                load(), store("y"), '%q = tile.load(%out, %g, %i) {axes = "gi"} : tile<f32[1,6,1]>', store("q", "true")
            ),
            out="%out = tile.alloc() : f32[2,6]",
            g="par",
            i="par",
        ),
        X,
    )
    check(swept(), X)


# --- operations that do not fit their operands ---------------------------------------------------------------------
LINES = {
    "a result smaller than what is computed": ("%q = tile.map(%y) {programs = [fn(a: f[bhi]) => a]} : tile<f32[1,1,1]>", "makes no"),
    "tiles that do not broadcast": (
        '%w = tile.slice(%z) {over = "i", start = 0, stride = 2} : tile<f32[1,3,1]>\n%q = tile.map(%y, %w) {programs = [fn(a: f[bhi], c: f[bhi]) => a + c]} : tile<f32[1,6,1]>', "different extents"),
    "a program of a position": ("%q = tile.map(%y, %i) {programs = [fn(a: f[bhi], c: f[bhi]) => a + c]} : tile<f32[1,6,1]>", "works on tiles"),
    "a program of an index": ("%q = tile.map(%y) {programs = [fn(a: f[bhi]) => a + i]} : tile<f32[1,6,1]>", "element by element"),
    "integers of numbers": ("%q = tile.map(%y) {programs = [fn(a: f[bhi]) => a * 0.5]} : tile<i64[1,6,1]>", "makes no"),
    "a product of two precisions": ('%w = tile.fill(%g, %i) {axes = "gi", value = 1.0} : tile<f64[1,6,1]>\n%d = tile.dot(%y, %w) {form = "nt"} : tile<f32[1,6,6]>', "contracts tiles"),
    "a product of bf16 and f32": ('%w = tile.map(%y) {programs = [fn(a: f[bhi]) => a]} : tile<bf16[1,6,1]>\n%d = tile.dot(%y, %w) {form = "nt"} : tile<f32[1,6,6]>', "contracts tiles"),
    "a product of bf16 in bf16": ('%w = tile.map(%y) {programs = [fn(a: f[bhi]) => a]} : tile<bf16[1,6,1]>\n%d = tile.dot(%w, %w) {form = "nt"} : tile<bf16[1,6,6]>', "yields"),
    "a factor of a product of f32": ('%d = tile.dot(%y, %y) {form = "nt", factor = 2.0} : tile<f32[1,6,6]>', "tiles of bf16 only"),
    "an infinite factor": ('%w = tile.map(%y) {programs = [fn(a: f[bhi]) => a]} : tile<bf16[1,6,1]>\n%d = tile.dot(%w, %w) {form = "nt", factor = inf} : tile<f32[1,6,6]>', "factor = inf"),
    "a sum of bf16 in bf16": ('%w = tile.map(%y) {programs = [fn(a: f[bhi]) => a]} : tile<bf16[1,6,1]>\n%d = tile.reduce(%w) {op = "sum", over = "i"} : tile<bf16[1,1,1]>', "yields"),
    "an addend of another shape": ('%d = tile.dot(%y, %z, %y) {form = "nt"} : tile<f32[1,6,6]>', "one addend"),
    "a maximum with a position": ('%q = tile.reduce(%y, %i) {op = "max", over = "j"} : tile<f32[1,6,1]>', "one tile at most"),
    "too few positions": ('%w = tile.fill(%g) {axes = "gi", value = 1.0} : tile<f32[1,6,1]>', "takes 2 positions"),
    "positions that are tiles": ('%w = tile.fill(%y, %y) {axes = "gi", value = 1.0} : tile<f32[1,6,1]>', "positions of loops"),
    "an infinite integer": ('%w = tile.fill(%g, %i) {axes = "gi", value = inf} : tile<i64[1,6,1]>', "no number of i64"),
    "a number beyond single precision": ('%w = tile.fill(%g, %i) {axes = "gi", value = 1e39} : tile<f32[1,6,1]>', "no number of f32"),
    "a guard that yields nothing": ("%q = tile.guard(%z) {least = 1.0} () { tile.yield() } : tile<f32[1,6,1]>", "yields"),
    "a guard of nothing": ("tile.guard() {least = 1.0} () { tile.yield() }", "takes tiles"),
    "numbers added to integers": ('tile.store(%y, %whole, %g, %i) {axes = "gi", add = true}', "does not fit"),
}  # fmt: skip
WHOLE = {
    "three sizes": ('%v = tile.token(%x) {program = fn(q: f[bhi]) => q, axes = "bhi", sizes = [1,2,6], flat = true} : f32[2,6]', "four extents"),
    "another type than is made": ('%v = tile.token(%x) {program = fn(q: f[bhi]) => q, axes = "bhi", sizes = [1,2,6,6], flat = true} : f32[2,60]', "makes f32"),
    "queries for keys": ('%v = tile.token(%x) {program = fn(q: f[bhi]) => q, axes = "bhj", sizes = [1,2,6,6], flat = true} : f32[2,6]', "depends on i"),
    "an operand of other sizes": ('%v = tile.token(%x) {program = fn(q: f[bhi]) => q, axes = "bhi", sizes = [1,2,5,6], flat = true} : f32[2,5]', "can be 1 or 5"),
    "a gradient over no axes": ('%v = tile.gradient(%x, %x) {program = fn(q: f[bhi]) => q, axes = "zz", sizes = [1,2,6,6], add = false} : f32[1,2,6]', "no axes"),
    "nothing to add": ('%v = tile.gradient(%x) {program = fn() => 2.0, axes = "bhi", sizes = [1,2,6,6], add = true} : f32[1,2,6]', "given none"),
    "other entries": ("%v = tile.finish(%x) {factor = 2.0} : f32[5]", "entries"),
    "a mask without its capture": ("%v = tile.classify() {mask = fn(n: i[b]) => j <= n, rows = 1, cols = 6, sizes = [1,2,6,6], heads = 1} : runs[1,1,6]", "values are bound"),
    "no heads": ("%v = tile.classify() {mask = fn() => j <= i, rows = 1, cols = 6, sizes = [1,2,6,6], heads = 0} : runs[0,1,6]", "heads = 0"),
    "no rows": ("%v = tile.classify() {mask = fn() => j <= i, rows = 0, cols = 6, sizes = [1,2,6,6], heads = 1} : runs[1,0,6]", "rows = 0"),
    "negative sizes": ("%v = tile.classify() {mask = fn() => j <= i, rows = 1, cols = 6, sizes = [1,-2,6,6], heads = 1} : runs[1,1,6]", "negative sizes"),
    "lengths of integers": ("%n = tile.alloc() {fill = 0.0} : i64[3]\n%v = tile.peak(%n) {rows = true} : i64[]", "measures"),
    "runs returned": ("%v = tile.classify() {mask = fn() => j <= i, rows = 1, cols = 6, sizes = [1,2,6,6], heads = 1} : runs[1,1,6]", "returns buffers"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_an_operation_that_does_not_fit_its_tiles_is_refused(name):
    line, message = LINES[name]
    text = loops(lines(load(), FILL, line, store("y")), before="  %whole = tile.alloc() {fill = 0.0} : i64[2,6]")
    with pytest.raises(VerifyError, match=message):
        parse(text)
    parse(text.replace(line, ""))


@pytest.mark.parametrize("name", WHOLE)
def test_an_operation_that_does_not_fit_its_buffers_is_refused(name):
    line, message = WHOLE[name]
    with pytest.raises(VerifyError, match=message):
        parse(func(f"{line}\n  tile.return(%v)", "%x: f32[1,2,6]"))


TABLES = {
    "no entry": ("f32[0]", "t", 1, "[1,2,6,6]", "%g", "may be empty"),
    "one position of two": ("f32[5,3]", "tu", 1, "[1,2,6,6]", "%g", "1 positions"),
    "another rank": ("f32[5]", "ht", 1, "[1,2,6,6]", "%g", "no table"),
    "problems at a position of rows": ("f32[2,5]", "bt", 1, "[2,1,6,6]", "%i", "axis g is accessed"),
    "no heads at all": ("f32[2,5]", "bt", 1, "[2,0,6,6]", "%g", "past the 0 problems"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_none_is_refused(name):
    t, axes, n, sizes, at, message = TABLES[name]

    def text(t, axes, sizes, at):
        line = f'%r = tile.lookup(%y, {at}, %t) {{positions = [{", ".join(["fn(a: f[bhi]) => a"] * n)}], axes = "{axes}", sizes = {sizes}}} : tile<f32[1,6,1]>'
        return loops(lines(load("t"), line, store("r")), args=f"%x: f32[2,6], %y: {t}")

    with pytest.raises(VerifyError, match=message):
        parse(text(t, axes, sizes, at))
    check(text("f32[5]", "t", "[1,2,6,6]", "%g"), X, torch.rand(5))
