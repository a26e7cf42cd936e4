"""A step of pre-training on a pretended GPU: nothing in it waits for the device, and its procedures launch the same each time."""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from fake_cuda import DEVICE, Wait, fake_cuda
from small_corpus import write_corpus

from bertfast.train import optim, step
from bertfast.train.distributed import Ranks
from bertfast.train.pretrain import PretrainTask
from bertfast.train.pretrain_config import PretrainConfig
from bertfast.train.reduce import Reducer
from bertfast.train.settings import resolve
from bertfast.train.window import Window
from bertfast.triton import verified

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have a GPU")
OPTIONS = {
    "model.layers": 2,
    "model.hidden": 32,
    "model.heads": 2,
    "data.token_budget": 128,
    "data.max_seq_length": 64,
    "data.workers": 0,
    "train.steps": 9,
}
MICRO_BATCHES = 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpora") / "train")


def make(corpus, options):
    task = PretrainTask(resolve(PretrainConfig, flags=OPTIONS | {"corpus": str(corpus), "out": "run"} | options))
    loader = iter(task.loader(0, 1))
    return task, [next(loader) for _ in range(MICRO_BATCHES)]


@pytest.fixture(params=[False, True], ids=["torch", "kernels"])
def kernels(request):
    """Whether kernels run that no GPU has verified yet; the optimizers' are among them."""
    with verified.allow_unverified() if request.param else nullcontext():
        yield request.param


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train.precision": "bf16"},
        {"train.optimizer": "lamb"},
        {"train.gradient_checkpointing": True, "train.max_grad_norm": 0.0},
        {"data.nsp": False},
    ],
    ids=str,
)
def test_no_wait(corpus, options, kernels, monkeypatch):
    task, batches = make(corpus, options)
    if task.config.train.gradient_checkpointing:
        task.model.gradient_checkpointing_enable()
    squares = sum(step.squared_lengths(batch) for batch in batches)
    assert squares > 0
    # A pretended GPU has no numbers on the host either.
    monkeypatch.setattr(step, "squared_lengths", lambda batch: squares)
    launched: dict[str, list[Counter[str]]] = {}
    with fake_cuda() as gpu:
        with gpu.preparing():
            task.model.cuda()
            pinned = [batch.pin_memory() for batch in batches]
            optimizer = optim.build_optimizer(task.config.train, task.model)
            ranks, window = Ranks(0, 1, DEVICE), Window(sorted(batches[0].counts), DEVICE)
            one = step.Step(task, task.model, optimizer, task.config.train, ranks, window, MICRO_BATCHES)

        def counted(name):
            call = getattr(one, name)

            def count(*args):
                ops, kernels = gpu.ops.copy(), len(gpu.launches)
                call(*args)
                launched.setdefault(name, []).append(gpu.ops - ops + Counter(triton=len(gpu.launches) - kernels))
                if name == "judge":
                    assert all(p.grad.device == DEVICE for p in task.model.parameters())

            return count

        for name in ("prepare", "first", "further", "judge", "apply"):
            monkeypatch.setattr(one, name, counted(name))
        for _ in range(3):
            assert one.run(pinned, 1e-4, lambda: [False, True]) == [False, True]
        assert all(p.grad is None for p in task.model.parameters())
        with pytest.raises(Wait):
            one.read()
    counts = {name: len(calls) for name, calls in launched.items()}
    assert counts == {"prepare": 3, "first": 3, "further": 9, "judge": 3, "apply": 3}, (
        "the first goes on as a further one"
    )
    assert launched["prepare"][0] == Counter(copy_=1)
    # What may be captured is the same each time; in the first step the optimizer makes its state, and the norm its table of chunks.
    assert launched["first"][0] == launched["first"][1] == launched["first"][2]
    assert launched["further"][1] == launched["further"][2] == launched["further"][4]
    assert launched["judge"][1] == launched["judge"][2]
    assert launched["apply"][1] == launched["apply"][2]
    assert sum(launched["first"][0].values()) > 100, "forward and backward are in it"
    if kernels:
        assert launched["judge"][0]["triton"] == 2, "squares of all chunks, and their sum"
        lamb = options.get("train.optimizer") == "lamb"
        # Factors and the step; of LAMB factors, moments, the sums of each parameter, factors and the step. Beside them are copies
        # to the device: of the rate, and of the tables.
        assert launched["apply"][1]["triton"] == (5 if lamb else 2)
        assert sum(launched["apply"][1].values()) <= (10 if lamb else 5)


class Done:
    """In place of work under way, and of an event."""

    def __init__(self, *_, **__):
        self.waited = 0

    def wait(self):
        self.waited += 1

    def record(self):
        pass

    def synchronize(self):
        raise AssertionError("the host waits for a step that was just launched")


def test_ranks_exchange_without_a_wait(corpus, monkeypatch):
    task, batches = make(corpus, {"train.batches_per_step": 6})
    squares = sum(step.squared_lengths(batch) for batch in batches)
    monkeypatch.setattr(step, "squared_lengths", lambda batch: squares)
    reduced, works = [], []

    def all_reduce(tensor, async_op=False):
        reduced.append(tensor.numel())
        if async_op:
            works.append(Done())
            return works[-1]
        return None

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "broadcast", lambda tensor, source: None)
    monkeypatch.setattr(Reducer, "_check", lambda self, there: None)  # of the first step alone
    monkeypatch.setattr(torch.cuda, "Event", Done)
    with fake_cuda() as gpu:
        with gpu.preparing():
            task.model.cuda()
            pinned = [batch.pin_memory() for batch in batches]
            optimizer = optim.build_optimizer(task.config.train, task.model)
            ranks, window = Ranks(0, 2, DEVICE), Window(sorted(batches[0].counts), DEVICE)
            reducer = Reducer(task.model, ranks, 2**14)
            one = step.Step(
                task, task.model, optimizer, task.config.train, ranks, window, MICRO_BATCHES, lag=2, reducer=reducer
            )
        for _ in range(2):
            assert one.run(pinned, 1e-4, lambda: [True, True]) == [False, False]
    assert len(works) > 4
    assert all(work.waited == 1 for work in works)
    weights = sum(p.numel() for p in task.model.parameters())
    # Targets before the first backward, gradients after the last, the sums with the two flags.
    assert sum(reduced) == 2 * (2 + weights + 3 * 2 + 3 + 2)
