"""Launches made again: what is noted of a launch, when it may be repeated, and what the kernel then gets."""

import threading

import pytest
import torch

pytest.importorskip("triton")

from fake_kernel import FakeKernel

from bertfast.triton import counters, launch, repeats


def launched(x, bias, y, eps, grid=(3,)):
    """A kernel and its launch, noted."""
    kernel = FakeKernel()
    for _ in range(2):  # the first compiles
        with repeats.noting() as made:
            launch.launch(kernel, grid, (x, bias, y, 48, eps, 1.0), {"BLOCK": 64}, warps=8)
    return kernel, made


def test_a_launch_with_others_in_some_places(on_gpu):
    x, bias, y = torch.zeros(64), torch.zeros(64), torch.zeros(64)
    kernel, made = launched(x, bias, y, 0.25)
    assert (kernel.through_triton, kernel.direct) == (1, 1)
    again = repeats.repeat(made, (bias, None, eps := made[0].args[4]), (x, y))
    assert eps == 0.25
    other = torch.ones(64)
    again(other, None, 0.5)
    assert (kernel.through_triton, kernel.direct) == (1, 2)
    assert kernel.arguments[0] is x
    assert kernel.arguments[1] is other
    assert kernel.arguments[2] is y
    assert kernel.arguments[3:] == (48, 0.5, 1.0, 64)


def test_without_triton_s_private_convention_it_goes_through_triton(on_gpu, monkeypatch):
    monkeypatch.setattr(launch, "RUNS_DIRECTLY", False)
    x = torch.zeros(64)
    kernel, made = launched(x, None, x, 0.25)
    repeats.repeat(made, (), (x,))()
    assert (kernel.through_triton, kernel.direct) == (3, 0)
    assert kernel.options == {"BLOCK": 64, "num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}


def test_a_kernel_with_scratch_memory_asks_for_it_each_time(on_gpu, monkeypatch):
    x = torch.zeros(64)
    kernel = FakeKernel()
    kernel.metadata.global_scratch_size = 128
    asked = []
    monkeypatch.setattr(launch.triton, "set_allocator", asked.append)
    with repeats.noting() as made:
        launch.launch(kernel, (3,), (x, 0.5), {})
    again = repeats.repeat(made, (), (x,))
    again()
    again()
    assert len(asked) == 3
    assert kernel.direct == 2


def test_an_empty_grid_is_repeated_as_nothing(on_gpu):
    x = torch.zeros(64)
    kernel, made = launched(x, None, x, 0.25, grid=(0,))
    repeats.repeat(made, (), (x,))()
    assert (kernel.through_triton, kernel.direct) == (0, 0)


def test_while_recording(monkeypatch):
    x = torch.zeros(64)

    class Kernel:
        arg_names = ("x_ptr", "n")
        params = ()

    with launch.recording(90) as launches:
        with repeats.noting() as made:
            launch.launch(Kernel, (3,), (x, 48), {})
        repeats.repeat(made, (x,), ())(torch.zeros(64).bfloat16())
    assert [found.signature[0] for found in launches] == [("x_ptr", "*fp32"), ("x_ptr", "*bf16")]


@pytest.mark.parametrize(
    "case", ["no launch", "a copy in its place", "a tensor of the launcher's own", "in two places"]
)
def test_what_is_more_than_launches_is_not_repeated(on_gpu, case):
    x, y, w = torch.zeros(64), torch.zeros(64), torch.zeros(64)
    _, made = launched(x, w, y, 0.25)
    assert repeats.repeat(made, (w,), (x, y)) is not None
    cases = {
        "no launch": ([], (w,), (x, y)),
        "a copy in its place": (made, (w.clone(),), (x, y, w)),
        "a tensor of the launcher's own": (made, (w,), (x,)),
        "in two places": (launched(x, w, w, 0.25)[1], (w,), (x, y)),
    }
    assert repeats.repeat(*cases[case]) is None


def test_sums_that_end_in_their_own_launch_are_repeated_on_their_counters_alone(on_gpu, monkeypatch):
    """Partial sums and counters are in one launch only; the counters must still be those of the launches of now."""
    monkeypatch.setattr(counters, "_streams", {})
    x, out = torch.zeros(64), torch.zeros(8)
    counting, partial, copy = counters.of(x, 1), torch.zeros(64), torch.zeros(64)

    def noted(*args):
        kernel = FakeKernel()
        with repeats.noting() as made:
            launch.launch(kernel, (3,), args, {})
        return kernel, made

    kernel, made = noted(x, partial, counting, out, 48)
    again = repeats.repeat(made, (x, out), (), scratch=1)
    assert again.may_run()
    other, sums = torch.ones(64), torch.zeros(8)
    again(other, sums)
    assert kernel.arguments[0] is other
    assert kernel.arguments[1] is partial
    assert kernel.arguments[2] is counting
    assert kernel.arguments[3] is sums
    assert repeats.repeat(made, (x, out), ()) is None  # a launcher that makes nothing for itself, as it says
    assert repeats.repeat(noted(x, partial, counting, out, copy)[1], (x, out), (), scratch=1) is None
    assert repeats.repeat(noted(x, partial, None, out, 48)[1], (x, out), (), scratch=1) is None  # nothing ends in it
    monkeypatch.setattr(counters, "_streams", {})  # as on another stream, or in a capture
    assert not again.may_run()


def test_a_thread_notes_its_own_launches(on_gpu):
    kernel, x = FakeKernel(), torch.zeros(64)

    def elsewhere():
        launch.launch(kernel, (3,), (x, 1), {})

    with repeats.noting() as made:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert made == []
        launch.launch(kernel, (3,), (x, 2), {})
    assert [found.args for found in made] == [(x, 2)]
    assert repeats.noted == {}
