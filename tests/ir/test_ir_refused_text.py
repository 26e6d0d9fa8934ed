"""What is malformed is refused at the right place, and no text at all gives more than the two errors."""
# ruff: noqa: E501  (IR texts keep their lines)

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aatc.ir.errors import ParseError, VerifyError
from aatc.ir.parser import MAX_NESTING, parse, parse_attrs, parse_program, parse_type
from tests.ir.samples import FUNC, GEO, SAMPLES


# --- refusals ----------------------------------------------------------------------------------------------
def marked(text: str) -> tuple[str, int, int]:
    """``text`` without its mark ‸, and the line and column of the mark."""
    before, _, after = text.partition("‸")
    return before + after, before.count("\n") + 1, len(before) - before.rfind("\n")


REFUSED = {
    "an unknown operation": "%y = ‸geo.nothing(%x) : f32[4]\n  geo.return(%y)",
    "an unknown operation with a comment in its head": "%y = ‸geo.nothing( // c\n %x) : f32[4]\n  geo.return(%y)",
    "an unknown value": "geo.return(%x, ‸%z)",
    "an unknown value with a comment": "geo.return(%x, // c\n ‸%z)",
    "an unknown value behind results": '%a, %b = torch.call(%x, ‸%c) {target = "t", args = []} : f32[4], f32[4]\n  geo.return(%a)',
    "a value defined twice": "‸%x = geo.map(%x) {program = fn(x: f[j]) => x} : f32[4]\n  geo.return(%x)",
    "a second result defined twice": '%a, ‸%a = torch.call() {target = "t", args = []} : f32[4], f32[4]\n  geo.return(%x)',
    "too few types": '%a, %b = ‸torch.call() {target = "t", args = []} : f32[4]\n  geo.return(%x)',
    "no type": '%a = ‸torch.call() {target = "t", args = []}\n  geo.return(%x)',
    "an unknown type": '%a = torch.call() {target = "t", args = []} : ‸f33[4]\n  geo.return(%x)',
    "a malformed dimension": '%a = torch.call() {target = "t", args = []} : f32[2,‸?]\n  geo.return(%x)',
    "a wrong dimension": '%a = torch.call() {target = "t", args = []} : f32[2,N‸*]\n  geo.return(%x)',
    "a half dimension": '%a = torch.call() {target = "t", args = []} : f32[2,‸]\n  geo.return(%x)',
    "a layout that is none": '%a = torch.call() {target = "t", args = []} : f32[2; ‸row]\n  geo.return(%x)',
    "a layout left out": '%a = torch.call() {target = "t", args = []} : f32[2;‸]\n  geo.return(%x)',
    "two layouts": '%a = torch.call() {target = "t", args = []} : f32[2; ‸rows; rows]\n  geo.return(%x)',
    "panels of nothing": '%a = torch.call() {target = "t", args = []} : i8[; panels(‸0)]\n  geo.return(%x)',
    "panels of too much": '%a = torch.call() {target = "t", args = []} : i8[; panels(‸99999999999999999999)]\n  geo.return(%x)',
    "features of nothing": '%a = torch.call() {target="t",args=[]} : i8[;panels(4,‸0)]\n  geo.return(%x)',
    "panels of three numbers": '%a = torch.call() {target = "t", args = []} : i8[; ‸panels(4, 2, 1)]\n  geo.return(%x)',
    "a layout of pairs": '%a = torch.call() {target = "t", args = []} : pair<‸f32[2; rows]>\n  geo.return(%x)',
    "an unclosed type": '%a = torch.call() {target = "t", args = []} : pair<f32[2]‸\n  geo.return(%x)',
    "a list of shapes": '%a = torch.call() {target = "t", args = []} : pair<‸int>\n  geo.return(%x)',
    "an attribute given twice": "geo.return(%x) {a = 1, ‸a = 2}",
    "an attribute without a value": "geo.return(%x) {a = ‸}",
    "an attribute without a sign": "geo.return(%x) {a ‸1}",
    "a word that is no value": "geo.return(%x) {a = ‸yes}",
    "a torch name that is no constant": "geo.return(%x) {a = ‸torch.load}",
    "a torch name with dunders": "geo.return(%x) {a = ‸torch.__class__}",
    "a device that is none": 'geo.return(%x) {a = ‸device("cpu; rm")}',
    "an operand without a number": "geo.return(%x) {a = ‸#}",
    "a huge integer": "geo.return(%x) {a = ‸99999999999999999999}",
    "a malformed number": "geo.return(%x) {a = ‸1.2.3}",
    "a malformed escape": 'geo.return(%x) {a = "b‸\\q"}',
    "an unclosed string": 'geo.return(%x) {a = ‸"b}',
    "an unknown word in a score": "geo.return(%x) {a = fn(q: f[bhid]) => ‸acsh(q)}",
    "an unknown name in a score": "geo.return(%x) {a = fn(q: f[bhid]) => dot(q, ‸k)}",
    "an ill-typed word": "geo.return(%x) {a = fn(q: f[bhid]) => 1.0 + ‸dot(q, 1.0)}",
    "an ill-typed operator": "geo.return(%x) {a = fn(q: f[bhi]) => q ‸& q}",
    "a chain of comparisons": "geo.return(%x) {a = fn(q: f[bhi]) => 0.0 < q ‸< 1.0}",
    "a malformed parameter": "geo.return(%x) {a = fn(‸q: f[hb]) => 1.0}",
    "a reserved parameter": "geo.return(%x) {a = fn(‸j: f[b]) => 1.0}",
    "a parameter declared twice": "geo.return(%x) {a = fn(q: f[b], ‸q: f[h]) => 1.0}",
    "a let bound twice": "geo.return(%x) {a = fn(q: f[b]) => let ‸q = 1.0 in q}",
    "a let of a reserved word": "geo.return(%x) {a = fn(q: f[b]) => let ‸exp = 1.0 in q}",
    "a let that is used too early": "geo.return(%x) {a = fn(q: f[b]) => let u = ‸w; w = q in u}",
    "wrong constants in brackets": "geo.return(%x) {a = fn(q: f[bhid]) => ‸item[x](q)}",
    "a truth in brackets": "geo.return(%x) {a = fn(q: f[bhid]) => ‸item[true](q)}",
    "a wrong style": "geo.return(%x) {a = fn(q: f[bhid]) => ‸rotate[third](q, q)}",
    "a location without a line": 'geo.return(%x) ‸loc("a")',
    "text behind a return": "geo.return(%x) ‸]",
    "python": "geo.return(%x)\n  ‸import os",
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_a_refusal_points_at_the_place(body):
    text, line, column = marked(FUNC.format(body))
    with pytest.raises(ParseError) as caught:
        parse(text)
    error = caught.value
    assert (error.line, error.column) == (line, column), str(error)
    *_, shown, caret = [row for row in str(error).split("\n") if not row.startswith("  hint")]
    assert caret.strip() == "^" and shown[2:].startswith(text.split("\n")[line - 1][: column - 1])
    assert len(caret) - 2 == column


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dims {N in [1, 2], ‸N in [1, 2]}", "twice"),
        ("dims {N in [‸1.5, 2]}", "integer"),
        ("dims {N in [1, ‸nan]}", "integer or inf"),
        ("dims {N in ‸(1, 2)}", "unexpected"),
        ("‸cuda.func @main() {\n}", "level"),
        ("geo.func @main() {\n  geo.return()\n}\ngeo.func ‸@main() {\n  geo.return()\n}", "twice"),
        ("geo.func @main(%a: f32[], ‸%a: f32[]) {\n  geo.return()\n}", "twice"),
        ("geo.func @main() {\n  geo.return()‸\n", "ends too early"),
        ("geo.func @main() {a = ‸", "ends too early"),
        ("geo.func @main() {} ‸{", "unexpected"),
        ("‸\x00", "unexpected"),
        ("‸%", "unexpected"),
        ("tile.func @f() {\n  tile.for() {axis = \"i\"} (%i: index, ‸%i: index) {\n  }\n}", "twice"),
    ],
)  # fmt: skip
def test_refusals_outside_bodies(text, part):
    text, line, column = marked(text)
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert part in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)


