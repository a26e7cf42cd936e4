"""The stage compiled: the drop-in beside torch.compile of stock in its modes, each on one shape that it may specialise for.

Compiling takes seconds to minutes a row, so it has a stage of its own, which runs last: the cheapest modes first, training after
inference.
"""

import copy
from collections.abc import Iterator
from contextlib import nullcontext

import torch

from benchmarks.gpu import encoder, measure, results

STAGE_SECONDS = 300  # for beginning a row, whose autotuning takes a minute or two
MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")


def rows() -> dict[str, tuple[encoder.Setting, str]]:
    """Name to setting and mode, in the order in which they run."""
    return {
        f"{setting.name}, torch.compile {mode}": (setting, mode)
        for train in (False, True)
        for mode in MODES
        for setting in encoder.settings(train)
        if setting.dtype == "bfloat16"
    }


def sides(stock: torch.nn.Module, mode: str) -> encoder.Sides:
    """The drop-in, stock, and stock compiled."""
    import bertfast

    torch._dynamo.reset()
    fast = bertfast.optimize(copy.deepcopy(stock), gpu_kernels=True)
    made: encoder.Sides = {"bertfast": (fast, nullcontext), "stock": (stock, nullcontext)}
    return made | {f"compiled {mode}": (torch.compile(stock, mode=mode), nullcontext)}


def run(only: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    clock, deadline = measure.WallClock(), measure.Deadline(STAGE_SECONDS)
    stock, built = None, ""
    for name, (setting, mode) in rows().items():
        if only not in name or name in done:
            continue
        if deadline.passed:
            yield results.line("compiled", name, ok=None, error=deadline.text)
            continue
        if stock is None or built != setting.model:
            stock, built = encoder.build(setting.model), setting.model
        yield encoder.run_setting("compiled", name, setting, stock, lambda s=stock, m=mode: sides(s, m), clock)
