"""`QuantumGeometricAttention` learns through `aatc.compile`: the example's model reads digits it has not seen."""

import pytest
import torch

from examples import quantum_attention as example


@pytest.mark.slow
def test_it_reads_digits_it_has_not_seen(one_thread):
    data = example.load()
    torch.manual_seed(0)
    model = example.DigitStates()
    before = example.accuracy(model, data)
    run = example.train(model, data, lambda loss: None)
    report = run.explain()
    assert not report.fallbacks, str(report)
    assert len(report.attentions) == 1 + model.attention.num_layers
    assert before < 0.3
    assert example.accuracy(model, data) > 0.95
    numbers = example.measure(model, data)
    assert numbers["flow_energy_after"] < numbers["flow_energy_before"]
    assert numbers["metric_condition"] < 1e6 and numbers["berry_curvature"] > 0
