"""Schedules as data: their text, what is legal for which program and target, and files of them."""
# ruff: noqa: E501  (IR texts keep their lines)

import random
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.errors import AatcError, ParseError, ScheduleError, VerifyError
from aatc.ir.legal import Held, Workload, lanes, legal, registers
from aatc.ir.parser import parse, parse_program
from aatc.ir.schedule import AXES, DIRECTIVES, Directive, Pack, Reorder, Schedule, Split, Stage, directives_table
from aatc.ir.schedule_file import read_schedules, write_schedules
from aatc.ir.target import Target
from aatc.ir.types import TileType
from tests.ir.samples import TILE

TORCH = Target("torch")
EVERY = tuple(DIRECTIVES)
NATIVE = Target(
    "native",
    cores=8,
    vector_bytes=32,
    registers=16,
    directives=EVERY,
    levels=("threads",),
    spaces=("register",),
)
GPU = Target(
    "gpu",
    vector_bytes=4,
    registers=128,
    shared_bytes=32 << 10,
    subgroup=32,
    workgroup=256,
    directives=EVERY,
    levels=("workgroups", "lanes"),
    spaces=("shared", "register"),
)
HELD = (Held("q", "i", 64), Held("k", "j", 64), Held("v", "j", 32), Held("bias", "ij", 1), Held("beta", "", 1))
WORK = Workload("forward", 16, 1000, 2000, 4, 32, 2, HELD)
BACK = replace(WORK, direction="backward")
MASKED, MASKED_BACK = (replace(w, mask=parse_program("fn() => j <= i")) for w in (WORK, BACK))
ATTEND = """\
geo.func @main(%%q: f32[1,2,6,4], %%k: f32[1,2,6,4], %%v: f32[1,2,6,4]) {
  %%o, %%lse = geo.attend(%%q, %%k, %%v) {names = ["q", "k", "v"], score = fn(q: f[bhid], k: f[bhjd]) => dot(q, k), kind = "softmax", aggregate = "mean", schedule = "%s"} : f32[1,2,6,4], f32[1,2,6]
  geo.return(%%o, %%lse)
}
"""
TILES = "split(g, 1) split(i, 64) split(j, 256)"


def _arguments(kind):
    if kind.name == "number":
        return st.integers(-(2**31) + 1, 2**31 - 1)
    return st.sampled_from(kind.choices) if kind.choices else st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,8}\Z")


@st.composite
def directives(draw) -> Directive:
    cls = draw(st.sampled_from(list(DIRECTIVES.values())))
    n = draw(st.integers(1, 5)) if cls.many else len(fields(cls))
    values = [draw(_arguments(kind)) for kind in cls.kinds(n)]
    return cls(tuple(values)) if cls.many else cls(*values)


schedules = st.builds(Schedule, st.lists(directives(), max_size=8).map(tuple))


# --- text --------------------------------------------------------------------------------------------------------
@settings(max_examples=200)
@given(schedules)
def test_text_and_schedule_are_inverse(s):
    assert Schedule.parse(str(s)) == s


def test_blanks_and_lines_do_not_matter():
    assert str(Schedule.parse("\n split( g ,1 )\tsplit(i,64)\r\n")) == "split(g, 1) split(i, 64)"
    assert Schedule.parse("").directives == ()


