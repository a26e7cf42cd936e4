"""Model families that optimize() knows, as one table: stock class to fast class, matched by exact type.
Pre-training heads are swapped only where `masked_head` asks for it.
"""

from torch import nn
from transformers.models.bert import modeling_bert

from bertfast.convert.heads import HEADS
from bertfast.convert.layers import FastBertEmbeddings, FastBertEncoder, FastBertLayer
from bertfast.convert.model import FastBertModel
from bertfast.convert.pooled_heads import POOLED

SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    **POOLED,
    modeling_bert.BertModel: FastBertModel,
    modeling_bert.BertEmbeddings: FastBertEmbeddings,
    modeling_bert.BertEncoder: FastBertEncoder,
    modeling_bert.BertLayer: FastBertLayer,
}
STOCK: dict[type[nn.Module], type[nn.Module]] = {fast: stock for stock, fast in (SWAPS | HEADS).items()}
FAMILIES = ("bert",)
