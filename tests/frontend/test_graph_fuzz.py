"""Drawn whole models against eager PyTorch: results, writes to inputs, aliases, successive calls, gradients."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import aatc
from aatc import backends, passes
from aatc.errors import UnsupportedError
from aatc.frontend.importer import import_graph
from tests.frontend.graph_programs import Drawn, programs

SHAPES = ((2, 4), (4,))
STEPS = 3


def few(examples: int) -> int:
    """So many examples in the profile ``ci``, in proportion in others."""
    return max(1, examples * settings().max_examples // 25)


class World:
    """What a program works on: inputs made anew for each call, states and parameters that stay."""

    def __init__(self, drawn: Drawn):
        inputs, states, params = drawn.counts
        generator = torch.Generator().manual_seed(len(drawn.steps))

        def made(n: int, more: int = 0) -> Tensor:
            rows, *rest = SHAPES[n % 2]
            return torch.randn(rows + more if rest else rows, *rest, generator=generator, dtype=torch.float64)

        self.drawn, self.generator = drawn, generator
        self.states = [made(n) for n in range(states)]
        self.params = [made(n).requires_grad_(drawn.train) for n in range(params)]
        self.inputs = [[made(n, step if drawn.dynamic else 0) for n in range(inputs)] for step in range(STEPS)]

    def arguments(self, step: int) -> list[Tensor]:
        """The arguments of a call: the caller may hand in one tensor twice, or parts of another."""
        first, second = self.inputs[step]
        if self.drawn.alias == 1:
            second = first[1]
        elif self.drawn.alias == 2:
            first = self.states[0]
        elif self.drawn.alias == 3:
            second = torch.arange(8.0, dtype=torch.float64)[::2]
        return [first, second, *self.states, *self.params]


def traced(drawn: Drawn, arguments: list[Tensor]) -> torch.fx.GraphModule:
    """The ATen-level graph that Dynamo would have made."""
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) for a in arguments]
        return make_fx(lambda *given: list(drawn(*given)), pre_dispatch=True)(*fakes)


def layout(values: list[Tensor]) -> list[object]:
    """Who is whom, who shares storage with whom, and where in it."""
    alike = [[a is b for a in values] for b in values]
    shared = [[a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() for a in values] for b in values]
    return [alike, shared, [(v.storage_offset(), v.stride(), v.requires_grad, v.is_leaf) for v in values]]


def one_call(function, world: World, step: int) -> tuple[list[Tensor], list[object], list[Tensor | None] | str]:
    """Everything that can be seen of one call: results and arguments, their layout, gradients."""
    arguments = world.arguments(step)
    torch.manual_seed(step)
    results = list(function(*arguments))
    everything = [*results, *arguments]
    seen = layout(everything)
    values = [v.detach().clone() for v in everything]
    gradients: list[Tensor | None] | str = []
    trained = [r for r in results if r.requires_grad]
    if trained:
        try:
            loss = sum((torch.sin(r).sum() for r in trained), torch.zeros((), dtype=torch.float64))
            gradients = list(torch.autograd.grad(loss, world.params, allow_unused=True))
        except RuntimeError as error:
            gradients = type(error).__name__  # eager's complaint about a write to what the backward needs
        with torch.no_grad():
            for p, g in zip(world.params, gradients, strict=False):
                if isinstance(g, Tensor):
                    p.sub_(g, alpha=0.01)
    with torch.no_grad():
        for r in results:  # what the caller does with a result is seen by all that share its memory
            if 0 not in r.stride() and not any(r is a for a in arguments):
                r.add_(1)
    values += [v.detach().clone() for v in everything]
    world.states = [s.detach() for s in world.states]
    return values, seen, gradients


def compare(drawn: Drawn, compile_with) -> None:
    mine, theirs = World(drawn), World(drawn)
    try:
        want = [one_call(drawn, theirs, step) for step in range(STEPS)]
    except RuntimeError:
        assume(False)  # PyTorch itself refuses the program
    function = compile_with(drawn, World(drawn).arguments(0))
    for step in range(STEPS):
        (values, seen, gradients), (expected_values, expected_seen, expected_gradients) = (
            one_call(function, mine, step),
            want[step],
        )
        assert seen == expected_seen
        refused = isinstance(expected_gradients, str)
        # a write that only eager's backward minds may be gone: then we may differentiate where eager does not
        n = len(values) // 2 if refused else len(values)
        torch.testing.assert_close(values[:n], expected_values[:n], rtol=1e-9, atol=1e-9, equal_nan=True)
        if refused:
            return
        assert not isinstance(gradients, str), gradients
        for got, expected in zip(gradients, expected_gradients, strict=True):
            assert (got is None) == (expected is None)
            if got is not None:
                torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8, equal_nan=True)


def through_passes(drawn: Drawn, arguments: list[Tensor]):
    imported = import_graph(traced(drawn, arguments))
    backend = backends.get()
    program = backend.build(backends.pipeline().run(imported.module, target=backend.target()).module)
    return imported.bind(program.main)


def by_interpreter(drawn: Drawn, arguments: list[Tensor]):
    imported = import_graph(traced(drawn, arguments))
    module = passes.Pipeline.parse("canonicalize").run(imported.module).module

    def run(*given):
        results = aatc.run(aatc.parse(str(module)), *given)
        return results if isinstance(results, tuple) else (results,)

    return imported.bind(run)


def through_dynamo(drawn: Drawn, _: list[Tensor]):
    compiled = aatc.compile(lambda *given: drawn(*given), fallback=False, dynamic=drawn.dynamic or None)

    def run(*given):
        try:
            return compiled(*given)
        except UnsupportedError:
            assume(False)  # Dynamo has no word for it, and says so
            raise

    return run


@pytest.mark.usefixtures("one_thread")
@given(programs)
def test_drawn_models_agree_with_eager(drawn):
    compare(drawn, through_passes)


@pytest.mark.usefixtures("one_thread")
@settings(max_examples=few(10))
@given(programs)
def test_drawn_models_by_the_interpreter(drawn):
    compare(drawn, by_interpreter)


@pytest.mark.usefixtures("one_thread")
@settings(max_examples=few(6))
@given(programs, st.booleans())
def test_drawn_models_through_dynamo(drawn, dynamic):
    """The whole way, with lengths that vary from call to call."""
    torch.compiler.reset()
    compare(replace(drawn, dynamic=dynamic), through_dynamo)
