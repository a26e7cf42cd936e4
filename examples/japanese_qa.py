"""Fine-tune a model on Japanese questions and ask it one: commands of docs/japanese_qa.md, in seconds and on made-up text.

Needs the extras train and ja (MeCab): python examples/japanese_qa.py [STEPS]
"""

import json
import random
import sys
import tempfile
from pathlib import Path

from bertfast import models
from bertfast.cli import app

NAMES = ["田中", "鈴木", "佐藤", "高橋", "伊藤", "山本"]
PLACES = ["東京", "京都", "大阪", "札幌", "福岡", "仙台"]
WORK = ["学生", "医者", "先生", "記者"]


def bertfast(*words: object) -> None:
    """A command, as the shell would run it."""
    print("\n$ bertfast", *words)
    if status := app([str(word) for word in words], standalone_mode=False):
        sys.exit(status)


def questions(number: int, draw: random.Random) -> dict:
    """Texts in the shape of SQuAD and JSQuAD: who lives where."""
    paragraphs = []
    for i in range(number):
        name, place, work = draw.choice(NAMES), draw.choice(PLACES), draw.choice(WORK)
        context = f"{name}さんは{work}です。{name}さんは{place}に住んでいます。"
        answers = [{"text": place, "answer_start": context.index(place)}]
        question = {"id": str(i), "question": f"{name}さんはどこに住んでいますか。", "answers": answers}
        paragraphs.append({"context": context, "qas": [question]})
    return {"version": "1", "data": [{"title": "人", "paragraphs": paragraphs}]}


def main(folder: Path, steps: str) -> None:
    train, dev, start, run = (folder / name for name in ("train.json", "dev.json", "start", "run"))
    draw = random.Random(0)
    for file, number in ((train, 64), (dev, 16)):
        file.write_text(json.dumps(questions(number, draw), ensure_ascii=False), encoding="utf-8")

    bertfast(
        "data", "vocab", train, "--language", "ja", "--format", "squad", "--size", 200, "--workers", 1, "--out", start
    )
    # A real run begins with a pre-trained checkpoint; this one has random weights.
    words = len((start / "vocab.txt").read_text(encoding="utf-8").splitlines())
    config = models.BertConfig(
        vocab_size=words, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    models.BertForPreTraining(config).save_pretrained(start)

    options = [
        "--max-length",
        64,
        "--max-question",
        32,
        "--stride",
        16,
        "--batch-size",
        16,
        "--lr",
        2e-3,
        "--steps",
        steps,
    ]
    bertfast("finetune", "qa", "--model", start, "--train", train, "--dev", dev, *options, "--out", run)
    context = "鈴木さんは先生です。鈴木さんは札幌に住んでいます。"
    bertfast("predict", run / "model", "--question", "鈴木さんはどこに住んでいますか。", "--context", context)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary), sys.argv[1] if len(sys.argv) > 1 else "250")
