"""A stack of layers to whose scores stock adds a learned bias of relative positions, the same for all layers (MPNet).

Padding is removed in inference on a CPU: products run on packed tokens, attention on one sequence at a time, with its corner of the
bias. The bias has no gradient in our attention, and no kernel for a GPU adds one, so training and GPUs stay stock.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bertfast import ops
from bertfast.convert import checks
from bertfast.convert.counts import UNPADDED, count, note_uncounted
from bertfast.convert.encoder import FastEncoder
from bertfast.nn import device
from bertfast.nn.layout import Biased, Packed
from bertfast.nn.through import Layers, through
from bertfast.nn.tokens import sequences_of


class FastBiasedEncoder(FastEncoder):
    """A stack of layers that takes the padding out once before it and puts it back once after it, as `FastEncoder` does."""

    def fast_forward(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.arguments.bind(args, kwargs)
        reason = self._reason(call) or self._bias_reason(call)
        packing = None
        if reason is None and call is not None:
            x, mask = call["hidden_states"], call.get("attention_mask")
            real = checks.key_padding(mask, *x.shape[:2])
            if mask is not None and real is None:
                reason = "the mask is more than padding"
            else:
                reason, packing = self.packing(real)
        if reason is None and packing is not None and not _together(packing):
            reason = "there is padding between tokens, which relative positions count"
        if reason is not None or call is None:
            count(self, f"kept padded: {reason}")
            return self.stock.forward(self, *args, **kwargs)
        y = self._run_biased(x, packing)
        return self.family.encoder_output(last_hidden_state=y) if call.get("return_dict") else (y,)

    def whole_reason(self) -> str | None:
        return "its layers need relative positions"

    def _bias_reason(self: Any, call: dict[str, Any] | None) -> str | None:
        if torch.compiler.is_compiling():
            reason = "a compiled graph needs shapes that do not depend on data"
            note_uncounted(type(self), reason)
            return reason
        if call is not None and call["hidden_states"].device.type in device.KINDS:
            return "no GPU kernel adds a bias of relative positions"
        if any(checks.kind_of(layer).heads != self.n_heads for layer in self.layer):
            return "its layers have other heads than the bias of relative positions"
        if torch.is_grad_enabled():
            return "gradients are enabled, and the bias of relative positions would get none"
        # With dropout on, a pass without gradients must drop what one with them drops, and that one is stock's.
        return "dropout is on" if any(map(checks.drops, self.layer)) else None

    def _run_biased(self: Any, x: Tensor, packing: ops.Packing | None) -> Tensor:
        """Hidden states [B, S, E] through all layers; zeros at padding, and at what nobody reads."""
        sequences = sequences_of(packing, *x.shape[:2], x.device)
        read = self.reading(sequences)
        rows = sequences.places(read)
        bias = self.compute_position_bias(x[:1])[0]  # [H, S, S]

        def call(layer: nn.Module, x: Tensor, layout: Packed) -> Tensor:
            return layer(x, layout)

        layers = Layers(self, self.layer, call, None)
        layout = Biased(sequences.bounds, sequences.max_seqlen, rows, bias=bias)
        y = through(layers, sequences.take(x), layout)
        count(self, UNPADDED)
        return sequences.restore(y, read)


def _together(packing: ops.Packing) -> bool:
    """Whether the real tokens of each sequence are neighbours in the batch."""
    bounds = packing.cu_seqlens.long()
    begins, ends = bounds[:-1], bounds[1:]
    filled = ends > begins
    first, last = packing.indices[begins[filled]], packing.indices[ends[filled] - 1]
    return bool((last - first + 1 == (ends - begins)[filled]).all())
