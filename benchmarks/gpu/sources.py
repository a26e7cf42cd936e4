"""python -m benchmarks.gpu.sources COMMIT: adds to benchmarks/results/sources.json the digests of the ops' sources at a commit.

For result lines from before they held these themselves: such a line names the commit and the digest of the whole package.
"""

import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu import results
from benchmarks.gpu.verified import SOURCES, Recorded
from bertfast.triton import sources


def at(commit: str) -> tuple[str, dict[str, dict[str, str]]]:
    """(digest of the package, {architecture: {op: digest}}) at a commit, of the architectures that lines with that package name.

    Raises:
        subprocess.CalledProcessError: where git does not know the commit.
    """
    archive = subprocess.run(
        ["git", "archive", commit, "bertfast", "csrc"], cwd=results.ROOT, capture_output=True, check=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        code, package = results.code(Path(folder)), Path(folder) / "bertfast"
        archs = sorted({line["arch"] for line in results.read() if line["code"] == code and line["arch"]})
        ops = sorted(path.name for path in (package / "ops").iterdir() if sources.files(path.name, package))
        return code, {str(arch): {op: sources.digest(op, arch, package) for op in ops} for arch in archs}


def main(commit: Annotated[str, typer.Argument(help="of the result lines, such as fed9bd5")]) -> None:
    """Add the digests at COMMIT to benchmarks/results/sources.json."""
    code, digests = at(commit)
    if not digests:
        raise SystemExit(f"no result line has the package of {commit} ({code})")
    recorded: Recorded = json.loads(SOURCES.read_text(encoding="utf-8")) if SOURCES.exists() else {}
    SOURCES.write_text(json.dumps(recorded | {code: digests}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
