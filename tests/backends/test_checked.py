"""What a backend's code hands back is held to the types of the tile function: a lie is never computed with."""

import pytest
import torch

import aatc
from aatc import backends
from aatc.backends import Lowerings
from aatc.backends.cpu import CpuBackend
from aatc.errors import BackendError, CompilerBugWarning, ShapeError
from aatc.ir.parser import parse
from tests.backends.test_registration import forgetful, renamed  # noqa: F401
from tests.ir.samples import TILE


def tensors(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def operands():
    return tensors(1, 2, 6, 4), tensors(1, 2, 7, 4), tensors(1, 2, 7, 4)


class Lying(CpuBackend):
    """The CPU backend as ``lying``; ``change`` is done to results, given the arguments, from the call ``honest`` on."""

    name = "lying"
    suffix = "plan-memory"
    lowerings: Lowerings = renamed("lying")
    calls = 0

    def __init__(self, change, of=None, honest=0):
        self.change, self.of, self.honest = change, of, honest

    def compile(self, func):
        run, text = super().compile(func)
        if self.of is not None and self.of != ("backward" in func.name):
            return run, text

        def changed(*given):
            self.calls += 1
            return run(*given) if self.calls <= self.honest else self.change(run(*given), given)

        return changed, text


WRONG = {
    "of another shape": (lambda r, a: [r[0].mT.clone(), r[1]], r"float64\[1,2,4,6\] on cpu as result 0 \(%o\), "),
    "that broadcast": (lambda r, a: [r[0][:, :1].clone(), r[1]], r"float64\[1,1,6,4\] on cpu as result 0"),
    "of another dtype": (lambda r, a: [r[0], r[1].float()], r"float32\[1,2,6\] on cpu as result 1"),
    "elsewhere": (lambda r, a: [r[0].to("meta"), r[1]], "on meta as result 0"),
    "too few": (lambda r, a: r[:1], "returned 1 tensors of 2 results"),
    "too many": (lambda r, a: [*r, r[0]], "returned 3 tensors of 2 results"),
    "the only one": (lambda r, a: r[0], "returned a Tensor, which is no list or tuple of tensors"),
    "once only": (lambda r, a: iter(r), "which is no list or tuple of tensors"),
    "numbers": (lambda r, a: [1.0, 2.0], r"returned list of \(float, float\), which"),
    "none": (lambda r, a: None, "returned None, which says that a condition fails, and it has none"),
    "an argument": (lambda r, a: [a[0], r[1]], r"result 0 \(%o\) in memory of an argument"),
    "one in the other": (lambda r, a: [r[0], r[0][..., 0]], r"result 1 \(%lse\) in memory of an argument or"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_results_that_lie_are_refused(name):
    change, message = WRONG[name]
    program = Lying(change).build(parse(TILE))
    with pytest.raises(
        BackendError, match=f"what backend 'lying' made of @attend {'' if 'ret' in message[:4] else '.*'}{message}"
    ):
        program.main(*operands())


@pytest.mark.parametrize("name", ["of another shape", "that broadcast", "of another dtype", "too few", "numbers"])
def test_a_backend_that_begins_to_lie_later_is_refused_then(name):
    change, message = WRONG[name]
    program, given = Lying(change, honest=2).build(parse(TILE)), operands()
    for _ in range(2):
        program.main(*given)
    with pytest.raises(BackendError, match=message):
        program.main(*given)


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (None, "to None"), (print, "to a builtin_.*"), ((print, None), r"to tuple of \(.*, NoneType\)"),
        (("text", print), r"to tuple of \(str, .*"), ((print, "text", 1), "to tuple of .*"), ("ab", "to a str"),
    ],
    ids=str,
)  # fmt: skip
def test_a_compile_that_gives_no_pair_is_refused(monkeypatch, made, shown):
    monkeypatch.setattr(Lying, "compile", lambda self, func: made)
    program = Lying(None).build(parse(TILE))
    with pytest.raises(BackendError, match=f"backend 'lying' compiled @attend {shown}\n  hint"):
        program.main(*operands())
    with pytest.raises(BackendError, match="compiled @attend"):
        _ = program.code


BACKWARD = {
    "too few": (lambda r, a: r[:-1], "returned 2 tensors of 3 results"),
    "of another shape": (lambda r, a: [r[0][:, :, :1].clone(), *r[1:]], "as result 0"),
    "none": (lambda r, a: None, "returned None"),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_gradients_that_lie_are_refused(name):
    change, message = BACKWARD[name]
    backends.register(Lying(change, of=True))

    def f(q, k, v):
        return aatc.attend(q, k, v, metric=aatc.metrics.DotProduct())

    given = [x.requires_grad_() for x in operands()]
    o = aatc.compile(f, backend="lying", fallback=False)(*given)
    with pytest.raises(BackendError, match=f"backend 'lying' made of @.*backward.* {message}"):
        o.sum().backward()


def test_a_model_falls_back_to_torch_and_the_warning_names_the_backend():
    backends.register(Lying(lambda r, a: [2 * x for x in r][::-1], of=False))

    def f(q, k, v):
        return aatc.attend(q, k, v, metric=aatc.metrics.DotProduct())

    given = operands()
    with pytest.warns(CompilerBugWarning, match="what backend 'lying' made of @"):
        got = aatc.compile(f, backend="lying")(*given)
    torch.testing.assert_close(got, f(*given))


def test_arguments_of_other_types_are_refused():
    q, k, v = operands()
    main = backends.get("cpu").build(parse(TILE)).main
    for given, message in (
        ((q.float(), k, v), r"%q of @attend is f64\[1,2,N,4\], got torch.float32 \(1, 2, 6, 4\)"),
        ((q[:, :1], k, v), r"dimension 1 of argument 0 \(%q\) of @attend must be 2, got 1"),
        ((q, k, v[:, :, :3]), r"argument 2 \(%v\) of @attend must be M = 7, got 3"),
        ((q, k[..., 0], v), "must have 4 dimensions"),
    ):
        with pytest.raises(ShapeError, match=message):
            main(*given)


class Partial:
    """A kernel with a method ``first``, which is changed by ``change``."""

    def __init__(self, run, change):
        self.run, self.change = run, change

    def __call__(self, *given):
        return self.run(*given)

    def first(self, count, *given):
        return self.change(self.run(*given)[:count])


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda r: r, ""), (lambda r: r[:-1], "returned 0 tensors of 1"), (lambda r: [r[0].mT, *r[1:]], "as result 0")],
)
def test_first_results_that_lie_are_refused(monkeypatch, change, message):
    backend = CpuBackend()
    monkeypatch.setattr(Lying, "compile", lambda self, f: (Partial(backend.compile(f)[0], change), "text"))
    program, given = Lying(None).build(parse(TILE)), operands()
    if message:
        with pytest.raises(BackendError, match=message):
            program.main(*given)
    else:
        torch.testing.assert_close(program.main(*given), backend.build(parse(TILE)).main(*given))


def test_what_looks_for_numbers_that_are_not_finite_can_be_called(monkeypatch):
    monkeypatch.setattr(Lying, "finite", lambda self: None)
    with pytest.raises(BackendError, match="backend 'lying' finds numbers that are not finite by None"):
        Lying(None).build(parse(TILE))
