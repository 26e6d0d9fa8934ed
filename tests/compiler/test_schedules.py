"""Schedules through the passes: defaults, those that were given, and what the tile programs become."""

import re
import warnings

import pytest
import torch

import aatc
from aatc import passes
from aatc.backends.cpu import CpuBackend
from aatc.errors import ParseError, PassError, ScheduleError
from aatc.ir.interpreter import run
from aatc.ir.legal import DIRECTIONS, Held, Workload, legal
from aatc.ir.parser import parse
from aatc.ir.schedule import Schedule
from aatc.ir.schedule_file import SCHEDULE_OF, attentions, write_schedules
from aatc.ir.target import Target
from aatc.passes.cost_model import default_schedule
from tests.compiler.harness import module_of, record
from tests.compiler.test_passes import CASES, GEO_PASSES
from tests.ir.test_schedule import GPU, NATIVE, TORCH

SCHEDULED = f"{GEO_PASSES},schedule"
TILED = f"{SCHEDULED},adaptive-tile"
TASKS = "bind(g, threads)"
NESTED = "split(g, 1) split(i, 4) split(j, 4) grain(j, 2)"


def module(name: str):
    q, k, v = (torch.rand(1, 2, 6, 4) for _ in range(3))
    operands, spec, _ = record(q, k, v, **CASES[name])
    return module_of(operands, spec)


def compiled(name: str, pipeline: str = TILED, target: Target | None = None, schedule: str = ""):
    p = passes.Pipeline.parse(pipeline)
    return (passes.with_schedules(p, schedule) if schedule else p).run(module(name), target=target)


def both(text: str, name: str = "attend0") -> str:
    return "".join(f"{name}.{d}: {text}\n" for d in DIRECTIONS)


# --- defaults ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("item", [4, 8])
@pytest.mark.parametrize("width", [1, 7, 64, 256, 1024])
@pytest.mark.parametrize(
    "target",
    [
        TORCH,
        NATIVE,
        Target("wide", 64, (48 << 10, 2 << 20), 64, 32, directives=NATIVE.directives, levels=("threads",)),
        Target("plain", 1, (), 0, 0, directives=NATIVE.directives, levels=("threads",)),
        GPU,
        Target("small", 1, (), 4, 16, 16 << 10, 8, 32, GPU.directives, GPU.levels, GPU.spaces),
        Target("bare", 1, (), 0, 0, 0, 0, 1, ("split", "grain", "bind"), ("workgroups",)),
    ],
    ids=lambda t: t.backend,
)  # fmt: skip
def test_the_default_is_legal(target, width, item, direction):
    held = (Held("q", "i", width), Held("k", "j", width), Held("v", "j", width))
    for sizes in ((None, None, None), (1, 1, 1), (0, 0, 0), (3, 5, 7), (16, 2048, 2048), (1, 1 << 20, 70)):
        w = Workload(direction, *sizes, item, width, 3, held)
        s = default_schedule(w, target)
        legal(s, w, target)
        assert Schedule.parse(str(s)) == s


def test_the_default_of_the_torch_code_is_the_one_that_was_measured():
    """Two cores with 1 MiB each: 512 columns, rows to fill half of the caches; small problems several at a time."""
    target = Target(cores=2)
    large = Workload("forward", 8, 2048, 2048, 4, 64, 2)
    assert str(default_schedule(large, target)) == "split(g, 1) split(i, 512) split(j, 512) grain(j, 64)"
    small = Workload("backward", 32, 64, 50, 4, 64, 2)
    assert str(default_schedule(small, target)) == "split(g, 32) split(i, 64) split(j, 50) grain(j, 50)"


