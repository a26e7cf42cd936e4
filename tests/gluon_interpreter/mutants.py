"""A kernel's source with one fault planted: every wait, arrival, fence, copy and phase of it in turn."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

_STATEMENT = re.compile(r"(\s*)(mbarrier\.(wait|expect|arrive)|fence_async_shared|tma\.\w+)\(.*")


def _dropped(line: str) -> str | None:
    statement = _STATEMENT.fullmatch(line)
    return None if statement is None or line.count("(") != line.count(")") else statement[1] + "pass"


def _replaced(pattern: str, replacement: str | Callable[[re.Match], str]) -> Callable[[str], str | None]:
    def rule(line: str) -> str | None:
        changed, count = re.subn(pattern, replacement, line, count=1)
        return changed if count else None

    return rule


RULES: dict[str, Callable[[str], str | None]] = {
    "dropped": _dropped,
    "first phase flipped": _replaced(r"& 1\) \^ 1", "& 1)"),
    "phase flipped": _replaced(r"(mbarrier\.wait\(.*& 1)\)(?! \^)", r"\1 ^ 1)"),
    "one more outstanding": _replaced(r"(store_wait\(|mma_wait\()(\d)", lambda match: f"{match[1]}{int(match[2]) + 1}"),
    "always": _replaced(r"(mbarrier\.arrive\(.*), pred=[^()]* > [^()]*\)", r"\1)"),
    "released early": _replaced(r"\((\w+) \+ (\w+) - 1\) % \2\)", r"\1 % \2)"),
}


@dataclass(frozen=True)
class Mutant:
    rule: str
    number: int  # of the line, from 1 on
    function: str  # that the line is in
    line: str
    text: str  # the whole source

    def __str__(self) -> str:
        return f"{self.number} {self.function} {self.rule}: {self.line.strip()[:60]}"

    def load(self, folder: Path) -> ModuleType:
        """The mutated module, whose file lies in `folder`: jitted functions read their source."""
        name = f"mutant_{self.number}_{self.rule.replace(' ', '_')}"
        file = folder / f"{name}.py"
        file.write_text(self.text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def of(file: Path) -> Iterator[Mutant]:
    """Every mutant of a file's functions."""
    lines = file.read_text(encoding="utf-8").split("\n")
    function = ""
    for number, line in enumerate(lines):
        if line.startswith("def "):
            function = line[4 : line.index("(")]
        if not line.startswith(" "):
            continue
        for name, rule in RULES.items():
            changed = rule(line)
            if changed is not None and changed != line:
                text = "\n".join((*lines[:number], changed, *lines[number + 1 :]))
                yield Mutant(name, number + 1, function, line, text)
