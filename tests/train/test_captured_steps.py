"""Captured steps give the numbers of eager ones, bit for bit: on a tape in a graph's place, with references for kernels."""

import dataclasses
import itertools
import os
import signal
import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from small_corpus import write_corpus
from stepping import SteppingTape, stepping

from bertfast import _library
from bertfast.graphs import backend as backends
from bertfast.models import BertConfig, BertForPreTraining
from bertfast.nn import joined
from bertfast.ops.optimizer import addresses
from bertfast.train import captured, journal, one_pass
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks
from bertfast.train.errors import NotFiniteError, StoppedError
from bertfast.train.loop import train
from bertfast.train.pretrain import PretrainTask
from bertfast.train.pretrain_config import DataOptions, ModelOptions, PretrainConfig

pytestmark = pytest.mark.usefixtures("no_pictures")
LATE = 4  # steps until whether all was finite is read
STEPS = 7


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return write_corpus(folder / "train", 60), write_corpus(folder / "held", 12, seed=1)


def config_of(corpora, data=None, **options):
    given = {"steps": STEPS, "device": "cpu", "log_every": 2, "learning_rate": 3e-3, "save_every": None}
    return PretrainConfig(
        corpus=str(corpora[0]),
        out="",
        eval=str(corpora[1]),
        model=ModelOptions(hidden=32, layers=2, heads=2, positions=64),
        data=DataOptions(**{"token_budget": 128, "max_seq_length": 64, "workers": 0} | (data or {})),
        train=TrainConfig(**given | options),
    )


def run(folder, config, resume=False, task=PretrainTask):
    return train(task(config), config.train, folder, resume=resume, read_every=LATE)


def log(folder, event):
    left_out = ("seconds", "tokens_per_second", "memory_gib", "mfu", "text")
    lines = [line for line in journal.read(folder / "log.jsonl") if line["event"] == event]
    return [{key: value for key, value in line.items() if key not in left_out} for line in lines]


def notes(folder):
    return [line["text"] for line in journal.read(folder / "log.jsonl") if line["event"] == "note"]


def assert_same(one, other, step=STEPS):
    """Weights, optimizer, random states, logged losses and evaluations."""
    for name in ("model", "optimizer", "rng"):
        a, b = (load_file(folder / f"checkpoints/step-{step:08d}/{name}.safetensors") for folder in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), f"{name}: {key}"
    for event in ("train", "eval"):
        assert log(one, event) == log(other, event) != []


CASES = {
    "plain": {},
    "accumulation": {"batches_per_step": 3},
    "lamb": {"optimizer": "lamb"},
    "bfloat16": {"precision": "bf16"},
    "evaluation between": {"eval_every": 1, "log_every": 1, "save_every": 2},
    "without clipping": {"max_grad_norm": 0.0, "batches_per_step": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_captured_equals_eager(corpora, tmp_path, name):
    config = config_of(corpora, **CASES[name])
    with stepping():
        run(tmp_path / "eager", eager_of(config))
    with stepping() as tape:
        run(tmp_path / "captured", config)
    graphs = 3 if config.train.batches_per_step > 1 else 2
    assert tape.captures == graphs
    assert tape.replays == (STEPS - 1) * (config.train.batches_per_step + 1)
    assert_same(tmp_path / "eager", tmp_path / "captured")
    said = [note for note in notes(tmp_path / "captured") if "steps" in note]
    assert said == [f"steps are captured in CUDA graphs: {graphs} graphs, 0.0 GiB"]
    assert "steps run eagerly: cuda_graphs is false" in notes(tmp_path / "eager")


@pytest.mark.parametrize("name", ["plain", "lamb", "bfloat16", "without clipping"])
def test_captured_in_one_pass(corpora, tmp_path, name, monkeypatch):
    """With optimizers that clip and write copies themselves; where tensors lie is noted before the update is captured."""
    placed = []

    def op(name, device):
        launch = _library.resolved(name, "CUDA")

        def call(*args):
            if not addresses.is_placing():
                return launch(*args)
            placed.append(name)
            return torch.zeros(len(args[0]), 2)

        return call

    monkeypatch.setattr(one_pass, "runs", lambda name, device: True)
    monkeypatch.setattr(one_pass, "op", op)
    config = config_of(corpora, **CASES[name])
    with stepping():
        run(tmp_path / "eager", eager_of(config))
    assert placed == []
    with stepping():
        run(tmp_path / "captured", config)
    assert placed == ["gradient_norm", *(["lamb_moments", "lamb_step"] if name == "lamb" else ["adamw_step"])]
    assert_same(tmp_path / "eager", tmp_path / "captured")
    assert any("steps are captured in CUDA graphs" in note for note in notes(tmp_path / "captured"))


def eager_of(config):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, cuda_graphs=False))


