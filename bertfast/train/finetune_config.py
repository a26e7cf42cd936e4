"""Options of fine-tuning: those of every run, joined with a task's own. Light to import: the command line makes flags of these."""

from dataclasses import dataclass, field, make_dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, cast

from bertfast.options import option
from bertfast.tasks.registry import TASKS
from bertfast.tasks.task import Task, TaskOptions
from bertfast.train.config import TrainConfig
from bertfast.train.errors import ConfigError
from bertfast.train.settings import Settings


@dataclass
class FinetuneTraining(TrainConfig):
    """TrainConfig with the usual values of fine-tuning (Devlin et al., 2018, appendix A.3): 3 epochs where nothing is given."""

    learning_rate: float = option(5e-5, "highest of the schedule", low=0, flags=("--lr",))

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            self.epochs = 3.0
        super().__post_init__()


@dataclass(kw_only=True)
class FinetuneConfig(TaskOptions):
    """What every run has; `config_class` adds the options of its task, which are read from here as well."""

    task_record: ClassVar[Task]

    model: str = option(help="folder of the checkpoint to start from, with its tokenizer")
    train_file: str = option(help="training data", flags=("--train",))
    dev_file: str | None = option(None, "held-out data, scored while training and at the end", flags=("--dev",))
    batch_size: int = option(32, "sequences of a micro-batch; questions, where each has several", low=1)
    token_budget: int | None = option(None, "most tokens of a micro-batch, beside batch_size", low=1)
    layout: str = option("packed", "padded: as other libraries compute", choices=("packed", "padded"))
    special_tokens: list[str] | None = option(
        None, "markers in the texts, such as [E1],[/E1], that become one new token each"
    )
    keep_best: str | None = option(
        None, "score by which the best model is kept in RUN/best, such as f1; larger is better"
    )
    train: FinetuneTraining = field(default_factory=FinetuneTraining)


@cache
def config_class(name: str) -> type[FinetuneConfig]:
    """The configuration of a task's run: its options, those of every run, and `task`, its name, which a resumed run must have.

    A configuration is an instance of the task's options. KeyError: there is no such task.
    """
    task = TASKS[name]
    named = option(name, "of the run; none: as the command says", choices=(name,), hidden=True)
    made = make_dataclass(
        f"{name.title()}Config",
        [("task", str, named)],
        bases=(task.options, FinetuneConfig),
        kw_only=True,
        namespace={
            "task_record": task,
            "__doc__": f"All of a run of `bertfast finetune {name}`.",
            "__module__": __name__,
        },
    )
    return cast(type[FinetuneConfig], made)


def check_task(file: Path, name: str) -> None:
    """ConfigError where the configuration in a YAML file says that it is of a run of another task. Older ones do not say."""
    settings = Settings()
    settings.read(file)
    task = settings.values.get("task", name)
    if task != name:
        raise ConfigError(
            f"{settings.origin('task')}: this is of a run of `finetune {task}`, and this command is `finetune {name}`; "
            "use that command, or begin a new run"
        )
