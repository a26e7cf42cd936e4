"""Every private name of torch that bertfast uses, each with what happens where a torch has it no more: slower, never a crash.

`NAMES` lists them for `tests/test_torch_names.py`, which takes each away and looks at the numbers. A name is looked up once, at
import, where the call costs less than the look-up.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Private name -> what bertfast does without it.
NAMES = {
    "_C._functorch.peek_interpreter_stack": "every call counts as one under a functorch transform: torch's own functions",
    "_C._len_torch_dispatch_stack": "every call counts as one that a dispatch mode watches: layers run one by one",
    "_C._storage_Use_Count": "a tied table's gradient is copied rather than added to in place",
    "Tensor._use_count": "a tied table's gradient is copied rather than added to in place",
    "_C._dispatch_has_kernel_for_dispatch_key": "`bertfast doctor` says that the owner is unknown",
    "_C._cuda_getCurrentRawStream": "the stream is asked for through torch.cuda, a few microseconds a launch",
    "_C._cuda_endAllocateToPool": "a CUDA graph whose capture broke off leaves torch's allocator as torch left it",
    "_C._cuda_releasePool": "a CUDA graph whose capture broke off leaves torch's allocator as torch left it",
    "_C._autograd._top_saved_tensors_default_hooks": "training calls in a user's loop are not captured",
    "_C._current_graph_task_id": "training calls in a user's loop are not captured",
    "nn.modules.module._has_any_global_hook": "every module counts as one with hooks: it is called as a module",
    "utils._pytree.register_dataclass": "torch.export's function of that name, whose import is slow",
    "_foreach_*": "LAMB updates its parameters, and captured calls copy their inputs, one by one",
    "_scaled_mm": "products of FP8 matrices are made in float32",
    "ops.mkldnn._linear_pointwise": "weights are not reordered ahead; products are F.linear's",
    "ops.mkldnn._reorder_linear_weight": "weights are not reordered ahead; products are F.linear's",
    "ops.mkldnn._is_mkldnn_bf16_supported": "bfloat16 weights are not reordered ahead",
}


def _find(path: str) -> Any:
    """`torch.PATH`, or None where a part of the path is missing."""
    owner: Any = torch
    for part in path.split("."):
        try:
            owner = getattr(owner, part)
        except (AttributeError, RuntimeError):  # torch.ops raises either
            return None
    return owner


_peek_interpreter_stack = _find("_C._functorch.peek_interpreter_stack")
_len_torch_dispatch_stack = _find("_C._len_torch_dispatch_stack")
_storage_use_count = _find("_C._storage_Use_Count")
_top_saved_hooks = _find("_C._autograd._top_saved_tensors_default_hooks")
_graph_task = _find("_C._current_graph_task_id")
_scaled = _find("_scaled_mm")
_has_any_global_hook = _find("nn.modules.module._has_any_global_hook")


def is_transformed() -> bool:
    """Whether a functorch transform (vmap, grad, ...) is active; True where torch cannot say."""
    return _peek_interpreter_stack is None or _peek_interpreter_stack() is not None


def is_watched() -> bool:
    """Whether a TorchDispatchMode is active; True where torch cannot say."""
    return _len_torch_dispatch_stack is None or _len_torch_dispatch_stack() > 0


def saves_elsewhere() -> bool:
    """Whether hooks take what is saved for backward, as checkpointing and offloading do; True where torch cannot say."""
    if _top_saved_hooks is None:
        return True
    try:
        return _top_saved_hooks(True) is not None  # True: hooks of a tracer count as well
    except TypeError:  # another signature is as good as none
        return True


def in_backward() -> bool:
    """Whether this thread runs a backward now; True where torch cannot say."""
    return _graph_task is None or _graph_task() != -1


def has_global_hooks() -> bool:
    """Whether hooks are registered for all modules; True where torch cannot say."""
    return _has_any_global_hook is None or _has_any_global_hook()


def unsharded_class(kind: type) -> type:
    """What a class was before `fully_shard` put another one, made for it, in the place of its module's; itself where it did not."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # which is slow to import
    if fsdp is None or not issubclass(kind, fsdp.FSDPModule) or kind.__bases__[:1] != (fsdp.FSDPModule,):
        return kind
    return kind.__bases__[1]


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on this very module, whose parameters are whole only while it is called."""
    return unsharded_class(type(module)) is not type(module)


def is_sharding_hook(hook: Any) -> bool:
    """Whether a module's hook is one of those by which `fully_shard` gathers parameters and shards them again."""
    return type(getattr(hook, "__self__", None)).__module__.startswith("torch.distributed.fsdp.")


