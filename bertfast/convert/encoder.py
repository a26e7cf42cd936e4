"""The stack of layers, which takes the padding out once before it and puts it back once after it."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from bertfast import _torch, ops
from bertfast.convert import adapters, checks, compiled, handover, installed
from bertfast.convert.counts import SPLIT, UNPADDED, count, note_uncounted
from bertfast.convert.layer import FastLayer, states_reason
from bertfast.convert.options import limits_of, option
from bertfast.convert.swapped import Swapped
from bertfast.convert.unpadding import packing_of, splitting_saves
from bertfast.graphs import stack
from bertfast.nn import device
from bertfast.nn.fp8_state import Recipe
from bertfast.nn.layout import Packed
from bertfast.nn.parts import Kind
from bertfast.nn.plain import dropout_rate, product_dtype
from bertfast.nn.through import Layers
from bertfast.nn.tokens import Sequences, sequences_of
from bertfast.triton import faster


def _rest(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the layers get besides hidden states and mask."""
    return {name: value for name, value in call.items() if name not in ("hidden_states", "attention_mask")}


class FastEncoder(Swapped):
    """A stack of layers that takes the padding out once before it and puts it back once after it.

    Positions that the mask calls padding come back as zeros, as they do with transformers' own flash attention. Under
    a question answering head, whose loss is a softmax over padding too, and a causal language modelling one, whose loss reads the
    position before each token, the stack stays padded in training and while gradients are enabled. Elsewhere padding is removed
    there as well, and logits at padding are those of a zero hidden state.
    """

    def fast_forward(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.arguments.bind(args, kwargs)
        reason = self._reason(call)
        packing = None
        if torch.compiler.is_compiling():
            if reason is None and call is not None:
                return self.family.encoder_output(last_hidden_state=compiled.run(self, call))
            note_uncounted(type(self))
        if reason is None and call is not None:
            x, mask = call["hidden_states"], call.get("attention_mask")
            real = checks.key_padding(mask, *x.shape[:2])
            if mask is not None and real is None:
                reason = "the mask is more than padding"
            elif real is not None and self._reads_padding(real) and splitting_saves(real):
                return self.family.encoder_output(last_hidden_state=self._split(call, real))
            else:
                reason, packing = self.packing(real)
        if reason is not None or call is None:
            count(self, f"kept padded: {reason}")
            return self.stock.forward(self, *args, **kwargs)
        x = self._run(x, packing, _rest(call), UNPADDED)
        return self.family.encoder_output(last_hidden_state=x)

    def _reason(self: Any, call: dict[str, Any] | None) -> str | None:
        """Why this call stays padded, apart from what the mask says."""
        reason = states_reason(call)
        if reason is not None or call is None:
            return reason
        x = call["hidden_states"]
        if torch.compiler.is_compiling():
            reason = compiled.reason(self, x)
            if reason is not None:
                note_uncounted(type(self), reason)
                return reason
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return "a CUDA graph needs shapes that do not depend on data"
        config = checks.config_of(self)
        names = installed.recorded(config, call)
        if names or call.get("output_hidden_states"):
            return f"{' and '.join(sorted(names) or ['hidden_states'])} were asked for"
        mask = call.get("attention_mask")
        return (
            checks.attentions_reason(config, call)
            or checks.mask_reason(mask, x, installed.attention_implementation(config))
            or self.stack_reason(x, captured=self._is_captured_training(x), train=True)
            or next(filter(None, (checks.few_tokens_reason(layer, x) for layer in self.layer)), None)
            or self.padding_reason()
            or (self._speed_reason(x) if x.is_cuda else None)
        )

    def _is_captured_training(self: Any, x: Tensor) -> bool:
        """Whether calls like this one, on a GPU, run from captured graphs forward and backward. Where dropout is on, a pass without
        gradients is one of them, though it is not captured: it must drop what the pass with gradients drops."""
        if x.device.type not in device.KINDS or limits_of(self).max_graphs < 1 or self._checkpoints():
            return False
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            return True
        return any(isinstance(module, nn.Dropout) and dropout_rate(module) > 0.0 for module in self.modules())

    def _checkpoints(self: Any) -> bool:
        """Whether layers keep nothing of their forward, and compute it again for the backward."""
        return any(layer.training and getattr(layer, "gradient_checkpointing", False) for layer in self.layer)

    def _speed_reason(self: Any, x: Tensor) -> str | None:
        """Why a call in training would be slower than stock on a GPU, where nobody asked for it all the same."""
        if option(self, "gpu_kernels") is not None:
            return None
        size = x.shape[2], len(self.layer), x.shape[0] * x.shape[1]
        arch = checks.architecture(x.device.index)
        return faster.slower_reason(arch, product_dtype(x), *size, seqlen=x.shape[1], train=True)

    def padding_reason(self: Any) -> str | None:
        """Padding stays in where a head reads it or a loss runs over it. In training a pass without gradients is no exception: with
        the same random state it must drop what the pass with gradients drops, and packed tokens are numbered otherwise."""
        if option(self, "padding_read"):
            return "the head reads hidden states at padding"
        if option(self, "loss_over_padding") and (
            torch.is_grad_enabled() or self.training or any(map(checks.drops, self.layer))
        ):
            return "the loss of this head runs over padding too"
        return None

    def whole_reason(self: Any) -> str | None:
        """What the layers need besides packed tokens, which only a call of this module gives them."""
        return None

    def stack_reason(self: Any, x: Tensor, captured: bool = False, train: bool = False) -> str | None:
        """What about the stack as it stands keeps it padded, for hidden states of x's device and dtype, and, where
        x is [B, S, E], of its length.

        captured: whether a call on a GPU would be one captured call.
        train: of training.
        """
        if option(self, "unpad") is False:
            return "unpad=False"
        captured = captured and not (x.is_cuda and any(adapters.beside(e) or _torch.is_sharded(e) for e in self.layer))
        reason = checks.environment_reason() or checks.tensor_reason(x, option(self, "gpu_kernels"), captured, train)
        if reason is not None:
            return reason
        seqlen = x.shape[1] if x.dim() == 3 else None
        for i, layer in enumerate(self.layer):
            if not isinstance(layer, FastLayer) or type(layer) is not type(self.layer[0]):
                return f"layer {i} is {type(layer).__name__}"
            sharded = _torch.is_sharded(layer)
            reason = checks.hook_reason(layer, "it", sharded)
            reason = reason or checks.layer_reason(layer, x.device, x.dtype, sharded, seqlen)
            if reason is None and captured and x.device.type in device.KINDS and checks.drops_apart(layer):
                reason = "its attention is in another mode than its Dropout, which a captured call goes by"
            if reason is not None:
                return f"layer {i}: {reason}"
        return None

    def packing(self: Any, real: Tensor | None) -> tuple[str | None, ops.Packing | None]:
        """Why a batch whose real tokens are these [B, S] stays padded, or else its packing; that is None where all are real."""
        return packing_of(real, option(self, "first_token_read") is True)

    def _reads_padding(self: Any, real: Tensor) -> bool:
        return option(self, "first_token_read") is True and not bool(real[:, 0].all())

    def _split(self: Any, call: dict[str, Any], real: Tensor) -> Tensor:
        """Sequences that begin with padding, at which the pooler looks, go padded; the others are packed. One of the former, of
        padding alone for example, would keep the whole batch padded otherwise."""
        x, mask = call["hidden_states"], call["attention_mask"]
        begins = real[:, 0]
        packed, padded = begins.nonzero()[:, 0], (~begins).nonzero()[:, 0]
        _, packing = self.packing(real[packed])
        rows = {"hidden_states": x[padded], "attention_mask": mask.expand(x.shape[0], *mask.shape[1:])[padded]}
        parts = [
            self._run(x[packed], packing, _rest(call), SPLIT),
            self.stock.forward(self, **{**call, **rows}).last_hidden_state,
        ]
        return torch.cat(parts)[torch.argsort(torch.cat([packed, padded]))]

    def _run(self: Any, x: Tensor, packing: ops.Packing | None, arguments: dict[str, Any], outcome: str) -> Tensor:
        """Hidden states [B, S, E] through all layers; zeros at padding, and at what nobody reads. `outcome` is to be counted."""
        sequences = sequences_of(packing, *x.shape[:2], x.device)
        read, rows = sequences.places(self.reading(sequences)), sequences.take(x)
        layers = self.layers(arguments).ready(rows)
        if layers.at_once is not None:  # layers that are called count themselves
            for layer in self.layer:
                count(layer, UNPADDED)
        y, how = stack.run(layers, rows, sequences.layout(read), limits_of(self))
        if how is not None and self._checkpoints():
            how = "eager: gradient checkpointing calls layers one by one"
        count(self, outcome if how is None else f"{outcome}: {how}")
        return sequences.restore(y, read)

    def reading(self: Any, sequences: Sequences) -> Tensor | Literal["first"] | None:
        """Which rows of the last layer's output a head above reads in this call, [R] int64, or the first of each sequence; None
        where it may be all of them."""
        offer = handover.current(self)
        if offer is None or offer.read is None or not self.layer:  # it is the last layer that returns the rows read
            return None
        if isinstance(offer.read, str):
            # Position 0 is real in every sequence, or the batch would not have been packed.
            return offer.read if option(self, "first_token_read") else None
        if offer.read.shape != sequences.shape:
            return None
        rows = sequences.take(offer.read[..., None])[:, 0].nonzero()[:, 0]
        return rows if rows.numel() else None

    def layers(self: Any, arguments: dict[str, Any] | None = None) -> Layers:
        """The layers for `through`, each called with these arguments besides. `stack_reason` has found them all plain."""
        kinds: set[Kind | None] = {checks.kind_of(layer) for layer in self.layer}
        # What only a call of each layer does: checkpointing, the hooks that gather its shards, dropout by stock's mode.
        if self._checkpoints() or any(_torch.is_sharded(layer) or checks.drops_apart(layer) for layer in self.layer):
            kinds.add(None)

        def call(layer: nn.Module, x: Tensor, layout: Packed) -> Tensor:
            return layer(x, layout, **(arguments or {}))

        return Layers(
            self,
            self.layer,
            call,
            kinds.pop() if len(kinds) == 1 else None,
            prepack=option(self, "prepack") is not False,
            int8=option(self, "int8") is True,
            fp8=Recipe() if option(self, "precision") == "fp8" else None,
            infer_fp8=option(self, "precision") == "fp8",
        )
