"""Planned programs compute what their text says: whatever the order within a level, whatever shares a place.

Drawn programs are run twice: as they are written, every buffer by itself, and from their levels and offsets, in one
list of words and with the steps of a level shuffled. Kernels are stand-ins that mix up what they read.
"""

import random
import re

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from aatc import passes
from aatc.errors import PassError, VerifyError
from aatc.ir.core import Block, Func, Module, Op, Value
from aatc.ir.parser import parse
from aatc.ir.registry import Operand
from aatc.ir.types import KERNEL, TensorType
from aatc.passes.plan_program import depth, lifetimes, most_alive, plan
from tests.ir.samples import PROGRAM

KERNEL_ATTRS = {"name": "mix", "hash": "0" * 64, "push": ("s",), "local": (8, 1, 1), "shared": 0, "features": (),
                "block": False}  # fmt: skip


def drawn(seed):
    """A program that is not planned: uploads, parameters, zeros, parts, and dispatches on what holds something."""
    rng = random.Random(seed)
    sizes = [rng.choice((4, 8, 60, 64, 100, 256)) for _ in range(rng.randint(4, 12))]
    args, ops, full = [], [], []
    kernel = Op("program.kernel", (), KERNEL_ATTRS, [KERNEL], result_names=["mix"])
    ops.append(kernel)

    def buffer(n, keep=False):
        ops.append(Op("program.buffer", (), {"keep": keep}, [TensorType.of("f32", [n])], result_names=["b"]))
        return ops[-1].result

    for n in sizes[:3]:
        keep = rng.random() < 0.3
        args.append(Value(TensorType.of("f32", [n]), "x"))
        full.append(buffer(n, keep))
        ops.append(Op("program.parameter" if keep else "program.upload", (args[-1], full[-1])))
    empty = [buffer(n) for n in sizes[3:]]
    for number in range(rng.randint(3, 25)):
        reads = rng.sample(full, rng.randint(0, min(2, len(full))))
        choice = rng.random()
        others = [v for v in full if v not in reads]
        if empty and choice < 0.5:
            target, access = empty.pop(rng.randrange(len(empty))), "write"
            full.append(target)
            if rng.random() < 0.3:
                ops.append(Op("program.zero", (target,), {}))
                access = "update"
                if rng.random() < 0.5:  # what is 0 may be read before anything is written to it, or never touched
                    continue
        elif others and choice < 0.9:
            target, access = rng.choice(others), rng.choice(("update", "write"))
        elif others:
            target = rng.choice(others)
            whole = int(target.type.shape[0])
            if whole >= 8:
                start = 4 * rng.randrange(whole // 4 - 1)
                part = Op("program.part", (target,), {"start": start}, [TensorType.of("f32", [4])])
                ops.append(part)
                target = part.result
            access = rng.choice(("update", "write"))
        else:
            continue
        attrs = {"access": (*["read"] * len(reads), access), "grid": (1, 1, 1), "push": (number,)}
        ops.append(Op("program.dispatch", (kernel.result, *reads, target), attrs))
    found = [Op("program.download", (v,), {}, [v.type]) for v in rng.sample(full, rng.randint(1, len(full)))]
    ops += [*found, Op("program.return", [op.result for op in found])]
    module = Module()
    module.add(Func("main", "program", Block(args, ops)))
    return module.verify()


def mixed(op, inputs, n):
    state = [hash((op.attrs["push"][0], k, *(x for i in inputs for x in i))) for k in range(n)]
    return state


def run(func, offsets, order):
    """Results of ``order`` over a list of words; ``offsets`` of buffers and parts."""
    end = max([o + n for o, n in offsets.values()], default=0)
    store = ["?"] * end
    tensors = {v: [f"{n}.{k}" for k in range(int(v.type.shape[0]))] for n, v in enumerate(func.args)}

    def read(v):
        at, n = offsets[v]
        return store[at : at + n]

    def write(v, values):
        at, n = offsets[v]
        store[at : at + n] = values[:n]

    for op in order:
        if op.name in ("program.upload", "program.parameter"):
            write(op.operands[1], tensors[op.operands[0]])
        elif op.name == "program.zero":
            write(op.operands[0], [0] * offsets[op.operands[0]][1])
        elif op.name == "program.dispatch":
            target = op.operands[-1]
            inputs = [read(v) for v in op.operands[1:-1]]
            if op.attrs["access"][-1] == "update":
                inputs.append(read(target))
            write(target, mixed(op, inputs, offsets[target][1]))
        elif op.name == "program.download":
            tensors[op.result] = read(op.operands[0])
    return [tensors[v] for v in func.body.ops[-1].operands]


def places(func, planned):
    found, end = {}, 0
    for op in func.body.ops:
        if op.name == "program.buffer":
            n = int(op.result.type.shape[0])
            found[op.result] = (op.attrs["offset"] if planned else end, n)
            end += n
        elif op.name == "program.part":
            found[op.result] = (found[op.operands[0]][0] + op.attrs["start"], int(op.result.type.shape[0]))
    return found


def by_level(func, rng):
    steps = [op for op in func.body.ops if "level" in op.attrs]
    rng.shuffle(steps)
    steps.sort(key=lambda op: op.attrs["level"])
    names = [op.name for op in func.body.ops]
    first = [op for op, n in zip(func.body.ops, names, strict=True) if n in ("program.upload", "program.parameter")]
    return [*first, *steps, *(op for op in func.body.ops if op.name == "program.download")]


@given(st.integers(0, 2**32))
def test_a_planned_program_computes_what_its_text_says(seed):
    module = drawn(seed)
    func = module.funcs["main"]
    want = run(func, places(func, False), func.body.ops)
    planned = passes.Pipeline.parse("plan-program{alignment=4}").run(module.clone()).module
    assert parse(str(planned)) == planned
    for n in range(3):
        mine = planned.funcs["main"]
        assert run(mine, places(mine, True), by_level(mine, random.Random(n))) == want


@given(st.integers(0, 2**32))
def test_levels_are_as_few_as_they_can_be_and_one_less_is_refused(seed):
    module = passes.Pipeline.parse("plan-program").run(drawn(seed)).module
    func = module.funcs["main"]
    for op in func.body.ops:
        if op.name == "program.dispatch" and op.attrs["level"] > 0:
            op.attrs["level"] -= 1
            with pytest.raises(VerifyError, match="it has to run in a later level"):
                module.verify()
            op.attrs["level"] += 1
    module.verify()


@given(st.integers(0, 2**32))
def test_what_is_moved_or_put_earlier_is_refused_unless_it_computes_the_same(seed):
    """Any one offset or level changed: two buffers in one place while both are needed, a step that does not wait."""
    module = drawn(seed)
    want = run(module.funcs["main"], places(module.funcs["main"], False), module.funcs["main"].body.ops)
    module = passes.Pipeline.parse("plan-program").run(module).module
    func, rng = module.funcs["main"], random.Random(seed)
    marked = [(op, n) for op in func.body.ops for n in ("offset", "level") if n in op.attrs]
    refused = 0
    for op, name in marked:
        before = op.attrs[name]
        op.attrs[name] = rng.choice([o.attrs[n] for o, n in marked if n == name])
        try:
            module.verify()
        except VerifyError:
            refused += 1
        else:
            for n in range(3):
                assert run(func, places(func, True), by_level(func, random.Random(n))) == want
        op.attrs[name] = before
    event(f"refused: {10 * refused // len(marked)} of 10")


@given(st.integers(0, 2**32))
def test_plans_are_the_same_every_time_and_near_the_least(seed):
    one, two = (passes.Pipeline.parse("plan-program").run(drawn(seed)).module for _ in range(2))
    assert str(one) == str(two)
    func = one.funcs["main"]
    least = most_alive(lifetimes(func), 64)
    assert least <= func.attrs["words"] <= 1.5 * least
    assert str(passes.Pipeline.parse("plan-program").run(one.clone()).module) == str(one)


def test_steps_that_do_not_wait_for_each_other_share_a_level():
    module = parse(PROGRAM)
    module = passes.Pipeline.parse("plan-program").run(module).module
    assert depth(module.funcs["main"]) == 4


def chain(length):
    """Each step reads what the one before wrote, to a buffer of its own."""
    x = Value(TensorType.of("f32", [64]), "x")
    kernel = Op("program.kernel", (), KERNEL_ATTRS, [KERNEL])
    ops = [kernel, Op("program.buffer", (), {"keep": False}, [x.type])]
    ops.append(Op("program.upload", (x, ops[1].result)))
    last = ops[1].result
    for n in range(length):
        new = Op("program.buffer", (), {"keep": False}, [x.type])
        step = {"access": ("read", "write"), "grid": (1, 1, 1), "push": (n,)}
        ops += [new, Op("program.dispatch", (kernel.result, last, new.result), step)]
        last = new.result
    ops.append(Op("program.download", (last,), {}, [x.type]))
    ops.append(Op("program.return", [ops[-1].result]))
    module = Module()
    module.add(Func("main", "program", Block([x], ops)))
    return module


def test_zeros_are_there_before_they_are_read():
    """Two readers of a buffer of zeros, and then a writer: the zero comes before the readers' level."""
    text = (
        PROGRAM[: PROGRAM.index("  program.zero")]
        + """  program.zero(%d)
  program.dispatch(%axpy, %d, %a) {access = ["read", "update"], grid = [1, 1, 1], push = [#1, #2, 64, 0.5]}
  program.dispatch(%axpy, %a, %d) {access = ["read", "update"], grid = [1, 1, 1], push = [#1, #2, 64, 2.0]}
  %y = program.download(%d) : f32[128]
  program.return(%y, %x)
}
"""
    )
    text = re.sub(r", offset = \d+", "", text).replace(" {words = 448, alignment = 64}", "")
    text = text.replace("  program.block(%at, %d, %c) {words = [#1, #2, 128]}\n", "")
    text = text.replace("  %y = program.download(%d) : f32[128]", "  %y = program.download(%d) : f32[2,64]")
    func = parse(text).entry
    plan(func)
    steps = [op for op in func.body.ops if "level" in op.attrs]
    zero, read, written = (op.attrs["level"] for op in steps[-3:])
    assert zero < read < written


def test_a_chain_runs_in_two_or_three_places():
    """Two would do; a third is taken only where the arena has it: not by itself."""
    module = passes.Pipeline.parse("plan-program").run(chain(40)).module
    func = module.funcs["main"]
    assert func.attrs["words"] == 128 and depth(func) == 40


def test_words_left_long_ago_are_taken_before_those_just_left():
    """Beside a large buffer that has gone, there is room to leave a level between two that share words."""
    module = chain(12)
    func = module.funcs["main"]
    kernel = func.body.ops[0].result
    big = Op("program.buffer", (), {"keep": False}, [TensorType.of("f32", [1024])])
    fill = {"access": ("write",), "grid": (1, 1, 1), "push": (99,)}
    func.body.ops[1:1] = [big, Op("program.dispatch", (kernel, big.result), fill)]
    func = passes.Pipeline.parse("plan-program").run(module).module.funcs["main"]
    lives = [x for x in lifetimes(func) if x.words == 64 and x.first >= 2]
    at = {x: x.buffer.owner.attrs["offset"] for x in lives}
    near = [(a, b) for a in lives for b in lives if a is not b and at[a] == at[b] and a.overlaps(b, apart=1)]
    assert func.attrs["words"] == most_alive(lifetimes(func), 64) == 1152 and not near


def test_an_alignment_that_is_none():
    with pytest.raises(PassError, match="alignment = 12"):
        passes.Pipeline.parse("plan-program{alignment=12}")


def test_offsets_are_operands():
    assert Operand(1) in next(op for op in parse(PROGRAM).walk() if op.name == "program.dispatch").attrs["push"]
