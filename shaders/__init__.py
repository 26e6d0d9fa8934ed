"""Shader text written by hand: functions that generated kernels call, in GLSL and in WGSL."""
