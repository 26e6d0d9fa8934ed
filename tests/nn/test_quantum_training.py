"""`QuantumGeometricAttention` learns through `aatc.compile`: the example's model reads digits it has not seen."""

from collections.abc import Iterator

import pytest
import torch

from examples import quantum_attention as example


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Operations on patches of 8 × 8 images are too small to share among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    assert numbers["norm_deviation"] < 1e-5
