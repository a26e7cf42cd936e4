"""sentence-transformers: what `optimize` and `restore` do to a SentenceTransformer or a CrossEncoder, beside the model inside it.

Nothing is imported where the library is not loaded, or is a release whose loop over sentences is another: such a model
keeps its own loop, around a fast model.
"""

import sys
from types import ModuleType

from torch import nn


def _loops() -> ModuleType | None:
    if "sentence_transformers" not in sys.modules:
        return None
    from bertfast.convert.sentences import installed

    if not installed.fits():
        return None
    from bertfast.convert.sentences import loops

    return loops


def swap(model: nn.Module) -> None:
    """Give every SentenceTransformer and CrossEncoder in `model` the loop over batches of equal lengths; subclasses stay as they
    are. To be called once the models inside are swapped."""
    loops = _loops()
    if loops is None:
        return
    for module in model.modules():
        fast = loops.FAST_CLASSES.get(type(module))
        if fast is not None:
            module.__class__ = fast


def stock_class(module: nn.Module) -> type[nn.Module] | None:
    """The library's class of a module that `swap` has changed; None for any other."""
    loops = _loops()
    return None if loops is None else loops.STOCK.get(type(module))
