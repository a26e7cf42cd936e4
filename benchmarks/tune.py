"""python -m benchmarks.tune [TABLES ...]: finds the best tile of every launch-table entry ahead of time and writes it there.

Without a GPU it compiles the candidates of each entry for `--arch` and prints what they take; nothing is written, since what
compiles best need not be fastest. On a GPU those that compile without spilling and give the same results are timed in turn, on
the benchmark cases that reach the entry, and the winner goes into the entry's file with the measurement as its reason.
"""

import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.gpu import collect, kernels, measure, results
from benchmarks.gpu.case import Case
from bertfast import _library
from bertfast.triton import tables, verified
from bertfast.triton.tables import Entry, Tables, Tile

STAGE_SECONDS = 420
ALL_UP_TO = 64  # a table with more combinations is searched one and two steps around its entry
CASES = 4  # timed for an entry
FINALISTS = 4
GAIN = 1.03  # what a new tile must gain over the entry's own: less than this comes and goes with the clocks
LOSS = 0.95  # and no case may get slower than this
REGISTERS, WARPS, SHARED_BYTES = 65536, 64, {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}  # of a multiprocessor


def candidates(found: Tables, entry: Entry) -> list[Tile]:
    """Tiles to try, the entry's own first, then those named in the file, then combinations of its fields."""
    fields = found.fields[entry.table]
    names = list(fields)
    if math.prod(len(values) for values in fields.values()) <= ALL_UP_TO:
        around = [dict(zip(names, values, strict=True)) for values in itertools.product(*fields.values())]
    else:
        moves = [{name: value} for name in names for value in fields[name]]
        pairs = [a | b for a, b in itertools.combinations(moves, 2) if a.keys() != b.keys()]
        around = [{**entry.tile, **move} for move in (*moves, *pairs)]
    unique = {tuple(sorted(tile.items())): tile for tile in (entry.tile, *found.also[entry.table], *around)}
    return list(unique.values())


def reaching(cases: list[Case], arch: int) -> dict[Entry, list[Case]]:
    """Entries to the cases whose launches look them up."""
    from bertfast.triton import launch

    found: dict[Entry, list[Case]] = {}
    for case in cases:
        with launch.recording(arch), tables.reached() as entries:
            collect.function(case)(*case.make(torch.device("meta")))
        for entry in entries:
            found.setdefault(entry, []).append(case)
    return found


def spread(cases: list[Case], most: int = CASES) -> list[Case]:
    """At most so many of the cases, evenly from the least bytes to the most."""
    ordered = sorted(cases, key=lambda case: case.bytes)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


@dataclass
class Code:
    """What the kernels of a case compile to with one candidate: the worst of them."""

    registers: int = 0
    stack: int = 0
    shared: int = 0
    programs: int = 32  # that share a multiprocessor
    warps: int = WARPS  # resident on it
    spills: bool = False
    error: str = ""


