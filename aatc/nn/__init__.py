"""Neural modules on `aatc.attend`, which `aatc.compile` fuses.

Masks are truth values everywhere, True where a query may attend; a query that may attend to nothing gets zeros.
"""

from aatc.nn.fubini_study import FubiniStudy, Overlap
from aatc.nn.functional import scaled_dot_product_attention
from aatc.nn.geometric import CONNECTIONS, GeometricAttention
from aatc.nn.hyperbolic import HyperbolicLinear, HyperbolicLogistic
from aatc.nn.learned import METRICS, LearnedMetric
from aatc.nn.quantum import AttentionState, QuantumGeometricAttention, TokenMetric
from aatc.nn.quantum_metrics import AttentionMetrics, FlowMetrics, PlaceMetrics
from aatc.nn.state_field import StateField
from aatc.nn.transformer import TransformerAttention
from aatc.nn.vit import GeodesicViT

__all__ = [
    "CONNECTIONS",
    "METRICS",
    "AttentionMetrics",
    "AttentionState",
    "FlowMetrics",
    "FubiniStudy",
    "GeodesicViT",
    "GeometricAttention",
    "HyperbolicLinear",
    "HyperbolicLogistic",
    "LearnedMetric",
    "Overlap",
    "PlaceMetrics",
    "QuantumGeometricAttention",
    "StateField",
    "TokenMetric",
    "TransformerAttention",
    "scaled_dot_product_attention",
]
