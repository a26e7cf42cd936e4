"""Host time and launches of a whole layer and of a whole inference call, ours beside stock transformers'.

No GPU is used. Tensors are tiny and on the CPU, and our compiled kernels return at once (`host.pretend_gpu`); products and stock's
other functions are torch's CPU kernels on the same tiny tensors, on both sides, where a GPU's host would launch a kernel. So
what is compared is Python, dispatcher and autograd, and neither side's launches by the driver. A call of ours begins with packed
ids and bounds; stock's with padded ids and a mask, as a user gives them. So do whole calls of `optimize(model)`, eager ones and
replays of a graph, whose one launch is not in the time and not counted.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bertfast import _library, _torch, models
from bertfast.graphs import backend, inference
from bertfast.nn import core, device, feed_forward, linear
from bertfast.nn.layout import Packed
from bertfast.nn.modules import BertLayer, embed
from bertfast.nn.parts import Kind, LayerParts, parts_of
from bertfast.nn.through import through
from bertfast.triton import launch

LAYERS, TOKENS = 12, 8  # of BERT-base; of one sequence, where the 128 of a real one would only make CPU kernels slower
H, E, F, V = 2, 32, 64, 64
CALL = f"a call of {LAYERS} layers, inference"
LAYER_TRAINING = "a layer, forward and backward"
STACK_TRAINING = f"{LAYERS} layers, forward and backward"
DROP_IN = "optimize(model), a whole call, inference"
ROUNDS = 15


class Counted(NamedTuple):
    """What a GPU would be given: our kernels, and torch's functions that are neither views nor empty memory."""

    kernels: int
    functions: int

    @property
    def total(self) -> int:
        return self.kernels + self.functions


