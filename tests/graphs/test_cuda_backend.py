"""What CudaBackend asks of torch.cuda, in which order: on streams that are pretended, since there may be no GPU."""

from types import SimpleNamespace

import pytest
import torch
from fake_cuda import DEVICE, fake_cuda
from graph_cases import FIRST, POSITIONS, Counting, Toy, packed, run, standing_in, tokens_of
from pretend_streams import Cuda

from bertfast import _torch, graphs
from bertfast.graphs import backend as backends
from bertfast.graphs import cache
from bertfast.graphs.inputs import Inputs
from bertfast.graphs.workspaces import Workspaces
from bertfast.models import BertConfig, BertModel
from bertfast.triton import counters

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


@pytest.fixture
def device(cuda):
    return backends.CudaBackend(DEVICE)


def one():
    return (torch.ones(3),)


def test_a_warm_up_runs_on_the_callers_stream(cuda, device):
    """So that no memory but the pools' belongs to the stream of captures."""
    seen = []
    device.warm_up(lambda: seen.append(cuda.current.name) or one())
    assert seen == ["main"]
    assert cuda.log == []


def test_captures_share_a_pool_while_one_of_them_lives(cuda, device):
    """torch refuses to capture into a pool whose graphs were all reset."""
    first, second = device.capture(one), device.capture(one)
    first.reset()
    third = device.capture(one)
    second.reset()
    third.reset()
    device.capture(one)
    assert cuda.captures() == [
        f"capture {number} into pool {pool} on side, thread_local" for number, pool in ((1, 1), (2, 1), (3, 1), (4, 3))
    ]


def test_captures_have_counters_that_were_zeroed_before(cuda, device, monkeypatch):
    """Zeroed on the caller's stream, once: a memset that was captured would run with every replay."""
    seen, x = [], SimpleNamespace(device=DEVICE)
    monkeypatch.setattr(counters, "_PLAIN", frozenset((torch.Tensor, SimpleNamespace)))
    zeros = counters._zeros
    monkeypatch.setattr(counters, "_zeros", lambda device: seen.append(cuda.current.name) or zeros(device))
    found = []

    def capturing():
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        found.append(counters.of(x, 4))
        return one()

    device.capture(capturing, backends.INFERENCE)
    device.capture(capturing, backends.TRAINING)
    assert seen == ["main"]
    assert found[0] is found[1] is not None
    assert not found[0].any()


def test_workspaces_are_of_a_pool_that_stays(cuda, device):
    """A small capture goes before each, and ends after it: torch frees a stream's workspaces with a graph captured on it. The first
    lives on, so that their pool does."""
    graphs_made = [device.capture(one) for _ in range(2)]
    for graph in graphs_made:
        graph.reset()
    device.capture(one)
    small = "small capture into pool 2 on side, thread_local"
    assert [line for line in cuda.log if "capture" in line or line == "end of small"] == [
        small, "capture 1 into pool 1 on side, thread_local",
        small, "capture 2 into pool 1 on side, thread_local", "end of small",
        small, "capture 3 into pool 3 on side, thread_local", "end of small",
    ]  # fmt: skip


def test_workspaces_of_autograds_thread(cuda, device, monkeypatch):
    """A captured backward runs there, where cuBLAS has a handle and workspaces of its own: each small capture multiplies here and
    in a backward, on the stream of captures, and so does what loads the kernels beforehand."""
    seen = []
    monkeypatch.setattr(
        Workspaces,
        "_multiply",
        lambda self: seen.append((_torch.in_backward(), cuda.current.name, torch.is_grad_enabled())),
    )
    with torch.no_grad():
        device.capture(one)
        device.capture(one)
    grad = [where[2] for where in seen]
    assert [where[:2] for where in seen] == [
        (False, "main"), (True, "main"), (False, "side"), (True, "side"), (False, "side"), (True, "side"),
    ]  # fmt: skip
    assert not any(grad), "nothing of it is kept for another backward"


def test_pools_of_inference_and_training(cuda, device):
    first, second = device.capture(one), device.capture(one, backends.TRAINING)
    third = device.capture(one, backends.TRAINING)
    assert [line.split(" on ")[0] for line in cuda.captures()] == [
        "capture 1 into pool 1", "capture 2 into pool 3", "capture 3 into pool 3",
    ]  # fmt: skip
    for graph in (first, second, third):
        graph.reset()


