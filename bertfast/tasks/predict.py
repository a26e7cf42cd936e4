"""Predictions of a fine-tuned model's folder on a file or on texts: what the model is for is read from its configuration."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertfast import models
from bertfast.tasks.device import choose
from bertfast.tasks.entities import split_tag
from bertfast.tasks.features import Feature
from bertfast.tasks.inference import sequence_logits
from bertfast.tasks.labels import label_names_notes
from bertfast.tasks.lines import BadLines, DataError, check_text, described
from bertfast.tasks.pair import FIELDS, PairExample, pair_features, read_pairs
from bertfast.tasks.pair_problem import pair_rows
from bertfast.tasks.problem import SETTINGS, matching_tokenizer
from bertfast.tasks.qa import QAExample, qa_features, read_squad
from bertfast.tasks.qa_answers import Prediction
from bertfast.tasks.qa_problem import QAOptions, answer
from bertfast.tasks.token import TokenExample, read_tokens
from bertfast.tasks.token_features import marked_entities, split_words, token_features, unread_words
from bertfast.tasks.token_problem import TokenOptions, tag
from bertfast.tasks.unread import empty_texts_note, empty_words_note, unknown_note

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer

KINDS = {
    "BertForSequenceClassification": "pair",
    "BertForQuestionAnswering": "qa",
    "BertForTokenClassification": "token",
}


@dataclass(frozen=True)
class Fitted:
    """A fine-tuned model with its tokenizer, its kind of task, how it was fed (`settings`) and its labels.

    labels: None where the model predicts a number.
    notes: what a user should know of what the model can say.
    """

    model: Any
    tokenizer: "Tokenizer"
    kind: str
    settings: dict[str, Any]
    labels: list[str] | None
    notes: tuple[str, ...] = ()

    @property
    def problem_type(self) -> str | None:
        return self.model.config.problem_type

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "auto") -> "Fitted":
        """The model in `folder`, ready for inference. A model that bertfast did not fine-tune has default lengths.

        device: as `tasks.device.choose` takes it; what is predicted with the model is computed there.

        Raises:
            DeviceError: there is no such device; nothing was read then.
            DataError: its architecture has no head of the three tasks, two of its outputs have one name, or its settings are none.
            FileNotFoundError, ValueError: as `from_pretrained` and `matching_tokenizer`.
        """
        at = choose(device)
        config = models.BertConfig.from_pretrained(folder)
        names = config.extra.get("architectures") or []
        kinds = [name for name in names if name in KINDS]
        if not kinds:
            raise DataError(
                f"{folder}: its architecture is {', '.join(names) or 'not named'}, which predicts nothing; "
                f"fine-tune it first (`bertfast finetune`), or name a {', '.join(KINDS)}"
            )
        kind = KINDS[kinds[0]]
        tokenizer = matching_tokenizer(folder, config.vocab_size)
        model = getattr(models, kinds[0]).from_pretrained(folder).to(at)
        labels = list((config.id2label or {}).values())
        if kind != "qa":
            _check_names(folder, labels)
        notes = (*label_names_notes(folder), *(_scheme_note(labels) if kind == "token" else ())) if kind != "qa" else ()
        is_number = kind == "pair" and len(labels) == 1 and config.problem_type in (None, "regression")
        return cls(model, tokenizer, kind, _settings(folder, config), None if is_number else labels, notes)

    def length(self, default: int) -> int:
        """Pieces of a sequence: what the model was fine-tuned with, else `default`, within its positions."""
        return min(self.settings.get("max_length", default), self.model.config.max_position_embeddings)

    def qa_options(self, threshold: float | None = None, n_best: int = 20) -> QAOptions:
        """As the model was fine-tuned; a `threshold` that is given wins."""
        names = {field.name for field in fields(QAOptions)}
        kept = {name: value for name, value in self.settings.items() if name in names}
        found = threshold if threshold is not None else self.settings.get("no_answer_threshold")
        return QAOptions(**{**kept, "max_length": self.length(384), "n_best": n_best, "threshold": found})


def _check_names(folder: Path, labels: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(labels).items() if count > 1]:
        raise DataError(
            f"{folder}: id2label in config.json names {len(labels)} outputs and {twice[0]!r} more than once; name each its own"
        )


def _scheme_note(labels: Sequence[str]) -> tuple[str, ...]:
    """That classes which are no tags of entities are predicted as they are."""
    try:
        for label in labels:
            split_tag(label)
    except ValueError as error:
        return (f"{error}: the model's classes are predicted as tags of words, without entities",)
    return ()


# Of the settings that a fine-tuned model keeps: what each must be.
_KEPT: dict[str, tuple[type, ...]] = {
    "max_length": (int,),
    "stride": (int,),
    "max_question": (int,),
    "max_answer": (int,),
    "sentences": (int, type(None)),
    "no_answer_threshold": (int, float, type(None)),
    "fields": (list,),
}


def _settings(folder: Path, config: models.BertConfig) -> dict[str, Any]:
    """How the model was fed, from its configuration. DataError where that holds other types than `bertfast finetune` writes."""
    kept = config.extra.get(SETTINGS) or {}
    if not isinstance(kept, dict):
        raise DataError(
            f"{folder}: {SETTINGS!r} in config.json is {described(kept)}, not an object of settings; take it out"
        )
    for name, kinds in _KEPT.items():
        value = kept.get(name)
        low = value if type(value) is int and name != "no_answer_threshold" else 1
        if name in kept and (type(value) not in kinds or low < 1):
            raise DataError(
                f"{folder}: {name!r} of {SETTINGS!r} in config.json is {described(value)}; take it out, or mend it"
            )
    fields = kept.get("fields", [])
    if not all(isinstance(name, str) for name in fields):
        raise DataError(
            f"{folder}: 'fields' of {SETTINGS!r} in config.json are not all text; take them out, or mend them"
        )
    return dict(kept)


def _tell(*notes: str) -> None:
    """What a user should know of the answers; the commands print warnings as notes."""
    for note in filter(None, notes):
        warnings.warn(note, stacklevel=3)


def predict_pairs(fitted: Fitted, examples: Sequence[PairExample]) -> list[dict[str, Any]]:
    """{"sentence1", "sentence2" if there is one} of each, and what `pair_rows` says of it."""
    made: list[Feature] = pair_features(examples, fitted.tokenizer, fitted.length(128)).features
    places = [example.where for example in examples]
    _tell(unknown_note(made, fitted.tokenizer), empty_texts_note(made, places))
    logits = sequence_logits(fitted.model, made, fitted.tokenizer.pad_id)
    rows = []
    for example, row in zip(examples, pair_rows(logits, fitted.labels, fitted.problem_type), strict=True):
        second = {} if example.second is None else {"sentence2": example.second}
        rows.append({"sentence1": example.first, **second, **row})
    return rows


def predict_questions(fitted: Fitted, examples: Sequence[QAExample], options: QAOptions) -> list[Prediction]:
    """The n best answers of each question."""
    made = qa_features(
        examples,
        fitted.tokenizer,
        max_length=options.max_length,
        stride=options.stride,
        max_question=options.max_question,
    )
    _tell(unknown_note(made.features, fitted.tokenizer))
    return answer(fitted.model, fitted.tokenizer.pad_id, examples, made.windows, options)


def predict_entities(fitted: Fitted, examples: Sequence[TokenExample]) -> list[dict[str, Any]]:
    """{"text", "entities": [{"start", "end", "label", "text"}]} of each, and "tokens" and "tags" where the file gave words.

    Where the model's classes are no tags of entities: "text", "tokens", "tags".
    """
    given = split_words(examples, fitted.tokenizer)
    stride = fitted.settings.get("stride", TokenOptions.stride)
    windows = token_features(given, fitted.tokenizer, max_length=fitted.length(TokenOptions.max_length), stride=stride)
    _tell(
        unknown_note([window.feature for window in windows], fitted.tokenizer),
        empty_words_note(unread_words(given, windows)),
    )
    rows = []
    has_entities = not _scheme_note(fitted.labels or ())
    tags = tag(fitted.model, fitted.tokenizer.pad_id, given, windows, fitted.labels or [])
    for example, found in zip(given, tags, strict=True):
        words = {"tokens": example.words, "tags": found} if not (has_entities and example.is_text) else {}
        entities = {"entities": marked_entities(example, found)} if has_entities else {}
        rows.append({"text": example.text, **words, **entities})
    return rows


def read_input(fitted: Fitted, path: Path, bad: BadLines, columns: Sequence[str] | None = None) -> list[Any]:
    """The examples of a file for this model; labels are not needed.

    columns: names in JSONL and CSV, as `pair.field_names` takes them; those that the model was fine-tuned with where not given.
    """
    if fitted.kind == "qa":
        return read_squad(path, bad, labelled=False)
    if fitted.kind == "token":
        return read_tokens(path, bad, labelled=False)
    names = columns or fitted.settings.get("fields") or FIELDS
    given = columns is not None
    return read_pairs(path, bad, fields=names, given=given, sentences=fitted.settings.get("sentences"), labelled=False)


def from_line(
    fitted: Fitted, text: Sequence[str] | None = None, question: str | None = None, context: str | None = None
) -> list[Any]:
    """One example given on the command line: a question about a context, or a sentence (for pairs, two).

    Raises:
        DataError: the model is for something else, or there are too few or too many texts.
    """
    if (fitted.kind == "qa") != (question is not None):
        wanted = "--question and --context" if fitted.kind == "qa" else "--text"
        raise DataError(f"this model is for the task {fitted.kind!r}: give {wanted}")
    if question is not None:
        check_text("--question", question)
        check_text("--context", context or "")
        return [QAExample("1", question, context or "")]
    texts = list(text or ())
    sentences = 1 if fitted.kind == "token" else fitted.settings.get("sentences", len(texts))
    for text_given in texts:
        check_text("--text", text_given)
    if len(texts) != sentences or sentences not in (1, 2):
        raise DataError(
            f"{len(texts)} texts were given with --text; this model reads {sentences if sentences < 3 else 2}"
        )
    if fitted.kind == "token":
        return [TokenExample(texts[0], (), (), None, "--text", is_text=True)]
    return [PairExample(texts[0], texts[1] if sentences == 2 else None, None, "--text")]
