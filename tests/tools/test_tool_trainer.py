"""transformers' Trainer over optimised models: the losses, weights and files of stock."""

import copy
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers_cases import FAMILIES_TRIED, TEXTS, outcomes, stock_model, tokenizer_of, trio

import bertfast
from bertfast.convert.accumulation import FastAveragedHead
from bertfast.testing import assert_within_budget, rms_error

HEAD = "ForSequenceClassification"
UNPADDED = "fast, padding removed"


@pytest.fixture(autouse=True, scope="module")
def frozen() -> Iterator[None]:
    """Trainer collects garbage in each `train`, a quarter of a second over all that the imports left."""
    gc.freeze()
    yield
    gc.unfreeze()


def examples(family: str) -> list[dict[str, Any]]:
    """Texts of 3 to 24 tokens, each with a label."""
    encoded = tokenizer_of(family)([*TEXTS, *(f"{text} {text}"[:60] for text in TEXTS)])
    return [{**{name: values[i] for name, values in encoded.items()}, "label": i % 3} for i in range(8)]


def trainer_of(model: Any, folder: Any, family: str = "bert", **options: Any) -> Trainer:
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 5,
        **options,
    }
    data = examples(family)
    return Trainer(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=data,
        eval_dataset=data[:5],
        data_collator=DataCollatorWithPadding(tokenizer_of(family)),
    )


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def losses(trainer: Trainer) -> torch.Tensor:
    """Of each step, then the evaluation's where there was one."""
    log = trainer.state.log_history
    return torch.tensor(
        [entry[name] for entry in log for name in ("loss", "eval_loss") if name in entry], dtype=torch.float64
    )


def assert_trains_alike(trainers: list[Trainer]) -> None:
    """Losses and weights of an optimised model are as near to those of float64 as a stock one's."""
    ours, stock, exact = (losses(trainer) for trainer in trainers)
    assert len(ours) == len(exact) >= 4
    assert_within_budget(ours.float(), stock.float(), exact)
    begin = weights(trainers[0].begin)
    changes = [weights(trainer.model) - begin for trainer in trainers]
    assert float(changes[2].abs().max()) > 1e-3
    assert_within_budget(*changes, measure=rms_error)


@pytest.mark.parametrize("family", FAMILIES_TRIED)
@pytest.mark.tool("transformers", "Trainer: training and evaluation", "fast")
def test_training_and_evaluation(family, tmp_path):
    trainers = []
    models = trio(family, HEAD, num_labels=3)
    begin = copy.deepcopy(models[1])
    for model in models:
        trainer = trainer_of(model, tmp_path, family, eval_strategy="steps", eval_steps=2)
        trainer.begin = begin
        trainer.train()
        trainers.append(trainer)
    assert len(losses(trainers[0])) == 6
    assert_trains_alike(trainers)
    assert outcomes(models[0])[UNPADDED] >= 4 * 3  # in each step, of the encoder and two layers


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"bf16": True}, marks=pytest.mark.tool("transformers", "Trainer: bf16 on a CPU", "fast")),
        pytest.param(
            {"gradient_checkpointing": True},
            marks=pytest.mark.tool("transformers", "Trainer: gradient checkpointing", "fast"),
        ),
    ],
    ids=lambda options: next(iter(options)),
)
def test_options(options, tmp_path):
    trainers = []
    models = trio("bert", HEAD, num_labels=3)
    begin = copy.deepcopy(models[1])
    for model in models:
        given = {} if model is models[2] else options
        trainer = trainer_of(model, tmp_path, **given)
        trainer.begin = begin
        trainer.train()
        trainers.append(trainer)
    assert_trains_alike(trainers)
    steps = 8 if "gradient_checkpointing" in options else 4  # of two layers each, forward again in backward
    assert outcomes(models[0], "Layer") == {UNPADDED: 2 * steps}


