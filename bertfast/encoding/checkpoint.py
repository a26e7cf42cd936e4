"""A checkpoint in the Hugging Face format: its folder, its JSON files, its model and how many tokens that takes."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from bertfast.data.files import missing_extra

FILES = (
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*/config.json",
    "*/model.safetensors",
)  # of a checkpoint, that are read
ELSEWHERE = "use sentence-transformers for this checkpoint, with bertfast.optimize on it"


class RecipeError(ValueError):
    """A checkpoint's files, or an option about them, do not say how to make embeddings; the message names file and way out."""


def read_json(path: Path, kind: type) -> Any:
    """What a file holds; None where there is none. RecipeError where it is damaged, or is no `kind` (dict or list)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read ({error}): copy the checkpoint again") from None
    if not isinstance(content, kind):
        raise RecipeError(
            f"{path} holds {type(content).__name__} instead of {kind.__name__}: copy the checkpoint again"
        )
    return content


def find(model: str | Path) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is a name and not here yet.

    Raises:
        RecipeError: there is none.
        ImportError: it is a name, and huggingface_hub is not installed.
    """
    folder = Path(model)
    if folder.is_dir():
        if not ((folder / "config.json").is_file() or (folder / "modules.json").is_file()):
            raise RecipeError(f"{folder} has no config.json: name a checkpoint in the Hugging Face format")
        return folder
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise missing_extra(error, "hf", "encoding") from None
    try:
        return Path(snapshot_download(str(model), allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # a name that is none, no network, no such repository
        reason = str(error).splitlines()[0]
        owner = "" if "/" in str(model) else ", or a model with its owner, as sentence-transformers/all-MiniLM-L6-v2"
        raise RecipeError(
            f"{model} is not a folder, and the hub has no such model or cannot be reached ({reason}): name a folder{owner}"
        ) from None


def load(folder: Path, device: torch.device, precision: str) -> Any:
    """The base model of a checkpoint, optimised where its family is known.

    Raises:
        RecipeError: transformers cannot load it, weights are missing, which it would fill with random numbers, or it has a decoder
            beside its encoder.
        ValueError: as `bertfast.optimize`.
        ImportError: transformers is not installed.
    """
    try:
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError as error:
        raise missing_extra(error, "hf", "encoding") from None
    from bertfast.convert import UnsupportedModelError, optimize

    if (read_json(folder / "config.json", dict) or {}).get("is_encoder_decoder"):
        raise RecipeError(
            f"{folder} is an encoder with a decoder, and no encoder is taken out of one here: {ELSEWHERE}"
        )
    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        kind = torch.float32 if precision == "int8" else getattr(torch, precision)
        model, info = AutoModel.from_pretrained(folder, local_files_only=True, dtype=kind, output_loading_info=True)
    except Exception as error:  # transformers raises many kinds
        raise RecipeError(f"transformers cannot load {folder}: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    lacking = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise RecipeError(f"{folder} has no weights for {lacking[0]}{more}: copy the checkpoint again")
    model = model.eval().to(device)
    try:
        return optimize(model, dtype="int8" if precision == "int8" else None)
    except UnsupportedModelError as error:
        warnings.warn(f"{folder} runs as it is, not faster: {error}", stacklevel=3)
        return model


def positions(model: Any) -> int:
    """How many tokens a text may have. Where the padding has a position of its own, tokens are counted from behind it."""
    most = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    offset = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    return most - (0 if offset is None else offset + 1)
