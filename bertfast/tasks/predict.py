"""Predictions of a fine-tuned model's folder on a file or on texts: what the model is for is read from its configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast import models
from bertfast.data.tokenizer import load_tokenizer
from bertfast.tasks.features import Feature
from bertfast.tasks.inference import sequence_logits
from bertfast.tasks.lines import BadLines, DataError
from bertfast.tasks.pair import FIELDS, PairExample, pair_features, read_pairs
from bertfast.tasks.pair_problem import pair_rows
from bertfast.tasks.problem import SETTINGS, check_vocabulary
from bertfast.tasks.qa import QAExample, qa_features, read_squad
from bertfast.tasks.qa_answers import Prediction
from bertfast.tasks.qa_problem import QAOptions, answer
from bertfast.tasks.token import TokenExample, read_tokens
from bertfast.tasks.token_features import marked_entities, split_words, token_features
from bertfast.tasks.token_problem import TokenOptions, tag

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
    """

    model: Any
    tokenizer: "Tokenizer"
    kind: str
    settings: dict[str, Any]
    labels: list[str] | None

    @classmethod
    def load(cls, folder: Path) -> "Fitted":
        """The model in `folder`, ready for inference. A model that bertfast did not fine-tune has default lengths.

        Raises:
            DataError: its architecture has no head of the three tasks.
            FileNotFoundError, ValueError: as `from_pretrained` and `load_tokenizer`.
        """
        config = models.BertConfig.from_pretrained(folder)
        names = config.extra.get("architectures") or []
        kinds = [name for name in names if name in KINDS]
        if not kinds:
            raise DataError(
                f"{folder}: its architecture is {', '.join(names) or 'not named'}, which predicts nothing; "
                f"fine-tune it first (`bertfast finetune`), or name a {', '.join(KINDS)}"
            )
        kind = KINDS[kinds[0]]
        tokenizer = load_tokenizer(folder)
        check_vocabulary(folder, tokenizer, config.vocab_size)
        model = getattr(models, kinds[0]).from_pretrained(folder)
        labels = None if config.num_labels == 1 and kind == "pair" else list((config.id2label or {}).values())
        return cls(model, tokenizer, kind, dict(config.extra.get(SETTINGS) or {}), labels)

    def length(self, default: int) -> int:
        """Pieces of a sequence: what the model was fine-tuned with, else `default`, within its positions."""
        return min(self.settings.get("max_length", default), self.model.config.max_position_embeddings)

    def qa_options(self, threshold: float | None = None, n_best: int = 20) -> QAOptions:
        """As the model was fine-tuned; a `threshold` that is given wins."""
        names = {field.name for field in fields(QAOptions)}
        kept = {name: value for name, value in self.settings.items() if name in names}
        found = threshold if threshold is not None else self.settings.get("no_answer_threshold")
        return QAOptions(**{**kept, "max_length": self.length(384), "n_best": n_best, "threshold": found})


def predict_pairs(fitted: Fitted, examples: Sequence[PairExample]) -> list[dict[str, Any]]:
    """{"sentence1", "sentence2" if there is one, "label", "probabilities"} of each, or "value" in place of the last two."""
    made: list[Feature] = pair_features(examples, fitted.tokenizer, fitted.length(128)).features
    logits = sequence_logits(fitted.model, made, fitted.tokenizer.pad_id)
    rows = []
    for example, row in zip(examples, pair_rows(logits, fitted.labels), strict=True):
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
    return answer(fitted.model, fitted.tokenizer.pad_id, examples, made.windows, options)


def predict_entities(fitted: Fitted, examples: Sequence[TokenExample]) -> list[dict[str, Any]]:
    """{"text", "entities": [{"start", "end", "label", "text"}]} of each, and "tokens" and "tags" where the file gave words."""
    given = split_words(examples, fitted.tokenizer)
    stride = fitted.settings.get("stride", TokenOptions.stride)
    windows = token_features(given, fitted.tokenizer, max_length=fitted.length(TokenOptions.max_length), stride=stride)
    rows = []
    tags = tag(fitted.model, fitted.tokenizer.pad_id, given, windows, fitted.labels or [])
    for example, found in zip(given, tags, strict=True):
        words = {} if example.is_text else {"tokens": example.words, "tags": found}
        rows.append({"text": example.text, **words, "entities": marked_entities(example, found)})
    return rows


def read_input(fitted: Fitted, path: Path, bad: BadLines, columns: Sequence[str] | None = None) -> list[Any]:
    """The examples of a file for this model; labels are not needed.

    columns: names in JSONL and CSV, as `pair.field_names` takes them; those that the model was fine-tuned with where not given.
    """
    if fitted.kind == "qa":
        return read_squad(path, bad)
    if fitted.kind == "token":
        return read_tokens(path, bad, labelled=False)
    names = columns or fitted.settings.get("fields") or FIELDS
    return read_pairs(path, bad, fields=names, sentences=fitted.settings.get("sentences"), labelled=False)


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
        if not question.strip() or not (context or "").strip():
            raise DataError("the question or its context is empty: give both something to read")
        return [QAExample("1", question, context or "")]
    texts = list(text or ())
    sentences = 1 if fitted.kind == "token" else fitted.settings.get("sentences", len(texts))
    if not all(text.strip() for text in texts):
        raise DataError("the text is empty: give --text something to read")
    if len(texts) != sentences or sentences not in (1, 2):
        raise DataError(
            f"{len(texts)} texts were given with --text; this model reads {sentences if sentences < 3 else 2}"
        )
    if fitted.kind == "token":
        return [TokenExample(texts[0], (), (), None, "--text", is_text=True)]
    return [PairExample(texts[0], texts[1] if sentences == 2 else None, None, "--text")]
