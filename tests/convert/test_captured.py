"""Captured calls of the drop-in beside stock: what every head, padding, dtype and way of calling gives, eagerly, captured and
replayed. The tape in `captured` computes again what was captured, whatever Python would do by now."""

import copy

import pytest
import torch
from bert_cases import HEADS, PADDINGS, SEQLEN, VOCAB, assert_same, head_inputs, mask_of, outcome, pair
from captured import captured_on_cpu
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.testing import assert_within_budget, rms_error

WHOLE = "fast, from ids to hidden states"
FIRST, CAPTURED, REPLAYED = (f"{WHOLE}: {how}" for how in ("eager: first call of its bucket", "captured", "replayed"))
LEFT = "module by module: the pooler reads position 0, which is padding in some sequence"
POOLED = {
    hf.BertForNextSentencePrediction,
    hf.BertForSequenceClassification,
    hf.BertForMultipleChoice,
}


@pytest.fixture(autouse=True)
def on_a_stand_in():
    with captured_on_cpu():
        yield


def calls(model) -> dict[str, int]:
    return outcome(model, "BertModel")


def number_of_graphs(model) -> int:
    return bertfast.report(model).to_dict()["graphs"]["number"]


def mask_for(padding: str, seqlen: int) -> torch.Tensor:
    """[B, S]; of "an empty row" one sequence is padding alone."""
    mask = mask_of(padding if padding in PADDINGS else "right", seqlen=seqlen)
    if padding == "an empty row":
        mask[1] = 0
    return mask


def four_calls(head: type, padding: str) -> list[dict[str, torch.Tensor]]:
    """Inputs of other numbers each, in one bucket all; and in the last two calls fewer tokens."""
    made = []
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        inputs = head_inputs(head, padding if padding in PADDINGS else "right")
        inputs = {name: value for name, value in inputs.items() if "label" not in name and "positions" not in name}
        shape = inputs["input_ids"].shape
        inputs["input_ids"] = torch.randint(1, VOCAB, shape, generator=generator)
        inputs["token_type_ids"] = torch.randint(0, 2, shape, generator=generator)
        mask = mask_for(padding, SEQLEN)
        if number > 1:  # one token of the longest sequence more is padding, at its other end for padding on the left
            mask[0, 0 if padding == "left" else -1] = 0
        inputs["attention_mask"] = mask.view(shape)
        made.append(inputs)
    return made


def real_part(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Numbers of real tokens, or of sequences that have any; of a multiple choice all."""
    if value.shape[:2] == mask.shape and mask.dim() == 2:
        return value[mask.bool()]
    return value[mask.any(1)] if value.shape[0] == mask.shape[0] and mask.dim() == 2 else value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("padding", [*PADDINGS, "an empty row"])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_every_head(head, padding, dtype):
    stock, fast = pair(head, dtype=dtype)
    exact = copy.deepcopy(stock).double()
    results = []
    for number, inputs in enumerate(four_calls(head, padding)):
        mode = torch.inference_mode() if number % 2 else torch.no_grad()
        with mode:
            results.append((inputs, fast(**inputs)))
    # Compared after the last call: results must have kept their own memory.
    compared: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    for inputs, outputs in results:
        with torch.no_grad():
            expected, oracle = stock(**inputs), exact(**inputs)
        assert type(outputs) is type(expected)
        assert outputs.keys() == expected.keys()
        for name, value in outputs.items():
            three = tuple(real_part(each, inputs["attention_mask"]) for each in (value, expected[name], oracle[name]))
            compared.setdefault(name, []).append(three)
    for name, each in compared.items():
        ours, eager, oracle = (torch.cat(values) for values in zip(*each, strict=True))
        if dtype is torch.float32:
            assert_same(ours, eager, name)
        else:
            assert_within_budget(ours, eager, oracle, name, measure=rms_error)
    base = fast if head is hf.BertModel else fast.bert
    pooled_at_padding = base.pooler is not None and padding in ("left", "an empty row")
    counts = calls(fast)
    if pooled_at_padding:
        assert counts == {LEFT: 4}
        assert number_of_graphs(fast) == 0
    else:
        assert counts == {FIRST: 1, CAPTURED: 1, REPLAYED: 2}
        assert number_of_graphs(fast) == 1
    if head in POOLED:
        assert outcome(fast, head.__name__) == {"asked for the first tokens of the last layer alone": 4}
