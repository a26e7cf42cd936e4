"""Sentence vectors of MiniLM's shape by `encode`: tokenizer, sorting by length, batches, pooling and all, in wall-clock time.

sentence-transformers does it where it is installed; elsewhere the same loop stands here, and the line says which. Weights, words
and sentences are made up: a word is a token, and lengths are spread as those of short texts are.
"""

import copy
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.gpu import encoder, measure, results

HIDDEN, LAYERS, HEADS = 384, 6, 12
WORDS = 30_522
SENTENCES, BATCH, LONGEST = 4096, 32, 256  # 32 sentences a batch and 256 tokens are the library's and the model's own
NAME = "MiniLM encode, default sorting"


class Encoder(Protocol):
    def encode(self, sentences: list[str]) -> Any:
        """Vectors [len(sentences), E] on the host, in the order of the sentences."""


class ByHand:
    """What sentence-transformers' `encode` does: longest first, so that a batch has little padding; mean over real tokens."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @torch.inference_mode()
    def encode(self, sentences: list[str]) -> np.ndarray:
        order = np.argsort([-len(text) for text in sentences], kind="stable")
        vectors = []
        for begin in range(0, len(order), BATCH):
            texts = [sentences[index] for index in order[begin : begin + BATCH]]
            inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            inputs = inputs.to(encoder.DEVICE)
            real = inputs["attention_mask"][..., None]
            hidden = self.model(**inputs).last_hidden_state
            vectors.append((hidden * real).sum(1) / real.sum(1))
        ordered = np.empty((len(sentences), HIDDEN), np.float32)
        ordered[order] = torch.cat(vectors).float().cpu().numpy()
        return ordered


class ByLibrary:
    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        # Of a folder without modules of its own the library makes the model and a mean over real tokens.
        self.model = SentenceTransformer(str(folder), device=encoder.DEVICE)

    def encode(self, sentences: list[str]) -> Any:
        return self.model.encode(sentences, batch_size=BATCH, show_progress_bar=False)


def library() -> bool:
    return importlib.util.find_spec("sentence_transformers") is not None


def _words() -> list[str]:
    """Words of two to five syllables, all different, after BERT's special tokens."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    generator, words = np.random.default_rng(7), dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    while len(words) < WORDS:
        words["".join(generator.choice(syllables, generator.integers(2, 6)))] = None
    return list(words)


def texts(count: int, words: list[str]) -> list[str]:
    """Sentences of about 27 words, from 3 to 250."""
    generator = np.random.default_rng(8)
    lengths = np.clip(np.exp(generator.normal(3.1, 0.65, count)), 3, 250).astype(int)
    return [" ".join(generator.choice(words[5:], length)) for length in lengths]


def checkpoint(folder: Path, words: list[str]) -> None:
    """A model of random weights with its tokenizer, as transformers loads them."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(9)
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    BertModel(BertConfig(vocab_size=len(words), intermediate_size=4 * HIDDEN, **sizes)).save_pretrained(folder)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizerFast.from_pretrained(folder, model_max_length=LONGEST).save_pretrained(folder)


def build(folder: Path) -> tuple[Encoder, Encoder]:
    """Stock and the drop-in, of the same weights in bfloat16."""
    import bertfast

    if library():
        stock, fast = ByLibrary(folder), ByLibrary(folder)
        for side in (stock, fast):
            side.model.to(torch.bfloat16)
        bertfast.optimize(fast.model, gpu_kernels=True)
        return stock, fast
    from transformers import AutoTokenizer, BertModel

    model = BertModel.from_pretrained(folder, attn_implementation="sdpa").to(encoder.DEVICE, torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return ByHand(model, tokenizer), ByHand(bertfast.optimize(copy.deepcopy(model), gpu_kernels=True), tokenizer)


def _sizes(sentences: list[str]) -> tuple[int, int, int]:
    """Real tokens and places, padding included, of all batches, and how many batches there are."""
    order = sorted(sentences, key=len, reverse=True)
    lengths = [min(LONGEST, text.count(" ") + 3) for text in order]  # a token a word, one before and one after
    batches = [lengths[begin : begin + BATCH] for begin in range(0, len(lengths), BATCH)]
    return sum(lengths), sum(len(batch) * max(batch) for batch in batches), len(batches)


def run(only: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    if only in NAME and NAME not in done:
        yield line("sentences", measure.WallClock())


def line(stage: str, clock: measure.Clock) -> results.Line:
    """One line: all sentences by both sides in turn."""
    try:
        words = _words()
        sentences = texts(SENTENCES, words)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint(Path(folder), words)
            stock, fast = build(Path(folder))
            thunks = {"bertfast": lambda: fast.encode(sentences), "stock": lambda: stock.encode(sentences)}
            vectors = [side.encode(sentences[: 4 * BATCH]) for side in (fast, stock)]
            real, places, batches = _sizes(sentences)
            own, peers = encoder.timed(thunks, clock, real, batches)
        shape = {"dtype": "bfloat16", "hidden": HIDDEN, "layers": LAYERS, "train": False}
        shape |= {"tokens": places // batches}
        shape |= {"seqlen": places // len(sentences), "padding": 1 - real / places, "batches": batches}
        own["max_error"] = float(np.abs(vectors[0] - vectors[1]).max())  # from stock in the same dtype
        by = "sentence-transformers" if library() else "the same loop by hand"
        facts = {"by": by, "sentences": len(sentences), "clock": "wall", "clocks": results.clocks()}
        return results.line(stage, NAME, ok="error" not in own, **shape, **facts, peers=peers, **own)
    except Exception as problem:
        return results.line(stage, NAME, ok=False, error=measure.explain(problem))
