"""Findings as typed JSON, npz and data frames: what is read again is what was written."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import aatc
from aatc import analysis
from aatc.analysis import records
from aatc.analysis.items import ITEMS, LEGEND, item_of
from aatc.passes.analysis.base import Finding
from aatc.passes.analysis.result import Result, Undecided

N = 10


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = aatc.attend(q, k, v, metric=aatc.metrics.DotProduct(), bias=aatc.biases.ALiBi(2))
        return aatc.attend(x, k, v, metric=aatc.metrics.DotProduct(), mask=aatc.masks.causal())


@pytest.fixture(scope="module")
def found() -> analysis.Analysis:
    torch.manual_seed(0)
    return aatc.analyze(Model(), torch.randn(1, N, 8), tokens=np.arange(N) % 3)


def same(one, two) -> bool:
    one = one.item() if isinstance(one, np.generic) else one  # numbers of numpy are read as Python's
    if type(one) is not type(two):
        return False
    if isinstance(one, np.ndarray):
        return (
            one.dtype == two.dtype
            and one.shape == two.shape
            and bool(np.array_equal(one, two, equal_nan=one.dtype.kind in "fc"))
        )
    if isinstance(one, (tuple, list)):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[k], two[k]) for k in one)
    if dataclasses.is_dataclass(one):
        fields = [f.name for f in dataclasses.fields(one) if f.name != "witness"]
        return all(same(getattr(one, n), getattr(two, n)) for n in fields)
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(two)
    if isinstance(one, analysis.BudgetError):
        return str(one) == str(two) and same(one.estimate, two.estimate)
    return one == two


def test_every_finding_is_read_again_as_it_was(found, tmp_path):
    text = found.to_json()
    found.save(tmp_path / "findings.npz")
    for read in (records.from_lines(text), analysis.load_findings(tmp_path / "findings.npz")):
        assert len(read) == len(found.findings) > 50
        for before, after in zip(found.findings, read):
            assert same(before, after), (before.item, before.result, after.result)
    for line in text.splitlines():
        row = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert "…" not in line and "unit" in row


VALUES = [
    0.1, -0.0, math.inf, math.nan, 2**70, -(2**53) - 1, True, None, "text …", 1 - 2j, complex(math.inf, 0),
    Fraction(1, 3),
    (1, (2.5, "x"), ()), [1, [2]], {1: "a", (2, 3): np.arange(3)}, frozenset({1, 2}), np.float32(0.1), np.int8(-3),
    np.zeros((0, 2)), np.array([1 + 1j, np.nan]), np.array([[2**70, 1]], dtype=object), np.array([True, False]),
    np.arange(6, dtype=np.uint16).reshape(2, 3)[:, ::2], np.array(2.5), Undecided("4 cosets", "too many"),
    Result(0.5, "P2", 1e-3, assumptions=("a",)),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_of_every_kind_keep_all_their_digits(value, tmp_path):
    finding = Finding("attend0", "mine", "thing", Result(value, "P1", 0.0, 0.0), 3, 1)
    records.save([finding], tmp_path / "one.npz")
    for (read,) in (records.from_lines(records.to_lines([finding])), records.load(tmp_path / "one.npz")):
        want = value.item() if isinstance(value, np.generic) else value
        assert same(read.result.value, want)
        assert math.copysign(1, read.result.value) == -1 if value is VALUES[1] else True


def test_refusals_are_kept_with_their_estimates():
    weights = torch.rand(1, 1, 6, 6).softmax(-1)
    refused = aatc.analyze_weights(weights, "cohomology", budget=1e-9)
    (read,) = records.from_lines(refused.to_json())
    assert same(read.result, refused.findings[0].result) and read.result.estimate.seconds > 1e-9
    assert refused.to_dataframe().proof_level.tolist() == ["refused"]


@pytest.mark.parametrize(
    "row",
    [
        "{}", "[1]", "no", '{"attention": "a", "family": "f", "item": "i", "head": 0, "batch": 0}',
        '{"value": {"type": "object", "class": "os:system", "fields": {}}}',
        '{"value": {"type": "object", "class": "aatc.passes.analysis.base:CACHE", "fields": {}}}',
        '{"value": {"type": "object", "class": "aatc.passes.analysis.base:sys.exit", "fields": {}}}',
        '{"value": {"type": "object", "class": "aatc.passes.analysis.nothing:X", "fields": {}}}',
        '{"value": {"type": "array", "name": "array0"}}', '{"value": {"type": "spell"}}', "3", "null", '"x"', "NaN",
        "[" * 100_000, '{"value": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
)  # fmt: skip
def test_other_texts_and_classes_are_refused(row):
    with pytest.raises(analysis.AnalysisError):
        records.from_lines(row)


def array(dtype, *data, shape=None):
    return {"type": "array", "dtype": dtype, "shape": [len(data)] if shape is None else shape, "data": list(data)}


BIG = {"type": "integer", "value": "1" + "0" * 400}
WRONG_VALUES = [
    {"type": "fraction", "value": "1/0"}, {"type": "fraction", "value": "1"}, {"type": "fraction", "value": 3},
    {"type": "integer", "value": "1.5"}, {"type": "integer", "value": "1/2"}, {"type": "float", "value": "one"},
    {"type": "complex", "value": [BIG, 0.0]}, {"type": "complex", "value": [1.0, 2.0, 3.0]},
    {"type": "complex", "value": 3}, {"type": "tuple", "items": 3}, {"type": "set", "items": [[]]},
    {"type": "mapping", "items": [[[], 1]]}, {"type": "mapping", "items": [1]}, {"type": ["tuple"]}, {"kind": 3},
    array("float32", BIG), array("float32", 1e300), array("int8", 300), array("int8", 1.5), array("float64", "x"),
    array("float64", 1.0, shape=[2]), array("float64", 1.0, shape=["one"]), array("<U1", "xyz"),
    array("float64", [1.0, 2.0]), array("bool", 2), array("V8", 1), array("spell", 1.0), array(3, 1.0),
    array("M8[s]", 1), array("(2,)f8", 1.0), array("complex64", {"type": "complex", "value": [BIG, BIG]}),
    {"type": "refusal", "message": "m", "hint": "h", "estimate": [1.0, 2.0, 3.0], "budget": [0.0, 0.0]},
    {"type": "object", "class": "aatc.passes.analysis.result:Undecided", "fields": {"spell": 1}},
    {"type": "object", "class": "aatc.passes.analysis.result:Result", "fields": {"value": 1, "proof_level": "P9"}},
    {"type": "object", "class": "aatc.passes.analysis.result:Cost", "fields": [1]}, {"type": "object", "class": 3},
]  # fmt: skip


def row_with(**changed):
    return {**records.row_of(Finding("attend0", "mine", "thing", Result(1.5, "P1"), 3, 1)), **changed}


@pytest.mark.parametrize("value", WRONG_VALUES, ids=lambda value: json.dumps(value)[:60])
def test_values_that_nobody_writes_are_typed_errors(value):
    text = json.dumps(row_with()) + "\n\n" + json.dumps(row_with(value=value))
    with pytest.raises(analysis.AnalysisError, match=r"^line 3: .*\n  hint: "):
        records.from_lines(text)


@pytest.mark.parametrize("name", ["attention", "family", "item", "head", "batch", "tolerance", "residual",
                                  "assumptions", "proof_level", "result"])  # fmt: skip
def test_fields_of_other_types_are_typed_errors(name):
    for other in (None, {"a": 1}, [1], True, "spell" if name in ("head", "batch", "tolerance", "residual") else 2):
        with pytest.raises(analysis.AnalysisError):
            records.from_lines(json.dumps(row_with(**{name: other})))


def test_numbers_of_any_length_are_kept():
    for value in (10**6000, -(7**9000), Fraction(3**9000, 10**5000), Fraction(-1, 3)):
        (read,) = records.from_lines(records.to_lines([Finding("a", "f", "i", Result(value, "P1"))]))
        assert read.result.value == value
    for value in (np.longdouble(1), np.ones(2, dtype=np.longdouble), np.array(["2020"], dtype="M8[Y]")):
        with pytest.raises(analysis.AnalysisError, match="no form in JSON"):
            records.to_lines([Finding("a", "f", "i", Result(value, "P1"))])


def saved(path):
    values = [np.linspace(0, 1, 40), np.arange(7), "text", 2**70, (1, 2.5)]
    records.save([Finding("attend0", "mine", f"thing{i}", Result(v, "P1")) for i, v in enumerate(values)], path)
    return path.read_bytes()


def test_a_file_that_is_damaged_anywhere_is_a_typed_error_or_the_same(tmp_path):
    whole, path = saved(tmp_path / "good.npz"), tmp_path / "bad.npz"
    good, rng = records.load(tmp_path / "good.npz"), np.random.default_rng(0)
    damaged = [whole[:n] for n in (0, 1, 2, 21, 22, len(whole) - 1, *rng.integers(len(whole), size=60))]
    for _ in range(700):
        flipped = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 4)):
            flipped[at] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            read = records.load(path)
        except analysis.AnalysisError as error:
            assert str(path) in str(error) and error.hint
            refused += 1
        else:
            assert len(read) == len(good) and all(map(same, read, good))
    assert refused > len(damaged) // 2


def test_named_arrays_are_those_that_the_row_says(tmp_path):
    saved(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as file:
        arrays = dict(file)
    for other in (np.arange(40), np.zeros((40, 1)), np.zeros(39), np.zeros(40, np.float32), np.zeros(40, ">f8"), None):
        changed = {n: a for n, a in arrays.items() if n != "array0"} | ({} if other is None else {"array0": other})
        np.savez(tmp_path / "bad.npz", **changed)
        with pytest.raises(analysis.AnalysisError, match=r"bad.npz, row 0: .*array0"):
            records.load(tmp_path / "bad.npz")
    for rows in ("3", "null", "[3]", "[null]", '{"a": 1}', '"x"', "[" * 10**5, "NaN", ""):
        np.savez(tmp_path / "bad.npz", **{**arrays, "findings": np.frombuffer(rows.encode(), np.uint8)})
        with pytest.raises(analysis.AnalysisError, match=r"bad.npz"):
            records.load(tmp_path / "bad.npz")


def test_arrays_that_are_no_archive_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.ones(2))
    np.savez(tmp_path / "pickled.npz", findings=np.array([{}], dtype=object))
    for name in ("one.npy", "pickled.npz"):
        with pytest.raises(analysis.AnalysisError, match="no file of findings"):
            records.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        records.load(tmp_path / "nothing.npz")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    for name in ("text", "other"):
        with pytest.raises(analysis.AnalysisError, match="no file of findings"):
            records.load(tmp_path / f"{name}.npz")
    with pytest.raises(analysis.AnalysisError, match="no form in JSON"):
        records.to_lines([Finding("a", "f", "i", Result(object(), "P1"))])


def test_a_data_frame_has_numbers_units_and_sentences(found):
    frame = found.to_dataframe()
    assert len(frame) == len(found.findings)
    row = frame[(frame["item"] == "mean_distance") & (frame.attention == "attend1") & (frame["head"] == 1)].iloc[0]
    assert row.number == found["attend1", "mean_distance", 1].value and row.unit == "tokens"
    assert "Markov" in row.licenses and row.proof_level == "P2"


def test_every_item_has_a_sentence_and_what_stays_is_known(found):
    for f in found.findings:
        assert item_of(f.item).says, f.item
    assert set(LEGEND) == {"P0", "P1", "P2", "P3"}
    assert all(i.says.endswith(".") and (not i.licenses or i.licenses.endswith(".")) for i in ITEMS.values())
    assert item_of("of my own").says == ""
