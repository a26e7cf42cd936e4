"""What the tests of bertfast.models share: transformers' model and ours with the same weights, one batch in both layouts."""

from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bertfast import models

VOCAB, BATCH, SEQLEN = 99, 4, 12
LENGTHS = (12, 3, 7, 1)
PADDINGS = ("none", "right", "left", "holes")
HEADS = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForQuestionAnswering",
    "BertForTokenClassification",
)


def options(dropout: float = 0.0, **others: Any) -> dict[str, Any]:
    """Weights large enough that attention is far from uniform, so that a wrong mask or scale shows."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        **others,
    }


def ours(head: str, dropout: float = 0.0, **others: Any) -> Any:
    torch.manual_seed(1)
    model = getattr(models, head)(models.BertConfig(**options(dropout, **others)))
    spread(model)
    return model


def spread(model: nn.Module) -> None:
    """Biases begin at zero, where a lost one would not show."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)


def pair(head: str, dtype: torch.dtype = torch.float32, **others: Any) -> tuple[Any, Any]:
    """transformers' model and ours, in evaluation mode, without dropout."""
    torch.manual_seed(1)
    stock = getattr(transformers, head)(transformers.BertConfig(**options(**others)))
    spread(stock)
    mine = getattr(models, head)(models.BertConfig(**options(**others)))
    state = {name: value for name, value in stock.state_dict().items() if "cls.predictions.decoder" not in name}
    mine.load_state_dict({k: v for k, v in state.items() if not k.endswith(("position_ids", "token_type_ids"))})
    return stock.to(dtype).eval(), mine.to(dtype).eval()


def mask_of(padding: str) -> Tensor:
    """attention_mask [B, S] int64. Holes leave position 0 real."""
    right = (torch.arange(SEQLEN) < torch.tensor(LENGTHS)[:, None]).long()
    if padding == "holes":
        mask = torch.randint(0, 2, (BATCH, SEQLEN), generator=torch.Generator().manual_seed(3))
        mask[:, 0] = 1
        return mask
    return {"none": torch.ones_like(right), "right": right, "left": right.flip(1)}[padding]


def padded(padding: str = "right") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "input_ids": torch.randint(1, VOCAB, (BATCH, SEQLEN), generator=generator),
        "attention_mask": mask_of(padding),
        "token_type_ids": torch.randint(0, 2, (BATCH, SEQLEN), generator=generator),
    }


def packed(inputs: dict[str, Tensor], tail: int = 0) -> dict[str, Any]:
    """The same tokens one after another, then `tail` more that belong to nobody and two empty sequences."""
    real = inputs["attention_mask"].bool()
    seqlen = real.shape[1]
    rows = {
        "input_ids": inputs["input_ids"][real],
        "token_type_ids": inputs["token_type_ids"][real],
        "position_ids": torch.arange(seqlen).expand(real.shape)[real],
    }
    rows = {name: torch.cat([value, torch.ones(tail, dtype=torch.int64)]) for name, value in rows.items()}
    lengths = real.sum(1).tolist() + [0, 0] * bool(tail)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return {**rows, "cu_seqlens": bounds, "max_seqlen": seqlen}


def labels_of(head: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Labels for padded input; token labels ignore padding, as every collator makes them, and two tokens in three."""
    generator = torch.Generator().manual_seed(4)
    real = inputs["attention_mask"].bool()
    classes = {"BertForTokenClassification": 2}.get(head, VOCAB)
    tokens = torch.randint(0, classes, real.shape, generator=generator)
    tokens = tokens.masked_fill(~real | (torch.arange(SEQLEN) % 3 != 0), -100)
    sequences = torch.randint(0, 2, (BATCH,), generator=generator)
    return {
        "BertForPreTraining": {"labels": tokens, "next_sentence_label": sequences},
        "BertForMaskedLM": {"labels": tokens},
        "BertForTokenClassification": {"labels": tokens},
        "BertForQuestionAnswering": {
            "start_positions": torch.tensor([2, 0, 6, 0]),
            "end_positions": torch.tensor([5, 2, 9, 0]),
        },
    }.get(head, {"labels": sequences})


def projection(outputs: Any, real: Tensor) -> Tensor:
    """A fixed random projection of a bare BertModel's outputs at real tokens, as a loss."""
    generator = torch.Generator().manual_seed(5)
    values = (outputs.last_hidden_state, outputs.pooler_output)
    chosen = (v[real] if v.shape[:2] == real.shape else v for v in values)
    return sum((v * torch.randn(v.shape, generator=generator).to(v.dtype)).mean() for v in chosen)


def of_sequences_alone(stock: Any, inputs: dict[str, Tensor], labels: dict[str, Tensor]) -> Any:
    """transformers' question answering with the loss of each sequence over its own tokens, padding left out."""
    outputs = stock(**inputs)
    lengths = inputs["attention_mask"].sum(1).tolist()
    losses = []
    for logits, places in zip((outputs.start_logits, outputs.end_logits), labels.values(), strict=True):
        rows = [
            nn.functional.cross_entropy(logits[None, i, :n], places[None, i])
            for i, n in enumerate(lengths)
            if places[i] < n
        ]
        losses.append(torch.stack(rows).mean())
    return SimpleNamespace(loss=sum(losses) / 2, start_logits=outputs.start_logits, end_logits=outputs.end_logits)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Every parameter's gradient, tied ones once; decoder.bias is another name of predictions.bias in transformers."""
    model.zero_grad()
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    lacking = [name for name, gradient in found.items() if gradient is None]
    assert not lacking, f"no gradient: {lacking}"
    return found


def assert_close(got: Tensor, want: Tensor, what: str, tolerance: float = 2e-5, scale: float = 0.0) -> None:
    """Equal up to rounding, relative to the largest element or to `scale`."""
    assert got.shape == want.shape, f"{what}: {tuple(got.shape)} against {tuple(want.shape)}"
    size = max(float(want.detach().abs().max()), scale)
    error = float(torch.nan_to_num((got.detach() - want.detach()).abs(), nan=float("inf")).max())
    assert error <= tolerance * size, f"{what}: differs by {error:.2e} at a size of {size:.2e}"


def assert_same_gradients(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert set(got) == set(want)
    largest = max(float(value.abs().max()) for value in want.values())
    for name, value in want.items():
        # Of a key's bias, whose gradient is nothing but rounding, and others that small: against the largest of all.
        assert_close(got[name], value, name, tolerance, scale=largest * 1e-2)
