"""What a run is made of, taken out and put back: weights, optimizer state by parameter name, every rank's random state.

Random states are fixed-size tensors, so that ranks exchange them without pickle and safetensors keeps them.
"""

import random
import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bertfast.train.distributed import Ranks, like, whole
from bertfast.train.errors import CheckpointError


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer that is saved, whole, on the CPU; a tied one once. Every rank must call it."""
    saved = set(model.state_dict(keep_vars=True))
    found: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if name in saved}
    found |= {name: b for name, b in model.named_buffers() if name in saved}
    return {name: whole(tensor).contiguous() for name, tensor in found.items()}


@torch.no_grad()
def restore_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy saved tensors into the model. CheckpointError names what is missing, unknown or of another shape."""
    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name in tensors}
    wanted = {name for name, _ in model.named_parameters()}
    for what, names in (("missing", wanted - set(tensors)), ("unknown", set(tensors) - set(own))):
        if names:
            raise CheckpointError(f"the checkpoint is of another model: {what} {', '.join(sorted(names)[:5])}")
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            shapes = f"{list(tensor.shape)}, the model's {list(own[name].shape)}"
            raise CheckpointError(f"the checkpoint is of another model: its {name} is {shapes}")
        own[name].copy_(like(tensor, own[name]))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as "exp_avg/NAME" and so on, whole, on the CPU. Every rank must call it."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{key}/{name}"] = whole(value).contiguous()
    return found


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put saved state back, sharded as the parameters are now. CheckpointError: state of a parameter that is not here."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint has optimizer state of {name!r}, which this model does not have")
        parameter = parameters[name]
        # The count of steps, a scalar, is on the device as well.
        placed = like(value, parameter) if value.ndim else value.to(parameter.device)
        optimizer.state[parameter][kind] = placed.clone()


def seed_all(seed: int, rank: int) -> None:
    """Seed torch, NumPy and Python. Ranks differ, so that each has its own dropout."""
    mixed = int(np.random.SeedSequence((seed, rank)).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(mixed)
    np.random.seed(mixed % 2**32)
    random.seed(mixed)


def _float_bits(value: float | None) -> list[int]:
    """Whether there is a number, and its 64 bits: spare normal deviates that Python and NumPy keep."""
    return [int(value is not None), struct.unpack("<q", struct.pack("<d", value or 0.0))[0]]


def _bits_float(has: int, bits: int) -> float | None:
    return struct.unpack("<d", struct.pack("<q", bits))[0] if has else None


def take_rng(device: torch.device) -> dict[str, Tensor]:
    """This process's random states: torch's, Python's, NumPy's, and the device's where it has its own."""
    version, words, gauss = random.getstate()
    _, keys, position, has, cached = np.random.get_state()
    found = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words, *_float_bits(gauss)]),
        "numpy": torch.tensor([*(int(k) for k in keys), position, *_float_bits(float(cached) if has else None)]),
    }
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def rng_tensors(ranks: Ranks) -> dict[str, Tensor]:
    """Random states of all ranks as "torch.0", "python.0", "numpy.0", "cuda.0", "torch.1", ... Every rank must call it."""
    return {
        f"{name}.{rank}": each
        for name, mine in take_rng(ranks.device).items()
        for rank, each in enumerate(ranks.gather(mine))
    }


def restore_rng(tensors: dict[str, Tensor], ranks: Ranks, seed: int, step: int) -> None:
    """Put this rank's states back. A rank that the saved run did not have gets a seed of (seed, step, rank)."""
    if f"torch.{ranks.rank}" not in tensors:
        seed_all(seed + step, ranks.rank)
        return
    mine = {name.partition(".")[0]: t for name, t in tensors.items() if name.endswith(f".{ranks.rank}")}
    put_rng(mine, ranks.device)


def put_rng(mine: dict[str, Tensor], device: torch.device) -> None:
    """Set this process's random states to what `take_rng` returned."""
    torch.set_rng_state(mine["torch"])
    version, *words, has, bits = mine["python"].tolist()
    random.setstate((version, tuple(words), _bits_float(has, bits)))
    *keys, position, has, bits = mine["numpy"].tolist()
    state: Any = ("MT19937", np.array(keys, np.uint32), position, has, _bits_float(has, bits) or 0.0)
    np.random.set_state(state)
    if device.type == "cuda" and "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"], device)
