"""A base model whose plain inference calls go from ids to hidden states with nothing of transformers in between.

What transformers does around the layers (defaults merged, recorders set up, a 4-D mask made, which the encoder then reads
back) takes as long as one or two of MiniLM's layers on a query of 16 tokens; and embeddings, too, are summed for real
tokens only. On a GPU such a call is one replay of a captured graph (`bertfast.graphs`).
"""

from typing import Any

import torch
from torch import Tensor

from bertfast.convert import checks, chunking, installed, verdicts
from bertfast.convert.counts import count
from bertfast.convert.options import limits_of, option
from bertfast.convert.swapped import Swapped
from bertfast.graphs.inference import Read
from bertfast.nn.plain import dropout_rate, product_dtype
from bertfast.nn.through import through
from bertfast.nn.tokens import Tokens, of_batch
from bertfast.triton import faster

WHOLE = "fast, from ids to hidden states"
_IDS = (torch.int64, torch.int32)
_NOT_RECORDED = {"output_hidden_states": False, "output_attentions": False}
# num_items_in_batch is what Trainer gives to the loss, and nothing below a head reads.
_KNOWN = frozenset({"input_ids", "attention_mask", "position_ids", "num_items_in_batch", "return_dict"})


class FastModel(Swapped):
    """A base model that does the whole of a plain inference call itself, on real tokens alone.

    Any other call goes the way of stock's forward through the modules inside, each of which may be fast. Ids at padding are
    not looked at, so a wrong one there raises no error.
    """

    def fast_forward(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.arguments.bind(args, kwargs)
        reason = self._call_reason(call)
        verdict = tokens = None
        if reason is None and call is not None:
            verdict, reason = self._verdict(call)
        if reason is None and call is not None:
            reason, tokens = self._tokens(call)
        if verdict is None or tokens is None:
            count(self, f"module by module: {reason}")
            return self.stock.forward(self, *args, **kwargs)
        return self._whole(tokens, verdict)

    def _verdict(self: Any, call: dict[str, Any]) -> tuple[verdicts.Verdict | None, str | None]:
        """What runs the call, or why it goes module by module."""
        verdict = verdicts.find(self)
        if verdict is None:
            reason = self._config_reason(call) or self._plain_reason()
            if reason is not None:
                return None, reason
            # An argument may have beaten the config, which it need not do in the next call.
            keep = self._config_reason({}) is None
            verdict = verdicts.make(self, keep=keep, is_plain=lambda: self._plain_reason() is None)
        ids = call["input_ids"]
        if ids.device != verdict.word.device:
            return None, f"input_ids are on {ids.device} and the weights on {verdict.word.device}"
        reason = chunking.length_reason(verdict.chunk, ids.shape[1])
        if reason is None and ids.device.type == "cuda":
            reason = self._speed_reason(ids, verdict)
        return (verdict, None) if reason is None else (None, reason)

    def _plain_reason(self: Any) -> str | None:
        """What about the modules inside keeps whole calls from being run, whatever the arguments."""
        return self.structure_reason() or self.family.encoder_of(self).whole_reason() or self._training_reason()

    def _speed_reason(self: Any, ids: Tensor, verdict: verdicts.Verdict) -> str | None:
        """Why a whole call would be slower than stock on a GPU, where nobody asked for it all the same."""
        if option(self, "gpu_kernels") is not None:
            return None
        if verdict.encoder is None:
            return "its layers do not run at once"
        dtype = product_dtype(verdict.word)
        size = self.config.hidden_size, len(verdict.layers.modules), ids.numel()
        return faster.slower_reason(checks.architecture(ids.device.index), dtype, *size, seqlen=ids.shape[1])

    def _call_reason(self: Any, call: dict[str, Any] | None) -> str | None:
        """Why this call goes module by module, whatever the model is, apart from what the mask says."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "it is traced"
        if torch.is_grad_enabled():
            return "gradients are enabled"
        reason = checks.argument_reason(call, _KNOWN | self.family.ids)
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
        for name in self.family.ids:
            value = call.get(name)
            if value is None or name == "input_ids":
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

    def _config_reason(self: Any, call: dict[str, Any]) -> str | None:
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

    def structure_reason(self: Any) -> str | None:
        """What about the modules inside keeps them from being run without being called."""
        family, embeddings, encoder = self.family, self._modules["embeddings"], self.family.encoder_of(self)
        if type(embeddings) is not family.fast[family.embeddings] or type(encoder) is not family.fast[family.encoder]:
            return "its embeddings or its encoder were replaced"
        if "_create_attention_masks" in self.__dict__:
            return "its _create_attention_masks was replaced"
        return (
            checks.hook_reason(embeddings, "embeddings")
            or checks.hook_reason(encoder, "encoder")
            or checks.embeddings_reason(embeddings)
            or checks.projection_reason(self)
            or encoder.stack_reason(embeddings.word_embeddings.weight, captured=limits_of(self).max_graphs > 0)
        )

    def _training_reason(self: Any) -> str | None:
        """With one random state a pass without gradients must drop what a pass with them drops. That one goes module by module,
        where elements of the padded batch are numbered, and so must this; its loss, too, must run over the same padding."""
        if dropout_rate(self.embeddings.dropout) > 0.0:
            return "dropout of the embeddings is on"
        return self.family.encoder_of(self).padding_reason()

    def _tokens(self: Any, call: dict[str, Any]) -> tuple[str | None, Tokens | None]:
        """The real tokens of a call; or why it goes module by module, because of its mask or length."""
        ids, mask = call["input_ids"], call.get("attention_mask")
        embeddings: Any = self._modules["embeddings"]  # nn.Module's own lookup is ten times slower
        if ids.shape[1] > embeddings._modules["position_embeddings"].num_embeddings:
            return "the batch is longer than the model's positions", None
        reason = embeddings.length_reason(ids.shape[1], call.get("position_ids"))
        if reason is not None:
            return reason, None
        encoder: Any = self.family.encoder_of(self)
        reason, packing = encoder.packing(None if mask is None else mask.to(torch.bool))
        if reason is not None:
            return reason, None
        positions, segments = embeddings.ids(ids, call)
        return None, of_batch(ids, segments, positions, packing)

    def _whole(self: Any, tokens: Tokens, verdict: verdicts.Verdict) -> Any:
        verdict.count()
        reading = self.family.encoder_of(self).reading(tokens)
        if verdict.encoder is None:
            count(self, WHOLE)
            layout = tokens.layout(tokens.places(reading))
            y = tokens.restore(through(verdict.layers, verdict.embed(tokens), layout), reading)
        else:
            y, how = verdict.encoder.encode(tokens, reading, lambda rows: _restored(tokens, rows, reading))
            count(self, f"{WHOLE}: {how}")
        if self.family.pooler is None:
            return self.family.model_output(last_hidden_state=y)
        pooled = None if self.pooler is None else self.pooler(y)
        return self.family.model_output(last_hidden_state=y, pooler_output=pooled)


def _restored(tokens: Tokens, rows: Tensor, reading: Read) -> Tensor:
    """Rows of a captured call as [B, S, E] in memory of their own."""
    if tokens.packing is None and reading is None:
        rows = rows.clone()
    return tokens.restore(rows, reading)
