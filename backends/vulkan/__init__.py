"""Kernels for Vulkan devices: tile programs as GLSL and WGSL, dispatched in levels from one arena."""
