"""Pre-train a tiny BERT from raw text: vocabulary, corpus, masked words and next sentences, then a word for a mask.

Needs the extra train: python examples/tiny_pretraining.py [STEPS]
"""

import sys
import tempfile
from itertools import permutations
from pathlib import Path

from transformers import AutoModelForMaskedLM

from bertfast.cli import app

ANIMALS = {"cat": ("meow", "fish"), "dog": ("woof", "bones"), "cow": ("moo", "grass"), "bee": ("buzz", "nectar")}


def bertfast(*words: object) -> None:
    """A command, as the shell would run it."""
    print("\n$ bertfast", *words)
    if status := app([str(word) for word in words], standalone_mode=False):
        sys.exit(status)


def main(folder: Path, steps: str) -> None:
    text, vocab, corpus, run = (folder / name for name in ("text.txt", "vocab", "corpus", "run"))
    documents = [
        "".join(sentences)
        for animal, (sound, food) in ANIMALS.items()
        for sentences in permutations(
            (
                f"the {animal} says {sound} .\n",
                f"the {animal} eats {food} .\n",
                f"this {animal} is mine .\n",
                f"my {animal} likes {food} .\n",
            )
        )
    ]
    text.write_text("\n".join(documents))  # a sentence a line, a blank line between documents

    bertfast("data", "vocab", text, "--size", 100, "--workers", 1, "--out", vocab)
    bertfast("data", "build", text, "--tokenizer", vocab, "--workers", 1, "--out", corpus)
    bertfast("data", "show", corpus, "--masked", "--sequences", 1)
    sizes = ["--layers", 2, "--hidden", 64, "--heads", 2, "--max-seq-length", 32, "--token-budget", 512]
    schedule = ["--steps", steps, "--lr", 2e-3, "--warmup-steps", 100, "--log-every", 250, "--set", "model.dropout=0"]
    bertfast("pretrain", corpus, *sizes, *schedule, "--workers", 0, "--out", run)
    bertfast("fill-mask", run / "model", "the dog says [MASK] .", "--top", 3)
    print("transformers loads it as", type(AutoModelForMaskedLM.from_pretrained(run / "model")).__name__)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary), sys.argv[1] if len(sys.argv) > 1 else "1500")
