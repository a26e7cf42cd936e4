"""A kernel's functions with one fault planted: every wait, arrival, fence, copy and phase of them in turn."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from .source import Translation

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
    original: FunctionType
    number: int  # of the line, from 1 on
    line: str
    code: CodeType  # takes the place of the function's

    def __str__(self) -> str:
        return f"{self.original.__name__} {self.number} {self.rule}: {self.line.strip()[:60]}"


def of(kernel: Any) -> Iterator[Mutant]:
    """Every mutant of the functions that a kernel consists of, those that Triton brings left out."""
    functions = [function for function in Translation().reachable(kernel) if "triton" not in function.__module__]
    for function in sorted(functions, key=lambda one: (one.__module__, one.__code__.co_firstlineno)):
        lines = Path(function.__code__.co_filename).read_text(encoding="utf-8").split("\n")
        places = [line for *_, line in function.__code__.co_lines() if line is not None]
        for number in range(min(places) - 1, max(places)):
            for name, rule in RULES.items():
                changed = rule(lines[number])
                if changed is not None and changed != lines[number]:
                    text = "\n".join((*lines[:number], changed, *lines[number + 1 :]))
                    whole = compile(text, function.__code__.co_filename, "exec", dont_inherit=True)
                    yield Mutant(name, function, number + 1, lines[number], _code_of(function, whole))


def _code_of(function: FunctionType, module: CodeType) -> CodeType:
    return next(
        constant
        for constant in module.co_consts
        if isinstance(constant, CodeType)
        and (constant.co_name, constant.co_firstlineno) == (function.__name__, function.__code__.co_firstlineno)
    )
