"""Who owns each (op, device): one list, so that a second registration or a kernel that went missing is noticed."""

import inspect

import pytest
import torch

import bertfast.ops  # noqa: F401  defines the ops
from bertfast import _ext, _library
from bertfast.triton import verified

# On a CPU linear_cross_entropy is Python over torch's GEMM (masked_lm_loss/chunked.py): registered like a kernel.
# Composites of GEMMs and owned ops: Python on every device, so no kernel of their own.
COMPOSITES = {
    *("linear_fwd", "linear_bwd", "linear_add_dx", "linear_dweight"),
    *("linear_gelu_fwd", "linear_gelu_bwd", "linear_gelu_infer", "linear_dgelu"),
}
# On a CPU torch's own optimizers run.
OPTIMIZER = {"gradient_norm", "adamw_step", "lamb_moments", "lamb_step"}


def owns(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"bertfast::{name}", key)


@pytest.mark.parametrize("name", _library.names())
def test_cpu_owner(name):
    if _ext.load() is None:
        pytest.skip(f"no C++ kernels: {_ext.why_absent()}")
    # FP8 is a GPU's; on a CPU its references say what it means.
    assert owns(name, "CPU") == (name not in COMPOSITES | OPTIMIZER and not name.startswith("fp8_"))


def test_cpu_owners_in_python():
    assert set(_library.owners("CPU")) == {"linear_cross_entropy_fwd", "linear_cross_entropy_bwd"}


@pytest.mark.parametrize("name", _library.names())
def test_reference_and_fake_exist(name):
    assert owns(name, "CompositeExplicitAutograd")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bertfast_reference::{name}", "CompositeExplicitAutograd")
    assert torch._library.simple_registry.singleton.find(f"bertfast::{name}").fake_impl.kernel is not None


@pytest.mark.parametrize("name", [n for n in _library.names() if n.endswith("_fwd")])
def test_forward_ops_are_differentiable_or_covered(name):
    # Called inside linear_gelu, whose formula covers it, or where nothing needs gradients.
    assert owns(name, "Autograd") or name in ("bias_gelu_fwd", "linear_gelu_infer") or name.startswith("fp8_")


@pytest.mark.parametrize("name", _library.names())
def test_cuda_owner_is_triton(name):
    # Without one the reference would run on a GPU and nobody would notice.
    assert owns(name, "CUDA")
    assert _library.owners("CUDA")[name].startswith("bertfast.ops.")


def test_verified_kernels_exist():
    for arch, ops in verified._table().items():
        assert int(arch) >= 80
        assert set(ops) <= {*verified.folders(), *verified.candidates()}
        for minors in ops.values():
            assert all({"date", "device", "commit", "sources"} <= set(entry) for entry in minors.values())


def test_candidates():
    linear, gelu = {"linear.ending_sums", "linear.gluon", "linear.cutlass"}, {"cheap_erf", "gluon", "cutlass"}
    assert set(verified.candidates()) == linear | {f"linear_gelu.{module}" for module in gelu} | {"fp8_linear.gluon"}


def assert_takes_what_the_schema_says(function, name):
    parameters = inspect.signature(function).parameters.values()
    taken = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]  # options of a launcher that no op has
    assert taken == [argument.name for argument in _library.op(name)._schema.arguments], function


@pytest.mark.parametrize("name", _library.owners("CUDA"))
def test_cuda_owner_takes_what_the_schema_says(name):
    pytest.importorskip("triton")
    assert owns(name, "CUDA")
    assert_takes_what_the_schema_says(_library.owner(name, "CUDA"), name)


@pytest.mark.parametrize("name", _library.candidates())
def test_candidate_takes_what_the_schema_says(name):
    pytest.importorskip("triton")
    for path in _library.candidates()[name]:
        assert_takes_what_the_schema_says(_library.candidate_function(name, _library.candidate_of(path)), name)
        assert path != _library.owners("CUDA")[name]
