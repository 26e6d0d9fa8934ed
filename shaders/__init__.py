"""GLSL sources: includes and kernel skeletons that the Vulkan backend completes."""
