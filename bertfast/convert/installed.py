"""The installed transformers, where bertfast depends on more than its public classes. No other file names its private parts.

Each private name has a way out for a release without it:

    _active_collector, output_capturing_hook   recorders are found by the arguments and the config alone; a recorder's hook
                                               counts as a user's, so that calls stay padded
    _CAN_RECORD_REGISTRY                       recorded calls come back empty: `trial` sees it, and models stay stock
    config._attn_implementation                the attention is unknown, and calls go to stock
    _supports_sdpa                             every model is taken for one that may have sdpa
    bidirectional_mask_function                masks of padding alone are made as sdpa's, and padding is computed
    ALL_ATTENTION_FUNCTIONS and its masks      looked up by name; where it is gone nothing can have been registered there

Signatures are not copied: `Arguments` binds by what the installed forward takes, and what bertfast does not know goes to stock
unread.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from types import FunctionType
from typing import Any, NamedTuple, TypeVar, cast

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import activations, masking_utils, modeling_utils
from transformers.models.auto import modeling_auto

try:
    from transformers.utils.output_capturing import _active_collector
except ImportError:  # transformers 5.0 and 5.1 have no collector and set `forward` on instances instead
    _active_collector = None  # type: ignore[assignment]

_NOTHING: frozenset[str] = frozenset()
_RECORDABLE = ("hidden_states", "attentions")

# ---------------------------------------------------------------- arguments


def asked(value: Any) -> bool:
    """Whether an argument asks for something: anything but None, False and 0, the defaults of every optional argument."""
    return not (value is None or value is False or (type(value) is int and value == 0))


Forward = TypeVar("Forward", bound=Callable[..., Any])


def signed_as(stock: Callable[..., Any]) -> Callable[[Forward], Forward]:
    """Gives a forward(self, *args, **kwargs) the signature of the installed stock one: Trainer, PEFT and exporters look it up."""

    def decorate(forward: Forward) -> Forward:
        return cast(Forward, functools.wraps(stock)(forward))

    return decorate


class Arguments:
    """Binds the arguments of a call by the signature of the installed stock forward.

    Attributes:
        names: parameters that may be given by position, self left out.
    """

    def __init__(self, forward: Callable[..., Any]):
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(forward).parameters.values()
        self.names = tuple(p.name for p in parameters if p.kind in kinds)[1:]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments by name; None for a call that stock itself must refuse."""
        if not args:
            return kwargs
        if len(args) > len(self.names):
            return None
        bound = dict(zip(self.names, args, strict=False))
        if any(name in kwargs for name in bound):
            return None
        return {**bound, **kwargs}


def unknown(arguments: Mapping[str, Any], known: frozenset[str]) -> str | None:
    """The name of an argument outside `known` that asks for something."""
    for name, value in arguments.items():
        if name not in known and asked(value):
            return name
    return None


def averages_over_labels(head: type[nn.Module]) -> bool:
    """Whether a head's loss is a mean over `labels`. Causal language models divide by `num_items_in_batch` themselves; question
    answering has positions in place of labels, and Trainer, which cannot count them, divides its loss by the micro-batches."""
    return "labels" in inspect.signature(head.forward).parameters and head.__name__ not in set(
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    )


# ---------------------------------------------------------------- recorded outputs


def recorded(config: Any, arguments: Mapping[str, Any]) -> frozenset[str]:
    """What the caller asked transformers to record in this call: "hidden_states", "attentions" or nothing."""
    if _active_collector is None:
        return frozenset(n for n in _RECORDABLE if arguments.get(f"output_{n}", getattr(config, f"output_{n}", False)))
    # A context variable cannot be traced; transformers keeps a plain copy for that case.
    active = _active_collector.global_var if torch.compiler.is_compiling() else _active_collector.get()
    return frozenset(name for name in active if not name.startswith("_")) if active else _NOTHING


def is_recorder(hook: Any) -> bool:
    """Whether a forward hook is the one that transformers leaves on modules after the first recorded call."""
    return getattr(hook, "__name__", "") == "output_capturing_hook"


def requires_input_gradients(hook: Any) -> bool:
    """Whether a forward hook is `enable_input_require_grads`'s, which gradient checkpointing leaves on word embeddings."""
    return getattr(hook, "__name__", "") == "make_inputs_require_grads" and hook.__module__.startswith("transformers.")


def record_as(fast: type[nn.Module], stock: type[nn.Module]) -> None:
    """Let transformers record of a swapped class what it records of the stock one: it looks that up by str(class)."""
    registry = getattr(modeling_utils, "_CAN_RECORD_REGISTRY", None)
    if registry is not None:
        dict.__setitem__(registry, str(fast), stock._can_record_outputs)


def drop_recorder(module: nn.Module) -> None:
    """Drop the `forward` that transformers 5.0 and 5.1 leave on a module whose output they recorded.

    It is the class's own one or, where the recorded call raised or several threads recorded at once, recorders around
    it. Either would go on calling the old class's forward after a swap. A forward that a user has set stays.
    """
    own = module.__dict__.get("forward")
    while isinstance(own, FunctionType) and own.__globals__.get("__name__") == "transformers.utils.generic":
        own = own.__wrapped__
    if own is not None and getattr(own, "__func__", None) is type(module).forward:
        del module.__dict__["forward"]


# ---------------------------------------------------------------- attention


OWN_ATTENTION = "bertfast"  # what `convert.attention` registers


def attention_implementation(config: Any) -> str | None:
    """The name of the attention function that stock would look up, None for its eager one; our own computes what sdpa does."""
    name = getattr(config, "_attn_implementation", "unknown")
    return "sdpa" if name == OWN_ATTENTION else name


