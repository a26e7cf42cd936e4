"""Options of the three kinds of fine-tuning. Light to import: the command line makes its flags from these."""

from dataclasses import dataclass, field
from typing import ClassVar

from bertfast.tasks.lines import DataError
from bertfast.tasks.pair import FIELDS, field_names
from bertfast.train.config import TrainConfig
from bertfast.train.errors import ConfigError
from bertfast.train.settings import option


@dataclass
class FinetuneTraining(TrainConfig):
    """TrainConfig with the usual values of fine-tuning (Devlin et al., 2018, appendix A.3): 3 epochs where nothing is given."""

    learning_rate: float = option(5e-5, "highest of the schedule", low=0)

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            self.epochs = 3.0
        super().__post_init__()


@dataclass
class FinetuneConfig:
    """What every kind of fine-tuning has."""

    kind: ClassVar[str]

    model: str = option(help="folder of the checkpoint to start from, with its tokenizer")
    train_file: str = option(help="training data")
    dev_file: str | None = option(None, "held-out data, scored while training and at the end")
    max_length: int = option(128, "most pieces of a sequence, special tokens included", low=3)
    batch_size: int = option(32, "sequences of a micro-batch", low=1)
    token_budget: int | None = option(None, "most tokens of a micro-batch, beside batch_size", low=1)
    layout: str = option("packed", "padded: as other libraries compute", choices=("packed", "padded"))
    special_tokens: list[str] | None = field(
        default=None,
        metadata={"choices": (), "help": "markers in the texts, such as [E1],[/E1], that become one new token each"},
    )
    bad_lines: str = option("refuse", "skip: left out, counted and named", choices=("refuse", "skip"))
    keep_best: str | None = option(
        None, "score by which the best model is kept in RUN/best, such as f1; larger is better"
    )
    train: FinetuneTraining = field(default_factory=FinetuneTraining)

    @property
    def skip_bad_lines(self) -> bool:
        return self.bad_lines == "skip"


@dataclass
class PairConfig(FinetuneConfig):
    kind = "pair"

    fields: list[str] | None = field(
        default=None,
        metadata={
            "choices": (),
            "help": "columns, each of which has to be there: first sentence, second, label; or sentence, label. Where not given "
            "sentence1,sentence2,label, the second only where a file has it",
        },
    )
    sentences: int | None = option(None, "1 or 2 of a line; as the file has them where not given", low=1, high=2)
    labels: list[str] | None = field(
        default=None,
        metadata={
            "choices": (),
            "help": "classes in their order; where not given the checkpoint's, else the training file's, sorted",
        },
    )
    regression: bool = option(False, "labels are numbers to be predicted")

    def __post_init__(self) -> None:
        try:
            field_names(FIELDS if self.fields is None else self.fields, self.sentences)
        except DataError as error:
            raise ConfigError(str(error)) from None


@dataclass
class QAConfig(FinetuneConfig):
    kind = "qa"

    max_length: int = option(384, "most pieces of a window, question and special tokens included", low=3)
    stride: int = option(128, "pieces between the starts of two windows", low=1)
    max_question: int = option(64, "most pieces of a question", low=1)
    max_answer: int = option(30, "most pieces of an answer", low=1)
    n_best: int = option(20, "answers kept for a question", low=1)
    threshold: float | None = option(None, "of no answer; found on the held-out data where not given")
    language: str | None = option(None, "of the score; the tokenizer's where not given", choices=("en", "ja"))


@dataclass
class TokenConfig(FinetuneConfig):
    kind = "token"

    max_length: int = option(256, "most pieces of a window, special tokens included", low=3)
    stride: int = option(128, "pieces between the starts of two windows of a long sentence", low=1)
    labels: list[str] | None = field(
        default=None,
        metadata={
            "choices": (),
            "help": "tags in their order; where not given the checkpoint's, else the training file's, sorted",
        },
    )
