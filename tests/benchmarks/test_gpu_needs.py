"""What `make gpu` asks of a machine, and the matrix rates that training takes from committed lines."""

import shutil
import subprocess

import pytest

from benchmarks.gpu import rates, results


def line(case: str, ok: bool, **more) -> results.Line:
    shared = {"stage": "micro", "device": "NVIDIA H200", "arch": 90, "commit": "abc", "dirty": False}
    return {**shared, "date": "2026-01-01T00:00:00+00:00", "case": case, "ok": ok, **more}


def test_matrix_rates_are_those_of_the_last_line_of_each_gpu():
    def ceilings(rate, ok=True, **more):
        return line("ceilings", ok, tflops=rate, tflops32=50.0, **more)

    lines = [
        ceilings(700.0),
        ceilings(710.0, date="2026-01-03T04:00:00+00:00", dirty=True),
        ceilings(1.0, device="NVIDIA X", ok=False),
        ceilings(1.0, device="cpu", arch=0),
        line("unpad", True, device="NVIDIA Y"),
    ]
    assert rates.table(lines) == {
        "NVIDIA H200": {"bf16": 710 * 10**12, "fp32": 50 * 10**12, "date": "2026-01-03", "commit": "abc+dirty"}
    }


def test_shipped_matrix_rates_follow_from_committed_lines(tmp_path):
    assert rates.write(tmp_path / "rates.json") == ["NVIDIA H200"]
    assert rates.FILE.read_text() == (tmp_path / "rates.json").read_text(), "run: python -m benchmarks.gpu verified"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("script", "told"), [
    ("echo rich typer", "lacks rich typer. Install what is missing"),
    ("exit 1", "lacks all of it, or does not run"),
    ('case "$*" in *yaml*) echo yaml;; esac; case "$*" in *benchmarks.gpu*) exit 3;; esac', "lacks yaml: the stage"),
])  # fmt: skip
def test_make_gpu_names_what_is_missing(tmp_path, script, told):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "gpu", f"PYTHON={python}"], cwd=results.ROOT, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode != 0
    assert told in done.stdout
    assert ("-m benchmarks.gpu" in done.stdout) == ("yaml" in told), (
        "the suite starts where only training lacks something"
    )
