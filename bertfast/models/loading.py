"""from_pretrained: weights in safetensors, one file or shards, of any BERT head or none, into any of our models.

Keys go through one form, with older names and without the prefix "bert.". Nothing is ever unpickled.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bertfast.models.files import safetensors

if TYPE_CHECKING:
    from bertfast.models.bert import BertPreTrainedModel

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PREFIX = "bert."
_ENCODER = ("embeddings.", "encoder.")
CLASSIFIERS = ("classifier.", "qa_outputs.")
_HEADS = ("cls.", *CLASSIFIERS, "pooler.")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
_WORDS = "embeddings.word_embeddings.weight"
# The decoder's parameters, which older checkpoints store as well, and what each is tied to.
_TIED = {"cls.predictions.decoder.weight": _WORDS, "cls.predictions.decoder.bias": "cls.predictions.bias"}
_OLDER = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class WeightsError(ValueError):
    """Stored weights that are damaged, absent, or not those of the model."""


class NewWeightsWarning(UserWarning):
    """Weights that a checkpoint has not, or has in another shape, were initialised. `names`: of these parameters."""

    def __init__(self, folder: Path, names: list[str], replaced: bool) -> None:
        what = "weights of another shape" if replaced else "no weights"
        super().__init__(f"{folder} has {what} for {', '.join(names)}: they were initialised; train them before use")
        self.names, self.replaced = names, replaced


def _plain(key: str) -> str:
    """The one form of a stored key."""
    for older, newer in _OLDER.items():
        if key.endswith(older):
            key = key.removesuffix(older) + newer
    return key.removeprefix(PREFIX)


def _files(folder: Path) -> list[Path]:
    """The files that hold the weights.

    Raises:
        FileNotFoundError, WeightsError: where there are none that can be read.
    """
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    index = folder / INDEX_NAME
    if not index.is_file():
        if any(folder.glob("*.bin")):
            raise WeightsError(
                f"{folder} has its weights as pickle alone (*.bin), which can run any code when loaded and which bertfast "
                "never opens. If you trust it, convert it once: transformers.AutoModelForPreTraining.from_pretrained(folder)"
                ".save_pretrained(new_folder)"
            )
        raise FileNotFoundError(f"{folder} has neither {WEIGHTS_NAME} nor {INDEX_NAME}")
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index} is not an index of shards, which has the file of each weight in its weight_map; fetch it again"
        ) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise WeightsError(f"{index} names {name!r}, which is not a file beside it")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing, though {INDEX_NAME} names it; fetch it again")
    return [folder / name for name in sorted(names)]


def _read(files: list[Path]) -> dict[str, tuple[Tensor, str, Path]]:
    """Plain key to the tensor, its key as stored and its file."""
    library = safetensors()
    found: dict[str, tuple[Tensor, str, Path]] = {}
    for path in files:
        try:
            with library.safe_open(path, framework="pt") as stored:
                for key in stored.keys():  # noqa: SIM118 - it is no dict
                    plain = _plain(key)
                    if plain in _BUFFERS:
                        continue
                    if plain in found:
                        raise WeightsError(f"{path}: {key!r} and {found[plain][1]!r} are the same weight twice")
                    found[plain] = stored.get_tensor(key), key, path
        except (library.SafetensorError, OSError) as error:
            raise WeightsError(f"{path} cannot be read, it may be cut short: {error}; fetch it again") from error
    return found


def _untie(found: dict[str, tuple[Tensor, str, Path]]) -> None:
    """Take out the decoder's parameters, which are others under a second name."""
    for key, source in _TIED.items():
        if key not in found:
            continue
        stored = found.pop(key)
        if source not in found:
            found[source] = stored
        elif not torch.equal(stored[0], found[source][0]):
            raise WeightsError(
                f"{stored[2]}: {stored[1]!r} differs from {found[source][1]!r}, but bertfast's masked-LM head has one parameter "
                "for both; use transformers for this model, or leave the key out if the head is not needed"
            )


