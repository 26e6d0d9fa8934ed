"""A device that is lost, has no memory or is not there at all: a typed error, and the process goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aatc.backends.vulkan.executors import found
from aatc.backends.vulkan.loaded import Loaded
from aatc.backends.vulkan.pool import Pool
from aatc.errors import BackendError, DeviceError, DeviceLostError, DeviceMemoryError, NoDeviceError
from tests.vulkan.programs_by_hand import formula, twice
from tests.vulkan.running import EXECUTORS, need

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=EXECUTORS)
def fresh(request, monkeypatch):
    """An executor of its own, which `open_executor` gives until it is lost."""
    need(request.param)
    monkeypatch.setattr(found, "_open", {})
    yield found.open_executor(request.param)
    for made in found._open.values():
        made.close()


def raising(error):
    def fail(*args, **more):
        raise error

    return fail


def lose(executor, loaded, monkeypatch):
    """Has the next run fail as it does when a driver has crashed."""
    if executor.name == "native":
        import vulkan as vk

        monkeypatch.setattr(vk, "vkQueueSubmit", raising(vk.VkErrorDeviceLost()))
    elif executor.name == "wgpu":
        executor.logical.destroy()
    else:
        lost = RuntimeError("vk::Queue::submit: ErrorDeviceLost")
        loaded.recording.sequences[0] = type("Sequence", (), {"eval": raising(lost), "destroy": lambda self: None})()


def test_a_device_that_is_lost_is_opened_anew_by_the_next_call(fresh, monkeypatch):
    module, kernels = twice(100)
    loaded, other = (Loaded(fresh, module.funcs["main"], kernels) for _ in range(2))
    x, w = 0.1 * torch.randn(100), torch.randn(100)
    want = formula(formula(x, w), w)
    torch.testing.assert_close(loaded(x, w)[0], want, rtol=1e-5, atol=1e-5)
    with monkeypatch.context() as patched:
        lose(fresh, loaded, patched)
        with pytest.raises(DeviceLostError, match="lost while running a program"):
            loaded(x, w)
    assert fresh.closed
    for again in (loaded, other):
        torch.testing.assert_close(again(x, w)[0], want, rtol=1e-5, atol=1e-5)
        assert again.executor is not fresh and not again.executor.closed


def starve(executor, monkeypatch):
    """Has the driver refuse memory."""
    if executor.name == "native":
        import vulkan as vk

        monkeypatch.setattr(vk, "vkAllocateMemory", raising(vk.VkErrorOutOfDeviceMemory()))
    elif executor.name == "wgpu":
        import wgpu

        monkeypatch.setattr(executor.logical, "create_buffer", raising(wgpu.GPUOutOfMemoryError("no memory left")))
    else:
        manager = type("Manager", (), {"tensor_t": raising(RuntimeError("vk::...: ErrorOutOfDeviceMemory"))})()
        monkeypatch.setattr(executor, "manager", manager)


def test_no_memory_is_told_and_leaves_nothing_behind(fresh, monkeypatch):
    module, kernels = twice(100)
    held = fresh.counters.bytes_held
    with monkeypatch.context() as patched:
        starve(fresh, patched)
        with pytest.raises(DeviceMemoryError, match=r"no memory left for a buffer of [0-9]+ bytes"):
            Loaded(fresh, module.funcs["main"], kernels)
    assert fresh.counters.bytes_held == held
    x, w = 0.1 * torch.randn(100), torch.randn(100)
    y, _ = Loaded(fresh, module.funcs["main"], kernels)(x, w)
    torch.testing.assert_close(y, formula(formula(x, w), w), rtol=1e-5, atol=1e-5)


def test_what_is_free_is_given_back_before_memory_is_told_to_be_missing(fresh, monkeypatch):
    pool = Pool(fresh)
    first = pool.take(1000)
    pool.give(first)
    real, refused = fresh.arena, []

    def once(words):
        if not refused:
            refused.append(words)
            raise DeviceMemoryError("none left")
        return real(words)

    monkeypatch.setattr(fresh, "arena", once)
    taken = pool.take(5000)
    assert refused == [5000] and pool.figures().free == 0
    pool.give(taken)
    pool.trim()


SCRIPT = """
import aatc
from aatc.backends.vulkan.executors import found
print(sorted((n, found.why_not(n), len(found.devices(n)) if not found.why_not(n) else 0) for n in found.EXTRAS))
for name in ("auto", *found.EXTRAS):
    try:
        found.open_executor(name)
    except aatc.errors.NoDeviceError as error:
        print(name, "|", error.message, "|", error.hint)
print("alive")
"""


def elsewhere(**environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_driver_there_is_one_error_and_the_process_lives():
    text = elsewhere(VK_ICD_FILENAMES="/nowhere.json", VK_DRIVER_FILES="/nowhere.json")
    assert text.rstrip().endswith("alive")
    lines = [line for line in text.split("\n") if "|" in line]
    assert len(lines) == 4
    for line in lines:
        assert "there is nothing to run Vulkan programs on" in line
        assert "install the device's Vulkan driver" in line or "pip install aatc[" in line


def test_executors_that_are_not_installed_say_how_to_install_them(monkeypatch):
    for name in ("wgpu", "vulkan", "kp"):
        monkeypatch.setitem(sys.modules, name, None)
    for module in ("wgpu", "kompute"):
        found._module(module).why_not.cache_clear()
    try:
        assert found.why_not("wgpu") == "the package wgpu is not installed"
        assert found.why_not("native") == "the package vulkan is not installed"
        assert found.why_not("kompute") == "the package kp is not installed"
        with pytest.raises(NoDeviceError, match="wgpu is not installed; native: the package vulkan") as caught:
            found.choose()
        assert caught.value.hint == "pip install aatc[gpu]"
        with pytest.raises(NoDeviceError) as caught:
            found.choose("native")
        assert caught.value.hint == "pip install aatc[vulkan]"
    finally:
        for module in ("wgpu", "kompute"):
            found._module(module).why_not.cache_clear()


def test_executors_and_devices_that_there_are_not():
    with pytest.raises(BackendError, match="there is no executor 'cuda'"):
        found.choose("cuda")
    for name in EXECUTORS:
        if not found.why_not(name):
            with pytest.raises(NoDeviceError):
                found.open_executor(name, device=99)
            with pytest.raises(DeviceError):
                found._module(name).open_device(99)


def test_software_devices_are_not_chosen_where_they_will_not_do(monkeypatch):
    for name in EXECUTORS:
        if not found.why_not(name):
            only = tuple(d for d in found.devices(name) if d.software)
            monkeypatch.setattr(found._module(name), "devices", lambda only=only: only)
    with pytest.raises(NoDeviceError, match=r"no device but software ones|is not installed"):
        found.choose(software=False)
