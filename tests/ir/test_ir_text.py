"""The text form: what is printed reads back, whatever its strings say and however long it is; texts have a version."""
# ruff: noqa: E501  (IR texts keep their lines)

import math
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.ir import Dim, Func, Loc, Module, Op, Operand, Symbol, TensorType, Value
from aatc.ir.core import Block
from aatc.ir.errors import ParseError, VerifyError, VersionError
from aatc.ir.parser import parse, parse_attrs, parse_program, parse_type
from aatc.ir.printer import VERSION, attrs_text, canonical_text, func_text, module_text, op_line, value_text
from aatc.ir.registry import TorchConst
from tests.ir.samples import FUNC, GEO, SAMPLES
from tests.ir.strategies import buffer_types, modules, names, types, values


# --- round trips -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", SAMPLES.values(), ids=SAMPLES)
def test_printed_samples_are_what_was_read(text):
    assert str(parse(text)) == text


@given(modules())
def test_modules_read_back_equal_and_print_the_same_again(module):
    text = str(module)
    again = parse(text)
    assert again == module
    assert str(again) == text
    assert canonical_text(again) == canonical_text(module)


@given(st.dictionaries(names, values, max_size=4))
def test_attributes_read_back(attrs):
    text = attrs_text(attrs)
    again = parse_attrs(text)
    assert attrs_text(again) == text
    assert list(again) == list(attrs)


@given(st.one_of(types, buffer_types))
def test_types_read_back(t):
    assert parse_type(str(t)) == t


@given(st.text())
def test_any_string_is_kept(s):
    assert parse_attrs(attrs_text({"s": s})) == {"s": s}


@given(st.text(max_size=6), st.integers(0, 10**6), st.text(max_size=12))
def test_any_location_is_kept(file, line, source):
    module = Module()
    block = Block([], [Op("geo.return", loc=Loc(file, line, source))])
    module.add(Func("main", "geo", block))
    (op,) = parse(str(module)).walk()
    assert op.loc == Loc(file, line, source)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"), (1.0, "1.0"), (True, "true"), (None, "none"), (-0.0, "-0.0"), (math.inf, "inf"), (-math.inf, "-inf"),
        (1e16, "1e+16"), (1e-05, "1e-05"), ("a\"b\\\n", '"a\\"b\\\\\\n"'), ("βγ", '"βγ"'), ((), "[]"), ((1, (2.0, None)), "[1, [2.0, none]]"),
        (Symbol("f"), "@f"), (Operand(3), "#3"), (TorchConst("torch", "float32"), "torch.float32"),
        (TorchConst("device", "cuda:1"), 'device("cuda:1")'), (TensorType.of("f32", [2, "N"]), "type(f32[2,N])"),
        (Dim.of("N") * 2 + 1, "dim(2*N+1)"), (Dim.of("N") * -1, "dim(-N)"), (Dim(4), "4"),
    ],
    ids=lambda v: repr(v)[:20],
)  # fmt: skip
def test_spelling_of_values(value, text):
    assert value_text(value) == text
    again = parse_attrs(f"{{a = {text}}}")["a"]
    assert again == value and value_text(again) == text


def test_integers_floats_and_truths_stay_apart():
    a = parse_attrs("{a = 1, b = 1.0, c = true}")
    assert [type(v) for v in a.values()] == [int, float, bool]
    assert math.copysign(1, parse_attrs("{a = -0.0}")["a"]) == -1
    assert math.isnan(parse_attrs("{a = nan}")["a"])


def test_names_are_made_legal_and_unique():
    t = TensorType.of("f32", [])
    args = [Value(t, n) for n in ("x", "x", "x_1", "a b%é", "", "7", "")]
    func = Func("main", "geo", Block(args, [Op("geo.return", args)]))
    text = func_text(func)
    printed = text.split("geo.return(")[1].split(")")[0].split(", ")
    assert printed == ["%x", "%x_1", "%x_1_1", "%a_b_", "%0", "%1", "%2"]
    module = Module()
    module.add(func)
    assert str(parse(str(module))) == str(module)


def test_equality_ignores_names_and_the_order_of_dims_but_not_locations():
    one = parse(GEO)
    renamed = parse(GEO.replace("%beta", "%b7").replace("%s ", "%score ").replace("(%s)", "(%score)"))
    assert one == renamed
    assert one == parse(GEO.replace("N in [1, inf], M in [2, 4096]", "M in [2, 4096], N in [1, inf]"))
    assert one != parse(GEO.replace("12:", "11:"))
    assert one != parse(GEO.replace("1.0]", "1]"))
    assert one != parse(GEO.replace("0.5]", "0.25]"))
    assert one != parse(GEO.replace("M in [2, 4096]", "M in [2, 4095]"))
    assert one != "text"


def test_comments_and_blanks_are_skipped():
    text = (
        GEO.replace("(%s)", "( // the scores\n   %s )")
        .replace(" = geo.", "\n // why\n =\tgeo.")
        .replace("{kind", "{ // kind\n kind")
    )
    assert parse(text) == parse(GEO)
    assert parse(GEO.replace("\n", "\r\n")) == parse(GEO)


def test_attributes_print_in_the_declared_order():
    text = GEO.replace(
        '{target = "aten.add.Tensor", args = [#0, 1.0], kwargs = []}',
        '{kwargs = [], args = [#0, 1.0], target = "aten.add.Tensor"}',
    )
    assert str(parse(text)) == GEO


