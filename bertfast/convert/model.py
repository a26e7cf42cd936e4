"""BertModel whose plain inference calls go from ids to hidden states with nothing of transformers in between.

What transformers does around the layers (defaults merged, recorders set up, a 4-D mask made, which the encoder then reads
back) takes as long as one or two of MiniLM's layers on a query of 16 tokens; and embeddings, too, are summed for real
tokens only. On a GPU such a call is one replay of a captured graph (`bertfast.graphs`).
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert as hf

from bertfast.convert import checks, installed, layers, verdicts
from bertfast.convert.counts import count
from bertfast.convert.layers import FastBertEmbeddings, FastBertEncoder
from bertfast.convert.options import limits_of, option
from bertfast.graphs.inference import Read
from bertfast.nn.plain import dropout_rate, product_dtype
from bertfast.nn.through import through
from bertfast.nn.tokens import Tokens, of_batch
from bertfast.triton import faster

WHOLE = "fast, from ids to hidden states"
_IDS = (torch.int64, torch.int32)
_NOT_RECORDED = {"output_hidden_states": False, "output_attentions": False}
_MODEL = installed.Arguments(hf.BertModel.forward)
# num_items_in_batch is what Trainer gives to the loss, and nothing below a head reads.
_KNOWN = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "position_ids", "num_items_in_batch", "return_dict"}
)


class FastBertModel(hf.BertModel):
    """BertModel that does the whole of a plain inference call itself, on real tokens alone.

    Any other call goes the way of stock's forward through the modules inside, each of which may be fast. Ids at padding are
    not looked at, so a wrong one there raises no error.
    """

    @installed.signed_as(hf.BertModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = _MODEL.bind(args, kwargs)
        reason = self._call_reason(call)
        verdict = tokens = None
        if reason is None and call is not None:
            verdict, reason = self._verdict(call)
        if reason is None and call is not None:
            reason, tokens = self._tokens(call)
        if verdict is None or tokens is None:
            count(self, f"module by module: {reason}")
            return super().forward(*args, **kwargs)
        return self._whole(tokens, verdict)

    def _verdict(self, call: dict[str, Any]) -> tuple[verdicts.Verdict | None, str | None]:
        """What runs the call, or why it goes module by module."""
        verdict = verdicts.find(self)
        if verdict is None:
            reason = self._config_reason(call) or self.structure_reason() or self._training_reason()
            if reason is not None:
                return None, reason
            # An argument may have beaten the config, which it need not do in the next call.
            verdict = verdicts.make(self, keep=self._config_reason({}) is None)
        ids = call["input_ids"]
        if ids.device != verdict.tables[0].device:
            return None, f"input_ids are on {ids.device} and the weights on {verdict.tables[0].device}"
        reason = self._speed_reason(ids, verdict) if ids.device.type == "cuda" else None
        return (verdict, None) if reason is None else (None, reason)

    def _speed_reason(self, ids: Tensor, verdict: verdicts.Verdict) -> str | None:
        """Why a whole call would be slower than stock on a GPU, where nobody asked for it all the same."""
        if option(self, "gpu_kernels") is not None:
            return None
        if verdict.encoder is None:
            return "its layers do not run at once"
        dtype = product_dtype(verdict.tables[0])
        size = self.config.hidden_size, len(verdict.layers.modules), ids.numel()
        return faster.slower_reason(checks.architecture(ids.device.index), dtype, *size, seqlen=ids.shape[1])

    def _call_reason(self, call: dict[str, Any] | None) -> str | None:
        """Why this call goes module by module, whatever the model is, apart from what the mask says."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "it is traced"
        if torch.is_grad_enabled():
            return "gradients are enabled"
        reason = checks.argument_reason(call, _KNOWN)
        if reason is not None or call is None:
            return reason
        ids, mask = call.get("input_ids"), call.get("attention_mask")
        if type(ids) is not Tensor or ids.dim() != 2 or ids.numel() == 0 or ids.device.type not in checks.KERNEL_DTYPES:
            return "there are no plain input_ids [B, S] on a CPU or a GPU"
        if ids.dtype not in _IDS:
            return f"input_ids are {ids.dtype}"
        if mask is not None:
            if type(mask) is not Tensor or mask.shape != ids.shape or mask.device != ids.device:
                return "the attention mask is not [B, S], beside input_ids"
            if ids.is_cuda and torch.cuda.is_current_stream_capturing():
                return "a CUDA graph needs shapes that do not depend on data"
        for name in ("token_type_ids", "position_ids"):
            value = call.get(name)
            if value is None:
                continue
            if (
                type(value) is not Tensor
                or value.dtype not in _IDS
                or value.device != ids.device
                or value.shape not in (ids.shape, (1, ids.shape[1]))
            ):
                return f"{name} are not integers shaped as input_ids are"
        if not call.get("return_dict", True):
            return "a tuple of outputs was asked for"
        names = installed.recorded(None, _NOT_RECORDED)
        return f"{' and '.join(sorted(names))} are recorded above" if names else None

    def _config_reason(self, call: dict[str, Any]) -> str | None:
        """What the config asks for besides hidden states, where no argument beats it."""
        if getattr(self.config, "return_dict", True) is False and "return_dict" not in call:
            return "a tuple of outputs was asked for"
        for name in ("is_causal", "is_decoder"):
            if getattr(self.config, name, None):
                return f"config.{name} is set"
        for name in ("output_hidden_states", "output_attentions"):
            # An argument beats the config, so False given there lets the call through.
            if call.get(name) is None and getattr(self.config, name, False):
                return f"config.{name} is set"
        return checks.implementation_reason(self.config)

    def structure_reason(self) -> str | None:
        """What about the modules inside keeps them from being run without being called."""
        embeddings, encoder = self._modules["embeddings"], self._modules["encoder"]
        if type(embeddings) is not FastBertEmbeddings or type(encoder) is not FastBertEncoder:
            return "its embeddings or its encoder were replaced"
        if "_create_attention_masks" in self.__dict__:
            return "its _create_attention_masks was replaced"
        return (
            checks.hook_reason(embeddings, "embeddings")
            or checks.hook_reason(encoder, "encoder")
            or checks.embeddings_reason(embeddings)
            or encoder.stack_reason(embeddings.word_embeddings.weight, captured=limits_of(self).max_graphs > 0)
        )

    def _training_reason(self) -> str | None:
        """With one random state a pass without gradients must drop what a pass with them drops. That one goes module by module,
        where elements of the padded batch are numbered, and so must this; its loss, too, must run over the same padding."""
        if dropout_rate(self.embeddings.dropout) > 0.0:
            return "dropout of the embeddings is on"
        return self.encoder.loss_reason()

    def _tokens(self, call: dict[str, Any]) -> tuple[str | None, Tokens | None]:
        """The real tokens of a call; or why it goes module by module, because of its mask or length."""
        ids, mask, positions = call["input_ids"], call.get("attention_mask"), call.get("position_ids")
        embeddings: Any = self._modules["embeddings"]  # nn.Module's own lookup is ten times slower
        if ids.shape[1] > embeddings._modules["position_embeddings"].num_embeddings:
            return "the batch is longer than the model's positions", None
        reason = embeddings.length_reason(ids.shape[1], positions)
        if reason is not None:
            return reason, None
        encoder: Any = self._modules["encoder"]
        reason, packing = encoder.packing(None if mask is None else mask.to(torch.bool))
        if reason is not None:
            return reason, None
        positions, segments = layers.ids(embeddings, ids.shape, positions, call.get("token_type_ids"))
        return None, of_batch(ids, segments, positions, packing)

    def _whole(self, tokens: Tokens, verdict: verdicts.Verdict) -> BaseModelOutputWithPoolingAndCrossAttentions:
        verdict.count()
        reading = self.encoder.reading(tokens)
        if verdict.encoder is None:
            count(self, WHOLE)
            layout = tokens.layout(tokens.places(reading))
            y = tokens.restore(through(verdict.layers, verdict.embed(tokens), layout), reading)
        else:
            y, how = verdict.encoder.encode(tokens, reading, lambda rows: _restored(tokens, rows, reading))
            count(self, f"{WHOLE}: {how}")
        pooled = None if self.pooler is None else self.pooler(y)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=y, pooler_output=pooled)


def _restored(tokens: Tokens, rows: Tensor, reading: Read) -> Tensor:
    """Rows of a captured call as [B, S, E] in memory of their own."""
    if tokens.packing is None and reading is None:
        rows = rows.clone()
    return tokens.restore(rows, reading)


# save_pretrained writes a class's name into config.architectures, and Trainer looks it up: both know stock's name only.
FastBertModel.__name__ = hf.BertModel.__name__
installed.record_as(FastBertModel, hf.BertModel)