@pytest.mark.parametrize(
    "text, line, column, says, hint",
    [
        ("spilt(i, 3)", 1, 1, "no directive 'spilt'", "did you mean split?"),
        ("split(i, 64) tile(j)", 1, 14, "no directive 'tile'", "there are: split, grain"),
        ("split(x, 3)", 1, 7, "x is no axis", "there are: g, i, j, ii, jj"),
        ("split(i 64)", 1, 9, "found '64'", "a schedule reads"),
        ("split(i, 64", 1, 12, "expected", "a schedule reads"),
        ("split", 1, 6, "expected '('", "a schedule reads"),
        ("split(i, sixty)", 1, 10, "expected a number, found 'sixty'", "a schedule reads"),
        ("split(i, 64, 3)", 1, 12, "split takes 2 arguments", "write split(axis, extent)"),
        ("split(i)", 1, 8, "split takes 2 arguments", "write split(axis, extent)"),
        ("reorder()", 1, 9, "expected an axis", "a schedule reads"),
        ("bind(i, thread)", 1, 9, "thread is no level", "did you mean threads?"),
        ("stage(k, global)", 1, 10, "global is no space", "shared, register"),
        ("order(row)", 1, 7, "row is no order", "did you mean rows?"),
        ("split(i, 64)\n  split(j, 99999999999999999999)", 2, 12, "too large", "write a number"),
        ("split(i, 64);", 1, 13, "found ';'", "a schedule reads"),
        ("__import__('os')", 1, 1, "no directive", "there are"),
    ],
)
def test_a_malformed_text_shows_its_place(text, line, column, says, hint):
    with pytest.raises(ParseError) as raised:
        Schedule.parse(text)
    error = raised.value
    assert (error.line, error.column) == (line, column)
    assert says in error.message and error.hint is not None and hint in error.hint
    assert error.message.split("\n")[-1].index("^") == column + 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Split("x", 3),
        lambda: Split("i", "64"),
        lambda: Split("i", True),
        lambda: Split("i", 1 << 40),
        lambda: Stage("k); import os", "shared"),
        lambda: Stage("k", "nowhere"),
        lambda: Pack("", 4),
        lambda: Reorder(()),
        lambda: Reorder(("g", "x")),
    ],
)
def test_what_has_no_text_cannot_be_made(make):
    with pytest.raises(ScheduleError):
        make()


_SCRAPS = ["(", ")", ",", " ", "\n", "#", ":", "split", "bind(", "-", "0", "99999999999999999999", "é", "\x00", "rows"]


def mutate(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(text))
        cut = rng.choice([0, 0, 1, 2, 5])
        text = text[:at] + rng.choice([*_SCRAPS, ""]) + text[at + cut :]
    return text


def test_mutated_texts_give_typed_errors_only():
    rng, read = random.Random(0), 0
    base = f"{TILES} grain(j, 64) bind(g, threads) bind(i, threads) pack(k, 16) vectorize(jj, 8) reorder(g, i, j)"
    for _ in range(10_000):
        try:
            s = Schedule.parse(mutate(base, rng))
            assert Schedule.parse(str(s)) == s
            read += 1
            legal(s.completed(Schedule.of(1, 64, 256)), WORK, NATIVE)
        except (ParseError, ScheduleError):
            continue
    assert read > 100


def test_mutated_files_give_typed_errors_only():
    rng = random.Random(1)
    base = "# of a model\nattend0.forward: split(i, 64) split(j, 256)\nattend0.backward: split(i, 32)  # less\n\n"
    for _ in range(10_000):
        try:
            read_schedules(mutate(base, rng), ["attend0", "attend1"])
        except ParseError as e:
            assert e.line >= 1 and e.column >= 1


# --- what a schedule says ----------------------------------------------------------------------------------------
def test_a_schedule_tells_its_extents():
    s = Schedule.parse("split(i, 64) split(j, 256) bind(i, threads) stage(k, shared) order(rows-and-columns)")
    assert (s.heads, s.rows, s.cols, s.grain) == (0, 64, 256, 256)
    assert (s.level("i"), s.level("g"), s.space("k"), s.space("v"), s.order) == (
        "threads", None, "shared", "", "rows-and-columns",
    )  # fmt: skip
    assert s.nest == ("g", "i", "j")


def test_what_is_left_out_is_the_defaults():
    default = Schedule.of(2, 128, 512, 64)
    partly = Schedule.parse("bind(i, threads) split(i, 16) split(j, 32)")
    assert str(partly.completed(default)) == ("split(g, 2) split(i, 16) split(j, 32) grain(j, 32) bind(i, threads)")
    whole = Schedule.parse("grain(j, 8) split(j, 32) split(i, 16) split(g, 1)")
    assert whole.completed(default) is whole
    twice = Schedule.parse("split(i, 16) split(i, 32)").completed(default)
    assert str(twice).endswith("split(i, 32)")
    with pytest.raises(ScheduleError, match="second split of i"):
        legal(twice, WORK, TORCH)


