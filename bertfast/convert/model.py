"""BertModel whose plain inference calls go from ids to hidden states with nothing of transformers in between.

What transformers does around the layers (defaults merged, recorders set up, a 4-D mask made, which the encoder then reads
back) takes as long as one or two of MiniLM's layers on a query of 16 tokens; and embeddings, too, are summed for real
tokens only.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import modeling_utils
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert as hf

from bertfast import ops
from bertfast.convert import checks, plans
from bertfast.convert.layers import FAST, UNPADDED, FastBertEmbeddings, FastBertEncoder, count
from bertfast.nn.modules import embed

WHOLE = "fast, from ids to hidden states"
_IDS = (torch.int64, torch.int32)
_UNREAD = frozenset({"num_items_in_batch"})  # what Trainer gives to the loss, and nothing below a head reads


class FastBertModel(hf.BertModel):
    """BertModel that does the whole of a plain inference call on a CPU itself, on real tokens alone.

    Any other call goes the way of stock's forward through the modules inside, each of which may be fast. Ids at padding are
    not looked at, so a wrong one there raises no error.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        others = {
            "inputs_embeds": inputs_embeds,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            **kwargs,
        }
        reason = self._call_reason(input_ids, attention_mask, token_type_ids, position_ids, others)
        plan = None
        if reason is None:
            plan = plans.find(self)
            reason = self._config_reason(others) or self.structure_reason() if plan is None else None
        if reason is None and input_ids is not None:
            reason, packing = self._packing(input_ids, attention_mask)
            if reason is None:
                count(self, WHOLE)
                return self._whole(input_ids, token_type_ids, position_ids, packing, plan)
        count(self, f"module by module: {reason}")
        return super().forward(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            **others,
        )

    def _call_reason(
        self,
        ids: Tensor | None,
        mask: Tensor | None,
        segments: Tensor | None,
        positions: Tensor | None,
        others: dict[str, Any],
    ) -> str | None:
        """Why this call goes module by module, whatever the model is, apart from what the mask says."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "it is traced"
        if torch.is_grad_enabled():
            return "gradients are enabled"
        if type(ids) is not Tensor or ids.dim() != 2 or ids.numel() == 0 or ids.device.type != "cpu":
            return "there are no plain input_ids [B, S] on a CPU"
        if ids.dtype not in _IDS:
            return f"input_ids are {ids.dtype}"
        if mask is not None and (type(mask) is not Tensor or mask.shape != ids.shape):
            return "the attention mask is not [B, S]"
        for name, value in (("token_type_ids", segments), ("position_ids", positions)):
            if value is None:
                continue
            if (
                type(value) is not Tensor
                or value.dtype not in _IDS
                or value.shape not in (ids.shape, (1, ids.shape[1]))
            ):
                return f"{name} are not integers shaped as input_ids are"
        for name, value in others.items():
            known = name in _UNREAD or (name == "return_dict" and value is True)
            if value is not None and value is not False and not known:
                return f"{name} was given"
        if others.get("return_dict") is False:
            return "a tuple of outputs was asked for"
        recorded = checks.collected(None, {"output_hidden_states": False, "output_attentions": False})
        return f"{' and '.join(sorted(recorded))} are recorded above" if recorded else None

    def _config_reason(self, others: dict[str, Any]) -> str | None:
        """What the config asks for besides hidden states, where no argument beats it."""
        if getattr(self.config, "return_dict", True) is False and "return_dict" not in others:
            return "a tuple of outputs was asked for"
        for name in ("is_causal", "is_decoder"):
            if getattr(self.config, name, None):
                return f"config.{name} is set"
        for name in ("output_hidden_states", "output_attentions"):
            # An argument beats the config, so False given there lets the call through.
            if others.get(name) is None and getattr(self.config, name, False):
                return f"config.{name} is set"
        return None

    def structure_reason(self) -> str | None:
        """What about the modules inside keeps them from being run without being called."""
        embeddings, encoder = self._modules["embeddings"], self._modules["encoder"]
        if type(embeddings) is not FastBertEmbeddings or type(encoder) is not FastBertEncoder:
            return "its embeddings or its encoder were replaced"
        return (
            checks.hook_reason(embeddings, "embeddings")
            or checks.hook_reason(encoder, "encoder")
            or checks.embeddings_reason(embeddings)
            or encoder.stack_reason(embeddings.word_embeddings.weight)
        )

    def _packing(self, ids: Tensor, mask: Tensor | None) -> tuple[str | None, ops.Packing | None]:
        if ids.shape[1] > self.embeddings.position_embeddings.num_embeddings:
            return "the batch is longer than the model's positions", None
        return self.encoder.packing(None if mask is None else mask.to(torch.bool))

    def _whole(
        self,
        ids: Tensor,
        segments: Tensor | None,
        positions: Tensor | None,
        packing: ops.Packing | None,
        plan: plans.Plan | None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        batch, seqlen = ids.shape

        def real(t: Tensor) -> Tensor:
            flat = t.expand(batch, seqlen).reshape(-1)
            return flat if packing is None else flat[packing.indices]

        ids, segments = real(ids), None if segments is None else real(segments)
        if positions is None:
            positions = (
                torch.arange(seqlen).expand(batch, seqlen).reshape(-1) if packing is None else packing.indices % seqlen
            )
        else:
            positions = real(positions)
        if plan is None:
            count(self.embeddings, FAST)
            count(self.encoder, UNPADDED)
            x = embed(self.embeddings, ids, segments, positions)
            y = self.encoder.through(x, packing, (batch, seqlen))
            if self._config_reason({}) is None:  # else an argument beat the config, which the next call may not do
                plans.make(self, self.encoder.find(x))
        else:
            plan.count()
            y = self.encoder.through(plan.embed(ids, segments, positions), packing, (batch, seqlen), found=plan.found)
        pooled = None if self.pooler is None else self.pooler(y)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=y, pooler_output=pooled)


# save_pretrained writes a class's name into config.architectures, and Trainer looks it up: both know stock's name only.
# What transformers may record it looks up by str(class), which is another for a swapped class.
FastBertModel.__name__ = hf.BertModel.__name__
dict.__setitem__(modeling_utils._CAN_RECORD_REGISTRY, str(FastBertModel), hf.BertModel._can_record_outputs)