@pytest.fixture(scope="module")
def eager(corpora, tmp_path_factory):
    """A run of two micro-batches a step whose steps were not captured."""
    folder = tmp_path_factory.mktemp("eager") / "run"
    with stepping(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertfast.train.curves.draw", lambda *_: None)
        run(folder, eager_of(config_of(corpora, batches_per_step=2)))
    return folder


@pytest.mark.parametrize("stops", [[1], [2], [4], [3, 5]], ids=str)
def test_resuming_gives_the_bits_of_one_run(corpora, eager, tmp_path, stops):
    for number, stop in enumerate([*stops, None]):
        with stepping():
            config = config_of(corpora, batches_per_step=2, stop_at=stop)
            assert run(tmp_path / "run", config, resume=number > 0).finished == (stop is None)
    assert_same(eager, tmp_path / "run")


def test_resuming_with_or_without_graphs(corpora, eager, tmp_path):
    """Whether steps are captured may change when a run is resumed."""
    with stepping():
        run(tmp_path / "run", eager_of(config_of(corpora, batches_per_step=2, stop_at=3)))
        run(tmp_path / "run", config_of(corpora, batches_per_step=2), resume=True)
    assert_same(eager, tmp_path / "run")


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_gradient_checkpointing(corpora, tmp_path, rate):
    """Whether or not what draws the dropout again can be captured, the numbers are an eager run's."""
    config = config_of(corpora, gradient_checkpointing=True)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=rate))
    with stepping(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        run(tmp_path / "eager", eager_of(config))
        run(tmp_path / "captured", config)
    assert_same(tmp_path / "eager", tmp_path / "captured")
    if not rate:
        assert "steps are captured in CUDA graphs: 2 graphs, 0.0 GiB" in notes(tmp_path / "captured")


def test_a_signal_in_the_middle(corpora, eager, tmp_path):
    class Signalled(PretrainTask):
        def loader(self, rank, ranks):
            return Hooked(super().loader(rank, ranks), {9: lambda _: os.kill(os.getpid(), signal.SIGTERM)})

    config = config_of(corpora, batches_per_step=2)
    with stepping() as tape, pytest.raises(StoppedError, match="after step 5 of 7"):
        run(tmp_path / "run", config, task=Signalled)
    assert tape.captures == 3
    with stepping():
        run(tmp_path / "run", config, resume=True)
    assert_same(eager, tmp_path / "run")


class Hooked:
    """A loader that calls functions of the batches with some numbers, from 0."""

    def __init__(self, loader, functions):
        self.inner, self.functions = loader, functions

    def __iter__(self):
        for number, batch in enumerate(self.inner):
            if number in self.functions:
                self.functions[number](batch)
            yield batch

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("bad", [2, 3, 6])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_what_is_not_finite(corpora, tmp_path, bad, optimizer, monkeypatch):
    """A label that names no word makes its loss NaN on a GPU. At the step that captures, and at replays."""
    monkeypatch.setattr(sys.modules["bertfast.ops.masked_lm_loss.reference"], "check_labels", lambda *_: None)

    def spoil(batch):
        batch.labels["labels"][batch.labels["masked_positions"][0]] = 10**6

    tasks = []

    class Poisoned(PretrainTask):
        def loader(self, rank, ranks):
            tasks.append(self)
            return Hooked(super().loader(rank, ranks), {2 * bad - 1: spoil})

    options = {"batches_per_step": 2, "optimizer": optimizer, "log_every": 100}
    with stepping(), pytest.raises(NotFiniteError, match=rf"step {bad}: .*mlm_loss is nan"):
        run(tmp_path / "run", config_of(corpora, **options), task=Poisoned)
    kept = load_file(tmp_path / f"run/bad-batch-step-{bad}.safetensors")
    assert (kept["1.labels"] == 10**6).sum() == 1
    with stepping():
        run(tmp_path / "before", eager_of(config_of(corpora, **options, stop_at=bad - 1)))
    before = load_file(tmp_path / f"before/checkpoints/step-{bad - 1:08d}/model.safetensors")
    after = tasks[0].model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("CUDA out of memory")], ids=["error", "memory"])
@pytest.mark.parametrize("number", [1, 2, 3], ids=["M1", "M2", "U"])
def test_a_capture_that_fails(corpora, eager, tmp_path, number, error):
    tape = SteppingTape((number,), error)
    said = pytest.warns(UserWarning, match="could not be captured") if error is None else nullcontext()
    with stepping(tape), said:
        run(tmp_path / "run", config_of(corpora, batches_per_step=2))
    assert tape.captures == number, "once and never again"
    assert_same(eager, tmp_path / "run")
    (note,) = [note for note in notes(tmp_path / "run") if "steps" in note]
    reason = "capturing raised RuntimeError: operation not permitted" if error is None else "there is no memory"
    assert note.startswith(f"steps run eagerly: {reason}")


