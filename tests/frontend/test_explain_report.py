"""`compiled.explain()`: a report for someone who has never seen the compiler."""

from html.parser import HTMLParser

import torch

import aatc
from aatc import metrics
from aatc.frontend.explain import AttentionInfo, Explanation, Fallback, GraphInfo, PassInfo
from tests.frontend import frontend_models as models

SAMPLE = Explanation(
    model="DigitsNet",
    backend="cpu",
    attentions=(
        *(
            AttentionInfo(
                f"attend{n}", "attention", "E+T2", "split(i, 128) split(j, 1024)",
                ("fold [P1]: exp(-acosh x)", "flat [P1]"), "net.py:12: `o = aatc.attend(q, k, v, metric=m)`",
                0, "stream", 3 << 20,
            )
            for n in range(4)
        ),
        AttentionInfo("attend4", "attention", "G+1", "split(i, 64)", (), "net.py:15", 0, "library"),
    ),
    fallbacks=(Fallback("graph break", "net.py:20: `if x.sum() > 0:`", "data-dependent", "use torch.where"),),
    passes=(
        PassInfo("canonicalize", 0.0004, {"dead-op": 2}),
        PassInfo("plan-memory", 1.5, {}, ("arena 3 MiB",)),
    ),
    graphs=(
        GraphInfo(0, ("s0",), 61, 1, {"import": 0.2, "passes": 0.1}, ended="net.py:20: data-dependent"),
        GraphInfo(1, (), 3, 0, {"import": 0.001}, recompiled="tensor 'x' size mismatch"),
    ),
)  # fmt: skip


def test_the_report_reads_well(golden):
    golden("explain.txt", str(SAMPLE))


def test_the_page_is_escaped_and_needs_no_other_file(tmp_path):
    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.outside = [], []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br"):
                self.open.append(tag)
            self.outside += [v for k, v in attrs if k in ("src", "href")]

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    nasty = Explanation("<script>alert('x')</script>", "cpu", fallbacks=(Fallback("a & b", "<i>", '"quoted"'),))
    for explanation in (SAMPLE, nasty, Explanation("Empty", "cpu")):
        path = explanation.html(tmp_path / "page.html")
        text = path.read_text("utf-8")
        parser = Tags()
        parser.feed(text)
        assert not parser.open and not parser.outside
        assert "<script" not in text
    assert "a &amp; b" in nasty.html(tmp_path / "nasty.html").read_text("utf-8")


def test_a_real_explanation_has_one_entry_per_attention_and_pass():
    compiled = aatc.compile(models.Classifier())
    compiled(torch.randn(2, 4, 16)).sum().backward()
    explanation = compiled.explain()
    assert len(explanation.attentions) == 2
    assert all(a.lowering and a.kind and "aatc.attend" in a.loc for a in explanation.attentions)
    assert [p.name for p in explanation.passes] == [p.name for p in compiled.graphs[0].report]
    (graph,) = explanation.graphs
    assert graph.operations > 20 and graph.attentions == 2 and graph.compiled
    text = str(explanation)
    assert "Classifier compiled by aatc for native" in text
    assert "1 graph, 2 attentions, nothing left to PyTorch" in text


def test_attentions_of_two_lines_are_told_apart():
    def twice(q, k, v):
        o = aatc.attend(q, k, v, metric=metrics.DotProduct())
        return aatc.attend(o, k, o, metric=metrics.DotProduct())

    compiled = aatc.compile(twice, fallback=False)
    q = torch.randn(1, 1, 8, 4)
    compiled(q, q, q)
    text = str(compiled.explain())
    assert "o = aatc.attend(q, k, v" in text and "return aatc.attend(o, k, o" in text
