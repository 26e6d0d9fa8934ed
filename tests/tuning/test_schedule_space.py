"""Schedules worth measuring: legal, different, the likely ones first."""

import itertools
from dataclasses import replace

import pytest

from aatc import backends
from aatc.ir.legal import Held, Workload, legal
from aatc.ir.schedule import Pack, Schedule
from aatc.ir.score.expr import call, index
from aatc.ir.score.program import Program
from aatc.ir.target import Target
from aatc.passes.cost_model import default_schedule
from aatc.passes.predicted_time import ordered, predicted_seconds
from aatc.passes.schedule_space import thread_space

DIRECTIVES = ("split", "grain", "reorder", "order", "bind", "pack", "vectorize")
TARGETS = [
    Target("avx512", 2, (48 << 10, 1 << 20), 64, 32, directives=DIRECTIVES, levels=("threads",)),
    Target("avx2", 64, (32 << 10, 256 << 10), 32, 16, directives=DIRECTIVES, levels=("threads",)),
    Target("sse", 1, (), 16, 16, directives=DIRECTIVES, levels=("threads",)),
    Target("bare", 1, (), 0, 0, directives=("split", "grain", "bind"), levels=("threads",)),
]
SIZES = [(None, None, None), (0, 0, 0), (1, 1, 1), (3, 5, 7), (8, 2048, 2048), (256, 49, 49), (1, 1, 8192)]
CAUSAL = Program.of(call("le", index("j"), index("i")))


def work(direction, sizes, item=4, width=64, mask=None):
    held = (Held("q", "i", width), Held("k", "j", width), Held("v", "j", width))
    return Workload(direction, *sizes, item, width, 2 if direction == "forward" else 4, held, mask)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.backend)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_all_are_legal_and_none_is_there_twice(target, direction):
    for sizes, item in itertools.product(SIZES, (4, 8)):
        w = work(direction, sizes, item)
        space = thread_space(w, target)
        assert space[0] == default_schedule(w, target) and len(set(space)) == len(space) <= 32
        for s in space:
            legal(s, w, target)
            assert predicted_seconds(s, w, target) >= 0
        assert list(space[1:]) == ordered(space[1:], w, target)


def test_extents_blocks_packing_and_orders_vary():
    w = work("backward", (8, 2048, 2048))
    space = thread_space(w, TARGETS[0])
    assert {s.order for s in space} == {"rows", "rows-and-columns"}
    assert {sum(1 for _ in s.every(Pack)) for s in space} == {0, 1, 2}
    for axis, least in (("i", 4), ("j", 3), ("ii", 3), ("jj", 2)):
        assert len({s.extent(axis) for s in space}) >= least, axis


def test_the_backend_offers_them():
    backend = backends.get("native")
    w = work("forward", (8, 2048, 2048))
    assert len(backend.schedule_space(w)) > 20
    assert backend.schedule_space(w)[0] == default_schedule(w, backend.target())


# --- predicted time ----------------------------------------------------------------------------------------------
def seconds(text, sizes=(8, 2048, 2048), direction="forward", target=TARGETS[0]):
    w = work(direction, sizes)
    return predicted_seconds(Schedule.parse(text).completed(default_schedule(w, target)), w, target)


TASKS = "bind(g, threads) bind(i, threads)"
BLOCK = f"split(ii, 4) split(jj, 64) vectorize(jj, 16) pack(k, 64) {TASKS}"


def test_what_takes_longer_is_predicted_to():
    good = seconds(f"split(i, 128) split(j, 256) {BLOCK}")
    assert 1e-3 < good < 1.0
    assert good < seconds(
        f"split(i, 128) split(j, 256) split(ii, 1) split(jj, 16) vectorize(jj, 16) pack(k, 16) {TASKS}"
    )
    assert good < seconds(f"split(i, 128) split(j, 256) {BLOCK}".replace("pack(k, 64) ", ""))
    assert good < seconds(f"split(i, 2048) split(j, 2048) {BLOCK}")
    assert good < seconds(f"split(i, 8) split(j, 64) {BLOCK}")


def test_it_grows_with_the_work_and_shrinks_with_cores():
    text = f"split(i, 128) split(j, 256) {BLOCK}"
    times = [seconds(text, (8, n, n)) for n in (256, 512, 1024, 2048)]
    assert all(3 < b / a < 5 for a, b in itertools.pairwise(times))
    more = [seconds(text, target=replace(TARGETS[0], cores=n)) for n in (1, 2, 4, 128, 10_000)]
    assert more == sorted(more, reverse=True) and more[0] > 3.5 * more[2]
    assert seconds(text, direction="backward") > 2 * seconds(text)


def test_few_problems_keep_few_cores_busy_by_rows():
    """One problem is one task by rows, and many by rows and columns."""
    rows = f"split(i, 64) split(j, 64) {BLOCK}".replace(TASKS, "bind(g, threads)")
    both = f"split(i, 64) split(j, 64) {BLOCK} order(rows-and-columns)"
    assert seconds(rows, (1, 2048, 2048), "backward") > seconds(both, (1, 2048, 2048), "backward")
    assert seconds(rows, (64, 2048, 2048), "backward") < seconds(both, (64, 2048, 2048), "backward")


def test_a_mask_saves_more_with_low_tiles():
    w, full = work("forward", (8, 2048, 2048), mask=CAUSAL), work("forward", (8, 2048, 2048))

    def saved(rows):
        s = Schedule.parse(f"split(i, {rows}) split(j, 256) {BLOCK}").completed(default_schedule(full, TARGETS[0]))
        return predicted_seconds(s, w, TARGETS[0]) / predicted_seconds(s, full, TARGETS[0])

    assert 0.5 < saved(64) < saved(128) < saved(1024) < 0.9


def test_what_one_block_of_queries_reads_is_not_packed():
    """A decoding step would copy all of its keys to read them once."""
    target = TARGETS[0]
    for sizes, packed in (((1, 1, 8192), 0), ((256, 49, 49), 0), ((8, 2048, 2048), 1), ((8, None, 2048), 1)):
        default = default_schedule(work("forward", sizes), target)
        assert sum(1 for _ in default.every(Pack)) == packed, sizes
