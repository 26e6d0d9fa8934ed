"""The generated parts of the manual are what the declarations say."""

from pathlib import Path

import pytest

from aatc.ir.registry import ops_table
from aatc.ir.score import FUNCTIONS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.usefixtures("golden")  # so that `make accept` selects it
def test_the_table_of_operations_is_current(request):
    path = DOCS / "ops.md"
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("| operation")]
    if request.config.getoption("--accept"):
        path.write_text(head + ops_table(), encoding="utf-8")
    else:
        assert text == head + ops_table(), "docs/ops.md is out of date: run `make accept`"


def test_every_word_of_the_language_is_documented():
    text = (DOCS / "language.md").read_text(encoding="utf-8")
    missing = [name for name, f in FUNCTIONS.items() if f"| `{name}`" not in text or f.doc not in text]
    assert not missing
