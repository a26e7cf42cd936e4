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
from transformers.models.bert import modeling_bert as hf

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


def half_chunk(module: Any) -> None:
    stock = type(module).feed_forward_chunk
    module.feed_forward_chunk = lambda x: stock(module, x) * 0.5


def no_masks(module: Any) -> None:
    stock = type(module)._create_attention_masks
    module._create_attention_masks = lambda **kwargs: stock(module, **{**kwargs, "attention_mask": None})


# Class of modeling_bert, transformers.activations or torch.nn -> attribute -> change. "config.x" is x of self.config.
READS: dict[str, dict[str, Change]] = {
    "BertEmbeddings": {
        "position_ids": in_place("position_ids", lambda ids: ids.remainder_(7)),  # positions used again for long texts
        "token_type_ids": in_place("token_type_ids", lambda ids: ids.fill_(1)),
        "word_embeddings": replaced("word_embeddings", Doubled),
        "position_embeddings": replaced("position_embeddings", Doubled),
        "token_type_embeddings": replaced("token_type_embeddings", Doubled),
        "LayerNorm": replaced("LayerNorm", Doubled),
        "dropout": replaced("dropout", Doubled),
    },
    "BertSelfAttention": {
        "attention_head_size": attribute("attention_head_size", 16),
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
    "BertSelfOutput": {
        "dense": replaced("dense", Doubled),
        "dropout": replaced("dropout", Doubled),
        "LayerNorm": replaced("LayerNorm", Doubled),
    },
    "BertAttention": {
        "self": replaced("self", Same),
        "output": replaced("output", Doubled),
        "is_cross_attention": attribute("is_cross_attention", True),
    },
    "BertIntermediate": {
        "dense": replaced("dense", Doubled),
        "intermediate_act_fn": attribute("intermediate_act_fn", nn.ReLU()),
    },
    "BertOutput": {
        "dense": replaced("dense", Doubled),
        "dropout": replaced("dropout", Doubled),
        "LayerNorm": replaced("LayerNorm", Doubled),
    },
    "BertLayer": {
        "attention": replaced("attention", Same),
        "intermediate": replaced("intermediate", Doubled),
        "output": replaced("output", Doubled),
        "chunk_size_feed_forward": attribute("chunk_size_feed_forward", 4),
        "seq_len_dim": attribute("seq_len_dim", 0),
        "feed_forward_chunk": half_chunk,
        "is_decoder": attribute("is_decoder", True),
        "add_cross_attention": attribute("add_cross_attention", True),
        "crossattention": attribute("crossattention", nn.Identity()),
    },
    "BertEncoder": {
        "layer": lambda module: setattr(module, "layer", module.layer[:1]),
        "config": None,
    },
    "BertModel": {
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
    "GELUActivation": {"act": attribute("act", torch.tanh)},
    "GELUTanh": {"act": attribute("act", torch.tanh)},
    "Linear": {
        "weight": in_place("weight", lambda w: w.mul_(1.5)),
        "bias": in_place("bias", lambda b: b.add_(0.5)),
    },
    "LayerNorm": {
        "normalized_shape": attribute("normalized_shape", (32,)),
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
OWNERS = (hf, activations, nn)
_METHODS = ("forward", "feed_forward_chunk", "_create_attention_masks")


def class_of(name: str) -> type | None:
    """The class in the installed release, or None where it has none of that name."""
    return next((getattr(owner, name) for owner in OWNERS if hasattr(owner, name)), None)


def read_by(name: str) -> set[str]:
    """What the forward of a class reads of itself, by its source: attributes, and "config.x"."""
    owner: Any = class_of(name)
    names: set[str] = set()
    for method in _METHODS:
        function = vars(owner).get(method)
        if function is not None:
            names |= _read(inspect.unwrap(function), "self")
    if name == "BertSelfAttention":  # attention functions get the module as their first argument
        for attention in (hf.eager_attention_forward, hf.ALL_ATTENTION_FUNCTIONS["sdpa"]):
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
