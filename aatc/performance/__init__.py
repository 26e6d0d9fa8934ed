"""The memory that compiled programs run in, and operations vectorised by compiling them, under the seed's names."""

from aatc.performance.gpu_memory import GPUMemoryManager, GPUTensor, MemoryMetrics
from aatc.performance.memory import InPlaceError, MemoryManager
from aatc.performance.products import ProductBytes
from aatc.performance.vectorization import VectorizationSystem

__all__ = [
    "GPUMemoryManager",
    "GPUTensor",
    "InPlaceError",
    "MemoryManager",
    "MemoryMetrics",
    "ProductBytes",
    "VectorizationSystem",
]