def uses(tensor: Tensor) -> tuple[int, int] | None:
    """Counts of references to the tensor behind a Python object, and to its memory; None where torch cannot say."""
    count = getattr(tensor, "_use_count", None)
    if count is None or _storage_use_count is None:
        return None
    try:
        return count(), _storage_use_count(tensor.untyped_storage()._cdata)
    except (AttributeError, TypeError):  # another signature is as good as none
        return None


def has_kernel(op: str, key: str) -> bool | None:
    """Whether a kernel of `op`, such as "bertfast::unpad", is registered for a dispatch key; None where torch cannot say."""
    function = _find("_C._dispatch_has_kernel_for_dispatch_key")
    return None if function is None else function(op, key)


def current_stream(device: int) -> int:
    """The handle of the current CUDA stream of a device. Looked up late: builds without CUDA have no such name."""
    function = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return torch.cuda.current_stream(device).cuda_stream if function is None else function(device)


def end_capture(device: int, pool: Any) -> None:
    """Let the allocator of a GPU know that a capture into a pool of graphs is over, where torch did not when it broke off."""
    end, release = _find("_C._cuda_endAllocateToPool"), _find("_C._cuda_releasePool")
    if end is None or release is None:
        return
    try:
        end(device, pool)
    except RuntimeError:  # none is under way: torch has ended it, or never began
        return
    release(device, pool)  # the capture's share, which a graph that was made would give back


def _one_by_one(name: str) -> Callable[..., list[Tensor]]:
    method = getattr(Tensor, name)

    def call(tensors: Sequence[Tensor], *args: Any, **options: Any) -> list[Tensor]:
        columns = [arg if isinstance(arg, list | tuple) else [arg] * len(tensors) for arg in args]
        return [method(tensor, *row, **options) for tensor, *row in zip(tensors, *columns, strict=True)]

    return call


def foreach(name: str) -> Callable[..., Any]:
    """`torch._foreach_NAME`, or the method NAME called on one tensor after another. Lists are zipped, numbers are for all."""
    together = getattr(torch, f"_foreach_{name}", None)
    return _one_by_one(name) if together is None else together


def register_dataclass(kind: type) -> None:
    """Let torch look inside a dataclass of tensors, as FSDP's hooks must."""
    pytree = _find("utils._pytree")
    if not hasattr(pytree, "register_dataclass"):
        import torch.export as pytree  # public, and slow to import
    pytree.register_dataclass(kind)


class OneDnn(NamedTuple):
    """oneDNN's entry points: the product with a reordered weight, and the reordering."""

    linear_pointwise: Callable[..., Tensor]
    reorder_linear_weight: Callable[..., Tensor]


def onednn() -> OneDnn | None:
    """The entry points; None where oneDNN is switched off or torch has them no more."""
    if not torch.backends.mkldnn.is_available():
        return None
    functions = _find("ops.mkldnn._linear_pointwise"), _find("ops.mkldnn._reorder_linear_weight")
    return None if None in functions else OneDnn(*functions)


def onednn_takes_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor; False where torch cannot say."""
    function = _find("ops.mkldnn._is_mkldnn_bf16_supported")
    return function is not None and bool(function())


def scaled_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None, dtype: torch.dtype, fast: bool
) -> Tensor:
    """a [M, K] scale_a times b [K, N] scale_b, plus bias, of FP8 matrices, b column-major: [M, N] in `dtype`.

    scales: float32, [] both, or [M, 1] and [1, N]. fast: sums in fewer bits.
    """
    if _scaled is None:
        y = (a.float() * scale_a) @ (b.float() * scale_b)
        return (y if bias is None else y + bias).to(dtype)
    return _scaled(a, b, scale_a, scale_b, bias=bias, out_dtype=dtype, use_fast_accum=fast)
