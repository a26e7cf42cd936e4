"""Training of a stack from captured graphs beside the same eagerly, in a loop of one's own: the tape in `captured` computes again
what was captured, whatever Python would do by now."""

import copy
import gc
import os
import threading
import warnings

import pytest
import torch
from captured import Taping, captured_on_cpu
from graph_cases import Counting
from stack_cases import (
    CAPTURED,
    FIRST,
    LENGTHS,
    REPLAYED,
    WIDTH,
    Step,
    assert_close,
    assert_equal,
    eagerly,
    encoder,
    loss_of,
    rows_of,
    run,
    step,
)
from torch.utils.checkpoint import checkpoint

from bertfast import _library, _torch, graphs
from bertfast.graphs import backend as backends
from bertfast.graphs import cache, stack
from bertfast.graphs.cache import Limits
from bertfast.nn import joined

HOWS = (FIRST, CAPTURED, REPLAYED, REPLAYED)


@pytest.fixture
def device():
    with captured_on_cpu() as backend:
        yield backend


def captured_encoder(**options):
    """A stack whose next call of LENGTHS is a replay."""
    layers = encoder(**options)
    for how in HOWS[:3]:
        step(layers, *rows_of(dtype=options.get("dtype", torch.float32)), captured=True, how=how)
    return layers


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


def test_gradients_are_the_callers(device):
    """Two backwards add up, and no later call writes into what an earlier one left in `.grad`."""
    layers = captured_encoder()
    twice, once = [], []
    for number in (1, 2):
        x, layout = rows_of(seed=number)
        once.append(step(layers, x, layout, captured=False).gradients)
    layers.zero_grad()
    for number in (1, 2):
        x, layout = rows_of(seed=number)
        found = run(layers, x, layout)
        assert found.how == REPLAYED
        loss_of(found.rows).backward()
        twice.append({name: p.grad for name, p in layers.named_parameters()})
        if number == 1:
            kept = {name: p.grad.clone() for name, p in layers.named_parameters()}
            for name, gradient in kept.items():
                assert torch.equal(gradient, once[0][name])
    for name, gradient in twice[1].items():
        assert torch.equal(gradient, once[0][name] + once[1][name])


def test_rows_are_the_callers(device):
    layers = captured_encoder()
    x, layout = rows_of(seed=1)
    rows = run(layers, x, layout).rows
    kept = rows.detach().clone()
    loss_of(rows).backward()
    with torch.no_grad():
        rows.fill_(3)
    run(layers, *rows_of(seed=2)).rows.sum().backward()
    assert torch.equal(run(layers, x, layout).rows, kept)


def test_a_second_forward_before_the_backward(device):
    layers = captured_encoder(dropout=0.1)
    x, layout = rows_of(seed=1)
    other, other_layout = rows_of(seed=2)
    expected = []
    for one, its in ((x, layout), (other, other_layout)):
        expected.append(step(layers, one, its, captured=False))
    layers.zero_grad()
    x.grad = other.grad = None
    torch.manual_seed(7)
    first = run(layers, x, layout)
    torch.manual_seed(7)
    second = run(layers, other, other_layout)
    assert (first.how, second.how) == (REPLAYED, f"eager: {stack.PENDING}")
    loss_of(second.rows).backward()
    loss_of(first.rows).backward()
    assert torch.equal(x.grad, expected[0].dx)
    assert torch.equal(other.grad, expected[1].dx)
    for name, p in layers.named_parameters():
        assert torch.equal(p.grad, expected[1].gradients[name] + expected[0].gradients[name])
    assert run(layers, x, layout).how == REPLAYED


def test_a_result_that_is_dropped_is_not_waited_for(device):
    layers = captured_encoder()
    found = run(layers, *rows_of())
    assert device.is_pending()
    assert run(layers, *rows_of()).how == f"eager: {stack.PENDING}"
    del found
    gc.collect()
    assert not device.is_pending()
    assert run(layers, *rows_of()).how == REPLAYED


def test_the_rule_is_the_devices(device):
    """Two models share it."""
    one, two = captured_encoder(), captured_encoder(dropout=0.1)
    held = run(one, *rows_of())
    assert run(two, *rows_of()).how == f"eager: {stack.PENDING}"
    loss_of(held.rows).backward()
    assert run(two, *rows_of()).how == REPLAYED