def test_a_grain_that_is_left_out_is_whole_panels():
    default = Schedule.of(1, 64, 80, 40)
    grains = {
        "": 40,
        "pack(k, 16)": 32,
        "pack(k, 16) pack(v, 32)": 32,
        "pack(k, 64)": 64,
        "pack(k, 16) pack(v, 10)": 80,
        "split(j, 256) pack(k, 64)": 64,
        "pack(k, 128)": 40,  # wider than a tile: refused for that
        "pack(k, 0)": 40,
    }
    for text, grain in grains.items():
        assert Schedule.parse(text).completed(default).grain == grain, text
    assert Schedule.parse("grain(j, 8) pack(k, 64)").completed(default).grain == 8


def test_extents_are_replaced_in_place():
    s = Schedule.parse(f"{TILES} grain(j, 64) bind(i, threads)").with_extents(i=8, j=0, grain=4)
    assert str(s) == "split(g, 1) split(i, 8) split(j, 256) grain(j, 4) bind(i, threads)"


# --- legality ----------------------------------------------------------------------------------------------------
LEGAL = [
    (TILES, WORK, TORCH),
    (f"{TILES} grain(j, 64) reorder(i, g, j)", WORK, TORCH),
    (f"{TILES} order(rows)", BACK, TORCH),
    (f"{TILES} order(rows-and-columns) bind(i, threads)", BACK, NATIVE),
    (f"{TILES} bind(g, threads) bind(i, threads) split(ii, 4) split(jj, 16) vectorize(jj, 8) pack(k, 16)", WORK, NATIVE),
    (f"{TILES} grain(j, 64) pack(k, 16) pack(v, 32)", MASKED, NATIVE),
    ("split(g, 1) split(i, 64) split(j, 100) grain(j, 96) pack(k, 16)", MASKED, NATIVE),
    ("split(g, 1) split(i, 64) split(j, 100) grain(j, 96) pack(k, 16)", MASKED_BACK, NATIVE),
    (f"{TILES} grain(j, 24) pack(k, 16)", WORK, NATIVE),  # no mask, no runs
    (f"{TILES} grain(j, 24) pack(k, 16)", replace(MASKED, cols=20), NATIVE),  # one block of keys
    ("split(g, 1) split(i, 64) split(j, 100) pack(k, 16)", replace(WORK, cols=100), NATIVE),
    (f"{TILES} bind(g, threads) unroll(j, 8) unroll(jj, 4) split(jj, 8)", BACK, NATIVE),
    ("split(g, 1) split(i, 64) split(j, 16) split(ii, 8) split(jj, 4) bind(i, workgroups) bind(ii, lanes)"
     " bind(jj, lanes) stage(k, shared) stage(v, shared) stage(scores, shared) stage(out, register)", WORK, GPU),
]  # fmt: skip


@pytest.mark.parametrize("text, work, target", LEGAL)
def test_what_fits_is_legal(text, work, target):
    legal(Schedule.parse(text), work, target)


