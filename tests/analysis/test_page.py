"""The page of an analysis: complete, escaped, self-contained, and opened by a browser where there is one."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import aatc
from aatc.analysis import AnalysisPass
from aatc.analysis.page import page
from aatc.passes.analysis.given_weights import GivenWeights

N, NASTY = 12, '<script>alert("x")</script>&'


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    causal = np.exp(rng.standard_normal((2, N, N))) * np.tri(N)
    cross = np.exp(rng.standard_normal((1, 3, N)))
    weights = {NASTY: causal / causal.sum(-1, keepdims=True), "cross": cross / cross.sum(-1, keepdims=True)}
    second = GivenWeights("second", torch.from_numpy(weights[NASTY])[None], source=NASTY)
    families = ("heads", "topology", "cohomology", "information")
    return aatc.analyze_weights([weights, second], families, tokens=np.arange(N) % 4)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: dict[str, int] = {}
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        if "data-item" in given:
            self.rows[given["data-item"]] = self.rows.get(given["data-item"], 0) + 1
        self.sources += [given[k] for k in ("src", "href") if k in given]
        if tag == "img":
            assert given["alt"]
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_every_finding_has_a_row_with_unit_level_and_sentence(found):
    text = page(found)
    rows = read(text).rows
    shared = {"recurrent_classes", "period", "stationary", "entropy_rate", "information_flow", "cross_tile_flow",
              "cross_tile_information"}  # fmt: skip
    assert {f.item for f in found.findings} - shared == set(rows)
    assert "The same for every causal pattern, and left out here: " in text
    assert "share of weight" in text and "Markov" in text and "a diagnostic: it may guide, and licenses nothing" in text
    assert "standard deviations" in text


def test_what_comes_from_elsewhere_is_escaped_and_nothing_is_loaded(found):
    text = page(found, title=NASTY)
    assert NASTY not in text and text.count("<script>") == 1
    reader = read(text)
    assert all(s.startswith("data:image/png;base64,") for s in reader.sources)
    assert not re.search(r"https?://|@import|url\(", text)


def test_pictures_are_of_every_head_and_diagram(found):
    pytest.importorskip("matplotlib")
    reader = read(page(found))
    # two causal attentions of two heads with a map and a diagram each, cross-attention, rollout
    assert reader.tags.count("img") >= 2 * 2 * 2 + 1 + 1


def test_a_page_without_pictures_says_why(found, monkeypatch):
    monkeypatch.setattr("aatc.analysis.page._imaging", lambda: None)
    text = page(found)
    assert "aatc[report]" in text and "img" not in read(text).tags


def test_the_text_report_has_units_and_the_legend(found):
    text = str(found)
    assert "share of weight" in text and "P3  a diagnostic" in text and "information flow" not in text
    assert "-0 " not in text


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
    return os.environ.get("AATC_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def test_a_browser_shows_it_and_its_search_works(found, tmp_path):
    program = browser()
    if program is None:
        pytest.skip("no chromium on the path, and AATC_CHROMIUM names none")
    pytest.importorskip("matplotlib")
    found.html(tmp_path / "page.html", "Heads")
    text = (tmp_path / "page.html").read_text("utf-8")
    typed = "<script>field.value='markov distance'; field.dispatchEvent(new Event('input'))</script></body>"
    (tmp_path / "typed.html").write_text(text.replace("</body>", typed), "utf-8")
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=4000", "--dump-dom", (tmp_path / "typed.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    drawn = re.search(r'<body data-drawn="(\d+) of (\d+)"', done.stdout)
    assert drawn and drawn[1] == drawn[2] and int(drawn[1]) > 5
    rows = re.findall(r'<tr data-item="(\w+)"( class="hidden")?', done.stdout)
    assert {item for item, hidden in rows if not hidden} == {"mean_distance"} and len(rows) > 20


def test_a_pass_of_ones_own_is_shown_too():
    from dataclasses import dataclass
    from typing import ClassVar

    from aatc.analysis import Cost, Result

    @dataclass(frozen=True)
    class Largest(AnalysisPass):
        name: ClassVar[str] = "test-largest"
        family: ClassVar[str] = "mine"

        def estimate_cost(self, n, dim):
            return Cost(0.0, 0.0)

        def of_pattern(self, seen, head, batch, study):
            return {"largest <weight>": Result(float(seen.whole(head, batch).max()), "P0")}

    text = page(aatc.analyze_weights(np.eye(3), Largest()))
    assert read(text).rows == {"largest <weight>": 1} and Path(__file__).name not in text
