"""The pre-training heads: masked tokens alone, what is read of the last layer, counts, nothing to predict, the tied table."""

import pytest
import torch
from model_cases import (
    VOCAB,
    assert_close,
    assert_same_gradients,
    gradients,
    labels_of,
    ours,
    packed,
    padded,
    pair,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from bertfast.nn import modules

WORDS = "bert.embeddings.word_embeddings.weight"


def batch(tail=0):
    """Packed input with labels, and the places of the masked tokens."""
    inputs = padded()
    labels = labels_of("BertForPreTraining", inputs)
    flat = torch.cat([labels["labels"][inputs["attention_mask"].bool()], torch.full((tail,), -100)])
    sentences = torch.cat([labels["next_sentence_label"], torch.full((2 * bool(tail),), -1)])
    return packed(inputs, tail), {"labels": flat, "next_sentence_label": sentences}, (flat != -100).nonzero()[:, 0]


@pytest.fixture
def rows(monkeypatch):
    """Rows of every later call of a layer's feed-forward half."""
    found: list[int] = []
    original = modules.mlp_block

    def mlp_block(x, parts, **others):
        found.append(x.shape[0])
        return original(x, parts, **others)

    monkeypatch.setattr(modules, "mlp_block", mlp_block)
    return found


def test_the_last_layer_computes_what_is_read(rows):
    inputs, labels, masked = batch()
    model = ours("BertForPreTraining")
    model(**inputs, **labels)
    tokens, read = len(inputs["input_ids"]), set(masked.tolist()) | set(inputs["cu_seqlens"][:-1].tolist())
    assert rows == [tokens, len(read)]
    ours("BertForMaskedLM")(**inputs, labels=labels["labels"])
    ours("BertForSequenceClassification")(**inputs, labels=labels["next_sentence_label"])
    ours("BertForNextSentencePrediction")(**inputs, labels=labels["next_sentence_label"])
    assert rows[2:] == [tokens, len(masked), tokens, 4, tokens, 4]
    model(**inputs, **labels, all_logits=True)
    assert rows[8:] == [tokens, tokens]


@pytest.mark.parametrize("tail", [0, 5])
@pytest.mark.parametrize("head", ["BertForPreTraining", "BertForMaskedLM"])
def test_masked_positions_with_empty_slots_equal_looking_them_up(head, tail):
    inputs, labels, masked = batch(tail)
    if head == "BertForMaskedLM":
        del labels["next_sentence_label"]
    model = ours(head)
    want = model(**inputs, **labels)
    expected = gradients(model, want.loss)
    slots = torch.full((len(masked) + 3,), -1)
    slots[torch.randperm(len(slots))[: len(masked)].sort().values] = masked
    got = model(**inputs, **labels, masked_positions=slots)
    assert int(got.mlm_count) == len(masked) == int(want.mlm_count)
    assert_close(got.loss, want.loss, "loss")
    assert_same_gradients(gradients(model, got.loss), expected)


def test_masked_positions_count_flattened_tokens_where_padded():
    model = ours("BertForPreTraining")
    for padding in ("none", "right", "left"):
        inputs = padded(padding)
        labels = labels_of("BertForPreTraining", inputs)
        places = (labels["labels"].flatten() != -100).nonzero()[:, 0]
        padding_place = (inputs["attention_mask"].flatten() == 0).nonzero()[:1, 0]
        want = model(**inputs, **labels)
        got = model(**inputs, **labels, masked_positions=torch.cat([places, padding_place, torch.tensor([-1])]))
        assert_close(got.loss, want.loss, padding)  # products of other numbers of rows may round otherwise
        assert int(got.mlm_count) == len(places)


def test_labels_elsewhere_than_at_masked_positions_are_not_read():
    inputs, labels, masked = batch()
    model = ours("BertForMaskedLM")
    some = torch.full_like(labels["labels"], -100)
    some[masked[:2]] = labels["labels"][masked[:2]]
    got = model(**inputs, labels=labels["labels"], masked_positions=masked[:2])
    assert_close(got.loss, model(**inputs, labels=some).loss, "loss")


@pytest.mark.parametrize("tail", [0, 5])
def test_counts_and_terms(tail):
    inputs, labels, masked = batch(tail)
    labels["next_sentence_label"][1] = -100
    model = ours("BertForPreTraining")
    got = model(**inputs, **labels, all_logits=True)
    chosen = labels["labels"][masked]
    assert_close(got.mlm_loss, torch.nn.functional.cross_entropy(got.prediction_logits[masked], chosen), "mlm")
    scores, wanted = got.seq_relationship_logits[[0, 2, 3]], labels["next_sentence_label"][[0, 2, 3]]
    assert_close(got.nsp_loss, torch.nn.functional.cross_entropy(scores, wanted), "nsp")
    assert torch.equal(got.loss, got.mlm_loss + got.nsp_loss)
    assert int(got.mlm_correct) == int((got.prediction_logits[masked].argmax(-1) == chosen).sum())
    assert (int(got.mlm_count), int(got.nsp_count)) == (len(masked), 3)
    assert int(got.nsp_correct) == int((scores.argmax(-1) == wanted).sum())
    few = model(**inputs, **labels)
    assert few.prediction_logits is None
    assert_close(few.loss, got.loss, "loss")


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("positions", [None, torch.tensor([-1, -1]), torch.tensor([], dtype=torch.int64)])
def test_nothing_to_predict_is_no_loss_and_no_gradient(positions, given):
    inputs, labels, _ = batch(5)
    none = torch.full_like(labels["labels"], -100)
    model = ours("BertForPreTraining")
    sentences = torch.full((6,), -1) if given else None
    got = model(**inputs, labels=none, masked_positions=positions, next_sentence_label=sentences)
    assert [float(v) for v in (got.loss, got.mlm_loss, got.nsp_loss)] == [0.0] * 3
    assert [int(v) for v in (got.mlm_count, got.nsp_count, got.mlm_correct, got.nsp_correct)] == [0] * 4
    assert not any(g.any() for g in gradients(model, got.loss).values())
    alone = ours("BertForMaskedLM")
    assert not any(
        g.any() for g in gradients(alone, alone(**inputs, labels=none, masked_positions=positions).loss).values()
    )


def test_one_term_alone_leaves_the_other_at_nothing():
    inputs, labels, _ = batch()
    model = ours("BertForPreTraining")
    words, sentences = (
        model(**inputs, labels=labels["labels"]),
        model(**inputs, next_sentence_label=labels["next_sentence_label"]),
    )
    both = model(**inputs, **labels)
    assert_close(words.loss, both.mlm_loss, "mlm")
    assert float(words.nsp_loss) == 0.0
    assert_close(sentences.loss, both.nsp_loss, "nsp")
    assert float(sentences.mlm_loss) == 0.0
    assert not gradients(model, words.loss)["cls.seq_relationship.weight"].any()
    assert not gradients(model, sentences.loss)["cls.predictions.transform.dense.weight"].any()


def test_a_batch_without_tokens_but_its_tail():
    inputs, labels, _ = batch()
    inputs["cu_seqlens"] = torch.zeros(3, dtype=torch.int32)
    model = ours("BertForPreTraining")
    got = model(**inputs, labels=labels["labels"], next_sentence_label=torch.tensor([0, 1]))
    assert float(got.loss) == 0.0
    assert not any(g.any() for g in gradients(model, got.loss).values())


def test_the_word_table_gets_one_gradient_of_both_uses():
    """Its parts: the rows of words that occur, from the embeddings, and every row, from the decoder."""
    stock, model = pair("BertForMaskedLM", torch.float64)
    inputs = padded()
    labels = labels_of("BertForMaskedLM", inputs)
    want = gradients(stock, stock(**inputs, **labels).loss)[WORDS]
    held = []
    model.get_parameter(WORDS).register_hook(lambda gradient: held.append(gradient.clone()))
    got = gradients(model, model(**inputs, **labels).loss)[WORDS]
    assert len(held) == 1
    assert_close(got, want, WORDS, 1e-12)
    assert bool(got.any(1).all())
    model(**inputs, **labels).loss.backward()
    assert_close(got, 2 * want, "accumulated", 1e-12)


def test_no_parameter_is_there_twice():
    names = dict(ours("BertForPreTraining").named_parameters(remove_duplicate=False))
    assert len({id(p) for p in names.values()}) == len(names)
    assert sum(p.shape == (VOCAB, 64) for p in names.values()) == 1


def test_evaluation_equals_training_without_dropout():
    inputs, labels, masked = batch(5)
    model = ours("BertForPreTraining").eval()
    want = model(**inputs, **labels)
    with torch.no_grad():
        for positions in (None, masked, torch.cat([masked, torch.tensor([-1])])):
            got = model(**inputs, **labels, masked_positions=positions)
            assert_close(got.mlm_loss, want.mlm_loss, "mlm")
            assert_close(got.nsp_loss, want.nsp_loss, "nsp")


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels must be int64 \(23,\).*\(3,\)"),
        ({"labels": torch.zeros(23)}, ValueError, "labels must be int64"),
        ({"labels": torch.full((23,), VOCAB)}, IndexError, f"{VOCAB}"),
        (
            {"next_sentence_label": torch.zeros(5, dtype=torch.int64)},
            ValueError,
            r"next_sentence_label must be int64 \(4,\)",
        ),
        ({"next_sentence_label": torch.tensor([0, 1, 2, 0])}, IndexError, "2"),
        ({"masked_positions": torch.tensor([23])}, IndexError, "token 23 .* 23 tokens"),
        ({"masked_positions": torch.tensor([[1]])}, ValueError, r"masked_positions must be int64 \[M\]"),
        ({"masked_positions": torch.tensor([1]), "labels": None}, ValueError, "without labels"),
    ],
)
def test_mistakes(changed, error, said):
    inputs, labels, _ = batch()
    with pytest.raises(error, match=said):
        ours("BertForPreTraining")(**inputs, **{**labels, **changed})


def test_logits_of_all_tokens_on_a_gpu_are_products_with_aligned_words():
    # Fake tensors: nothing is computed; strides tell which product it was. The results are tests/ops/test_masked_lm_words.py's.
    model = ours("BertForMaskedLM").bfloat16()
    head = model.cls.predictions
    with FakeTensorMode():

        def gpu(*shape):
            return torch.empty(shape, dtype=torch.bfloat16, device="cuda")

        parameters = {name: gpu(*parameter.shape) for name, parameter in head.named_parameters()}
        size = head.transform.dense.in_features
        rows, word = gpu(300, size), gpu(VOCAB, size)
        assert VOCAB % 8
        for gradients_wanted, stride in ((False, -(-VOCAB // 64) * 64), (True, VOCAB)):
            with torch.set_grad_enabled(gradients_wanted):
                logits = torch.func.functional_call(head, parameters, (rows, word))
            assert (logits.shape, logits.stride()) == ((300, VOCAB), (stride, 1))
