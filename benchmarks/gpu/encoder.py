"""The stage encoder: whole BERT-base and -large encoders, inference and a training step, against what else a user could run.

Weights are random. Tokens per second count real tokens. Compiled models are timed after all others, for as long as time allows.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu import measure, results

DEVICE = "cuda"
STAGE_SECONDS = 400
COMPILED_SECONDS = 300  # for beginning a compiled one, whose autotuning takes a minute or two
MODELS = {"base": (768, 12, 12), "large": (1024, 24, 16)}  # hidden size, layers, heads
TOKENS = 16384  # places of a batch, padding included


@dataclass(frozen=True)
class Setting:
    model: str
    train: bool
    seqlen: int
    half: bool  # lengths spread evenly, so that about half of the batch is padding

    @property
    def name(self) -> str:
        kind, padding = "training step" if self.train else "inference", "half padding" if self.half else "full"
        return f"BERT-{self.model} {kind} {TOKENS // self.seqlen}x{self.seqlen} {padding}"


SETTINGS = [
    Setting(model, train, seqlen, half)
    for model in MODELS
    for train in (False, True)
    for seqlen in (128, 512)
    for half in (False, True)
]


def build(model: str) -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    hidden, layers, heads = MODELS[model]
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * hidden
    )
    config._attn_implementation = "sdpa"
    return BertModel(config, add_pooling_layer=False).to(DEVICE, torch.bfloat16)


def batch_of(setting: Setting) -> dict[str, torch.Tensor]:
    count = TOKENS // setting.seqlen
    lengths = torch.full((count,), setting.seqlen, device=DEVICE)
    if setting.half:
        lengths = torch.linspace(1, setting.seqlen, count, device=DEVICE).long()
    mask = torch.arange(setting.seqlen, device=DEVICE) < lengths[:, None]
    return {"input_ids": torch.randint(0, 30522, mask.shape, device=DEVICE), "attention_mask": mask.long()}


def step(model: Callable[..., Any], batch: dict[str, torch.Tensor], dy: torch.Tensor | None) -> Callable[[], Any]:
    """One inference, or forward and backward where dy, the gradient of the last hidden state, is given."""

    def inference() -> Any:
        with torch.inference_mode():
            return model(**batch).last_hidden_state

    def training() -> Any:
        hidden = model(**batch).last_hidden_state
        hidden.backward(dy)
        return hidden

    return inference if dy is None else training


def _peak(thunk: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    thunk()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _within(context: Callable[[], Any], thunk: Callable[[], Any]) -> Callable[[], Any]:
    def inside() -> Any:
        with context():
            return thunk()

    return inside


def contenders(stock: torch.nn.Module, compiled: bool) -> dict[str, tuple[Callable[..., Any], Callable[[], Any]]]:
    """Name to (model, context). `bertfast` is always among them, since only ratios of one run compare."""
    import bertfast

    fast = bertfast.optimize(copy.deepcopy(stock), gpu_kernels=True)
    found: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {"bertfast": (fast, nullcontext)}
    if compiled:
        torch._dynamo.reset()
        return found | {"compiled": (torch.compile(stock, mode="max-autotune-no-cudagraphs"), nullcontext)}
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found["stock"] = stock, nullcontext
    found["stock cudnn"] = stock, lambda: sdpa_kernel([SDPBackend.CUDNN_ATTENTION])
    return found


def errors(models: dict[str, Any], batch: dict[str, torch.Tensor], stock: torch.nn.Module) -> dict[str, float | str]:
    """The largest difference of each from stock in float32 without dropout, over real tokens."""
    oracle = copy.deepcopy(stock).float().eval()
    real = batch["attention_mask"].bool()
    with torch.inference_mode():
        wanted = oracle(**batch).last_hidden_state[real]
    found: dict[str, float | str] = {}
    for name, (model, context) in models.items():
        try:
            with context():
                got = step(model, batch, None)()[real].float()
            found[name] = float((got - wanted).abs().max())
        except Exception as problem:
            found[name] = measure.explain(problem)
    return found


def run_setting(setting: Setting, stock: torch.nn.Module, clock: measure.Clock, compiled: bool) -> results.Line:
    name = setting.name + (", compiled" if compiled else "")
    try:
        models, batch = contenders(stock, compiled), batch_of(setting)
        real = batch["attention_mask"].bool()
        dy = None
        for model, _ in models.values():
            model.eval()  # type: ignore[attr-defined]
        found_errors = {} if compiled else errors(models, batch, stock)
        if setting.train:
            dy = torch.randn(*real.shape, MODELS[setting.model][0], device=DEVICE, dtype=torch.bfloat16)
            dy *= real[..., None]
            for model, _ in models.values():
                model.train()  # type: ignore[attr-defined]
        thunks = {key: _within(context, step(model, batch, dy)) for key, (model, context) in models.items()}
        found = measure.take_turns(thunks, clock, budget=2.0, fewest=5, most=30)
        tokens, peers = int(real.sum()), {}
        for key, spread in found.items():
            if isinstance(spread, str):
                peers[key] = {"error": spread}
                continue
            peers[key] = {"p20": spread.p20, "p50": spread.p50, "p80": spread.p80}
            peers[key] |= {"tokens_per_second": tokens / spread.p50, "peak_bytes": _peak(thunks[key])}
            peers[key]["max_error"] = found_errors.get(key)
        own = peers.pop("bertfast")
        for peer in peers.values():
            if "p50" in peer and "p50" in own:
                peer["ratio"] = peer["p50"] / own["p50"]
        return results.line(
            "encoder", name, ok="error" not in own, dtype="bfloat16", clocks=results.clocks(), peers=peers, **own
        )
    except Exception as problem:
        return results.line("encoder", name, ok=False, error=measure.explain(problem))
    finally:
        stock.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def run(wanted: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    clock = measure.CudaClock(flush=False)
    deadlines = {False: measure.Deadline(STAGE_SECONDS), True: measure.Deadline(COMPILED_SECONDS)}
    for compiled, deadline in deadlines.items():
        for model in MODELS:
            named = {setting.name + ", compiled" * compiled: setting for setting in SETTINGS if setting.model == model}
            mine = {name: setting for name, setting in named.items() if wanted in name and name not in done}
            stock = build(model) if mine and not deadline.passed else None
            for name, setting in mine.items():
                if stock is None or deadline.passed:
                    yield results.line("encoder", name, ok=None, error=deadline.text)
                else:
                    yield run_setting(setting, stock, clock, compiled)
