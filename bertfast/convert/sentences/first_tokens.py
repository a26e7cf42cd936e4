"""Pooling by [CLS] reads each text's first token alone, so of the last layer no other is computed, as under a head that reads
the pooler: four fifths of that layer's work.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling

from bertfast.convert import handover
from bertfast.convert.families import of_instance
from bertfast.convert.first_token_heads import only_reader
from bertfast.convert.model import FastModel
from bertfast.convert.plain import hook_reason

_VECTORS_ALONE = (Dense, Dropout, LayerNorm, Normalize)  # modules that read no token embeddings


def read_alone(model: Any, prompt: str | None) -> bool:
    """Whether nobody looks at other hidden states of a SentenceTransformer's last layer than each text's first."""
    modules = list(model)
    if len(modules) < 2 or type(modules[1]) is not Pooling or modules[1].pooling_mode != "cls":
        return False
    if prompt and not modules[1].include_prompt:  # then it is the first token after the prompt
        return False
    if not all(type(module) in _VECTORS_ALONE and _reads_vectors(module) for module in modules[2:]):
        return False
    base = modules[0].model
    if not isinstance(base, FastModel) or any(hook_reason(module, "it") for module in (model, *modules)):
        return False
    return only_reader(base, of_instance(base))


def _reads_vectors(module: Any) -> bool:
    return getattr(module, "module_input_name", "sentence_embedding") == "sentence_embedding"


def asked_for(model: Any) -> AbstractContextManager[Any]:
    """A context in which the encoder computes the last layer for these tokens alone."""
    base = model[0].model
    family = of_instance(base)
    if family is None:
        return nullcontext()
    return handover.offered(handover.Handover(family.encoder_of(base), base.embeddings, handover.FIRST))
