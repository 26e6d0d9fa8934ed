"""Which executor and device a program is given to, and how that is told."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import aatc
from aatc.backends.vulkan.executors import found, native_device
from aatc.backends.vulkan.executors.contract import Device, Limits
from aatc.errors import BackendError, NoDeviceError
from tests.vulkan.running import EXECUTORS, need, usable

LIMITS = Limits(2**27, (65535,) * 3, (1024,) * 3, 1024, 32768, 128, 16)


def a_device(executor, index=0, kind="discrete", features=()):
    return Device(executor, index, f"{kind} {index}", "a driver", kind, LIMITS, frozenset(features), 32)


@pytest.fixture
def pretend(monkeypatch):
    """Has executors see given devices: by name, a list or the reason why they cannot be used."""

    def install(**seen):
        for name in EXECUTORS:
            given = seen.get(name, "it is not installed")
            module = found._module(name)
            monkeypatch.setattr(module, "why_not", lambda g=given: g if isinstance(g, str) else "")
            monkeypatch.setattr(module, "devices", lambda g=given: () if isinstance(g, str) else tuple(g))

    return install


def test_wgpu_is_the_first_choice_then_native_then_kompute(pretend):
    every = {name: [a_device(name)] for name in EXECUTORS}
    for name in ("wgpu", "native", "kompute"):
        pretend(**every)
        assert found.choose().executor == name
        every[name] = "it is not installed"
    pretend(**every)
    with pytest.raises(NoDeviceError, match="wgpu: it is not installed; native: it is not installed; kompute"):
        found.choose()


def test_why_is_told(pretend):
    pretend(wgpu=[a_device("wgpu")], native=[a_device("native")])
    assert found.choose().why == "Executor wgpu: the first that is installed"
    assert found.choose("native").why == "Executor native was asked for"
    pretend(native=[a_device("native")])
    assert found.choose().why == "Executor native: wgpu not, as it is not installed"


def test_programs_of_cooperative_matrices_go_to_native_where_the_device_has_them(pretend):
    plain, able = a_device("native"), a_device("native", features=("coopmat",))
    pretend(wgpu=[a_device("wgpu")], native=[able])
    chosen = found.choose(features=("coopmat",))
    assert chosen.executor == "native" and "cooperative matrices" in chosen.why
    assert found.choose().executor == "wgpu"
    pretend(wgpu=[a_device("wgpu")], native=[plain])
    assert found.choose(features=("coopmat",)).executor == "wgpu"


def test_a_card_of_its_own_comes_before_what_shares_the_processors_memory_and_software(pretend):
    kinds = ("cpu", "integrated", "discrete", "virtual", "discrete")
    pretend(wgpu=[a_device("wgpu", n, kind) for n, kind in enumerate(kinds)])
    assert found.choose().device.index == 2
    assert found.choose(device=1).device.kind == "integrated"
    pretend(wgpu=[a_device("wgpu", 0, "cpu")])
    assert found.choose().device.software
    with pytest.raises(NoDeviceError, match="no device but software ones"):
        found.choose(software=False)


def test_the_bound_of_loops_is_that_of_the_driver():
    assert native_device.trips("llvmpipe Mesa 22.3.6 (LLVM 15.0.6)") == 65535
    assert native_device.trips("llvmpipe Mesa 26.1.6 (LLVM 19.1.7)") == 0
    assert native_device.trips("llvmpipe") == 65535
    assert native_device.trips("NVIDIA 570.1") == native_device.trips("") == 0


def test_memory_is_of_the_kind_that_suits_best(monkeypatch):
    vk = pytest.importorskip("vulkan", exc_type=Exception)
    near, seen = vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT
    cached = vk.VK_MEMORY_PROPERTY_HOST_CACHED_BIT
    kinds = [SimpleNamespace(propertyFlags=f) for f in (0, near, seen, seen | cached, near | seen)]
    given = SimpleNamespace(memoryTypeCount=5, memoryTypes=kinds)
    monkeypatch.setattr(vk, "vkGetPhysicalDeviceMemoryProperties", lambda physical: given)
    assert native_device.memory_type(None, 0b11111, 0, near) == 1
    assert native_device.memory_type(None, 0b11111, seen, cached) == 3
    assert native_device.memory_type(None, 0b10111, seen, cached) == 2
    assert native_device.memory_type(None, 0b11111, seen, near | cached) == 3
    assert native_device.memory_type(None, 0b00011, seen, cached) == -1


def test_features_with_a_number_of_lanes():
    device = a_device("native", features=("subgroup",))
    assert device.has("subgroup") and device.has("subgroup(32)") and not device.has("subgroup(64)")
    assert not replace(device, features=frozenset()).has("subgroup(8)")


def attention(q, k, v):
    return aatc.attend(q, k, v, metric=aatc.metrics.DotProduct())


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_model_runs_on_the_executor_that_is_asked_for(executor):
    need(executor)
    q, k, v = (torch.randn(1, 2, 9, 4) for _ in range(3))
    compiled = aatc.compile(attention, backend="vulkan", executor=executor)
    got, want = compiled(q, k, v), attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)
    text = str(compiled.explain())
    assert f"Executor {executor} was asked for." in text and "Kernels run on " in text


def test_executors_that_a_backend_has_not_are_refused():
    with pytest.raises(BackendError, match="backend 'cpu' has no executor 'wgpu'"):
        aatc.compile(attention, backend="cpu", executor="wgpu")(*(torch.randn(1, 1, 2, 2) for _ in range(3)))
    with pytest.raises(BackendError, match="there is no executor 'cuda'"):
        aatc.compile(attention, backend="vulkan", executor="cuda")(*(torch.randn(1, 1, 2, 2) for _ in range(3)))
    with pytest.raises(BackendError, match="executor=3 is not a name"):
        aatc.compile(attention, executor=3)


def test_devices_are_listed_with_limits_and_features():
    listed = [d for d in aatc.devices() if d["backend"] == "vulkan"]
    assert {d["executor"] for d in listed} == {name for name in EXECUTORS if not usable(name)}
    for d in listed:
        assert d["name"] and d["driver"] and d["kind"] in ("cpu", "discrete", "integrated", "virtual", "other")
        assert d["limits"]["storage_bytes"] >= 2**27 and len(d["limits"]["grid"]) == 3
        assert isinstance(d["features"], list)
