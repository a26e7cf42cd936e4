"""The classes that optimize() swaps in. None has an __init__, parameters or buffers of its own: a swapped module is the
stock module with another forward, so checkpointing, deepcopy, pickle, state_dict and hooks go on as they were.

The one thing kept on an instance is `_bertfast`, a dict of plain options; counts of what each call did are kept beside
the modules, in a weak dictionary.
"""

from collections import Counter
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert import modeling_bert as hf

from bertfast import ops
from bertfast.convert import checks, handover
from bertfast.nn import stack
from bertfast.nn.core import Layout, Packed, Padded, attention_block, dropout_rate, mlp_block
from bertfast.nn.modules import embed

FAST = "fast"
UNPADDED = "fast, padding removed"
_calls: "WeakKeyDictionary[nn.Module, Counter[str]]" = WeakKeyDictionary()


def count(module: nn.Module, outcome: str) -> None:
    """Note what a call of `module` did, for report(); nothing while compiling, which runs Python only once."""
    if not torch.compiler.is_compiling():
        counter(module)[outcome] += 1


def counter(module: nn.Module) -> Counter[str]:
    """The outcomes of `module`'s calls; until `forget` the same object."""
    found = _calls.get(module)
    return _calls.setdefault(module, Counter()) if found is None else found


def calls(module: nn.Module) -> dict[str, int]:
    """How often each outcome came about since optimize()."""
    return dict(_calls.get(module, {}))


def forget(module: nn.Module) -> None:
    _calls.pop(module, None)


def option(module: nn.Module, name: str) -> Any:
    return module.__dict__.get("_bertfast", {}).get(name)