def test_nothing_is_captured_between_forward_and_backward(device):
    layers = captured_encoder()
    held = run(layers, *rows_of())
    for _ in range(3):
        assert run(layers, *rows_of((9, 8))).how in (FIRST, f"eager: {stack.PENDING}")
    loss_of(held.rows).backward()
    assert run(layers, *rows_of((9, 8))).how == CAPTURED


def test_backward_twice(device):
    """The second one computes the forward again, with the same dropout: other calls have written over the first's activations."""
    layers = captured_encoder(dropout=0.1)
    x, layout = rows_of(seed=1)
    expected = step(layers, x, layout, captured=False)
    layers.zero_grad()
    x.grad = None
    torch.manual_seed(7)
    found = run(layers, x, layout)
    assert found.how == REPLAYED
    loss = loss_of(found.rows)
    loss.backward(retain_graph=True)
    for number in (4, 5):
        again, its = rows_of(seed=number)
        loss_of(run(layers, again, its).rows).backward(inputs=[again])
    loss.backward()
    assert torch.equal(x.grad, expected.dx + expected.dx)
    for name, p in layers.named_parameters():
        assert torch.equal(p.grad, expected.gradients[name] + expected.gradients[name])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_weight_written_to_between_forward_and_backward(device):
    """autograd's error, as eagerly."""
    layers = captured_encoder()
    rows = run(layers, *rows_of()).rows
    with torch.no_grad():
        layers.layer[0].intermediate.dense.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_of(rows).backward()
    del rows
    x, layout = rows_of()
    assert_equal(step(layers, x, layout, captured=True, how=REPLAYED), step(layers, x, layout, captured=False))


def test_double_backward_is_refused(device):
    layers = captured_encoder()
    x, layout = rows_of()
    (dx,) = torch.autograd.grad(loss_of(run(layers, x, layout).rows), x, create_graph=True)
    with pytest.raises(RuntimeError, match="bertfast"):
        dx.sum().backward()


def test_partial_backward(device):
    """Gradients of some inputs alone, as torch.autograd.grad asks for them."""
    layers = captured_encoder()
    x, layout = rows_of()
    weight = layers.layer[1].output.dense.weight
    expected = torch.autograd.grad(loss_of(eagerly(layers, x, layout)), [x, weight])
    found = torch.autograd.grad(loss_of(run(layers, x, layout).rows), [x, weight])
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def _freeze(layers):
    layers.layer[0].requires_grad_(False)


def _freeze_biases(layers):
    for name, p in layers.named_parameters():
        p.requires_grad_(not name.endswith("bias"))


def _edit(layers):
    layers.layer[1].output.dense.weight.data.mul_(3)


def _replace(layers):
    layers.layer[1].output.dense.weight.data = layers.layer[1].output.dense.weight.data * 3


def _new_parameter(layers):
    linear = layers.layer[0].attention.self.query
    linear.weight = torch.nn.Parameter(linear.weight.detach() * 2)


def _round_trip(layers):
    layers.double().float()


def _eps(layers):
    layers.layer[0].output.LayerNorm.eps = 0.5


def _rate(layers):
    layers.layer[0].output.dropout.p = 0.5


def _shared(layers):
    layers.layer[1].intermediate = layers.layer[0].intermediate


CHANGES = [_freeze, _freeze_biases, _edit, _replace, _new_parameter, _round_trip, _eps, _rate, _shared]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_changes_of_a_model(device, change):
    layers = captured_encoder()
    change(layers)
    for number in range(4):
        x, layout = rows_of(seed=number)
        assert_equal(step(layers, x, layout, captured=True), step(layers, x, layout, captured=False))
    assert run(layers, *rows_of()).how == REPLAYED


def test_frozen_layers_and_back(device):
    layers = captured_encoder()
    for frozen in (True, False, True, False):
        layers.layer[0].requires_grad_(not frozen)
        for _ in range(3):
            x, layout = rows_of()
            found = step(layers, x, layout, captured=True)
            assert_equal(found, step(layers, x, layout, captured=False))
        assert any(name.startswith("layer.0") for name in found.gradients) != frozen
    assert graphs.memory(layers).graphs == 2


