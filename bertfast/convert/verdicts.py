"""Whether the modules of a BertModel are all plain, kept for the calls after the one that found it out: to look through a hundred
modules for hooks, replaced parts and options takes as long as a layer of MiniLM does on a query of 16 tokens.

A verdict is good while no module inside, no config and none of their dicts has changed (csrc/snapshot.h), and no parameter has.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import is_
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig

from bertfast import _library
from bertfast.convert import adapters, checks, chunking
from bertfast.convert.counts import FAST, UNPADDED, counter
from bertfast.convert.options import limits_of
from bertfast.graphs.encode import Encoder
from bertfast.nn import snapshots
from bertfast.nn.device import Launched
from bertfast.nn.embedding import tables
from bertfast.nn.parts import parts_of
from bertfast.nn.stack import Native
from bertfast.nn.through import Layers
from bertfast.nn.tokens import Tokens

_kept: "WeakKeyDictionary[nn.Module, Verdict]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Verdict:
    """A BertModel that may be run from ids to hidden states without a call of any module inside.

    Attributes:
        layers: of its encoder, and what computes them.
        embeddings: of the model.
        word: the table of words.
        projection: from the width of the embeddings to that of the layers, where they differ.
        counters: of the modules that are not called, and what is to be counted.
        chunk: what a batch's length must be a multiple of for stock not to raise an error; 0 where it may have any.
        encoder: what runs it on a GPU; None where the layers are called one by one, and on a CPU.
        snapshot: of the model, everything inside and their configs; None where it is for one call alone.
    """

    layers: Layers
    embeddings: Any
    word: Tensor
    projection: Any
    counters: tuple[tuple[Counter[str], str], ...]
    chunk: int = 0
    encoder: Encoder | None = None
    snapshot: snapshots.Snapshot | None = None

    def embed(self, tokens: Tokens) -> Tensor:
        """The embeddings [N, E] of tokens in inference, as the layers take them."""
        ids, segments = tokens.input_ids, tokens.token_type_ids
        segments = ids.new_zeros(()).expand_as(ids) if segments is None else segments
        flat = [t.to(torch.int64) for t in (ids, tokens.position_ids, segments)]
        norm = self.embeddings._modules["LayerNorm"]
        scale = norm._parameters["weight"], norm._parameters["bias"]
        # No padding_idx, which has no say without gradients.
        arguments = (*flat, *tables(self.embeddings), *scale, -1, norm.eps, 0.0, None)
        x = _library.op("embedding_sum_norm_fwd")(*arguments)[0]
        return x if self.projection is None else F.linear(x, self.projection.weight, self.projection.bias)

    def count(self) -> None:
        for each, outcome in self.counters:
            each[outcome] += 1

    def holds(self, model: nn.Module) -> bool:
        """Whether nothing has changed, for a call without gradients now."""
        at_once = self.layers.at_once
        if at_once is None or self.snapshot is None:
            return False
        return self.snapshot.holds(model) and at_once.is_ready()


def find(model: nn.Module) -> Verdict | None:
    """The model's verdict, where one was kept and is good for a call without gradients now."""
    verdict = _kept.get(model)
    if verdict is None or checks.environment_reason() is not None or not verdict.holds(model):
        return None
    return verdict


def make(model: Any, *, keep: bool, is_plain: Callable[[], bool]) -> Verdict:
    """The verdict on a base model whose modules were all found plain and without dropout.

    Args:
        keep: for the calls to come too, which it is where the layers run at once.
        is_plain: finds that out once more. Another thread may change the model meanwhile: what is kept was read, and found plain,
            after the snapshot that tells later calls of a change.
    """
    _kept.pop(model, None)
    configs = {id(m.config): m.config for m in model.modules() if "config" in m.__dict__} if keep else {}
    snapshot = snapshots.take(model, configs.values(), (PretrainedConfig,)) if keep else None
    family, embeddings = model.family, model.embeddings
    encoder, word = family.encoder_of(model), embeddings.word_embeddings.weight
    projection = None if family.projection is None else model._modules.get(family.projection)
    example = word if projection is None else projection.weight.t()  # of as many columns as the layers have
    layers = encoder.layers().ready(example.detach())
    not_called = [encoder] if layers.at_once is None else [encoder, *encoder.layer]
    counters = [(counter(embeddings), FAST), *((counter(module), UNPADDED) for module in not_called)]
    captured = Encoder.of(embeddings, layers, limits_of(model), projection)
    chunk = chunking.common_size(encoder.layer)
    verdict = Verdict(layers, embeddings, word, projection, tuple(counters), chunk, captured)
    if snapshot is None or not isinstance(layers.at_once, Native | Launched):
        return verdict
    if any(isinstance(module.__dict__.get("act"), MethodType) for module in encoder.modules()):
        return verdict  # "gelu_python": a change of its method would not show
    if adapters.inside(encoder):
        return verdict  # they keep lists of what is merged and active, whose changes would not show
    # A weight that was there before, replaced while the layers were read, and put back since would go unseen.
    now = [parameter for layer in encoder.layer for parameter in parts_of(layer).parameters()]
    is_same = len(now) == len(layers.at_once.parameters) and all(map(is_, now, layers.at_once.parameters))
    if is_plain() and is_same:
        _kept[model] = replace(verdict, snapshot=snapshot)
    return verdict


def forget(model: nn.Module) -> None:
    """Let go what belongs to `model` or anything inside it."""
    for module in model.modules():
        _kept.pop(module, None)
