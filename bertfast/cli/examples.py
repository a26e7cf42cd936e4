"""An example of each command, which its --help ends with."""

import typer
from rich.markup import escape

EXAMPLES: dict[str, tuple[str, ...]] = {
    "doctor": ("bertfast doctor", "bertfast doctor --gpu", "bertfast doctor --json"),
    "verify": ("bertfast verify minilm",),
    "bench": ("bertfast bench minilm --batch 8 --length 128 --padding 0.5", "bertfast bench --json cpu.json"),
    "predict": (
        "bertfast predict run/model test.tsv --out predictions.jsonl",
        'bertfast predict answers/model --question "Where?" --context "In Kyoto."',
    ),
    "fill-mask": ('bertfast fill-mask run/model "Paris is the [MASK] of France."',),
    "encode": (
        "bertfast encode sentence-transformers/all-MiniLM-L6-v2 corpus.txt --out embeddings",
        "bertfast encode run/model corpus.jsonl --field body --id-field id --format npy --out embeddings",
    ),
    "data vocab": (
        "bertfast data vocab text.txt --size 8000 --out vocab",
        "bertfast data vocab text.txt --language ja --format paragraphs --out vocab",
    ),
    "data build": ("bertfast data build text.txt --tokenizer vocab --holdout 0.05 --out corpus",),
    "data show": ("bertfast data show corpus/train --masked --png batch.png", "bertfast data show"),
    "pretrain": (
        "bertfast pretrain corpus/train --eval corpus/eval --out run --layers 4 --hidden 256 --heads 4 --epochs 20",
        "bertfast pretrain --resume --out run",
    ),
    "next-sentence": ('bertfast next-sentence run/model "It rained." "The street was wet."',),
    "finetune text": ("bertfast finetune text --model run/model --train train.tsv --dev dev.tsv --out sentiment",),
    "finetune choice": (
        "bertfast finetune choice --model run/model --train train.jsonl --dev dev.jsonl --out choices",
    ),
    "finetune pair": ("bertfast finetune pair --model run/model --train train.tsv --dev dev.tsv --out pairs",),
    "finetune qa": ("bertfast finetune qa --model run/model --train train.json --dev dev.json --out answers",),
    "finetune token": ("bertfast finetune token --model run/model --train train.conll --dev dev.conll --out entities",),
}


def add_examples(app: typer.Typer, words: tuple[str, ...] = ()) -> None:
    """Put the examples before what the help of each command ends with already."""
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")  # type: ignore[union-attr]
        examples = EXAMPLES.get(" ".join((*words, name)), ())
        lines = [f"Example: {escape(example)}" for example in examples]
        command.epilog = "\n\n".join([*lines, *([command.epilog] if command.epilog else [])])
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_examples(group.typer_instance, (*words, str(group.name)))
