"""Runs cases: parity first, then both sides timed in turn, then the memory of one call of each."""

import copy
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bertfast
from bertfast import _ext
from bertfast.bench.cases import DTYPES, Batch, Case, load_model
from bertfast.bench.protocol import Comparison, interleave, peak_memory
from bertfast.testing import rounding_step

COSINE = 0.99999  # demanded in float32; in bfloat16 stock itself does not reach it


@dataclass(frozen=True)
class Parity:
    """Largest absolute errors against stock in float64 over real tokens and the pooled output, and the smallest cosine."""

    error: float
    stock_error: float
    budget: float
    cosine: float
    passed: bool


@dataclass(frozen=True)
class Result:
    case: str
    model: str
    dtype: str
    batch: list[list[int]]
    padding: float
    real_tokens: int
    parity: Parity
    comparison: Comparison
    stock_memory: int | None
    fast_memory: int | None

    def tokens_per_second(self, side: str) -> float:
        return self.real_tokens / getattr(self.comparison, side).p50

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Models:
    """Stock and fast models of one name, made once; float64 and other dtypes as they are asked for."""

    def __init__(self, name: str):
        self.name = name
        self._stock = load_model(name)
        self._made: dict[Any, nn.Module] = {}

    @property
    def vocabulary(self) -> int:
        return self._stock.config.vocab_size

    @property
    def positions(self) -> int:
        return self._stock.config.max_position_embeddings

    def stock(self, dtype: torch.dtype) -> nn.Module:
        if dtype not in self._made:
            self._made[dtype] = copy.deepcopy(self._stock).to(dtype)
        return self._made[dtype]

    def fast(self, dtype: torch.dtype) -> nn.Module:
        if ("fast", dtype) not in self._made:
            self._made["fast", dtype] = bertfast.optimize(copy.deepcopy(self.stock(dtype)))
        return self._made["fast", dtype]


def _outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Hidden states of real tokens [T, E], and the pooled output where the model has one."""
    with torch.inference_mode():
        out = model(**batch.inputs())
    pooled = getattr(out, "pooler_output", None)
    return [out.last_hidden_state[batch.attention_mask.bool()].double(), *([] if pooled is None else [pooled.double()])]


def check_parity(models: Models, batches: tuple[Batch, ...], dtype: torch.dtype, fast: nn.Module | None = None) -> Parity:
    """Both sides against stock float64. Passed: error at most twice stock's own plus one rounding step, and in float32 the cosine."""
    worst = Parity(0.0, 0.0, float("inf"), 1.0, True)
    fast = models.fast(dtype) if fast is None else fast
    for batch in batches:
        sides = [_outputs(model, batch) for model in (models.stock(torch.float64), models.stock(dtype), fast)]
        for exact, stock, ours in zip(*sides, strict=True):
            error, stock_error = float((ours - exact).abs().max()), float((stock - exact).abs().max())
            budget = 2 * stock_error + rounding_step(dtype) * float(exact.abs().max())
            cosine = float(torch.cosine_similarity(ours, exact, dim=-1).min())
            passed = error <= budget and (dtype != torch.float32 or cosine >= COSINE)
            if not passed or (worst.passed and error >= worst.error):
                worst = Parity(error, stock_error, budget, min(cosine, worst.cosine), passed and worst.passed)
    return worst


def run_case(case: Case, models: Models) -> Result:
    """Parity, timing and memory of one case."""
    dtype = DTYPES[case.dtype]
    parity = check_parity(models, tuple(b.rows(case.oracle_rows) for b in case.batches), dtype)
    stock, fast = models.stock(dtype), models.fast(dtype)

    def call(model: nn.Module) -> None:
        with torch.inference_mode():
            for batch in case.batches:
                model(**batch.inputs())

    comparison = interleave(lambda: call(stock), lambda: call(fast), case.runs)
    return Result(
        case=case.name,
        model=case.model,
        dtype=case.dtype,
        batch=[list(b.input_ids.shape) for b in case.batches],
        padding=case.padding,
        real_tokens=sum(b.real_tokens for b in case.batches),
        parity=parity,
        comparison=comparison,
        stock_memory=peak_memory(lambda: call(stock)),
        fast_memory=peak_memory(lambda: call(fast)),
    )


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def processor() -> str:
    """The processor's name as Linux gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """What a figure must be read with: versions, processor, threads, kernels, commit."""
    import transformers

    extension = _ext.load()
    return {
        "bertfast": bertfast.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "kernels": extension.build_info()["isa"] if extension else f"eager references ({_ext.why_absent()})",
    }
