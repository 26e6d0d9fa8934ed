"""The code in the README and in the manual runs, and prints what stands under it."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

import aatc
from aatc import backends
from aatc.backends import found
from aatc.ir.score import FUNCTIONS
from aatc.passes import REGISTRY

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the code blocks of a page, in order."""
    return _FENCE.findall((ROOT / page).read_text("utf-8"))


def run(code: str, file: Path, names: dict) -> str:
    """What ``code`` prints; it is written to ``file`` first, since the compiler shows a model's lines."""
    file.write_text(code, "utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(file), "exec"), names)
    return printed.getvalue()


def shape_of(text: str) -> set[str]:
    """Lines without their numbers, which differ between machines, and without layout."""
    return {" ".join(re.sub(r"[0-9.]+( m?s)?", "#", line).split()) for line in text.splitlines()}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def names(monkeypatch) -> dict:
    """What a page's code may take for granted; what it registers is forgotten."""
    monkeypatch.setattr(found, "_backends", dict(found._backends))
    backends.load()
    before, words = set(REGISTRY), set(FUNCTIONS)
    q, k, v = torch.randn(3, 1, 8, 16, 32)
    yield {"__name__": "block", "torch": torch, "aatc": aatc, "model": torch.nn.Linear(4, 4), "q": q, "k": k, "v": v}
    for name in set(REGISTRY) - before:
        del REGISTRY[name]
    for name in set(FUNCTIONS) - words:
        del FUNCTIONS[name]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, names, tmp_path):
    found_blocks = blocks(page)
    for n, (language, code) in enumerate(found_blocks):
        if language != "python":
            continue
        printed = run(code, tmp_path / f"block{n}.py", names)
        following, text = found_blocks[n + 1] if n + 1 < len(found_blocks) else ("", "")
        if following == "text":
            assert printed == text


def test_the_report_in_the_readme_is_what_is_printed(names, tmp_path):
    (_, code), (_, report), *_ = blocks("README.md")
    printed = shape_of(run(code, tmp_path / "block.py", names).replace(f"{tmp_path}/", ""))
    told = ("attend# ", "kind ", "runs as ", "schedule ", "chosen ", "pass ", "simplify-score ")
    unwrapped = report.replace("\n" + 16 * " ", " ")
    lines = {line for line in shape_of(unwrapped) if line.startswith(told)}
    assert len(lines) == len(told)
    assert lines <= printed
    first = "Block compiled by aatc for native\n  1 graph, 1 attention, nothing left to PyTorch"
    assert report.startswith(first)


def test_the_backend_of_the_manual_computes(names, tmp_path):
    ((_, code), *_) = [b for b in blocks("docs/backends.md") if b[0] == "python"]
    run(code, tmp_path / "block.py", names)
    assert backends.get("plain").name == "plain"

    def f(q, k, v):
        return aatc.attend(q, k, v, metric=aatc.metrics.LorentzDistance(lift=True), mask=aatc.masks.causal())

    q, k, v = names["q"], names["k"], names["v"]
    torch.testing.assert_close(aatc.compile(f, backend="plain", fallback=False)(q, k, v), f(q, k, v))