def test_op_line_is_one_line_and_never_fails():
    module = parse(SAMPLES["tile"])
    for op in module.walk():
        line = op_line(op)
        assert "\n" not in line and op.name in line and repr(op) == line
    assert "object" in op_line(Op("geo.unknown", [Value(TensorType.of("f32", []))], {"x": object()}))


def test_values_without_a_text_form_are_refused():
    with pytest.raises(TypeError):
        attrs_text({"x": object()})


# --- nothing is evaluated ------------------------------------------------------------------------------------
EVIL = [
    "__import__('os').system('touch /tmp/aatc_was_here')",
    "${HOME}",
    "{0.__class__}",
    "%s%n",
    "\\x41",
    "'; DROP",
    'f"{1+1}"',
    "#0",
]


@pytest.mark.parametrize("evil", EVIL)
def test_strings_stay_data(evil):
    assert parse_attrs(attrs_text({"a": (evil,)})) == {"a": (evil,)}
    module = parse(GEO)
    module.funcs["half"].attrs["note"] = evil
    assert parse(str(module)).funcs["half"].attrs["note"] == evil
    with pytest.raises(ParseError):
        parse(evil)
    with pytest.raises(ParseError):
        parse_program(f"() => {evil}")
    assert not os.path.exists("/tmp/aatc_was_here")


# --- size ----------------------------------------------------------------------------------------------------
def calls_made(n: int) -> int:
    """Python calls made while a module of about ``n`` operations is read and printed: a time without a clock."""
    lines = [
        f'  %a{i} = torch.call(%x, %x) {{target = "aten.add.Tensor", args = [#0, #1]}} : f32[4] loc("m.py":{i})'
        for i in range(n)
    ]
    text = FUNC.format("\n".join([*lines, "  geo.return(%x)"]))
    count = 0

    def tick(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(tick)
    try:
        module = parse(text)
        module_text(module)
    finally:
        sys.setprofile(None)
    return count


def test_reading_and_printing_take_steps_in_proportion_to_the_size():
    calls_made(10)
    small, large = calls_made(200), calls_made(2000)
    assert large < 10.5 * small
    assert large / 2000 < 400


def test_twenty_thousand_operations_are_read():
    lines = [f'  %a{i} = torch.call(%x) {{target = "aten.relu.default", args = [#0]}} : f32[4]' for i in range(20_000)]
    module = parse(FUNC.format("\n".join([*lines, "  geo.return(%x)"])))
    assert sum(1 for _ in module.walk()) == 20_001


# --- versions ----------------------------------------------------------------------------------------------
BARE = "geo.func @main(%x: f32[4]) {\n  geo.return(%x)\n}\n"


def test_a_text_starts_with_its_version():
    assert str(parse(f"aatc {VERSION}\n{BARE}")) == f"aatc {VERSION}\n\n{BARE}"


@pytest.mark.parametrize(
    "text",
    [
        BARE,
        f"aatc {VERSION} {BARE}",
        f"// a comment\n\n  aatc \t {VERSION} // another\n{BARE}",
        f"\naatc 0{VERSION}\n{BARE}",
    ],
)
def test_a_text_may_leave_its_version_out_or_put_it_behind_comments(text):
    assert str(parse(text)) == f"aatc {VERSION}\n\n{BARE}"


@pytest.mark.parametrize(
    ("version", "hint"),
    [(0, "the aatc that wrote it"), (VERSION - 1, "the aatc that wrote it"), (VERSION + 1, "a newer aatc"), (10**9 - 1, "a newer")],
)  # fmt: skip
def test_a_text_of_another_version_is_refused_whatever_it_says(version, hint):
    for rest in (BARE, "geo.func @main(%x: f32[4]) words of the future", ""):
        with pytest.raises(VersionError) as caught:
            parse(f"// made\n aatc {version}\n{rest}")
        e = caught.value
        assert (e.found, e.ours, e.line, e.column) == (version, VERSION, 2, 2)
        assert f"version {version} of the IR" in str(e) and f"reads version {VERSION}" in str(e) and hint in e.hint


@pytest.mark.parametrize(
    "word", ["aatc\n", "aatc two\n", "aatc 2.1\n", "aatc 2x\n", f"aatc {'9' * 5000}\n", "aatc -1\n", "aatc 2\naatc 2\n"]
)
def test_a_malformed_version_is_a_parse_error(word):
    with pytest.raises(ParseError) as caught:
        parse(word + BARE)
    assert not isinstance(caught.value, VersionError) and caught.value.line in (1, 2)


def test_a_text_without_a_version_that_cannot_be_read_says_so():
    for text in (BARE.replace("%x)", "%y)", 1), BARE.replace("geo.return", "geo.reply"), "words"):
        with pytest.raises(ParseError) as caught:
            parse(text)
        assert f"does not start with its version (aatc {VERSION})" in caught.value.hint
        assert str(caught.value).endswith(caught.value.hint)
    with pytest.raises(VerifyError) as caught:
        parse("geo.func @main(%x: f32[4]) {\n  %y = geo.map(%x) {program = fn() => i} : f32[4]\n  geo.return(%y)\n}")
    assert f"does not start with its version (aatc {VERSION})" in caught.value.hint


def test_fragments_have_no_version():
    assert parse_attrs("{a = 1}") == {"a": 1}
    with pytest.raises(ParseError) as caught:
        parse_attrs("{a = }")
    assert caught.value.hint is None
