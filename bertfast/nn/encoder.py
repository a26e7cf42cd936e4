"""The stack of layers: packs a padded batch once before it and unpacks it once after; checkpoints layers where asked."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertfast import ops
from bertfast.nn.fp8_state import Recipe
from bertfast.nn.layout import Packed
from bertfast.nn.modules import BertAttention, BertLayer, layout_of
from bertfast.nn.parts import Kind
from bertfast.nn.plain import untouched
from bertfast.nn.through import Layers, through


class BertEncoder(nn.Module):
    """A stack of layers.

    Attributes:
        gradient_checkpointing: keep only the input of each layer for backward and compute the layer again there, with the
            same dropout bits (Chen et al., "Training deep nets with sublinear memory cost", 2016). Off at first.
        narrow_stream: in training on a GPU under autocast, keep the residual stream between layers in 16 bits whatever the width.
            Off, that is so from 1,024 columns on, where all gradients stay within twice eager autocast's errors.
        fp8: how training in bfloat16 on a GPU multiplies in FP8; None, at first, where it does not.
        infer_fp8: whether inference in bfloat16 on a GPU multiplies in FP8. Off at first.
    """

    def __init__(
        self,
        num_hidden_layers: int,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
    ):
        super().__init__()
        self.gradient_checkpointing = False
        self.narrow_stream = False
        self.fp8: Recipe | None = None
        self.infer_fp8 = False
        self.layer = nn.ModuleList(
            BertLayer(
                hidden_size,
                num_attention_heads,
                intermediate_size,
                hidden_act,
                hidden_dropout_prob,
                attention_probs_dropout_prob,
                layer_norm_eps,
            )
            for _ in range(num_hidden_layers)
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
        """x [B, S, E] with attention_mask [B, S], or packed [T, E] with cu_seqlens and max_seqlen; returns the shape of x.

        Positions that attention_mask calls padding come back as zeros. Under torch.compile the batch stays padded.

        read: [R] int64, the rows of packed tokens whose output anybody reads: the last layer makes these alone, and the
            result is [R, E]. Rising without repeats in inference on a CPU; in any order, repeats allowed, elsewhere.
        """
        if read is not None and cu_seqlens is None:
            raise ValueError("BertEncoder: read names rows of packed tokens, which need cu_seqlens and max_seqlen")
        if cu_seqlens is not None:
            layout = layout_of(x, attention_mask, cu_seqlens, max_seqlen, read, "BertEncoder")
            return through(self.layers(x.shape[-1]).ready(x), x, layout)
        if attention_mask is not None and not torch.compiler.is_compiling():
            packing = ops.pack(attention_mask)
            packed = self(ops.unpad(x, packing), cu_seqlens=packing.cu_seqlens, max_seqlen=packing.max_seqlen)
            return ops.repad(packed, packing)
        if attention_mask is None and x.dim() == 3:
            flat, longest = x.reshape(-1, x.shape[-1]), x.shape[1]
            layers = self.layers(x.shape[-1]).ready(flat)
            if layers.at_once is not None:
                bounds = torch.arange(0, flat.shape[0] + 1, longest, dtype=torch.int32, device=x.device)
                return through(layers, flat, Packed(bounds, longest)).view(x.shape)
        for layer in self.layer:
            x = self._call(layer, x, attention_mask)
        if attention_mask is not None:
            x = x * attention_mask.to(torch.bool)[..., None]
        return x

    def layers(self, width: int) -> Layers:
        """The layers for `through`, as they are now, for rows of so many columns."""
        checkpointing = self.gradient_checkpointing and self.training
        return Layers(
            self,
            self.layer,
            self._call_packed,
            self._kind(width),
            checkpointing=checkpointing,
            narrow_stream=self.narrow_stream,
            fp8=self.fp8,
            infer_fp8=self.infer_fp8,
        )

    def _call(self, layer: nn.Module, x: Tensor, attention_mask: Tensor | None = None, **layout: Any) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, x, attention_mask, use_reentrant=False, **layout)
        return layer(x, attention_mask, **layout)

    def _call_packed(self, layer: nn.Module, x: Tensor, layout: Packed) -> Tensor:
        return self._call(layer, x, cu_seqlens=layout.cu_seqlens, max_seqlen=layout.max_seqlen, read=layout.read)

    def _kind(self, width: int) -> Kind | None:
        """The kind of all layers; None where they differ, one is not as this class made it, or hooks wait for calls."""
        if torch.compiler.is_compiling():
            return None
        kinds = set()
        for layer in self.layer:
            if type(layer) is not BertLayer or type(layer.attention) is not BertAttention:
                return None
            if not (untouched(layer) and untouched(layer.attention)):
                return None
            heads = layer.attention.num_attention_heads
            kinds.add(Kind(heads, (width // heads) ** -0.5, layer.approximate))
        return kinds.pop() if len(kinds) == 1 else None
