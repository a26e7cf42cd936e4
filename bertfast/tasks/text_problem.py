"""Single texts, such as mails that are spam or not and reviews that praise or not: the pairs' problem with one text a line."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from bertfast.options import option
from bertfast.tasks import pair_problem
from bertfast.tasks.pair import PairExample
from bertfast.tasks.pair_problem import ClassOptions, PairProblem
from bertfast.tasks.task import Predicted, Task

if TYPE_CHECKING:
    from bertfast.tasks.predict import Fitted


@dataclass(kw_only=True)
class TextOptions(ClassOptions):
    """Of single texts."""

    fields: list[str] | None = option(
        None,
        "columns of the text and the label, both of which have to be there; text,label where not given",
        stored="fields",
        predicting="of JSONL and CSV: names of the texts; the model's where not given",
    )
    sentences: ClassVar[int | None] = 1
    usual_fields: ClassVar[tuple[str, ...]] = ("text", "label")


class TextProblem(PairProblem):
    """Training and held-out files, read."""

    kind = "text"


def predict(fitted: "Fitted", examples: Sequence[PairExample]) -> Predicted:
    """{"text"} of each, and what `pair_rows` says of it."""
    predicted = pair_problem.predict(fitted, examples)
    return replace(predicted, rows=[{"text": row.pop("sentence1"), **row} for row in predicted.rows])


TASK = Task(
    problem=TextProblem,
    what="Classify (or score) single texts, such as spam or sentiment: TSV, JSONL or CSV.",
    options=TextOptions,
    read=pair_problem.read,
    line=pair_problem.from_line,
    predict=predict,
)
