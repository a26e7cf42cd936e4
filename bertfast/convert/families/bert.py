"""BERT, and what has its config: MiniLM, E5, BGE, GTE, Tohoku's Japanese BERT."""

from transformers import BertConfig
from transformers.models.bert import modeling_bert as hf

from bertfast.convert.families.record import bert_heads, like_bert

FAMILY = like_bert(
    "bert",
    "Bert",
    BertConfig,
    hf,
    losses_over_padding=(hf.BertForQuestionAnswering, hf.BertLMHeadModel),
    **bert_heads("Bert", hf),
)
