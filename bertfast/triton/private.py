"""Every name of Triton that is not its public API, in one place, each with what happens where a release no longer has it.

- `compiled.run`, `compiled.metadata`, for launching a compiled kernel without Triton's binding of arguments. Where the release is
  not one of DIRECT_MINORS, `runs_directly` is false and `kernel[grid](...)` launches.
- Gluon (`triton.experimental`): layouts of shared memory, tensor descriptors, the source type of its kernels. Where it is gone or
  has changed, kernels written in it fail at their first call; only candidates are.
- `kernel.arg_names`, `kernel.params`, for recording launches without a GPU; `ASTSource`, `GPUTarget` and the bundled cuobjdump and
  nvdisasm, for compiling ahead of time; `InterpreterBuilder.create_dot`, `.create_atomic_rmw`, `.create_fp_to_fp`, for tests in the
  interpreter. Where one is gone: an error that names it and the releases that have it. Running on a GPU needs none of them.
"""

import importlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

# `compiled.run(x, y, z, stream, function, packed_metadata, launch_metadata, enter_hook, exit_hook, *args)`: the releases whose own
# launcher was seen to make this very call (tests/triton/test_private.py), arguments in the order of the kernel's parameters. The
# three in the middle are for profilers' hooks, and None is no hook. Only 3.6 has launched on a GPU so.
DIRECT_MINORS = frozenset(("3.6", "3.7", "3.8", "3.9"))
TESTED = "3.6 to 3.9"
_DTYPES = {torch.float8_e4m3fn: "float8e4nv", torch.float8_e5m2: "float8e5"}


def minor_of(release: str) -> str:
    """ "3.6" of "3.6.0" or "3.6.0+git1234"."""
    return ".".join(release.split("+")[0].split(".")[:2])


def minor() -> str:
    """Triton's installed minor release, such as "3.6"."""
    return minor_of(triton.__version__)


def runs_directly(release: str | None = None) -> bool:
    """Whether compiled kernels of this Triton may be called by its private convention."""
    return (minor() if release is None else minor_of(release)) in DIRECT_MINORS


def run(compiled: Any, grid: tuple[int, int, int], stream: int, args: tuple) -> None:
    """Launch a kernel that `kernel[grid](...)` compiled; only where `runs_directly`."""
    compiled.run(*grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *args)


def bound(compiled: Any, grid: tuple[int, int, int], stream: int) -> Callable[..., None]:
    """`run` as a function of the arguments alone."""
    return partial(compiled.run, *grid, stream, compiled.function, compiled.packed_metadata, None, None, None)


def scratch_bytes(compiled: Any) -> int:
    """Device memory that a launch of this kernel takes from the allocator; only where `runs_directly`."""
    return compiled.metadata.global_scratch_size


def _unknown(name: str) -> RuntimeError:
    return RuntimeError(
        f"Triton {triton.__version__} has no {name}, which compiling and interpreting kernels without a GPU needs: use "
        f"Triton {TESTED} for that. Running on a GPU does not need it"
    )


def parameter_names(kernel: Any) -> list[str]:
    """A jitted kernel's parameters in order.

    Raises:
        RuntimeError: where this Triton keeps them elsewhere.
    """
    try:
        return list(kernel.arg_names)
    except AttributeError as problem:
        raise _unknown("JITFunction.arg_names") from problem


def unspecialised(kernel: Any) -> set[str]:
    """Integer parameters at whose divisibility the kernel asks Triton not to look. The interpreter's kernels do not know."""
    return {p.name for p in getattr(kernel, "params", ()) if p.do_not_specialize or p.do_not_specialize_on_alignment}


def source(kernel: Any, signature: dict[str, str], constants: dict[str, Any], attributes: dict) -> Any:
    """What `triton.compile` takes for a kernel with these argument types."""
    name = "triton.experimental.gluon._runtime.GluonASTSource" if is_gluon(kernel) else "triton.compiler.ASTSource"
    module, _, kind = name.rpartition(".")
    try:
        make = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as problem:
        raise _unknown(name) from problem
    return make(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def is_gluon(kernel: Any) -> bool:
    """Whether a kernel is written in Gluon, Triton's experimental language of layouts and barriers."""
    return bool(getattr(kernel, "is_gluon", bool)())


@cache
def _layout(dtype: torch.dtype, block: tuple[int, int]) -> Any:
    """How shared memory holds a block that a bulk tensor copy brings, [rows, columns]."""
    try:
        from triton.experimental.gluon import language
    except ImportError as problem:
        raise _unknown("triton.experimental.gluon") from problem
    return language.NVMMASharedLayout.get_default_for(list(block), triton_dtype(dtype))


def triton_dtype(dtype: torch.dtype) -> Any:
    """torch's dtype as the one that kernels are written with."""
    return getattr(triton.language, _DTYPES.get(dtype) or str(dtype).removeprefix("torch."))


def descriptor(matrix: Tensor, block: tuple[int, int]) -> Any:
    """What a Gluon kernel copies blocks [rows, columns] of a matrix by; its rows are contiguous."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor.from_tensor(matrix, list(block), _layout(matrix.dtype, block))


def descriptor_type(name: str, dtype: torch.dtype, block: tuple[int, int]) -> str:
    """The type of such a descriptor in a kernel's signature; `name` is the dtype's, such as "bf16"."""
    return f"tensordesc<{name}{list(block)},{_layout(dtype, block)!r}>"


def target(arch: int) -> Any:
    """`arch`, such as 90, as what `triton.compile` compiles for."""
    try:
        from triton.backends.compiler import GPUTarget
    except ImportError as problem:
        raise _unknown("triton.backends.compiler.GPUTarget") from problem
    return GPUTarget("cuda", arch, 32)


def tool(name: str) -> Path:
    """A program of CUDA's that Triton brings, such as cuobjdump."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise _unknown(f"bundled {name}")
    return path


def interpreter_builder() -> Any:
    """The class whose methods the interpreter calls for each operation of a kernel."""
    from triton.runtime import interpreter

    builder = getattr(interpreter, "InterpreterBuilder", None)
    for name in ("create_dot", "create_atomic_rmw", "create_fp_to_fp"):
        if not hasattr(builder, name):
            raise _unknown(f"InterpreterBuilder.{name}")
    return builder
