"""The stage candidates: whatever has no verdict yet on this device with these sources, most valuable first.

An op or a candidate whose parity tests did not pass here with its present sources runs those; then each case without a time is
timed beside its owner and its peers; then whole steps. Lines of parity are those of the stage parity, so that `verified` judges
both alike. Each part has its share of the stage's time; what did not get its turn is run the next time. A table and the targets
that were missed are printed at the end.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

import bertfast.ops  # noqa: F401  defines the ops
from benchmarks.gpu import collect, measure, micro, parity, results, verified, whole_steps
from benchmarks.gpu.case import Case
from bertfast import _library
from bertfast.triton import sources
from bertfast.triton import verified as shipped

STAGE = "candidates"
STAGE_SECONDS = 400  # nothing is begun after this
PARITY_SECONDS = 180  # of them for tests, at most
CASES_SECONDS = 100  # and for cases
CASE_SECONDS = 0.25  # for a case and its peers in turn
# The most valuable first; what none of them names comes last. A word of an op's folder or of a candidate's name.
VALUE = ("gluon", "fp8", "optimizer", "cutlass")
ASSUMED = ("NVIDIA H200", 90)  # where there is no GPU
# microseconds of a case that is a target of its own: (op, the shape it begins with) to the goal
CASE_TARGETS = {("linear_gelu_fwd", "16384x1024x4096 gluon"): 225.0}


def value(name: str) -> int:
    """The place of an op's folder or of a candidate in the order; the same for equally valuable ones."""
    return next((place for place, word in enumerate(VALUE) if word in name), len(VALUE))


def is_here(name: str) -> bool:
    """Whether an op's folder or a candidate is in this installation: some are built apart."""
    return _library.absence_of(name) is None


def kernels_of(case: Case) -> str:
    """What a case runs: a candidate, or the folder of the op's owner."""
    return collect.candidate(case) or shipped.folder_of(case.op)


def preferred() -> tuple[str, ...]:
    """All candidates, the most valuable first."""
    return tuple(sorted(shipped.candidates(), key=value))


class Plan(NamedTuple):
    """What is still to be run, in order."""

    parity: list[str]
    cases: list[Case]
    rows: list[whole_steps.Row]


def passed(lines: list[results.Line], device: str, arch: int) -> set[str]:
    """Ops and candidates whose tests passed on this device with the sources that are here and with this Triton."""
    every = [*shipped.folders(), *shipped.candidates()]
    here = [one for one in lines if one["device"] == device]
    rows = verified.table(here, every, verified.recorded_digests(), verified.reviews()).get(str(arch), {})
    minor = shipped.triton_minor() or ""
    return {op for op in every if rows.get(op, {}).get(minor, {}).get("sources") == sources.here(op, arch)}


def is_timed(case: Case, line: results.Line, arch: int) -> bool:
    """Whether a line is of a case's present kernels. Lines of owners from before lines had digests count too."""
    digests = {name: text for name, text in micro.about(case, arch).items() if name in ("sources", "owner_sources")}
    if collect.candidate(case) is None and "sources" not in line:
        return True
    return all(line.get(name) == text for name, text in digests.items())


def decided(lines: list[results.Line], device: str, arch: int) -> frozenset[str]:
    """Names of ops, candidates, cases and rows that have a verdict on this device."""
    last = {
        one["case"]: one
        for one in lines
        if one["stage"] in verified.TIMED and one["device"] == device and one["ok"] and "op" in one
    }
    cases = [case.name for case in collect.all_cases() if case.name in last and is_timed(case, last[case.name], arch)]
    rows = {row.name for row in whole_steps.ROWS} & results.done(STAGE, lines)
    return frozenset({*passed(lines, device, arch), *cases, *rows})


def plan(done: frozenset[str], only: str = "") -> Plan:
    """What is to be run, of what `only` is part of the name. A candidate that is not in this installation has nothing to run."""
    names = sorted([*shipped.folders(), *filter(is_here, shipped.candidates())], key=value)
    present = [case for case in collect.all_cases(only) if is_here(kernels_of(case))]
    cases = sorted(present, key=lambda case: value(kernels_of(case)))
    return Plan(
        [name for name in names if name not in done and only in name],
        [case for case in cases if case.name not in done],
        [row for row in whole_steps.ROWS if row.name not in done and only in row.name],
    )


