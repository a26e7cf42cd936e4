"""Training of a stack from captured graphs beside the same eagerly, in a loop of one's own: the tape in `captured` computes again
what was captured, whatever Python would do by now."""

import pytest
import torch
from captured import captured_on_cpu
from graph_cases import Counting
from stack_cases import (
    FIRST,
    HOWS,
    LENGTHS,
    REPLAYED,
    WIDTH,
    Step,
    assert_close,
    assert_equal,
    captured_encoder,
    eagerly,
    encoder,
    loss_of,
    rows_of,
    run,
    step,
)

from bertfast import graphs
from bertfast.graphs import cache
from bertfast.graphs.cache import Limits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("read", [None, "named"])
@pytest.mark.parametrize("grad", [True, False], ids=["x needs a gradient", "x needs none"])
def test_bits_are_those_of_eager_calls(device, dtype, dropout, read, grad):
    layers = encoder(dropout, dtype)
    for number, how in enumerate(HOWS):
        x, layout = rows_of((30, 18) if number % 2 else (25, 23), number, dtype, grad)
        if read is not None:
            rows = torch.arange(48)[number % 2 :: 3]
            layout = type(layout)(layout.cu_seqlens, layout.max_seqlen, rows)
        assert_equal(step(layers, x, layout, captured=True, how=how), step(layers, x, layout, captured=False))


def test_a_bucket_serves_its_sizes(device):
    """Fewer rows after more ones and the other way round, in fewer sequences, and with other rows read."""
    layers = encoder()
    sizes = [(30, 18), (17, 20, 8), (24, 24), (9, 32), (20, 28), (17, 15, 12), (31, 10)]
    for number, lengths in enumerate(sizes):
        x, layout = rows_of(lengths, number)
        assert_close(step(layers, x, layout, captured=True), step(layers, x, layout, captured=False))
    assert graphs.memory(layers).graphs == 2  # two sequences and four


@pytest.mark.parametrize("read", [False, True])
def test_rows_past_a_calls_own_leave_no_trace(device, read):
    """A call's numbers that are no numbers do not reach the next one, which has fewer rows."""
    layers = captured_encoder()
    x, layout = rows_of()
    rows = run(layers, (x * float("nan")).detach().requires_grad_(), layout).rows
    rows.backward(torch.full_like(rows, float("nan")))
    x, layout = rows_of((29, 16))
    assert_close(step(layers, x, layout, captured=True, how=REPLAYED), step(layers, x, layout, captured=False))


def test_a_loss_curve(device):
    """Fifty steps of AdamW with clipping and accumulation over two calls."""

    def curve(captured):
        layers, losses = encoder(0.1), []
        optimizer = torch.optim.AdamW(layers.parameters(), lr=1e-2)
        torch.manual_seed(3)
        for number in range(50):
            for half in range(2):
                x, layout = rows_of(((30, 18), (20, 28))[half], 2 * number + half)
                rows = run(layers, x, layout).rows if captured else eagerly(layers, x, layout)
                loss = loss_of(rows) / 2
                loss.backward()
                losses.append(float(loss.detach()))
            torch.nn.utils.clip_grad_norm_(layers.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return losses, [p.detach().clone() for p in layers.parameters()]

    ours, theirs = curve(True), curve(False)
    assert ours[0] == theirs[0]
    assert all(torch.equal(one, two) for one, two in zip(ours[1], theirs[1], strict=True))


def test_autocast(device):
    layers = encoder(0.1)
    for number in range(8):
        x, layout = rows_of(seed=number)
        for inside in (True, False):  # whether backward is called inside too
            both = []
            for captured in (True, False):
                layers.zero_grad()
                torch.manual_seed(7)
                x.grad = None
                with torch.autocast("cpu", torch.bfloat16, enabled=number % 2 == 1):
                    rows, how = run(layers, x, layout) if captured else (eagerly(layers, x, layout), None)
                    loss = loss_of(rows)
                    if inside:
                        loss.backward()
                if not inside:
                    loss.backward()
                both.append(Step(rows.detach(), x.grad, {name: p.grad for name, p in layers.named_parameters()}))
                assert how in (None, HOWS[min(2 * (number // 2) + (not inside), 3)])
            assert_equal(*both)


def test_one_draw_for_a_call(device):
    """Captured or not a call draws the same from torch's generator, and a capture nothing more."""
    layers = encoder(0.1)
    states = []
    for _ in HOWS:
        torch.manual_seed(5)
        run(layers, *rows_of()).rows.sum().backward()
        states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)
    torch.manual_seed(5)
    first, second = (run(layers, *rows_of()).rows.detach() for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_checkpointing_inside_it(device, dropout):
    """Each layer is computed again in the captured backward."""
    layers = encoder(dropout)
    layers.gradient_checkpointing = True
    for number, how in enumerate(HOWS):
        x, layout = rows_of(seed=number)
        assert_equal(step(layers, x, layout, captured=True, how=how), step(layers, x, layout, captured=False))
    layers.gradient_checkpointing = False
    assert run(layers, *rows_of()).how == FIRST


def test_a_plain_stand_in():
    """Which calls the functions again."""
    with captured_on_cpu(Counting()) as device:
        layers = encoder(0.1)
        for how in HOWS:
            x, layout = rows_of()
            assert_equal(step(layers, x, layout, captured=True, how=how), step(layers, x, layout, captured=False))
        assert device.captures == 2


def test_training_and_inference_share_the_bounds(device):
    from bertfast.models import BertConfig, BertModel

    config = BertConfig(
        vocab_size=70, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    model = BertModel(config)
    model.graph_limits = Limits(max_graphs=2)
    for length in (8, 16, 40):
        ids = torch.randint(1, 70, (2, length))
        for _ in range(3):
            model.eval()
            with torch.no_grad():
                model(ids)
            model.train()(ids).last_hidden_state.sum().backward()
            assert graphs.memory(model).graphs <= 2
    memory = graphs.memory(model)
    assert memory.graphs > 0
    assert memory.nbytes > 0


def test_memory_is_what_graphs_and_buffers_take(device):
    layers = captured_encoder()
    (captured,) = cache.of(layers).captured.values()
    parameters = sum(p.nbytes for p in layers.parameters())
    rows = 48 * WIDTH * 4
    assert graphs.memory(layers).nbytes >= parameters + 4 * rows  # x, dy, rows, the gradient of x
    assert captured.nbytes == graphs.memory(layers).nbytes


def test_lengths_are_a_buckets():
    assert sum(LENGTHS) == graphs.buckets.rows(sum(LENGTHS))
