"""What the drop-in knows of a model family: a record. Everything else in `convert` is the same for all families."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
)

from bertfast.convert import installed
from bertfast.convert.accumulation import FastAveragedHead
from bertfast.convert.embeddings import FastEmbeddings
from bertfast.convert.encoder import FastEncoder
from bertfast.convert.first_token_heads import FastFirstTokenHead
from bertfast.convert.layer import FastLayer
from bertfast.convert.masked_heads import FastMaskedHead
from bertfast.convert.model import FastModel
from bertfast.convert.swapped import Swapped, swapped
from bertfast.nn.parts import BERT, Places

Module = type[nn.Module]
TINY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class MaskedHead:
    """Where a masked-LM head has what `ops.masked_lm_loss` computes: norm(gelu(dense(hidden))), then the decoder.

    Attributes:
        dense, norm, decoder: dotted names below the model with the head.
        activation: likewise; None where the head calls `gelu` of transformers itself.
        holders: what must stand at which dotted name for these to be all that the head computes.
        next_sentence: the dotted name of the next sentence classifier, where the loss has one.
        output: what the pre-training head returns.
    """

    dense: str
    norm: str
    decoder: str
    activation: str | None = None
    holders: Mapping[str, Module] = field(default_factory=dict)
    next_sentence: str | None = None
    output: Callable[..., Any] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A model family of transformers whose layers compute what BERT's do.

    Attributes:
        name: of its file here and of its folder in transformers.
        config: its config class.
        module: transformers' modeling module.
        model, embeddings, encoder, layer: stock classes.
        pooler: likewise; None where base models have none.
        encoder_name: what the base model calls its stack of layers.
        holders: what holds a layer's parts, by dotted name below it.
        places: where these parts stand.
        attention, activation: dotted names below a layer of the module with the heads, and of GELU.
        chunk: of the method that chunk_size_feed_forward cuts into pieces.
        positions_follow_tokens: positions are counted from padding_idx + 1 over tokens other than padding; else they are places.
        segments: there is a table of token types.
        tasks: there may be one of task types.
        projection: what the base model calls a product between its embeddings and its layers, which it may lack.
        pooled_heads: heads that read nothing but the pooler's output.
        first_token_heads: heads that read nothing but the first token's last hidden state.
        summary_heads: heads with a `sequence_summary`, which reads the first token, the last one or all, as their config says.
        losses_over_padding: heads whose loss reads hidden states at padding.
        masked_heads: heads with a masked-LM loss.
        encoder_output, model_output: what encoder and base model return.
        encoder_role: the mixin of the encoder.
        helpers: functions of the modeling module that the fused code takes the place of.
        trial_attention: the attention of trials of heads.
        tiny_options: of a tiny config, where they differ from BERT's.
    """

    name: str
    config: type[PretrainedConfig]
    module: ModuleType
    model: Module
    embeddings: Module
    encoder: Module
    layer: Module
    pooler: Module | None
    holders: Mapping[str, Module]
    encoder_name: str = "encoder"
    places: Places = BERT
    attention: str = "attention.self"
    activation: str = "intermediate.intermediate_act_fn"
    chunk: str = "feed_forward_chunk"
    positions_follow_tokens: bool = False
    segments: bool = True
    tasks: bool = False
    projection: str | None = None
    pooled_heads: tuple[Module, ...] = ()
    first_token_heads: tuple[Module, ...] = ()
    summary_heads: tuple[Module, ...] = ()
    losses_over_padding: tuple[Module, ...] = ()
    masked_heads: Mapping[Module, MaskedHead] = field(default_factory=dict)
    encoder_output: Callable[..., Any] = BaseModelOutputWithPastAndCrossAttentions
    model_output: Callable[..., Any] = BaseModelOutputWithPoolingAndCrossAttentions
    encoder_role: type[Swapped] = FastEncoder
    helpers: tuple[str, ...] = ()
    trial_attention: str = "sdpa"
    tiny_options: Mapping[str, Any] = field(default_factory=lambda: TINY)

    def __post_init__(self) -> None:
        self._check_name()
        classes = {self.model, self.embeddings, self.encoder, self.layer, *self.holders.values(), *self.masked_heads}
        for head in self.masked_heads.values():
            classes.update(head.holders.values())
        names = sorted(each.__name__ for each in classes)
        installed.watch(self.module, names, self.helpers)
        installed.record_as(self.fast[self.model], self.model)

    def _check_name(self) -> None:
        """ValueError where classes of the module would not be found under the name (`families.of` goes by the folder)."""
        path = self.module.__name__.split(".")
        if path[:2] == ["transformers", "models"] and path[2:3] != [self.name]:
            raise ValueError(
                f"the record of {self.module.__name__} is named {self.name!r}, and its folder in transformers {path[2]!r}: name "
                f"the record, its file in bertfast/convert/families and its entry in _FILES {path[2]!r}, whatever model_type says"
            )

    @property
    def file(self) -> str:
        """The module that holds this record, of which the fast classes are attributes too."""
        return f"{__package__}.{self.name}"

    @property
    def model_type(self) -> str:
        """As config.json has it."""
        return self.config.model_type

    @cached_property
    def checked(self) -> tuple[tuple[tuple[str, Module], ...], tuple[str, ...]]:
        """What must stand at each place below a layer for the fused code to take over, and which of these need a bias. Holders come
        first, since one that was replaced may lack what is below."""
        names = self.places.names
        leaves = ((names.linears, nn.Linear), (names.norms, nn.LayerNorm), (names.dropouts, nn.Dropout))
        plain = [(name, kind) for each, kind in leaves for name in each if name is not None]
        return (*self.holders.items(), *plain), (*names.linears[:3], names.mlp.up)

    @cached_property
    def fast(self) -> Mapping[Module, Module]:
        """Stock class to the class that optimize() puts in its place, pre-training heads apart."""
        heads = dict.fromkeys((*self.pooled_heads, *self.first_token_heads), FastFirstTokenHead)
        named: dict[Module, type[Swapped]] = {
            self.embeddings: FastEmbeddings,
            self.layer: FastLayer,
            self.model: FastModel,
            **heads,
        }
        classes = {stock: swapped(stock, role, self, keep_name=True) for stock, role in named.items()}
        return {self.encoder: swapped(self.encoder, self.encoder_role, self), **classes}

    @cached_property
    def fast_masked(self) -> Mapping[Module, Module]:
        """The same of the heads that are swapped where `masked_head` asks for it."""
        return {stock: swapped(stock, FastMaskedHead, self, keep_name=True) for stock in self.masked_heads}

    @cached_property
    def fast_averaged(self) -> Mapping[Module, Module]:
        """The same of the heads with a loss over labels that have no fast class, where `average_over_accumulation` asks for it."""
        heads = [getattr(self.module, name) for name in self.head_names]
        return {
            stock: swapped(stock, FastAveragedHead, self, keep_name=True, prefix="Averaged")
            for stock in heads
            if stock not in self.fast and installed.averages_over_labels(stock)
        }

    @cached_property
    def ids(self) -> frozenset[str]:
        """The arguments of a call that embeddings are looked up by."""
        names = ["input_ids", "position_ids"]
        return frozenset(names + ["token_type_ids"] * self.segments + ["task_type_ids"] * self.tasks)

    @cached_property
    def head_names(self) -> tuple[str, ...]:
        """All model classes of the family, the base model among them."""
        classes = ((name, getattr(self.module, name)) for name in self.module.__all__)
        return tuple(
            name
            for name, each in classes
            if isinstance(each, type) and issubclass(each, PreTrainedModel) and not name.endswith("PreTrainedModel")
        )

    def encoder_of(self, model: nn.Module) -> Any:
        """The stack of layers of a base model."""
        return model._modules[self.encoder_name]

    def tiny(self, **options: Any) -> PretrainedConfig:
        """The config of a tiny model without dropout, for trials and tests."""
        return self.config(**{**self.tiny_options, **options})


