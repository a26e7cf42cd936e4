"""What the models say of input that does not belong together."""

import pytest
import torch
from model_cases import assert_close, ours, packed, padded

IDS = torch.ones(2, 5, dtype=torch.int64)
BOUNDS = torch.tensor([0, 3, 5], dtype=torch.int32)
FLAT = torch.ones(5, dtype=torch.int64)


@pytest.fixture(scope="module")
def model():
    return ours("BertModel").eval()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"input_ids": IDS.float()}, "input_ids must be int64 or int32, got torch.float32"),
        ({"input_ids": FLAT}, r"padded input_ids must be \[B, S\].*\(5,\).*cu_seqlens"),
        ({"input_ids": IDS[:, :0]}, r"\(2, 0\) hold no tokens"),
        ({"input_ids": IDS, "attention_mask": IDS[:, :3]}, r"attention_mask \(2, 3\) does not fit input_ids \(2, 5\)"),
        ({"input_ids": IDS, "attention_mask": IDS * 0}, "no real token"),
        ({"input_ids": IDS, "token_type_ids": IDS[:, :3]}, r"token_type_ids \(2, 3\) do not fit input_ids \(2, 5\)"),
        ({"input_ids": IDS, "position_ids": IDS[:, :3]}, r"position_ids \(2, 3\)"),
        ({"input_ids": IDS, "max_seqlen": 5}, "max_seqlen=5"),
        ({"input_ids": IDS.repeat(1, 9)}, "a sequence has 45 tokens but the model has 40 positions"),
        ({"input_ids": IDS, "cu_seqlens": BOUNDS}, r"packed input_ids must be \[T\], got \(2, 5\)"),
        ({"input_ids": FLAT, "cu_seqlens": BOUNDS, "attention_mask": FLAT}, "takes no attention_mask"),
        ({"input_ids": FLAT, "cu_seqlens": BOUNDS.long()}, r"cu_seqlens must be int32 \[B \+ 1\], got torch.int64"),
        ({"input_ids": FLAT, "cu_seqlens": BOUNDS[:1]}, r"cu_seqlens must be int32.*\(1,\)"),
        ({"input_ids": FLAT, "cu_seqlens": BOUNDS + 1}, "rise from 0 to at most the 5 tokens.* got 1 ... 6"),
        ({"input_ids": FLAT, "cu_seqlens": BOUNDS * 2}, "at most the 5 tokens.* got 0 ... 10"),
        (
            {"input_ids": FLAT, "cu_seqlens": torch.tensor([0, 4, 2, 5], dtype=torch.int32)},
            "a fall from 4 to 2 at sequence 1",
        ),
        ({"input_ids": FLAT, "cu_seqlens": BOUNDS, "max_seqlen": 2}, "max_seqlen is 2 but a sequence has 3 tokens"),
        ({"input_ids": FLAT, "cu_seqlens": BOUNDS, "position_ids": FLAT[:4]}, r"position_ids \(4,\) do not fit"),
    ],
)
def test_refused(model, arguments, said):
    with pytest.raises(ValueError, match=said):
        model(**arguments)


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_ids_outside_their_table(model, name, layout):
    inputs = packed(padded()) if layout == "packed" else padded("none")
    if name == "position_ids" and layout == "padded":
        inputs["position_ids"] = torch.arange(12)[None].clone()
    inputs[name].view(-1)[3] = 999
    with pytest.raises(IndexError, match="999"):
        model(**inputs)


def test_int32_and_boolean_masks_and_broadcast_positions(model):
    inputs = padded()
    want = model(**inputs).last_hidden_state
    narrow = {name: value.int() for name, value in inputs.items()}
    narrow["attention_mask"] = inputs["attention_mask"].bool()
    for positions in (torch.arange(12)[None], torch.arange(12)):
        assert_close(model(**narrow, position_ids=positions).last_hidden_state, want, "hidden states")


def test_position_ids_of_ones_own(model):
    inputs = padded()
    moved = model(**inputs, position_ids=torch.arange(12) + 5).last_hidden_state
    assert not torch.allclose(moved[:, 0], model(**inputs).last_hidden_state[:, 0])
    flat = packed(inputs)
    flat["position_ids"] += 5
    assert_close(model(**flat).last_hidden_state, moved[inputs["attention_mask"].bool()], "packed")


def test_labels_of_another_shape():
    inputs = packed(padded())
    for head in ("BertForTokenClassification", "BertForSequenceClassification", "BertForNextSentencePrediction"):
        with pytest.raises(ValueError, match=r"must be int64 \(\d+,\), got torch.int64 \(7,\)"):
            ours(head)(**inputs, labels=torch.zeros(7, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels of regression must be \(4, 1\) or \(4,\), got \(7,\)"):
        ours("BertForSequenceClassification", num_labels=1)(**inputs, labels=torch.zeros(7))
    answering = ours("BertForQuestionAnswering")
    with pytest.raises(ValueError, match=r"end_positions must be int64 \(4,\)"):
        answering(**inputs, start_positions=torch.zeros(4, dtype=torch.int64), end_positions=torch.zeros(4))
    with pytest.raises(ValueError, match="given together"):
        answering(**inputs, start_positions=torch.zeros(4, dtype=torch.int64))
