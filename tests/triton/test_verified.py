"""The gate on a GPU: what is verified runs its kernel, what is not runs torch's functions, and it is said once."""

import threading
import warnings
from contextlib import nullcontext, suppress

import pytest
import torch

pytest.importorskip("triton")
import bertfast.ops  # noqa: F401  defines the ops
from bertfast import _library
from bertfast.triton import sources, verified

ENTRY = {"date": "2026-01-01T00:00:00+00:00", "device": "NVIDIA H200", "commit": "abc"}


def entries(arch, ops):
    return {op: {verified.triton_minor(): ENTRY | {"sources": sources.here(op, arch)}} for op in ops}


@pytest.fixture
def gpu(monkeypatch):
    """A process that sees a Hopper GPU, or GPUs of `archs`: called with the ops that are verified on sm_90."""
    if torch.cuda.is_available():
        pytest.skip("CPU tensors stand for tensors on a GPU, which is there")
    monkeypatch.setattr(verified, "_noticed", set())
    monkeypatch.setattr(verified, "_allowed", 0)
    monkeypatch.setattr(verified, "_preferred", None)
    monkeypatch.delenv(verified.ENVIRONMENT, raising=False)

    def set_up(ops, archs=(90,)):
        monkeypatch.setattr(verified, "devices", lambda: archs)
        table = {"90": entries(90, ops)}
        monkeypatch.setattr(verified, "_table", lambda: table)
        _library.forget("CUDA")

    yield set_up
    _library.forget("CUDA")


@pytest.fixture
def runs(monkeypatch):
    """What the owner of CUDA ran, for CPU tensors sent there: each op's kernel and reference write their name."""
    names = []

    def written(kind, name, function):
        def call(*args):
            names.append((kind, name))
            return function(*args)

        return call

    for name in ("unpad", "repad", "pack_mask"):
        monkeypatch.setitem(_library._REFERENCES, name, written("reference", name, _library.meaning(name)))
    owner = _library.owner
    monkeypatch.setattr(_library, "owner", lambda name, key: written("kernel", name, owner(name, key)))
    return names


class OnDevice(torch.Tensor):
    """A tensor that says it is somewhere else."""

    @property
    def device(self):
        return self.place


def on_gpu(name, *args):
    """Call what owns CUDA, through the dispatcher."""
    return _library.op(name).redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args)


def unpad():
    x, indices = torch.randn(4, 8), torch.tensor([2, 0])
    assert torch.equal(on_gpu("unpad", x, indices), x[indices])


def test_a_verified_op_runs_its_kernel(triton_ops, gpu, runs):
    gpu(verified.folders())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unpad()
    assert runs == [("kernel", "unpad")]
    assert verified.gate(90) == {}
    assert verified.notice(90) is None


def test_an_op_that_is_not_verified_runs_its_reference_and_says_so_once(triton_ops, gpu, runs):
    gpu([op for op in verified.folders() if op != "packing"])
    with pytest.warns(
        UserWarning, match=r"sm_90.*torch's own functions.*: packing \(its kernels have not passed.*make gpu"
    ):
        unpad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unpad()
        on_gpu("repad", torch.randn(2, 8), torch.tensor([2, 0]), 4)
    assert [kind for kind, _ in runs] == ["reference"] * 3
    assert list(verified.gate(90)) == ["packing"]


def test_ops_that_no_model_needs_keep_no_model_from_its_kernels(gpu):
    """Those that run where somebody asked for them, and the trainer's."""
    beside = {op for op in verified.folders() if op.startswith("fp8_")} | {"optimizer"}
    assert beside < set(verified.folders())
    gpu([op for op in verified.folders() if op not in beside])
    assert set(verified.gate(90)) == beside
    assert verified.default_gate(90) == {}
    assert verified.notice(90) is None
    assert verified.architectures() == [90]


def test_the_committed_results_verify_every_op_that_models_need():
    """Or every model on an H200 would go back to stock without a word of a test."""
    if verified.triton_minor() == "3.6":
        assert 90 in verified.architectures()


def test_who_tests_kernels_runs_all_of_them_in_every_thread(triton_ops, gpu, runs):
    gpu([])
    with verified.allow_unverified():
        assert verified.gate(90) == {}
        worker = threading.Thread(target=unpad)
        worker.start()
        worker.join()
    with pytest.warns(UserWarning, match="sm_90"):
        unpad()
    assert [kind for kind, _ in runs] == ["kernel", "reference"]