def test_the_default_for_code_of_our_own_has_a_task_per_block_of_rows():
    held = (Held("q", "i", 64), Held("k", "j", 64), Held("v", "j", 64))
    wide = Target("native", 2, (48 << 10, 1 << 20), 64, 32, directives=NATIVE.directives, levels=("threads",))
    w = Workload("forward", 8, 2048, 2048, 4, 64, 2, held)
    assert str(default_schedule(w, wide)) == (
        "split(g, 1) split(i, 128) split(j, 256) grain(j, 64) split(ii, 4) split(jj, 64) vectorize(jj, 16) pack(k, 64) "
        "bind(g, threads) bind(i, threads)"
    )


def test_the_default_of_a_gpu_holds_scores_in_registers_and_keys_in_shared_memory():
    held = (Held("q", "i", 64), Held("k", "j", 64), Held("v", "j", 64))
    s = str(default_schedule(Workload("forward", 8, 2048, 2048, 4, 64, 2, held), GPU))
    assert s.startswith("split(g, 1) split(i, 64) split(j, 16) grain(j, 16) split(ii, 8) split(jj, 4)")
    assert s.endswith("bind(ii, lanes) bind(jj, lanes) stage(k, shared) stage(v, shared)")


def test_a_backward_is_cut_in_two_kernels_where_problems_do_not_fill_the_cores():
    few, many = (Workload("backward", n, 2048, 2048, 4, 64, 4) for n in (8, 16))
    assert default_schedule(few, NATIVE).order == "rows-and-columns" and default_schedule(few, NATIVE).level("i")
    assert default_schedule(many, NATIVE).order == "rows" and not default_schedule(many, NATIVE).level("i")
    assert default_schedule(many, GPU).order == "rows-and-columns"
    assert default_schedule(few, TORCH).order == "rows"


def test_the_backend_tells_what_it_finds_of_the_machine():
    t = CpuBackend().target()
    assert t.cores == torch.get_num_threads() and len(t.caches) >= 2 and t.caches[0] <= t.caches[1] == t.cache_bytes
    assert t.vector_bytes in (0, 16, 32, 64) and not t.levels and not t.spaces


def test_schedules_worth_trying_are_legal_and_begin_with_the_default():
    backend = CpuBackend()
    w = Workload("forward", 4, 300, 40, 4, 16, 2)
    space = backend.schedule_space(w)
    assert space[0] == default_schedule(w, backend.target()) and len(set(space)) == len(space) > 5
    for s in space:
        legal(s, w, backend.target())


# --- text and stages ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["lorentz-distance", "transport"])
@pytest.mark.parametrize(
    "kind, target, schedule",
    [
        ("native", NATIVE, f"{NESTED} split(ii, 2) split(jj, 4) vectorize(jj, 4) pack(k, 4) unroll(j, 2) {TASKS}"),
        ("gpu", GPU, f"{NESTED} reorder(i, g, j) bind(g, workgroups) stage(k, shared) split(ii, 2) bind(ii, lanes)"),
    ],
)  # fmt: skip
def test_scheduled_programs_golden(name, kind, target, schedule, golden):
    """What schedules leave in the text: those of functions, loops, packed buffers, and tiles with a space."""
    text = str(compiled(name, target=target, schedule=both(schedule)).module)
    shown = [
        line for line in text.splitlines() if re.match(r"tile.func|.*tile\.(for|sweep|pack)\(|.*, shared>|\s*\}", line)
    ]
    golden(f"{name}.{kind}.schedule.txt", "\n".join(shown))


@pytest.mark.parametrize("name", CASES)
def test_schedules_survive_their_text_at_every_stage(name):
    for target in (Target(library=("sdpa",)), NATIVE, GPU):
        suffix = ",call-library,plan-memory" if target.library else ""
        result = compiled(name, f"{TILED}{suffix}", target=target)
        for stage in result.stages.values():
            assert parse(str(stage)) == stage
        assert result.stages["schedule"].entry.body.ops
        for stage in ("schedule", "adaptive-tile"):
            for op in attentions(result.stages[stage]).values():
                for attribute in SCHEDULE_OF.values():
                    assert str(Schedule.parse(op.attrs[attribute])) == op.attrs[attribute]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("suffix", ["", ",call-library,plan-memory"])