def test_a_replay_that_differs(corpora, eager, tmp_path):
    class Wrong(SteppingTape):
        """As if something that changes between steps had been read when it was captured."""

        def capture(self, function, pool=backends.INFERENCE):
            graph = super().capture(function, pool)
            if self.captures == 1:
                replay = graph.replay

                def wrong(function):
                    replay(function)
                    self.gradient = next(p.grad for p in Watched.model.parameters() if p.grad is not None)
                    self.gradient.mul_(1.5)

                graph.replay = wrong
            return graph

    class Watched(PretrainTask):
        def loader(self, rank, ranks):
            Watched.model = self.model
            return super().loader(rank, ranks)

    with stepping(Wrong()), pytest.warns(UserWarning, match="a replay differs from the eager step in 1 of"):
        run(tmp_path / "run", config_of(corpora, batches_per_step=2), task=Watched)
    assert_same(eager, tmp_path / "run")


def test_eager_steps_that_do_not_repeat_their_bits(corpora, tmp_path, monkeypatch):
    """Then a replay need be as near as they are to one another, and the log says so."""
    figures, scale = captured.CapturedStep._figures, itertools.count()

    def shaken(self):
        sums, norms = figures(self)
        return [sums, norms * (1 + 1e-6 * next(scale))]

    monkeypatch.setattr(captured.CapturedStep, "_figures", shaken)
    with stepping() as tape:
        run(tmp_path / "run", config_of(corpora))
        run(tmp_path / "eager", eager_of(config_of(corpora)))
    assert tape.replays > STEPS
    assert_same(tmp_path / "eager", tmp_path / "run")
    assert any("their numbers are those of eager steps to rounding" in note for note in notes(tmp_path / "run"))


def test_a_weight_that_is_replaced(corpora, tmp_path):
    """Its graphs read the old one: they go, and the next steps start over."""

    def replace(task):
        weight = task.model.bert.encoder.layer[0].output.dense.weight
        weight.data = weight.data * 0.5

    folders = {True: tmp_path / "captured", False: tmp_path / "eager"}
    for cuda_graphs, folder in folders.items():

        class Replacing(PretrainTask):
            def loader(self, rank, ranks):
                return Hooked(super().loader(rank, ranks), {4: lambda _: replace(self)})

        with stepping() as tape:
            run(folder, config_of(corpora, cuda_graphs=cuda_graphs), task=Replacing)
        assert tape.captures == (4 if cuda_graphs else 0)
    assert_same(*folders.values())


def test_another_thread_captures(corpora, eager, tmp_path, monkeypatch):
    """Such a step runs eagerly, with gradients of its own, and later ones are replayed again."""
    with stepping() as tape:
        answers = itertools.cycle([True, True, False])
        begin = tape.begin
        monkeypatch.setattr(tape, "begin", lambda: next(answers) and begin())
        run(tmp_path / "run", config_of(corpora, batches_per_step=2))
    assert tape.captures == 3
    assert 3 < tape.replays < 3 * (STEPS - 1)
    assert_same(eager, tmp_path / "run")


def test_padded_batches_run_eagerly(corpora, tmp_path):
    with stepping() as tape:
        run(tmp_path / "run", config_of(corpora, {"layout": "padded"}, steps=3))
    assert tape.captures == 0
    (note,) = [note for note in notes(tmp_path / "run") if "steps" in note]
    assert note.startswith("steps run eagerly: batches are padded")


def test_why_not():
    model = BertForPreTraining(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    config, alone = TrainConfig(steps=1), Ranks(0, 1, torch.device("cpu"))

    def reason(model=model, ranks=alone, late=True, **options):
        return captured.reason_against(model, dataclasses.replace(config, **options), ranks, late)

    assert reason() is None
    assert reason(cuda_graphs=False) == "cuda_graphs is false"
    assert reason(compile=True) == "the model is compiled"
    assert reason(late=False) == "every step is read before its update"
    assert reason(ranks=Ranks(0, 2, alone.device)) is None
    assert reason(ranks=Ranks(0, 2, alone.device), parallel="fsdp") == "FSDP shards the weights"
    assert reason(torch.nn.Linear(2, 2)) == "Linear is none of bertfast's models"
    hook = model.bert.pooler.register_forward_hook(lambda *_: None)
    assert reason() == "bert.pooler has a hook"
    hook.remove()
    hook = model.bert.pooler.dense.bias.register_post_accumulate_grad_hook(lambda _: None)
    assert reason() == "bert.pooler.dense.bias has a hook"
    hook.remove()
    hook = model.bert.pooler.dense.bias.register_hook(lambda _: None)
    assert reason() == "bert.pooler.dense.bias has a hook"
    hook.remove()
    assert reason() is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_read_copies_that_follow_the_weights(corpora, tmp_path, monkeypatch, precision):
    """Held copies are written after each update: a run with them has the bits of one that copies weights for every call."""
    config = config_of(corpora, precision=precision, batches_per_step=2, eval_every=2)
    written = []
    refresh = joined.Held.refresh
    monkeypatch.setattr(joined.Held, "refresh", lambda self: written.append(self.nbytes()) or refresh(self))
    with stepping():
        run(tmp_path / "held", config)
    assert len(written) >= 2  # of the eager step and of the capture; replays run no Python
    assert min(written) > 0
    monkeypatch.setattr(joined, "held_copies", lambda *_: None)
    with stepping():
        run(tmp_path / "fresh", config)
    assert_same(tmp_path / "held", tmp_path / "fresh")
