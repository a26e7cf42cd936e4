"""The stage races: the same call again and again must give the same bits, and compute-sanitizer must find nothing.

Of each op the smallest case and the median one run, the second because one program alone races with nobody.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu import collect, measure, results
from benchmarks.gpu.case import Case

REPEATS = 250
TOOLS = ("memcheck", "racecheck")
STAGE_SECONDS = 450
REPEAT_SECONDS = 250  # of these for repeating; the rest is for the tools, half each


def chosen(cases: list[Case]) -> list[Case]:
    """The smallest and the median case of each op and of each candidate, by bytes."""
    groups: dict[tuple[str, str | None], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.op, collect.candidate(case)), []).append(case)
    chosen_cases = []
    for group in groups.values():
        by_size = sorted(group, key=lambda case: case.bytes)
        chosen_cases += [by_size[0], by_size[len(by_size) // 2]] if len(by_size) > 1 else by_size
    return chosen_cases


def _bits(outputs: Any) -> list[torch.Tensor]:
    return [t.contiguous().flatten().view(torch.uint8) for t in measure.tensors(outputs) if t.numel()]


def different(case: Case, device: torch.device, repeats: int = REPEATS) -> int:
    """How many of `repeats` calls differ from the first in any bit. Uninitialised memory is NaN meanwhile."""
    arguments, function = case.make(device), collect.function(case)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first = _bits(function(*arguments))
        count = torch.zeros((), dtype=torch.int64, device=device)
        for _ in range(repeats):
            again = _bits(function(*arguments))
            count += torch.stack([(a != b).any() for a, b in zip(first, again, strict=True)]).any() if first else 0
        return int(count)
    finally:
        torch.use_deterministic_algorithms(False)


def repeat_case(case: Case, device: torch.device, repeats: int = REPEATS) -> results.Line:
    about = {"op": case.op, "shape": case.shape, "dtype": str(case.dtype).removeprefix("torch."), "repeats": repeats}
    if (reason := collect.absence(case)) is not None:
        return results.line("races", case.name, ok=None, error=reason, **about)
    try:
        count = different(case, device, repeats)
    except Exception as problem:
        return results.line("races", case.name, ok=False, error=measure.explain(problem), **about)
    text = f"{count} of {repeats} calls differ" if count else ""
    return results.line("races", case.name, ok=not count, error=text, **about)


def sanitize(tool: str, only: str, seconds: float) -> results.Line:
    """compute-sanitizer over one call of each op's smallest case; not judged where the tool is missing or too slow."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    name = f"compute-sanitizer {tool}"
    if not os.path.exists(program):
        return results.line("races", name, ok=None, error="compute-sanitizer is not here")
    worker = [sys.executable, "-m", "benchmarks.gpu.races", only]
    command = [program, "--tool", tool, "--error-exitcode", "9", *worker]
    # Memory that torch keeps for later would hide what is out of bounds.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        got = subprocess.run(
            command, cwd=results.ROOT, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return results.line("races", name, ok=None, error=f"stopped after {seconds:.0f} s")
    output = got.stdout + got.stderr
    if "Device not supported" in output:  # seen under gVisor
        return results.line("races", name, ok=None, error="compute-sanitizer does not support this device")
    text = "" if got.returncode == 0 else output[-2000:]
    return results.line("races", name, ok=got.returncode == 0, error=text)


def run(only: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    stage, repeating = measure.Deadline(STAGE_SECONDS), measure.Deadline(REPEAT_SECONDS)
    for case in chosen(collect.all_cases(only)):
        if case.name in done:
            continue
        if repeating.passed:
            yield results.line("races", case.name, ok=None, error=repeating.text)
        else:
            yield repeat_case(case, torch.device("cuda", 0))
    for number, tool in enumerate(TOOLS):
        yield sanitize(tool, only, stage.left / (len(TOOLS) - number))


def main(only: str = "") -> None:
    """What runs under compute-sanitizer."""
    for case in chosen(collect.all_cases(only))[::2]:
        if collect.absence(case) is None:
            collect.function(case)(*case.make(torch.device("cuda", 0)))
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
