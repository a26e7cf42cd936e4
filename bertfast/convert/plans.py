"""What a BertModel's last whole call found out, for the calls after it: to look through a hundred modules for hooks, replaced
parts and options takes as long as a layer of MiniLM does on a query of 16 tokens.

A plan is good while no module inside, no config and none of their dicts has changed (csrc/snapshot.h), and no parameter
has (`stack.Found`).
"""

import functools
from collections import Counter
from dataclasses import dataclass
from types import BuiltinFunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from bertfast import _ext
from bertfast.convert import checks
from bertfast.convert.layers import FAST, UNPADDED, counter
from bertfast.nn import stack
from bertfast.nn.core import dropout_rate

# Functions of an activation and shapes of a norm among them. Not functions and methods of Python, which may hold the model itself
# and would keep it alive.
_KINDS = (nn.Module, Tensor, PretrainedConfig, torch.dtype, BuiltinFunctionType, functools.partial, tuple)
_INSIDE = {
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_bertfast",
}
_plans: "WeakKeyDictionary[nn.Module, Plan]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        snapshot: of the model, everything inside and their configs.
        found: what computes its layers.
        tables: word, position and segment table, weight and bias of the norm, no padding_idx, which has no say here, and eps.
        counters: of the modules that are not called, and what is to be counted.
    """

    snapshot: Any
    found: stack.Found
    tables: tuple[Any, ...]
    counters: tuple[tuple[Counter[str], str], ...]

    def embed(self, ids: Tensor, segments: Tensor | None, positions: Tensor) -> Tensor:
        """`nn.modules.embed` of ids [T] with positions [T], without its checks of what the snapshot holds."""
        segments = ids.new_zeros(()).expand_as(ids) if segments is None else segments
        flat = [t.to(torch.int64) for t in (ids, positions, segments)]
        return torch.ops.bertfast.embedding_sum_norm_fwd(*flat, *self.tables, 0.0, None)[0]

    def count(self) -> None:
        for each, outcome in self.counters:
            each[outcome] += 1


def find(model: nn.Module) -> Plan | None:
    """The model's plan, where there is one and it is good for a call without gradients now."""
    plan = _plans.get(model)
    if plan is None:
        return None
    if checks.environment_reason() is not None or not plan.snapshot.holds(model) or not plan.found.is_ready():
        return None
    return plan


def make(model: Any, found: stack.Found | None) -> None:
    """Keep what was found out about a BertModel whose modules are all plain."""
    _plans.pop(model, None)
    embeddings = model.embeddings
    if found is None or dropout_rate(embeddings.dropout) > 0.0:
        return
    if any(isinstance(m.__dict__.get("act"), MethodType) for m in model.encoder.modules()):
        return  # "gelu_python": a change of its method would not show
    inside = [module for module in model.modules() if module is not model]
    configs = {id(m.config): m.config for m in (model, *inside) if "config" in m.__dict__}
    extension: Any = _ext.load()
    snapshot = extension.Snapshot(model, [*inside, *configs.values()], _KINDS, _INSIDE)
    word, norm = embeddings.word_embeddings, embeddings.LayerNorm
    tables = [word.weight, embeddings.position_embeddings.weight, embeddings.token_type_embeddings.weight]
    tables += [norm.weight, norm.bias, -1, norm.eps]
    counters = [(counter(embeddings), FAST)]
    counters += [(counter(module), UNPADDED) for module in (model.encoder, *model.encoder.layer)]
    _plans[model] = Plan(snapshot, found, tuple(tables), tuple(counters))


def forget(model: nn.Module) -> None:
    """Let go what belongs to `model` or anything inside it."""
    for module in model.modules():
        _plans.pop(module, None)
