"""BERT's modules over the fused ops; no transformers needed."""

from bertfast.nn.modules import BertAttention, BertEmbeddings, BertEncoder, BertLayer, BertMLP, LayerNorm

__all__ = ["BertAttention", "BertEmbeddings", "BertEncoder", "BertLayer", "BertMLP", "LayerNorm"]
