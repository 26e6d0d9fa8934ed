"""Which function of the emitter writes which tile operation: ``lowering("tile.dot")`` registers one, as a method of the
emitter or as a function of an emitter and an operation in a file of its own."""

from aatc.backends.lowerings import Lowerings

lowering = Lowerings("cpu")
