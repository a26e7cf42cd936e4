"""The word table with zeros below it, for products on a GPU.

BERT's vocabulary of 30,522 is no multiple of 8, so rows of logits or of their gradient do not begin at multiples of 16 bytes and
cuBLAS takes kernels without Hopper's tensor-core instructions, three times as slow. On an H200, bfloat16, 2,560 rows x 768, with
30,528 words instead: logits 517 -> 175 us, the gradient of x 505 -> 165, of the weight 508 -> 158; a longer stride alone helps
only the last, to 265 (benchmarks/results/runs/nvidia-h200-prototypes.jsonl). The copy reads and writes the table once, 94 MB of
BERT-base: 22 us at that card's copy bandwidth.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.ops.masked_lm_loss.reference import padded

# Rows from which on a product gains more than the copy costs, at 237 against 684 TFLOP/s from 170 on: predicted, not measured.
LEAST_ROWS = 256


def unaligned(weight: Tensor) -> bool:
    """Whether products with the weight [V, E] run at the slow rate: 16 bits, and V alone is no multiple of 8."""
    return weight.element_size() == 2 and weight.shape[0] % 8 != 0 and weight.shape[1] % 8 == 0


def aligned_words(weight: Tensor, rows: int) -> Tensor:
    """The weight [V, E], or a copy [V padded, E] with zeros below where a product with `rows` rows gains by it."""
    if not unaligned(weight) or rows < LEAST_ROWS:
        return weight
    vocabulary, size = weight.shape
    # Zeros and not what lies there: 0 times NaN is NaN.
    return torch.cat((weight, weight.new_zeros(padded(vocabulary) - vocabulary, size)))


def word_logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b [M, V] of x [M, E], without gradients; rows may lie further apart than V."""
    vocabulary, words = weight.shape[0], aligned_words(weight, x.shape[0])
    if words is weight:
        return F.linear(x, weight, bias)
    return F.linear(x, words, F.pad(bias, (0, len(words) - vocabulary))).narrow(1, 0, vocabulary)
