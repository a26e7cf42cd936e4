"""What the convert tests share: a tiny random BERT, its head classes with inputs and labels, batches of every padding."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert import modeling_bert as hf

import bertfast
from bertfast.convert import layer

VOCAB, HIDDEN, BATCH, SEQLEN = 99, 64, 4, 12
LENGTHS = (12, 3, 7, 1)
HEADS = (
    hf.BertModel,
    hf.BertForPreTraining,
    hf.BertLMHeadModel,
    hf.BertForMaskedLM,
    hf.BertForNextSentencePrediction,
    hf.BertForSequenceClassification,
    hf.BertForMultipleChoice,
    hf.BertForTokenClassification,
    hf.BertForQuestionAnswering,
)
PADDINGS = ("none", "right", "left", "holes")


def tiny_config(dropout: float = 0.0, **options: Any) -> BertConfig:
    """Weights large enough that attention is far from uniform, so that a wrong mask or scale shows."""
    return BertConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "max_position_embeddings": 40,
            "initializer_range": 0.2,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "num_labels": 3,
            **options,
        }
    )


def pair(head: type = hf.BertModel, *, dtype=torch.float32, train=False, dropout=0.0, options=None, **config: Any):
    """A stock model and its optimised copy, with the same weights; `options` go to optimize()."""
    torch.manual_seed(1)
    if head is hf.BertForQuestionAnswering:
        config["num_labels"] = 2
    stock = head(tiny_config(dropout, **config)).to(dtype).train(train)
    for parameter in stock.parameters():  # biases begin at zero, where a lost one would not show
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    return stock, bertfast.optimize(copy.deepcopy(stock), **(options or {}))


def mask_of(padding: str, batch: int = BATCH, seqlen: int = SEQLEN) -> Tensor:
    """attention_mask [B, S] int64. Holes leave position 0 real."""
    if padding == "none":
        return torch.ones(batch, seqlen, dtype=torch.long)
    lengths = torch.tensor([LENGTHS[i % len(LENGTHS)] for i in range(batch)])
    right = (torch.arange(seqlen) < lengths[:, None]).long()
    if padding == "holes":
        mask = torch.randint(0, 2, (batch, seqlen), generator=torch.Generator().manual_seed(3))
        mask[:, 0] = 1
        return mask
    return right.flip(1) if padding == "left" else right


def batch_of(padding: str, *, types: bool = True) -> dict[str, Tensor]:
    """Inputs of BertModel; padding positions hold random ids, which must not matter."""
    generator = torch.Generator().manual_seed(2)
    batch = {
        "input_ids": torch.randint(1, VOCAB, (BATCH, SEQLEN), generator=generator),
        "attention_mask": mask_of(padding),
    }
    if types:
        batch["token_type_ids"] = torch.randint(0, 2, (BATCH, SEQLEN), generator=generator)
    return batch


def head_inputs(head: type, padding: str) -> dict[str, Tensor]:
    """Inputs with labels; token labels ignore padding, as every data collator makes them."""
    inputs = batch_of(padding)
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 3, (BATCH, SEQLEN), generator=generator).masked_fill(inputs["attention_mask"] == 0, -100)
    rows = torch.randint(0, 2, (BATCH,), generator=generator)
    if head is hf.BertForMultipleChoice:
        inputs = {name: value.view(2, BATCH // 2, SEQLEN) for name, value in inputs.items()}
        return inputs | {"labels": rows[:2]}
    if head is hf.BertForPreTraining:
        return inputs | {"labels": tokens, "next_sentence_label": rows}
    if head in (hf.BertLMHeadModel, hf.BertForMaskedLM, hf.BertForTokenClassification):
        return inputs | {"labels": tokens}
    if head in (hf.BertForNextSentencePrediction, hf.BertForSequenceClassification):
        return inputs | {"labels": rows}
    if head is hf.BertForQuestionAnswering:
        return inputs | {"start_positions": rows * 0, "end_positions": rows * 0}
    return inputs


def outputs_at_tokens(outputs: Any, mask: Tensor) -> dict[str, Tensor]:
    """Every output tensor; of those with one entry a token, only the real tokens."""
    real = mask.bool()
    return {
        name: value[real] if value.dim() >= 2 and value.shape[:2] == real.shape else value
        for name, value in outputs.items()
        if isinstance(value, Tensor)
    }


def loss_of(outputs: Any, mask: Tensor) -> Tensor:
    """The model's own loss; for a bare BertModel, a fixed random projection of everything it returns at real tokens."""
    if outputs.get("loss") is not None:
        return outputs["loss"]
    generator = torch.Generator().manual_seed(5)
    values = outputs_at_tokens(outputs, mask).values()
    return sum((v * torch.randn(v.shape, generator=generator).to(v.dtype)).mean() for v in values)


def assert_same(ours: Tensor, stock: Tensor, what: str = "result", tolerance: float = 2e-5) -> None:
    """Equal up to float32 rounding, relative to the largest element."""
    scale = max(float(stock.detach().abs().max()), 1e-3) if stock.numel() else 1.0
    error = float((ours.detach() - stock.detach()).abs().max()) if stock.numel() else 0.0
    assert ours.shape == stock.shape, f"{what}: {tuple(ours.shape)} against {tuple(stock.shape)}"
    assert error <= tolerance * scale, f"{what}: differs by {error:.2e} at a scale of {scale:.2e}"


def feed_forward_rows(monkeypatch) -> list[int]:
    """A list that gets the number of rows of every later call of a layer's feed-forward half, where layers are called singly."""
    pair()  # the first swap of a process tries a tiny model, whose calls are not to be counted
    rows: list[int] = []
    original = layer.mlp_block

    def mlp_block(x, parts, **options):
        rows.append(x.shape[0])
        return original(x, parts, **options)

    monkeypatch.setattr(layer, "mlp_block", mlp_block)
    return rows


def outcome(model: nn.Module, kind: str) -> dict[str, int]:
    """What the calls of the first module of stock class `kind` did, by report()."""
    return next(row["calls"] for row in bertfast.report(model).to_dict()["modules"] if row["kind"] == kind)
