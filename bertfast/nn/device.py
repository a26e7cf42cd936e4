"""Inference of the embeddings and of all layers on a GPU with as little host time as Python allows.

A kernel of a small batch runs for a few microseconds, and a call through an op costs tens of the host: argument checks, dispatcher,
autograd, tiles and keys. Here an op's launcher is called once, by the first layer; the others repeat its launch with their own
weights (`triton.repeats`) on the same buffers, which all layers share. Eight launches a layer are left: four products, attention,
GELU and two norms. The numbers are those of `core.attention_block` and `core.mlp_block`: the same kernels in the same order.
Where the kernels of an op are not verified on the device, torch's own functions run, as through the dispatcher.

Nothing here waits for the device or depends on what tensors hold, so that a CUDA graph can hold it all.
"""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bertfast import _library
from bertfast.nn.embedding import tables
from bertfast.nn.joined import Joined, Weights, is_aligned
from bertfast.nn.layout import Packed
from bertfast.nn.parts import Kind, LayerParts
from bertfast.nn.plain import inference_parts, is_unwatched, needs_gradients, product_dtype
from bertfast.triton import repeats

_TYPES = (nn.Parameter, Tensor)


def embed(embeddings: nn.Module, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor) -> Tensor:
    """The embeddings of packed tokens, without dropout and without gradients.

    Args:
        embeddings: a module with BERT's names inside, its tables plain parameters of one dtype.
        input_ids, position_ids: [N], int64 or int32.
        token_type_ids: [N] likewise, rows of `embedding.segment_table`, or None for zeros.

    Returns:
        [N, E] in the tables' dtype.

    Raises:
        IndexError: on an id outside its table; on a GPU at a later call.
    """
    input_ids = input_ids.to(torch.int64)
    norm: Any = embeddings._modules["LayerNorm"]
    ids = (
        input_ids,
        position_ids.to(torch.int64),
        torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids.to(torch.int64),
    )
    launcher = _library.resolved("embedding_sum_norm_fwd", "CUDA")
    scale = norm._parameters["weight"], norm._parameters["bias"]
    with torch.no_grad(), on(input_ids.device):
        return launcher(*ids, *tables(embeddings), *scale, -1, float(norm.eps), 0.0, None)[0]


def layers(x: Tensor, parts: Sequence[LayerParts], kind: Kind, layout: Packed, joined: Joined) -> Tensor:
    """Packed tokens through all layers, without dropout and without gradients.

    Args:
        x: [N, E], on a GPU, or on a CPU in Triton's interpreter.
        parts: the modules of each layer.
        kind: what all of them compute.
        layout: bounds of the sequences; `read` names the rows that the last layer makes, none below 0.
        joined: `Joined.of(owner, parts, dtype of the products)`; its copies are brought up to date here.

    Returns:
        [N, E], or [R, E] of the rows that are read, in the dtype of the residual stream: x's, promoted with the products'.

    Raises:
        ValueError: on bounds that do not rise from 0 to N by at most max_seqlen; on a GPU at a later call.
    """
    x, read = x.contiguous(), layout.read
    bounds = layout.cu_seqlens.contiguous(), layout.max_seqlen
    last, dtype, again = len(parts) - 1, joined.dtype, joined.alike and len(parts) > 1
    with torch.no_grad(), on(x.device):
        joined.refresh()
        steps: tuple[_Mixing, _Rows] | None = None
        before: tuple[torch.dtype, bool] | None = None
        for number, (part, weights) in enumerate(zip(parts, joined.layers, strict=True)):
            traits = x.dtype, is_aligned(x)  # the caller's rows may have others than a layer's
            if steps is None or not again or traits != before:
                steps, before = (_Mixing(kind, bounds, dtype, again), _Rows(kind, dtype, again)), traits
            mixing, rows = steps
            context = mixing(x, weights)
            if number == last and read is not None:
                # Every token is a key and a value; only here does a token that nobody reads cease to matter.
                context, x, rows = context.index_select(0, read), x.index_select(0, read), _Rows(kind, dtype, False)
            x = rows(context, x, weights, float(part.attention.norm.eps), float(part.mlp.norm.eps))
    return x


