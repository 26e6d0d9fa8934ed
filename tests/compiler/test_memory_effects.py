"""Mutation and aliasing: which values share memory, and what folding, merging and dead code make of it."""

import pytest
import torch

import aatc
from aatc import passes
from aatc.ir import effects
from aatc.ir.core import Module
from aatc.ir.effects import Memory, changes_arguments, effect_of
from aatc.ir.parser import parse
from bench import large_graphs

#: What stands for what in the planted texts.
WORDS = {
    "zeros": 'torch.call() {target = "aten.zeros.default", args = [[4]]}',
    "ones": 'torch.call() {target = "aten.ones.default", args = [[4]]}',
    "clone": 'torch.call(%s) {target = "aten.clone.default", args = [#0]}',
    "view": 'torch.call(%s) {target = "aten.view.default", args = [#0, [4]]}',
    "reshape": 'torch.call(%s) {target = "aten.reshape.default", args = [#0, [4]]}',
    "to": 'torch.call(%s) {target = "aten.to.dtype", args = [#0, torch.float32]}',
    "contiguous": 'torch.call(%s) {target = "aten.contiguous.default", args = [#0]}',
    "exp": 'torch.call(%s) {target = "aten.exp.default", args = [#0]}',
    "neg": 'torch.call(%s) {target = "aten.neg.default", args = [#0]}',
    "type_as": 'torch.call(%s, %s) {target = "aten.type_as.default", args = [#0, #1]}',
    "add_": 'torch.call(%s, %s) {target = "aten.add_.Tensor", args = [#0, #1]}',
    "mul_": 'torch.call(%s) {target = "aten.mul_.Scalar", args = [#0, 2.0]}',
    "normal_": 'torch.call(%s) {target = "aten.normal_.default", args = [#0]}',
    "set_": 'torch.call(%s, %s) {target = "aten.set_.source_Tensor", args = [#0, #1]}',
    "add_out": 'torch.call(%s, %s, %s) {target = "aten.add.out", args = [#0, #1, #2], kwargs = ["out"]}',
    "rand_like": 'torch.call(%s) {target = "aten.rand_like.default", args = [#0]}',
}


def program(text: str, *arguments: str) -> Module:
    """``y = exp(x); add_(z, y); return y, z`` as a module: one statement per semicolon, no attribute says effect."""
    lines, count = [], 0
    for statement in filter(None, map(str.strip, text.split(";"))):
        if statement.startswith("return"):
            names = statement.removeprefix("return").replace(",", " ").split()
            lines.append(f"  geo.return({', '.join('%' + n for n in names)})")
            continue
        result, sep, call = statement.partition(" = ")
        if not sep:
            result, call, count = f"r{count}", statement, count + 1
        word, _, given = call.partition("(")
        operands = ["%" + n for n in given.rstrip(")").replace(",", " ").split()]
        shown = WORDS[word] % tuple(operands)
        lines.append(f"  %{result} = {shown} : f32[4]")
    head = ", ".join(f"%{a}: f32[4]" for a in arguments)
    return parse("geo.func @main(" + head + ") {\n" + "\n".join(lines) + "\n}\n")


def left(module: Module, pipeline: str) -> str:
    """The operations a pipeline leaves, by the last word of their targets."""
    result = passes.Pipeline.parse(pipeline).run(module).module
    ops = result.entry.body.ops[:-1]
    return " ".join("constant" if o.name == "geo.constant" else o.attrs["target"].split(".")[1] for o in ops)


def places(values: list[torch.Tensor]) -> list[list[bool]]:
    """Which tensors start at the same byte."""
    return [[x.data_ptr() == y.data_ptr() for x in values] for y in values]


def identities(values: list[torch.Tensor]) -> list[list[bool]]:
    """Which results are one object."""
    return [[x is y for x in values] for y in values]


def compiled(module: Module, backend: str = "auto") -> aatc.backends.Program:
    found = aatc.backends.get(backend)
    return found.build(aatc.backends.pipeline(backend).run(module, target=found.target()).module)


