"""predict and fill-mask: a trained model on a file, on texts given on the line, or on masked words."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from bertfast.cli.common import check_target, console, fail, note, notes


class BadLinesPolicy(StrEnum):
    refuse = "refuse"
    skip = "skip"


# In the words of `finetune`, which makes its flag from `train.device`.
Device = Annotated[str, typer.Option(help="auto: a GPU where there is one; auto|cpu|cuda")]


def _chosen(device: str) -> torch.device:
    """The device of `--device`; one that is not there is told before anything is loaded."""
    from bertfast.tasks.device import DeviceError, choose

    try:
        return choose(device)
    except DeviceError as error:
        raise fail(f"--{error}") from None


@contextmanager
def _mistakes(device: torch.device) -> Iterator[None]:
    """What a user can mend ends the command as one line."""
    try:
        from bertfast.data.tokenizer import TokenizerError
        from bertfast.models import ConfigError, WeightsError
        from bertfast.tasks.lines import DataError
    except ImportError as error:
        raise fail(str(error)) from None
    try:
        yield
    except (DataError, TokenizerError, ConfigError, WeightsError, FileNotFoundError, ImportError) as error:
        raise fail(str(error)) from None
    except torch.OutOfMemoryError as error:
        raise fail(f"{device} has no memory for this model: free some, or give --device cpu ({error})") from None


@notes()
def predict(
    model: Annotated[Path, typer.Argument(help="folder of a fine-tuned model, such as RUN/model")],
    data: Annotated[Path | None, typer.Argument(metavar="INPUT", help="file as for `finetune`, without labels")] = None,
    out: Annotated[Path | None, typer.Option(help="write predictions here; printed where not given")] = None,
    text: Annotated[list[str] | None, typer.Option(help="in place of INPUT: a sentence; twice for a pair")] = None,
    question: Annotated[str | None, typer.Option(help="in place of INPUT: a question about --context")] = None,
    context: Annotated[str | None, typer.Option(help="the text that the answer is cut from")] = None,
    n_best: Annotated[Path | None, typer.Option(help="questions: write the n best answers with scores here")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="questions: of no answer; the model's where not given")
    ] = None,
    fields: Annotated[
        str | None, typer.Option(help="of JSONL and CSV: names of the sentences; the model's where not given")
    ] = None,
    bad_lines: Annotated[
        BadLinesPolicy, typer.Option(help="skip: left out, counted and named")
    ] = BadLinesPolicy.refuse,
    device: Device = "auto",
) -> None:
    """Predict with a fine-tuned model: labels and probabilities, answers, or entities, as the model was made for."""
    check_target("--out", out)
    check_target("--n-best", n_best)
    if sum(given is not None for given in (data, text, question)) != 1:
        raise fail("give one of INPUT, --text, or --question with --context")
    if (question is None) != (context is None):
        raise fail("--question and --context belong together")
    at = _chosen(device)
    with _mistakes(at):
        from bertfast.tasks import predict as tasks
        from bertfast.tasks.lines import BadLines

        bad = BadLines(bad_lines is BadLinesPolicy.skip)
        fitted = tasks.Fitted.load(model, at)
        for option, given, kind in (
            ("--n-best", n_best, "qa"),
            ("--threshold", threshold, "qa"),
            ("--fields", fields, "pair"),
        ):
            if given is not None and fitted.kind != kind:
                raise fail(
                    f"{option} is for models of the task {kind!r}; this one is for {fitted.kind!r}: leave it out"
                )
        if data is not None:
            columns = [name.strip() for name in fields.split(",")] if fields is not None else None
            examples = tasks.read_input(fitted, data, bad, columns)
        else:
            examples = tasks.from_line(fitted, text, question, context)
        for remark in (*fitted.notes, *bad.remarks, *([f"{data}: {bad.summary()}"] if bad else [])):
            note(remark)
        if fitted.kind == "qa":
            _answers(fitted, examples, out, n_best, threshold, single=data is None)
            return
        run = tasks.predict_pairs if fitted.kind == "pair" else tasks.predict_entities
        _lines(run(fitted, examples), out)


def _lines(rows: list[dict[str, Any]], out: Path | None) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if out is None:
        print(text, end="")
        return
    out.write_text(text, encoding="utf-8")
    console.print(f"wrote {out}", highlight=False)


def _answers(
    fitted: Any, examples: list[Any], out: Path | None, n_best: Path | None, threshold: float | None, single: bool
) -> None:
    from bertfast.tasks.predict import predict_questions
    from bertfast.tasks.qa_answers import nbest_json

    options = fitted.qa_options(threshold)
    found = predict_questions(fitted, examples, options)
    texts = {prediction.id: prediction.answer(options.threshold) for prediction in found}
    for path, content in ((out, texts), (n_best, {prediction.id: nbest_json(prediction) for prediction in found})):
        if path is not None:
            path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            console.print(f"wrote {path}", highlight=False)
    if out is None:
        print((texts[found[0].id] or "(no answer)") if single else json.dumps(texts, ensure_ascii=False, indent=1))


@notes()
def fill_mask(
    model: Annotated[Path, typer.Argument(help="folder of a model with a masked-LM head")],
    text: Annotated[str, typer.Argument(help='text with one or more masks: "Paris is the [MASK] of France."')],
    top: Annotated[int, typer.Option(min=1, help="pieces shown for each mask")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    device: Device = "auto",
) -> None:
    """Say which words are likeliest at each [MASK] of a text, English or Japanese."""
    at = _chosen(device)
    with _mistakes(at):
        from bertfast.tasks import fill_mask as masks

        found = masks.fill_masks(*masks.load_masked_lm(model, at), text, top)
    if as_json:
        rows = [
            [{"piece": g.piece, "probability": g.probability, "text": g.text} for g in guesses] for guesses in found
        ]
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for number, guesses in enumerate(found, 1):
        table = Table(title=f"mask {number} of {len(found)}" if len(found) > 1 else None)
        for column in ("piece", "probability", "text"):
            table.add_column(column, justify="right" if column == "probability" else "left")
        for guess in guesses:
            table.add_row(guess.piece, f"{guess.probability:.4f}", guess.text)
        console.print(table, markup=False)
