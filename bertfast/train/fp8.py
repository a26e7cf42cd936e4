"""Training with products in FP8: which recipe a run's options mean, on what it can run, and what a checkpoint keeps of it."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from bertfast.nn import BertEncoder, device, fp8_state
from bertfast.nn.fp8_state import Recipe, State
from bertfast.nn.parts import parts_of
from bertfast.train.config import TrainConfig
from bertfast.train.distributed import Ranks
from bertfast.train.errors import CheckpointError, ConfigError
from bertfast.triton import verified

_GRADIENTS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def recipe(config: TrainConfig) -> Recipe:
    """What a run's options ask for."""
    return Recipe(
        gradients=_GRADIENTS[config.fp8_gradients],
        last=config.fp8_last_layers,
        weight_gradients=config.fp8_weight_gradients,
    )


def running(config: TrainConfig, where: torch.device, *, quietly: bool = False) -> AbstractContextManager[None]:
    """What a run needs around it: a CPU, which has no such products, emulates a GPU's numbers and, unless `quietly`, says so."""
    return _emulated(quietly) if config.precision == "fp8" and where.type == "cpu" else nullcontext()


@contextmanager
def _emulated(quietly: bool) -> Iterator[None]:
    if not quietly:
        warnings.warn(
            "precision fp8 on a CPU emulates the numbers of a GPU, several times as slowly as precision bf16: for tests and "
            "comparisons",
            UserWarning,
            stacklevel=2,
        )
    with device.on_cpu():
        yield


def check(model: nn.Module, config: TrainConfig, ranks: Ranks) -> None:
    """ConfigError where a run asks for FP8 and its model, device or options cannot have it."""
    reason = _why_not(model, config, ranks) if config.precision == "fp8" else None
    if reason is not None:
        raise ConfigError(f"precision fp8: {reason}, or precision bf16, which runs everywhere")


def _why_not(model: nn.Module, config: TrainConfig, ranks: Ranks) -> str | None:
    if config.parallel == "fsdp" and ranks.size > 1:
        return "parallel fsdp shards the weights that it casts: choose parallel ddp"
    encoders = _encoders(model)
    if not encoders:
        return "the model has no encoder of bertfast's: choose a model that has one"
    for encoder in encoders:
        depth, last = len(encoder.layer), config.fp8_last_layers
        if depth <= last:
            return f"fp8_last_layers keeps the last {last} of {depth} layers in bf16, and leaves none: choose less than {depth}"
        up = parts_of(encoder.layer[0]).mlp.up
        with running(config, ranks.device, quietly=True):
            reason = fp8_state.why_not(ranks.device, torch.bfloat16, up.in_features, up.out_features)
        if reason is not None:
            return f"{reason}; choose another device or model"
    return None


def _encoders(model: nn.Module) -> list[BertEncoder]:
    return [module for module in model.modules() if isinstance(module, BertEncoder)]


def notes(config: TrainConfig, where: torch.device) -> list[str]:
    """What a run says of FP8's ops on its GPU that are not verified there."""
    if config.precision != "fp8" or where.type != "cuda":
        return []
    text = unverified(where)
    return [] if text is None else [f"precision fp8: {text}"]


def unverified(where: torch.device) -> str | None:
    """Which of FP8's ops run torch's own functions on a GPU; None where all run their kernels."""
    major, minor = torch.cuda.get_device_capability(where)
    arch = 10 * major + minor
    ops = [op for op in verified.gate(arch) if verified.is_asked_for(op)]
    if not ops:
        return None
    return f"{', '.join(ops)} not verified on sm_{arch}: torch's own functions, slower than bfloat16's kernels, run in their place"


class Scales:
    """The scales of a model's FP8 layers, for the loop and its checkpoints."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        """Make the encoders of a model multiply in FP8, which `check` found to be possible."""
        self._recipe, self._encoders = recipe(config), _encoders(model)
        for encoder in self._encoders:
            encoder.fp8 = self._recipe

    def _states(self) -> list[State]:
        return [
            fp8_state.state_of(encoder, self._recipe, len(encoder.layer), next(encoder.parameters()).device)
            for encoder in self._encoders
        ]

    def confirm(self) -> None:
        """After a first step. ConfigError where layers ran otherwise, as those with hooks do."""
        if not all(state.was_used for state in self._states()):
            raise ConfigError(
                "precision fp8: the layers were not computed in FP8, since hooks, replaced modules or a trace need each of them "
                "called: remove these, or choose precision bf16"
            )

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, on the CPU. Equal on all ranks."""
        return {
            f"{number}.{name}": tensor.cpu()
            for number, state in enumerate(self._states())
            for name, tensor in state.tensors().items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave. CheckpointError where it is of another model."""
        for number, state in enumerate(self._states()):
            own = {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(f"{number}.")}
            try:
                state.load(own)
            except ValueError as error:
                raise CheckpointError(str(error)) from None
