"""How exact training under bfloat16 autocast is with a residual stream of float32 or of bfloat16 between layers.

    python -m benchmarks.gpu.stream [--json FILE]

Needs no GPU: references stand for kernels, products are the CPU's. Errors are against the same model in float64: of the last hidden
state, and of the gradient of each parameter, the root mean square of the difference over that of the number itself. Stock is
transformers' BertModel under torch.autocast, whose stream is float32; ours is `nn.training` with either stream. No dropout. Weights
are normal: of BERT's initial spread 0.02, where layers add little to the stream and its rounding weighs most, and of twice that.
"""

import copy
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest import mock

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bertfast import _library, models
from bertfast.nn import device, training
from bertfast.nn.layout import Packed
from bertfast.nn.through import through

SIZES = ((2, 256), (6, 384), (12, 768), (4, 1024))  # layers, width
SPREADS = (0.02, 0.04)
BATCH, LENGTH = 2, 32
BUDGET = 2.0  # times stock's error
STREAMS = {"float32 stream": torch.float32, "bfloat16 stream": torch.bfloat16}


class Errors(NamedTuple):
    """Relative errors of the output, and of each parameter's gradient by name."""

    output: float
    gradients: dict[str, float]


def _relative(number: Tensor, exact: Tensor) -> float:
    return float((number.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _errors(output: Tensor, gradients: dict[str, Tensor], exact: tuple[Tensor, dict[str, Tensor]]) -> Errors:
    # The gradient of the keys' bias is zero but for rounding: softmax does not see it.
    each = {name: _relative(g, exact[1][name]) for name, g in gradients.items() if not name.endswith("key.bias")}
    return Errors(_relative(output, exact[0]), each)


def _pass(encoder: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor, weights: Tensor) -> Any:
    """Output and gradients of a loss that weighs every output."""
    encoder.zero_grad()
    output = function(x)
    (output.double() * weights.double()).sum().backward()
    return output.detach(), {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def measure(layers: int, width: int, spread: float) -> dict[str, Errors]:
    """Errors of stock and of ours with each stream."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(layers * width)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    config = BertConfig(
        vocab_size=64,
        num_attention_heads=width // 32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=spread,
        **sizes,
    )
    stock = BertModel(config, add_pooling_layer=False).train().encoder
    x, weights = torch.randn(2, BATCH, LENGTH, width)
    double = copy.deepcopy(stock).double()
    exact = _pass(double, lambda x: double(x.double()).last_hidden_state, x, weights)
    rows: dict[str, Errors] = {}
    with torch.autocast("cpu", torch.bfloat16):
        rows["stock"] = _errors(*_pass(stock, lambda x: stock(x).last_hidden_state, x, weights), exact)
    own = models.BertModel(
        models.BertConfig(
            vocab_size=64,
            num_attention_heads=width // 32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **sizes,
        ),
        add_pooling_layer=False,
    )
    encoder = own.encoder.train()
    encoder.load_state_dict(stock.state_dict())
    bounds = torch.arange(0, BATCH * LENGTH + 1, LENGTH, dtype=torch.int32)

    def ours(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        ready = encoder.layers(width).ready(flat)
        assert isinstance(ready.at_once, training.Trained)
        return through(ready, flat, Packed(bounds, LENGTH)).view(x.shape)

    for name, stream in STREAMS.items():
        with (
            mock.patch.object(device, "KINDS", frozenset({"cpu"})),
            mock.patch.object(_library, "resolved", lambda name, key: _exactly(_library.meaning(name))),
            mock.patch.object(training, "stream_dtype", lambda x, products, narrow, stream=stream: stream),
            torch.autocast("cpu", torch.bfloat16),
        ):
            rows[name] = _errors(*_pass(encoder, ours, x, weights), exact)
    return rows


def _exactly(reference: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel knows nothing of autocast."""

    def call(*args: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return reference(*args)

    return call


def main(json_file: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    """Print errors. Exit status 1 where a 16-bit stream that `nn.training` takes is over twice stock's error."""
    table = Table(title="errors against float64 under bfloat16 autocast, as shares of stock's")
    for column in ("layers x width, spread", "", "output", "gradients, median", "largest", "over twice"):
        table.add_column(column, justify="left" if column in ("layers x width, spread", "") else "right")
    lines, failed = [], False
    for (layers, width), spread in itertools.product(SIZES, SPREADS):
        rows = measure(layers, width, spread)
        stock = rows.pop("stock")
        for name, errors in rows.items():
            output = errors.output / stock.output
            shares = [error / stock.gradients[parameter] for parameter, error in errors.gradients.items()]
            over = sum(share > BUDGET for share in shares)
            figures = {"output": output, "median": statistics.median(shares), "largest": max(shares)}
            cells = [f"{figure:.2f}" for figure in figures.values()]
            table.add_row(f"{layers} x {width}, {spread}", name, *cells, f"{over} of {len(shares)}")
            taken = width >= training.WIDE or name != "bfloat16 stream"
            failed |= taken and (over > 0 or output > BUDGET)
            size = {"layers": layers, "width": width, "spread": spread}
            lines.append({**size, "side": name, **figures, "over": over, "parameters": len(shares)})
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    raise typer.Exit(int(failed))


if __name__ == "__main__":
    typer.run(main)
