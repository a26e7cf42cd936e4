"""XLM-RoBERTa: multilingual E5, bge-m3, bge-reranker."""

from transformers import XLMRobertaConfig
from transformers.models.xlm_roberta import modeling_xlm_roberta as hf

from bertfast.convert.families.record import roberta_like

FAMILY = roberta_like("xlm_roberta", "XLMRoberta", XLMRobertaConfig, hf)
