"""BERT's modules over the fused ops; no transformers needed."""

from bertfast.nn.encoder import BertEncoder
from bertfast.nn.modules import BertAttention, BertEmbeddings, BertLayer, BertMLP, LayerNorm

__all__ = ["BertAttention", "BertEmbeddings", "BertEncoder", "BertLayer", "BertMLP", "LayerNorm"]
