"""`aatc.export`: the same importer behind torch.export."""

import pytest
import torch
from torch import nn
from torch.export import Dim

import aatc
from aatc.errors import UnsupportedError
from tests.frontend import frontend_models as models


def inputs_of(model: nn.Module, module, *args: torch.Tensor) -> list[torch.Tensor]:
    """Parameters and buffers in the order of the entry, then ``args``."""
    state = {n.replace(".", "_"): t for n, t in (*model.named_parameters(), *model.named_buffers())}
    names = [a.name for a in module.entry.args]
    return [*(state[n] for n in names[: len(names) - len(args)]), *args]


def test_an_export_computes_what_the_model_computes():
    model, x = models.Classifier().eval(), torch.randn(2, 5, 16)
    module = aatc.export(model, (x,))
    assert sum(op.name == "geo.metric" for op in module.walk()) == 2
    torch.testing.assert_close(aatc.run(module, *inputs_of(model, module, x)), model(x), rtol=2e-5, atol=2e-5)
    assert aatc.parse(str(module)) == module


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_dimension_from_one_on_takes_every_length(length):
    model = models.Block().eval()
    module = aatc.export(model, (torch.randn(2, 6, 16),), dynamic_shapes=({1: Dim("n", min=1)},))
    assert [low for low, _ in module.dims.values()] == [1]
    x = torch.randn(2, length, 16)
    torch.testing.assert_close(aatc.run(module, *inputs_of(model, module, x)), model(x), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("make", [models.NoGradient, models.Autocast, models.Classifier])
def test_regions_and_training_state_are_exported(make):
    model, x = make().train(), torch.randn(3, 5, 16)
    module = aatc.export(model, (x,))
    values = [t.clone() for t in inputs_of(model, module, x)]
    torch.testing.assert_close(aatc.run(module, *values), model(x), rtol=2e-2, atol=2e-2)


def test_locations_are_those_of_the_model():
    module = aatc.export(models.Block().eval(), (torch.randn(2, 5, 16),))
    (metric,) = (op for op in module.walk() if op.name == "geo.metric")
    assert metric.loc.file == models.__file__
    assert "aatc.attend" in metric.loc.text


def test_exporting_a_compiled_module_exports_the_model():
    model, x = models.Block().eval(), torch.randn(2, 5, 16)
    assert aatc.export(aatc.compile(model), (x,)) == aatc.export(model, (x,))


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tensor([1.0, 2.0])


def test_constants_of_the_code_are_no_inputs():
    module = aatc.export(Constant(), (torch.zeros(2),))
    assert len(module.entry.args) == 1
    assert aatc.run(module, torch.zeros(2)).tolist() == [1.0, 2.0]


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # the branch
            return x + 1
        return x


def test_what_cannot_be_exported_names_the_line():
    with pytest.raises(UnsupportedError, match="# the branch"):
        aatc.export(Branching(), (torch.ones(2),))


def test_misuse_says_what_to_hand_in():
    with pytest.raises(UnsupportedError, match="hand in a tuple"):
        aatc.export(nn.Identity(), torch.ones(2))
    with pytest.raises(UnsupportedError, match="only modules"):
        aatc.export(torch.sin, (torch.ones(2),))
