"""DistilBERT: BERT's layers under other names, without token types and without a pooler."""

from transformers import DistilBertConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.distilbert import modeling_distilbert as hf

from bertfast.convert.families.record import HELPERS, Family, MaskedHead
from bertfast.nn.parts import AttentionParts, MlpParts, Places

FAMILY = Family(
    name="distilbert",
    config=DistilBertConfig,
    module=hf,
    model=hf.DistilBertModel,
    embeddings=hf.Embeddings,
    encoder=hf.Transformer,
    layer=hf.TransformerBlock,
    pooler=None,
    holders={"attention": hf.DistilBertSelfAttention, "ffn": hf.FFN},
    encoder_name="transformer",
    places=Places(
        AttentionParts(
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            "sa_layer_norm",
            "attention.dropout",
            None,
        ),
        MlpParts("ffn.lin1", "ffn.lin2", "output_layer_norm", "ffn.dropout"),
    ),
    attention="attention",
    activation="ffn.activation",
    chunk="ffn.ff_chunk",
    segments=False,
    first_token_heads=(hf.DistilBertForSequenceClassification, hf.DistilBertForMultipleChoice),
    losses_over_padding=(hf.DistilBertForQuestionAnswering,),
    masked_heads={
        hf.DistilBertForMaskedLM: MaskedHead(
            dense="vocab_transform", norm="vocab_layer_norm", decoder="vocab_projector", activation="activation"
        )
    },
    encoder_output=BaseModelOutput,
    model_output=BaseModelOutput,
    helpers=HELPERS,
    tiny_options={
        "vocab_size": 50,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 64,
        "max_position_embeddings": 16,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
        "qa_dropout": 0.0,
    },
)
