"""BERT's modules with BERT's parameter names, so that state dicts move to and from Hugging Face's model unchanged.

They need no transformers. Each takes padded tokens [B, S, E] or packed ones [T, E].
"""

from typing import Any

import torch
from torch import Tensor, nn

from bertfast import ops
from bertfast.nn.core import attention_block, mlp_block
from bertfast.nn.embedding import embed
from bertfast.nn.layout import Layout, Packed, Padded
from bertfast.nn.parts import attention_parts, mlp_parts
from bertfast.nn.plain import dropout_rate

ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last dimension by the fused kernel; [..., E] to [..., E], arithmetic in float32.

    Raises:
        ValueError: at construction, unless one dimension is normalised with both parameters.
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-12, **options):
        super().__init__(normalized_shape, eps=eps, **options)
        if len(self.normalized_shape) != 1 or self.weight is None or self.bias is None:
            raise ValueError("bertfast.nn.LayerNorm normalises the last dimension and has a weight and a bias")

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout_add_norm(x, None, self.weight, self.bias, eps=self.eps)


class BertEmbeddings(nn.Module):
    """Sum of word, position and segment embeddings, layer norm, dropout."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        hidden_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int | None = 0,
    ):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size, padding_idx=pad_token_id)
        self.position_embeddings = nn.Embedding(max_position_embeddings, hidden_size)
        self.token_type_embeddings = nn.Embedding(type_vocab_size, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = nn.Dropout(hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        tied: bool = False,
    ) -> Any:
        """input_ids [B, S], or packed [T] with position_ids [T]; returns [B, S, E] or [T, E]. Bad ids raise IndexError.

        tied: also return the word table [V, E] for use as a decoder's weight (`ops.tied_embedding_sum_norm`).
        """
        if input_ids.dim() == 1 and position_ids is None:
            raise ValueError(
                "BertEmbeddings: packed input_ids [T] need position_ids [T], which start again at each sequence"
            )
        op = ops.tied_embedding_sum_norm if tied else ops.embedding_sum_norm
        return embed(self, input_ids, token_type_ids, position_ids, op)


class _Projections(nn.Module):
    def __init__(self, hidden_size: int, dropout: float):
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)


class _Output(nn.Module):
    def __init__(self, input_size: int, hidden_size: int, dropout: float, eps: float):
        super().__init__()
        self.dense = nn.Linear(input_size, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = nn.Dropout(dropout)


class _Intermediate(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, intermediate_size)


def layout_of(
    x: Tensor,
    attention_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    read: Tensor | None,
    name: str,
) -> Layout:
    if cu_seqlens is None:
        if read is not None:
            raise ValueError(f"{name}: read names rows of packed tokens, which need cu_seqlens and max_seqlen")
        if x.dim() != 3:
            raise ValueError(
                f"{name}: padded tokens must be [B, S, E], got {tuple(x.shape)}; packed ones need cu_seqlens"
            )
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(
                f"{name}: attention_mask must be [B, S], true at real tokens, got {tuple(attention_mask.shape)}"
            )
        return Padded(None if attention_mask is None else attention_mask.to(torch.bool)[:, None, None, :])
    if x.dim() != 2 or max_seqlen is None or attention_mask is not None:
        raise ValueError(
            f"{name}: packed tokens are [T, E] with cu_seqlens and max_seqlen and without attention_mask, got x {tuple(x.shape)}, "
            f"max_seqlen={max_seqlen}, attention_mask {'given' if attention_mask is not None else 'absent'}"
        )
    return Packed(cu_seqlens, max_seqlen, read)


class BertAttention(nn.Module):
    """Self-attention with its output projection, residual and norm."""

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
    ):
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}"
            )
        self.num_attention_heads = num_attention_heads
        self.self = _Projections(hidden_size, attention_probs_dropout_prob)
        self.output = _Output(hidden_size, hidden_size, hidden_dropout_prob, layer_norm_eps)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """x [B, S, E] with attention_mask [B, S] (non-zero at real tokens), or packed [T, E] with cu_seqlens and max_seqlen.

        read: [R] int64, rows of packed tokens: only theirs are made and returned, [R, E]; the others are keys and values.
        """
        return self.block(x, layout_of(x, attention_mask, cu_seqlens, max_seqlen, read, "BertAttention"))

    def block(self, x: Tensor, layout: Layout) -> Tensor:
        parts = attention_parts(self)
        return attention_block(
            x,
            layout,
            parts,
            self.num_attention_heads,
            attention_p=dropout_rate(parts.dropout),
            hidden_p=dropout_rate(parts.hidden_dropout),
            use_prepack=not self.training,
        )


class BertMLP(nn.Module):
    """The feed-forward half of a layer: two products around GELU, residual and norm. [..., E] to [..., E]."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
    ):
        super().__init__()
        if hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {sorted(ACTIVATIONS)}, got {hidden_act!r}")
        self.approximate = ACTIVATIONS[hidden_act]
        self.intermediate = _Intermediate(hidden_size, intermediate_size)
        self.output = _Output(intermediate_size, hidden_size, hidden_dropout_prob, layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        parts = mlp_parts(self)
        return mlp_block(
            x,
            parts,
            approximate=self.approximate,
            hidden_p=dropout_rate(parts.dropout),
            use_prepack=not self.training,
        )


class BertLayer(BertMLP):
    """Attention and feed-forward. It is a BertMLP with attention before it, which gives the parameters BERT's names."""

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
    ):
        super().__init__(hidden_size, intermediate_size, hidden_act, hidden_dropout_prob, layer_norm_eps)
        self.attention = BertAttention(
            hidden_size, num_attention_heads, hidden_dropout_prob, attention_probs_dropout_prob, layer_norm_eps
        )

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """Arguments as in `BertAttention.forward`."""
        return self.feed_forward(
            self.attention(x, attention_mask, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, read=read)
        )
