"""Own models captured, by the stand-in: every head, layout and kind of input, beside the CPU's own way."""

import pytest
import torch
from captured import captured_on_cpu
from captured_cases import LAYOUTS, Counting, assert_right, eagerly, inputs_of, tensors_of
from model_cases import HEADS, PADDINGS, VOCAB, assert_close, labels_of, ours, padded

from bertfast import graphs
from bertfast.nn import tokens as nn_tokens


@pytest.fixture
def backend():
    with captured_on_cpu(Counting()) as backend:
        yield backend


@pytest.fixture
def lengths_unseen(monkeypatch):
    """Packed input is arranged as on a GPU, where looking at its bounds would be a wait: a tail stays, in sequences of its own."""
    whole = nn_tokens._packed

    def unseen(*given):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            return whole(*given)

    def switch(layout):
        if "unseen" in layout:
            monkeypatch.setattr(nn_tokens, "_packed", unseen)

    return switch


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_and_layout(backend, lengths_unseen, head, dtype, layout):
    lengths_unseen(layout)
    model = ours(head).eval().to(dtype)
    with torch.no_grad():
        results = [(model(**inputs), inputs) for inputs in (inputs_of(layout, number) for number in range(4))]
    assert (backend.captures, backend.replays) == (1, 2)
    assert graphs.memory(model).graphs == 1
    for output, inputs in results:  # those of earlier calls have memory of their own
        assert_right(output, model, inputs)


def test_a_wrong_graph_would_be_seen(backend):
    """What the comparison of every head sees: a replay whose rows are off by little."""
    model = ours("BertForTokenClassification").eval()
    inputs = inputs_of("right")
    with torch.no_grad():
        output = model(**inputs)
        output.logits[0, 0, 0] += 1e-3
    with pytest.raises(AssertionError, match="over the budget"):
        assert_right(output, model, inputs)


@pytest.mark.parametrize("layout", ["none", "right", "packed with a tail"])
@pytest.mark.parametrize("head", [head for head in HEADS if head != "BertModel"])
def test_losses(backend, head, layout):
    """Evaluation with labels; of the masked-word heads too, whose loss shares the word table only with gradients."""
    model = ours(head).eval()
    inputs = inputs_of(layout)
    labels = labels_of(head, padded(layout if layout in PADDINGS else "right"))
    if "cu_seqlens" in inputs:
        real = padded("right")["attention_mask"].bool()
        tail, empty = torch.full((5,), -100), torch.full((2,), -100)
        labels = {
            name: torch.cat([value[real], tail] if value.shape == real.shape else [value, empty])
            for name, value in labels.items()
        }
    with torch.no_grad():
        outputs = [model(**inputs, **labels) for _ in range(3)]
    assert (backend.captures, backend.replays) == (1, 1)
    eager = eagerly(model, inputs | labels)
    for output in map(tensors_of, outputs):
        assert set(output) == set(eager)
        for name, value in output.items():  # a lone number's rounding is luck
            assert_close(value, eager[name], name)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(backend, mode):
    model, inputs = ours("BertModel").eval(), inputs_of("right")
    for call in range(4):
        with (torch.no_grad, mode)[call % 2]():
            output = model(**inputs)
    assert (backend.captures, backend.replays) == (1, 2)
    assert_right(output, model, inputs)


def test_gradients_are_never_lost(backend):
    model, inputs = ours("BertForSequenceClassification").eval(), inputs_of("right")
    with torch.no_grad():
        for _ in range(3):
            model(**inputs)
    model(**inputs, labels=torch.zeros(4, dtype=torch.int64)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert backend.replays == 1


def test_autocast(backend):
    """Copies of the weights in bfloat16, which replays refresh."""
    model, inputs = ours("BertForTokenClassification").eval(), inputs_of("right")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            model(**inputs)
        model.bert.encoder.layer[0].output.dense.weight.mul_(1.5)
        output = model(**inputs)
        assert (backend.captures, backend.replays) == (1, 2)
        assert_right(output, model, inputs)
    with torch.no_grad():
        output = model(**inputs)
    assert backend.replays == 2
    assert output.logits.dtype == torch.float32


def test_a_token_budget_that_changes(backend):
    """Packed batches of a fixed size each, as a loader makes them: a graph for each size, and one for sizes of one bucket."""
    model = ours("BertForTokenClassification").eval()

    for number, size in enumerate((64, 64, 64, 128, 128, 128, 64, 128, 126, 127)):
        generator = torch.Generator().manual_seed(number)
        bounds = torch.arange(0, size + 16, 16, dtype=torch.int32).clamp(max=size)
        inputs = {"input_ids": torch.randint(1, VOCAB, (size,), generator=generator)}
        inputs |= {"cu_seqlens": bounds, "max_seqlen": 16}
        with torch.no_grad():
            assert_right(model(**inputs), model, inputs)
    assert (backend.captures, backend.replays) == (2, 6)
    assert graphs.memory(model).graphs == 2


@pytest.mark.parametrize("head", ["BertModel", "BertForNextSentencePrediction", "BertForTokenClassification"])
def test_empty_sequences(backend, lengths_unseen, head):
    lengths_unseen("unseen")
    model = ours(head).eval()
    ids = torch.arange(1, 13)
    with torch.no_grad():
        for number, lengths in enumerate([(0, 5, 0, 7), (4, 0, 8, 0), (0, 0, 0, 12), (12, 0, 0, 0), (0, 0, 0, 0)]):
            bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
            inputs = {"input_ids": ids.roll(number), "cu_seqlens": bounds, "max_seqlen": 12}
            output = model(**inputs)
            if head == "BertModel":
                empty = torch.tensor(lengths) == 0
                assert not output.pooler_output[empty].any()
                assert output.pooler_output[~empty].any(1).all()
            assert_right(output, model, inputs)
    assert (backend.captures, backend.replays) == (1, 3)


@pytest.mark.parametrize("layout", ["right", "none", "packed"])
def test_position_ids_given(backend, layout):
    model = ours("BertForTokenClassification").eval()
    with torch.no_grad():
        for number in range(4):
            inputs = inputs_of(layout, number)
            places = torch.arange(12) + number
            if layout == "packed":
                inputs["position_ids"] = inputs["position_ids"] + number
            else:
                inputs["position_ids"] = (places, places[None], places.expand(4, -1), places.int())[number]
            assert_right(model(**inputs), model, inputs)
    assert (backend.captures, backend.replays) == (1, 2)


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
@pytest.mark.parametrize("call", range(3))
def test_bad_ids(backend, name, call):
    """First, captured or replayed: the error of an eager call, and the calls after it go on."""
    model = ours("BertForTokenClassification").eval()
    good, bad = inputs_of("packed"), inputs_of("packed")
    bad[name] = bad[name].clone()
    bad[name][3] = 999
    with torch.no_grad():
        for _ in range(call):
            model(**good)
        with pytest.raises(IndexError, match="999"):
            model(**bad)
        for _ in range(3):
            assert_right(model(**good), model, good)
    assert backend.captures == 1
    assert backend.replays >= 1


def test_bad_bounds(backend):
    model, inputs = ours("BertForTokenClassification").eval(), inputs_of("packed")
    with torch.no_grad():
        for _ in range(3):
            model(**inputs)
        with pytest.raises(ValueError, match="rise from 0"):
            model(**inputs | {"cu_seqlens": inputs["cu_seqlens"] + 9})
        assert_right(model(**inputs), model, inputs)
    assert backend.replays == 2
