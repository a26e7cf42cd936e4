"""What optimizers share that update every parameter in one pass on a GPU (`bertfast.ops.optimizer`): their tensors as lists.

State is torch's, a dict for each parameter with "step", "exp_avg" and "exp_avg_sq", so that checkpoints, resuming and whatever else
goes through it know nothing of this. The ops find the tensors by their addresses, which they look at in every step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bertfast import _library
from bertfast.nn.joined import Held
from bertfast.ops.optimizer import addresses

_SETTINGS = ("eps", "weight_decay")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def runs(name: str, device: torch.device) -> bool:
    """Whether kernels run `bertfast::name` on a device, and not what the op means in torch's functions."""
    return device.type == "cuda" and _library.resolved(name, "CUDA") is not _library.meaning(name)


def op(name: str, device: torch.device) -> Callable[..., Any]:
    """What runs `bertfast::name` on a device; on a GPU without the dispatcher, which takes long to read lists of tensors."""
    return _library.resolved(name, "CUDA") if device.type == "cuda" else _library.op(name)


def is_placing() -> bool:
    """Whether steps only note where their tensors lie (`placing`)."""
    return addresses.is_placing()


@contextmanager
def placing() -> Iterator[object]:
    """Steps meanwhile note where their tensors lie and launch nothing. A capture, which cannot, finds it while the object lives."""
    placed = addresses.Placed()
    with addresses.placing(placed):
        yield placed


def can_add_up(tensors: Sequence[Tensor]) -> bool:
    """Whether all lie whole on this rank, or all are sharded over the same ranks."""
    sharded = [t for t in tensors if isinstance(t, DTensor)]
    if not sharded:
        return True
    meshes = {t.device_mesh for t in sharded}
    return len(sharded) == len(tensors) and len(meshes) == 1 and all(_is_split(t) for t in sharded)


def _is_split(tensor: DTensor) -> bool:
    return len(tensor.placements) == 1 and tensor.placements[0].is_shard()


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all gradients, of which `can_add_up` holds, over all ranks."""
    norm: Tensor = op("gradient_norm", gradients[0].device)([local(g) for g in gradients])
    if not isinstance(gradients[0], DTensor) or is_placing():
        return norm
    square = norm.square()
    torch.distributed.all_reduce(square, group=gradients[0].device_mesh.get_group())
    return square.sqrt()


class OnePass(torch.optim.Optimizer):
    """Attributes that steps read, set by `reading`:

    norm, max_norm: gradients whose global norm is `norm`, a scalar on the device, are clipped to `max_norm`; None for no clipping.
    copies: of weights, which a step writes as well.
    """

    norm: Tensor | None = None
    max_norm: float = 0.0
    copies: Held | None = None

    @property
    def device(self) -> torch.device:
        """Of all parameters."""
        return self.param_groups[0]["params"][0].device

    @contextmanager
    def reading(self, norm: Tensor | None, max_norm: float, copies: Held | None) -> Iterator[None]:
        """Steps meanwhile clip the gradients by their norm and write the copies."""
        self.norm, self.max_norm, self.copies = norm, max_norm, copies
        try:
            yield
        finally:
            self.norm, self.max_norm, self.copies = None, 0.0, None

    def is_one_pass(self) -> bool:
        """Whether a step clips and writes copies."""
        raise NotImplementedError

    def make_state(self, parameters: Sequence[Tensor]) -> None:
        """The state of parameters that have none, as torch's fused optimizers make it."""
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }

    def gather(self) -> tuple[list[Tensor], tuple[list[Tensor], ...], list[int], list[float]]:
        """The parameters that have a gradient, in the order of the groups.

        Returns:
            The parameters; local parts of weights, gradients and both moments, and steps; the groups' sizes and settings.
        """
        of_groups = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        parameters = [p for group in of_groups for p in group]
        self.make_state(parameters)
        states = [self.state[p] for p in parameters]
        columns = (
            [local(p) for p in parameters],
            [local(p.grad) for p in parameters if p.grad is not None],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [state["step"] for state in states],
        )
        settings = [
            float(value) for group in self.param_groups for value in (*group["betas"], *(group[n] for n in _SETTINGS))
        ]
        return parameters, columns, [len(group) for group in of_groups], settings

    def rates(self) -> Tensor:
        """The groups' learning rates on their device: one for all, or [groups]."""
        rates = [group["lr"] for group in self.param_groups]
        if all(rate is rates[0] for rate in rates) and isinstance(rates[0], Tensor):
            return rates[0]
        if any(isinstance(rate, Tensor) for rate in rates):
            device = self.device
            return torch.stack([torch.as_tensor(rate, dtype=torch.float32).to(device) for rate in rates])
        told = torch.tensor(rates, dtype=torch.float64)
        return told.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else told

    def targets(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The copy of each parameter that a step writes, [0] where there is none or there are several."""
        absent = torch.empty(0, device=self.device)
        known = _single(self.copies)
        return [known.get(id(p), absent) for p in parameters]

    def writes_all(self) -> bool:
        """Whether no copy of a weight that is trained is left to be written after a step.

        Those of parameters without a gradient, which steps leave as they are, hold already what the parameters do.
        """
        if self.copies is None:
            return True
        own, known = {id(p) for group in self.param_groups for p in group["params"]}, _single(self.copies)
        pairs = self.copies.pairs()
        return all(not source.requires_grad or (id(source) in own and id(source) in known) for source, _ in pairs)


def _single(copies: Held | None) -> dict[int, Tensor]:
    """Copies by the identity of their parameters, of those that have one."""
    known: dict[int, Tensor] = {}
    several: set[int] = set()
    for source, target in () if copies is None else copies.pairs():
        if id(source) in known:
            several.add(id(source))
        known[id(source)] = target
    return {key: target for key, target in known.items() if key not in several}
