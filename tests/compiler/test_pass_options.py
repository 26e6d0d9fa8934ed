"""Passes of users: their options as text, their place in the pipeline, their identity, and what they do to numbers."""

from dataclasses import dataclass, field, make_dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import aatc
from aatc import backends, passes
from aatc.errors import PassError
from aatc.ir.core import Module
from aatc.ir.parser import parse
from aatc.ir.score.expr import const, mul
from aatc.ir.score.program import Program
from aatc.passes import Pass, Pipeline, Placed
from tests.frontend import frontend_models as models


@pytest.fixture
def registered(monkeypatch):
    """Makes passes known for one test only."""
    monkeypatch.setattr(passes.base, "REGISTRY", dict(passes.REGISTRY))
    return passes.register


class Idle(Pass):
    def run(self, module: Module, ctx: passes.Context) -> Module:
        return module


# --- options ------------------------------------------------------------------------------------------------
_FLOATS = st.floats(allow_nan=False)
KINDS = {
    int: st.integers(),
    float: _FLOATS | st.integers(-9, 9).map(float),
    bool: st.booleans(),
    str: st.text(),
    int | None: st.none() | st.integers(),
    str | None: st.none() | st.text() | st.sampled_from(["none", "None", "true", "1", ""]),
    int | str: st.integers() | st.text() | st.integers().map(str),
    bool | float: st.booleans() | _FLOATS,
    tuple[int, ...]: st.lists(st.integers()).map(tuple),
    tuple[str, ...]: st.lists(st.text()).map(tuple),
    tuple[float, bool, str]: st.tuples(_FLOATS, st.booleans(), st.text()),
    tuple[tuple[int, ...], str | None]: st.tuples(st.lists(st.integers()).map(tuple), st.none() | st.text()),
    Literal["rows", "two words", 3]: st.sampled_from(["rows", "two words", 3]),
    Any: st.none() | st.booleans() | st.integers() | _FLOATS | st.text(),
}  # fmt: skip
ALL = make_dataclass(
    "Everything",
    [(f"option_{n}", kind, field(default=None)) for n, kind in enumerate(KINDS)],
    bases=(Idle,), namespace={"name": "everything", "__annotations__": {"name": ClassVar[str]}}, frozen=True,
)  # fmt: skip


@given(st.tuples(*KINDS.values()), st.integers(1, 3))
def test_every_option_reads_back_as_what_it_was(values, times):
    passes.REGISTRY["everything"] = ALL
    try:
        pipeline = Pipeline((ALL(*values),) * times)
        back = Pipeline.parse(str(pipeline))
        assert back == pipeline
        for f, g in zip(back.passes[0].__dict__.values(), pipeline.passes[0].__dict__.values(), strict=True):
            assert type(f) is type(g)
    finally:
        del passes.REGISTRY["everything"]


def test_options_are_read_as_their_annotations_say(registered):
    @registered
    @dataclass(frozen=True)
    class Typed(Idle):
        x: float = 1
        n: int = 0
        on: bool = False
        word: str = "a"
        shape: tuple[int, ...] = ()
        name: ClassVar[str] = "typed"

    (p,) = Pipeline.parse("typed{x=2 n=3, on=true word=5 shape=(1, 2)}").passes
    assert p == Typed(2.0, 3, True, "5", (1, 2)) and type(p.x) is float
    assert Pipeline.parse("typed{x=2.5}, typed").passes == (Typed(2.5), Typed())
    assert Pipeline.parse('typed{word="a, {b} \\"c\\""}').passes == (Typed(word='a, {b} "c"'),)
    for text in ("n=2.5", "n=true", "on=1", "shape=3", 'x="2"', "shape=(a)", "n=(1)", "on=None"):
        with pytest.raises(PassError, match=r"option .* of pass typed takes"):
            Pipeline.parse(f"typed{{{text}}}")
    for text in (
        "typed{n=1 n=2}",
        "typed{n}",
        "typed{n=}",
        'typed{word="a}',
        "typed{n=1",
        "typed,",
        "",
        "typed}",
        "{}",
    ):
        with pytest.raises(PassError):
            Pipeline.parse(text)


def test_options_that_are_required_or_made_are_handled(registered):
    @registered
    @dataclass(frozen=True)
    class Needs(Idle):
        n: int
        made: tuple[int, ...] = field(default_factory=lambda: (1,))
        name: ClassVar[str] = "needs"

    assert str(Needs(2)) == "needs{n=2}" and str(Needs(2, ())) == "needs{n=2 made=()}"
    assert Pipeline.parse("needs{n=2 made=()}").passes == (Needs(2, ()),)
    with pytest.raises(PassError, match="needs"):
        Pipeline.parse("needs")
    with pytest.raises(PassError, match="no text"):
        str(Needs({1: 2}))


