"""What the tests of transformers' own tools share: a tiny tokenizer, tiny random models of each fast family, and their calls."""

import copy
from typing import Any

import tokenizers
import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerFast

import bertfast
from bertfast.convert.families import FAMILIES

WORDS = (
    "the a good bad film story was is about Paris Tokyo Anna lives in works for where who that this sports news [SEP]"
)
PIECES = "##s ##ing ##ed view play re un . , ?"
TEXTS = (
    "the film was good",
    "Anna lives in Paris , where a good story is playing .",
    "bad",
    "this is a story about Tokyo , about Anna , about sports in Paris and news that was unplayed .",
)
FAMILIES_TRIED = tuple(name for name in ("bert", "roberta", "distilbert") if name in FAMILIES)
_SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
}
_NO_DROPOUT = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
)


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of 40 pieces, with token types where the family has them."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = list(dict.fromkeys([*special, *WORDS.split(), *PIECES.split()]))
    model = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({piece: i for i, piece in enumerate(vocab)}, unk_token="[UNK]")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if family == "bert" else [])]
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        model_input_names=names,
        model_max_length=48,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    )


def config_of(family: str, **options: Any) -> transformers.PreTrainedConfig:
    """Weights large enough that what is read wrongly shows; no dropout."""
    return transformers.AutoConfig.for_model(
        family,
        **{
            "vocab_size": len(tokenizer_of(family)),
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            "pad_token_id": 0,
            **_SIZES.get(family, _SIZES["bert"]),
            **dict.fromkeys(_NO_DROPOUT, 0.0),
            **options,
        },
    )


def stock_model(family: str, head: str = "", **options: Any) -> Any:
    """AutoModel{head} of random weights, in evaluation mode."""
    torch.manual_seed(1)
    model = getattr(transformers, f"AutoModel{head}").from_config(config_of(family, **options)).eval()
    for parameter in model.parameters():  # biases begin at zero, where a lost one would not show
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    return model


def trio(family: str, head: str = "", **options: Any) -> tuple[Any, Any, Any]:
    """The same model optimised, stock, and stock in float64."""
    stock = stock_model(family, head, **options)
    return bertfast.optimize(copy.deepcopy(stock)), stock, copy.deepcopy(stock).double()


def outcomes(model: nn.Module, kind: str = "") -> dict[str, int]:
    """What calls of the modules did, by `report`, summed over those whose stock class ends in `kind`."""
    total: dict[str, int] = {}
    for row in bertfast.report(model).to_dict()["modules"]:
        if row["kind"].endswith(kind):
            for outcome, count in row["calls"].items():
                total[outcome] = total.get(outcome, 0) + count
    return total
