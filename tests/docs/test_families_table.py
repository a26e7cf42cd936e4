"""The table of families in docs/fast.md says what the records say."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_is_that_of_the_records():
    script = runpy.run_path(str(ROOT / "docs" / "site" / "families.py"))
    text = (ROOT / "docs" / "fast.md").read_text(encoding="utf-8")
    assert script["page"](text) == text, "run python docs/site/families.py"
