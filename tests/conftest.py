"""Fixtures that every test shares, and the implementation axis: each op test runs on the reference and on the CPU's owner."""

import gc
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic mode, below, asks cuBLAS for it
# Else inductor compiles programs, for 8 s, to see whether g++ knows this processor's vectors: every one since 11 does.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported. A core has one worker already: threads that spin beside another worker's cost ten times the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where a test asks for several threads

# The fuzz of the drop-in draws a fresh seed each run, here since all processes of one run must agree on it.
os.environ.setdefault("BERTFAST_FUZZ_SEED", str(random.SystemRandom().randrange(2**28)))

import pytest
import torch

if not torch.cuda.is_available():
    # Before triton is imported: its own library is compiled or interpreted by what this says then.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bertfast import _ext, _library
from bertfast.triton import verified


def pytest_report_header() -> list[str]:
    absent = _ext.why_absent()
    return [
        f"bertfast extension: {'loaded' if absent is None else 'ABSENT: ' + absent}",
        f"fuzz of the drop-in: BERTFAST_FUZZ_SEED={os.environ['BERTFAST_FUZZ_SEED']}",
    ]


def pytest_configure() -> None:
    # CI sets this: a silent fallback to the references would hide a broken build. Said before any worker starts.
    if os.environ.get("BERTFAST_DEMAND_EXT") == "1" and _ext.why_absent() is not None:
        raise pytest.UsageError(f"BERTFAST_DEMAND_EXT=1 but {_ext.why_absent()}")


def pytest_collection_finish() -> None:
    # What is imported by now stays: a full collection would walk through its 800,000 objects, which takes half a second.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `-n auto`: the cores that this process may use, up to eight, as each worker takes about a gigabyte."""
    named = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    return int(named) if named else min(len(os.sched_getaffinity(0)), 8)


class TritonOps:
    """The Triton launchers under the names of their ops, taking and giving CPU tensors.

    Without a GPU they run in Triton's interpreter, which takes milliseconds a row and always draws the same numbers; with one,
    arguments travel there and results back, through the dispatcher.
    """

    candidates: bool | str = False  # what runs in place of the owners, as `verified.prefer` takes it

    @property
    def interpreted(self) -> bool:
        return not torch.cuda.is_available()

    def launcher(self, name: str):
        return _library.owner(name, "CUDA")

    def __getattr__(self, name: str):
        gpu = not self.interpreted
        function = getattr(torch.ops.bertfast, name) if gpu else self.launcher(name)

        def call(*args):
            if not gpu:
                return function(*args)
            moved = [_moved(a, "cuda") for a in args]
            with verified.prefer(candidates=self.candidates):
                found = function(*moved)
            torch.cuda.synchronize()
            mailbox.check(torch.device("cuda", 0))
            for argument, here, there in zip(function.default._schema.arguments, args, moved, strict=True):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    _copy_back(here, there)
            return _moved(found, "cpu")

        from bertfast.triton import mailbox

        return call


def _moved(argument, device: str):
    if isinstance(argument, list | tuple):
        return type(argument)(_moved(each, device) for each in argument)
    return argument.to(device) if isinstance(argument, torch.Tensor) else argument


def _copy_back(here, there) -> None:
    """What an op wrote to its argument's copy on the GPU."""
    if isinstance(here, list | tuple):
        for one, other in zip(here, there, strict=True):
            _copy_back(one, other)
    elif here is not None:
        here.copy_(there)


class CandidateOps(TritonOps):
    """The launchers of one candidate."""

    def __init__(self, candidate: str) -> None:
        self.candidates = candidate

    def launcher(self, name: str):
        return _library.candidate_function(name, self.candidates)


@pytest.fixture(scope="session")
def triton_ops() -> Iterator[TritonOps]:
    pytest.importorskip("triton", reason="Triton is not installed")
    if not torch.cuda.is_available():
        import gluon_interpreter
        from quick_interpreter import quicken

        from bertfast.triton import interpreter, launch

        interpreter.fix()
        quicken()
        launch.gluon_interpreter = gluon_interpreter.interpret
    with verified.allow_unverified():  # kernels are what is tested here, on whatever GPU
        yield TritonOps()


@pytest.fixture
def candidate_ops(request: pytest.FixtureRequest, triton_ops: TritonOps, poisoned: None) -> CandidateOps:
    """The candidate that the test file is named after, such as linear_gelu.cheap_erf of test_linear_gelu_cheap_erf.py."""
    by_file = {f"test_{name.replace('.', '_')}": name for name in verified.candidates()}
    return CandidateOps(by_file[request.path.stem])


@pytest.fixture
def poisoned():
    """Uninitialised memory is NaN, so that what a kernel forgets to write shows."""
    # Only warning: on a GPU some of torch's own functions refuse to run otherwise.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["reference", "cpu", "triton"])
def implementation(request: pytest.FixtureRequest):
    """The namespace of one implementation's ops: the eager reference, whatever owns the CPU, or the Triton kernels."""
    if request.param == "triton":
        request.getfixturevalue("poisoned")
        return request.getfixturevalue("triton_ops")
    if request.param == "cpu":
        if _ext.why_absent() is not None:
            pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
        request.getfixturevalue("threads")(3)
    return torch.ops.bertfast_reference if request.param == "reference" else torch.ops.bertfast


@pytest.fixture(params=["aot_eager", "inductor"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend of torch.compile: the traced graph alone, or with code generated around our ops."""
    if request.param == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor compiles with g++, which is not here")
    return request.param


@pytest.fixture(scope="session")
def shared_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run share, and no other run: not one that a test starts either."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def fresh_inductor_cache(shared_folder: Path):
    # Compiled graphs are cached by their ops, not by the fakes and kernels behind them: one from before a change would pass.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared_folder / "inductor"))
        yield


@pytest.fixture(autouse=True)
def threads():
    """torch.set_num_threads; what a test or a command that it called sets is undone."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded():
    # `make gpu` draws a fresh seed and prints it; a failure is seen again with BERTFAST_SEED set to it.
    torch.manual_seed(int(os.environ.get("BERTFAST_SEED", "0")))