def test_values_of_a_region_end_with_it():
    text = SAMPLES["tile"].replace("tile.store(%lt, %lse_all, %g, %i)", "tile.store(%l2, %lse_all, %g, %i)")
    with pytest.raises(ParseError, match="%l2 is not defined here"):
        parse(text)


def test_a_rule_of_the_ir_is_reported_at_its_operation():
    text, line, column = marked(
        GEO.replace("  %c = geo.transport", "  ‸%c = geo.transport").replace("sin(v)", "item[0](v)")
    )
    with pytest.raises(VerifyError, match="feature vector") as caught:
        parse(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert caught.value.where == f"line {line}, column {column}"
    assert str(caught.value).rstrip().endswith("^")
    assert parse(text, verify=False).funcs


def test_an_empty_text_is_refused():
    for text in ("", "  \n", "// nothing\n"):
        with pytest.raises(VerifyError, match="no function"):
            parse(text)


def test_long_lines_are_shown_around_the_column():
    text, _, column = marked(FUNC.format(f'geo.return(%x) {{s = "{"a" * 500}", t = ‸?}}'))
    with pytest.raises(ParseError) as caught:
        parse(text)
    *_, shown, caret = str(caught.value).split("\n")
    assert caught.value.column == column
    assert len(shown) < 140 and shown[len(caret) - 1] == "?"


@pytest.mark.parametrize(
    "text",
    [
        "{a = " + "[" * 5000 + "]" * 5000 + "}",
        "{a = " + "[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1) + "}",
        "{a = fn() => " + "(" * 3000 + "1.0" + ")" * 3000 + "}",
        "{a = fn() => " + "exp(" * 3000 + "1.0" + ")" * 3000 + "}",
        "{a = type(" + "list<" * 3000 + "int" + ">" * 3000 + ")}",
        "{a = " + "[" * 5000,
    ],
)
def test_deep_nesting_is_refused_not_a_crash(text):
    with pytest.raises(ParseError):
        parse_attrs(text)


