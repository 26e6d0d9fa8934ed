"""The kernel language: barriers in uniform control flow, both printers, words."""

from dataclasses import replace

import pytest
import torch

import aatc
from aatc import metrics, passes
from aatc.backends.vulkan import VulkanBackend, whole
from aatc.backends.vulkan.compiled import Compiled
from aatc.backends.vulkan.language import Barrier, Body, For, If, Shared
from aatc.backends.vulkan.lower import lower
from aatc.backends.vulkan.printers import glsl, includes, wgsl
from aatc.backends.vulkan.races import check_races
from aatc.backends.vulkan.uniform import check_uniform
from aatc.backends.vulkan.words import WORDS
from aatc.ir.errors import VerifyError
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.target import Target
from tests.compiler.harness import module_of, record
from tests.conformance.cases import case
from tests.conformance.test_conformance import compiled
from tests.vulkan.running import EXECUTORS, need, usable


def body() -> Body:
    b = Body("k", 64)
    b.word("n_N")
    b.shared.append(Shared("s", "f32", 64))
    return b


def test_barriers_that_all_come_to_are_taken():
    b = body()
    b.open()
    b.add(Barrier())
    b.close_for("i", "0", "p_n_N", 4)
    some = b.let("some", "bool", "agreed(s[0]) > 0.0")
    b.open()
    b.add(Barrier())
    b.close_if(some)
    runs = b.let("first", "i32", "load_i(group.x * 3)")
    b.open()
    b.add(Barrier())
    b.close_for("j", runs, "p_n_N", 1)
    check_uniform(b)


def in_branch_of_threads(b):
    b.open()
    b.add(Barrier())
    b.close_if("thread < 3")


def in_loop_to_a_threads_end(b):
    tx = b.let("tx", "i32", "thread % 8")
    b.open()
    b.add(Barrier())
    b.close_for("i", "0", tx + " + 1", 1)


def below_what_shared_memory_says(b):
    b.open()
    b.add(Barrier())
    b.close_if("s[0] > 0.0")


def by_a_variable_set_where_threads_part(b):
    v = b.var("v", "i32", "0")
    b.open()
    b.set(v, "1")
    b.close_if("thread == 0")
    b.open()
    b.add(Barrier())
    b.close_if(f"{v} == 1")


def by_a_variable_that_a_later_round_sets(b):
    v = b.var("v", "i32", "0")
    b.open()
    b.open()
    b.add(Barrier())
    b.close_if(f"{v} == 0")
    b.set(v, f"{v} + thread")
    b.close_for("i", "0", "3", 1)


def deep_in_branches(b):
    b.open()
    b.open()
    b.add(Barrier())
    b.close_if("p_n_N > 3")
    b.close_if("thread < 3")


def shuffled_in_a_branch(b):
    b.open()
    b.let("x", "f32", "shuffle_xor(1.0, 1u) + 1.0")
    b.close_if("thread < 8")


@pytest.mark.parametrize(
    "fault",
    [
        in_branch_of_threads,
        in_loop_to_a_threads_end,
        below_what_shared_memory_says,
        by_a_variable_set_where_threads_part,
        by_a_variable_that_a_later_round_sets,
        deep_in_branches,
        shuffled_in_a_branch,
    ],
)
def test_control_flow_that_varies_around_a_barrier_is_refused(fault):
    b = body()
    fault(b)
    with pytest.raises(VerifyError, match="varies between threads"):
        check_uniform(b)


def test_a_kernel_in_both_languages():
    b = body()
    at = b.let("at", "i32", "group.x * 64 + thread")
    b.open()
    b.write("f32", at, f"w_acosh(load_f({at}))")
    b.close_if(f"{at} < p_n_N")
    assert "arena_f[at_1] = w_acosh(load_f(at_1));" in glsl(b)
    assert "arena[at_1] = bitcast<u32>(w_acosh(load_f(at_1)));" in wgsl(b)
    for text in (glsl(b), wgsl(b)):  # what it calls, and what that calls, in order, and nothing else
        assert text.index("w_log(") < text.index("w_log1p(") < text.index("w_acosh(")
        assert "w_tanh" not in text


def test_every_word_has_a_text():
    pointwise = {f.name for f in FUNCTIONS.values() if f.kind == "pointwise" and f.spelled is None}
    assert pointwise == WORDS.keys() | {"pow"}