_OPS = ("embedding_sum_norm_fwd", "attention_fwd", "dropout_add_norm_fwd", "bias_gelu_fwd")
_PRODUCTS = ("linear_fwd", "linear_gelu_infer")
KINDS = frozenset({"cuda"})  # of devices whose layers run this way; tests add the CPU
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def on_cpu() -> Iterator[None]:
    """Models on a CPU compute as on a GPU, by the ops that a CPU has for it: slowly, for what only a GPU's way does.

    It holds for the whole process, because backward runs on threads of its own.
    """
    global KINDS
    before, KINDS = KINDS, KINDS | {"cpu"}
    try:
        with _library.dispatched():
            yield
    finally:
        KINDS = before


def runs_kernels() -> bool:
    """Whether all ops run their kernels. A reference may wait for the device, which no graph can hold."""
    return all(_library.resolved(name, "CUDA") is not _library.meaning(name) for name in _OPS)


@dataclass(frozen=True)
class Launched:
    """All layers of a stack by `layers`: what `find` found out of them, good as long as `is_ready` says so."""

    parts: tuple[LayerParts, ...]
    kind: Kind
    joined: Joined

    def forward(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, read: Tensor | None) -> Tensor:
        """x [N, E] with cu_seqlens [B + 1] int32 to [N, E], or to [R, E] of the rows `read`, [R] int64."""
        return layers(x, self.parts, self.kind, Packed(cu_seqlens, max_seqlen, read), self.joined)

    @property
    def parameters(self) -> list[Tensor | None]:
        """Of all layers, as `LayerParts.parameters` orders them."""
        return self.joined.parameters

    def running(self) -> tuple[Any, ...]:
        """What computes each op of a call now: what was captured is good while these are the same."""
        return tuple(_library.resolved(name, "CUDA") for name in (*_OPS, *_PRODUCTS))

    def is_ready(self) -> bool:
        """Whether a call without gradients may go this way: nothing watches it, every parameter lies where it lay, and products
        are of the same dtype still."""
        if torch.is_grad_enabled() or not is_unwatched() or not self.joined.holds():
            return False
        return product_dtype(self.joined.example) == self.joined.dtype


def find(owner: nn.Module, modules: Iterable[nn.Module], x: Tensor, kind: Kind) -> Launched | None:
    """What runs the layers on such x [N, E] on a GPU; None where they must be called, for gradients or dropout among others.

    Args:
        owner: the module that the copies of weights belong to; they go when it goes.
        modules: layers with BERT's names inside, all of this kind.
    """
    parts = inference_parts(modules) if type(x) is Tensor and x.numel() else None
    if not parts or not is_unwatched():
        return None
    parameters = [parameter for part in parts for parameter in part.parameters()]
    if needs_gradients(x, parameters):
        return None
    dtype = product_dtype(x)
    if any(type(p) not in _TYPES or p.dtype != x.dtype or p.device != x.device for p in parameters if p is not None):
        return None
    joined = Joined.of(owner, parts, dtype) if {x.dtype, dtype} <= set(_DTYPES) else None
    return None if joined is None else Launched(tuple(parts), kind, joined)


class _Step:
    """One op of every layer: by its launcher at first, then by that launch again wherever it was all that the launcher did."""

    def __init__(self, name: str, again: bool) -> None:
        self._function = _library.resolved(name, "CUDA")
        self._again = again  # whether there will be another call
        self._repeat: repeats.Repeat | None = None
        self._result: Any = None

    def __call__(self, args: tuple[Any, ...], *varying: Any) -> Tensor:
        """The op's first output. varying: those of `args` that are another object, of the same traits, at the next call."""
        if self._repeat is not None:
            self._repeat(*varying)
            return self._result
        if not self._again:
            outputs = self._function(*args)
            return outputs if isinstance(outputs, Tensor) else outputs[0]
        with repeats.noting() as made:
            outputs = self._function(*args)
        results = (outputs,) if isinstance(outputs, Tensor) else outputs
        self._result = results[0]
        if made:
            box = _mailbox().box(self._result.device)
            self._repeat = repeats.repeat(made, varying, (*args, *results, box))
        return self._result


