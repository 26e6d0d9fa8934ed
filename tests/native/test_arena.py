"""Blocks are aligned, apart and reused; figures are true; what is kept is bounded; threads and children are safe."""

import ctypes
import dis
import gc
import itertools
import os
import random
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.backends.native import arena as arena_module
from aatc.backends.native import free_list
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
    assert (now.free, now.largest_free, now.fragmentation) == (MIB, MIB, 0)  # all that is free is in one piece
    arena.reset_peak()
    assert arena.figures().peak == 2 * MIB
    arena.give(b)
    assert arena.figures().fragmentation == pytest.approx(1 - 2 / 3)  # no block of 3 MiB can be had
    arena.release()
    now = arena.figures()
    assert (now.allocated, now.held, now.fragmentation, now.lent, now.reused) == (0, 0, 0.0, 2, 0)


def test_memory_is_used_again():
    arena = Arena()
    with arena.take(100_000) as first:
        pass
    with arena.take(99_000) as second:
        assert second.address == first.address
    with arena.take(10_000) as third, arena.take(50_000) as fourth:
        assert third.address == first.address  # the rest of it is still free
        assert fourth.address == first.address + 12_288  # at a page
    assert arena.figures().reused == 3
    assert arena.figures().held == HUGE


def test_free_neighbours_are_one_span_again():
    arena = Arena()
    blocks = [arena.take(n) for n in (4096, 8192, 4096, 4096)]
    for n in (0, 2):
        arena.give(blocks[n])
    holes = arena.figures()
    assert holes.free == HUGE - 8192 - 4096
    assert holes.largest_free == HUGE - 5 * 4096
    assert holes.fragmentation == pytest.approx(8192 / holes.free)
    arena.give(blocks[1])
    with arena.take(16_384) as whole:
        assert whole.address == blocks[0].address
    arena.give(blocks[3])
    assert arena.figures().free == arena.figures().largest_free == HUGE


def test_small_blocks_do_not_hold_large_segments():
    arena = Arena()
    arena.give(arena.take(20 * MIB))
    small = arena.take(400)
    with arena.take(20 * MIB):
        assert arena.figures().held == 20 * MIB + HUGE
    arena.give(small)


def test_tensors_do_not_hold_segments_of_calls():
    arena = Arena()
    arena.give(arena.take(20 * MIB))
    lasting = arena.tensor((3 * MIB,), torch.uint8)
    with arena.take(20 * MIB):
        assert arena.figures().held == 23 * MIB
    assert arena.figures().free == 20 * MIB
    del lasting
    assert arena.figures().free == arena.figures().held == 23 * MIB
    again = arena.tensor((2 * MIB,), torch.uint8)
    assert arena.figures().held == 23 * MIB
    del again


def test_a_large_segment_is_divided():
    arena = Arena()
    arena.give(arena.take(20 * MIB))
    with arena.session() as session:
        places = [session.bytes(n * MIB) for n in (5, 9, 2)]
        assert [p % HUGE for p in places[:2]] == [0, 0]
        assert arena.figures().held == 20 * MIB
    assert arena.figures().largest_free == 20 * MIB


SIZES = st.sampled_from([0, 1, 64, 400, 4095, 5000, 70_000, MIB - 1, MIB, 3 * MIB, 5 * MIB])
STEPS = st.lists(st.tuples(st.sampled_from(["take", "tensor", "give", "give", "release"]), SIZES, st.integers(0, 99)))


@given(STEPS, st.sampled_from([0, 2 * MIB, 64 * MIB]))
@settings(deadline=None, max_examples=60)
def test_figures_against_a_plain_simulation(steps, keep):
    arena = Arena(keep)
    watch = arena.watch()
    keepers: list[object] = []
    held: list[tuple[int, int, int]] = []  # address, bytes asked for, mark
    peak = 0
    for n, (what, nbytes, which) in enumerate(steps):
        if what in ("take", "tensor"):
            if what == "take":
                keepers.append(arena.take(nbytes))
                address = keepers[-1].address
                keepers[-1].tensor((nbytes,), torch.uint8)[:: max(1, nbytes - 1)] = n % 251
            else:
                keepers.append(arena.tensor((nbytes,), torch.uint8))
                address = keepers[-1].data_ptr()
                keepers[-1][:: max(1, nbytes - 1)] = n % 251
            held.append((address, nbytes, n % 251))
        elif what == "give" and held:
            held.pop(which % len(held))
            keepers.pop(which % len(keepers))
        elif what == "release":
            arena.release()
        now = arena.figures()
        asked = sum(size for _, size, _ in held)
        peak = max(peak, asked)
        assert (now.allocated, now.peak, watch.peak) == (asked, peak, peak)
        spans = sorted((at, at + max(size, 1)) for at, size, _ in held if at)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert now.held - now.free >= asked
        assert now.largest_free <= now.free <= now.held <= now.peak_held
        assert spans or keep >= now.held == now.free
        for at, size, mark in held:
            assert not size or ctypes.string_at(at, 1)[0] == ctypes.string_at(at + size - 1, 1)[0] == mark
        arena._stale = True  # what follows from what is lent is what was kept up to date
        assert arena.figures() == now


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
        assert arena.figures().held == 3 * MIB  # a part of what was kept
    arena.give(arena.take(4 * MIB))
    assert arena.figures().held == 4 * MIB
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