def summarise(arch: int, compiled: list[kernels.Compiled]) -> Code:
    known = 100 if arch >= 100 else 90 if arch >= 90 else 80
    code = Code()
    for got, error in compiled:
        if got is None:
            return Code(error=error or "does not compile")
        if got["shared"] > kernels.SHARED_BYTES[known]:
            return Code(error=f"{got['shared']} bytes of shared memory")
        a_warp = 32 * (-(-got["registers"] // 8) * 8)
        programs = min(
            REGISTERS // (a_warp * got["warps"]), WARPS // got["warps"], SHARED_BYTES[known] // (got["shared"] + 1024)
        )
        code.registers, code.stack = max(code.registers, got["registers"]), max(code.stack, got["stack"])
        code.shared, code.programs = max(code.shared, got["shared"]), min(code.programs, programs)
        code.warps = min(code.warps, programs * got["warps"])
        code.spills |= got["sass"].get("LDL", 0) + got["sass"].get("STL", 0) > 0
    return code


def compile_candidates(entry: Entry, tiles: list[Tile], case: Case, arch: int, workers: int) -> list[Code]:
    """What the entry's kernels of `case` compile to with each tile; kernels that no tile changes are left out."""
    from bertfast.triton import launch

    wanted: list[list[Any]] = []
    for tile in tiles:
        with launch.recording(arch) as got, tables.override({entry: tile}):
            collect.function(case)(*case.make(torch.device("meta")))
        wanted.append(list({kernels.identity(one, arch, False): one for one in got}.items()))
    shared = set.intersection(*({key for key, _ in mine} for mine in wanted)) if len(tiles) > 1 else set()
    pairs = {key: (one, arch) for mine in wanted for key, one in mine if key not in shared}
    done = dict(zip(pairs, kernels.compile_all(list(pairs.values()), workers), strict=True))
    return [summarise(arch, [done[key] for key, _ in mine if key not in shared]) for mine in wanted]


def worst(codes: list[Code]) -> Code:
    """One tile's code over several cases: a tile may spill in a case that is not the largest."""
    return next((code for code in codes if code.error), None) or Code(
        registers=max(code.registers for code in codes),
        stack=max(code.stack for code in codes),
        shared=max(code.shared for code in codes),
        programs=min(code.programs for code in codes),
        warps=min(code.warps for code in codes),
        spills=any(code.spills for code in codes),
    )


def agrees(got: Any, wanted: Any) -> bool:
    """Whether two tiles' results are the same up to the order of sums: a guard against a broken one, not a parity test."""
    pairs = zip(*(measure.tensors(found) for found in (got, wanted)), strict=True)
    for a, b in pairs:
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return False
            continue
        steps = 2**-6 if a.element_size() == 2 else 2**-12
        limit = steps * float(b.double().nan_to_num(0, 0, 0).abs().max() if b.numel() else 0)
        if not torch.allclose(a.double(), b.double(), rtol=0, atol=limit, equal_nan=True):
            return False
    return True


def time_tiles(
    entry: Entry, tiles: list[Tile], case: Case, device: torch.device, clock: measure.Clock, budget: float
) -> list[float]:
    """Median seconds of one case with each tile, all in turn; infinite where a tile fails or disagrees with the first."""
    arguments, function = case.make(device), collect.function(case)

    def thunk(tile: Tile) -> measure.Thunk:
        def run() -> Any:
            with tables.override({entry: tile}):
                return function(*arguments)

        return run

    thunks: dict[str, measure.Thunk] = {}
    first = thunk(tiles[0])()
    for number, tile in enumerate(tiles):
        try:
            if agrees(thunk(tile)(), first):
                thunks[str(number)] = thunk(tile)
        except Exception as problem:
            print(f"  {dict(tile)}: {measure.explain(problem)[:200]}", file=sys.stderr)
    found = measure.take_turns(thunks, clock, budget, fewest=5, most=40)
    medians = []
    for number in range(len(tiles)):
        one = found.get(str(number), "")
        medians.append(math.inf if isinstance(one, str) else one.p50)
    return medians


def choose(times: list[list[float]]) -> tuple[int, float]:
    """(which tile, its gain over tile 0) from seconds by case and tile; tile 0 unless another gains GAIN and loses nowhere."""
    best, gain = 0, 1.0
    for number in range(1, len(times[0])):
        ratios = [case[0] / case[number] for case in times]
        if min(ratios) <= 0:  # failed somewhere
            continue
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        if mean >= GAIN and min(ratios) >= LOSS and mean > gain:
            best, gain = number, mean
    return best, gain


def finalists(times: list[list[float]]) -> list[int]:
    """Tile 0 and the best few others by geometric mean."""
    cost = [sum(math.log(case[n]) if case[n] < math.inf else math.inf for case in times) for n in range(len(times[0]))]
    return [0, *sorted((n for n in range(1, len(cost)) if cost[n] < math.inf), key=cost.__getitem__)[:FINALISTS]]


def tune(
    entry: Entry, tiles: list[Tile], cases: list[Case], device: torch.device, clock: measure.Clock
) -> tuple[Tile, str, dict[str, Any]]:
    """(tile, reason, measurement) for the entry: all candidates briefly, then the best few and the entry's own at length."""
    rough = [time_tiles(entry, tiles, case, device, clock, budget=0.02 * len(tiles)) for case in cases]
    few = [tiles[n] for n in finalists(rough)]
    times = [time_tiles(entry, few, case, device, clock, budget=0.3) for case in cases]
    number, gain = choose(times)
    name, date = results.environment()["device"], datetime.now(UTC).date().isoformat()
    text = f"{gain:.2f}x as fast as the tile before" if number else "none faster"
    reason = f"measured on {name}, {date}: {text}, of {len(tiles)} over {len(cases)} cases"
    measured = {
        "device": name,
        "date": date,
        "code": results.environment()["code"],
        "gain": round(gain, 3),
        "cases": {case.name: round(1e6 * mine[number], 2) for case, mine in zip(cases, times, strict=True)},
    }
    return few[number], reason, measured


def show(entry: Entry, tiles: list[Tile], codes: list[Code], case: Case, arch: int) -> Table:
    """Candidates by how many warps stay resident; what spills or does not compile last."""
    shown = Table(
        title=f"entry {entry.name}, compiled for sm_{arch} at {case.name}",
        caption="* is the entry's own; programs and resident warps: at once on a multiprocessor",
    )
    for name in ("tile", "registers", "stack", "shared", "programs", "resident warps"):
        shown.add_column(name, overflow="fold")
    ordered = sorted(zip(tiles, codes, strict=True), key=lambda one: (bool(one[1].error), one[1].spills, -one[1].warps))
    for tile, code in ordered:
        name = " ".join(f"{field}={value}" for field, value in tile.items()) + (" *" if tile == entry.tile else "")
        if code.error:
            shown.add_row(name, code.error.splitlines()[0][:60])
            continue
        numbers = (code.registers, f"{code.stack}{' SPILLS' * code.spills}", code.shared, code.programs, code.warps)
        shown.add_row(name, *map(str, numbers))
    return shown


def entries_of(names: list[str], only: str, arch: int) -> Iterator[tuple[Tables, Entry, list[Case]]]:
    """Entries to tune, with the cases to time; files of tables are known once their kernels were recorded."""
    found = reaching(collect.all_cases(), arch)
    known = tables.known()
    if wrong := [name for name in names if name not in known]:
        raise SystemExit(f"no launch tables named {', '.join(wrong)}; there are {', '.join(sorted(known))}")
    for name in names or sorted(known):
        for entry in known[name].entries:
            if entry in found and only in f"{name} {entry.name}":
                yield known[name], entry, spread(found[entry])


def measured_here() -> frozenset[str]:
    """Entries that were measured on this device before. Not by the code of the results: every winner written changes that."""
    for op in _library.owners("CUDA"):
        _library.owner(op, "CUDA")  # reads its tables
    for op, paths in _library.candidates().items():
        for path in paths:
            _library.candidate_function(op, _library.candidate_of(path))
    device = results.environment()["device"]
    entries = (
        (f"{name} {entry.name}", entry.measured) for name, one in tables.known().items() for entry in one.entries
    )
    return frozenset(name for name, measured in entries if measured and measured["device"] == device)


def tune_all(
    work: list[tuple[Tables, Entry, list[Case]]], arch: int, done: frozenset[str], write: bool, console: Console
) -> Iterator[results.Line]:
    """Tune on this GPU: one line for each entry."""
    deadline, clock = measure.Deadline(STAGE_SECONDS), measure.CudaClock()
    for found, entry, cases in work:
        name = f"{found.name} {entry.name}"
        if name in done:
            continue
        if deadline.passed:
            yield results.line("tune", name, ok=None, error=deadline.text)
            continue
        try:
            tiles = candidates(found, entry)
            by_case = [compile_candidates(entry, tiles, case, arch, workers=os.cpu_count() or 1) for case in cases]
            codes = [worst(list(codes)) for codes in zip(*by_case, strict=True)]
            fit = [
                t for t, code in zip(tiles, codes, strict=True) if t == entry.tile or not (code.error or code.spills)
            ]
            tile, reason, measured = tune(entry, fit, cases, torch.device("cuda", 0), clock)
        except Exception as problem:  # the entries that follow still have something to say
            yield results.line("tune", name, ok=False, error=measure.explain(problem))
            continue
        console.print(f"{name}: {dict(tile)}, {reason}", markup=False)
        if write:
            found.record(entry, arch, tile, reason, measured)
        yield results.line("tune", name, ok=True, tile=dict(tile), measured=measured, clocks=results.clocks())


def run(wanted: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    """The stage tune of `python -m benchmarks.gpu`."""
    arch = results.environment()["arch"]
    yield from tune_all(list(entries_of([], wanted, arch)), arch, done, True, Console(soft_wrap=True))


def faults(reached: dict[int, dict[Entry, list[Case]]]) -> list[str]:
    """What is wrong with the tables beyond what keeps them from loading: entries that no case reaches on their architecture."""
    wrong = []
    for name, found in tables.known().items():
        if found.file.read_text(encoding="utf-8") != tables.dump(json.loads(found.file.read_text(encoding="utf-8"))):
            wrong.append(f"{found.file}: one entry must be one line, as bertfast.triton.tables.dump writes them")
        for entry in found.entries:
            about = f"{name} {entry.name}"
            if entry.arch in reached and entry not in reached[entry.arch]:
                wrong.append(f"{about}: no case reaches it")
    return wrong


def check() -> int:
    """Print what is wrong with the shipped tables; 1 where anything is."""
    try:
        wrong = faults({arch: reaching(collect.all_cases(), arch) for arch in tables.ARCHITECTURES})
    except ValueError as problem:  # a file that does not load
        print(problem)
        return 1
    for text in wrong:
        print(text)
    print(f"{sum(len(found.entries) for found in tables.known().values())} entries, {len(wrong)} faults")
    return 1 if wrong else 0


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="files of launch tables, such as attention; all by default")
    ] = None,
    only: Annotated[str, typer.Option(help="only entries whose name contains this, such as 'forward sm_90'")] = "",
    arch: Annotated[int, typer.Option(help="without a GPU: the architecture to compile for")] = 90,
    write: Annotated[bool, typer.Option(help="on a GPU: put what was measured into the tables")] = True,
    again: Annotated[
        bool, typer.Option(help="on a GPU: also entries that were measured on this device before")
    ] = False,
    check_only: Annotated[bool, typer.Option("--check", help="only look for faults in the tables")] = False,
) -> None:
    """Compile the candidates of launch-table entries or, on a GPU, time them and write the winners."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET=1 makes Triton interpret: unset it to compile kernels")
    if arch not in tables.ARCHITECTURES:
        raise SystemExit(f"--arch must be one of {tables.ARCHITECTURES}, not {arch}")
    if check_only:
        if names or only:
            raise SystemExit("--check looks at every table: give no names with it")
        raise SystemExit(check())
    console = Console(width=None if sys.stdout.isatty() else 160)
    if torch.cuda.is_available():
        arch = results.environment()["arch"]
        done = frozenset() if again else measured_here()
        with verified.allow_unverified():  # cases of backward call forward ops for what these save
            for line in tune_all(list(entries_of(names or [], only, arch)), arch, done, write, console):
                results.append(line)
                if line["ok"] is not True:
                    console.print(f"{line['case']}: {line['error']}", markup=False)
        return
    work = list(entries_of(names or [], only, arch))
    if not work:
        raise SystemExit(
            f"no entry that serves sm_{arch} has {only!r} in its name; names look like 'attention forward sm_90 bits=16'"
        )
    for found, entry, cases in work:
        tiles = candidates(found, entry)
        codes = compile_candidates(entry, tiles, cases[-1], arch, workers=os.cpu_count() or 1)
        console.print(show(entry, tiles, codes, cases[-1], arch))
    console.print("no GPU: compiled only, nothing was measured and nothing written")


if __name__ == "__main__":
    typer.run(main)
