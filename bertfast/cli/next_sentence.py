"""next-sentence: whether one text follows another, by a pre-trained model's own head."""

import json
from dataclasses import dataclass
from pathlib import Path

from bertfast.cli.common import check_target, console, fail, note, notes
from bertfast.cli.flags import simple
from bertfast.cli.loading import DEVICE, chosen_device, mistakes
from bertfast.options import option
from bertfast.tasks.lines import BAD_LINES


@dataclass(kw_only=True)
class NextSentenceOptions:
    """What `bertfast next-sentence` takes."""

    model: Path = option(
        help="folder of a model with a next-sentence head, such as RUN/model of pretrain", argument=True
    )
    a: str | None = option(None, "a text", argument=True)
    b: str | None = option(None, "the text that may follow it", argument=True)
    pairs: Path | None = option(
        None,
        "in place of A and B: a file of pairs, as for `finetune pair` without labels; a JSON object is printed for each",
    )
    fields: list[str] | None = option(
        None, "of --pairs in JSONL and CSV: names of both texts; default sentence1,sentence2"
    )
    out: Path | None = option(None, "write JSON lines here; printed where not given")
    bad_lines: str = option("refuse", "of --pairs", choices=BAD_LINES)
    json: bool = option(False, "print JSON", flags=("--json",))
    device: str = DEVICE


@notes()
def _run(options: NextSentenceOptions) -> None:
    check_target("--out", options.out)
    given = sum(text is not None for text in (options.a, options.b))
    if given != (0 if options.pairs is not None else 2):
        raise fail("give two texts, A and B, or a file of pairs with --pairs")
    at = chosen_device(options.device)
    with mistakes(at):
        from bertfast.tasks.lines import BadLines, check_text
        from bertfast.tasks.next_sentence import judge, load_next_sentence
        from bertfast.tasks.pair import FIELDS, PairExample, read_pairs

        bad = BadLines(options.bad_lines == "skip")
        if options.pairs is not None:
            names = options.fields or FIELDS
            pairs = read_pairs(options.pairs, bad, fields=names, sentences=2, labelled=False)
        else:
            for name in ("a", "b"):
                check_text(name.upper(), getattr(options, name))
            pairs = [PairExample(options.a or "", options.b, None, "A and B")]
        verdicts = judge(*load_next_sentence(options.model, at), pairs)
    for remark in (*bad.remarks, *([f"{options.pairs}: {bad.summary()}"] if bad else [])):
        note(remark)
    rows = [
        {"sentence1": pair.first, "sentence2": pair.second, "answer": each.answer, "probability": each.probability}
        for pair, each in zip(pairs, verdicts, strict=True)
    ]
    if options.pairs is None and options.out is None and not options.json:
        print(f"{verdicts[0].answer} (B follows A with probability {verdicts[0].probability:.4f})")
        return
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if options.out is None:
        print(text, end="")
        return
    options.out.write_text(text, encoding="utf-8")
    console.print(f"wrote {options.out}", highlight=False)


next_sentence = simple(
    "next_sentence",
    NextSentenceOptions,
    _run,
    "Say whether text B follows text A: yes or no, and the probability that it does.",
)