#: Behind these, Python looks for signals.
LOOKS = ("RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD")


def interrupted(code, n: int) -> bool:
    """Runs ``code`` with a KeyboardInterrupt at the n-th place of the arena's where a signal may be met; whether there
    were so many."""
    left, before = n, {}

    def trace(frame, event, arg):
        nonlocal left
        if frame.f_code.co_filename not in (arena_module.__file__, free_list.__file__):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            met = before.get(frame) in LOOKS
            before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            left -= met
            if met and not left:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        code()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(outer)
        before.clear()  # of frames, which hold blocks
    return left <= 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signals_exception_at_any_step_does_no_harm():
    def scenario() -> None:
        with arena.take(5000), arena.take(3 * MIB):
            del kept[0]
            with arena.take(300):
                arena.release()
            arena.take(5 * MIB)

    n, lost = 0, 0
    while True:
        n += 1
        arena = Arena(keep=4 * MIB)
        arena.give(arena.take(4 * MIB))
        kept = [arena.take(100), arena.take(7000)]
        kept[1].tensor((7000,), torch.uint8).fill_(3)
        if not interrupted(scenario, n):
            break
        with arena.take(9000) as block, arena.take(2 * MIB) as large, arena.take(50) as small:
            for b in (block, large, small):
                b.tensor((b.nbytes,), torch.uint8).fill_(1)
        assert torch.all(kept[-1].tensor((7000,), torch.uint8) == 3)
        del block, large, small
        now = arena.figures()
        arena._stale = True
        assert arena.figures() == now
        wanted = sum(b.nbytes for b in kept)
        assert now.allocated >= wanted
        lost += now.allocated > wanted
    assert n > 100
    assert lost <= 4  # between two steps a block is nobody's


def test_what_the_garbage_collector_finds_comes_back():
    """Blocks in circles are given back wherever the collector runs: in the middle of a change, too."""
    arena, threshold = Arena(), gc.get_threshold()

    class Circle:
        def __init__(self) -> None:
            self.me, self.block = self, arena.take(5000)

    gc.set_threshold(1, 1, 1)
    try:
        for n in range(300):
            Circle()
            arena.give(arena.take(100 * n))
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    now = arena.figures()
    assert (now.allocated, now.free) == (0, now.held)


def test_a_program_in_a_signals_handler_has_memory():
    arena = Arena()
    with arena_module._lock:  # as if the signal came in the middle of a change
        with arena.take(5000) as block:
            block.tensor((5000,), torch.uint8).fill_(1)
        with arena.session() as session:
            assert session.tensor((3, 5), torch.float64).shape == (3, 5)
        block = arena.take(100)
        arena.give(block)
        with pytest.raises(AatcError, match="before"):
            arena.give(block)
        arena.release()
        assert arena.figures().allocated == 0
    assert arena.figures().held == 0


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.bool, torch.int8]
)
def test_a_tensors_memory_comes_back_with_the_last_that_shares_it(dtype):
    arena = Arena()
    x = arena.tensor((3, 5, 7), dtype)
    assert (x.shape, x.stride(), x.dtype, x.is_leaf, x._base) == ((3, 5, 7), (35, 7, 1), dtype, True, None)
    nbytes = 105 * dtype.itemsize
    assert (arena.figures().allocated, x.untyped_storage().nbytes()) == (nbytes, nbytes)
    view = x.zero_()[1:, ::2].mT
    del x
    assert arena.figures().allocated == nbytes
    assert view.sum() == 0
    del view
    assert arena.figures().allocated == 0
    assert arena.tensor((3, 0), dtype).shape == (3, 0)
    assert arena.figures().lent == 1


def test_what_autograd_and_numpy_keep_keeps_the_memory():
    arena = Arena()
    x = arena.tensor((4,), torch.float64).fill_(3).requires_grad_()
    y = x.square().sum()
    array = x.detach().numpy()[1:]
    del x
    assert arena.figures().allocated == 32
    y.backward()
    del y
    assert arena.figures().allocated == 32
    assert array.sum() == 9
    del array
    gc.collect()
    assert arena.figures().allocated == 0
    with pytest.raises(RuntimeError, match="resiz"):
        arena.tensor((4,), torch.float32).resize_(1000)


def test_tensors_that_live_to_the_end_do_not_disturb_it():
    code = (
        "import torch\nfrom aatc.backends.native.arena import ARENA\nx = ARENA.tensor((5000,), torch.float32).zero_()\n"
        "torch.kept = ARENA.tensor((50,), torch.float32)\nblock = ARENA.take(100)\nprint(float(x.sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.0\n", "")


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
