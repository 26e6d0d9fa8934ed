"""Attentions that are the same are lowered and planned once; nobody can tell."""

import pytest
import torch

import aatc
from aatc import backends, masks, metrics
from aatc.backends.cpu import plan_memory
from aatc.passes import twins

METRICS = {
    "products": lambda beta: metrics.DotProduct(),
    "distances": lambda beta: metrics.Euclidean(),
    "hyperbolic": lambda beta: metrics.LorentzDistance(beta=beta, lift=True),
}


def layers(q, k, v, beta, *, metric, mask):
    first = aatc.attend(q, k, v, metric=metric(beta), mask=mask)
    second = aatc.attend(q + 1, k, v, metric=metric(beta), mask=mask)
    third = aatc.attend(q, k, v, metric=metric(beta), mask=mask, scale=0.25)
    return first + second + third + aatc.attend(third, k, first, metric=metric(beta), mask=mask)


def module_of(metric, mask):
    q = torch.randn(1, 2, 40, 8)

    class Model(torch.nn.Module):
        def forward(self, q, k, v, beta):
            return layers(q, k, v, beta, metric=METRICS[metric], mask=mask)

    return aatc.export(Model(), (q, q, q, torch.ones(2)))


def lowered(module, backend):
    result = backends.pipeline(backend).run(module, target=backends.get(backend).target())
    counted = [dict(r.rewrites) for r in result.report]
    notes = [r.notes for r in result.report]
    locs = [[(op.name, str(op.loc)) for op in m.walk()] for m in result.stages.values()]
    return [str(m) for m in result.stages.values()], counted, notes, locs


@pytest.mark.parametrize("mask", [None, masks.causal()], ids=["all", "causal"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", ["cpu", "native"])
def test_copies_are_what_lowering_each_gives(backend, metric, mask, monkeypatch):
    module = module_of(metric, mask)
    found = lowered(module, backend)
    monkeypatch.setattr(twins.Twins, "_key", lambda self, op, stem: None)
    monkeypatch.setattr(plan_memory, "key_of_function", lambda func: None)
    assert lowered(module, backend) == found


def test_numbers_that_are_merely_equal_make_another_key():
    assert twins.exact((1, 0.0, ("x",))) == twins.exact((1, 0.0, ("x",)))
    different = [(1,), (1.0,), (True,), (0.0,), (-0.0,), (0,), (False,), ((1,),)]
    assert len({twins.exact(x) for x in different}) == len(different)
    assert twins.exact((float("nan"),)) == twins.exact((float("nan"),))