def test_hooks_of_parameters(device):
    """Each sees every gradient once, whole, and may change it; what it writes there reaches nobody else."""
    layers, plain = captured_encoder(), encoder()
    for model in (layers, plain):
        weight = model.layer[0].output.dense.weight
        model.seen = []
        weight.register_hook(lambda g, model=model: model.seen.append("hook") or g * 2)
        weight.register_post_accumulate_grad_hook(lambda p, model=model: model.seen.append(p.grad.clone()))
    for number in range(3):
        x, layout = rows_of(seed=number)
        assert_equal(
            step(layers, x, layout, captured=True, how=REPLAYED),
            step(plain, x.detach().requires_grad_(), layout, captured=False),
        )
    assert layers.seen[::2] == ["hook"] * 3
    assert all(torch.equal(one, two) for one, two in zip(layers.seen[1::2], plain.seen[1::2], strict=True))


def test_hooks_while_it_is_captured(device):
    """A hook does not see the capture's own backwards."""
    layers, seen = encoder(), []
    layers.layer[0].output.dense.weight.register_hook(lambda g: seen.append(g.shape))
    for how in HOWS:
        step(layers, *rows_of(), captured=True, how=how)
    assert len(seen) == 4


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


def test_inference_between_forward_and_backward(device):
    """Its graphs are in a pool of their own."""
    from bertfast.models import BertConfig, BertModel

    config = BertConfig(
        vocab_size=70, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config).eval()
    ids = torch.randint(1, 70, (4, 12))
    plain = copy.deepcopy(model)
    for one in (model, plain):
        for _ in range(3 if one is model else 1):
            one.zero_grad()
            hidden = one(ids).last_hidden_state
            for _ in range(3 if one is model else 0):
                with torch.no_grad():
                    assert_state = one(ids.flip(0)).last_hidden_state
            loss_of(hidden).backward()
    with torch.no_grad():
        torch.testing.assert_close(assert_state, plain(ids.flip(0)).last_hidden_state, rtol=1e-5, atol=1e-5)
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    assert graphs.memory(model).graphs == 2


def reason_of(layers, **options) -> str:
    """Why the next call runs eagerly; its numbers are those of an eager one."""
    x, layout = rows_of()
    how = run(layers, x, layout, **options).how
    assert how.startswith("eager: ")
    assert_equal(step(layers, x, layout, captured=True), step(layers, x, layout, captured=False))
    return how.removeprefix("eager: ")


def test_suspended(device):
    layers = captured_encoder()
    with graphs.suspended():
        assert reason_of(layers) == "its caller captures whole steps"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(run(layers, *rows_of()).how))
        thread.start()
        thread.join()
    assert seen == [REPLAYED], "it is this thread's"
    assert run(layers, *rows_of()).how == REPLAYED


def test_no_graphs(device):
    layers = encoder()
    x, layout = rows_of()
    for _ in range(3):
        assert run(layers, x, layout, Limits(max_graphs=0)).how == "eager: max_graphs is 0"


def test_anomaly_detection(device):
    layers = captured_encoder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            assert reason_of(layers) == "anomaly detection looks at every number"


def test_torchs_own_functions(device, monkeypatch):
    layers = captured_encoder()
    monkeypatch.setattr(_library, "resolved", lambda name, key: _library.meaning(name))
    assert reason_of(layers) == "torch's own functions run for some ops"


def test_without_gradients(device):
    layers = captured_encoder()
    x, layout = rows_of()
    with torch.no_grad():
        assert run(layers, x, layout).how is None
    layers.requires_grad_(False)
    assert run(layers, x.detach(), layout).how is None
    assert run(layers, *rows_of()).how == FIRST, "x alone needs one"


def test_on_a_device_where_nothing_is_captured():
    layers = encoder()
    assert run(layers, *rows_of()).how is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_around_it(device, reentrant):
    """Every forward of a checkpointed part runs eagerly, in the backward too, so that both save the same."""
    layers, hows = captured_encoder(dropout=0.1), []

    def part(x, layout):
        rows, how = run(layers, x, layout)
        hows.append(how)
        return rows

    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    layers.zero_grad()
    x.grad = None
    torch.manual_seed(7)
    loss_of(checkpoint(part, x, layout, use_reentrant=reentrant)).backward()
    found = {name: p.grad for name, p in layers.named_parameters()}
    assert_close(expected._replace(dx=x.grad, gradients=found), expected)
    elsewhere = "eager: what is saved for backward goes elsewhere, as in checkpointing"
    # The second forward of the other kind ends where all that was saved is there again.
    assert hows == ([None, "eager: it is called in a backward, as checkpointing does"] if reentrant else [elsewhere])
    assert run(layers, x, layout).how == REPLAYED


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


