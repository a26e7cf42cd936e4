"""RoBERTa."""

from transformers import RobertaConfig
from transformers.models.roberta import modeling_roberta as hf

from bertfast.convert.families.record import roberta_like

FAMILY = roberta_like("roberta", "Roberta", RobertaConfig, hf)
