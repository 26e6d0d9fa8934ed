"""What operations do to memory, and which values of a function may share it.

Effects come from the schemas of ATen operators, never from a text's attributes: a text cannot hide a write. Where a
schema keeps something to itself (composite operators that hand an operand back, batch norm's buffers), tables here
say so. When in doubt an operation is taken to write, and values are taken to share memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from aatc.ir import checks
from aatc.ir.core import Func, Module, Op, Value
from aatc.ir.errors import VerifyError
from aatc.ir.interpreter import target_function
from aatc.ir.registry import OPS, Operand
from aatc.ir.types import ScalarType, TensorType

#: Operators that draw random numbers only if an argument says so. (Others are known by a tag.)
_DRAWS_WHEN = {
    "aten::dropout": "train", "aten::feature_dropout": "train", "aten::alpha_dropout": "train",
    "aten::feature_alpha_dropout": "train", "aten::native_dropout": "train", "aten::rrelu": "training",
    "aten::rrelu_with_noise": "training", "aten::scaled_dot_product_attention": "dropout_p",
    "aten::rnn_tanh": "train", "aten::rnn_relu": "train", "aten::lstm": "train", "aten::gru": "train",
    "aten::quantized_lstm": "train", "aten::quantized_gru": "train",
}  # fmt: skip
#: Operators whose schema hides that they write: the arguments written, and the argument that says whether they do.
_RUNNING = ("running_mean", "running_var")
_WRITES_UNTOLD: dict[str, tuple[tuple[str, ...], str | None]] = {
    "aten::batch_norm": (_RUNNING, "training"), "aten::native_batch_norm": (_RUNNING, "training"),
    "aten::_batch_norm_impl_index": (_RUNNING, "training"), "aten::cudnn_batch_norm": (_RUNNING, "training"),
    "aten::miopen_batch_norm": (_RUNNING, "training"), "aten::instance_norm": (_RUNNING, "use_input_stats"),
    "aten::_native_batch_norm_legit": (_RUNNING, "training"), "aten::_batch_norm_with_update": (_RUNNING, None),
    "aten::_copy_from": (("dst",), None), "aten::_copy_from_and_resize": (("dst",), None),
}  # fmt: skip


#: Dtypes whose division by zero gives infinity.
_REAL = ("f64", "f32", "bf16", "f16", "c64", "c128")


def _aten(words: str) -> frozenset[str]:
    return frozenset(f"aten::{word}" for word in words.split())


#: Operators that are no composites and yet share memory, although their schema does not say so.
_SHARES_UNTOLD = _aten(
    "_unsafe_view unsafe_split unsafe_split_with_sizes lift native_dropout set_ set_data swap_ shallow_copy_data_"
)
#: Views: their results always share memory with the first argument and never are copies of it, nor itself.
_VIEWS = _aten(
    "view expand permute transpose select slice unsqueeze squeeze t diagonal alias detach unfold split "
    "split_with_sizes unbind movedim moveaxis narrow swapaxes swapdims view_as unflatten mT numpy_T chunk "
    "tensor_split hsplit vsplit dsplit view_as_real view_as_complex"
)
#: Operators that look at, or change, more than a value's elements: sizes, strides, storage, history of gradients.
_RAW = _aten(
    "as_strided as_strided_ set_ set_data shallow_copy_data_ resize_ resize_as_ _resize_output_ transpose_ t_ squeeze_ "
    "unsqueeze_ swapaxes_ swapdims_ detach_ as_strided_scatter _reshape_alias requires_grad_ retain_grad rename_ swap_"
)
#: Composite operators whose results are new tensors, whatever they are given.
_FRESH = _aten(
    "linear matmul conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d layer_norm group_norm "
    "batch_norm instance_norm rms_norm softmax log_softmax cross_entropy_loss nll_loss_nd "
    "binary_cross_entropy_with_logits scaled_dot_product_attention hstack vstack dstack concat concatenate "
    "column_stack row_stack outer tile std var square subtract multiply divide true_divide negative absolute clip "
    "relu6 selu max_pool1d max_pool2d max_pool3d avg_pool1d adaptive_avg_pool1d adaptive_avg_pool2d one_hot isclose "
    "isfinite greater greater_equal less less_equal not_equal pad cosine_similarity argsort take_along_dim"
)


@dataclass(frozen=True, slots=True)
class Effect:
    """What one operation does; numbers are positions of its operands and results.

    writes: operands whose memory it may change. shares: (result, operand) that may share memory. copies: whether such
    a result may also be a copy, or the operand itself (a plain view is neither). raw: operands of which it sees or
    changes more than the elements. ordered: it draws random numbers, is there to check something or is not known, so
    that it stays in its place. together: results may share memory with each other. undefined: it defines no contents.
    checks: it may raise because of the elements it is given, so that it runs even if nobody wants its results.
    """

    writes: tuple[int, ...] = ()
    shares: tuple[tuple[int, int], ...] = ()
    copies: bool = False
    raw: tuple[int, ...] = ()
    ordered: bool = False
    together: bool = False
    undefined: bool = False
    checks: bool = False


NOTHING = Effect()


def effect_of(op: Op, module: Module | None = None, known: dict[tuple[Any, ...], Effect] | None = None) -> Effect:
    """The effect of a geo operation; that of a `geo.checkpoint` is its body's, which ``module`` holds. ``known`` keeps
    effects of bodies from one question to the next."""
    if op.name == "torch.call":
        return _effect_of_call(op)
    if op.name == "geo.checkpoint":
        body = module.funcs.get(op.attrs["body"].name) if module is not None else None
        if body is None or module is None:
            return _anything(op)
        known = {} if known is None else known
        key = (body.name, len(op.operands), len(op.results))
        if key not in known:
            known[key] = _anything(op)  # what a body that ends up in itself would have
            known[key] = _effect_of_body(op, Memory(body, module, known))
        return known[key]
    if op.name in OPS and OPS[op.name].level == "geo":
        return NOTHING
    return _anything(op)


def _anything(op: Op) -> Effect:
    every = tuple(range(len(op.operands)))
    return Effect(every, _all_pairs(op), copies=True, raw=every, ordered=True, together=True)


def _all_pairs(op: Op, operands: Iterable[int] | None = None) -> tuple[tuple[int, int], ...]:
    chosen = range(len(op.operands)) if operands is None else list(operands)
    return tuple((r, o) for r in range(len(op.results)) for o in chosen)


def _effect_of_body(op: Op, memory: Memory) -> Effect:
    """All arguments of a function may share memory, so a write to one of them is a write to all."""
    every = tuple(n for n, v in enumerate(op.operands) if has_memory(v))
    changed = any(memory.written(a) for a in memory.func.args)
    raw = any(memory.raw(a) for a in memory.func.args)
    returned = memory.func.body.ops[-1].operands[: len(op.results)]
    outside = {memory.root(a) for a in memory.func.args if has_memory(a)}
    shared = tuple((r, o) for r, v in enumerate(returned) if memory.root(v) in outside for o in every)
    return Effect(every if changed else (), shared, True, every if raw else (), True, together=True)


# --- calls of operators ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Summary:
    """An overload's effect in terms of the names of its arguments; ``shares`` per result, None for all of them."""

    arguments: tuple[tuple[str, bool], ...]
    written: frozenset[str]
    shares: tuple[frozenset[str] | None, ...]
    untold: bool
    copies: bool
    raw: bool
    ordered: bool
    undefined: bool
    checks: bool
    divides: bool
    switch: str | None
    switch_writes: tuple[frozenset[str], str | None]


