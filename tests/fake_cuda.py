"""Functions on CUDA tensors without a GPU: tensors are fake, launches are recorded, and whatever waits for the device raises.

    model = BertModel(config).eval()
    with fake_cuda() as gpu:
        with gpu.preparing():
            model.cuda()
        with torch.no_grad():
            model.encode(tokens)
    gpu.launches, gpu.ops

What captured code, or code that must not wait, may not do is copy to the host, branch on numbers, ask for a shape that depends on
them, synchronise, or copy to the device from memory that is not pinned. What a fake tensor cannot show is whether two streams race.
"""

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_backward
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)
_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
_CUDA, _META = 1, 14  # c10::DeviceType
_READS_NUMBERS = (
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "bincount",
)
_NO_KERNEL = (
    "empty",
    "new_empty",
    "lift_fresh",
    "detach",
    "alias",
    "_unsafe_view",
    "_reshape_alias",
    "set_",
    "is_pinned",
)

_NO_FAKE = ("_fused_adamw_",)  # in place, and torch has none that takes a rate on the device


class Wait(AssertionError):
    """Code waits for the device."""


class FakeGpu(TorchDispatchMode):
    """What happened on a GPU that is not there.

    Attributes:
        ops: how often each op ran that launches kernels, by name: torch's, and bertfast's where they went through the dispatcher.
        launches: Triton kernels that were launched, as `triton.launch.recording` collects them.
        checks: how often the mailbox of bad ids was looked at.
    """

    def __init__(self, launches: list):
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.launches = launches
        self.checks = 0
        self._preparing = False
        self._pinned: list[torch.Tensor] = []

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Models and inputs are made here: nothing is refused, and nothing counted."""
        before, self._preparing = self._preparing, True
        counted, launched = self.ops.copy(), len(self.launches)
        try:
            yield
        finally:
            self._preparing, self.ops = before, counted
            del self.launches[launched:]

    def kernels(self) -> int:
        """Launches of Triton kernels, and ops, each of which launches one at least."""
        return len(self.launches) + sum(self.ops.values())

    def refuse(self, what: str) -> None:
        if not self._preparing:
            raise Wait(f"{what} waits for the device")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if isinstance(device := kwargs.get("device"), torch.device) and device.type == "meta":
            kwargs["device"] = DEVICE  # what torch's stand-in for a device guard makes of "cuda" without a number
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        on_gpu = any(t.device.type == "cuda" for t in tensors)
        if on_gpu and name in _READS_NUMBERS:
            self.refuse(name)
        if name in _NO_FAKE:
            self.ops[name] += not self._preparing
            return None
        if name == "_pin_memory":
            return self._pin(torch.empty_like(args[0]))
        if name in ("_to_copy", "copy_", "_foreach_copy_", "lift_fresh"):
            self._copies(name, args, kwargs)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_") and on_gpu:
            if any(t is not None and t.device.type == "cpu" and t.dim() > 0 for t in args[1]):
                self.refuse("indexing with a tensor on the host")
            if any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]) and name == "index":
                self.refuse("indexing with a mask")
        pinned = bool(kwargs.pop("pin_memory", False))
        try:
            found = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            if on_gpu:
                self.refuse(name)
            raise error
        results = [t for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, torch.Tensor)]
        on_gpu |= any(t.device.type == "cuda" for t in results)
        launches = func.namespace in ("aten", "bertfast") and not func.is_view and not name.startswith(_NO_KERNEL)
        if on_gpu and launches and not self._preparing:
            self.ops[name] += 1
        return self._pin(found) if pinned else found

    def _pin(self, t: torch.Tensor) -> torch.Tensor:
        self._pinned.append(t)
        return t

    def _is_pinned(self, t: torch.Tensor) -> bool:
        storage = t.untyped_storage()._cdata
        return any(t is pinned or storage == pinned.untyped_storage()._cdata for pinned in self._pinned)

    def _copies(self, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        if name == "lift_fresh":  # of torch.tensor(data, device="cuda")
            pairs = [(DEVICE, args[0])] if args[0].device.type == "cuda" else []
            sources = [(device, None) for device, _ in pairs]
        elif name == "_to_copy":
            sources = [(kwargs.get("device") or args[0].device, args[0])]
        elif name == "copy_":
            sources = [(args[0].device, args[1])]
        else:
            sources = [(target.device, source) for target, source in zip(args[0], args[1], strict=True)]
        positional = args[2:3] if name in ("copy_", "_foreach_copy_") else ()
        ahead = bool(kwargs.get("non_blocking", positional[0] if positional else False))
        for device, source in sources:
            if source is None:
                self.refuse("a tensor made of the host's numbers")
            elif source.device.type == "cuda" and torch.device(device).type != "cuda":
                if not (name == "copy_" and ahead and self._is_pinned(args[0])):
                    self.refuse("a copy to the host")
            elif (
                source.device.type == "cpu"
                and torch.device(device).type == "cuda"
                and source.dim() > 0
                and not (ahead and self._is_pinned(source))
            ):
                self.refuse("a copy from memory that is not pinned, or without non_blocking,")


@contextmanager
def _device_guard() -> Iterator[None]:
    """Lets a torch without CUDA index and move fake CUDA tensors: they ask for a guard of the current device, and meta's does."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    try:
        guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, _REGISTRY)
    except ValueError:
        pytest.skip(f"torch {torch.__version__} keeps its device guards elsewhere")
    before = guards[_CUDA]
    if before is None:
        guards[_CUDA] = guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


@contextmanager
def fake_cuda(arch: int = 90) -> Iterator[FakeGpu]:
    """A pretended GPU of compute capability `arch`; not for several threads."""
    from bertfast.ops.embedding_sum_norm import triton as embedding_launcher
    from bertfast.triton import launch, mailbox

    with pytest.MonkeyPatch.context() as patch, _device_guard(), launch.recording(arch) as launches:
        gpu = FakeGpu(launches)

        def check(device: torch.device) -> None:
            gpu.checks += 1

        def synchronize(*_: Any) -> None:
            gpu.refuse("synchronize")

        patch.setattr(launch, "INTERPRETED", False)
        patch.setattr(embedding_launcher, "INTERPRETED", False)  # its own name, of when it was imported
        patch.setattr(mailbox, "box", lambda device: torch.empty(mailbox.SLOTS, dtype=torch.int64, device=device))
        patch.setattr(mailbox, "check", check)
        patch.setattr(torch.cuda, "synchronize", synchronize)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: divmod(arch, 10))
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)  # or autocast does nothing
        patch.setattr(torch.Tensor, "backward", fake_backward.backward)
        with FakeTensorMode(allow_non_fake_inputs=True), gpu:
            yield gpu