class _Functions(TorchDispatchMode):
    """Counts torch's functions that make or change a tensor; our ops count by what their launchers ask of it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        empty = func._schema.name.split("::")[1].startswith(("empty", "new_empty"))
        if func.namespace == _library.NAMESPACE:
            with self:  # what the launcher asks torch for
                return _library.resolved(func._schema.name.split("::")[1], "CUDA")(*args)
        found = func(*args, **(kwargs or {}))
        results = found if isinstance(found, tuple | list) else (found,)
        if not view and not empty and (func._schema.is_mutable or any(isinstance(r, Tensor) for r in results)):
            self.names.append(str(func))
        return found


def count(function: Callable[[], Any]) -> Counted:
    """What `function` launches. Results are not computed: kernels are only recorded."""
    with launch.recording(90) as launches, _Functions() as functions:
        function()
    return Counted(len(launches), len(functions.names))


@contextmanager
def owned_by_launchers() -> Iterator[None]:
    """Let CPU tensors take the way of a GPU's through every op: dispatcher, autograd, launchers, and torch's products."""
    before = core._prepacked, linear.ordinary, feed_forward.ordinary
    library = torch.library.Library(_library.NAMESPACE, "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of taking the C++ kernels' place, which is meant
        for name in _library.owners("CUDA"):
            library.impl(name, _library.owner(name, "CUDA"), "CPU")
    core._prepacked = lambda *args: False  # type: ignore[assignment]
    linear.ordinary = feed_forward.ordinary = lambda parts: False  # type: ignore[assignment]
    try:
        yield
    finally:
        core._prepacked, linear.ordinary, feed_forward.ordinary = before
        library._destroy()


class Ours:
    """Our model of BERT-base's depth, its layers by the ops one after another or by `nn.device`."""

    def __init__(self, dtype: torch.dtype = torch.float32, depth: int = LAYERS) -> None:
        config = models.BertConfig(
            vocab_size=V, hidden_size=E, num_hidden_layers=depth, num_attention_heads=H, intermediate_size=F
        )
        self.model = models.BertModel(config).to(dtype).eval()
        self.ids = torch.arange(TOKENS)
        self.layout = Packed(torch.tensor([0, TOKENS], dtype=torch.int32), TOKENS)
        self.kind = Kind(H, (E // H) ** -0.5, "none")
        self.x = torch.randn(TOKENS, E, dtype=dtype)

    @property
    def stack(self) -> list[BertLayer]:
        return list(self.model.encoder.layer)  # type: ignore[arg-type]

    def parts(self) -> list[LayerParts]:
        return [parts_of(layer) for layer in self.stack]

    def layers_by_ops(self, x: Tensor) -> Tensor:
        for layer in self.stack:
            x = layer(x, cu_seqlens=self.layout.cu_seqlens, max_seqlen=self.layout.max_seqlen)
        return x

    def layers_directly(self, x: Tensor) -> Tensor:
        parts = self.parts()
        joined = device.Joined.of(self.model.encoder, parts, x.dtype)
        assert joined is not None
        return device.layers(x, parts, self.kind, self.layout, joined)

    def layers_trained(self, x: Tensor) -> Tensor:
        return through(self.model.encoder.layers(x.shape[-1]).ready(x), x, self.layout)

    def call_by_ops(self) -> Tensor:
        return self.layers_by_ops(embed(self.model.embeddings, self.ids, None, self.ids))

    def call_directly(self) -> Tensor:
        return self.layers_directly(device.embed(self.model.embeddings, self.ids, None, self.ids))


class Stock:
    """transformers' BertModel of the same sizes, on its default attention."""

    def __init__(self, depth: int = LAYERS) -> None:
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=V, hidden_size=E, num_hidden_layers=depth, num_attention_heads=H, intermediate_size=F
        )
        self.model = BertModel(config, add_pooling_layer=False).eval()
        self.ids, self.mask = torch.arange(TOKENS)[None], torch.ones(1, TOKENS, dtype=torch.int64)
        self.x = torch.randn(1, TOKENS, E)

    def layer(self) -> Tensor:
        return self._through(self.model.encoder.layer[0], self.x)

    def layers(self) -> Tensor:
        x = self.x
        for layer in self.model.encoder.layer:
            x = self._through(layer, x)
        return x

    def _through(self, layer: Any, x: Tensor) -> Tensor:
        result = layer(x)
        return result if isinstance(result, Tensor) else result[0]

    def call(self) -> Tensor:
        return self.model(self.ids, attention_mask=self.mask).last_hidden_state


class _Still(backend.Graph):
    """A graph whose replay costs the host nothing; on a GPU it is one launch."""

    def __init__(self, outputs: tuple[Tensor, ...]) -> None:
        self.outputs, self.nbytes = outputs, 0

    def replay(self, function: backend.Function) -> None:
        return

    def reset(self) -> None:
        return


class _Stills(backend.StandIn):
    def capture(self, function: backend.Function, pool: str = backend.INFERENCE) -> backend.Graph:
        return _Still(function())


@contextmanager
def captured() -> Iterator[None]:
    """Let models on the CPU run as on a GPU whose calls are captured."""
    before = device.KINDS, device.runs_kernels, inference._difference, _torch.is_watched
    device.KINDS = device.KINDS | {"cpu"}
    device.runs_kernels = lambda: True
    inference._difference = lambda replayed, rows: None  # kernels that return at once leave any bits
    _torch.is_watched = lambda: False  # as `count` does
    try:
        with backend.installed(_Stills()):
            yield
    finally:
        device.KINDS, device.runs_kernels, inference._difference, _torch.is_watched = before


class DropIn:
    """Stock's model after `optimize`: calls that are captured, and calls that never are."""

    def __init__(self) -> None:
        import bertfast

        # Made where the C++ kernels still own the CPU: `optimize` compares numbers of a tiny model first.
        self.replayed, self.eager = Stock(), Stock()
        for stock, graphs in ((self.replayed, 64), (self.eager, 0)):
            bertfast.optimize(stock.model, gpu_kernels=True, max_graphs=graphs)

    def warm_up(self) -> None:
        """Two calls, of which the second is captured."""
        with torch.no_grad():
            for _ in range(2):
                self.replayed.call()


def trained(module: nn.Module, function: Callable[[], Tensor]) -> Callable[[], None]:
    """A step through `function`, forward and backward with dropout, which leaves no gradients behind."""
    parameters = list(module.train().parameters())

    def step() -> None:
        function().sum().backward()
        for parameter in parameters:
            parameter.grad = None

    return step


def interleaved(sides: dict[str, Callable[[], Any]], calls: int) -> dict[str, float]:
    """Median over rounds of processor seconds a call, the sides in turn within each round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, function in sides.items():
            begin = time.process_time()
            for _ in range(calls):
                function()
            if number:  # the first round warms up
                found[name].append((time.process_time() - begin) / calls)
    return {name: statistics.median(times) for name, times in found.items()}


def drop_in_case(drop_in: DropIn) -> dict[str, Callable[[], Any]]:
    """Whole calls of stock's model from ids and a mask to its output; in `captured`."""
    drop_in.warm_up()
    return {
        "stock": torch.no_grad()(Stock().call),
        "eager": torch.no_grad()(drop_in.eager.call),
        "replayed": torch.no_grad()(drop_in.replayed.call),
    }


def cases() -> dict[str, dict[str, Callable[[], Any]]]:
    """By what is measured: stock, ours through the ops, and ours without them where there is that way."""
    one, ours, stock_one, stock = Ours(depth=1), Ours(), Stock(depth=1), Stock()
    return {
        "a layer, inference": {
            "stock": torch.no_grad()(stock_one.layer),
            "ops": torch.no_grad()(lambda: one.layers_by_ops(one.x)),
            "direct": torch.no_grad()(lambda: one.layers_directly(one.x)),
        },
        CALL: {
            "stock": torch.no_grad()(stock.call),
            "ops": torch.no_grad()(ours.call_by_ops),
            "direct": torch.no_grad()(ours.call_directly),
        },
    }


def training_cases() -> dict[str, dict[str, Callable[[], Any]]]:
    """Forward and backward with dropout: stock, our layers called one by one, and all at once (`nn.training`); in `captured`."""
    rows: dict[str, dict[str, Callable[[], Any]]] = {}
    for name, depth in ((LAYER_TRAINING, 1), (STACK_TRAINING, LAYERS)):
        ours, stock = Ours(depth=depth), Stock(depth=depth)
        rows[name] = {
            "stock": trained(stock.model.encoder.layer, stock.layers),
            "modules": trained(ours.model.encoder, lambda ours=ours: ours.layers_by_ops(ours.x)),  # type: ignore[misc]
            "at once": trained(ours.model.encoder, lambda ours=ours: ours.layers_trained(ours.x)),  # type: ignore[misc]
        }
    return rows


def measure(calls: int) -> list[tuple[str, dict[str, float], dict[str, Counted]]]:
    """(what, seconds a call, launches) by side of each case. Call `host.pretend_gpu` first."""
    drop_in = DropIn()
    with owned_by_launchers():
        rows = [_measured(name, sides, calls) for name, sides in cases().items()]
        with captured():
            rows += [_measured(name, sides, calls) for name, sides in training_cases().items()]
            rows.append(_measured(DROP_IN, drop_in_case(drop_in), calls))
    return rows


def _measured(
    name: str, sides: dict[str, Callable[[], Any]], calls: int
) -> tuple[str, dict[str, float], dict[str, Counted]]:
    counts = {side: count(function) for side, function in sides.items()}
    return name, interleaved(sides, calls), counts
