"""Model folders that are damaged or of another kind, and texts of the command line that no tokenizer reads, as data."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
WORDS = "bert.embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class OddFolder:
    """A change of a good checkpoint's folder, and words of the one line that refuses it.

    said: by the commands that load it as bertfast's own model. stock: by those that load it through transformers; None where they
    read it, or where what is wrong is not what they read.
    """

    name: str
    change: Callable[[Path], Any]
    said: str | None
    stock: str | None = None


def put(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def lose(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def to_folder(name: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def config(**values: Any) -> Callable[[Path], Any]:
    """Other values in config.json; ... takes a key out."""

    def change(folder: Path) -> None:
        kept = json.loads((folder / CONFIG).read_text()) | values
        kept = {name: value for name, value in kept.items() if value is not ...}
        (folder / CONFIG).write_text(json.dumps(kept))

    return change


def weights(alter: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        stored = load_file(folder / WEIGHTS)
        alter(stored)
        save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def other_weights(stored: dict[str, torch.Tensor]) -> None:
    stored.clear()
    stored["a"] = torch.ones(1)


def cut(keep: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])


def index(content: bytes) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / INDEX).write_bytes(content)

    return change


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


CONFIG_ROWS = [
    OddFolder("no folder", shutil.rmtree, "there is no", "there is no folder"),
    OddFolder("no config", lose(CONFIG), "there is no", "has no config.json"),
    OddFolder("config is a folder", to_folder(CONFIG), "there is no", "has no config.json"),
    OddFolder("config is empty", put(CONFIG, b""), "is not JSON", "cannot be read as JSON"),
    OddFolder(
        "config is cut short", put(CONFIG, b'{"model_type": "bert", "hid'), "is not JSON", "cannot be read as JSON"
    ),
    OddFolder("config is zero bytes", put(CONFIG, b"\0" * 512), "is not JSON", "cannot be read as JSON"),
    OddFolder(
        "config in utf-16",
        put(CONFIG, '{"model_type": "bert"}'.encode("utf-16")),
        "is not JSON",
        "cannot be read as JSON",
    ),
    OddFolder("config in latin-1", put(CONFIG, b'{"model_type": "b\xe9rt"}'), "is not JSON", "cannot be read as JSON"),
    OddFolder("config is a list", put(CONFIG, b"[1]"), "not a JSON object", "cannot be read as JSON"),
    OddFolder("config is a number", put(CONFIG, b"3"), "not a JSON object", "cannot be read as JSON"),
    OddFolder("config is null", put(CONFIG, b"null"), "not a JSON object", "cannot be read as JSON"),
    OddFolder("config is text", put(CONFIG, b'"bert"'), "not a JSON object", "cannot be read as JSON"),
    OddFolder("config nested beyond reason", put(CONFIG, b"[" * 100_000), "is not JSON", "cannot be read as JSON"),
    OddFolder("another model", config(model_type="roberta"), "model_type 'roberta'", "has no weights for"),
    OddFolder("a list as model", config(model_type=["bert"]), "model_type ['bert']", "['bert'] model"),
    OddFolder("hidden_size is text", config(hidden_size="8"), "hidden_size must be a positive integer, got '8'", ""),
    OddFolder(
        "hidden_size is a fraction", config(hidden_size=8.5), "hidden_size must be a positive integer, got 8.5", ""
    ),
    OddFolder("hidden_size is 0", config(hidden_size=0), "hidden_size must be a positive integer, got 0", ""),
    OddFolder("hidden_size is true", config(hidden_size=True), "hidden_size must be a positive integer, got True", ""),
    OddFolder("hidden_size is null", config(hidden_size=None), "hidden_size must be a positive integer, got None", ""),
    OddFolder("hidden_size is a list", config(hidden_size=[8]), "hidden_size must be a positive integer, got [8]", ""),
    OddFolder("hidden_size of other weights", config(hidden_size=16), "has shape", ""),
    OddFolder("heads that do not divide", config(num_attention_heads=3), "is not a multiple of", ""),
    OddFolder(
        "layers are negative", config(num_hidden_layers=-1), "num_hidden_layers must be a positive integer", None
    ),
    OddFolder("more layers than weights", config(num_hidden_layers=2), "lacks", "has no weights for encoder.layer.1"),
    OddFolder("a vocabulary beyond reason", config(vocab_size=10**15), "has shape", ""),
    OddFolder("a smaller vocabulary", config(vocab_size=20), "are not of one checkpoint", ""),
    OddFolder("fewer positions", config(max_position_embeddings=60), "has shape", ""),
    OddFolder("unknown activation", config(hidden_act="swish2"), "hidden_act 'swish2'", ""),
    OddFolder("a list as activation", config(hidden_act=["gelu"]), "hidden_act ['gelu']", ""),
    OddFolder(
        "relative positions",
        config(position_embedding_type="relative_key"),
        "position_embedding_type",
        "position_embedding_type",
    ),
    OddFolder("a decoder", config(is_decoder=True), "is_decoder"),
    OddFolder("dropout of 2", config(hidden_dropout_prob=2), "hidden_dropout_prob must be in [0, 1)", ""),
    OddFolder("dropout is text", config(hidden_dropout_prob="0.1"), "hidden_dropout_prob must be in [0, 1)", ""),
    OddFolder("eps is text", config(layer_norm_eps="1e-12"), "layer_norm_eps must be a number", ""),
    OddFolder("padding outside", config(pad_token_id=10**6), "pad_token_id 1000000 is outside", ""),
    OddFolder("padding is text", config(pad_token_id="0"), "pad_token_id must be", ""),
    OddFolder("id2label is a list", config(id2label=["a", "b"]), "id2label must be", ""),
    OddFolder("id2label by name", config(id2label={"a": "x"}), "id2label", ""),
    OddFolder("id2label with a gap", config(id2label={"0": "a", "2": "b"}), "id2label must name labels", None),
    OddFolder("label2id is text", config(id2label=..., label2id="x"), "label2id must be", None),
    OddFolder("num_labels is text", config(num_labels="2"), "num_labels must be a positive integer", ""),
    OddFolder("unknown problem_type", config(problem_type="x"), "problem_type must be one of", None),
]

WEIGHT_ROWS = [
    OddFolder("no weights", lose(WEIGHTS), "has neither", "no .safetensors file"),
    OddFolder("weights are a folder", to_folder(WEIGHTS), "has neither", ""),
    OddFolder("weights are empty", put(WEIGHTS, b""), "cannot be read, it may be cut short", "could not load"),
    OddFolder("weights are a pointer", put(WEIGHTS, b"version https://git-lfs.github.com/spec/v1"), "cannot be", "could not load"),
    OddFolder("weights are zero bytes", put(WEIGHTS, b"\0" * 4096), "cannot be read", "could not load"),
    OddFolder("weights begin with a huge number", put(WEIGHTS, b"\xff" * 64), "cannot be read", "could not load"),
    OddFolder("weights without their end", cut(2000), "cannot be read", "could not load"),
    OddFolder("half of the header", cut(100), "cannot be read", "could not load"),
    OddFolder("weights are pickle", pickled, "pickle", ""),
    OddFolder("index is no JSON", index(b"{"), "is not an index of shards", ""),
    OddFolder("index without a map", index(b"{}"), "is not an index of shards", ""),
    OddFolder("index is a list", index(b"[]"), "is not an index of shards", ""),
    OddFolder("index names another folder", index(b'{"weight_map": {"a": "../x.safetensors"}}'), "not a file beside it", ""),
    OddFolder("index names a number", index(b'{"weight_map": {"a": 3}}'), "not a file beside it", ""),
    OddFolder("index names an absent file", index(b'{"weight_map": {"a": "x.safetensors"}}'), "is missing", ""),
    OddFolder("no word table", weights(lambda stored: stored.pop(WORDS)), "lacks", "has no weights for embeddings.word"),
    OddFolder("a shorter word table", weights(lambda s: s.update({WORDS: s[WORDS][:-1].clone()})), "has shape", ""),
    OddFolder("a word table of integers", weights(lambda s: s.update({WORDS: s[WORDS].int()})), "torch.int32", None),
    OddFolder("weights of another model", weights(other_weights), "", "has no weights for"),
]  # fmt: skip

TOKENIZER_ROWS = [
    OddFolder("no vocabulary", lose("vocab.txt"), "neither vocab.txt nor tokenizer.json"),
    OddFolder("vocabulary is a folder", to_folder("vocab.txt"), "neither vocab.txt nor tokenizer.json"),
    OddFolder("vocabulary is empty", put("vocab.txt", b""), "vocabulary"),
    OddFolder("vocabulary in latin-1", put("vocab.txt", b"caf\xe9\n"), "is not UTF-8"),
    OddFolder("vocabulary of another model", put("vocab.txt", b"a\nb\n"), "[MASK]"),
    OddFolder(
        "a longer vocabulary",
        lambda folder: (folder / "vocab.txt").open("a").write("more\n"),
        "are not of one checkpoint",
    ),
    OddFolder("settings are no JSON", put("tokenizer_config.json", b"{"), "is not JSON"),
    OddFolder("tokenizer.json is no JSON", put("tokenizer.json", b"{"), "tokenizer.json"),
    OddFolder("tokenizer.json of another kind", put("tokenizer.json", b'{"model": {"type": "BPE"}}'), "BPE"),
]

FOLDERS = [*CONFIG_ROWS, *WEIGHT_ROWS, *TOKENIZER_ROWS]


# Texts as Python has them from the command line: a byte that is no UTF-8 is half of a surrogate pair.
TEXTS = {
    "empty": ("", "the text is empty"),
    "white space": (" \t\n", "the text is empty"),
    "ideographic space": ("\u3000", "the text is empty"),
    "latin-1": ("caf\udce9 [MASK]", "bytes that are no UTF-8: 0xe9 at character 3"),
    "half of a surrogate pair": ("a \ud800 [MASK]", "invalid UTF-8"),
    "a zero byte": ("a\0b [MASK]", "NUL character"),
}
