"""Every value that the stock forwards read from the modules that bertfast takes the place of, and a change of each.

A release that reads one more fails `test_stock_reads.py` until it is listed here, with a change that bertfast must see.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import activations

from bertfast.convert.families.record import Family

Change = Callable[[Any], None] | None  # made to the stock and to the fast module alike; None: covered by another entry


def attribute(name: str, value: Any) -> Callable[[Any], None]:
    return lambda module: setattr(module, name, value)


def in_place(name: str, change: Callable[[torch.Tensor], Any]) -> Callable[[Any], None]:
    def apply(module: Any) -> None:
        with torch.no_grad():
            change(getattr(module, name))

    return apply


def inside(name: str, attribute_name: str, value: Any) -> Callable[[Any], None]:
    return lambda module: setattr(getattr(module, name), attribute_name, value)


def config(name: str, value: Any) -> Callable[[Any], None]:
    return lambda module: setattr(module.config, name, value)


def replaced(name: str, make: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    return lambda module: setattr(module, name, make(getattr(module, name)))


class Doubled(nn.Module):
    """Somebody's module in the place of one that returns a tensor."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs) * 2


class Same(Doubled):
    """Somebody's module in the place of one that returns anything."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def half(name: str) -> Callable[[Any], None]:
    """Somebody's method on the instance, which gives half of what the class's gives."""

    def apply(module: Any) -> None:
        stock = getattr(module, name)
        setattr(module, name, lambda *args, **kwargs: stock(*args, **kwargs) * 0.5)

    return apply


def other_positions(module: Any) -> None:
    module.create_position_ids_from_input_ids = lambda ids, *args: torch.full_like(ids, 3)


def no_buckets(module: Any) -> None:
    module.relative_position_bucket = lambda positions, **kwargs: positions.clamp(0, 3)


def no_masks(module: Any) -> None:
    stock = type(module)._create_attention_masks
    module._create_attention_masks = lambda **kwargs: stock(module, **{**kwargs, "attention_mask": None})


# Class of BERT's file, without its prefix -> attribute -> change. "config.x" is x of self.config.
BERT: dict[str, dict[str, Change]] = {
    "Embeddings": {
        "position_ids": in_place("position_ids", lambda ids: ids.remainder_(7)),  # positions used again for long texts
        "token_type_ids": in_place("token_type_ids", lambda ids: ids.fill_(1)),
        "word_embeddings": replaced("word_embeddings", Doubled),
        "position_embeddings": replaced("position_embeddings", Doubled),
        "token_type_embeddings": replaced("token_type_embeddings", Doubled),
        "LayerNorm": replaced("LayerNorm", Doubled),
        "dropout": replaced("dropout", Doubled),
    },
    "SelfAttention": {
        "attention_head_size": attribute("attention_head_size", 8),
        "query": replaced("query", Doubled),
        "key": replaced("key", Doubled),
        "value": replaced("value", Doubled),
        "config._attn_implementation": config("_attn_implementation", "eager"),
        "config": None,
        "training": attribute("training", True),
        "dropout": replaced("dropout", Same),
        "scaling": attribute("scaling", 0.9),
        "layer_idx": attribute("layer_idx", 5),
        "is_causal": attribute("is_causal", True),
        "num_key_value_groups": attribute("num_key_value_groups", 1),
        "num_attention_heads": attribute("num_attention_heads", 4),
        "is_decoder": attribute("is_decoder", True),
    },
    "SelfOutput": {
        "dense": replaced("dense", Doubled),
        "dropout": replaced("dropout", Doubled),
        "LayerNorm": replaced("LayerNorm", Doubled),
    },
    "Attention": {
        "self": replaced("self", Same),
        "output": replaced("output", Doubled),
        "is_cross_attention": attribute("is_cross_attention", True),
    },
    "Intermediate": {
        "dense": replaced("dense", Doubled),
        "intermediate_act_fn": attribute("intermediate_act_fn", nn.ReLU()),
    },
    "Output": {
        "dense": replaced("dense", Doubled),
        "dropout": replaced("dropout", Doubled),
        "LayerNorm": replaced("LayerNorm", Doubled),
    },
    "Layer": {
        "attention": replaced("attention", Same),
        "intermediate": replaced("intermediate", Doubled),
        "output": replaced("output", Doubled),
        "chunk_size_feed_forward": attribute("chunk_size_feed_forward", 4),
        "seq_len_dim": attribute("seq_len_dim", 0),
        "feed_forward_chunk": half("feed_forward_chunk"),
        "is_decoder": attribute("is_decoder", True),
        "add_cross_attention": attribute("add_cross_attention", True),
        "crossattention": attribute("crossattention", nn.Identity()),
    },
    "Encoder": {
        "layer": lambda module: setattr(module, "layer", module.layer[:1]),
        "config": None,
    },
    "Model": {
        "config": None,
        "config.is_decoder": config("is_decoder", True),
        "config.is_encoder_decoder": config("is_encoder_decoder", True),
        "config.use_cache": config("use_cache", False),
        "embeddings": replaced("embeddings", Doubled),
        "encoder": replaced("encoder", Same),
        "pooler": attribute("pooler", None),
        "_create_attention_masks": no_masks,
        "get_input_embeddings": None,
        "device": None,
        "training": None,
        "gradient_checkpointing": attribute("gradient_checkpointing", True),
    },
}
# Of embeddings whose positions follow the tokens.
FOLLOWING: dict[str, Change] = {
    "padding_idx": attribute("padding_idx", 5),
    "create_position_ids_from_input_ids": other_positions,
    "create_position_ids_from_inputs_embeds": None,  # of calls that are stock's
}
# What else other families' files have besides, or under other names.
OWN: dict[str, dict[str, dict[str, Change]]] = {
    "electra": {"Model": {"embeddings_project": replaced("embeddings_project", Doubled)}},
    "ernie": {
        "Embeddings": {
            "use_task_id": attribute("use_task_id", False),
            "task_type_embeddings": replaced("task_type_embeddings", Doubled),
        }
    },
    "distilbert": {
        "Model": {"transformer": replaced("transformer", Same)},
        "Transformer": {"layer": BERT["Encoder"]["layer"]},
        "TransformerBlock": {
            "attention": replaced("attention", Same),
            "sa_layer_norm": replaced("sa_layer_norm", Doubled),
            "ffn": replaced("ffn", Doubled),
            "output_layer_norm": replaced("output_layer_norm", Doubled),
        },
        "SelfAttention": {name: replaced(name, Doubled) for name in ("q_lin", "k_lin", "v_lin", "out_lin")},
        "FFN": {
            "lin1": replaced("lin1", Doubled),
            "lin2": replaced("lin2", Doubled),
            "dropout": replaced("dropout", Doubled),
            "activation": attribute("activation", nn.ReLU()),
            "chunk_size_feed_forward": attribute("chunk_size_feed_forward", 4),
            "seq_len_dim": attribute("seq_len_dim", 0),
            "ff_chunk": half("ff_chunk"),
        },
    },
    "mpnet": {
        "Model": {
            "config.output_attentions": config("output_attentions", True),
            "config.output_hidden_states": config("output_hidden_states", True),
            "config.return_dict": config("return_dict", False),
        },
        "Encoder": {
            "compute_position_bias": half("compute_position_bias"),
            "relative_attention_bias": replaced("relative_attention_bias", Doubled),
            "relative_position_bucket": no_buckets,
        },
        "Attention": {
            "attn": replaced("attn", Same),
            "LayerNorm": replaced("LayerNorm", Doubled),
            "dropout": replaced("dropout", Doubled),
        },
        "SelfAttention": {
            "all_head_size": attribute("all_head_size", 16),
            **{name: replaced(name, Doubled) for name in ("q", "k", "v", "o")},
        },
    },
}
# Class of transformers.activations or torch.nn -> attribute -> change.
LEAVES: dict[str, dict[str, Change]] = {
    "GELUActivation": {"act": attribute("act", torch.tanh)},
    "GELUTanh": {"act": attribute("act", torch.tanh)},
    "Linear": {
        "weight": in_place("weight", lambda w: w.mul_(1.5)),
        "bias": in_place("bias", lambda b: b.add_(0.5)),
    },
    "LayerNorm": {
        "normalized_shape": attribute("normalized_shape", (16,)),
        "weight": in_place("weight", lambda w: w.mul_(1.5)),
        "bias": attribute("bias", None),
        "eps": attribute("eps", 0.5),
    },
    "Embedding": {
        "weight": in_place("weight", lambda w: w.mul_(1.5)),
        "padding_idx": attribute("padding_idx", 3),
        "max_norm": attribute("max_norm", 0.5),
        "norm_type": None,  # read where max_norm is set
        "scale_grad_by_freq": attribute("scale_grad_by_freq", True),
        "sparse": attribute("sparse", True),
    },
    "Dropout": {
        "p": attribute("p", 0.7),
        "training": None,  # with p = 0; dropout is tested in test_dropout_alike.py
        "inplace": attribute("inplace", True),
    },
    "GELU": {"approximate": attribute("approximate", "tanh")},
}
_METHODS = ("forward", "feed_forward_chunk", "ff_chunk", "_create_attention_masks", "compute_position_bias")


def leaf(name: str) -> Any:
    """The class in the installed release, or None where it has none of that name."""
    return getattr(activations, name, None) or getattr(nn, name, None)


def classes_of(family: Family) -> list[type[nn.Module]]:
    """Stock classes of a family that fused code takes the place of."""
    return [family.embeddings, family.encoder, family.layer, family.model, *family.holders.values()]


def changes_of(family: Family, stock: type[nn.Module]) -> dict[str, Change]:
    """What may be read of a class of a family, and a change of each."""
    name = stock.__name__.removeprefix(family.model.__name__.removesuffix("Model"))
    return {**BERT.get(name, {}), **own_changes_of(family, stock)}


def own_changes_of(family: Family, stock: type[nn.Module]) -> dict[str, Change]:
    """Those which the class of BERT's that is named alike does not have."""
    name = stock.__name__.removeprefix(family.model.__name__.removesuffix("Model"))
    following = FOLLOWING if family.positions_follow_tokens and stock is family.embeddings else {}
    return {**following, **OWN.get(family.name, {}).get(name, {})}


def read_by(stock: type[nn.Module], module: Any = None) -> set[str]:
    """What the forward of a class reads of itself, by its source: attributes, and "config.x".

    module: with the eager attention function, which is given the module, where the class is one of attention.
    """
    names: set[str] = set()
    for method in _METHODS:
        function = vars(stock).get(method)
        if function is not None:
            names |= _read(inspect.unwrap(function), "self")
    if module is not None and hasattr(module, "eager_attention_forward"):
        for attention in (module.eager_attention_forward, module.ALL_ATTENTION_FUNCTIONS["sdpa"]):
            names |= _read(attention, "module")
    return names


def _read(function: Any, owner: str) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == owner:
            names.add(node.attr)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == f"{owner}.config":
            names.add(f"config.{node.attr}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr"):
            holder, attribute_name = node.args[:2]
            if ast.unparse(holder) == owner and isinstance(attribute_name, ast.Constant):
                names.add(str(attribute_name.value))
    return names
