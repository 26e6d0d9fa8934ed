"""Small kernels written by hand, in both languages, and executors to run them on."""

from aatc.backends.vulkan.kernels import Kernel

_GLSL = """#version 450
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) buffer Arena {{ float arena[]; }};
layout(push_constant) uniform Push {{ {push} }} p;
void main() {{ uint i = gl_GlobalInvocationID.x; if (i < p.n) {{ {body} }} }}
"""
_WGSL = """struct Push {{ {push} }}
@group(0) @binding(0) var<storage, read_write> arena: array<f32>;
var<immediate> p: Push;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{ let i = id.x; if (i < p.n) {{ {body} }} }}
"""


def kernel(name: str, words: str, body: str) -> Kernel:
    """An elementwise kernel: ``words`` are push words, in capitals what is a floating-point number."""
    names = tuple(words.split())
    floating = {n for n in names if n.isupper()}
    glsl = " ".join(f"{'float' if n in floating else 'uint'} {n};" for n in names)
    wgsl = ", ".join(f"{n}: {'f32' if n in floating else 'u32'}" for n in names)
    return Kernel(name, _GLSL.format(push=glsl, body=body), _WGSL.format(push=wgsl, body=body), names, (64, 1, 1))


#: y += A x
AXPY = kernel("axpy", "x y n A", "arena[p.y + i] = arena[p.y + i] + p.A * arena[p.x + i];")
#: z = x y
TIMES = kernel("times", "x y z n", "arena[p.z + i] = arena[p.x + i] * arena[p.y + i];")
#: y = exp(x)
EXP = kernel("exponential", "x y n", "arena[p.y + i] = exp(arena[p.x + i]);")
#: y[i] = x[n - 1 - i]
TURN = kernel("turn", "x y n", "arena[p.y + i] = arena[p.x + p.n - 1u - i];")
