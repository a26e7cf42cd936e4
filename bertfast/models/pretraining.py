"""The pre-training heads: masked words from the masked tokens alone, next sentences from each [CLS] (Devlin et al., 2018, 3.1).

The decoder's weight is the embeddings' word table itself, one parameter. With labels the last layer is computed for masked
tokens and first tokens, and logits are made for masked tokens, inside `ops.masked_lm_loss`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast import ops
from bertfast.models.bert import BertModel, BertPreTrainedModel, initialise
from bertfast.models.config import BertConfig, ConfigError
from bertfast.models.losses import IGNORED, check_labels, correct, cross_entropy, of_sequences
from bertfast.models.outputs import BertForPreTrainingOutput, MaskedLMOutput, SequenceOutput
from bertfast.nn.modules import ACTIVATIONS
from bertfast.nn.tokens import Reading, Tokens
from bertfast.ops.masked_lm_loss.words import word_logits


class _Transform(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class MaskedLMHead(nn.Module):
    """Dense, GELU, norm, and the word table as decoder with a bias of its own."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.approximate = ACTIVATIONS[config.hidden_act]
        self.transform = _Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, rows: Tensor, word: Tensor) -> Tensor:
        """Logits [K, V] of rows [K, E] with the word table [V, E]."""
        hidden = F.gelu(self.transform.dense(rows), approximate=self.approximate)
        hidden = self.transform.LayerNorm(hidden)
        if hidden.is_cuda and not torch.is_grad_enabled():
            return word_logits(hidden, word, self.bias)
        return F.linear(hidden, word, self.bias)

    def loss(self, rows: Tensor, labels: Tensor, positions: Tensor, word: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss, correct and count of `positions` [M] among rows [R, E] with labels [R], as `ops.masked_lm_loss`."""
        dense, norm = self.transform.dense, self.transform.LayerNorm
        return ops.masked_lm_loss(
            rows,
            labels,
            dense_weight=dense.weight,
            dense_bias=dense.bias,
            norm_weight=norm.weight,
            norm_bias=norm.bias,
            decoder_weight=word,
            decoder_bias=self.bias,
            positions=positions,
            eps=norm.eps,
            approximate=self.approximate,
        )


class _Heads(nn.Module):
    """The heads under transformers' names."""

    def __init__(self, config: BertConfig, *, words: bool, sentences: bool):
        super().__init__()
        if words and not config.tie_word_embeddings:
            raise ConfigError(
                "tie_word_embeddings = false is not supported: bertfast's masked-LM head uses the word table as its "
                "decoder's weight; use transformers for this model"
            )
        self.predictions: Any = MaskedLMHead(config) if words else None
        self.seq_relationship: Any = nn.Linear(config.hidden_size, 2) if sentences else None
        initialise(self, config.initializer_range)


def _masked(tokens: Tokens, labels: Tensor | None, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels of all rows [N], and the rows [M] whose word is to be predicted, negative at empty slots.

    Raises:
        IndexError: on a CPU, for a position past the input.
        ValueError: on labels or positions of another shape or dtype.
    """
    if positions is not None and (positions.dim() != 1 or positions.dtype != torch.int64):
        raise ValueError(f"masked_positions must be int64 [M], got {positions.dtype} {tuple(positions.shape)}")
    if labels is None:
        if positions is not None:
            raise ValueError("masked_positions were given without labels")
        none = tokens.cu_seqlens.new_zeros(0, dtype=torch.int64)
        return torch.full_like(tokens.input_ids, IGNORED, dtype=torch.int64), none
    rows = tokens.of(check_labels("labels", labels, tokens.shape), IGNORED)
    if positions is None:
        return rows, (rows != IGNORED).nonzero()[:, 0]
    total = labels.numel()
    if not torch.compiler.is_compiling() and positions.device.type == "cpu" and positions.numel():
        last = int(positions.max())
        if last >= total:
            raise IndexError(
                f"masked_positions name token {last} of input_ids {tokens.shape}, which has {total} tokens"
            )
    return rows, tokens.row(positions)


def _sentence_labels(labels: Tensor | None, tokens: Tokens) -> Tensor:
    """[B] int64 with IGNORED where there is nothing to say: given as -1 or -100, or a sequence without tokens."""
    if labels is None:
        return torch.full_like(tokens.cu_seqlens[1:], IGNORED, dtype=torch.int64)
    labels = check_labels("next_sentence_label", labels, (tokens.sequences,))
    return of_sequences(labels.masked_fill(labels == -1, IGNORED), tokens)


class BertForPreTraining(BertPreTrainedModel):
    """BERT with both heads of pre-training: masked words and next sentences."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = _Heads(config, words=True, sentences=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        all_logits: bool = False,
    ) -> BertForPreTrainingOutput:
        """Logits, or with labels the two losses; input as in `BertModel.forward`.

        Args:
            labels: int64 of input_ids' shape, the word that was there, -100 where nothing is to be predicted.
            masked_positions: [M] int64, places of the masked tokens among the flattened input_ids, each at most once, negative
                for empty slots. Labels elsewhere are not read. Looked up where it is None, which waits for a GPU and which
                torch.compile(fullgraph=True) cannot do.
            next_sentence_label: [B] int64, 0 where B follows A, 1 where it does not, -1 or -100 for no label.
            all_logits: make `prediction_logits` in spite of labels: V numbers a token.

        Returns:
            With any labels, both losses: one that has no targets is 0 and its gradients are zero.

        Raises:
            IndexError: on an id, label or position outside its range.
            ValueError: on shapes, dtypes or bounds that do not belong together.
        """
        tokens = self.arrange(input_ids, attention_mask, token_type_ids, position_ids, cu_seqlens, max_seqlen)
        head, relationship = self.cls.predictions, self.cls.seq_relationship
        if labels is None and masked_positions is None and next_sentence_label is None:
            rows, word = self.bert.encode(tokens)
            scores = relationship(self.bert.pooled(tokens.first_of(rows), tokens))
            return BertForPreTrainingOutput(
                prediction_logits=tokens.restore(head(rows, word)), seq_relationship_logits=scores
            )
        row_labels, masked = _masked(tokens, labels, masked_positions)
        reading = Reading(None, tokens.first, masked) if all_logits else tokens.reading(masked)
        rows, word = self.bert.encode(tokens, reading.rows, tied=True)
        scores = relationship(self.bert.pooled(rows.index_select(0, reading.first), tokens))
        sentence_labels = _sentence_labels(next_sentence_label, tokens)
        mlm_loss, mlm_correct, mlm_count = head.loss(rows, reading.of(row_labels), reading.masked, word)
        nsp_loss = cross_entropy(scores, sentence_labels)
        nsp_correct, nsp_count = correct(scores, sentence_labels)
        return BertForPreTrainingOutput(
            loss=mlm_loss + nsp_loss,
            prediction_logits=tokens.restore(head(rows, word)) if all_logits else None,
            seq_relationship_logits=scores,
            mlm_loss=mlm_loss,
            nsp_loss=nsp_loss,
            mlm_correct=mlm_correct,
            mlm_count=mlm_count,
            nsp_correct=nsp_correct,
            nsp_count=nsp_count,
        )


class BertForMaskedLM(BertPreTrainedModel):
    """BERT with the masked-word head, without a pooler."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = _Heads(config, words=True, sentences=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        all_logits: bool = False,
    ) -> MaskedLMOutput:
        """Logits, or with labels the loss; arguments and errors as in `BertForPreTraining.forward`."""
        tokens = self.arrange(input_ids, attention_mask, token_type_ids, position_ids, cu_seqlens, max_seqlen)
        head = self.cls.predictions
        if labels is None and masked_positions is None:
            return MaskedLMOutput(logits=tokens.restore(head(*self.bert.encode(tokens))))
        row_labels, masked = _masked(tokens, labels, masked_positions)
        reading = Reading(None, masked=masked) if all_logits else tokens.reading(masked, first=False)
        rows, word = self.bert.encode(tokens, reading.rows, tied=True)
        loss, right, count = head.loss(rows, reading.of(row_labels), reading.masked, word)
        logits = tokens.restore(head(rows, word)) if all_logits else None
        return MaskedLMOutput(loss, logits, right, count)


class BertForNextSentencePrediction(BertPreTrainedModel):
    """BERT with the next-sentence head."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = _Heads(config, words=False, sentences=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        labels: Tensor | None = None,
    ) -> SequenceOutput:
        """Logits [B, 2], and with labels [B] the loss; labels as `next_sentence_label` of `BertForPreTraining.forward`."""
        tokens = self.arrange(input_ids, attention_mask, token_type_ids, position_ids, cu_seqlens, max_seqlen)
        scores = self.cls.seq_relationship(self.bert.first_pooled(tokens))
        loss = None if labels is None else cross_entropy(scores, _sentence_labels(labels, tokens))
        return SequenceOutput(loss, scores)