@pytest.mark.tool("transformers", "Trainer: save and resume", "fast")
def test_save_and_resume(tmp_path):
    whole = bertfast.optimize(stock_model("bert", HEAD, num_labels=3, hidden_dropout_prob=0.1))
    trainer_of(whole, tmp_path, save_strategy="steps", save_steps=2, optim="adamw_torch").train()
    saved = sorted(path.name for path in (tmp_path / "checkpoint-2").iterdir())
    assert "model.safetensors" in saved
    # The weights come from the checkpoint: the model that is given had others.
    resumed = bertfast.optimize(stock_model("bert", HEAD, num_labels=3, hidden_dropout_prob=0.1, initializer_range=0.1))
    trainer = trainer_of(resumed, tmp_path / "again", optim="adamw_torch")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4
    assert torch.equal(weights(resumed), weights(whole))
    trainer.save_model(str(tmp_path / "saved"))
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert stock.config.architectures == ["BertForSequenceClassification"]
    assert torch.equal(weights(stock), weights(whole))


TOKEN_LABELS = [[0, 1, 2, 1, 0, 2, 0, 1, 2, 0, 1, 0], [1, 2], [2, 2, 0, 1, 0], [0]]


def step_of(head: str, folder: Any, cut: int, model: Any) -> torch.Tensor:
    """What one step over the same four texts, in `cut` micro-batches, changes of the weights."""
    model = copy.deepcopy(model)
    before = weights(model).clone()
    data = [
        {"input_ids": [2, *range(5, 5 + len(labels)), 3], "labels": i % 3 if head == HEAD else [-100, *labels, -100]}
        for i, labels in enumerate(TOKEN_LABELS)
    ]
    tokenizer = tokenizer_of("bert")
    trainer = trainer_of(
        model,
        folder,
        per_device_train_batch_size=4 // cut,
        gradient_accumulation_steps=cut,
        max_steps=1,
        max_grad_norm=0.0,
    )
    trainer.train_dataset = data
    trainer.data_collator = (DataCollatorWithPadding if head == HEAD else DataCollatorForTokenClassification)(tokenizer)
    trainer.train()
    return weights(model) - before


@pytest.mark.parametrize("head", [HEAD, "ForTokenClassification", "ForMaskedLM"])
@pytest.mark.tool("transformers", "Trainer: gradient accumulation, as stock does it or averaged over the step", "fast")
def test_gradient_accumulation(head, tmp_path):
    """Stock adds the means of the micro-batches: four times the step, and not its mean where they have unequal labels."""
    _, stock, exact = trio("bert", head, **({} if head == "ForMaskedLM" else {"num_labels": 3}))
    by_default, right = (
        bertfast.optimize(copy.deepcopy(stock), average_over_accumulation=asked, masked_head=head == "ForMaskedLM")
        for asked in (False, True)
    )
    whole, cut = (step_of(head, tmp_path, pieces, exact) for pieces in (1, 4))
    assert_within_budget(
        step_of(head, tmp_path, 4, by_default), step_of(head, tmp_path, 4, stock), cut, measure=rms_error
    )
    assert_within_budget(step_of(head, tmp_path, 4, right), step_of(head, tmp_path, 1, stock), whole, measure=rms_error)
    if head == HEAD:
        assert float((cut - 4 * whole).norm()) < 1e-6 * float(whole.norm())
    else:
        assert float(cut.norm()) > 1.5 * float(whole.norm())


@pytest.mark.tool("PEFT", "LoRA under Trainer, gradients averaged over accumulation", "fast")
def test_gradient_accumulation_of_adapters(tmp_path):
    """PEFT calls the head's `forward` past its hooks."""
    changes = []
    for optimised, cut in ((True, 4), (False, 1)):
        stock = stock_model("bert", "ForTokenClassification", num_labels=3)
        model = bertfast.optimize(stock, average_over_accumulation=True) if optimised else stock
        torch.manual_seed(3)
        config = LoraConfig(task_type="TOKEN_CLS", target_modules=["query", "value"], r=2, init_lora_weights=False)
        adapted = get_peft_model(model, config)
        assert isinstance(adapted.get_base_model(), FastAveragedHead) == optimised
        changes.append(step_of("ForTokenClassification", tmp_path, cut, adapted))
    assert float(changes[1].norm()) > 0.01
    torch.testing.assert_close(*changes, rtol=1e-4, atol=1e-6)
