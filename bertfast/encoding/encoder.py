"""A checkpoint as one object that turns texts into embeddings: tokenizer, optimised model, pooling and what comes after it."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertfast.data.packing import of_like_length
from bertfast.data.sources import hash_file
from bertfast.encoding.after_pooling import FEWEST_ROWS_OF_EQUAL_SUMS, AfterPooling
from bertfast.encoding.checkpoint import FILES, RecipeError, check_positive, find, load, not_loaded, positions
from bertfast.encoding.pooling import SINGLE, place, pool
from bertfast.encoding.recipe import Recipe
from bertfast.encoding.tokens import TextTokenizer, Tokenized, padded
from bertfast.tasks.device import choose
from bertfast.tasks.lines import described

Precision = Literal["float32", "bfloat16", "float16", "int8"]
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
DTYPES = ("float32", "float16")  # of embeddings
_BUDGETS = {"cpu": 4096, "cuda": 32768}  # tokens of a batch


class Encoder:
    """Texts to embeddings by a checkpoint in the Hugging Face format, as its sentence-transformers files say.

    The model runs with `bertfast.optimize`; one of a family that this does not know runs as it is, with a warning.

    On a CPU that has our kernels (AVX2 or newer, and for bfloat16 no AMX) the bits of a text's embedding depend on neither the
    other texts, nor their order, nor `token_budget`, nor the number of threads, as long as the model's layers run at once
    (`bertfast.report(encoder.model)`). Elsewhere, as on a GPU, the last places may differ.

    Args:
        model: folder of the checkpoint, or its name on the Hugging Face hub.
        device: "auto" (a GPU where there is one), "cpu", "cuda", or a torch.device.
        precision: what the model computes in: "float32", "bfloat16", "float16" (on a GPU), "int8" (on a CPU; not the same numbers
            any more). Pooling and what comes after it are float32.
        pooling: "mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", or several in a list or with
            commas; the checkpoint's where None.
        normalize: whether embeddings are divided by their Euclidean length, in place of what the checkpoint says.
        truncate_dim: how many numbers of an embedding are kept, the first ones, in place of what the checkpoint says; they are of
            length 1 only where `normalize` is True, as in sentence-transformers.
        max_length: most tokens of a text, special ones included, in place of the checkpoint's; longer texts are cut.
        prompt_name: of the checkpoint's prompts, the one to put before every text; its own default where None. "query" and
            "document" are always there, empty where the checkpoint has none of these names.
        prompt: a text to put before every text, in place of a named one; "" for none.
        token_budget: most tokens of a batch, padding included; 4,096 on a CPU and 32,768 on a GPU where None.

    Attributes:
        recipe: pooling, the modules after it, normalisation and lengths as they are used.
        model: the `transformers` model, optimised.
        dimension: E, numbers of an embedding.
        truncated: how many texts were cut so far.

    Raises:
        RecipeError: the checkpoint cannot be loaded, or a file of it or an option about it does not say how to make embeddings.
        DeviceError: there is no such device.
        ValueError: this processor has no int8 kernels.
        ImportError: transformers is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "float32",
        pooling: str | Sequence[str] | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        token_budget: int | None = None,
    ) -> None:
        self.device = choose(device)
        if precision not in PRECISIONS:
            raise RecipeError(f"precision {precision!r} is unknown; it is one of {', '.join(PRECISIONS)}")
        if (precision, self.device.type) in (("int8", "cuda"), ("float16", "cpu")):
            raise RecipeError(f"precision {precision} is not for {self.device.type}: choose bfloat16 or float32")
        check_positive("token_budget", token_budget)
        self.folder = find(model)
        self.recipe = Recipe.read(self.folder).changed(pooling, normalize, max_length, truncate_dim)
        self.prompt = self.recipe.prompt(prompt_name, prompt)
        self.precision, self.truncated = precision, 0
        self.model = load(self.folder / self.recipe.path, self.device, precision)
        self.token_budget = token_budget or _BUDGETS.get(self.device.type, 4096)
        self.tokenizer = self._tokenizer(max_length)
        pooled = self.model.config.hidden_size * len(self.recipe.pooling)
        after = AfterPooling(self.recipe.modules, self.recipe.truncate_dim, self.recipe.normalize, pooled)
        self._after, self.dimension = after.to(self.device), after.size
        skips = self.prompt and not self.recipe.include_prompt
        self._skip = self.tokenizer.of_prompt(self.prompt) if skips else 0

    def encode(self, texts: Sequence[str], dtype: str = "float32") -> NDArray[Any]:
        """The embeddings [N, E] of N texts, in their order; dtype: "float32" or "float16" of the result.

        Raises:
            TypeError: `texts` is one text, whose letters would be taken for texts, or one of them is no text.
            ValueError: another dtype.
        """
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts, got one text: put it into a list")
        _check_dtype(dtype)
        return self.encode_tokens(self.tokenize(texts), dtype)

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """What `encode_tokens` takes. May run in another thread beside that.

        Raises:
            TypeError: one of the texts is no text.
        """
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {number} is {described(text)}, and text is encoded")
        tokenized = self.tokenizer([self.prompt + text for text in texts] if self.prompt else texts)
        self.truncated += tokenized.truncated
        return tokenized

    def encode_tokens(
        self, tokenized: Tokenized, dtype: str = "float32", done: Callable[[int, int], None] | None = None
    ) -> NDArray[Any]:
        """The embeddings [N, E] of N tokenized texts, in their order.

        Args:
            dtype: "float32" or "float16" of the result.
            done: told after each batch how many texts and tokens it had.

        Raises:
            ValueError: another dtype.
        """
        _check_dtype(dtype)
        embeddings = np.empty((len(tokenized.ids), self.dimension), dtype)
        waiting: tuple[NDArray[np.int64], Tensor] | None = None
        for indices, ids, lengths in self.batches(tokenized):
            pooled = self.embed(ids, lengths)[: len(indices)]
            if waiting is not None:  # a GPU has the next batch to work on while the last one's result is fetched
                embeddings[waiting[0]] = waiting[1].cpu().numpy()
            waiting = indices, pooled
            if done is not None:
                done(len(indices), int(lengths[: len(indices)].sum()))
        if waiting is not None:
            embeddings[waiting[0]] = waiting[1].cpu().numpy()
        return embeddings

    def batches(self, tokenized: Tokenized) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """(indices of the texts, ids [B, S] int64, lengths [B] int64) of like length, longest first. The last may be filled up."""
        for indices in of_like_length(tokenized.lengths, self.token_budget):
            chosen = [tokenized.ids[i] for i in indices]
            while sum(map(len, chosen)) < FEWEST_ROWS_OF_EQUAL_SUMS:  # a row a token
                chosen.append(chosen[-1])
            lengths = torch.tensor([len(ids) for ids in chosen])
            yield indices, torch.from_numpy(padded(chosen, self.tokenizer.pad_id)), lengths

    @torch.inference_mode()
    def embed(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """[B, E] float32 on the model's device, of ids [B, S], padded behind the first `lengths` [B]; int64 on a CPU."""
        with self._told_what_is_read(ids, lengths):
            hidden = self.hidden(ids, lengths)
        return self._after(pool(hidden, lengths, self.recipe.pooling, self._skip))

    @torch.inference_mode()
    def hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The last hidden state [B, S, E] of the same arguments: what the model alone does."""
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        here = ids.to(self.device, non_blocking=True)
        return self.model(input_ids=here, attention_mask=mask.to(self.device, torch.int64)).last_hidden_state

    def _told_what_is_read(self, ids: Tensor, lengths: Tensor) -> AbstractContextManager[Any]:
        """Where one token of each text is pooled, the last layer need make no other: most of its work is spared."""
        from bertfast.convert import families, handover
        from bertfast.convert.first_token_heads import only_reader

        family = families.of_instance(self.model)
        if (
            not set(self.recipe.pooling) <= set(SINGLE)
            or self.device.type != "cpu"  # a captured call is of fixed rows
            or len(lengths) < FEWEST_ROWS_OF_EQUAL_SUMS  # a row a text, behind the attention
            or family is None
            or not only_reader(self.model, family)
        ):
            return nullcontext()
        read = torch.zeros(ids.shape, dtype=torch.bool)
        for mode in self.recipe.pooling:
            read[torch.arange(len(lengths)), place(mode, lengths, self._skip)] = True
        return handover.offered(handover.Handover(family.encoder_of(self.model), self.model.embeddings, read))

    def fingerprint(self) -> str:
        """SHA-256 of the checkpoint's files: weights, configuration, tokenizer, recipe."""
        digest = hashlib.sha256()
        folders = {self.folder, self.folder / self.recipe.path}
        for path in sorted({path for folder in folders for pattern in FILES for path in folder.glob(pattern)}):
            digest.update(path.relative_to(self.folder).as_posix().encode() + bytes.fromhex(hash_file(path)))
        return digest.hexdigest()

    def _tokenizer(self, asked: int | None) -> TextTokenizer:
        from transformers import AutoTokenizer

        folder = self.folder / self.recipe.path
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # as of the model
            raise not_loaded(f"the tokenizer of {folder}", error) from error
        most = positions(self.model)
        length = min(self.recipe.max_length or tokenizer.model_max_length, most) if asked is None else asked
        if length > most:
            raise RecipeError(f"max_length is {length}, and {folder} has {most} positions: lower it")
        special = tokenizer.num_special_tokens_to_add()
        if length <= special:
            raise RecipeError(f"max_length is {length}, and {special} of these are special tokens: raise it")
        try:
            return TextTokenizer(tokenizer, length, self.recipe.lower_case)
        except ValueError as error:
            raise RecipeError(f"{folder}: {error}") from None


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one that embeddings are given in: choose {' or '.join(DTYPES)}")
