"""Fused attention as one would write it by hand at first: the baseline that generated Vulkan kernels are measured by.

A thread per query row, which holds its query and its sums in registers; keys and values come in tiles of 32 through
shared memory; loops over features are unrolled. ``python -m bench.plain_kernel`` measures both.
"""

from __future__ import annotations

import argparse
import time

import torch

from aatc.backends.vulkan.kernels import Kernel

ROWS, KEYS = 32, 32


def plain_attention(width: int) -> Kernel:
    """softmax(q k^T / sqrt(width)) v of (heads, n, width), ``width`` a multiple of 4; a workgroup per 32 queries."""
    vectors = width // 4
    q = "\n".join(
        f"    vec4 q{c} = arena[p_q / 4 + base + {c}] * {1.4426950408889634 / width**0.5!r};" for c in range(vectors)
    )
    acc = "\n".join(f"    vec4 o{c} = vec4(0.0);" for c in range(vectors))
    score = " + ".join(f"dot(q{c}, k_s[j * {vectors} + {c}])" for c in range(vectors))
    add = "\n".join(f"            o{c} = o{c} * shrink + p * v_s[j * {vectors} + {c}];" for c in range(vectors))
    out = "\n".join(f"        arena[p_o / 4 + base + {c}] = o{c} / l;" for c in range(vectors))
    text = f"""#version 450
layout(local_size_x = {ROWS}) in;
layout(push_constant) uniform Push {{ int p_n; int p_q; int p_k; int p_v; int p_o; }};
layout(std430, binding = 0) buffer Arena {{ vec4 arena[]; }};
shared vec4 k_s[{KEYS * vectors}];
shared vec4 v_s[{KEYS * vectors}];
void main() {{
    int thread = int(gl_LocalInvocationIndex);
    int row = int(gl_WorkGroupID.x) * {ROWS} + thread;
    int head = int(gl_WorkGroupID.y) * p_n;
    int base = (head + min(row, p_n - 1)) * {vectors};
    float m = -3.4e38, l = 0.0;
{q}
{acc}
    for (int first = 0; first < p_n; first += {KEYS}) {{
        barrier();
        for (int c = thread; c < {KEYS * vectors}; c += {ROWS}) {{
            int at = (head + min(first + c / {vectors}, p_n - 1)) * {vectors} + c % {vectors};
            k_s[c] = arena[p_k / 4 + at];
            v_s[c] = arena[p_v / 4 + at];
        }}
        barrier();
        int end = min({KEYS}, p_n - first);
        for (int j = 0; j < end; ++j) {{
            float s = {score};
            float top = max(m, s);
            float shrink = exp2(m - top), p = exp2(s - top);
            m = top;
            l = l * shrink + p;
{add}
        }}
    }}
    if (row < p_n) {{
{out}
    }}
}}
"""
    return Kernel("plain_attention", text, None, ("n", "q", "k", "v", "o"), (ROWS, 1, 1), 2 * KEYS * width * 4)


def plain(executor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor):  # type: ignore[no-untyped-def]
    """A callable that runs the plain kernel on tensors (heads, n, width), and one that gives its result."""
    from aatc.backends.vulkan.executors import Launch, Range, pack

    heads, n, width = q.shape
    words = q.numel()
    arena = executor.arena(4 * words)
    for at, t in enumerate((q, k, v)):
        arena.write(at * words, t.contiguous().flatten().view(torch.int32))
    launch = Launch(
        executor.compile(plain_attention(width)),
        (-(-n // ROWS), heads, 1),
        pack([n, 0, words, 2 * words, 3 * words]),
    )
    recording = executor.record(arena, [[launch]], [], [Range(3 * words, words)])
    return recording.run, lambda: recording.outputs[0].view(torch.float32).view(heads, n, width).clone()


def seconds(run, tries: int = 5) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """The least wall clock and processor time of a call."""
    best = [float("inf"), float("inf")]
    for _ in range(tries):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        best = [min(best[0], time.perf_counter() - wall), min(best[1], time.process_time() - cpu)]
    return best[0], best[1]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--n", type=int, default=512)
    p.add_argument("--heads", type=int, default=8)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--executor", default="native")
    a = p.parse_args()
    import aatc
    from aatc.backends.found import get
    from aatc.backends.vulkan.executors import open_executor

    backend = get("vulkan")
    backend.executor = a.executor  # type: ignore[attr-defined]
    executor = open_executor(a.executor)
    q, k, v = (torch.randn(a.heads, a.n, a.width) for _ in range(3))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    flops = 4 * a.heads * a.n * a.n * a.width
    print(f"{executor.device.name}, {executor.device.driver}; n {a.n}, {a.heads} heads of {a.width}, forward")
    run, result = plain(executor, q, k, v)
    compiled = aatc.compile(
        lambda q, k, v: aatc.attend(q, k, v, metric=aatc.metrics.DotProduct()), backend="vulkan", fallback=False
    )
    found = {"plain": lambda: run() or result(), "generated": lambda: compiled(q[None], k[None], v[None])[0]}
    for name, call in found.items():
        off = float((call() - want).abs().max())
        wall, cpu = seconds(call)
        rate = f"{flops / wall / 1e9:6.2f} GFLOP/s"
        print(f"{name:10s} {1e3 * wall:8.1f} ms, {rate}; {cpu:.3f} s of processor, off {off:.1e}")


if __name__ == "__main__":
    main()
