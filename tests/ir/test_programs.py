"""Programs: what the verifier refuses, at the right operation."""
# ruff: noqa: E501  (IR texts keep their lines)

import re

import pytest

from aatc.ir.errors import ParseError, VerifyError
from aatc.ir.parser import parse
from aatc.ir.program_rules import MAX_PUSH, kernel_hash
from tests.ir.samples import PROGRAM

# What stands in the sample, what takes its place, and the error's words.
REFUSED = {
    "a removed level (read after write)": ("level = 1}", "level = 0}", "reads what program.zero writes"),
    "a level too early (update after update)": ("level = 2}", "level = 1}", "reads what program.dispatch writes"),
    "the last one too early": ("level = 3}", "level = 2}", "reads what program.dispatch writes"),
    "no level": (", level = 3}", "}", "has no level"),
    "a negative level": ("level = 0}", "level = -1}", "is no level"),
    "a write while it is read": (
        "offset = 256} : f32[2,64]", "offset = 128} : f32[2,64]", "has been written to its words|in the place of",
    ),
    "a place that is kept": ("offset = 256} : f32[2,64]", "offset = 0} : f32[2,64]", "is kept from one call"),
    "an offset that is not aligned": ("offset = 256}", "offset = 257}", "no multiple of 64 words"),
    "no offset": ("keep = false, offset = 256}", "keep = false}", "has no offset"),
    "an arena too small": ("words = 448", "words = 384", "ends at word 388 of an arena of 384"),
    "an alignment that is none": ("alignment = 64", "alignment = 65", "no power of 2"),
    "an attribute nobody knows": ("alignment = 64", "colour = 64", "has no attribute colour"),
    "words missing": ("push = [#1, #2, 64, -0.5]", "push = [#1, #2, 64]", "takes 4 push words, the dispatch gives 3"),
    "a word of no operand": ("push = [#1, #2, 64, -0.5]", "push = [#1, #3, 64, -0.5]", "#3 is no buffer"),
    "a word of the kernel": ("push = [#1, #2, 64, -0.5]", "push = [#0, #2, 64, -0.5]", "#0 is no buffer"),
    "a word too large": ("push = [#1, #2, 64, -0.5]", "push = [#1, #2, 64000000000, -0.5]", "has no 32 bits"),
    "a number too large": ("push = [#1, #2, 64, -0.5]", "push = [#1, #2, 64, -5e38]", "no number of f32"),
    "a text as a word": ("push = [#1, #2, 64, -0.5]", 'push = [#1, #2, 64, "a"]', "a word is"),
    "a grid of nothing": ("grid = [1, 1, 1]", "grid = [0, 1, 1]", "grid are 3 integers of at least 1"),
    "a grid of four axes": ("grid = [1, 1, 1]", "grid = [1, 1, 1, 1]", "grid are 3 integers"),
    "access to what is not there": ('access = ["read", "update"], grid = [1', 'access = ["read"], grid = [1', "access says"),
    "access of another kind": ('access = ["read", "update"], grid = [1', 'access = ["read", "maybe"], grid = [1', "access says"),
    "a buffer that nobody wrote": ("program.zero(%d) {level = 0}", "", "read before it has been written"),
    "an input that nobody wrote": ("program.upload(%x, %a)\n", "", "read before it has been written"),
    "an upload when the place is in use": (
        "  %y = program.download", "  program.upload(%x, %d)\n  %y = program.download", "it runs before all levels",
    ),
    "a parameter that is not kept": ("keep = true, offset = 0", "keep = false, offset = 0", "%b is not kept"),
    "another shape": ("%c = program.buffer() {keep = false, offset = 128} : f32[128]",
                      "%c = program.buffer() {keep = false, offset = 128} : f32[64]", "do not hold the same"),
    "integers of numbers": ("%w: f32[64]", "%w: i64[64]", "do not hold the same"),
    "complex numbers": ("%w: f32[64]", "%w: c64[64]", "do not hold the same"),
    "a part behind the end": ("{start = 64}", "{start = 68}", "of a buffer of 128"),
    "a part between vectors": ("{start = 64}", "{start = 63}", "multiple of 4"),
    "a dtype no buffer holds": ("offset = 384} : i32[3]", "offset = 384} : i64[3]", "a buffer holds"),
    "a symbolic size": ("aatc 2\n", "aatc 2\n\ndims {N in [1, 2]}\n", None),
    "a hash that is none": ("fedcba9876543210fedcba", "fedcba9876543210xxxxxx", "64 hexadecimal digits"),
    "a word twice": ('push = ["x", "y", "n", "A"]', 'push = ["x", "y", "n", "x"]', "none of them twice"),
    "a workgroup of nothing": ("local = [8, 8, 1]", "local = [8, 0, 1]", "local are 3 integers of at least 1"),
    "a block too small": ("words = [#1, #2, 128]", "words = [#1, #2, 128, 1, 2]", "do not fit"),
    "a tensor in place of a buffer": ("program.zero(%d)", "program.zero(%x)", "is no buffer"),
    "a buffer in place of a tensor": ("program.return(%y, %x)", "program.return(%y, %a)", "is no tensor of the host"),
    "a tensor in place of a kernel": ("program.dispatch(%turn,", "program.dispatch(%x,", "no kernel"),
    "a program that ends as another": ("program.return(%y, %x)", "geo.return(%y, %x)", "must end with program.return"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_a_planted_fault_is_refused(fault):
    old, new, words = REFUSED[fault]
    assert old in PROGRAM
    text = PROGRAM.replace(old, new, 1)
    if words is None:
        text, words = text.replace("%n: i64[3])", "%n: i64[3], %u: f32[N])"), "no tensor of given sizes"
    with pytest.raises(VerifyError, match=words) as caught:
        parse(text)
    assert caught.value.line is not None


def test_a_level_too_many_is_no_fault():
    parse(PROGRAM.replace("level = 3}", "level = 7}"))


def test_two_dispatches_of_one_level_may_read_the_same():
    read = '  program.dispatch(%turn, %at, %d, %e) {access = ["read", "read", "write"], grid = [2, 1, 1], push = [#1], level = 3}\n'
    extra = "  %e = program.buffer() {keep = false, offset = 448} : f32[128]\n"
    text = PROGRAM.replace("words = 448", "words = 576").replace("  %y =", f"{extra}{read}  %y =")
    parse(text)
    with pytest.raises(VerifyError, match="it has to run in a later level"):
        parse(text.replace("%c = program.buffer() {keep = false, offset = 128}",
                           "%c = program.buffer() {keep = false, offset = 448}"))  # fmt: skip


def test_a_dispatch_does_not_write_beside_what_it_reads():
    with pytest.raises(VerifyError, match="in the place of"):
        parse(PROGRAM.replace("(%axpy, %b, %half)", "(%axpy, %d, %half)"))


def test_more_words_than_may_be_pushed():
    names = ", ".join(f'"w{n}"' for n in range(MAX_PUSH + 1))
    text = PROGRAM.replace('push = ["x", "y", "n", "A"]', f"push = [{names}]")
    with pytest.raises(VerifyError, match=f"{MAX_PUSH + 1} push words are more than {MAX_PUSH}"):
        parse(text)
    # those of a block lie in the arena
    parse(PROGRAM.replace('push = ["x", "y", "n"]', f"push = [{names}]"))


def test_texts_of_kernels_are_those_of_the_hash():
    glsl = 'void main() { /* "ü" */ }\n'
    good = kernel_hash(glsl, None, ["x", "y", "n"], [8, 8, 1], 4096, [], True)
    text = PROGRAM.replace("fedcba9876543210" * 4, good).replace(
        "block = true}", 'block = true, glsl = "void main() { /* \\"ü\\" */ }\\n"}'
    )
    module = parse(text)
    assert parse(str(module)) == module
    with pytest.raises(VerifyError, match="the hash is not that of the texts"):
        parse(re.sub(r"void main", "void mine", text))
    with pytest.raises(VerifyError, match="beside one in GLSL"):
        parse(text.replace("glsl =", "wgsl ="))


def test_kernels_belong_to_programs():
    with pytest.raises(VerifyError, match="exists at the program level only"):
        parse("geo.func @f(%k: kernel) {\n  geo.return(%k)\n}\n")
    with pytest.raises(VerifyError, match="belongs to level program"):
        parse("geo.func @f() {\n  %b = program.buffer() {keep = true} : f32[4]\n  geo.return(%b)\n}\n")
    with pytest.raises(ParseError):
        parse("program.func @f() {\n  program.zero(%b)\n}\n")
