"""The arena's tensors and figures under the seed's names: true bytes, writes in place, products without copies."""

import gc
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

import aatc
from aatc.backends.native.arena import Arena
from aatc.errors import ShapeError
from aatc.performance import InPlaceError, MemoryManager, ProductBytes


def manager() -> MemoryManager:
    """Of an arena that nobody else uses."""
    return MemoryManager(Arena())


# --- what the seed's tests ask -----------------------------------------------------------------------------
def test_memory_comes_back():
    m = manager()
    a, b = m.allocate_tensor((100, 100)), m.allocate_tensor((200, 200))
    assert (a.shape, b.shape, m.get_allocated_memory()) == ((100, 100), (200, 200), 4 * (10_000 + 40_000))
    del a
    gc.collect()
    assert m.get_allocated_memory() == 160_000
    del b
    assert m.get_allocated_memory() == 0
    assert m.get_peak_memory() == 200_000
    assert m.get_fragmentation_ratio() == 0


def test_holes_are_filled():
    m = manager()
    tensors = [m.allocate_tensor((10, 10)) for _ in range(10)]
    del tensors[::2]
    holes = m.get_fragmentation_ratio()
    assert 0 < holes < 0.01  # four holes of 448 bytes beside what is left of 2 MiB, and one at the beginning
    again = [m.allocate_tensor((10, 10)) for _ in range(5)]
    assert m.get_fragmentation_ratio() == 0
    assert m.get_allocated_memory() == 400 * (len(tensors) + len(again))


def test_the_default_is_the_arena_of_compiled_programs(monkeypatch):
    taken: list[int] = []
    take = Arena.take
    monkeypatch.setattr(Arena, "take", lambda self, n, **how: (taken.append(n), take(self, n, **how))[1])

    def attention(x):
        return aatc.attend(x, x, x, metric=aatc.metrics.LorentzDistance(lift=True))

    compiled = aatc.compile(attention, backend="native", fallback=False)
    x = torch.randn(1, 2, 300, 16)
    compiled(x)
    m, before = MemoryManager(), MemoryManager().get_allocated_memory()
    taken.clear()
    compiled(x)
    assert taken and min(taken) > 0
    assert m.get_allocated_memory() == before
    assert m.get_peak_memory() == before + max(taken)  # one kernel: one block at a time
    kept = m.allocate_tensor((1000,))
    assert MemoryManager().get_allocated_memory() == before + kept.nbytes


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int16, torch.bool]
)
@pytest.mark.parametrize("size", [(), 7, (3,), (0,), (4, 0, 5), (2, 3, 4, 5)])
def test_sizes_and_dtypes(size, dtype):
    m = manager()
    x = m.allocate_tensor(size, dtype=dtype)
    shape = (size,) if isinstance(size, int) else size
    expected = torch.zeros(shape, dtype=dtype)
    assert x.dtype == dtype and x.stride() == expected.stride() and torch.equal(x, expected)
    assert m.get_allocated_memory() == expected.nbytes
    assert x.data_ptr() % 64 == 0
    assert m.allocate_tensor(shape, dtype=dtype, zeroed=False).shape == shape


@pytest.mark.parametrize("size", [(-1,), (2, -3), 2.5, (1.0,), ("a",), True, (2, None)])
def test_sizes_that_are_none(size):
    with pytest.raises((ShapeError, TypeError)):
        manager().allocate_tensor(size)


def test_what_cannot_be_had():
    with pytest.raises(ShapeError, match="dtype"):
        manager().allocate_tensor((2,), dtype=torch.qint8)
    for n in (1 << 60, 1 << 80):
        with pytest.raises(MemoryError):
            manager().allocate_tensor((n,))


def test_threads_share_a_manager():
    m, wrong = manager(), []

    def work(mark: int) -> None:
        for n in range(200):
            x = m.allocate_tensor((50 + n, 7)).fill_(mark)
            m.inplace_operation(x, lambda t: t.mul_(2))
            y = m.optimized_matmul(x, x.T)
            if not (torch.all(x == 2 * mark) and torch.all(y == 28 * mark * mark)):
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    assert m.get_allocated_memory() == 0
    largest = (249 * 7 + 249 * 249) * 4
    assert largest <= m.get_peak_memory() <= 8 * largest  # of each thread also what it had before


