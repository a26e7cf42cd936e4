"""How a checkpoint makes a text's embedding of its tokens' hidden states: what its sentence-transformers files say, as data.

modules.json lists a Transformer, a Pooling, and what comes after it (`after_pooling`); each has a file with its settings. A module
or a setting that is not computed here (LSTM, Router, another output of the model, ...) is refused, since leaving it out would give
other embeddings without a word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from bertfast.encoding import after_pooling
from bertfast.encoding.after_pooling import Module, Normalize
from bertfast.encoding.checkpoint import ELSEWHERE, RecipeError, check_positive, read_json

POOLINGS = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_AFTER = ("Dense", "LayerNorm", "Dropout", "Normalize")  # kinds of modules that may follow the pooling
_LIBRARY = "sentence_transformers."
# Of the Transformer, the first that is there. Old checkpoints name it after their model.
_TRANSFORMER_FILES = tuple(
    f"sentence_{model}_config.json"
    for model in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# The one value of each that is computed here, besides null and {}.
_PLAIN = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
# For speed alone, or read by a call with a task, which `encode` by itself is not.
_UNREAD = ("unpad_inputs", "query_length", "document_length", "query_expansion")
_LOADING = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
_HARMLESS = {"trust_remote_code", "attn_implementation", "dtype", "torch_dtype", "low_cpu_mem_usage", "use_safetensors"}
_ALWAYS_THERE = ("query", "document")  # prompts that sentence-transformers takes for empty where a checkpoint has none


@dataclass(frozen=True)
class Recipe:
    """From hidden states to an embedding.

    Attributes:
        pooling: one or more of `POOLINGS`; the results of several stand one after another.
        modules: what pooled vectors go through, in this order.
        truncate_dim: how many numbers of an embedding are kept, the first ones; all where None.
        normalize: whether what is kept is divided by its length.
        max_length: most tokens of a text, special ones included; None for what tokenizer and model take.
        lower_case: whether texts are put into small letters before they are tokenized.
        prompts: texts to be put before every text, by name.
        prompt_name: of the prompt that is used where none is asked for.
        include_prompt: whether the prompt's tokens are pooled too.
        path: folder of the model and its tokenizer inside the checkpoint's; "" for the checkpoint's own.
        stated: whether the checkpoint says so itself. Where it does not, pooling is the mean, or for a causal language model the
            last token, as in sentence-transformers.
    """

    pooling: tuple[str, ...] = ("mean",)
    modules: tuple[Module, ...] = ()
    truncate_dim: int | None = None
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    prompt_name: str | None = None
    include_prompt: bool = True
    path: str = ""
    stated: bool = False

    def __post_init__(self) -> None:
        if not self.pooling:
            raise RecipeError(f"pooling names none; it is one or more of {', '.join(POOLINGS)}")
        for mode in self.pooling:
            if mode not in POOLINGS:
                raise RecipeError(f"pooling {mode!r} is unknown; it is one of {', '.join(POOLINGS)}")

    @classmethod
    def read(cls, folder: Path) -> "Recipe":
        """Of a checkpoint's folder.

        Raises:
            RecipeError: a file is damaged, or names a module, a pooling or a setting that is not known here.
        """
        listed = read_json(folder / "modules.json", list)
        if listed is None:
            return cls(pooling=("lasttoken",) if _is_causal(folder) else ("mean",))
        (_, path), (_, pooling), *rest = _modules(folder, listed)
        recipe = cls(
            modules=tuple(module for kind, place in rest for module in after_pooling.read(kind, folder / place)),
            path=path,
            stated=True,
            **_pooling(folder / pooling / "config.json"),
            **_transformer(folder / path),
            **_settings(folder),
        )
        if recipe.truncate_dim is None and recipe.modules[-1:] == (Normalize(),):
            return replace(recipe, modules=recipe.modules[:-1], normalize=True)
        return recipe

    def changed(
        self,
        pooling: str | Sequence[str] | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
    ) -> "Recipe":
        """The same with what a caller asks for; None leaves the checkpoint's.

        Args:
            pooling: one of `POOLINGS`, or several in a sequence or with commas.
            normalize: whether embeddings are divided by their length.
            max_length: most tokens of a text.
            truncate_dim: how many numbers of an embedding are kept. As in sentence-transformers, these are of length 1 only where
                `normalize` is True.

        Raises:
            RecipeError: a pooling is unknown, or another value is not of its type or not positive.
        """
        check_positive("max_length", max_length)
        check_positive("truncate_dim", truncate_dim)
        if not isinstance(normalize, bool | None):
            raise RecipeError(f"normalize must be True, False or None, got {normalize!r}")
        given: dict[str, Any] = {}
        if pooling is not None:
            if not isinstance(pooling, Sequence):
                raise RecipeError(f"pooling must be text or a list, got {pooling!r}")
            modes = pooling.split(",") if isinstance(pooling, str) else pooling
            given["pooling"] = tuple(mode.strip() if isinstance(mode, str) else mode for mode in modes)
        if max_length is not None:
            given["max_length"] = int(max_length)
        if truncate_dim is not None:
            given["truncate_dim"] = int(truncate_dim)
            if self.normalize:
                given |= {"modules": (*self.modules, Normalize()), "normalize": False}
        if normalize is not None:
            given["normalize"] = normalize
            modules = self.modules
            while modules[-1:] == (Normalize(),):
                modules = modules[:-1]
            given["modules"] = modules
        return replace(self, **given)

    def prompt(self, name: str | None = None, text: str | None = None) -> str:
        """What stands before every text: `text` where given, else the prompt of that name, else the checkpoint's own default.

        Raises:
            RecipeError: there is no such prompt, both are given, or `text` is none.
        """
        if text is not None:
            if name is not None:
                raise RecipeError("prompt_name and prompt are both given, and one prompt is used: leave one out")
            if not isinstance(text, str):
                raise RecipeError(f"prompt must be text, got {text!r}")
            return text
        name = self.prompt_name if name is None else name
        if name is None:
            return ""
        prompts = {**dict.fromkeys(_ALWAYS_THERE, ""), **self.prompts}
        if name not in prompts:
            raise RecipeError(
                f"the checkpoint has no prompt {name!r}; there are {', '.join(prompts)}: choose one, or give the text itself "
                "(prompt=, --prompt)"
            )
        return prompts[name]


def _modules(folder: Path, listed: list[Any]) -> list[tuple[str, str]]:
    """(class name, folder) of the modules, checked: a Transformer, a Pooling, then any of `_AFTER`."""
    where = folder / "modules.json"
    if not all(isinstance(module, dict) and isinstance(module.get("type"), str) for module in listed):
        raise RecipeError(f"{where}: not every module has a type; copy the checkpoint again")
    types = [module["type"] for module in listed]
    kinds = [each.rpartition(".")[2] for each in types]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise RecipeError(
            f"{where}: its modules are {', '.join(kinds) or 'none'}; a Transformer and then a Pooling are read: {ELSEWHERE}"
        )
    for each in types:
        if not each.startswith(_LIBRARY):
            raise RecipeError(f"{where}: {each} is no module of sentence-transformers' own: {ELSEWHERE}")
    if not set(kinds[2:]) <= set(_AFTER):
        raise RecipeError(
            f"{where}: its modules are {', '.join(kinds)}, and after Transformer and Pooling only {', '.join(_AFTER)} are computed "
            f"here: {ELSEWHERE}"
        )
    paths = [module.get("path", "") for module in listed]
    for path in paths:
        if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise RecipeError(f"{where}: path {path!r} is not inside the checkpoint: fix the file")
    return list(zip(kinds, paths, strict=True))


def _is_causal(folder: Path) -> bool:
    """Whether a checkpoint without modules is of a causal language model, which sentence-transformers pools by the last token."""
    config = read_json(folder / "config.json", dict) or {}
    architectures = config.get("architectures") or [""]
    return str(architectures[0]).endswith("ForCausalLM") and config.get("is_causal", True)


def _transformer(folder: Path) -> dict[str, Any]:
    path, settings = folder / _TRANSFORMER_FILES[0], dict[str, Any]()
    for name in _TRANSFORMER_FILES:
        if settings := read_json(folder / name, dict) or {}:
            path = folder / name
            break
    length = settings.pop("max_seq_length", None)
    if length is not None and (type(length) is not int or length < 1):
        raise RecipeError(f"{path}: max_seq_length is {length!r}, and a positive integer is expected: fix it")
    lower_case = bool(settings.pop("do_lower_case", False))
    for key, value in settings.items():
        harmless = key in _LOADING and isinstance(value, dict) and set(value) <= _HARMLESS
        if not (key in _UNREAD or harmless or value in (None, {}, _PLAIN.get(key))):
            raise RecipeError(f"{path}: {key} is {value!r}, which is not computed here: {ELSEWHERE}")
    return {"max_length": length, "lower_case": lower_case}


def _pooling(path: Path) -> dict[str, Any]:
    config = read_json(path, dict)
    if config is None:
        raise RecipeError(f"{path} is missing, and modules.json names it: copy the checkpoint again")
    known = {"pooling_mode", "include_prompt", "word_embedding_dimension", "embedding_dimension", *_FLAGS}
    for key, value in config.items():
        if key not in known and value not in (None, False):
            raise RecipeError(f"{path}: {key} is {value!r}, which is not computed here: {ELSEWHERE}")
    modes = config.get("pooling_mode")
    if modes is None:
        # In the order of sentence-transformers, which is that of the results; mean where none is set, as there.
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    unknown = [mode for mode in modes if mode not in POOLINGS]
    if unknown:
        raise RecipeError(f"{path}: its pooling is {unknown[0]!r}, and {', '.join(POOLINGS)} are known")
    return {"pooling": tuple(modes), "include_prompt": bool(config.get("include_prompt", True))}


def _settings(folder: Path) -> dict[str, Any]:
    """Of the whole model: prompts, and how many numbers of an embedding are kept. `similarity_fn_name` says how embeddings are
    compared, not what they are."""
    path = folder / "config_sentence_transformers.json"
    config = read_json(path, dict) or {}
    kind = config.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise RecipeError(
            f"{path}: model_type is {kind!r}, and one embedding for a text is what is made here: {ELSEWHERE}"
        )
    prompts, name, size = config.get("prompts") or {}, config.get("default_prompt_name"), config.get("truncate_dim")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise RecipeError(f"{path}: its prompts are not texts by name: fix the file")
    prompts = {each: text or "" for each, text in prompts.items()}
    if name is not None and name not in (*prompts, *_ALWAYS_THERE):
        raise RecipeError(
            f"{path}: default_prompt_name is {name!r}, and its prompts are {', '.join(prompts) or 'none'}"
        )
    if size is not None and (type(size) is not int or size < 1):
        raise RecipeError(f"{path}: truncate_dim is {size!r}, and a positive integer is expected: fix it")
    return {"prompts": prompts, "prompt_name": name, "truncate_dim": size}
