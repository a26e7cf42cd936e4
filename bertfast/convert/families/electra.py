"""ELECTRA: a generator and a discriminator, both BERT without a pooler; small ones have narrower embeddings."""

from transformers import ElectraConfig
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.electra import modeling_electra as hf

from bertfast.convert.families.record import TINY, MaskedHead, like_bert

FAMILY = like_bert(
    "electra",
    "Electra",
    ElectraConfig,
    hf,
    projection="embeddings_project",
    first_token_heads=(hf.ElectraForSequenceClassification,),
    summary_heads=(hf.ElectraForMultipleChoice,),
    losses_over_padding=(hf.ElectraForQuestionAnswering, hf.ElectraForCausalLM),
    masked_heads={
        hf.ElectraForMaskedLM: MaskedHead(
            dense="generator_predictions.dense",
            norm="generator_predictions.LayerNorm",
            decoder="generator_lm_head",
            activation="generator_predictions.activation",
            holders={"generator_predictions": hf.ElectraGeneratorPredictions},
        )
    },
    model_output=BaseModelOutputWithPastAndCrossAttentions,
    tiny_options={**TINY, "embedding_size": 16, "summary_last_dropout": 0.0},
)