def same_after(module: Module, *inputs: torch.Tensor) -> None:
    """The compiled program against the interpreter of the unchanged text, on two calls: results, what becomes of the
    inputs, and which of them share memory."""
    program = compiled(module)
    for _ in range(2):
        mine, theirs = [x.clone() for x in inputs], [x.clone() for x in inputs]
        got, want = program.main(*mine), aatc.run(module, *theirs)
        got, want = [*got, *mine], [*(want if isinstance(want, tuple) else (want,)), *theirs]
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        assert places(got) == places(want) and identities(got) == identities(want)
        for result in got:
            result.add_(1)  # what the caller does with results is nothing to the next call


# --- what shares memory with what --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, arguments, classes",
    [
        ("a = exp(x); return a", "x", "x|a"),
        ("a = view(x); return a", "x", "x a"),
        ("a = reshape(x); return a", "x", "x a"),
        ("a = zeros(); b = type_as(a, x); return b", "x", "x a b"),
        ("a = zeros(); b = mul_(a); return b", "x", "a b|x"),
        ("a = zeros(); b = set_(a, x); return b", "x", "x a b"),
        ("a = zeros(); b = add_out(x, x, a); return b", "x", "x|a b"),
        ("a = exp(x); return a", "x y", "x y|a"),
    ],
)
def test_values_that_may_share_memory_are_one_class(text, arguments, classes):
    module = program(text, *arguments.split())
    memory = Memory(module.entry, module)
    values = {v.name: v for v in [*module.entry.args, *(r for op in module.walk() for r in op.results)]}
    groups = [group.split() for group in classes.split("|")]
    roots = [{memory.root(values[n]) for n in group} for group in groups]
    assert all(len(r) == 1 for r in roots)
    assert len(set().union(*roots)) == len(groups)


def test_operators_that_write_are_known_by_their_schema():
    module = program("a = zeros(); mul_(a); add_(a, x); normal_(a); add_out(x, x, a); b = exp(a); return b", "x")
    writes = [effect_of(op).writes for op in module.entry.body.ops[:-1]]
    assert writes == [(), (0,), (0,), (0,), (2,), ()]
    ordered = [effect_of(op).ordered for op in module.entry.body.ops[:-1]]
    assert ordered == [False, False, False, True, False, False]


def test_running_twice_matters_only_where_arguments_are_written():
    assert changes_arguments(program("mul_(x); return x", "x"))
    assert changes_arguments(program("a = view(x); mul_(a); return x", "x"))
    assert not changes_arguments(program("a = clone(x); mul_(a); return a", "x"))


def body(call: str, name: str = "body") -> str:
    return f"""geo.func @{name}(%a: f32[4], %b: f32[4]) {{
  %c = {call} : f32[4]
  geo.return(%c)
}}
"""


@pytest.mark.parametrize(
    "call, writes, shares",
    [
        ('torch.call(%a) {target = "aten.exp.default", args = [#0]}', False, False),
        ('torch.call(%a) {target = "aten.view.default", args = [#0, [4]]}', False, True),
        ('torch.call(%a) {target = "aten.mul_.Scalar", args = [#0, 2.0]}', True, True),
        ("geo.checkpoint(%b, %a) {body = @inner}", True, True),
    ],
)
def test_checkpointed_bodies_have_the_effects_of_what_they_hold(call, writes, shares):
    inner = body('torch.call(%b) {target = "aten.mul_.Scalar", args = [#0, 2.0]}', "inner")
    text = """geo.func @main(%x: f32[4], %y: f32[4]) {
  %p = torch.call(%x) {target = "aten.clone.default", args = [#0]} : f32[4]
  %r = geo.checkpoint(%p, %y) {body = @body} : f32[4]
  geo.return(%r)
}
"""
    module = parse(text + body(call) + (inner if "@inner" in call else ""))
    op = module.entry.body.ops[1]
    effect = effect_of(op, module)
    assert (bool(effect.writes), bool(effect.shares)) == (writes, shares)
    assert changes_arguments(module) is writes
    same_after(module, torch.randn(4), torch.randn(4))


