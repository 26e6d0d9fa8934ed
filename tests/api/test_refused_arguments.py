"""What is no argument of an attention is refused by a typed error that names it."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import aatc
from aatc import biases, connections, masks, metrics
from aatc.errors import AatcError, CompilerBugWarning, PassError

Q = torch.randn(1, 2, 5, 4)


def attend(q=Q, k=Q, v=Q, metric=None, **parts):
    return aatc.attend(q, k, v, metric=metric or metrics.DotProduct(), **parts)


WRONG = {
    "dropout text": lambda: attend(dropout="x"),
    "dropout complex": lambda: attend(dropout=1j),
    "seed fraction": lambda: attend(dropout=0.5, seed=1.5),
    "seed text": lambda: attend(dropout=0.5, seed="a"),
    "seed range": lambda: attend(dropout=0.5, seed=2**63),
    "scale text": lambda: attend(scale="x"),
    "scale complex": lambda: attend(scale=1j),
    "offset range": lambda: attend(mask=masks.causal(2**70)),
    "offset wraps": lambda: attend(mask=masks.causal(2**63 - 1)),
    "window range": lambda: attend(mask=masks.sliding_window(2**70)),
    "q list": lambda: attend(q=[[1.0]]),
    "q none": lambda: attend(q=None),
    "q sparse": lambda: attend(q=Q.to_sparse()),
    "table list": lambda: attend(bias=biases.RelativeTable([1.0, 2.0, 3.0])),
    "table sparse": lambda: attend(bias=torch.zeros(5, 5).to_sparse()),
    "documents list": lambda: attend(mask=masks.documents([0, 0, 1, 1, 1])),
    "padding list": lambda: attend(mask=masks.key_padding([True] * 5)),
    "dense list": lambda: attend(mask=masks.dense([[True] * 5] * 5)),
    "matrix list": lambda: attend(metric=metrics.Mahalanobis([[1.0]])),
    "positions list": lambda: attend(connection=connections.Rotary([0, 1, 2, 3, 4])),
    "frames list": lambda: attend(connection=connections.Frames([[1.0]])),
    "rotary base 0": lambda: connections.Rotary(base=0),
    "rotary base negative": lambda: connections.Rotary(base=-1),
    "rotary base text": lambda: connections.Rotary(base="x"),
    "beta none": lambda: attend(metric=metrics.LorentzDistance(beta=None)),
    "beta list": lambda: attend(metric=metrics.Poincare(beta=[1.0])),
    "curvature text": lambda: metrics.LorentzDistance(curvature="a"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_is_refused(what):
    with pytest.raises(AatcError):
        WRONG[what]()


@pytest.mark.parametrize("value", [None, "x"])
def test_a_capture_that_is_no_tensor(value):
    @aatc.metric(a="d")
    def scaled(q, k, a):
        return (a * q) @ k

    with pytest.raises(AatcError, match=r"a is .*, not a tensor"):
        attend(metric=scaled(a=value))


def test_what_is_right_still_is():
    attend(dropout=0.5, seed=-(2**63))
    attend(mask=masks.causal(-3), scale=True)
    attend(dropout=0.5, seed=torch.tensor(3))


@pytest.mark.parametrize("pipeline", ["adaptive-tile", "canonicalize,fuse-attention,simplify-score"])
def test_a_wrong_order_in_the_users_pipeline_is_raised(pipeline):
    with pytest.raises(PassError, match="order of the passes"):
        aatc.compile(lambda q: attend(q, q, q), passes=pipeline)(Q)


def test_what_has_not_run_yet_lacks_the_answers_quietly():
    for compiled in (aatc.compile(nn.Linear(4, 4)), aatc.compile(lambda x: x + 1)):
        assert not hasattr(compiled, "code") and not hasattr(compiled, "stages")
        inspect.getmembers(compiled)
        with pytest.raises(aatc.errors.AatcError, match="run the model once"):
            _ = compiled.code
        compiled(torch.ones(4))
        assert compiled.code and "final" not in compiled.code and compiled.stages


def test_parametrizations():
    model = nn.Linear(4, 3)
    compiled = aatc.compile(model)
    with pytest.raises(AatcError, match="change the model itself"):
        parametrizations.weight_norm(compiled)
    model = nn.Linear(4, 3)
    compiled = aatc.compile(model)
    parametrizations.weight_norm(model)
    x = torch.randn(2, 4)
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(compiled.weight, model.weight)


def test_no_bug_is_told_of_a_wrong_pipeline(recwarn):
    with pytest.raises(PassError):
        aatc.compile(lambda q: attend(q, q, q), passes="adaptive-tile")(Q)
    assert not [w for w in recwarn if issubclass(w.category, CompilerBugWarning)]
