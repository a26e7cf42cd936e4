"""CamemBERT, RoBERTa in French."""

from transformers import CamembertConfig
from transformers.models.camembert import modeling_camembert as hf

from bertfast.convert.families.record import roberta_like

FAMILY = roberta_like("camembert", "Camembert", CamembertConfig, hf)
