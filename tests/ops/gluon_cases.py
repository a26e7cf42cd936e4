"""What the tests of candidates with products in Gluon share."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from bertfast.ops.linear import gluon_launch
from bertfast.triton import launch, tables

WIDTHS = [128, 256]  # columns of a tile
ON_GPU = torch.cuda.is_available()
runs_kernels = pytest.mark.skipif(
    ON_GPU and torch.cuda.get_device_capability() != (9, 0), reason="the kernel is for sm_90 alone"
)


def at_width(found: tables.Tables, width: int):
    """Every table's tile with so many columns, and so few stages that the interpreter's small products use each several times."""
    narrow = {"n": width, "stages": 3 if ON_GPU else 2}
    return tables.override({entry: {**entry.tile, **narrow} for entry in found.entries})


def refused(*args):
    raise AssertionError("the owner was asked")


def takes_all(patch: pytest.MonkeyPatch, module, **owners: tuple[str, ...]) -> None:
    """Make a candidate's launchers run their kernel on results of any size, and fail where they hand over to their owner."""
    patch.setattr(gluon_launch, "LEAST_FILLED", 0.0)
    for owner, names in owners.items():
        for name in names:
            patch.setattr(getattr(module, owner), name, refused)


def product_launches(function, *args, arch: int = 90) -> int:
    """How often the product kernel is launched by a call on tensors of these forms on `arch`."""
    with launch.recording(arch) as launches:
        function(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args))
    return sum(one.kernel.__name__ == "product_kernel" for one in launches)
