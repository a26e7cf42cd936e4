"""Pre-training beside stock transformers: both sides of one seed, their speed in turns, and how far their curves come apart."""

import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bertfast.bench.protocol import Spread
from bertfast.data.batches import Batch
from bertfast.data.corpus import Corpus
from bertfast.data.loader import PretrainLoader
from bertfast.data.pairs import PairOptions
from bertfast.data.plan import PretrainDataOptions
from bertfast.models import BertConfig, BertForPreTraining
from bertfast.train.config import TrainConfig
from bertfast.train.optim import build_optimizer

SEED = 1234
FLOAT32, BFLOAT16 = "float32", "bfloat16"
DTYPES = (FLOAT32, BFLOAT16)
# layers x hidden: hidden, layers, heads
SIZES = {"4x256": (256, 4, 4), "6x384": (384, 6, 12), "12x768": (768, 12, 12), "24x1024": (1024, 24, 16)}
CPU = torch.device("cpu")
LEAST = 2.5  # times stock's real tokens a second that are asked for


@dataclass(frozen=True)
class Row:
    """A measurement of speed: model size, longest sequence, tokens of a batch (stock's with padding, ours without)."""

    size: str
    length: int
    tokens: int


ROWS = (Row("4x256", 128, 4096), Row("4x256", 512, 4096), Row("6x384", 128, 2048), Row("12x768", 128, 1024))


@dataclass(frozen=True)
class Band:
    """How far curves may part: |ours - stock| <= atol + rtol |stock| for losses, and the same with `weights` for parameters."""

    steps: int
    rtol: float
    atol: float
    weights: float


# Liger-Kernel's (test/convergence): float32 over its 32 steps, bfloat16 over all.
BANDS = {FLOAT32: Band(32, 2e-5, 1e-8, 5e-3), BFLOAT16: Band(100, 5e-2, 1e-2, 5e-2)}


class Side:
    """A model with its optimizer on a device."""

    def __init__(self, model: nn.Module, dtype: str, rate: float, device: torch.device):
        self.model, self.dtype, self.device = model.train().to(device), dtype, device
        self.optimizer = build_optimizer(TrainConfig(steps=1, learning_rate=rate), model)

    def step(self, inputs: dict[str, Any]) -> float:
        """One update; returns the loss before it, and so waits for the device."""
        inputs = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == BFLOAT16):
            loss = self.model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def sides(
    size: str, vocabulary: int, length: int, dtype: str, dropout: float, rate: float, device: torch.device = CPU
) -> tuple[Side, Side]:
    """Stock (sdpa) and ours, of the same weights."""
    import transformers

    hidden, layers, heads = SIZES[size]
    torch.manual_seed(SEED)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(128, length),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    ours = BertForPreTraining(config)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        stock = transformers.BertForPreTraining.from_pretrained(folder, attn_implementation="sdpa")
    return Side(stock, dtype, rate, device), Side(ours, dtype, rate, device)


def stock_inputs(batch: Batch) -> dict[str, Tensor]:
    """A batch as stock takes it, [B, S]; a packed one is taken apart and padded to its longest sequence."""
    if batch.cu_seqlens is None:
        return {k: v for k, v in batch.inputs().items() if k not in ("masked_positions", "position_ids")}
    lengths = batch.cu_seqlens.diff()
    lengths = lengths[lengths > 0].tolist()

    def padded(tokens: Tensor, value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(list(tokens[: sum(lengths)].split(lengths)), True, value)

    return {
        "input_ids": padded(batch.input_ids, 0),
        "token_type_ids": padded(batch.token_type_ids, 0),
        "attention_mask": padded(torch.ones_like(batch.input_ids), 0),
        "labels": padded(batch.labels["labels"], -100),
        "next_sentence_label": batch.labels["next_sentence_label"][: len(lengths)],
    }


def _loader(corpus: Corpus, vocabulary: Any, row: Row, layout: Any, device: torch.device) -> PretrainLoader:
    pairs = PairOptions(max_seq_length=row.length)
    # A stock loop pads to the longest. Ours has static shapes where shapes cost something.
    static = layout == "packed" and device.type != "cpu"
    options = PretrainDataOptions(
        seed=SEED, token_budget=row.tokens, pairs=pairs, layout=layout, static_shapes=static
    )  # fmt: skip
    return PretrainLoader(corpus, vocabulary, options)


def speed(
    corpus: Corpus, vocabulary: Any, row: Row, dtype: str, turns: int, device: torch.device = CPU
) -> dict[str, Any]:
    """Whole updates, batches made in between included, a step of each side in turn; tokens/s are of real tokens.

    vocabulary: a Tokenizer or a `bertfast.data.masking.Vocabulary`.
    """
    both = sides(row.size, vocabulary.vocab_size, row.length, dtype, dropout=0.1, rate=1e-4, device=device)
    batches = [iter(_loader(corpus, vocabulary, row, layout, device)) for layout in ("padded", "packed")]
    rates: list[list[float]] = [[], []]
    positions, real = 0, 0
    for turn in range(turns + 2):
        for side, source, found in zip(both, batches, rates, strict=True):
            begin = time.perf_counter()
            batch = next(source)
            side.step(stock_inputs(batch) if side is both[0] else batch.inputs())
            if turn >= 2:
                found.append(batch.real_tokens / (time.perf_counter() - begin))
            if side is both[0]:
                positions, real = positions + batch.input_ids.numel(), real + batch.real_tokens
    ratio = Spread.of([ours / stock for stock, ours in zip(*rates, strict=True)])
    return {
        **asdict(row),
        "dtype": dtype,
        "turns": turns,
        "padding": 1 - real / positions,
        "tokens_per_second": {name: Spread.of(found).p50 for name, found in zip(("stock", "ours"), rates, strict=True)},
        "ratio": asdict(ratio),
    }


def convergence(
    corpus: Corpus,
    vocabulary: Any,
    dtype: str,
    steps: int,
    size: str = "4x256",
    tokens: int = 2048,
    rate: float = 1e-4,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """Both sides over the same batches without dropout: loss curves, and how far losses and weights have come apart."""
    row, band = Row(size, 128, tokens), BANDS[dtype]
    stock, ours = sides(size, vocabulary.vocab_size, row.length, dtype, dropout=0.0, rate=rate, device=device)
    curves: list[list[float]] = [[], []]
    for _, batch in zip(range(steps), _loader(corpus, vocabulary, row, "packed", device), strict=False):
        curves[0].append(stock.step(stock_inputs(batch)))
        curves[1].append(ours.step(batch.inputs()))
    return {"size": size, "dtype": dtype, "steps": steps, **apart(stock.model, ours.model, *curves, band)}


def apart(
    stock: nn.Module, ours: nn.Module, losses: list[float], our_losses: list[float], band: Band
) -> dict[str, Any]:
    """Both curves and, in parts of the band, how far losses and weights have come apart; `passed` where all are within it."""
    curves = losses, our_losses
    far = [abs(a - b) / (band.atol + band.rtol * abs(a)) for a, b in zip(*curves, strict=True)]
    theirs = dict(stock.named_parameters())
    weights = max(
        float(((p.detach() - theirs[name].detach()).abs() / (band.weights * (1 + theirs[name].detach().abs()))).max())
        for name, p in ours.named_parameters()
    )
    judged = far[: band.steps]
    return {
        "band": asdict(band),
        "stock": losses,
        "ours": our_losses,
        "loss_of_band": max(judged),
        "loss_of_band_all_steps": max(far),
        "weights_of_band": weights,
        "passed": max(judged) <= 1 and weights <= 1,
    }
