"""`python -m benchmarks.lora`: LoRA by PEFT on an optimised model beside the same on stock, in turn, call by call.

Inference and a training step (forward and backward) of a classifier with random adapters beside query and value, on padded batches.
Parity comes first: hidden states of real tokens against float64, within twice stock's error. Where adapters are merged, both sides
are. Results go to benchmarks/results/lora.json.
"""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import peft
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

import bertfast
from bertfast.bench.cases import DTYPES, minilm_folder, preset_config, random_batch
from bertfast.bench.protocol import Comparison, interleave
from bertfast.bench.run import environment
from bertfast.testing import assert_within_budget, rms_error

RESULTS = Path(__file__).parent / "results" / "lora.json"
SHAPES = ((1, 16, 0.0), (16, 128, 0.0), (16, 128, 0.5))  # sequences, length, share of padding
console = Console(width=None if Console().is_terminal else 120)

Models = Annotated[list[str], typer.Option("--model", help="minilm, bert-base or bert-large")]
Dtypes = Annotated[list[str], typer.Option("--dtype", help="float32 or bfloat16")]
Runs = Annotated[int, typer.Option(min=1, help="turns of each row")]
Threads = Annotated[int | None, typer.Option(help="torch threads; all cores where not given")]
Rank = Annotated[int, typer.Option(min=1, help="of the adapters")]
Out = Annotated[Path, typer.Option(help="file of the results")]
Dropout = Annotated[float, typer.Option(min=0.0, max=0.99, help="lora_dropout of the training steps")]


def classifier(name: str) -> nn.Module:
    """Stock, in float32, without dropout of its own, which would hide what an adapter's costs."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    if name == "minilm":
        return AutoModelForSequenceClassification.from_pretrained(minilm_folder(), **off)
    config = preset_config(name)
    config.update(off)
    return AutoModelForSequenceClassification.from_config(config)


def adapted(name: str, dtype: torch.dtype, rank: int, dropout: float) -> tuple[Any, Any]:
    """Stock and ours with the same adapters, whose B is random: at zero, as it begins, it would show nothing."""
    model, sides = classifier(name).to(dtype), []
    for side in (model, bertfast.optimize(copy.deepcopy(model))):
        torch.manual_seed(1)
        config = peft.LoraConfig(
            target_modules=["query", "value"],
            r=rank,
            lora_dropout=dropout,
            init_lora_weights=False,
            task_type="SEQ_CLS",
        )
        sides.append(peft.get_peft_model(side, config).eval())
    return sides[0], sides[1]


def states(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        y = model.get_base_model().base_model(**inputs).last_hidden_state
    return y[inputs["attention_mask"].bool()]


def check(stock: Any, fast: Any, inputs: dict[str, Tensor]) -> None:
    """AssertionError where ours is further from float64 than twice stock."""
    exact = states(copy.deepcopy(stock).double(), inputs)
    assert_within_budget(states(fast, inputs), states(stock, inputs), exact, "hidden states", measure=rms_error)


def inference(model: Any, inputs: dict[str, Tensor]) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            model(**inputs)

    model.eval()
    return call


def step(model: Any, inputs: dict[str, Tensor]) -> Callable[[], object]:
    labels = torch.zeros(inputs["input_ids"].shape[0], dtype=torch.long)

    def call() -> None:
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()

    model.train()
    return call


def measure(stock: Any, fast: Any, inputs: dict[str, Tensor], runs: int) -> dict[str, Comparison]:
    """By what is done: inference, merged inference, a training step."""
    comparisons = {"inference": interleave(inference(stock, inputs), inference(fast, inputs), runs)}
    for model in (stock, fast):
        model.merge_adapter()
    check(stock, fast, inputs)
    comparisons["merged"] = interleave(inference(stock, inputs), inference(fast, inputs), runs)
    for model in (stock, fast):
        model.unmerge_adapter()
    comparisons["training"] = interleave(step(stock, inputs), step(fast, inputs), runs)
    return comparisons


def main(
    model: Models = ["minilm", "bert-base"],  # noqa: B006 - typer copies it
    dtype: Dtypes = ["float32", "bfloat16"],  # noqa: B006
    runs: Runs = 15,
    threads: Threads = None,
    rank: Rank = 8,
    dropout: Dropout = 0.1,
    out: Out = RESULTS,
) -> None:
    """LoRA on an optimised model beside LoRA on stock."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    if threads:
        torch.set_num_threads(threads)
    table = Table(
        title=f"stock + PEFT over bertfast + PEFT: rank {rank} beside query and value, lora_dropout {dropout}"
    )
    for column in ("model", "dtype", "batch", "padding", "inference", "merged", "training"):
        table.add_column(column, justify="left" if column in ("model", "dtype") else "right")
    rows = []
    for name in model:
        for kind in dtype:
            stock, fast = adapted(name, DTYPES[kind], rank, dropout)
            for batch, length, padding in SHAPES:
                inputs = random_batch(stock.config.vocab_size, batch, length, padding).inputs()
                check(stock, fast, inputs)
                comparisons = measure(stock, fast, inputs, runs)
                ratios = [f"{each.ratio.p50:.2f}x" for each in comparisons.values()]
                table.add_row(name, kind, f"{batch}x{length}", f"{padding:.0%}", *ratios)
                shape = {"batch": batch, "length": length, "padding": padding}
                rows.append(
                    {
                        "model": name,
                        "dtype": kind,
                        **shape,
                        "comparisons": {n: _plain(c) for n, c in comparisons.items()},
                    }
                )
    console.print(table)
    about = {"environment": environment(), "peft": peft.__version__, "rank": rank, "dropout": dropout}
    out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    console.print(f"wrote {out}", highlight=False)


def _plain(comparison: Comparison) -> dict[str, Any]:
    return {side: vars(getattr(comparison, side)) for side in ("stock", "fast", "ratio")} | {"runs": comparison.runs}


if __name__ == "__main__":
    typer.run(main)