# --- in place ----------------------------------------------------------------------------------------------
def test_operations_in_place():
    m = manager()
    x = m.allocate_tensor((100, 100))
    place, allocated = x.data_ptr(), m.get_allocated_memory()
    assert m.inplace_operation(x, lambda t: t.add_(1)) is None
    m.inplace_operation(x[::2].T, lambda t: t.mul_(3))
    m.inplace_operation(x, lambda t: torch.sqrt(t, out=t))
    m.inplace_operation(x, lambda t: t[0].zero_())  # returns a view of it
    assert (x.data_ptr(), m.get_allocated_memory(), m.get_peak_memory()) == (place, allocated, allocated)
    assert torch.equal(x[1:3, 0], torch.tensor([1.0, 3**0.5])) and not x[0].any()
    empty = m.allocate_tensor((0, 3))
    m.inplace_operation(empty, lambda t: t.add_(1))


def refused(m: MemoryManager) -> dict:
    x = m.allocate_tensor((4, 3))
    leaf = m.allocate_tensor((4,)).requires_grad_()
    return {
        "a leaf": (leaf, lambda t: t.add_(1), "leaf that requires grad"),
        "a view of a leaf": (leaf[1:], lambda t: t.add_(1), "view of a leaf"),
        "expanded": (x[:1].expand(5, 3), lambda t: t.add_(1), "share memory"),
        "windows": (x.view(-1).unfold(0, 4, 1), lambda t: t.add_(1), "share memory"),
        "another tensor": (x, torch.exp, "exp returned a new tensor"),
        "a number": (x, lambda t: 3, "returned a int"),
        "other memory": (x, lambda t: t.set_(torch.zeros(5)), "other memory"),
        "other data": (x, lambda t: setattr(t, "data", torch.zeros(4, 3)), "other memory"),
        "sparse": (torch.eye(3).to_sparse(), lambda t: t.mul_(2), "no memory"),
        "a list": ([1, 2], lambda t: t, "list has no memory"),
    }


@pytest.mark.parametrize("case", refused(manager()))
def test_what_cannot_be_done_in_place_is_refused(case):
    tensor, operation, message = refused(manager())[case]
    with pytest.raises(InPlaceError, match=message):
        manager().inplace_operation(tensor, operation)


def test_autograd_goes_through_writes_in_place():
    m = manager()
    leaf = torch.arange(1.0, 5.0, requires_grad=True)
    x = m.optimized_matmul(torch.diag(leaf), torch.ones(4, 1))
    m.inplace_operation(x, lambda t: t.mul_(t.detach().clone()))
    x.sum().backward()
    assert torch.equal(leaf.grad, torch.arange(1.0, 5.0))
    with torch.no_grad():
        m.inplace_operation(leaf, lambda t: t.sub_(1))
    assert leaf[0] == 0
    m.inplace_operation(torch.zeros(9).as_strided((2, 2), (3, 2)), lambda t: t.add_(1))
    with pytest.raises(ZeroDivisionError):
        m.inplace_operation(leaf.detach(), lambda t: 1 / 0)


