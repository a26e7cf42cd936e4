"""BERT, and what has its config: MiniLM, E5, BGE, GTE, Tohoku's Japanese BERT."""

from transformers import BertConfig
from transformers.models.bert import modeling_bert as hf

from bertfast.convert.families.record import bert_head, like_bert

FAMILY = like_bert(
    "bert",
    "Bert",
    BertConfig,
    hf,
    pooled_heads=(
        hf.BertForSequenceClassification,
        hf.BertForNextSentencePrediction,
        hf.BertForMultipleChoice,
    ),
    losses_over_padding=(hf.BertForQuestionAnswering, hf.BertLMHeadModel),
    masked_heads={
        hf.BertForPreTraining: bert_head(
            "Bert",
            hf,
            "PreTrainingHeads",
            next_sentence="cls.seq_relationship",
            output=hf.BertForPreTrainingOutput,
        ),
        hf.BertForMaskedLM: bert_head("Bert", hf, "OnlyMLMHead"),
    },
)
