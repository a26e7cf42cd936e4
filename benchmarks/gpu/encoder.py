"""The stage encoder: BERT through the Hugging Face model as a user calls it, beside what else that user could run.

Times are wall clock around a call and the wait for its result, sides in turn, after warm calls that let sizes be captured.
Weights are random; tokens per second count real tokens. Inference, and all layers in training, are captured by the drop-in; `path`
says what a call did. Under autocast weights are float32. `gpu_kernels=True` throughout: what is measured must not depend on what
earlier lines let the default be.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu import measure, results
from bertfast.graphs.workspaces import Workspaces

DEVICE = "cuda"
STAGE_SECONDS = 400
WARM_CALLS = 4  # a size is captured on its second call
MODELS = {"base": (768, 12, 12), "large": (1024, 24, 16)}  # hidden size, layers, heads
TOKENS = 16384  # places of a full batch, padding included
STATIC = "one shape, its inputs copied in and its result left in place; an all-ones mask is left out, as stock does"


@dataclass(frozen=True)
class Setting:
    model: str
    train: bool
    count: int
    seqlen: int
    half: bool  # lengths spread evenly, so that about half of the batch is padding
    dtype: str = "bfloat16"
    autocast: bool = False  # to bfloat16

    @property
    def name(self) -> str:
        kind, padding = "training step" if self.train else "inference", "half padding" if self.half else "full"
        dtype = "" if self.dtype == "bfloat16" else f" {self.dtype}"
        dtype = " autocast" if self.autocast else dtype
        return f"BERT-{self.model} {kind} {self.count}x{self.seqlen} {padding}{dtype}"


def settings(train: bool) -> list[Setting]:
    """The rows of inference, the most telling ones first, or of training."""
    batches = [
        Setting(model, train, TOKENS // seqlen, seqlen, half)
        for model in MODELS
        for seqlen in (128, 512)
        for half in (False, True)
    ]
    if train:
        return batches + [replace(setting, dtype="float32", autocast=True) for setting in batches]
    one = [Setting(model, False, 1, 128, False) for model in MODELS]
    others = [
        Setting("base", False, TOKENS // 128, 128, half, dtype)
        for dtype in ("float16", "float32")
        for half in (False, True)
    ]
    return batches + one + others


def build(model: str, dtype: str = "bfloat16") -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    hidden, layers, heads = MODELS[model]
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * hidden
    )
    config._attn_implementation = "sdpa"
    return BertModel(config, add_pooling_layer=False).to(DEVICE, getattr(torch, dtype))


def batch_of(setting: Setting) -> dict[str, torch.Tensor]:
    lengths = torch.full((setting.count,), setting.seqlen, device=DEVICE)
    if setting.half:
        lengths = torch.linspace(1, setting.seqlen, setting.count, device=DEVICE).long()
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


def peak(thunk: Callable[[], Any]) -> int:
    """Bytes of the device that one call allocates at most above what it finds."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    thunk()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def within(contexts: Sequence[Callable[[], Any]], thunk: Callable[[], Any]) -> Callable[[], Any]:
    def inside() -> Any:
        with ExitStack() as inside_of:
            for context in contexts:
                inside_of.enter_context(context())
            return thunk()

    return inside


def casting(setting: Setting) -> Callable[[], Any]:
    """The setting's autocast."""
    return lambda: torch.autocast(DEVICE, torch.bfloat16, enabled=setting.autocast)


