"""docs/examples.md shows each program of examples/, whole, in the page that is built."""

import html
import re
from pathlib import Path

import pytest
import yaml

markdown = pytest.importorskip("markdown")
pytest.importorskip("pymdownx")

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))


def built(page: str) -> str:
    """The page's text as a browser shows it, by the extensions of mkdocs.yml."""
    listed = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["markdown_extensions"]
    options = {name: each for entry in listed if isinstance(entry, dict) for name, each in entry.items()}
    options["pymdownx.snippets"]["base_path"] = [str(ROOT)]  # mkdocs runs in the repository, tests anywhere
    names = [entry if isinstance(entry, str) else next(iter(entry)) for entry in listed]
    return html.unescape(re.sub(r"<[^>]*>", "", markdown.markdown(page, extensions=names, extension_configs=options)))


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")


def shows(text: str, program: Path) -> bool:
    return program.read_text(encoding="utf-8").strip() in text


def test_the_page_shows_every_program(page):
    text = built(page)
    assert PROGRAMS
    missing = [program.name for program in PROGRAMS if not shows(text, program)]
    assert not missing, f'docs/examples.md lacks {missing}: each needs a line `--8<-- "examples/NAME.py"` in a fence'


def test_a_marker_that_a_formatter_changed_shows_nothing(page):
    text = built(page.replace("--8<-- ", "--8 < --"))
    assert not any(shows(text, program) for program in PROGRAMS)
