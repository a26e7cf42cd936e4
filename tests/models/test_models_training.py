"""Training: dropout and its seeds, checkpointing, compiled graphs, autocast, sharding, copies, initial weights."""

import copy
import shutil
import socket
import warnings

import pytest
import torch
import torch.distributed as dist
from model_cases import (
    HEADS,
    assert_close,
    assert_same_gradients,
    gradients,
    labels_of,
    ours,
    packed,
    padded,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from bertfast import models
from bertfast.nn import encoder


def pretraining(tail=5, slots=9):
    """Packed input of fixed shapes: tail padding, empty sequences, empty slots."""
    inputs = padded()
    labels = labels_of("BertForPreTraining", inputs)
    flat = torch.cat([labels["labels"][inputs["attention_mask"].bool()], torch.full((tail,), -100)])
    masked = (flat != -100).nonzero()[:, 0]
    positions = torch.cat([masked, torch.full((slots - len(masked),), -1)])
    sentences = torch.cat([labels["next_sentence_label"], torch.tensor([-1, -1])])
    return {**packed(inputs, tail), "labels": flat, "masked_positions": positions, "next_sentence_label": sentences}


def step(model, inputs, seed=3):
    torch.manual_seed(seed)
    loss = model(**inputs).loss
    return loss.detach(), gradients(model, loss)


@pytest.mark.parametrize("head", HEADS[1:])
def test_one_seed_is_one_step_and_another_is_another(head):
    model = ours(head, dropout=0.1)
    inputs = {**padded(), **labels_of(head, padded())}
    first, again, other = step(model, inputs), step(model, inputs), step(model, inputs, seed=4)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert all(torch.equal(value, again[1][name]) for name, value in first[1].items())
    assert torch.equal(step(model.eval(), inputs)[0], step(model, inputs, seed=4)[0])


def test_dropout_leaves_the_mean_of_hidden_states():
    """Over many draws the mean loss comes near that without dropout, and every draw differs from it."""
    model = ours("BertForPreTraining", dropout=0.1, initializer_range=0.02)
    inputs = pretraining()
    with torch.no_grad():
        torch.manual_seed(0)
        drawn = torch.stack([model(**inputs).mlm_loss for _ in range(200)])
        want = model.eval()(**inputs).mlm_loss
    assert float(drawn.std()) > 1e-3
    assert abs(float(drawn.mean() - want)) < 0.05 * float(want)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_checkpointing_draws_the_same_dropout(layout, monkeypatch):
    model = ours("BertForPreTraining", dropout=0.2, num_hidden_layers=3)
    inputs = pretraining() if layout == "packed" else {**padded(), **labels_of("BertForPreTraining", padded())}
    want = step(model, inputs)
    calls, original = [], encoder.checkpoint
    monkeypatch.setattr(encoder, "checkpoint", lambda *a, **o: calls.append(a[0]) or original(*a, **o))
    model.gradient_checkpointing_enable()
    got = step(model, inputs)
    assert calls == list(model.bert.encoder.layer)
    assert_close(got[0], want[0], "loss")
    assert_same_gradients(got[1], want[1])
    model.eval()(**inputs)  # nothing to save memory for
    with torch.no_grad():
        model.train()(**inputs)
    model.gradient_checkpointing_disable()
    model(**inputs)
    assert len(calls) == 3


def test_checkpointing_keeps_less():
    model = ours("BertForMaskedLM", dropout=0.1, num_hidden_layers=6)
    inputs = {**padded(), **labels_of("BertForMaskedLM", padded())}

    def kept():
        total = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: total.append(t.nbytes) or t, lambda t: t):
            model(**inputs)
        return sum(total)

    whole = kept()
    model.gradient_checkpointing_enable()
    assert kept() < whole / 2


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_full_graph(fresh_compiler):
    """Packed input of fixed shapes, tail padding and empty slots: one graph for another split of the same tokens too."""
    model = ours("BertForPreTraining")
    inputs = pretraining()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    split = {**inputs, "cu_seqlens": torch.tensor([0, 4, 12, 20, 25, 28, 28], dtype=torch.int32)}
    split["position_ids"] = torch.arange(28) % 4
    torch._dynamo.utils.counters.clear()
    for each in (inputs, split):
        want, got = step(model, each), step(compiled, each)
        assert_close(got[0], want[0], "loss")
        assert_same_gradients({n.removeprefix("_orig_mod."): g for n, g in got[1].items()}, want[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++, which is not here")
def test_generated_code(fresh_compiler):
    """Inference alone: the code around our ops is the same in training, and g++ takes long."""
    model, inputs = ours("BertForPreTraining", num_hidden_layers=1).eval(), pretraining()
    with torch.no_grad():
        got, want = torch.compile(model, fullgraph=True)(**inputs), model(**inputs)
    assert_close(got.seq_relationship_logits, want.seq_relationship_logits, "logits")
    assert_close(got.loss, want.loss, "loss")


@pytest.mark.parametrize("head", [head for head in HEADS if head != "BertForPreTraining"])
def test_full_graph_of_every_head(head, fresh_compiler):
    model = ours(head, num_hidden_layers=1)
    inputs = packed(padded(), tail=5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for arguments in (inputs, {n: v for n, v in padded("none").items() if n != "attention_mask"}):
        with torch.no_grad():
            want, got = model.eval()(**arguments), compiled(**arguments)
        real = 23 if "cu_seqlens" in arguments else None  # the tail's rows are nobody's
        for name, value in vars(want).items():
            if value is not None:
                rows = real if value.shape[0] == 28 else None
                assert_close(getattr(got, name)[:rows], value[:rows], name)


def test_full_graph_with_dropout_and_checkpointing(fresh_compiler):
    model = ours("BertForPreTraining", dropout=0.1, num_hidden_layers=1)
    model.gradient_checkpointing_enable()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    first, again, other = (step(compiled, pretraining(), seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert all(torch.equal(value, again[1][name]) for name, value in first[1].items())


@pytest.fixture
def one_rank():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fully_sharded(one_rank, checkpointing, tmp_path):
    model = ours("BertForPreTraining", dropout=0.1)
    inputs = pretraining()
    want = step(copy.deepcopy(model), inputs)
    if checkpointing:
        model.gradient_checkpointing_enable()
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = step(model, inputs)
    assert_close(got[0], want[0], "loss")
    assert_same_gradients({name: value.full_tensor() for name, value in got[1].items()}, want[1], 1e-6)
    with torch.no_grad():
        model.eval()(**inputs)
    with pytest.raises(ValueError, match=r"DTensor.*gather"):
        model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, state_dict={n: v.full_tensor() for n, v in model.state_dict().items()})
    assert models.BertForPreTraining.from_pretrained(tmp_path).num_parameters() == model.num_parameters()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_data_parallel(one_rank, static, checkpointing):
    """Also a batch with nothing to predict, where every parameter still gets its zeros."""
    model = ours("BertForPreTraining", dropout=0.1)
    if checkpointing:
        model.gradient_checkpointing_enable()
    inputs = pretraining()
    want = step(copy.deepcopy(model), inputs)
    parallel = DistributedDataParallel(model, static_graph=static)
    for _ in range(2):
        got = step(parallel, inputs)
        assert_same_gradients({n.removeprefix("module."): g for n, g in got[1].items()}, want[1], 1e-6)
    nothing = {**inputs, "masked_positions": inputs["masked_positions"].fill_(-1)}
    nothing["next_sentence_label"] = nothing["next_sentence_label"].fill_(-1)
    assert not any(g.any() for g in step(parallel, nothing)[1].values())


def test_copies_are_independent():
    model = ours("BertForPreTraining", dropout=0.1)
    with torch.no_grad():
        model.eval()(**pretraining())  # with the reordered weights that inference keeps
    twin = copy.deepcopy(model)
    want = step(model.train(), pretraining())
    assert_close(step(twin.train(), pretraining())[0], want[0], "the copy's loss")
    with torch.no_grad():
        twin.bert.embeddings.word_embeddings.weight.add_(1)
    assert_close(step(model, pretraining())[0], want[0], "loss")
    assert twin.config == model.config


def test_initial_weights():
    model = ours("BertForPreTraining", hidden_size=128)
    model.init_weights(torch.Generator().manual_seed(0))
    first = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights(torch.Generator().manual_seed(0))
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
    for name, value in first.items():
        if name.endswith("LayerNorm.weight"):
            assert bool((value == 1).all())
        elif name.endswith("bias"):
            assert not value.any(), name
        else:
            assert float(value.std()) == pytest.approx(0.2, rel=0.2), name
            assert abs(float(value.mean())) < 0.05, name
    words = first["bert.embeddings.word_embeddings.weight"]
    assert not words[0].any()
    assert bool(words[1:].any(1).all())


def test_number_of_parameters():
    model = ours("BertForMaskedLM")
    assert model.num_parameters() == sum(value.numel() for value in model.state_dict().values())
    model.bert.embeddings.requires_grad_(False)
    embeddings = sum(p.numel() for p in model.bert.embeddings.parameters())
    assert model.num_parameters(only_trainable=True) == model.num_parameters() - embeddings
