"""docs/troubleshooting.md quotes messages that the package still has."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HOLE = "…"


def squeezed(text: str) -> str:
    return re.sub(
        rf"[{HOLE}\s]*{HOLE}[{HOLE}\s]*|\s+", lambda gap: f" {HOLE} " if HOLE in gap[0] else " ", text
    ).strip()


def messages(path: Path) -> str:
    """All texts of a file, a line each, with a hole for each value that is put into one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = [each for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for each in node.values]
    within = {id(each) for each in parts}
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(each.value if isinstance(each, ast.Constant) else HOLE for each in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within:
            texts.append(node.value)
    return "\n".join(map(squeezed, texts))


@pytest.fixture(scope="module")
def known() -> str:
    return "\n".join(messages(path) for path in [ROOT / "setup.py", *sorted((ROOT / "bertfast").rglob("*.py"))])


def quoted() -> list[str]:
    """The messages in the first column of the page's tables."""
    rows = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `")]
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


def test_every_quoted_message_is_one_of_the_package(known):
    assert len(quoted()) > 40
    # A value may hold what the page has as text or leaves out, at the ends of a message: its longest piece of text decides there.
    unknown = [message for message in quoted() if squeezed(message).strip(f" {HOLE}") not in known]
    assert unknown == []
