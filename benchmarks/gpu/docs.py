"""Renders docs/kernels.md: what each op must move, what its kernels compile to, and which have ever run on a GPU.

And, into docs/gpu.md, the tables of whole models. The same cases, compiled rows and result lines give the same text.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu import results, verified
from benchmarks.gpu.case import Case

if TYPE_CHECKING:
    from benchmarks.gpu.kernels import Row

HEAD = """# GPU kernels

Written by `make kernels`; do not edit. Kernels are compiled ahead of time without a GPU and run in Triton's interpreter by the
tests. Neither says that they run, or how fast: the first table says which have run on a GPU, from `benchmarks/results/*.jsonl`.
"""
GPU_PAGE = results.ROOT / "docs" / "gpu.md"
BY_HAND = results.FOLDER / "whole_graph_by_hand.json"
BEGIN = "<!-- written by `python -m benchmarks.gpu verified`, do not edit -->\n"
END = "<!-- end of what is written -->\n"
ARCH_NAMES = {80: "sm_80", 90: "sm_90", 100: "sm_100"}


def ops_of(cases: list[Case]) -> list[str]:
    return list(dict.fromkeys(case.op for case in cases))


def as_table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def family(op: str) -> str:
    """The folder of bertfast/ops that owns an op, which is also the name of its test file."""
    from bertfast import _library

    path = _library.owners("CUDA").get(op, "")
    return path.split(".")[2] if path else op


def notes(rows: verified.Table) -> str:
    """What is to be known of ops that are verified."""
    texts = [
        f"- {op} on sm_{arch} with Triton {minor}: {entry['note']}."
        for arch, ops in sorted(rows.items())
        for op, minors in sorted(ops.items())
        for minor, entry in sorted(minors.items())
        if "note" in entry
    ]
    return "Notes:\n\n" + "\n".join(texts) + "\n" if texts else ""


def is_composed(op: str) -> bool:
    """Whether an op's owner is torch's product and passes of other ops, with no kernel of its own."""
    from bertfast import _library

    return ".torch_products:" in _library.owners("CUDA").get(op, "")


def status(
    ops: list[str], lines: list[results.Line], family_of=family, reviews: list[dict[str, Any]] | None = None
) -> str:
    """For each op and device: when its parity tests passed, and the shares of the measured ceiling that its cases reached."""
    last = results.latest(lines)
    rows = []
    for op in ops:
        ran = False
        for device in sorted({one["device"] for one in last}):
            parity = [one for one in last if one["stage"] == "parity" and one["device"] == device]
            parity = [one for one in parity if one.get("op") == family_of(op)]
            micro = [one for one in last if one["stage"] == "micro" and one["device"] == device and one.get("op") == op]
            if not micro and is_composed(op):
                parity = []  # of its folder's kernels, from before there was this op or without it
            if not parity and not micro:
                continue
            ran = True
            word = "never run"
            if parity:
                reviewed = verified.review_of(parity[-1], reviews or []) is not None
                word = "verified, see the note" if reviewed else "verified" if parity[-1]["ok"] else "FAILED"
                word += f" ({parity[-1]['date'][:10]}, {parity[-1]['commit']}{'+dirty' * parity[-1]['dirty']})"
            shares = sorted(one["share_of_ceiling"] for one in micro if one["ok"])
            text = f"{100 * shares[0]:.0f} to {100 * shares[-1]:.0f} %" if shares else "not measured"
            failed = sum(one["ok"] is False for one in micro)
            rows.append([op, device, word, text + (f", {failed} failed" if failed else "")])
        if not ran:
            rows.append([op, "", "never run", "not measured"])
    return as_table(["op", "device", "parity on a GPU", "share of the measured ceiling"], rows)


def candidates(lines: list[results.Line]) -> str:
    """What each candidate would own, how its parity tests went on each device, and how fast it was beside the owner."""
    from bertfast.triton import verified as shipped

    rows = []
    for name, ops in shipped.candidates().items():
        parity = [one for one in results.latest(lines) if one["stage"] == "parity" and one.get("op") == name]
        for one in parity:
            word = "passed" if one["ok"] else "FAILED"
            timed = verified.gains(one, name, verified.minor_of(one), lines)
            gains = [
                f"{op} {gain['gain']:.2f}x, loses {len(gain['losing'])} of {gain['cases']}"
                for op, gain in timed.items()
            ]
            word = f"{word} ({one['date'][:10]}, {one['commit']})"
            rows.append([name, ", ".join(ops), one["device"], word, "; ".join(gains) or "not timed"])
        rows += [] if parity else [[name, ", ".join(ops), "", "never run", ""]]
    return as_table(["candidate", "for", "device", "parity on a GPU", "times as fast as the owner"], rows)


def prediction(cases: list[Case]) -> str:
    rows = []
    for case in cases:
        seconds = f"{1e6 * case.predicted_seconds:.1f}"
        flops = f"{case.flops / 1e9:.2f}" if case.flops else ""
        dtype = str(case.dtype).removeprefix("torch.")
        rows.append([case.op, case.shape, dtype, f"{case.bytes / 1e6:.2f}", flops, seconds])
    return as_table(["op", "shape", "dtype", "MB", "GFLOP", "floor on an H200, us"], rows)


def _span(values: list[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"


def compiled(rows: "list[Row]") -> str:
    """One row for each kernel and architecture, over its variants."""
    by_kernel: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        by_kernel.setdefault((row.kernel, row.arch), []).append(row)
    lines = []
    for (kernel, arch), variants in sorted(by_kernel.items()):
        good = [row for row in variants if row.resources is not None]
        name = [f"`{kernel}`", ", ".join(sorted({op for row in variants for op in row.ops})), ARCH_NAMES[arch]]
        if not good:
            lines.append([*name, str(len(variants)), "does not compile", "", "", "", "", ""])
            continue
        got = [row.resources or {} for row in good]
        tensor = [row.count("HMMA", "HGMMA", "QGMMA", "UTCHMMA") for row in good]
        bulk = [row.count("UTMALDG", "UTMASTG") for row in good]
        lines.append(
            [
                *name,
                str(len(variants)),
                _span([one["registers"] for one in got]),
                _span([row.warps for row in good]),
                _span([one["shared"] for one in got]),
                str(sum(row.spills for row in good)),
                _span(tensor),
                _span(bulk),
            ]
        )
    head = ["kernel", "op", "arch", "variants", "registers", "warps", "shared bytes", "spilling", "tensor core", "bulk"]
    return as_table(head, lines)


def launch_tables() -> str:
    """Every entry of the launch tables of the kernels that are imported."""
    from bertfast.triton import tables

    rows = []
    for name, table in sorted(tables.known().items()):
        for entry in table.entries:
            key = " ".join(f"{field} {value}" for field, value in sorted(entry.key))
            tile = ", ".join(f"{field} {value}" for field, value in entry.tile.items())
            rows.append([name, entry.table, f"sm_{entry.arch}", key, tile, entry.reason])
    return as_table(["tables", "table", "from", "for", "tile", "reason"], rows)


def render(cases: list[Case], rows: "list[Row]", lines: list[results.Line] | None = None) -> str:
    lines = results.read() if lines is None else lines
    parts = [
        HEAD,
        "## Run on a GPU\n",
        status(ops_of(cases), lines, reviews=verified.reviews()),
        notes(verified.committed()),
        "## Candidates\n",
        "They take the place of an op's owner by themselves on an architecture where their parity tests passed and committed\n"
        "lines show them faster at that op: the median over its cases of the owner's time over theirs, in turn in one run.\n",
        candidates(lines),
        "## What comes out of the compiler\n",
        "Spans are over the variants that the cases reach. Spilling counts variants with loads or stores of local memory; tensor\n"
        "core and bulk count instructions (HMMA, HGMMA, QGMMA or UTCHMMA; UTMALDG and UTMASTG).\n",
        compiled(rows),
        "## Launch tables\n",
        "From `launch.json` beside each op. An entry serves its architecture and newer ones that have none of their own, and of\n"
        "several that fit the one that names most. On a GPU `python -m benchmarks.tune` replaces what was predicted by what it\n"
        "measured.\n",
        launch_tables(),
        "## What each case must move\n",
        "The least bytes and operations, and the larger of their times at 4.3 TB/s and 790 TFLOP/s (measured with torch on an\n"
        "H200 before there were kernels) or, in float32, 67 TFLOP/s (NVIDIA's figure): floors, no forecasts, nothing measured.\n"
        "A shape is sequences x longest x heads x head size (attention) or tokens x columns; p is dropout.\n",
        prediction(cases),
    ]
    return "\n".join(parts)


def whole_models(lines: list[results.Line]) -> str:
    """The last line of every row of the stages that time Hugging Face models, each peer's ratio its time over ours."""
    last = [
        one for one in results.latest(lines) if one["stage"] in ("encoder", "sentences", "compiled") and "p50" in one
    ]
    rows = []
    for one in sorted(last, key=lambda one: (one["device"], one["stage"] == "compiled", one["date"])):
        # Lines from before there were captured calls name neither path nor clock: eager calls, between two events of the device.
        how = f"{one.get('path', 'eager')}, {one.get('clock', 'events')}"
        peers = [
            f"{name} {1e3 * peer['p50']:.2f} ({peer['ratio']:.2f}x)" if "ratio" in peer else f"{name} failed"
            for name, peer in one["peers"].items()
        ]
        where = f"{one['device']}, {one['date'][:10]}, {one['commit']}"
        rows.append([one["case"], one.get("dtype", ""), how, f"{1e3 * one['p50']:.2f}", ", ".join(peers), where])
    return as_table(["", "dtype", "ours", "ms", "peers, ms (times our time)", "measured"], rows)


