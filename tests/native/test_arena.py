"""Blocks are aligned, apart and reused; figures are true; what is kept is bounded; threads and children are safe."""

import gc
import os
import random
import sys
import threading

import pytest
import torch

from aatc.backends.native.arena import ALIGNMENT, HUGE, Arena
from aatc.errors import AatcError
from tests.native.test_launch import fork, in_child

MIB = 1 << 20


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 4095, 4096, 4097, 100_000, 3 * MIB, 9 * MIB])
def test_blocks_are_aligned_and_all_of_them_can_be_written(nbytes):
    arena = Arena()
    with arena.take(nbytes) as block:
        assert block.nbytes == nbytes
        assert block.address % ALIGNMENT == 0
        assert nbytes < 4096 or block.address % 4096 == 0
        assert nbytes < 2 * HUGE or block.address % HUGE == 0
        view = block.tensor((nbytes,), torch.uint8).fill_(7)
        assert nbytes == 0 or (view.data_ptr() == block.address and int(view.sum(dtype=torch.int64)) == 7 * nbytes)


def test_blocks_are_apart():
    arena, draw = Arena(), random.Random(0)
    held = []
    for n in range(400):
        if held and draw.random() < 0.5:
            block, value = held.pop(draw.randrange(len(held)))
            assert torch.all(block.tensor((block.nbytes,), torch.uint8) == value)
            arena.give(block)
        else:
            block = arena.take(draw.choice([1, 100, 5000, 70_000]))
            block.tensor((block.nbytes,), torch.uint8).fill_(n % 251)
            held.append((block, n % 251))
    for block, value in held:
        assert torch.all(block.tensor((block.nbytes,), torch.uint8) == value)


def test_figures_are_those_of_the_blocks():
    arena = Arena()
    a, b = arena.take(1 * MIB), arena.take(2 * MIB)
    assert (arena.figures().allocated, arena.figures().peak) == (3 * MIB, 3 * MIB)
    assert arena.figures().held == 3 * MIB
    assert arena.figures().fragmentation == 0
    arena.give(a)
    now = arena.figures()
    assert (now.allocated, now.peak, now.held) == (2 * MIB, 3 * MIB, 3 * MIB)
    assert now.fragmentation == pytest.approx(1 / 3)
    arena.reset_peak()
    assert arena.figures().peak == 2 * MIB
    arena.give(b)
    arena.release()
    now = arena.figures()
    assert (now.allocated, now.held, now.fragmentation, now.lent, now.reused) == (0, 0, 0.0, 2, 0)


def test_memory_is_used_again():
    arena = Arena()
    with arena.take(100_000) as first:
        pass
    with arena.take(99_000) as second:
        assert second.address == first.address
    with arena.take(10_000) as third:
        assert third.address != first.address  # ten times too large for it
    assert arena.figures().reused == 1


def test_what_is_kept_is_bounded_and_the_oldest_goes_first():
    arena = Arena(keep=4 * MIB)
    blocks = [arena.take(MIB) for _ in range(6)]
    addresses = [block.address for block in blocks]
    for block in blocks:
        arena.give(block)
    assert arena.figures().held == 4 * MIB
    again = [arena.take(MIB) for _ in range(4)]
    assert {block.address for block in again} == set(addresses[2:])
    arena.give(arena.take(8 * MIB))  # more than may be kept
    assert arena.figures().held == 4 * MIB
    assert Arena(keep=0).figures().held == 0


def test_a_large_block_does_not_come_on_top_of_what_was_kept():
    arena = Arena(keep=4 * MIB)
    arena.give(arena.take(3 * MIB))
    with arena.take(MIB):
        assert arena.figures().held == 4 * MIB  # beside what was kept
    with arena.take(8 * MIB):
        assert arena.figures().held == 8 * MIB
    assert arena.figures().peak_held == 8 * MIB


def test_a_block_comes_back_once():
    arena, other = Arena(), Arena()
    block = arena.take(100)
    with pytest.raises(AatcError, match="another arena"):
        other.give(block)
    arena.give(block)
    with pytest.raises(AatcError, match="before"):
        arena.give(block)
    with pytest.raises(ValueError, match="-1"):
        arena.take(-1)
    with pytest.raises(ValueError, match="too small"):
        arena.take(100).tensor((26,), torch.float32)
    gc.collect()
    assert arena.figures().allocated == 0


def test_a_block_that_nobody_holds_comes_back():
    arena = Arena()
    address = arena.take(5000).address
    gc.collect()
    assert arena.figures().allocated == 0
    assert arena.take(5000).address == address


def test_blocks_come_back_after_an_error():
    arena = Arena()
    with pytest.raises(KeyError), arena.session() as session:
        session.bytes(1000)
        assert session.tensor((3, 5), torch.float64).shape == (3, 5)
        raise KeyError
    assert arena.figures().allocated == 0
    assert arena.figures().peak == 1000 + 3 * 5 * 8


def test_tensors_of_a_session_are_apart_and_contiguous():
    with Arena().session() as session:
        made = [session.tensor((2, 3, n), dtype) for n in (1, 7, 0) for dtype in (torch.float32, torch.bfloat16)]
        for n, x in enumerate(made):
            assert x.is_contiguous()
            x.fill_(n)
        assert all(torch.all(x == n) for n, x in enumerate(made))


def test_too_much_is_a_memory_error():
    arena = Arena()
    arena.give(arena.take(MIB))
    with pytest.raises(MemoryError):
        arena.take(1 << 62)
    assert arena.figures().allocated == 0


def test_threads_may_share_an_arena():
    arena = Arena(keep=MIB)
    wrong = []

    def work(n: int) -> None:
        draw = random.Random(n)
        for _ in range(300):
            with arena.session() as session:
                held = [session.tensor((draw.choice([10, 3000, 40_000]),), torch.int32).fill_(n) for _ in range(3)]
                wrong.extend(n for x in held if not torch.all(x == n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    now = arena.figures()
    assert now.allocated == 0
    assert now.held <= MIB
    assert now.lent == 4 * 300 * 3


@fork
def test_a_child_has_its_own_memory():
    arena = Arena()
    kept = arena.take(5000)
    kept.tensor((5000,), torch.uint8).fill_(1)
    arena.give(arena.take(100_000))
    ended = threading.Event()

    def busy() -> None:
        while not ended.is_set():
            arena.give(arena.take(7000))

    thread = threading.Thread(target=busy)
    thread.start()

    def child() -> int:
        with arena.take(100_000) as block:
            block.tensor((1000,), torch.uint8).fill_(9)  # of more, torch itself would hang in a child
        kept.tensor((5000,), torch.uint8).fill_(2)
        return arena.figures().allocated >= 5000

    try:
        for _ in range(5):
            assert in_child(child) == "True"
    finally:
        ended.set()
        thread.join()
    assert torch.all(kept.tensor((5000,), torch.uint8) == 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's figures of the process")
def test_memory_goes_back_to_the_system():
    def resident() -> int:
        with open("/proc/self/statm", encoding="utf-8") as figures:
            return int(figures.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    arena, before = Arena(), resident()
    with arena.take(50 * MIB) as block:
        block.tensor((50 * MIB,), torch.uint8).fill_(1)
        assert resident() - before > 45 * MIB
    assert resident() - before > 45 * MIB
    arena.release()
    del block
    assert resident() - before < 10 * MIB