def test_copies_that_somebody_holds(device):
    layers = captured_encoder()
    with joined.held(layers):
        assert reason_of(layers) == "its caller says when copies of the weights are written"
    assert run(layers, *rows_of()).how == REPLAYED


def test_offloading(device):
    layers = captured_encoder()
    with torch.autograd.graph.save_on_cpu():
        assert "goes elsewhere" in reason_of(layers)


def test_dispatch_modes_and_transforms(device):
    from torch.utils.flop_counter import FlopCounterMode

    layers = captured_encoder()
    with FlopCounterMode(display=False):
        assert run(layers, *rows_of()).how.startswith("eager: ")


def test_called_inside_a_turn(device):
    layers = captured_encoder()
    assert device.begin()
    try:
        assert reason_of(layers) == "it is called inside another captured call"
    finally:
        device.end()


def test_its_caller_captures(device, monkeypatch):
    layers = captured_encoder()
    monkeypatch.setattr(device, "is_capturing", lambda: True)
    assert reason_of(layers) == "its stream is being captured by its caller"


def test_a_backward_that_its_caller_captures(device, monkeypatch):
    """Or one while another thread captures: it is computed from the call's own tensors."""
    layers = captured_encoder(dropout=0.1)
    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    for name in ("is_capturing", "in_turn"):
        torch.manual_seed(7)
        rows = run(layers, x, layout).rows
        with monkeypatch.context() as patch:
            patch.setattr(device, name, lambda: True)
            (dx,) = torch.autograd.grad(loss_of(rows), x)
        assert torch.equal(dx, expected.dx)
        del rows


def test_graphs_let_go_between_forward_and_backward(device):
    layers = captured_encoder(dropout=0.1)
    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    layers.zero_grad()
    torch.manual_seed(7)
    rows = run(layers, x, layout).rows
    graphs.clear(layers)
    (dx,) = torch.autograd.grad(loss_of(rows), x)
    assert torch.equal(dx, expected.dx)


def test_a_model_that_goes_between_forward_and_backward(device):
    layers = captured_encoder()
    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    rows = run(layers, x, layout).rows
    del layers
    gc.collect()
    (dx,) = torch.autograd.grad(loss_of(rows), x)
    assert torch.equal(dx, expected.dx)


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


