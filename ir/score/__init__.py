"""The score language: what a metric, a carried value and a mask are written in."""

from aatc.ir.score import curved
from aatc.ir.score.derivative import gradients
from aatc.ir.score.expr import Expr, call, const, index, param, params, postorder, substitute
from aatc.ir.score.functions import FUNCTIONS, PROBES, Function
from aatc.ir.score.program import Program
from aatc.ir.score.text import expr_text

__all__ = [
    "FUNCTIONS",
    "Expr",
    "Function",
    "Program",
    "call",
    "const",
    "curved",
    "expr_text",
    "gradients",
    "index",
    "param",
    "params",
    "postorder",
    "substitute",
]


def _probed(f: Function) -> None:
    from aatc.ir.score.probe import probe  # with torch, which takes its time

    probe(f)


PROBES.append(_probed)
