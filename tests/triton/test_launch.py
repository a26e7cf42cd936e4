"""launch and mailbox: what is recorded, when a cached kernel may be reused, and how a reported place becomes an error."""

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from fake_kernel import FakeKernel

from bertfast.triton import launch, mailbox


@triton.jit(do_not_specialize=["rows"])
def copy_kernel(x_ptr, bias_ptr, y_ptr, rows, width, scale, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(y_ptr + place, tl.load(x_ptr + place, mask=place < rows) * scale, mask=place < rows)


@triton.jit
def report_kernel(box_ptr, place, bad):
    mailbox.report(box_ptr, 15, place, bad != 0)


def test_a_variant_is_compiled_once(on_gpu):
    kernel, x = FakeKernel(), torch.zeros(64)
    for _ in range(3):
        launch.launch(kernel, (3,), (x, None, 48, 0.5), {"BLOCK": 64})
    assert (kernel.through_triton, kernel.direct) == (1, 2)
    assert kernel.arguments == (x, None, 48, 0.5, 64)


@pytest.mark.parametrize(
    ("args", "constants", "options"),
    [
        ((torch.zeros(64).bfloat16(), None, 48, 0.5), {"BLOCK": 64}, {}),
        ((torch.zeros(65)[1:], None, 48, 0.5), {"BLOCK": 64}, {}),  # not 16-byte aligned
        ((torch.zeros(64), torch.zeros(4), 48, 0.5), {"BLOCK": 64}, {}),
        ((torch.zeros(64), None, 47, 0.5), {"BLOCK": 64}, {}),  # not a multiple of 16
        ((torch.zeros(64), None, 1, 0.5), {"BLOCK": 64}, {}),  # Triton folds a 1
        ((torch.zeros(64), None, 2**32, 0.5), {"BLOCK": 64}, {}),  # 64 bits wide
        ((torch.zeros(64), None, 48, 0.5), {"BLOCK": 32}, {}),
        ((torch.zeros(64), None, 48, 0.5), {"BLOCK": 64}, {"warps": 8}),
        ((torch.zeros(64), None, 48, 0.5), {"BLOCK": 64}, {"stages": 3}),
    ],
)
def test_what_triton_specialises_on_compiles_again(on_gpu, args, constants, options):
    kernel = FakeKernel()
    launch.launch(kernel, (3,), (torch.zeros(64), None, 48, 0.5), {"BLOCK": 64})
    launch.launch(kernel, (3,), args, constants, **options)
    assert (kernel.through_triton, kernel.direct) == (2, 0)


class OnDevice(torch.Tensor):
    """A tensor that says it is on another GPU."""

    @property
    def device(self):
        return torch.device("cuda", 1)


@pytest.mark.parametrize("first", [torch.zeros(64), torch.zeros(64).as_subclass(OnDevice)])
def test_a_launch_goes_to_the_device_of_its_first_tensor_there(on_gpu, monkeypatch, first):
    """A mailbox comes first where it is all that a kernel has, and it lies in host memory: such a launch recursed for ever."""
    switched = []

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            switched.append(self.index)

        def __exit__(self, *problem):
            pass

    monkeypatch.setattr(torch.cuda, "device", Device)
    there = torch.zeros(64).as_subclass(OnDevice)
    kernel = FakeKernel()
    for _ in range(2):
        launch.launch(kernel, (3,), (first, None, 48, there), {"BLOCK": 64})
    assert switched == [1, 1]
    assert (kernel.through_triton, kernel.direct) == (1, 1)


def test_tensors_in_host_memory_alone_go_to_the_current_device(on_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", None)  # nothing is switched
    kernel = FakeKernel()
    launch.launch(kernel, (3,), (torch.zeros(16, dtype=torch.int64), 41, 1), {})
    assert kernel.through_triton == 1


def test_fusing_of_products_and_sums_is_said(on_gpu):
    kernel = FakeKernel()
    launch.launch(kernel, (3,), (torch.zeros(64),), {"BLOCK": 64}, warps=8, stages=3)
    assert kernel.options == {"BLOCK": 64, "num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}


def test_an_empty_grid_launches_nothing(on_gpu):
    kernel = FakeKernel()
    launch.launch(kernel, (0, 4), (torch.zeros(1),), {})
    assert kernel.through_triton == 0


def test_recording():
    x = torch.empty(64, dtype=torch.bfloat16, device="meta")
    with launch.recording(100) as launches:
        assert launch.architecture(x.device) == 100
        launch.launch(copy_kernel, (2,), (x, None, x, 32, 48, 0.5), {"HAS_BIAS": False, "BLOCK": 64}, warps=8)
    (found,) = launches
    assert found.signature == (
        ("x_ptr", "*bf16"),
        ("y_ptr", "*bf16"),
        ("rows", "i32"),
        ("width", "i32"),
        ("scale", "fp32"),
    )
    assert found.constants == (("bias_ptr", None), ("HAS_BIAS", False), ("BLOCK", 64))
    assert (found.grid, found.warps, found.stages) == ((2,), 8, 2)


def test_mailbox_raises_once(monkeypatch, triton_ops):
    monkeypatch.setattr(mailbox, "_boxes", {})
    monkeypatch.setattr(mailbox, "_meanings", dict(mailbox._meanings))
    mailbox.meaning(15, IndexError, "ids: the one at {place} is bad")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    box = mailbox.box(device)
    mailbox.check(device)
    for bad in (0, 1):
        launch.launch(report_kernel, (1,), (box, 41, bad), {})
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if bad:
            with pytest.raises(IndexError, match="the one at 41 is bad"):
                mailbox.check(device)
        mailbox.check(device)
    with pytest.raises(RuntimeError, match="is taken"):
        mailbox.meaning(15, ValueError, "")
