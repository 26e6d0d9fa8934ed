"""Which function lowers which tile operation to statements of a kernel."""

from aatc.backends.lowerings import Lowerings

lowering = Lowerings("vulkan")
