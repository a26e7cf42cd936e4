"""Model families that optimize() knows, as one table: stock class to fast class, matched by exact type."""

from torch import nn
from transformers.models.bert import modeling_bert

from bertfast.convert.layers import FastBertEmbeddings, FastBertEncoder, FastBertLayer

SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    modeling_bert.BertEmbeddings: FastBertEmbeddings,
    modeling_bert.BertEncoder: FastBertEncoder,
    modeling_bert.BertLayer: FastBertLayer,
}
STOCK: dict[type[nn.Module], type[nn.Module]] = {fast: stock for stock, fast in SWAPS.items()}
FAMILIES = ("bert",)
