"""Several threads, calls inside calls, child processes, and calls that are not captured at all."""

import os
import random
import threading
import time
from collections import Counter

import pytest
import torch
from graph_cases import FIRST, Counting, Toy, assert_right, run, standing_in, tokens_of
from torch.utils.flop_counter import FlopCounterMode

from bertfast import graphs
from bertfast.graphs import Limits

TOKENS = tokens_of(9, 3)


@pytest.fixture
def device():
    with standing_in() as backend:
        yield backend


def together(count, work):
    """Run work(number) in so many threads; the first error is raised."""
    errors, start = [], threading.Barrier(count)

    def one(number):
        start.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1800)
        assert not thread.is_alive(), "threads wait for each other"
    if errors:
        raise errors[0]


def test_threads_share_graphs(device):
    """Calls of all sizes from four threads, with graphs let go and weights replaced meanwhile, are each right."""
    toy, hows = Toy(), Counter()
    slow = toy.rows
    toy.rows = lambda *given: time.sleep(0.0005) or slow(*given)

    def work(number):
        draw = random.Random(number)
        for step in range(60):
            lengths = draw.choice([(9, 3)] * 4 + [(20, 5)] * 4 + [(33,), (4, 4, 4)])
            tokens = tokens_of(*lengths, seed=100 * number + step)
            outcome = run(toy, tokens, limits=Limits(max_graphs=3, pause=5))
            hows[outcome.how] += 1
            with torch.no_grad():
                torch.testing.assert_close(outcome.result, slow(tokens, None), rtol=1e-12, atol=1e-12)
            if number == 0 and step % 20 == 10:
                graphs.clear(toy)

    together(4, work)
    assert hows["captured"] >= 4
    assert hows["replayed"] > 50
    assert set(hows) <= {
        FIRST, "captured", "replayed", "eager: another thread captures", "eager: its graph was let go meanwhile",
        "eager: a weight changed during the capture", "eager: more buckets are in use than its limits leave room for",
    }  # fmt: skip


def test_one_captures_and_others_run_eagerly(device):
    toy, capturing, done = Toy(), threading.Event(), threading.Event()
    run(toy, TOKENS)
    for _ in range(2):
        run(toy, tokens_of(30))

    def broken(function):
        capturing.set()
        assert done.wait(1800)

    device.broken = broken

    def work(number):
        if number == 0:
            assert run(toy, TOKENS).how == "captured"
            return
        assert capturing.wait(1800)
        for tokens in (TOKENS, tokens_of(30)):  # its own bucket, and one that is captured already
            outcome = run(toy, tokens)
            assert outcome.how == "eager: another thread captures"
            assert_right(toy, tokens, None, outcome.result)
        done.set()

    together(2, work)
    device.broken = None
    assert [run(toy, tokens).how for tokens in (TOKENS, tokens_of(30))] == ["replayed", "replayed"]


def test_a_replay_waits_for_another_ones_rows_to_be_taken(device):
    """The rows are the graph's until `finish` is over."""
    toy, inside = Toy(), threading.Event()
    for _ in range(2):
        run(toy, TOKENS)
    results = {}

    def work(number):
        tokens = tokens_of(9, 3, seed=number)

        def finish(rows):
            if number == 0:
                inside.set()
                time.sleep(0.2)
            return rows.clone()

        if number:
            assert inside.wait(1800)
        results[number] = tokens, run(toy, tokens, finish=finish)

    together(2, work)
    for tokens, outcome in results.values():
        assert outcome.how == "replayed"
        assert_right(toy, tokens, None, outcome.result)


def test_a_call_inside_finish(device):
    toy, inner = Toy(), []

    def finish(rows):
        inner.append(run(toy, tokens_of(9, 3, seed=4)))
        return rows.clone()

    for how in (FIRST, "captured", "replayed"):
        outcome = run(toy, TOKENS, finish=finish)
        assert outcome.how == how
        assert_right(toy, TOKENS, None, outcome.result)
    assert [each.how for each in inner[1:]] == ["eager: it is called inside another captured call"] * 2
    assert_right(toy, tokens_of(9, 3, seed=4), None, inner[-1].result)


def test_a_call_inside_the_function(device):
    """An outer model whose function calls an inner one that captures for itself."""
    outer, toy, hows = Toy(), Toy(), []

    def rows(tokens, read):
        outcome = run(toy, tokens, read)
        hows.append(outcome.how)
        return outcome.result * 2

    def call():
        with torch.no_grad():
            weights = [*outer.parameters(), *toy.parameters()]
            return graphs.run(outer, rows, TOKENS, None, weights=lambda: weights, key=None, finish=torch.clone)

    for how in (FIRST, "captured", "replayed"):
        outcome = call()
        assert outcome.how == how
        assert_right(toy, TOKENS, None, outcome.result / 2)
    assert hows[0] == FIRST
    assert set(hows[1:]) == {"eager: it is called inside another captured call"}


