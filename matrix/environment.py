"""One cell's environment: a virtual environment with its packages, the package built in it, and a place to run its tests."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from matrix.cells import Cell, requirement

ROOT = Path(__file__).parent.parent
# What a cell needs of the checkout: sources to build from, and tests that meet the installed package, not these sources.
SOURCES = ("bertfast", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE")
TESTS = ("tests", "matrix", "benchmarks", "pyproject.toml")
_UNWANTED = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.py", "*.pyc", "results")


class Failed(Exception):
    """A command that did not succeed; the message is the end of what it said."""


@dataclass(frozen=True)
class Environment:
    """Where a cell lives: FOLDER/venv, FOLDER/source, FOLDER/tests."""

    cell: Cell
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    def variables(self) -> dict[str, str]:
        """The environment of every command: no user's packages, no network of models, few threads, our own build folder."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BERTFAST_"))}
        return plain | {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "VIRTUAL_ENV": str(self.folder / "venv"),
            "PYTHONNOUSERSITE": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
            "BERTFAST_BUILD": "cpu",
            "BERTFAST_DEMAND_EXT": "1",
            "BERTFAST_KERNEL_CACHE": str(self.folder.parent / "kernels"),
            # The cell decides the versions; a machine's own constraints would contradict it.
            "PIP_CONSTRAINT": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def run(self, command: list[str], folder: Path, log: Path, seconds: int) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment; all it says goes to `log`. Raises Failed past `seconds`."""
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            begin = file.tell()
            try:
                done = subprocess.run(
                    command,
                    cwd=folder,
                    env=self.variables(),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=seconds,
                )
            except subprocess.TimeoutExpired as error:
                raise Failed(f"was stopped after {seconds} seconds") from error
        with log.open(encoding="utf-8", errors="replace") as file:
            file.seek(begin)
            done.stdout = file.read()
        return done

    def must(self, command: list[str], folder: Path, log: Path, seconds: int) -> str:
        """As `run`; raises Failed with the last words where the command does not succeed."""
        done = self.run(command, folder, log, seconds)
        if done.returncode != 0:
            raise Failed(last_words(done.stdout))
        return done.stdout

    def install(self, interpreter: str, log: Path, cache: bool) -> None:
        """The virtual environment with the cell's packages. One that has them already stays, for a day where it has the newest."""
        stamp = self.folder / "installed.json"
        day = f"{date.today()}" if None in self.cell.packages.values() else "any"
        content = json.dumps({"packages": self.cell.packages, "day": day}, indent=1)
        if self.python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == content:
            return
        shutil.rmtree(self.folder / "venv", ignore_errors=True)
        stamp.unlink(missing_ok=True)
        self.must([interpreter, "-m", "venv", str(self.folder / "venv")], self.folder, log, 300)
        pip = [str(self.python), "-m", "pip", "install", "--quiet", *([] if cache else ["--no-cache-dir"])]
        # Torch's wheels say which Triton they want, and the wheels of another index want none: what the cell names comes last.
        triton = self.cell.packages.get("triton")
        self.must([*pip, *(r for r in self.cell.requirements() if not r.startswith("triton"))], self.folder, log, 3600)
        if triton is not None:
            self.must([*pip, "--no-deps", requirement("triton", triton)], self.folder, log, 1200)
        elif not self._has("triton"):
            self.must([*pip, "triton"], self.folder, log, 1200)
        stamp.write_text(content, encoding="utf-8")

    def _has(self, package: str) -> bool:
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
        return subprocess.run([self.python, "-c", code], env=self.variables()).returncode == 0

    def copy_sources(self) -> None:
        """Fresh copies: a build must not find what another environment left in the checkout."""
        for place, names in (("source", SOURCES), ("tests", TESTS)):
            shutil.rmtree(self.folder / place, ignore_errors=True)
            (self.folder / place).mkdir()
            for name in names:
                path = ROOT / name
                if path.is_dir():
                    shutil.copytree(path, self.folder / place / name, ignore=_UNWANTED)
                else:
                    shutil.copy2(path, self.folder / place / name)

    def versions(self) -> dict[str, str]:
        """Every installed package's version, and Python's."""
        code = (
            "import json, platform, importlib.metadata as m\n"
            "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
            "print(json.dumps({'python': platform.python_version()} | found))"
        )
        done = subprocess.run([self.python, "-c", code], env=self.variables(), capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def remove(self) -> None:
        """Everything but logs and results."""
        for name in ("venv", "source", "tests"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "installed.json").unlink(missing_ok=True)


def last_words(text: str, lines: int = 3) -> str:
    """The last lines that say something, in one."""
    spoken = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    errors = [line for line in spoken if line.upper().startswith("ERROR")]
    return " / ".join((errors or spoken)[-lines:])[:400] or "said nothing"
