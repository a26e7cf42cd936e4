"""Masked-LM and pre-training heads whose loss is computed from the masked tokens alone (Devlin et al., 2018, section 3.1).

The logits of all tokens are B S V numbers, kept several times over by stock: most of the memory of a training step and a
quarter of its time. In training with labels these heads make those of the masked tokens only, inside
`ops.masked_lm_loss`, and return None for the logits; any other call is stock's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import MaskedLMOutput

from bertfast import ops
from bertfast.convert import checks, handover
from bertfast.convert.accumulation import averaged
from bertfast.convert.counts import count
from bertfast.convert.first_token_heads import only_reader
from bertfast.convert.options import option
from bertfast.convert.swapped import Swapped
from bertfast.nn.parts import below

MASKED_ONLY = "fast, logits of masked tokens only"
_LABELS = ("labels", "next_sentence_label")


def _labels(call: dict[str, Any] | None, name: str) -> Any:
    return None if call is None else call.get(name)


def _states(model: Any, call: dict[str, Any]) -> Any:
    """The base model's outputs: called as stock's heads call it, with input_ids by position, since a hook may look."""
    rest = {name: value for name, value in call.items() if name not in _LABELS and name != "input_ids"}
    return model.base_model(call.get("input_ids"), **{**rest, "return_dict": True})


def _refused(model: Any, labels: Any, kwargs: dict[str, Any] | None) -> str | None:
    """Why this call makes all logits, apart from what the head is made of."""
    if kwargs is None:
        return "the arguments do not fit"
    # Not "with gradients enabled": a pass without them that repeats or foreshadows a training step must be that step.
    if not model.training:
        return "not a training step"
    if labels is None:
        return "no labels were given"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "a compiled graph needs shapes that do not depend on data"
    if type(labels) is not Tensor or labels.dtype != torch.int64 or labels.dim() != 2:
        return "labels are not a plain int64 tensor [B, S]"
    if _leaf(model, "decoder").weight.shape[0] != model.config.vocab_size:
        return "the decoder has not config.vocab_size words"
    for name in ("output_hidden_states", "output_attentions"):
        if kwargs.get(name) or getattr(model.config, name, False):
            return f"{name} is set"
    wanted = kwargs.get("return_dict")
    if not (getattr(model.config, "return_dict", True) if wanted is None else wanted):
        return "a tuple of outputs was asked for"
    return None


def _head(model: Any) -> Any:
    return model.family.masked_heads[model.stock]


def _leaf(model: Any, name: str) -> Any:
    """The dense, norm or decoder of a model whose head is plain."""
    return below(model, getattr(_head(model), name), model)


def head_reason(model: Any) -> str | None:
    """What about the head as it stands now keeps it from the masked tokens only."""
    weight = next(model.base_model.embeddings.parameters(), None)
    if weight is None:
        return "its embeddings have no parameters"
    return (
        checks.environment_reason()
        or checks.tensor_reason(weight, option(model, "gpu_kernels"))
        or checks.predictions_reason(model, _head(model))
    )


def _offer(model: Any, labels: Tensor) -> handover.Handover:
    base, read = model.base_model, None
    if only_reader(base, model.family):
        read = labels != -100
        if getattr(base, "pooler", None) is not None:
            read[:, 0] = True
    return handover.Handover(model.family.encoder_of(base), base.embeddings, read, _leaf(model, "decoder").weight)


def _masked_lm_loss(model: Any, hidden: Tensor, labels: Tensor, tied: Tensor | None) -> Tensor:
    head = _head(model)
    dense, norm, decoder = (_leaf(model, name) for name in ("dense", "norm", "decoder"))
    approximate = None if head.activation is None else checks.approximate_of(checks.activation_of(model, head))
    loss, _, _ = ops.masked_lm_loss(
        hidden,
        labels,
        dense_weight=dense.weight,
        dense_bias=dense.bias,
        norm_weight=norm.weight,
        norm_bias=norm.bias,
        decoder_weight=decoder.weight if tied is None else tied,
        decoder_bias=decoder.bias,
        eps=norm.eps,
        approximate=approximate or "none",
    )
    return loss


class FastMaskedHead(Swapped):
    """A head whose logits are None in training; its loss, and the logits of a next sentence head, are stock's."""

    @averaged
    def fast_forward(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.arguments.bind(args, kwargs)
        head, labels = _head(self), _labels(call, "labels")
        next_sentence_label = _labels(call, "next_sentence_label")
        reason = head_reason(self) or _refused(self, labels, call)
        if reason is None and head.next_sentence is not None:
            if next_sentence_label is None:
                reason = "no next_sentence_label was given, so stock computes no loss"
            elif self.base_model.pooler is None:
                reason = "there is no pooler"
        if reason is not None or call is None:
            count(self, f"all logits: {reason}")
            return self.stock.forward(self, *args, **kwargs)
        count(self, MASKED_ONLY)
        with handover.offered(_offer(self, labels)) as offer:
            states = _states(self, call)
        if head.next_sentence is None:
            return MaskedLMOutput(loss=_masked_lm_loss(self, states.last_hidden_state, labels, offer.tied))
        scores = self.get_submodule(head.next_sentence)(states.pooler_output)
        loss = _masked_lm_loss(self, states.last_hidden_state, labels, offer.tied)
        loss = loss + F.cross_entropy(scores.view(-1, 2), next_sentence_label.view(-1))
        return head.output(loss=loss, seq_relationship_logits=scores)
