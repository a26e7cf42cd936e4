"""A reranker: sentence-transformers' CrossEncoder scores (query, passage) pairs, all through the fused encoder.

Runs offline with a tiny random XLM-RoBERTa, the architecture of bge-reranker: python examples/reranker.py
With a trained one, such as BAAI/bge-reranker-base on your disk: python examples/reranker.py FOLDER
"""

import sys
import tempfile

from sentence_transformers import CrossEncoder
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForSequenceClassification

import bertfast
from bertfast.bench.cases import minilm_folder

QUERY = "When does the bakery open?"
PASSAGES = [
    "The bakery on the corner opens at six and sells out of rye bread before nine.",
    "The bus was full, so we walked.",
    "Tomatoes need a great deal of sun and very little wind.",
]


def tiny_reranker(folder: str) -> None:
    """Random weights: its scores mean nothing."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=130, type_vocab_size=2, num_labels=1, initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


with tempfile.TemporaryDirectory() as temporary:
    if len(sys.argv) < 2:
        tiny_reranker(temporary)
    reranker = CrossEncoder(sys.argv[1] if len(sys.argv) > 1 else temporary, device="cpu")
    pairs = [(QUERY, passage) for passage in PASSAGES]
    stock = reranker.predict(pairs)

    bertfast.optimize(reranker)

    print(f"largest difference from stock: {abs(reranker.predict(pairs) - stock).max():.1e}")
    for row in reranker.rank(QUERY, PASSAGES):
        print(f"{row['score']:.3f}  {PASSAGES[row['corpus_id']]}")
    print(bertfast.report(reranker))