def test_the_built_in_pipeline_reads_back():
    for text in (passes.DEFAULT, "adaptive-tile{rows=64},call-library{rows=32}"):
        assert str(Pipeline.parse(text)) == text and Pipeline.parse(str(Pipeline.parse(text))) == Pipeline.parse(text)


# --- classes ------------------------------------------------------------------------------------------------
class Bare(Idle):
    name: ClassVar[str] = "bare"
    n: int = 3


@dataclass(frozen=True)
class Nameless(Idle):
    pass


@pytest.mark.parametrize("cls", [Bare, Nameless, int])
def test_what_is_no_proper_pass_is_refused(cls):
    with pytest.raises(PassError) as caught:
        passes.register(cls)
    assert cls is not Bare or "@dataclass(frozen=True)" in str(caught.value)
    with pytest.raises(PassError):
        aatc.compile(lambda x: x, passes=[cls()])
    assert "bare" not in passes.REGISTRY


@pytest.mark.parametrize("chosen", [3, object(), [Bare], ["canonicalize"]])
def test_what_is_no_pipeline_is_refused(chosen):
    with pytest.raises(PassError):
        aatc.compile(lambda x: x, passes=chosen)


def scaling(factor):
    """Passes of one name and place that do different things."""

    @dataclass(frozen=True)
    class Scaling(Pass):
        name: ClassVar[str] = "scaling"

        def run(self, module, ctx):
            return scaled(module, factor)

    @dataclass(frozen=True)
    class Other(Pass):
        name: ClassVar[str] = "scaling"

        def run(self, module, ctx):
            return module

    Other.__qualname__ = Scaling.__qualname__
    return Scaling, Other


def scaled(module: Module, factor: float) -> Module:
    """``module`` with the scores of its attentions times ``factor``."""
    for op in module.walk():
        if op.name == "geo.attend":
            score = op.attrs["score"]
            op.attrs["score"] = Program(score.params, mul(const(factor), score.body))
    return module


def attend(q):
    return aatc.attend(q, q, q, metric=aatc.metrics.DotProduct())


def key(*extra, **options):
    compiled = aatc.compile(attend, passes=list(extra), **options)
    compiled(torch.ones(1, 2, 5, 4))
    return compiled.graphs[0].key


def test_two_passes_of_one_name_have_two_keys():
    first, second = scaling(1.0)
    assert len({key(first()), key(second()), key()}) == 3
    assert key(first()) == key(first())


@pytest.mark.parametrize(("backend", "knows"), [("cpu", True), ("native", False)])
def test_the_key_knows_threads_where_schedules_do(monkeypatch, backend, knows):
    before = key(backend=backend)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert (key(backend=backend) != before) == knows


# --- places -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Late(Idle):
    label: str = ""
    name: ClassVar[str] = "late"
    before: ClassVar[str] = "plan-memory"


@dataclass(frozen=True)
class Free(Idle):
    label: str = ""
    name: ClassVar[str] = "free"


def order(*extra):
    return [str(p).replace("{label=", ":").rstrip("}") for p in backends.pipeline("cpu", extra).passes]


def test_passes_go_where_they_say():
    built_in = f"{passes.DEFAULT},{backends.get('cpu').suffix}".split(",")
    assert order() == built_in
    assert order(Free("a"), Free("b"))[2:5] == ["fuse-attention", "free:a", "free:b"]
    assert order(Late("a"), Late("b"))[-3:] == ["late:a", "late:b", "plan-memory"]
    early = order(Placed(Free("a"), after="import"), Placed(Free("b"), after="import"))
    assert early == ["free:a", "free:b", *built_in]
    assert order(Placed(Late("a"), after="plan-memory"))[-1] == "late:a"
    assert order(Placed(Free("a"), before="canonicalize"), Free("b"))[0] == "free:a"
    assert order(Free("a"), Placed(Late("b"), after="free"))[3:5] == ["free:a", "late:b"]


def test_an_unknown_place_is_refused_and_the_stages_are_listed():
    for given_ in (Placed(Free(), before="nowhere"), Placed(Free(), after="nowhere"), Placed(Free(), before="import")):
        with pytest.raises(PassError, match="canonicalize"):
            aatc.compile(attend, passes=[given_])
    with pytest.raises(PassError, match="both"):
        aatc.compile(attend, passes=[Placed(Free(), before="canonicalize", after="import")])


