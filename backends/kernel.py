"""An attention kernel as a differentiable function: generated forward, generated backward, compiled when needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from aatc.backends.checked import Checked
from aatc.ir import reference
from aatc.ir.containment import checked, spoiled_rows, sums_up
from aatc.ir.core import Func, clone_func
from aatc.ir.errors import BackendError, UnsupportedError
from aatc.ir.score.program import Program
from aatc.ir.specialize import keep_results
from aatc.ir.transforms import by_sample, is_batched, transformed, undisturbed

if TYPE_CHECKING:
    from aatc.backends.contract import Backend

Grad = torch.Tensor | None


class Version:
    """A forward and its backward, of the attention ``att``.

    The backward is compiled on first use for each set of operands that need gradients, without the rest.
    """

    def __init__(self, forward: Func, backward: Func, grads: Sequence[str], att: reference.Attention, backend: Backend):
        self.forward_func, self.backward_func, self.grads = forward, backward, tuple(grads)
        self._att, self._backend = att, backend
        self._forward: Checked | None = None
        self._backwards: dict[tuple[bool, ...], Checked] = {}

    @property
    def forward(self) -> Checked:
        """The compiled forward. None among its results' places means that a condition does not hold."""
        if self._forward is None:
            self._forward = Checked(self.forward_func, self._backend, self._fit)
        return self._forward

    def first(self, count: int, *operands: torch.Tensor) -> Sequence[torch.Tensor] | None:
        """At least the forward's first results, or None where a condition does not hold."""
        return self.forward.first(count, *operands)

    def _fit(self, operands: Sequence[torch.Tensor]) -> None:
        reference.check_fit(self._att, [t.shape for t in operands])

    def backward(self, needed: tuple[bool, ...]) -> Checked:
        """The backward that returns the gradients ``needed`` (by position in ``grads``) and computes no others."""
        found = self._backwards.get(needed)
        if found is None:
            func = keep_results(clone_func(self.backward_func), needed)
            found = self._backwards[needed] = Checked(func, self._backend)
        return found

    def code(self) -> str:
        """Source of both, the backward with all gradients."""
        texts = [
            f"# {what} of @{self.forward_func.name}\n{Checked(func, self._backend).source}"
            for what, func in (("forward", self.forward_func), ("backward", self.backward_func))
        ]
        return "\n\n".join(texts)