class FastBertEmbeddings(hf.BertEmbeddings):
    """BertEmbeddings through the fused kernel; anything unusual goes to the stock forward."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values_length: int = 0,
    ) -> Tensor:
        reason = self._reason(input_ids, inputs_embeds, past_key_values_length)
        if reason is not None:
            count(self, reason)
            return super().forward(input_ids, token_type_ids, position_ids, inputs_embeds, past_key_values_length)
        count(self, FAST)
        wanted = handover.current()
        if wanted is not None and wanted.decoder_weight is self.word_embeddings.weight:
            x, wanted.tied = embed(self, input_ids, token_type_ids, position_ids, ops.tied_embedding_sum_norm)
            return x
        return embed(self, input_ids, token_type_ids, position_ids)

    def _reason(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, past: int) -> str | None:
        if input_ids is None or inputs_embeds is not None:
            return "inputs_embeds were given"
        if past:
            return "a key-value cache is in use"
        if input_ids.dim() != 2 or input_ids.numel() == 0:
            return f"input_ids have shape {tuple(input_ids.shape)}"
        allowed = bool(option(self, "unverified_kernels"))
        return checks.tensor_reason(self.word_embeddings.weight, allowed) or checks.embeddings_reason(self)


class FastBertLayer(hf.BertLayer):
    """BertLayer through the fused core, on padded tokens or, called by FastBertEncoder, on packed ones."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        if isinstance(attention_mask, Packed):  # the encoder has checked every layer already
            count(self, UNPADDED)
            return self._fast(hidden_states, attention_mask)
        reason = self._reason(hidden_states, attention_mask, encoder_hidden_states, past_key_values, kwargs)
        if reason is not None:
            count(self, reason)
            return super().forward(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        count(self, FAST)
        return self._fast(hidden_states, Padded(attention_mask))

    def _reason(
        self, x: Tensor, mask: Any, encoder_hidden_states: Any, past_key_values: Any, kwargs: dict
    ) -> str | None:
        if encoder_hidden_states is not None:
            return "cross-attention"
        if past_key_values is not None:
            return "a key-value cache is in use"
        if x.dim() != 3 or x.numel() == 0:
            return f"hidden states have shape {tuple(x.shape)}"
        # An attention that someone put in BERT's place may have none; layer_reason then refuses it before the mask is read.
        config = getattr(getattr(self.attention, "self", None), "config", None)
        return (
            checks.tensor_reason(x, bool(option(self, "unverified_kernels")))
            or checks.call_reason(config, kwargs)
            or checks.layer_reason(self, x.device, x.dtype)
            or checks.mask_reason(mask, x, config._attn_implementation)
        )

    def _fast(self, x: Tensor, layout: Layout) -> Tensor:
        attention, intermediate, output = self.attention, self.intermediate, self.output
        projections, projected = attention.self, attention.output
        # In training every step would change the copies; reentrant checkpointing runs its first forward without gradients.
        prepack, int8 = not self.training and option(self, "prepack") is not False, option(self, "int8") is True
        x = attention_block(
            x,
            layout,
            query=projections.query,
            key=projections.key,
            value=projections.value,
            dense=projected.dense,
            norm=projected.LayerNorm,
            heads=projections.num_attention_heads,
            scale=projections.scaling,
            attention_p=projections.dropout.p if projections.training else 0.0,
            hidden_p=dropout_rate(projected.dropout),
            use_prepack=prepack,
            int8=int8,
        )
        return mlp_block(
            x,
            up=intermediate.dense,
            down=output.dense,
            norm=output.LayerNorm,
            approximate=checks.approximate_of(intermediate.intermediate_act_fn) or "none",
            hidden_p=dropout_rate(output.dropout),
            use_prepack=prepack,
            int8=int8,
        )


class FastBertEncoder(hf.BertEncoder):
    """BertEncoder that takes the padding out once before the stack and puts it back once after it.

    Positions that the mask calls padding come back as zeros, as they do with transformers' own flash attention. Under
    BertForQuestionAnswering, whose loss is a softmax over padding too, and BertLMHeadModel, whose loss reads the position
    before each token, the stack stays padded while gradients are enabled. Without gradients padding is removed there as
    well, and logits at padding are those of a zero hidden state.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        reason = self._reason(hidden_states, attention_mask, encoder_hidden_states, past_key_values, kwargs)
        packing = None
        if reason is None:
            real = checks.key_padding(attention_mask, *hidden_states.shape[:2])
            if attention_mask is not None and real is None:
                reason = "the mask is more than padding"
            else:
                reason, packing = self.packing(real)
        if reason is not None:
            count(self, f"kept padded: {reason}")
            return super().forward(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        count(self, UNPADDED)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self._run(hidden_states, packing, kwargs))

    def _reason(
        self, x: Tensor, mask: Any, encoder_hidden_states: Any, past_key_values: Any, kwargs: dict
    ) -> str | None:
        """Why this call stays padded, apart from what the mask says."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "a compiled graph needs shapes that do not depend on data"
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return "a CUDA graph needs shapes that do not depend on data"
        if encoder_hidden_states is not None or past_key_values is not None:
            return "cross-attention or a key-value cache"
        asked = checks.collected(self.config, kwargs)
        if asked or kwargs.get("output_hidden_states"):
            return f"{' and '.join(sorted(asked) or ['hidden_states'])} were asked for"
        if option(self, "loss_over_padding") and torch.is_grad_enabled():
            return "the loss of this head runs over padding too"
        if x.dim() != 3 or x.numel() == 0:
            return f"hidden states have shape {tuple(x.shape)}"
        return (
            checks.call_reason(self.config, kwargs)
            or checks.mask_reason(mask, x, self.config._attn_implementation)
            or self.stack_reason(x)
        )

    def stack_reason(self, x: Tensor) -> str | None:
        """What about the stack as it stands keeps it padded, for hidden states of x's device and dtype."""
        if option(self, "unpad") is False:
            return "unpad=False"
        reason = checks.tensor_reason(x, bool(option(self, "unverified_kernels")))
        if reason is not None:
            return reason
        for i, layer in enumerate(self.layer):
            if type(layer) is not FastBertLayer:
                return f"layer {i} is {type(layer).__name__}"
            reason = checks.hook_reason(layer, "it") or checks.layer_reason(layer, x.device, x.dtype)
            if reason is not None:
                return f"layer {i}: {reason}"
        return None

    def packing(self, real: Tensor | None) -> tuple[str | None, ops.Packing | None]:
        """Why a batch whose real tokens are these [B, S] stays padded, or else its packing; that is None where all are real."""
        if real is None or bool(real.all()):
            return None, None
        if option(self, "first_token_read") and not bool(real[:, 0].all()):
            return "the pooler reads position 0, which is padding in some sequence", None
        packing = ops.pack(real)
        return ("no token is real", None) if packing.indices.numel() == 0 else (None, packing)

    def _run(self, x: Tensor, packing: ops.Packing | None, kwargs: dict) -> Tensor:
        batch, seqlen, size = x.shape
        packed = x.reshape(-1, size) if packing is None else ops.unpad(x, packing)
        return self.through(packed, packing, (batch, seqlen), kwargs)

    def through(
        self,
        x: Tensor,
        packing: ops.Packing | None,
        shape: tuple[int, int],
        kwargs: dict[str, Any] | None = None,
        found: stack.Found | None = None,
    ) -> Tensor:
        """Real tokens [T, E] of a batch of `shape` (B, S) through all layers, to [B, S, E].

        Zeros at padding and, where a head above reads some positions alone, at the others too. found: what `find` found for
        such x, ready, where it need not be asked again; the layers' calls are then not counted.
        """
        batch, seqlen = shape
        if packing is None:
            bounds = torch.arange(0, batch * seqlen + 1, seqlen, dtype=torch.int32, device=x.device)
            layout = Packed(bounds, seqlen)
        else:
            layout = Packed(packing.cu_seqlens, packing.max_seqlen)
        read = self._read(packing, layout.cu_seqlens, shape)
        last = layout if read is None else replace(layout, read=read)
        y = self._stack(x, last) if found is None else found.forward(x, last.cu_seqlens, last.max_seqlen, last.read)
        if y is None:
            y = x
            for i, layer in enumerate(self.layer):
                y = layer(y, last if i == len(self.layer) - 1 else layout, **(kwargs or {}))
        if read is not None:
            places = read if packing is None else packing.indices[read]
            packing = ops.Packing(places, layout.cu_seqlens, layout.max_seqlen, batch, seqlen)
        return y.view(batch, seqlen, -1) if packing is None else ops.repad(y, packing)

    def _read(self, packing: ops.Packing | None, bounds: Tensor, shape: tuple[int, int]) -> Tensor | None:
        """Which rows of the last layer's output, among the packed ones, a head above reads; None where it may be all of them."""
        wanted = handover.current()
        if wanted is None or wanted.read is None:
            return None
        if isinstance(wanted.read, str):
            # Position 0 is real in every sequence, or the batch would not have been packed.
            return bounds[:-1].to(torch.int64) if option(self, "first_token_read") else None
        if wanted.read.shape != shape:
            return None
        marked = wanted.read.flatten()
        rows = (marked if packing is None else marked[packing.indices]).nonzero()[:, 0]
        return rows if rows.numel() else None

    def find(self, x: Tensor) -> stack.Found | None:
        """What computes all layers on such x in one call, or None where nothing can. `stack_reason` has found them all plain."""
        kinds = {checks.kind_of(layer) for layer in self.layer}
        if option(self, "prepack") is False or len(kinds) != 1:
            return None
        heads, scale, approximate = kinds.pop()
        int8 = option(self, "int8") is True
        return stack.find(self, self.layer, x, heads=heads, scale=scale, approximate=approximate, int8=int8)

    def _stack(self, x: Tensor, layout: Packed) -> Tensor | None:
        """All layers in one call, the last as `layout` says, or None where that cannot be."""
        found = self.find(x)
        if found is None:
            return None
        for layer in self.layer:
            count(layer, UNPADDED)
        return found.forward(x, layout.cu_seqlens, layout.max_seqlen, layout.read)
