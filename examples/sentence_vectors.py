"""sentence-transformers: one call makes SentenceTransformer fast; encode() and the embeddings stay what they are.

Runs offline with all-MiniLM-L6-v2: python examples/sentence_vectors.py [NUMBER OF SENTENCES]
"""

import sys
import time

import torch
from sentence_transformers import SentenceTransformer

import bertfast
from bertfast.bench.cases import minilm_folder, sentences

texts = sentences()[: int(sys.argv[1]) if len(sys.argv) > 1 else None]  # 187, from two words to two hundred
model = SentenceTransformer(str(minilm_folder()), device="cpu")


def encode() -> tuple[torch.Tensor, float]:
    begin = time.perf_counter()
    vectors = model.encode(texts, batch_size=32, convert_to_tensor=True)
    return vectors, time.perf_counter() - begin


encode()  # the first call is not counted
stock, stock_seconds = encode()

bertfast.optimize(model)

encode()
vectors, seconds = encode()
print(f"{len(texts)} sentences: stock {stock_seconds:.2f} s, fast {seconds:.2f} s")
print(f"largest difference of an embedding's number: {(vectors - stock).abs().max():.1e}")

query = model.encode(["It is cold enough for ice."], convert_to_tensor=True)
for score, index in zip(*model.similarity(query, vectors)[0].topk(3), strict=True):
    print(f"{score:.2f}  {texts[index]}")