class Kernel:
    """Forward and backward of one attention, by the first of its ``versions`` whose conditions hold. ``exact_calls``
    counts those that another one than the first did. ``finite`` says whether all numbers of a tensor are, or their sum
    is. ``seen`` is called with the operands of every call."""

    seen: Callable[[Sequence[torch.Tensor]], None] | None = None

    def __init__(
        self,
        names: Sequence[str],
        mask: Program | None,
        axes: Sequence[str],
        versions: Sequence[Version],
        finite: Callable[[torch.Tensor], bool] = sums_up,
    ):
        self.names, self.mask, self.axes = tuple(names), mask, dict(zip(names, axes, strict=False))
        self.versions, self.finite = tuple(versions), finite
        self.exact_calls = 0
        self._checked = () if mask is None else checked(self.names, self.axes)

    def code(self) -> str:
        return "\n\n".join(v.code() for v in self.versions)

    def __call__(self, *operands: torch.Tensor, count: int = 2) -> Sequence[torch.Tensor]:
        """Output and log-sum-exp, or the first of them."""
        if transformed():
            raise UnsupportedError(
                "a compiled attention within torch.func, torch.vmap or forward mode",
                hint="transform the model itself, not its compiled form",
            )
        if torch.is_grad_enabled():
            for t in operands:
                if t.requires_grad:
                    done: tuple[torch.Tensor, torch.Tensor] = _Attend.apply(self, *operands)  # type: ignore[no-untyped-call]
                    return done
        return self.results(count, *operands)

    def output(self, *operands: torch.Tensor) -> torch.Tensor:
        """The output, where nobody wants the log-sum-exp."""
        return self(*operands, count=1)[0]

    @undisturbed
    def results(self, count: int, *operands: torch.Tensor) -> Sequence[torch.Tensor]:
        """The first of output and log-sum-exp, without what a backward needs."""
        return self._contained(operands, count)[2][:count]

    @undisturbed
    def forward(self, *operands: torch.Tensor) -> tuple[Version, Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """(version that ran, operands as computed with, results): keys that are not finite spoil only rows that see
        them."""
        return self._contained(operands, None)

    def _contained(
        self, operands: Sequence[torch.Tensor], count: int | None
    ) -> tuple[Version, Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        if self.seen is not None:
            self.seen(operands)
        for n in self._checked:
            if not self.finite(operands[n]):
                break
        else:
            return self._run(operands, count)
        clean, spoiled = spoiled_rows(self.mask, self.names, self.axes, dict(zip(self.names, operands, strict=True)))
        version, used, results = self._run([clean[n] for n in self.names], count)
        if spoiled is not None:
            rows, found = spoiled.unsqueeze(-1), {id(x): x for x in results}
            marked = {n: x.masked_fill(rows if x.dim() == 4 else spoiled, float("nan")) for n, x in found.items()}
            results = tuple(marked[id(x)] for x in results)
        return version, used, results

    def _run(
        self, operands: Sequence[torch.Tensor], count: int | None
    ) -> tuple[Version, Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        for n, version in enumerate(self.versions):
            results = version.forward(*operands) if count is None else version.first(count, *operands)
            if results is not None:
                self.exact_calls += n > 0
                return version, operands, results
        raise BackendError(
            f"@{self.versions[-1].forward_func.name} refused its operands and the attention has no other version"
        )


class Formula(Kernel):
    """An attention without a tile program, by its formula in n*m memory. Its gradients are the closed form, too:
    torch's own of acosh or sqrt are NaN where points coincide."""

    def __init__(self, att: reference.Attention):
        self.att, self.names, self.grads = att, att.names, att.names

    def results(self, count: int, *operands: torch.Tensor) -> Sequence[torch.Tensor]:
        return self.forward(*operands)[2][:count]

    def forward(self, *operands: torch.Tensor) -> tuple[Any, list[torch.Tensor], tuple[torch.Tensor, ...]]:
        reference.check_fit(self.att, [t.shape for t in operands])
        return self, list(operands), reference.attend(self.att, dict(zip(self.names, operands, strict=True)))

    def backward(self, needed: tuple[bool, ...]) -> Any:
        """A function of (grad_o, grad_lse, operands) that returns the gradients ``needed``."""

        def run(grad_o: torch.Tensor, grad_lse: torch.Tensor, *operands: torch.Tensor) -> list[torch.Tensor]:
            tensors = dict(zip(self.names, operands, strict=True))
            found = reference.attend_backward(self.att, tensors, None, None, grad_o, grad_lse)
            wanted = [n for n, keep in zip(self.names, needed, strict=True) if keep]
            return [found[n] if n in found else torch.zeros_like(tensors[n]) for n in wanted]

        return run


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Kernel, *operands: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.version, used, (o, lse, *saved) = kernel.forward(*operands)
        # no views: autograd lets nobody write in place to views that a function returns
        o, lse = (x.data if x._is_view() else x for x in (o, lse))
        ctx.kernel = kernel
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*used, o, lse, *saved)
        return o, lse

    @staticmethod
    def backward(ctx: Any, grad_o: Grad, grad_lse: Grad) -> Any:
        saved = ctx.saved_tensors  # once: torch.utils.checkpoint recomputes at every look
        with torch.no_grad():
            found = _Attend.each(ctx, saved, grad_o, grad_lse)
        if not torch.is_grad_enabled():
            return None, *found
        sources = [t for t in (grad_o, grad_lse, *saved) if t is not None and t.requires_grad]
        return None, *_once(found, sources)

    @staticmethod
    def each(ctx: Any, saved: Sequence[torch.Tensor], grad_o: Grad, grad_lse: Grad) -> list[torch.Tensor | None]:
        """`gradients`, for every sample of a batch of ``grad_o`` and ``grad_lse`` where `torch.vmap` has made one."""
        if is_batched(grad_o) or is_batched(grad_lse):
            found = by_sample(lambda *grads: _Attend.each(ctx, saved, *grads), (grad_o, grad_lse))
        else:
            found = _Attend.gradients(ctx, saved, grad_o, grad_lse)
        return list(found)

    @staticmethod
    @undisturbed
    def gradients(ctx: Any, saved: Sequence[torch.Tensor], grad_o: Grad, grad_lse: Grad) -> list[torch.Tensor | None]:
        """Those of the operands that need one, in their order."""
        kernel: Kernel = ctx.kernel
        version: Version = ctx.version
        n = len(kernel.names)
        operands, (o, lse, *rest) = saved[:n], saved[n:]
        wanted = dict(zip(kernel.names, ctx.needs_input_grad[1:], strict=True))
        needed = tuple(wanted[name] for name in version.grads)
        named: dict[str, torch.Tensor] = {}
        if any(needed):
            grad_o = torch.zeros_like(o) if grad_o is None else grad_o
            grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
            found = version.backward(needed)(grad_o, grad_lse, *rest, *operands)
            if found is None:
                raise BackendError(f"@{version.backward_func.name} refused what its forward has taken")
            named = dict(zip((g for g, keep in zip(version.grads, needed, strict=True) if keep), found, strict=True))
        for name, t in zip(kernel.names, operands, strict=True):
            if wanted[name] and name not in named:  # what has no influence on the scores' differences
                named[name] = torch.zeros_like(t)
        return [named.get(name) for name in kernel.names]


def _once(found: list[torch.Tensor | None], sources: list[torch.Tensor]) -> list[torch.Tensor | None]:
    """``found``, such that a derivative of them is an error, not zero; they were computed from ``sources``."""
    given = [g for g in found if g is not None]
    if not sources or not given:
        return found
    marked = iter(_Once.apply(len(given), *given, *sources))  # type: ignore[no-untyped-call]
    return [None if g is None else next(marked) for g in found]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> NoReturn:
        raise UnsupportedError(
            "a compiled attention has no second derivatives",
            hint="differentiate the model itself, not its compiled form: its attention can be differentiated twice",
        )
