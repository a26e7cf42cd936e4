"""Fine-tuning: what the loop trains, for any of the tasks in `tasks.registry`, and what is left in the run's folder.

RUN/model/ is the model after the last step; RUN/best/, where a best one is kept, the one with the best score on the held-out
data; RUN/metrics.json and RUN/predictions.* are of the last step.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bertfast import models
from bertfast.data.batches import Layout
from bertfast.models.flops import training_flops
from bertfast.nn import device
from bertfast.tasks.loader import Batching, FeatureLoader
from bertfast.tasks.problem import SETTINGS, Evaluation, matching_tokenizer, write_files
from bertfast.tasks.stored import label_names_notes, stored_head
from bertfast.train import state
from bertfast.train.checkpoint import FORMAT
from bertfast.train.errors import ConfigError
from bertfast.train.files import Files, explained, write_folder
from bertfast.train.finetune_config import FinetuneConfig
from bertfast.train.launcher import is_main
from bertfast.train.loop import Outcome, train
from bertfast.train.run_folder import check_out
from bertfast.train.task import Task, Term

BEST = "best_score.json"


class FinetuneTask(Task):
    """A problem and a model with its head. `run` is where the best model goes, where one is kept."""

    def __init__(self, config: FinetuneConfig, run: Path) -> None:
        folder, task = Path(config.model), config.task_record
        self.config, self.run = config, run
        self.name = f"finetune-{task.name}"
        start = models.BertConfig.from_pretrained(folder)
        self.tokenizer = matching_tokenizer(folder, start.vocab_size)
        positions = start.max_position_embeddings
        if config.max_length > positions:
            raise ConfigError(
                f"max_length {config.max_length}: {folder} has {positions} positions; give at most {positions}"
            )
        if config.keep_best and not config.dev_file:
            raise ConfigError("keep_best chooses by a score on held-out data: give dev_file as well")
        if config.keep_best and config.train.parallel == "fsdp":
            raise ConfigError("keep_best does not work with parallel fsdp; use ddp, or take the last model")
        added = self._add_special_tokens()
        stored = stored_head(folder, task.head, task.names_outputs)
        dev = Path(config.dev_file) if config.dev_file else None
        self.problem = task.problem(self.tokenizer, Path(config.train_file), dev, config, stored)
        if config.keep_best and config.keep_best not in self.problem.scores:
            raise ConfigError(f"keep_best {config.keep_best}: choose one of {', '.join(self.problem.scores)}")
        # An answer has a start and an end whatever a checkpoint says: only classes have names that could be others.
        self.problem.notes += label_names_notes(folder) if stored is not None and task.names_outputs else ()
        # A new head's weights come from torch's generator.
        torch.manual_seed(config.train.seed)
        head = getattr(models, self.problem.head)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.model: nn.Module = head.from_pretrained(
                folder,
                torch.float32,
                replace_head=True,
                head_rows=self.problem.head_rows,
                **self.problem.overrides(),
            )
        self.problem.notes += [_new_head(warning.message) for warning in said]
        self._grow(added)
        self.last: Evaluation | None = None

    def _add_special_tokens(self) -> list[str]:
        """The tokenizer with the tokens of `special_tokens`; these, where they are given."""
        tokens = list(dict.fromkeys(self.config.special_tokens or ()))
        if own := [token for token in tokens if token in self.tokenizer.specials]:
            raise ConfigError(
                f"special_tokens: {', '.join(own)} is a special token of the tokenizer, which texts cannot write"
            )
        if tokens:
            self.tokenizer.add_special_tokens(tokens)
        return tokens

    def _grow(self, added: list[str]) -> None:
        """A row of the word table for each new token."""
        if not added:
            return
        model: Any = self.model
        rows, words = model.config.vocab_size, self.tokenizer.vocab_size
        if words > rows:
            model.resize_token_embeddings(words)
        shown = ", ".join(f"{token} is id {self.tokenizer.vocab[token]}" for token in added)
        self.problem.notes.append(f"special tokens: {shown}; the word table has {max(words - rows, 0)} new rows")

    def loader(self, rank: int, ranks: int) -> FeatureLoader:
        batching = Batching(self.config.batch_size, self.config.token_budget, cast(Layout, self.config.layout))
        at, config = next(self.model.parameters()).device, cast(models.BertConfig, self.model.config)
        return FeatureLoader(
            self.problem.features,
            batching,
            pad_id=self.tokenizer.pad_id,
            seed=self.config.train.seed,
            rank=rank,
            ranks=ranks,
            pin_memory=at.type == "cuda",
            # On a GPU batches have sizes that come again, whether steps are captured or not, so that numbers are the same.
            positions=config.max_position_embeddings if at.type in device.KINDS else None,
        )

    def terms(self, model: nn.Module, batch: Any) -> dict[str, Term]:
        found = model(**batch.inputs())
        return {"loss": Term(found.loss, self.problem.correct(found, batch))}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        self.last = self.problem.evaluate(model)
        if self.last is None:
            return {}
        if self.config.keep_best:
            self._keep_best(self.last.metrics)
        return self.last.metrics

    def _keep_best(self, scores: dict[str, float]) -> None:
        name = self.config.keep_best
        if name not in scores:
            raise ConfigError(
                f"keep_best {name}: the held-out data has no questions of this kind; there are {', '.join(scores)}"
            )
        known = best_so_far(self.run)
        if not is_main() or (known is not None and scores[name] <= known["score"]):
            return
        files = Files()

        def fill(folder: Path) -> None:
            files.write_tensors(folder / "model.safetensors", state.model_tensors(self.model))
            self.save(folder)
            files.write_text(
                folder / BEST,
                json.dumps({"metric": name, "score": scores[name], "step": self.step, "scores": scores}) + "\n",
            )

        write_folder(self.run / "best", fill, {**FORMAT, "format": "bertfast-model"}, files)

    def save(self, folder: Path) -> None:
        config = self.model.config.replace()  # type: ignore[operator, union-attr]
        config.extra |= {
            "architectures": [self.problem.head],
            "dtype": "float32",
            SETTINGS: self.problem.settings(),
        }
        config.save_pretrained(folder)
        self.tokenizer.save(folder)

    def train_flops(self, tokens: int, squares: int, targets: dict[str, int]) -> float | None:
        return training_flops(self.model.config, tokens, squares)  # type: ignore[arg-type]


def _new_head(said: Warning | str) -> str:
    """A warning of loading, as fine-tuning has it: that a head is new is how it begins."""
    if not isinstance(said, models.NewWeightsWarning):
        return str(said)
    parts = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in said.names))
    return f"new head: {parts}{', because the one of the checkpoint has another shape' if said.replaced else ''}"


def best_so_far(run: Path) -> dict[str, Any] | None:
    """{"metric", "score", "step", "scores"} of the model in RUN/best; None where none was kept."""
    path = run / "best" / BEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def finetune(
    config: FinetuneConfig,
    run: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] = print,
    note: Callable[[str], None] = print,
) -> tuple[Outcome, dict[str, float]]:
    """Fine-tune as `config` says into the folder `run`; returns how it ended and the last scores on the held-out data.

    config: an instance of `finetune_config.config_class(task)`.
    say: is told what each file holds.
    note: is told what was left out of the data or cut.

    Raises:
        TrainingError: as `loop.train`.
        DataError, ValueError, FileNotFoundError: for data, a model or a tokenizer that cannot be used.
    """
    if is_main():
        check_out(run, resume)
    task = FinetuneTask(config, run)
    if is_main():
        for text in task.problem.read:
            say(text)
        for text in task.problem.notes:
            note(text)
    outcome = train(task, config.train, run, record=config, resume=resume)
    if not outcome.finished:
        return outcome, {}
    if task.last is None and config.train.parallel != "fsdp":  # resumed after its last step
        task.step = outcome.step
        task.evaluate(task.model.eval())
    found = task.last or Evaluation({})
    if is_main():
        # What was left out or cut stands beside the scores that it bears on.
        about = {"step": outcome.step, **found.metrics, "notes": task.problem.notes}
        with explained(str(run)):
            write_files(run, {**found.files, "metrics.json": about})
    return outcome, found.metrics