def test_a_placed_pass_sees_the_stage_it_asked_for():
    seen = []

    @dataclass(frozen=True)
    class Look(Pass):
        name: ClassVar[str] = "look"
        after: ClassVar[str] = "import"

        def run(self, module, ctx):
            seen.append({op.name for op in module.walk()})
            return module

    aatc.compile(attend, passes=[Look(), Placed(Look(), after="adaptive-tile")])(torch.ones(1, 2, 5, 4))
    assert "geo.metric" in seen[0] and "geo.kernel" in seen[1]


# --- numbers ------------------------------------------------------------------------------------------------
def test_a_pass_that_changes_the_numbers_is_named():
    wrong, right = scaling(1.001)
    q = torch.randn(1, 2, 5, 4)
    aatc.compile(attend, passes=[wrong()])(q)  # nobody asked
    for fallback in (True, False):
        compiled = aatc.compile(attend, passes=[wrong()], verify="numerics", fallback=fallback)
        with pytest.raises(PassError, match=r"pass scaling changed the numbers: result 0 differs by \d"):
            compiled(q)
    torch.testing.assert_close(aatc.compile(attend, passes=[right()], verify="numerics")(q), attend(q))
    with pytest.raises(aatc.errors.AatcError, match="loudly"):
        aatc.compile(attend, verify="loudly")


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: models.Block(dropout=0.3, recompute=True), torch.float32),
        (models.Block, torch.bfloat16),
        (models.NoGradient, torch.float32),
    ],
    ids=["block", "halves", "constant"],
)
def test_the_built_in_passes_keep_the_numbers(make, dtype):
    compiled = aatc.compile(make().to(dtype), verify="numerics", fallback=False, dynamic=True)
    compiled(torch.randn(2, 5, 16, dtype=dtype))
    notes = [n for p in compiled.explain().passes for n in p.notes if "not compared" in n]
    assert not notes, notes


TEXT = """
geo.func @main(%x: f32[3], %y: f32[3]) {
  %a = torch.call(%x, %y) {target = "aten.add_.Tensor", args = [#0, #1], effect = true} : f32[3]
  %r = torch.call(%y) {target = "aten.rand_like.default", args = [#0], effect = true} : f32[3]
  geo.return(%a, %r)
}
"""


@dataclass(frozen=True)
class DropEffect(Pass):
    name: ClassVar[str] = "drop-effect"
    which: int = 0

    def run(self, module, ctx):
        ops = module.entry.body.ops
        if self.which == 0:  # the same result, but the input is left as it was
            ops[0].attrs = {"target": "aten.add.Tensor", "args": ops[0].attrs["args"]}
        return module


def test_effects_and_random_numbers_are_part_of_the_numbers():
    module = parse(TEXT)
    Pipeline((DropEffect(which=1), passes.Canonicalize())).run(module, verify="numerics")
    with pytest.raises(PassError, match="input 0 differs"):
        Pipeline((DropEffect(),)).run(module, verify="numerics")


def test_a_module_that_cannot_be_run_is_noted_not_taken_as_right():
    module = parse(TEXT.replace("add_.Tensor", "linalg_cholesky.default").replace("[#0, #1]", "[#0]"))
    result = Pipeline((DropEffect(which=1),)).run(module, verify="numerics")
    assert "not compared" in result.report[0].notes[0]


@dataclass(frozen=True)
class ChangeInterface(Pass):
    """Takes the last argument or result of the entry away."""

    name: ClassVar[str] = "change-interface"
    what: str = "results"

    def run(self, module, ctx):
        (module.entry.body.args if self.what == "arguments" else module.entry.body.ops[-1].operands).pop()
        return module


def test_a_pass_keeps_what_the_entry_takes_and_gives():
    text = "geo.func @main(%x: f32[3], %y: f32[2]) {\n  geo.return(%x, %x)\n}\n"
    for what, shown in (("results", r"\(f32\[3\], f32\[3\]\) to \(f32\[3\]\)"), ("arguments", r"f32\[2\]\) to")):
        with pytest.raises(PassError, match=f"change-interface changed the entry's {what} from .*{shown}") as caught:
            Pipeline((ChangeInterface(what),)).run(parse(text))
        assert caught.value.users
    with pytest.raises(PassError, match="changed the entry's results"):
        aatc.compile(lambda x: (x + 1, x + 2), passes=[ChangeInterface()])(torch.ones(2))


@pytest.mark.parametrize("value", ["1_0", "١٠", "(" * 3000, "(" * 3000 + ")" * 3000])
def test_what_python_alone_would_read_as_a_number_or_not_at_all_is_refused(value):
    with pytest.raises(PassError):
        Pipeline.parse(f"lower-tokens{{rows={value}}}")