_SUPPORT: dict[type, bool] = {}


@torch.compiler.assume_constant_result
def supports_sdpa(attention: type[nn.Module]) -> bool:
    """Whether transformers lets the models beside an attention class have sdpa, whose place ours takes."""
    if attention not in _SUPPORT:
        there = vars(sys.modules[attention.__module__]).values()
        models = [each for each in there if isinstance(each, type) and issubclass(each, transformers.PreTrainedModel)]
        models = [each for each in models if each.__module__ == attention.__module__]
        _SUPPORT[attention] = not models or any(getattr(each, "_supports_sdpa", True) for each in models)
    return _SUPPORT[attention]


def is_bidirectional(mask_function: Any) -> bool:
    """Whether a mask function given to a registered mask says that every query may attend to every key."""
    return mask_function is getattr(masking_utils, "bidirectional_mask_function", _NOTHING)


# ---------------------------------------------------------------- code and tables outside the modules

_GELU = ("GELUActivation", "GELUTanh", "NewGELUActivation")
_LEAVES = ("Linear", "LayerNorm", "Dropout", "Embedding", "GELU")
_CALL = ("__call__", nn.Module.__call__)  # what a class has where nobody gave it one of its own
_FUNCTIONS = ("linear", "layer_norm", "dropout", "embedding", "gelu", "softmax", "scaled_dot_product_attention")
_UNREAD_METHODS = frozenset(
    {"__init__", "get_input_embeddings", "set_input_embeddings", "get_output_embeddings", "set_output_embeddings"}
)
_PACKAGES = tuple(
    os.path.join(os.path.dirname(os.path.abspath(package.__file__)), "")  # type: ignore[type-var]
    for package in (transformers, torch)
)


class _Code(NamedTuple):
    """Functions that stock runs in a call: their names, dotted, what reads them all within microseconds, and what it read first."""

    names: tuple[str, ...]
    read: Callable[[], tuple[Any, ...]]
    first: tuple[Any, ...]


def _of_module(module: Any, names: Iterable[str], prefix: str = "") -> _Code:
    names = tuple(name for name in names if hasattr(module, name.split(".")[0]))
    read = functools.partial(attrgetter(*names), module)
    return _Code(tuple(prefix + name for name in names), read, read())


def _of_registry(registry: Any, kind: str) -> _Code:
    # Its two dicts are read without its own lookup, which is Python.
    tables = [getattr(registry, name) for name in ("_local_mapping", "_global_mapping") if hasattr(registry, name)]
    get = [(table.get, key) for table in tables or [registry] for key in ("sdpa", "eager")]

    def read() -> tuple[Any, ...]:
        return tuple([function(key) for function, key in get])

    return _Code(tuple(f'the {kind} function "{key}"' for _, key in get), read, read())


def _methods(module: Any, classes: Iterable[str]) -> list[str]:
    """The dotted names of what these classes define themselves, and __call__; __init__ and accessors are left out."""
    return [
        f"{name}.{method}"
        for name in classes
        if hasattr(module, name)
        for method, value in [*vars(getattr(module, name)).items(), _CALL]
        if isinstance(value, FunctionType | staticmethod) and method not in _UNREAD_METHODS
    ]


def _collect() -> list[_Code]:
    """Code outside the modules that the fused code takes the place of, whatever the family."""
    parts = [
        _of_module(activations, _methods(activations, _GELU)),
        _of_module(nn, [f"{name}.{method}" for name in _LEAVES for method in ("forward", "__call__")]),
        _of_module(functional, _FUNCTIONS, "torch.nn.functional."),
    ]
    for registry, kind in (
        (getattr(modeling_utils, "ALL_ATTENTION_FUNCTIONS", None), "attention"),
        (getattr(masking_utils, "ALL_MASK_ATTENTION_FUNCTIONS", None), "mask"),
    ):
        if registry is not None:
            parts.append(_of_registry(registry, kind))
    return parts


def _is_own(function: Any) -> bool:
    """Whether a function, and everything that it wraps, is code of transformers or torch."""
    while isinstance(function, FunctionType):
        if not function.__code__.co_filename.startswith(_PACKAGES):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _replaced_before(code: _Code) -> str | None:
    """What was replaced before it was looked at: what is there is not what the fused code computes."""
    return next((name for name, value in zip(code.names, code.first, strict=True) if not _is_own(value)), None)


_code = _collect()
_replaced_early = next(filter(None, map(_replaced_before, _code)), None)


def watch(module: Any, classes: Iterable[str], helpers: Iterable[str]) -> None:
    """Watch a modeling module as well: the methods of these classes, and these functions."""
    global _replaced_early
    code = _of_module(module, [*_methods(module, classes), *helpers])
    _code.append(code)
    _replaced_early = _replaced_early or _replaced_before(code)


def _first_replaced() -> str | None:
    if _replaced_early is not None:
        return _replaced_early
    for code in _code:
        try:
            functions = code.read()
        except AttributeError:
            return f"one of {', '.join(code.names)}"
        if functions != code.first:
            pairs = zip(code.names, functions, code.first, strict=True)
            return next((name for name, now, first in pairs if now is not first), None)
    return None


# While torch.compile traces, this runs as it is and its answer goes into the graph: tables of functions cannot be traced.
_first_replaced._dynamo_marked_constant = True


def replaced_code() -> str | None:
    """Why the fused code would not compute what stock does now: somebody put other code in the place of stock's."""
    words = _first_replaced()
    return None if words is None else f"{words} was replaced"


def is_exporting() -> bool:
    """Whether a trace or an ONNX export is under way, whose graph must hold torch's own operators alone."""
    return torch.jit.is_tracing() or (torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export())
