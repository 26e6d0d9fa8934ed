"""The memory that compiled programs run in, and operations vectorised by compiling them, under the seed's names."""

from aatc.performance.memory import InPlaceError, MemoryManager
from aatc.performance.products import ProductBytes
from aatc.performance.vectorization import VectorizationSystem

__all__ = ["InPlaceError", "MemoryManager", "ProductBytes", "VectorizationSystem"]
