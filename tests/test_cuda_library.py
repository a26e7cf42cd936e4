"""The CUDA C++ library: what its build asks for and says, its device maths by a host compiler, its machine code, and its loader."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bertfast import _cuda

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "csrc" / "cuda"


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("cuda_build", SOURCES / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """CUDA_HOME with a compiler that prints what it is called with."""

    def make(text):
        nvcc = executable(tmp_path / "cuda" / "bin" / "nvcc", text)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
        return nvcc

    return make


@pytest.fixture
def headers(tmp_path, monkeypatch):
    """BERTFAST_CUTLASS with headers of a version, as the package lays them out."""

    def make(version="4.2.0", util=True):
        folder = tmp_path / "cutlass"
        (folder / "include" / "cutlass").mkdir(parents=True)
        parts = zip(("MAJOR", "MINOR", "PATCH"), version.split("."), strict=True)
        text = "".join(f"#define CUTLASS_{name} {number}\n" for name, number in parts)
        (folder / "include" / "cutlass" / "version.h").write_text(text)
        if util:
            (folder / "tools" / "util" / "include" / "cutlass" / "util").mkdir(parents=True)
            (folder / "tools" / "util" / "include" / "cutlass" / "util" / "packed_stride.hpp").write_text("")
        monkeypatch.setenv("BERTFAST_CUTLASS", str(folder))
        return folder

    return make


def test_nvcc_is_where_cuda_home_says(build, toolkit):
    nvcc = toolkit("echo 'Cuda compilation tools, release 13.0, V13.0.88'")
    assert build.find_nvcc() == str(nvcc)
    assert build.nvcc_release(str(nvcc)) == "13.0"


def test_nvcc_is_found_on_path(build, tmp_path, monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    nvcc = executable(tmp_path / "nvcc", "true")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert build.find_nvcc() == str(nvcc)


def test_without_nvcc(build, monkeypatch):
    monkeypatch.setattr(build.os, "access", lambda path, mode: False)
    with pytest.raises(build.Missing, match=r"no nvcc found: install the CUDA toolkit .* or set CUDA_HOME"):
        build.find_nvcc()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo 'release 11.8, V11.8.89'", "is CUDA 11.8, which knows no sm_90a"),
        ("echo broken", "names no release: broken"),
    ],
)
def test_an_nvcc_that_will_not_do(build, toolkit, text, words):
    with pytest.raises(build.Missing, match=words):
        build.nvcc_release(str(toolkit(text)))


def test_headers_by_name(build, headers):
    folder = headers()
    assert build.find_headers() == [folder / "include", folder / "tools" / "util" / "include"]


def test_headers_of_another_version(build, headers):
    headers("3.5.1")
    with pytest.raises(build.Missing, match=r"has CUTLASS 3.5.1, and the kernels were written for 4.2.0: pip install"):
        build.find_headers()


def test_headers_without_the_utilities(build, headers):
    headers(util=False)
    with pytest.raises(build.Missing, match=r"has no cutlass/util/packed_stride.hpp: CUTLASS's folders include and"):
        build.find_headers()


def test_without_headers(build, monkeypatch):
    monkeypatch.delenv("BERTFAST_CUTLASS", raising=False)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        build.Missing, match=r"pip install --no-deps nvidia-cutlass==4\.2\.0\.0, or set BERTFAST_CUTLASS"
    ):
        build.find_headers()


def test_one_version_of_cutlass_is_named_everywhere(build):
    pin = f"{build.PACKAGE}=={build.VERSION}.0"
    assert f'cuda = ["{pin}"]' in (ROOT / "pyproject.toml").read_text()
    assert f"CUTLASS := {pin}\n" in (ROOT / "Makefile").read_text()


def test_the_build_compiles_each_source_once(build, toolkit, headers, tmp_path, monkeypatch):
    log = tmp_path / "log"
    toolkit(
        f'[ "$1" = --version ] && {{ echo "release 13.0"; exit; }}\n'
        f'echo "$*" >> {log}\nwhile [ "$1" != -o ]; do shift; done\necho object > "$2"'
    )
    headers()
    monkeypatch.setenv("BERTFAST_KERNEL_CACHE", str(tmp_path / "cache"))
    library = build.build(tmp_path / "lib" / build.LIBRARY)
    commands = log.read_text().splitlines()
    sources = sorted(path.name for path in SOURCES.glob("*.cu"))
    assert sorted(Path(re.search(r"-c (\S+)", line)[1]).name for line in commands if " -c " in line) == sources
    assert library.exists()
    assert all("sm_90a" in line for line in commands if " -c " in line)
    assert commands[-1].startswith("-shared -cudart static")
    build.build(library)
    assert len(log.read_text().splitlines()) == len(commands) + 1  # linked again from the objects that are there


def setup_says(**environment: str) -> str:
    """What setup.py ends with, asked for nothing but the package's name."""
    got = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert got.returncode == 1, got.stdout + got.stderr
    return got.stderr.strip().splitlines()[-1]


