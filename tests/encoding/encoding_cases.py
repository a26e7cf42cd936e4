"""Tiny checkpoints with a tokenizer and sentence-transformers files, and texts, for the tests of encoding."""

import json
from pathlib import Path

import torch

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = (*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS))
TEXTS = [" ".join(["ab", "c", "sea", "d"][n % 4 :] * (1 + n * 7 % 5)) for n in range(60)]


def pieces(pad_id: int) -> list[str]:
    """The vocabulary, with the padding at the place where a family has it."""
    rest = [piece for piece in PIECES if piece != "[PAD]"]
    return [*rest[:pad_id], "[PAD]", *rest[pad_id:]]


def save_tokenizer(folder: Path, pad_id: int = 0, max_length: int = 60) -> None:
    from tokenizers import BertWordPieceTokenizer

    vocabulary = {piece: number for number, piece in enumerate(pieces(pad_id))}
    BertWordPieceTokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_recipe(folder: Path, pooling: str = "mean", normalize: bool = True, **more: object) -> None:
    """sentence-transformers' files; more: of the pooling's config."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": n, "name": str(n), "path": paths[n], "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    size = json.loads((folder / "config.json").read_text()).get("hidden_size", 32)
    config = {"word_embedding_dimension": size, "pooling_mode": pooling, **more}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


def save_checkpoint(folder: Path, family: str = "bert", sizes: dict | None = None, **recipe: object) -> Path:
    """A model of a family with random weights, 62 positions for tokens and a vocabulary of letters; sizes: of its config."""
    from transformers import AutoModel

    from bertfast.convert.families import FAMILIES

    config = FAMILIES[family].tiny(vocab_size=len(PIECES), max_position_embeddings=64, **(sizes or {}))
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, config.pad_token_id or 0)
    save_recipe(folder, **recipe)  # type: ignore[arg-type]
    return folder