REFUSED = {
    "a directive the backend does not obey": (f"{TILES} vectorize(j, 8)", WORK, TORCH, "obeys no vectorize"),
    "packing for torch": (f"{TILES} pack(k, 16)", WORK, TORCH, "obeys no pack"),
    "staging for torch": (f"{TILES} stage(k, shared)", WORK, TORCH, "obeys no stage"),
    "a level the target lacks": (f"{TILES} bind(g, workgroups)", WORK, NATIVE, "binds no loop to workgroups"),
    "an axis split twice": (f"{TILES} split(i, 8)", WORK, TORCH, "second split of i"),
    "an axis bound twice": (f"{TILES} bind(i, threads) bind(i, threads)", WORK, NATIVE, "second bind of i"),
    "an operand staged twice": (f"{TILES} stage(k, shared) stage(k, register)", WORK, GPU, "second stage of k"),
    "an operand packed twice": (f"{TILES} pack(k, 8) pack(k, 16)", WORK, NATIVE, "second pack of k"),
    "an axis unrolled twice": (f"{TILES} unroll(j, 2) unroll(j, 4)", WORK, NATIVE, "second unroll of j"),
    "two vectorized axes": (f"{TILES} vectorize(j, 8) vectorize(jj, 8)", WORK, NATIVE, "second vectorize"),
    "two grains": (f"{TILES} grain(j, 8) grain(j, 4)", WORK, TORCH, "second grain"),
    "two orders": (f"{TILES} order(rows) order(rows)", BACK, TORCH, "second order"),
    "two nests": (f"{TILES} reorder(g, i, j) reorder(i, g, j)", WORK, TORCH, "second reorder"),
    "an extent of nothing": ("split(g, 1) split(i, 0) split(j, 4)", WORK, TORCH, "an extent is positive"),
    "a negative extent": ("split(g, 1) split(i, 64) split(j, -4)", WORK, TORCH, "an extent is positive"),
    "an axis that is not split": ("split(g, 1) split(i, 64)", WORK, TORCH, "does not split j"),
    "an inner block larger than its tile": (f"{TILES} split(ii, 65)", WORK, NATIVE, "64 along i only"),
    "a tile no memory holds": ("split(g, 9) split(i, 9999) split(j, 9999)", WORK, TORCH, "a tile would hold"),
    "a grain of queries": (f"{TILES} grain(i, 8)", WORK, TORCH, "along the keys"),
    "a grain wider than a tile": (f"{TILES} grain(j, 257)", WORK, TORCH, "between 1 and the extent of j, 256"),
    "a grain of nothing": (f"{TILES} grain(j, 0)", WORK, TORCH, "between 1 and"),
    "a nest of two loops": (f"{TILES} reorder(i, j)", WORK, TORCH, "each of g, i and j once"),
    "a nest with a loop twice": (f"{TILES} reorder(i, i, j)", WORK, TORCH, "each of g, i and j once"),
    "keys outside": (f"{TILES} reorder(j, g, i)", WORK, TORCH, "innermost"),
    "an order of a forward": (f"{TILES} order(rows)", WORK, TORCH, "only a backward has an order"),
    "keys of a row in parallel": (f"{TILES} bind(j, threads)", WORK, NATIVE, "hand its sums on"),
    "rows that share sums in parallel": (f"{TILES} bind(i, threads)", BACK, NATIVE, "a race"),
    "entries of a tile to workgroups": (f"{TILES} split(ii, 8) bind(ii, workgroups)", WORK, GPU, "go to lanes"),
    "blocks of queries to lanes": (f"{TILES} bind(i, lanes)", WORK, GPU, "goes to threads or workgroups"),
    "lanes of a tile that is not split": (f"{TILES} bind(ii, lanes)", WORK, GPU, "ii is not split"),
    "too many lanes": (f"{TILES} split(ii, 1) split(jj, 4) bind(ii, lanes) bind(jj, lanes)", WORK, GPU, "4096 lanes"),
    "vectors along queries": (f"{TILES} vectorize(i, 8)", WORK, NATIVE, "keys of a tile"),
    "a vector the target lacks": (f"{TILES} vectorize(j, 16)", WORK, NATIVE, "no vector of 16 numbers"),
    "a vector of float64 the target lacks": (f"{TILES} vectorize(j, 8)", replace(WORK, item=8), NATIVE, "hold 4"),
    "a vector of three": (f"{TILES} vectorize(j, 3)", WORK, NATIVE, "no vector of 3"),
    "a target without vectors": (f"{TILES} vectorize(j, 2)", WORK, replace(NATIVE, vector_bytes=0), "it has no vectors"),
    "vectors that do not fill a block": (f"{TILES} split(jj, 12) vectorize(jj, 8)", WORK, NATIVE, "do not divide"),
    "more sums than registers": (f"{TILES} split(ii, 7) split(jj, 16)", WORK, NATIVE, "needs 17 registers of 16"),
    "a body unrolled too often": (f"{TILES} unroll(j, 65)", WORK, NATIVE, "1 to 64 times"),
    "a body unrolled never": (f"{TILES} unroll(j, 0)", WORK, NATIVE, "1 to 64 times"),
    "more rounds than there are": (f"{TILES} unroll(j, 9)", WORK, NATIVE, "has 8 rounds"),
    "more rounds within a tile": (f"{TILES} split(ii, 32) unroll(ii, 3)", WORK, NATIVE, "has 2 rounds"),
    "a space the target lacks": (f"{TILES} stage(k, shared)", WORK, NATIVE, "has no space shared"),
    "an operand the program lacks": (f"{TILES} stage(w, shared)", WORK, GPU, "no operand w"),
    "more shared memory than there is": (f"{TILES} stage(k, shared)", WORK, GPU, "65536 bytes are staged, 32768"),
    "more together than there is": (
        "split(g, 1) split(i, 64) split(j, 64) stage(q, shared) stage(k, shared) stage(scores, shared)",
        WORK, GPU, "49152 bytes are staged",
    ),
    "more registers than there are": (f"{TILES} stage(out, register)", WORK, GPU, "8192 bytes are staged, 512"),
    "panels of a query": (f"{TILES} pack(q, 16)", WORK, NATIVE, "no operand with a vector per key"),
    "panels of nothing": (f"{TILES} pack(k, 0)", WORK, NATIVE, "a multiple of 1"),
    "panels that vectors do not fill": (f"{TILES} split(jj, 8) vectorize(jj, 8) pack(k, 12)", WORK, NATIVE, "of 8 keys"),
    "a grain that panels do not divide": (f"{TILES} grain(j, 24) pack(k, 16)", MASKED, NATIVE, "multiples of 24, within a panel"),
    "a grain within a panel": (f"{TILES} grain(j, 16) pack(k, 16) pack(v, 64)", MASKED_BACK, NATIVE, "pack(v, 64): blocks of keys begin at multiples of 16"),
    "a grain of keys of unknown number": (f"{TILES} grain(j, 24) pack(k, 16)", replace(MASKED, cols=None), NATIVE, "within a panel"),
    "tiles that panels do not divide": ("split(g, 1) split(i, 64) split(j, 100) pack(k, 16)", WORK, NATIVE, "multiples of 100, within a panel"),
    "columns that panels do not divide": (
        "split(g, 1) split(i, 64) split(j, 100) grain(j, 96) pack(k, 16) order(rows-and-columns)", MASKED_BACK, NATIVE, "multiples of 100"),
    "panels wider than a tile": (f"{TILES} pack(k, 512)", WORK, NATIVE, "256 keys only"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(name):
    text, work, target, says = REFUSED[name]
    with pytest.raises(ScheduleError) as raised:
        legal(Schedule.parse(text), work, target)
    assert says in raised.value.message and raised.value.hint


def test_registers_are_counted_as_kernels_use_them():
    """Blocks of 4 x 4 and 6 x 4 vectors fit 32 registers, 7 x 4 spills; 6 x 2 and 4 x 3 fit 16."""
    wide = Target(vector_bytes=64, registers=32)
    narrow = Target(vector_bytes=32, registers=16)

    def block(rows: int, vectors: int, t: Target) -> int:
        return registers(Schedule((Split("ii", rows), Split("jj", vectors * t.vector_bytes // 4))), WORK, t)

    assert block(4, 4, wide) <= 32 and block(6, 4, wide) <= 32 < block(7, 4, wide)
    assert block(6, 2, narrow) <= 16 and block(4, 3, narrow) <= 16 < block(7, 2, narrow)


def test_lanes_cover_a_tile_with_ragged_edges():
    s = Schedule.parse(
        "split(g, 1) split(i, 65) split(j, 18) split(ii, 8) split(jj, 4) bind(ii, lanes) bind(jj, lanes)"
    )
    assert lanes(s) == 9 * 5


@settings(max_examples=100)
@given(schedules, st.sampled_from([TORCH, NATIVE, GPU]), st.sampled_from([WORK, BACK]))
def test_any_schedule_is_legal_or_refused(s, target, work):
    try:
        legal(s, work, target)
    except ScheduleError:
        return
    assert all(s.extent(axis) >= 1 for axis in AXES[:3])


# --- in the IR ---------------------------------------------------------------------------------------------------
def test_a_malformed_schedule_of_an_attention_is_no_module():
    parse(ATTEND % "split(i, 64)")
    with pytest.raises(VerifyError, match="schedule, column 9: expected"):
        parse(ATTEND % "split(i 64)")


def test_loops_tell_how_they_are_made():
    text = str(parse(TILE))
    bound = text.replace('kind = "par"', 'kind = "par", bind = "threads", unroll = 2, vectorize = 4', 1)
    module = parse(bound)
    module.verify()
    assert parse(str(module)) == module
    loop = next(op for op in module.walk() if op.attrs.get("bind"))
    assert (loop.attrs["bind"], loop.attrs["unroll"], loop.attrs["vectorize"]) == ("threads", 2, 4)


@pytest.mark.parametrize(
    "old, new, says",
    [
        ('kind = "red"', 'kind = "red", bind = "threads"', "of a red loop are bound"),
        ('kind = "seq"', 'kind = "seq", bind = "threads"', "of a seq loop are bound"),
        ('kind = "par"', 'kind = "par", bind = "cores"', "is 'cores'"),
        ('kind = "par"', 'kind = "par", unroll = 0', "unroll = 0"),
        ('kind = "par"', 'kind = "par", vectorize = -1', "vectorize = -1"),
    ],
)
def test_loops_refuse_what_they_cannot_be(old, new, says):
    text = str(parse(TILE)).replace(
        'axis = "g", upper = 2, step = 1, kind = "par"', f'axis = "g", upper = 2, step = 1, {old}'
    )
    with pytest.raises((VerifyError, ParseError), match=says):
        parse(text.replace(old, new, 1))


def test_tiles_say_where_they_lie():
    module = parse(TILE)
    loads = [op for op in module.walk() if op.name == "tile.load"]
    t = loads[0].result.type
    loads[0].result.type = replace(t, space="shared")
    module.verify()
    text = str(module)
    assert f"{str(t)[:-1]}, shared>" in text
    again = parse(text)
    again.verify()
    assert again == module and again != parse(TILE)


def test_a_space_nobody_has_is_no_type():
    text = str(TileType.of("f32", (1, 2, 3), "shared")).replace("shared", "attic")
    with pytest.raises(AatcError, match="'attic' is no space"):
        parse(f"tile.func @f(%x: {text}) {{\n  tile.return()\n}}\n")


# --- files -------------------------------------------------------------------------------------------------------
def test_a_file_is_read_line_by_line():
    text = "# two attentions\n\nattend1.backward: split(i, 8)  # small\n attend0 . forward : split(j, 4)\n"
    found = read_schedules(text, ["attend0", "attend1"])
    assert {key: (str(e.schedule), e.line) for key, e in found.items()} == {
        ("attend1", "backward"): ("split(i, 8)", 3),
        ("attend0", "forward"): ("split(j, 4)", 4),
    }


@pytest.mark.parametrize(
    "text, line, column, says, hint",
    [
        ("attend0 forward split(i, 8)", 1, 1, "expected an attention", "a line reads"),
        ("\nattned0.forward: split(i, 8)", 2, 1, "no attention 'attned0'", "did you mean attend0?"),
        ("attend0.sideways: split(i, 8)", 1, 9, "no direction 'sideways'", "there are: forward, backward"),
        ("# x\nattend0.forward: split(i, 8) spilt(j, 8)", 2, 30, "no directive 'spilt'", "did you mean split?"),
        ("attend0.forward: split(i, 8)\nattend0.forward: split(i, 9)", 2, 1, "already, on line 1", "leave one"),
    ],
)
def test_a_malformed_file_shows_its_place(text, line, column, says, hint):
    with pytest.raises(ParseError) as raised:
        read_schedules(text, ["attend0", "attend1"])
    error = raised.value
    assert (error.line, error.column) == (line, column)
    assert says in error.message and error.hint is not None and hint in error.hint
    assert "^" in error.message


def test_a_module_without_schedules_has_an_empty_file():
    assert write_schedules(parse(TILE)) == ""


def test_the_manual_lists_the_directives():
    manual = Path(__file__).parents[2] / "docs" / "schedules.md"
    assert directives_table() in manual.read_text("utf-8")
