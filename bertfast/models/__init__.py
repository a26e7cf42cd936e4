"""BERT's models, native to packed tokens and taking padded batches too; no transformers needed.

model = bertfast.models.BertForPreTraining.from_pretrained(folder)      # the Hugging Face format, and save_pretrained back
out = model(input_ids, token_type_ids=types, position_ids=positions, cu_seqlens=bounds, max_seqlen=128, labels=labels)
"""

from bertfast.models import flops
from bertfast.models.bert import BertModel, BertPreTrainedModel
from bertfast.models.config import BertConfig, ConfigError
from bertfast.models.heads import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from bertfast.models.loading import NewWeightsWarning, WeightsError
from bertfast.models.pretraining import BertForMaskedLM, BertForNextSentencePrediction, BertForPreTraining

__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "BertPreTrainedModel",
    "ConfigError",
    "NewWeightsWarning",
    "WeightsError",
    "flops",
]