def test_setup_refuses_what_it_cannot_build(toolkit, tmp_path):
    toolkit("echo 'release 11.8'")
    reason = "is CUDA 11.8, which knows no sm_90a: install 12 or newer, or set CUDA_HOME to it"
    assert setup_says(BERTFAST_BUILD="cuda") == f"BERTFAST_BUILD=cuda: {tmp_path}/cuda/bin/nvcc {reason}"
    assert setup_says(BERTFAST_BUILD="cuda", CXX="no-such-compiler").startswith(
        "BERTFAST_BUILD=cuda: no C++ compiler found"
    )
    assert setup_says(BERTFAST_BUILD="gpu") == "BERTFAST_BUILD=gpu: use auto, cpu, cuda or none"


@pytest.fixture(scope="module")
def maths(tmp_path_factory):
    """gelu and its gradient of csrc/cuda/gelu_math.h, compiled for the host."""
    if shutil.which("g++") is None:
        pytest.skip("compiles with g++, which is not here")
    folder = tmp_path_factory.mktemp("maths")
    lines = ['#include "gelu_math.h"']
    for name in ("gelu", "gelu_gradient"):
        loop = f"for (int i = 0; i < n; ++i) y[i] = bertfast::{name}(x[i]);"
        lines.append(f'extern "C" void {name}(const float* x, float* y, int n) {{ {loop} }}')
    (folder / "maths.cpp").write_text("\n".join(lines))
    command = [
        "g++",
        "-O2",
        "-shared",
        "-fPIC",
        f"-I{SOURCES}",
        str(folder / "maths.cpp"),
        "-o",
        str(folder / "maths.so"),
    ]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "maths.so"))

    def run(name, x):
        y = torch.empty_like(x)
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y))
        getattr(library, name)(*pointers, x.numel())
        return y

    return run


def test_device_gelu_against_float64(maths):
    x = torch.linspace(-6, 6, 100_001)
    v = x.double()
    tail = 0.5 * torch.special.erfc(v.abs() / 2**0.5)
    exact = v * torch.where(v < 0, tail, 1 - tail)
    assert ((maths("gelu", x).double() - exact).abs() <= 7.5e-5 * (v.abs() * tail) + 1e-6 * exact.abs()).all()
    density = torch.exp(-0.5 * v * v) / (2 * torch.pi) ** 0.5
    exact = torch.where(v < 0, tail, 1 - tail) + v * density
    assert ((maths("gelu_gradient", x).double() - exact).abs() <= 7.5e-5 * tail + 1e-6).all()


def test_device_gelu_at_its_ends(maths):
    infinity = float("inf")
    x = torch.tensor([-3e38, -40.0, 0.0, 40.0, 3e38, infinity, float("nan")])
    assert maths("gelu", x)[:6].tolist() == [0.0, 0.0, 0.0, 40.0, x[4].item(), infinity]
    assert maths("gelu", x)[6].isnan()
    assert maths("gelu_gradient", x)[:5].tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_device_gelu_has_the_numbers_of_cheap_erf():
    pytest.importorskip("triton", reason="Triton is not installed")
    from bertfast.ops.linear_gelu import cheap_erf

    numbers = dict(re.findall(r"\b(k\w+) = (-?[\d.]+)f", (SOURCES / "gelu_math.h").read_text()))
    names = ("kP", "kC1", "kC2", "kC3", "kC4")
    assert [float(numbers[name]) for name in names] == [cheap_erf.P, *cheap_erf.COEFFICIENTS]