def test_deeply_nested_regions_are_refused_not_a_crash():
    loop = 'tile.for() {axis = "g", upper = 2, step = 1, kind = "par"} (%i: index) {\n'.replace("%i", "%i{}")
    depth = 300
    text = (
        "tile.func @f() {\n"
        + "".join(loop.replace("{}", str(n)) for n in range(depth))
        + "tile.yield()\n}" * depth
        + "tile.return()\n}"
    )
    with pytest.raises(ParseError, match="nest deeper"):
        parse(text)


def test_what_lies_below_the_nesting_limit_is_read():
    depth = MAX_NESTING - 1
    (value,) = parse_attrs("{a = " + "[" * depth + "]" * depth + "}").values()
    for _ in range(depth - 1):
        (value,) = value
    assert value == ()
    minus = parse_program("() => " + "-" * 5000 + "i")
    assert str(minus)[:7] == "() => l" and parse_program(str(minus)) == minus


# --- anything at all -----------------------------------------------------------------------------------------
PIECES = ["(", ")", "{", "}", "[", "]", "%", "@", "#", '"', "\\", ",", ":", "=", "=>", "-", "fn", "let", "in", "loc", "torch.", "\n", " ",
          "//", "inf", "1e999", "9" * 30, "é", "\x00", "\ud800", "𝟙", "٣", "N", "f32[", "pair<", "none", "geo.return", "tile.for", "dims"]  # fmt: skip


def mutate(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        a = rng.randrange(len(text) + 1)
        b = min(len(text), a + rng.choice([1, 1, 2, 5, 30, 200]))
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:a] + text[b:]
        elif kind == 1:
            text = text[:a] + rng.choice(PIECES) + text[a:]
        elif kind == 2:
            c = rng.randrange(len(text) + 1)
            text = text[:c] + text[a:b] + text[c:]
        elif kind == 3:
            text = text[:a]
        elif kind == 4:
            text = text[:a] + rng.choice(PIECES) + text[b:]
        else:
            words = text.split(" ")
            i, j = rng.randrange(len(words)), rng.randrange(len(words))
            words[i], words[j] = words[j], words[i]
            text = " ".join(words)
    return text


def survives(read, text: str) -> bool:
    """Whether ``text`` is read; a refusal must be one of the two errors and name a place in the text."""
    try:
        read(text)
    except (ParseError, VerifyError) as e:
        lines = text.split("\n")
        assert 1 <= e.line <= len(lines), str(e)
        assert 1 <= e.column <= len(lines[e.line - 1]) + 1, str(e)
        return False
    return True


@given(st.sampled_from(sorted(SAMPLES)), st.integers(0, 2**32))
def test_broken_modules_give_only_the_two_errors(sample, seed):
    rng = random.Random(seed)
    for _ in range(8):
        survives(parse, mutate(SAMPLES[sample], rng))


@given(st.text())
def test_any_text_gives_only_the_two_errors(text):
    for read in (parse, parse_attrs, parse_program, parse_type):
        survives(read, text)


@given(
    st.lists(
        st.sampled_from(
            [
                *PIECES,
                "q",
                "dot",
                "f[bhid]",
                "1.0",
                "+",
                "<",
                "~",
                "&",
                "exp",
                "[half]",
                ";",
                "%x",
                "@f",
                "#1",
            ]
        ),
        max_size=25,
    )
)
def test_any_words_give_only_the_two_errors(words):
    text = " ".join(words)
    survives(parse, text)
    survives(parse_attrs, f"{{{text}}}")
    survives(parse_program, f"(q: f[bhid]) => {text}")
    survives(parse_type, text)


def test_the_mutations_break_most_texts_and_spare_some():
    rng = random.Random(0)
    results = [survives(parse, mutate(GEO, rng)) for _ in range(150)]
    assert 1 <= sum(results) < 50
