"""Why a whole model is left as it is: it holds nothing that bertfast knows, or something that it would compute wrongly."""

from torch import nn

from bertfast.convert import trial
from bertfast.convert.accumulation import FastAveragedHead
from bertfast.convert.families import FAMILIES, fast_class, stock_class, unfit
from bertfast.convert.masked_heads import FastMaskedHead


def known(model: nn.Module) -> list[nn.Module]:
    """The modules inside that have a fast class, stock or swapped, heads that an option alone swaps apart."""
    return [
        module
        for module in model.modules()
        if fast_class(module) is not None
        or (stock_class(module) is not None and not isinstance(module, FastMaskedHead | FastAveragedHead))
    ]


def refusal(model: nn.Module) -> str | None:
    """Why optimize() does not take a model; None where it does."""
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor" or type(parameter.data).__name__ == "DTensor":
            return f"{name} is a DTensor already: call bertfast.optimize before fully_shard"
    modules = known(model)
    for module in modules:
        config = getattr(module, "config", None)
        kind = getattr(config, "position_embedding_type", "absolute") or "absolute"
        if kind != "absolute":
            return (
                f'position_embedding_type is "{kind}": transformers 5 accepts the option but no longer computes it, so neither '
                "stock nor fast numbers would be the checkpoint's. Use a checkpoint with absolute positions."
            )
    if modules:
        return None
    lacking = unfit(model)
    if lacking is not None:
        return trial.sentence(lacking)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    kind = f" (model_type {kind!r})" if kind else ""
    supported = ", ".join(family.model_type for family in FAMILIES.values())
    reason = f"{type(model).__name__}{kind} holds no module that bertfast knows; supported families: {supported}"
    if not kind:  # not of transformers, whose attention a name chooses
        return reason
    return (
        f"{reason}. For an encoder's attention alone call bertfast.register_attention() and load the model with "
        'attn_implementation="bertfast"'
    )