@pytest.fixture
def other(monkeypatch, tmp_path):
    """A library at another place."""
    monkeypatch.setattr(_cuda, "LIBRARY", tmp_path / "libbertfast_cuda.so")
    _cuda.forget()
    yield tmp_path / "libbertfast_cuda.so"
    monkeypatch.undo()
    _cuda.forget()


def test_an_absent_library_says_so(other):
    assert _cuda.absence().startswith("libbertfast_cuda.so was not built: `make cuda` builds it")
    assert _cuda.built_from() is None


def test_a_broken_library_says_so(other, build):
    other.write_bytes(f"bertfast-cuda-digest:{build.digest()}".encode())
    assert _cuda.absence().startswith("libbertfast_cuda.so cannot be loaded")


def test_a_library_of_other_sources_says_so(other, build):
    assert _cuda.sources() == build.digest()
    for content in (b"bertfast-cuda-digest:000000000000", b"no digest"):
        other.write_bytes(content)
        _cuda.forget()
        assert "was built from other sources than those in csrc/cuda" in _cuda.absence()


@pytest.fixture(scope="module")
def machine_code():
    """Each kernel's resources and instructions, in the library that was built here."""
    if (reason := _cuda.absence()) is not None:
        pytest.skip(reason)
    pytest.importorskip("triton", reason="brings cuobjdump")
    from bertfast.triton import private

    def cuobjdump(*words):
        command = [str(private.tool("cuobjdump")), *words, str(_cuda.LIBRARY)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    usage = re.findall(r"Function (\S*device_kernel\S*):\s*\n\s*(REG:\d+.*)", cuobjdump("-res-usage"))
    code = dict(re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function : |\Z)", cuobjdump("-sass"), re.DOTALL))
    return {name: (dict(re.findall(r"(\w+):(\d+)", text)), code[name]) for name, text in usage}


def test_kernels_do_not_spill(machine_code):
    assert len(machine_code) == 4
    for usage, code in machine_code.values():
        assert usage["STACK"] == "0"
        assert not re.search(r"\b(LDL|STL)\b", code)


def test_kernels_use_what_sm_90_has(machine_code):
    for _, code in machine_code.values():
        assert re.search(r"HGMMA\.64x256x16\.F32\.BF16", code)
        assert re.search(r"UTMALDG\S*\.MULTICAST", code)  # a cluster's weights come once for both blocks
        assert "UTMASTG" in code
        assert "USETMAXREG" in code


def test_wgmmas_do_not_wait_for_one_another(machine_code):
    for _, code in machine_code.values():
        assert code.count("HGMMA") > code.count("WARPGROUP.DEPBAR")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device 0 here")
def test_a_launch_without_a_gpu_says_why():
    if (reason := _cuda.absence()) is not None:
        pytest.skip(reason)
    function = _cuda.function("linear_gelu_infer", 4, 3)
    assert function(ctypes.byref(_cuda.Launch(0, 132, 0, None)), 0, 0, 0, 0, 64, 64, 64).startswith(b"device: ")


@pytest.mark.parametrize(
    ("rows", "columns", "parts"),
    [(3072, 768, True), (768, 768, True), (4096, 1024, False), (1024, 1024, True), (30528, 768, True)],
)
def test_tiles_are_cut_where_many_processors_would_be_idle(rows, columns, parts):
    if (reason := _cuda.absence()) is not None:
        pytest.skip(reason)
    workspace = _cuda.dweight_workspace(132, 16384, rows, columns)
    assert (workspace > 0) is parts
    assert workspace < 2.1 * 132 * 128 * 256 * 4  # two float32 tiles for each multiprocessor, and room to wait for them