def groups(names: list[str]) -> Iterator[list[str]]:
    """Names of equal value, which are tested in one run."""
    for place in range(len(VALUE) + 1):
        if same := [name for name in names if value(name) == place]:
            yield same


def tests(names: list[str], deadline: measure.Deadline) -> Iterator[results.Line]:
    """Lines of parity, group after group."""
    for same in groups(names):
        if deadline.passed:
            for name in same:
                yield results.line("parity", name, ok=None, op=name, error=deadline.text)
            continue
        files = {name: parity.files_of(name) for name in same}
        for name in [name for name, tests in files.items() if not tests]:
            yield results.line("parity", name, ok=False, op=name, error="it has no test file in tests/ops")
        if any(files.values()):
            yield from parity.judged([file for tests in files.values() for file in tests], deadline.left)


def times(cases: list[Case], failed: set[str], deadline: measure.Deadline) -> Iterator[results.Line]:
    """A line for each case. failed: ops and candidates whose tests failed just now, which are not worth a time."""
    if not cases:
        return
    clock = measure.CudaClock()
    ceilings = measure.ceilings(clock)
    for case in cases:
        if kernels_of(case) in failed:
            yield results.line(STAGE, case.name, ok=None, op=case.op, error="its parity tests failed")
        elif deadline.passed:
            yield results.line(STAGE, case.name, ok=None, op=case.op, error=deadline.text)
        else:
            device = torch.device("cuda", 0)
            yield micro.run_case(case, device, clock, ceilings, torch.cuda.synchronize, STAGE, CASE_SECONDS)
            torch.cuda.empty_cache()


def steps(rows: list[whole_steps.Row], deadline: measure.Deadline) -> Iterator[results.Line]:
    """A line for each row of whole steps."""
    clock = measure.CudaClock(flush=False)
    for row in rows:
        if deadline.passed:
            yield results.line(STAGE, row.name, ok=None, error=deadline.text)
            continue
        yield whole_steps.run_row(STAGE, row, preferred(), torch.device("cuda", 0), clock)
        torch.cuda.empty_cache()


