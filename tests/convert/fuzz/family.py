"""What the fuzz knows of a model's family, all of it by the family's record: names of config options, heads, places of modules."""

from collections.abc import Iterator
from typing import Any

from family_cases import has_relative_positions, kind_of
from torch import nn

from bertfast.convert import families
from bertfast.convert.families import FAMILIES
from bertfast.convert.families.record import Family

MODELS = tuple(family.model for family in FAMILIES.values())
DISTILBERT = {  # names that are not BERT's
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
}
NO_POOLER, USER_MODEL, USER_TAGGER = "Model without pooler", "UserModel", "UserTagger"


def heads_of(family: Family) -> list[str]:
    """Names of the models that a case may be of: stock's, and a user's own."""
    models = [*family.head_names, USER_MODEL, USER_TAGGER]
    return models if family.pooler is None else [*models, NO_POOLER]


def kind(head: str) -> str:
    """What a model of `heads_of` computes, whatever its family."""
    own = {NO_POOLER: "Model", USER_MODEL: "Model", USER_TAGGER: "TokenClassification"}
    return own.get(head) or kind_of(head)


def head_of(family: Family, which: str) -> str:
    """The family's stock model of a kind."""
    return next(head for head in family.head_names if kind_of(head) == which)


def config_of(family: Family, options: dict[str, Any]) -> Any:
    """The config of a case, whose options have BERT's names."""
    if family.name != "distilbert":
        return family.config(**options)
    own = {"seq_classif_dropout": 0.0, "qa_dropout": 0.0}
    return family.config(**{**own, **{DISTILBERT.get(name, name): value for name, value in options.items()}})


def width_of(case: Any) -> int:
    """How wide embeddings are, where they are not as wide as hidden states."""
    return case.config.get("embedding_size", case.config["hidden_size"])


def has_kink(family: Family, head: str, activation: str) -> bool:
    """Whether a ReLU is inside: at its kink the last digit decides about a unit's whole gradient, which no budget of rounding
    covers. DistilBERT has one in the heads that read the first token."""
    return activation == "relu" or getattr(family.module, head, None) in family.first_token_heads * (
        family.name == "distilbert"
    )


def base_of(model: nn.Module) -> Any:
    """The first base model inside, or the model itself."""
    return next(m for m in model.modules() if isinstance(m, MODELS))


def family_of(model: nn.Module) -> Family:
    family = families.of_instance(base_of(model))
    assert family is not None
    return family


def encoder_of(model: nn.Module) -> Any:
    return family_of(model).encoder_of(base_of(model))


def layer_names(family: Family) -> list[str]:
    """The dotted names of what holds a layer's parts, and of its parts."""
    names = family.places.names
    parts = (*names.linears, *names.norms, *(name for name in names.dropouts if name is not None))
    return [*family.holders, *parts]


def attention_dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The Dropouts of probabilities, each with the module whose mode decides: functions of attention go by their module's, and
    attention that adds a bias calls its Dropout."""
    family = family_of(model)
    for layer in encoder_of(model).layer:
        try:
            attention = layer.get_submodule(family.attention)
            dropout = layer.get_submodule(family.places.attention.dropout)
        except AttributeError:  # something else was put there
            continue
        yield dropout, dropout if has_relative_positions(family) else attention
