"""Model FLOPs: the arithmetic that the mathematics of BERT asks for, whatever an implementation skips or does twice.

Forward, of each of L layers: 2 (4 E^2 + 2 E F) a token for the products and 4 E s^2 a sequence of s tokens for attention, which
for F = 4 E and tokens in sequences of S is the usual 24 E^2 + 4 S E a token. The masked-LM head takes 2 E^2 + 2 E V for each masked
token. Norms, softmax, embeddings, pooler and the small heads are left out, as is usual. Training is three times forward.
The figure counts the last layer whole, though heads that read few of its tokens compute those alone.
"""

from bertfast.models.config import BertConfig


def forward_flops(config: BertConfig, tokens: int, squared_lengths: int, masked: int = 0) -> int:
    """FLOPs of one forward pass.

    Args:
        tokens: real tokens of the batch, padding not counted.
        squared_lengths: the sum over its sequences of the square of their numbers of tokens.
        masked: tokens whose word is predicted by the masked-LM head.
    """
    hidden = config.hidden_size
    products = 2 * (4 * hidden**2 + 2 * hidden * config.intermediate_size) * tokens
    attention = 4 * hidden * squared_lengths
    head = (2 * hidden**2 + 2 * hidden * config.vocab_size) * masked
    return config.num_hidden_layers * (products + attention) + head


def training_flops(config: BertConfig, tokens: int, squared_lengths: int, masked: int = 0) -> int:
    """FLOPs of one forward and backward pass; arguments as in `forward_flops`."""
    return 3 * forward_flops(config, tokens, squared_lengths, masked)