def test_a_variable_of_the_environment_allows_them_too(triton_ops, gpu, runs, monkeypatch):
    gpu([])
    monkeypatch.setenv(verified.ENVIRONMENT, "1")
    unpad()
    assert runs == [("kernel", "unpad")]


def test_kernels_can_be_switched_off(triton_ops, gpu, runs):
    gpu(verified.folders())
    for switch, kind in ((verified.torch_only, "reference"), (nullcontext, "kernel")):
        with switch():
            if kind == "reference":
                with pytest.warns(UserWarning, match="every op runs torch's own functions.*switched off"):
                    unpad()
            else:
                unpad()
        assert runs.pop()[0] == kind


def test_the_device_decides_where_several_kinds_are_seen(triton_ops, gpu, runs):
    gpu(verified.folders(), archs=(90, 80))
    with pytest.warns(UserWarning, match="sm_80"):
        decide = verified.resolve("unpad")

    indices = torch.tensor([2, 0])
    for index, kind in ((0, "kernel"), (1, "reference")):
        x = torch.randn(4, 8).as_subclass(OnDevice)
        x.place = torch.device("cuda", index)
        with suppress(
            RuntimeError, KeyError, AssertionError
        ):  # the tensor is not really there; whose turn it was counts
            decide(x, indices)
        assert runs.pop() == (kind, "unpad")


CANDIDATE = "linear_gelu.cheap_erf"


@pytest.fixture
def sources_that_ran(monkeypatch):
    """Which of owner, candidate and reference ran bias_gelu_fwd, for CPU tensors sent to CUDA's owner."""
    names = []

    def named(kind, function):
        def call(*args):
            names.append(kind)
            return function(*args)

        return call

    owner, candidate = _library.owner("bias_gelu_fwd", "CUDA"), _library.candidate_function("bias_gelu_fwd", CANDIDATE)
    monkeypatch.setattr(_library, "owner", lambda name, key: named("owner", owner))
    monkeypatch.setattr(_library, "candidate_function", lambda name, _: named("candidate", candidate))
    reference = named("reference", _library.meaning("bias_gelu_fwd"))
    monkeypatch.setitem(_library._REFERENCES, "bias_gelu_fwd", reference)
    return names


def bias_gelu():
    on_gpu("bias_gelu_fwd", torch.randn(2, 16).bfloat16(), torch.randn(16).bfloat16(), False)


def faster(gain, op="bias_gelu_fwd", **more):
    """Gains as verified.json has them."""
    owner = sources.here(verified.folder_of(op), 90)
    return {op: {"gain": gain, "cases": 3, "losing": {}, "owner": owner} | more}


def timed(gains, name=CANDIDATE):
    """Put times into the entry of a candidate."""
    verified._table()["90"][name][verified.triton_minor()]["gains"] = gains


def test_a_candidate_takes_over_where_it_is_verified_and_faster_and_only_there(triton_ops, gpu, sources_that_ran):
    gpu(verified.folders())
    bias_gelu()
    gpu([*verified.folders(), CANDIDATE])
    timed(faster(1.2))
    bias_gelu()
    with verified.torch_only(), pytest.warns(UserWarning, match="switched off"):
        bias_gelu()
    assert sources_that_ran == ["owner", "candidate", "reference"]
    assert verified.gate(90) == {}


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ({}, "no committed line compares its time with the owner's at bias_gelu_fwd"),
        ({"bias_gelu_bwd": 1.5}, "no committed line compares"),
        ({"bias_gelu_fwd": 0.97}, "it was 0.97 times as fast as the owner at bias_gelu_fwd, the median of 3 cases"),
        ({"bias_gelu_fwd": 1.0}, "it was 1.00 times as fast"),
    ],
)
def test_a_candidate_that_is_right_but_not_known_to_be_faster_leaves_the_owner(
    triton_ops, gpu, sources_that_ran, gains, words
):
    gpu([*verified.folders(), CANDIDATE])
    timed({op: value for name, gain in gains.items() for op, value in faster(gain, name).items()})
    bias_gelu()
    assert sources_that_ran == ["owner"]
    assert words in verified.why_not_candidate(CANDIDATE, 90, "bias_gelu_fwd")


