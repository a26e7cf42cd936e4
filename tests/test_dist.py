"""`make dist`: what lies in a wheel and a source distribution, and that each installs, with and without a compiler, and works.

An environment is a fresh venv that sees this one's packages, bertfast aside: PyTorch is not downloaded again. The extension comes
from what setup.py keeps under a digest of all its sources (BERTFAST_KERNEL_CACHE), so that CI compiles it once; a file that a
source distribution lacked would change the digest, and the compilation would fail.
"""

import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import bertfast
from bertfast import _ext

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
USE = """
import bertfast, sys, torch
from pathlib import Path
from transformers import BertConfig, BertModel
from bertfast import _ext
from bertfast.bench.cases import minilm_folder
from bertfast.cli import app

assert Path(bertfast.__file__).is_relative_to(sys.prefix), bertfast.__file__
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
model = bertfast.optimize(BertModel(BertConfig(**sizes)).eval())
ids, mask = torch.arange(8).view(2, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
with torch.inference_mode():
    fast = model(input_ids=ids, attention_mask=mask).last_hidden_state
    stock = bertfast.restore(model)(input_ids=ids, attention_mask=mask).last_hidden_state
assert (fast - stock)[mask.bool()].abs().max() < 1e-5
assert bertfast.Encoder(minilm_folder()).encode(["One text.", "Another."]).shape == (2, 384)
app(["doctor"], standalone_mode=False)
print("kernels" if _ext.load() else f"references: {_ext.why_absent()}")
"""


def environment(**changes: str) -> dict[str, str]:
    """This process's, without a way to this clone and to what GPUs and tests set."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "BERTFAST_BUILD")}
    cache = {"BERTFAST_KERNEL_CACHE": kept.get("BERTFAST_KERNEL_CACHE", str(ROOT / "build" / "kept"))}
    return kept | cache | {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | changes


def run(*command: object, env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=env, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tracked(*patterns: str) -> set[str]:
    """Files of the clone that git tracks."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no clone: git says which files there are")
    done = subprocess.run(["git", "ls-files", "-z", *patterns], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name for name in done.stdout.split("\0") if name}


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> tuple[Path, Path]:
    """Wheel and source distribution as `make dist` makes them, the former of the latter."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    # A copy, since setuptools puts a folder of one name beside setup.py, and several workers of a run may be here at once.
    made = ("build", "dist", "*.egg-info", "__pycache__", "_C*", "_build_info.py", f"bertfast-{bertfast.__version__}")
    clone = shutil.copytree(ROOT, out / "clone", ignore=shutil.ignore_patterns(".*", *made))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, clone, env=environment(), cwd=out)
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


@pytest.fixture
def install(tmp_path):
    """Install a file into a fresh environment; its Python, and what pip said."""

    def install(file: Path, env: dict[str, str]) -> tuple[Path, str]:
        venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
        python = tmp_path / "venv" / "bin" / "python"
        packages = Path(
            run(python, "-c", "import site; print(site.getsitepackages()[0])", env=env, cwd=tmp_path).strip()
        )
        # A path alone: the .pth files there, bertfast's editable installation among them, are not read.
        (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        options = ("--no-deps", "--no-build-isolation", "--verbose", "--target", packages)
        said = run(python, "-m", "pip", "install", *options, file, env=env, cwd=tmp_path)
        return python, said

    return install


def uses(python: Path, env: dict[str, str], tmp_path: Path) -> str:
    """What runs the ops of an installation that optimises, encodes and examines itself."""
    said = run(python, "-c", USE, env=env, cwd=tmp_path)
    assert "C++ kernels" in said
    return said.splitlines()[-1]


def without_compiler(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    return environment(PATH=str(tmp_path / "bin"), CXX="/nowhere/c++", CC="/nowhere/cc")


def test_the_wheel_has_all_of_the_package_and_nothing_else(dist):
    names = {name for name in zipfile.ZipFile(dist[0]).namelist() if ".dist-info/" not in name}
    built = {name for name in names if name.endswith(".so") or name == "bertfast/_build_info.py"}
    assert names - built == tracked("bertfast")
    assert len(built) == (2 if COMPILER else 1)


def test_the_source_distribution_has_what_a_build_needs_and_no_tests(dist):
    with tarfile.open(dist[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    files = tracked("bertfast", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
    written = {name for name in names if name.startswith("bertfast.egg-info/") or name in ("PKG-INFO", "setup.cfg")}
    assert names - written == files


def test_a_wheel_needs_no_compiler(dist, install, tmp_path):
    env = without_compiler(tmp_path)
    python, _ = install(dist[0], env)
    assert uses(python, env, tmp_path) == ("kernels" if COMPILER else "references: bertfast._C was not built")
    (script,) = python.parents[1].glob("lib/*/site-packages/bin/bertfast")
    assert run(script, "--version", env=env, cwd=tmp_path).strip() == bertfast.__version__


@pytest.mark.skipif(COMPILER is None or _ext.why_absent() is not None, reason="no C++ kernels here")
def test_a_source_distribution_with_a_compiler_has_the_kernels(dist, install, tmp_path):
    env = environment()
    python, _ = install(dist[1], env)
    assert uses(python, env, tmp_path) == "kernels"


def test_a_source_distribution_without_a_compiler_says_so_and_works(dist, install, tmp_path):
    env = without_compiler(tmp_path)
    python, said = install(dist[1], env)
    assert "no C++ compiler found, going on without the extension" in said
    assert uses(python, env, tmp_path).startswith("references: bertfast._C was not built")
