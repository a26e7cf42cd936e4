"""A captured call gives what the function gives on the call's own tensors, whatever was in the buffers before."""

import random

import pytest
import torch
from graph_cases import FIRST, WORDS, Counting, Toy, assert_right, packed, run, standing_in, tokens_of

from bertfast import graphs


@pytest.fixture
def device():
    with standing_in() as backend:
        yield backend


@pytest.mark.parametrize("read", [None, "first", torch.tensor([7, 0, 3])])
@pytest.mark.parametrize("segments", [False, True])
def test_the_second_call_captures(device, read, segments):
    toy = Toy()
    for number, how in enumerate([FIRST, "captured", "replayed", "replayed"]):
        tokens = tokens_of(9, 3, 1 + number, segments=segments, seed=number)
        outcome = run(toy, tokens, read)
        assert outcome.how == how
        assert_right(toy, tokens, read, outcome.result)
    assert device.captures == 1
    assert graphs.memory(toy).graphs == 1
    assert graphs.memory(toy).nbytes > 0


def test_random_calls(device):
    """Sizes up and down, so that every buffer holds what longer calls left."""
    draw, toy, hows = random.Random(5), Toy(), set()
    for number in range(300):
        lengths = [draw.choice([0, 1, 2, 5, 16, 17, 40]) for _ in range(draw.randint(1, 9))]
        if not sum(lengths):
            continue
        tokens = tokens_of(*lengths, segments=draw.random() < 0.5, seed=number)
        rows = sum(lengths)
        named = torch.tensor([draw.randrange(rows) for _ in range(draw.randint(1, 20))])
        read = draw.choice([None, "first" if min(lengths) else None, named])  # an empty sequence has no first row
        outcome = run(toy, tokens, read, limits=graphs.Limits(max_graphs=8, pause=0))
        assert_right(toy, tokens, read, outcome.result)
        hows.add(outcome.how)
    assert hows == {FIRST, "captured", "replayed"}
    assert graphs.memory(toy).graphs == 8


def test_tokens_with_a_tail_of_the_callers(device):
    """Packed input on a GPU keeps the rows past its last sequence, in sequences that Tokens.bounds name."""
    toy = Toy()
    for number in range(4):
        tokens = tokens_of(5, 2, 6, 3, seed=number)
        tokens = packed(tokens.input_ids, tokens.position_ids, None, tokens.bounds, tokens.bounds[:3], 6, exact=False)
        outcome = run(toy, tokens, "first")
        assert outcome.result.shape[0] == 2
        assert_right(toy, tokens, "first", outcome.result)
    assert outcome.how == "replayed"


def test_int32_ids(device):
    toy = Toy()
    for _ in range(3):
        tokens = tokens_of(5, 6)
        short = packed(tokens.input_ids.int(), tokens.position_ids.int(), None, tokens.bounds, tokens.bounds, 6)
        outcome = run(toy, short)
    assert outcome.how == "replayed"
    assert_right(toy, tokens, None, outcome.result)


def test_finish_sees_its_own_rows_alone(device):
    toy, seen = Toy(), []

    def finish(rows):
        seen.append(tuple(rows.shape))
        return rows.clone()

    for lengths, read in [((9, 3), None), ((9, 3), "first"), ((9, 3), torch.tensor([1, 2, 2]))]:
        for _ in range(3):
            run(toy, tokens_of(*lengths), read, finish=finish)
    assert seen == [(12, 8)] * 3 + [(2, 8)] * 3 + [(3, 8)] * 3


def test_nan_of_an_earlier_call_stays_there(device):
    toy = Toy()
    toy.word.weight[7] = float("nan")
    poison = tokens_of(8, 8, ids=[7] * 16)
    for _ in range(3):
        assert run(toy, poison).result.isnan().all()
    clean = tokens_of(5, 4, ids=list(range(10, 19)))
    outcome = run(toy, clean, limits=graphs.Limits())
    run(toy, tokens_of(9, ids=list(range(10, 19))))
    assert_right(toy, clean, None, outcome.result)
    # The same graph: 16 rows and two sequences, with 16 tokens before and 9 now.
    for _ in range(3):
        outcome = run(toy, clean)
    assert outcome.how == "replayed"
    run(toy, tokens_of(8, 8, ids=[7] * 16))
    outcome = run(toy, clean)
    assert outcome.how == "replayed"
    assert_right(toy, clean, None, outcome.result)


