"""A checkpoint in the Hugging Face format: its folder, its JSON files, its model and how many tokens that takes."""

import json
import os
import warnings
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from bertfast.data.files import missing_extra

# Those of a checkpoint that are read: a run is gone on with only where they are equal.
FILES = (
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.codes",
    "*/config.json",
    "*/model.safetensors",
)
_PATH_HEADS = tuple(f"{head}{separator}" for head in (".", "..", "~") for separator in {"/", os.sep})
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


def check_positive(name: str, value: Any) -> None:
    """RecipeError where an option is neither None nor an integer of 1 or more."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
        raise RecipeError(f"{name} must be a positive integer, got {value!r}")


def without_safetensors(path: Path) -> RecipeError:
    """What is said where the weights `path` are missing, which may be there as pickle; that of the hub is not even fetched."""
    return RecipeError(
        f"{path} is missing. If {path.parent.name} has a pytorch_model.bin: that is a pickle, which may run code and is not read; "
        "SentenceTransformer(MODEL).save_pretrained(FOLDER), of sentence-transformers, writes safetensors: then name FOLDER"
    )


def not_loaded(what: str, error: Exception) -> RecipeError:
    """What is said where transformers raised one of its many kinds of errors, on one line."""
    reason = " ".join(str(error).split())
    return RecipeError(
        f"transformers cannot load {what} ({reason}): install the package that this names, or a newer transformers for a kind of "
        "model that it does not know; else copy the checkpoint again"
    )


def find(model: str | Path) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is a name and not here yet.

    Raises:
        RecipeError: there is none, or it is no checkpoint.
        ImportError: it is a name, and huggingface_hub is not installed.
    """
    folder = Path(model)
    if folder.is_dir():
        if not ((folder / "config.json").is_file() or (folder / "modules.json").is_file()):
            raise RecipeError(f"{folder} has no config.json: name a checkpoint in the Hugging Face format")
        return folder
    if folder.exists():
        raise RecipeError(f"{folder} is a file: name the folder of the checkpoint")
    if folder.is_absolute() or str(model).startswith(_PATH_HEADS):
        raise RecipeError(f"there is no folder {model}: name a checkpoint in the Hugging Face format")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import HFValidationError
    except ImportError as error:
        raise missing_extra(error, "hf", "encoding") from None
    try:
        return Path(snapshot_download(str(model), allow_patterns=list(FILES)))
    except HFValidationError:
        raise RecipeError(
            f"there is no folder {model}, and no model on the hub has such a name: name a folder, or a model with its owner"
        ) from None
    except (OSError, ValueError) as error:  # no network, no such repository
        reason = str(error).splitlines()[0]
        owner = "" if "/" in str(model) else ", or a model with its owner, as sentence-transformers/all-MiniLM-L6-v2"
        raise RecipeError(
            f"{model} is not a folder, and the hub has no such model or cannot be reached ({reason}): name a folder{owner}"
        ) from None


def load(folder: Path, device: torch.device, precision: str) -> Any:
    """The base model of a checkpoint, optimised where its family is known.

    Raises:
        RecipeError: transformers cannot load it, weights are missing, which it would fill with random numbers, or are no
            safetensors; or it has a decoder beside its encoder, or is an adapter.
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
    if (folder / "adapter_config.json").is_file():
        # transformers would load another folder's weights below it, which no fingerprint of this one has.
        raise RecipeError(f"{folder} is an adapter, and the weights below it are elsewhere: {ELSEWHERE}")
    if not any(folder.glob("*.safetensors*")):
        raise without_safetensors(folder / "model.safetensors")
    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        kind = torch.float32 if precision == "int8" else getattr(torch, precision)
        model, info = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=kind, output_loading_info=True
        )
    except Exception as error:
        raise not_loaded(str(folder), error) from error
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
