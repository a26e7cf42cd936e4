"""What runs a BertModel's inference on a GPU as captured calls, kept as long as nothing about the model changes."""

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from bertfast.graphs.encode import Encoder
from bertfast.nn import BertEmbeddings, BertEncoder, snapshots
from bertfast.nn.plain import dropout_rate, untouched

_kept: "WeakKeyDictionary[nn.Module, tuple[snapshots.Snapshot, Encoder]]" = WeakKeyDictionary()


def encoder_of(model: Any) -> Encoder | None:
    """For a call without gradients now; None where modules must be called, or nothing runs on a GPU."""
    kept = _kept.get(model)
    if kept is not None and kept[0].holds(model) and kept[1].is_ready():
        return kept[1]
    _kept.pop(model, None)
    embeddings, encoder = model.embeddings, model.encoder
    if type(embeddings) is not BertEmbeddings or type(encoder) is not BertEncoder:
        return None
    if not (untouched(embeddings) and untouched(encoder)) or dropout_rate(embeddings.dropout) > 0.0:
        return None
    word = embeddings.word_embeddings.weight.detach()
    layers = encoder.layers(word.shape[1]).ready(word)
    made = Encoder.of(embeddings, layers, model.graph_limits)
    snapshot = None if made is None else snapshots.take(model, [], (type(model.config), type(model.graph_limits)))
    if made is not None and snapshot is not None:
        _kept[model] = snapshot, made
    return made
