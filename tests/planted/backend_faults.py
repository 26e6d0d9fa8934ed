"""Small faults to plant one at a time in backends and in what users call: caches, guards, shaders, optimizers."""

from __future__ import annotations

from tests.planted.fault import Fault

FAULTS = (
    Fault(
        "cache-features",
        "backends/native/cache.py",
        '        "features": isa.features,\n',
        "",
        "object code made for one set of CPU features is loaded for another",
        ("tests/native/test_machine.py",),
    ),
    Fault(
        "diagonal-row-closed",
        "backends/cpu/runtime.py",
        "return first_open > until",
        "return first_open >= until",
        "a causal row whose only open key is its own counts as closed",
        ("tests/compiler/test_edges.py",),
    ),
    Fault(
        "unclean-saved",
        "backends/kernel.py",
        "ctx.save_for_backward(*used, o, lse, *saved)",
        "ctx.save_for_backward(*operands, o, lse, *saved)",
        "the backward computes with NaN keys that the mask hides: gradients of all rows are NaN",
        ("tests/compiler/test_kernels.py",),
    ),
    Fault(
        "known-runs-axis",
        "backends/native/compiled.py",
        'runs[..., 1], runs[..., 2] = extents[3 if over == "j" else 2], PARTIAL',
        "runs[..., 1], runs[..., 2] = extents[3], PARTIAL",
        "with a dense mask, more queries than keys and order rows-and-columns the last queries send keys no gradient",
        ("tests/native/test_kernels.py",),
    ),
    Fault(
        "float-bits",
        "backends/vulkan/loaded.py",
        "bits is None or not old.dtype.is_floating_point:",
        "bits is None or old.dtype.is_floating_point:",
        "a parameter that goes from 0.0 to -0.0 is not uploaded",
        ("tests/vulkan/test_loaded.py",),
    ),
    Fault(
        "newest-closed",
        "backends/vulkan/compiled.py",
        "self.programs.popitem(last=False)[1].close()",
        "self.programs.popitem(last=True)[1].close()",
        "the ninth shape closes its own program",
        ("tests/vulkan/test_attention.py",),
    ),
    Fault(
        "decoupled-decay",
        "backends/vulkan/model/optimizers.py",
        'apart = self.apart or self.group.get("decoupled_weight_decay", False)\n        if not apart:',
        "apart = self.apart\n        if not apart:",
        "Adam(decoupled_weight_decay=True) decays as plain Adam on the device",
        ("tests/vulkan/test_training.py",),
    ),
    Fault(
        "step-at-zero",
        "backends/vulkan/words.py",
        '"step": "select(0.0, 1.0, {0} > 0.0)"',
        '"step": "select(0.0, 1.0, {0} >= 0.0)"',
        "step(0) is 1: gradients of distances at coincident points are huge",
        ("tests/vulkan/test_language.py",),
    ),
    Fault(
        "training-modes",
        "aatc/training.py",
        "tuple(m.training for m in self.model.modules()),",
        "self.model.training,",
        "a submodule set to eval() after the first step goes on training: the key lacks its mode",
        ("tests/vulkan/test_training.py",),
    ),
    Fault(
        "fisher-dtype",
        "aatc/metrics.py",
        "dtype = torch.promote_types(q.dtype, torch.float32)",
        "dtype = q.dtype",
        "softmax of half-precision logits stays in half precision: gradients of small probabilities overflow",
        ("tests/api/test_metrics.py",),
    ),
    Fault(
        "antipode-bits",
        "aatc/connections.py",
        "bits = min(26, round(-math.log2(4 * torch.finfo(sizes.dtype).eps)))",
        "bits = round(-math.log2(4 * torch.finfo(sizes.dtype).eps))",
        "float64 near antipodes: the documented floor of 2^-26 is gone, half of the digits with it",
        ("tests/api/test_connections.py",),
    ),
)
