"""bertfast's own encoder, captured: by the stand-in on a CPU, by CUDA where there is a GPU ("triton", which `make gpu` selects).

On a GPU this is what says that graphs replay, that pools, streams and broken captures behave as they were read about.
"""

import copy
import threading
from contextlib import nullcontext

import pytest
import torch
from graph_cases import FIRST, packed, standing_in, tokens_of

from bertfast import graphs
from bertfast.graphs import Limits
from bertfast.graphs import backend as backends
from bertfast.models import BertConfig, BertModel
from bertfast.testing import assert_within_budget, rms_error
from bertfast.triton import verified

CONFIG = BertConfig(
    vocab_size=50, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
    max_position_embeddings=256,
)  # fmt: skip


@pytest.fixture(params=["stand_in", "triton"])
def device(request):
    if request.param == "triton" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    name = "cpu" if request.param == "stand_in" else "cuda"
    with standing_in() if name == "cpu" else verified.allow_unverified(), torch.no_grad():
        yield torch.device(name)


class Subject:
    """The encoder on a device, and the same in float64 on a CPU."""

    def __init__(self, device: torch.device):
        torch.manual_seed(3)
        self.exact = BertModel(CONFIG).eval().double()
        self.model = copy.deepcopy(self.exact).float().to(device)
        # On a GPU it captures for itself, which is not what is looked at here.
        self.model.graph_limits = Limits(max_graphs=0)
        self.device = device
        self.waits = False

    def rows(self, tokens, read):
        if self.waits:
            tokens.input_ids.sum().item()
        return self.model.encode(tokens, read)[0]

    def run(self, tokens, **options):
        weights = list(self.model.parameters())
        return graphs.run(
            self.model, self.rows, tokens, None, weights=lambda: weights, key=None, finish=torch.clone, **options
        )

    def check(self, tokens, outcome):
        """Errors of two matrix products of other shapes: the root mean square is judged."""
        oracle = self.exact.encode(on(tokens, torch.device("cpu")))[0]
        eager = self.rows(tokens, None)
        assert_within_budget(outcome.result.cpu(), eager.cpu(), oracle, measure=rms_error)


def on(tokens, device):
    ids, positions, bounds = (t.to(device) for t in (tokens.input_ids, tokens.position_ids, tokens.bounds))
    types = None if tokens.token_type_ids is None else tokens.token_type_ids.to(device)
    return packed(ids, positions, types, bounds, bounds, tokens.max_seqlen)


@pytest.fixture
def subject(device):
    return Subject(device)


def test_replays(subject):
    for number, lengths in enumerate([(100, 0, 27), (60, 65, 3), (1, 122, 5), (100, 13, 10), (20, 81, 20)]):
        tokens = on(tokens_of(*lengths, segments=True, seed=number), subject.device)
        outcome = subject.run(tokens)
        assert outcome.how == [FIRST, "captured", "replayed", "replayed", "replayed"][number]
        subject.check(tokens, outcome)
    assert graphs.memory(subject.model).graphs == 1


def test_edits_and_replacements(subject):
    tokens = on(tokens_of(60, 60), subject.device)
    for _ in range(3):
        before = subject.run(tokens)
    for model in (subject.model, subject.exact):
        model.encoder.layer[1].attention.self.query.weight.data.mul_(3)
    outcome = subject.run(tokens)
    assert outcome.how == "replayed"
    assert not torch.equal(outcome.result, before.result)
    subject.check(tokens, outcome)
    for model in (subject.model, subject.exact):
        weight = model.encoder.layer[0].output.dense.weight
        weight.data = weight.data * 2
    for how in (FIRST, "captured", "replayed"):
        outcome = subject.run(tokens)
        assert outcome.how == how
        subject.check(tokens, outcome)


def test_graphs_come_and_go(subject):
    """One at a time, so that each capture finds the memory of the one before, and none at all in between."""
    limits = Limits(max_graphs=1, pause=0)
    for number in range(3):
        for size in (100, 200):
            tokens = on(tokens_of(size, 20, seed=number), subject.device)
            for _ in range(3):
                outcome = subject.run(tokens, limits=limits)
            assert outcome.how == "replayed"
            subject.check(tokens, outcome)
        graphs.clear(subject.model)
        assert graphs.memory(subject.model) == (0, 0)


