"""The fine-tuning tasks, each a line here and a module with its `TASK`."""

from collections.abc import Iterator, Mapping
from importlib import import_module

from bertfast.tasks.task import Task

# In the order of `bertfast finetune --help`. Of tasks with one head the first is what a checkpoint is taken for that does not say.
_MODULES = (
    "pair_problem",
    "text_problem",
    "qa_problem",
    "token_problem",
    "choice_problem",
)


def _load() -> Iterator[Task]:
    for name in _MODULES:
        yield import_module(f"bertfast.tasks.{name}").TASK


TASKS: Mapping[str, Task] = {task.name: task for task in _load()}