def by_hand(measured: dict[str, Any]) -> str:
    """What was measured of `bertfast.models` inside one CUDA graph, by a script of its own."""
    rows = []
    for one in measured["rows"]:
        count = f"{one['sequences']} sequences, " if "sequences" in one else ""
        case = f"{one['model']} {one['kind']}, {count}up to {one['seqlen']}, {one['tokens']:,} tokens, {one['weights']}"
        rate = one["tokens"] / one["graph_ms"] * 1e3
        rows.append([case, f"{one['eager_ms']:.2f}", f"{one['graph_ms']:.2f}", f"{rate:,.0f}"])
    origin = ", ".join(measured[name] for name in ("device", "date", "commit"))
    origin += f", torch {measured['torch']}, Triton {measured['triton']}"
    table = as_table(["bertfast.models", "eager, ms", "one graph, ms", "tokens a second"], rows)
    return f"{measured['what']} {measured['how']} {origin}.\n\n{table}"


def gpu_tables(lines: list[results.Line]) -> str:
    """What stands between BEGIN and END of docs/gpu.md."""
    made_by_hand = json.loads(BY_HAND.read_text(encoding="utf-8"))
    return f"### Hugging Face models\n\n{whole_models(lines)}\n### By hand\n\n{by_hand(made_by_hand)}"


def written(page: str, lines: list[results.Line]) -> str:
    """The text of docs/gpu.md with the tables of these lines."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + gpu_tables(lines) + END + rest.split(END)[1]


def write_gpu_page(page: Path = GPU_PAGE) -> None:
    """Write the committed lines' tables into docs/gpu.md."""
    page.write_text(written(page.read_text(encoding="utf-8"), results.read()), encoding="utf-8")
