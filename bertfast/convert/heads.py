"""Pre-training heads whose loss is computed from the masked tokens alone (Devlin et al., 2018, section 3.1).

The logits of all tokens are B S V numbers, kept several times over by stock: most of the memory of a training step and a
quarter of its time. In training with labels these heads make those of the masked tokens only, inside
`ops.masked_lm_loss`, and return None for the logits; any other call is stock's. As in `layers`, a swapped head is the
stock head with another forward.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.bert import modeling_bert as hf

from bertfast import ops
from bertfast.convert import checks, handover, installed
from bertfast.convert.counts import count
from bertfast.convert.options import option
from bertfast.convert.pooled_heads import only_reader

MASKED_ONLY = "fast, logits of masked tokens only"


_PRETRAINING = installed.Arguments(hf.BertForPreTraining.forward)
_MASKED_LM = installed.Arguments(hf.BertForMaskedLM.forward)
_LABELS = ("labels", "next_sentence_label")


def _labels(call: dict[str, Any] | None, name: str) -> Any:
    return None if call is None else call.get(name)


def _states(model: Any, call: dict[str, Any]) -> Any:
    """BertModel's outputs: called as stock's heads call it, with input_ids by position, since a hook may look."""
    rest = {name: value for name, value in call.items() if name not in _LABELS and name != "input_ids"}
    return model.bert(call.get("input_ids"), **{**rest, "return_dict": True})


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
    if model.cls.predictions.decoder.weight.shape[0] != model.config.vocab_size:
        return "the decoder has not config.vocab_size words"
    for name in ("output_hidden_states", "output_attentions"):
        if kwargs.get(name) or getattr(model.config, name, False):
            return f"{name} is set"
    wanted = kwargs.get("return_dict")
    if not (getattr(model.config, "return_dict", True) if wanted is None else wanted):
        return "a tuple of outputs was asked for"
    return None


def head_reason(model: Any) -> str | None:
    """What about the head as it stands now keeps it from the masked tokens only."""
    weight = next(model.bert.embeddings.parameters(), None)
    if weight is None:
        return "its embeddings have no parameters"
    kind = hf.BertPreTrainingHeads if isinstance(model, hf.BertForPreTraining) else hf.BertOnlyMLMHead
    return (
        checks.environment_reason()
        or checks.tensor_reason(weight, option(model, "gpu_kernels"))
        or checks.predictions_reason(model.cls, kind)
    )


def _offer(model: Any, labels: Tensor) -> handover.Handover:
    read = None
    if only_reader(model.bert):
        read = labels != -100
        if model.bert.pooler is not None:
            read[:, 0] = True
    return handover.Handover(model.bert, read, model.cls.predictions.decoder.weight)


def _masked_lm_loss(model: Any, hidden: Tensor, labels: Tensor, tied: Tensor | None) -> Tensor:
    transform, decoder = model.cls.predictions.transform, model.cls.predictions.decoder
    loss, _, _ = ops.masked_lm_loss(
        hidden,
        labels,
        dense_weight=transform.dense.weight,
        dense_bias=transform.dense.bias,
        norm_weight=transform.LayerNorm.weight,
        norm_bias=transform.LayerNorm.bias,
        decoder_weight=decoder.weight if tied is None else tied,
        decoder_bias=decoder.bias,
        eps=transform.LayerNorm.eps,
        approximate=checks.approximate_of(transform.transform_act_fn) or "none",
    )
    return loss


class FastBertForPreTraining(hf.BertForPreTraining):
    """BertForPreTraining whose `prediction_logits` are None in training; the loss, and `seq_relationship_logits`, are stock's."""

    @installed.signed_as(hf.BertForPreTraining.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = _PRETRAINING.bind(args, kwargs)
        labels, next_sentence_label = _labels(call, "labels"), _labels(call, "next_sentence_label")
        reason = head_reason(self) or _refused(self, labels, call)
        if reason is None and next_sentence_label is None:
            reason = "no next_sentence_label was given, so stock computes no loss"
        if reason is None and self.bert.pooler is None:
            reason = "there is no pooler"
        if reason is not None or call is None:
            count(self, f"all logits: {reason}")
            return super().forward(*args, **kwargs)
        count(self, MASKED_ONLY)
        with handover.offered(_offer(self, labels)) as offer:
            states = _states(self, call)
        scores = self.cls.seq_relationship(states.pooler_output)
        loss = _masked_lm_loss(self, states.last_hidden_state, labels, offer.tied)
        loss = loss + F.cross_entropy(scores.view(-1, 2), next_sentence_label.view(-1))
        return hf.BertForPreTrainingOutput(loss=loss, seq_relationship_logits=scores)


class FastBertForMaskedLM(hf.BertForMaskedLM):
    """BertForMaskedLM whose `logits` are None in training; the loss is stock's."""

    @installed.signed_as(hf.BertForMaskedLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = _MASKED_LM.bind(args, kwargs)
        labels = _labels(call, "labels")
        reason = head_reason(self) or _refused(self, labels, call)
        if reason is not None or call is None:
            count(self, f"all logits: {reason}")
            return super().forward(*args, **kwargs)
        count(self, MASKED_ONLY)
        with handover.offered(_offer(self, labels)) as offer:
            states = _states(self, call)
        return MaskedLMOutput(loss=_masked_lm_loss(self, states.last_hidden_state, labels, offer.tied))


# save_pretrained writes a class's name into config.architectures, and Trainer looks it up: both know stock's names only.
# Pickle goes by __qualname__, which stays.
FastBertForPreTraining.__name__ = hf.BertForPreTraining.__name__
FastBertForMaskedLM.__name__ = hf.BertForMaskedLM.__name__

HEADS: dict[type[nn.Module], type[nn.Module]] = {
    hf.BertForPreTraining: FastBertForPreTraining,
    hf.BertForMaskedLM: FastBertForMaskedLM,
}
