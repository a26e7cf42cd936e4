"""BertConfig: what a config.json of a BERT says, in Hugging Face's names and with its defaults; no transformers needed.

Keys that this package has no use for are kept and written back, so that a checkpoint loses nothing on its way through it.
Settings that would change what the model computes, and that it does not compute, are refused.
"""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bertfast.models.files import replace_file
from bertfast.nn.modules import ACTIVATIONS

CONFIG_NAME = "config.json"
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "num_labels",
)
_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
# Keys of a config.json beside the fields: the only values under which the model computes what this package does.
_ONLY: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
}
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value >= 0.0


class ConfigError(ValueError):
    """A configuration that is wrong in itself, or of a model that bertfast does not compute."""


@dataclass
class BertConfig:
    """The sizes and options of a BERT, named and defaulting as in Hugging Face's `BertConfig`.

    Attributes:
        hidden_act: "gelu" (exact erf), "gelu_new" or "gelu_pytorch_tanh" (both the tanh form).
        classifier_dropout: of the classification heads; None for hidden_dropout_prob.
        num_labels: outputs of a classification head. Follows `id2label` where that is given and this is not.
        id2label, label2id: names of the labels, made from one another, or "LABEL_0", ... from `num_labels`.
        problem_type: the loss of sequence classification, one of `PROBLEM_TYPES`; None to go by labels and `num_labels`.
        extra: what else a config.json had, written back by `to_dict`.

    Raises:
        ConfigError: on sizes that do not belong together, and on what is not supported: other activations, relative
            positions, decoders, cross-attention, pruned heads.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None
    tie_word_embeddings: bool = True
    num_labels: int = 2
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    problem_type: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._name_labels()
        for name in _SIZES:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} must be a positive integer, got {value!r}")
        for name in _RATES:
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value < 1.0):
                raise ConfigError(f"{name} must be in [0, 1), got {value!r}")
        for name in ("initializer_range", "layer_norm_eps"):
            if not _is_number(getattr(self, name)):
                raise ConfigError(f"{name} must be a number of at least 0, got {getattr(self, name)!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.pad_token_id is not None and type(self.pad_token_id) is not int:
            raise ConfigError(f"pad_token_id must be a whole number or null, got {self.pad_token_id!r}")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(f"pad_token_id {self.pad_token_id} is outside the {self.vocab_size} words of vocab_size")
        if not isinstance(self.hidden_act, str) or self.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act {self.hidden_act!r} is not supported: bertfast has {', '.join(ACTIVATIONS)}")
        if self.problem_type not in (*PROBLEM_TYPES, None):
            raise ConfigError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {self.problem_type!r}")
        for name, allowed in _ONLY.items():
            if self.extra.get(name) not in allowed:
                raise ConfigError(
                    f"{name} = {self.extra[name]!r} is not supported: bertfast computes encoders with absolute positions "
                    f"({name} = {allowed[0]!r}); use transformers for this model"
                )

    def _name_labels(self) -> None:
        if type(self.num_labels) is not int:
            raise ConfigError(f"num_labels must be a positive integer, got {self.num_labels!r}")
        for name in ("id2label", "label2id"):
            if not isinstance(getattr(self, name), (dict, type(None))):
                raise ConfigError(f"{name} must be an object of numbers and names, got {getattr(self, name)!r}")
        names: dict[Any, Any] | None = self.id2label
        if names is None and self.label2id is not None:
            names = {place: name for name, place in self.label2id.items()}
        if names is None:
            names = {place: f"LABEL_{place}" for place in range(self.num_labels)}
        try:
            names = {int(place): str(name) for place, name in names.items()}
        except (TypeError, ValueError):
            raise ConfigError(f"id2label and label2id must give each name a whole number, got {names!r}") from None
        if self.num_labels == type(self).num_labels:
            self.num_labels = len(names)
        if len(names) != self.num_labels or sorted(names) != list(range(len(names))):
            raise ConfigError(
                f"id2label must name labels 0 to {self.num_labels - 1}, one for each of num_labels {self.num_labels}; "
                f"it names {sorted(names)}"
            )
        self.id2label = dict(sorted(names.items()))
        self.label2id = {name: place for place, name in self.id2label.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> "BertConfig":
        """The config that a config.json's `values` describe, with `overrides` in place of some. Unknown keys go to `extra`.

        Raises:
            ConfigError: as the class, for another `model_type` than "bert", and for an override that is no field.
        """
        kind = values.get("model_type", "bert")
        if kind != "bert":
            raise ConfigError(
                f"model_type {kind!r} is not supported: bertfast's own models, which pretrain, finetune and predict run, are "
                "'bert' alone; train models of other families with transformers, where bertfast.optimize(model) makes them fast"
            )
        known = {f.name for f in fields(cls)} - {"extra"}
        for name in overrides:
            if name not in known:
                raise ConfigError(f"{name!r} is no option of BertConfig; its options are {', '.join(sorted(known))}")
        merged = {name: value for name, value in values.items() if name != "model_type"} | overrides
        if {"num_labels", "id2label", "label2id"} & set(overrides):  # names of other labels than those meant now
            for name in ("num_labels", "id2label", "label2id"):
                if name not in overrides:
                    merged.pop(name, None)
        extra = {name: value for name, value in merged.items() if name not in known}
        return cls(**{name: value for name, value in merged.items() if name in known}, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """What a config.json holds, `extra` included; labels only where they differ from the two that stand for none."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("extra", "num_labels")}
        if values["id2label"] == {0: "LABEL_0", 1: "LABEL_1"}:
            del values["id2label"], values["label2id"]
        else:  # JSON has no other keys than text
            values["id2label"] = {str(place): name for place, name in values["id2label"].items()}
        if self.problem_type is None:
            del values["problem_type"]
        return {**self.extra, **values, "model_type": "bert"}

    def replace(self, **overrides: Any) -> "BertConfig":
        """A copy with some options changed."""
        return self.from_dict(self.to_dict(), **overrides) if overrides else replace(self, extra=dict(self.extra))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **overrides: Any) -> "BertConfig":
        """The config of a checkpoint's folder, or of a config.json itself.

        Raises:
            FileNotFoundError: where there is none.
            ConfigError: naming the file, where it is no JSON object or `from_dict` refuses it.
        """
        path = Path(folder) / CONFIG_NAME if Path(folder).is_dir() else Path(folder)
        if not path.is_file():
            trained = Path(folder) / "model"  # of a run's folder
            advice = (
                "give the folder of a checkpoint in the Hugging Face format (config.json, model.safetensors); names of models "
                "on a hub are not looked up"
            )
            advice = f"did you mean {trained}?" if (trained / CONFIG_NAME).is_file() else advice
            raise FileNotFoundError(f"there is no {path}: {advice}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds {type(values).__name__}, not a JSON object")
        try:
            return cls.from_dict(values, **overrides)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json into `folder`, made where it is absent; the file appears whole or not at all."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        replace_file(Path(folder) / CONFIG_NAME, lambda path: path.write_text(text, encoding="utf-8"))
