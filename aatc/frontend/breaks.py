"""Why Dynamo ended graphs or made none, in our words and at the model's lines."""

from __future__ import annotations

import functools
import traceback
import types
from dataclasses import dataclass
from typing import Any

from torch import fx

from aatc.frontend import calls, location, private_torch
from aatc.ir.core import Loc
from aatc.ir.errors import AatcError, ScoreError, UnsupportedError

MORE_GRAPHS = "hand varying numbers in as tensors, or raise torch._dynamo.config.recompile_limit"


@dataclass(frozen=True)
class Break:
    """Why Dynamo ended a graph, and where in the model."""

    reason: str
    loc: Loc | None
    hint: str | None = None


@dataclass(frozen=True)
class Limit:
    """A function that has as many graphs as it may have, and where it is."""

    graphs: int
    loc: Loc
    reason: str


def break_of(gm: fx.GraphModule) -> Break | None:
    """The graph break that ended this graph, if one did."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    return break_from(reason) if reason is not None and reason.graph_break else None


def line_of(gm: fx.GraphModule) -> Loc | None:
    """The model's line a graph stands for: its first attention's, or else its first operation's."""
    nodes = [n for n in gm.graph.nodes if n.meta.get("stack_trace")]
    first = next((n for n in nodes if "aatc" in str(n.target)), nodes[0] if nodes else None)
    return location.from_trace(first.meta["stack_trace"]) if first is not None else None


def break_from(reason: Any) -> Break:
    """One of Dynamo's reasons in our words."""
    message, hint = _readable(reason.reason)
    return Break(message, location.from_stack(reason.user_stack), hint)


@functools.cache
def watch_breaks() -> None:
    """Tells the call of each thread every graph break in it, from now on."""
    private_torch.on_graph_break(_tell)


def _tell(reason: Any) -> None:
    call = calls.current()
    if call is not None:
        call.breaks.append(break_from(reason))


@dataclass(frozen=True)
class Watch:
    """Keeps why Dynamo gave up a frame for the call that it is part of: it would only be logged. ``graphs``: the limit
    of graphs of a function."""

    graphs: int

    def starts(self) -> None:
        call = calls.current()
        if call is not None:
            call.guards.clear()

    def failed(self, error: Exception, code: types.CodeType) -> None:
        call = calls.current()
        if call is None:
            return
        start = location.of_line(code.co_filename, code.co_firstlineno)
        if getattr(error, "gb_type", None) == private_torch.LIMIT:
            call.limits.append(Limit(self.graphs, start, "; ".join(call.guards)))
        elif private_torch.cannot_record(error) and not models_own(error):
            message, hint = _readable(getattr(error, "msg", None) or str(error))
            call.breaks.append(Break(message, location.from_stack(getattr(error, "real_stack", ())) or start, hint))


def _readable(message: str) -> tuple[str, str | None]:
    """The first lines of one of Dynamo's messages, and its first hint."""
    explanation, hint, title = "", None, ""
    for line in str(message).splitlines():
        text = line.strip()
        if text.startswith("Explanation:"):
            explanation = text.removeprefix("Explanation:").strip()
        elif text.startswith("Hint:") and hint is None:
            hint = text.removeprefix("Hint:").strip()
        elif text and not title:
            title = text
    return (f"{title}: {explanation}" if explanation else title), hint


def as_error(error: BaseException) -> AatcError | None:
    """The typed error for one of Dynamo's, naming the model's source line; None when it is not Dynamo's."""
    if isinstance(error, AatcError):
        return None  # it passed through the model, and so is the model's
    inner = private_torch.of_compiler(error)
    if isinstance(inner, AatcError):
        return inner
    if not private_torch.of_dynamo(error):
        return None
    if private_torch.of_limit(error):
        return UnsupportedError("the limit of graphs is reached", hint=MORE_GRAPHS)
    stack = getattr(inner, "real_stack", None)
    loc = location.from_stack(stack) if stack else location.from_trace(str(inner))
    ours = _cause(error)
    if ours is not None:
        return type(ours)(ours.message, where=ours.where or location.where(loc), hint=ours.hint)
    message, hint = _readable(getattr(inner, "msg", None) or str(inner))
    return UnsupportedError(message, where=location.where(loc), hint=hint)


def _cause(error: BaseException) -> ScoreError | None:
    """The ScoreError that made Dynamo give up, if one did: a function outside the language."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ScoreError):
        seen = seen.__cause__ or seen.__context__
    return seen


def is_bug(error: BaseException) -> bool:
    """Whether one of Dynamo's errors says that Dynamo or we failed, not that something cannot be recorded."""
    if "AsPythonConstantNotImplementedError" in str(error):
        return False  # Dynamo wants a number it knows, such as one that switches gradients, and was given a size
    known = (private_torch.cannot_record, private_torch.of_limit, private_torch.of_operator)
    return not any(kind(error) for kind in known)


def export_error(error: BaseException) -> AatcError | None:
    """The typed error for one of torch.export's; None when the model itself raised."""
    if isinstance(error, RuntimeError) and "constant's list" in str(error):
        text = "the model makes a tensor that cannot be traced to what it is given"
        return UnsupportedError(text, hint="use x.detach() in the model, not x.data")
    if not private_torch.of_symbols(error):
        return None
    loc = location.from_trace("".join(traceback.format_tb(error.__traceback__)))
    message, hint = _readable(str(error))
    return UnsupportedError(message, where=location.where(loc), hint=hint)


def models_own(error: BaseException) -> bool:
    """Whether Dynamo gave up because the model itself raised."""
    return getattr(error, "gb_type", None) == "Observed exception"
