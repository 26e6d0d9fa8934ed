"""The user's passes: they run, show up as stages, and are part of the compile key."""

from dataclasses import dataclass
from typing import ClassVar

import torch

import aatc
from aatc.ir.core import Module
from aatc.passes import Context, Pass, Pipeline
from tests.frontend import frontend_models as models


@dataclass(frozen=True)
class CountAttention(Pass):
    """Counts attentions, changes nothing."""

    name: ClassVar[str] = "count-attention"
    label: str = "plain"

    def run(self, module: Module, ctx: Context) -> Module:
        ctx.count("seen", sum(op.name == "geo.attend" for op in module.walk()))
        ctx.notes.append(f"counted as {self.label}")
        return module


def compiled(**options: object):
    torch.manual_seed(0)
    model = aatc.compile(models.Classifier().eval(), **options)
    with torch.no_grad():
        model(torch.ones(2, 4, 16))
    return model


def test_a_users_pass_runs_and_is_a_stage():
    model = compiled(passes=[CountAttention()])
    assert "count-attention" in model.stages
    (info,) = (p for p in model.explain().passes if p.name == "count-attention")
    assert info.rewrites == {"seen": 2}
    assert info.notes == ("counted as plain",)
    assert "count-attention: counted as plain" in str(model.explain())


def test_passes_are_part_of_the_compile_key():
    keys = [
        compiled(**options).graphs[0].key
        for options in ({}, {}, {"passes": [CountAttention()]}, {"passes": [CountAttention(label="other")]})
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_the_same_code_with_other_passes_does_not_share_programs():
    model = models.Classifier().eval()
    x = torch.ones(2, 4, 16)
    plain, counted = aatc.compile(model), aatc.compile(model, passes=[CountAttention()])
    with torch.no_grad():
        for m in (plain, counted, plain):
            m(x)
    assert len(plain.graphs) == len(counted.graphs) == 1
    assert "count-attention" not in plain.stages


def test_a_pipeline_replaces_the_default_one():
    for chosen in ("canonicalize,simplify-score", Pipeline.parse("canonicalize,simplify-score")):
        model = aatc.compile(models.Block().eval(), passes=chosen)
        assert model._aatc.session.pipeline == Pipeline.parse("canonicalize,simplify-score")
