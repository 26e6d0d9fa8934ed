"""Typed checks of metrics, flows, quantum states and patterns. Each returns a `Verdict`, truthy or falsy.

A verdict holds exactly when its residual is at most its tolerance, and carries the worst case that was found as a
witness, which ``verdict.verify()`` recomputes on its own. Input that cannot be judged is a `ValidationError`.
"""

from aatc.validation.flow import FlowValidation
from aatc.validation.judgement import ValidationError
from aatc.validation.metric import MetricValidation
from aatc.validation.pattern import PatternValidation
from aatc.validation.quantum import QuantumValidation

__all__ = ["FlowValidation", "MetricValidation", "PatternValidation", "QuantumValidation", "ValidationError"]