def test_what_was_done_can_be_repeated(name, suffix):
    target = Target(library=("sdpa",))
    first = compiled(name, f"{SCHEDULED},adaptive-tile{{rows=4 cols=4 heads=1 grain=2}}{suffix}", target).module
    again = compiled(name, f"{TILED}{suffix}", target, write_schedules(first)).module
    assert str(again) == str(first)
    assert write_schedules(again) == write_schedules(first)
    default = compiled(name, f"{TILED}{suffix}", target).module
    assert str(compiled(name, f"{TILED}{suffix}", target, write_schedules(default)).module) == str(default)


def test_attentions_have_one_name_at_every_stage():
    result = compiled("dot")
    for stage in ("schedule", "adaptive-tile"):
        assert list(attentions(result.stages[stage])) == ["attend0"]


# --- numbers -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "target, text",
    [
        (TORCH, "split(g, 2) split(i, 3) split(j, 5) grain(j, 2) reorder(i, g, j)"),
        (NATIVE, "split(i, 2) split(j, 4) bind(g, threads) unroll(j, 2) vectorize(j, 4) pack(k, 4)"),
        (GPU, "split(g, 1) split(i, 5) split(j, 4) bind(g, workgroups) stage(k, shared) stage(v, shared)"),
    ],
    ids=["torch", "native", "gpu"],
)
def test_a_schedule_changes_no_number(name, target, text):
    whole = module(name)
    result = compiled(name, target=target, schedule=both(text))
    result.module.verify()
    values = [torch.rand([int(d) for d in a.type.shape]) for a in whole.entry.args]
    for x, y in zip(run(whole, *values), run(result.module, *values), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-4, atol=2e-4)


def test_what_is_packed_is_read_from_panels_alone():
    text = f"{NESTED} pack(k, 2) {TASKS}"
    m = compiled("euclidean", target=NATIVE, schedule=both(text)).module
    for name, count in (("attend0", 1), ("attend0_backward", 2)):  # centred, and as they are for near pairs
        packs = [op for op in m.funcs[name].body.ops if op.name == "tile.pack"]
        loads = [op for op in m.funcs[name].body.walk() if op.name == "tile.load"]
        assert [op.result.type.layout for op in packs] == ["panels(2)"] * count
        for pack in packs:
            assert any(op.operands[0] is pack.result for op in loads)
            assert not any(op.operands[0] is pack.operands[0] for op in loads)


