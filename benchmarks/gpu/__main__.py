"""python -m benchmarks.gpu [STAGE ...]: the suite on a real GPU, result lines into benchmarks/results.

Every stage fits into eight minutes, so that each can be a command of its own; one that ran out of time goes on where it stopped
when it is run again. They run in the order in which they decide something: what is right and which ops are verified, then what a
user's clock says of whole models. What compiles for long comes last. The exit status is 1 if anything failed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.gpu import results

STAGES = (
    "build",
    "parity",
    "verified",
    "encoder",
    "sentences",
    "training",
    "loader",
    "candidates",
    "micro",
    "races",
    "compiled",
)
OPTIONAL = ("tune",)  # changes launch tables, so only where it is named
Stage = Callable[[str, frozenset[str]], Iterator[results.Line]]


def _build(only: str, done: frozenset[str]) -> Iterator[results.Line]:
    """The C++ extension in place: the tests compare with it, and modules on a CPU use it."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    got = subprocess.run(
        command, cwd=results.ROOT, env=os.environ | {"BERTFAST_BUILD": "cpu"}, capture_output=True, text=True
    )
    text = "" if got.returncode == 0 else (got.stdout + got.stderr)[-2000:]
    yield results.line("build", "extension", ok=got.returncode == 0, error=text)
    yield _build_cuda()


def _build_cuda() -> results.Line:
    """The CUDA C++ products: as they are where they are of these sources, else built where nvcc and CUTLASS's headers are."""
    from bertfast import _cuda

    if _cuda.absence() is None:
        return results.line("build", "CUDA library", ok=True, error="")
    jobs = {"BERTFAST_CUDA_JOBS": os.environ.get("BERTFAST_CUDA_JOBS", "4")}
    got = subprocess.run(
        [sys.executable, str(_cuda.BUILD)], cwd=results.ROOT, env=os.environ | jobs, capture_output=True, text=True
    )
    _cuda.forget()
    ok = {0: True, _cuda.NOT_POSSIBLE: None}.get(got.returncode, False)  # candidates alone need it
    return results.line("build", "CUDA library", ok=ok, error="" if ok else (got.stdout + got.stderr)[-2000:])


def _verified(only: str, done: frozenset[str]) -> Iterator[results.Line]:
    """What follows from all lines: verified ops, captured calls that are slower than stock, matrix rates; and tables."""
    from benchmarks.gpu import docs, faster, rates, verified, waterfall_page

    yield results.line("verified", "verified.json", ok=True, ops=verified.write())
    yield results.line("verified", "faster.json", ok=True, lines=faster.write())
    yield results.line("verified", "matrix_rates.json", ok=True, devices=rates.write())
    docs.write_gpu_page()
    yield results.line("verified", "docs/gpu.md", ok=True)
    waterfall_page.write()
    yield results.line("verified", "docs/waterfall.md", ok=True)


def stage(name: str) -> Stage:
    if name == "build":
        return _build
    if name == "verified":
        return _verified
    from importlib import import_module

    return import_module("benchmarks.tune" if name == "tune" else f"benchmarks.gpu.{name}").run


def before(name: str) -> frozenset[str]:
    """What a stage need not do again on this device."""
    if name == "tune":
        from benchmarks.tune import measured_here

        return measured_here()
    if name == "candidates":
        from benchmarks.gpu import candidates

        here = results.environment()
        return candidates.decided(results.read(), here["device"], here["arch"])
    return results.done(name, results.read())


def summary(line: results.Line) -> str:
    """One line for people."""
    word = {True: "ok", False: "FAILED", None: "not judged"}[line["ok"]]
    parts = [f"{line['stage']:8} {word:10} {line['case']}"]
    if "p50" in line:
        parts.append(f"{1e6 * line['p50']:.1f} us")
    if "share_of_ceiling" in line:
        parts.append(f"{100 * line['share_of_ceiling']:.0f} % of the ceiling, host {line['host_us']:.0f} us")
    if "path" in line:
        parts.append(line["path"])
    for side, row in line.get("sides", {}).items():
        parts.append(f"{side} {row['rate']:,.0f} {line['unit']}" if "rate" in row else f"{side} {row['error'][:60]}")
    if "ratio" in line:
        rates = ", ".join(f"{side} {rate:,.0f}" for side, rate in line["tokens_per_second"].items())
        parts.append(f"{line['ratio']['p50']:.2f}x stock ({rates} tokens/s)")
    if "cores" in line:
        parts.append(
            f"{line['tokens_per_second']:,.0f} tokens/s into {line['memory']} memory, {line['cores']:.2f} cores"
        )
    if "loss_of_band" in line:
        parts.append(f"{line['loss_of_band']:.2f} of the band")
    for name, peer in line.get("peers", {}).items():
        parts.append(f"{name} x{peer['ratio']:.2f}" if "ratio" in peer else f"{name} {str(peer.get('error'))[:60]}")
    if isinstance(line.get("error"), str) and line["error"]:
        parts.append(line["error"][:300])
    return "  ".join(parts)


def main(
    stages: Annotated[
        list[str] | None, typer.Argument(help=f"of {', '.join(STAGES)} (all by default) and {', '.join(OPTIONAL)}")
    ] = None,
    only: Annotated[str, typer.Option(help="only cases whose name contains this")] = "",
    again: Annotated[bool, typer.Option(help="also cases that went well on this device with this code")] = False,
) -> None:
    """Run the named stages one after another; each goes on past a failed case."""
    names = stages or [*STAGES, "verified"]  # again at the end, with the lines of the stages after its first turn
    if unknown := [name for name in names if name not in STAGES + OPTIONAL]:
        raise SystemExit(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES + OPTIONAL)}")
    import torch

    from bertfast.triton import verified

    if not torch.cuda.is_available() and "candidates" in (stages or ()):
        from benchmarks.gpu import candidates

        print(candidates.outline(only))
    if not torch.cuda.is_available() and set(names) - {"build", "verified"}:
        raise SystemExit(
            f"no GPU is visible to torch {torch.__version__}: these stages measure and test on one. Without it, "
            "`make kernels` compiles every kernel and `python -m benchmarks.tune NAME` shows launch tables' candidates"
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET=1 makes Triton interpret: unset it")
    os.environ[verified.ENVIRONMENT] = (
        "1"  # kernels are what is measured and tested, here and in processes of their own
    )
    console, failed = Console(soft_wrap=True), 0
    for name in names:
        begin = time.monotonic()
        try:
            done = frozenset() if again else before(name)
            if done:
                console.print(f"{name}: {len(done)} cases went well before; --again repeats them")
            for line in stage(name)(only, done):
                if name != "verified" and line["arch"]:  # lines of a machine without a GPU say nothing here
                    results.append(line)
                failed += line["ok"] is False
                console.print(summary(line), markup=False, highlight=False)
        except Exception as problem:  # the stages that follow still have something to say
            failed += 1
            text = f"{type(problem).__name__}: {problem}"
            results.append(results.line(name, name, ok=False, error=text[:2000]))
            console.print(f"{name} FAILED {text}", markup=False)
        console.print(f"{name}: {time.monotonic() - begin:.0f} s", markup=False)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