def like_bert(name: str, prefix: str, config: type[PretrainedConfig], module: ModuleType, **fields: Any) -> Family:
    """A family whose module is BERT's with another prefix, as most of transformers' are copies of it; `fields` where it differs."""

    def stock(suffix: str) -> Module:
        return getattr(module, prefix + suffix)

    holders = {
        "attention": stock("Attention"),
        "attention.self": stock("SelfAttention"),
        "attention.output": stock("SelfOutput"),
        "intermediate": stock("Intermediate"),
        "output": stock("Output"),
    }
    common = {
        "model": stock("Model"),
        "embeddings": stock("Embeddings"),
        "encoder": stock("Encoder"),
        "layer": stock("Layer"),
        "pooler": getattr(module, f"{prefix}Pooler", None),
        "holders": holders,
        "helpers": HELPERS,
    }
    return Family(name=name, config=config, module=module, **{**common, **fields})


def bert_heads(prefix: str, module: ModuleType) -> dict[str, Any]:
    """The fields of `Family` for BERT's heads with another prefix, those of causal language modelling apart."""

    def stock(suffix: str) -> Module:
        return getattr(module, prefix + suffix)

    def masked(kind: str, **fields: Any) -> MaskedHead:
        """The head below `cls`, a class of this kind."""
        return MaskedHead(
            dense="cls.predictions.transform.dense",
            norm="cls.predictions.transform.LayerNorm",
            decoder="cls.predictions.decoder",
            activation="cls.predictions.transform.transform_act_fn",
            holders={
                "cls": stock(kind),
                "cls.predictions": stock("LMPredictionHead"),
                "cls.predictions.transform": stock("PredictionHeadTransform"),
            },
            **fields,
        )

    output = getattr(module, f"{prefix}ForPreTrainingOutput")
    pretraining = masked("PreTrainingHeads", next_sentence="cls.seq_relationship", output=output)
    return {
        "pooled_heads": tuple(
            stock(name) for name in ("ForSequenceClassification", "ForNextSentencePrediction", "ForMultipleChoice")
        ),
        "masked_heads": {stock("ForPreTraining"): pretraining, stock("ForMaskedLM"): masked("OnlyMLMHead")},
    }


def roberta_like(name: str, prefix: str, config: type[PretrainedConfig], module: ModuleType) -> Family:
    """A family whose module is RoBERTa's with another prefix."""

    def stock(suffix: str) -> Module:
        return getattr(module, prefix + suffix)

    lm_head = MaskedHead(
        dense="lm_head.dense",
        norm="lm_head.layer_norm",
        decoder="lm_head.decoder",
        holders={"lm_head": stock("LMHead")},
    )
    return like_bert(
        name,
        prefix,
        config,
        module,
        positions_follow_tokens=True,
        pooled_heads=(stock("ForMultipleChoice"),),
        first_token_heads=(stock("ForSequenceClassification"),),
        losses_over_padding=(stock("ForQuestionAnswering"), stock("ForCausalLM")),
        masked_heads={stock("ForMaskedLM"): lm_head},
        helpers=(*HELPERS, "gelu"),
        tiny_options={**TINY, "max_position_embeddings": 18, "pad_token_id": 1},
    )


HELPERS = ("eager_attention_forward", "apply_chunking_to_forward", "create_bidirectional_mask", "CrossEntropyLoss")
