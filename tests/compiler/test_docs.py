"""The generated parts of the manual are what the declarations say."""

from pathlib import Path

import pytest

from aatc import backends
from aatc.backends.found import _OWN
from aatc.backends.lowerings import lowerings_table
from aatc.ir.registry import ops_table
from aatc.ir.score import FUNCTIONS
from aatc.passes.rules import rules_table
from aatc.passes.score_rules import SCORE_RULES

DOCS = Path(__file__).resolve().parents[2] / "docs"


TABLES = {
    "ops.md": ops_table,
    "rules.md": lambda: rules_table(SCORE_RULES),
    "backends.md": lambda: lowerings_table(backends.get(name).lowerings for name in _OWN),
}


@pytest.mark.usefixtures("golden")  # so that `make accept` selects it
@pytest.mark.parametrize("page", TABLES)
def test_the_generated_table_is_current(request, page):
    path = DOCS / page
    text = path.read_text(encoding="utf-8")
    made = TABLES[page]()
    head = text[: text.index(made.partition(" |")[0])]
    if request.config.getoption("--accept"):
        path.write_text(head + made, encoding="utf-8")
    else:
        assert text == head + made, f"docs/{page} is out of date: run `make accept`"


def test_every_word_of_the_language_is_documented():
    text = (DOCS / "language.md").read_text(encoding="utf-8")
    missing = [name for name, f in FUNCTIONS.items() if f"| `{name}`" not in text or f.doc not in text]
    assert not missing
