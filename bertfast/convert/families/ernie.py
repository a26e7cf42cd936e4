"""ERNIE: BERT with an optional table of tasks."""

from transformers import ErnieConfig
from transformers.models.ernie import modeling_ernie as hf

from bertfast.convert.families.record import bert_heads, like_bert

FAMILY = like_bert(
    "ernie",
    "Ernie",
    ErnieConfig,
    hf,
    tasks=True,
    losses_over_padding=(hf.ErnieForQuestionAnswering, hf.ErnieForCausalLM),
    **bert_heads("Ernie", hf),
)
