"""MPNet: RoBERTa's tokens, no token types, and a bias of relative positions that is added to the scores of every layer."""

from transformers import MPNetConfig
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.models.mpnet import modeling_mpnet as hf

from bertfast.convert.biased_encoder import FastBiasedEncoder
from bertfast.convert.families.record import TINY, Family, MaskedHead
from bertfast.nn.parts import AttentionParts, MlpParts, Places

FAMILY = Family(
    name="mpnet",
    config=MPNetConfig,
    module=hf,
    model=hf.MPNetModel,
    embeddings=hf.MPNetEmbeddings,
    encoder=hf.MPNetEncoder,
    layer=hf.MPNetLayer,
    pooler=hf.MPNetPooler,
    holders={
        "attention": hf.MPNetAttention,
        "attention.attn": hf.MPNetSelfAttention,
        "intermediate": hf.MPNetIntermediate,
        "output": hf.MPNetOutput,
    },
    places=Places(
        AttentionParts(
            "attention.attn.q",
            "attention.attn.k",
            "attention.attn.v",
            "attention.attn.o",
            "attention.LayerNorm",
            "attention.attn.dropout",
            "attention.dropout",
        ),
        MlpParts("intermediate.dense", "output.dense", "output.LayerNorm", "output.dropout"),
    ),
    attention="attention.attn",
    positions_follow_tokens=True,
    segments=False,
    pooled_heads=(hf.MPNetForMultipleChoice,),
    first_token_heads=(hf.MPNetForSequenceClassification,),
    losses_over_padding=(hf.MPNetForQuestionAnswering,),
    masked_heads={
        hf.MPNetForMaskedLM: MaskedHead(
            dense="lm_head.dense",
            norm="lm_head.layer_norm",
            decoder="lm_head.decoder",
            holders={"lm_head": hf.MPNetLMHead},
        )
    },
    encoder_output=BaseModelOutput,
    model_output=BaseModelOutputWithPooling,
    encoder_role=FastBiasedEncoder,
    helpers=("create_bidirectional_mask", "create_position_ids_from_input_ids", "gelu", "CrossEntropyLoss"),
    trial_attention="eager",
    tiny_options={**TINY, "max_position_embeddings": 18, "relative_attention_num_buckets": 32},
)