def capture(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """A CUDA graph of one call: what replays it, and its result, which stays where it is.

    Where it cannot be captured nothing is left of that in torch, which the rows after it would suffer from.
    """
    stream, caller = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(caller)
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    caller.wait_stream(stream)
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    workspaces = Workspaces(torch.device(DEVICE, torch.cuda.current_device()))
    try:
        with torch.cuda.stream(caller), torch.cuda.graph(graph, pool=pool, stream=stream):
            outputs = function()
    except BaseException:
        workspaces.restore(graph, pool, stream)
        raise
    return graph.replay, outputs


class Graphed:
    """Stock's inference on batches of one shape, in a CUDA graph that is made at the first call."""

    def __init__(self, model: Callable[..., Any], masked: bool) -> None:
        self.model, self.masked = model, masked
        self.inputs: dict[str, torch.Tensor] = {}

    def __call__(self, **batch: torch.Tensor) -> Any:
        if not self.inputs:
            kept = {name: value for name, value in batch.items() if self.masked or name != "attention_mask"}
            inputs = {name: value.clone() for name, value in kept.items()}
            self.replay, self.outputs = capture(lambda: self.model(**inputs))
            self.inputs = inputs
        for name, buffer in self.inputs.items():
            buffer.copy_(batch[name])
        self.replay()
        return self.outputs


Sides = dict[str, tuple[Callable[..., Any], Callable[[], Any]]]


def sides(stock: torch.nn.Module, setting: Setting) -> Sides:
    """Name to (model, context). `bertfast` is always among them, since only ratios of one run compare."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    import bertfast

    fast = bertfast.optimize(copy.deepcopy(stock), gpu_kernels=True)
    sides: Sides = {"bertfast": (fast, nullcontext), "stock": (stock, nullcontext)}
    if setting.dtype != "float32" or setting.autocast:  # cuDNN has no attention for it
        sides["stock cudnn"] = stock, lambda: sdpa_kernel([SDPBackend.CUDNN_ATTENTION])
    if not setting.train:
        sides["stock graph"] = Graphed(stock, setting.half), nullcontext
    return sides


def errors(
    models: Sides, batch: dict[str, torch.Tensor], stock: torch.nn.Module, setting: Setting
) -> dict[str, float | str]:
    """The largest difference of each from stock in float32 without dropout, over real tokens."""
    oracle = copy.deepcopy(stock).float().eval()
    real = batch["attention_mask"].bool()
    with torch.inference_mode():
        expected = oracle(**batch).last_hidden_state[real]
    errors: dict[str, float | str] = {}
    for name, (model, context) in models.items():
        try:
            got = within([context, casting(setting)], step(model, batch, None))()[real].float()
            errors[name] = float((got - expected).abs().max())
        except Exception as problem:
            errors[name] = measure.explain(problem)
    return errors


def timed(
    thunks: dict[str, Callable[[], Any]], clock: measure.Clock, tokens: int, replays: int = 1
) -> tuple[results.Line, results.Line]:
    """What a line says of `bertfast`, with its path, and of its peers, each with its ratio: its time over ours.

    replays: of graphs in a call of `bertfast` that is captured from end to end.
    """
    for thunk in thunks.values():
        try:
            for _ in range(WARM_CALLS):
                thunk()
        except Exception:  # take_turns tells of it
            continue
    path = measure.path_of(thunks["bertfast"], replays)
    spreads, rows = measure.take_turns(thunks, clock, budget=2.0, fewest=5, most=30), {}
    for key, spread in spreads.items():
        if isinstance(spread, str):
            rows[key] = {"error": spread}
            continue
        rows[key] = {"p20": spread.p20, "p50": spread.p50, "p80": spread.p80}
        rows[key] |= {"tokens_per_second": tokens / spread.p50, "peak_bytes": peak(thunks[key])}
    own = rows.pop("bertfast")
    for row in rows.values():
        if "p50" in row and "p50" in own:
            row["ratio"] = row["p50"] / own["p50"]
    return {"path": path, **own}, rows


def shape_of(setting: Setting, real_tokens: int) -> results.Line:
    """What places a line among others: dtype, sizes of the model and of the batch, and the share of padding."""
    hidden, layers, _ = MODELS[setting.model]
    places = setting.count * setting.seqlen
    dtype = "bfloat16" if setting.autocast else setting.dtype  # of the products
    shape = {"dtype": dtype, "hidden": hidden, "layers": layers, "tokens": places, "seqlen": setting.seqlen}
    shape["train"] = setting.train
    return shape | {"padding": 1 - real_tokens / places, "clock": "wall", "clocks": results.clocks()}


def run_setting(
    stage: str, name: str, setting: Setting, stock: torch.nn.Module, models: Callable[[], Sides], clock: measure.Clock
) -> results.Line:
    """One line: every side of `models()`, among them `bertfast`, in turn on one batch."""
    try:
        made, batch = models(), batch_of(setting)
        real = batch["attention_mask"].bool()
        dy = None
        stock.eval()
        made["bertfast"][0].eval()  # type: ignore[attr-defined]
        differences = errors(made, batch, stock, setting) if "stock" in made else {}
        if setting.train:
            dy = torch.randn(*real.shape, MODELS[setting.model][0], device=DEVICE, dtype=getattr(torch, setting.dtype))
            dy *= real[..., None]
            stock.train()
            made["bertfast"][0].train()  # type: ignore[attr-defined]
        cast = casting(setting)
        thunks = {key: within([context, cast], step(model, batch, dy)) for key, (model, context) in made.items()}
        graphs = 2 if setting.train else 1  # of a captured call: one forward, one backward
        own, peers = timed(thunks, clock, int(real.sum()), graphs)
        for key, row in {"bertfast": own, **peers}.items():
            row["max_error"] = differences.get(key)
        if "stock graph" in peers:
            peers["stock graph"]["note"] = STATIC
        shape = shape_of(setting, int(real.sum()))
        return results.line(stage, name, ok="error" not in own, **shape, peers=peers, **own)
    except Exception as problem:
        return results.line(stage, name, ok=False, error=measure.explain(problem))
    finally:
        stock.zero_grad(set_to_none=True)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def run(only: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    clock, deadline = measure.WallClock(), measure.Deadline(STAGE_SECONDS)
    stock, built = None, ("", "")
    for setting in (*settings(train=False), *settings(train=True)):
        name = setting.name
        if only not in name or name in done:
            continue
        if deadline.passed:
            yield results.line("encoder", name, ok=None, error=deadline.text)
            continue
        if stock is None or built != (setting.model, setting.dtype):
            stock, built = build(setting.model, setting.dtype), (setting.model, setting.dtype)
        yield run_setting("encoder", name, setting, stock, lambda s=stock, o=setting: sides(s, o), clock)