class Broken(Taping):
    """Fails in the capture with this number, from 1 on."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error, self.captures = at, error, 0

    def capture(self, function, pool=backends.INFERENCE):
        assert pool == backends.TRAINING
        self.captures += 1
        if self.captures in self.at:
            raise self.error
        return super().capture(function, pool)


@pytest.mark.parametrize("at", [(1,), (2,)], ids=["forward", "backward"])
def test_a_capture_that_fails(at):
    with captured_on_cpu(Broken(at, RuntimeError("no"))) as device:
        layers = encoder()
        x, layout = rows_of()
        step(layers, x, layout, captured=True, how=FIRST)
        with pytest.warns(UserWarning, match="could not be captured"):
            found = step(layers, x, layout, captured=True, how="eager: capturing it raised RuntimeError: no")
        assert_equal(found, step(layers, x, layout, captured=False))
        assert not device._lock.locked()
        assert graphs.reasons(layers) == ["capturing it raised RuntimeError: no"]
        graphs.clear(layers)
        for how in HOWS:
            step(layers, x, layout, captured=True, how=how)


def test_failures_of_training_do_not_end_inference(device, monkeypatch):
    layers = encoder()
    owned = cache.of(layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(2):
            owned.fail(number, "no", backends.TRAINING)
    assert owned.find("a place", [], Limits(), kind=backends.TRAINING) == "no"
    assert owned.find("a place", [], Limits()) == cache.FIRST


@pytest.mark.parametrize("at", [(1,), (2,), (1, 2)], ids=["forward", "backward", "twice"])
def test_out_of_memory_at_a_capture(at):
    with captured_on_cpu(Broken(at, torch.OutOfMemoryError("no"))):
        layers = encoder()
        x, layout = rows_of()
        step(layers, x, layout, captured=True, how=FIRST)
        how = CAPTURED if len(at) == 1 else "eager: there is no memory for its graph"
        found = step(layers, x, layout, captured=True, how=how)
        assert_equal(found, step(layers, x, layout, captured=False))


@pytest.mark.parametrize("which", [1, 2], ids=["forward", "backward"])
def test_a_replay_that_differs(which):
    """Its bits are compared before anybody sees them."""

    class Shifted(Taping):
        captures = 0

        def capture(self, function, pool=backends.INFERENCE):
            self.captures += 1
            graph = super().capture(function, pool)
            replay, shifted = graph.replay, self.captures == which

            def off(function):
                replay(function)
                if shifted:
                    graph.outputs[-1].view(-1)[3] += 1e-3

            graph.replay = off
            return graph

    with captured_on_cpu(Shifted()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = encoder()
        x, layout = rows_of()
        step(layers, x, layout, captured=True, how=FIRST)
        found = step(layers, x, layout, captured=True)
        assert_equal(found, step(layers, x, layout, captured=False))
        (reason,) = graphs.reasons(layers)
        assert "differs from the eager call in 1 of" in reason
        assert ("rows" in reason) == (which == 1)


def test_a_plain_stand_in():
    """Which calls the functions again."""
    with captured_on_cpu(Counting()) as device:
        layers = encoder(0.1)
        for how in HOWS:
            x, layout = rows_of()
            assert_equal(step(layers, x, layout, captured=True, how=how), step(layers, x, layout, captured=False))
        assert device.captures == 2


def test_several_threads(device):
    """Each with a model and a loop of its own: gradients are right, whatever runs eagerly meanwhile."""
    errors, hows = [], []

    def loop(number):
        try:
            layers = encoder(0.0, layers=1)
            for turn in range(12):
                x, layout = rows_of(seed=10 * number + turn)
                rows, how = run(layers, x, layout)
                hows.append(how)
                (dx,) = torch.autograd.grad(loss_of(rows), x)
                (expected,) = torch.autograd.grad(loss_of(eagerly(layers, x, layout)), x)
                assert torch.equal(dx, expected), how
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "threads wait for each other"
    assert not errors, errors[0]
    assert set(hows) <= {
        FIRST, CAPTURED, REPLAYED, f"eager: {stack.PENDING}", "eager: another thread captures"
    }  # fmt: skip
    assert REPLAYED in hows


def test_a_backward_waits_for_no_capture(device):
    """It may run on the thread that a capture's own backward needs."""
    layers = captured_encoder(dropout=0.1)
    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    torch.manual_seed(7)
    rows = run(layers, x, layout).rows
    begun, ended = threading.Event(), threading.Event()

    def capture():
        assert device.begin_capture()
        begun.set()
        ended.wait(60)
        device.end()

    thread = threading.Thread(target=capture)
    thread.start()
    begun.wait(60)
    found = []
    other = threading.Thread(target=lambda: found.append(torch.autograd.grad(loss_of(rows), x)[0]))
    other.start()
    other.join(60)
    waits = other.is_alive()
    ended.set()
    thread.join()
    other.join()
    assert not waits
    assert torch.equal(found[0], expected.dx)


def test_a_turn_in_a_backward(device, monkeypatch):
    """It waits for a replay, and gives up where a capture begins while it waits."""
    monkeypatch.setattr(_torch, "in_backward", lambda: True)
    assert device.begin()
    found = []
    thread = threading.Thread(target=lambda: found.append(device.begin()))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert device._captures.acquire(blocking=False)
    thread.join(60)
    device._captures.release()
    device.end()
    assert found == [False]
    assert device.begin()
    device.end()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_trains(device):
    layers = captured_encoder()
    x, layout = rows_of()
    expected = step(layers, x, layout, captured=False)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            found = run(layers, x, layout)
            (dx,) = torch.autograd.grad(loss_of(found.rows), x)
            code = 0 if torch.equal(dx, expected.dx) and found.how is None else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert run(layers, x, layout).how == REPLAYED


def test_copies_are_not_shared(device):
    layers = captured_encoder()
    other = copy.deepcopy(layers)
    assert run(other, *rows_of()).how == FIRST
    assert graphs.memory(other).graphs == 0


def test_lengths_are_a_buckets():
    assert sum(LENGTHS) == graphs.buckets.rows(sum(LENGTHS))