@cache
def _mailbox() -> Any:
    """The module, which loads Triton: for where a launcher has loaded it."""
    return importlib.import_module("bertfast.triton.mailbox")


class _Product:
    """x W^T + b of every layer into one buffer, from x of any dtype: by torch's library, or by our kernel where one was chosen."""

    def __init__(self, dtype: torch.dtype, again: bool) -> None:
        self._dtype = dtype
        self._cast: Tensor | None = None
        self._out: Tensor | None = None
        self._step = None if _library.fused("linear_fwd") is None else _Step("linear_fwd", again)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [N, K] and weight [K, M], transposed, to [N, M]."""
        x = self.cast(x)
        if self._step is not None:
            args = x, weight.t(), bias
            return self._step(args, *args)
        if bias is None:
            self._out = torch.mm(x, weight, out=self._out)
        else:
            self._out = torch.addmm(bias, x, weight, out=self._out)
        return self._out

    def cast(self, x: Tensor) -> Tensor:
        """x in the products' dtype."""
        if x.dtype != self._dtype:
            self._cast = x = x.to(self._dtype) if self._cast is None else self._cast.copy_(x)
        return x


class _LinearGelu:
    """gelu(x W^T + b) of every layer: one kernel where one was chosen, else the product and GELU apart."""

    def __init__(self, tanh: bool, dtype: torch.dtype, again: bool) -> None:
        self._tanh = tanh
        self._product = _Product(dtype, again)
        self._is_fused = _library.fused("linear_gelu_infer") is not None
        self._step = _Step("linear_gelu_infer" if self._is_fused else "bias_gelu_fwd", again)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x [N, E], weight [E, F], transposed, and bias [F] to [N, F]."""
        if self._is_fused:
            args = self._product.cast(x), weight.t(), bias
            return self._step((*args, self._tanh), *args)
        return self._step((self._product(x, weight), bias, self._tanh), bias)


class _Mixing:
    """The part of a layer in which tokens see each other: x [N, E] to context [N, H D]."""

    def __init__(self, kind: Kind, bounds: tuple[Tensor, int], dtype: torch.dtype, again: bool) -> None:
        self._kind, self._bounds = kind, bounds
        self._product, self._attention = _Product(dtype, again), _Step("attention_fwd", again)
        self._qkv: Tensor | None = None
        self._args: tuple[Any, ...] = ()

    def __call__(self, x: Tensor, weights: Weights) -> Tensor:
        qkv = self._product(x, weights.qkv, weights.qkv_bias)  # [N, 3 H D]
        if qkv is not self._qkv:  # of every layer in one buffer, unless a launcher makes memory of its own each time
            self._qkv = qkv
            heads = self._kind.heads
            split = qkv.view(qkv.shape[0], 3, heads, qkv.shape[1] // (3 * heads))
            self._args = (split, *self._bounds, self._kind.scale, 0.0, None)
        return self._attention(self._args, self._args[0]).flatten(1)


class _Rows:
    """The rest of a layer, in which each row is by itself: context [R, H D] and the residual [R, E] to [R, E]."""

    def __init__(self, kind: Kind, dtype: torch.dtype, again: bool) -> None:
        self._dense, self._down = _Product(dtype, again), _Product(dtype, again)
        self._linear_gelu = _LinearGelu(kind.approximate == "tanh", dtype, again)
        self._attention_norm, self._norm = (_Step("dropout_add_norm_fwd", again) for _ in range(2))

    def __call__(self, context: Tensor, x: Tensor, w: Weights, attention_eps: float, eps: float) -> Tensor:
        projected = self._dense(context, w.dense)
        varying = w.dense_bias, x, w.attention_norm, w.attention_norm_bias, attention_eps
        x = self._attention_norm((projected, *varying, 0.0, None), *varying)
        hidden = self._linear_gelu(x, w.up, w.up_bias)  # [R, F]
        out = self._down(hidden, w.down)
        varying = w.down_bias, x, w.norm, w.norm_bias, eps
        return self._norm((out, *varying, 0.0, None), *varying)


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one: launches on another one switch to it and back, each by itself."""
    if device.type == "cuda" and torch.cuda.is_initialized() and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            yield
    else:
        yield