def test_after_a_capture_that_broke_off(cuda, device):
    """The caller's stream is the current one again, and the next capture has a pool of its own. What torch still takes to be under
    way is ended, and a small capture that ends well lets the generator draw again."""
    first = device.capture(one)
    cuda.broken = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        device.capture(one)
    assert cuda.current.name == "main"
    broke = cuda.log.index("capture 2 into pool 1 on side, thread_local")
    assert cuda.log[broke + 1 : broke + 5] == [
        "reset 2", "no capture into pool 1 of device 0 is under way any more", "pool 1 of device 0 is released",
        "small capture into pool 3 on side, thread_local",
    ]  # fmt: skip
    assert "end of 2" not in cuda.log, "torch's allocators may hold its address"
    device.capture(one)
    first.reset()
    device.capture(one)
    assert [line.split(" on ")[0] for line in cuda.captures()] == [
        "capture 1 into pool 1", "capture 2 into pool 1", "capture 3 into pool 4", "capture 4 into pool 4",
    ]  # fmt: skip


def test_after_a_capture_that_torch_ended_itself(cuda, device, monkeypatch):
    """Its share of the pool was given back then, and is not once more."""

    def refuse(index, pool):
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", refuse, raising=False)
    cuda.broken = KeyError("the function's own")
    with pytest.raises(KeyError):
        device.capture(one)
    assert not any("released" in line for line in cuda.log)
    assert cuda.log[-2:] == ["small capture into pool 3 on side, thread_local", "end of small"]


def test_workspaces_that_cannot_be_had(cuda, device):
    """The error is the first one, nothing stays under way, and later captures begin with a pool of workspaces of their own."""
    cuda.small_broken = RuntimeError("no cuBLAS")
    with pytest.raises(RuntimeError, match="no cuBLAS"):
        device.capture(one)
    assert "no capture into pool 2 of device 0 is under way any more" in cuda.log
    assert cuda.current.name == "main"
    cuda.small_broken = None
    device.capture(one)
    assert [line for line in cuda.log if line.endswith("thread_local")][-2:] == [
        "small capture into pool 3 on side, thread_local",
        "capture 1 into pool 5 on side, thread_local",
    ]


