"""Host time of one eager call of each op, of a layer and of an inference call: everything but the driver's own launch.

    python -m benchmarks.gpu.host [--calls 2000]

Needs no GPU. Tensors are tiny and on the CPU, the compiled kernels are stand-ins that return at once; what is left is the Python
that an eager call costs, which no kernel hides at small batches. `make gpu` measures ops so on a real machine. Layers and
calls stand beside stock transformers' (`host_calls` says what is in their times).
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import bertfast.ops  # noqa: F401  defines the ops
from bertfast import _library, doctor

TARGET_SECONDS = 25e-6  # of an op
TARGET_RATIO = 2.0  # of stock's time to ours, of an inference call, and of a layer forward and backward
H, D = 2, 32
E, F, T, V = H * D, 128, 32, 64


class StandIn:
    """A compiled kernel that does nothing."""

    class metadata:
        global_scratch_size = 0

    function, packed_metadata = 0, ()

    @staticmethod
    def run(*args: Any) -> None:
        return


class Compiled(dict):
    def get(self, key: Any, default: Any = None) -> Any:
        return StandIn


def pretend_gpu() -> None:
    """Let the launchers believe that CPU tensors are on a Hopper GPU whose kernels are all compiled."""
    from bertfast.triton import launch, mailbox

    launch._compiled = Compiled()
    launch._architectures[0] = 90
    launch._multiprocessors[0] = launch.H200_MULTIPROCESSORS
    launch._device_index = lambda args, current: current  # tensors on a GPU name their device themselves
    torch.cuda.current_device = lambda: 0  # type: ignore[assignment,return-value]
    torch._C._cuda_getCurrentRawStream = lambda index: 0  # type: ignore[attr-defined]
    mailbox._boxes[torch.device("cpu")] = torch.zeros(mailbox.SLOTS, dtype=torch.int64), None


def arguments() -> dict[str, tuple[Any, ...]]:
    """Small arguments of every op that is one launch or a few; products are left out, for their time is cuBLAS's."""
    x, residual = torch.randn(2, T, E).bfloat16()
    w, b = torch.ones(2, E).bfloat16()
    rng = torch.tensor([1, 2])
    mean, rstd = torch.ones(2, T)
    qkv, out = torch.randn(T, 3, H, D).bfloat16(), torch.randn(T, H, D).bfloat16()
    lse, bounds = torch.zeros(H, T), torch.tensor([0, T // 2, T], dtype=torch.int32)
    padded, lse2 = qkv.view(2, T // 2, 3, H, D), torch.zeros(2, H, T // 2)
    mask = torch.ones(2, 1, 1, T // 2, dtype=torch.bool)
    ids, zeros = torch.arange(T), torch.zeros(T, dtype=torch.int64)
    word, position, segment = (torch.randn(n, E).bfloat16() for n in (V, T, 2))
    pre, bias = torch.randn(T, F).bfloat16(), torch.randn(F).bfloat16()
    return {
        "dropout_add_norm_fwd": (x, b, residual, w, b, 1e-12, 0.1, rng),
        "dropout_add_norm_bwd": (x, x, b, residual, w, mean, rstd, 0.1, rng),
        "embedding_sum_norm_fwd": (ids, ids, zeros, word, position, segment, w, b, 0, 1e-12, 0.1, rng),
        "embedding_sum_norm_bwd": (x, ids, ids, zeros, word, position, segment, w, mean, rstd, 0, 0.1, rng),
        "embedding_sum_norm_tied_bwd": (
            word.clone(), x, ids, ids, zeros, word, position, segment, w, mean, rstd, 0, 0.1, rng,
        ),
        "attention_fwd": (qkv, bounds, T // 2, 0.1, 0.1, rng),
        "attention_bwd": (out, qkv, out, lse, bounds, T // 2, 0.1, 0.1, rng),
        "attention_padded_fwd": (padded, mask, 0.1, 0.1, rng),
        "attention_padded_bwd": (out.view(2, T // 2, H, D), padded, out.view(2, T // 2, H, D), lse2, mask, 0.1, 0.1, rng),
        "bias_gelu_fwd": (pre, bias, False),
        "bias_gelu_bwd": (pre, pre, bias, False),
        "unpad": (x, ids),
        "repad": (x, ids, 2 * T),
    }  # fmt: skip


def per_call(function: Callable[[], Any], calls: int) -> float:
    """Median over five runs of the mean seconds of a call, of processor time: other work on the machine does not count."""
    function()
    found = []
    for _ in range(5):
        begin = time.process_time()
        for _ in range(calls):
            function()
        found.append((time.process_time() - begin) / calls)
    return statistics.median(found)


def measure(calls: int) -> list[tuple[str, float, float]]:
    """(op, seconds of the launcher alone, seconds through the dispatcher) of each op."""
    pretend_gpu()
    library = torch.library.Library("bertfast_host", "FRAGMENT")
    rows = []
    for name, args in arguments().items():
        launcher = _library.owner(name, "CUDA")
        schema = str(_library.op(name)._schema).removeprefix("bertfast::")
        library.define(schema)
        library.impl(name, launcher, "CPU")
        op = getattr(torch.ops.bertfast_host, name).default
        with torch.no_grad():
            rows.append(
                (
                    name,
                    per_call(lambda f=launcher, a=args: f(*a), calls),  # type: ignore[misc]
                    per_call(lambda f=op, a=args: f(*a), calls),  # type: ignore[misc]
                )
            )
    return rows


def _calls_table(rows: list[tuple[str, dict[str, float], dict[str, Any]]]) -> Table:
    table = Table(
        title="processor time of a layer and of a call, us, and what it launches",
        caption="x: stock's time over ours, medians of interleaved rounds; launches: our kernels + torch's functions. "
        "Stock's functions and both sides' products run on the CPU here, on tiny tensors",
    )
    for column in ("what", "side", "us", "x", "launches"):
        table.add_column(column, justify="left" if column in ("what", "side") else "right")
    for name, seconds, counts in rows:
        for side, found in seconds.items():
            launches = f"{counts[side].kernels} + {counts[side].functions}"
            table.add_row(name, side, f"{found * 1e6:.0f}", f"{seconds['stock'] / found:.2f}", launches)
    return table


def main(calls: Annotated[int, typer.Option(min=1, help="calls in a run")] = 2000) -> None:
    """Print microseconds of host time. Exit status 1 where an op, a call or a layer in training is over its target."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("benchmarks.gpu.host: unset TRITON_INTERPRET, which makes every launch an interpretation")
    from benchmarks.gpu import host_calls  # needs transformers, which ops do not

    torch.set_num_threads(1)
    rows = measure(calls)
    table = Table(
        title=f"host time of an eager call, us, on {doctor.processor()}",
        caption="target: under 25 with the dispatcher; ops with a product or a wait for the device are left out",
    )
    for column in ("op", "launcher", "with dispatcher"):
        table.add_column(column, justify="left" if column == "op" else "right")
    for name, alone, dispatched in rows:
        table.add_row(
            name, f"{alone * 1e6:.1f}", f"{dispatched * 1e6:.1f}{' over' if dispatched > TARGET_SECONDS else ''}"
        )
    whole = host_calls.measure(max(1, calls // 20))
    Console().print(table, _calls_table(whole))
    missed = [name for name, _, dispatched in rows if dispatched > TARGET_SECONDS]
    times = {name: seconds for name, seconds, _ in whole}
    for name, side in ((host_calls.CALL, "direct"), (host_calls.STACK_TRAINING, "at once")):
        if times[name]["stock"] < TARGET_RATIO * times[name][side]:
            missed.append(name)
    print(f"over their target: {', '.join(missed)}" if missed else "all targets are met")
    raise typer.Exit(int(bool(missed)))


if __name__ == "__main__":
    typer.run(main)
