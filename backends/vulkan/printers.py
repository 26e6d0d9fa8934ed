"""Kernels as GLSL and as WGSL: two printers of one language."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources

from aatc.backends.vulkan.language import (
    Array,
    Barrier,
    Body,
    Comment,
    For,
    Function,
    If,
    Let,
    Set,
    Statement,
    Var,
    Write,
    expressions,
    names_in,
    walk,
)
from aatc.backends.vulkan.races import OWN

_GLSL = {"f32": "float", "i32": "int", "u32": "uint", "bool": "bool", "vec4f": "vec4", "vec4i": "ivec4"}
_WGSL = {"f32": "f32", "i32": "i32", "u32": "u32", "bool": "bool", "vec4f": "vec4<f32>", "vec4i": "vec4<i32>"}
_INCLUDED = re.compile(r"^// \[(\w+)\]$", re.MULTILINE)


@lru_cache
def includes(language: str) -> dict[str, str]:
    """Functions written by hand, by name, in the order in which they need each other: what stands under a line
    ``// [name]`` of ``shaders/elementary.LANGUAGE``, then of ``operators.LANGUAGE``."""
    found: dict[str, str] = {}
    for file in ("elementary", "operators"):
        text = (resources.files("aatc.shaders") / f"{file}.{language}").read_text(encoding="utf-8")
        parts = _INCLUDED.split(text)
        found |= zip(parts[1::2], (p.strip() for p in parts[2::2]), strict=True)
    return found


def _used(body: Body, language: str) -> list[str]:
    """The texts of the included functions that a kernel calls, and of those that they call."""
    names: set[str] = set()
    for s in walk(body.statements):
        for e in expressions(s):
            names |= names_in(e)
    for f in body.functions:
        for s in walk(f.body):
            for e in expressions(s):
                names |= names_in(e)
        names |= names_in(f.result)
    there = includes(language)
    for name in reversed(there):
        if name in names:
            names |= names_in(there[name])
    return [text for name, text in there.items() if name in names]


def _uses(body: Body, name: str) -> bool:
    return any(name in names_in(e) for s in walk(body.statements) for e in expressions(s))


def glsl(body: Body) -> str:
    """The kernel as GLSL 4.50 for Vulkan."""
    out = ["#version 450"]
    if "subgroup" in body.features:
        out += [
            "#extension GL_KHR_shader_subgroup_basic : require",
            "#extension GL_KHR_shader_subgroup_shuffle : require",
        ]
    out += [f"// {body.name}", f"layout(local_size_x = {body.threads}) in;"]
    if body.push:
        words = " ".join(f"{_pushed(w)[1]} p_{w};" for w in body.push)
        out.append(f"layout(push_constant) uniform Push {{ {words} }};")
    out += [
        "layout(std430, binding = 0) buffer Floats { float arena_f[]; };",
        "layout(std430, binding = 0) buffer Integers { int arena_i[]; };",
        "layout(std430, binding = 0) buffer Vectors { vec4 arena_4[]; };",
        "#define f32 float", "#define i32 int", "#define u32 uint", "#define vec4f vec4", "#define vec4i ivec4",
        "#define load_f(at) arena_f[at]", "#define load_i(at) arena_i[at]", "#define load_4(at) arena_4[(at) >> 2]",
        "#define select(no, yes, condition) ((condition) ? (yes) : (no))",
        "#define bits_f(x) uintBitsToFloat(x)", "#define f_bits(x) floatBitsToUint(x)",
        "#define inverseSqrt inversesqrt", "#define round_even(x) roundEven(x)",
        "#define shuffle_xor(x, lanes) subgroupShuffleXor(x, lanes)", "#define agreed(x) (x)",
    ]  # fmt: skip
    out += [f"#define own_{word}(at) (at)" for word in OWN if body.shared]
    out += [f"shared {_GLSL[s.type]} {s.name}[{s.count}];" for s in body.shared]
    out += _used(body, "glsl")
    out += [_function(f, _GLSL) for f in body.functions]
    out.append("void main() {")
    out += [
        "  int thread = int(gl_LocalInvocationIndex);",
        "  ivec3 group = ivec3(gl_WorkGroupID);",
        "  ivec3 groups = ivec3(gl_NumWorkGroups);",
    ]
    for s in body.statements:
        _glsl(s, out, 1)
    return "\n".join([*out, "}", ""])


def _pushed(word: str) -> tuple[str, str]:
    return (word, "float") if word.startswith("f_") else (word, "int")


def _function(f: Function, types: dict[str, str]) -> str:
    params = ", ".join(f"{types[t]} {n}" for t, n in f.params)
    lines = [f"{types[f.type]} {f.name}({params}) {{"]
    for s in f.body:
        _glsl(s, lines, 1)
    return "\n".join([*lines, f"  return {f.result};", "}"])


