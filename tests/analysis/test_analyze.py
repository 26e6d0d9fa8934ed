"""`aatc.analyze` on a model: what it finds is what the families' functions say of the weights it captured."""

import json
import threading
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import aatc
from aatc import analysis
from aatc.analysis import cohomology, homotopy, information
from aatc.cli import app
from aatc.errors import UnsupportedError
from aatc.passes.analysis import base
from aatc.passes.analysis.arithmetic.arithmetic_pass import live_ranges
from aatc.passes.analysis.homotopy.homotopy_pass import AnalyzeHomotopy

N, HEADS = 40, 2


class Model(torch.nn.Module):
    """Two layers: ALiBi, then a causal window."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.ModuleList(torch.nn.Linear(16, 48) for _ in range(2))

    def forward(self, x):
        kinds = ({"bias": aatc.biases.ALiBi(HEADS)}, {"mask": aatc.masks.causal()})
        for layer, kind in zip(self.qkv, kinds, strict=True):
            q, k, v = layer(x).unflatten(-1, (3, HEADS, 8)).permute(2, 0, 3, 1, 4)
            x = x + aatc.attend(q, k, v, metric=aatc.metrics.DotProduct(), **kind).transpose(1, 2).flatten(-2)
        return x


def model_and_inputs() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    return Model(), (torch.randn(2, N, 16),)


@pytest.fixture(scope="module")
def found() -> analysis.Analysis:
    model, inputs = model_and_inputs()
    return aatc.analyze(model, inputs)


def test_the_model_runs_as_it_would(found):
    model, inputs = model_and_inputs()
    torch.testing.assert_close(found.output, model(*inputs), atol=2e-5, rtol=2e-5)
    assert [c.name for c in found.captured] == ["attend0", "attend1"]


def test_every_family_says_something_of_every_head(found):
    for family in (
        "heads",
        "topology",
        "homotopy",
        "cohomology",
        "arithmetic",
        "information",
        "quantum",
        "crystal",
        "scale",
    ):
        seen = {(f.subject, f.head) for f in found.select(family) if f.subject not in ("ir", "layers")}
        assert seen == {(a, h) for a in ("attend0", "attend1") for h in range(HEADS)}
        assert family in ("heads", "topology", "quantum", "crystal", "scale") or found.select(family, attention="ir")


def test_results_are_those_of_the_functions_on_the_captured_weights(found):
    weights = found.captured[0].whole(1)
    weights /= weights.sum(1, keepdims=True)
    flow = information.information_flow_metrics(weights).value
    assert found["attend0", "information_flow", 1].value == pytest.approx(float(flow.information_flow), abs=1e-12)
    np.testing.assert_allclose(found["attend0", "stationary", 1].value[0], flow.stationary, atol=1e-12)
    pooled = found.captured[0].coarse(1, nodes=32)
    assert pooled.array.shape == (20, 20)
    threshold = found["attend0", "connecting_threshold", 1].value
    complex = cohomology.threshold_complex(pooled.array, threshold, 3)
    assert found["attend0", "betti_numbers", 1].value == cohomology.betti_numbers(complex)[:3]
    group = homotopy.fundamental_group(complex)
    assert found["attend0", "fundamental_group", 1].value == group.presentation


def test_the_threshold_is_the_last_that_connects(found):
    pooled = found.captured[0].coarse(0, nodes=32).array
    t = found["attend0", "connecting_threshold", 0].value
    for threshold, count in ((t, 1), (np.nextafter(t, 1), 2)):
        complex = cohomology.threshold_complex(pooled, threshold, 1)
        assert len(np.unique(homotopy.components(complex).value)) == count


def test_a_causal_pattern_has_one_recurrent_class_which_is_its_first_token(found):
    assert found["attend1", "recurrent_classes", 0].value == 1
    np.testing.assert_allclose(found["attend1", "stationary", 0].value, np.eye(N)[:1], atol=1e-9)


def test_alibi_slopes_need_few_bits(found):
    assert found["attend0", "bits_of_slope"].value == 6  # 2⁻⁴ and 2⁻⁸ are 16 and 1 times 2⁻⁸


def test_witnesses_are_checked_again(found):
    for item in ("stationary", "ihara_zeta", "spectral_sequence_converges_at", "likeliest_path"):
        result = found["attend0", item, 0]
        assert result.verify() <= max(result.tolerance, 1e-9)


def test_ranges_are_alive_from_making_to_last_use():
    module = aatc.export(Model(), model_and_inputs()[1])
    ranges = live_ranges(module.entry)
    assert ranges and all(start <= end for start, end in ranges)
    assert found_buffers(ranges) == max(sum(s <= t < e for s, e in ranges) for t in range(max(e for _, e in ranges)))


def found_buffers(ranges) -> int:
    from aatc.analysis.arithmetic import interference_graph, motivic_class

    return motivic_class(interference_graph(ranges)).value.chromatic_number


def test_passes_run_alone_in_any_order_and_twice_without_work():
    model, inputs = model_and_inputs()
    base.CACHE.clear()
    one = aatc.analyze(model, inputs, ("information", "homotopy"))
    kept = len(base.CACHE.kept)
    two = aatc.analyze(model, inputs, ("homotopy", "information"))
    assert len(base.CACHE.kept) == kept == 2 * 2 * HEADS
    assert {(f.subject, f.item, f.head): str(f.result) for f in one.findings} == {
        (f.subject, f.item, f.head): str(f.result) for f in two.findings
    }


def test_options_batch_elements_and_progress():
    model, inputs = model_and_inputs()
    told = []
    one = aatc.analyze(
        model, inputs[0], [AnalyzeHomotopy(nodes=5)], batch=(1,), progress=lambda *a: told.append(a)
    )  # fmt: skip
    assert {f.batch for f in one.findings if f.subject != "ir"} == {1}
    assert any("tiles of 8 tokens" in f.result.assumptions for f in one.findings if f.item == "components")
    assert told[-1] == ("homotopy", 4, 4)


def test_a_budget_refuses_and_the_report_says_so():
    model, inputs = model_and_inputs()
    one = aatc.analyze(model, inputs, ("cohomology",), budget=1e-9)
    assert {f.item for f in one.findings if f.subject != "ir"} == {"refused"}
    assert "refused: above the budget" in str(one)


def test_long_patterns_are_studied_by_tiles():
    model, inputs = model_and_inputs()
    one = aatc.analyze(model, inputs, ("information",), memory=8 * 10 * 10)
    result = one["attend0", "mean_row_entropy", 0]
    assert result.assumptions == ("tiles of 4 tokens taken as states",) and result.value <= np.log(10)


def test_cross_attention_is_told_apart():
    def cross(q, k):
        return aatc.attend(q, k, k, metric=aatc.metrics.Euclidean())

    one = aatc.analyze(cross, (torch.randn(1, 1, 6, 4), torch.randn(1, 1, 9, 4)))
    bars = cohomology.dowker_persistence(one.captured[0].whole(0)).value.bars
    for got, want in zip(one["attend0", "dowker_barcodes"].value.bars, bars, strict=True):
        np.testing.assert_array_equal(got, want)
    assert len(bars[0]) >= 1
    assert one["attend0", "mean_row_entropy"].value < np.log(9)


def dot(q: torch.Tensor, k: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    k = q if k is None else k
    return aatc.attend(q, k, k, metric=aatc.metrics.DotProduct(), **options)


def queries(n: int = 9, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, HEADS, n, 4, generator=torch.Generator().manual_seed(n))


def test_masks_of_truth_values_are_no_constants():
    keep = torch.ones(9, 9, dtype=torch.bool)
    keep[4] = False
    one = aatc.analyze(lambda q: dot(q, mask=aatc.masks.dense(keep)), queries())
    assert not [f for f in one.findings if f.item.startswith("bits_of")]
    assert isinstance(one["attend0", "information"], analysis.Undecided)
    assert one["attend0", "betti_numbers"].value[0] == 1  # key 4 is still seen
    np.testing.assert_allclose(one.captured[0].whole(0).sum(1), [1, 1, 1, 1, 0, 1, 1, 1, 1], atol=1e-12)


def test_tiles_with_queries_that_see_no_key_are_no_laws():
    keep = torch.ones(9, 9, dtype=torch.bool)
    keep[4] = False
    one = aatc.analyze(lambda q: dot(q, mask=aatc.masks.dense(keep)), queries(), ("information",), memory=8 * 9)
    assert isinstance(one["attend0", "information"], analysis.Undecided)


def test_models_in_training_thin_their_weights_and_are_studied_before():
    one = aatc.analyze(aatc.nn.GeometricAttention(8, HEADS, metric="dot", dropout=0.5), torch.randn(1, 9, 8))
    assert one["attend0", "mean_row_entropy"].value <= np.log(9)
    assert not [f for f in one.findings if "seed" in f.item]


def test_constants_beyond_float64_are_undecided():
    ids = torch.tensor([[(1 << 60) + 1, (1 << 60) + 2, (1 << 60) + 1]])
    one = aatc.analyze(lambda q: dot(q, mask=aatc.masks.documents(ids)), queries(3), ("arithmetic",))
    (bits, *_) = [f.result for f in one.findings if f.item.startswith("bits_of")]
    assert isinstance(bits, analysis.Undecided) and "float64" in str(bits.reason)


def test_parts_that_exchange_no_weight_stay_apart():
    keep = torch.block_diag(torch.ones(5, 5), torch.ones(4, 4)).bool()
    one = aatc.analyze(lambda q: dot(q, mask=aatc.masks.dense(keep)), queries(), ("homotopy", "cohomology"))
    assert one["attend0", "betti_numbers"].value[0] == 2
    assert one["attend0", "connecting_threshold"].value > 0
    assert "2 parts that exchange no weight" in one["attend0", "fundamental_group"].assumptions


def test_points_that_exchange_nothing_have_components_alone():
    keep = torch.eye(5, dtype=torch.bool)
    one = aatc.analyze(lambda q: dot(q, mask=aatc.masks.dense(keep)), queries(5), ("homotopy", "cohomology"))
    assert one["attend0", "components"].value == 5
    assert one["attend0", "betti_numbers"].value == (5,)
    assert not one.select(item="fundamental_group")


@pytest.mark.parametrize("n", [7, 49, 100])
def test_even_weights_are_joined_whatever_their_rounding(n):
    one = aatc.analyze(lambda q: dot(q), 0 * queries(n), ("homotopy", "arithmetic"))
    assert one["attend0", "components"].value == 1
    tiles = one.captured[0].coarse(0, nodes=64).array.shape[0]
    if n % 2 == 0:
        assert one["attend0", "cycles_by_length"].value[2] == tiles * (tiles - 1) * (tiles - 2) // 3


def test_the_batch_must_have_what_is_asked_for():
    with pytest.raises(analysis.AnalysisError, match="2 elements, element 5 was asked for"):
        aatc.analyze(lambda q: dot(q), queries(batch=2), batch=(5,))
    with pytest.raises(analysis.AnalysisError, match="names no batch elements"):
        aatc.analyze(lambda q: dot(q), queries(batch=2), batch=(-1,))
    with pytest.raises(analysis.AnalysisError, match="inputs is a dict"):
        aatc.analyze(lambda q: dot(q), {"q": queries()})


def test_a_pattern_of_nan_is_no_pattern():
    with pytest.raises(analysis.AnalysisError, match="attend0 has the score nan"):
        aatc.analyze(lambda q: dot(q), queries() * float("nan"), ("cohomology",))


def test_programs_for_sizes_that_vary_are_counted_at_those_of_the_run():
    def growing(q):
        return dot(q)

    for n in (9, 8):
        found = aatc.analyze(growing, queries(n), ("information",))["layers", "operations_of_a_sequence"]
        assert found.value == information.complexity_analysis(n, 4, HEADS).flops > 4 * HEADS * n * n * 4


def test_the_text_tells_graphs_apart():
    def broken(q):
        q = dot(q)
        torch._dynamo.graph_break()
        return dot(q)

    one = aatc.analyze(broken, queries(), ("information",))
    assert len(one.modules) == 2 and len(one.captured) == 2
    assert "graph 0 of the program: attention operations" in str(one) and "graph 1 of the program" in str(one)


def test_patterns_are_studied_where_the_first_graph_is_left_to_pytorch(monkeypatch):
    from aatc.frontend import importer

    def broken(q):
        q = q.sin()
        torch._dynamo.graph_break()
        return dot(q)

    import_graph = importer.import_graph

    def fails_first(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(importer, "import_graph", import_graph)
        raise UnsupportedError("planted")

    monkeypatch.setattr(importer, "import_graph", fails_first)
    one = aatc.analyze(broken, queries(), ("information",))
    assert one["attend0", "mean_row_entropy"].value <= np.log(9)


def test_shared_modules_and_threads():
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Model()

        def forward(self, x):
            return self.inner(self.inner(x))

    (x,) = model_and_inputs()[1]
    found: dict[int, analysis.Analysis] = {}

    def run(n: int) -> None:
        found[n] = aatc.analyze(Twice(), x[:, : 10 + n], ("information",))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for n in range(2):
        assert [c.name for c in found[n].captured] == ["attend0", "attend1", "attend2", "attend3"]
        assert {c.sizes[2] for c in found[n].captured} == {10 + n}


def test_wrong_names_and_models_without_attention_are_refused(found):
    model, inputs = model_and_inputs()
    with pytest.raises(analysis.AnalysisError, match="no family of analyses 'quantumm'"):
        aatc.analyze(model, inputs, ("quantumm",))
    with pytest.raises(analysis.AnalysisError, match="showed no attention"):
        aatc.analyze(torch.nn.Linear(16, 16), inputs)
    with pytest.raises(analysis.AnalysisError, match="nothing called 'entropy'"):
        found["attend0", "entropy"]


def test_text_and_json_name_every_finding(found):
    text = str(found)
    assert "2 attentions seen" in text and "mean row entropy" in text and "fundamental group" in text
    rows = [json.loads(line) for line in found.to_json().splitlines()]
    assert len(rows) == len(found.findings) and rows[-1]["family"] == "scale"


def test_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "drawn.py").write_text("from tests.analysis.test_analyze import model_and_inputs\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    done = CliRunner().invoke(app, ["analyze", "drawn:model_and_inputs", "--passes", "information"])
    assert done.exit_code == 0 and "entropy rate" in done.stdout
    files = ["--html", "page.html", "--save", "findings.npz"]
    done = CliRunner().invoke(app, ["analyze", "drawn:model_and_inputs", "--passes", "homotopy", "--json", *files])
    assert "drawn:model_and_inputs" in (tmp_path / "page.html").read_text("utf-8")
    assert {f.family for f in analysis.load_findings(tmp_path / "findings.npz")} == {"homotopy"}
    assert {json.loads(line)["family"] for line in done.stdout.splitlines() if line.startswith("{")} == {"homotopy"}
    assert CliRunner().invoke(app, ["analyze", "drawn:model_and_inputs", "--batch", "x"]).exit_code == 2
