"""Threads may share a device, and a program."""

import threading

import torch

from aatc.backends.vulkan.loaded import Loaded
from tests.vulkan.programs_by_hand import formula, twice


def test_several_threads_on_one_device(executor):
    module, kernels = twice(64)
    shared = Loaded(executor, module.funcs["main"], kernels)
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        mine = Loaded(executor, module.funcs["main"], kernels)
        for _ in range(10):
            x, w = 0.1 * torch.randn(64, generator=generator), torch.randn(64, generator=generator)
            want = formula(formula(x, w), w)
            for program in (mine, shared):
                if not torch.allclose(program(x, w)[0], want, rtol=1e-5, atol=1e-5):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not wrong and not any(t.is_alive() for t in threads)
