"""The ops: public functions that check what their arguments mean and call the dispatcher, which knows the owner.

They compute in the dtype they are given: autocast changes `bertfast.nn`, optimised models and `masked_lm_loss`, not the others.
"""

from bertfast import _ext
from bertfast.ops import fp8_cast, fp8_gelu, fp8_linear, fp8_norm, optimizer  # noqa: F401  defines their ops
from bertfast.ops.attention import attention, attention_padded
from bertfast.ops.dropout_add_norm import dropout_add_norm
from bertfast.ops.embedding_sum_norm import embedding_sum_norm, tied_embedding_sum_norm
from bertfast.ops.linear import linear
from bertfast.ops.linear_gelu import linear_gelu
from bertfast.ops.masked_lm_loss import masked_lm_loss
from bertfast.ops.packing import Packing, Survey, pack, repad, survey, unpad

_ext.load()

__all__ = [
    "Packing",
    "Survey",
    "attention",
    "attention_padded",
    "dropout_add_norm",
    "embedding_sum_norm",
    "linear",
    "linear_gelu",
    "masked_lm_loss",
    "pack",
    "repad",
    "survey",
    "tied_embedding_sum_norm",
    "unpad",
]
