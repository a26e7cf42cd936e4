"""Whether a module is as transformers made it: of its exact class, without hooks, with ordinary parameters."""

from typing import Any

import torch
from torch import Tensor, nn

from bertfast import _torch
from bertfast.convert import installed


def _foreign(hook: Any, module: nn.Module) -> bool:
    """Whether a hook of a module may change what comes out: not those that transformers leaves on modules after a recorded call,
    and on word embeddings for gradient checkpointing, which asks for gradients that a trained table has anyway."""
    if installed.requires_input_gradients(hook):
        return not all(parameter.requires_grad for parameter in module.parameters())
    return not installed.is_recorder(hook)


def hook_reason(module: nn.Module, name: str, sharded: bool = False) -> str | None:
    """A user's hooks, or a patched forward, on `module` itself.

    sharded: hooks of `fully_shard` are none, since the module is to be called.
    """
    before, after = module._forward_pre_hooks, module._forward_hooks
    if sharded:
        before, after = _without_sharding(before), _without_sharding(after)
    foreign = after and any(_foreign(hook, module) for hook in after.values())
    if before or module._backward_hooks or module._backward_pre_hooks or foreign:
        return f"{name} has hooks"
    return f"the forward of {name} was replaced" if forward_is_replaced(module) else None


def forward_is_replaced(module: nn.Module) -> bool:
    """Whether somebody has set another forward on the instance, as accelerate does for a device_map over several devices."""
    own = module.__dict__.get("forward")
    # transformers 5.0 and 5.1 set `forward` while they record, and leave the class's own one on the instance afterwards.
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def _without_sharding(hooks: Any) -> dict[int, Any]:
    return {key: hook for key, hook in hooks.items() if not _torch.is_sharding_hook(hook)}


def module_reason(
    module: Any,
    kind: type,
    name: str,
    device: torch.device,
    dtype: torch.dtype | None = None,
    sharded: bool = False,
) -> str | None:
    """`module` is exactly `kind`, unhooked, and its parameters are ordinary tensors on `device`, of `dtype` where given.

    sharded: they are so when a layer around it is called, which `fully_shard` has pieces of now.
    """
    if type(module) is not kind:
        actual = type(module)
        # An adapter may have the name of what it wraps, as LoRA's Linear has.
        said = actual.__name__ if actual.__name__ != kind.__name__ else f"{actual.__module__}.{actual.__name__}"
        return f"{name} is {said}, not a plain {kind.__name__}"
    reason = hook_reason(module, name)
    if reason is not None:
        return reason
    for parameter in module._parameters.values():
        if parameter is None:
            continue
        if (not sharded and type(parameter) not in (nn.Parameter, Tensor)) or parameter.device != device:
            where = f"on the {parameter.device.type} device" if parameter.device != device else type(parameter).__name__
            return f"the weights of {name} are {where}"
        if dtype is not None and parameter.dtype != dtype:
            return f"the weights of {name} are {parameter.dtype} where hidden states are {dtype}"
    if kind is nn.Dropout and module.p >= 1.0:
        return f"{name} drops everything"
    if kind is nn.LayerNorm:
        if module.weight is None or module.bias is None:
            return f"{name} has no weight or no bias"
        if tuple(module.normalized_shape) != tuple(module.weight.shape) or module.weight.dim() != 1:
            return f"{name} normalises over {tuple(module.normalized_shape)}"
    return None
