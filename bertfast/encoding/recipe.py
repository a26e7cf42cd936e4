"""How a checkpoint makes a text's embedding of its tokens' hidden states: what its sentence-transformers files say, as data.

modules.json lists a Transformer, a Pooling and perhaps a Normalize; each has a folder with its settings. What is not among them
(Dense, LSTM, ...) is refused, since leaving it out would give other embeddings without a word.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

POOLINGS = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class RecipeError(ValueError):
    """A checkpoint's files, or an option about them, do not say how to make embeddings; the message names file and way out."""


@dataclass(frozen=True)
class Recipe:
    """From hidden states to an embedding.

    Attributes:
        pooling: one or more of `POOLINGS`; the results of several stand one after another.
        normalize: whether embeddings are divided by their length.
        max_length: most tokens of a text, special ones included; None for what tokenizer and model take.
        lower_case: whether texts are put into small letters before they are tokenized.
        prompts: texts to be put before every text, by name.
        prompt_name: of the prompt that is used where none is asked for.
        include_prompt: whether the prompt's tokens are pooled too.
        stated: whether the checkpoint says so itself. Where it does not, pooling is the mean, as in sentence-transformers.
    """

    pooling: tuple[str, ...] = ("mean",)
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    prompt_name: str | None = None
    include_prompt: bool = True
    stated: bool = False

    def __post_init__(self) -> None:
        for mode in self.pooling:
            if mode not in POOLINGS:
                raise RecipeError(f"pooling {mode!r} is unknown; it is one of {', '.join(POOLINGS)}")

    @classmethod
    def read(cls, folder: Path) -> "Recipe":
        """Of a checkpoint's folder.

        Raises:
            RecipeError: a file is damaged, or names a module, a pooling or a setting that is not known here.
        """
        modules = _json(folder / "modules.json", list)
        if modules is None:
            return cls(**_prompts(folder))
        kinds = _kinds(folder, modules)
        first = folder / modules[0].get("path", "") / "sentence_bert_config.json"
        transformer = _json(first, dict) or {}
        pooling: dict[str, Any] = {}
        for kind, module in zip(kinds[1:], modules[1:], strict=True):
            if kind == "Pooling":
                pooling = _pooling(folder / module["path"] / "config.json")
        length = transformer.get("max_seq_length")
        if length is not None and (type(length) is not int or length < 1):
            raise RecipeError(f"{first}: max_seq_length is {length!r}, and a number of tokens is read: fix it")
        return cls(
            **pooling,
            normalize="Normalize" in kinds,
            max_length=length,
            lower_case=bool(transformer.get("do_lower_case", False)),
            stated=True,
            **_prompts(folder),
        )

    def changed(
        self, pooling: str | Sequence[str] | None = None, normalize: bool | None = None, max_length: int | None = None
    ) -> "Recipe":
        """The same with what a caller asks for in place of the checkpoint's."""
        given: dict[str, Any] = {}
        if pooling is not None:
            given["pooling"] = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        if normalize is not None:
            given["normalize"] = normalize
        if max_length is not None:
            given["max_length"] = max_length
        return replace(self, **given)

    def prompt(self, name: str | None = None, text: str | None = None) -> str:
        """What stands before every text: `text` where given, else the prompt of that name, else the checkpoint's own default.

        Raises:
            RecipeError: there is no such prompt.
        """
        if text is not None:
            return text
        name = self.prompt_name if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            if not self.prompts:
                raise RecipeError(f"the checkpoint has no prompts, and {name!r} is asked for; use --prompt TEXT")
            there = ", ".join(self.prompts)
            raise RecipeError(
                f"the checkpoint has no prompt {name!r}; it has {there}: choose one, or use --prompt TEXT"
            )
        return self.prompts[name]


def _json(path: Path, kind: type) -> Any:
    """What a file holds; None where there is none. RecipeError where it is damaged."""
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


def _kinds(folder: Path, modules: list[Any]) -> list[str]:
    """The class names of the modules, checked: a Transformer, one Pooling, then perhaps a Normalize."""
    where = folder / "modules.json"
    if not all(isinstance(module, dict) and isinstance(module.get("type"), str) for module in modules):
        raise RecipeError(f"{where}: not every module has a type; copy the checkpoint again")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds[:1] != ["Transformer"] or "Pooling" not in kinds:
        raise RecipeError(
            f"{where}: its modules are {', '.join(kinds) or 'none'}; a Transformer with a Pooling after it is read"
        )
    for kind in kinds[1:]:
        if kind not in ("Pooling", "Normalize") or kinds.count(kind) > 1 or kinds[1] != "Pooling":
            raise RecipeError(
                f"{where}: its modules are {', '.join(kinds)}, and Transformer, Pooling, Normalize is all that is computed "
                "here; use sentence-transformers for this checkpoint, with bertfast.optimize on it"
            )
    return kinds


def _pooling(path: Path) -> dict[str, Any]:
    config = _json(path, dict)
    if config is None:
        raise RecipeError(f"{path} is missing, and modules.json names it: copy the checkpoint again")
    modes = config.get("pooling_mode")
    if modes is None:
        # In the order of sentence-transformers, which is that of the results; mean where none is set, as there.
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    unknown = [mode for mode in modes if mode not in POOLINGS]
    if unknown:
        raise RecipeError(f"{path}: its pooling is {unknown[0]!r}, and {', '.join(POOLINGS)} are known")
    return {"pooling": tuple(modes), "include_prompt": bool(config.get("include_prompt", True))}


def _prompts(folder: Path) -> dict[str, Any]:
    path = folder / "config_sentence_transformers.json"
    config = _json(path, dict) or {}
    prompts, name = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise RecipeError(f"{path}: its prompts are not texts by name: fix the file")
    if name is not None and name not in prompts:
        raise RecipeError(
            f"{path}: default_prompt_name is {name!r}, and its prompts are {', '.join(prompts) or 'none'}"
        )
    return {"prompts": prompts, "prompt_name": name}
