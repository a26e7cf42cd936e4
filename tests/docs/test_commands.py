"""Every `bertfast` command with its options, and every `make` target, that README, docs and help name is there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from bertfast.cli import app
from bertfast.cli.examples import EXAMPLES

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Code blocks, fenced or indented, and code within a line; a backslash ends a line that goes on.
CODE = re.compile(r"^```[a-z]*\n(.*?)^```|^((?: {4}.*\n)+)|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|&& |\$ |-m )(bertfast|make) +(.*)")


def commands(text: str) -> list[list[str]]:
    """Each command of a page, as words; comments are left out."""
    found = []
    for code in CODE.finditer(text):
        lines = next(group for group in code.groups() if group is not None).replace("\\\n", " ").splitlines()
        for line in lines:
            match = COMMAND.search(line.strip())
            if match and not re.match(r"[=.:]", match[2]):
                found.append([match[1], *shlex.split(match[2].split(" #")[0].split(" && ")[0], posix=True)])
    return found


def command_and_rest(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            break
        assert words[0] in command.commands, f"there is no command {words[0]!r}; known: {', '.join(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def check_bertfast(words: list[str]) -> None:
    command, rest = command_and_rest(words)
    options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
    given = {word.split("=")[0] for word in rest if word.startswith("--")}
    assert given <= options, f"bertfast {' '.join(words)}: no option {', '.join(sorted(given - options))}"


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return {name for line in re.findall(r"^([\w.$()/ -]+):(?!=)", text, re.MULTILINE) for name in line.split()}


def check_make(words: list[str]) -> None:
    for word in words:
        known = "=" in word or word.replace(".venv", "$(VENV)") in targets()
        assert known, f"make {' '.join(words)}: there is no target {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_exists(page):
    for tool, *words in commands(page.read_text(encoding="utf-8")):
        (check_make if tool == "make" else check_bertfast)(words)


def test_pages_name_commands_at_all():
    found = [words for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]
    assert {words[0] for words in found} == {"bertfast", "make"}
    assert len(found) > 60


@pytest.mark.parametrize("words", [["bertfst"], ["data", "shw"], ["pretrain", "corpus", "--stepz", "3"]])
def test_what_does_not_exist_is_seen(words):
    with pytest.raises(AssertionError):
        check_bertfast(words)


def leaves(group, words=()):
    if not hasattr(group, "commands"):
        yield " ".join(words)
    for name, command in getattr(group, "commands", {}).items():
        yield from leaves(command, (*words, name))


@pytest.mark.parametrize("name", list(leaves(typer.main.get_command(app))))
def test_the_help_of_every_command_has_an_example_that_exists(name):
    command, _ = command_and_rest(name.split())
    examples = re.findall(r"Example: (.*)", (command.epilog or "").replace("\\[", "["))
    assert examples, f"bertfast {name} --help has no example: add one to bertfast/cli/examples.py"
    for example in examples:
        tool, *words = shlex.split(example)
        assert tool == "bertfast"
        assert words[: len(name.split())] == name.split()
        check_bertfast(words)


def test_examples_are_of_commands_that_there_are():
    assert set(EXAMPLES) <= set(leaves(typer.main.get_command(app)))