# --- folding -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, expected",
    [
        ("a = zeros(); b = exp(a); c = neg(b); return c", "constant constant constant"),
        ("a = zeros(); b = view(a); mul_(b); c = exp(a); return c", "constant view mul_ exp"),
        ("a = zeros(); b = view(a); return a, b", "constant view"),
        ("a = zeros(); b = reshape(a); c = neg(b); return c", "constant constant constant"),
        ("a = zeros(); b = exp(a); mul_(b); return b", "constant constant mul_"),
        ("a = zeros(); b = rand_like(a); return b", "constant rand_like"),
    ],
)
def test_only_what_is_never_written_is_folded(text, expected):
    assert left(program(text), "fold-constants") == expected
    if "rand" not in text:
        same_after(program(text))


# --- merging -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, expected",
    [
        ("a = clone(x); b = clone(x); return a, b", "clone clone"),
        ("a = exp(x); b = exp(x); c = neg(a); d = neg(b); e = add_(c, d); return e", "exp neg neg add_"),
        (
            "a = exp(x); b = exp(x); c = view(b); mul_(c); d = neg(a); e = neg(b); return d, e",
            "exp exp view mul_ neg neg",
        ),
        ("a = exp(x); mul_(x); b = exp(x); c = neg(a); d = neg(b); return c, d", "exp mul_ exp neg neg"),
        ("a = exp(x); mul_(y); b = exp(x); c = neg(a); d = neg(b); return c, d", "exp mul_ exp neg neg"),
        ("a = view(x); b = view(x); mul_(a); c = exp(b); return c", "view mul_ exp"),
        ("a = view(x); b = view(x); return a, b", "view view"),
        # what may hand back the very tensor it is given
        ("a = view(x); b = view(x); c = to(a); d = to(b); return c, d", "view view to to"),
        ("a = view(x); b = view(x); c = contiguous(a); d = to(b); return c, d", "view view contiguous to"),
        ("a = zeros(); b = zeros(); c = exp(a); d = neg(b); e = type_as(c, d); return e", "zeros exp neg type_as"),
        ("a = zeros(); b = zeros(); mul_(a); c = exp(a); d = exp(b); return c, d", "zeros zeros mul_ exp exp"),
        ("a = rand_like(x); b = rand_like(x); c = exp(a); d = exp(b); return c, d", "rand_like rand_like exp exp"),
    ],
)
def test_only_what_nobody_can_tell_apart_is_merged(text, expected):
    module = program(text, "x", "y")
    assert left(module, "common-subexpressions") == expected
    if "rand" not in text:
        same_after(module, torch.randn(4), torch.randn(4))


# --- dead code ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, expected",
    [
        ("a = exp(x); b = neg(x); return b", "neg"),
        ("mul_(x); b = neg(y); return b", "mul_ neg"),
        ("a = view(x); mul_(a); b = neg(y); return b", "view mul_ neg"),
        ("a = clone(x); mul_(a); b = neg(y); return b", "neg"),
        ("a = clone(x); b = view(a); mul_(b); c = neg(a); return c", "clone view mul_ neg"),
        ("a = clone(x); b = neg(a); mul_(a); return b", "clone neg"),
        ("a = clone(x); mul_(a); return a", "clone mul_"),
        ("a = clone(x); add_out(x, x, a); return a", "clone add"),
        ("a = clone(x); normal_(a); b = neg(x); return b", "clone normal_ neg"),
        ("a = rand_like(x); b = neg(x); return b", "rand_like neg"),
    ],
)
def test_a_write_goes_only_when_nobody_reads_its_target_later(text, expected):
    module = program(text, "x", "y")
    assert left(module, "dead-code") == expected
    if "rand" not in text and "normal" not in text:
        same_after(module, torch.randn(4), torch.randn(4))