@pytest.mark.parametrize("begin", ["begin", "begin_capture"])
def test_an_error_at_the_beginning_of_a_turn(cuda, device, monkeypatch, begin):
    """A device that is broken is an error in every thread, not a turn that others wait for."""
    assert device.begin()
    device.end()
    cuda.current = cuda.other

    def broken(stream, event):
        raise RuntimeError("an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(type(cuda.other), "wait_event", broken)
        with pytest.raises(RuntimeError, match="illegal"):
            getattr(device, begin)()
    assert not device.in_turn()
    assert device.begin_capture()
    device.end()


def test_an_error_in_letting_graphs_go(cuda, device):
    def broken():
        raise RuntimeError("broken")

    device._buried.append(broken)
    with pytest.raises(RuntimeError, match="broken"):
        device.begin_capture()
    assert not device.in_turn()
    assert device.begin_capture()
    device.end()


def test_the_allocator_is_told_of_streams_that_replay():
    """What is read by address may be freed while another stream's replay still runs. Once a stream, until a weight is replaced."""
    device, told, stream = Counting(), [], ["main"]
    device.stream = lambda: stream[0]
    device.keep = lambda tensors: told.append((len(tensors), stream[0]))
    with standing_in(device):
        toy, tokens = Toy(), tokens_of(9, 3)
        for stream[0] in ("main", "main", "main", "other", "other", "main"):
            run(toy, tokens)
        count = len(list(toy.parameters()))
        assert told == [(count, "main"), (count, "other")]
        toy.dense.weight.data = toy.dense.weight.data * 2
        for _ in range(4):
            run(toy, tokens)
        assert told == [(count, "main"), (count, "other"), (count, "main")]


def test_kept_tensors(cuda, device):
    class OnGpu:
        is_cuda = True

        def record_stream(self, stream):
            cuda.kept.append((self, stream))

    tensor = OnGpu()
    device.keep([None, tensor, torch.ones(2)])
    assert cuda.kept == [(tensor, cuda.current)]


def test_bytes_are_what_reserved_memory_grew_by(cuda, device):
    def function():
        cuda.reserved += 500
        return one()

    assert device.capture(function).nbytes == 500
    assert device.capture(one).nbytes == 0


def test_a_turn_on_another_stream_waits_on_the_device(cuda, device):
    for _ in range(2):
        assert device.begin()
        device.end()
    assert cuda.log == [], "the same stream needs no event"
    cuda.current = cuda.other
    for _ in range(2):
        assert device.begin()
        device.end()
    assert cuda.log == ["other waits for the event on main"]


def test_a_graph_is_reset_after_its_last_turn(cuda, device):
    graph = device.capture(one)
    assert device.begin()
    device.bury(graph.reset)
    assert "reset 1" not in cuda.log
    device.end()
    assert cuda.log[-2:] == ["host waits for the event on main", "reset 1"]


def test_nothing_is_reset_in_a_callers_capture(cuda, device, monkeypatch):
    graph = device.capture(one)
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        device.bury(graph.reset)
    assert "reset 1" not in cuda.log
    assert device.begin()
    device.end()
    assert "reset 1" in cuda.log


def test_settings_that_choose_kernels(cuda, device, monkeypatch):
    before = device.settings()
    assert hash(before) == hash(device.settings())
    was = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert device.settings() != before
    finally:
        torch.set_float32_matmul_precision("highest" if was == "highest" else was)
    torch.use_deterministic_algorithms(True)
    try:
        assert device.settings() != before
    finally:
        torch.use_deterministic_algorithms(False)


def test_reported_ids_raise_before_a_replay(cuda, device, monkeypatch):
    """A replay runs no Python in which a launcher would look for what an earlier kernel reported."""
    mailbox = pytest.importorskip("bertfast.triton.mailbox")

    def check(at):
        raise IndexError(f"reported on {at}")

    device.device = CPU
    device.staged = lambda source: source
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    with standing_in(device):
        toy, tokens = Toy(), tokens_of(9, 3)
        assert run(toy, tokens).how == FIRST
        with monkeypatch.context() as reported:
            reported.setattr(mailbox, "check", check)  # by the eager call, or by what warms up
            with pytest.raises(IndexError, match="reported on"):
                run(toy, tokens)
        assert [run(toy, tokens).how for _ in range(2)] == ["captured", "replayed"], "it is no failure of a capture"
        assert graphs.reasons(toy) == []
        monkeypatch.setattr(mailbox, "check", check)
        replays = cuda.log.count("replay 1")
        with pytest.raises(IndexError, match="reported on"):
            run(toy, tokens)
        assert cuda.log.count("replay 1") == replays
        graphs.clear(toy)
    assert not device._lock.locked()


def test_each_device_has_one_backend(cuda):
    backends._backends.pop(DEVICE, None)
    try:
        assert backends.of(DEVICE) is backends.of(DEVICE)
        assert isinstance(backends.of(DEVICE), backends.CudaBackend)
        assert backends.of(CPU) is None
    finally:
        backends._backends.pop(DEVICE, None)


SMALL = BertConfig(
    vocab_size=70, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=POSITIONS,
)  # fmt: skip


def fake_tokens(count, segments=True, at="cuda"):
    ids, bounds = torch.zeros(count, dtype=torch.int64, device=at), torch.zeros(3, dtype=torch.int32, device=at)
    return packed(ids, ids.clone(), ids.clone() if segments else None, bounds, bounds, 16)


@pytest.mark.parametrize("read", [None, "first", "named"])
@pytest.mark.parametrize("where", ["cuda", "cpu"])
def test_a_replay_waits_for_nothing(monkeypatch, read, where):
    """On fake CUDA tensors: the function that is captured, the filling of its buffers, and a replay around it."""
    model = BertModel(SMALL).to(torch.bfloat16).eval()
    with fake_cuda() as gpu, torch.no_grad():
        cuda = Cuda(monkeypatch)
        # A fake tensor has no address to look at, and being watched by its mode is what a real call is not.
        monkeypatch.setattr(cache, "stamp", lambda tensors: type("Always", (), {"holds": lambda self, tensors: True})())
        monkeypatch.setattr(_torch, "is_watched", lambda: False)
        monkeypatch.setattr(_torch, "is_transformed", lambda: False)
        monkeypatch.setattr(graphs.inference, "_difference", lambda replayed, rows: None)
        with gpu.preparing():
            model.cuda()
        calls = []

        def function(tokens, rows):
            calls.append(tokens.shape)
            return model.encode(tokens, rows)[0]

        monkeypatch.setattr(Inputs, "__init__", _prepared(gpu, Inputs.__init__))
        for how in (FIRST, "captured", "replayed"):
            with gpu.preparing():
                tokens = fake_tokens(24, at=where)
                rows = torch.zeros(5, dtype=torch.int64, device=where) if read == "named" else read
            gpu.ops.clear()
            outcome = graphs.run(
                model, function, tokens, rows, weights=lambda: list(model.parameters()), key=None, finish=torch.clone
            )
            assert outcome.how == how
            assert outcome.result.shape == ({None: 24, "first": 2, "named": 5}[read], 32)
        assert calls == [(24,)] * 3, "once eagerly, once to warm up, once captured, and never again"
        assert cuda.log[-1] == "replay 1"
        graphs.clear(model)
    moved = 5 if read == "named" else 4  # where tokens lie on the host: each tensor is copied there first
    assert gpu.ops.pop("_to_copy", 0) == (0 if where == "cuda" else moved)
    assert gpu.ops == {"_foreach_copy_": 2, "clamp": 1, "clone": 1}


def _prepared(gpu, make):
    def init(*given, **options):
        with gpu.preparing():  # buffers are made once, from numbers of the host
            make(*given, **options)

    return init
