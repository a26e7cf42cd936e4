"""Every model against transformers': outputs and all gradients, padded and packed, float64 and float32, training and inference."""

import pytest
import torch
from model_cases import (
    HEADS,
    PADDINGS,
    assert_close,
    assert_same_gradients,
    gradients,
    labels_of,
    of_sequences_alone,
    packed,
    padded,
    pair,
    projection,
)

from bertfast import models
from bertfast.testing import assert_within_budget, rms_error

by_head = pytest.mark.parametrize("head", HEADS)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def at_tokens(value, real):
    return value[real] if value.shape[:2] == real.shape else value


def stock_call(head, stock, inputs, labels):
    if head == "BertForQuestionAnswering" and labels:
        return of_sequences_alone(stock, inputs, labels)
    return stock(**inputs, **labels)


def packed_labels(labels, real, head):
    return {name: value[real] if value.shape == real.shape else value for name, value in labels.items()}


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", PADDINGS)
@by_head
def test_outputs(head, padding, dtype, gradient):
    stock, ours = pair(head, dtype)
    inputs = padded(padding)
    real = inputs["attention_mask"].bool()
    with torch.set_grad_enabled(gradient):
        want, got = stock(**inputs), ours(**inputs)
        flat = ours(**packed(inputs))
    found = {name: value for name, value in vars(got).items() if value is not None}
    assert set(found) == {name for name, value in want.items() if value is not None}
    for name, value in found.items():
        per_token = value.shape[:2] == real.shape
        if per_token:
            assert not value[~real].any(), f"{name} is not zero at padding"
            assert_close(value[real], getattr(flat, name), f"packed {name}", TOLERANCE[dtype])
        if per_token or padding != "left":  # transformers pools padding there
            assert_close(at_tokens(value, real), at_tokens(want[name], real), name, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", ["none", "right", "holes"])
@by_head
def test_loss_and_gradients(head, padding, dtype):
    if head == "BertForQuestionAnswering" and padding == "holes":
        pytest.skip("places of answers in transformers count holes")
    stock, ours = pair(head, dtype)
    inputs = padded(padding)
    real = inputs["attention_mask"].bool()
    labels = {} if head == "BertModel" else labels_of(head, inputs)
    tolerance = TOLERANCE[dtype] * 5
    want = stock_call(head, stock, inputs, labels)
    loss = projection(want, real) if head == "BertModel" else want.loss
    expected = gradients(stock, loss)
    arguments = packed(inputs)
    for got in (ours(**inputs, **labels), ours(**arguments, **packed_labels(labels, real, head))):
        if head == "BertModel":
            flat = got.last_hidden_state.dim() == 2
            states = torch.zeros(*real.shape, 64, dtype=dtype)
            got.last_hidden_state = (
                states.masked_scatter(real[..., None], got.last_hidden_state) if flat else got.last_hidden_state
            )
            mine = projection(got, real)
        else:
            mine = got.loss
        assert_close(mine, loss, "loss", tolerance)
        assert_same_gradients(gradients(ours, mine), expected, tolerance)


@by_head
def test_tail_padding_and_empty_sequences_do_not_matter(head):
    """With labels in the tail too, which belong to nobody."""
    _, ours = pair(head)
    inputs = padded()
    real, tokens, batch = inputs["attention_mask"].bool(), int(inputs["attention_mask"].sum()), 4
    labels = {} if head == "BertModel" else labels_of(head, inputs)
    labels = packed_labels(labels, real, head)
    longer = {
        name: torch.cat([value, torch.ones(5 if value.shape == (tokens,) else 2, dtype=torch.int64)])
        for name, value in labels.items()
    }
    arguments = packed(inputs, tail=5)
    arguments["input_ids"][tokens:] = 10**6  # nobody looks at them on a CPU
    short, long = ours(**packed(inputs), **labels), ours(**arguments, **longer)
    for name, value in vars(short).items():
        if value is None or value.dim() == 0:
            continue
        other = getattr(long, name)
        assert other.shape[0] == value.shape[0] + (5 if value.shape[0] == tokens else 2)
        assert_close(other[: value.shape[0]], value, name)
        assert torch.isfinite(other).all(), name
    if head == "BertModel":
        short.loss, long.loss = (
            o.last_hidden_state[:tokens].exp().sum() + o.pooler_output[:batch].sum() for o in (short, long)
        )
    want = gradients(ours, short.loss)
    got = gradients(ours, long.loss)
    assert_close(long.loss, short.loss, "loss")
    assert_same_gradients(got, want)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh"])
def test_tanh_gelu(activation):
    stock, ours = pair("BertForMaskedLM", torch.float64, hidden_act=activation)
    assert_close(ours(**padded("none")).logits, stock(**padded("none")).logits, "logits", 1e-12)


@pytest.mark.parametrize(("hidden", "heads", "wide"), [(60, 3, 100), (24, 4, 33), (8, 1, 8)])
def test_odd_sizes(hidden, heads, wide):
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": wide, "num_hidden_layers": 3}
    stock, ours = pair("BertForPreTraining", **sizes, vocab_size=101, type_vocab_size=3)
    inputs, labels = padded(), labels_of("BertForPreTraining", padded())
    with torch.no_grad():
        assert_close(
            ours(**inputs).prediction_logits[inputs["attention_mask"].bool()],
            stock(**inputs).prediction_logits[inputs["attention_mask"].bool()],
            "logits",
        )
    assert_same_gradients(
        gradients(ours, ours(**inputs, **labels).loss), gradients(stock, stock(**inputs, **labels).loss)
    )


@by_head
def test_bfloat16_inference_is_within_the_budget(head):
    oracle, _ = pair(head, torch.float64)
    stock, ours = pair(head, torch.bfloat16)
    oracle.load_state_dict(stock.state_dict())
    inputs = padded("none")
    with torch.no_grad():
        want, eager, got = oracle(**inputs), stock(**inputs), ours(**inputs)
    for name, value in want.items():
        assert_within_budget(getattr(got, name), eager[name], value, name, rms_error)


@pytest.mark.parametrize("gradient", [True, False])
def test_bfloat16_autocast_is_within_the_budget(gradient):
    oracle, _ = pair("BertForPreTraining", torch.float64)
    stock, ours = pair("BertForPreTraining")
    inputs, labels = padded("none"), labels_of("BertForPreTraining", padded("none"))
    with torch.set_grad_enabled(gradient), torch.autocast("cpu", torch.bfloat16):
        eager, got = stock(**inputs, **labels), ours(**inputs, **labels)
    want = oracle(**inputs, **labels)
    assert got.loss.dtype == torch.float32
    assert_close(got.loss, want.loss.float(), "loss", 2e-2)
    name = "seq_relationship_logits"
    assert_within_budget(getattr(got, name), eager[name], want[name], name, rms_error)
    if gradient:
        exact, theirs, mine = (gradients(m, o.loss) for m, o in ((oracle, want), (stock, eager), (ours, got)))
        for name in ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.intermediate.dense.weight"):
            assert mine[name].dtype == torch.float32
            assert_within_budget(mine[name], theirs[name], exact[name], name, rms_error)


def test_the_models_inference_takes_the_one_call_for_all_layers(monkeypatch):
    from bertfast.nn import stack
    from bertfast.ops import packed_linear

    if not packed_linear.available(torch.float32, 64):
        pytest.skip("no kernels here")
    reads = []
    forward = stack.Native.forward

    def watched(self, x, cu_seqlens, max_seqlen, read):
        reads.append(read)
        return forward(self, x, cu_seqlens, max_seqlen, read)

    monkeypatch.setattr(stack.Native, "forward", watched)
    for head in HEADS:
        _, ours = pair(head)
        with torch.no_grad():
            ours(**padded())
    assert len(reads) == len(HEADS)
    assert sorted(len(read) for read in reads if read is not None) == [4, 4]


def test_position_ids_follow_from_the_bounds():
    _, ours = pair("BertModel")
    for tail in (0, 5):
        inputs = packed(padded(), tail)
        want = ours(**inputs).last_hidden_state
        del inputs["position_ids"], inputs["max_seqlen"]
        assert_close(ours(**inputs).last_hidden_state, want, "hidden states")


def test_what_the_package_names():
    others = {"BertForMultipleChoice", "BertConfig", "BertPreTrainedModel"}  # choices: test_models_multiple_choice.py
    assert {name for name in models.__all__ if name.startswith("Bert")} == {*HEADS, *others}