#: Words as plain torch has them, and where they jump, bend or end: numbers, 0 of both signs among them.
EDGES = {
    "step": (lambda x: (x > 0).double(), (-1.0, -0.0, 0.0, 1.0)),
    "sign": (torch.sign, (-2.0, -0.0, 0.0, 2.0)),
    "relu": (torch.relu, (-1.0, -0.0, 0.0, 1.0)),
    "abs": (torch.abs, (-1.0, -0.0, 0.0, 1.0)),
    "sqrt": (lambda x: x.clamp(min=0).sqrt(), (-1.0, -0.0, 0.0, 4.0)),
    "floor": (torch.floor, (-1.5, -1.0, 0.0, 0.5)),
    "log1p": (torch.log1p, (-0.5, -0.0, 0.0, 1.0)),
    "softplus": (lambda x: torch.log1p(x.exp()), (-3.0, 0.0, 1.0, 3.0)),
    "acosh": (lambda x: x.clamp(min=1).acosh(), (0.0, 0.5, 1.0, 2.0)),
    "expacosh": (lambda x: (-x.clamp(min=1).acosh()).exp(), (0.0, 0.5, 1.0, 2.0)),
    "acos": (lambda x: x.clamp(-1, 1).acos(), (-2.0, -1.0, 1.0, 2.0)),
    "asinsqrt": (lambda x: x.clamp(0, 1).sqrt().asin(), (-1.0, 0.0, 1.0, 2.0)),
    "tanh": (torch.tanh, (-9.0, -0.0, 0.0, 9.0)),
}
#: The same of two numbers, the second of them 0.
OF_TWO = {
    "maximum": (lambda x, y: torch.maximum(x, y), (-1.0, -0.0, 0.0, 1.0)),
    "lt": (lambda x, y: (x < y).double(), (-1.0, -0.0, 0.0, 1.0)),
    "le": (lambda x, y: (x <= y).double(), (-1.0, -0.0, 0.0, 1.0)),
    "eq": (lambda x, y: (x == y).double(), (-1.0, -0.0, 0.0, 1.0)),
}


def test_words_at_their_edges_are_what_they_are_in_torch():
    """One kernel: a word per query, a number per key and the scores back from weights and log-sum-exp."""
    vulkan = VulkanBackend()
    vulkan.executor = next((name for name in ("native", *EXECUTORS) if not usable(name)), "native")
    need(vulkan.executor)
    numbers = torch.tensor([at for _, at in (*EDGES.values(), *OF_TWO.values())])

    @aatc.metric(x="ij")
    def words(q, k, i, x):
        score, n = 0.1 * (q @ k), 0
        for n, word in enumerate(EDGES):
            score = score + torch.where(i == n, metrics.word(word, x), 0.0)
        for more, word in enumerate(OF_TWO):
            y = metrics.word(word, x, 0.0 * x)
            y = y if word == "maximum" else torch.where(y, 1.0, 0.0)
            score = score + torch.where(i == n + 1 + more, y, 0.0)
        return score

    rows, keys = numbers.shape
    q, k, v = torch.randn(1, 1, rows, 4), torch.randn(1, 1, keys, 4), torch.eye(keys)[None, None]
    module, program, operands = compiled(vulkan, (q, k, v), {"metric": words(x=numbers), "scale": 1.0})
    assert isinstance(vulkan.compile(module.funcs["attend0"])[0], Compiled)
    o, lse = program.main(*operands)
    got = (o.double().log() + lse.double().unsqueeze(-1))[0, 0] - 0.1 * (q.double() @ k.double().mT)[0, 0]
    zero = torch.zeros(keys, dtype=torch.float64)
    want = [f(x) for (f, _), x in zip(EDGES.values(), numbers.double())]
    want += [f(x, zero) for (f, _), x in zip(OF_TWO.values(), numbers[len(EDGES) :].double(), strict=True)]
    for name, g, w in zip((*EDGES, *OF_TWO), got, want, strict=True):
        assert float((g - w).abs().max()) <= 2e-5, name


def test_both_languages_have_the_same_functions():
    assert includes("glsl").keys() == includes("wgsl").keys()
    called = {w for text in WORDS.values() for w in text.replace("(", " ").split() if w.startswith("w_")}
    assert called <= includes("glsl").keys()


# --- shared memory -------------------------------------------------------------------------------------------
def without(statements, number):
    """Statements without barrier ``number``, counted through; (what is left, barriers seen)."""
    out, seen = [], 0
    for s in statements:
        if isinstance(s, Barrier):
            seen += 1
            if seen - 1 == number:
                continue
        elif isinstance(s, (For, If)):
            inner, more = without(s.body, number - seen)
            seen += more
            s = replace(s, body=inner)
        out.append(s)
    return tuple(out), seen


@pytest.mark.parametrize("kind", ["dot product", "lorentz distance", "mahalanobis", "relative table"])
@pytest.mark.parametrize("subgroup", [8, 0])
def test_a_kernel_without_one_of_its_barriers_is_refused(monkeypatch, kind, subgroup):
    """Nearly every one: at the beginning of a round there may be one more than needed."""
    bodies = []
    monkeypatch.setattr(whole, "check_races", bodies.append)
    c = case(kind, "causal", torch.float32)
    taken, spec, _ = record(*c.operands[:3], **c.parts)
    target = Target("vulkan", shared_bytes=32768, subgroup=subgroup, workgroup=1024, levels=("workgroups", "lanes"),
                    directives=("split", "grain", "order", "bind"))  # fmt: skip
    module = (
        passes.Pipeline.parse(f"{passes.DEFAULT},lower-tokens,forward-copies")
        .run(module_of(taken, spec), target=target)
        .module
    )
    for name in ("attend0", "attend0_backward"):
        lower(module.funcs[name], whole.Device(subgroup=subgroup))
    tried, caught = 0, 0
    for body in bodies:
        check_races(body)
        for n in range(without(body.statements, -1)[1]):
            tried += 1
            body.blocks[0], whole_text = list(without(body.statements, n)[0]), body.blocks[0]
            try:
                check_races(body)
            except VerifyError as error:
                caught += 1
                assert "since the last barrier" in str(error)
            body.blocks[0] = whole_text
    assert tried >= 6 and caught >= 0.8 * tried
