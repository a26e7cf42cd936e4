"""The stack of layers: packs a padded batch once before it and unpacks it once after; checkpoints layers where asked.

Inference on a CPU goes to one C++ call for all layers (`stack`) wherever nothing is attached to a layer that would miss it.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertfast import ops
from bertfast.nn import stack
from bertfast.nn.modules import BertAttention, BertLayer


class BertEncoder(nn.Module):
    """A stack of layers.

    Attributes:
        gradient_checkpointing: keep only the input of each layer for backward and compute the layer again there, with the
            same dropout bits (Chen et al., "Training deep nets with sublinear memory cost", 2016). Off at first.
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
        if cu_seqlens is None and attention_mask is not None and not torch.compiler.is_compiling():
            packing = ops.pack(attention_mask)
            packed = self(ops.unpad(x, packing), cu_seqlens=packing.cu_seqlens, max_seqlen=packing.max_seqlen)
            return ops.repad(packed, packing)
        y = self._stacked(x, cu_seqlens, max_seqlen, read) if attention_mask is None else None
        if y is not None:
            return y
        layout = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        last = len(self.layer) - 1
        for i, layer in enumerate(self.layer):
            rows = read if i == last else None
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, attention_mask, use_reentrant=False, **layout, read=rows)
            else:
                x = layer(x, attention_mask, **layout, read=rows)
        if attention_mask is not None:
            x = x * attention_mask.to(torch.bool)[..., None]
        return x

    def _stacked(
        self, x: Tensor, cu_seqlens: Tensor | None, max_seqlen: int | None, read: Tensor | None
    ) -> Tensor | None:
        """All layers in one call, or None where it cannot be (`stack.run`) or a layer is not as this class made it."""
        if torch.compiler.is_compiling():
            return None
        kinds = set()
        for layer in self.layer:
            if type(layer) is not BertLayer or type(layer.attention) is not BertAttention:
                return None
            if not (stack.untouched(layer) and stack.untouched(layer.attention)):
                return None
            kinds.add((layer.attention.num_attention_heads, layer.approximate))
        if len(kinds) != 1 or x.numel() == 0 or x.dim() != (3 if cu_seqlens is None else 2):
            return None
        if cu_seqlens is None:
            max_seqlen = x.shape[1]
            cu_seqlens = torch.arange(0, x.shape[0] * max_seqlen + 1, max_seqlen, dtype=torch.int32)
        if max_seqlen is None:
            return None
        heads, approximate = kinds.pop()
        flat, scale = x.reshape(-1, x.shape[-1]), (x.shape[-1] // heads) ** -0.5
        y = stack.run(
            self,
            self.layer,
            flat,
            cu_seqlens,
            max_seqlen,
            heads=heads,
            scale=scale,
            approximate=approximate,
            read=read,
        )
        return y if y is None or read is not None else y.view(x.shape)