# --- what writes and does not say so ------------------------------------------------------------------------
#: operator: (operands written, arguments behind the tensors if it writes and if it does not, results, does it run here)
UNTOLD = {
    "batch_norm": ((3, 4), "true, 0.5, 0.001, false", "false, 0.5, 0.001, false", 1, True),
    "native_batch_norm": ((3, 4), "true, 0.5, 0.001", "false, 0.5, 0.001", 3, True),
    "_batch_norm_impl_index": ((3, 4), "true, 0.5, 0.001, false", "false, 0.5, 0.001, false", 5, True),
    "cudnn_batch_norm": ((3, 4), "true, 0.5, 0.001", "false, 0.5, 0.001", 4, False),
    "miopen_batch_norm": ((3, 4), "true, 0.5, 0.001", "false, 0.5, 0.001", 3, False),
    "instance_norm": ((3, 4), "true, 0.5, 0.001, false", "false, 0.5, 0.001, false", 1, True),
    "_native_batch_norm_legit": ((3, 4), "true, 0.5, 0.001", "false, 0.5, 0.001", 3, True),
    "_batch_norm_with_update": ((3, 4), "0.5, 0.001", None, 4, True),
    "_copy_from": ((1,), "false", None, 1, False),
    "_copy_from_and_resize": ((1,), "", None, 1, False),
}


def twice_and_unread(name: str, rest: str, count: int) -> Module:
    """Two equal calls of an operator whose first results are added, and one that nobody reads."""
    tensors = 2 if name.startswith("_copy") else 5
    arguments = dict(zip("xwbmv", ("f32[2,3,5]", *["f32[3]"] * 4), strict=True))
    given = ", ".join(f"%{a}" for a in list(arguments)[:tensors])
    slots = ", ".join([*(f"#{n}" for n in range(tensors)), *filter(None, [rest])])
    types = ", ".join(["f32[2,3,5]", *["opaque"] * (count - 1)])
    lines = [
        f"  {', '.join(f'%{r}{n}' for n in range(count))} = torch.call({given}) "
        f'{{target = "aten.{name}.default", args = [{slots}]}} : {types}\n'
        for r in "cde"
    ]
    added = '  %s = torch.call(%c0, %d0) {target = "aten.add.Tensor", args = [#0, #1]} : f32[2,3,5]\n'
    head = ", ".join(f"%{a}: {t}" for a, t in arguments.items())
    return parse(f"geo.func @main({head}) {{\n{''.join(lines)}{added}  geo.return(%s)\n}}\n")


def test_every_operator_that_writes_untold_has_a_case():
    assert {name.removeprefix("aten::") for name in effects._WRITES_UNTOLD} == UNTOLD.keys()


@pytest.mark.parametrize("name", UNTOLD)
def test_what_an_operator_writes_untold_is_neither_merged_nor_dropped(name):
    """Running statistics move by every call in training, read or not."""
    written, on, off, count, runs = UNTOLD[name]
    module = twice_and_unread(name, on, count)
    assert [set(effect_of(op).writes) for op in module.entry.body.ops[:3]] == [set(written)] * 3
    for pipeline in ("common-subexpressions", "dead-code", "common-subexpressions,dead-code"):
        assert left(module, pipeline) == f"{name} {name} {name} add"
    inputs = [torch.randn(2, 3, 5), *(torch.rand(3) for _ in range(4))]
    if runs:
        mine = [x.clone() for x in inputs]
        aten = getattr(torch.ops.aten, name).default
        flags = {"true": True, "false": False}
        aten(*mine, *(flags[a] if a in flags else float(a) for a in on.split(", ")))
        assert [not torch.equal(x, y) for x, y in zip(mine, inputs, strict=True)] == [n in written for n in range(5)]
        same_after(module, *inputs)
    if off is not None:
        module = twice_and_unread(name, off, count)
        assert not any(n in (3, 4) for op in module.entry.body.ops[:3] for n in set(effect_of(op).writes) - told(name))
        if runs:
            same_after(module, *inputs)


def told(name: str) -> set[int]:
    """Operands that the schema says an operator writes."""
    schema = getattr(torch.ops.aten, name).default._schema
    return {n for n, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write}