@lru_cache(maxsize=4096)
def _summary(target: str) -> _Summary | None:
    """None when there is no such operator."""
    try:
        overload: Any = target_function(target)
    except VerifyError:
        return None
    schema = overload._schema
    name = schema.name
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CompositeImplicitAutograd")
    untold = name in _SHARES_UNTOLD or (composite and name not in _FRESH | _VIEWS)
    written = frozenset(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    hidden, by = _WRITES_UNTOLD.get(name, ((), None))
    silent = name in _SHARES_UNTOLD
    shares = tuple(None if silent or (untold and r.alias_info is None) else _sources(schema, r) for r in schema.returns)
    drawn = torch.Tag.nondeterministic_seeded in overload.tags
    check = not schema.returns or name.startswith(("aten::_assert", "aten::sym_constrain"))
    return _Summary(
        tuple((a.name, a.kwarg_only) for a in schema.arguments),
        written,
        shares,
        untold,
        copies=name not in _VIEWS,
        raw=name in _RAW,
        ordered=(drawn and name not in _DRAWS_WHEN) or (check and not written),
        undefined=name.startswith(("aten::empty", "aten::new_empty")),
        checks=not checks.total(overload),
        divides=checks.divides(overload),
        switch=_DRAWS_WHEN.get(name),
        switch_writes=(frozenset(hidden), by),
    )


def _sources(schema: Any, returned: Any) -> frozenset[str]:
    """The arguments with which one result may share memory, as the schema has it."""
    own = set() if returned.alias_info is None else returned.alias_info.before_set | returned.alias_info.after_set
    found = set()
    for a in schema.arguments:
        if a.alias_info is None:
            continue
        if own & (a.alias_info.before_set | a.alias_info.after_set) or "*" in own or "*" in a.alias_info.after_set:
            found.add(a.name)
    return frozenset(found)


def _effect_of_call(op: Op) -> Effect:
    a = op.attrs
    target, args, names = a.get("target"), a.get("args"), a.get("kwargs", ())
    if not isinstance(target, str) or not isinstance(args, tuple):
        return _anything(op)
    if target.startswith("operator."):
        return Effect(shares=_all_pairs(op), copies=True) if target == "operator.getitem" else NOTHING
    counts = len(op.operands), len(op.results)
    real = all(map(_is_real, op.results))
    try:
        found = _effect_of_operator(target, args, names, counts, bool(a.get("effect")), real)
    except TypeError:  # an argument that has no hash
        found = _effect_of_operator.__wrapped__(target, args, names, counts, bool(a.get("effect")), real)
    return _anything(op) if found is None else found


@lru_cache(maxsize=4096)
def _effect_of_operator(
    target: str, args: tuple[Any, ...], names: tuple[str, ...], counts: tuple[int, int], effect: bool, real: bool
) -> Effect | None:
    """The effect of an operator on ``args``, the last of them by ``names``, with so many operands and results, these
    all ``real`` numbers or not; None when it is not known. Of arguments that are equal, the effect is the same."""
    found = _summary(target)
    given = _arguments(args, names, found) if found is not None else None
    if found is None or given is None:
        return None
    operands, results = counts
    positions = {name: tuple(_positions(value)) for name, value in given.items()}

    def at(names: Iterable[str]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(p for n in names for p in positions.get(n, ())))

    hidden, by = found.switch_writes
    writes = at(found.written) + (at(hidden) if hidden and _on(given, by) else ())
    shares: list[tuple[int, int]] = []
    for r in range(results):
        n = 0 if len(found.shares) == 1 else r  # the elements of a list share alike
        names_of = found.shares[n] if n < len(found.shares) else None
        of = range(operands) if names_of is None else at(names_of)
        shares += [(r, o) for o in of]
    ordered = found.ordered or (found.switch is not None and _on(given, found.switch))
    ordered = ordered or (effect and not writes)
    raw = tuple(range(operands)) if found.raw else ()
    together = found.untold and results > 1
    checked = found.checks or (found.divides and not real)
    return Effect(writes, tuple(shares), found.copies, raw, ordered, together, found.undefined, checked)


def _is_real(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype in _REAL


def _arguments(args: tuple[Any, ...], names: tuple[str, ...], found: _Summary) -> dict[str, Any] | None:
    """What is given, by the names of the schema; None when it does not fit."""
    split = len(args) - len(names)
    by_place = [n for n, keyword in found.arguments if not keyword]
    if split < 0 or split > len(by_place):
        return None
    given = dict(zip(by_place, args[:split], strict=False))
    given.update(zip(names, args[split:], strict=True))
    return given if given.keys() <= {n for n, _ in found.arguments} else None


def _on(given: dict[str, Any], switch: str | None) -> bool:
    """Whether an argument is true, or known only at run time. None is true to the schemas here, absence false."""
    if switch is None:
        return True
    value = given.get(switch, False)
    return value is None or isinstance(value, Operand) or bool(value)


def _positions(value: Any) -> Iterator[int]:
    if isinstance(value, Operand):
        yield value.position
    elif isinstance(value, tuple):
        for v in value:
            yield from _positions(v)


# --- a function's memory -----------------------------------------------------------------------------------
def has_memory(value: Value) -> bool:
    """Whether a value is a tensor or may hold one: plain numbers have no memory to share."""
    return not isinstance(value.type, ScalarType)


@dataclass(eq=False)
class Memory:
    """Which values of a geo function may share memory, and where that memory is written.

    Values that may share memory are one class, whatever the order of operations. The arguments are one class: a caller
    may hand in the same tensor twice. Time and space are linear in the number of operations.
    """

    func: Func
    module: Module
    known: dict[tuple[Any, ...], Effect] = field(default_factory=dict)
    effects: dict[Op, Effect] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._share: dict[Value, Value] = {}
        self._same: dict[Value, Value] = {}
        self._writes: dict[Value, list[int]] = {}
        self._outside: set[Value] = set()
        self._raw: set[Value] = set()
        tensors = [a for a in self.func.args if has_memory(a)]
        for a in tensors[1:]:
            self._join(self._share, a, tensors[0])
        for op in self.func.body.ops:
            self._add(op)
        last = self.func.body.ops[-1].operands if self.func.body.ops else []
        self._returned = {self._find(self._same, v) for v in last}
        self._settle(tensors)

    def _add(self, op: Op) -> None:
        effect = self.effects[op] = effect_of(op, self.module, self.known)
        for r, o in effect.shares:
            result, operand = op.results[r], op.operands[o]
            if has_memory(result) and has_memory(operand):
                self._join(self._share, result, operand)
                if effect.copies:
                    self._join(self._same, result, operand)
        for result in op.results[1:] if effect.together else ():
            self._join(self._share, result, op.results[0])
            self._join(self._same, result, op.results[0])

    def _settle(self, arguments: list[Value]) -> None:
        """Where classes are written, and which of them are seen outside, once it is known what the classes are."""
        self._outside.update(self.root(a) for a in arguments)
        for n, op in enumerate(self.func.body.ops):
            effect = self.effects[op]
            for root in {self.root(op.operands[o]) for o in effect.writes if has_memory(op.operands[o])}:
                self._writes.setdefault(root, []).append(n)
            self._raw.update(self.root(op.operands[o]) for o in effect.raw)
            if not OPS[op.name].pure or (
                effect.ordered and effect.writes
            ):  # returned, observed, or used by a body that runs again in the backward pass
                self._outside.update(self.root(v) for v in op.operands)

    def _find(self, parents: dict[Value, Value], v: Value) -> Value:
        top = v
        while (up := parents.get(top, top)) is not top:
            top = up
        while v is not top:
            parents[v], v = top, parents.get(v, v)
        return top

    def _join(self, parents: dict[Value, Value], a: Value, b: Value) -> None:
        a, b = self._find(parents, a), self._find(parents, b)
        if a is not b:
            parents[a] = b

    # --- questions -----------------------------------------------------------------------------------------
    def root(self, v: Value) -> Value:
        """The representative of the values that may share memory with ``v``."""
        return self._find(self._share, v)

    def written(self, v: Value) -> bool:
        """Whether the function may change the memory of ``v`` anywhere."""
        return self.root(v) in self._writes

    def written_between(self, v: Value, after: int, before: int) -> bool:
        """Whether an operation at a position strictly between two may change the memory of ``v``."""
        at = self._writes.get(self.root(v), ())
        n = bisect_right(at, after)
        return n < len(at) and at[n] < before

    def outside(self, v: Value) -> bool:
        """Whether memory of ``v`` may be seen outside: it comes from an argument, is returned or observed."""
        return self.root(v) in self._outside

    def raw(self, v: Value) -> bool:
        """Whether more than the elements of something that may share memory with ``v`` is seen or changed."""
        return self.root(v) in self._raw

    def returned(self, v: Value) -> bool:
        """Whether ``v`` itself, not just memory of it, may be among the results."""
        return self._find(self._same, v) in self._returned


def changes_arguments(module: Module) -> bool:
    """Whether running the entry changes what it is given, so that running it twice differs from running it once."""
    memory = Memory(module.entry, module)
    return any(memory.written(a) for a in module.entry.args if has_memory(a))