def test_gradients_of_what_is_packed():
    q, k, v = (torch.rand(1, 2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    operands, spec, eager = record(q, k, v, **CASES["euclidean"])
    wish = passes.with_schedules(passes.Pipeline.parse(TILED), both(f"{NESTED} pack(k, 2) pack(v, 4) {TASKS}"))
    packed = wish.run(module_of(operands, spec), target=NATIVE).module
    assert sum(op.name == "tile.pack" for op in packed.funcs["attend0_backward"].body.ops) == 3
    planned = passes.Pipeline.parse("plan-memory").run(packed).module
    results = aatc.backends.get("cpu").build(planned).main(*operands)
    pull = tuple(torch.randn_like(x) for x in eager)
    for x, y in zip(
        (*results, *torch.autograd.grad(results, (q, k, v), pull)),
        (*eager, *torch.autograd.grad(eager, (q, k, v), pull)),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-11)


def test_forward_and_backward_have_schedules_of_their_own():
    text = "attend0.forward: split(i, 4) split(j, 2)\nattend0.backward: split(i, 3) split(j, 6)\n"
    m = compiled("l1", schedule=text).module
    assert "split(i, 4) split(j, 2)" in m.funcs["attend0"].attrs["schedule"]
    assert "split(i, 3) split(j, 6)" in m.funcs["attend0_backward"].attrs["schedule"]


# --- what is not legal -------------------------------------------------------------------------------------------
def test_a_schedule_that_is_asked_for_and_not_legal_is_an_error():
    with pytest.raises(ScheduleError, match=r"line 2, attend0.forward: vectorize\(j, 8\): .* obeys no vectorize"):
        compiled("dot", schedule="# fast\nattend0.forward: split(i, 4) vectorize(j, 8)\n")
    with pytest.raises(ParseError, match="no attention 'attend1'"):
        compiled("dot", schedule="attend1.forward: split(i, 4)\n")
    with pytest.raises(ScheduleError, match="a tile would hold"):
        compiled("dot", f"{SCHEDULED},adaptive-tile{{rows=100000 cols=100000}}")


def test_a_schedule_that_stands_and_is_not_legal_gives_way_with_a_note():
    fitting = compiled("lorentz-distance", SCHEDULED, NATIVE).module
    kept = str(fitting).replace("bind(g, threads)", "bind(g, threads) unroll(j, 2)")
    result = passes.Pipeline.parse("schedule,adaptive-tile").run(parse(kept), target=TORCH)
    notes = [note for r in result.report for note in r.notes]
    assert len(notes) == 2 and all("gives way to" in n and "obeys no" in n for n in notes)
    assert result.stages["schedule"] == passes.Pipeline.parse("schedule").run(
        compiled("lorentz-distance", GEO_PASSES).module, target=TORCH
    ).module  # fmt: skip


def test_a_schedule_that_stands_and_is_legal_is_kept():
    first = compiled("l1", SCHEDULED, schedule=both("split(i, 2) split(j, 3) grain(j, 1)")).module
    again = passes.Pipeline.parse("schedule,adaptive-tile").run(first)
    assert not any(r.notes for r in again.report)
    assert "split(i, 2) split(j, 3) grain(j, 1)" in again.module.funcs["attend0"].attrs["schedule"]
    larger = passes.Pipeline.parse("adaptive-tile{cols=2}").run(first).module
    assert "split(i, 2) split(j, 2) grain(j, 1)" in larger.funcs["attend0"].attrs["schedule"]


def test_schedules_need_an_attention_to_be_for():
    with pytest.raises(PassError, match="no attention stage stands alone"):
        passes.with_schedules(passes.Pipeline.parse("canonicalize"), both("split(i, 2)")).run(module("dot"))


def test_a_pass_without_attentions_leaves_the_stage_as_it_is():
    plain = passes.Pipeline.parse("fuse-attention,schedule,adaptive-tile").run(module("dot")).stages
    assert plain["schedule"] is not plain["fuse-attention"] and plain["adaptive-tile"] is not plain["schedule"]
    m = parse("geo.func @main(%x: f32[2]) {\n  geo.return(%x)\n}\n")
    stages = passes.Pipeline.parse("canonicalize,schedule,adaptive-tile").run(m).stages
    assert stages["canonicalize"] is stages["schedule"] is stages["adaptive-tile"]
    assert stages["final"] is not stages["schedule"] and stages["final"] == stages["schedule"]


def test_a_pass_keeps_its_schedules_in_its_text():
    p = passes.ScheduleAttention(given=both("split(i, 2) split(j, 3)"))
    assert passes.Pipeline.parse(str(p)).passes == (p,)


# --- through the front door --------------------------------------------------------------------------------------
def test_a_compiled_function_obeys_and_refuses_schedules():
    q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.float64) for _ in range(3))

    def f(q, k, v):
        return aatc.attend(q, k, v, metric=aatc.metrics.DotProduct())

    text = passes.DEFAULT + ",plan-memory"
    want = torch.softmax(q @ k.mT / 2, -1) @ v
    wish = passes.with_schedules(passes.Pipeline.parse(text), both("split(i, 4) split(j, 2)"))
    g = aatc.compile(f, passes=wish)
    torch.testing.assert_close(g(q, k, v), want)
    assert "split(i, 4) split(j, 2)" in g.explain().attentions[0].schedule
    bad = passes.with_schedules(passes.Pipeline.parse(text), both("bind(g, lanes)"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ScheduleError, match="lanes"):
            aatc.compile(f, passes=bad)(q, k, v)
