"""Changes of the process: code and tables outside the modules. Each is a context manager."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert as hf

CLASSES = (
    "BertEmbeddings",
    "BertSelfAttention",
    "BertSelfOutput",
    "BertAttention",
    "BertIntermediate",
    "BertOutput",
    "BertLayer",
    "BertEncoder",
    "BertPooler",
    "BertModel",
    "BertPredictionHeadTransform",
    "BertLMPredictionHead",
    "BertForSequenceClassification",
    "BertForMaskedLM",
    "BertForPreTraining",
)


def _halved(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output * 0.5
    if type(output) is tuple and output and isinstance(output[0], Tensor):
        return (output[0] * 0.5, *output[1:])
    state = getattr(output, "last_hidden_state", None)
    if isinstance(state, Tensor):
        output.last_hidden_state = state * 0.5
    for name in ("logits", "prediction_logits"):
        if isinstance(getattr(output, name, None), Tensor):
            setattr(output, name, getattr(output, name) * 0.5)
    return output


@contextmanager
def class_forward(random: Random) -> Iterator[None]:
    kind = getattr(hf, random.choice(CLASSES))
    before = kind.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _halved(before(self, *args, **kwargs))

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = before


@contextmanager
def class_method(random: Random) -> Iterator[None]:
    before = hf.BertLayer.feed_forward_chunk
    hf.BertLayer.feed_forward_chunk = lambda self, x: before(self, x) * 0.5
    try:
        yield
    finally:
        hf.BertLayer.feed_forward_chunk = before


@contextmanager
def activation_forward(random: Random) -> Iterator[None]:
    from transformers.activations import GELUActivation

    before = GELUActivation.forward
    GELUActivation.forward = lambda self, x: before(self, x) * 0.5
    try:
        yield
    finally:
        GELUActivation.forward = before


@contextmanager
def registered_attention(random: Random) -> Iterator[None]:
    """Under a name that models use already."""
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        return before(module, query * 0.5, key, value, mask, **kwargs)

    AttentionInterface.register("sdpa", attention)
    try:
        yield
    finally:
        AttentionInterface.register("sdpa", before)


@contextmanager
def eager_attention(random: Random) -> Iterator[None]:
    before = hf.eager_attention_forward

    def attention(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        return before(module, query * 0.5, *args, **kwargs)

    hf.eager_attention_forward = attention
    try:
        yield
    finally:
        hf.eager_attention_forward = before


@contextmanager
def mask_function(random: Random) -> Iterator[None]:
    before = hf.create_bidirectional_mask

    def masks(*args: Any, **kwargs: Any) -> Any:
        return before(*args, **{**kwargs, "attention_mask": None})

    hf.create_bidirectional_mask = masks
    try:
        yield
    finally:
        hf.create_bidirectional_mask = before


@contextmanager
def global_hook(random: Random) -> Iterator[None]:
    def halve(module: nn.Module, args: Any, output: Any) -> Any:
        return output * 0.5 if isinstance(module, (nn.LayerNorm, nn.Embedding)) else None

    handle = nn.modules.module.register_module_forward_hook(halve)
    try:
        yield
    finally:
        handle.remove()