def _glsl(s: Statement, out: list[str], depth: int) -> None:
    pad = "  " * depth
    if isinstance(s, (Let, Var)):
        out.append(f"{pad}{_GLSL[s.type]} {s.name} = {s.value};")
    elif isinstance(s, Array):
        out.append(f"{pad}{_GLSL[s.type]} {s.name}[{s.count}];")
    elif isinstance(s, Set):
        out.append(f"{pad}{s.target} = {s.value};")
    elif isinstance(s, For):
        out.append(f"{pad}for (int {s.name} = {s.first}; {s.name} < {s.last}; {s.name} += {s.step}) {{")
        for x in s.body:
            _glsl(x, out, depth + 1)
        out.append(f"{pad}}}")
    elif isinstance(s, If):
        out.append(f"{pad}if ({s.condition}) {{")
        for x in s.body:
            _glsl(x, out, depth + 1)
        out.append(f"{pad}}}")
    elif isinstance(s, Barrier):
        out.append(f"{pad}{'memoryBarrierBuffer(); ' if s.storage else ''}barrier();")
    elif isinstance(s, Write):
        view = {"f32": "arena_f", "i32": "arena_i", "vec4f": "arena_4"}[s.type]
        at = f"({s.at}) >> 2" if s.type == "vec4f" else s.at
        out.append(f"{pad}{view}[{at}] = {s.value};")
    elif isinstance(s, Comment):
        out.append(f"{pad}// {s.text}")


def wgsl(body: Body) -> str:
    """The kernel as WGSL. Numbers of the arena are words of bits; push words are immediates."""
    out = [f"// {body.name}"]
    if body.push:
        words = " ".join(f"p_{w}: {'f32' if _pushed(w)[1] == 'float' else 'i32'}," for w in body.push)
        out += [f"struct Push {{ {words} }}", f"var<{IMMEDIATE}> push: Push;"]
    out += [
        "@group(0) @binding(0) var<storage, read_write> arena: array<u32>;",
        "fn load_f(at: i32) -> f32 { return bitcast<f32>(arena[at]); }",
        "fn load_i(at: i32) -> i32 { return bitcast<i32>(arena[at]); }",
        "fn load_4(at: i32) -> vec4<f32> {",
        "  return vec4<f32>(load_f(at), load_f(at + 1), load_f(at + 2), load_f(at + 3));",
        "}",
        "fn bits_f(x: u32) -> f32 { return bitcast<f32>(x); }",
        "fn f_bits(x: f32) -> u32 { return bitcast<u32>(x); }",
    ]
    if _uses(body, "shuffle_xor"):
        out.append("fn shuffle_xor(x: f32, lanes: u32) -> f32 { return subgroupShuffleXor(x, lanes); }")
    out += [f"var<workgroup> {s.name}: array<{_WGSL[s.type]}, {s.count}>;" for s in body.shared]
    out += _used(body, "wgsl")
    for f in body.functions:
        params = ", ".join(f"{n}: {_WGSL[t]}" for t, n in f.params)
        lines = [f"fn {f.name}({params}) -> {_WGSL[f.type]} {{"]
        for s in f.body:
            _wgsl(s, lines, 1)
        out += [*lines, f"  return {_wgsl_text(f.result)};", "}"]
    out += [
        f"@compute @workgroup_size({body.threads})",
        "fn main(@builtin(local_invocation_index) thread_index: u32, @builtin(workgroup_id) group_id: vec3<u32>, "
        "@builtin(num_workgroups) group_count: vec3<u32>) {",
        "  let thread: i32 = i32(thread_index);",
        "  let group: vec3<i32> = vec3<i32>(group_id);",
        "  let groups: vec3<i32> = vec3<i32>(group_count);",
    ]
    if body.push:
        out += [f"  let p_{w} = push.p_{w};" for w in body.push]
    for s in body.statements:
        _wgsl(s, out, 1)
    return "\n".join([*out, "}", ""])


#: The address space of push words.
IMMEDIATE = "immediate"
_AGREED = re.compile(r"\b(?:agreed|own_[a-z]+)\(")


def _wgsl_text(e: str) -> str:
    return (
        _AGREED.sub("(", e)
        .replace("round_even(", "round(")
        .replace("vec4f(", "vec4<f32>(")
        .replace("vec4i(", "vec4<i32>(")
    )


def _wgsl(s: Statement, out: list[str], depth: int) -> None:
    pad, t = "  " * depth, _wgsl_text
    if isinstance(s, (Let, Var)):
        out.append(f"{pad}{'let' if isinstance(s, Let) else 'var'} {s.name}: {_WGSL[s.type]} = {t(s.value)};")
    elif isinstance(s, Array):
        out.append(f"{pad}var {s.name}: array<{_WGSL[s.type]}, {s.count}>;")
    elif isinstance(s, Set):
        out.append(f"{pad}{t(s.target)} = {t(s.value)};")
    elif isinstance(s, For):
        head = f"for (var {s.name}: i32 = {t(s.first)}; {s.name} < {t(s.last)}; {s.name} += {s.step})"
        out.append(f"{pad}{head} {{")
        for x in s.body:
            _wgsl(x, out, depth + 1)
        out.append(f"{pad}}}")
    elif isinstance(s, If):
        out.append(f"{pad}if ({t(s.condition)}) {{")
        for x in s.body:
            _wgsl(x, out, depth + 1)
        out.append(f"{pad}}}")
    elif isinstance(s, Barrier):
        out.append(f"{pad}{'storageBarrier(); ' if s.storage else ''}workgroupBarrier();")
    elif isinstance(s, Write):
        if s.type == "vec4f":
            at, value = f"at_{len(out)}", f"v_{len(out)}"
            out.append(f"{pad}let {at}: i32 = {t(s.at)};")
            out.append(f"{pad}let {value}: vec4<f32> = {t(s.value)};")
            out += [f"{pad}arena[{at} + {n}] = bitcast<u32>({value}.{c});" for n, c in enumerate("xyzw")]
        else:
            out.append(f"{pad}arena[{t(s.at)}] = bitcast<u32>({t(s.value)});")
    elif isinstance(s, Comment):
        out.append(f"{pad}// {s.text}")