def run(only: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    todo, new = plan(done, only), []
    whole = measure.Deadline(STAGE_SECONDS)
    parts = (
        lambda: tests(todo.parity, measure.Deadline(PARITY_SECONDS)),
        lambda: times(todo.cases, {one["op"] for one in new if one["ok"] is False and "op" in one}, share(whole)),
        lambda: steps(todo.rows, whole),
    )
    for part in parts:
        for line in part():
            new.append(line)
            yield line
    here = results.environment()
    lines = [*results.read(), *new]
    print("\n".join(report(lines, here["device"], here["arch"])), flush=True)


def share(whole: measure.Deadline) -> measure.Deadline:
    """The time for cases: what tests did not use is theirs, but for what whole steps need."""
    return measure.Deadline(max(0.0, whole.left - (STAGE_SECONDS - PARITY_SECONDS - CASES_SECONDS)))


def verdict(name: str, op: str, rows: dict[str, dict[str, shipped.Entry]], right: set[str]) -> str:
    """What follows for one op: of a candidate whether it runs in place of the owner, of an owner whether it is verified."""
    if name not in right:
        return "parity has not passed"
    if name not in shipped.candidates():
        return "verified"
    timed = (rows.get(name, {}).get(shipped.triton_minor() or "") or {}).get("gains", {}).get(op)
    if timed is None:
        return "no time"
    gain = f"{timed['gain']:.2f}x, loses {len(timed['losing'])} of {timed['cases']}"
    return f"{'takes over' if timed['gain'] > 1 else 'stays out'} ({gain})"


def table(lines: list[results.Line], device: str, arch: int) -> list[list[str]]:
    """A row for each timed case of what this stage judges: op, shape, microseconds, share of the ceiling and verdict."""
    here = [one for one in lines if one["device"] == device]
    every = [*shipped.folders(), *shipped.candidates()]
    rows = verified.table(here, every, verified.recorded_digests(), verified.reviews()).get(str(arch), {})
    right = passed(lines, device, arch)
    timed = {one["case"]: one for one in here if one["stage"] == STAGE and one["ok"] and "share_of_ceiling" in one}
    written = []
    for case in sorted(collect.all_cases(), key=lambda case: value(kernels_of(case))):
        one = timed.get(case.name)
        if one is None or not is_timed(case, one, arch):
            continue
        own, owner = 1e6 * one["p50"], one["peers"].get(verified.OWNER, {}).get("p50")
        is_candidate = collect.candidate(case) is not None
        cublas = [peer["p50"] for name, peer in one["peers"].items() if name in CUBLAS and "p50" in peer]
        written.append(
            [
                case.op,
                f"{case.shape} {one['dtype']}",
                f"{one['share_of_ceiling'] * own:.1f}",
                "" if case.predicted_us is None else f"{case.predicted_us:.1f}",
                f"{1e6 * min(cublas):.1f}" if cublas else "",
                "" if owner is None else f"{1e6 * owner:.1f}",
                f"{own:.1f}",
                f"{100 * one['share_of_ceiling']:.0f} %",
                verdict(collect.candidate(case) or shipped.folder_of(case.op), case.op, rows, right)
                if is_candidate or value(shipped.folder_of(case.op)) < len(VALUE)
                else "",
            ]
        )
    return written


HEAD = ["op", "shape", "floor", "predicted", "cuBLAS", "owner", "this", "of the ceiling", "verdict"]
CUBLAS = ("cuBLAS alone", "linear alone", "cuBLAS")  # peers that are the product and nothing else


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines of text, a column under its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def missed(lines: list[results.Line], device: str) -> list[str]:
    """The targets that the last lines of this device do not reach, those that were not measured among them."""
    last = {one["case"]: one for one in lines if one["stage"] == STAGE and one["device"] == device and one["ok"]}
    words = []
    for row in whole_steps.ROWS:
        words += whole_steps.missed(row, last.get(row.name, {}).get("sides", {}))
    for (op, shape), goal in CASE_TARGETS.items():
        times = [1e6 * one["p50"] for name, one in last.items() if name.startswith(f"{op} {shape}")]
        if not times:
            words.append(f"{op} {shape}: not measured, goal {goal:.0f} us")
        elif min(times) > goal:
            words.append(f"{op} {shape}: {min(times):.1f} of {goal:.0f} us")
    return words


def report(lines: list[results.Line], device: str, arch: int) -> list[str]:
    """What the stage prints at its end: times in microseconds, whole steps, and as its last line the targets that were missed."""
    rows = table(lines, device, arch)
    text = aligned([HEAD, *rows]) if rows else []
    last = {one["case"]: one for one in lines if one["stage"] == STAGE and one["device"] == device and "sides" in one}
    for row in whole_steps.ROWS:
        if row.name in last:
            text += whole_steps.told(row, last[row.name])
    out = missed(lines, device)
    return [*text, f"targets missed: {'; '.join(out)}" if out else "targets missed: none"]


def outline(only: str = "") -> str:
    """What the stage would run on an H200, by the committed lines: for a machine without a GPU."""
    device, arch = ASSUMED
    todo = plan(decided(results.read(), device, arch), only)
    by_kernels: dict[str, int] = {}
    for case in todo.cases:
        by_kernels[kernels_of(case)] = by_kernels.get(kernels_of(case), 0) + 1
    lines = [f"{STAGE}: on an {device} this would run, in this order"]
    absent = {name: _library.absence_of(name) for name in shipped.candidates() if not is_here(name)}
    lines += [f"  not {name}: {why}" for name, why in absent.items()]
    lines += [f"  parity of {name}: {', '.join(parity.files_of(name)) or 'no test file'}" for name in todo.parity]
    lines += [f"  times of {name}: {count} cases" for name, count in by_kernels.items()]
    lines += [f"  {row.name}: {', '.join(whole_steps.sides(preferred()))}" for row in todo.rows]
    return "\n".join(lines)
