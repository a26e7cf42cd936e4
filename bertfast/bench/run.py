"""Runs cases: parity first, then both sides timed in turn, then the memory of one call of each."""

import copy
import math
import platform
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bertfast
from bertfast import _ext
from bertfast.bench.cases import DTYPES, Batch, BenchError, Case, load_model, random_batch
from bertfast.bench.protocol import Comparison, interleave, peak_memory
from bertfast.doctor import processor
from bertfast.testing import max_error, rms_error, rounding_step

COSINE = 0.99999  # demanded in float32; in bfloat16 stock itself does not reach it


@dataclass(frozen=True)
class Parity:
    """Errors against stock in float64 over real tokens and the pooled output: largest, root mean square, smallest cosine.

    The root mean square is held to twice stock's. The largest error is shown and, in float32, not judged: two libraries
    add the same products in different orders, and the largest of many thousands of such errors is luck.
    """

    error: float
    stock_error: float
    rms: float
    stock_rms: float
    cosine: float
    passed: bool

    @property
    def times_stock(self) -> float:
        """Our error over stock's own."""
        return self.error / self.stock_error if self.stock_error else (math.inf if self.error else 1.0)


@dataclass(frozen=True)
class Coverage:
    """How many modules ran fast, of how many, and the reasons of those that did not."""

    fast: int
    total: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """One case. Memory in bytes: the resident peak of one call above what was held before it, and, for the fast side,
    the prepacked copies of weights that it keeps between calls and stock does not have.
    """

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
    prepacked: int
    coverage: Coverage

    def tokens_per_second(self, side: str) -> float:
        return self.real_tokens / getattr(self.comparison, side).p50

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Models:
    """Stock and fast models of one name, each made once, when first asked for; and stock's answers in float64."""

    def __init__(self, name: str):
        self.name = name
        self._stock = {torch.float32: load_model(name)}
        self._fast: dict[torch.dtype, nn.Module] = {}
        self._exact: dict[Batch, list[Tensor]] = {}

    @property
    def _padding_idx(self) -> int:
        return self.stock(torch.float32).get_input_embeddings().padding_idx or 0

    @property
    def positions(self) -> int:
        """The longest sequence that the model takes."""
        from bertfast.convert.families import of_instance

        model = self.stock(torch.float32)
        family, positions = of_instance(model), model.config.max_position_embeddings
        return positions - self._padding_idx - 1 if family is not None and family.positions_follow_tokens else positions

    def random_batch(self, batch: int, length: int, padding: float, *, left: bool = False) -> Batch:
        vocabulary = self.stock(torch.float32).config.vocab_size
        return random_batch(vocabulary, batch, length, padding, left=left, padding_idx=self._padding_idx)

    def stock(self, dtype: torch.dtype) -> Any:
        if dtype not in self._stock:
            self._stock[dtype] = copy.deepcopy(self._stock[torch.float32]).to(dtype)
        return self._stock[dtype]

    def fast(self, dtype: torch.dtype) -> nn.Module:
        if dtype not in self._fast:
            try:
                self._fast[dtype] = bertfast.optimize(copy.deepcopy(self.stock(dtype)))
            except bertfast.UnsupportedModelError as error:
                raise BenchError(f"{self.name}: {error}") from error
        return self._fast[dtype]

    def exact(self, batch: Batch) -> list[Tensor]:
        """Stock in float64, the oracle of every dtype."""
        if batch not in self._exact:
            self._exact[batch] = _outputs(self.stock(torch.float64), batch)
        return self._exact[batch]


def _outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Hidden states of real tokens [T, E], and the pooled output where the model has one."""
    with torch.inference_mode():
        out = model(**batch.inputs())
    pooled = getattr(out, "pooler_output", None)
    hidden = out.last_hidden_state[batch.attention_mask.bool()].double()
    return [hidden, *([] if pooled is None else [pooled.double()])]


def check_parity(models: Models, batches: tuple[Batch, ...], dtype: torch.dtype) -> Parity:
    """Both sides against stock in float64, every batch and output judged by itself.

    Passed: root mean square error at most twice stock's own plus one rounding step; in float32 a cosine of at least
    COSINE, in bfloat16 the largest error at most twice stock's own plus one rounding step. Returned are the errors of
    a failing output if there is one, else of the one whose largest error is largest beside stock's.
    """
    found = []
    for batch in batches:
        sides = (models.exact(batch), _outputs(models.stock(dtype), batch), _outputs(models.fast(dtype), batch))
        for exact, stock, ours in zip(*sides, strict=True):
            error, stock_error = max_error(ours, exact), max_error(stock, exact)
            rms, stock_rms = rms_error(ours, exact), rms_error(stock, exact)
            cosine = float(torch.cosine_similarity(ours, exact, dim=-1).nan_to_num(nan=-1.0).min())
            step = rounding_step(dtype)
            within = error <= 2 * stock_error + step * float(exact.abs().max())
            passed = rms <= 2 * stock_rms + step * rms_error(exact, torch.zeros_like(exact)) and (
                cosine >= COSINE if dtype == torch.float32 else within
            )
            found.append(Parity(error, stock_error, rms, stock_rms, cosine, passed))
    worst = max(found, key=lambda p: (not p.passed, p.times_stock))
    return replace(worst, cosine=min(p.cosine for p in found))


def coverage(model: nn.Module) -> Coverage:
    """What the calls so far ran on. Parity of a model that quietly stayed stock would say nothing."""
    from bertfast.convert.encoder import FastEncoder

    reasons, fast = [], 0
    rows = bertfast.report(model).rows
    encoders = {name or "(model)" for name, module in model.named_modules() if isinstance(module, FastEncoder)}
    for row in rows:
        slow = [row.reason] if row.state != "fast" else []
        if row.name not in encoders:  # an encoder's counts tell only whether padding was removed
            slow += [outcome for outcome in row.calls if not outcome.startswith("fast")]
        fast += not slow
        reasons += slow
    return Coverage(fast, len(rows), tuple(dict.fromkeys(reasons)))


def run_case(case: Case, models: Models) -> Result:
    """Parity, timing and memory of one case."""
    dtype = DTYPES[case.dtype]
    parity = check_parity(models, case.batches, dtype)
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
        prepacked=bertfast.report(fast).prepacked_bytes,
        coverage=coverage(fast),
    )


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


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