def test_a_bad_id_raises_as_eagerly_and_is_forgotten(device):
    toy = Toy()
    good, bad = tokens_of(9, 3), tokens_of(9, 3, ids=[1] * 11 + [WORDS])
    for how in (FIRST, "captured", "replayed"):
        with pytest.raises(IndexError):
            run(toy, bad)
        outcome = run(toy, good)
        assert outcome.how == how
        with pytest.raises(IndexError):
            run(toy, bad)
        if how == "replayed":
            shorter = tokens_of(6, 3)  # of the same bucket: the bad id must not be in its tail
            assert run(toy, shorter).how == "replayed"
            assert_right(toy, shorter, None, run(toy, shorter).result)
    assert graphs.reasons(toy) == []


def test_what_else_the_code_depends_on(device):
    toy, tokens = Toy(), tokens_of(9, 3)
    for key in ("gelu", "tanh"):
        assert [run(toy, tokens, key=key).how for _ in range(3)] == [FIRST, "captured", "replayed"]
    with torch.autocast("cpu", torch.bfloat16):
        assert run(toy, tokens, key="gelu").how == FIRST
    assert run(toy, tokens, key="gelu").how == "replayed"


def test_positions_bound_the_longest(device):
    toy, seen = Toy(), []
    inner = toy.rows
    toy.rows = lambda tokens, read: seen.append(tokens.max_seqlen) or inner(tokens, read)
    for _ in range(2):
        run(toy, tokens_of(33), positions=40)
    assert seen == [33, 40, 40, 40]  # eagerly; warmed up, captured, replayed


def test_inference_mode(device):
    """Buffers made in inference mode could not be written to outside it."""
    toy, tokens = Toy(), tokens_of(9, 3)
    modes = []
    inner = toy.rows
    toy.rows = lambda *given: (
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled())) or inner(*given)
    )
    with torch.inference_mode():
        for _ in range(2):
            run(toy, tokens)
        assert set(modes) == {(False, False)}
    outcome = run(toy, tokens)
    assert outcome.how == "replayed"
    with torch.inference_mode():
        assert run(toy, tokens).how == "replayed"
    assert_right(toy, tokens, None, outcome.result)


def test_autocast_keeps_no_copies_of_weights(device):
    """A cached copy of a weight is gone after the context, and a graph of it would not see the weight change."""
    toy, tokens = Toy(torch.float32).requires_grad_(), tokens_of(9, 3)
    enabled = []
    inner = toy.rows
    toy.rows = lambda *given: enabled.append(torch.is_autocast_cache_enabled()) or inner(*given)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            run(toy, tokens)
        assert torch.is_autocast_cache_enabled()
    assert enabled == [True, False, False, False], "eagerly; warmed up, captured, replayed"


def test_the_real_encoder():
    """bertfast's own layers, on buffers with empty sequences and rows of nobody."""
    from bertfast.models import BertConfig, BertModel

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config).eval()

    def function(tokens, read):
        return model.encode(tokens, read)[0]

    with standing_in(Counting()), torch.no_grad():
        for number, lengths in enumerate([(20, 0, 7), (20, 5, 7), (3, 17, 12), (2, 17, 8)]):
            tokens = tokens_of(*lengths, segments=True, seed=number)
            outcome = graphs.run(
                model, function, tokens, None, weights=lambda: list(model.parameters()), key=None, finish=torch.clone
            )
            torch.testing.assert_close(outcome.result, function(tokens, None), rtol=1e-5, atol=1e-5)
        assert outcome.how == "replayed"
