"""ERNIE: BERT with an optional table of tasks."""

from transformers import ErnieConfig
from transformers.models.ernie import modeling_ernie as hf

from bertfast.convert.families.record import bert_head, like_bert

FAMILY = like_bert(
    "ernie",
    "Ernie",
    ErnieConfig,
    hf,
    tasks=True,
    pooled_heads=(
        hf.ErnieForSequenceClassification,
        hf.ErnieForNextSentencePrediction,
        hf.ErnieForMultipleChoice,
    ),
    losses_over_padding=(hf.ErnieForQuestionAnswering, hf.ErnieForCausalLM),
    masked_heads={
        hf.ErnieForPreTraining: bert_head(
            "Ernie",
            hf,
            "PreTrainingHeads",
            next_sentence="cls.seq_relationship",
            output=hf.ErnieForPreTrainingOutput,
        ),
        hf.ErnieForMaskedLM: bert_head("Ernie", hf, "OnlyMLMHead"),
    },
)
