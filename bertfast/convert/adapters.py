"""PEFT's LoRA beside a Linear: base weights in fused products, adapters beside them (`nn.adapters`).

PEFT need not be installed: its class is known by its name, and what is read of it stands here. A form that is not known (a
variant such as DoRA, a bias of its own, another version's attributes) is a reason for stock's code.
"""

from typing import Any

import torch
from torch import nn

from bertfast.convert.plain import hook_reason, module_reason
from bertfast.nn.adapters import LowRank
from bertfast.nn.parts import AttentionParts, LayerParts, MlpParts, parts_of
from bertfast.nn.plain import dropout_rate


def is_adapter(module: Any) -> bool:
    """Whether it is the module that PEFT's LoRA puts in the place of a Linear."""
    kind = type(module)
    return kind is not nn.Linear and kind.__name__ == "Linear" and kind.__module__ == "peft.tuners.lora.layer"


def base(module: Any) -> Any:
    """The Linear inside an adapter; any other module itself."""
    return module._modules["base_layer"] if is_adapter(module) else module


def _active(module: Any) -> list[str]:
    """The names of the adapters that add something, in the order in which stock adds it; none where they are merged or disabled."""
    if module.disable_adapters or module.merged_adapters:
        return []
    return [name for name in module.active_adapters if name in module._modules["lora_A"]._modules]


def _parts(module: Any, name: str) -> tuple[Any, Any, Any]:
    """A, B and dropout of one adapter."""
    return tuple(module._modules[part]._modules[name] for part in ("lora_A", "lora_B", "lora_dropout"))


def low_ranks(module: Any) -> tuple[LowRank, ...]:
    """What stands beside the product of a module that `product_reason` found plain, as it is now."""
    if not is_adapter(module):
        return ()
    beside = []
    for name in _active(module):
        down, up, dropout = _parts(module, name)
        rate = dropout_rate(dropout) if isinstance(dropout, nn.Dropout) else 0.0
        beside.append(LowRank(down.weight, up.weight, float(module.scaling[name]), rate))
    return tuple(beside)


def product_reason(
    module: Any, name: str, device: torch.device, dtype: torch.dtype | None = None, sharded: bool = False
) -> str | None:
    """What about a Linear, or an adapter around one, keeps a layer from the fast path; as `plain.module_reason`."""
    if not is_adapter(module):
        return module_reason(module, nn.Linear, name, device, dtype, sharded)
    reason = hook_reason(module, name) or module_reason(
        module._modules.get("base_layer"), nn.Linear, f"{name}.base_layer", device, dtype, sharded
    )
    if reason is not None:
        return reason
    try:
        return _state_reason(module, name, device, sharded)
    except (AttributeError, KeyError, TypeError) as error:
        return f"{name} is an adapter of a form that bertfast does not know ({type(error).__name__}: {error})"


def _state_reason(module: Any, name: str, device: torch.device, sharded: bool) -> str | None:
    if module.disable_adapters and module.merged_adapters:
        return f"the merged adapters of {name} are disabled, and stock's code takes them out first"
    if module.fan_in_fan_out:
        return f"the weight of {name} is stored the other way round (fan_in_fan_out)"
    if not module.cast_input_dtype_enabled:
        return f"{name} does not cast what its adapters read"
    for adapter in _active(module):
        if adapter in module.lora_variant:
            return f"adapter {adapter!r} of {name} is {type(module.lora_variant[adapter]).__name__}, not plain LoRA"
        down, up, dropout = _parts(module, adapter)
        reason = module_reason(down, nn.Linear, f"{name}.lora_A.{adapter}", device, None, sharded) or module_reason(
            up, nn.Linear, f"{name}.lora_B.{adapter}", device, down._parameters["weight"].dtype, sharded
        )
        if reason is None and type(dropout) is not nn.Identity:
            reason = module_reason(dropout, nn.Dropout, f"{name}.lora_dropout.{adapter}", device)
        if reason is not None:
            return reason
        if down._parameters["bias"] is not None or up._parameters["bias"] is not None:
            return f"adapter {adapter!r} of {name} has a bias"
        if not isinstance(module.scaling[adapter], (int, float)):
            return f"the scaling of adapter {adapter!r} of {name} is {type(module.scaling[adapter]).__name__}"
    return None


def _mapped(parts: LayerParts, function: Any) -> LayerParts:
    attention = AttentionParts(*map(function, parts.attention[:4]), *parts.attention[4:])
    return LayerParts(attention, MlpParts(*map(function, parts.mlp[:2]), *parts.mlp[2:]))


def _without_effect(module: Any) -> Any:
    """The Linear inside an adapter that adds nothing now; any other module itself."""
    if not is_adapter(module) or (module.disable_adapters and module.merged_adapters):
        return module
    return module if _active(module) else base(module)


def unwrapped(parts: LayerParts) -> LayerParts:
    """The parts with plain Linears for adapters that add nothing now, such as merged ones: what runs layers at once then may."""
    if all(type(linear) is nn.Linear for linear in parts.linears):
        return parts
    return _mapped(parts, _without_effect)


def apart(parts: LayerParts) -> tuple[LayerParts, tuple[tuple[LowRank, ...], ...]]:
    """The parts with plain Linears, and what stands beside each of the six products; () where nothing does."""
    if all(type(linear) is nn.Linear for linear in parts.linears):
        return parts, ()
    return _mapped(parts, base), tuple(low_ranks(linear) for linear in parts.linears)


def beside(layer: nn.Module) -> bool:
    """Whether adapters add something to a layer's products now, which no captured call holds."""
    return any(is_adapter(linear) for linear in parts_of(layer).linears)


def inside(module: nn.Module) -> bool:
    """Whether there is an adapter anywhere inside."""
    return any(is_adapter(each) for each in module.modules())