# --- moving ------------------------------------------------------------------------------------------------
ATTENTION = """geo.func @main(%q: f64[1,1,3,2], %k: f64[1,1,3,2], %v: f64[1,1,3,2], %w: f64[1,1,3,2]) {
  %a = torch.call(%q) {target = "aten.clone.default", args = [#0]} : f64[1,1,3,2]
  AFTER_A
  %s = geo.metric(%a, %k) {score = fn(q: f[bhid], k: f[bhjd]) => METRIC} : pair<f64[1,1,3,3]>
  AFTER_SCORE
  %p, %lse = geo.normalize(%s) {kind = "softmax"} : pair<f64[1,1,3,3]>, f64[1,1,3]
  AFTER_NORMALIZE
  %t = geo.transport(%v, %s) {carry = fn(v: f[bhjd]) => v} : pair<f64[1,1,3,3,2]>
  AFTER_TRANSPORT
  %o = geo.aggregate(%p, %t) {kind = "mean"} : f64[1,1,3,2]
  geo.return(%o, RESULTS)
}
"""
WRITE = '%{0}2 = torch.call(%{0}) {{target = "aten.mul_.Scalar", args = [#0, 3.0]}} : f64[1,1,3,2]'
READ = '%r = torch.call(%lse) {target = "aten.exp.default", args = [#0]} : f64[1,1,3]'
KEEP = """%u = torch.call(%lse) {target = "aten.unsqueeze.default", args = [#0, -1]} : f64[1,1,3,1]
  %n = torch.call(%w, %u) {target = "aten.mul_.Tensor", args = [#0, #1]} : f64[1,1,3,2]"""


@pytest.mark.parametrize("metric", ["dot(q, k)", "-(dot(q - k, q - k))", "exp(dot(q, k))"])
@pytest.mark.parametrize(
    "places_of, results",
    [
        ({}, "%lse"),
        ({"AFTER_SCORE": WRITE.format("a")}, "%a"),
        ({"AFTER_SCORE": WRITE.format("k")}, "%k"),
        ({"AFTER_NORMALIZE": WRITE.format("v")}, "%v"),
        ({"AFTER_TRANSPORT": WRITE.format("v")}, "%v"),
        ({"AFTER_TRANSPORT": WRITE.format("k")}, "%lse"),
        ({"AFTER_NORMALIZE": READ}, "%r"),
        ({"AFTER_NORMALIZE": f"{READ}\n  {WRITE.format('v')}"}, "%r"),
        ({"AFTER_NORMALIZE": f"{READ}\n  {WRITE.format('a')}"}, "%r"),
        ({"AFTER_NORMALIZE": KEEP}, "%w"),
        ({"AFTER_NORMALIZE": KEEP.replace("%w", "%v")}, "%w"),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "native"])
def test_an_attention_reads_what_its_stages_read(places_of, results, metric, backend):
    text = ATTENTION.replace("METRIC", metric).replace("RESULTS", results)
    for place in ("AFTER_A", "AFTER_SCORE", "AFTER_NORMALIZE", "AFTER_TRANSPORT"):
        text = text.replace(place, places_of.get(place, ""))
    module = parse(text)
    inputs = [torch.randn(1, 1, 3, 2, dtype=torch.float64) for _ in range(4)]
    mine, theirs = [x.clone() for x in inputs], [x.clone() for x in inputs]
    got = compiled(module, backend).main(*mine)
    torch.testing.assert_close([*got, *mine], [*aatc.run(module, *theirs), *theirs])


# --- how long it takes -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(large_graphs.GRAPHS))
def test_four_times_the_operations_take_about_four_times_as_long(name):
    small, large = (large_graphs.graph(name, n) for n in (600, 2400))
    large_graphs.compile_seconds(small)
    times = [[large_graphs.compile_seconds(g) for g in (small, large)] for _ in range(2)]
    assert min(t[1] for t in times) < 8 * min(t[0] for t in times)  # the square would be 16