def test_streams_and_threads(subject):
    """Each thread on a stream of its own, with graphs in one pool."""
    errors = []
    for size in (100, 200):
        for _ in range(2):
            subject.run(on(tokens_of(size, 20), subject.device))

    def work(number):
        try:
            cuda = subject.device.type == "cuda"
            stream = torch.cuda.stream(torch.cuda.Stream()) if cuda else nullcontext()
            with torch.no_grad(), stream:
                results = []
                for step in range(20):
                    tokens = on(tokens_of((100, 200)[(number + step) % 2], 20, seed=step), subject.device)
                    outcome = subject.run(tokens)
                    assert outcome.how == "replayed", outcome.how
                    results.append((tokens, outcome))
                for tokens, outcome in results:
                    subject.check(tokens, outcome)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1800)
    assert not errors, errors[0]


def test_a_bad_id(subject):
    """Told at once on a CPU, at a later call on a GPU, as eagerly; then it is over."""
    good = on(tokens_of(9, 3), subject.device)
    bad = on(tokens_of(9, 3, ids=[1] * 11 + [CONFIG.vocab_size]), subject.device)
    for _ in range(3):
        subject.run(good)

    def both():
        subject.run(bad)
        torch.cuda.synchronize()
        subject.run(good)

    with pytest.raises(IndexError):
        both()
    outcome = subject.run(good)
    assert outcome.how == "replayed"
    subject.check(good, outcome)


def test_a_function_that_cannot_be_captured(subject):
    """It waits for the device: the call is right all the same, and other calls are captured after it."""
    if subject.device.type == "cpu":
        pytest.skip("the stand-in captures whatever runs")
    tokens, other = (on(tokens_of(size, 3), subject.device) for size in (90, 180))
    subject.waits = True
    subject.run(tokens)
    with pytest.warns(UserWarning, match="could not be captured"):
        outcome = subject.run(tokens)
    assert outcome.how.startswith("eager: capturing it raised")
    subject.check(tokens, outcome)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    # What a capture that broke off does to the whole process in some releases of torch: see graphs.workspaces.
    torch.rand(4, device="cuda")
    torch.cuda.empty_cache()
    side, memory = torch.cuda.Stream(), torch.empty(1 << 24, dtype=torch.int8, device="cuda")
    memory.record_stream(side)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    del memory
    torch.cuda.synchronize()
    torch.empty(1 << 10, device="cuda")  # looks for what other streams are done with
    assert torch.cuda.memory_allocated() < before
    assert torch.cuda.memory_stats()["active_bytes.all.current"] < before, "freed memory waits for ever"
    subject.waits = False
    for how in (FIRST, "captured", "replayed"):
        outcome = subject.run(other)
        assert outcome.how == how
        subject.check(other, outcome)


def test_workspaces_outlive_whoever_frees_them(subject):
    """cuBLAS's, which graphs go on writing to: torch frees them with any graph of the stream of captures, and torch.compile's CUDA
    graphs free all of them. On a GPU they must lie in a pool that stays reserved."""
    kept, other = (on(tokens_of(size, 3), subject.device) for size in (90, 180))
    for tokens in (kept, other):
        for _ in range(2):
            outcome = subject.run(tokens)
        assert outcome.how == "captured"
    if subject.device.type == "cuda":
        pool = tuple(backends.of(subject.model.embeddings.word_embeddings.weight.device)._workspaces._pool)

        def reserved():
            segments = torch.cuda.memory_snapshot()
            return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == pool)

        before = reserved()
        assert before >= 1 << 22, "no workspace lies there"
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None:
            clear()
        torch.cuda.empty_cache()
        assert reserved() == before
    # `other` goes, and a third takes what its end left free.
    limits = Limits(max_graphs=2, pause=0)
    subject.run(kept, limits=limits)
    third = on(tokens_of(40, 3), subject.device)
    for _ in range(2):
        outcome = subject.run(third, limits=limits)
    assert outcome.how == "captured"
    if subject.device.type == "cuda":
        torch.cuda.empty_cache()
        assert reserved() == before
    for tokens in (kept, third, kept):
        outcome = subject.run(tokens, limits=limits)
        assert outcome.how == "replayed"
        subject.check(tokens, outcome)


def test_a_weight_replaced_while_another_stream_replays(subject):
    """Copies and parameters are freed while that stream still reads them: its results are those of the weights it began with."""
    tokens = on(tokens_of(60, 60), subject.device)
    for _ in range(3):
        before = subject.run(tokens)
    cuda = subject.device.type == "cuda"
    with torch.cuda.stream(torch.cuda.Stream()) if cuda else nullcontext():
        if cuda:
            torch.cuda._sleep(10**8)  # so that what follows on the host comes first
        outcome = subject.run(tokens)
    assert outcome.how == "replayed"
    for parameter in subject.model.parameters():
        parameter.data = torch.full_like(parameter, float("nan"))
    filler = [torch.full((1 << 12,), float("nan"), device=subject.device) for _ in range(256)]
    if cuda:
        torch.cuda.synchronize()
    assert filler
    assert torch.equal(outcome.result, before.result)