def test_clearing_inside_finish(device):
    toy = Toy()

    def finish(rows):
        graphs.clear(toy)
        return rows.clone()

    for _ in range(2):
        run(toy, TOKENS)
    outcome = run(toy, TOKENS, finish=finish)
    assert outcome.how == "replayed"
    assert_right(toy, TOKENS, None, outcome.result)
    assert graphs.memory(toy) == (0, 0)
    assert not device._buried


def test_an_error_in_finish_gives_the_turn_back(device):
    toy = Toy()

    def finish(rows):
        raise KeyError("finish")

    for _ in range(4):
        with pytest.raises(KeyError):
            run(toy, TOKENS, finish=finish)
    assert run(toy, TOKENS).how in (FIRST, "replayed")
    assert not device._lock.locked()
    assert not device._captures.locked()


def test_a_child_process_starts_over(device):
    """It holds the parent's locks as they were, and graphs of a device that is not its own."""
    toy, released = Toy(), []
    for _ in range(2):
        run(toy, TOKENS)
    from bertfast.graphs import cache

    for captured in cache.of(toy).captured.values():
        captured.graph.reset = lambda: released.append(1)
    assert device.begin()  # as if another thread were in its turn
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert graphs.memory(toy) == (0, 0)
            with standing_in(Counting()):
                hows = [run(toy, TOKENS).how for _ in range(3)]
            assert hows == [FIRST, "captured", "replayed"], hows
            del toy
            assert not released
            assert not device._buried
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    device.end()
    assert run(toy, TOKENS).how == "replayed"


def how(toy):
    return graphs.run(
        toy, toy.rows, TOKENS, None, weights=lambda: list(toy.parameters()), key=None, finish=torch.clone
    ).how


def test_not_captured(device, monkeypatch):
    toy = Toy()
    for _ in range(2):
        run(toy, TOKENS)
    assert how(toy) == "eager: gradients are enabled"
    with torch.no_grad():
        assert how(toy) == "replayed"
        with FlopCounterMode(display=False):
            assert how(toy) == "eager: a transform or a dispatch mode is active"
        hows = []
        torch.vmap(lambda x: hows.append(how(toy)) or x)(torch.ones(2))
        assert hows == ["eager: a transform or a dispatch mode is active"]
        monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
        assert how(toy) == "eager: it is traced"
        monkeypatch.undo()
        monkeypatch.setattr(device, "is_capturing", lambda: True)
        assert how(toy) == "eager: its stream is being captured by its caller"
        monkeypatch.undo()
        assert how(toy) == "replayed"


def test_nothing_is_captured_on_a_cpu_unasked():
    toy = Toy()
    with torch.no_grad():
        assert {how(toy) for _ in range(3)} == {"eager: nothing is captured on cpu"}


def test_compiled(device):
    """The function is traced in place of a replay."""
    toy, hows = Toy(), []
    for _ in range(2):
        run(toy, TOKENS)

    def call(x):
        outcome = graphs.run(
            toy, lambda tokens, read: toy.dense(x), TOKENS, None,
            weights=lambda: list(toy.parameters()), key=None, finish=torch.clone,
        )  # fmt: skip
        hows.append(outcome.how)
        return outcome.result

    x = torch.randn(3, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(call, backend="eager", fullgraph=True)(x), toy.dense(x))
    assert hows == ["eager: it is traced"]


def test_two_threads_find_a_bucket_due(device, monkeypatch):
    """Whoever captures second replaces the other's graph, which is released."""
    toy, released = Toy(), []
    run(toy, TOKENS)
    from bertfast.graphs import inference

    capture = inference._capture

    def late(*given):
        monkeypatch.setattr(inference, "_capture", capture)
        assert run(toy, TOKENS).how == "captured"  # what another thread did between finding and capturing
        (first,) = inference.cache.of(toy).captured.values()
        reset = first.graph.reset
        first.graph.reset = lambda: released.append(reset())
        return capture(*given)

    monkeypatch.setattr(inference, "_capture", late)
    outcome = run(toy, TOKENS)
    assert outcome.how == "captured"
    assert len(released) == 1
    assert graphs.memory(toy).graphs == 1
    assert_right(toy, TOKENS, None, run(toy, TOKENS).result)
