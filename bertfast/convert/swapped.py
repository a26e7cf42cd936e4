"""The classes that optimize() swaps in, made of a stock class and a mixin for its role.

None has an __init__, parameters or buffers of its own: a swapped module is the stock module with another forward, so checkpointing,
deepcopy, pickle, state_dict and hooks go on as they were. The one thing kept on an instance is a dict of plain options (`options`);
counts of what each call did are kept beside the modules (`counts`).
"""

import sys
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bertfast import _torch
from bertfast.convert import installed
from bertfast.nn.parts import Places

if TYPE_CHECKING:
    from bertfast.convert.families.record import Family


class Swapped:
    """A role: what its classes have in common, whatever the family.

    Attributes:
        family: what is known of the model.
        stock: the class that was swapped out.
        arguments: binds those of a call by the stock forward's signature.
        places: where the parts of a layer stand, which `nn.parts` reads.
    """

    family: ClassVar[Any]  # transformers evaluates the hints of model classes, which knows no Family here
    stock: ClassVar[type[nn.Module]]
    arguments: ClassVar[installed.Arguments]
    places: ClassVar[Places]

    def fast_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the swapped forward does with the arguments as they came."""
        raise NotImplementedError


def unviewed(module: nn.Module, y: Tensor) -> Tensor:
    """A module's result, copied where `fully_shard` was called on it, whose hooks warn of one that is a view."""
    return y.clone() if _torch.is_sharded(module) else y


def swapped(
    stock: type[nn.Module], role: type[Swapped], family: "Family", keep_name: bool = False, prefix: str = "Fast"
) -> type[nn.Module]:
    """FastX of stock's X in a role, an attribute of the family's own file, where pickle finds it.

    keep_name: for classes that others know by stock's name: save_pretrained writes a model's into config.architectures, Trainer
        looks heads up, and accelerate shards what `_no_split_modules` names. Pickle goes by __qualname__.
    prefix: of the class's name, where X has another fast class too.
    """

    @installed.signed_as(stock.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fast_forward(args, kwargs)

    name = f"{prefix}{stock.__name__}"
    attributes = {
        "__module__": family.file,
        "__qualname__": name,
        "__doc__": role.__doc__,
        "forward": forward,
        "family": family,
        "stock": stock,
        "arguments": installed.Arguments(stock.forward),
        "places": family.places,
    }
    fast = type(stock.__name__ if keep_name else name, (stock, role), attributes)
    setattr(sys.modules[family.file], name, fast)
    return fast
