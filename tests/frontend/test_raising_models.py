"""Models that raise for some of their inputs raise compiled, too, and leave everything as they would have."""

import pytest
import torch

import aatc


def inverse(x, i):
    torch.linalg.inv(x)
    return x + 1


def cholesky(x, i):
    torch.linalg.cholesky(x - 1)
    return x + 1


def constant_index(x, i):
    x.index_select(0, torch.tensor([99]))
    return x + 1


def constants_only(x, i):
    torch.arange(3).take(torch.tensor([99]))
    return x + 1


def taken(x, i):
    x.take(i)
    return x + 1


def gathered(x, i):
    x.gather(0, i[:, None])
    return x + 1


def embedded(x, i):
    torch.nn.functional.embedding(i, x)
    return x + 1


def written(x, i):
    made = torch.zeros(2)
    made[i] = 1.0
    return x + 1


def divided(x, i):
    i // (i - i)
    return x + 1


def probabilities(x, i):
    torch.nn.functional.binary_cross_entropy(x + 2, x)
    return x + 1


FUNCTIONS = [
    inverse, cholesky, constant_index, constants_only, taken, gathered, embedded, written, divided, probabilities,
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_unused_operators_raise_as_eagerly(function):
    """Dynamo itself drops an unused ``x[i]``, so the functions call operators by name."""
    given = torch.zeros(2, 2), torch.tensor([99])
    with pytest.raises(Exception) as theirs:
        function(*given)
    with pytest.raises(type(theirs.value)):
        aatc.compile(function)(*given)


def test_random_numbers_after_a_call_that_raised():
    def f(b, i):
        y = torch.rand(3)
        return b[i] + y[0]

    def following(function):
        torch.manual_seed(0)
        with pytest.raises(IndexError):
            function(torch.zeros(4), torch.tensor([9]))
        return torch.rand(3)

    compiled = aatc.compile(f)
    for _ in range(3):
        compiled(torch.zeros(4), torch.tensor([1]))
        torch.testing.assert_close(following(compiled), following(f), rtol=0, atol=0)
