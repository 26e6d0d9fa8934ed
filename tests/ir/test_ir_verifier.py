"""Every rule of the verifier, broken once."""
# ruff: noqa: E501  (IR texts keep their lines)

import pytest

from aatc.ir import Dim, Func, Module, Op, Operand, Symbol, TensorType, TileType, Value
from aatc.ir.core import Block
from aatc.ir.errors import VerifyError
from aatc.ir.parser import parse
from aatc.ir.registry import TorchConst
from aatc.ir.types import INDEX, ListType, PairType
from tests.ir.samples import GEO, SAMPLES, TILE

F4 = TensorType.of("f32", [4])


@pytest.mark.parametrize("text", SAMPLES.values(), ids=SAMPLES)
def test_the_samples_are_sound(text):
    module = parse(text)
    assert module.verify() is module
    assert module.clone().verify() == module


JS = (
    '  %js = tile.token() {program = fn() => j, axes = "bhj", sizes = [1, 2, dim(N), dim(M)], flat = true} : f64[2,M]\n'
)
PACK = '  %bp = tile.pack(%b) {axes = "gjd"} : f64[2,M,4; panels(8)]\n'
#: What is changed in a sample, and what the verifier says.
BROKEN_TEXTS = {
    # per operation
    "a missing attribute": (GEO, '{kind = "mean"}', "", "lacks attribute kind"),
    "an unknown attribute": (GEO, '{kind = "mean"}', '{kind = "mean", extra = 1}', "no attribute extra"),
    "an attribute of another type": (GEO, '{kind = "mean"}', "{kind = 1}", "which it cannot be"),
    "a truth in place of an integer": (TILE, "step = 8", "step = true", "which it cannot be"),
    "a value that is not a choice": (GEO, '{kind = "mean"}', '{kind = "median"}', "median"),
    "too few operands": (GEO, "geo.aggregate(%p, %c)", "geo.aggregate(%p)", "takes operands"),
    "a wrong result type": (GEO, "pair<f64[1,2,N,M,4]>", "pair<f64[1,2,N,M,5]>", "yields"),
    "wrong axes of a capture": (GEO, "beta: f[h])", "beta: f[bh])", "axes 'bh'"),
    "a score that is no number": (GEO, "fn() => j <= i + 3", "fn() => j - i", "truth value"),
    "an operand number out of range": (GEO, "args = [#0, 1.0]", "args = [#7, 1.0]", "operand #7"),
    "a list where names should be": (TILE, 'names = ["q", "k", "v"]', "names = [[], [], [1]]", "names"),
    "names that are no identifiers": (TILE, 'names = ["q", "k", "v"]', 'names = ["q", "k", "v; import os"]', "names"),
    "gradients of nothing": (TILE, "grads = []", 'grads = ["w"]', "not among its names"),
    "keywords that are no identifiers": (GEO, "kwargs = []", 'kwargs = ["x=1, y"]', "keyword arguments"),
    "more keywords than arguments": (GEO, "kwargs = []", 'kwargs = ["a", "b", "c"]', "more keyword"),
    "an operation that needs a tensor": (GEO, "%q: f64[1,2,N,4], %k", "%q: int, %k", "must be a tensor"),
    "a rule that meets nonsense": (GEO, "%q: f64[1,2,N,4], %k", "%q: f64[1,2], %k", "rank 4"),
    "scores where weights should be": (GEO, "geo.aggregate(%p, %c)", "geo.aggregate(%s, %c)", "what a geo.normalize makes"),
    "weights where scores should be": (GEO, "geo.aggregate(%p, %c) {", "geo.aggregate(%c, %c) {", "must be a pair|geo.normalize"),
    "keys wider than queries": (GEO, "%k: f64[1,2,M,4]", "%k: f64[1,2,M,5]", "vectors of 4 and 5 channels"),
    "values of another length": (GEO, "%v: f64[1,2,M,4]", "%v: f64[1,2,3,4]", "3 values for M keys"),
    "key heads that queries cannot share": (GEO, "%k: f64[1,2,M,4]", "%k: f64[1,3,M,4]", "2 query heads cannot share 3"),
    "value heads that queries cannot share": (GEO, "%v: f64[1,2,M,4]", "%v: f64[1,3,M,4]", "2 query heads cannot share 3"),
    "a table of one axis at two positions": (GEO, "beta: f[h]) => -(beta * ", "beta: f[t]) => -(lookup(beta, i, j) * ", "a table of 1 axes and 2 positions"),
    # levels
    "a tile type in a geo function": (GEO, "%y = torch.call(%o, %lse)", None, "tile level only"),
    "a tile operation in a geo function": (GEO, "%c = geo.transport", None, "belongs to level tile"),
    "a geo operation in a tile function": (TILE, "  %o = tile.token(%acc_all)", None, "belongs to level geo"),
    "an undeclared dimension of an argument": (GEO, "%q: f64[1,2,N,4], %k", "%q: f64[1,2,L,4], %k", "dimension L|pair"),
    "an undeclared dimension": (GEO, "dims {N in [1, inf], M in [2, 4096]}", "dims {N in [1, inf]}", "dimension M"),
    "an undeclared dimension in an attribute": (TILE, "upper = dim(N), step = 8", "upper = dim(L), step = 8", "dimension L"),
    "an empty range": (GEO, "M in [2, 4096]", "M in [5, 4]", "range"),
    "a negative range": (GEO, "M in [2, 4096]", "M in [-2, 4]", "range"),
    # calls
    "an unknown function": (GEO, "@half}", "@quarter}", "no function @quarter"),
    "a call with other arguments": (GEO, "geo.checkpoint(%y)", "geo.checkpoint(%lse)", "takes"),
    "a function that calls itself": (GEO, "%0 = torch.call(%x) {target = \"aten.mul.Tensor\", args = [#0, 0.5]}", "%0 = geo.checkpoint(%x) {body = @half}", "calling itself"),
    "a circle of calls": (GEO, "%0 = torch.call(%x) {target = \"aten.mul.Tensor\", args = [#0, 0.5]}", None, "calling itself"),
    "a kernel that is no tile function": (TILE, "forward = @attend", "forward = @main", "not a tile function"),
    "a backward that takes what a forward does": (TILE, "backward = @nothing", "backward = @attend", r"@attend takes .*, it is given \(f64.1,2,N,4., f64.1,2,N., f64.1,2,N,4., f64.1,2,M,4., f64.1,2,M,4.\)"),
    "a backward that is no tile function": (TILE, "backward = @nothing", "backward = @main", "@main is not a tile function"),
    "a backward without its gradients": (TILE, "grads = []", 'grads = ["q", "v"]', r"@nothing returns \(\), not \(f64.1,2,N,4., f64.1,2,M,4.\)"),
    "a backward with other gradients": (TILE, "tile.return()", "tile.return(%q)", r"returns \(f64.1,2,N,4.\), not \(\)"),
    "a backward that saw no statistics": (TILE, "tile.return(%o, %lse)", "tile.return(%o, %lse, %acc_all)", r"given \(f64.1,2,N,4., f64.1,2,N., f64.2,N,4., "),
    "a second version with another backward": (TILE, "grads = []", 'grads = [], exact = @attend, exact_backward = @nothing, exact_grads = ["k"]', r"@nothing returns \(\), not"),
    "a second version with another forward": (TILE, "grads = []", "grads = [], whole_forward = @nothing, whole_backward = @nothing, whole_grads = []", "@nothing takes"),
    "axes that are no words": (TILE, "grads = []", "grads = [], axes = [1, 2, 3]", "axes of q are 1; its programs read 'bhid'"),
    "axes of fewer names": (TILE, "grads = []", 'grads = [], axes = ["bhid"]', "1 axes for 3 names"),
    "axes that the programs do not read": (TILE, "grads = []", 'grads = [], axes = ["bhid", "bhid", "bhjd"]', "axes of k are 'bhid'; its programs read 'bhjd'"),
    "a mask and captures without axes": (TILE, '(%q, %k, %v) {names = ["q", "k", "v"],', '(%q, %k, %v, %v) {mask = fn(w: f[bhjd]) => sum(w) > 0.0, names = ["q", "k", "v", "w"],', "with a mask and captures it needs axes"),
    "a schedule of a tile function that is none": (TILE, "split(i, 8) split(j, 16)", "split(zz", "schedule of @attend, column"),
    "a schedule that is no text": (TILE, 'schedule = "split(i, 8) split(j, 16)"', "schedule = 3", "schedule of @attend is 3"),
    # accesses
    "a loop longer than a buffer": (TILE, "upper = dim(N), step = 8", "upper = dim(N+1), step = 8", "out of bounds"),
    "a loop over another length": (TILE, "upper = dim(N), step = 8", "upper = dim(M), step = 8", "out of bounds"),
    "too many problems": (TILE, "upper = 2, step = 1", "upper = 3, step = 1", "out of bounds"),
    "a sweep longer than the keys": (TILE, "upper = dim(M), step = 16", "upper = dim(M+1), step = 16", "out of bounds"),
    "a step that does not fit into a tile": (TILE, "upper = dim(N), step = 8", "upper = dim(N), step = 9", "holds 8"),
    "a sweep whose runs do not fit": (TILE, "upper = dim(M), step = 16", "upper = dim(M), step = 20", "holds 16"),
    "a tile without room for features": (TILE, "%c = tile.token(%v) {program = fn(v: f[bhjd]) => v, axes = \"bhjd\", sizes = [1, 2, dim(N), dim(M)], flat = true} : f64[2,M,4]", "%c = tile.alloc() : f64[2,M,5]", "no room"),
    "a position that is no loop's": (TILE, "(%q: f64[1,2,N,4], %k: f64[1,2,M,4], %v: f64[1,2,M,4]) {schedule", None, "makes a buffer of numbers, not index"),
    "a buffer of another rank": (TILE, "tile.store(%lt, %lse_all, %g, %i)", "tile.store(%lt, %acc_all, %g, %i)", "rank"),
    "too few positions": (TILE, "tile.load(%a, %g, %i)", "tile.load(%a, %g)", "positions"),
    "a body that yields other types": (TILE, "tile.yield(%top, %l2, %acc2)", "tile.yield(%top, %acc2, %l2)", "must yield"),
    # layouts
    "a layout at the geo level": (GEO, "%q: f64[1,2,N,4], %k", "%q: f64[1,2,N,4; rows], %k", "buffers of the tile level"),
    "a layout that the caller does not promise": (TILE, "@attend(%q: f64[1,2,N,4], %k", "@attend(%q: f64[1,2,N,4; rows], %k", "takes"),
    "panels that the caller does not have": (TILE, "@attend(%q: f64[1,2,N,4], %k", "@attend(%q: f64[1,2,N,4; panels(2)], %k", "takes"),
    "a layout that nobody makes": (TILE, JS, JS + "  %w = tile.finish(%b) {factor = 1.0} : f64[2,M,4; rows]\n", "makes no buffer of layout rows"),
    "panels by another operation": (TILE, "%acc_all = tile.alloc() : f64[2,N,4]", "%acc_all = tile.alloc() : f64[2,N,4; panels(8)]", "takes a buffer with strides"),
    "panels without panels": (TILE, JS, JS + PACK.replace("; panels(8)", ""), r"yields f64.2,M,4; panels\(n\)., not f64.2,M,4."),
    "panels of another shape": (TILE, JS, JS + PACK.replace("M,4; p", "M,5; p"), "yields f64.2,M,4; panels"),
    "panels of numbers": (TILE, JS, JS + PACK.replace("(%b)", "(%js)"), "problems, tokens and features"),
    "panels of panels": (TILE, JS, JS + PACK + PACK.replace("(%b)", "(%bp)").replace("%bp =", "%bq ="), "takes a buffer with strides"),
    "panels read by another operation": (TILE, JS, JS + PACK + "  %w = tile.peak(%bp) {rows = true} : f64[]\n", "takes a buffer with strides"),
    "panels handed out": (TILE, JS, JS + PACK, "takes a buffer with strides"),
    # storage
    "two results in one place": (TILE, "%top = tile.reduce(%masked, %m1) {op = \"max\", over = \"j\", cpu.plan = [2432]}", "%top = tile.reduce(%masked, %m1) {op = \"max\", over = \"j\", cpu.plan = [0]}", "arena"),
    "a place inside the slot of another": (TILE, "cpu.plan = [2432]", "cpu.plan = [2176]", "arena"),
    "a partial overlap": (TILE, "cpu.plan = [2432]", "cpu.plan = [2160]", "arena"),
    "a slot over what is read in the body": (TILE, "value = -1e+38, axes = \"gi\", cpu.plan = [2048]", "value = -1e+38, axes = \"gi\", cpu.plan = [2112]", "arena"),
    "slots that overlap": (TILE, "cpu.plan = [2048, 2112, 2176]", "cpu.plan = [2048, 2080, 2176]", "arena"),
    "an argument overwritten before its last use": (TILE, "over = \"j\", cpu.plan = [2432]", "over = \"j\", cpu.plan = [2048]", "arena"),
    "a contraction into its own operand": (TILE, "%acc2 = tile.dot(%p, %ct, %accs) {form = \"nn\", cpu.plan = [2176]}", "%acc2 = tile.dot(%p, %ct, %accs) {form = \"nn\", cpu.plan = [0]}", "arena"),
    "an arena that is too small": (TILE, "cpu.arena = 3072", "cpu.arena = 2400", "arena of 2400"),
    "a temporary past the arena": (TILE, "cpu.scratch = [2560, 1024]", "cpu.scratch = [3000, 1024]", "arena of 3072"),
    "a temporary over a live tile": (TILE, "cpu.scratch = [2560, 1024]", "cpu.scratch = [2560, 1020]", "arena"),
    "a missing temporary": (TILE, ", cpu.scratch = [2560, 1024]", "", "temporaries"),
    "a negative temporary": (TILE, "cpu.scratch = [2560, 1024]", "cpu.scratch = [-8, 1024]", "scratch"),
    "an offset that is not aligned": (TILE, "cpu.plan = [2432]", "cpu.plan = [2433]", "multiple"),
    "an offset that is no number": (TILE, "cpu.plan = [2432]", "cpu.plan = [none]", "offset"),
    "a negative offset": (TILE, "cpu.plan = [2432]", "cpu.plan = [-2]", "offset"),
    "a reduction to another shape": (TILE, "cpu.plan = [2432]} : tile<f64[1,8,1]>", "cpu.plan = [2432]} : tile<f64[1,8,N]>", "yield"),
    "a loop's place without a size": (TILE, "%acc_all = tile.alloc() : f64[2,N,4]", "%acc_all = tile.alloc() {cpu.plan = [0]} : f64[2,N,4]", "no largest size"),
    "a place with a strange size": (TILE, "%acc_all = tile.alloc() : f64[2,N,4]", "%acc_all = tile.alloc() : f64[2,N,4]\n  %w = tile.alloc() {cpu.plan = [0]} : f64[1,8-N,1]", "malformed"),
    "a tile of a size that is no number": (TILE, "%lt = tile.map", "%w = tile.fill(%g, %i) {value = 0.0, axes = \"gi\"} : tile<f64[1,N,1]>\n      %lt = tile.map", "numbers"),
    "a program no tile can run": (TILE, "fn(c: f[bhid], l: f[bhi]) => c / l", "fn(c: f[bhid], l: f[bhi]) => sum(c) / l", "element by element"),
    "temporaries without a plan": (TILE, "{value = 0.0, axes = \"gi\", cpu.plan = [2112]}", "{value = 0.0, axes = \"gi\", cpu.scratch = [0]}", "temporaries"),
    "sizes that are no sizes": (TILE, "%it = tile.load(%is, %g, %i) {axes = \"gi\"}", "%it = tile.load(%q, %g, %i) {axes = \"bhid\", sizes = [none]}", "four extents"),
    "places without an arena": (TILE, ", cpu.arena = 3072", "", "the arena of @attend, which has none"),
    "a negative arena": (TILE, "cpu.arena = 3072", "cpu.arena = -8", "the arena of @attend, which has none"),
    "a plan of another length": (TILE, "cpu.plan = [2048, 2112, 2176]", "cpu.plan = [2048, 2112]", "planned offsets"),
}  # fmt: skip
LONGER = {
    "a tile type in a geo function": (
        "} : f64[1,2,N,4] loc(\"model.py\":14:\"\\\"y\\\"\")", "} : tile<f64[1,2,N,4]>"),
    "a tile operation in a geo function": ("  %c = geo.transport", "  %t = tile.alloc() : f64[4]\n  %c = geo.transport"),
    "a geo operation in a tile function": (
        "  %o = tile.token(%acc_all)", "  %w = torch.call(%q) {target = \"aten.relu.default\", args = [#0]} : f64[1,2,N,4]\n  %o = tile.token(%acc_all)"),
    "a circle of calls": (
        '%0 = torch.call(%x) {target = "aten.mul.Tensor", args = [#0, 0.5]} : f64[1,2,N,4]\n  geo.return(%0)\n}\n',
        "%0 = geo.checkpoint(%x) {body = @third} : f64[1,2,N,4]\n  geo.return(%0)\n}\n\ngeo.func @third(%x: f64[1,2,N,4]) {\n"
        "  %0 = geo.checkpoint(%x) {body = @half} : f64[1,2,N,4]\n  geo.return(%0)\n}\n"),
    "a position that is no loop's": (
        "(%i: index) {\n      %m0", "(%other: index) {\n      %i = torch.call() {target = \"operator.add\", args = []} : index\n      %m0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_TEXTS)
def test_a_broken_text_is_refused(name):
    sample, old, new, message = BROKEN_TEXTS[name]
    if new is None:
        old, new = LONGER[name]
    assert sample.count(old) >= 1, "the sample no longer has what this test changes"
    text = sample.replace(old, new, 1)
    if name == "panels handed out":
        text = text.replace("tile.return(%o, %lse)", "tile.return(%o, %lse, %bp)")
        text = text.replace("%grad_lse: f64[1,2,N],", "%grad_lse: f64[1,2,N], %bp: f64[2,M,4; panels(8)],")
    if name == "a position that is no loop's":
        module = parse(text.replace('torch.call() {target = "operator.add", args = []}', "tile.alloc()"), verify=False)
        with pytest.raises(VerifyError, match=message):
            module.verify()
        return
    with pytest.raises(VerifyError, match=message) as caught:
        parse(text)
    assert caught.value.line is not None
    assert any(row.strip() == "^" for row in str(caught.value).split("\n"))
    with pytest.raises(VerifyError, match=message) as again:
        parse(text, verify=False).verify()
    if caught.value.op is not None:
        assert caught.value.op in str(again.value)


# --- modules that no text can describe -----------------------------------------------------------------------
def geo(*ops: Op, args=(), name: str = "main") -> Module:
    module = Module(dims={"N": (1, None)})
    module.add(Func(name, "geo", Block(args, ops)))
    return module


def call(*operands, results=(F4,), **attrs) -> Op:
    return Op("torch.call", operands, {"target": "t", "args": (), **attrs}, results)


def refuse(module: Module, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        module.verify()


def test_a_function_without_operations_is_refused():
    refuse(geo(), "must end with geo.return")


def test_a_function_that_does_not_return_is_refused():
    refuse(geo(call()), "must end with geo.return")


def test_operations_behind_the_return_are_refused():
    refuse(geo(Op("geo.return"), Op("geo.return")), "operations follow it")


def test_the_terminator_of_another_level_is_refused():
    refuse(geo(Op("tile.return")), "must end with geo.return")


def test_a_use_before_the_definition_is_refused():
    late = call()
    refuse(geo(call(late.result), late, Op("geo.return")), "before it is defined")


def test_a_use_out_of_scope_is_refused():
    inner = Op("tile.alloc", (), {}, [F4])
    position = Value(INDEX, "i")
    loop = Op(
        "tile.for",
        (),
        {"axis": "i", "upper": 4, "step": 2, "kind": "par"},
        regions=[Block([position], [inner, Op("tile.yield")])],
    )
    module = Module()
    module.add(Func("main", "tile", Block([], [loop, Op("tile.return", [inner.result])])))
    refuse(module, "out of its scope")
    module.funcs["main"].body.ops[-1].operands = [position]
    refuse(module, "out of its scope")


def test_an_operation_in_two_places_is_refused():
    op = call(results=())
    refuse(geo(op, op, Op("geo.return")), "two places")
    module = geo(op, Op("geo.return"))
    module.add(Func("second", "geo", Block([], [op, Op("geo.return")])))
    refuse(module, "two places")


def test_a_value_with_two_owners_is_refused():
    first, second = call(), call()
    second.results = first.results
    refuse(geo(first, second, Op("geo.return")), "two owners")
    stolen = call()
    stolen.results = [Value(F4, "s", owner=None)]
    refuse(geo(stolen, Op("geo.return")), "two owners")


def test_a_function_filed_under_another_name_is_refused():
    module = geo(Op("geo.return"))
    module.funcs["other"] = module.funcs.pop("main")
    refuse(module, "filed under")


@pytest.mark.parametrize("name", ["", "a b", "1x", "é", "a\nb"])
def test_illegal_names_are_refused(name):
    refuse(geo(Op("geo.return"), name=name), "no name of a function")
    refuse(geo(Op("geo.return", (), {name: 1})), "no name of an attribute")
    module = geo(Op("geo.return"))
    module.dims[name] = (1, 2)
    refuse(module, "no name of a dimension")


def test_an_unknown_level_is_refused():
    module = geo(Op("geo.return"))
    module.funcs["main"].level = "cuda"
    refuse(module, "level 'cuda'")


def test_an_unknown_operation_is_refused():
    refuse(geo(Op("geo.nothing"), Op("geo.return")), "unknown operation")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "object cannot stand"), (({1: 2},), "dict cannot stand"), (2**70, "64 bits"), (TorchConst("torch", "load"), "torch.load"),
        (TorchConst("device", "disk"), "disk"), (Symbol("a b"), "no name of a function"), (Symbol("nowhere"), "no function @nowhere"),
        (Operand(3), "operand #3"), (Dim.of("L"), "dimension L"), (TensorType.of("f32", ["L"]), "dimension L"),
        (TensorType.of("f32", [-1]), "negative extent"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,  # alike in every process
)  # fmt: skip
def test_attributes_that_no_text_can_carry_are_refused(value, message):
    refuse(geo(call(args=((value,),)), Op("geo.return")), message)


def test_illegal_attributes_of_functions_are_refused():
    module = geo(Op("geo.return"))
    module.funcs["main"].attrs["x"] = object()
    refuse(module, "attribute of @main")


@pytest.mark.parametrize("t", [PairType("f32", F4.shape), ListType(PairType("f32", F4.shape))])
def test_types_of_the_other_level_are_refused(t):
    module = Module()
    module.add(Func("main", "tile", Block([Value(t)], [Op("tile.return")])))
    refuse(module, "geo level only")
    refuse(geo(Op("geo.return"), args=[Value(TileType("f32", F4.shape))]), "tile level only")


def test_errors_name_the_operation_and_its_place_in_the_model():
    module = parse(GEO.replace("beta: f[h])", "beta: f[bh])"), verify=False)
    with pytest.raises(VerifyError) as caught:
        module.verify()
    assert caught.value.where == "model.py:12"
    assert caught.value.op.startswith("%s = geo.metric(%q, %k, %beta)")


# --- what the storage rules allow ----------------------------------------------------------------------------
ALLOWED = {
    "overwriting an operand that dies": ("over = \"j\", cpu.plan = [2432]", "over = \"j\", cpu.plan = [2432]"),
    "a tile in the place of a dead one": ("%lt = tile.map(%l, %m) {programs = [fn(l: f[bhi], m: f[bhi]) => m + log(l)], cpu.plan = [0]}",
                                        "%lt = tile.map(%l, %m) {programs = [fn(l: f[bhi], m: f[bhi]) => m + l], cpu.plan = [2048]}"),
    "an unplanned tile": ("over = \"j\", cpu.plan = [2432]", "over = \"j\""),
    "a loop that is shorter than its buffer": ("upper = 2, step = 1", "upper = 1, step = 1", "tile.alloc()", "tile.alloc() {fill = 0.0}"),
    "a step larger than the whole axis": ("axis = \"g\", upper = 2, step = 1", "axis = \"g\", upper = 1, step = 4",
                                        "tile.alloc()", "tile.alloc() {fill = 0.0}", "heads = 1} : runs[1", "heads = 4} : runs[4"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_sound_changes_are_allowed(name):
    text = TILE
    for old, new in zip(ALLOWED[name][::2], ALLOWED[name][1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    parse(text)