def _check_shape(name: str, parameter: Tensor, stored: tuple[Tensor, str, Path]) -> None:
    tensor, key, path = stored
    if not tensor.is_floating_point():
        raise WeightsError(
            f"{path}: {key!r} is of {tensor.dtype}, and weights are floating-point numbers: a quantised checkpoint is not "
            "supported, take the one that it was made from"
        )
    if tensor.shape != parameter.shape:
        raise WeightsError(
            f"{path}: {key!r} has shape {tuple(tensor.shape)} where {name!r} of the model has {tuple(parameter.shape)}: "
            "config.json, or the options given in its place, describe another model; for a head with other labels give "
            "replace_head=True, which initialises it from scratch"
        )


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name, as it is stored, to shape of a folder's weights. Raises as `load`."""
    library = safetensors()
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _files(folder):
        try:
            with library.safe_open(path, framework="pt") as stored:
                shapes |= {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118 - it is no dict
        except (library.SafetensorError, OSError) as error:
            raise WeightsError(f"{path} cannot be read, it may be cut short: {error}; fetch it again") from error
    return shapes


def _arrange_head(found: dict[str, tuple[Tensor, str, Path]], rows: Sequence[int]) -> None:
    """Take these outputs of a stored classifier in this order; none of them for no rows."""
    for plain in [plain for plain in found if plain.startswith(CLASSIFIERS)]:
        tensor, key, path = found.pop(plain)
        if not rows:
            continue
        if max(rows) >= tensor.shape[0]:
            raise WeightsError(f"{path}: {key!r} has {tensor.shape[0]} outputs, and output {max(rows)} is asked for")
        found[plain] = tensor[list(rows)], key, path


def load(
    model: "BertPreTrainedModel",
    folder: Path,
    dtype: torch.dtype | None,
    replace_head: bool = False,
    head_rows: Sequence[int] | None = None,
) -> None:
    """Fill a model on the meta device from `folder`; as `BertPreTrainedModel.from_pretrained`."""
    from bertfast.models.bert import initialise

    files = _files(folder)
    found = _read(files)
    _untie(found)
    if head_rows is not None:
        _arrange_head(found, head_rows)
    wanted = {_plain(name): (name, parameter) for name, parameter in model.named_parameters()}
    replaced = [plain for plain in wanted if replace_head and _is_other_head(plain, found, wanted[plain][1])]
    for plain in replaced:
        del found[plain]
    missing = [plain for plain in wanted if plain not in found]
    lacking = [plain for plain in missing if plain.startswith(_ENCODER)]
    if lacking:
        name, parameter = wanted[lacking[0]]
        where = files[0] if len(files) == 1 else folder
        raise WeightsError(
            f"{where} lacks {name!r} of shape {tuple(parameter.shape)}"
            f"{f' and {len(lacking) - 1} more weights of the encoder' if len(lacking) > 1 else ''}: it is no BERT checkpoint, or "
            f"config.json describes another one; it begins with the keys {sorted(found)[:3]}"
        )
    stored_dtype = found[_WORDS][0].dtype if dtype is None else dtype
    state = {}
    for plain, (name, parameter) in wanted.items():
        if plain in found:
            _check_shape(name, parameter, found[plain])
            # A copy: what safetensors gives may be the file itself, mapped, and a file can be cut short under it.
            state[name] = found[plain][0].to(stored_dtype, copy=True)
        else:
            state[name] = torch.empty(parameter.shape, dtype=stored_dtype)
    model.load_state_dict(state, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    _initialise_missing(model, {wanted[plain][0] for plain in missing}, folder, initialise)
    _warn(folder, [wanted[plain][0] for plain in missing], bool(replaced), [k for k in found if k not in wanted])


def _is_other_head(plain: str, found: dict[str, tuple[Tensor, str, Path]], parameter: Tensor) -> bool:
    return plain.startswith(_HEADS) and plain in found and found[plain][0].shape != parameter.shape


def _initialise_missing(model: "BertPreTrainedModel", names: set[str], folder: Path, initialise: Any) -> None:
    for prefix, part in model.named_modules():
        own = {f"{prefix}.{name}" for name, _ in part.named_parameters(recurse=False)}
        if not own & names:
            continue
        if not own <= names:
            raise WeightsError(
                f"{folder} has only a part of {prefix!r}: it lacks {sorted(own & names)}; fetch it again, or remove the rest"
            )
        initialise(_alone(part), model.config.initializer_range)


def _alone(part: nn.Module) -> nn.Module:
    """The module without its children."""
    if not part._modules:
        return part
    single = nn.Module()
    single._parameters = part._parameters
    return single


def _warn(folder: Path, missing: list[str], replaced: bool, unused: list[str]) -> None:
    strange = sorted(key for key in unused if not key.startswith(_HEADS))
    if missing:
        warnings.warn(NewWeightsWarning(folder, missing, replaced), stacklevel=4)
    if strange:
        shown = ", ".join(strange[:5]) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
        warnings.warn(f"{folder} has weights that this model does not use: {shown}", stacklevel=4)
