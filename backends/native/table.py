"""Which function writes which tile operation: each takes the emitter of a task and the operation."""

from aatc.backends.lowerings import Lowerings

lowering = Lowerings("native")