# --- products ----------------------------------------------------------------------------------------------
def views(t: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers in several layouts of memory."""
    wide = t.new_empty((*t.shape[:-1], 2 * t.shape[-1]))
    wide[..., ::2] = t
    cut = t.new_empty((*t.shape[:-1], t.shape[-1] + 3))
    cut[..., 1:-2] = t
    found = {"plain": t.clone(), "every other": wide[..., ::2], "cut out": cut[..., 1:-2]}
    if t.dim() > 1:
        found["transposed"] = t.mT.contiguous().mT
    if t.dim() > 2:
        found["batch inside"] = t.movedim(0, -2).contiguous().movedim(-2, 0)
        found["batch innermost"] = t.movedim(0, -1).contiguous().movedim(-1, 0)
    return found


SHAPES = [
    ((5, 4), (4, 3)), ((4,), (4,)), ((4,), (4, 3)), ((5, 4), (4,)), ((2, 5, 4), (4, 3)), ((5, 4), (2, 4, 3)),
    ((2, 5, 4), (2, 4, 3)), ((3, 1, 5, 4), (2, 4, 3)), ((3, 2, 5, 4), (1, 2, 4, 3)), ((3, 2, 1, 4), (4, 1)),
    ((2, 5, 0), (0, 3)), ((0, 5, 4), (4, 3)), ((2, 0, 4), (2, 4, 3)), ((1, 1), (1, 1)), ((2, 5, 1), (2, 1, 3)),
]  # fmt: skip


@given(st.sampled_from(SHAPES), st.sampled_from([torch.float32, torch.float64, torch.int64]), st.data())
@settings(deadline=None)
def test_products_in_every_layout(shapes, dtype, data):
    m = manager()
    full = [torch.arange(s.numel(), dtype=dtype).reshape(s) % 7 - 3 for s in map(torch.Size, shapes)]
    laid = [data.draw(st.sampled_from(sorted(v.items())), label="layout")[1] for v in map(views, full)]
    said, before = m.matmul_bytes(*laid), m.get_allocated_memory()
    out = m.optimized_matmul(*laid)
    assert torch.equal(out, torch.matmul(*full))  # small integers: exact
    assert out.is_contiguous()
    assert m.get_allocated_memory() - before == said.result == out.nbytes
    assert m.get_peak_memory() - before == said.result + said.copies


def allocations(code) -> int:
    """Bytes that torch's own allocator gave to ``code``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        code()
    return sum(max(0, event.self_cpu_memory_usage) for event in found.key_averages())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["plain", "cut out", "transposed", "every other", "batch inside"])
@pytest.mark.parametrize("shapes", [((32, 48), (48, 40)), ((3, 2, 32, 48), (2, 48, 40)), ((3, 32, 48), (48, 40))])
def test_torch_copies_nothing_behind_our_back(shapes, layout, dtype):
    m = manager()
    x, y = (views(torch.randn(s).to(dtype)).get(layout) for s in shapes)
    if x is None or y is None:
        pytest.skip("has no batch")
    m.optimized_matmul(x, y)
    assert allocations(lambda: m.optimized_matmul(x, y)) == 0
    copied = (x.numel() + y.numel()) * dtype.itemsize
    assert m.matmul_bytes(x, y).copies == (copied if layout == "every other" else 0)


def test_what_is_repeated_is_copied_once():
    m = manager()
    x, y = torch.randn(6, 3).T[:, ::2].expand(5, 4, 3, 3), torch.randn(3, 7)
    assert m.matmul_bytes(x, y) == ProductBytes(result=5 * 4 * 3 * 7 * 4, copies=0)
    assert m.matmul_bytes(torch.randn(3, 6)[:, ::2].expand(9, 3, 3), y) == ProductBytes(9 * 3 * 7 * 4, 3 * 3 * 4)
    torch.testing.assert_close(m.optimized_matmul(x, y), x @ y)


@pytest.mark.parametrize("shapes", [((5, 4), (4, 3)), ((4,), (2, 4, 3)), ((2, 1, 5, 4), (3, 4, 3)), ((5, 4), (4,))])
def test_gradients_of_products(shapes):
    m = manager()
    x, y = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    assert torch.autograd.gradcheck(m.optimized_matmul, (x, y))
    assert torch.autograd.gradgradcheck(m.optimized_matmul, (x, y))
    z = torch.randn(3, 3, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(m.optimized_matmul, (z, z.detach().clone().conj()))
    del x, y, z
    gc.collect()
    assert m.get_allocated_memory() == 0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 3), "no product"),
        (torch.ones(2, 2, 3), torch.ones(3, 3, 3), "no product"),
        (torch.ones(2, 3), torch.ones(3, 2).double(), "float64"),
        (torch.ones(()), torch.ones(3, 2), "single numbers"),
        (torch.ones(2, 3) > 0, torch.ones(3, 2) > 0, "bool"),
        (torch.ones(2, 3).to_sparse(), torch.ones(3, 2), "dense"),
        (torch.ones(2, 3, device="meta"), torch.ones(3, 2), "meta"),
    ],
)
def test_products_that_are_none(x, y, message):
    for call in (manager().optimized_matmul, manager().matmul_bytes):
        with pytest.raises(ShapeError, match=message):
            call(x, y)