def test_times_beside_an_owner_that_has_changed_count_no_more(triton_ops, gpu, sources_that_ran):
    gpu([*verified.folders(), CANDIDATE])
    timed(faster(1.2, owner="before"))
    bias_gelu()
    assert sources_that_ran == ["owner"]
    assert "have changed since" in verified.why_not_candidate(CANDIDATE, 90, "bias_gelu_fwd")


def test_a_candidate_is_judged_by_op(gpu):
    gpu([*verified.folders(), CANDIDATE])
    timed(faster(1.2) | faster(0.9, "bias_gelu_bwd"))
    assert verified.running_candidate("bias_gelu_fwd", 90) == CANDIDATE
    assert verified.running_candidate("bias_gelu_bwd", 90) is None
    assert verified.why_not_candidate(CANDIDATE, 90) is None  # it runs at one of its ops


def test_of_several_candidates_the_fastest_runs(gpu, monkeypatch):
    other = "linear.ending_sums"
    paths = tuple(_library.candidates()[op][0] for op in ("bias_gelu_fwd", "linear_bwd"))
    monkeypatch.setitem(_library._CANDIDATES, "bias_gelu_fwd", paths)
    gpu([*verified.folders(), CANDIDATE, other])
    for first, second, fastest in ((1.2, 1.3, other), (1.2, 1.1, CANDIDATE), (1.2, 1.2, CANDIDATE), (0.9, 0.95, None)):
        timed(faster(first))
        timed(faster(second), other)
        assert verified.running_candidate("bias_gelu_fwd", 90) == fastest
    timed(faster(1.3), other)
    for preferred, name in ((True, CANDIDATE), (CANDIDATE, CANDIDATE), (other, other), (False, None)):
        with verified.prefer(candidates=preferred):
            assert verified.running_candidate("bias_gelu_fwd", 90) == name


def test_tests_say_which_of_owner_and_candidate_runs(triton_ops, gpu, sources_that_ran):
    gpu([*verified.folders(), CANDIDATE])
    timed(faster(1.2))
    with verified.prefer(candidates=False):
        bias_gelu()
    gpu([])
    with verified.allow_unverified():  # kernels that are not verified are no reason to leave the owner
        bias_gelu()
        with verified.prefer(candidates=True):
            bias_gelu()
        bias_gelu()
    assert sources_that_ran == ["owner", "owner", "candidate", "owner"]


def test_a_changed_candidate_is_not_verified_and_its_owner_is(gpu, monkeypatch):
    gpu([*verified.folders(), CANDIDATE])
    here = sources.here
    monkeypatch.setattr(sources, "here", lambda op, arch: "another" if op == CANDIDATE else here(op, arch))
    assert "have changed since they passed on sm_90" in verified.why_not_candidate(CANDIDATE, 90)
    assert verified.gate(90) == {}


def test_what_counts_as_verified(gpu, monkeypatch):
    gpu(["packing"])
    assert verified.verified("packing", 90)
    assert verified.verification("packing", 90)["device"] == "NVIDIA H200"
    assert "have not passed" in verified.why_not("packing", 80)
    assert "have not passed" in verified.why_not("linear", 90)
    monkeypatch.setattr(verified, "triton_minor", lambda: "3.99")
    assert "with Triton 3.99 (they have with Triton 3." in verified.why_not("packing", 90)
    monkeypatch.setattr(verified, "triton_minor", lambda: None)
    assert verified.gate(90) == dict.fromkeys(verified.folders(), "Triton is not installed")


def test_changed_sources_are_not_verified(gpu, monkeypatch):
    gpu(["packing"])
    monkeypatch.setattr(sources, "here", lambda op, arch: "another")
    assert not verified.verified("packing", 90)
    assert "have changed since they passed on sm_90 (NVIDIA H200, 2026-01-01)" in verified.gate(90)["packing"]


def test_an_amd_gpu_is_none_of_ours(gpu, monkeypatch):
    gpu(verified.folders())
    monkeypatch.setattr(torch.version, "hip", "7.0")  # its capability is (9, 0) too
    assert set(verified.gate(90)) == set(verified.folders())
